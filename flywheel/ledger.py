"""The ledger of verdicts: who decided what about which bytes, in which pass. Appended to, never changed; knows no files.

A verdict stands until a newer one of the same pass, or until its batch is undone. Order is that of arrival, not of the clock, which may be set
back. The verdict in force is that of the strict pass, else that of the first; the repeat pass only measures the reviewer.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Literal, get_args

from .project import Project
from .store import connect

Label = Literal["good", "needs_correction", "reject"]
Origin = Literal["person", "policy", "folder"]  # at the screen; a stated rule; sorted by hand in the file manager
Pass = Literal["first", "strict", "repeat"]
LABELS: tuple[Label, ...] = get_args(Label)
PASSES: tuple[Pass, ...] = get_args(Pass)
REASONS = ("identity", "hands", "anatomy", "background", "lighting", "artefact", "blur", "composition", "other")
QUESTIONS = ("character", "anatomy", "artefacts", "gap")  # step 1.7: character match, anatomy, no artefacts, fills a gap
SHOWN_KEYS = 10


@dataclass(frozen=True, slots=True)
class LabelEvent:
    """One decision about one image; `label` None withdraws the one before. `at` is UTC, ISO 8601.

    `event_id` is chosen by whoever decides: an event that is sent again, because its answer was lost, is then recorded once. `during`: the
    pass. `answers`: to the strict pass's questions. `batch`: events of one batch are undone together. `id` and `undone` are the ledger's.
    """

    image_key: str
    label: Label | None
    reasons: tuple[str, ...] = ()
    note: str = ""
    reviewer: str = ""
    origin: Origin = "person"
    at: str = ""
    event_id: str | None = None
    during: Pass = "first"
    answers: Mapping[str, bool] = field(default_factory=dict[str, bool])
    batch: str = ""
    id: int = 0
    undone: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """How much of the ledger has been read: ids of the newest verdict and of the newest undo. Only grows."""

    verdict: int = 0
    undo: int = 0

    def __str__(self) -> str:
        return f"{self.verdict}.{self.undo}"


@dataclass(frozen=True, slots=True)
class Step:
    """One batch of verdicts as a reviewer remembers it. `keys` names the first ten images."""

    batch: str
    count: int
    label: Label | None
    keys: tuple[str, ...]
    at: str


Standing = dict[str, dict[Pass, LabelEvent]]  # by image key, then by pass


def record(project: Project, events: Sequence[LabelEvent], *, batch: str = "") -> int:
    """Append verdicts as one batch, or each to its own where it names one; all of them are on disk when this returns.

    Answers the id of the last one.
    """
    now, batch = _now(), batch or uuid.uuid4().hex
    rows = [
        (
            event.event_id,
            event.image_key,
            event.label,
            json.dumps(event.reasons),
            event.note,
            event.at or now,
            event.reviewer,
            event.origin,
            event.during,
            event.batch or batch,
            json.dumps(dict(event.answers)),
        )
        for event in events
    ]
    with connect(project.database) as db:
        fresh = {
            named: uuid.uuid4().hex  # nothing may be born undone
            for named in {row[9] for row in rows}
            if db.execute("SELECT 1 FROM undone WHERE batch = ?", (named,)).fetchone()
        }
        rows = [(*row[:9], fresh.get(row[9], row[9]), row[10]) for row in rows]
        db.executemany(
            "INSERT INTO label_events (event_id, image_key, label, reasons, note, at, reviewer, origin, pass, batch, answers)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
            rows,
        )
        return _position(db).verdict


def labels(project: Project) -> dict[str, LabelEvent]:
    """The verdict in force for each image key, withdrawn ones left out."""
    found = {key: in_force(passes) for key, passes in standing(project).items()}
    return {key: event for key, event in found.items() if event}


def in_force(passes: Mapping[Pass, LabelEvent]) -> LabelEvent | None:
    """Of what stands for one image, the verdict that counts."""
    chosen = (passes[during] for during in ("strict", "first") if during in passes)
    return next((event for event in chosen if event.label), None)


def standing(project: Project) -> Standing:
    """What stands for each image in each pass; a withdrawn verdict stands with label None."""
    with connect(project.database) as db:
        return _grouped(db.execute("SELECT * FROM standing"))


def catch_up(project: Project, known: Standing, since: Position) -> tuple[Standing, Position]:
    """What stands now, given what was `known` at `since`: the same dict with news written into it, or after an undo another one."""
    with connect(project.database) as db:
        now = _position(db)
        if now.undo != since.undo or now.verdict < since.verdict:  # the latter: another database was put in its place
            return _grouped(db.execute("SELECT * FROM standing")), now
        if now.verdict != since.verdict:
            for row in db.execute("SELECT * FROM label_events WHERE id > ? ORDER BY id", (since.verdict,)):
                known.setdefault(row["image_key"], {})[row["pass"]] = _event(row)
        return known, now


def position(project: Project) -> Position:
    """Where the ledger ends now."""
    with connect(project.database) as db:
        return _position(db)


def last_event(project: Project) -> int:
    """A number that grows with every verdict and every undo."""
    end = position(project)
    return end.verdict + end.undo


def touched_since(project: Project, since: Position) -> set[str]:
    """Image keys of everything decided or undone since."""
    with connect(project.database) as db:
        rows = db.execute(
            "SELECT image_key FROM label_events WHERE id > ? UNION SELECT image_key FROM label_events"
            " WHERE COALESCE(batch, 'event-' || id) IN (SELECT batch FROM undo_events WHERE id > ?)",
            (since.verdict, since.undo),
        )
        return {row["image_key"] for row in rows}


def history(project: Project, image_key: str) -> list[LabelEvent]:
    """Everything decided about an image, oldest first, undone verdicts included."""
    with connect(project.database) as db:
        undone = {row["batch"] for row in db.execute("SELECT batch FROM undone")}
        rows = db.execute("SELECT * FROM label_events WHERE image_key = ? ORDER BY id", (image_key,))
        return [_event(row, undone) for row in rows]


def next_undo(project: Project, reviewer: str, during: Pass, keys: Collection[str]) -> Step | None:
    """The newest batch of this reviewer and pass about these images that was not undone."""
    with connect(project.database) as db:
        return _next_undo(db, reviewer, during, keys)


def next_redo(project: Project, reviewer: str, during: Pass, keys: Collection[str]) -> Step | None:
    """The batch that was undone last, as long as the reviewer has decided nothing since."""
    with connect(project.database) as db:
        return _next_redo(db, reviewer, during, keys)


def steps(project: Project, reviewer: str, during: Pass, keys: Collection[str]) -> tuple[Step | None, Step | None]:
    """The next undo and the next redo."""
    with connect(project.database) as db:
        return _next_undo(db, reviewer, during, keys), _next_redo(db, reviewer, during, keys)


def undo(project: Project, reviewer: str, during: Pass, keys: Collection[str], *, batch: str = "") -> Step | None:
    """Undo one batch: as if it had never been given, so that what others have decided since stands. None when there is nothing to undo.

    `batch`: the one the reviewer saw named; when it is undone already, as after a lost answer, nothing more happens, and when another one
    came after it, nothing at all does.
    """
    return _turned(project, reviewer, during, keys, batch, undone=True)


def redo(project: Project, reviewer: str, during: Pass, keys: Collection[str], *, batch: str = "") -> Step | None:
    """Take the last undo back."""
    return _turned(project, reviewer, during, keys, batch, undone=False)


def keys_of(project: Project, batch: str) -> tuple[str, ...]:
    """Image keys of one batch."""
    with connect(project.database) as db:
        rows = db.execute("SELECT DISTINCT image_key FROM label_events WHERE COALESCE(batch, 'event-' || id) = ?", (batch,))
        return tuple(row["image_key"] for row in rows)


def agreement(known: Standing, reviewer: str, later: Pass) -> list[tuple[str, Label, Label]]:
    """Image key, label in the first pass and label in a later one, for what this reviewer has decided in both ("" is any reviewer)."""
    pairs: list[tuple[str, Label, Label]] = []
    for key, passes in known.items():
        first, then = passes.get("first"), passes.get(later)
        if first and then and first.label and then.label and (not reviewer or first.reviewer == then.reviewer == reviewer):
            pairs.append((key, first.label, then.label))
    return pairs


def problems_of(events: Iterable[LabelEvent], known: Iterable[str]) -> list[str]:
    """What is wrong with events that came from outside, in words; empty when they can be recorded."""
    keys = known if isinstance(known, (set, frozenset, dict)) else set(known)
    problems: list[str] = []
    for event in events:
        if event.image_key not in keys:
            problems.append(f"there is no image {event.image_key!r} under review here")
        if event.label is not None and event.label not in LABELS:
            problems.append(f"{event.label!r} is no label: use {', '.join(LABELS)} or null")
        problems += [f"{reason!r} is no reason: use {', '.join(REASONS)}" for reason in event.reasons if reason not in REASONS]
        problems += [f"{name!r} is no question: use {', '.join(QUESTIONS)}" for name in event.answers if name not in QUESTIONS]
        if event.during == "strict" and event.label in ("needs_correction", "reject") and not event.reasons:
            problems.append(f"the strict pass wants a reason for {event.label} on {event.image_key}: use {', '.join(REASONS)}")
    return problems


def _turned(project: Project, reviewer: str, during: Pass, keys: Collection[str], batch: str, *, undone: bool) -> Step | None:
    with connect(project.database) as db:
        step = (_next_undo if undone else _next_redo)(db, reviewer, during, keys)
        if batch and (step is None or step.batch != batch):
            other = (_next_redo if undone else _next_undo)(db, reviewer, during, keys)
            return other if other and other.batch == batch else None
        if step:
            db.execute(
                "INSERT INTO undo_events (batch, undone, seen, at, reviewer) VALUES (?, ?, ?, ?, ?)",
                (step.batch, undone, _position(db).verdict, _now(), reviewer),
            )
        return step


def _next_undo(db: sqlite3.Connection, reviewer: str, during: Pass, keys: Collection[str]) -> Step | None:
    rows = db.execute(
        "SELECT image_key, COALESCE(batch, 'event-' || id) AS batch FROM label_events WHERE reviewer = ? AND pass = ? AND origin != 'folder'"
        " AND COALESCE(batch, 'event-' || id) NOT IN (SELECT batch FROM undone) ORDER BY id DESC",
        (reviewer, during),
    )
    return next((_step(db, row["batch"]) for row in rows if row["image_key"] in keys), None)


def _next_redo(db: sqlite3.Connection, reviewer: str, during: Pass, keys: Collection[str]) -> Step | None:
    rows = db.execute(
        "SELECT u.batch, u.seen, e.image_key FROM undo_events u JOIN label_events e ON e.batch = u.batch OR (e.batch IS NULL AND"
        " 'event-' || e.id = u.batch) WHERE u.undone AND u.id IN (SELECT MAX(id) FROM undo_events GROUP BY batch)"
        " AND e.reviewer = ? AND e.pass = ? GROUP BY u.batch ORDER BY u.id DESC",
        (reviewer, during),
    )
    found = next((row for row in rows if row["image_key"] in keys), None)
    if found is None:
        return None
    later = db.execute(
        "SELECT image_key FROM label_events WHERE reviewer = ? AND pass = ? AND origin != 'folder' AND id > ?",
        (reviewer, during, found["seen"]),
    )
    return None if any(row["image_key"] in keys for row in later) else _step(db, found["batch"])


def _step(db: sqlite3.Connection, batch: str) -> Step:
    where, value = ("id = ?", batch[6:]) if batch.startswith("event-") else ("batch = ?", batch)
    rows = db.execute(f"SELECT image_key, label, at FROM label_events WHERE {where} ORDER BY id", (value,)).fetchall()
    return Step(batch, len(rows), rows[0]["label"], tuple(row["image_key"] for row in rows[:SHOWN_KEYS]), rows[0]["at"])


def _position(db: sqlite3.Connection) -> Position:
    row = db.execute("SELECT (SELECT MAX(id) FROM label_events), (SELECT MAX(id) FROM undo_events)").fetchone()
    return Position(row[0] or 0, row[1] or 0)


def _grouped(rows: Iterable[sqlite3.Row]) -> Standing:
    found: Standing = {}
    for row in rows:
        found.setdefault(row["image_key"], {})[row["pass"]] = _event(row)
    return found


def _event(row: sqlite3.Row, undone: Collection[str] = ()) -> LabelEvent:
    batch = row["batch"] or f"event-{row['id']}"
    return LabelEvent(
        row["image_key"],
        row["label"],
        tuple(json.loads(row["reasons"])),
        row["note"],
        row["reviewer"],
        row["origin"],
        row["at"],
        row["event_id"],
        row["pass"],
        json.loads(row["answers"]),
        batch,
        row["id"],
        batch in undone,
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
