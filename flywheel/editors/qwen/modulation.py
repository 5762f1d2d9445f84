"""Modulation tables: what a Qwen transformer computes from the timestep alone, computed once and looked up.

A third of the weights (6.8 of 20.4 billion: img_mod and txt_mod of 60 blocks) sees nothing but the timestep. A sampler visits 4 to 40 timesteps,
so these weights become rows: 4.4 MB per timestep instead of 12.7 GiB in bf16. The result is the same, and so are the gradients of LoRAs on the other
layers: the row travels through the blocks as `temb`, so gradient checkpointing and accumulation meet the row they had in the forward pass.

Also the models whose controls are modulated at time zero (`zero_cond_t`, Edit-2511) need no special case: time zero is one more row.
Adapters that touch these layers are folded into the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import EditorError

Pair = tuple[torch.Tensor, torch.Tensor]  # A (r, in) and B (out, r): the layer gains B A, times the adapter's weight
Fold = tuple[Mapping[str, Pair], float]  # the part of an adapter that touches these layers, and its weight
Read = Callable[[str], torch.Tensor]  # a stored weight by its name

EMBEDDER, OUT = "time_text_embed.timestep_embedder", "norm_out.linear"


def belongs(module: str) -> bool:
    """Whether a layer of the transformer sees only the timestep."""
    return module.startswith("time_text_embed.") or module == OUT or module.endswith((".img_mod.1", ".txt_mod.1"))


@dataclass(frozen=True, slots=True)
class Tables:
    """One row per timestep, ascending in `times` (T,), as the transformer's own type rounds them, kept in fp32.

    `embedded` (T, D): what the layers see. `image`, `text` (L, T, 6 D) and `out` (T, 2 D): what they answer.
    """

    times: torch.Tensor
    embedded: torch.Tensor
    image: torch.Tensor
    text: torch.Tensor
    out: torch.Tensor

    def pick(self, times: torch.Tensor) -> Tables:
        """Only these timesteps (and time zero where there is a row for it).

        Raises:
            EditorError: there is no row for one of them.
        """
        wanted = torch.unique(torch.cat([times.float(), self.times[self.times == 0]]))
        rows = _rows(self.times, wanted)
        return Tables(wanted, self.embedded[rows], self.image[:, rows], self.text[:, rows], self.out[rows])

    def to(self, device: torch.device | str) -> Tables:
        return Tables(*(getattr(self, name).to(device) for name in self.__slots__))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name).contiguous() for name in self.__slots__}

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())


def grid(times: torch.Tensor, dtype: torch.dtype, *, zero: bool) -> torch.Tensor:
    """The distinct timesteps a transformer of this type can tell apart, ascending; with time zero where its controls need it."""
    rounded = times.to(dtype).float().cpu()
    return torch.unique(torch.cat([rounded, torch.zeros(1)]) if zero else rounded)


@torch.no_grad()
def build(
    read: Read,
    layers: int,
    times: torch.Tensor,
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
    folds: Sequence[Fold] = (),
    on_layer: Callable[[int, int], None] = lambda *_: None,
) -> Tables:
    """Read the layers one after another and keep their answers to `times` (from `grid`), on the CPU.

    Never more than one layer of weights is on the device. `on_layer` is told how many of how many blocks are done and may raise.
    """
    from diffusers.models.embeddings import Timesteps

    def answer(module: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (read(f"{module}.{part}").to(device, dtype) for part in ("weight", "bias"))
        return F.linear(x, weight, bias) + _folded_in(folds, module, x)

    projected = Timesteps(num_channels=256, flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000)(times.to(device, dtype)).to(dtype)
    embedded = answer(f"{EMBEDDER}.linear_2", F.silu(answer(f"{EMBEDDER}.linear_1", projected)))
    seen = F.silu(embedded)
    image, text = [], []
    for layer in range(layers):
        on_layer(layer, layers)
        image.append(answer(f"transformer_blocks.{layer}.img_mod.1", seen).cpu())
        text.append(answer(f"transformer_blocks.{layer}.txt_mod.1", seen).cpu())
    return Tables(times.float().cpu(), embedded.cpu(), torch.stack(image), torch.stack(text), answer(OUT, seen).cpu())


@torch.no_grad()
def fold(tables: Tables, folds: Sequence[Fold]) -> Tables | None:
    """The tables with adapters added, without any weights; None when an adapter changes what the layers see, so that they must be built anew."""
    if any(module.startswith("time_text_embed.") for pairs, _ in folds for module in pairs):
        return None
    seen = F.silu(tables.embedded)
    image, text = (
        torch.stack([rows + _folded_in(folds, f"transformer_blocks.{layer}.{stream}.1", seen) for layer, rows in enumerate(table)])
        for stream, table in (("img_mod", tables.image), ("txt_mod", tables.text))
    )
    return Tables(tables.times, tables.embedded, image, text, tables.out + _folded_in(folds, OUT, seen))


def _folded_in(folds: Sequence[Fold], module: str, x: torch.Tensor) -> torch.Tensor:
    added = torch.zeros((), dtype=x.dtype, device=x.device)
    for pairs, weight in folds:
        if module in pairs:
            down, up = (matrix.to(x.device, x.dtype) for matrix in pairs[module])
            added = added + weight * F.linear(F.linear(x, down), up)
    return added


def install(transformer: Any, tables: Tables, *, device: torch.device | str | None = None) -> None:
    """Put rows where the layers were; their weights are freed. Call it again for other rows.

    Raises:
        EditorError: the model conditions on more than the timestep.
    """
    config = transformer.config
    if config.guidance_embeds or config.use_additional_t_cond:
        raise EditorError("This transformer is conditioned on more than the timestep, so its modulation cannot be tabulated.")
    here = tables.to(device if device is not None else next(transformer.parameters()).device)
    transformer.time_text_embed = _RowOf(here.times)
    for block, image, text in zip(transformer.transformer_blocks, here.image, here.text, strict=True):
        block.img_mod, block.txt_mod = _Rows(image), _Rows(text)
    transformer.norm_out = _NormOut(transformer.norm_out.norm, here.out)


class _RowOf(nn.Module):
    """In place of the timestep's embedding: the number of its row, (B, 1) fp32."""

    def __init__(self, times: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("times", times, persistent=False)

    def forward(self, timestep: torch.Tensor, *_: Any) -> torch.Tensor:
        return _rows(self.get_buffer("times"), timestep.float()).float()[:, None]  # fp32 counts exactly to 16 million, bf16 only to 256

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        times = self.get_buffer("times")
        done = super()._apply(fn, recurse)
        self.register_buffer(
            "times", times.to(self.get_buffer("times").device), persistent=False
        )  # its numbers are keys: never another type
        return done


class _Rows(nn.Module):
    """In place of a modulation: (B, 1) row numbers to (B, 6 D)."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.get_buffer("table")[rows[:, 0].long()]


class _NormOut(nn.Module):
    """In place of the last normalisation, whose scale and shift come from a row."""

    def __init__(self, norm: nn.Module, table: torch.Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        scale, shift = self.get_buffer("table")[rows[:, 0].long()].to(x.dtype).chunk(2, dim=1)
        return self.norm(x) * (1 + scale)[:, None] + shift[:, None]


def _rows(times: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    wanted = wanted.to(times.device).contiguous()
    rows = torch.searchsorted(times, wanted).clamp(max=len(times) - 1)
    if not torch.equal(times[rows], wanted):
        lost = sorted(set(wanted.tolist()) - set(times.tolist()))
        raise EditorError(f"There is no modulation row for the timestep {lost[0]:g}; the tables were built for another schedule.")
    return rows
