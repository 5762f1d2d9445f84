"""What will lie where, said before a run; ways to need less when that was wrong; and the truth afterwards."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch

from . import modulation
from .load import FULL, Precision
from .models import GIB, ModelFolder
from .quantised import BYTES

Rung = Literal["resident", "in turns", "nf4", "streamed"]
RUNGS: dict[Rung, str] = {
    "resident": "everything stays on the card",
    "in turns": "text encoder and transformer are on the card one after the other",
    "nf4": "the transformer is kept in 4 bits, and text encoder and transformer take turns",
    "streamed": "the transformer's blocks come to the card one by one, which is slow",
}
_STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "U8": 1, "I8": 1}
ACTIVATIONS = 24  # times tokens x width: what a block holds at once without gradients
VAE_BYTES_PER_PIXEL = 1400  # of decoding in bf16, widest layer and its neighbours
_FULL = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
ROOM = 0.5  # GiB that the driver, the context and fragmentation take


@dataclass(frozen=True, slots=True)
class Plan:
    """Expected memory in GiB. `free` is None where it does not matter (CPU). `decoding`: what decoding an image takes while the next is made; 0 where
    one follows the other."""

    device: str
    free: float | None
    rung: Rung
    precision: Precision
    text_precision: Precision
    transformer: float
    tables: float
    text_encoder: float
    vae: float
    working: float
    decoding: float = 0.0

    @property
    def beside(self) -> bool:
        """Whether images are decoded while the next is made."""
        return self.decoding > 0

    @property
    def peak(self) -> float:
        working = self.working + self.decoding
        if self.rung == "resident":
            return self.transformer + self.tables + self.text_encoder + self.vae + working + ROOM
        return max(self.text_encoder, self.transformer + self.tables + working) + self.vae + ROOM

    @property
    def fits(self) -> bool:
        return self.free is None or self.peak <= self.free

    def __str__(self) -> str:
        free = f" of {self.free:.1f} GiB free" if self.free is not None else ""
        beside = f" + {self.decoding:.2f} for decoding beside the next image" if self.beside else ""
        return (
            f"{self.device}: {RUNGS[self.rung]}. Transformer {self.transformer:.2f} GiB ({self.precision}) + modulation tables {self.tables:.2f},"
            f" text encoder {self.text_encoder:.2f} ({self.text_precision}), VAE {self.vae:.2f}, working memory about {self.working:.2f}{beside}; peak about {self.peak:.1f} GiB{free}."
        )


def plan(
    model: ModelFolder,
    *,
    device: torch.device,
    dtype: torch.dtype,
    precision: str,
    rung: str,
    tokens: int,
    pixels: int,
    steps: int,
    batch: int,
    held: float = 0.0,
) -> Plan:
    """The best that fits: what `precision` and `rung` leave open ("auto") is chosen by free memory; else the least demanding is returned.

    `tokens` and `pixels` are those of the largest image with its controls; `batch` counts guidance twice where it shares a pass. `held`: GiB of the
    card that others have now and will have let go by then.
    """
    free = free_gib(device)
    free = free + held if free is not None else None
    decoding = pixels * VAE_BYTES_PER_PIXEL * torch.finfo(dtype).bits / 16 / GIB
    rungs: tuple[str, ...] = (rung,) if rung != "auto" else ("resident", "in turns")

    def planned(kind: Precision, words: Precision, one: Any) -> Plan:
        kind = "nf4" if one == "nf4" else kind
        words = "as stored" if model.quantised("text_encoder") else words
        config, size = model.config("transformer"), torch.finfo(dtype).bits / 8
        width = config["num_attention_heads"] * config["attention_head_dim"]
        here = 2 / config["num_layers"] if one == "streamed" else 1.0
        return Plan(
            device=str(device),
            free=free,
            rung=one,
            precision=kind,
            text_precision=words,
            transformer=_transformer(model, kind, size) * here / GIB,
            tables=steps * (config["num_layers"] * 12 + 3) * width * size / GIB,
            text_encoder=_text_encoder(model, words, size) / GIB,
            vae=sum(prod(shape) for _, shape in model.tensors("vae").values()) * size / GIB,
            working=max(tokens * width * size * ACTIVATIONS * batch / GIB, decoding),
        )

    # resident in fewer bits beats taking turns in more: turns cost seconds per image, fp8 costs little that is seen
    plans = [planned(kind, words, one) for one in rungs for kind, words in _precisions(precision, device)]
    chosen = next((one for one in plans if one.fits), plans[-1])
    beside = replace(chosen, decoding=decoding)  # at most: the denoising may need less than `working`
    return beside if beside.fits else chosen


def _precisions(asked: str, device: torch.device) -> list[tuple[Precision, Precision]]:
    """Of transformer and text encoder, the best first. The text encoder bears 4 bits best."""
    if asked == "auto":
        small: list[tuple[Precision, Precision]] = [("as stored", "nf4"), ("fp8", "fp8"), ("fp8", "nf4"), ("nf4", "nf4")]
        return [("as stored", "as stored"), *[pair for pair in small if device.type != "cpu" and (has_nf4(device) or "nf4" not in pair)]]
    kind: Any = asked
    words: Precision = "int8" if asked == "w8a8" else kind  # words are few: nothing would be gained
    return [(kind, words), (kind, "nf4")] if has_nf4(device) and asked in ("fp8", "int8", "w8a8") else [(kind, words)]


def _transformer(model: ModelFolder, precision: str, size: float) -> float:
    total = 0.0
    for name, (stored, shape) in model.tensors("transformer").items():
        owner = name.removeprefix("model.diffusion_model.").rpartition(".")[0]
        if modulation.belongs(owner):
            continue
        small = len(shape) == 2 and not owner.startswith(FULL)
        per_weight = BYTES[precision] if precision in BYTES else 1 if stored.startswith("F8") else size
        total += prod(shape) * (per_weight if small else size)
    return total


def _text_encoder(model: ModelFolder, precision: str, size: float) -> float:
    total = 0.0
    if model.quantised("text_encoder"):
        return sum(prod(shape) * _STORED.get(stored, 4) for stored, shape in model.tensors("text_encoder").values())
    for name, (_, shape) in model.tensors("text_encoder").items():
        if name.startswith("lm_head"):
            continue
        small = len(shape) == 2 and "visual" not in name and "embed" not in name
        total += prod(shape) * (BYTES[precision] if precision in BYTES and small else size)
    return total


def has_nf4(device: torch.device) -> bool:
    """Whether weights may be kept in 4 bits there."""
    return device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is not None


def free_gib(device: torch.device) -> float | None:
    """Free memory of a card; None for the CPU, where the system swaps rather than refuses."""
    return torch.cuda.mem_get_info(device)[0] / GIB if device.type == "cuda" else None


class Ladder:
    """The way down when memory runs out, one rung at a time; never up again within a session."""

    def __init__(self, rung: Rung, *, has_nf4: bool) -> None:
        self.rung: Rung = rung
        self.rungs: tuple[Rung, ...] = ("resident", "in turns", "nf4", "streamed") if has_nf4 else ("resident", "in turns", "streamed")

    def down(self) -> str | None:
        """Step down; what changes, in words. None at the bottom."""
        order = list(RUNGS)
        below: Rung | None = next((one for one in self.rungs if order.index(one) > order.index(self.rung)), None)
        if below is None:
            return None
        self.rung = below
        return f"Memory ran out; from here on {RUNGS[self.rung]}. The image is made again."


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Whatever says in here that memory ran out says it as torch.OutOfMemoryError. CPUs, Macs and a driver that is late say it in words only."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not (isinstance(error, MemoryError) or _FULL.search(str(error))):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def release() -> None:
    """Give freed memory back to the driver, so that the next attempt finds it in one piece."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def start_measuring(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def measured_peak(device: torch.device) -> float:
    """GiB: of the card since `start_measuring`, or what this process holds now on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    import psutil

    return psutil.Process().memory_info().rss / GIB


def account(plan: Plan | None, device: torch.device, *, images: int, seconds: float, switches: int) -> str:
    """The truth after a run, beside what was expected."""
    expected = f" (expected {plan.peak:.1f})" if plan else ""
    return (
        f"{images} images in {seconds:.1f} s, {seconds / images:.2f} s each; {switches} LoRA switches; memory at most"
        f" {measured_peak(device):.1f} GiB{expected}."
    )


@contextlib.contextmanager
def streamed(transformer: Any, device: torch.device) -> Iterator[None]:
    """While this lasts, each block comes to the device for its turn only."""
    hooks = []
    for block in transformer.transformer_blocks:
        hooks += [
            block.register_forward_pre_hook(lambda module, _: module.to(device) and None),
            block.register_forward_hook(lambda module, _, __: module.to("cpu") and None),
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
