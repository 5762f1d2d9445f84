"""The loss curve as a picture. Takes numbers; reads no file."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

from PIL import Image, ImageDraw, ImageFont

from ..flywheel.sheets import CELL, GREEN, GREY, GROUND, LINE, SOFT, TEXT

SIZE = (960, 480)
LEFT, TOP, RIGHT, BOTTOM = 76, 64, 936, 424
POINT = (96, 104, 116)
HELD_OUT = (240, 180, 41)


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential mean that does not lean towards its first value. `weight` 0 leaves the values, 0.99 is very smooth."""
    mean, told = 0.0, list[float]()
    for number, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        told.append(mean / (1 - weight**number))
    return told


def loss_curve(
    losses: Sequence[tuple[int, float]],
    *,
    steps: int,
    checkpoints: Sequence[int] = (),
    validation: Sequence[tuple[int, float]] = (),
    weight: float = 0.9,
    title: str = "",
) -> Image.Image:
    """Loss over steps: the values as points, their smoothed course as a line, checkpoints as marks below, held-out loss as a second line.

    `losses`, `validation`: step and loss, ascending. `steps`: where the axis ends.
    """
    panel = Image.new("RGB", SIZE, GROUND)
    pen = ImageDraw.Draw(panel)
    pen.text((LEFT, 20), title or "loss", TEXT, ImageFont.load_default(20))
    pen.rectangle([LEFT, TOP, RIGHT, BOTTOM], CELL)
    small = ImageFont.load_default(15)
    if not losses:
        pen.text(((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2), "no step yet", TEXT, ImageFont.load_default(20), anchor="mm")
        return panel
    line = smoothed([loss for _, loss in losses], weight)
    low, high = _span([loss for _, loss in (*losses, *validation)])
    end = max(steps, losses[-1][0])

    def at(step: float, loss: float) -> tuple[float, float]:
        return LEFT + (RIGHT - LEFT) * step / end, BOTTOM - (BOTTOM - TOP) * (min(max(loss, low), high) - low) / (high - low)

    for value in _ticks(low, high):
        y = at(0, value)[1]
        pen.line([LEFT, y, RIGHT, y], LINE, 1)
        pen.text((LEFT - 10, y), f"{value:g}", SOFT, small, anchor="rm")
    for step in _ticks(0, end):
        x = at(step, low)[0]
        pen.line([x, BOTTOM, x, BOTTOM + 6], SOFT, 1)
        pen.text((x, BOTTOM + 12), f"{step:g}", SOFT, small, anchor="mt")
    pen.text(((LEFT + RIGHT) / 2, BOTTOM + 34), "step", SOFT, small, anchor="mt")
    for step in checkpoints:
        x = at(step, low)[0]
        pen.polygon([(x, BOTTOM - 1), (x - 5, BOTTOM - 10), (x + 5, BOTTOM - 10)], GREY)
    for step, loss in losses:
        x, y = at(step, loss)
        pen.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], POINT)
    course = [at(step, loss) for (step, _), loss in zip(losses, line, strict=True)]
    if len(course) > 1:
        pen.line(course, GREEN, 3, joint="curve")
    measured = [at(step, loss) for step, loss in validation]
    if len(measured) > 1:
        pen.line(measured, HELD_OUT, 2, joint="curve")
    for x, y in measured:
        pen.ellipse([x - 3, y - 3, x + 3, y + 3], HELD_OUT)
    if measured:
        pen.text((LEFT, 46), f"held out {validation[-1][1]:.4g}", HELD_OUT, small)
    x, y = course[-1]
    pen.ellipse([x - 4, y - 4, x + 4, y + 4], GREEN)
    pen.text((RIGHT, 20), f"step {losses[-1][0]} of {end}   loss {line[-1]:.4g}", TEXT, ImageFont.load_default(17), anchor="rt")
    return panel


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From the lowest to the highest value without the one per cent that stick out, with a little air."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return max(0.0, low - air) if low >= 0 else low - air, high + air


def _ticks(low: float, high: float) -> list[float]:
    """Round values from low to high, four to eight of them: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / 6
    unit = 10.0 ** floor(log10(rough))
    apart = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [round(number * apart, 12) for number in range(ceil(low / apart), floor(high / apart) + 1)]
