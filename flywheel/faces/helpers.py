"""Processes that look for faces, so that ComfyUI's own goes on meanwhile. One of them is asked at a time by one thread.

A helper runs `serve`, with dlib, numpy, Pillow and, where it is there, PyAV. It ends when nobody has asked it for ten minutes, or when the process that
started it has ended. Where none can be started, the same work is done here. What goes between them are plain values, pickled: neither side knows
the other's names for classes.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ..errors import IdentityError, ImageError
from ..images import bytes_of
from .finding import Box, Cut, Finder, Picture, Sight

log = logging.getLogger("flenwheel")

IDLE_S = 600.0
PATIENCE_S = 5.0  # a helper in the middle of a picture takes less
PACK = Path(__file__).resolve().parent.parent.parent
START = "import sys; sys.path.insert(0, sys.argv[1]); from flywheel.faces.helpers import serve; serve()"
NO_WINDOW, BELOW_NORMAL = 0x08000000, 0x00004000  # Windows would show an empty console; there the priority is set at the start
NICE = 5  # ComfyUI's page comes first
# glibc would give the memory of each picture back and ask for it again, page by page: a twelfth of a helper's time. Other C libraries read none of this
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}  # bytes: larger pieces go back at once

Ask = Callable[[str, Any], Any]


class HelperEnded(Exception):
    """The process is gone."""


class Looker:
    """What a helper does: each public method is one thing it may be asked, with plain values in and out."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._dlib: Any = importlib.import_module("dlib")
        self._files = files
        self._finder = Finder(self._dlib, Path(files["points"]))
        self._picture: Picture | None = None
        self._nets: dict[str, Any] = {}

    @property
    def version(self) -> str:
        return str(self._dlib.__version__)

    def ask(self, what: str, given: Any) -> Any:
        """The answer, or a text that says why there is none."""
        try:
            return getattr(self, what)(given)
        except ImageError as error:
            return str(error)
        except (RuntimeError, MemoryError) as error:  # dlib's own errors arrive as these
            return f"the face engine failed on this image: {error}"

    def prepare(self, _: None) -> None:
        """Reads what the first picture would have to wait for."""
        self._finder.prepare()

    def file(self, given: tuple[str, str]) -> Any:
        """Path and key of a file."""
        path = Path(given[0])
        self._picture = Picture.of_file(path, bytes_of(path, given[1]))
        return self._looked()

    def pixels(self, given: tuple[tuple[int, int], bytes, int]) -> Any:
        """Size and bytes of an RGB picture, and how wide it was before it was made smaller."""
        size, content, width = given
        self._picture = Picture(Image.frombytes("RGB", size, content), width)
        return self._looked()

    def boxes(self, given: list[tuple[Box, float]]) -> Any:
        """Boxes of the CNN in the picture that was looked at last."""
        assert self._picture
        return [_plain(cut) for cut in self._finder.cut(self._picture, given)]

    def descriptors(self, chips: Sequence[np.ndarray]) -> Any:
        """dlib's own ResNet, where there is no torch."""
        net = self._nets.get("resnet") or self._dlib.face_recognition_model_v1(self._files["resnet"])
        self._nets["resnet"] = net
        return np.array([net.compute_face_descriptor(chip) for chip in chips], dtype=np.float32)

    def cnn(self, pixels: np.ndarray) -> Any:
        """dlib's own CNN: boxes in px of `pixels` with their confidences."""
        net = self._nets.get("cnn") or self._dlib.cnn_face_detection_model_v1(self._files["cnn"])
        self._nets["cnn"] = net
        seen = ((face.rect, float(face.confidence)) for face in net(pixels, 0))
        return [((float(rect.left()), float(rect.top()), float(rect.right()), float(rect.bottom())), sure) for rect, sure in seen]

    def _looked(self) -> Any:
        assert self._picture
        sight = self._finder.look(self._picture)
        return [_plain(cut) for cut in sight.cuts], sight.unclear


def sight(answer: Any) -> Sight:
    """What `file` and `pixels` answer.

    Raises:
        IdentityError: they could not look.
    """
    cuts_seen, unclear = told(answer)
    return Sight(cuts(cuts_seen), unclear)


def cuts(answer: Any) -> tuple[Cut, ...]:
    """What `boxes` answers.

    Raises:
        IdentityError: it could not look.
    """
    return tuple(Cut(**described) for described in told(answer))


def told(answer: Any) -> Any:
    """The answer itself.

    Raises:
        IdentityError: it is a text that says why there is none.
    """
    if isinstance(answer, str):
        raise IdentityError(answer)
    return answer


def _plain(cut: Cut) -> dict[str, Any]:
    return {field.name: getattr(cut, field.name) for field in fields(cut)}


