"""What the card can do at best, and how much of it an edit needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench import Bench, timed
from rows import Row

WIDTH, LAYERS, PATCH = 3072, 60, 16  # of the full-size transformer; px per token
WORDS = 220  # text tokens per control, about
REPEATS = 20


def measure(_: Row, bench: Bench, **__: Any) -> dict[str, Any]:
    """FLOP per second of large products, bf16 and where the card can of 8-bit integers."""
    size = 8192 if bench.device.type == "cuda" else 256
    one = torch.randn(size, size, device=bench.device, dtype=bench.dtype)
    bits = torch.randint(-127, 127, (size, size), device=bench.device, dtype=torch.int8)
    told: dict[str, Any] = {"flops": _rate(bench, size, lambda: one @ one), "torch": torch.__version__}
    try:
        told["int8_ops"] = _rate(bench, size, lambda: torch._int_mm(bits, bits.t()))
    except RuntimeError as error:
        told["int8_error"] = str(error).splitlines()[0]
    return told


def _rate(bench: Bench, size: int, product: Callable[[], Any]) -> float:
    def products() -> None:
        for _ in range(REPEATS):
            product()

    products()
    return REPEATS * 2 * size**3 / timed(bench.device, products)[0]


def flop(row: Row, side: int) -> float:
    """Of one image's passes through the full-size transformer: linear layers and attention. Encoding and decoding are not counted."""
    tokens = (1 + row.controls) * (side // PATCH) ** 2 + WORDS * row.controls
    return row.passes * (24 * WIDTH**2 * LAYERS * tokens + 4 * tokens**2 * WIDTH * LAYERS)


def training_flop(row: Row) -> float:
    """Of one optimiser step: the forward pass, once more for the checkpoints, and the gradients of what is passed on; frozen weights need none."""
    tokens = (1 + row.controls) * (row.side // PATCH) ** 2 + WORDS * row.controls
    return 3 * 24 * WIDTH**2 * LAYERS * tokens + 4.5 * 4 * tokens**2 * WIDTH * LAYERS
