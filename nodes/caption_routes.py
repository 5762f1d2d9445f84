"""Captions for scripts: GET and POST /flenwheel/captions/{project}/{stage}/{version}; stage is source, enriched or synthetic.

GET answers {"captions": {name: caption}, "untouched": [names whose caption nobody has changed], "findings": [what is wrong with them, in words]}.
POST takes {"captions": {name: caption}}, all or none of it, and answers the same as GET then. They count as a person's: no run writes over them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from aiohttp import web

from ..flywheel import captions, recaption
from ..flywheel.errors import DatasetError
from ..flywheel.project import Stage
from .http import FRESH, guarded, json_body, stage_of

PATH = "/flenwheel/captions/{project}/{stage}/{version}"


def register(routes: web.RouteTableDef) -> None:
    routes.get(PATH)(guarded(_read))
    routes.post(PATH)(guarded(_write))


async def _read(request: web.Request) -> web.Response:
    return web.json_response(await asyncio.to_thread(_told, stage_of(request)), headers=FRESH)


async def _write(request: web.Request) -> web.Response:
    stage = stage_of(request)
    given = (await json_body(request)).get("captions")
    if not isinstance(given, dict) or not all(isinstance(caption, str) for caption in cast("dict[str, Any]", given).values()):
        raise DatasetError('Send {"captions": {name: caption}}; names are those that GET lists.')
    return web.json_response(await asyncio.to_thread(_told, stage, cast("dict[str, str]", given)), headers=FRESH)


def _told(stage: Stage, changed: Mapping[str, str] | None = None) -> dict[str, Any]:
    dataset = recaption.dataset_of(stage)
    if changed:
        dataset = recaption.rewrite(dataset, changed)
    now = {image.name: image.caption for image in dataset.images}
    findings = [str(finding) for finding in captions.lint(now, stage.project)]
    return {"captions": now, "untouched": list(recaption.untouched(dataset)), "findings": findings}
