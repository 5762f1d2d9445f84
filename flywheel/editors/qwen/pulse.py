"""Where an image is, told about four times a second, within a step too: the person who hears it may answer by cancelling."""

from __future__ import annotations

import time
from typing import Any

import torch
from PIL import Image

from .. import Tick

TICK_S = 0.25  # between looks at whether the person cancelled, within a step
QUEUED_BLOCKS = 2  # blocks a GPU may be behind: with more, cancelling would wait for the whole step
DENOISING = 0.95  # of an image's time; the rest is decoding


class Pulse:
    """Knows the tick of the image being made and how far that image is. Before the first image it is silent."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tick: Tick | None = None
        self._ticked = 0.0
        self._step = (0, 1)
        self._events: list[Any] = []

    def begin(self, tick: Tick, steps: int = 1) -> None:
        self._tick, self._step = tick, (0, steps)

    def step(self, done: int, preview: Image.Image) -> None:
        """So many steps are done; the image looks like this."""
        assert self._tick  # steps belong to an image that has begun
        self._step = (done, self._step[1])
        self._events.clear()
        self._ticked = time.monotonic()
        self._tick(self._fraction, preview)

    def block(self, *_: Any) -> None:
        """Before each block of the transformer: stay close to the card, and look whether to go on."""
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._events.append(event)
            if len(self._events) > QUEUED_BLOCKS:
                self._events.pop(0).synchronize()
        self._look("")

    def doing(self, what: str, done: int, total: int) -> None:
        """Preparations of which `done` of `total` are over. Their first and last word is always passed on."""
        if not 0 < done < total:
            self._ticked = 0.0
        self._look(f"{what}: {done / max(total, 1):.0%}")

    def _look(self, doing: str) -> None:
        now = time.monotonic()
        if self._tick and now - self._ticked > TICK_S:
            self._ticked = now
            self._tick(self._fraction, doing=doing) if doing else self._tick(self._fraction)

    @property
    def _fraction(self) -> float:
        return DENOISING * self._step[0] / self._step[1]
