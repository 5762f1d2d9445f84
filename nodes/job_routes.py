"""HTTP for the trainings: the Jobs page, the live monitor, and scripts. JSON in and out, ids instead of paths, everything inside a project.

J stands for /flenwheel/jobs/{project}/{id}. Errors are {"error": "…"} in words.

  GET  /flenwheel/jobs                {"jobs": [JOB] the newest first, "card": text|null, "waits": id of the job that ComfyUI's queue waits for|null}
  GET  /flenwheel/jobs/page           the page
  GET  J?since=N                      JOB and DETAILS of the events from number N on; "events" says which number to ask for next
  GET  J/sample/{step}/{prompt}       a sample image; &size=256 makes it smaller
  GET  J/config/{name}                a config file the engine was given, as text
  GET  J/try                          {"name": LoRA, "workflow": graph that shows it with and without; null where none is bundled for its kind}
  POST J/stop   {}                    end at the next step boundary → JOB
  POST J/start  {"hours": ""}         go on, or start again, by our own worker; 409 when that makes no sense → JOB
  POST J/open   {}                    show its folder in the file manager, for a person at this machine; 409 for others, and where there is none → JOB
  POST J/hold   {"hold": true}        let ComfyUI's queue wait while it has the graphics card → JOB
  GET  /flenwheel/web/{folder}/{name} the pages' modules

JOB      {"project", "name": of the project, "id", "kind", "engine", "architecture", "base_model", "rank", "steps", "step", "state", "phase", "loss", "pace_s",
         "left_s", "checkpoint", "attempts", "cause", "created", "hours", "place": in the queue for the graphics card from 1|null, "dry", "hold", "uses_card",
         "peak_bytes", "registered": name in LoRA loaders|"", "problem": why its folder cannot be read|""}
DETAILS  {"from", "events", "losses": [[steps], [losses]], "validation": [[steps], [losses]], "checkpoints": [steps], "samples": [{"step", "prompt", "v"}],
         "prompts": [texts], "notes": [texts], "log": [lines], "tail": [last meaningful lines of a failure], "folder": its path, for a person, "can_open": whether J/open works for the asker,
         "configs": [names],
         "damaged": number of unreadable lines, "tried": [{"id", "words"}] dry runs that followed, "engine_says": facts}
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from aiohttp import web
from PIL import Image

from ..flywheel.errors import DatasetError, FlywheelError
from ..flywheel.images import open_image
from ..flywheel.project import Project
from ..training import card, engines, run, turns
from ..training import job as jobs
from ..training.errors import TrainingError
from . import file_manager, host, jobs_here, queue_gate
from .http import FRESH, IMMUTABLE, Conflict, NotFound, guarded, is_this_machine, json_body, problem, project_of

WEB = Path(__file__).parent.parent / "web"
WORKFLOWS = Path(__file__).parent.parent / "workflows"
LORA_NODE, BUNDLED_WORDS = "This LoRA", "ohwx_char person"  # in the bundled test scenes
JOB = "/flenwheel/jobs/{project}/{id}"
LOG_LINES, LOG_BYTES = 200, 64 << 10
MAX_CONFIG = 1 << 20
SIZES = range(16, 2049)


def register(routes: web.RouteTableDef) -> None:
    routes.get("/flenwheel/jobs")(guarded(_jobs))
    routes.get("/flenwheel/jobs/page")(guarded(_page))
    routes.get("/flenwheel/web/{folder}/{name}")(guarded(_file))
    routes.get(JOB)(guarded(_job))
    routes.get(JOB + "/sample/{step}/{prompt}")(guarded(_sample))
    routes.get(JOB + "/config/{name}")(guarded(_config))
    routes.get(JOB + "/try")(guarded(_try))
    routes.post(JOB + "/stop")(guarded(partial(_do, _stop)))
    routes.post(JOB + "/start")(guarded(partial(_do, _start)))
    routes.post(JOB + "/hold")(guarded(partial(_do, _hold)))
    routes.post(JOB + "/open")(guarded(_open))


def job_of(request: web.Request) -> tuple[Project, jobs.Job]:
    """The job an address means; it exists."""
    project, name = project_of(request), request.match_info["id"]
    if re.fullmatch(r"[0-9a-f]{1,64}", name):
        one = jobs.Job(project.root / "jobs" / name)
        if one.folder.is_dir():
            return project, one
    raise NotFound(f"The project {project.folder_name!r} has no training {name!r}.")


async def _jobs(_: web.Request) -> web.Response:
    def collect() -> dict[str, Any]:
        waiting = turns.waiting(turns.gpu_folder())
        told = [_told(project, one, waiting) for project, one in jobs_here.all_jobs()]
        seen = card.look() if any(job["uses_card"] and job["state"] in ("running", "stopping") for job in told) else None
        holder = queue_gate.holder()
        return {
            "jobs": sorted(told, key=lambda job: job["created"], reverse=True),
            "card": str(seen) if seen else None,
            "waits": holder.id if holder else None,
        }

    return web.json_response(await asyncio.to_thread(collect), headers=FRESH)


async def _page(_: web.Request) -> web.StreamResponse:
    return web.FileResponse(WEB / "jobs.html", headers=FRESH)


async def _file(request: web.Request) -> web.StreamResponse:
    folder, name = request.match_info["folder"], request.match_info["name"]
    files = {path.name: path for path in (WEB / folder).iterdir() if path.is_file()} if folder in ("review", "jobs", "pairs") else {}
    if name not in files:
        raise NotFound(f"There is no {folder}/{name}.")
    return web.FileResponse(files[name], headers=FRESH)


async def _job(request: web.Request) -> web.Response:
    project, one = job_of(request)
    since = request.query.get("since", "0")
    described = await asyncio.to_thread(_described, project, one, int(since) if since.isdigit() else 0)
    return web.json_response({**described, "can_open": _may_open(request)}, headers=FRESH)


def _may_open(request: web.Request) -> bool:
    return is_this_machine(request) and file_manager.program() is not None


async def _open(request: web.Request) -> web.Response:
    if not _may_open(request):
        raise Conflict("The folder can be opened only by a person at the machine that ComfyUI runs on, where it has a file manager.")

    def show(one: jobs.Job, _: dict[str, Any]) -> None:
        file_manager.show(one.folder)

    return await _do(show, request)


def _told(project: Project, one: jobs.Job, waiting: list[int]) -> dict[str, Any]:
    """One line of the list."""
    told: dict[str, Any] = {
        **{name: "" for name in ("kind", "engine", "architecture", "base_model", "phase", "cause", "hours", "registered", "problem")},
        **{name: None for name in ("rank", "loss", "pace_s", "left_s", "place", "peak_bytes")},
        **{name: 0 for name in ("steps", "step", "checkpoint", "attempts")},
        "dry": (one.folder / "dry.json").is_file(),
        "hold": one.has_hold,
        "uses_card": False,
        "state": "failed",
        "project": project.folder_name,
        "name": project.name,
        "id": one.id,
        "created": int((one.folder / "job.json").stat().st_mtime) if (one.folder / "job.json").is_file() else 0,
    }
    try:
        spec, status, events = one.spec, one.status(), one.events()
    except FlywheelError as error:
        return {**told, "problem": str(error), "cause": str(error)}
    queued = next((event for event in reversed(events) if event["kind"] == "queued"), {})
    done = next((event for event in reversed(events) if event["kind"] == "done"), {})
    place = waiting.index(queued["pid"]) + 1 if status.state == "queued" and queued.get("pid") in waiting else None
    return {
        **told,
        **{name: getattr(spec, name) for name in ("kind", "engine", "architecture", "base_model", "rank", "steps")},
        **{
            name: getattr(status, name)
            for name in ("state", "step", "phase", "loss", "pace_s", "left_s", "checkpoint", "attempts", "cause")
        },
        "uses_card": engines.uses_card(spec),
        "hours": str(queued.get("hours", "")),
        "place": place,
        "peak_bytes": one.peak_bytes,
        "registered": str(done.get("registered", "")) if status.state == "done" else "",
    }


def _described(project: Project, one: jobs.Job, since: int) -> dict[str, Any]:
    told, events = _told(project, one, turns.waiting(turns.gpu_folder())), one.events()
    begin = since if 0 <= since <= len(events) else 0
    new = events[begin:]
    failed = next((event for event in reversed(events) if event["kind"] in ("failed", "queued")), {})
    prompts = list(one.spec.sample_prompts) if not told["problem"] else []
    config = one.folder / "config"
    return {
        **told,
        "from": begin,
        "events": len(events),
        "losses": _columns(jobs.losses_of(new)),
        "validation": _columns(jobs.losses_of(new, "validation")),
        "checkpoints": sorted({event["step"] for event in new if event["kind"] == "checkpoint"}),
        "samples": [{"step": step, "prompt": prompt, "v": path.stat().st_mtime_ns % 10**12} for step, prompt, path in one.sampled()],
        "prompts": prompts,
        "notes": [event["text"] for event in events if event["kind"] == "note" and isinstance(event.get("text"), str)][-20:],
        "log": jobs_here.log_lines(one, LOG_LINES, LOG_BYTES),
        "tail": [str(line) for line in failed.get("tail", [])] if failed.get("kind") == "failed" else [],
        "folder": str(one.folder),
        "configs": sorted(path.name for path in config.iterdir() if path.is_file()) if config.is_dir() else [],
        "damaged": one.damaged_lines,
        "tried": [{"id": str(event.get("job")), "words": str(event.get("words"))} for event in events if event["kind"] == "tried lighter"],
    }


def _columns(pairs: list[tuple[int, float]]) -> list[list[float]]:
    """JSON knows no NaN: such values are left out."""
    finite = [(step, loss) for step, loss in pairs if loss == loss and abs(loss) != float("inf")]
    return [[step for step, _ in finite], [loss for _, loss in finite]]


async def _sample(request: web.Request) -> web.StreamResponse:
    _, one = job_of(request)
    step, prompt, size = request.match_info["step"], request.match_info["prompt"], request.query.get("size", "")
    if not (step.isdigit() and prompt.isdigit()):
        raise NotFound("A sample is named by its step and the number of its prompt.")
    path = next((path for at, number, path in one.sampled() if (at, number) == (int(step), int(prompt))), None)
    if path is None or not path.resolve().is_relative_to(one.folder.resolve()):
        raise NotFound(f"Job {one.id} has no sample of prompt {prompt} at step {step}.")
    if not size:
        return web.FileResponse(path, headers=IMMUTABLE)
    if not size.isdigit() or int(size) not in SIZES:
        raise DatasetError(f"size is {size!r}: it must be a number of pixels from {SIZES.start} to {SIZES.stop - 1}.")
    body = await asyncio.to_thread(_smaller, path, int(size))
    return web.Response(body=body, content_type="image/webp", headers=IMMUTABLE)


def _smaller(path: Path, size_px: int) -> bytes:
    image = open_image(path, at_least=size_px).image
    image.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.convert("RGB").save(out, "WEBP", quality=85, method=2)
    return out.getvalue()


async def _config(request: web.Request) -> web.StreamResponse:
    _, one = job_of(request)
    folder, name = one.folder / "config", request.match_info["name"]
    files = {path.name: path for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}
    if name not in files or files[name].stat().st_size > MAX_CONFIG:
        raise NotFound(f"Job {one.id} has no config file {name!r} to show.")
    return web.Response(text=files[name].read_text(encoding="utf-8", errors="replace"), headers=FRESH)


async def _try(request: web.Request) -> web.Response:
    _, one = job_of(request)
    return web.json_response(await asyncio.to_thread(_scene, one), headers=FRESH)


def _scene(one: jobs.Job) -> dict[str, Any]:
    """The bundled graph for this kind of LoRA, with this LoRA in it."""
    status = one.status()
    if status.state != "done":
        raise Conflict(f"Job {one.id} is {status.state}: there is nothing to try yet.")
    made = run.result_of(one)
    name = made.path.relative_to(one.places.loras).as_posix() if one.places.loras else ""
    if not name:
        raise Conflict("A dry run registers nothing: train it first.")
    path = WORKFLOWS / ("try_this_lora.json" if made.architecture == "flux1" else "try_this_edit_lora.json")
    if not path.is_file():
        return {"name": name, "workflow": None}
    spoken = f"{made.instance_token} {one.spec.class_noun}"
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        values = node.get("widgets_values", [])
        if node["title"] == LORA_NODE:
            values = [name, *values[1:]]
        node["widgets_values"] = [value.replace(BUNDLED_WORDS, spoken) if isinstance(value, str) else value for value in values]
    return {"name": name, "workflow": workflow}


async def _do(action: Callable[[jobs.Job, dict[str, Any]], None], request: web.Request) -> web.Response:
    (project, one), body = job_of(request), await json_body(request)
    try:
        await asyncio.to_thread(action, one, body)
    except TrainingError as error:
        return problem(409, str(error))
    told = await asyncio.to_thread(_told, project, one, turns.waiting(turns.gpu_folder()))
    host.broadcast("flenwheel.jobs", {"project": project.folder_name, "id": one.id, "state": told["state"]})
    return web.json_response(told, headers=FRESH)


def _stop(one: jobs.Job, _: dict[str, Any]) -> None:
    run.stop(one)


def _start(one: jobs.Job, body: dict[str, Any]) -> None:
    hours = body.get("hours", "")
    if not isinstance(hours, str) or len(hours) > 20:
        raise DatasetError("hours must be a text such as 22:00-07:00, or empty.")
    status = one.status()
    if status.state == "done":
        raise Conflict(f"Job {one.id} is done already.")
    if not (status.is_over or status.state == "new"):
        raise Conflict(f"Job {one.id} is {status.state} already.")
    run.start(one, hours=hours)


def _hold(one: jobs.Job, body: dict[str, Any]) -> None:
    if not isinstance(body.get("hold"), bool):
        raise DatasetError('The body must be {"hold": true} or {"hold": false}.')
    one.hold(cast(bool, body["hold"]))
