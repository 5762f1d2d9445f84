"""Images that belong together: what travels between the nodes. Small and frozen; the pixels stay on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .errors import DatasetError
from .images import value_key
from .project import FOLDERS, Project, Stage, StageName

Origin = Literal["source", "edit", "synthetic", "correction"]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image file we know.

    `key` is the hash of its bytes: labels and scores hang on it, so renaming or moving the file loses nothing. `path` is relative to the
    project and where the file was last seen. `depth` is 0 for a photograph, else one more than the deepest parent.
    """

    key: str
    path: str
    width: int
    height: int
    caption: str
    origin: Origin = "source"
    parents: tuple[str, ...] = ()
    depth: int = 0

    def __post_init__(self) -> None:
        if (self.depth == 0) != (self.origin == "source"):
            raise ValueError(f"{self.path}: depth {self.depth} does not fit origin {self.origin}")

    @property
    def name(self) -> str:
        """File name without folders."""
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name


@dataclass(frozen=True, slots=True)
class Dataset:
    """An ordered set of images of one stage of one project.

    Raises:
        DatasetError: two files have one name, apart from upper and lower case.
    """

    project: Project
    stage_name: StageName
    images: tuple[ImageRecord, ...]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        problems: list[str] = []
        for image in self.images:
            other = seen.setdefault(image.name.casefold(), image.path)
            if other != image.path:
                problems.append(f"{other} and {image.path}: rename one of them")
        if problems:
            raise DatasetError("Two files of one dataset have the same name (Windows and macOS see no case):", problems)

    @property
    def stage(self) -> Stage:
        return self.project.stage(self.stage_name)

    @property
    def fingerprint(self) -> str:
        """Changes when an image or a caption does; the order does not count."""
        return value_key(sorted([image.key, image.caption] for image in self.images))

    def keeping(self, keys: Iterable[str]) -> Dataset:
        """The images with these keys, in this dataset's order."""
        wanted = set(keys)
        return replace(self, images=tuple(image for image in self.images if image.key in wanted))

    def path(self, image: ImageRecord) -> Path:
        """Where the file lies: where it was last seen, else the folder of its stage that it was moved to since."""
        path = self.project.path(image.path)
        if path.exists():
            return path
        return next((moved for folder in FOLDERS if (moved := self.stage.folder / folder / path.name).exists()), path)
