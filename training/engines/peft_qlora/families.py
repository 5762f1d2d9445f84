"""What differs between the models that are trained: how examples are encoded, what is loaded, how a velocity is predicted, how a sample is made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from ....flywheel.editors.qwen.models import GIB, ModelFolder
from ....flywheel.editors.qwen.quantised import BYTES
from ....flywheel.errors import EditorUnavailable
from ...trainset import Example
from .plan import Size

Say = Callable[[str], None]  # told what is going on; may raise


@dataclass(frozen=True, slots=True)
class Shown:
    """An example and the sizes it is learnt at: of the target, then of its controls."""

    example: Example
    sizes: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as the transformer takes it, on the CPU. `target` (1, N, C) and `controls` (1, M, C) fp32 tokens; `words` and `blank` by name."""

    target: torch.Tensor
    controls: torch.Tensor
    words: Mapping[str, torch.Tensor]
    blank: Mapping[str, torch.Tensor]


class Family(Protocol):
    """One base model. Encoders are loaded, used and dropped before the transformer is loaded."""

    model_name: str
    targets: Mapping[str, str]  # name of a choice to the pattern of the layers that learn
    transformer: Any
    device: torch.device

    def facts(self) -> list[str]: ...

    def layers(self) -> Mapping[str, tuple[int, int] | None]: ...

    def shift(self, size: Size) -> float: ...

    def tokens(self, size: Size) -> tuple[int, int]:
        """Number and width of a target's tokens."""
        ...

    def encode(self, shown: Sequence[Shown], prompts: Sequence[str], say: Say) -> None:
        """Encode everything that is not in the cache. `prompts` pairs with `shown`; captions are encoded anyway."""
        ...

    def encoded(self, shown: Shown, prompt: str) -> Encoded: ...

    def load(self, times: torch.Tensor, sampled: Sequence[Size], say: Say) -> None:
        """Load the frozen transformer, ready for these noise levels and for samples of these sizes."""
        ...

    def velocity(
        self, batch: Sequence[Encoded], shown: Sequence[Shown], blank: Sequence[bool], x: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """What the transformer predicts (B, N, C) fp32 for noised targets `x`."""
        ...

    def sample(self, one: Encoded, shown: Shown, seed: int) -> Image.Image: ...


def device(asked: str, rank: int = 0) -> torch.device:
    """Where to compute; `rank` counts the cards of a run on several."""
    name = asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if rank >= count:
        found = f"{count} CUDA cards are" if count else "no CUDA card is"
        raise EditorUnavailable(f"{rank + 1} CUDA cards are asked for and {found} here that torch can use. Set device = cpu, or gpus.")
    return torch.device(name, rank)


def dtype_on(place: torch.device) -> torch.dtype:
    """bf16 on cards. On the CPU fp32: it is as fast there, and exact."""
    return torch.float32 if place.type == "cpu" else torch.bfloat16


def base_bytes(model: ModelFolder, precision: str, dtype: torch.dtype, without: Callable[[str], bool] = lambda _: False) -> int:
    """What the frozen base weighs. `without`: layers that are not loaded."""
    size = sum(prod(shape) for name, (_, shape) in model.tensors("transformer").items() if not without(_owner(name)))
    return round(size * BYTES.get(precision, torch.finfo(dtype).bits / 8))


def base_facts(model: ModelFolder, precision: str, place: torch.device, size: int, cache: Path) -> list[str]:
    """What the base is, and the room it is going to take.

    Raises:
        EditorUnavailable: the disk has no room for the quantised base, which is kept.
    """
    blocks = model.config("transformer")["num_layers"]
    kept = any((cache / "quantised").glob(f"{model.root.name}-{precision}-*.safetensors"))
    if precision != "as stored" and not kept:
        there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
        if (free := shutil.disk_usage(there).free) < size:
            raise EditorUnavailable(
                f"The disk has {free / GIB:.1f} GiB free, and the base in {precision}, which is kept in {cache.parent.name}/{cache.name}, takes"
                f" {size / GIB:.1f} GiB: free some space."
            )
    return [f"{model.root.name}: {blocks} blocks, base of {size / GIB:.2f} GiB ({precision}) on {place.type}"]


def _owner(name: str) -> str:
    return name.removeprefix("model.diffusion_model.").rpartition(".")[0]


def missing_encoded() -> dict[str, torch.Tensor]:
    raise FileNotFoundError("an encoded example was deleted from the cache while the training ran; start it again")


def read(path: Path, size: Size) -> Image.Image:
    """A picture upright in RGB, framed for `size` but not yet scaled."""
    from ....flywheel.images import open_image
    from .plan import framed

    return framed(open_image(path).image, size)
