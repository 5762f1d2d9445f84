"""RetinaFace and AdaFace through the uniface package: an optional engine that needs no insightface. Off unless it is chosen.

uniface's code is under the MIT licence, and so are these two networks according to its page; AdaFace learned from WebFace12M, a collection for
research. uniface downloads what it does not find, and deletes a file that is not the one it expects; so it is only asked once both files are there
and whole.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import IdentityError
from ..images import content_key, value_key
from . import Embedder, Face
from .five_points import described
from .optional import failures, imported, unusable

REACH = 1.0  # between unit vectors: a cosine of 0.5, which uniface's page calls balanced for its recognisers; not measured here
LOOK_PX = 640
REVISION = 1  # raise it when a change here or in `five_points` moves a number


@dataclass(frozen=True, slots=True)
class Weights:
    """A file that uniface knows: the class and value of its name, how large it is, and where it is offered."""

    kind: str
    value: str
    size: str
    address: str

    @property
    def path(self) -> Path:
        return folder() / f"{self.value}.onnx"


DETECTOR = Weights(
    "RetinaFaceWeights",
    "retinaface_mnet_v2",
    "3.5 MB",
    "https://github.com/yakhyo/uniface/releases/download/weights/retinaface_mv2.onnx",
)
RECOGNISER = Weights(
    "AdaFaceWeights",
    "adaface_ir_101",
    "249 MB",
    "https://github.com/yakhyo/adaface-onnx/releases/download/weights/adaface_ir_101.onnx",
)


def folder() -> Path:
    """Where uniface looks for weights."""
    return Path(os.environ.get("UNIFACE_CACHE_DIR") or Path.home() / ".uniface" / "models").expanduser()


def load() -> Embedder:
    """The engine, with its models read.

    Raises:
        IdentityError: a package or a weight file is missing, or a file is not the one uniface expects; the text says which.
    """
    modules, problems = imported(("onnxruntime", "uniface"))
    uniface = modules.get("uniface")
    problems += [problem for weights in (DETECTOR, RECOGNISER) if (problem := _problem(weights, uniface))]
    if problems or uniface is None:
        raise unusable("uniface", "uniface onnxruntime", problems)
    how = {"providers": ["CPUExecutionProvider"]}  # ComfyUI's models keep the graphics card
    detector = uniface.RetinaFace(model_name=_name(DETECTOR, uniface), input_size=(LOOK_PX, LOOK_PX), **how)
    recogniser = uniface.AdaFace(model_name=_name(RECOGNISER, uniface), **how)
    known = {weights.value: _known(weights, uniface) for weights in (DETECTOR, RECOGNISER)}
    return UniFace(detector, recogniser, value_key({"weights": known, "revision": REVISION}))


def _problem(weights: Weights, uniface: Any) -> str:
    """Why uniface would not simply open this file; empty where it would."""
    if not weights.path.is_file():
        return f"{weights.path.name} ({weights.size}) is not in {folder()}: get {weights.address} and give it that name"
    if uniface is None:
        return ""
    try:
        known = _known(weights, uniface)
    except (AttributeError, KeyError, ValueError):
        return f"uniface {uniface.__version__} does not know {weights.value}; 4.2.1 does"
    return (
        ""
        if known.startswith(content_key(weights.path))
        else f"{weights.path} is not the file that uniface expects: get {weights.address} again"
    )


def _name(weights: Weights, uniface: Any) -> Any:
    """The file as uniface calls it."""
    return getattr(uniface.constants, weights.kind)(weights.value)


def _known(weights: Weights, uniface: Any) -> str:
    """The SHA-256 that uniface expects of the file."""
    return uniface.constants.MODEL_REGISTRY[_name(weights, uniface)].sha256


class UniFace:
    """RetinaFace finds, AdaFace describes. Asked by one thread at a time."""

    name = "uniface"
    reach = REACH

    def __init__(self, detector: Any, recogniser: Any, key: str) -> None:
        self._detector, self._recogniser, self._lock = detector, recogniser, threading.Lock()
        self._fingerprint = f"uniface-{key}"

    def fingerprint(self) -> str:
        return self._fingerprint

    def faces(self, image: Image.Image) -> tuple[Face, ...]:
        """See Embedder. Profiles count as found like any other face."""
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])  # uniface wants BGR
        try:
            with self._lock:
                found = self._detector.detect(pixels)
                numbers = [self._recogniser.get_normalized_embedding(pixels, face.landmarks) for face in found]
        except failures() as error:
            raise IdentityError(f"uniface failed on this image: {error}") from error
        faces = (described(image, face.bbox, face.landmarks, face.confidence, row) for face, row in zip(found, numbers, strict=True))
        return tuple(sorted(faces, key=lambda face: -face.width))
