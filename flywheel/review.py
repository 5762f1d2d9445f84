"""Verdicts: what a person decided about which bytes, and the folders that follow it.

Events are append-only and keyed by the hash of the image bytes, so a renamed or moved file keeps its verdict. After each verdict the file
moves into good/, corrections/ or rejected/. A person may also sort the files by hand: a file found where we did not put it is a verdict.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from .candidates import CORRECTIONS, GOOD, REJECTED, TRIES, Shelf, record_of
from .dataset import Dataset
from .errors import DatasetError
from .images import value_key, write_json
from .project import Project, Stage
from .store import connect

Label = Literal["good", "needs_correction", "reject"]
Origin = Literal["person", "policy", "folder"]  # at the screen; a stated rule; sorted by hand in the file manager
LABELS: tuple[Label, ...] = get_args(Label)
REASONS = ("identity", "hands", "anatomy", "background", "lighting", "artefact", "blur", "composition", "other")
FOLDER_OF: Mapping[Label | None, str] = {None: "", "good": GOOD, "needs_correction": CORRECTIONS, "reject": REJECTED}
LABEL_OF: Mapping[str, Label | None] = {folder: label for label, folder in FOLDER_OF.items()}

_locks: dict[Path, threading.Lock] = {}
_locks_guard = threading.Lock()


@dataclass(frozen=True, slots=True)
class LabelEvent:
    """One decision about one image; `label` None withdraws the one before. `at` is UTC, ISO 8601.

    `event_id` is chosen by whoever decides: an event that is sent again, because its answer was lost, is then recorded once.
    """

    image_key: str
    label: Label | None
    reasons: tuple[str, ...] = ()
    note: str = ""
    reviewer: str = ""
    origin: Origin = "person"
    at: str = ""
    event_id: str | None = None


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


def record(project: Project, events: Sequence[LabelEvent]) -> int:
    """Append verdicts; all of them are on disk when this returns. Answers the id of the last one."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    rows = [
        (event.event_id, event.image_key, event.label, json.dumps(event.reasons), event.note, event.at or now, event.reviewer, event.origin)
        for event in events
    ]
    with connect(project.database) as db:
        db.executemany(
            "INSERT INTO label_events (event_id, image_key, label, reasons, note, at, reviewer, origin) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (event_id) DO NOTHING",
            rows,
        )
        return db.execute("SELECT COALESCE(MAX(id), 0) FROM label_events").fetchone()[0]


def labels(project: Project) -> dict[str, LabelEvent]:
    """The verdict in force for each image key, withdrawn ones left out."""
    with connect(project.database) as db:
        return {row["image_key"]: _event(row) for row in db.execute("SELECT * FROM labels WHERE label IS NOT NULL")}


def history(project: Project, image_key: str) -> list[LabelEvent]:
    """Everything decided about an image, oldest first."""
    with connect(project.database) as db:
        return [_event(row) for row in db.execute("SELECT * FROM label_events WHERE image_key = ? ORDER BY id", (image_key,))]


def last_event(project: Project) -> int:
    """Id of the newest event; grows with every verdict."""
    with connect(project.database) as db:
        return db.execute("SELECT COALESCE(MAX(id), 0) FROM label_events").fetchone()[0]


def follow(stage: Stage) -> Shelf:
    """Make files and verdicts agree, and answer the shelf as it is then.

    A verdict moves its file. A file that lies where we never put it was sorted by a person: that becomes a verdict.
    """
    with _lock(stage.project.root):
        shelf = Shelf(stage)
        decided, placed = labels(stage.project), _placements(stage)
        by_hand = [
            LabelEvent(shelf.lineages[key].image_key, LABEL_OF[folder], reviewer="file manager", origin="folder")
            for key, folder in _sorted_by_hand(shelf, decided, placed)
        ]
        if by_hand:
            record(stage.project, by_hand)
            decided = labels(stage.project)
        for request_key in list(shelf.files):
            if shelf.folder_of(shelf.files[request_key]) != TRIES:
                shelf.move(request_key, _wanted_folder(shelf, request_key, decided))
        _remember(shelf, placed)
        return shelf


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
    """Request keys of what is under review, in its order; before a gate has run, of every candidate of the stage."""
    session = _read_session(shelf.stage)
    present = {shelf.lineages[key].image_key: key for key, path in shelf.files.items() if shelf.folder_of(path) != TRIES}
    return [present[key] for key in session["keys"] if key in present] if session else list(present.values())


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
        ours = {_wanted_folder(shelf, request_key, decided), placed.get(image_key, "")}
        if folder not in ours and folder != TRIES:
            moved.append((request_key, folder))
    return moved


def _wanted_folder(shelf: Shelf, request_key: str, decided: Mapping[str, LabelEvent]) -> str:
    event = decided.get(shelf.lineages[request_key].image_key)
    return FOLDER_OF[event.label if event else None]


def _placements(stage: Stage) -> dict[str, str]:
    """Where we last put each image of a stage, by image key."""
    with connect(stage.project.database) as db:
        rows = db.execute("SELECT image_key, folder FROM placements WHERE stage = ?", (_place(stage),))
        return {row["image_key"]: row["folder"] for row in rows}


def _remember(shelf: Shelf, placed: Mapping[str, str]) -> None:
    now = {shelf.lineages[key].image_key: shelf.folder_of(path) for key, path in shelf.files.items()}
    changed = [(_place(shelf.stage), key, folder) for key, folder in now.items() if placed.get(key, "") != folder]
    if changed:
        with connect(shelf.stage.project.database) as db:
            db.executemany("INSERT OR REPLACE INTO placements (stage, image_key, folder) VALUES (?, ?, ?)", changed)


def _place(stage: Stage) -> str:
    return f"{stage.name}/{stage.project.version}"


def _event(row: Mapping[str, str]) -> LabelEvent:
    return LabelEvent(
        row["image_key"],
        row["label"],  # type: ignore[arg-type]
        tuple(json.loads(row["reasons"])),
        row["note"],
        row["reviewer"],
        row["origin"],  # type: ignore[arg-type]
        row["at"],
        row["event_id"],
    )


def _lock(root: Path) -> threading.Lock:
    """Routes and nodes of one process take turns at moving a project's files."""
    with _locks_guard:
        return _locks.setdefault(root, threading.Lock())


def problems_of(events: Iterable[LabelEvent], known: Iterable[str]) -> list[str]:
    """What is wrong with events that came from outside, in words; empty when they can be recorded."""
    keys = set(known)
    problems: list[str] = []
    for event in events:
        if event.image_key not in keys:
            problems.append(f"there is no image {event.image_key!r} under review here")
        if event.label is not None and event.label not in LABELS:
            problems.append(f"{event.label!r} is no label: use {', '.join(LABELS)} or null")
        problems += [f"{reason!r} is no reason: use {', '.join(REASONS)}" for reason in event.reasons if reason not in REASONS]
    return problems
