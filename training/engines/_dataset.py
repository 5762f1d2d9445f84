"""A training set in its trainer's layout, below the job's folder: neutral names, upright pictures, one picture for every control slot."""

from __future__ import annotations

from functools import reduce
from math import gcd
from pathlib import Path

from ...flywheel import layouts
from ...flywheel.errors import DatasetError
from ...flywheel.pair_slots import open_header
from ...flywheel.pairs import Pair, PairedDataset
from .. import trainset
from ..job import Job


def lay_out(job: Job, layout: str) -> tuple[Path, PairedDataset]:
    """Write the job's data in a layout of `flywheel.layouts`, and read it back before a trainer does. Answers the folder and what lies in it.

    Raises:
        DatasetError: a gap in the controls, a caption or picture that is missing, a text edited by hand; all at once.
    """
    spec = job.spec
    settings = layouts.Settings(resolution=spec.resolution, batch_size=spec.batch_size)
    exported = layouts.export(layouts.plan(paired(trainset.read(job.dataset), spec.project)), job.folder / "dataset", layout, settings)
    return exported.folder, layouts.import_dataset(exported.folder, layout, unpack_to=job.folder / "cache" / "read-back")


def problems(job: Job) -> list[str]:
    """Why the data cannot be laid out. Looks at headers only."""
    try:
        paired(trainset.read(job.dataset), job.spec.project)
    except DatasetError as error:
        return [*error.problems] or [str(error)]
    return []


def paired(found: trainset.TrainingSet, name: str) -> PairedDataset:
    """The training set as pairs. Repeats become copies in the smallest whole proportion: steps are counted, so only the proportion tells."""
    common = reduce(gcd, (example.repeats for example in found.examples), 0) or 1
    pairs = tuple(
        Pair(
            f"{number:04}-{again}-{example.image.stem}",
            open_header(example.image),
            tuple(map(open_header, example.controls)),
            example.caption,
        )
        for number, example in enumerate(found.examples, 1)
        for again in range(example.repeats // common)
    )
    return PairedDataset(name, pairs, tuple(f"control {number}" for number in range(1, found.controls + 1)))
