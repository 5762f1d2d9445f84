"""What every row finds: the pack under its name, a model folder of full size with nothing in it yet, weights made random on the way, a stopwatch.

No download and hardly any disk: the files of the model are sparse (holes read as zeros), and weights are made random once they are loaded, because
zeros would draw less power and run faster.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "flywheel" / "editors")]
import conftest  # noqa: E402, F401 - gives the pack its name
import qwen_tiny  # noqa: E402
from portrait import portrait  # noqa: E402

GIB = 2**30
FULL_SIDE, TINY_SIDE = 1024, 64  # px of an image
FULL_TEXT = {  # Qwen2.5-VL-7B
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
FULL_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_NAMES = {torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32"}
_BLOCK = 2**24  # weights that are drawn; a larger tensor repeats them
_FP8_SMALL = 0x28  # codes below are at most 0.25: sums stay finite


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a row runs. `place`: a folder that outlives the row. `cap`: GiB of the card that may be used; 0 on a CPU."""

    device: torch.device
    tiny: bool
    cap: float
    place: Path

    @property
    def side(self) -> int:
        return TINY_SIDE if self.tiny else FULL_SIDE

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def images(self, steps: int) -> int:
        """How many are timed: one where an image takes minutes."""
        return 2 if self.tiny else 3 if steps <= 8 else 1

    def model(self) -> Path:
        """The model folder, made when it is not there."""
        folder = self.place / ("tiny" if self.tiny else "full")
        if not (folder / "done").exists():
            qwen_tiny.build(folder)
            if not self.tiny:
                _grow(folder)
            (folder / "done").touch()
        return folder

    def photos(self, count: int) -> list[Any]:
        """Different pictures of the result's size."""
        return [portrait().rotate(90 * n).resize((self.side, self.side)).convert("RGB") for n in range(count)]


def cap_memory(cap: float) -> float:
    """Let torch have no more than `cap` GiB of the card; returns what it may have."""
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    torch.cuda.set_per_process_memory_fraction(min(cap, total) / total)
    return min(cap, total)


# --- a model of the real size -----------------------------------------------------------------------------------------------------------


def _grow(folder: Path) -> None:
    """Turn the tiny folder into one of full size: real configurations, sparse bf16 weights."""
    import diffusers
    from accelerate import init_empty_weights
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with init_empty_weights():
        transformer: Any = diffusers.QwenImageTransformer2DModel()
        config = json.loads((folder / "text_encoder" / "config.json").read_text())
        config["text_config"] = {name: value for name, value in config["text_config"].items() if name != "layer_types"} | FULL_TEXT
        config["vision_config"] |= FULL_VISION
        text: Any = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    for part, made, name in (("transformer", transformer, "diffusion_pytorch_model"), ("text_encoder", text, "model")):
        for old in (folder / part).glob("*.safetensors"):
            old.unlink()
        shapes = {weight: (torch.bfloat16, tuple(tensor.shape)) for weight, tensor in made.named_parameters()}
        sparse(folder / part / f"{name}.safetensors", shapes)
    transformer.save_config(folder / "transformer")
    text.config.save_pretrained(folder / "text_encoder")
    diffusers.AutoencoderKLQwenImage().save_pretrained(folder / "vae")


def sparse(path: Path, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """A safetensors file of these tensors that is all hole. Format: https://github.com/huggingface/safetensors#format"""
    header, place = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = dtype.itemsize * prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    told = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(told)) + told)
        file.truncate(8 + len(told) + place)


@torch.no_grad()
def randomise(root: Any) -> None:
    """Weights as a model has them: small, all different within 16 million, nowhere a code that is not a number."""
    from comfyui_flenwheel.flywheel.editors.qwen import quantised

    for module in root.modules():
        if isinstance(module, quantised.ScaledLinear):
            _fill(module.weight, "fp8" if module.kind == "fp8" else "int8")
            module.get_buffer("scale").fill_(0.02 / (0.25 if module.kind == "fp8" else 127))
        elif type(module).__name__ == "Linear4bit":
            _fill(module.weight.data, "4 bits")
        elif getattr(module, "weight", None) is not None and module.weight.ndim > 1 and module.weight.is_floating_point():
            _fill(module.weight.data, "fp8" if module.weight.dtype == torch.float8_e4m3fn else "normal")
    for name, buffer in root.named_buffers():
        if name.endswith("table"):
            _fill(buffer, "normal")


def _fill(tensor: torch.Tensor, how: str) -> None:
    flat = tensor.view(torch.uint8).view(-1) if how == "fp8" and tensor.dtype != torch.uint8 else tensor.reshape(-1)
    block = torch.empty(min(_BLOCK, len(flat)), dtype=flat.dtype, device=flat.device)
    if how == "normal":
        block.normal_(0, 0.02)
    elif how == "fp8":
        block.random_(0, 2 * _FP8_SMALL)
        block = torch.where(block < _FP8_SMALL, block, block - _FP8_SMALL + 0x80)  # the upper half becomes negative
    else:
        block.random_(-127, 127) if how == "int8" else block.random_(0, 256)
    for start in range(0, len(flat), len(block)):
        piece = flat[start : start + len(block)]
        piece.copy_(block[: len(piece)])


# --- measuring --------------------------------------------------------------------------------------------------------------------------


def timed(device: torch.device, act: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and the most GiB that torch held of the card meanwhile (of a CPU: what the process holds)."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter() - began, torch.cuda.max_memory_reserved() / GIB
    import psutil

    return time.perf_counter() - began, psutil.Process().memory_info().rss / GIB


@contextlib.contextmanager
def small_controls(bench: Bench) -> Iterator[None]:
    """The pipeline always shows controls at one megapixel: on the tiny model that would be all the time there is."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as upstream

    before = upstream.VAE_IMAGE_SIZE
    upstream.VAE_IMAGE_SIZE = bench.side**2
    try:
        yield
    finally:
        upstream.VAE_IMAGE_SIZE = before


def silent(*_: Any, **__: Any) -> None:
    pass
