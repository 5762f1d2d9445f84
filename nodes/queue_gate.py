"""ComfyUI's queue waits while a training has the graphics card, where the person wanted that, and goes on by itself afterwards.

ComfyUI offers no way to pause its queue: this file, and no other, stands before `PromptQueue.get` (ComfyUI 0.30). Graphs of light nodes only, such
as one that looks at the training or stops it, still run.
"""

from __future__ import annotations

import heapq
import time
from typing import Any

from server import PromptServer

from ..flywheel.errors import FlywheelError
from ..training import job as jobs
from . import host, jobs_here

LOOK_EVERY_S = 1.0
LIGHT = frozenset(
    {
        "FLEN_Project",
        "FLEN_CharacterLoraSettings",
        "FLEN_EditLoraSettings",
        "FLEN_TrainLora",
        "FLEN_TrainedLora",
        "FLEN_TrainingMonitor",
        "FLEN_CompareLoras",
        "FLEN_ExportTrainingSet",
        "FLEN_CreateCorrectionTriplets",
        "FLEN_PairSheet",
        "PreviewImage",
        "SaveImage",
        "PreviewAny",
    }
)

_known: tuple[float, jobs.Job | None] = (-LOOK_EVERY_S, None)
_told: str = ""


def install() -> None:
    """Stand before ComfyUI's queue; once."""
    queue = PromptServer.instance.prompt_queue
    if getattr(queue.get, "flenwheel", False):
        return
    if not (hasattr(queue, "queue") and hasattr(queue, "not_empty")):
        host.log.warning("This ComfyUI keeps its queue in another way than 0.30: it cannot be made to wait while a training has the card.")
        return
    original = queue.get

    def get(timeout: float | None = None) -> Any:
        with queue.not_empty:
            if not queue.queue:
                queue.not_empty.wait(timeout=timeout)
            if not queue.queue:
                return None
            if (waits_for := holder()) is None:
                return original(timeout=0)
            for item in sorted(queue.queue):
                if is_light(item[2]):
                    rest = [other for other in queue.queue if other is not item]
                    queue.queue = [item]
                    try:
                        return original(timeout=0)
                    finally:
                        queue.queue = rest
                        heapq.heapify(queue.queue)
            _tell(waits_for, len(queue.queue))
            queue.not_empty.wait(timeout=LOOK_EVERY_S)
            return None

    get.flenwheel = True  # type: ignore[attr-defined]
    queue.get = get  # type: ignore[method-assign]


def is_light(prompt: dict[str, Any]) -> bool:
    """Whether a graph leaves the graphics card alone."""
    return all(isinstance(node, dict) and node.get("class_type") in LIGHT for node in prompt.values())


def holder() -> jobs.Job | None:
    """The training that ComfyUI's queue waits for. None as well when that cannot be found out: the queue then goes on."""
    global _known
    looked, found = _known
    if time.monotonic() - looked >= LOOK_EVERY_S:
        try:
            found = next((one for _, one in jobs_here.all_jobs() if _holds(one)), None)
        except Exception:  # noqa: BLE001 - it would end the thread that runs all of ComfyUI's graphs
            host.log.exception("Whether a training has the graphics card could not be found out; ComfyUI's queue goes on.")
            found = None
        _known = (time.monotonic(), found)
    return found


def _holds(one: jobs.Job) -> bool:
    try:
        return one.has_hold and one.has_card
    except FlywheelError:
        return False


def _tell(one: jobs.Job, waiting: int) -> None:
    """Say once per job that the queue waits, in every open tab and in the log."""
    global _told
    if _told != one.id:
        _told = one.id
        host.log.info("ComfyUI's queue (%s) waits while training %s has the graphics card.", waiting, one.id)
        host.broadcast("flenwheel.waits", {"project": one.folder.parent.parent.name, "id": one.id, "waiting": waiting})
