"""A tiny real editor for tests of the loop: tints the control, or nothing, by the seed, and fails, waits or stops where a test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from comfyui_flenwheel.flywheel.editors import Edit, EditRequest, Exposed, Rendered, Tick
from comfyui_flenwheel.flywheel.images import open_image
from PIL import Image


@dataclass(frozen=True)
class Stamp:
    strength: float = 0.5
    before: Callable[[EditRequest], None] = lambda request: None
    sessions: list[str] = field(default_factory=list)
    name: str = "stamp"
    controls: range = range(1, 2)

    def fingerprint(self) -> dict[str, str]:
        return {"editor": self.name, "strength": f"{self.strength:g}"}

    @contextmanager
    def session(self) -> Iterator[Edit]:
        self.sessions.append("opened")
        try:
            yield self._edit
        finally:
            self.sessions.append("closed")

    def _edit(self, request: EditRequest, tick: Tick) -> Rendered:
        self.before(request)
        tick(0.5)
        size = (request.width, request.height)
        control = open_image(request.controls[0].path).image.resize(size) if request.controls else Image.new("RGB", size)
        colour = request.seed.to_bytes(8, "big")[-3:]
        return Rendered(Image.blend(control, Image.new("RGB", control.size, tuple(colour)), self.strength), {"stamped": True})


@dataclass(frozen=True)
class Darkroom(Stamp):
    """The same images, whose pixels come later: `develops` is called where they are made, with the request and whether that is beside the next image."""

    develops: Callable[[EditRequest, bool], None] = lambda request, beside: None
    given_up: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def session(self) -> Iterator[Edit]:
        with super().session():
            yield _Exposing(self)


@dataclass(frozen=True)
class _Exposing:
    room: Darkroom

    def __call__(self, request: EditRequest, tick: Tick) -> Rendered:
        return self.expose(request, tick).develop_alone()

    def expose(self, request: EditRequest, tick: Tick) -> Exposed:
        rendered = self.room._edit(request, tick)

        def develop(beside: bool) -> Rendered:
            self.room.develops(request, beside)
            self.room.sessions.append("developed")
            return rendered

        return Exposed(lambda: develop(True), lambda: develop(False))

    def abandon(self) -> None:
        self.room.given_up.set()


@dataclass(frozen=True)
class Foreseeing(Darkroom):
    """A darkroom that is told what is to come and tells what it needed."""

    foreseen: list[EditRequest] = field(default_factory=list)

    @contextmanager
    def session(self) -> Iterator[Edit]:
        with Stamp.session(self):
            yield _Foreseeing(self)


@dataclass(frozen=True)
class _Foreseeing(_Exposing):
    room: Foreseeing

    def expect(self, requests: Sequence[EditRequest]) -> None:
        self.room.foreseen.extend(requests)

    def account(self) -> list[str]:
        return ["so much memory"]
