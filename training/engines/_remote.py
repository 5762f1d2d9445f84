"""Training on somebody else's machine: agreed to by name and price, sent once, found again by its number.

The number is on disk before anybody waits for it, so a worker that dies or a ComfyUI that is closed costs nothing: the next one asks again. What
is not known to have arrived is never sent a second time by itself. Keys come from the environment, go to the service's own host only, and are in
no message. Needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol
from urllib.parse import urlsplit

from ...flywheel.images import storage_error, write_json, write_whole
from .. import trainset
from ..errors import EngineNotInstalled, Stopped, TrainingFailed
from ..job import Job
from ..spec import TrainingSpec
from . import _dataset

POLL_S = 5.0
PATIENCE = 8  # times that a question is repeated, each time after twice as long
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
TIMEOUT_S = 60.0
MOST_BYTES = 4 << 30  # of an answer that is a file
LAYOUT = "fal zip"  # ROOT.png and ROOT.txt in one flat zip is what both services read
_STEP = re.compile(r"(\d+)/(\d+) \[")
_LOSS = re.compile(r"loss[=:]\s*([-+.\w]+)")
_RESETS = re.compile(r"resets in ~?(\d+)\s*s")


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """What has to be agreed to before anything leaves this machine."""

    upload: bool = field(
        default=False, metadata={"help": "Yes: the pictures and captions may be sent to this service, and I have the right to send them."}
    )
    max_price_usd: float = field(
        default=0.0,
        metadata={"help": "The most that this training may cost, in US dollars. 0: nothing is sent.", "min": 0.0, "max": 1000.0},
    )


@dataclass(frozen=True, slots=True)
class Standing:
    """How a training stands there. `log`: all it has said so far. `output`: where its files are, once it is done."""

    state: Literal["waiting", "running", "done", "failed", "cancelled", "gone"]
    message: str = ""
    log: str = ""
    output: Mapping[str, Any] = field(default_factory=dict)


class Service(Protocol):
    """One provider's protocol. `upload` and `submit` are called once; what `submit` answers is kept and given to the others."""

    title: ClassVar[str]

    def upload(self, archive: Path) -> str: ...
    def submit(self, url: str) -> dict[str, Any]: ...
    def standing(self, ticket: Mapping[str, Any]) -> Standing: ...
    def cancel(self, ticket: Mapping[str, Any]) -> None: ...
    def fetch(self, output: Mapping[str, Any], target: Path) -> None: ...


class Unsure(Exception):
    """Nobody knows whether a request arrived."""


def agreed(job: Job, options: RemoteOptions, *, title: str, key: str, price: float, per: str) -> list[str]:
    """What was agreed to, in words for the report.

    Raises:
        EngineNotInstalled: no key, no consent, or it may cost more than was allowed; all at once, with what would be sent and the price.
    """
    found = trainset.read(job.dataset)
    files = [path for example in found.examples for path in (example.image, *example.controls)]
    megabytes = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
    sent = f"{len(files)} pictures of {job.spec.project!r} with their captions, about {megabytes:.1f} MB, go to {title}"
    cost = f"about {price:.2f} USD ({per})"
    problems = _dataset.problems(job)
    if not os.environ.get(key, "").strip():
        problems.append(f"the environment variable {key} is not set: put your key for {title} there and start ComfyUI again")
    if not options.upload:
        problems.append(f"you have not agreed to the upload: {sent}. If they may, and you have the right to send them, set upload = true")
    if options.max_price_usd < price:
        problems.append(f"it would cost {cost}, and you allow {options.max_price_usd:.2f}: set max_price_usd to what it may cost")
    if problems:
        raise EngineNotInstalled(f"{title} cannot train this yet:", problems)
    return [f"{sent}; {cost}, at most {options.max_price_usd:.2f} allowed"]


