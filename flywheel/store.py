"""A project's memory: one SQLite file in WAL mode and the list of its migrations. SQL of a table lives with its module."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import StorageError
from .images import storage_error

BUSY_TIMEOUT_S = 10.0
HOLD_S = 30.0
REFUSALS = {  # what SQLite says when the disk is at fault and not we: what to do
    "full": "Free some space and do it again; what was stored before is kept.",
    "readonly": "Make the folder writable and do it again; what was stored before is kept.",
    "unable to open": "Make the folder writable and do it again.",
    "disk I/O": "Check the disk and do it again; what was stored before is kept.",
    "locked": "Another program holds it; close that and do it again.",
    "malformed": "The file is damaged: put it aside and restore a copy. The images and their folders are untouched.",
    "not a database": "The file is damaged: put it aside and restore a copy. The images and their folders are untouched.",
}


def _m001_label_events(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE label_events (id INTEGER PRIMARY KEY, event_id TEXT UNIQUE, image_key TEXT NOT NULL, label TEXT, reasons TEXT NOT NULL, note TEXT NOT NULL,"
        " at TEXT NOT NULL, reviewer TEXT NOT NULL, origin TEXT NOT NULL)"
    )
    db.execute("CREATE INDEX label_events_by_image ON label_events (image_key, id)")
    for verb in ("UPDATE", "DELETE"):  # append-only, whoever holds the file
        db.execute(
            f"CREATE TRIGGER label_events_no_{verb.lower()} BEFORE {verb} ON label_events"
            " BEGIN SELECT RAISE(ABORT, 'verdicts are append-only'); END"
        )
    db.execute(
        "CREATE VIEW labels AS SELECT e.* FROM label_events e JOIN"
        " (SELECT image_key, MAX(id) AS id FROM label_events GROUP BY image_key) newest USING (id)"
    )
    db.execute(
        "CREATE TABLE placements (stage TEXT NOT NULL, image_key TEXT NOT NULL, folder TEXT NOT NULL, PRIMARY KEY (stage, image_key))"
    )


def _m002_faces(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE faces (image_key TEXT NOT NULL, embedder TEXT NOT NULL, found TEXT NOT NULL, embeddings BLOB NOT NULL,"
        " PRIMARY KEY (image_key, embedder))"
    )
    db.execute(
        "CREATE TABLE identity_scores (image_key TEXT NOT NULL, reference TEXT NOT NULL, embedder TEXT NOT NULL, state TEXT NOT NULL,"
        " similarity REAL, distance REAL, faces INTEGER NOT NULL, matched TEXT, note TEXT NOT NULL, PRIMARY KEY (image_key, reference, embedder))"
    )


def _m003_review_passes(db: sqlite3.Connection) -> None:
    for column in ("pass TEXT NOT NULL DEFAULT 'first'", "batch TEXT", "answers TEXT NOT NULL DEFAULT '{}'"):
        db.execute(f"ALTER TABLE label_events ADD COLUMN {column}")
    db.execute("CREATE INDEX label_events_by_reviewer ON label_events (reviewer, pass, id)")
    db.execute("CREATE INDEX label_events_by_batch ON label_events (batch)")
    db.execute(
        "CREATE TABLE undo_events (id INTEGER PRIMARY KEY, batch TEXT NOT NULL, undone INTEGER NOT NULL, seen INTEGER NOT NULL,"
        " at TEXT NOT NULL, reviewer TEXT NOT NULL)"
    )
    db.execute("CREATE INDEX undo_events_by_batch ON undo_events (batch, id)")
    for verb in ("UPDATE", "DELETE"):
        db.execute(
            f"CREATE TRIGGER undo_events_no_{verb.lower()} BEFORE {verb} ON undo_events BEGIN SELECT RAISE(ABORT, 'undo is append-only'); END"
        )
    db.execute(
        "CREATE VIEW undone AS SELECT batch, at, reviewer FROM undo_events"
        " WHERE undone AND id IN (SELECT MAX(id) FROM undo_events GROUP BY batch)"
    )
    db.execute("DROP VIEW labels")
    db.execute(  # the newest verdict of each image and pass that was not undone
        "CREATE VIEW standing AS SELECT e.* FROM label_events e JOIN (SELECT MAX(id) AS id FROM label_events"
        " WHERE COALESCE(batch, 'event-' || id) NOT IN (SELECT batch FROM undone) GROUP BY image_key, pass) newest USING (id)"
    )


MIGRATIONS = (_m001_label_events, _m002_faces, _m003_review_passes)


@contextmanager
def connect(path: Path, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
    """Open a project's database, bring its schema up to date, commit on success, roll back on error.

    WAL with synchronous=FULL: a committed verdict survives a killed process and a power cut. What is not `durable` survives the process, and
    the power as soon as anything durable follows it.

    Raises:
        StorageError: the disk refused, or the file is no database any more.
    """
    try:
        with _opened(path, "FULL" if durable else "NORMAL") as db:
            yield db
    except OSError as error:
        raise storage_error(path, error) from error
    except sqlite3.DatabaseError as error:
        remedy = next((remedy for said, remedy in REFUSALS.items() if said in str(error)), None)
        if remedy is None:
            raise
        raise StorageError(f"{path} could not be used ({error}). {remedy}") from error


def hold(path: Path) -> None:
    """For half a minute more keep what opens a project's database open, while verdict follows verdict.

    When the last connection closes, SQLite writes its log back and deletes it, which takes longer than to store a verdict.
    """
    with _guard:
        fresh = _own(path) not in _wanted
        _wanted[_own(path)] = time.monotonic()
    if fresh:
        _let_go_later(path, HOLD_S)


def _let_go_later(path: Path, seconds: float) -> None:
    timer = threading.Timer(seconds, _let_go, (path,))
    timer.daemon = True
    timer.start()


def _let_go(path: Path) -> None:
    with _guard:
        left = _wanted[_own(path)] + HOLD_S - time.monotonic()
        if left <= 0:
            del _wanted[_own(path)]
    if left > 0:
        _let_go_later(path, left)
    elif db := _taken(path):
        db.close()


def _taken(path: Path) -> sqlite3.Connection | None:
    """The connection that waits, if the file is still the one it was opened on: a folder may be deleted and made again."""
    with _guard:
        file, db = _idle.pop(_own(path), (None, None))
    if db is None or file == _file(path):
        return db
    db.close()
    return None


def _put_back(path: Path, db: sqlite3.Connection) -> None:
    with _guard:
        if _own(path) in _wanted and _own(path) not in _idle:
            _idle[_own(path)] = _file(path), db
            return
    db.close()


def _file(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _own(path: Path) -> tuple[int, Path]:
    """A process that was forked off may not touch what it has inherited."""
    return os.getpid(), path


_wanted: dict[tuple[int, Path], float] = {}
_idle: dict[tuple[int, Path], tuple[tuple[int, int] | None, sqlite3.Connection]] = {}
_guard = threading.Lock()


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """One at a time among all threads and processes that ask for the same folder; given back by the system when a process dies.

    Raises:
        StorageError: another one holds it for more than ten seconds, or the folder cannot be written.
    """
    path = folder / "turn.db"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        db.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        db.close()
        raise StorageError(f"{path.parent} is held by another program ({error}). Close that and do it again.") from error
    try:
        yield
    finally:
        db.close()  # rolls back


@contextmanager
def _opened(path: Path, synchronous: str) -> Iterator[sqlite3.Connection]:
    db = _taken(path) or _fresh(path)
    try:
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            if db.in_transaction:  # SQLite has rolled back itself where the disk is full
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    _put_back(path, db)


def _fresh(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)  # one thread after the other
    try:
        db.row_factory = sqlite3.Row
        _use_wal(db)
        _migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def _use_wal(db: sqlite3.Connection) -> None:
    """SQLite does not wait by itself here when another connection is just creating the file or closing it as the last one."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _migrate(db: sqlite3.Connection) -> None:
    """Apply what is missing; the schema version lives in SQLite's own user_version."""
    if db.execute("PRAGMA user_version").fetchone()[0] >= len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")  # two processes may open a new project at once: the second waits, then finds the work done
    try:
        for number in range(db.execute("PRAGMA user_version").fetchone()[0], len(MIGRATIONS)):
            MIGRATIONS[number](db)
            db.execute(f"PRAGMA user_version = {number + 1}")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
