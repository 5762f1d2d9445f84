"""Routes that answer with pictures and papers: images, thumbnails, reports, contact sheets. The contract is in `routes`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from aiohttp import web

from ..flywheel import evidence, filters, report
from ..flywheel.desk import Desk
from ..flywheel.errors import DatasetError, ImageError
from ..flywheel.images import SUFFIXES
from ..flywheel.known_files import known_key
from ..flywheel.ledger import PASSES, Pass
from ..flywheel.project import Stage
from ..flywheel.thumbs import Thumbnails, refuse_changed
from . import desks
from .http import FRESH, IMMUTABLE, NotFound, guarded, json_body, stage_of

KEY = re.compile(r"[0-9a-f]{16}")
NAMED_SIZES = {"thumb": 512}

_thumbnails = Thumbnails()


def register(routes: web.RouteTableDef, base: str) -> None:
    routes.get("/flenwheel/image/{project}/{stage}/{version}/{key}")(guarded(_image))
    routes.get(base + "/report.html")(guarded(_report))
    routes.get(base + "/sheet.png")(guarded(_sheet))
    routes.post(base + "/export")(guarded(_export))


async def _image(request: web.Request) -> web.StreamResponse:
    stage, key, size = stage_of(request), request.match_info["key"], request.query.get("size", "full")
    path = await asyncio.to_thread(_file, stage, key)
    if size == "full":
        await asyncio.to_thread(refuse_changed, path, key)
        return web.FileResponse(path, headers=IMMUTABLE)
    px = NAMED_SIZES.get(size) or (int(size) if size.isdigit() and len(size) < 6 else 0)
    if not px:
        raise DatasetError(f"size is 256, 512, 1024 or full, not {size!r}.")
    content = await asyncio.wrap_future(_thumbnails.request(stage.project, key, path, px))
    return web.Response(body=content, content_type="image/webp", headers=IMMUTABLE)


def _file(stage: Stage, key: str) -> Path:
    """The file of an image by its key.

    Raises:
        NotFound: there is none.
    """
    path = None
    if KEY.fullmatch(key):
        path = _photograph(stage, key) if stage.name == "source" else desks.desk_of(stage).file(key)
    if path is None:
        raise NotFound(f"There is no image {key!r} in {stage.name} {stage.project.version}.")
    return path


def _photograph(stage: Stage, key: str) -> Path | None:
    listed = next((photo["filename"] for photo in evidence.photographs_of(stage.project) if photo["key"] == key), None)
    if listed and (stage.folder / listed).is_file():
        return stage.folder / listed
    files = (path for path in stage.folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)
    return next((path for path in files if known_key(path) == key), None)


async def _report(request: web.Request) -> web.Response:
    stage, query = stage_of(request), request.query
    page = await asyncio.to_thread(_paper, stage, "html", query, None)
    return _sent(stage, page, "html")


async def _sheet(request: web.Request) -> web.Response:
    stage, query = stage_of(request), request.query
    return _sent(stage, await asyncio.to_thread(_paper, stage, "png", query, None), "png")


async def _export(request: web.Request) -> web.Response:
    stage, body = stage_of(request), await json_body(request)
    keys, kind, title = body.get("keys"), body.get("format", "html"), body.get("title", "")
    if not isinstance(keys, list) or kind not in ("html", "png") or not isinstance(title, str):
        raise DatasetError('The body must be {"keys": ["…"], "format": "html" or "png", "title": "…"}.')
    chosen = [str(key) for key in cast("list[Any]", keys)]
    page = await asyncio.to_thread(_paper, stage, kind, {"title": title[:200], "pass": str(body.get("pass", ""))}, chosen)
    return _sent(stage, page, kind)


def _paper(stage: Stage, kind: str, query: Mapping[str, str], keys: list[str] | None) -> bytes:
    desk = desks.desk_of(stage)
    desk.catch_up()
    during = cast("Pass", query.get("pass") if query.get("pass") in PASSES else "first")
    chosen = filters.parse_filter(query)
    items = evidence.described(desk, during, blind=query.get("blind", "") not in ("", "0"))
    if keys is not None:
        by_key = {item["key"]: item for item in items}
        items = [by_key[key] for key in keys if key in by_key]
    items = chosen.apply(items)
    title = query.get("title") or f"{stage.project.name}: {stage.name} {stage.project.version}"
    thumb = _Thumbs(desk, report.THUMB_PX)
    if kind == "png":
        return report.sheet_png(items, thumb, title=title)
    words = chosen.words() if keys is None else "as chosen"
    return report.html_report(items, desk.counts(during), thumb, title=title, words=words, now=datetime.now()).encode()


class _Thumbs:
    """Thumbnail bytes by image key, for a report."""

    def __init__(self, desk: Desk, px: int) -> None:
        self.desk, self.px = desk, px

    def __call__(self, key: str) -> bytes:
        path = self.desk.file(key)
        if path is None:
            raise ImageError("The file is not there any more.")
        return _thumbnails.request(self.desk.stage.project, key, path, self.px).result()


def _sent(stage: Stage, content: bytes, kind: str) -> web.Response:
    name = f"{stage.project.folder_name}-{stage.name}-{stage.project.version}.{kind}"
    headers = {**FRESH, "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}"}
    if kind == "png":
        return web.Response(body=content, content_type="image/png", headers=headers)
    return web.Response(body=content, content_type="text/html", charset="utf-8", headers=headers)
