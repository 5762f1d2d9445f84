"""Faces of image files, each measured once: some threads, the project's cache, and no number for a file that is not what it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IdentityError, ImageError
from ..images import bytes_of, open_image
from ..project import Project
from ..spare_memory import giving_back
from ..store import connect
from . import Embedder, Face, ReadsFiles

THREADS = max(2, min(4, os.cpu_count() or 2))  # for engines that do not read files themselves; ComfyUI needs some processor too
KEPT_EVERY_S = 0.5  # what is measured is written down this often: one write each would wait for the disk longer than the measuring takes

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """`faces` by image key; `problems`, by image key, says why the others could not be read."""

    faces: Mapping[str, tuple[Face, ...]]
    problems: Mapping[str, str]


def measure(project: Project, files: Mapping[str, Path], embedder: Embedder, *, report: Report | None = None) -> Measured:
    """Faces of `files` (image key: where the file is). What was measured before is not measured again.

    `report(done, total)` is called on this thread and may raise to stop; what is finished by then is kept. A file whose bytes no longer
    have its key, or that cannot be read, is a problem and not remembered, so that it is looked at again the next time.
    """
    fingerprint = embedder.fingerprint()
    faces = known(project, files, fingerprint)
    problems: dict[str, str] = {}
    fresh: dict[str, tuple[Face, ...]] = {}
    missing = [key for key in files if key not in faces]
    kept_at = time.monotonic()
    if report:
        report(len(files) - len(missing), len(files))
    started: dict[Future[tuple[Face, ...]], str] = {}
    try:
        with giving_back() as now_and_then, _reading(embedder) as begin:
            started = {begin(key, files[key]): key for key in missing}
            for finished in as_completed(list(started)):
                _take(started.pop(finished), finished, fresh, problems)
                if time.monotonic() - kept_at > KEPT_EVERY_S:
                    _keep(project, fingerprint, fresh, faces)
                    kept_at = time.monotonic()
                now_and_then()
                if report:
                    report(len(faces) + len(fresh) + len(problems), len(files))
    finally:
        for finished, key in started.items():  # in work when somebody stopped
            if finished.done() and not finished.cancelled():
                _take(key, finished, fresh, problems)
        _keep(project, fingerprint, fresh, faces)
    return Measured(faces, problems)


@contextmanager
def _reading(embedder: Embedder) -> Iterator[Callable[[str, Path], Future[tuple[Face, ...]]]]:
    """See `ReadsFiles`; threads for those that cannot."""
    if isinstance(embedder, ReadsFiles):
        with embedder.reading() as begin:
            yield begin
        return
    with ThreadPoolExecutor(THREADS, thread_name_prefix="flenwheel-faces") as pool:
        try:
            yield lambda key, path: pool.submit(_look, key, path, embedder)
        finally:
            pool.shutdown(cancel_futures=True)  # waits for the few in work


def known(project: Project, keys: Iterable[str], fingerprint: str) -> dict[str, tuple[Face, ...]]:
    """Faces remembered for these images, by key."""
    with connect(project.database) as db:
        rows = db.execute(
            "SELECT image_key, found, embeddings FROM faces WHERE embedder = ? AND image_key IN (SELECT value FROM json_each(?))",
            (fingerprint, json.dumps(list(keys))),
        ).fetchall()
    return {row["image_key"]: _restored(row["found"], row["embeddings"]) for row in rows}


def remember(project: Project, fingerprint: str, faces: Mapping[str, tuple[Face, ...]]) -> None:
    """Keep the faces of images, by key."""
    rows = [(key, fingerprint, *_stored(found)) for key, found in faces.items()]
    with connect(project.database) as db:
        db.executemany("INSERT OR REPLACE INTO faces VALUES (?, ?, ?, ?)", rows)


def _stored(faces: tuple[Face, ...]) -> tuple[str, bytes]:
    described = json.dumps([{name: value for name, value in asdict(face).items() if name != "embedding"} for face in faces])
    return described, b"".join(face.embedding.astype("<f4").tobytes() for face in faces)


def _restored(described: str, embeddings: bytes) -> tuple[Face, ...]:
    found: list[dict[str, Any]] = json.loads(described)
    if not found:
        return ()
    rows = np.frombuffer(embeddings, dtype="<f4").reshape(len(found), -1).astype(np.float32)
    return tuple(Face(box=_box(face.pop("box")), embedding=row, **face) for face, row in zip(found, rows, strict=True))


def _box(sides: list[int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = sides
    return left, top, right, bottom


def _look(key: str, path: Path, embedder: Embedder) -> tuple[Face, ...]:
    """Faces of a file.

    Raises:
        ImageError, IdentityError: there are none to be had.
    """
    return embedder.faces(open_image(path, content=bytes_of(path, key)).image)


def _take(key: str, finished: Future[tuple[Face, ...]], fresh: dict[str, tuple[Face, ...]], problems: dict[str, str]) -> None:
    error = finished.exception()
    if isinstance(error, (ImageError, IdentityError)):
        problems[key] = str(error)
    else:
        fresh[key] = finished.result()


def _keep(project: Project, fingerprint: str, fresh: dict[str, tuple[Face, ...]], faces: dict[str, tuple[Face, ...]]) -> None:
    if fresh:
        remember(project, fingerprint, fresh)
        faces.update(fresh)
        fresh.clear()
