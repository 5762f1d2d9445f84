"""One manifest of a dataset, and the hands that write it out. What every layout shares; knows no trainer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DatasetError, ImageError
from ..images import content_key, open_image, png_bytes, size_for, storage_error, value_key, write_whole
from ..pair_slots import Picture, Slot, match_key
from ..pairs import PairedDataset

SCHEMA = 1
MANIFEST = "manifest.json"
SAME_SHAPE = 0.01  # aspects that differ by less are the same framing: such pictures of a pair get one size


@dataclass(frozen=True, slots=True)
class Source:
    """A picture by where it was and what it was: `key` is the hash of its bytes."""

    path: str
    key: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Item:
    """One example. `id` is its name in every layout: p0001 …, which no trainer can misread; `stem` is what it was called before."""

    id: str
    stem: str
    target: Source
    controls: tuple[Source, ...]
    caption: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a layout's own files say besides the pictures. `megapixels` 0 keeps every size; else nothing is cropped, only scaled."""

    megapixels: float = 0.0
    multiple: int = 32
    repeats: int = 1
    resolution: int = 1024
    batch_size: int = 1

    def size(self, picture: Source, target: Source) -> tuple[int, int]:
        """The size a picture is written in, px. A control framed like its target gets the target's very size."""
        if not self.megapixels:
            return picture.width, picture.height
        shape, wanted = picture.width / picture.height, target.width / target.height
        like = target if abs(shape / wanted - 1) <= SAME_SHAPE else picture
        return size_for(like.width, like.height, megapixels=self.megapixels, multiple=self.multiple)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A dataset with everything needed to write it again, byte for byte."""

    name: str
    slots: tuple[str, ...]
    trigger_word: str
    items: tuple[Item, ...]

    def key(self) -> str:
        return value_key(asdict(self))

    def described(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


def plan(dataset: PairedDataset) -> Manifest:
    """The manifest of a dataset as its files are now. Reads every file once, for its key."""
    digits = max(4, len(str(len(dataset.pairs))))
    items = tuple(
        Item(
            f"p{number:0{digits}}",
            pair.stem,
            _source(pair.target),
            tuple(map(_source, pair.controls)),
            " ".join(pair.caption.split()),
            dict(pair.facts),
        )
        for number, pair in enumerate(dataset.pairs, 1)
    )
    return Manifest(dataset.name, dataset.slots, dataset.trigger_word, items)


def load_manifest(path: Path) -> Manifest:
    """A manifest written before.

    Raises:
        DatasetError: it is not one of ours, or of a newer version.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["schema"] != SCHEMA:
            raise DatasetError(f"{path} was written by another version (schema {told['schema']}, known is {SCHEMA}). Export it again.")
        items = tuple(
            Item(
                row["id"],
                row["stem"],
                Source(**row["target"]),
                tuple(Source(**control) for control in row["controls"]),
                row["caption"],
                row["facts"],
            )
            for row in told["items"]
        )
        return Manifest(told["name"], tuple(told["slots"]), told["trigger_word"], items)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not a manifest of ours ({type(error).__name__}: {error}).") from error


def _source(picture: Picture) -> Source:
    return Source(picture.path.as_posix(), picture.key(), picture.width, picture.height)


