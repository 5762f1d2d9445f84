"""HTTP for the review page and for scripts. JSON in and out, ids instead of paths, everything inside a project.

    GET  /flenwheel/projects
    GET  /flenwheel/review                                      the page
    GET  /flenwheel/review/{project}/{stage}/{version}          items, counts, revision
    POST /flenwheel/review/{project}/{stage}/{version}/labels   {"reviewer": …, "origin": …, "events": [{"id", "key", "label", "reasons", "note"}]}
    GET  /flenwheel/review/{project}/{stage}/{version}/history/{key}
    POST /flenwheel/review/{project}/{stage}/{version}/continue
    GET  /flenwheel/image/{project}/{stage}/{version}/{key}     ?size=thumb|full

No route names a path or starts a process. Work on files runs in threads, so that ComfyUI's event loop stays free.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import execution
from aiohttp import web
from comfy.cli_args import args
from server import PromptServer

from ..flywheel import identity, review
from ..flywheel.candidates import Shelf
from ..flywheel.errors import DatasetError, FlywheelError, ProjectError, StorageError
from ..flywheel.images import content_key, open_image, write_whole
from ..flywheel.project import STAGES, Project, Stage, is_folder_name, load_project
from . import host

WEB = Path(__file__).parent.parent / "web"
THUMB_PX = 384
MAX_EVENTS, MAX_NOTE, MAX_NAME = 5_000, 2_000, 100
IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}
FRESH = {"Cache-Control": "no-store"}
REVIEWED = ("enriched", "synthetic")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class NotFound(FlywheelError):
    """There is nothing under this address."""


def register() -> None:
    """Add the routes to ComfyUI's server."""
    routes = PromptServer.instance.routes
    where = "/{project}/{stage}/{version}"
    routes.get("/flenwheel/projects")(_guarded(_projects))
    routes.get("/flenwheel/review")(_guarded(_page))
    routes.get("/flenwheel/review/files/{name}")(_guarded(_page_file))
    routes.get("/flenwheel/review" + where)(_guarded(_items))
    routes.post("/flenwheel/review" + where + "/labels")(_guarded(_label))
    routes.get("/flenwheel/review" + where + "/history/{key}")(_guarded(_history))
    routes.post("/flenwheel/review" + where + "/continue")(_guarded(_continue))
    routes.get("/flenwheel/image" + where + "/{key}")(_guarded(_image))


def review_address(stage: Stage) -> str:
    """Address of the review page for a person at this machine."""
    server = PromptServer.instance
    where = urlencode({"project": stage.project.folder_name, "stage": stage.name, "version": stage.project.version}, quote_via=quote)
    listening = getattr(server, "address", None) or "127.0.0.1"
    return f"http://{'127.0.0.1' if listening in ('0.0.0.0', '::') else listening}:{getattr(server, 'port', 8188)}/flenwheel/review?{where}"


def review_state(stage: Stage, counts: dict[str, int]) -> dict[str, Any]:
    """What other tabs need to know: which review, how far, and whether their picture of it is old."""
    return {
        "project": stage.project.folder_name,
        "stage": stage.name,
        "version": stage.project.version,
        "revision": str(review.last_event(stage.project)),
        "counts": counts,
    }


