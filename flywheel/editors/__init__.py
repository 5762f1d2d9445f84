"""What an editor is. One file per editor; EDITORS lists them for node making and for the contract tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from ..images import value_key


@dataclass(frozen=True, slots=True)
class ControlRef:
    """A control image by file and content key. Slot n of a request is "Picture n" of Qwen-Image-Edit."""

    path: Path
    key: str


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One image to be made: only what varies per image. Without controls it is text-to-image.

    `width` and `height` in px, multiples of 16. `label` names the request for people (prompt template, card slot); it changes no pixel. `tags`
    such as "@angle" choose among an editor's LoRAs; what they chose is in the editor's fingerprint for this request.
    """

    prompt: str
    controls: tuple[ControlRef, ...]
    seed: int
    width: int
    height: int
    label: str = ""
    tags: tuple[str, ...] = ()

    def key(self, fingerprint: Mapping[str, str]) -> str:
        """16 hex digits that name the result of this request made by an editor with this fingerprint."""
        return value_key(
            {
                "prompt": self.prompt,
                "controls": [control.key for control in self.controls],
                "seed": self.seed,
                "size": [self.width, self.height],
                "editor": dict(fingerprint),
            }
        )


@dataclass(frozen=True, slots=True)
class Rendered:
    """An image of the requested size and what its lineage must remember: options the editor ignored, cost, …"""

    image: Image.Image
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exposed:
    """An image that is made but for its pixels: `develop` turns numbers into them, in another thread and beside the next image; `develop_alone`
    does so in the session's own thread, while nothing else is made.

    Both raise EditorError when there is nothing to see, and `develop` OutOfRoom when memory does not suffice for both.
    """

    develop: Callable[[], Rendered]
    develop_alone: Callable[[], Rendered]


class Tick(Protocol):
    """Called by an editor at least once a second, or once a denoising step. May raise: that is how a person cancels.

    `fraction` of this image, 0…1. `doing`: words for what takes long besides making it, such as "loading the transformer: 40%".
    """

    def __call__(self, fraction: float = 0.0, preview: Image.Image | None = None, doing: str = "") -> None: ...


Edit = Callable[[EditRequest, Tick], Rendered]


class Editor(Protocol):
    """Makes images from requests. A light value of options: it can sit in a cache for days without holding memory."""

    @property
    def name(self) -> str: ...

    @property
    def controls(self) -> range:
        """How many control images a request may have, for example range(1, 4)."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Everything that can change a pixel and does not vary per image."""
        ...

    def session(self) -> AbstractContextManager[Edit]:
        """Load on entering, free on leaving; one session makes many images.

        Raises:
            EditorUnavailable: something this editor needs is missing.
        """
        ...


@runtime_checkable
class Choosy(Protocol):
    """What an editor has besides, if it does not treat all requests alike: for example LoRAs that only some prompts use."""

    def fingerprint_for(self, request: EditRequest) -> dict[str, str]:
        """`fingerprint`, narrowed to what can change this request's pixels, so that an option it does not use makes no other file."""
        ...

    def group(self, request: EditRequest) -> str:
        """Requests of one group are made one after another, because changing over costs time."""
        ...


@runtime_checkable
class Foresighted(Protocol):
    """An `Edit` that can prepare several requests at once, for example encode all prompts before it loads the model."""

    def __call__(self, request: EditRequest, tick: Tick, /) -> Rendered: ...

    def expect(self, requests: Sequence[EditRequest]) -> None:
        """The requests to come, in order. Some may never come, and others may come between."""
        ...


@runtime_checkable
class Developing(Protocol):
    """An `Edit` that need not wait for an image's pixels before it makes the next image."""

    def __call__(self, request: EditRequest, tick: Tick, /) -> Rendered: ...

    def expose(self, request: EditRequest, tick: Tick, /) -> Exposed:
        """What `__call__` makes, but for its pixels."""
        ...

    def abandon(self) -> None:
        """A person has cancelled: every `develop` ends within a moment, with an error, and its image is lost."""
        ...


@runtime_checkable
class Accountable(Protocol):
    """An `Edit` that can tell what it needed, for the report of a run."""

    def __call__(self, request: EditRequest, tick: Tick, /) -> Rendered: ...

    def account(self) -> Sequence[str]:
        """What this session needed so far, in sentences; nothing before its first image."""
        ...


def expose(edit: Edit, request: EditRequest, tick: Tick) -> Exposed:
    """What an editor makes of a request; of one that has the pixels at once, these."""
    if isinstance(edit, Developing):
        return edit.expose(request, tick)
    rendered = edit(request, tick)
    return Exposed(lambda: rendered, lambda: rendered)


def key_of(editor: Editor, request: EditRequest) -> str:
    """The name of what this editor makes of this request."""
    return request.key(fingerprint_of(editor, request))


def fingerprint_of(editor: Editor, request: EditRequest) -> dict[str, str]:
    return editor.fingerprint_for(request) if isinstance(editor, Choosy) else editor.fingerprint()


from .qwen_diffusers import QwenDiffusers  # noqa: E402 - an editor's file needs the names above
from .rehearsal import Rehearsal  # noqa: E402

EDITORS: dict[str, type[Editor]] = {"qwen_diffusers": QwenDiffusers, "rehearsal": Rehearsal}
