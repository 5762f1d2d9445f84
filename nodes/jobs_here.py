"""The trainings of this ComfyUI: all of them, how one stands in words, and where this machine keeps what trainers need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy
import folder_paths
from server import PromptServer

from ..flywheel.errors import FlywheelError
from ..flywheel.images import value_key
from ..flywheel.project import Project
from ..training import card, run
from ..training import job as jobs
from . import host

FOLDERS = ("diffusion_models", "text_encoders", "vae", "checkpoints", "diffusers")
TAIL = 6  # lines of the log, and notes


def all_jobs() -> Iterator[tuple[Project, jobs.Job]]:
    """Every training of every project that can be opened."""
    for project in host.readable_projects():
        for one in jobs.jobs_of(project):
            yield project, one


def revision(of: Callable[[jobs.Job], Any]) -> str:
    """Changes when `of` changes for any training: ComfyUI does not tell a node which one a linked socket will bring."""
    told: list[Any] = []
    for _, one in all_jobs():
        try:
            told.append(of(one))
        except FlywheelError as error:
            told.append([one.id, str(error)])
    return value_key(told)


def places() -> jobs.Places:
    """What trainers need to know of this ComfyUI."""
    comfyui = Path(comfy.__path__[0]).parent
    models = tuple(Path(path) for kind in FOLDERS for path in folder_paths.get_folder_paths(kind))
    return jobs.Places(Path(folder_paths.get_folder_paths("loras")[0]), models, comfyui, (comfyui.parent, comfyui), address())


def address() -> str:
    """Where this ComfyUI answers for a program on this machine."""
    server = PromptServer.instance
    listening = getattr(server, "address", None) or "127.0.0.1"
    name = "127.0.0.1" if listening in ("0.0.0.0", "::") else f"[{listening}]" if ":" in listening else listening
    return f"http://{name}:{getattr(server, 'port', 8188)}"


def standing(one: jobs.Job) -> str:
    """One or two lines on how a job stands."""
    status = one.status()
    name = f"Job {one.id}"
    if status.state in ("running", "stopping"):
        pace = (
            f", {status.pace_s:.2g} s per step, {host.duration(status.left_s)} left" if status.pace_s and status.left_s is not None else ""
        )
        phase = f", {status.phase}" if status.phase else ""
        loss = f", loss {status.loss:.4g}" if status.loss is not None else ""
        return f"{name} is {status.state}: step {status.step} of {status.steps}{loss}{pace}{phase}. Last checkpoint: {status.checkpoint or 'none yet'}."
    if status.state == "done":
        return f"{name} is done: {run.result_of(one)}"
    if status.state == "queued":
        return f"{name} waits for its turn{': ' + status.phase if status.phase else ''}."
    if status.state == "new":
        return f"{name} was not started yet. Set action to 'train' and queue."
    return f"{name} is {status.state} at step {status.step} of {status.steps or one.spec.steps}. {status.cause}"


def tail(one: jobs.Job) -> list[str]:
    """What failed in its last words, the run's notes, and the end of its log."""
    events = one.events()
    failed = [event for event in events if event["kind"] == "failed"][-1:] if one.status().state == "failed" else []
    words = [f"! {line}" for event in failed for line in event.get("tail", [])]
    peak = [f"· at most {card.gib(one.peak_bytes)} of memory"] if one.peak_bytes else []
    notes = [f"· {event['text']}" for event in events if event["kind"] == "note"][-TAIL:]
    last = log_lines(one, TAIL)
    return [*words, *peak, *notes, *(f"| {line}" for line in last)]


def log_lines(one: jobs.Job, count: int, most_bytes: int = 64 << 10) -> list[str]:
    """The end of the log, however long it is."""
    try:
        with one.log.open("rb") as file:
            file.seek(max(0, one.log.stat().st_size - most_bytes))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except FileNotFoundError:
        return []
