"""A chance to cancel between two blocks of a model or layers of another part: a step of a big model takes longer than a person waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from ..flywheel.editors import Tick


def no_tick(fraction: float = 0.0, preview: Image.Image | None = None, doing: str = "") -> None:
    """Before a request there is nobody to tell."""


class Pulse:
    """Lets a person cancel between two blocks of the model or layers of another part. The model holds it, so it must not hold the session that holds the model."""

    def __init__(self) -> None:
        self.tick: Tick = no_tick
        self.fraction = 0.0

    def __call__(self, state: dict[str, Any]) -> dict[str, Any]:
        self.tick(self.fraction)
        return state

    @contextmanager
    def heard_in(self, part: Any) -> Iterator[None]:
        """While this lasts, also between two layers of a text encoder or VAE."""
        layers = [layer for layer in part.modules() if not any(True for _ in layer.children())] if isinstance(part, torch.nn.Module) else []
        hooks = [layer.register_forward_pre_hook(lambda *_: self.tick(self.fraction)) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
