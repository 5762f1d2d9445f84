"""How much memory a run takes, measured from outside: the worker and everything it has started, on the card where there is one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psutil

from . import card
from .errors import TrainingError
from .job import Job

LOOK_EVERY_S = 1.0
RISE = 1.02  # a new peak is told when it is higher by 2 %


@contextlib.contextmanager
def measured(job: Job, *, on_card: bool) -> Iterator[None]:
    """Append `memory` events with the peak so far for as long as the block runs."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(job, on_card, ended), name=f"memory of job {job.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * card.PATIENCE_S)


def _watch(job: Job, on_card: bool, ended: threading.Event) -> None:
    before = card.look() if on_card else None
    peak = 0
    while True:
        over = ended.wait(LOOK_EVERY_S)
        family = _family()
        used = _on_card(before, family) if before else sum(map(_resident, family))
        if used > peak * RISE:
            peak = used
            with contextlib.suppress(TrainingError, OSError):  # a full disk is told by the run itself
                job.append("memory", peak_bytes=peak, device=before.name if before else "main memory")
        if over:
            return


def _family() -> list[psutil.Process]:
    me = psutil.Process()
    with contextlib.suppress(psutil.Error):
        return [me, *me.children(recursive=True)]
    return [me]


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def _on_card(before: card.Card, family: list[psutil.Process]) -> int:
    """What the family holds there; where the driver does not tell whose it is, what is used more than before."""
    now = card.look()
    if now is None:
        return 0
    pids = {process.pid for process in family}
    ours = [holder.bytes for holder in now.holders if holder.pid in pids]
    known = [held for held in ours if held is not None]
    return sum(known) if known else max(0, before.free - now.free)