class Helpers:
    """At most `count` helpers, started when they are needed. Safe to ask from several threads.

    Raises:
        IdentityError: dlib does not load; the text is its own.
    """

    def __init__(self, files: Mapping[str, Path], count: int) -> None:
        self._files = {part: str(path) for part, path in files.items()}
        self._free = threading.BoundedSemaphore(count)
        self._idle: list[_Helper] = []
        self._mine = threading.local()
        self._here: Looker | None = None
        self._alone = threading.Lock()
        with self.one():
            pass

    @property
    def version(self) -> str:
        """dlib's."""
        return self._version

    @contextmanager
    def one(self) -> Iterator[Ask]:
        """A helper for this thread alone; the one it has, if it has one already.

        Raises:
            IdentityError: it ended while it was asked; the next time there is another one.
        """
        held: Ask | None = getattr(self._mine, "ask", None)
        if held:
            yield held
            return
        with self._free:
            helper = self._waiting() or self._started()
            ask = helper.ask if helper else self._asked_here
            self._mine.ask = ask
            try:
                yield ask
            except HelperEnded as error:
                raise IdentityError("the face engine failed on this image: the process that looked at it has ended") from error
            finally:
                self._mine.ask = None
                if helper and helper.lives:
                    self._idle.append(helper)

    def _waiting(self) -> _Helper | None:
        while self._idle:
            if (helper := self._idle.pop()).lives:
                return helper
        return None

    def _started(self) -> _Helper | None:
        if self._here:
            return None
        try:
            helper = _Helper(self._files)
        except (OSError, HelperEnded) as error:
            log.info("faces are looked for in this process, because no other can be started: %s", error)
            self._here = self._looker()
            return None
        self._version = helper.version
        return helper

    def _looker(self) -> Looker:
        try:
            looker = Looker(self._files)
        except ImportError as error:
            raise IdentityError(str(error)) from error
        self._version = looker.version
        return looker

    def _asked_here(self, what: str, given: Any) -> Any:
        assert self._here
        with self._alone:
            return self._here.ask(what, given)


class _Helper:
    """One process.

    Raises:
        OSError: it cannot be started.
        HelperEnded: it ended at once.
        IdentityError: dlib does not load there.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(PACK)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**KEPT_MEMORY, **os.environ},
            creationflags=NO_WINDOW | BELOW_NORMAL if os.name == "nt" else 0,
        )
        self._end = weakref.finalize(self, _ended, self._process)
        state, self.version = self.ask("begin", dict(files))
        if state != "ready":
            raise IdentityError(self.version)

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask(self, what: str, given: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        try:
            _send(self._process.stdin, (what, given))
            return _received(self._process.stdout)
        except (OSError, EOFError) as error:
            self._process.kill()
            self._end()
            raise HelperEnded(f"exit status {self._process.returncode}") from error


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Lets a helper end, which it does when its input ends."""
    for stream in (process.stdin, process.stdout):
        if stream:
            with suppress(OSError):  # it has gone before what was written could reach it
                stream.close()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _send(stream: IO[bytes], value: Any) -> None:
    packed = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(packed)))
    stream.write(packed)
    stream.flush()


def _received(stream: IO[bytes]) -> Any:
    """The next value. Both ends are ours: nobody else can write into the pipe."""
    length = stream.read(8)
    if len(length) < 8:
        raise EOFError
    (size,) = struct.unpack("<Q", length)
    packed = stream.read(size)
    if len(packed) < size:
        raise EOFError
    return pickle.loads(packed)


# --- the helper's side


def serve() -> None:
    """What a helper runs: answers until its input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    if hasattr(os, "nice"):
        os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in the terminal is for ComfyUI, which closes the input
    asked_at = [time.monotonic()]
    threading.Thread(target=_end_when_idle, args=(asked_at,), daemon=True).start()
    looker: Looker | None = None
    while True:
        try:
            what, given = _received(sys.stdin.buffer)
        except EOFError:
            return
        asked_at[0] = float("inf")
        if looker:
            answer = looker.ask(what, given)
        else:
            try:
                looker = Looker(given)
                answer = ("ready", looker.version)
            except ImportError as error:
                answer = ("failed", str(error))
        asked_at[0] = time.monotonic()
        try:
            _send(answers, answer)
        except OSError:  # whoever asked is gone
            return
        if what == "begin" and looker:
            looker.ask("prepare", None)  # what fails here fails again with the first picture, and is told then


def _end_when_idle(asked_at: Sequence[float]) -> None:
    while time.monotonic() - asked_at[0] < IDLE_S:
        time.sleep(IDLE_S / 20)
    os._exit(0)
