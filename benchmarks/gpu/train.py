"""The built-in trainer: memory and seconds of one optimiser step. It measures itself; here is only the agreement with it.

`training.engines.peft_qlora` is asked for

    measured_step(folder, *, controls, megapixels, device, steps) -> {"seconds": of one step, "peak": GiB, "how": what it chose}

where `folder` is a model folder (weights may be zeros: it makes what it loads random with the `randomise` it is given).
"""

from __future__ import annotations

import importlib
from typing import Any

from bench import Bench, randomise
from rows import Row

WHERE, ASKED = "comfyui_flenwheel.training.engines.peft_qlora", "measured_step"
STEPS = 4


def measure(row: Row, bench: Bench, **_: Any) -> dict[str, Any]:
    try:
        step = getattr(importlib.import_module(WHERE), ASKED, None)
    except ModuleNotFoundError:
        step = None
    if step is None:
        return {"error": f"not measured: {WHERE} has no {ASKED} yet"}
    return step(
        bench.model(),
        controls=row.controls,
        megapixels=row.megapixels,
        device=str(bench.device),
        steps=STEPS,
        randomise=randomise,
    )
