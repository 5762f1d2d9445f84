"""One at a time: locks that end with the process that holds them, and turns at the GPU in the order of asking."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from datetime import time as clock
from pathlib import Path
from typing import IO

import psutil

from ..flywheel.images import storage_error
from .errors import SpecError
from .job import identity, is_alive

LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Window:
    """The hours in which training may begin, such as 22:00-07:00. Empty: always."""

    begin: clock | None = None
    end: clock | None = None

    def is_open(self, now: datetime) -> bool:
        if self.begin is None or self.end is None:
            return True
        at = now.time()
        return self.begin <= at < self.end if self.begin <= self.end else at >= self.begin or at < self.end

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}" if self.begin and self.end else ""


def window(text: str) -> Window:
    """A window from "22:00-07:00", or from nothing.

    Raises:
        SpecError: the text is neither.
    """
    if not text.strip():
        return Window()
    begin, _, end = text.partition("-")
    try:
        return Window(*(datetime.strptime(part.strip(), "%H:%M").time() for part in (begin, end)))
    except ValueError as error:
        raise SpecError(f"{text!r} is no time window. Write it as 22:00-07:00, or leave it empty.") from error


def gpu_folder() -> Path:
    """Where turns at this machine's GPU are kept: one folder per person and card, whatever the projects."""
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip() or "0"
    who = str(os.getuid()) if sys.platform != "win32" else os.environ.get("USERNAME", "")
    return Path(tempfile.gettempdir()) / f"flenwheel-{who}-gpu{''.join(filter(str.isalnum, card))}"


@contextlib.contextmanager
def lock(path: Path) -> Iterator[IO[bytes] | None]:
    """The lock on a file for as long as the block runs, or None where another process has it. Ends with the process, even when it is killed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise storage_error(path, error) from error
    with file:
        yield file if _locked(file) else None


def _locked(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def turn(folder: Path, hours: Window, wait: Callable[[str], None]) -> Iterator[IO[bytes]]:
    """Our turn at the GPU, in the order of asking; `wait` is called with the reason while it is not, and may raise to give up.

    Whoever died waiting is passed over, and so is whoever waits for another hour. A trainer that inherited the lock keeps it until it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    me = identity()
    ticket = folder / f"{time.time_ns():020}-{me['pid']}-{me['created']:.2f}.ticket"
    ticket.write_text(str(hours), encoding="utf-8")
    try:
        while True:
            if not hours.is_open(datetime.now()):
                wait(f"waiting for {hours}")
            elif next(_ready(folder), ticket) == ticket:
                with lock(folder / "lock") as held:
                    if held:
                        os.set_inheritable(held.fileno(), True)  # a trainer that outlives a killed worker still holds the GPU
                        yield held
                        return
                wait("waiting for the GPU")
            else:
                wait("waiting for the GPU")
            time.sleep(LOOK_EVERY_S)
    finally:
        with contextlib.suppress(PermissionError):  # Windows, while another reads it; it counts for nothing once we have ended
            ticket.unlink(missing_ok=True)


def waiting(folder: Path) -> list[int]:
    """The process ids of who waits for the GPU or has it, in their order."""
    return [int(ticket.stem.split("-")[1]) for ticket in _live(folder)]


def _ready(folder: Path) -> Iterator[Path]:
    """The live tickets whose hours are open."""
    for ticket in _live(folder):
        try:
            hours = window(ticket.read_text(encoding="utf-8"))
        except (OSError, SpecError):
            continue
        if hours.is_open(datetime.now()):
            yield ticket


def _live(folder: Path) -> Iterator[Path]:
    """Tickets whose owners live, the oldest first."""
    for ticket in sorted(folder.glob("*.ticket")):
        _, pid, created = ticket.stem.split("-")
        if is_alive({"pid": int(pid), "created": float(created)}):
            yield ticket
        else:
            with contextlib.suppress(PermissionError):
                ticket.unlink(missing_ok=True)


def end_group(process: psutil.Process, patience_s: float = 10.0) -> None:
    """End a process and all it has started: first by asking, then by force."""
    family = [process]
    with contextlib.suppress(psutil.Error):
        family += process.children(recursive=True)
    if sys.platform != "win32":
        import signal

        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == process.pid:  # a leader of its own group: never ours
                os.killpg(process.pid, signal.SIGTERM)
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.terminate()
    for member in _still_alive(family, patience_s):
        with contextlib.suppress(psutil.Error):
            member.kill()
    _still_alive(family, patience_s)


def _still_alive(family: list[psutil.Process], patience_s: float) -> list[psutil.Process]:
    """Who has not ended after so many seconds. The dead that nobody has buried yet do not count; burying is their parents' business."""
    until = time.monotonic() + patience_s
    while True:
        alive: list[psutil.Process] = []
        for member in family:
            with contextlib.suppress(psutil.Error):
                if member.is_running() and member.status() != psutil.STATUS_ZOMBIE:
                    alive.append(member)
        if not alive or time.monotonic() > until:
            return alive
        time.sleep(0.05)
