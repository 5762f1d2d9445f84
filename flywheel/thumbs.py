"""Small copies of images: made once on disk, in several sizes, by a few threads, never twice at a time."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

from PIL import Image

from .errors import ImageError, StorageError
from .images import open_image, write_whole
from .known_files import known_key

SIZES = (256, 512, 1024)
IN_A_GRID = (512, 256)  # as dense and as plain screens show it
QUALITY = 82
NICE = 15
METHOD = 2  # WebP effort: 4 takes twice as long for 3 % fewer bytes


class Cached(Protocol):
    """A project, or a set of pairs: has a folder for what can be made again."""

    @property
    def cache(self) -> Path: ...


class ChangedOnDisk(ImageError):
    """The file is not the image it was when it was listed."""


class Thumbnails:
    """Thumbnails of every project, by content key; what two ask for at once is made once."""

    def __init__(self, threads: int | None = None) -> None:
        workers = threads or max(2, os.cpu_count() or 2)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="flenwheel-thumbs", initializer=_give_way)
        self._making: dict[Path, Future[bytes]] = {}
        self._guard = threading.Lock()

    def request(self, owner: Cached, key: str, path: Path, px: int) -> Future[bytes]:
        """The WebP bytes of a copy that fits into `px` x `px`, soon. The future raises what `open_image` does, and ChangedOnDisk.

        `px`: the next size of SIZES is taken.
        """
        px = next((size for size in SIZES if size >= px), SIZES[-1])
        target = thumbnail_path(owner, key, px)
        with self._guard:
            if target in self._making:
                return self._making[target]
            future = self._pool.submit(_made, target, key, path, px)
            self._making[target] = future
        future.add_done_callback(partial(self._forget, target))
        return future

    def _forget(self, target: Path, _: Future[bytes]) -> None:
        with self._guard:
            self._making.pop(target, None)


def _give_way() -> None:
    """Let this thread's pictures wait for verdicts, where a system gives single threads a priority."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def make_ready(owner: Cached, key: str, image: Image.Image) -> None:
    """Make the thumbnails a grid will ask for as an image (RGB) is saved, so that none is made while somebody labels: 20 to 40 ms a megapixel.

    A disk that refuses is no matter: what is not made now is made when it is asked for.
    """
    with contextlib.suppress(StorageError):
        small = image.copy()
        for px in IN_A_GRID:  # each from the one before
            small = _fitted(small, px)
            write_whole(thumbnail_path(owner, key, px), _webp(small), durable=False)


def thumbnail_path(owner: Cached, key: str, px: int) -> Path:
    """Where a thumbnail is kept; the folder can be deleted at will."""
    return owner.cache / "thumbs" / str(px) / key[:2] / f"{key}.webp"


def thumbnail(path: Path, px: int) -> bytes:
    """WebP bytes of a copy that fits into `px` x `px`; a smaller picture keeps its size."""
    return _webp(_fitted(open_image(path, at_least=px).image, px))


def _fitted(image: Image.Image, px: int) -> Image.Image:
    image.thumbnail((px, px), Image.Resampling.LANCZOS, reducing_gap=1.0)
    return image


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=METHOD)
    return buffer.getvalue()


def refuse_changed(path: Path, key: str) -> None:
    """Raises ChangedOnDisk when the file does not have this content key."""
    try:
        same = known_key(path) == key
    except OSError as error:
        raise ImageError(f"{path.name} cannot be read ({error.strerror or error}).") from error
    if not same:
        raise ChangedOnDisk(f"{path.name} was changed on disk since it was made. Verdicts on the image it was are kept.")


def _made(target: Path, key: str, path: Path, px: int) -> bytes:
    refuse_changed(path, key)
    if target.is_file() and _is_whole(kept := target.read_bytes()):
        return kept
    content = thumbnail(path, px)
    write_whole(target, content, durable=False)  # a verdict would wait for the disk behind it
    return content


def _is_whole(webp: bytes) -> bool:
    """A WebP file says how long it is; a power cut leaves less, or zeros."""
    return webp[:4] == b"RIFF" and int.from_bytes(webp[4:8], "little") + 8 == len(webp)