def train(job: Job, service: Service) -> Path:
    """Send, wait, fetch. Goes on with a training that was sent before.

    Raises:
        Stopped: someone asked for it; the training there was cancelled.
        TrainingFailed: with what the service said.
    """
    known = ticket(job)
    if "id" not in known:
        known = _send(job, service, known)
    else:
        job.append("note", text=f"goes on waiting for training {known['id']} at {service.title}")
    standing = _wait(job, service, known)
    job.append("phase", name=f"fetching the LoRA from {service.title}")
    target = job.folder / "result" / f"{job.spec.engine}.safetensors"
    service.fetch(standing.output, target)
    return target


def _send(job: Job, service: Service, known: Mapping[str, Any]) -> dict[str, Any]:
    if known.get("sending"):
        raise TrainingFailed(
            "remote",
            f"It is not known whether {service.title} received this training the last time.",
            f'Look at your trainings there. If it is there, write its id into {_path(job).name} as "id"; if not, delete that file. Then queue again.',
        )
    job.append("phase", name="packing the pictures")
    folder, _ = _dataset.lay_out(job, LAYOUT)
    archive = next(folder.glob("*.zip"))
    job.append("phase", name=f"uploading {archive.stat().st_size / 1e6:.1f} MB to {service.title}")
    url = service.upload(archive)
    if job.stop_wanted:
        raise Stopped
    _keep(job, {"service": service.title, "sending": True})
    try:
        sent = service.submit(url)
    except Unsure as error:
        raise TrainingFailed(
            "remote",
            f"The connection to {service.title} broke while the training was being sent ({error}).",
            "Look at your trainings there before you queue again: it may have begun.",
        ) from error
    except TrainingFailed:
        _path(job).unlink(missing_ok=True)  # refused: nothing has begun
        raise
    begun = {"service": service.title, **sent}
    _keep(job, begun)
    job.append("note", text=f"training {begun['id']} at {service.title}")
    return begun


def _wait(job: Job, service: Service, ticket: Mapping[str, Any]) -> Standing:
    told, step = "", 0
    while True:
        if job.stop_wanted:
            _cancel(service, ticket)
            _path(job).unlink(missing_ok=True)
            job.append("note", text=f"training {ticket['id']} was cancelled at {service.title}; queueing again begins, and costs, anew")
            raise Stopped
        standing = service.standing(ticket)
        step = _tell(job, standing.log, step)
        if standing.state in ("waiting", "running"):
            phase = standing.message or f"{standing.state} at {service.title}"
            if phase != told:
                told = phase
                job.append("phase", name=phase)
            _pause(POLL_S, lambda: job.stop_wanted)
            continue
        if standing.state == "done":
            return standing
        _path(job).unlink(missing_ok=True)  # it will not come back to life
        cause = {"gone": "does not know this training any more", "cancelled": "cancelled the training"}.get(
            standing.state, "could not train"
        )
        raise TrainingFailed(
            "remote", f"{service.title} {cause}: {standing.message or 'no reason given'}.", "Queue again for a new attempt, which costs anew.",
            tuple(line.strip()[:300] for line in standing.log.splitlines()[-8:] if line.strip()),
        )  # fmt: skip


def _cancel(service: Service, ticket: Mapping[str, Any]) -> None:
    try:
        service.cancel(ticket)
    except (TrainingFailed, Unsure) as error:
        raise TrainingFailed(
            "remote",
            f"{service.title} did not confirm that training {ticket['id']} is cancelled ({error}).",
            "Cancel it there by hand: it costs.",
        ) from error


def text_of(title: str, told: Any, name: str) -> str:
    """A text that an answer must have.

    Raises:
        TrainingFailed: it has none.
    """
    value = told.get(name) if isinstance(told, dict) else None
    if not isinstance(value, str) or not value:
        raise TrainingFailed("garbage", f"{title}'s answer has no {name}.", "Look at your trainings there before you queue again.")
    return value


