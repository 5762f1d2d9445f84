"""What a face is and who finds faces. One file per embedder; EMBEDDERS names them without importing them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ..errors import IdentityError

FoundBy = Literal["hog", "cnn"]

MIN_WIDTH_PX = 40  # narrower faces lose what tells people apart
MIN_SHARPNESS = 20.0  # flags 95 % of faces blurred by 2 % of their width and none of 39 sharp ones
DRAWN_FLATNESS = 7.5  # reached by none of 445 photographs (4.7 at most) and by no edit of them (6.4), but by 58 of 238 drawings
PROMINENT = 0.4  # of the widest face: narrower ones are background

EMBEDDERS = {  # name: module of this package with a function `load() -> Embedder`
    "dlib": "dlib_resnet",
    "insightface": "insightface_arcface",
    "auraface": "auraface",
    "uniface": "uniface_adaface",
}


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face of an image, measured on its chip: the face cut out, turned upright and scaled to 150 px.

    `box`: left, top, right, bottom in px of the full image; may reach over its edge. `found_by`: the CNN is asked only where HOG sees
    nothing, so "cnn" means a profile, something over the eyes or hard light. `embedding`: (128,) float32, not of unit length. `yaw`:
    coarse, -1 turned to the viewer's left … 1 to the viewer's right; None where the landmarks cannot say. `smile`: how far the mouth
    is open in a laugh, from 1 on a smile: a guess; None likewise.
    `sharpness`: normalised Laplacian variance. `luma`: median, 0 … 255. `clipped_low`, `clipped_high`: share of black and white pixels.
    `flatness`: how many times as steep its edges are as its surfaces; 0 where that was not measured.
    """

    box: tuple[int, int, int, int]
    found_by: FoundBy
    confidence: float
    embedding: np.ndarray
    yaw: float | None
    smile: float | None
    sharpness: float
    luma: float
    clipped_low: float
    clipped_high: float
    flatness: float = 0.0

    @property
    def width(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def smiling(self) -> bool:
        return self.smile is not None and self.smile >= 1.0

    @property
    def doubt(self) -> str:
        """Why this face cannot prove who it is; empty when it can."""
        if self.found_by == "cnn":
            return "the face is turned away, covered or in hard light"
        if self.width < MIN_WIDTH_PX:
            return f"the face is only {self.width} px wide (at least {MIN_WIDTH_PX} are needed)"
        if self.sharpness < MIN_SHARPNESS:
            return f"the face is blurred (sharpness {self.sharpness:.0f}, at least {MIN_SHARPNESS:.0f} is needed)"
        return ""

    @property
    def drawn_look(self) -> str:
        """Why this face looks drawn: areas of one colour that meet in hard outlines. Empty for photographs, and for most drawings."""
        if self.flatness < DRAWN_FLATNESS:
            return ""
        return f"its edges are {self.flatness:.1f} times as steep as its surfaces (from {DRAWN_FLATNESS:g} it is flat areas with outlines, no photograph)"


class Embedder(Protocol):
    """Finds faces and turns each into numbers that lie close for one person and far apart for two. Safe to call from several threads."""

    @property
    def name(self) -> str: ...

    @property
    def reach(self) -> float:
        """The distance up to which two of its faces count as one person, for the nearest of three references. Each engine has its own."""
        ...

    def fingerprint(self) -> str:
        """Everything that can change a number: what was measured under another fingerprint is never compared."""
        ...

    def faces(self, image: Image.Image) -> tuple[Face, ...]:
        """Faces of an upright RGB image, widest first.

        Raises:
            IdentityError: the engine failed on this image.
        """
        ...


@runtime_checkable
class ReadsFiles(Protocol):
    """An embedder that decodes files itself, several at a time."""

    def reading(self) -> AbstractContextManager[Callable[[str, Path], Future[tuple[Face, ...]]]]:
        """While it lasts, begins with a file (key, path) and promises its faces, as `Embedder.faces` gives them.

        The promise fails with an IdentityError where the file cannot be read, is no longer what has that key, or the engine failed. What nobody
        has begun with is cancelled at the end.
        """
        ...


def prominent(faces: Iterable[Face]) -> tuple[Face, ...]:
    """The faces a picture is about: at least 40 % as wide as the widest, widest first."""
    found = sorted(faces, key=lambda face: -face.width)
    return tuple(face for face in found if face.width >= PROMINENT * found[0].width)


def embedder(name: str = "dlib") -> Embedder:
    """The embedder of this name, loaded once per process.

    Raises:
        IdentityError: something it needs is missing; the text says what to install.
    """
    if name not in EMBEDDERS:
        raise IdentityError(f"There is no face engine {name!r}. Choose one of these: {', '.join(EMBEDDERS)}.")
    return _loaded(name)


@cache
def _loaded(name: str) -> Embedder:
    return importlib.import_module(f".{EMBEDDERS[name]}", __name__).load()
