"""Another light on the same picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ...instructions import Instruction
from .person import Face, cut_out
from .pixels import LUMA, Plane, from_centre, grain, image_of, pixels_of
from .scenes import colours_of


@dataclass(frozen=True, slots=True)
class _Light:
    """A light from one side. `key` and `shadow` multiply red, green and blue; `contrast` is around the middle grey."""

    key: tuple[float, float, float]
    shadow: tuple[float, float, float]
    contrast: float = 1.0
    colourfulness: float = 1.0
    backdrop: float = 1.0  # brightness of what is not the person
    vignette: float = 0.25


_LIGHTS: tuple[tuple[tuple[str, ...], _Light], ...] = (
    (
        ("night", "moon", "dark", "midnight"),
        _Light(key=(0.86, 0.90, 1.12), shadow=(0.28, 0.36, 0.64), contrast=1.05, colourfulness=0.65, backdrop=0.55, vignette=0.5),
    ),
    (
        ("sunset", "sunrise", "golden", "dusk", "dawn", "warm", "evening"),
        _Light(key=(1.32, 0.98, 0.62), shadow=(0.74, 0.56, 0.66), contrast=1.05, colourfulness=1.15, vignette=0.3),
    ),
    (
        ("studio", "softbox", "professional", "flash"),
        _Light(key=(1.16, 1.15, 1.14), shadow=(0.72, 0.73, 0.76), contrast=1.12, backdrop=0.42, vignette=0.4),
    ),
    (
        ("daylight", "day", "sunny", "sunlight", "bright", "noon", "morning", "overcast", "cool"),
        _Light(key=(1.20, 1.22, 1.24), shadow=(0.92, 0.98, 1.08), contrast=0.96, colourfulness=1.1, vignette=0.05),
    ),
)


def _light_for(words: str) -> _Light:
    for names, light in _LIGHTS:
        if any(name in words for name in names):
            return light
    key, shadow = (np.array(colour, dtype=np.float32) for colour in colours_of(words, 2)[::-1])
    return _Light(_tuple(key / key.mean() * 0.5 + 0.55), _tuple(shadow / shadow.mean() * 0.35 + 0.4), colourfulness=0.85, vignette=0.35)


def lighting(image: Image.Image, face: Face, wish: Instruction, rng: np.random.Generator) -> Image.Image:
    light = _light_for(wish.value.casefold())
    mask = cut_out(image, face)
    pixels = pixels_of(image)
    grey = (pixels @ LUMA)[..., None]
    pixels = grey + (pixels - grey) * light.colourfulness
    pixels = 118 + (pixels - 118) * light.contrast
    side = rng.choice([-1.0, 1.0]) * rng.uniform(0.6, 1.0)
    lit = _lit_from(side, mask, face, image.size)[..., None]
    pixels = pixels * (np.array(light.shadow, np.float32) + lit * (np.array(light.key, np.float32) - np.array(light.shadow, np.float32)))
    falloff = 1 - light.vignette * from_centre(image.size, face)[..., None]
    backdrop = light.backdrop + (1 - light.backdrop) * mask[..., None]
    return image_of(pixels * falloff * backdrop * rng.uniform(0.96, 1.04) + grain(mask.shape, rng, 1.8)[..., None])


def _lit_from(side: float, mask: Plane, face: Face, size: tuple[int, int]) -> Plane:
    """How much of the light each pixel gets, 0…1: the person is taken for a rounded relief, lit from one side and from above."""
    small = (max(8, size[0] // 8), max(8, size[1] // 8))
    shape = Image.fromarray((mask * 255).astype(np.uint8)).resize(small, Image.Resampling.BOX)
    relief = np.asarray(shape.filter(ImageFilter.GaussianBlur(max(2.0, face.width / 8 * 0.28))), dtype=np.float32) / 255
    slope_y, slope_x = np.gradient(relief * face.width / 8)
    across = (np.arange(small[0], dtype=np.float32)[None, :] * 8 - face.x) / (2.5 * face.width)
    lit = 0.62 - 0.75 * side * slope_x + 0.30 * slope_y + side * np.clip(across, -1, 1) * 0.30
    smooth = Image.fromarray((np.clip(lit, 0, 1) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    return np.asarray(smooth.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255


def _tuple(colour: NDArray[np.float32]) -> tuple[float, float, float]:
    red, green, blue = colour.tolist()
    return red, green, blue
