"""What is known of files, for as long as they are the same files: shared by all threads, read again when a file is another one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Generic, TypeVar

from .images import content_key

_REMEMBERED = 200_000  # lineages and hashes kept in memory, about 2 kB each

T = TypeVar("T")
Signature = tuple[int, int, int]  # inode, mtime in ns, bytes: another signature is another file


class Memory(Generic[T]):
    """What was read from files, as long as they are the same files. Shared by all threads; forgets what was used longest ago."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], tuple[Signature, T]] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, at: tuple[str, str], signature: Signature) -> T | None:
        kept = self._kept.get(at)
        return kept[1] if kept and kept[0] == signature else None

    def put(self, at: tuple[str, str], signature: Signature, read: T) -> T:
        with self._guard:
            self._kept[at] = (signature, read)
            self._kept.move_to_end(at)
            if len(self._kept) > _REMEMBERED:
                self._kept.popitem(last=False)
        return read


_hashed: Memory[str] = Memory()


def known_key(path: Path, signature: Signature | None = None) -> str:
    """Content key of a file, read again only when the file is another one."""
    signature = signature or signature_of(path.stat())
    at = str(path.parent), path.name
    return _hashed.get(at, signature) or _hashed.put(at, signature, content_key(path))


def signature_of(found: os.stat_result) -> Signature:
    return found.st_ino, found.st_mtime_ns, found.st_size


def files_in(folder: Path) -> list[tuple[str, Signature]]:
    """Names and signatures of the files of a folder, by name; empty where there is none."""
    found: list[tuple[str, Signature]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # moved while we looked
                    if entry.is_file():
                        found.append((entry.name, signature_of(entry.stat())))
    except FileNotFoundError:
        return []
    return sorted(found)