class Out:
    """Writes the files of one layout into one folder, and remembers their names.

    A picture that already is what trainers need (upright 8-bit RGB PNG of the right size) is linked; anything else is made so: turned as its
    EXIF says, transparency laid on grey, colours in sRGB. Where the disk cannot link, it is copied.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.names: list[str] = []
        self.treated: dict[str, str] = {}
        self.linked = 0
        self.problems: list[str] = []

    def text(self, name: str, content: str) -> None:
        """A text file. One that is there with other words was edited by hand, and is a problem instead of being overwritten."""
        self.names.append(name)
        path, data = self.folder / name, content.encode()
        if not path.is_file():
            write_whole(path, data)
        elif path.read_bytes() != data:
            self.problems.append(f"{name} was changed after the export; delete the folder, or import it as a dataset to keep the change")

    def picture(self, name: str, source: Source, target: Source) -> None:
        """A picture under its new name, sized to go with its target."""
        self.names.append(name)
        path = self.folder / name
        try:
            data = self.pixels(source, target)
        except ImageError as error:
            self.problems.append(str(error))
            return
        if data is None:
            self.linked += _linked(Path(source.path), path)
        elif not path.is_file() or path.read_bytes() != data:
            write_whole(path, data)

    def pixels(self, source: Source, target: Source) -> bytes | None:
        """PNG bytes of a picture as trainers need it; None where its file is that already.

        Raises:
            ImageError: it is gone, damaged, or not the picture of the manifest any more.
        """
        path = Path(source.path)
        if not path.is_file():
            raise ImageError(f"{path} is gone")
        content = path.read_bytes()
        if content_key(content) != source.key:
            raise ImageError(f"{path} is another picture than when the manifest was made; export the dataset anew")
        opened = open_image(path, content=content)
        size = self.settings.size(source, target)
        if opened.treatments:
            self.treated[path.name] = "; ".join(opened.treatments)
        plain = opened.format == "PNG" and opened.mode == "RGB" and not opened.treatments
        if plain and opened.image.size == size:
            return None
        image = opened.image if opened.image.size == size else opened.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        return png_bytes(image)


def _linked(source: Path, path: Path) -> bool:
    """Link or copy; whether it was a link. A file that is there already with the same content stays."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            if os.path.samefile(source, path) or path.read_bytes() == source.read_bytes():
                return os.path.samefile(source, path)
            path.unlink()
        os.link(source, path)
        return True
    except OSError as error:
        if path.parent.is_dir():
            write_whole(path, source.read_bytes())
            return False
        raise storage_error(path, error) from error


@dataclass(frozen=True, slots=True)
class Found:
    """What a layout's reader found: slots for pairing, captions by match key, and what is wrong already."""

    slots: tuple[Slot, ...]
    described: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """One trainer's way to lay a dataset out. `controls`: how many control images it can hold.

    `write` puts pictures, captions and the trainer's own files into the folder. `read` finds them again, also in folders we did not write; its
    second argument is a folder for what must be unpacked. `here` tells whether a folder looks like this layout.
    """

    name: str
    help: str
    controls: range
    write: Callable[[Manifest, Out], None]
    read: Callable[[Path, Path], Found]
    here: Callable[[Path], bool]


def quoted(text: str | Path) -> str:
    """A string as JSON, TOML and YAML all read it; paths with forward slashes."""
    return json.dumps(text.as_posix() if isinstance(text, Path) else text, ensure_ascii=False)


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def slot_names(count: int) -> tuple[str, ...]:
    """target, control_1, control_2 …"""
    return ("target", *(f"control_{number}" for number in range(1, count + 1)))


@dataclass(frozen=True, slots=True)
class Row:
    """An example as a listing names it. A control that is not named is None."""

    target: Path
    controls: tuple[Path | None, ...]
    caption: str


def found_in_rows(folder: Path, rows: Sequence[Row]) -> Found:
    """Slots from a listing that names every file; a control that a row lacks is a gap, never a shift."""
    count = max((len(row.controls) for row in rows), default=0)
    slots = tuple(Slot(folder, name, {}) for name in slot_names(count))
    described: dict[str, str] = {}
    for row in rows:
        key = match_key(row.target.stem)
        if row.caption.strip():
            described.setdefault(key, row.caption)
        for slot, path in zip(slots, (row.target, *row.controls), strict=False):
            if path is not None:
                slot.files.setdefault(key, []).append(path)
    return Found(slots, described)


def read_rows(path: Path, text: str | None = None) -> Iterator[dict[str, Any]]:
    """Objects of a .jsonl, or of a .json list.

    Raises:
        DatasetError: the file is not readable as such.
    """
    try:
        content = path.read_text(encoding="utf-8-sig") if text is None else text
        lines = (
            json.loads(content) if content.lstrip().startswith("[") else [json.loads(line) for line in content.splitlines() if line.strip()]
        )
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path} is not readable ({error}). Mend the file.") from error
    wrong = [f"entry {number} is no JSON object" for number, row in enumerate(lines, 1) if not isinstance(row, dict)]
    if wrong:
        raise DatasetError(f"{path} does not list examples:", wrong)
    yield from lines


def inside(folder: Path, name: Any, where: str) -> Path:
    """A file that a listing names relative to its own folder.

    Raises:
        DatasetError: no text, or it leads out of the folder.
    """
    if not isinstance(name, str) or not name.strip():
        raise DatasetError(f"{where}: {name!r} is no file name.")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DatasetError(f"{where}: {name!r} leads out of {folder}.")
    return folder / name


def file_name(text: str) -> str:
    """A dataset's name as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", text).strip("-").lower()[:40] or "dataset"
