"""What a person does not have to decide: from few words to a complete spec. The values and the reason for each are in presets.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from . import engines
from .spec import Option, TrainingSpec

DRY_STEPS = 10


@cache
def _table() -> dict[str, dict[str, Any]]:
    return json.loads((Path(__file__).parent / "presets.json").read_text(encoding="utf-8"))


def qualities() -> list[str]:
    return list(_table()["quality"])


def memories() -> list[str]:
    """Profiles by the memory of the card, the largest first."""
    return list(_table()["memory"])


def steps_for(quality: str, images: int) -> int:
    """Steps for a set of so many images, within the limits."""
    low, high = _table()["limits"]["steps"][0]
    return min(max(round(_table()["quality"][quality]["steps_per_image"][0] * images, -1), low), high)


def chosen(quality: str, memory: str, images: int, *, rank: int = 0, steps: int = 0) -> dict[str, Any]:
    """Fields of a TrainingSpec. `rank` and `steps`: what a person chose instead, 0 for nothing."""
    row, card = _table()["quality"][quality], _table()["memory"][memory]
    rank, steps = rank or row["rank"][0], steps or steps_for(quality, images)
    return {
        "rank": rank,
        "alpha": float(rank),  # the two styles of LoRA files that carry no alpha mean this
        "steps": steps,
        "learning_rate": row["learning_rate"][0],
        "resolution": card["resolution"][0],
        "save_every": max(1, steps // _table()["limits"]["checkpoints"][0]),
    }


def options_for(engine: str, memory: str, given: Mapping[str, Option]) -> dict[str, Option]:
    """The engine's options that a memory profile sets, under what a person gave."""
    known = {entry.name for entry in dataclasses.fields(engines.engine(engine).options)}
    return {name: value for name, (value, _) in _table()["memory"][memory].items() if name in known} | dict(given)


def reasons(spec: TrainingSpec, quality: str, memory: str, images: int) -> list[str]:
    """Each value of the spec with its because; what a person chose instead is said to be theirs."""
    rows = {**_table()["quality"][quality], **_table()["memory"][memory]}
    told: list[str] = []
    for name, (value, because) in rows.items():
        if name == "steps_per_image":
            continue
        actual = getattr(spec, name, None) if hasattr(spec, name) else spec.options.get(name)
        if actual is not None:
            told.append(f"{name.replace('_', ' ')} {actual:g}: {because if actual == value else 'your choice'}")
    per_image, because = rows["steps_per_image"]
    low, high = _table()["limits"]["steps"][0]
    usual = spec.steps == steps_for(quality, images)
    return [
        *told,
        f"steps {spec.steps}: {per_image} per image, from {low} to {high}; {because}" if usual else f"steps {spec.steps}: your choice",
    ]


def dry(spec: TrainingSpec) -> TrainingSpec:
    """The same for a few steps: shows whether it fits and how long each step takes. A job of its own."""
    return dataclasses.replace(spec, steps=min(spec.steps, DRY_STEPS), save_every=DRY_STEPS)


def lighter(spec: TrainingSpec) -> tuple[TrainingSpec, str] | None:
    """The spec with the next smaller memory profile and what that changes, in words; None where there is none."""
    for name, row in _table()["memory"].items():
        smaller = dataclasses.replace(spec, resolution=min(spec.resolution, row["resolution"][0]), options=_swapping(spec, row))
        if smaller != spec:
            changes = [f"resolution {spec.resolution} to {smaller.resolution}"] if smaller.resolution != spec.resolution else []
            changes += [
                f"{key} {spec.options.get(key, 0)} to {value}" for key, value in smaller.options.items() if spec.options.get(key) != value
            ]
            return smaller, f"profile {name}: {', '.join(changes)}"
    return None


def _swapping(spec: TrainingSpec, row: Mapping[str, Any]) -> dict[str, Option]:
    swap, now = row["blocks_to_swap"][0], spec.options.get("blocks_to_swap", 0)
    known = {entry.name for entry in dataclasses.fields(engines.engine(spec.engine).options)}
    more = "blocks_to_swap" in known and isinstance(now, int) and swap > now
    return {**spec.options, **({"blocks_to_swap": swap} if more else {})}
