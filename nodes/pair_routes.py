"""HTTP of the panel that builds sets of pairs. JSON in and out; sets, slots and files by name, never by path; `guarded` like every route of ours.

  GET  /flenwheel/pairs                        the page (?set=name); its modules are served with those of the other pages, see `job_routes`
  GET  /flenwheel/pairs/sets                   {"sets": [id], "projects": [{"folder", "name", "stages": ["source", …]}], "layouts": [name]}
  POST /flenwheel/pairs/sets                   {"name"} makes a set, or finds the one that is there → SET
S stands for /flenwheel/pairs/sets/{set}.
  GET  S                                       → SET
  POST S                                       {"instruction", "trigger_word", "slots": {slot: {"label", "holds"}}}, each optional → SET
  POST S/controls                              {"add": true} or {"remove": slot} → SET
  PUT  S/files/{slot}/{name}?replace=1         a picture, or captions for the target (at most 64 MB) → {"name"}; 409: its place is taken
  POST S/remove                                {"slot", "names": []} or {"keys": []} (whole pairs) → SET + {"batch"}
  POST S/restore                               {"batch"} brings back what was taken out → SET
  POST S/captions                              {"captions": {key: words}} → SET; empty words take a caption away. With "brief": true only
                                               {"words": {key: [words, own]}}, which does not grow with the set
  POST S/replace                               {"find", "put", "any_case", "preview"} → {"changes": {key: words}}, with SET unless preview
  PUT  S/archive?slot=target                   a zip (at most 2 GB) → SET + {"done": [words]}
  POST S/project                               {"project", "stage", "slot"} → SET + {"done": [words]}
  POST S/examine                               the pair doctor → {"findings": [{"key", "kind", "slot", "text", "fix", "drawn": whether there is a picture}], "text"}
  GET  S/drawn/{key}?kind=shift&slot=control_1 a finding as a picture; 404 when it is none any more
  POST S/mend                                  {"keys"} aligns these pairs; the old pictures go to removed/ → SET + {"done"}
  POST S/export                                {"layout", "megapixels"} → {"folder": its name, "text"}
  GET  S/picture/{slot}/{name}?size=256        a small WebP; without size the file

SET  {"id", "name", "instruction", "trigger_word", "slots": [{"slot", "label", "holds", "count"}], "problems": rows with problems, "general": [words], "notes": [words],
      "rows": [{"key", "stem", "files": [{"name", "width", "height", "v"}|null per slot], "caption", "own": has its own words, "problems": [words]}]}
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from ..flywheel import pair_doctor
from ..flywheel.errors import DatasetError
from ..flywheel.images import png_bytes, value_key
from ..flywheel.known_files import known_key, signature_of
from ..flywheel.layouts import LAYOUTS, Settings, export, plan
from ..flywheel.pair_archives import import_archive, import_stage
from ..flywheel.pair_overlays import drawn
from ..flywheel.pair_sets import SLOTS, PairSet, PairSets, SetState, Taken
from ..flywheel.pair_slots import match_key
from ..flywheel.project import load_project
from ..flywheel.thumbs import Thumbnails
from . import host
from .http import FRESH, IMMUTABLE, Conflict, NotFound, bytes_body, guarded, json_body

WEB = Path(__file__).parent.parent / "web"
MAX_FILE, MAX_ARCHIVE = 64 << 20, 2 << 30
SET = "/flenwheel/pairs/sets/{set}"
IMPORTED = ("source", "enriched", "synthetic", "corrections", "qwen_training")


def shelf_of_pairs() -> Path:
    """Where sets, copies, exports and measurements of pairs go that belong to no project. No project can be called so."""
    return host.home() / "_pairs"


sets = PairSets(lambda: shelf_of_pairs() / "sets")
_thumbnails = Thumbnails()


def register(routes: web.RouteTableDef) -> None:
    routes.get("/flenwheel/pairs")(guarded(_page))
    routes.get("/flenwheel/pairs/sets")(guarded(_list))
    routes.post("/flenwheel/pairs/sets")(guarded(_create))
    routes.get(SET)(guarded(_state))
    routes.post(SET)(guarded(_describe))
    routes.post(SET + "/controls")(guarded(_controls))
    routes.put(SET + "/files/{slot}/{name}")(guarded(_put))
    routes.post(SET + "/remove")(guarded(_remove))
    routes.post(SET + "/restore")(guarded(_restore))
    routes.post(SET + "/captions")(guarded(_captions))
    routes.post(SET + "/replace")(guarded(_replace))
    routes.put(SET + "/archive")(guarded(_archive))
    routes.post(SET + "/project")(guarded(_project))
    routes.post(SET + "/examine")(guarded(_examine))
    routes.get(SET + "/drawn/{key}")(guarded(_drawn))
    routes.post(SET + "/mend")(guarded(_mend))
    routes.post(SET + "/export")(guarded(_export))
    routes.get(SET + "/picture/{slot}/{name}")(guarded(_picture))


async def _page(_: web.Request) -> web.StreamResponse:
    return web.FileResponse(WEB / "pairs.html", headers=FRESH)


async def _list(_: web.Request) -> web.Response:
    def told() -> dict[str, Any]:
        projects = [
            {
                "folder": project.folder_name,
                "name": project.name,
                "stages": sorted({stage.name for stage in host.stages_of(project) if stage.name in IMPORTED}, key=IMPORTED.index),
            }
            for project in host.readable_projects()
        ]
        return {"sets": list(sets.names()), "projects": projects, "layouts": list(LAYOUTS)}

    return web.json_response(await asyncio.to_thread(told), headers=FRESH)


async def _create(request: web.Request) -> web.Response:
    name = _text(await json_body(request), "name")
    return await _answer(await asyncio.to_thread(sets.create, name))


async def _state(request: web.Request) -> web.Response:
    return await _answer(_set_of(request))


async def _describe(request: web.Request) -> web.Response:
    body = await json_body(request)
    slots = body.get("slots", {})
    parts = {name: body[name] for name in ("instruction", "trigger_word") if name in body}
    told = isinstance(slots, dict) and all(_is_texts(value) for value in cast("dict[str, Any]", slots).values())
    if not told or not _is_texts(parts):
        raise DatasetError(
            'The body must be {"instruction": "…", "trigger_word": "…", "slots": {"control_1": {"label": "…", "holds": "…"}}}.'
        )
    return await _changed(request, lambda pair_set: pair_set.describe(**parts, slots=cast("dict[str, dict[str, str]]", slots)))


async def _controls(request: web.Request) -> web.Response:
    body = await json_body(request)
    remove = body.get("remove")
    if not (body.get("add") is True or isinstance(remove, str)):
        raise DatasetError('The body must be {"add": true} or {"remove": "control_2"}.')
    return await _changed(request, lambda pair_set: pair_set.remove_control(remove) if isinstance(remove, str) else pair_set.add_control())


async def _put(request: web.Request) -> web.Response:
    pair_set, slot, name = _set_of(request), request.match_info["slot"], request.match_info["name"]
    content = await bytes_body(request, MAX_FILE)
    try:
        put = await asyncio.to_thread(pair_set.put, slot, name, content, replacing=request.query.get("replace") == "1")
    except Taken as error:
        raise Conflict(str(error)) from error
    return web.json_response({"name": put}, headers=FRESH)


async def _remove(request: web.Request) -> web.Response:
    body = await json_body(request)
    slot = body.get("slot")

    def removed(pair_set: PairSet) -> dict[str, Any]:
        batch = pair_set.remove(slot, _texts(body, "names")) if isinstance(slot, str) else pair_set.remove_pairs(_texts(body, "keys"))
        return {"batch": batch}

    return await _changed(request, removed)


async def _restore(request: web.Request) -> web.Response:
    batch = _text(await json_body(request), "batch")
    return await _changed(request, lambda pair_set: {"restored": pair_set.restore(batch)})


async def _captions(request: web.Request) -> web.Response:
    body = await json_body(request)
    captions = body.get("captions")
    if not _is_texts(captions):
        raise DatasetError('The body must be {"captions": {"key": "words"}}.')
    told = cast("dict[str, str]", captions)
    if body.get("brief") is not True:
        return await _changed(request, lambda pair_set: pair_set.caption(told))

    def written(pair_set: PairSet) -> dict[str, Any]:
        pair_set.caption(told)
        return {"words": pair_set.words(told)}

    return web.json_response(await asyncio.to_thread(written, _set_of(request)), headers=FRESH)


async def _replace(request: web.Request) -> web.Response:
    body = await json_body(request)
    find, put, preview = _text(body, "find"), _text(body, "put"), body.get("preview") is not False

    def replaced(pair_set: PairSet) -> dict[str, Any]:
        changes = pair_set.replacing(find, put, any_case=body.get("any_case") is True)
        if not preview:
            pair_set.caption(changes)
        return {"changes": changes}

    if preview:
        return web.json_response(await asyncio.to_thread(replaced, _set_of(request)), headers=FRESH)
    return await _changed(request, replaced)


async def _archive(request: web.Request) -> web.Response:
    slot = request.query.get("slot", SLOTS[0])
    content = await bytes_body(request, MAX_ARCHIVE)
    return await _changed(request, lambda pair_set: {"done": import_archive(pair_set, content, slot)})


async def _project(request: web.Request) -> web.Response:
    body = await json_body(request)
    folder, stage, slot = (_text(body, name) for name in ("project", "stage", "slot"))

    def taken_in(pair_set: PairSet) -> dict[str, Any]:
        project = next((project for project in host.readable_projects() if project.folder_name == folder), None)
        if project is None:
            raise NotFound(f"There is no project {folder!r}.")
        return {"done": import_stage(pair_set, load_project(project.root), stage, slot)}

    return await _changed(request, taken_in)


async def _examine(request: web.Request) -> web.Response:
    def examined(pair_set: PairSet) -> dict[str, Any]:
        checkup = pair_doctor.examine(pair_set.dataset(), cache=shelf_of_pairs() / "measured")
        findings = [
            {
                "key": match_key(one.stem),
                "kind": one.kind,
                "slot": one.slot,
                "text": one.text,
                "fix": one.fix,
                "drawn": one.kind != "unreadable",
            }
            for one in checkup.findings
        ]
        return {"findings": findings, "text": checkup.text()}

    return web.json_response(await asyncio.to_thread(examined, _set_of(request)), headers=FRESH)


async def _drawn(request: web.Request) -> web.Response:
    key, kind, slot = request.match_info["key"], request.query.get("kind", ""), request.query.get("slot", "control_1")

    def drawn_now(pair_set: PairSet) -> bytes | None:
        dataset = pair_set.dataset()
        if kind != "reversed":  # which is told by the others as well
            dataset = dataset.keeping(pair.stem for pair in dataset.pairs if match_key(pair.stem) == key)
        checkup = pair_doctor.examine(dataset, cache=shelf_of_pairs() / "measured")
        found = next((one for one in checkup.findings if (match_key(one.stem), one.kind, one.slot) == (key, kind, slot)), None)
        sheet = drawn(checkup, found, cell_px=480) if found else None
        return png_bytes(sheet) if sheet else None

    content = await asyncio.to_thread(drawn_now, _set_of(request))
    if content is None:
        raise NotFound(f"There is no finding {kind!r} for {key!r} any more.")
    return web.Response(body=content, content_type="image/png", headers=FRESH)


async def _mend(request: web.Request) -> web.Response:
    keys = set(_texts(await json_body(request), "keys"))

    def mended(pair_set: PairSet) -> dict[str, Any]:
        dataset = pair_set.dataset()
        chosen = dataset.keeping(pair.stem for pair in dataset.pairs if match_key(pair.stem) in keys)
        checkup = pair_doctor.examine(chosen, cache=shelf_of_pairs() / "measured")
        after = pair_doctor.mend(checkup, shelf_of_pairs() / "mended", ("align", "crop"))
        for old, new in zip(chosen.pairs, after.pairs, strict=True):
            for slot, was, now in zip(SLOTS, (old.target, *old.controls), (new.target, *new.controls), strict=False):
                if was.path != now.path:
                    pair_set.put(slot, f"{was.path.stem}{now.path.suffix}", now.path.read_bytes(), replacing=True)
        return {"done": list(after.notes[len(chosen.notes) :])}

    return await _changed(request, mended)


async def _export(request: web.Request) -> web.Response:
    body = await json_body(request)
    layout, megapixels = _text(body, "layout"), body.get("megapixels", 0)
    if layout not in LAYOUTS or not isinstance(megapixels, (int, float)) or not 0 <= megapixels <= 4:
        raise DatasetError(f"The layout must be one of {', '.join(LAYOUTS)}, megapixels a number from 0 to 4.")

    def exported(pair_set: PairSet) -> dict[str, Any]:
        written = export(plan(pair_set.dataset()), (shelf_of_pairs() / "exports").resolve(), layout, Settings(megapixels=float(megapixels)))
        return {"folder": written.folder.name, "text": written.text()}

    return web.json_response(await asyncio.to_thread(exported, _set_of(request)), headers=FRESH)


async def _picture(request: web.Request) -> web.StreamResponse:
    pair_set, slot, name, size = _set_of(request), request.match_info["slot"], request.match_info["name"], request.query.get("size", "")
    try:
        path = await asyncio.to_thread(pair_set.picture, slot, name)
    except DatasetError as error:
        raise NotFound(str(error)) from error
    if not size:
        return web.FileResponse(path, headers=FRESH)
    if size not in ("256", "512", "1024"):
        raise DatasetError(f"size is 256, 512 or 1024, not {size!r}.")
    key = await asyncio.to_thread(known_key, path)
    content = await asyncio.wrap_future(_thumbnails.request(pair_set, key, path, int(size)))
    return web.Response(body=content, content_type="image/webp", headers=IMMUTABLE if request.query.get("v") else FRESH)


def _set_of(request: web.Request) -> PairSet:
    name = request.match_info["set"]
    found = sets.get(name)
    if found is None:
        raise NotFound(f"There is no set {name!r}.")
    return found


async def _changed(request: web.Request, change: Callable[[PairSet], object]) -> web.Response:
    """Carry a change out, and answer with the set as it is then."""
    pair_set = _set_of(request)
    told = await asyncio.to_thread(change, pair_set)
    return await _answer(pair_set, **(cast("dict[str, Any]", told) if isinstance(told, dict) else {}))


async def _answer(pair_set: PairSet, **more: Any) -> web.Response:
    def told() -> dict[str, Any]:
        return {**_told(pair_set.root.name, pair_set.state()), **more}

    return web.json_response(await asyncio.to_thread(told), headers=FRESH)


def _told(name: str, state: SetState) -> dict[str, Any]:
    about = state.about
    rows = [
        {
            "key": row.key,
            "stem": row.stem,
            "files": [
                None
                if file is None
                else {
                    "name": file,
                    "width": shown.width if shown else 0,
                    "height": shown.height if shown else 0,
                    "v": _version(shown.path) if shown else "",
                }
                for file, shown in zip(row.names, row.pictures, strict=True)
            ],
            "caption": row.caption,
            "own": row.own,
            "problems": row.problems,
        }
        for row in state.rows
    ]
    slots = [
        {"slot": slot, "label": told.label, "holds": told.holds, "count": count}
        for slot, told, count in zip(SLOTS, about.slots, state.counts, strict=False)
    ]
    return {
        "id": name,
        "name": about.name,
        "instruction": about.instruction,
        "trigger_word": about.trigger_word,
        "slots": slots,
        "problems": sum(bool(row.problems) for row in state.rows),
        "general": state.general,
        "notes": state.notes,
        "rows": rows,
    }


def _version(path: Path) -> str:
    return value_key(signature_of(path.stat()))[:8]


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise DatasetError(f"{name!r} must be a text.")
    return value


def _texts(body: dict[str, Any], name: str) -> list[str]:
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in cast("list[Any]", value)):
        raise DatasetError(f"{name!r} must be a list of texts.")
    return cast("list[str]", value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in cast("dict[str, Any]", value).values())
