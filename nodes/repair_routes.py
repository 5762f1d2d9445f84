"""Routes of repairs: orders, masks and images corrected by hand. The contract is in `routes`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from ..flywheel import corrections, repair
from ..flywheel.errors import DatasetError
from ..flywheel.project import Stage
from ..flywheel.repair import RepairOrder, Start
from . import desks, host
from .http import FRESH, IMMUTABLE, Conflict, NotFound, bytes_body, guarded, is_this_machine, json_body, problem, stage_of

MAX_UPLOAD, MAX_MASK, MAX_COUNT, MAX_NAME = 64 << 20, 16 << 20, 8, 100


def register(routes: web.RouteTableDef, base: str) -> None:
    routes.get(base + "/repair")(guarded(_orders))
    routes.get(base + "/repair/prompt/{key}")(guarded(_proposal))
    routes.post(base + "/repair")(guarded(_order))
    routes.delete(base + "/repair/{id}")(guarded(_withdraw))
    routes.put(base + "/mask/{key}")(guarded(_keep_mask))
    routes.get(base + "/mask/{key}/{mask}")(guarded(_mask))
    routes.put(base + "/corrected/{key}")(guarded(_corrected))
    routes.post(base + "/editing/{key}")(guarded(_lend))


async def _orders(request: web.Request) -> web.Response:
    stage = stage_of(request)

    def told() -> list[dict[str, Any]]:
        return [_told(stage, order) for order in repair.orders(stage.project)]

    return web.json_response({"orders": await asyncio.to_thread(told), "phrases": repair.phrases()}, headers=FRESH)


async def _proposal(request: web.Request) -> web.Response:
    stage, key = stage_of(request), request.match_info["key"]

    def proposed() -> dict[str, Any]:
        desk = desks.desk_of(stage)
        desk.catch_up()
        if key not in desk.by_image:
            raise NotFound(f"There is no image {key!r} under review here.")
        event, facts = desk.in_force(key), desk.shelf.lineages[desk.by_image[key]].facts
        start: Start = "source" if facts["source"] and request.query.get("from") != "candidate" else "candidate"
        reasons, note = (event.reasons, event.note) if event else ((), "")
        return {"prompt": repair.proposal(facts["prompt"], reasons, note, start=start), "from": start}

    return web.json_response(await asyncio.to_thread(proposed), headers=FRESH)


async def _order(request: web.Request) -> web.Response:
    stage, body = stage_of(request), await json_body(request)
    key, prompt, seeds, count = body.get("key"), body.get("prompt"), body.get("seeds"), body.get("count", 1)
    texts = {name: body.get(name) or "" for name in ("reviewer", "id")}
    listed = seeds is None or (isinstance(seeds, list) and all(type(seed) is int for seed in cast("list[Any]", seeds)))
    if (
        not isinstance(key, str)
        or not isinstance(prompt, str)
        or not listed
        or not (type(count) is int and 0 < count <= MAX_COUNT)
        or not all(isinstance(text, str) and len(text) <= MAX_NAME for text in texts.values())
        or not (body.get("mask") is None or isinstance(body["mask"], str))
    ):
        raise DatasetError(
            f'The body must be {{"key": "…", "prompt": "…", "seeds": [1, 2]}}, or "count" of 1 to {MAX_COUNT} instead of seeds.'
        )

    def store() -> RepairOrder:
        _under_review(stage, key)
        chosen = cast("list[int] | None", seeds) or repair.fresh_seeds(stage.project, key, count)
        start = cast("Start", body.get("from") or "source")
        return repair.place_order(
            stage.project, key, prompt, chosen, start=start, mask=body.get("mask"), reviewer=texts["reviewer"], order_id=texts["id"]
        )

    return web.json_response({"order": _told(stage, await asyncio.to_thread(store))}, headers=FRESH)


async def _withdraw(request: web.Request) -> web.Response:
    stage = stage_of(request)
    order = await asyncio.to_thread(repair.withdraw, stage.project, request.match_info["id"])
    if order is None:
        raise NotFound("There is no such repair order.")
    if order.state != "withdrawn":
        raise Conflict("This repair is done already; reject its result if it is no good.")
    return web.json_response({"order": _told(stage, order)}, headers=FRESH)


async def _keep_mask(request: web.Request) -> web.Response:
    stage, key = stage_of(request), request.match_info["key"]
    content = await bytes_body(request, MAX_MASK)

    def keep() -> str:
        _under_review(stage, key)
        return repair.keep_mask(stage.project, key, content)

    return web.json_response({"mask": await asyncio.to_thread(keep)}, headers=FRESH)


async def _mask(request: web.Request) -> web.StreamResponse:
    path = repair.mask_file(stage_of(request).project, request.match_info["mask"])
    if path is None:
        raise NotFound("There is no such mask.")
    return web.FileResponse(path, headers=IMMUTABLE)


async def _corrected(request: web.Request) -> web.Response:
    stage, key = stage_of(request), request.match_info["key"]
    content = await bytes_body(request, MAX_UPLOAD)
    reviewer = request.query.get("reviewer", "")[:MAX_NAME]

    def keep() -> dict[str, Any]:
        _under_review(stage, key)
        target = stage.project.stage("corrections")
        own, path = corrections.take_upload(target, key, content, reviewer=reviewer)
        desks.desk_of(target).catch_up()
        return {"stage": target.name, "key": own, "name": path.name}

    kept = await asyncio.to_thread(keep)
    where = {"project": stage.project.folder_name, "stage": "corrections", "version": stage.project.version}
    desk = desks.desk_of(stage.project.stage("corrections"))
    state = {"revision": str(desk.position), "counts": desk.counts(), "undecided_total": desks.undecided_total()}
    host.broadcast("flenwheel.review", {**where, **state, "pass": "first", "changed": []})
    return web.json_response({"corrected": kept}, headers=FRESH)


async def _lend(request: web.Request) -> web.Response:
    """Only a person at this machine can open the file, and only to them is its path told."""
    stage, key = stage_of(request), request.match_info["key"]
    if not is_this_machine(request):
        return problem(403, "The file lies on the machine that runs ComfyUI: from here, take the file and drop the corrected one.")

    def lend() -> Path:
        _under_review(stage, key)
        return corrections.lend(stage.project.stage("corrections"), key)

    path = await asyncio.to_thread(lend)
    return web.json_response({"name": path.name, "path": str(path)}, headers=FRESH)


def _under_review(stage: Stage, key: str) -> None:
    desk = desks.desk_of(stage)
    desk.catch_up()
    if key not in desk.by_image:
        raise NotFound(f"There is no image {key!r} under review here.")


def _told(stage: Stage, order: RepairOrder) -> dict[str, Any]:
    desk = desks.desk_of(stage)
    made = desk.by_image.get(order.key)
    path = desk.shelf.files.get(made) if made else None
    told = {name: value for name, value in asdict(order).items() if name != "start"}
    return {**told, "from": order.start, "name": path.name if path else order.key}
