"""The built-in trainer: memory and seconds of one optimiser step, measured by its own benchmark (`card_step` of benchmarks/train_qwen.py)."""

from __future__ import annotations

import sys
from typing import Any

from bench import ROOT, Bench, randomise
from rows import Row


def measure(row: Row, bench: Bench) -> dict[str, Any]:
    sys.path.append(str(ROOT / "benchmarks"))
    try:
        from train_qwen import card_step
    except ModuleNotFoundError as error:
        return {"error": f"not measured: {error}"}
    made = card_step(
        bench.model(),
        bench.place / "training",
        controls=row.controls,
        megapixels=row.megapixels,
        device=str(bench.device),
        randomise=randomise,
    )
    return {"seconds": made["seconds"], "peak": made["peak_gib"]}
