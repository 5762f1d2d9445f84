"""The one loop that makes images. Enrichment, synthetic images and the model card are lists of orders given to it.

Running again is resuming: an order whose image is on the shelf is not made again. What an editor has finished is saved, whatever happens next.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from .editors import (
    Accountable,
    Choosy,
    Developing,
    Edit,
    Editor,
    EditRequest,
    Exposed,
    Foresighted,
    Rendered,
    expose,
    fingerprint_of,
    key_of,
)
from .errors import EditorError, EditorUnavailable, FlywheelError, OutOfRoom, StorageError
from .images import png_bytes

log = logging.getLogger("flenwheel")

IN_FLIGHT = 2  # images being developed and saved while the editor makes the next: more would only cost memory
TICK_S = 0.25  # between looks at whether the person cancelled, while an image is waited for
GRACE_S = 0.5  # for images on their way when a person cancels, who waits a second at most
HOPELESS = 5  # failures in a row after which the editor, not the image, is taken to be at fault


@dataclass(frozen=True, slots=True)
class Order:
    """A request, the readable start of its file's name, and the facts its lineage keeps."""

    request: EditRequest
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a long run is. `done` counts saved images and the started share of the next; `preview` is the newest image; `doing`: what is
    prepared meanwhile, in words."""

    done: float
    total: int
    made: int
    eta_s: float | None
    preview: Image.Image | None = None
    name: str = ""
    doing: str = ""


class Keeper(Protocol):
    """Where finished images lie, by request key: the shelf of a project's stage, or a folder."""

    def __contains__(self, request_key: object) -> bool: ...

    def add(self, request_key: str, name: str, png: bytes, image: Image.Image, *, facts: Mapping[str, Any]) -> Path:
        """Keep an image, encoded and as pixels; it is whole on disk when this returns."""
        ...


Report = Callable[[Progress], None]  # may raise: that is how a person cancels


@dataclass(frozen=True, slots=True)
class Finished:
    """An order whose image is on the shelf; `made` tells whether this run made it."""

    order: Order
    request_key: str
    made: bool


FollowUp = Callable[[Finished], Order | None]


@dataclass(frozen=True, slots=True)
class Run:
    """What a render came to. `failed` pairs an order with the reason; everything else is on the shelf."""

    finished: tuple[Finished, ...]
    failed: tuple[tuple[Order, str], ...]
    left: int  # orders not begun because of `limit`
    seconds: float
    account: tuple[str, ...] = ()  # what the editor needed, in sentences

    @property
    def made(self) -> int:
        return sum(finished.made for finished in self.finished)


def silent(_: Progress) -> None:
    """A report nobody reads."""


def render(
    orders: Sequence[Order], editor: Editor, shelf: Keeper, *, report: Report = silent, follow_up: FollowUp | None = None, limit: int = 0
) -> Run:
    """Make every ordered image that is not on the shelf yet; stop after `limit` new ones (0: no limit).

    Orders are made in the order given, except that an editor may want requests of one kind together (`Choosy.group`).
    `follow_up` sees each finished order once it is saved and may answer with one more order, for example a retry with another seed.

    Raises:
        EditorError: a request does not suit the editor (before anything is loaded), or the editor fails again and again.
        StorageError: the disk refused.
    """
    _refuse_unsuitable(orders, editor)
    with _Renderer(editor, shelf, report, follow_up, deque(_together(orders, editor))) as renderer:
        return renderer.run(limit)


@dataclass(frozen=True, slots=True)
class _InFlight:
    """An order whose image is made but for its pixels or its file. `seconds` it took so far."""

    order: Order
    request_key: str
    exposed: Exposed
    seconds: float
    saved: Future[Image.Image]


