"""A job is a folder and nothing else. Its status is derived from what is in it and from who is alive. Needs no torch.

<project>/jobs/<id>/
  job.json         the spec; its hash is the folder's name
  places.json      where this machine keeps models; may change, is no part of the id
  events.jsonl     one JSON per line, appended: queued, turn, started, phase, step, validation, sample, checkpoint, memory, launched, note, done, failed, stopped, tried lighter
  log.txt          what the worker and the trainer wrote
  stop             is there while someone wants the run to end
  hold             is there where ComfyUI's queue waits while this job has the graphics card
  config/ dataset/ checkpoints/ samples/ result/
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import psutil

from ..flywheel.errors import FlywheelError
from ..flywheel.images import storage_error, write_json
from ..flywheel.project import Project
from . import journal
from .errors import JobError, SpecError
from .journal import Event
from .spec import TrainingSpec, from_json

SCHEMA = 1
State = Literal["new", "queued", "running", "stopping", "stopped", "lost", "failed", "done"]
OVER: frozenset[State] = frozenset({"stopped", "lost", "failed", "done"})
SAME_START_S = 2.0  # process start times are computed from the boot time, which clock corrections move a little
PACE_OF = 20  # steps the pace is taken from

_LIVES = ("queued", "started", "done", "failed", "stopped")


@dataclass(frozen=True, slots=True)
class Places:
    """Where this machine keeps what a trainer needs. `models` are searched for file names; `near` for engines.

    `address`: of the ComfyUI that gives the graphics card, such as http://127.0.0.1:8188; empty where there is none.
    """

    loras: Path | None = None
    models: tuple[Path, ...] = ()
    comfyui: Path | None = None
    near: tuple[Path, ...] = ()
    address: str = ""

    def find(self, name: str) -> Path | None:
        """A model file or folder by its name in one of the model folders, or by its full path."""
        if not name.strip():
            return None
        return next((path for path in (folder / name for folder in (*self.models, Path())) if path.is_absolute() and path.exists()), None)


@dataclass(frozen=True, slots=True)
class Status:
    """How a job stands. `pace_s`: seconds per step of late; `left_s`: how long it will take at that pace. `cause`: why it failed."""

    state: State
    step: int = 0
    steps: int = 0
    loss: float | None = None
    attempts: int = 0
    checkpoint: int = 0
    pace_s: float | None = None
    phase: str = ""
    cause: str = ""
    result: str = ""

    @property
    def left_s(self) -> float | None:
        return None if self.pace_s is None else self.pace_s * (self.steps - self.step)

    @property
    def is_over(self) -> bool:
        return self.state in OVER


@dataclass(frozen=True, slots=True)
class Job:
    """The folder of one training run."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def spec(self) -> TrainingSpec:
        """What is trained.

        Raises:
            JobError: job.json is gone, unreadable or was changed by hand.
        """
        path = self.folder / "job.json"
        try:
            spec = from_json(json.loads(path.read_text(encoding="utf-8"))["spec"])
        except FileNotFoundError as error:
            raise JobError(f"Job {self.id} has no job.json. Delete its folder, or start it again from the settings node.") from error
        except (ValueError, KeyError, TypeError, SpecError) as error:
            raise JobError(
                f"job.json of job {self.id} cannot be read ({str(error).splitlines()[0]}). Undo the change, or delete the file and queue Train LoRA again."
            ) from error
        if spec.id != self.id:
            raise JobError(
                f"job.json of job {self.id} was changed by hand: it now describes job {spec.id}. Undo the change; other settings are another job."
            )
        return spec

    @property
    def places(self) -> Places:
        try:
            told = json.loads((self.folder / "places.json").read_text(encoding="utf-8"))
            return Places(
                Path(told["loras"]) if told["loras"] else None,
                tuple(map(Path, told["models"])),
                Path(told["comfyui"]) if told["comfyui"] else None,
                tuple(map(Path, told["near"])),
                str(told.get("address", "")),
            )
        except FileNotFoundError:
            return Places()
        except (ValueError, KeyError, TypeError) as error:
            raise JobError(f"places.json of job {self.id} cannot be read ({error}). Delete it and queue Train LoRA again.") from error

    @property
    def dataset(self) -> Path:
        return self.folder.parent.parent / self.spec.dataset

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    # --- events

    def append(self, kind: str, **facts: Any) -> None:
        """Add an event; it is on disk before this returns.

        Raises:
            StorageError: the disk refused.
        """
        line = json.dumps({"kind": kind, "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **facts}, ensure_ascii=False)
        path = self.folder / "events.jsonl"
        try:
            with path.open("a+b") as file:
                if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    file.write(b"\n")  # a line that a crash cut off stays by itself
                file.write(line.encode() + b"\n")
        except OSError as error:
            raise storage_error(path, error) from error

    def events(self) -> list[Event]:
        """Every whole line in order; what a crash cut off is left out."""
        return journal.read(self.folder / "events.jsonl").events

    @property
    def damaged_lines(self) -> int:
        return journal.read(self.folder / "events.jsonl").damaged

    # --- stop

    def ask_to_stop(self) -> None:
        """The run ends at the next step boundary."""
        try:
            (self.folder / "stop").touch()
        except OSError as error:
            raise storage_error(self.folder / "stop", error) from error

    @property
    def has_card(self) -> bool:
        """Whether it has its turn at the graphics card, and lives."""
        events = self.events()
        begun = max((n for n, event in enumerate(events) if event["kind"] == "queued"), default=None)
        if begun is None or not any(event["kind"] == "turn" for event in events[begun:]):
            return False
        return self.status().state in ("queued", "running", "stopping")

    @property
    def has_hold(self) -> bool:
        """Whether ComfyUI's queue waits while this job has the graphics card."""
        return (self.folder / "hold").exists()

    def hold(self, wanted: bool) -> None:
        """Let ComfyUI's queue wait while this job has the graphics card, or not."""
        path = self.folder / "hold"
        try:
            path.touch() if wanted else path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error

    @property
    def stop_wanted(self) -> bool:
        return (self.folder / "stop").exists()

    def forget_stop(self) -> None:
        (self.folder / "stop").unlink(missing_ok=True)

    # --- status

    def status(self) -> Status:
        """Derived anew from events, files and the process that wrote them; a dead process is never running."""
        return status_of(self.events(), result_of=self._result_problem, stop_wanted=self.stop_wanted)

    def _result_problem(self, event: Event) -> str:
        """Why a job that said it was done is not."""
        path = self.folder / str(event.get("result", ""))
        if not path.is_file() or path.stat().st_size != event.get("bytes"):
            return (
                f"The LoRA of this job ({path.name}) is gone or was changed. Queue Train LoRA again: it goes on from the last checkpoint."
            )
        return ""

    def losses(self) -> list[tuple[int, float]]:
        """Step and loss, ascending. Steps that a resume repeated count once, with their last value."""
        return losses_of(self.events())

    def validations(self) -> list[tuple[int, float]]:
        """The same of the loss on held-out examples."""
        return losses_of(self.events(), "validation")

    @property
    def peak_bytes(self) -> int | None:
        """The most memory the run took, as far as it was measured."""
        return max((event["peak_bytes"] for event in self.events() if event["kind"] == "memory"), default=None)

    def pace_s(self) -> float | None:
        """Seconds per step of late, also of a job that is over."""
        return _pace([event for event in self.events() if event["kind"] == "step"])

    def sampled(self) -> list[tuple[int, int, Path]]:
        """Step, number of the prompt, file: of samples that are there."""
        told = {(event["step"], event["prompt"]): self.folder / event["file"] for event in self.events() if event["kind"] == "sample"}
        return [(step, prompt, path) for (step, prompt), path in sorted(told.items()) if path.is_file()]


def status_of(events: Sequence[Event], *, result_of: Any, stop_wanted: bool) -> Status:
    """The status that these events come to."""
    lives = [event for event in events if event["kind"] in _LIVES]
    if not lives:
        return Status("new")
    last = lives[-1]
    steps = [event for event in events if event["kind"] == "step"]
    begun = max((n for n, event in enumerate(events) if event["kind"] in ("queued", "started")), default=0)
    current = [event for event in events[begun:] if event["kind"] == "step"]
    phases = [event for event in events[begun:] if event["kind"] == "phase"]
    started = [event for event in events if event["kind"] == "started"]
    checkpoint = max((event["step"] for event in events if event["kind"] == "checkpoint"), default=0)
    state: State
    cause = ""
    if last["kind"] == "done":
        cause = result_of(last)
        state = "failed" if cause else "done"
    elif last["kind"] in ("failed", "stopped"):
        state, cause = last["kind"], str(last.get("message", ""))
    elif not is_alive(last):
        state = "lost"
        cause = "The worker ended without a word: killed, out of memory or a power cut. Queue Train LoRA again: it goes on from the last checkpoint."
    else:
        state = "stopping" if stop_wanted else "queued" if last["kind"] == "queued" else "running"
    newest = current[-1] if current else steps[-1] if steps and state != "running" else {}
    return Status(
        state,
        step=newest.get("step", checkpoint if state == "running" else 0),
        steps=started[-1].get("steps", 0) if started else 0,
        loss=newest.get("loss"),
        attempts=len(started),
        checkpoint=checkpoint,
        pace_s=_pace(current) if state == "running" else None,
        phase=str(phases[-1].get("name", "")) if phases and state in ("queued", "running") and not current else "",
        cause=cause,
        result=str(last.get("result", "")) if state == "done" else "",
    )


def _pace(steps: Sequence[Event]) -> float | None:
    """Median seconds per step of late: one slow step, such as a sample, does not count."""
    late = [(datetime.fromisoformat(event["at"]).timestamp(), event["step"]) for event in steps[-PACE_OF - 1 :]]
    paces = [(t2 - t1) / (s2 - s1) for (t1, s1), (t2, s2) in pairwise(late) if s2 > s1]
    return median(paces) if paces else None


def losses_of(events: Sequence[Event], kind: str = "step") -> list[tuple[int, float]]:
    """Step and loss, ascending; the last value of a step counts."""
    told = {event["step"]: event["loss"] for event in events if event["kind"] == kind and isinstance(event.get("loss"), (int, float))}
    return sorted(told.items())


def seconds_between(first: Event, second: Event) -> float:
    return (datetime.fromisoformat(second["at"]) - datetime.fromisoformat(first["at"])).total_seconds()


def identity() -> dict[str, Any]:
    """This process, as events name it: process ids are used again, start times are not."""
    return {"pid": os.getpid(), "created": psutil.Process().create_time()}


def process_of(event: Event) -> psutil.Process | None:
    """The process an event names, if that very process still lives."""
    try:
        process = psutil.Process(event["pid"])
        same = abs(process.create_time() - event["created"]) < SAME_START_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None


def is_alive(event: Event) -> bool:
    return process_of(event) is not None


def find_or_create(project_root: Path, spec: TrainingSpec, places: Places | None = None) -> Job:
    """The job of this spec. The same spec is the same job; its folder is written whole or not at all.

    Raises:
        JobError: the folder is there, but describes something else.
        StorageError: the disk refused.
    """
    job = Job(project_root / "jobs" / spec.id)
    if (job.folder / "job.json").is_file():
        _ = job.spec
    else:
        write_json(job.folder / "job.json", {"schema": SCHEMA, "id": spec.id, "spec": spec.as_json()})
    if places is not None:
        told = {
            "loras": str(places.loras) if places.loras else None,
            "models": [str(path) for path in places.models],
            "comfyui": str(places.comfyui) if places.comfyui else None,
            "near": [str(path) for path in places.near],
            "address": places.address,
        }
        write_json(job.folder / "places.json", told)
    return job


def jobs_of(project: Project) -> list[Job]:
    """Every job of a project, the oldest first."""
    folder = project.root / "jobs"
    found = [Job(entry) for entry in folder.iterdir() if (entry / "job.json").is_file()] if folder.is_dir() else []
    return sorted(found, key=lambda job: ((job.folder / "job.json").stat().st_mtime_ns, job.id))


def revision(job: Job) -> list[Any]:
    """Changes when the job does something or stops doing it: cheap, for asking often."""
    try:
        size = (job.folder / "events.jsonl").stat().st_size
    except FileNotFoundError:
        size = 0
    try:
        return [job.id, size, job.status().state]
    except FlywheelError as error:
        return [job.id, size, str(error)]
