"""dlib's detectors and its ResNet, the ones inside the face_recognition package, asked in a cheaper order.

face_recognition itself is never imported: where setuptools is missing its import quits the process, and it makes Pillow accept truncated
files everywhere. Only its model files are used, and of those only the ones in the public domain (not the 68-point predictor).
Helpers, processes of their own, decode, find faces with HOG and cut them out (`finding`); what HOG does not see, the CNN has a try at. The numbers
for a box are those of face_recognition. The ResNet and the CNN run here, in torch, several images at once, where it gives dlib's numbers; else in
the helpers, which is slower.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..errors import IdentityError
from ..images import content_key, value_key
from . import Embedder, Face
from .finding import CHIP_PX, FULL_PX, Box, Cut, fitted
from .helpers import Ask, Helpers, cuts, sight, told

log = logging.getLogger("flenwheel")

CASCADE = 6  # raise it when a change here or in `finding` moves a number
CNN_CONFIDENCE = 0.6  # no false alarm on 12 pictures without a face
REACH = 0.55  # dlib's own 0.6 lets 3 % of strangers in, 4 % of generated ones; 0.55 lets 0.8 % in and keeps 99 %
HELPERS = max(2, min(4, os.cpu_count() or 2))  # ComfyUI needs some processor too
BATCH = 8  # faces that go through the ResNet at once: half the time of one by one, and 16 would be no faster
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


class Nets(Protocol):
    """The two networks. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """Who runs them: dlib, or torch and where."""
        ...

    def descriptors(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        """(n, 128) float32 for n chips of (150, 150, 3) uint8 in RGB; n at least 1."""
        ...

    def faces(self, pixels: np.ndarray, confidence: float) -> list[tuple[Box, float]]:
        """Boxes in px of `pixels`, (height, width, 3) uint8, with their confidences."""
        ...

    def share(self) -> None:
        """Called once by each of several threads that ask at the same time."""
        ...


class HelperNets:
    """dlib's own networks, in the helpers: the reference, and what is used without torch."""

    name = "dlib"

    def __init__(self, helpers: Helpers) -> None:
        self._helpers = helpers

    def descriptors(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        with self._helpers.one() as ask:
            return told(ask("descriptors", list(chips)))

    def share(self) -> None:
        pass

    def faces(self, pixels: np.ndarray, confidence: float) -> list[tuple[Box, float]]:
        with self._helpers.one() as ask:
            return [(box, sure) for box, sure in told(ask("cnn", pixels)) if sure >= confidence]


def probe() -> np.ndarray:
    """A chip that shows nothing, on which torch's ResNet is held against dlib's; (150, 150, 3) uint8."""
    row, column = np.mgrid[0:CHIP_PX, 0:CHIP_PX]
    return np.stack([row * 3 % 256, column * 5 % 256, (row * column) % 256], axis=2).astype(np.uint8)


def _nets(files: dict[str, Path], helpers: Helpers) -> Nets:
    """torch's networks where they give dlib's numbers, on the GPU if there is one; else dlib's."""
    try:
        from . import torch_nets
    except ImportError:
        return HelperNets(helpers)
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
    return HelperNets(helpers)


def load() -> Embedder:
    """The engine, with a helper started and its model files located but not read yet.

    Raises:
        IdentityError: dlib or the model files are missing.
    """
    problems: list[str] = []
    if not _is_there("dlib"):
        problems.append("the package dlib-bin is missing")
    files = model_files()
    if files is None:
        problems.append("the package face_recognition_models is missing")
    else:
        problems += [f"face_recognition_models lacks {path.name}; install it again" for path in files.values() if not path.is_file()]
    if not problems and files:
        try:
            return DlibResnet(files, Helpers(files, HELPERS))
        except IdentityError as error:
            problems.append(f"the package dlib-bin does not load ({error})")
    raise IdentityError(
        "Faces cannot be measured here. Install what is missing into ComfyUI's Python and start ComfyUI again:"
        f' "{sys.executable}" -m pip install dlib-bin face_recognition_models   (nothing is installed by itself)',
        problems,
    )


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def model_files() -> dict[str, Path] | None:
    """The weights of face_recognition_models, by part; None where the package is not installed."""
    spec = importlib.util.find_spec("face_recognition_models")  # finds the folder without running the package
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return {part: Path(folders[0]) / "models" / name for part, name in FILES.items()} if folders else None


class DlibResnet:
    """The cascade of this module's docstring; embeddings from the full picture."""

    name = "dlib"
    reach = REACH

    def __init__(self, files: dict[str, Path], helpers: Helpers, nets: Nets | None = None) -> None:
        self._files, self._helpers, self._given = files, helpers, nets
        self._loading = threading.Lock()

    @cached_property
    def _fingerprint(self) -> str:
        weights = {part: content_key(path) for part, path in self._files.items()}
        cnn = self.nets.name.split()[0]  # torch's boxes lie some px beside dlib's; descriptors are the same
        return f"dlib-{value_key({'weights': weights, 'dlib': self._helpers.version, 'cascade': CASCADE, 'cnn': cnn})}"

    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def nets(self) -> Nets:
        """The networks in use."""
        with self._loading:
            if self._given is None:
                self._given = _nets(self._files, self._helpers)
            return self._given

    def faces(self, image: Image.Image) -> tuple[Face, ...]:
        """See Embedder."""
        small = (fitted(image, FULL_PX) if max(image.size) > FULL_PX else image).convert("RGB")
        found = self._cut_out("pixels", (small.size, small.tobytes(), image.width))
        return _faces(found, self._described([cut.chip for cut in found]))

    @contextmanager
    def reading(self) -> Iterator[Callable[[str, Path], Future[tuple[Face, ...]]]]:
        """See ReadsFiles."""
        reading = _Reading(self._cut_out, self._described, self.nets.share)
        try:
            yield reading.begin
        finally:
            reading.end()

    def _cut_out(self, what: str, picture: object) -> tuple[Cut, ...]:
        with self._helpers.one() as ask:
            seen = sight(ask(what, picture))
            return seen.cuts if seen.unclear is None else self._by_cnn(seen.unclear, ask)

    def _by_cnn(self, unclear: np.ndarray, ask: Ask) -> tuple[Cut, ...]:
        try:
            boxes = self.nets.faces(unclear, CNN_CONFIDENCE)
        except (RuntimeError, MemoryError) as error:  # torch's own
            raise IdentityError(f"the face engine failed on this image: {error}") from error
        return cuts(ask("boxes", boxes)) if boxes else ()

    def _described(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        """(n, 128) float32 for n chips."""
        if not chips:
            return np.zeros((0, 128), dtype=np.float32)
        try:
            return self.nets.descriptors(chips)
        except (RuntimeError, MemoryError) as error:  # torch's own
            raise IdentityError(f"the face engine failed on this image: {error}") from error


_Promise = Future[tuple[Face, ...]]


class _Reading:
    """Files on their way: helpers look at some, and the faces of those they have seen wait until they fill a batch."""

    def __init__(
        self,
        look: Callable[[str, object], tuple[Cut, ...]],
        describe: Callable[[Sequence[np.ndarray]], np.ndarray],
        share: Callable[[], None],
    ) -> None:
        self._look, self._describe = look, describe
        self._lock = threading.Lock()
        self._begun = 0  # nobody has finished looking at so many
        self._waiting: list[tuple[_Promise, tuple[Cut, ...]]] = []
        self._pool = ThreadPoolExecutor(HELPERS, thread_name_prefix="flenwheel-faces", initializer=share)

    def end(self) -> None:
        self._pool.shutdown(cancel_futures=True)  # waits for the few in work
        self._describe_all(self._taken(1))

    def begin(self, key: str, path: Path) -> _Promise:
        promise: _Promise = Future()
        with self._lock:
            self._begun += 1
        self._pool.submit(self._look, "file", (str(path), key)).add_done_callback(lambda looked: self._seen(promise, looked))
        return promise

    def _seen(self, promise: _Promise, looked: Future[tuple[Cut, ...]]) -> None:
        """Runs in the thread that looked."""
        if looked.cancelled():
            promise.cancel()
            return
        error = looked.exception()
        with self._lock:
            self._begun -= 1
            if not error and looked.result():
                self._waiting.append((promise, looked.result()))
            ready = self._taken(BATCH if self._begun else 1)
        if error:
            promise.set_exception(error)
        elif not looked.result():
            promise.set_result(())
        self._describe_all(ready)

    def _taken(self, at_least: int) -> list[tuple[_Promise, tuple[Cut, ...]]]:
        """What waits, if that is enough faces."""
        if sum(len(seen) for _, seen in self._waiting) < at_least:
            return []
        ready, self._waiting = self._waiting, []
        return ready

    def _describe_all(self, ready: list[tuple[_Promise, tuple[Cut, ...]]]) -> None:
        try:
            rows = self._describe([cut.chip for _, seen in ready for cut in seen])
        except IdentityError as error:
            for promise, _ in ready:
                promise.set_exception(error)
            return
        at = 0
        for promise, seen in ready:
            promise.set_result(_faces(seen, rows[at : at + len(seen)]))
            at += len(seen)


def _faces(found: Sequence[Cut], embeddings: np.ndarray) -> tuple[Face, ...]:
    return tuple(_face(cut, row) for cut, row in zip(found, embeddings, strict=True))


def _face(cut: Cut, embedding: np.ndarray) -> Face:
    return Face(
        box=cut.box,
        found_by=cut.found_by,
        confidence=cut.confidence,
        embedding=embedding,
        yaw=cut.yaw,
        smile=cut.smile,
        sharpness=cut.sharpness,
        luma=cut.luma,
        clipped_low=cut.clipped_low,
        clipped_high=cut.clipped_high,
        flatness=cut.flatness,
    )
