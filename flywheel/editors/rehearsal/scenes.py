"""Backgrounds drawn from a few words: forest, beach, city, studio, or lights in the colours of the words. Knows no person."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Paint = Callable[[tuple[int, int], np.random.Generator], Image.Image]

DRAWN_PX = 512  # longer side of the drawing: it lies out of focus, so nobody sees more
_NIGHT = re.compile(r"\b(?:night|nighttime|dark|midnight|moonlit|evening)\b")
_SUNSET = re.compile(r"\b(?:sunset|sunrise|dusk|dawn|golden)\b")


def draw_scene(words: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A background of `size` px for `words`. The same words and generator state give the same pixels; night and sunset are understood."""
    words = words.casefold()
    scale = min(1.0, DRAWN_PX / max(size))
    drawn = _paint_for(words)((max(8, round(size[0] * scale)), max(8, round(size[1] * scale))), rng)
    if _NIGHT.search(words):
        drawn = _graded(drawn, (0.32, 0.38, 0.62))
    elif _SUNSET.search(words):
        drawn = _graded(drawn, (1.10, 0.82, 0.62))
    return drawn.resize(size, Image.Resampling.BICUBIC)


def colours_of(words: str, count: int) -> list[Colour]:
    """Colours that belong to `words`: unknown words look different from each other and always the same."""
    digest = hashlib.sha256(words.encode()).digest()
    hue = digest[0] / 256
    return [
        _hsv(
            (hue + (digest[1 + 2 * number] / 256 - 0.5) * 0.35) % 1,
            0.45 + digest[2 + 2 * number] / 640,
            0.35 + 0.5 * number / max(1, count - 1),
        )
        for number in range(count)
    ]


def _paint_for(words: str) -> Paint:
    for pattern, paint in _PAINTS:
        if re.search(rf"\b(?:{pattern})", words):
            return paint
    return lambda size, rng: _lights(words, size, rng)


def _forest(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    width, height = size
    image = _gradient(
        size, [(0.0, (196, 214, 150)), (0.35, (134, 168, 96)), (0.68, (70, 104, 52)), (0.72, (78, 84, 44)), (1.0, (52, 54, 30))]
    )
    for layer in range(4):  # far to near: darker, sharper, wider
        depth = layer / 3
        _blobs(image, rng, 60, (0.0, 0.62), (0.05, 0.13), _mix((150, 182, 104), (38, 66, 28), depth), spread=26)
        pen = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(3, 6))):
            trunk = width * (0.012 + 0.028 * depth) * rng.uniform(0.7, 1.5)
            x, lean = rng.uniform(-0.05, 1.05) * width, rng.uniform(-0.05, 0.05) * width
            foot = height * (0.68 + 0.16 * depth)
            bark = _varied(_mix((104, 100, 66), (40, 31, 22), depth), rng, 12)
            pen.polygon([(x + lean - trunk * 0.6, 0), (x + lean + trunk * 0.6, 0), (x + trunk, foot), (x - trunk, foot)], fill=bark)
        image = image.filter(ImageFilter.GaussianBlur(max(size) * (0.012 - 0.0025 * layer)))
    _blobs(image, rng, 90, (0.74, 1.05), (0.02, 0.06), (92, 100, 46), spread=34)
    image = _sunrays(image.filter(ImageFilter.GaussianBlur(max(size) * 0.004)), rng)
    return _bokeh(image, rng, 26, [(226, 236, 160), (190, 216, 120)], (0.0, 0.6), (0.008, 0.024))


