"""Taking photographs into a project: numbered copies, byte for byte where that is right. Never changes an original, and judges nothing."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import captions
from .errors import DatasetError, ImageError
from .images import SUFFIXES, content_key, open_image, png_bytes, write_whole
from .location import Unclear, names_a_place, without_metadata
from .project import Stage
from .quality import Figures, figures
from .source_metadata import NAMED, figures_of, natural_order
from .spare_memory import giving_back

READERS, AHEAD = 2, 4  # threads that read photographs, and how many photographs they may be ahead: decoded, 12 megapixels are 36 MB
PLACE_KEPT = "the copy still says where the photo was taken (GPS); to have it copied without, turn keep_place off and delete the copy"
VERBATIM = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "icon\r"})


@dataclass(frozen=True, slots=True)
class Folder:
    """The images of a folder in natural order (2 before 10), and what else lies there in words."""

    photos: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that could not be taken in, and why."""

    original: str
    problem: str


@dataclass(frozen=True, slots=True)
class Taken:
    """A photograph that has its copy in the project. `entry` is its last description in metadata.json, empty when it is new."""

    original: str
    sha256: str
    path: Path
    key: str
    treatments: tuple[str, ...]
    figures: Figures
    entry: Mapping[str, Any] = field(default_factory=dict)


def photos_in(folder: Path) -> Folder:
    """The images directly in a folder, told by their suffix; subfolders and other files are named in the notes, system files counted.

    Raises:
        DatasetError: there is no such folder, it cannot be listed, or there is no image in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {str(folder)!r}. Give the folder that holds the photos of the character.")
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: natural_order(entry.name))
    except OSError as error:
        raise DatasetError(f"The folder {str(folder)!r} cannot be listed: {error.strerror or error}. Make it readable.") from error
    hidden = [entry for entry in entries if entry.name.startswith(".") or entry.name.casefold() in SYSTEM_FILES]
    shown = [entry for entry in entries if entry not in hidden]
    photos = tuple(entry for entry in shown if entry.is_file() and entry.suffix.lower() in SUFFIXES)
    others = [entry.name + ("/" if entry.is_dir() else "") for entry in shown if entry not in photos]
    if not photos:
        raise DatasetError(
            f"There is no image in {str(folder)!r}. Put the photos of the character there.", [f"{name} is no image" for name in others]
        )
    notes = [f"not images, left alone: {', '.join(others)}"] if others else []
    if hidden:
        notes.append(f"{len(hidden)} hidden or system {'file' if len(hidden) == 1 else 'files'} left alone")
    return Folder(photos, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Read:
    """A photograph as it will be stored; `copied` is None where `entry` tells that its copy is there already."""

    sha256: str
    copied: bytes | None = None
    suffix: str = ""
    treatments: tuple[str, ...] = ()
    figures: Figures | None = None


def take_in(
    stage: Stage, files: Sequence[Path], entries: Mapping[str, Mapping[str, Any]], keep_place: bool, done: Callable[[int], None]
) -> tuple[list[Taken], list[Refused]]:
    """Copies of all files that are images of their own, by number, and the others. Reads ahead, numbers in order."""
    taken: dict[str, Taken] = {}  # by SHA-256
    refused: list[Refused] = []
    shelf = _Shelf(stage, entries)
    with giving_back() as now_and_then, closing(_ahead(files, lambda path: _read(path, shelf, keep_place))) as photos:
        for number, (path, read) in enumerate(photos, 1):
            try:
                photo = read.result()
                if photo.sha256 in taken:
                    raise ImageError(f"the same file as {taken[photo.sha256].original}, byte for byte")
                taken[photo.sha256] = shelf.take(path, photo)
            except ImageError as error:
                refused.append(Refused(path.name, str(error)))
            except OSError as error:
                refused.append(Refused(path.name, f"cannot be read: {error.strerror or error}"))
            now_and_then()
            done(number)
    return sorted(taken.values(), key=lambda copy: natural_order(copy.path.name)), refused


def _ahead(files: Sequence[Path], read: Callable[[Path], _Read]) -> Generator[tuple[Path, Future[_Read]], None, None]:
    """Files in order, the next AHEAD of them being read meanwhile."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="flenwheel-photos") as pool:
        begun: deque[tuple[Path, Future[_Read]]] = deque()
        try:
            for path in files:
                begun.append((path, pool.submit(read, path)))
                if len(begun) > AHEAD:
                    yield begun.popleft()
            while begun:
                yield begun.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(path: Path, shelf: _Shelf, keep_place: bool) -> _Read:
    """Runs in a thread; writes nothing.

    Raises:
        ImageError, OSError: the photograph cannot be read.
    """
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if shelf.has(sha256):
        return _Read(sha256)
    opened = open_image(path, content=content)
    treatments, suffix, copied = opened.treatments, "", b""
    if opened.mode == "RGB" and not treatments and opened.format in VERBATIM:
        suffix, copied = VERBATIM[opened.format], content
        if names_a_place(content, opened.format):
            suffix, copied, treatments = _without_place(content, opened.format, keep_place)
    if not suffix:
        copied, treatments = png_bytes(opened.image), (*treatments, _stored(opened.format, opened.mode))
    return _Read(sha256, copied, suffix or ".png", treatments, figures(opened.image))


