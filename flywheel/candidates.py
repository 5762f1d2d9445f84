"""Candidates on disk: generated images awaiting a verdict, each with the lineage that says how it was made.

An image is written once, as <source>-<words>-<request key>.png in the stage's folder. Its verdict moves it into good/, corrections/ or
rejected/; a person may also move or rename it. Lineage stays in lineage/<request key>.json and knows the image by the hash of its bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from .dataset import Dataset, ImageRecord
from .errors import StorageError
from .images import SUFFIXES, content_key, png_bytes, write_json, write_whole
from .known_files import Memory, Signature, files_in, known_key
from .project import FOLDERS, Stage
from .thumbs import make_ready

_NAMED = re.compile(r"(?:.*-)?([0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class Lineage:
    """How one image was made. `image_key` is the hash of its bytes, `request_key` names what made it."""

    request_key: str
    image_key: str
    bytes: int
    width: int
    height: int
    facts: Mapping[str, Any]


class Shelf:
    """What one stage holds, read once from disk. Make a new one to see what others have done since."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.folder = stage.folder
        self._home = str(stage.folder)

    @cached_property
    def lineages(self) -> dict[str, Lineage]:
        """By request key."""
        return {lineage.request_key: lineage for lineage in _lineages(self.stage)}

    @cached_property
    def files(self) -> dict[str, Path]:
        """Whole image files by request key, wherever a verdict or a person has put them."""
        by_image = {lineage.image_key: lineage.request_key for lineage in self.lineages.values()}
        found: dict[str, Path] = {}
        for path, signature in self._images():
            named = _NAMED.fullmatch(path.stem)
            request_key = named[1] if named and named[1] in self.lineages else by_image.get(_key_or_gone(path, signature))
            if request_key and signature[2] == self.lineages[request_key].bytes:
                found[request_key] = path
        return found

    def __contains__(self, request_key: object) -> bool:
        """Whether the image of this request is there."""
        return request_key in self.files

    def is_whole(self, request_key: str) -> bool:
        """Whether the file still lies where it was last seen, with all its bytes."""
        try:
            return self.files[request_key].stat().st_size == self.lineages[request_key].bytes
        except FileNotFoundError:
            return False

    def strangers(self) -> list[Path]:
        """Images in the label folders that nothing here has made: a person put them there."""
        known = set(self.files.values())
        return [path for path, _ in self._images() if path not in known]

    def folder_of(self, path: Path) -> str:
        """The label folder a file lies in; "" is the stage's own."""
        parent = os.path.dirname(path)
        return "" if parent == self._home else os.path.basename(parent)

    def add(self, request_key: str, name: str, png: bytes, image: Image.Image, *, facts: Mapping[str, Any]) -> Path:
        """Write lineage, then image: an image that is there has its history. `image`: the pixels of `png`, for thumbnails."""
        lineage = Lineage(request_key, content_key(png), len(png), *image.size, facts)
        write_json(self.stage.lineage / f"{request_key}.json", _described(lineage))
        path = self.stage.folder / f"{name}-{request_key}.png"
        write_whole(path, png)
        self.lineages[request_key] = lineage
        self.files[request_key] = path
        make_ready(self.stage.project, lineage.image_key, image)
        return path

    def note(self, request_key: str, **facts: Any) -> None:
        """Add facts to a lineage that were not known when the image was made."""
        lineage = self.lineages[request_key]
        if any(lineage.facts.get(name) != value for name, value in facts.items()):
            changed = Lineage(request_key, lineage.image_key, lineage.bytes, lineage.width, lineage.height, {**lineage.facts, **facts})
            write_json(self.stage.lineage / f"{request_key}.json", _described(changed))
            self.lineages[request_key] = changed

    def bind(self, path: Path, *, size: tuple[int, int], facts: Mapping[str, Any]) -> str:
        """Take in a file of this stage's folder that something else has made; its request key is the key of its bytes."""
        key = content_key(path)
        lineage = Lineage(key, key, path.stat().st_size, *size, facts)
        write_json(self.stage.lineage / f"{key}.json", _described(lineage))
        self.lineages[key] = lineage
        self.files[key] = path
        return key

    def move(self, request_key: str, folder: str) -> Path:
        """Put an image into a label folder, under the name it has. A name that is taken there gets a number; nothing is overwritten."""
        path = self.files[request_key]
        if self.folder_of(path) == folder:
            return path
        wanted = self.stage.folder / folder / path.name
        target, number = wanted, 2
        while target.exists():
            target, number = wanted.with_stem(f"{wanted.stem} ({number})"), number + 1
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        except OSError as error:
            raise StorageError(
                f"{path.name} could not be moved to {folder or self.stage.folder.name}/: {error.strerror or error}."
            ) from error
        self.files[request_key] = target
        return target

    def _images(self) -> Iterator[tuple[Path, Signature]]:
        for folder in FOLDERS:
            directory = self.stage.folder / folder
            for name, signature in files_in(directory):
                if name[0] != "." and os.path.splitext(name)[1].lower() in SUFFIXES and signature[2]:
                    yield directory / name, signature


