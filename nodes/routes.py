"""HTTP for the review page and for scripts. JSON in and out, ids instead of paths, everything inside a project.

R stands for /flenwheel/review/{project}/{stage}/{version}; stage is enriched, synthetic, corrections or card. Errors are {"error": "…"} in words.

READING
  GET  /flenwheel/projects        {"projects": [{"folder", "name", "stages": [{"stage", "version", "total", "undecided"}]}], "undecided": all of them}
  GET  /flenwheel/review          the page; /flenwheel/review/files/{name} its modules
  GET  R?pass=first&reviewer=Ada  the review as one pass sees it, see STATE. &blind=1 hides what could sway. &since=REVISION: only items changed since.
                                  &walk=0: do not look at every file, unless a folder has changed. &head=48: where there are ten times as many, the first undecided
                                  items from where this reviewer stopped, and "more": how many there are beside; for a page that shows something at once
  GET  R/evidence/{key}           all that is known of one image, see EVIDENCE; made on demand, so the list stays light
  GET  R/pulse                    {"revision", "disk"}: cheap, to ask now and then; `disk` changes when files came, went or were moved by others. &walk=1:
                                  look at every file, as R does
  GET  R/history/{key}            {"events": [{"id", "label", "reasons", "note", "answers", "pass", "batch", "at", "reviewer", "origin", "undone"}]}
  GET  R/agreement?reviewer=Ada   how often the repeat (or strict) pass said what the first had said, see AGREEMENT
  GET  R/coverage                 {"angle": [{"value", "sources", "good", "picked"}], "expression": […], "missing": ["angle left profile", …], "picked": n}
  GET  R/report.html?label=good…  a self-contained page of what a filter shows (see FILTER); R/sheet.png the same as a contact sheet
  GET  /flenwheel/image/{project}/{stage}/{version}/{key}?size=256|512|1024|full   WebP thumbnails, made once; full is the file. Stage may be source.
                                  410: the file was changed on disk since; 404: it is gone; 422: it cannot be decoded
DECIDING
  POST R/labels   {"reviewer", "pass": "first", "origin": "person"|"policy", "batch": "optional id", "preview": false,
                   "events": [{"id", "key", "label": "good"|"needs_correction"|"reject"|null, "reasons": [], "note": "", "answers": {}}]}
                  One request is one undo step, unless events name their own: {"batch": "…", …}. `id` makes sending again harmless. A strict
                  verdict other than good needs a reason. "policy" only touches undecided images; the others come back in
                  "left_alone". "preview": true stores nothing and answers {"would": [{"key", "from", "to"}], "left_alone": […]}. Else → ANSWER
  POST R/undo     {"reviewer", "pass", "batch": the id shown as next undo, optional}   → ANSWER + {"undone": STEP}; 409 when there is nothing
  POST R/redo     {"reviewer", "pass", "batch"}                                        → ANSWER + {"redone": STEP}
  POST R/session  {"reviewer", "key", "pass", "place", "filter": {…}}                  where the reviewer is: "you stopped at" of the next visit
  POST R/continue {"client_id": of the ComfyUI tab that shall see the run, optional}   → {"queued": prompt id}; 409 when no graph is known
REPAIRING
  GET  R/repair                   {"orders": [ORDER], "phrases": {reason: words}}
  GET  R/repair/prompt/{key}      {"prompt": proposed from the reasons and note on that image, "from": "source"|"candidate"}
  POST R/repair                   {"reviewer", "id": optional, "key", "prompt", "seeds": [1, 2] or "count": 2, "from": "source"|"candidate",
                                   "mask": mask id or null} → {"order": ORDER}. The node Repair Candidates carries the orders out.
  DELETE R/repair/{id}            takes an order back → {"order": ORDER}
  PUT  R/mask/{key}               a PNG of the image's size, white where it shall be repainted → {"mask": mask id}; GET R/mask/{key}/{mask id}
  PUT  R/corrected/{key}?reviewer=Ada   an image file corrected by hand (at most 64 MB) → {"corrected": {"stage": "corrections", "key", "name"}}
                                  Files saved as data/corrections/<version>/<key or name of the image>.* are found by themselves.
  POST R/editing/{key}   {}       a working copy for another program → {"name", "path"}; what is saved there is found by itself. 403 from elsewhere.
EXPORT, VIEWS
  POST R/export   {"keys": […], "format": "html"|"png", "title": ""}           → the file (for filters that only the page knows)
  GET  /flenwheel/spread/{id}        what Identity Filter would keep, see spread_routes.py; /flenwheel/captions/… see caption_routes.py
  GET  /flenwheel/views/{project}    {"views": [{"name", "filter": {…any JSON of the page…}}]}
  POST /flenwheel/views/{project}    {"name", "filter": {…}} adds or replaces; {"name", "filter": null} deletes → the list

STATE     {"project": {"folder", "name", "instance_token"}, "stage", "version", "revision", "disk", "pass", "blind", "reasons", "questions",
           "counts": {"total", "undecided", "good", "needs_correction", "reject"} of this pass, "passes": {"first": counts, "strict": counts, "repeat": counts},
           "undecided_total": of all projects, "undo": STEP|null, "redo": STEP|null (of ?reviewer), "session": {"key", "place", "at", "filter"}|null,
           "missing": [{"key", "name", "why"}], "partial": true with ?since, "more" with ?head, "items": [ITEM]}
ITEM      {"key", "name", "stage", "width", "height", "prompt", "template", "caption", "source": {"key", "name"}|null, "seed", "editor", "loras": [{"name", "weight"}],
           "generation": 1 = made from a photograph, "lap": 1, "angle", "expression" (null where unknown), "sample",
           "label", "reasons", "note", "reviewer", "origin", "at", "answers"  of the pass asked for,
           "in_force": the label that moves the file (strict before first), "labels": {"first": VERDICT|null, "strict": …, "repeat": …},
           "state", "similarity", "distance", "band", "score_note", "matched": {"name", "key"}|null,
           "suggestion": {"label", "why"}|null: the machine's opinion on an undecided image, never a verdict; "disagreement": "human good, score different"|null,
           "corrects": {"stage", "key", "name"}|null, "corrections": [{"stage", "key", "name", "label"}], "repairs": number of orders waiting}
           Siblings are the items with the same source.key or prompt.
VERDICT   {"label", "reasons", "note", "reviewer", "origin", "at", "answers"}
STEP      {"batch", "count", "label", "keys": the first ten, "name": of the first, "at", "text": "good on anna-forest" or "reject on 12 images"}
ANSWER    {"revision": with this request, "follows": the one just before it, "counts", "undecided_total", "undo", "redo", "left_alone": [],
           "changed": [{"key", "label", "in_force", "labels", …}]}
EVIDENCE  {"key", "lineage": [{"name", "key", "stage", "prompt", "seed", "editor", "loras", "depth"}] from this image back to the photograph, "siblings": {"source": [keys], "prompt": [keys]},
           "quality": {"verdict", "problems": [], "sharpness", "luma", …}, "score": {"reference", "embedder", "faces", …}|null, "references": [{"name", "key", "similarity": to this image|null}],
           "spread": {"low", "high"}: how alike the references are among themselves|null, "crops": {"image": box|null, "matched": box|null} in px, "tries": [], "seconds", "notes"}
AGREEMENT {"first_strict": {"both", "same", "share"}, "first_repeat": {…}, "changed": [{"key", "name", "first", "then"}]}
ORDER     {"id", "key", "name", "prompt", "seeds", "from", "mask", "reviewer", "at", "state": "waiting"|"done"|"failed"|"withdrawn", "problem", "results": [keys in stage corrections]}
FILTER    label, reason, editor, lora, band, angle, expression: comma-separated choices (label has undecided, band has unmeasured); prompt, source, q: part of the text;
          generation=n, disagreement=1, pass=, order=file|uncertain|score, title=
EVENT     websocket "flenwheel.review": {"project" (folder), "stage", "version", "revision", "counts", "undecided_total", "pass", "changed"} after every change

PASSES    first: every image. strict: those the first pass called good; questions character, anatomy, artefacts, gap. repeat: a silent tenth of the decided ones, shown
          blind; it measures the reviewer and moves nothing.
BLIND     items lack name, editor, loras, seed, source, score, suggestion, other passes' verdicts; order is shuffled, the same every time.
TOKEN     listening beyond this machine, every request from elsewhere needs ?token= (kept as a cookie then) from the environment's FLENWHEEL_TOKEN.

No route names a path or starts a process. Work on files runs in threads, so that ComfyUI's event loop stays free.
"""