def _without_place(content: bytes, format: str, keep_place: bool) -> tuple[str, bytes, tuple[str, ...]]:
    """Suffix, bytes and treatments of the copy of a photograph that says where it was taken; no suffix where it must become a PNG."""
    if keep_place:
        return VERBATIM[format], content, (PLACE_KEPT,)
    try:
        return VERBATIM[format], without_metadata(content, format), ("place and other metadata left out of the copy, pixels unchanged",)
    except Unclear as error:
        return "", b"", (f"metadata with the place could not be taken out of the {format} ({error})",)


class _Shelf:
    """The numbered copies of one stage. Copies of a run that was cut short are found again by their bytes."""

    def __init__(self, stage: Stage, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._stage = stage
        self._known = {str(entry["sha256"]): name for name, entry in entries.items()}
        self._entries = entries
        there = sorted(path.name for path in stage.folder.iterdir()) if stage.folder.is_dir() else []
        strays = [name for name in there if NAMED.fullmatch(name) and name not in entries]
        self._strays = {content_key(stage.folder / name): name for name in strays}
        self._originals: dict[str, str] = {}  # by key of their copy
        self._numbers = {int(match[1]) for name in (*entries, *strays) if (match := NAMED.fullmatch(name))}

    def has(self, sha256: str) -> bool:
        """Whether this photograph has its copy; safe to ask from any thread."""
        name = self._known.get(sha256)
        return name is not None and (self._stage.folder / name).is_file()

    def take(self, original: Path, photo: _Read) -> Taken:
        """The copy of a photograph, made now if it is not there.

        Raises:
            ImageError: it shows what another one shows, or its copy is no longer what was made.
        """
        name = self._known.get(photo.sha256)
        if photo.copied is None or photo.figures is None:
            assert name is not None
            return self._again(original, photo.sha256, name)
        key = content_key(photo.copied)
        if key in self._originals:
            raise ImageError(f"the same picture as {self._originals[key]}, pixel for pixel")
        self._originals[key] = original.name
        if name is None or Path(name).suffix != photo.suffix:  # deleted to have it copied again, and now of another format
            name = self._strays.get(key) or f"source_{self._next():03}{photo.suffix}"
        path = self._stage.folder / name
        if self._strays.get(key) != name:
            write_whole(path, photo.copied)
        return Taken(
            original.name,
            photo.sha256,
            path,
            key,
            photo.treatments,
            photo.figures,
            self._entries.get(self._known.get(photo.sha256, name), {}),
        )

    def _again(self, original: Path, sha256: str, name: str) -> Taken:
        entry, path = self._entries[name], self._stage.folder / name
        content = path.read_bytes()
        if content_key(content) != entry["key"]:
            raise ImageError(
                f"its copy {name} has been changed by hand. Delete {name} to have it copied again, or put the changed picture among your"
                " photos and this one away"
            )
        self._originals[entry["key"]] = original.name
        return Taken(original.name, sha256, path, entry["key"], _treatments(entry, content), figures_of(entry), entry)

    def _next(self) -> int:
        number = max(self._numbers, default=0) + 1
        self._numbers.add(number)
        return number


def _treatments(entry: Mapping[str, Any], content: bytes) -> tuple[str, ...]:
    """What was done to a copy that is there already. Entries from before places were left out do not tell of them; their bytes do."""
    told = tuple(entry["treatments"])
    format = next(format for format, suffix in VERBATIM.items() if entry["filename"].endswith(suffix))
    older = captions.IN_TEXT_FILE not in entry
    return (*told, PLACE_KEPT) if older and names_a_place(content, format) else told


def _stored(format: str, mode: str) -> str:
    return "stored as a new PNG" if format == "PNG" else f"stored as PNG (the original is {'grey ' if mode in ('L', '1') else ''}{format})"