def _beach(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    width, height = size
    horizon, shore = rng.uniform(0.36, 0.46), rng.uniform(0.60, 0.68)
    image = _gradient(
        size,
        [
            (0.0, _varied((92, 158, 214), rng, 14)),
            (horizon - 0.01, (214, 232, 240)),
            (horizon, (44, 124, 164)),
            (shore - 0.03, (104, 190, 192)),
            (shore, (214, 222, 208)),
            (shore + 0.04, (206, 184, 142)),
            (1.0, (232, 210, 164)),
        ],
    )
    clouds = Image.new("L", size, 0)
    pen = ImageDraw.Draw(clouds)
    for _ in range(34):
        x, y, long = rng.uniform(0, 1) * width, rng.uniform(0.04, horizon - 0.06) * height, rng.uniform(0.05, 0.22) * width
        pen.ellipse([x - long, y - long * 0.16, x + long, y + long * 0.16], fill=int(rng.integers(60, 190)))
    image.paste((250, 250, 250), (0, 0), clouds.filter(ImageFilter.GaussianBlur(max(size) * 0.014)))
    pen = ImageDraw.Draw(image)
    for _ in range(150):  # glints on the water, longer towards the shore
        depth = rng.uniform(0, 1)
        y, long = (horizon + 0.01 + depth * (shore - horizon - 0.03)) * height, (0.01 + 0.06 * depth) * width
        x = rng.uniform(0, 1) * width
        pen.line([x - long, y, x + long, y], fill=_varied((150, 208, 214), rng, 30), width=1 + int(depth * 2))
    for line in range(3):  # foam
        y = (shore - 0.05 + 0.025 * line) * height
        wave = [(x, y + np.sin(x / width * rng.uniform(6, 9) + line) * height * 0.006) for x in range(0, width + 8, 8)]
        pen.line(wave, fill=(240, 246, 244), width=2 + line)
    _blobs(image, rng, 260, (shore + 0.06, 1.05), (0.004, 0.022), (220, 197, 152), spread=9)
    return image.filter(ImageFilter.GaussianBlur(max(size) * 0.005))


def _city(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    width, height = size
    image = _gradient(
        size, [(0.0, _varied((150, 176, 204), rng, 16)), (0.55, (226, 220, 206)), (0.74, (150, 148, 146)), (1.0, (82, 82, 86))]
    )
    for layer in range(3):
        depth = layer / 2
        pen = ImageDraw.Draw(image)
        x = -rng.uniform(0, 0.1) * width
        while x < width:
            wide = width * rng.uniform(0.09, 0.2) * (0.7 + 0.6 * depth)
            middle = abs((x + wide / 2) / width - 0.5) * 2  # the street runs into the picture: low houses far away in its middle
            roof = height * (0.52 - (0.16 + 0.34 * middle) * (0.45 + 0.6 * depth) * rng.uniform(0.75, 1.25))
            foot = height * (0.70 + 0.10 * depth)
            if layer < 2 or middle > 0.55:
                _house(pen, rng, (x, roof, x + wide, foot), _varied(_mix((176, 180, 186), (104, 96, 92), depth), rng, 16))
            x += wide * rng.uniform(1.0, 1.15)
        image = image.filter(ImageFilter.GaussianBlur(max(size) * (0.008 - 0.002 * layer)))
    lamps = [(255, 226, 168), (255, 244, 220), (238, 120, 92), (150, 190, 230)]
    return _bokeh(image.filter(ImageFilter.GaussianBlur(max(size) * 0.005)), rng, 22, lamps, (0.42, 0.80), (0.010, 0.026))


def _house(pen: ImageDraw.ImageDraw, rng: np.random.Generator, walls: tuple[float, float, float, float], colour: Colour) -> None:
    left, roof, right, foot = walls
    pen.rectangle([left, roof, right, foot], fill=colour)
    wide = (right - left) / 5
    for column in range(4):
        x = left + wide * (0.7 + column)
        y = roof + wide * 0.8
        while y < foot - wide:
            lit = rng.random() < 0.22
            pen.rectangle([x, y, x + wide * 0.6, y + wide * 0.8], fill=(246, 222, 160) if lit else _mix(colour, (52, 62, 76), 0.5))
            y += wide * 1.5


def _studio(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    tone = _varied((150, 152, 156), rng, 26)
    light = _radial(size, (rng.uniform(0.35, 0.65), rng.uniform(0.28, 0.42)), 0.85)[..., None]
    floor = np.linspace(0, 1, size[1], dtype=np.float32)[:, None, None]
    paper = np.array(tone, dtype=np.float32) * (0.42 + 0.85 * light) * (1 - 0.18 * np.clip((floor - 0.75) * 4, 0, 1))
    return Image.fromarray(np.clip(paper, 0, 255).astype(np.uint8))


def _lights(words: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    dark, middle, bright, lamp = colours_of(words, 4)
    image = _gradient(size, [(0.0, _varied(middle, rng, 12)), (0.6, dark), (1.0, _mix(dark, (10, 10, 14), 0.5))])
    _blobs(image, rng, 26, (0.0, 1.0), (0.12, 0.30), middle, spread=30)
    image = image.filter(ImageFilter.GaussianBlur(max(size) * 0.04))
    return _bokeh(image, rng, 46, [bright, lamp, _mix(lamp, (255, 255, 255), 0.5)], (0.0, 1.0), (0.012, 0.045))


_PAINTS: tuple[tuple[str, Paint], ...] = (
    ("forest|wood|jungle|tree|park|garden|nature", _forest),
    ("beach|sea|ocean|coast|shore|island|sand", _beach),
    ("urban|city|street|town|skyline|downtown|alley", _city),
    ("studio|plain|white|gr[ae]y|backdrop|clean|neutral", _studio),
)


def _gradient(size: tuple[int, int], stops: list[tuple[float, Colour]]) -> Image.Image:
    """Top to bottom through coloured stops."""
    heights = np.linspace(0, 1, size[1])
    rows = np.stack(
        [np.interp(heights, [at for at, _ in stops], [colour[channel] for _, colour in stops]) for channel in range(3)], axis=-1
    )
    return Image.fromarray(rows.astype(np.uint8)[:, None, :]).resize(size, Image.Resampling.NEAREST)


def _blobs(
    image: Image.Image,
    rng: np.random.Generator,
    count: int,
    rows: tuple[float, float],
    radius: tuple[float, float],
    colour: Colour,
    *,
    spread: int,
) -> None:
    """Ellipses of about one colour between two heights; sizes as shares of the longer side. Draws into `image`."""
    pen = ImageDraw.Draw(image)
    for _ in range(count):
        x, y = rng.uniform(-0.05, 1.05) * image.width, rng.uniform(*rows) * image.height
        wide = rng.uniform(*radius) * max(image.size)
        high = wide * rng.uniform(0.4, 0.9)
        pen.ellipse([x - wide, y - high, x + wide, y + high], fill=_varied(colour, rng, spread))


def _bokeh(
    image: Image.Image, rng: np.random.Generator, count: int, colours: list[Colour], rows: tuple[float, float], radius: tuple[float, float]
) -> Image.Image:
    """Lights out of focus: discs that add up."""
    light = Image.new("RGB", image.size)
    for _ in range(count):
        x, y, r = rng.uniform(0, 1) * image.width, rng.uniform(*rows) * image.height, rng.uniform(*radius) * max(image.size)
        box = (int(x - r), int(y - r), int(x + r) + 1, int(y + r) + 1)
        disc = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        ImageDraw.Draw(disc).ellipse([0, 0, disc.width - 1, disc.height - 1], fill=int(rng.integers(50, 150)))
        light.paste(colours[int(rng.integers(len(colours)))], box[:2], disc)
    light = light.filter(ImageFilter.GaussianBlur(max(image.size) * 0.0025))
    below, above = np.asarray(image, dtype=np.float32), np.asarray(light, dtype=np.float32)
    return Image.fromarray((255 - (255 - below) * (255 - above) / 255).astype(np.uint8))


def _sunrays(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    rays = Image.new("L", image.size)
    pen = ImageDraw.Draw(rays)
    origin = rng.uniform(0.1, 0.9) * image.width
    for _ in range(7):
        aim, wide = rng.uniform(-0.4, 1.4) * image.width, rng.uniform(0.02, 0.09) * image.width
        pen.polygon([(origin, -0.2 * image.height), (aim - wide, image.height), (aim + wide, image.height)], fill=int(rng.integers(18, 60)))
    fade = Image.fromarray((np.linspace(255, 40, image.height)[:, None] * np.ones((1, image.width))).astype(np.uint8))
    rays = Image.composite(rays, Image.new("L", image.size), fade).filter(ImageFilter.GaussianBlur(max(image.size) * 0.02))
    image.paste((250, 246, 200), (0, 0), rays)
    return image


def _radial(size: tuple[int, int], centre: tuple[float, float], reach: float) -> NDArray[np.floating[Any]]:
    """1 at the centre, falling to 0 at `reach` times the longer side; shape (height, width)."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float32)
    distance = np.hypot(x - centre[0] * size[0], y - centre[1] * size[1]) / (reach * max(size))
    return np.clip(1 - distance, 0, 1) ** 1.3


def _graded(image: Image.Image, gain: tuple[float, float, float]) -> Image.Image:
    """Darker and tinted; lamps and lit windows stay bright."""
    rgb = np.asarray(image, dtype=np.float32)
    warm = np.clip((rgb[..., :1] - rgb[..., 2:] - 30) / 60, 0, 1) * np.clip((rgb[..., :1] - 165) / 40, 0, 1)
    tint = np.array(gain, dtype=np.float32)
    return Image.fromarray(np.clip(rgb * (tint + (np.maximum(tint, 1) - tint) * warm), 0, 255).astype(np.uint8))


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


def _varied(colour: Colour, rng: np.random.Generator, spread: int) -> Colour:
    brightness = rng.uniform(-spread, spread)
    return tuple(int(np.clip(part + brightness + rng.uniform(-spread, spread) / 3, 0, 255)) for part in colour)  # type: ignore[return-value]


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    parts = [value - value * saturation * max(0.0, min(1.0, abs((hue * 6 + shift) % 6 - 3) - 1)) for shift in (3, 5, 1)]
    return tuple(round(255 * part) for part in parts)  # type: ignore[return-value]