from __future__ import annotations

import asyncio
import uuid
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode

import execution
from aiohttp import web
from server import PromptServer

from ..flywheel import evidence, ledger, repair, review, views
from ..flywheel.desk import Decided, Desk
from ..flywheel.errors import DatasetError
from ..flywheel.ledger import PASSES, Pass, Position, Step
from ..flywheel.project import Project, Stage
from . import caption_routes, desks, host, picture_routes, repair_routes, spread_routes
from .http import FRESH, Conflict, NotFound, guarded, json_body, packed, problem, project_of, stage_of
from .verdict_requests import MAX_NAME, batch_of, events_of, number_of, pass_of, position_of, text_of

WEB = Path(__file__).parent.parent / "web"
MANY_HEADS = 10
TOLD = 200  # changed items sent along with an event; beyond, the page asks for them
REVIEW = "/flenwheel/review/{project}/{stage}/{version}"


def register() -> None:
    """Add the routes to ComfyUI's server."""
    routes = PromptServer.instance.routes
    routes.get("/flenwheel/projects")(guarded(_projects))
    routes.get("/flenwheel/review")(guarded(_page))
    routes.get("/flenwheel/review/files/{name}")(guarded(_page_file))
    routes.get(REVIEW)(guarded(_items))
    routes.get(REVIEW + "/pulse")(guarded(_pulse))
    routes.get(REVIEW + "/evidence/{key}")(guarded(_evidence))
    routes.get(REVIEW + "/history/{key}")(guarded(_history))
    routes.get(REVIEW + "/agreement")(guarded(_agreement))
    routes.get(REVIEW + "/coverage")(guarded(_coverage))
    routes.post(REVIEW + "/labels")(guarded(_label))
    routes.post(REVIEW + "/undo")(guarded(partial(_turn, undone=True)))
    routes.post(REVIEW + "/redo")(guarded(partial(_turn, undone=False)))
    routes.post(REVIEW + "/session")(guarded(_session))
    routes.post(REVIEW + "/continue")(guarded(_continue))
    routes.get("/flenwheel/views/{project}")(guarded(_views))
    routes.post("/flenwheel/views/{project}")(guarded(_save_view))
    picture_routes.register(routes, REVIEW)
    repair_routes.register(routes, REVIEW)
    spread_routes.register(routes)
    caption_routes.register(routes)


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
        "revision": str(ledger.position(stage.project)),
        "counts": counts,
        "undecided_total": desks.undecided_total(),
    }