def _tell(job: Job, log: str, step: int) -> int:
    """Steps in the service's log become events; the log itself becomes ours."""
    if log:
        write_whole(job.folder / "remote-log.txt", log.encode())
    for line in re.split(r"[\r\n]", log):
        found = _STEP.search(line)
        if found and int(found[2]) == job.spec.steps and int(found[1]) > step:
            step = int(found[1])
            loss = _LOSS.search(line)
            try:
                value = float(loss[1]) if loss else None
            except ValueError:
                value = None
            job.append("step", step=step, loss=value)
    return step


def _path(job: Job) -> Path:
    return job.folder / "remote.json"


def ticket(job: Job) -> dict[str, Any]:
    """What is known of the training there; empty while there is none.

    Raises:
        TrainingFailed: the file cannot be read.
    """
    try:
        told = json.loads(_path(job).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TrainingFailed(
            "remote", f"{_path(job).name} cannot be read ({error}).", "Mend it, or delete it to send the training again."
        ) from error
    return told if isinstance(told, dict) else {}


def _keep(job: Job, ticket: Mapping[str, Any]) -> None:
    write_json(_path(job), dict(ticket))


def _pause(seconds: float, enough: Callable[[], bool] = lambda: False) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not enough():
        time.sleep(min(0.25, seconds))


# --- the wire


@dataclass(frozen=True, slots=True)
class Wire:
    """Requests to one service. The key goes to `base`'s host and to no other, and only over https, or to this very machine."""

    title: str
    base: str
    authorization: str = field(repr=False)

    def ask(self, url: str) -> dict[str, Any]:
        """GET; repeated when the service is busy or out of reach."""
        pause = FIRST_PAUSE_S
        for attempt in range(PATIENCE):
            try:
                return self._json(self._request("GET", url))
            except Unsure:
                if attempt + 1 == PATIENCE:
                    raise TrainingFailed(
                        "remote", f"{self.title} cannot be reached.", "Queue again later: it goes on where it is."
                    ) from None
            except _Busy as busy:
                if attempt + 1 == PATIENCE:
                    raise TrainingFailed("remote", f"{self.title} is busy: {busy}.", "Queue again later: it goes on where it is.") from busy
                pause = max(pause, busy.after_s)
            _pause(min(pause, LONGEST_PAUSE_S))
            pause *= 2
        raise AssertionError

    def tell(
        self, method: str, url: str, body: Any = None, *, content: bytes | None = None, kind: str = "application/json"
    ) -> dict[str, Any]:
        """POST or PUT, exactly once.

        Raises:
            Unsure: the answer got lost.
        """
        try:
            data = content if content is not None else json.dumps(body or {}).encode()
            return self._json(self._request(method, url, data, {"Content-Type": kind}))
        except _Busy as busy:
            if busy.broke:
                raise Unsure(str(busy)) from busy
            raise TrainingFailed("remote", f"{self.title} is busy: {busy}.", "Queue again later.") from busy

    def put(self, url: str, path: Path, kind: str) -> None:
        """A file to an address that the service named; without the key."""
        with path.open("rb") as file:
            headers = {"Content-Type": kind, "Content-Length": str(path.stat().st_size)}
            try:
                with _open(self.title, urllib.request.Request(_safe(self.title, url), data=file, headers=headers, method="PUT")):  # type: ignore[arg-type]
                    return
            except (Unsure, _Busy) as error:
                raise TrainingFailed(
                    "remote", f"The upload to {self.title} broke off ({error}).", "Queue again; nothing was begun."
                ) from error

    def download(self, url: str, target: Path) -> None:
        """A file, whole or not at all; the key goes along only to the service's own host."""
        headers = {"Authorization": self.authorization} if urlsplit(url).netloc == urlsplit(self.base).netloc else {}
        partial = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            request = urllib.request.Request(_safe(self.title, url), headers=headers)
            with _open(self.title, request) as answer, partial.open("wb") as file:
                expected, got = int(answer.headers.get("Content-Length") or -1), 0
                while block := answer.read(1 << 20):
                    got += len(block)
                    if got > MOST_BYTES:
                        raise TrainingFailed(
                            "garbage", f"{self.title} sent more than {MOST_BYTES >> 30} GiB.", "Look at the training there."
                        )
                    file.write(block)
            if expected not in (-1, got):
                raise Unsure(f"{got} of {expected} bytes")
            os.replace(partial, target)
        except (Unsure, _Busy) as error:
            raise TrainingFailed(
                "remote", f"The download from {self.title} broke off ({error}).", "Queue again: only that is repeated."
            ) from error
        except OSError as error:
            raise storage_error(target, error) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _request(self, method: str, url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
        whole = url if "://" in url else f"{self.base.rstrip('/')}/{url.lstrip('/')}"
        if urlsplit(whole).netloc != urlsplit(self.base).netloc:
            raise TrainingFailed(
                "remote", f"{self.title} named an address of somebody else ({urlsplit(whole).netloc}).", "Nothing was sent there."
            )
        request = urllib.request.Request(
            _safe(self.title, whole), data=data, method=method, headers={"Authorization": self.authorization, **(headers or {})}
        )
        with _open(self.title, request) as answer:
            return answer.read(1 << 26)

    def _json(self, content: bytes) -> dict[str, Any]:
        try:
            told = json.loads(content or b"{}")
        except ValueError as error:
            raise TrainingFailed("garbage", f"{self.title} answered with something that is no JSON.", "Queue again later.") from error
        if not isinstance(told, dict):
            raise TrainingFailed("garbage", f"{self.title} answered with something that makes no sense here.", "Queue again later.")
        return told


class _Busy(Exception):
    """Ask again after so many seconds. `broke`: something failed there, so that nobody knows how far it came."""

    def __init__(self, message: str, after_s: float, *, broke: bool) -> None:
        super().__init__(message)
        self.after_s, self.broke = after_s, broke


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:  # the key would go along
        return None


@contextlib.contextmanager
def _open(title: str, request: urllib.request.Request) -> Iterator[Any]:
    follows = not request.has_header("Authorization")
    opener = urllib.request.build_opener(*([] if follows else [_NoRedirect]))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        raise _refusal(title, error) from None
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        raise Unsure(str(getattr(error, "reason", error))) from None


def _refusal(title: str, error: urllib.error.HTTPError) -> Exception:
    """What an answer other than "fine" means."""
    with error:
        text = error.read(1 << 16).decode("utf-8", "replace")
    said = _said(text) or error.reason
    if error.code in (408, 425, 429) or error.code >= 500:
        resets = _RESETS.search(text)
        after = error.headers.get("Retry-After", "") or (resets[1] if resets else "")
        return _Busy(f"{error.code} {said}", float(after) if after.isdigit() else 0.0, broke=error.code >= 500)
    advice = {
        401: "Check the key in the environment variable, and that it is not expired.",
        402: "There is no credit left: add some there.",
        403: "The key may not do this, or the content was refused.",
        404: "It is not there (any more).",
    }.get(error.code, "Read what it said; then change the settings.")
    return TrainingFailed("gone" if error.code in (404, 410) else "remote", f"{title} refused ({error.code}): {said}.", advice)


def _said(text: str) -> str:
    """The sentence in an error answer, whichever form it has."""
    try:
        told = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:300]
    detail = told.get("detail") or told.get("message") or told.get("title") or told.get("error") if isinstance(told, dict) else told
    if isinstance(detail, list):
        detail = "; ".join(f"{'.'.join(map(str, row.get('loc', [])))}: {row.get('msg', row)}" for row in detail if isinstance(row, dict))
    return " ".join(str(detail or "").split())[:300]


def _safe(title: str, url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")):
        return url
    raise TrainingFailed(
        "remote", f"{title} named an address that is not safe ({parts.scheme}://{parts.hostname}).", "Nothing was sent there."
    )


def steps_price(spec: TrainingSpec, per_step: float, least_steps: int) -> float:
    """US dollars for the steps of a training, where a least number is charged."""
    return max(spec.steps, least_steps) * per_step


def secret(variable: str) -> str:
    return os.environ.get(variable, "").strip()
