"""Running jobs: start one in a process of its own, find it again, stop it; and what the worker does. Needs no torch by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from ..flywheel.errors import FlywheelError
from ..flywheel.images import storage_error, write_json, write_whole
from . import engines, gauge, hand_over, preflight, presets, proof, turns
from . import job as jobs
from .errors import JobError, SpecError, Stopped, TrainingFailed
from .job import Job, Places, Status, identity, process_of
from .spec import TrainingSpec, from_json

log = logging.getLogger("flenwheel")

START_S = 60.0
LEAVE_S = 30.0
WINDOWS = sys.platform == "win32"
# CREATE_NEW_PROCESS_GROUP and CREATE_NO_WINDOW: not of ComfyUI's console, which takes along all that is in it when it is closed
APART = 0x08000200
PACK = Path(__file__).resolve().parent
RESERVE, RESERVED = "reserve", 16 << 10  # bytes that are given back when the disk is full, so that the last words can be written
LESS = "Choose the next smaller memory profile, or a lower resolution, and train again."


def start(job: Job, *, python: Path | None = None, hours: str = "") -> Status:
    """Start the job's worker, unless it runs or is done, and answer how the job stands once the worker has spoken.

    Raises:
        JobError, SpecError: the job's folder or `hours` make no sense.
        TrainingFailed: the worker did not start; the text holds what it said.
    """
    _ = job.spec
    turns.window(hours)
    status = job.status()
    if status.state == "done" or not (status.is_over or status.state == "new"):
        return status
    job.forget_stop()
    before = len(job.events())
    process = _spawn(job, python or Path(sys.executable), hours)
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if len(job.events()) > before:
            return job.status()
        if process.poll() is not None and len(job.events()) == before:
            break
        time.sleep(0.05)
    if (status := job.status()).state in ("queued", "running"):
        return status  # somebody else was faster
    tail = tuple(job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]) if job.log.is_file() else ()
    raise TrainingFailed("unknown", f"The worker of job {job.id} did not start.", f"Read {job.log}.", tail)


def _spawn(job: Job, python: Path, hours: str) -> subprocess.Popen[bytes]:
    """The worker in a process group of its own: it outlives us, and a Ctrl+C for us is none for it. Its threads hold no core while they wait: beside
    anything else that is at work a step took ten times as long."""
    arguments = [str(python), str(PACK), str(job.folder), *(["--hours", hours] if hours.strip() else [])]
    try:
        output = job.log.open("ab")
    except OSError as error:
        raise storage_error(job.log, error) from error
    with output:
        process = subprocess.Popen(
            arguments,
            cwd=job.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUTF8": "1", **os.environ},
            start_new_session=not WINDOWS,
            creationflags=APART if WINDOWS else 0,
        )
    threading.Thread(target=process.wait, name=f"reaper of job {job.id}", daemon=True).start()  # or it would stay a zombie
    return process


def stop(job: Job) -> Status:
    """Ask a job to end at the next step boundary. One that does not run is left as it is; a trainer without its worker is ended."""
    status = job.status()
    if status.is_over or status.state == "new":
        _end_orphans(job)
    else:
        job.ask_to_stop()
    return job.status()


def wait(job: Job, timeout_s: float) -> Status:
    """How the job stands when nobody works on it any more, or after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while (status := job.status()).state in ("queued", "running", "stopping") and time.monotonic() < until:
        time.sleep(0.1)
    return status


# --- the worker