def _guarded(handler: Handler) -> Handler:
    """Errors as JSON in words; no page of another site may read or write here."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        if not _is_local_name(request.host):
            return _problem(403, f"{request.host!r} is not a name of this machine. Use its IP address or localhost.")
        if request.method == "POST" and request.content_type != "application/json":
            return _problem(415, "Send application/json.")  # forces browsers to ask first when another site posts
        try:
            return await handler(request)
        except NotFound as error:
            return _problem(404, str(error))
        except StorageError as error:
            return _problem(507, str(error))  # not the sender's fault: the page keeps its verdicts and tries again
        except FlywheelError as error:
            return _problem(400, str(error))

    return guarded


def _is_local_name(name: str) -> bool:
    """Refuses DNS rebinding: a foreign name that was pointed at this machine. With --listen the user has opened the server to the network."""
    hostname = re.sub(r":\d+$", "", name).strip("[]")
    if hostname == "localhost" or args.listen not in ("127.0.0.1", "localhost", "::1"):
        return True
    try:
        ipaddress.ip_address(hostname)
    except ValueError:
        return False
    return True


def _problem(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status, headers=FRESH)


def _stage(request: web.Request) -> Stage:
    folder, name, version = (request.match_info[part] for part in ("project", "stage", "version"))
    lap = re.fullmatch(r"v([1-9]\d{0,3})", version)
    if not is_folder_name(folder) or name not in STAGES or not lap:
        raise NotFound(f"There is no {name} {version} in a project {folder!r}.")
    try:
        stage = load_project(host.home() / folder, int(lap[1])).stage(name)
    except ProjectError as error:
        raise NotFound(str(error)) from error
    if not stage.folder.is_dir():
        raise NotFound(f"The project {folder!r} has no {name} {version}.")
    return stage


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise DatasetError(f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise DatasetError("The body must be a JSON object.")
    return body


async def _projects(_: web.Request) -> web.Response:
    def collect() -> list[dict[str, Any]]:
        return [{"folder": project.folder_name, "name": project.name, "stages": _overview(project)} for project in host.readable_projects()]

    return web.json_response({"projects": await asyncio.to_thread(collect)}, headers=FRESH)


def _overview(project: Project) -> list[dict[str, Any]]:
    reviews = [(stage, _under_review(stage)) for stage in host.stages_of(project) if stage.name in REVIEWED]
    return [
        {"stage": stage.name, "version": stage.project.version, "total": counts["total"], "undecided": counts["undecided"]}
        for stage, counts in ((stage, _counts(stage, shelf, keys)) for stage, (shelf, keys) in reviews)
    ]


async def _page(_: web.Request) -> web.StreamResponse:
    return web.FileResponse(WEB / "review.html", headers=FRESH)


async def _page_file(request: web.Request) -> web.StreamResponse:
    files = {path.name: path for path in (WEB / "review").iterdir()}
    name = request.match_info["name"]
    if name not in files:
        raise NotFound(f"There is no {name!r}.")
    return web.FileResponse(files[name], headers=FRESH)


async def _items(request: web.Request) -> web.Response:
    stage = _stage(request)
    return web.json_response(await asyncio.to_thread(_described, stage), headers=FRESH)


def _described(stage: Stage) -> dict[str, Any]:
    shelf, keys = _under_review(stage)
    decided = review.labels(stage.project)
    scores = identity.latest_scores(stage.project, [shelf.lineages[key].image_key for key in keys])
    return {
        **review_state(stage, _counts(stage, shelf, keys)),
        "project": {"folder": stage.project.folder_name, "name": stage.project.name, "instance_token": stage.project.instance_token},
        "reasons": review.REASONS,
        "items": [_item(shelf, key, decided, scores) for key in keys],
    }


def _item(
    shelf: Shelf, request_key: str, decided: dict[str, review.LabelEvent], scores: dict[str, identity.IdentityScore]
) -> dict[str, Any]:
    lineage = shelf.lineages[request_key]
    facts, event, score = lineage.facts, decided.get(lineage.image_key), scores.get(lineage.image_key)
    return {
        "key": lineage.image_key,
        "name": shelf.files[request_key].name,
        "width": lineage.width,
        "height": lineage.height,
        "prompt": facts["prompt"],
        "caption": facts["caption"],
        "source": facts["source"],
        "seed": facts["seed"],
        "editor": facts["editor"]["editor"],
        "sample": facts.get("sample", False),
        "label": event.label if event else None,
        "origin": event.origin if event else None,
        "reasons": list(event.reasons) if event else [],
        "note": event.note if event else "",
        "state": score.state if score else None,
        "similarity": score.similarity if score else None,
        "distance": score.distance if score else None,
        "band": identity.band(score.similarity) if score and score.similarity is not None else None,
        "score_note": score.note if score else "",
    }


def _under_review(stage: Stage) -> tuple[Shelf, list[str]]:
    """The shelf after files and verdicts were made to agree, and the request keys under review, in order."""
    shelf = review.follow(stage)
    return shelf, review.keys_under_review(shelf)


def _counts(stage: Stage, shelf: Shelf, keys: list[str]) -> dict[str, int]:
    decided = review.labels(stage.project)
    labels = [decided[key].label if key in decided else None for key in (shelf.lineages[key].image_key for key in keys)]
    return {"total": len(labels), "undecided": labels.count(None), **{label: labels.count(label) for label in review.LABELS}}


async def _label(request: web.Request) -> web.Response:
    stage, body = _stage(request), await _json(request)
    events = _events(body)

    def store() -> dict[str, Any]:
        shelf, keys = _under_review(stage)
        problems = review.problems_of(events, (shelf.lineages[key].image_key for key in keys))
        if problems:
            raise DatasetError("Nothing was stored:", problems)
        review.record(stage.project, events)
        shelf, keys = _under_review(stage)
        return review_state(stage, _counts(stage, shelf, keys))

    state = await asyncio.to_thread(store)
    host.broadcast("flenwheel.review", state)
    return web.json_response({"revision": state["revision"], "counts": state["counts"]}, headers=FRESH)


def _events(body: dict[str, Any]) -> list[review.LabelEvent]:
    described, reviewer, origin = body.get("events"), body.get("reviewer", ""), body.get("origin", "person")
    if (
        not isinstance(described, list)
        or not all(isinstance(event, dict) and isinstance(event.get("key"), str) for event in described)
        or not isinstance(reviewer, str)
        or origin not in ("person", "policy")
    ):
        raise DatasetError('The body must be {"reviewer": "…", "events": [{"key": "…", "label": "good", "reasons": [], "note": ""}, …]}.')
    if len(described) > MAX_EVENTS:
        raise DatasetError(f"{len(described)} verdicts at once are too many; send at most {MAX_EVENTS}.")
    if len(reviewer) > MAX_NAME:
        raise DatasetError(f"The reviewer's name is longer than {MAX_NAME} characters.")
    return [_event(event, reviewer, origin) for event in described]


def _event(described: dict[str, Any], reviewer: str, origin: Any) -> review.LabelEvent:
    label, reasons, note, event_id = described.get("label"), described.get("reasons", []), described.get("note", ""), described.get("id")
    if (
        not isinstance(reasons, list)
        or not isinstance(note, str)
        or len(note) > MAX_NOTE
        or not (label is None or isinstance(label, str))
        or not (event_id is None or (isinstance(event_id, str) and 0 < len(event_id) <= MAX_NAME))
    ):
        raise DatasetError(
            f"The verdict on {described['key']!r} needs a label or null, a list of reasons, a note of at most {MAX_NOTE} characters."
        )
    return review.LabelEvent(described["key"], label, tuple(map(str, reasons)), note, reviewer, origin, event_id=event_id)  # type: ignore[arg-type]


async def _history(request: web.Request) -> web.Response:
    stage = _stage(request)
    events = await asyncio.to_thread(review.history, stage.project, request.match_info["key"])
    told = [
        {
            "label": event.label,
            "reasons": event.reasons,
            "note": event.note,
            "at": event.at,
            "reviewer": event.reviewer,
            "origin": event.origin,
        }
        for event in events
    ]
    return web.json_response({"events": told}, headers=FRESH)


async def _continue(request: web.Request) -> web.Response:
    """Queue the graph that waits for this review once more."""
    stage = _stage(request)
    resume = await asyncio.to_thread(review.resume_of, stage)
    if not resume or not resume["prompt"]:
        return _problem(409, "No graph is known for this review: run the graph with its Review Gate once.")
    prompt_id = str(uuid.uuid4())
    valid, error, outputs, node_errors = await execution.validate_prompt(prompt_id, resume["prompt"], None)
    if not valid or node_errors:
        return _problem(409, f"ComfyUI refuses the graph of this review: {error or node_errors}")
    server = PromptServer.instance
    number, server.number = server.number, server.number + 1
    extra = {"extra_pnginfo": {"workflow": resume["workflow"]}} if resume["workflow"] else {}
    server.prompt_queue.put((number, prompt_id, resume["prompt"], extra, outputs, {}))
    return web.json_response({"queued": prompt_id}, headers=FRESH)


async def _image(request: web.Request) -> web.StreamResponse:
    stage, key, size = _stage(request), request.match_info["key"], request.query.get("size", "full")
    if size != "thumb":
        return web.FileResponse(await asyncio.to_thread(_file, stage, key), headers=IMMUTABLE)
    return web.Response(body=await asyncio.to_thread(_thumbnail, stage, key), content_type="image/webp", headers=IMMUTABLE)


def _file(stage: Stage, key: str) -> Path:
    """The file of an image by its key: of a source through its metadata, of a candidate through its lineage."""
    if stage.name == "source":
        found = next(
            (path for path in stage.folder.iterdir() if path.is_file() and path.suffix != ".json" and content_key(path) == key), None
        )
    else:
        shelf = Shelf(stage)
        found = next((path for made, path in shelf.files.items() if shelf.lineages[made].image_key == key), None)
    if found is None:
        raise NotFound(f"There is no image {key!r} in {stage.name} {stage.project.version}.")
    return found


def _thumbnail(stage: Stage, key: str) -> bytes:
    cached = stage.project.cache / "thumbs" / f"{key}.webp"
    if not re.fullmatch(r"[0-9a-f]{16}", key) or not cached.is_file():
        picture = open_image(_file(stage, key), at_least=THUMB_PX).image
        picture.thumbnail((THUMB_PX, THUMB_PX))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=82, method=2)
        write_whole(cached, buffer.getvalue())
    return cached.read_bytes()
