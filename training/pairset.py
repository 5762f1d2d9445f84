"""Pairs that travel in a graph, written down as a training set that outlives it. The pictures stay where they are."""

from __future__ import annotations

from pathlib import Path

from ..flywheel.errors import DatasetError, StorageError
from ..flywheel.images import value_key, write_json
from ..flywheel.pairs import Pair, PairedDataset
from ..flywheel.project import Project
from ..flywheel.triplets import load_triplets
from .trainset import LISTING


def keep(project: Project, pairs: PairedDataset, held_out: PairedDataset | None = None) -> Path:
    """The folder of this set below data/qwen_training/<version>/sets; equal pairs are the same folder.

    Where the pairs are the project's own triplets it is their folder, with the half that is held out.

    Raises:
        StorageError: the disk refused.
    """
    if held_out is None and _are_triplets(project, pairs):
        return project.stage("qwen_training").folder
    parts = {"train": pairs, **({"held_out": held_out} if held_out else {})}
    rows = [_row(project, pair, split) for split, dataset in parts.items() for pair in dataset.pairs]
    keys = [(dataset.fingerprint(), split) for split, dataset in parts.items()]
    folder = project.stage("qwen_training").folder / "sets" / value_key(keys)[:12]
    write_json(folder / LISTING, rows)
    return folder


def _are_triplets(project: Project, pairs: PairedDataset) -> bool:
    try:
        return load_triplets(project).fingerprint() == pairs.fingerprint()
    except (DatasetError, StorageError):
        return False


def _row(project: Project, pair: Pair, split: str) -> dict[str, object]:
    controls = [_name(project, picture.path) for picture in pair.controls]
    return {
        "source_image": controls[0] if len(controls) == 1 else controls,
        "edit_prompt": pair.caption,
        "target_image": _name(project, pair.target.path),
        "id": pair.stem,
        "split": split,
    }


def _name(project: Project, path: Path) -> str:
    """From the project's folder where it lies inside, else whole."""
    return project.relative(path) if path.is_relative_to(project.root) else str(path.resolve())
