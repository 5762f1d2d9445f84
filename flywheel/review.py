"""A review and the folders that follow it.

Verdicts are keyed by the hash of the image bytes, so a renamed or moved file keeps its verdict. After each verdict the file moves into good/,
corrections/ or rejected/. A person may also sort the files by hand: a file found where we did not put it is a verdict.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import corrections
from .candidates import Shelf, record_of
from .dataset import Dataset
from .errors import DatasetError, StorageError
from .images import value_key, write_json
from .ledger import LABELS, REASONS, Label, LabelEvent, Origin, history, labels, last_event, problems_of, record
from .project import CORRECTIONS, FILTERED, GOOD, REJECTED, TRIES, Project, Stage
from .store import connect, turn

__all__ = ["LABELS", "REASONS", "Label", "LabelEvent", "Origin", "history", "labels", "last_event", "problems_of", "record"]

FOLDER_OF: Mapping[Label | None, str] = {None: "", "good": GOOD, "needs_correction": CORRECTIONS, "reject": REJECTED}
LABEL_OF: Mapping[str, Label | None] = {FILTERED: None, **{folder: label for label, folder in FOLDER_OF.items()}}
TRIES_AT_MOVING = 3  # files may be deleted or sorted by hand while we move

_locks: dict[Path, threading.RLock] = {}
_locks_guard = threading.Lock()


@dataclass(frozen=True, slots=True)
class Verdicts:
    """A dataset of candidates, parted by label."""

    good: Dataset
    needs_correction: Dataset
    reject: Dataset
    undecided: Dataset

    def counts(self) -> dict[str, int]:
        parts = {label: len(getattr(self, label).images) for label in ("undecided", *LABELS)}
        return {"total": sum(parts.values()), **parts}


def follow(stage: Stage) -> Shelf:
    """Make files and verdicts agree, and answer the shelf as it is then.

    A verdict moves its file. A file that lies where we never put it was sorted by a person: that becomes a verdict. Images corrected by hand
    and saved into the corrections folder are taken in.
    """
    with taking_turns(stage.project):
        return settle(stage)


@contextmanager
def taking_turns(project: Project) -> Iterator[None]:
    """Threads and processes move a project's files one after the other. The same thread may ask twice."""
    with _locks_guard:
        lock = _locks.setdefault(project.root, threading.RLock())
    with lock:
        if getattr(_holding, "root", None) == project.root:
            yield
            return
        with turn(project.cache):
            _holding.root = project.root
            try:
                yield
            finally:
                _holding.root = None


_holding = threading.local()


def settle(stage: Stage) -> Shelf:
    """`follow` for callers that hold the turn already."""
    if stage.name == "corrections":
        corrections.pick_up(stage)
    for left in reversed(range(TRIES_AT_MOVING)):
        try:
            return _settled(stage)
        except StorageError as error:
            if not left or not isinstance(error.__cause__, FileNotFoundError):
                raise
    raise AssertionError("unreachable")


def _settled(stage: Stage) -> Shelf:
    shelf = Shelf(stage)
    decided, placed = labels(stage.project), _placements(stage)
    moved = _sorted_by_hand(shelf, decided, placed)
    if moved:
        strict = {key for key, event in decided.items() if event.during == "strict"}
        by_hand = [
            LabelEvent(key, LABEL_OF[folder], reviewer="file manager", origin="folder", during="strict" if key in strict else "first")
            for key, folder in ((shelf.lineages[request_key].image_key, folder) for request_key, folder in moved)
        ]
        record(stage.project, by_hand)
        decided = labels(stage.project)
    for request_key in list(shelf.files):
        place(shelf, request_key, decided.get(shelf.lineages[request_key].image_key))
    _remember(shelf, placed)
    return shelf


def place(shelf: Shelf, request_key: str, event: LabelEvent | None) -> str:
    """Put one file where its verdict in force wants it; answers the folder. Tries that lost stay where they are, and so does what is filtered until
    there is a verdict."""
    folder = shelf.folder_of(shelf.files[request_key])
    label = event.label if event else None
    if folder == TRIES or LABEL_OF[folder] == label:
        return folder
    shelf.move(request_key, FOLDER_OF[label])
    return FOLDER_OF[label]


def remember_places(stage: Stage, places: Mapping[str, str]) -> None:
    """Note where images (by key) were put, so that another place is known to be a person's doing."""
    # lost with the power, if nothing is decided afterwards: then each file still lies where its verdict wants it
    with connect(stage.project.database, durable=False) as db:
        rows = [(_place(stage), key, folder) for key, folder in places.items()]
        db.executemany("INSERT OR REPLACE INTO placements (stage, image_key, folder) VALUES (?, ?, ?)", rows)


