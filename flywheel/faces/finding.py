"""Finding faces with dlib and cutting them out, without saying whose they are. Needs dlib, numpy and Pillow, and no torch.

It usually runs in a process of its own (`helpers`): building dlib's detector stops every thread of a process for 0.2 s.
HOG looks at about 640 px in grey, where it sees every face wider than a seventh of the picture; what is narrower beside one is background. Where it
sees none it looks at about 1024 px, for which a small picture is enlarged to at most twice its size, and there only for narrower ones. The sizes are
steps of the pyramid that `face_recognition` walks down from twice the picture, so that both see a face in the same windows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import png
from ..images import open_image, png_bytes
from . import FoundBy
from .chip import flatness, in_grey, light, sharpness, smile, turn

Box = tuple[float, float, float, float]  # left, top, right, bottom

FULL_PX = 3000  # longer side used for alignment; more shows no more of a face
HOG_PX = (
    640,
    1024,
)  # longer sides, at most, at which HOG looks, in grey: a third cheaper than in colour. It sees faces from 80 px of these
PYRAMID = 1.2  # dlib's HOG looks again and again, each time at a picture smaller by this
# how dlib 20 writes down the HOG: cells of 8 px, no rim, windows of 80 x 80 px, 1000 steps of the pyramid, none smaller than 64 x 64 px
HOG_STEPS = bytes.fromhex("0108 0100 0150 0150 02e803 0140 0140")
HOG_SECOND_FACE = 0.25  # weaker boxes beside a face are mostly none (seen: 0.03 to 0.15); the only box of a picture may be as weak
CNN_PX = 512  # longer side for the CNN, which sees faces from 80 px of this
MIN_SIDE_PX = 16
CHIP_PX, CHIP_PADDING = 150, 0.25  # what the ResNet was trained on
DRAFT_PX = 900  # shorter side to which JPEG may be decoded at first: by halves, which costs a third
DRAFT_FACE_PX = 2 * CHIP_PX  # a face this wide loses nothing by it; for a narrower one the photograph is decoded whole


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A face cut out: `chip` is (150, 150, 3) uint8 in RGB. The other fields are those of `Face`."""

    box: tuple[int, int, int, int]
    found_by: FoundBy
    confidence: float
    chip: np.ndarray
    yaw: float | None
    smile: float | None
    sharpness: float
    luma: float
    clipped_low: float
    clipped_high: float
    flatness: float


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """What HOG has made of a picture. `unclear`: where it saw nothing, the picture at 512 px for the CNN, (height, width, 3) uint8."""

    cuts: tuple[Cut, ...]
    unclear: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """A box in px of the whole picture, not rounded."""

    box: Box
    by: FoundBy
    confidence: float


class Picture:
    """An upright RGB picture, perhaps decoded smaller than it is. `width`: of the whole, px. `whole()` decodes all of it."""

    def __init__(self, image: Image.Image, width: int, whole: Callable[[], Image.Image] | None = None) -> None:
        self.image, self.width, self._whole = image, width, whole

    @classmethod
    def of_file(cls, path: Path, content: bytes) -> Picture:
        """The picture in these bytes of a file.

        Raises:
            ImageError: they are none.
        """
        opened = open_image(path, at_least=DRAFT_PX, content=content)
        drafted = opened.width != opened.image.width
        return cls(opened.image, opened.width, (lambda: open_image(path, content=content).image) if drafted else None)

    def showing(self, width_px: float) -> Image.Image:
        """The picture with enough pixels for a face that is `width_px` wide in the whole."""
        if self._whole and width_px * self.image.width / self.width < DRAFT_FACE_PX:
            self.image, self._whole = self._whole(), None
        return self.image