def work(job: Job, hours: str = "") -> int:
    """Do the job: preflight, a turn at the GPU, training, proof, registration. Answers the exit code; the events say what happened.

    Every way out leaves an event; only a kill leaves none, and then the status is `lost`.
    """
    with _alone(job) as alone:
        if not alone:
            log.info("job %s already has a worker", job.id)
            return 0
        job.append("queued", hours=hours.strip(), **identity())
        try:
            write_whole(job.folder / RESERVE, bytes(RESERVED))
            _end_orphans(job)
            told = preflight.check(job)
            for note in (*told.facts, *told.warnings):
                job.append("note", text=note)
            with _turn(job, hours):
                finished = _train(job)
        except MemoryError as error:
            return _failed(job, TrainingFailed("memory", f"The memory was not enough ({error or 'out of memory'}).", LESS))
        except Stopped:
            job.append("stopped", step=job.status().step, message="Stopped as asked. Queue Train LoRA again to go on.")
            return 0
        except TrainingFailed as error:
            return _failed(job, error)
        except FlywheelError as error:
            return _failed(job, TrainingFailed(type(error).__name__, str(error), ""))
        except BaseException as error:
            if type(error).__name__ == "OutOfMemoryError":  # torch's: not imported for its name
                return _failed(job, TrainingFailed("memory", f"The memory was not enough ({str(error).splitlines()[0]}).", LESS))
            log.exception("job %s", job.id)
            _failed(
                job,
                TrainingFailed(
                    "unknown", f"The trainer broke off: {type(error).__name__}: {error}.", f"Read {job.log.name} in the job's folder."
                ),
            )
            raise
        job.append("done", **finished)
        (job.folder / RESERVE).unlink(missing_ok=True)
        try:
            if following := train_after(job):
                job.append("note", text=f"it fits: job {following.id} trains")
        except FlywheelError as error:
            job.append("note", text=f"it fits, but the training did not start: {error}")
        return 0


@contextlib.contextmanager
def _alone(job: Job) -> Iterator[bool]:
    """Whether this worker is the job's only one. One that has just told its end may still be leaving: it is waited for."""
    until = time.monotonic() + LEAVE_S
    while True:
        with turns.lock(job.folder / "worker.lock") as held:
            if held:
                yield True
                return
        if job.status().state in ("queued", "running", "stopping") or time.monotonic() > until:
            yield False
            return
        time.sleep(0.1)


@contextlib.contextmanager
def _turn(job: Job, hours: str) -> Iterator[None]:
    told: set[str] = set()

    def waiting(reason: str) -> None:
        if job.stop_wanted:
            raise Stopped
        if reason not in told:
            told.add(reason)
            job.append("phase", name=reason)

    uses_card = engines.uses_card(job.spec)
    if not uses_card and not hours:
        yield
        return
    with turns.turn(turns.gpu_folder(), turns.window(hours), waiting):
        if uses_card:
            job.append("turn")
            hand_over.take_over(job, waiting)
        yield


def _train(job: Job) -> dict[str, object]:
    """The facts of the done event."""
    spec = job.spec
    attempt = job.status().attempts + 1
    job.append("started", **identity(), engine=spec.engine, attempt=attempt, steps=spec.steps)
    engine = engines.engine(spec.engine)
    versions = engines.versions(job)
    with gauge.measured(job, on_card=engine.uses_gpu):
        made = engine.train(job)
    versions = versions or engines.versions(job)
    job.append("phase", name="proving that it loads")
    fitted = proof.prove(made, spec.architecture, engine.layers(job) if isinstance(engine, engines.KnowsLayers) else None)
    rank = max((layer.rank for layer in fitted.placed.values() if layer.rank), default=spec.rank)
    facts = {
        "project": spec.project,
        "kind": spec.kind,
        "architecture": spec.architecture,
        "base_model": PureWindowsPath(spec.base_model).name,  # which takes both kinds of strokes
        "engine": spec.engine,
        "rank": str(rank),
        "alpha": f"{proof.alpha(fitted, rank):g}",
        "steps": str(spec.steps),
        "instance_token": spec.instance_token,
        "class_noun": spec.class_noun,
        "dataset": spec.dataset_key,
        "job": job.id,
        **({"versions": versions} if versions else {}),
    }
    content = proof.marked(made, facts)
    result = job.folder / "result" / f"{spec.project}-{spec.kind}-{job.id}.safetensors"
    write_whole(result, content)
    if made != result and made.parent == result.parent:
        made.unlink()
    name = ""
    if loras := job.places.loras:
        name = proof.register(result, loras, spec.project, spec.kind, job.id).relative_to(loras).as_posix()
    return {
        "result": result.relative_to(job.folder).as_posix(),
        "bytes": len(content),
        "sha256": proof.sha256(result),
        "layers": len(fitted.placed),
        "rank": rank,
        "registered": name,
    }


