"""A tiny real editor for tests of the loop: tints the control by the seed, and fails, waits or stops where a test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from comfyui_flenwheel.flywheel.editors import Edit, EditRequest, Rendered, Tick
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
        yield self._edit
        self.sessions.append("closed")

    def _edit(self, request: EditRequest, tick: Tick) -> Rendered:
        self.before(request)
        tick(0.5)
        control = open_image(request.controls[0].path).image.resize((request.width, request.height))
        colour = request.seed.to_bytes(8, "big")[-3:]
        return Rendered(Image.blend(control, Image.new("RGB", control.size, tuple(colour)), self.strength), {"stamped": True})
