"""The LoRAs a project has registered, by their version; and two of them side by side on the same prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..flywheel.project import Project
from .errors import TrainingError
from .job import Job, jobs_of
from .spec import Kind


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt: the last sample of each version, None where it has none."""

    prompt: str
    before: Path | None
    after: Path | None


def registered(project: Project, kind: Kind) -> dict[int, Job]:
    """The finished trainings by the number in their file's name, ascending."""
    found: dict[int, Job] = {}
    for job in jobs_of(project):
        done = [event for event in job.events() if event["kind"] == "done"]
        match = re.search(rf"-{kind}-v(\d+)\.safetensors$", str(done[-1].get("registered", ""))) if done else None
        if match and job.status().state == "done":
            found[int(match[1])] = job
    return dict(sorted(found.items()))


def pair(project: Project, kind: Kind, before: int = 0, after: int = 0) -> tuple[int, int]:
    """Which two versions are meant: 0 is the newest for `after`, and the one before that for `before`.

    Raises:
        TrainingError: there are not two, or one that was asked for is not there; the text names those that are.
    """
    there = list(registered(project, kind))
    told = ", ".join(f"v{number:03}" for number in there) or "none"
    if len(there) < 2:
        raise TrainingError(
            f"There are not two finished {kind} LoRAs of {project.name} to compare yet (there: {told}). Train another one first."
        )
    after = after or there[-1]
    before = before or max((number for number in there if number < after), default=there[0])
    if missing := [f"v{number:03}" for number in (before, after) if number not in there]:
        raise TrainingError(f"{project.name} has no {kind} LoRA {' and '.join(missing)} whose training is here; there are {told}.")
    return before, after


def side_by_side(before: Job, after: Job) -> list[Row]:
    """The last samples of both for each prompt of either, those they share first."""
    old, new = _last(before), _last(after)
    shared = [prompt for prompt in new if prompt in old]
    rest = [prompt for prompt in (*new, *old) if prompt not in shared]
    return [Row(prompt, old.get(prompt), new.get(prompt)) for prompt in dict.fromkeys([*shared, *rest])]


def _last(job: Job) -> dict[str, Path]:
    prompts = job.spec.sample_prompts
    return {prompts[number]: path for _, number, path in job.sampled() if number < len(prompts)}
