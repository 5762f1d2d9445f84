"""Everything that would stop a run later, looked at before it begins; every problem in one message."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..flywheel import pair_doctor
from ..flywheel.errors import FlywheelError, ProblemsError
from . import card, engines, hand_over, trainset
from .errors import PreflightError
from .job import Job
from .spec import TrainingSpec

BYTES_PER_RANK = 10_000_000  # FLUX.1: 304 layers with together 4.8 million inputs and outputs, 2 bytes each
SHOWN = 4
GRAVE: tuple[pair_doctor.Fix, ...] = ("drop", "crop", "align", "keep")
Free = Callable[[Path], int]  # bytes free where a path lies


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found: `facts` as they are, `warnings` a person should know."""

    facts: tuple[str, ...]
    warnings: tuple[str, ...]

    def text(self) -> str:
        return "\n".join([*(f"✔ {fact}" for fact in self.facts), *(f"! {warning}" for warning in self.warnings)])


def check(job: Job, free: Free = lambda path: shutil.disk_usage(path).free) -> Preflight:
    """Look at data, engine and disk.

    Raises:
        PreflightError: the run would fail; the text names every reason.
        UnsupportedTraining, SpecError: the settings do not fit the engine.
    """
    spec = job.spec
    engines.supports(spec)
    engines.options(spec)
    problems: list[str] = []
    facts: list[str] = []
    warnings: list[str] = []
    try:
        found = trainset.read(job.dataset)
        problems += trainset.problems(found, spec.instance_token if spec.kind == "character" else "")
        if found.examples:
            problems += engines.too_many_controls(spec, found.controls)
        if not problems and found.key != spec.dataset_key:
            problems.append(
                f"the images or captions in {job.dataset.name} have changed since this job was made: queue Train LoRA again, which makes a new job"
            )
        if not problems:
            warnings += trainset.warnings(found, spec.resolution)
            facts.append(_amount(spec, found))
            shapes = trainset.buckets(found, spec.resolution)
            facts.append(_shapes(shapes))
            warnings += _lonely(spec, shapes)
            warnings += _doctor_says(job, found)
    except FlywheelError as error:
        problems.append(str(error))
    try:
        facts += engines.engine(spec.engine).check(job)
    except ProblemsError as error:
        problems += error.problems or [str(error)]
    if engines.uses_card(spec) and (seen := card.look()):
        facts.append(str(seen))
        warnings += _small_card(job, seen)
    needed, there = disk_needed(spec), free(job.folder)
    if there < needed:
        problems.append(f"the disk has {_gib(there)} free, and the run needs about {_gib(needed)}: free some space, or save less often")
    else:
        facts.append(f"disk: {_gib(there)} free, about {_gib(needed)} needed")
    if problems:
        raise PreflightError(f"Job {job.id} cannot be trained:", problems)
    return Preflight(tuple(facts), tuple(warnings))


def _amount(spec: TrainingSpec, found: trainset.TrainingSet) -> str:
    shown = spec.steps * spec.batch_size * spec.gradient_accumulation / len(found.examples)
    if spec.kind == "edit":
        measured = f", {len(found.held_out)} more to measure with" if found.held_out else ""
        return f"{len(found.examples)} triplets of {found.controls} control{'s' * (found.controls > 1)}{measured}; {spec.steps} steps show each about {shown:.0f} times"
    return f"{len(found.examples)} images, every caption names {spec.instance_token}; {spec.steps} steps show each about {shown:.0f} times"


def _small_card(job: Job, seen: card.Card) -> list[str]:
    """A profile for a larger card may still fit: that is what a dry run is for."""
    if seen.total >= hand_over.memory_needed(job):
        return []
    return [
        f"The memory profile is for a larger card than this one with {card.gib(seen.total)}: choose a smaller one, or try a dry run first."
    ]


def _shapes(shapes: list[tuple[tuple[int, int], int]]) -> str:
    told = ", ".join(f"{width} x {height} ({count})" for (width, height), count in shapes[:SHOWN])
    return f"shapes as trainers sort them: {told}" + (f" and {len(shapes) - SHOWN} more" if len(shapes) > SHOWN else "")


def _lonely(spec: TrainingSpec, shapes: list[tuple[tuple[int, int], int]]) -> list[str]:
    """With batches, a shape with fewer pictures than a batch makes smaller batches."""
    few = sum(count < spec.batch_size for _, count in shapes)
    return [f"{few} shapes have fewer pictures than a batch of {spec.batch_size}; those batches are smaller."] if few else []


def _doctor_says(job: Job, found: trainset.TrainingSet) -> list[str]:
    """What the pair doctor found, the gravest first; measured once per pair and kept."""
    pairs = trainset.pairs_of(found)
    if pairs is None:
        return []
    checkup = pair_doctor.examine(pairs, cache=job.folder.parent.parent / "cache" / "doctor")
    ill = sorted(checkup.findings, key=lambda finding: GRAVE.index(finding.fix))
    if not ill:
        return []
    well = len(pairs.pairs) - len({finding.stem for finding in ill})
    told = "; ".join(f"{finding.stem}: {finding.text}" for finding in ill[:SHOWN])
    more = f" and {len(ill) - SHOWN} more findings" if len(ill) > SHOWN else ""
    return [f"Pair doctor: {well} of {len(pairs.pairs)} pairs are well. {told}{more}. The node Pair Doctor mends them."]


def disk_needed(spec: TrainingSpec) -> int:
    """Bytes, generously: the result twice, and four checkpoints of weights with their optimizer."""
    if spec.engine == "rehearsal":
        return 100_000_000
    lora = spec.rank * BYTES_PER_RANK
    return 2 * lora + 4 * 3 * lora


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
