"""Our engine: a batch as a user has it, every prompt a new one, encoding and decoding included, loading not."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import GIB, Bench, randomise, silent, timed
from comfyui_flenwheel.flywheel.editors import EditRequest
from comfyui_flenwheel.flywheel.editors.qwen import jobs, memory
from comfyui_flenwheel.flywheel.editors.qwen_diffusers import QwenDiffusers
from portrait import control
from rows import Row


def measure(row: Row, bench: Bench, *, one_pass: bool = False, **options: Any) -> dict[str, Any]:
    import torch

    if one_pass:
        jobs.APART_FROM = sys.maxsize

    if bench.device.type == "cuda":
        memory.free_gib = lambda _: bench.cap - torch.cuda.memory_reserved() / GIB - 0.3  # what a card of that size would say
    editor = QwenDiffusers(model=str(bench.model()), steps=row.steps, guidance=row.guidance, device=str(bench.device), **options)
    with tempfile.TemporaryDirectory() as place, editor.session() as edit:
        engine: Any = edit
        photos = tuple(control(Path(place), f"{n}.png", photo) for n, photo in enumerate(bench.photos(row.controls + 1)))
        orders = [
            EditRequest(f"Make it night {n}", photos[: row.controls], n, bench.side, bench.side) for n in range(bench.images(row.steps))
        ]
        other = EditRequest("Something else", photos[1:], 9, bench.side, bench.side)
        engine.load([other], silent)
        randomise(engine.parts._transformer)
        list(engine.many([other], silent))  # warm up, and compile
        seconds, peak = timed(bench.device, lambda: list(engine.many(orders, silent)))
        plan = engine.parts.plan
        return {
            "seconds": seconds / len(orders),
            "peak": peak,
            "how": f"{engine.parts.rung}, {engine.parts.precision}",
            "planned_peak": plan.peak,
            "loads": engine.counts.loads,
        }