class _Renderer(ExitStack):
    def __init__(self, editor: Editor, shelf: Keeper, report: Report, follow_up: FollowUp | None, queue: deque[Order]) -> None:
        super().__init__()
        self.editor, self.shelf, self.report, self.follow_up, self.queue = editor, shelf, report, follow_up, queue
        self.total = len(queue)
        self.finished: list[Finished] = []
        self.failed: list[tuple[Order, str]] = []
        self.in_flight: deque[_InFlight] = deque()
        self.started, self.editing_s, self.fraction = time.monotonic(), 0.0, 0.0
        self.failures_in_a_row = self.saved = 0
        self._edit: Edit | None = None
        self.saver = self.enter_context(ThreadPoolExecutor(1, "flenwheel-save"))

    def run(self, limit: int) -> Run:
        left = 0
        while self.queue or self.in_flight:
            while self.queue:
                order = self.queue.popleft()
                key = key_of(self.editor, order.request)
                if key in self.shelf:
                    self._finish(Finished(order, key, made=False))
                elif limit and self._reached(limit):
                    left += 1
                else:
                    self._make(order, key, limit)
            self._settle(0)
        account = tuple(self._edit.account()) if isinstance(self._edit, Accountable) else ()
        return Run(tuple(self.finished), tuple(self.failed), left, time.monotonic() - self.started, account)

    @property
    def edits(self) -> int:
        """Images made, those on their way among them."""
        return self.saved + len(self.in_flight)

    def _reached(self, limit: int) -> bool:
        if self.edits >= limit:
            self._settle(0)  # one on its way may fail yet
        return self.edits >= limit

    def _session(self, order: Order, limit: int) -> Edit:
        if self._edit is None:
            self._edit = self.enter_context(self.editor.session())
            self.push(self._leave)  # before the session ends: what is on its way still needs it
            if isinstance(self._edit, Foresighted):
                missing = [order, *(other for other in self.queue if key_of(self.editor, other.request) not in self.shelf)]
                self._edit.expect([other.request for other in missing[: limit or None]])
        return self._edit

    def _make(self, order: Order, key: str, limit: int) -> None:
        edit = self._session(order, limit)
        began = time.monotonic()
        try:
            exposed = expose(edit, order.request, self._tick)
        except (StorageError, EditorUnavailable):
            raise
        except FlywheelError as error:
            self._settle(0)  # failures are counted in the order of their images
            self._fail(order, error)
            return
        seconds = time.monotonic() - began
        saved = self.saver.submit(self._keep, order, key, exposed.develop, seconds)
        self.in_flight.append(_InFlight(order, key, exposed, seconds, saved))
        self._settle(IN_FLIGHT)
        self.editing_s += time.monotonic() - began
        if self.edits == 2:
            self._tell_pace()

    def _keep(self, order: Order, key: str, develop: Callable[[], Rendered], seconds: float) -> Image.Image:
        """Develop an image and put it on the shelf; mostly in the saver's thread."""
        began = time.monotonic()
        rendered = develop()
        _refuse_wrong_size(order.request, rendered, self.editor)
        seconds += time.monotonic() - began
        made_by = fingerprint_of(self.editor, order.request)
        facts = {**order.facts, "editor": made_by, "notes": dict(rendered.notes), "seconds": round(seconds, 3)}
        self.shelf.add(key, order.name, png_bytes(rendered.image), rendered.image, facts=facts)
        return rendered.image

    def _settle(self, allowed: int) -> None:
        """Take note of images that came to be, and of those that did not, until at most `allowed` are still on their way."""
        while self.in_flight and (len(self.in_flight) > allowed or self.in_flight[0].saved.done()):
            one = self.in_flight[0]
            image = self._waited_for(one)
            if isinstance(image, (StorageError, EditorUnavailable)):
                del one
                try:
                    raise image
                finally:
                    del image  # it holds this frame
            self.in_flight.popleft()
            if isinstance(image, FlywheelError):
                self._fail(one.order, image)
                continue
            self.saved, self.failures_in_a_row = self.saved + 1, 0
            self._finish(Finished(one.order, one.request_key, made=True), image)

    def _waited_for(self, one: _InFlight) -> Image.Image | FlywheelError:
        """An image on its way, or why there is none. Raised here, the error would hold this frame, and it the error: a circle that keeps the session, and
        with it a model, until the next full garbage collection."""
        self._wait([one.saved])
        error = one.saved.exception()
        if error is None:
            return one.saved.result()
        if not isinstance(error, OutOfRoom):
            if isinstance(error, FlywheelError):
                return error
            raise error
        self._wait([other.saved for other in self.in_flight])
        try:
            return self._keep(one.order, one.request_key, one.exposed.develop_alone, one.seconds)
        except FlywheelError as failed:
            return failed

    def _wait(self, saved: Sequence[Future[Image.Image]]) -> None:
        while wait(saved, TICK_S).not_done:
            self._tick(self.fraction)

    def _leave(self, kind: type[BaseException] | None, *_: Any) -> None:
        """What was made gets saved. Only a person who cancels waits no longer than a moment for pixels that are still to be computed."""
        cancelled = kind is not None and not issubclass(kind, FlywheelError)
        late = wait([one.saved for one in self.in_flight], GRACE_S if cancelled else None).not_done
        if late and isinstance(self._edit, Developing):
            self._edit.abandon()
        wait(late)
        self.in_flight.clear()  # the error of one that failed holds this loop, and the loop it

    def _finish(self, finished: Finished, image: Image.Image | None = None) -> None:
        self.finished.append(finished)
        self.fraction = 0.0
        more = self.follow_up(finished) if self.follow_up else None
        if more is not None:
            self.queue.appendleft(more)
            self.total += 1
        self.report(self._progress(0.0, image, finished.order.name))

    def _fail(self, order: Order, error: FlywheelError) -> None:
        self.failed.append((order, str(error)))
        self.fraction = 0.0
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= HOPELESS:
            raise EditorError(f"{self.editor.name} failed {HOPELESS} times in a row, the last time with: {error}") from error

    def _tick(self, fraction: float = 0.0, preview: Image.Image | None = None, doing: str = "") -> None:
        self.fraction = fraction
        self.report(replace(self._progress(fraction, preview, ""), doing=doing))

    def _tell_pace(self) -> None:
        pace, left = self.editing_s / 2, len(self.queue)
        log.info("%s: %.1f s per image (the first two); about %.0f s for the other %d.", self.editor.name, pace, pace * left, left)

    def _progress(self, fraction: float, preview: Image.Image | None, name: str) -> Progress:
        done = len(self.finished) + len(self.failed)
        eta = (self.total - done - fraction) * self.editing_s / self.edits if self.edits else None
        return Progress(done + fraction, self.total, self.edits, eta, preview, name)