def record_of(shelf: Shelf, request_key: str) -> ImageRecord:
    """A candidate as a member of a dataset, with the path where it lies now."""
    lineage = shelf.lineages[request_key]
    return ImageRecord(
        key=lineage.image_key,
        path=shelf.stage.project.relative(shelf.files[request_key]),
        width=lineage.width,
        height=lineage.height,
        caption=lineage.facts["caption"],
        origin=lineage.facts["origin"],
        parents=tuple(lineage.facts["parents"]),
        depth=lineage.facts["depth"],
    )


def adopt(stage: Stage, images: Iterable[Image.Image], *, caption: str, prompt: str = "") -> Dataset:
    """Take in images that something else has made, as candidates with what is known of them. The same pixels are taken in once."""
    shelf = Shelf(stage)
    origin = "edit" if stage.name == "enriched" else "synthetic"
    facts = {"origin": origin, "prompt": prompt, "template": prompt, "seed": None, "attempt": 0, "caption": caption}
    facts |= {"source": None, "parents": [], "depth": 1, "editor": {"editor": "brought in"}, "notes": {}}
    keys: list[str] = []
    for image in images:
        png = png_bytes(image)
        request_key = content_key(png)
        if request_key not in shelf.files:
            shelf.add(request_key, "brought_in", png, image, facts=facts)
        keys.append(request_key)
    return Dataset(stage.project, stage.name, tuple(record_of(shelf, key) for key in dict.fromkeys(keys)))


def missing(stage: Stage) -> list[str]:
    """Request keys whose lineage is here and whose image is not: deleted, damaged, or never finished."""
    shelf = Shelf(stage)
    return sorted(set(shelf.lineages) - set(shelf.files))


def _lineages(stage: Stage) -> Iterator[Lineage]:
    folder = str(stage.lineage)
    for name, signature in files_in(stage.lineage):
        if name.endswith(".json") and name[0] != ".":
            remembered = _parsed.get((folder, name), signature)
            yield remembered or _parsed.put((folder, name), signature, _lineage(stage, stage.lineage / name))


def _lineage(stage: Stage, path: Path) -> Lineage:
    try:
        described = json.loads(path.read_bytes())
        made, image = described.pop("request_key"), described.pop("image_key")
        return Lineage(made, image, described.pop("bytes"), described.pop("width"), described.pop("height"), described)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise StorageError(f"{stage.project.relative(path)} is not readable ({error}). Delete it; its image will be made again.") from error


_parsed: Memory[Lineage] = Memory()


def _key_or_gone(path: Path, signature: Signature) -> str:
    try:
        return known_key(path, signature)
    except FileNotFoundError:  # moved or deleted since the folder was listed
        return ""


def _described(lineage: Lineage) -> dict[str, Any]:
    return {
        "request_key": lineage.request_key,
        "image_key": lineage.image_key,
        "bytes": lineage.bytes,
        "width": lineage.width,
        "height": lineage.height,
        **lineage.facts,
    }
