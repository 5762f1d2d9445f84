"""Model packs that the insightface package reads: SCRFD finds faces, a network trained like ArcFace describes them.

Nothing is shipped or downloaded here. insightface's code is under the MIT licence, its packs are not (see the engines). The package would download a
pack by itself; it is only asked once the pack is there, so that it finds nothing to download.
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
from . import Face
from .five_points import described
from .optional import failures, imported, unusable

DETECTORS, RECOGNISERS = ("det_*.onnx", "scrfd_*.onnx"), ("glintr100.onnx", "w600k_r50.onnx")
LOOK_PX = 640
REVISION = 2  # raise it when a change here or in `five_points` moves a number


@dataclass(frozen=True, slots=True)
class Packs:
    """Which packs an engine takes: folder names, the first that is there is used. `reach`: see Embedder. `bring`: what to download, how large it
    is, from where and under which licence."""

    engine: str
    names: tuple[str, ...]
    reach: float
    bring: str


def folders() -> list[Path]:
    """Where model packs are looked for: FLEN_INSIGHTFACE, then insightface's own place. Packs lie in its folder "models"."""
    named = os.environ.get("FLEN_INSIGHTFACE")
    return [*([Path(named)] if named else []), Path.home() / ".insightface"]


def read(packs: Packs) -> InsightFace:
    """The engine, with its models read.

    Raises:
        IdentityError: a package or the model pack is missing; the text says which, with its licence.
    """
    modules, problems = imported(("onnxruntime", "insightface.app"))
    pack = _pack(packs.names)
    if pack is None:
        looked = " or ".join(str(folder / "models") for folder in folders())
        problems.append(f"no model pack ({', '.join(packs.names)}) in {looked}: {packs.bring}")
    if problems or pack is None:
        raise unusable(packs.engine, "insightface onnxruntime", problems)
    wanted = ["detection", "recognition"]
    app = modules["insightface.app"].FaceAnalysis(name=pack.name, root=str(pack.parent.parent), allowed_modules=wanted)
    app.prepare(ctx_id=-1, det_size=(LOOK_PX, LOOK_PX))
    weights = {path.name: content_key(path) for path in sorted(pack.glob("*.onnx"))}
    return InsightFace(app, packs, value_key({"pack": pack.name, "weights": weights, "revision": REVISION}))


def _pack(names: tuple[str, ...]) -> Path | None:
    """The first pack that has a detector and a recogniser."""
    for folder in folders():
        for name in names:
            pack = folder / "models" / name
            if any(any(pack.glob(file)) for file in DETECTORS) and any((pack / file).is_file() for file in RECOGNISERS):
                return pack
    return None


class InsightFace:
    """`app`: a prepared insightface.app.FaceAnalysis, asked by one thread at a time."""

    def __init__(self, app: Any, packs: Packs, key: str) -> None:
        self._app, self._lock = app, threading.Lock()
        self.name, self.reach = packs.engine, packs.reach
        self._fingerprint = f"{packs.engine}-{key}"

    def fingerprint(self) -> str:
        return self._fingerprint

    def faces(self, image: Image.Image) -> tuple[Face, ...]:
        """See Embedder. Profiles count as found like any other face: these networks were trained on them."""
        pixels = np.asarray(image.convert("RGB"))
        try:
            with self._lock:
                found = self._app.get(np.ascontiguousarray(pixels[:, :, ::-1]))  # insightface wants BGR
        except failures() as error:
            raise IdentityError(f"{self.name} failed on this image: {error}") from error
        faces = (described(image, face.bbox, face.kps, face.det_score, face.embedding) for face in found)
        return tuple(sorted(faces, key=lambda face: -face.width))
