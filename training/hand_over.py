"""ComfyUI gives the graphics card to a training: it is idle, its models are unloaded, and the memory is really free.

Runs in the worker, when its turn has come, which may be hours after Train LoRA was queued; so ComfyUI is asked over its own HTTP routes. The other
half, that ComfyUI's queue waits meanwhile, is `nodes/queue_gate.py`.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from . import card, presets
from .errors import Stopped, TrainingFailed
from .job import Job

LOOK_EVERY_S = 0.5
ANSWER_S = 10.0
FREE_S = 30.0  # for what was unloaded to come back
NEEDED = 0.8  # of the profile's memory: a desktop takes the rest

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is this machine: no proxy


def take_over(job: Job, phase: Callable[[str], None]) -> None:
    """Take the card over from ComfyUI. `phase` hears what is waited for.

    Raises:
        Stopped: someone asked for it meanwhile.
        TrainingFailed: others hold the memory; they are named.
    """
    address = job.places.address
    if address:
        while job.has_hold and _is_busy(address):
            phase("waiting for ComfyUI to finish what it runs")
            _pause(job)
        if _asked(f"{address}/free", {"unload_models": True, "free_memory": True}) is not None:
            phase("ComfyUI unloads its models")
    needed = memory_needed(job)
    until = time.monotonic() + FREE_S
    while (seen := card.look()) is not None and seen.free < needed <= seen.total and time.monotonic() < until:
        phase("waiting for free memory on the graphics card")
        _pause(job)
    if seen is None:
        job.append("note", text="how much of the graphics card is free could not be looked at: there is no nvidia-smi here")
        return
    told = "; ".join(map(str, seen.holders[:4])) or "nobody says that he holds it"
    if seen.free < needed <= seen.total:
        raise TrainingFailed(
            "memory",
            f"Only {seen}, and this training wants {card.gib(needed)}: {told}.",
            "Close these programs, or choose a smaller memory profile, and train again.",
        )
    job.append("note", text=f"{seen}{': ' + told if seen.holders else ''}")
    if seen.total < needed:
        job.append("note", text=f"the memory profile is for a larger card than this one with {card.gib(seen.total)}")


def memory_needed(job: Job) -> int:
    """Bytes that must be free: most of what the job's memory profile is named for."""
    return int(presets.profile_gb(job.spec) * NEEDED * 10**9)


def _pause(job: Job) -> None:
    if job.stop_wanted:
        raise Stopped
    time.sleep(LOOK_EVERY_S)


def _is_busy(address: str) -> bool:
    """Whether ComfyUI runs a graph. One that does not answer is closed, and so not busy."""
    answer = _asked(f"{address}/queue")
    return isinstance(answer, dict) and bool(answer.get("queue_running"))


def _asked(url: str, body: Any = None) -> Any:
    """The answer as JSON, {} where there is none, None where nobody answers."""
    content = None if body is None else json.dumps(body).encode()
    try:
        with _direct.open(urllib.request.Request(url, content, {"Content-Type": "application/json"}), timeout=ANSWER_S) as answer:
            return json.loads(answer.read() or b"{}")
    except (urllib.error.URLError, OSError, ValueError):
        return None