class Finder:
    """dlib's HOG and five points. One thread at a time."""

    def __init__(self, dlib: Any, points: Path) -> None:
        self._dlib, self._file = dlib, points
        self._short: dict[int, Any] = {}

    @cached_property
    def _hog(self) -> Any:
        return self._dlib.get_frontal_face_detector()

    def _hog_of(self, steps: int) -> Any:
        """The HOG that walks down so many steps of its pyramid only; all of them where dlib writes it down in another way."""
        if steps not in self._short:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "hog.svm"
                self._hog.save(str(file))
                written = file.read_bytes()
                file.write_bytes(written.replace(HOG_STEPS, HOG_STEPS.replace(b"\x02\xe8\x03", bytes([1, steps]))))
                self._short[steps] = self._dlib.fhog_object_detector(str(file)) if written.count(HOG_STEPS) == 1 else self._hog
        return self._short[steps]

    @cached_property
    def _points(self) -> Any:
        return self._dlib.shape_predictor(str(self._file))

    def prepare(self) -> None:
        """Builds the HOG and reads the points and the decoder of PNG, so that no picture waits for it: 0.4 s.

        Raises:
            RuntimeError, MemoryError: dlib's own.
        """
        blank = Image.new("RGB", (MIN_SIDE_PX, MIN_SIDE_PX))
        self._cut(np.asarray(blank), _Found((0, 0, MIN_SIDE_PX, MIN_SIDE_PX), "hog", 0.0), 1.0)
        self._seen(Picture(blank, blank.width), MIN_SIDE_PX, self._hog)
        png.decoded(png_bytes(blank))

    def look(self, picture: Picture) -> Sight:
        """Faces that HOG sees, widest first.

        Raises:
            RuntimeError, MemoryError: dlib's own.
        """
        if min(picture.image.size) < MIN_SIDE_PX:
            return Sight(())
        for found in self._tries(picture):
            if found:
                return Sight(self._cuts(picture, found))
        return Sight((), np.asarray(fitted(picture.image, CNN_PX)))

    def cut(self, picture: Picture, seen: Sequence[tuple[Box, float]]) -> tuple[Cut, ...]:
        """Faces in boxes that the CNN saw, in px of what `look` called unclear, with confidences. Raises as `look` does."""
        scale = picture.width / fitted_size(picture.image, CNN_PX)[0]
        found = [_Found(_scaled(box, scale), "cnn", confidence) for box, confidence in seen]
        return self._cuts(picture, found)

    def _tries(self, picture: Picture) -> Iterator[list[_Found]]:
        there, before = max(picture.image.size), 0
        for limit in (min(HOG_PX[0], there), min(HOG_PX[1], 2 * there)):  # a small picture is enlarged for the second look
            side_px = _step(there * picture.width / picture.image.width, limit)
            if side_px > before:  # else it has seen all of these pixels
                # down to the step that was seen before and, because other pixels fall into its windows this time, that one again
                steps = round(math.log(side_px / before, PYRAMID)) + 1 if before else 0
                yield self._seen(picture, side_px, self._hog_of(steps) if steps else self._hog)
            before = side_px

    def _seen(self, picture: Picture, side_px: int, hog: Any) -> list[_Found]:
        pixels = np.asarray(fitted(picture.image.convert("L"), side_px))
        boxes, scores, _ = hog.run(pixels, 0, 0.0)
        scale = picture.width / pixels.shape[1]
        return [
            _Found(_scaled((box.left(), box.top(), box.right(), box.bottom()), scale), "hog", float(score))
            for box, score in zip(boxes, scores, strict=True)
            if score >= HOG_SECOND_FACE or score == max(scores)
        ]

    def _cuts(self, picture: Picture, found: Sequence[_Found]) -> tuple[Cut, ...]:
        if not found:
            return ()
        full = picture.showing(min(face.box[2] - face.box[0] for face in found))
        if max(full.size) > FULL_PX:
            full = fitted(full, FULL_PX)
        pixels, scale = np.asarray(full), picture.width / full.width
        cuts = (self._cut(pixels, face, scale) for face in found)
        return tuple(sorted(cuts, key=lambda cut: cut.box[0] - cut.box[2]))

    def _cut(self, pixels: np.ndarray, face: _Found, scale: float) -> Cut:
        left, top, right, bottom = (round(side / scale) for side in face.box)
        landmarks = self._points(pixels, self._dlib.rectangle(left, top, right, bottom))
        chip: np.ndarray = self._dlib.get_face_chip(pixels, landmarks, CHIP_PX, CHIP_PADDING)
        grey = in_grey(chip)
        exposed = light(grey)
        yaw = turn(np.array([(point.x, point.y) for point in landmarks.parts()], dtype=np.float64))
        clear = face.by == "hog"  # on faces that only the CNN sees the landmarks often point the wrong way
        return Cut(
            box=(round(left * scale), round(top * scale), round(right * scale), round(bottom * scale)),
            found_by=face.by,
            confidence=face.confidence,
            chip=chip,
            yaw=yaw if clear else None,
            smile=smile(chip, yaw) if clear else None,
            sharpness=sharpness(grey),
            luma=exposed.luma,
            clipped_low=exposed.clipped_low,
            clipped_high=exposed.clipped_high,
            flatness=flatness(grey),
        )


def fitted(image: Image.Image, side_px: int) -> Image.Image:
    """The picture with its longer side at `side_px`."""
    size = fitted_size(image, side_px)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def fitted_size(image: Image.Image, side_px: int) -> tuple[int, int]:
    scale = side_px / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _step(longest: float, limit: int) -> int:
    """The largest step of at most `limit` px of the pyramid that starts at twice the picture; `longest` is its longer side."""
    side = 2 * longest
    while side > limit:
        side /= PYRAMID
    return round(side)


def _scaled(box: Box, scale: float) -> Box:
    left, top, right, bottom = (side * scale for side in box)
    return left, top, right, bottom
