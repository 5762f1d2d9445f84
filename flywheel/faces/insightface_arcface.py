"""ArcFace through the insightface package: an optional engine that also knows profiles. Off unless it is chosen.

Nothing of it is shipped or downloaded here. insightface's code is under the MIT licence; its models (buffalo_l, antelopev2) are for non-commercial
research only. A person puts a model pack of their choice into a folder (see FOLDERS), for example AuraFace, which is offered under Apache-2.0.
The package would download models by itself; it is only asked once a pack is there, so that it finds nothing to download.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import IdentityError
from ..images import content_key, value_key
from . import Embedder, Face
from .chip import in_grey, light, sharpness, smile, turn

PACKS = ("auraface", "antelopev2", "buffalo_l")  # the first that is there is used
DETECTOR, RECOGNISER = "det_*.onnx", ("glintr100.onnx", "w600k_r50.onnx")
LOOK_PX = 640
REACH = 1.12  # between unit vectors: a cosine of 0.37, from insightface's own examples; not measured here
CHIP_PX = 150
REVISION = 2  # raise it when a change below moves a number


def folders() -> list[Path]:
    """Where model packs are looked for: FLEN_INSIGHTFACE, then insightface's own place. Packs lie in its folder "models"."""
    named = os.environ.get("FLEN_INSIGHTFACE")
    return [*([Path(named)] if named else []), Path.home() / ".insightface"]


def load() -> Embedder:
    """The engine, with its models read.

    Raises:
        IdentityError: a package or a model pack is missing; the text says which, with its licence.
    """
    problems: list[str] = []
    modules: dict[str, Any] = {}
    for name in ("onnxruntime", "insightface.app"):
        try:
            modules[name] = importlib.import_module(name)
        except ImportError as error:
            problems.append(f"the package {name.partition('.')[0]} is missing or does not load ({error})")
    pack = _pack()
    if pack is None:
        looked = " or ".join(str(folder / "models") for folder in folders())
        problems.append(f"no model pack ({', '.join(PACKS)}) in {looked}; buffalo_l and antelopev2 are for non-commercial research only")
    if problems or pack is None:
        raise IdentityError(
            "The optional engine insightface cannot be used here; choose dlib, or install what is missing and start ComfyUI again:"
            f' "{sys.executable}" -m pip install insightface onnxruntime   (nothing is installed or downloaded by itself)',
            problems,
        )
    wanted = ["detection", "recognition"]
    app = modules["insightface.app"].FaceAnalysis(name=pack.name, root=str(pack.parent.parent), allowed_modules=wanted)
    app.prepare(ctx_id=-1, det_size=(LOOK_PX, LOOK_PX))
    weights = {path.name: content_key(path) for path in sorted(pack.glob("*.onnx"))}
    return InsightFace(app, value_key({"pack": pack.name, "weights": weights, "revision": REVISION}))


def _pack() -> Path | None:
    """The first pack that has a detector and a recogniser."""
    for folder in folders():
        for name in PACKS:
            pack = folder / "models" / name
            if any(pack.glob(DETECTOR)) and any((pack / file).is_file() for file in RECOGNISER):
                return pack
    return None


class InsightFace:
    """SCRFD finds, ArcFace describes. `app`: a prepared insightface.app.FaceAnalysis, asked by one thread at a time."""

    name = "insightface"
    reach = REACH

    def __init__(self, app: Any, fingerprint: str) -> None:
        self._app, self._fingerprint, self._lock = app, f"insightface-{fingerprint}", threading.Lock()

    def fingerprint(self) -> str:
        return self._fingerprint

    def faces(self, image: Image.Image) -> tuple[Face, ...]:
        """See Embedder. Profiles count as found like any other face: this engine was trained on them."""
        pixels = np.asarray(image.convert("RGB"))
        try:
            with self._lock:
                found = self._app.get(np.ascontiguousarray(pixels[:, :, ::-1]))  # insightface wants BGR
        except (RuntimeError, ValueError, MemoryError) as error:
            raise IdentityError(f"insightface failed on this image: {error}") from error
        return tuple(sorted((_face(image, face) for face in found), key=lambda face: -face.width))


def _face(image: Image.Image, found: Any) -> Face:
    left, top, right, bottom = (round(float(side)) for side in found.bbox)
    eye, other, nose = (np.asarray(point, dtype=np.float64) for point in found.kps[:3])  # as the viewer sees them, left first
    chip = _chip(image, eye, other)
    grey = in_grey(chip)
    exposed = light(grey)
    yaw = turn(np.stack([other, other, eye, eye, nose]))
    embedding = np.asarray(found.embedding, dtype=np.float32)
    return Face(
        box=(left, top, right, bottom),
        found_by="hog",  # of no doubt; "cnn" would say that the face can hardly be seen
        confidence=float(found.det_score),
        embedding=embedding / max(float(np.linalg.norm(embedding)), 1e-6),
        yaw=yaw,
        smile=smile(chip, yaw),
        sharpness=sharpness(grey),
        luma=exposed.luma,
        clipped_low=exposed.clipped_low,
        clipped_high=exposed.clipped_high,
    )


def _chip(image: Image.Image, eye: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(150, 150, 3) uint8: the face upright, eyes where dlib puts them."""
    across = other - eye
    scale = float(np.linalg.norm(across)) / (CHIP_PX * 0.35) or 1.0  # px of the image for one of the chip
    along = across / max(float(np.linalg.norm(across)), 1e-6) * scale
    down = np.array([-along[1], along[0]])
    corner = (eye + other) / 2 - along * CHIP_PX / 2 - down * CHIP_PX * 0.4
    terms = (along[0], down[0], corner[0], along[1], down[1], corner[1])
    turned = image.convert("RGB").transform((CHIP_PX, CHIP_PX), Image.Transform.AFFINE, terms, Image.Resampling.BILINEAR)
    return np.asarray(turned)