def _failed(job: Job, error: TrainingFailed) -> int:
    (job.folder / RESERVE).unlink(missing_ok=True)
    smaller = presets.lighter(job.spec) if error.code == "memory" else None
    if smaller:
        error.advice += f" The next smaller is {smaller[1]}."
    job.append("failed", code=error.code, message=f"{error.cause} {error.advice}".strip(), tail=list(error.tail), step=job.status().step)
    whole, then = _tried(job)
    if smaller and whole and (lighter := presets.lighter(whole)):
        following = dry_run(job.folder.parent.parent, lighter[0], job.places, then)
        job.append("tried lighter", job=following.id, words=lighter[1])
        start(following)
    return 1


# --- dry runs


@dataclasses.dataclass(frozen=True, slots=True)
class Then:
    """That a dry run which fits is followed by the training itself: where its LoRA is registered, in which hours, whether ComfyUI waits."""

    loras: str
    hours: str
    hold: bool


def dry_run(project_root: Path, spec: TrainingSpec, places: Places, then: Then | None = None) -> Job:
    """The job that tries `spec` for a few steps; what it makes is proved, but registered nowhere."""
    job = jobs.find_or_create(project_root, presets.dry(spec), dataclasses.replace(places, loras=None))
    write_json(job.folder / "dry.json", {"tries": spec.as_json(), "then": dataclasses.asdict(then) if then else None})
    return job


def train_after(job: Job) -> Job | None:
    """Start the training that a finished dry run was asked to go on with, unless it runs or is done; None where it was asked for none.

    Raises:
        JobError, TrainingFailed: as `start`.
    """
    whole, then = _tried(job)
    if whole is None or then is None:
        return None
    places = dataclasses.replace(job.places, loras=Path(then.loras) if then.loras else None)
    following = jobs.find_or_create(job.folder.parent.parent, whole, places)
    following.hold(then.hold and engines.uses_card(whole))
    start(following, hours=then.hours)
    return following


def rehearsed(job: Job) -> TrainingSpec | None:
    """What a dry run is for; None where the job is none."""
    return _tried(job)[0]


def _tried(job: Job) -> tuple[TrainingSpec | None, Then | None]:
    try:
        told = json.loads((job.folder / "dry.json").read_text(encoding="utf-8"))
        return from_json(told["tries"]), Then(**told["then"]) if told.get("then") else None
    except FileNotFoundError:
        return None, None
    except (ValueError, KeyError, TypeError, SpecError) as error:
        raise JobError(f"dry.json of job {job.id} cannot be read ({error}). Delete it and queue the dry run again.") from error


def last_tried(job: Job) -> tuple[Job, tuple[str, ...]]:
    """The last of the dry runs that followed when memory was short, and what each changed, in words."""
    words: list[str] = []
    seen = {job.id}
    while (told := [event for event in job.events() if event["kind"] == "tried lighter"]) and str(told[-1].get("job")) not in seen:
        following = Job(job.folder.parent / str(told[-1]["job"]))
        if not following.id.isalnum() or not (following.folder / "job.json").is_file():
            break
        words.append(str(told[-1].get("words", "")))
        seen.add(following.id)
        job = following
    return job, tuple(words)


def _end_orphans(job: Job) -> None:
    """A trainer whose worker was killed still holds the GPU: it is ended before anything else."""
    for event in job.events():
        if event["kind"] == "launched" and (process := process_of(event)) is not None:
            log.warning("job %s: the trainer of an earlier attempt still runs (process %s) and is ended", job.id, process.pid)
            job.append("note", text=f"ended the trainer of an earlier attempt (process {process.pid})")
            turns.end_group(process)


# --- what came of it


def result_of(job: Job) -> proof.LoraRef:
    """The LoRA of a job that is done; registered again where its copy in the LoRA folder was removed.

    Raises:
        TrainingFailed: the job is not done.
    """
    status = job.status()
    if status.state != "done":
        raise TrainingFailed("unknown", f"Job {job.id} is {status.state}. {status.cause}", "")
    spec, places = job.spec, job.places
    done = [event for event in job.events() if event["kind"] == "done"][-1]
    path = job.folder / status.result
    if places.loras:
        path = places.loras / str(done.get("registered") or ".")
        if not path.is_file():
            path = proof.register(job.folder / status.result, places.loras, spec.project, spec.kind, job.id)
    return proof.LoraRef(
        path,
        str(done["sha256"]),
        spec.kind,
        spec.architecture,
        int(done["rank"]),
        spec.instance_token,
        job.id,
        spec.dataset_key,
        int(done["layers"]),
    )
