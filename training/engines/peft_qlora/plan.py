"""Which examples each step shows and at what sizes: pure functions of seed and step, so a resumed run goes on as if nothing had happened."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from ....flywheel.images import size_for
from ....flywheel.qwen import control_size

Size = tuple[int, int]  # width, height in px
PATCH = 16  # px per token
BUCKET = 64  # px: with more than one image per batch sizes are coarser, so that more images share one
SAME_SHAPE = 0.01  # aspects that differ by less are the same framing


@dataclass(frozen=True, slots=True)
class Order:
    """Batches of a run. `groups`: numbers of examples that may share a batch, an example as often as it is to be shown per epoch."""

    groups: tuple[tuple[int, ...], ...]
    batch_size: int
    seed: int

    @property
    def per_epoch(self) -> int:
        return sum(math.ceil(len(group) / self.batch_size) for group in self.groups)

    def batch(self, number: int) -> tuple[int, ...]:
        """The examples of the run's batch of this number, counted from 0. Every epoch shows everything once, in an order of its own."""
        epoch, place = divmod(number, self.per_epoch)
        return self.epoch(epoch)[place]

    @lru_cache(maxsize=8)  # noqa: B019 - orders are few and small
    def epoch(self, epoch: int) -> list[tuple[int, ...]]:
        shuffled = random.Random(f"{self.seed} epoch {epoch}")
        batches: list[tuple[int, ...]] = []
        for group in self.groups:
            order = list(group)
            shuffled.shuffle(order)
            batches += [tuple(order[start : start + self.batch_size]) for start in range(0, len(order), self.batch_size)]
        shuffled.shuffle(batches)
        return batches


def order(shapes: Sequence[Hashable], repeats: Sequence[int], batch_size: int, seed: int) -> Order:
    """`shapes`: what must be equal within a batch, per example."""
    groups: dict[Hashable, list[int]] = {}
    for number, (shape, times) in enumerate(zip(shapes, repeats, strict=True)):
        groups.setdefault(shape, []).extend([number] * times)
    return Order(tuple(map(tuple, groups.values())), batch_size, seed)


def target_size(picture: Size, resolution: int, batch_size: int) -> Size:
    """Size a target is learnt at: its own aspect at `resolution` squared."""
    return size_for(*picture, megapixels=resolution**2 / 1e6, multiple=PATCH if batch_size == 1 else BUCKET)


def sizes(target: Size, controls: Sequence[Size], resolution: int, batch_size: int, control_megapixels: float) -> tuple[Size, ...]:
    """Sizes of the target and of its controls. A control framed like its target gets the same size, or the same share of it."""
    wanted = target_size(target, resolution, batch_size)
    framed = (wanted if _alike(control, target) else control for control in controls)
    return wanted, *(control_size(*size, wanted, control_megapixels) for size in framed)


def _alike(one: Size, other: Size) -> bool:
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= SAME_SHAPE


def framed(picture: Image.Image, size: Size) -> Image.Image:
    """The middle of a picture in the aspect of `size`: what is cut off is less than a patch (with buckets, less than one of those)."""
    aspect = size[0] / size[1]
    width, height = min(picture.width, round(picture.height * aspect)), min(picture.height, round(picture.width / aspect))
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture if (width, height) == picture.size else picture.crop((left, top, left + width, top + height))


def rate(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Share of the learning rate that step `step` (from 1) uses."""
    if step <= warmup:
        return step / (warmup + 1)
    done = (step - warmup - 1) / max(1, steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0
