"""The picture as a painting or drawing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from ...instructions import Instruction
from .person import Face
from .pixels import LUMA, Plane, enlarged, grain, image_of, pixels_of
from .scenes import colours_of


def style(image: Image.Image, face: Face, wish: Instruction, rng: np.random.Generator) -> Image.Image:
    words = wish.value.casefold()
    for names, paint in _STYLES:
        if any(name in words for name in names):
            return paint(image, face, rng)
    return _poster(image, words, rng)


def _oil(image: Image.Image, face: Face, rng: np.random.Generator) -> Image.Image:
    painted = _kuwahara(image, max(2, round(face.width * 0.02)))
    pixels = pixels_of(painted)
    grey = (pixels @ LUMA)[..., None]
    pixels = grey + (pixels - grey) * rng.uniform(1.2, 1.45)
    pixels = 122 + (pixels - 122) * 1.08
    strokes = _strokes(image.size, rng, long=9)
    return image_of(pixels + 17 * strokes[..., None] + 10 * _canvas(image.size)[..., None])


def _watercolor(image: Image.Image, face: Face, rng: np.random.Generator) -> Image.Image:
    painted = _kuwahara(image, max(2, round(face.width * 0.025)))
    pixels = pixels_of(painted)
    outline = _outlines(painted.filter(ImageFilter.GaussianBlur(1.2)))
    pools = _clouds(image.size, rng, (6, 18, 60))
    density = (1 - pixels / 255) * (0.82 + 0.3 * pools[..., None])  # how much pigment lies on the paper
    density = np.clip(density + 0.35 * outline[..., None] * (0.3 + density), 0, 1)
    paper = np.array([252, 249, 240], dtype=np.float32) - 7 * np.abs(_canvas(image.size))[..., None]
    wet = 1 - 0.9 * np.clip((_border(image.size) + 0.35 * pools - 0.80) * 5, 0, 1)  # the wash ends in an uneven border
    return image_of(paper * (1 - density * wet[..., None] * 0.92))


def _sketch(image: Image.Image, face: Face, rng: np.random.Generator) -> Image.Image:
    grey = image.convert("L")
    soft = np.asarray(grey.filter(ImageFilter.GaussianBlur(max(2.0, face.width * 0.035))), dtype=np.float32)
    tone = np.asarray(grey, dtype=np.float32)
    dodged = np.clip(255 * (tone + 8) / (soft + 8), 0, 255) / 255  # dodge: only what is darker than its surroundings remains
    dark = np.clip(1 - soft / 150, 0, 1)
    hatching = np.clip(0.5 + 2.2 * _strokes(image.size, rng, long=15), 0, 1)
    shade = np.clip(dodged**1.6 - 0.55 * dark * hatching - 0.10 * dark, 0, 1) * (0.75 + 0.25 * np.clip(tone / 160, 0, 1))
    pencil, paper = np.array([46, 44, 48], dtype=np.float32), np.array([247, 244, 236], dtype=np.float32)
    return image_of(pencil + (paper - pencil) * shade[..., None] + grain(shade.shape, rng, 3)[..., None])


def _poster(image: Image.Image, words: str, rng: np.random.Generator) -> Image.Image:
    """Flat tones in colours that belong to the words, with dark outlines."""
    smooth = image.filter(ImageFilter.GaussianBlur(1.5))
    pixels = pixels_of(smooth)
    grey = pixels @ LUMA
    dark, middle, bright, _ = (np.array(colour, dtype=np.float32) for colour in colours_of(words, 4))
    stops = np.array([0, 70, 150, 255], dtype=np.float32)
    ramp = np.stack([dark * 0.35, dark * 0.6 + middle * 0.4, middle * 0.3 + bright * 0.6 + 30, np.full(3, 248, dtype=np.float32)])
    steps = np.round(grey / 255 * 7 + rng.uniform(-0.15, 0.15)) / 7 * 255
    flat = np.stack([np.interp(steps, stops, ramp[:, channel]) for channel in range(3)], axis=-1)
    own = np.round(pixels / 36) * 36
    share = rng.uniform(0.4, 0.7)
    return image_of((share * flat + (1 - share) * own) * (1 - 0.6 * _outlines(smooth)[..., None]))


_Paint = Callable[[Image.Image, Face, np.random.Generator], Image.Image]
_STYLES: tuple[tuple[tuple[str, ...], _Paint], ...] = (
    (("watercol", "aquarel", "gouache", "ink wash"), _watercolor),
    (("sketch", "pencil", "drawing", "charcoal", "line art", "engraving", "ink"), _sketch),
    (("oil", "paint", "impression", "van gogh", "rembrandt", "monet", "canvas", "renaissance", "baroque"), _oil),
)


def _kuwahara(image: Image.Image, radius: int) -> Image.Image:
    """Each pixel takes the mean of the calmest of its four quarters, which keeps edges and makes dabs. Source: Kuwahara et al. 1976."""
    box = ImageFilter.BoxBlur(radius / 2)
    means = np.asarray(image.filter(box))
    grey = image.convert("L")
    squares = np.asarray(grey, dtype=np.float32) ** 2 / 255
    spread = np.asarray(Image.fromarray(squares.astype(np.uint8)).filter(box), dtype=np.float32) * 255
    spread -= np.asarray(grey.filter(box), dtype=np.float32) ** 2
    reach = (radius + 1) // 2
    padded, calm = np.pad(means, ((reach, reach), (reach, reach), (0, 0)), mode="edge"), np.pad(spread, reach, mode="edge")
    height, width = spread.shape
    best, painted = np.full_like(spread, np.inf), means.copy()
    for down in (0, 2 * reach):
        for right in (0, 2 * reach):
            quarter = calm[down : down + height, right : right + width]
            wins = quarter < best
            best = np.where(wins, quarter, best)
            np.copyto(painted, padded[down : down + height, right : right + width], where=wins[..., None])
    return Image.fromarray(painted)


def _strokes(size: tuple[int, int], rng: np.random.Generator, *, long: int) -> Plane:
    """Relief of slanted strokes, about -1…1."""
    width, height = size[0] // 2 + 1, size[1] // 2 + 1
    noise = rng.standard_normal((height + long, width + long), dtype=np.float32)
    smeared = np.zeros((height, width), dtype=np.float32)
    for step in range(long):  # along the diagonal
        smeared += noise[step : step + height, long - step : long - step + width]
    return enlarged(smeared / np.float32(2 * long**0.5), size)


def _canvas(size: tuple[int, int]) -> Plane:
    """Weave, -1…1."""
    return (np.sin(np.arange(size[0], dtype=np.float32) * 1.9)[None, :] + np.sin(np.arange(size[1], dtype=np.float32) * 1.7)[:, None]) / 2


def _clouds(size: tuple[int, int], rng: np.random.Generator, cells: tuple[int, ...]) -> Plane:
    """Soft noise of as many layers as there are numbers of patches across, 0…1."""
    layers = [enlarged(rng.random((count, count), dtype=np.float32), size) for count in cells]
    return np.clip(np.mean(layers, axis=0), 0, 1)


def _border(size: tuple[int, int]) -> Plane:
    """0 in the middle, 1 at the border."""
    x, y = (np.abs(np.linspace(-1, 1, side, dtype=np.float32)) ** 6 for side in size)
    return np.maximum(x[None, :], y[:, None])


def _outlines(image: Image.Image) -> Plane:
    """Strength of edges, 0…1."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    steps = np.zeros_like(grey)
    steps[:, 1:-1] = np.abs(grey[:, 2:] - grey[:, :-2])
    steps[1:-1] += np.abs(grey[2:] - grey[:-2])
    return np.clip((steps - 10) / 70, 0, 1)
