"""Modulation tables for a Qwen model that ComfyUI has loaded: a third of its weights sees only the timestep and need not be on the card.

ComfyUI's memory manager lets them go: an object patch takes a module out of the model's tree, and what is not in the tree is neither moved to the
card nor, once the patcher's size says so, counted. The rows are computed by ComfyUI's own layers, one at a time, so that quantised weights and
LoRAs on them are what they would have been.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import LowVramPatch
from torch import nn

from ..flywheel.errors import EditorError
from .comfy_loras import linear_size

INNER = "diffusion_model"
EMBEDDER, OUT = "time_text_embed", "norm_out"
# what dynamic VRAM leaves on a layer: its page, and its LoRAs of that time
_STAGED = ("_v", "weight_lowvram_function", "bias_lowvram_function")


class Tables:
    """The layers of one model that see only the timestep. Make it while no tables are installed; `let_go` before patches are added, and at the end."""

    def __init__(self, model: Any) -> None:
        let_go(model)
        inner = model.model.diffusion_model
        self.blocks = [
            (f"transformer_blocks.{n}.{stream}", getattr(block, stream))
            for n, block in enumerate(inner.transformer_blocks)
            for stream in ("img_mod", "txt_mod")
        ]
        self.embedder, self.out = getattr(inner, EMBEDDER), getattr(inner, OUT)
        self.bytes = tabled_bytes(model)

    def installed(self, model: Any, times: torch.Tensor) -> Any:
        """A clone whose model looks these timesteps up; another timestep is an EditorError. Every layer is on the card for one moment."""
        times = torch.unique(times.float().cpu())
        device, dtype = model.load_device, model.model.get_dtype_inference()
        here = times.to(device)
        with _ready(self.embedder, EMBEDDER, model):
            seen = self.embedder(here, torch.empty(0, dtype=dtype), None)
        patched = model.clone()
        patched.add_object_patch(f"{INNER}.{EMBEDDER}", _Numbers(here))
        for path, layers in self.blocks:
            with _ready(layers, path, model):
                patched.add_object_patch(f"{INNER}.{path}", _Rows(layers(seen)))
        with _ready(self.out, OUT, model):
            rows = self.out.linear(self.out.silu(seen))
        patched.add_object_patch(f"{INNER}.{OUT}", _Normalised(self.out.norm, rows))
        patched.size = model.model_size() - self.bytes
        return patched


def tabled_bytes(model: Any) -> int:
    """Of the weights that need not be on the card; read while no tables are installed."""
    inner = model.model.diffusion_model
    layers = [
        getattr(inner, EMBEDDER),
        getattr(inner, OUT),
        *(layer for block in inner.transformer_blocks for layer in (block.img_mod, block.txt_mod)),
    ]
    return sum(comfy.model_management.module_size(layer) for layer in layers)


def row_bytes(model: Any) -> int:
    """Of the rows of one timestep."""
    inner = model.model.diffusion_model
    return (len(inner.transformer_blocks) * 12 + 3) * inner.inner_dim * model.model.get_dtype_inference().itemsize


def let_go(model: Any) -> None:
    """Take the model and its clones off the card and make its tree whole again. ComfyUI takes what is loaded for whole, so this must not be left out."""
    for loaded in list(comfy.model_management.current_loaded_models):
        if loaded.model is not None and model.is_clone(loaded.model):
            loaded.model_unload()
            comfy.model_management.current_loaded_models.remove(loaded)


@contextmanager
def _ready(layers: nn.Module, path: str, model: Any) -> Iterator[None]:
    """While this lasts, the linear layers fetch their weights from wherever they are, with the LoRAs that touch them."""
    with ExitStack() as undo:
        for name, layer in layers.named_modules():
            if not linear_size(layer):
                continue
            keys = {kind: ".".join(filter(None, (INNER, path, name, kind))) for kind in ("weight", "bias")}
            touched = [kind for kind, key in keys.items() if key in model.patches]
            if not _takes_patches(layer):
                if touched:
                    raise EditorError(
                        "A LoRA touches the modulation of this model, whose loader does its own arithmetic. Switch modulation_tables off, or take the LoRA"
                        " out."
                    )
                continue
            wanted = {f"{kind}_function": [LowVramPatch(keys[kind], model.patches)] if kind in touched else [] for kind in keys}
            for attribute, value in ({"comfy_cast_weights": True} | wanted).items():
                undo.callback(setattr, layer, attribute, getattr(layer, attribute))
                setattr(layer, attribute, value)
            for attribute in _STAGED:
                if attribute in vars(layer):
                    undo.callback(setattr, layer, attribute, vars(layer).pop(attribute))
        yield


def _takes_patches(layer: nn.Module) -> bool:
    """Whether ComfyUI's own code makes the weights ready. Loaders with arithmetic of their own, such as GGUF's, put that in its place."""
    return getattr(getattr(type(layer), "forward_comfy_cast_weights", None), "__module__", "") == comfy.ops.__name__


class _Numbers(nn.Module):
    """In place of the timestep's embedding: the number of its row, (B, 1) fp32."""

    def __init__(self, times: torch.Tensor) -> None:
        super().__init__()
        self.times = times

    def forward(self, timestep: torch.Tensor, *_: Any) -> torch.Tensor:
        wanted = timestep.float().contiguous()
        rows = torch.searchsorted(self.times, wanted).clamp(max=len(self.times) - 1)
        if not torch.equal(self.times[rows], wanted):
            raise EditorError(
                "This sampler asks for timesteps between those of its schedule. Choose euler, or switch modulation_tables off."
            )
        return rows.float()[:, None]


class _Rows(nn.Module):
    """In place of a modulation: (B, 1) row numbers to (B, 6 D)."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.table[rows[:, 0].long()]


class _Normalised(nn.Module):
    """In place of the last normalisation, whose scale and shift come from a row."""

    def __init__(self, norm: nn.Module, table: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.table = norm, table

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        scale, shift = self.table[rows[:, 0].long()].chunk(2, dim=1)
        return torch.addcmul(shift[:, None], self.norm(x), (1 + scale)[:, None])
