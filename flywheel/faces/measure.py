"""Faces of image files, each measured once: some threads, the project's cache, and no number for a file that is not what it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IdentityError, ImageError
from ..images import content_key, open_image
from ..project import Project
from ..store import connect
from . import Embedder, Face

THREADS = max(2, min(4, os.cpu_count() or 2))  # each has a HOG of its own, which takes 0.3 s to load; ComfyUI needs some processor too
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
    with ThreadPoolExecutor(THREADS, thread_name_prefix="flenwheel-faces") as pool:
        started = {pool.submit(_look, key, files[key], embedder): key for key in missing}
        try:
            for finished in as_completed(started):
                _take(started.pop(finished), finished, fresh, problems)
                if time.monotonic() - kept_at > KEPT_EVERY_S:
                    _keep(project, fingerprint, fresh, faces)
                    kept_at = time.monotonic()
                if report:
                    report(len(faces) + len(fresh) + len(problems), len(files))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for the few in work
            for finished, key in started.items():
                if not finished.cancelled() and not finished.exception():
                    _take(key, finished, fresh, problems)
            raise
        finally:
            _keep(project, fingerprint, fresh, faces)
    return Measured(faces, problems)


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


def _look(key: str, path: Path, embedder: Embedder) -> tuple[Face, ...] | str:
    """Faces of a file, or why there are none to be had. The bytes are read once: what is measured is what has the key."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror or error})"
    if content_key(content) != key:
        return f"{path.name} has changed on disk since it was listed; run the step before this one again"
    try:
        return embedder.faces(open_image(path, content=content).image)
    except (ImageError, IdentityError) as error:
        return str(error)


def _take(key: str, finished: Future[tuple[Face, ...] | str], fresh: dict[str, tuple[Face, ...]], problems: dict[str, str]) -> None:
    seen = finished.result()
    if isinstance(seen, str):
        problems[key] = seen
    else:
        fresh[key] = seen


def _keep(project: Project, fingerprint: str, fresh: dict[str, tuple[Face, ...]], faces: dict[str, tuple[Face, ...]]) -> None:
    if fresh:
        remember(project, fingerprint, fresh)
        faces.update(fresh)
        fresh.clear()
