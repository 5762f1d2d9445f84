"""dlib's detectors and its ResNet, the ones inside the face_recognition package, asked in a cheaper order.

face_recognition itself is never imported: where setuptools is missing its import quits the process, and it makes Pillow accept truncated
files everywhere. Only its model files are used, and of those only the ones in the public domain (not the 68-point predictor).
HOG glances at 512 px in grey. Where it sees a face it looks closer only as far as a second one that counts could hide; where it sees none
it looks at 1024 px in colour, and then the CNN has a try. The numbers for a box are those of face_recognition.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import IdentityError
from ..images import content_key, value_key
from . import PROMINENT, Embedder, Face, FoundBy
from .chip import LUMA, light, sharpness, shows_teeth, turn

CASCADE = 1  # raise it when a change below moves a number
FULL_PX = 3000  # longer side used for alignment; more shows no more of a face
GLANCE_PX, LOOK_PX = 512, 1024  # longer sides at which HOG looks; grey at first: a third cheaper, and loses one faint face in 69
HOG_FACE_PX = 80  # the least width HOG sees
CNN_PX = 512  # the CNN sees faces from 80 px of this
CNN_CONFIDENCE = 0.6  # no false alarm on 12 pictures without a face
HOG_SECOND_FACE = 0.25  # weaker boxes beside a face are mostly none (seen: 0.03 to 0.15); the only box of a picture may be as weak
MIN_SIDE_PX = 16
CHIP_PX, CHIP_PADDING = 150, 0.25  # what the ResNet was trained on

FILES = {
    "points": "shape_predictor_5_face_landmarks.dat",
    "resnet": "dlib_face_recognition_resnet_model_v1.dat",
    "cnn": "mmod_human_face_detector.dat",
}


@dataclass(frozen=True, slots=True)
class _Found:
    """A box in px of the full image, not rounded: left, top, right, bottom."""

    box: tuple[float, float, float, float]
    by: FoundBy
    confidence: float


def load() -> Embedder:
    """The engine, with dlib imported and its files located but not read yet.

    Raises:
        IdentityError: dlib or the model files are missing.
    """
    problems: list[str] = []
    dlib: Any = None
    try:
        dlib = importlib.import_module("dlib")
    except ImportError as error:
        problems.append(f"the package dlib-bin is missing or does not load ({error})")
    files = _model_files()
    if files is None:
        problems.append("the package face_recognition_models is missing")
    else:
        problems += [f"face_recognition_models lacks {path.name}; install it again" for path in files.values() if not path.is_file()]
    if problems or files is None:
        raise IdentityError(
            "Faces cannot be measured here. Install what is missing into ComfyUI's Python and start ComfyUI again:"
            f' "{sys.executable}" -m pip install dlib-bin face_recognition_models   (nothing is installed by itself)',
            problems,
        )
    return DlibResnet(dlib, files)


def _model_files() -> dict[str, Path] | None:
    spec = importlib.util.find_spec("face_recognition_models")  # finds the folder without running the package
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return {part: Path(folders[0]) / "models" / name for part, name in FILES.items()} if folders else None


class DlibResnet:
    """The cascade of this module's docstring; embeddings from the full picture. dlib's objects are shared under one lock."""

    name = "dlib"

    def __init__(self, dlib: Any, files: dict[str, Path]) -> None:
        self._dlib = dlib
        self._files = files
        self._lock = threading.Lock()

    @cached_property
    def _fingerprint(self) -> str:
        weights = {part: content_key(path) for part, path in self._files.items()}
        return f"dlib-{value_key({'weights': weights, 'dlib': self._dlib.__version__, 'cascade': CASCADE})}"

    def fingerprint(self) -> str:
        return self._fingerprint

    def faces(self, image: Image.Image) -> tuple[Face, ...]:
        """See Embedder. The first call reads the models (0.3 s); a picture where HOG finds nothing costs the CNN's 0.5 to 1.6 s."""
        if min(image.size) < MIN_SIDE_PX:
            return ()
        full = _fitted(image, FULL_PX) if max(image.size) > FULL_PX else image
        pixels = np.asarray(full.convert("RGB"))
        scale = image.width / full.width
        try:
            with self._lock:
                found = self._found(full)
                faces = [self._measured(pixels, face, scale) for face in found]
        except (RuntimeError, MemoryError) as error:  # dlib's own errors arrive as these
            raise IdentityError(f"dlib failed on this image: {error}") from error
        return tuple(sorted(faces, key=lambda face: -face.width))

    @cached_property
    def _hog(self) -> Any:
        return self._dlib.get_frontal_face_detector()

    @cached_property
    def _points(self) -> Any:
        return self._dlib.shape_predictor(str(self._files["points"]))

    @cached_property
    def _resnet(self) -> Any:
        return self._dlib.face_recognition_model_v1(str(self._files["resnet"]))

    @cached_property
    def _cnn(self) -> Any:
        return self._dlib.cnn_face_detection_model_v1(str(self._files["cnn"]))

    def _found(self, full: Image.Image) -> list[_Found]:
        longest = max(full.size)
        first = self._seen_by_hog(full, GLANCE_PX, "L")
        if first:
            widest = max(right - left for left, _, right, _ in (face.box for face in first))
            enough = longest * HOG_FACE_PX / (PROMINENT * widest)  # here the least face that counts beside this one is 80 px wide
            closer = self._seen_by_hog(full, min(round(enough), LOOK_PX), "L") if min(enough, longest) > GLANCE_PX else []
            return closer or first
        found = self._seen_by_hog(full, LOOK_PX, "RGB") if longest > GLANCE_PX else []
        return found or self._seen_by_cnn(full)

    def _seen_by_hog(self, full: Image.Image, side_px: int, mode: str) -> list[_Found]:
        pixels = np.asarray(_fitted(full.convert(mode), min(side_px, max(full.size))))  # never enlarged
        boxes, scores, _ = self._hog.run(pixels, 0, 0.0)
        scale = full.width / pixels.shape[1]
        return [
            _Found(_sides(box, scale), "hog", float(score))
            for box, score in zip(boxes, scores, strict=True)
            if score >= HOG_SECOND_FACE or score == max(scores)
        ]

    def _seen_by_cnn(self, full: Image.Image) -> list[_Found]:
        pixels = np.asarray(_fitted(full.convert("RGB"), CNN_PX))
        scale = full.width / pixels.shape[1]
        seen = ((_sides(face.rect, scale), float(face.confidence)) for face in self._cnn(pixels, 0))
        return [_Found(box, "cnn", confidence) for box, confidence in seen if confidence >= CNN_CONFIDENCE]

    def _measured(self, pixels: np.ndarray, found: _Found, scale: float) -> Face:
        landmarks = self._points(pixels, self._dlib.rectangle(*(round(side) for side in found.box)))
        chip: np.ndarray = self._dlib.get_face_chip(pixels, landmarks, CHIP_PX, CHIP_PADDING)
        grey = np.rint(chip @ LUMA).astype(np.uint8)
        exposed = light(grey)
        yaw = turn(np.array([(point.x, point.y) for point in landmarks.parts()], dtype=np.float64))
        left, top, right, bottom = (round(round(side) * scale) for side in found.box)
        return Face(
            box=(left, top, right, bottom),
            found_by=found.by,
            confidence=found.confidence,
            embedding=np.array(self._resnet.compute_face_descriptor(chip), dtype=np.float32),
            yaw=yaw if found.by == "hog" else None,  # on faces that only the CNN sees the landmarks often point the wrong way
            smiling=shows_teeth(chip, yaw) if found.by == "hog" else None,
            sharpness=sharpness(grey),
            luma=exposed.luma,
            clipped_low=exposed.clipped_low,
            clipped_high=exposed.clipped_high,
        )


def _sides(box: Any, scale: float) -> tuple[float, float, float, float]:
    return (box.left() * scale, box.top() * scale, box.right() * scale, box.bottom() * scale)


def _fitted(image: Image.Image, side_px: int) -> Image.Image:
    """The image with its longer side at `side_px`."""
    scale = side_px / max(image.size)
    if scale == 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
