"""The events of a job as they lie on disk. A reader that asks often parses only what is new; what it cannot read it leaves out and counts."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, TypeGuard

Event = dict[str, Any]

KEPT = 64  # journals in memory
TAIL = 200  # bytes before the last reading that must be as they were, else all is read anew
_NUMBERS: Mapping[str, tuple[str, ...]] = {"step": ("step",), "validation": ("step",), "memory": ("peak_bytes",)}
_FILES = ("checkpoint", "sample")


@dataclass(slots=True)
class Journal:
    """What was read: whole events in order, lines that are none, and up to which byte. Do not change the list."""

    events: list[Event] = field(default_factory=list)
    damaged: int = 0
    end: int = 0
    tail: bytes = b""
    inode: int = 0


_read: OrderedDict[Path, Journal] = OrderedDict()
_lock = Lock()


def read(path: Path) -> Journal:
    """The journal as it is now; a cut-off last line counts as damaged until it is whole."""
    with _lock:
        try:
            with path.open("rb") as file:
                known = _read.get(path)
                inode = path.stat().st_ino
                if known is None or known.inode != inode or not _goes_on(file, known):
                    known = Journal(inode=inode)
                file.seek(known.end)
                content = file.read()
        except FileNotFoundError:
            _read.pop(path, None)
            return Journal()
        whole, _, rest = content.rpartition(b"\n")
        told = Journal(list(known.events), known.damaged, known.end + len(content) - len(rest), known.tail, inode)
        if whole:
            _take_in(told, whole)
            told.tail = (known.tail + whole + b"\n")[-TAIL:]
        _read[path] = told
        _read.move_to_end(path)
        while len(_read) > KEPT:
            _read.popitem(last=False)
        if not rest.strip():
            return told
        unfinished = Journal(list(told.events), told.damaged)
        _take_in(unfinished, rest)
        return unfinished


def _goes_on(file: Any, known: Journal) -> bool:
    """Whether the file still begins as it did when it was read last."""
    file.seek(max(0, known.end - len(known.tail)))
    return file.read(len(known.tail)) == known.tail


def _take_in(told: Journal, lines: bytes) -> None:
    for line in lines.split(b"\n"):
        if line.strip():
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if _is_event(event):
                told.events.append(event)
            else:
                told.damaged += 1


def _is_event(value: Any) -> TypeGuard[Event]:
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("kind", "at")):
        return False
    try:
        datetime.fromisoformat(value["at"])
    except ValueError:
        return False
    kind = value["kind"]
    if kind in _FILES:
        return isinstance(value.get("step"), int) and isinstance(value.get("prompt", 0), int) and isinstance(value.get("file"), str)
    return all(isinstance(value.get(name), int) for name in _NUMBERS.get(kind, ()))
