"""Another place to look from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...instructions import Instruction
from .person import Face
from .pixels import image_of, number_of, pixels_of


def camera(image: Image.Image, _face: Face, wish: Instruction, rng: np.random.Generator) -> Image.Image:
    """A small turn of the picture plane: perspective, shift, zoom. What comes in at the border is the picture's reflection."""
    words = wish.value.casefold()

    def has(*names: str) -> bool:
        return any(name in words for name in names)

    turn = 0.09 * ((has("right") or has("side", "profile")) - has("left")) * rng.uniform(0.85, 1.15)
    tilt = 0.09 * (has("high", "above", "up", "bird", "overhead") - has("low", "below", "down", "under")) * rng.uniform(0.85, 1.15)
    zoom = 1 + 0.14 * (has("zoom in", "close", "near") - has("zoom out", "far", "wide", "away"))
    if not (turn or tilt or zoom != 1):
        turn, tilt = (0.07 * sign for sign in np.random.default_rng(number_of(words)).choice([-1.0, 1.0], 2))
    margin = 0.2
    pads = round(image.width * margin), round(image.height * margin)
    wide = np.pad(np.asarray(image), ((pads[1], pads[1]), (pads[0], pads[0]), (0, 0)), mode="reflect")
    corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    depth = 1 + turn * corners[:, :1] + tilt * corners[:, 1:]  # the nearer side is seen larger, so less of it is taken
    taken = corners * depth / zoom + np.array([0.6 * turn, 0.6 * tilt]) + rng.uniform(-0.01, 0.01, 2)
    taken = (taken + 1) / 2 * np.array(image.size) + np.array(pads)
    moved = Image.fromarray(wide).transform(
        image.size, Image.Transform.PERSPECTIVE, _perspective(taken, image.size), Image.Resampling.BICUBIC
    )
    return image_of(pixels_of(moved) * rng.uniform(0.98, 1.02))


def _perspective(taken: NDArray[np.float64], size: tuple[int, int]) -> list[float]:
    """Pillow's eight coefficients of the map from the corners of `size` to the four points `taken`."""
    width, height = size
    corners = ((0, 0), (width, 0), (width, height), (0, height))
    rows: list[list[Any]] = []
    for (x, y), (u, v) in zip(corners, taken, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    coefficients: list[float] = np.linalg.solve(np.array(rows), taken.reshape(8)).tolist()
    return coefficients