async def _projects(_: web.Request) -> web.Response:
    def collect() -> dict[str, Any]:
        found: list[dict[str, Any]] = [
            {"folder": project.folder_name, "name": project.name, "stages": _overview(project)} for project in host.readable_projects()
        ]
        return {"projects": found, "undecided": sum(stage["undecided"] for project in found for stage in project["stages"])}

    return web.json_response(await asyncio.to_thread(collect), headers=FRESH)


def _overview(project: Project) -> list[dict[str, Any]]:
    return [
        {"stage": desk.stage.name, "version": desk.stage.project.version, "total": len(desk.by_image), "undecided": desk.undecided}
        for desk in desks.reviewed(project)
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
    stage, during, query = stage_of(request), pass_of(request.query.get("pass")), request.query
    blind = query.get("blind", "") not in ("", "0") or during == "repeat"
    since, head = position_of(query.get("since")), number_of(query.get("head"))
    walk = since is None and not head and query.get("walk") != "0"
    reviewer = query.get("reviewer", "")
    told = partial(_described, stage, during, reviewer, blind=blind, since=since, head=head, walk=walk)
    return await asyncio.to_thread(lambda: packed(request, told()))


def _described(stage: Stage, during: Pass, reviewer: str, *, blind: bool, since: Position | None, head: int, walk: bool) -> dict[str, Any]:
    desk = desks.desk_of(stage)
    if walk:
        desk.refresh()
    else:
        desk.catch_up()
    head = head if len(desk.keys(during)) > MANY_HEADS * head else 0
    disk, position = _disk(desk), desk.position  # what is decided from here on may be told twice, never left out
    session = views.stopped_at(stage, reviewer, during)
    keys = _head(desk, during, session, head) if head else None if since is None else ledger.touched_since(stage.project, since)
    orders = repair.orders(stage.project)
    waiting = [order.key for order in orders if order.state == "waiting"]
    return {
        **_answer(desk, during, reviewer),
        "passes": {name: desk.counts(name) for name in PASSES},
        "revision": str(position),
        "stage": stage.name,
        "version": stage.project.version,
        "project": {"folder": stage.project.folder_name, "name": stage.project.name, "instance_token": stage.project.instance_token},
        "pass": during,
        "disk": disk,
        "blind": blind,
        "reasons": ledger.REASONS,
        "questions": ledger.QUESTIONS,
        "session": session,
        "missing": [{"key": key, "name": name, "why": why} for key, name, why in desk.missing()] if keys is None else [],
        **({"partial": True} if since else {}),
        **({"more": len(desk.keys(during)) - len(keys or ())} if head else {}),
        "items": evidence.described(desk, during, blind=blind, keys=keys, repairs={key: waiting.count(key) for key in waiting}),
    }


def _head(desk: Desk, during: Pass, session: dict[str, Any] | None, number: int) -> set[str]:
    """Where a visit begins: undecided images from where the reviewer stopped, round to the start; of any where all are decided."""
    keys = desk.keys(during)
    place = {key: index for index, key in enumerate(keys)}.get(str((session or {}).get("key")), 0)
    around = [*keys[place:], *keys[:place]]
    return set(islice((key for key in around if desk.label(key, during) is None), number)) or set(keys[:number])


async def _pulse(request: web.Request) -> web.Response:
    stage, walk = stage_of(request), request.query.get("walk") == "1"

    def felt() -> dict[str, str]:
        desk = desks.desk_of(stage)
        if walk:
            desk.inspect()
        else:
            desk.catch_up()
        return {"disk": _disk(desk), "revision": str(desk.position)}

    return web.json_response(await asyncio.to_thread(felt), headers=FRESH)


def _disk(desk: Desk) -> str:
    """Changes when files of this stage, or corrections of its images, came, went or were moved by others. The desk must be up to date."""
    corrected = desk.stage.project.stage("corrections")
    if desk.stage.name == corrected.name or not corrected.folder.is_dir():
        return str(desk.turns)
    beside = desks.desk_of(corrected)
    beside.catch_up()  # takes in what was corrected by hand
    return f"{desk.turns}.{beside.turns}"


def _answer(desk: Desk, during: Pass, reviewer: str) -> dict[str, Any]:
    undo, redo = desk.steps(reviewer, during)
    return {
        "revision": str(desk.position),
        "counts": desk.counts(during),
        "undecided_total": desks.undecided_total(),
        "undo": _step(desk, undo),
        "redo": _step(desk, redo),
    }


def _step(desk: Desk, step: Step | None) -> dict[str, Any] | None:
    if step is None:
        return None
    made = desk.by_image.get(step.keys[0])
    path = desk.shelf.files.get(made) if made else None
    name = path.stem if path else step.keys[0]
    verdict = (step.label or "withdrawn").replace("_", " ")
    return {
        "batch": step.batch,
        "count": step.count,
        "label": step.label,
        "keys": step.keys,
        "name": name,
        "at": step.at,
        "text": f"{verdict} on {name}" if step.count == 1 else f"{verdict} on {step.count} images",
    }


async def _evidence(request: web.Request) -> web.Response:
    stage, key = stage_of(request), request.match_info["key"]

    def told() -> dict[str, Any]:
        desk = desks.desk_of(stage)
        desk.catch_up()
        if key not in desk.by_image:
            raise NotFound(f"There is no image {key!r} under review here.")
        return evidence.evidence(desk, key)

    return web.json_response(await asyncio.to_thread(told), headers=FRESH)


async def _history(request: web.Request) -> web.Response:
    stage = stage_of(request)
    events = await asyncio.to_thread(ledger.history, stage.project, request.match_info["key"])
    told = [
        {
            "id": event.id,
            "label": event.label,
            "reasons": event.reasons,
            "note": event.note,
            "answers": dict(event.answers),
            "pass": event.during,
            "batch": event.batch,
            "at": event.at,
            "reviewer": event.reviewer,
            "origin": event.origin,
            "undone": event.undone,
        }
        for event in events
    ]
    return web.json_response({"events": told}, headers=FRESH)


async def _agreement(request: web.Request) -> web.Response:
    desk = desks.desk_of(stage_of(request))
    await asyncio.to_thread(desk.catch_up)
    return web.json_response(await asyncio.to_thread(evidence.agreement, desk, request.query.get("reviewer", "")), headers=FRESH)


async def _coverage(request: web.Request) -> web.Response:
    desk = desks.desk_of(stage_of(request))
    await asyncio.to_thread(desk.catch_up)
    return web.json_response(await asyncio.to_thread(evidence.coverage, desk), headers=FRESH)


async def _label(request: web.Request) -> web.Response:
    stage, body = stage_of(request), await json_body(request)
    events, during, reviewer = events_of(body), pass_of(body.get("pass")), str(body.get("reviewer", ""))
    desk = desks.desk_of(stage)
    if body.get("preview"):
        changes, left = await asyncio.to_thread(desk.preview, events)
        would = [{"key": change.key, "from": change.before, "to": change.after} for change in changes]
        return web.json_response({"would": would, "left_alone": left}, headers=FRESH)

    def store() -> dict[str, Any]:
        return _told(desk, during, reviewer, desk.decide(events, batch=batch_of(body)))

    return _spread(stage, during, await asyncio.to_thread(store))


async def _turn(request: web.Request, *, undone: bool) -> web.Response:
    stage, body = stage_of(request), await json_body(request)
    during, reviewer, batch = pass_of(body.get("pass")), text_of(body, "reviewer", MAX_NAME), text_of(body, "batch", MAX_NAME)
    desk = desks.desk_of(stage)

    def turn() -> dict[str, Any]:
        step, decided = (desk.undo if undone else desk.redo)(reviewer, during, batch)
        if step is None:
            word = "undo" if undone else "redo"
            raise Conflict(
                f"Something else came after that step; the page shows the next {word}." if batch else f"There is nothing to {word}."
            )
        return {**_told(desk, during, reviewer, decided), "undone" if undone else "redone": _step(desk, step)}

    return _spread(stage, during, await asyncio.to_thread(turn))


def _told(desk: Desk, during: Pass, reviewer: str, decided: Decided) -> dict[str, Any]:
    changed = evidence.changed(desk, during, (key for key in decided.changed if key in desk.by_image))
    answer, follows, revision = _answer(desk, during, reviewer), str(decided.before), str(decided.after)
    return {**answer, "revision": revision, "follows": follows, "left_alone": decided.left_alone, "changed": changed}


def _spread(stage: Stage, during: Pass, answer: dict[str, Any]) -> web.Response:
    """Answer, and tell the other tabs."""
    event = {name: answer[name] for name in ("revision", "counts", "undecided_total")}
    where = {"project": stage.project.folder_name, "stage": stage.name, "version": stage.project.version, "pass": during}
    host.broadcast("flenwheel.review", {**event, **where, "changed": answer["changed"] if len(answer["changed"]) <= TOLD else []})
    return web.json_response(answer, headers=FRESH)


async def _session(request: web.Request) -> web.Response:
    stage, body = stage_of(request), await json_body(request)
    during, reviewer = pass_of(body.get("pass")), text_of(body, "reviewer", MAX_NAME)
    left = {name: body[name] for name in ("key", "place", "filter") if name in body}
    await asyncio.to_thread(views.leave, stage, reviewer, during, left)
    return web.json_response({"session": views.stopped_at(stage, reviewer, during)}, headers=FRESH)


async def _views(request: web.Request) -> web.Response:
    return web.json_response({"views": await asyncio.to_thread(views.views, project_of(request))}, headers=FRESH)


async def _save_view(request: web.Request) -> web.Response:
    project, body = project_of(request), await json_body(request)
    chosen = body.get("filter")
    if not (chosen is None or isinstance(chosen, dict)):
        raise DatasetError('The body must be {"name": "…", "filter": {…}}; filter null deletes the view.')
    saved = await asyncio.to_thread(views.save_view, project, text_of(body, "name", MAX_NAME), cast("dict[str, Any] | None", chosen))
    return web.json_response({"views": saved}, headers=FRESH)


async def _continue(request: web.Request) -> web.Response:
    """Queue the graph that waits for this review once more, for the tab that asks."""
    stage, asker = stage_of(request), (await json_body(request)).get("client_id")
    resume = await asyncio.to_thread(review.resume_of, stage)
    if not resume or not resume["prompt"]:
        return problem(409, "No graph is known for this review: run the graph with its Review Gate once.")
    prompt_id = str(uuid.uuid4())
    valid, error, outputs, node_errors = await execution.validate_prompt(prompt_id, resume["prompt"], None)
    if not valid or node_errors:
        return problem(409, f"ComfyUI refuses the graph of this review: {error or node_errors}")
    server = PromptServer.instance
    number, server.number = server.number, server.number + 1
    extra: dict[str, Any] = {"extra_pnginfo": {"workflow": resume["workflow"]}} if resume["workflow"] else {}
    if isinstance(asker, str):
        extra["client_id"] = asker
    server.prompt_queue.put((number, prompt_id, resume["prompt"], extra, outputs, {}))
    return web.json_response({"queued": prompt_id}, headers=FRESH)