def _refuse_unsuitable(orders: Iterable[Order], editor: Editor) -> None:
    """Check every request before anything is loaded or paid."""
    wrong = sorted({len(order.request.controls) for order in orders if len(order.request.controls) not in editor.controls})
    if wrong:
        if not editor.controls[-1]:
            raise EditorError(
                f"{editor.name} makes images of words alone. Connect an editor of photos here, and this one to Synthetic Images."
            )
        takes = _span(editor.controls)
        raise EditorError(f"{editor.name} takes {takes} control images per request, but some requests have {', '.join(map(str, wrong))}.")


def _together(orders: Sequence[Order], editor: Editor) -> list[Order]:
    """Groups in the order of their first member; within a group the given order."""
    if not isinstance(editor, Choosy):
        return list(orders)
    groups = [editor.group(order.request) for order in orders]
    first = {group: place for place, group in reversed(list(enumerate(groups)))}
    return [order for _, order in sorted(zip(groups, orders, strict=True), key=lambda pair: first[pair[0]])]


def _span(numbers: range) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _refuse_wrong_size(request: EditRequest, rendered: Rendered, editor: Editor) -> None:
    wanted = (request.width, request.height)
    if rendered.image.size != wanted:
        raise EditorError(f"{editor.name} returned {rendered.image.size} px where {wanted} was asked for; the image was not kept.")


def made_some(run: Run) -> Run:
    """The run, of which not every image failed.

    Raises:
        EditorError: none could be made.
    """
    if run.failed and not run.finished:
        raise EditorError(f"Not one of {len(run.failed)} images could be made. The first reason: {run.failed[0][1]}")
    return run


def summary(run: Run) -> Iterator[str]:
    """What happened, in sentences."""
    found = len(run.finished) - run.made
    pace = f", {run.seconds / run.made:.1f} s each" if run.made else ""
    yield f"{run.made} image{'' if run.made == 1 else 's'} made in {run.seconds:.0f} s{pace}; {found} were there already."
    yield from run.account
    if run.left:
        yield f"{run.left} images are left for the next run (limit)."
    for order, reason in run.failed:
        yield f"Not made: {order.name}: {reason}"
