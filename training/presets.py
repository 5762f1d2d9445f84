"""What a person does not have to decide: from few words to a complete spec. The values and the reason for each are in presets.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from . import engines
from .spec import Architecture, Kind, Option, TrainingSpec

DRY_STEPS = 10
DRY_SAMPLE = 5  # steps to the dry run's first sample


@cache
def _table() -> dict[str, dict[str, Any]]:
    return json.loads((Path(__file__).parent / "presets.json").read_text(encoding="utf-8"))


def _profiles(architecture: str) -> dict[str, dict[str, Any]]:
    return _table()["memory"].get(architecture) or _table()["memory"]["flux1"]


def qualities(kind: Kind = "character") -> list[str]:
    return list(_table()["quality"][kind])


def memories(architecture: Architecture = "flux1") -> list[str]:
    """Profiles by the memory of the card, the largest first."""
    return list(_profiles(architecture))


def steps_for(quality: str, images: int, kind: Kind = "character") -> int:
    """Steps for a set of so many images, within the limits."""
    low, high = _table()["limits"]["steps"][kind][0]
    return min(max(round(_table()["quality"][kind][quality]["steps_per_image"][0] * images, -1), low), high)


def chosen(
    quality: str,
    memory: str,
    images: int,
    *,
    rank: int = 0,
    steps: int = 0,
    kind: Kind = "character",
    architecture: Architecture = "flux1",
) -> dict[str, Any]:
    """Fields of a TrainingSpec. `rank` and `steps`: what a person chose instead, 0 for nothing."""
    row, card = _table()["quality"][kind][quality], _profiles(architecture)[memory]
    rank, steps = rank or row["rank"][0], steps or steps_for(quality, images, kind)
    return {
        "kind": kind,
        "architecture": architecture,
        "rank": rank,
        "alpha": float(rank),  # the two styles of LoRA files that carry no alpha mean this
        "steps": steps,
        "learning_rate": row["learning_rate"][0],
        "resolution": card["resolution"][0],
        "save_every": max(1, steps // _table()["limits"]["checkpoints"][0]),
    }


def profile_gb(spec: TrainingSpec) -> float:
    """The memory, in GB, that the smallest profile is named for which trains at the spec's resolution."""
    fitting = {float(name.split()[0]): row["resolution"][0] for name, row in _profiles(spec.architecture).items()}
    return min((size for size, resolution in fitting.items() if resolution >= spec.resolution), default=max(fitting))


def options_for(engine: str, memory: str, given: Mapping[str, Option], architecture: Architecture = "flux1") -> dict[str, Option]:
    """The engine's options that a memory profile sets, under what a person gave."""
    known = _options_of(engine)
    return {name: value for name, (value, _) in _profiles(architecture)[memory].items() if name in known} | dict(given)


def _options_of(engine: str) -> set[str]:
    return {entry.name for entry in dataclasses.fields(engines.engine(engine).options)}


def reasons(spec: TrainingSpec, quality: str, memory: str, images: int) -> list[str]:
    """Each value of the spec with its because; what a person chose instead is said to be theirs."""
    rows = {**_table()["quality"][spec.kind][quality], **_profiles(spec.architecture)[memory]}
    told: list[str] = []
    for name, (value, because) in rows.items():
        if name == "steps_per_image":
            continue
        actual = getattr(spec, name, None) if hasattr(spec, name) else spec.options.get(name)
        if actual is not None:
            shown = f"{actual:g}" if isinstance(actual, (int, float)) and not isinstance(actual, bool) else str(actual)
            told.append(f"{name.replace('_', ' ')} {shown}: {because if actual == value else 'your choice'}")
    per_image, because = rows["steps_per_image"]
    low, high = _table()["limits"]["steps"][spec.kind][0]
    usual = spec.steps == steps_for(quality, images, spec.kind)
    return [
        *told,
        f"steps {spec.steps}: {per_image} per image, from {low} to {high}; {because}" if usual else f"steps {spec.steps}: your choice",
    ]


def dry(spec: TrainingSpec) -> TrainingSpec:
    """The same for a few steps, with a sample on the way: shows whether it fits and how long each step takes. A job of its own."""
    return dataclasses.replace(spec, steps=min(spec.steps, DRY_STEPS), save_every=min(spec.save_every, DRY_SAMPLE))


def lighter(spec: TrainingSpec) -> tuple[TrainingSpec, str] | None:
    """The spec with the next smaller memory profile and what that changes, in words; None where there is none."""
    profiles = _profiles(spec.architecture)
    now: dict[str, Any] = {entry.name: entry.default for entry in dataclasses.fields(engines.engine(spec.engine).options)} | dict(
        spec.options
    )
    for name, row in profiles.items():
        resolution = min(spec.resolution, row["resolution"][0])
        ladders = {option: [each[option][0] for each in profiles.values() if option in each] for option in row if option in now}
        wanted = {option: _further(now[option], row[option][0], ladder) for option, ladder in ladders.items()}
        changed = {option: value for option, value in wanted.items() if value != now[option]}
        smaller = dataclasses.replace(spec, resolution=resolution, options={**spec.options, **changed})
        if smaller != spec:
            changes = [f"resolution {spec.resolution} to {resolution}"] if resolution != spec.resolution else []
            changes += [f"{option} {now[option]} to {value}" for option, value in changed.items()]
            return smaller, f"profile {name}: {', '.join(changes)}"
    return None


def _further(now: Option, row: Option, ladder: Sequence[Option]) -> Option:
    """The lighter of the two, where `ladder` has a profile's values from heavy to light."""
    if now in ladder:
        return row if ladder.index(row) > ladder.index(now) else now
    if isinstance(now, (int, float)) and isinstance(row, (int, float)) and isinstance(ladder[-1], (int, float)):
        rising = ladder[-1] > float(ladder[0])
        return row if (row > now) == rising else now
    return now  # a person's own word: leave it
