"""Faces of image files, each measured once: two threads, the project's cache, and no number for a file that is not what it was."""

from __future__ import annotations

import json
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

THREADS = 2  # reading files and HOG run beside each other; dlib's networks hold Python's lock, so more threads gain nothing

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
    faces = known(project, files, embedder.fingerprint())
    problems: dict[str, str] = {}
    missing = [key for key in files if key not in faces]
    if report:
        report(len(files) - len(missing), len(files))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="flenwheel-faces") as pool:
        started = {pool.submit(_look, key, files[key], embedder): key for key in missing}
        try:
            for finished in as_completed(started):
                key = started.pop(finished)
                _keep(project, key, finished, embedder, faces, problems)
                if report:
                    report(len(faces) + len(problems), len(files))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for the one or two in work
            for finished, key in started.items():
                if not finished.cancelled() and not finished.exception():
                    _keep(project, key, finished, embedder, faces, problems)
            raise
    return Measured(faces, problems)


def known(project: Project, keys: Iterable[str], fingerprint: str) -> dict[str, tuple[Face, ...]]:
    """Faces remembered for these images, by key."""
    with connect(project.database) as db:
        rows = db.execute(
            "SELECT image_key, found, embeddings FROM faces WHERE embedder = ? AND image_key IN (SELECT value FROM json_each(?))",
            (fingerprint, json.dumps(list(keys))),
        ).fetchall()
    return {row["image_key"]: _restored(row["found"], row["embeddings"]) for row in rows}


def remember(project: Project, key: str, fingerprint: str, faces: tuple[Face, ...]) -> None:
    """Keep the faces of one image."""
    described = json.dumps([{name: value for name, value in asdict(face).items() if name != "embedding"} for face in faces])
    embeddings = b"".join(face.embedding.astype("<f4").tobytes() for face in faces)
    with connect(project.database) as db:
        db.execute("INSERT OR REPLACE INTO faces VALUES (?, ?, ?, ?)", (key, fingerprint, described, embeddings))


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


def _keep(
    project: Project,
    key: str,
    finished: Future[tuple[Face, ...] | str],
    embedder: Embedder,
    faces: dict[str, tuple[Face, ...]],
    problems: dict[str, str],
) -> None:
    seen = finished.result()
    if isinstance(seen, str):
        problems[key] = seen
    else:
        remember(project, key, embedder.fingerprint(), seen)
        faces[key] = seen
