"""What every route of ours has in common: who may ask, how errors are told, and which stage an address means."""

from __future__ import annotations

import gzip
import hmac
import ipaddress
import json
import os
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from comfy.cli_args import args

from ..flywheel.errors import DatasetError, FlywheelError, ImageError, ProjectError, StorageError
from ..flywheel.project import STAGES, Project, Stage, is_folder_name, load_project
from ..flywheel.thumbs import ChangedOnDisk
from . import host

FRESH = {"Cache-Control": "no-store"}
IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}
COOKIE = "flenwheel_token"
STAY_S = 30 * 24 * 3600
MIN_TOKEN = 8
PACK_FROM = 32_768  # bytes
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class NotFound(FlywheelError):
    """There is nothing under this address."""


class Conflict(FlywheelError):
    """It cannot be done in the present state."""


def guarded(handler: Handler) -> Handler:
    """Errors as JSON in words; no page of another site may read or write here, and nobody from elsewhere without the token."""

    async def guarded_handler(request: web.Request) -> web.StreamResponse:
        if not _is_local_name(request.host):
            return problem(403, f"{request.host!r} is not a name of this machine. Use its IP address or localhost.")
        if _token and not is_this_machine(request) and not _has_token(request):
            return problem(401, "This review asks for a token: add ?token=… to the address, as ComfyUI's log shows it.")
        if request.method == "POST" and request.content_type != "application/json":
            return problem(415, "Send application/json.")  # forces browsers to ask first when another site posts
        answer = await _answered(handler, request)
        if _token and request.query.get("token") and _has_token(request) and not answer.prepared:
            answer.set_cookie(COOKIE, _token, max_age=STAY_S, httponly=True, samesite="Strict", path="/")
        return answer

    return guarded_handler


async def _answered(handler: Handler, request: web.Request) -> web.StreamResponse:
    try:
        return await handler(request)
    except NotFound as error:
        return problem(404, str(error))
    except Conflict as error:
        return problem(409, str(error))
    except ChangedOnDisk as error:
        return problem(410, str(error))
    except ImageError as error:
        return problem(422, str(error))
    except StorageError as error:
        return problem(507, str(error))  # not the sender's fault: the page keeps its verdicts and tries again
    except FlywheelError as error:
        return problem(400, str(error))


def problem(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status, headers=FRESH)


def project_of(request: web.Request) -> Project:
    folder = request.match_info["project"]
    try:
        if is_folder_name(folder):
            return load_project(host.home() / folder)
    except ProjectError as error:
        raise NotFound(str(error)) from error
    raise NotFound(f"There is no project {folder!r}.")


def stage_of(request: web.Request) -> Stage:
    """The stage an address means; it exists, except that corrections may still be empty."""
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


async def json_body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise DatasetError(f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise DatasetError("The body must be a JSON object.")
    return body


def packed(request: web.Request, value: Any) -> web.Response:
    """JSON, compressed where that is worth it and understood. Slow for long lists: call it in a thread."""
    content, headers = json.dumps(value).encode(), dict(FRESH)
    if len(content) > PACK_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
        content, headers = gzip.compress(content, compresslevel=1), {**headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return web.Response(body=content, content_type="application/json", charset="utf-8", headers=headers)


async def bytes_body(request: web.Request, limit: int) -> bytes:
    """The body as it comes, of at most `limit` bytes."""
    parts = bytearray()
    async for part in request.content.iter_any():
        parts += part
        if len(parts) > limit:
            raise DatasetError(f"The file is larger than {limit >> 20} MB.")
    if not parts:
        raise DatasetError("The body is empty: send the file as it is.")
    return bytes(parts)


def _open_to_others() -> bool:
    return any(address.strip() not in LOOPBACK for address in args.listen.split(","))


def _chosen_token() -> str:
    """The token, or nothing where only this machine can reach us. Without one in the environment a new one is made at each start."""
    if not _open_to_others():
        return ""
    given = os.environ.get("FLENWHEEL_TOKEN", "").strip()
    if given and len(given) < MIN_TOKEN:
        host.log.warning("FLENWHEEL_TOKEN has fewer than %s characters and is not used.", MIN_TOKEN)
        given = ""
    token = given or secrets.token_urlsafe(12)
    shown = "the one in FLENWHEEL_TOKEN" if given else f"{token} (set FLENWHEEL_TOKEN to choose one that stays)"
    host.log.warning(
        "ComfyUI listens beyond this machine: from other devices open the review as /flenwheel/review?token=…; the token is %s.", shown
    )
    return token


def is_this_machine(request: web.Request) -> bool:
    """Whether the sender sits at this machine. A proxy on this machine speaks for others, and says so."""
    if "X-Forwarded-For" in request.headers or "Forwarded" in request.headers:
        return False
    try:
        return ipaddress.ip_address((request.remote or "").split("%")[0]).is_loopback
    except ValueError:
        return False


def _has_token(request: web.Request) -> bool:
    offered = (request.query.get("token"), request.cookies.get(COOKIE), request.headers.get("X-Flenwheel-Token"))
    return any(hmac.compare_digest(token.encode(), _token.encode()) for token in offered if token)


def _is_local_name(name: str) -> bool:
    """Refuses DNS rebinding: a foreign name that was pointed at this machine. With --listen the token guards instead."""
    hostname = re.sub(r":\d+$", "", name).strip("[]")
    if hostname == "localhost" or _open_to_others():
        return True
    try:
        ipaddress.ip_address(hostname)
    except ValueError:
        return False
    return True


_token = _chosen_token()