def revision(stage: Stage) -> str:
    """Changes when a verdict does, by whatever way it came; empty while there is none. Reads only, and is the same before and after `follow`."""
    shelf = Shelf(stage)
    decided = labels(stage.project)
    effective = {key: event.label for key, event in decided.items()}
    for request_key, folder in _sorted_by_hand(shelf, decided, _placements(stage)):
        effective[shelf.lineages[request_key].image_key] = LABEL_OF[folder]
    in_force = sorted((key, label) for key, label in effective.items() if label)
    return value_key(in_force) if in_force else ""


def verdicts(dataset: Dataset) -> Verdicts:
    """Part a dataset of candidates by the verdicts in force, with the paths where the files lie now.

    Raises:
        DatasetError: an image is neither on disk nor rejected.
    """
    shelf = follow(dataset.stage)
    decided = labels(dataset.project)
    present = {lineage.image_key: key for key, lineage in shelf.lineages.items() if key in shelf.files}
    parts: dict[str, list[str]] = {part: [] for part in ("undecided", *LABELS)}
    gone: list[str] = []
    for image in dataset.images:
        label = decided[image.key].label if image.key in decided else None
        if image.key in present or label == "reject":
            parts[label or "undecided"].append(image.key)
        else:
            gone.append(image.path)
    if gone:
        raise DatasetError("These candidates are no longer on disk; run the node that made them again:", gone)
    fresh = replace(
        dataset,
        images=tuple(record_of(shelf, present[image.key]) if image.key in present else image for image in dataset.images),
    )
    return Verdicts(**{part: fresh.keeping(keys) for part, keys in parts.items()})


def open_review(dataset: Dataset, resume: Mapping[str, Any]) -> None:
    """Note what is under review, and the graph that goes on when it is done. Both survive a restart."""
    write_json(_session(dataset.stage), {"keys": [image.key for image in dataset.images], "resume": dict(resume)})


def resume_of(stage: Stage) -> dict[str, Any] | None:
    """The graph that waits for this review, or None."""
    session = _read_session(stage)
    return session["resume"] if session else None


def keys_under_review(shelf: Shelf) -> list[str]:
    """Request keys of what is under review, in its order; before a gate has run, and of corrections always, of every candidate of the stage."""
    session = _read_session(shelf.stage) if shelf.stage.name != "corrections" else None
    by_name = sorted(shelf.files.items(), key=lambda file: file[1].name)  # the same order whatever folder a verdict has put them in
    present = {shelf.lineages[key].image_key: key for key, path in by_name if shelf.folder_of(path) != TRIES}
    return [present[key] for key in session["keys"] if key in present] if session else list(present.values())


def session_keys(stage: Stage) -> list[str] | None:
    """Image keys the gate has put under review; None before it ran."""
    session = _read_session(stage)
    return list(session["keys"]) if session else None


def under_review(stage: Stage) -> Dataset:
    """What is under review in a stage, as a dataset."""
    shelf = Shelf(stage)
    return Dataset(stage.project, stage.name, tuple(record_of(shelf, key) for key in keys_under_review(shelf)))


def _session(stage: Stage) -> Path:
    return stage.folder / "review.json"


def _read_session(stage: Stage) -> dict[str, Any] | None:
    path = _session(stage)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _sorted_by_hand(shelf: Shelf, decided: Mapping[str, LabelEvent], placed: Mapping[str, str]) -> list[tuple[str, str]]:
    """Request keys and folders of files that a person moved."""
    moved: list[tuple[str, str]] = []
    for request_key, path in shelf.files.items():
        image_key, folder = shelf.lineages[request_key].image_key, shelf.folder_of(path)
        label = decided[image_key].label if image_key in decided else None
        if folder not in (TRIES, placed.get(image_key, "")) and LABEL_OF[folder] != label:
            moved.append((request_key, folder))
    return moved


def _placements(stage: Stage) -> dict[str, str]:
    """Where we last put each image of a stage, by image key."""
    with connect(stage.project.database) as db:
        rows = db.execute("SELECT image_key, folder FROM placements WHERE stage = ?", (_place(stage),))
        return {row["image_key"]: row["folder"] for row in rows}


def _remember(shelf: Shelf, placed: Mapping[str, str]) -> None:
    now = {shelf.lineages[key].image_key: shelf.folder_of(path) for key, path in shelf.files.items()}
    changed = {key: folder for key, folder in now.items() if placed.get(key, "") != folder}
    if changed:
        remember_places(shelf.stage, changed)


def _place(stage: Stage) -> str:
    return f"{stage.name}/{stage.project.version}"
