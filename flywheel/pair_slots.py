"""The pictures of each slot before anything is paired: which files there are, what their headers say, how their names fit. Never writes.

Two files belong together when their names without the ending are the same, whatever the case of the letters: `Anna 1.PNG` in the target folder
pairs with `anna 1.jpg` in a control folder. A file that is missing, doubled or unreadable is an error, never a shift of the next one.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .errors import DatasetError
from .images import EXIF_ORIENTATION, MAX_PIXELS, SUFFIXES, content_key

TARGET = "target"
METADATA = "metadata.jsonl"
READERS = 4  # on a disk that is waited for; where the files are at hand, threads only wait for one another: twice as slow
AT_ONCE = 64  # files a thread is given: one at a time costs as much in hand-overs as in reading


@dataclass(frozen=True, slots=True)
class Picture:
    """One image file outside a project's stages. `width`, `height`: px, upright as EXIF says."""

    path: Path
    width: int
    height: int

    @property
    def name(self) -> str:
        return self.path.name

    def key(self) -> str:
        """Hash of the bytes as they are now."""
        return content_key(self.path)


def match_key(stem: str) -> str:
    """What two file names must share to be a pair. Composed and decomposed umlauts are the same; "ß" and "ss" are not."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).lower())


def open_header(path: Path) -> Picture:
    """Size of a picture without reading its pixels.

    Raises:
        DatasetError: empty, no image, too large, or not ours to read.
    """
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise DatasetError(f"{path.name} has {width} x {height} pixels, more than {MAX_PIXELS:,}. Scale it down first.")
            if (opened.format == "TIFF" or "exif" in opened.info) and opened.getexif().get(EXIF_ORIENTATION, 1) in range(5, 9):
                width, height = height, width
            return Picture(path, width, height)
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        raise DatasetError(f"{path.name} is {'empty (0 bytes)' if empty else 'not an image Pillow can read'}") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{path.name} has more than {MAX_PIXELS:,} pixels. Scale it down first.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DatasetError(f"{path.name} cannot be read ({error})") from error


@dataclass(slots=True)
class Slot:
    """What was found for one slot, target or control, before anything is paired.

    `files`: paths by match key; more than one is a problem. `texts`: caption files likewise. `stems`: how a key is written, where that is not
    the stem of the target's file.
    """

    folder: Path
    slot: str
    files: dict[str, list[Path]]
    notes: list[str] = field(default_factory=list[str])
    texts: dict[str, list[Path]] = field(default_factory=dict[str, list[Path]])
    stems: dict[str, str] = field(default_factory=dict[str, str])
    pictures: dict[Path, Picture] = field(default_factory=dict[Path, Picture])
    unreadable: dict[Path, str] = field(default_factory=dict[Path, str])

    def drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.files.pop(key, None)

    def shown(self, path: Path) -> str:
        return f"{self.slot}/{path.name}"


def scan(folder: Path, slot: str) -> Slot:
    """What one folder holds for a slot; subfolders and hidden files are not read."""
    files: dict[str, list[Path]] = {}
    texts: dict[str, list[Path]] = {}
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name in (METADATA, "Thumbs.db", "desktop.ini"):
                continue
            if not entry.is_file():
                others.append(f"{entry.name}/")
            elif path.suffix.lower() in SUFFIXES:
                files.setdefault(match_key(path.stem), []).append(path)
            elif path.suffix.lower() == ".txt":
                texts.setdefault(match_key(path.stem), []).append(path)
            else:
                others.append(entry.name)
    notes = [f"{slot}: {listed(others)} not used (neither picture nor caption)."] if others else []
    return Slot(folder, slot, files, notes, texts)


def read_headers(slots: Sequence[Slot], read: Callable[[Path], Picture | str] | None = None) -> Sequence[Slot]:
    """Open every header; what cannot be opened is kept with the reason. `read`: in place of `header_or_reason`.

    One after the other while the system has the files at hand; by threads from where the disk has to be waited for.
    """
    paths = [(slot, path) for slot in slots for paths in slot.files.values() for path in paths]
    handfuls = [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]

    def read_all(handful: Sequence[tuple[Slot, Path]]) -> list[Picture | str]:
        return [(read or header_or_reason)(path) for _, path in handful]

    founds: list[list[Picture | str]] = []
    waiting = False
    while not waiting and len(founds) < len(handfuls):
        began, worked = time.perf_counter(), time.thread_time()
        founds.append(read_all(handfuls[len(founds)]))
        waiting = time.perf_counter() - began > 2 * (time.thread_time() - worked)
    if waiting:
        with ThreadPoolExecutor(READERS, "flenwheel-headers") as pool:
            founds += pool.map(read_all, handfuls[len(founds) :])
    for (slot, path), found in zip(paths, chain.from_iterable(founds), strict=True):
        if isinstance(found, str):
            slot.unreadable[path] = found
        else:
            slot.pictures[path] = found
    return slots


def header_or_reason(path: Path) -> Picture | str:
    try:
        return open_header(path)
    except DatasetError as error:
        return str(error)


def faults(slots: Sequence[Slot]) -> dict[str, list[str]]:
    """Everything wrong, by match key; "" for what concerns a whole folder."""
    found: dict[str, list[str]] = {}
    target = slots[0]
    if not target.files:
        found[""] = [f"{target.slot}: there is no picture in {target.folder}"]
    for slot in slots:
        for key, paths in slot.files.items():
            if len(paths) > 1:
                found.setdefault(key, []).append(_doubled(slot, paths))
            found.setdefault(key, []).extend(f"{slot.slot}: {slot.unreadable[path]}" for path in paths if path in slot.unreadable)
    for key in target.files:
        for number, slot in enumerate(slots[1:], 1):
            if key not in slot.files:
                found.setdefault(key, []).append(_gap(slots, number, key))
    for slot in slots[1:]:
        for key in slot.files.keys() - target.files.keys():
            found.setdefault(key, []).append(f"{slot.shown(slot.files[key][0])} has no target")
    return {key: told for key, told in found.items() if told}


def has_problems(target: Slot, slot: Slot) -> bool:
    return target.files.keys() != slot.files.keys() or bool(slot.unreadable) or any(len(paths) > 1 for paths in slot.files.values())


def summary(slots: Sequence[Slot]) -> str:
    counts = ", ".join(f"{slot.slot} {sum(map(len, slot.files.values()))}" for slot in slots)
    return (
        f"The folders do not pair up (pictures: {counts}). Files pair by name, without ending, in any case. Add or mend the files, drop the"
        ' pairs ("drop the pair"), or drop the control folder ("drop the control"):'
    )


def shown_name(slots: Sequence[Slot], key: str) -> str:
    return next((slot.files[key][0].stem for slot in slots if key in slot.files), key)


def listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _doubled(slot: Slot, paths: Sequence[Path]) -> str:
    shown = " and ".join(slot.shown(path) for path in paths)
    if len({path.stem for path in paths}) > 1:
        return f"{shown} differ only in upper and lower case or in how an accent is written: rename or remove one"
    return f"{shown} have the same name: keep one"


def _gap(slots: Sequence[Slot], number: int, key: str) -> str:
    """Who is missing, and which file a careless trainer would have put there."""
    slot, wanted = slots[number], slots[0].files[key][0]
    missing = f"{slot.slot} has no file for {slots[0].shown(wanted)}"
    later = next((other for other in slots[number + 1 :] if key in other.files), None)
    if later is not None:
        return f"{missing}: {later.shown(later.files[key][0])} would have slipped into its place (Picture {number})"
    following = min((other for other in slot.files if other > key), default=None)
    if following is not None:
        return f"{missing}: paired by order, {slot.shown(slot.files[following][0])} would have slipped into its place"
    return f"{missing}: the pair would have been trained without Picture {number}"
