"""Another background behind the same person."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from ...instructions import Instruction
from .person import Face, cut_out
from .pixels import Pixels, Plane, grain, image_of, pixels_of
from .scenes import draw_scene


def background(image: Image.Image, face: Face, wish: Instruction, rng: np.random.Generator) -> Image.Image:
    mask = cut_out(image, face)
    pixels = pixels_of(image)
    words = wish.value.casefold()
    scene = pixels_of(_blurred_without(image, mask) if "blur" in words else draw_scene(words, image.size, rng))
    inner = _pushed_out(image, mask)
    edge = (np.clip(1.25 - mask, 0, 1) * (mask < 0.98))[..., None]
    person = pixels + (inner - pixels) * edge  # at its edge the person's own colours, not those of the old background
    ambient = scene.mean(axis=(0, 1)) / max(1.0, float(scene.mean()))
    person = person * (1 + 0.16 * (ambient - 1)) * rng.uniform(0.97, 1.03)
    mixed = scene + (person - scene) * mask[..., None]
    return image_of(mixed + grain(mixed.shape[:2], rng, 2.2)[..., None])


def _pushed_out(image: Image.Image, mask: Plane) -> Pixels:
    """The person's colours carried over the edge: a blur that counts only what is surely the person. Made at a quarter of the size."""
    small = (max(1, image.width // 4), max(1, image.height // 4))
    sure = np.clip((mask - 0.85) / 0.15, 0, 1)
    weight = Image.fromarray((sure * 255).astype(np.uint8)).resize(small, Image.Resampling.BOX)
    colours = Image.composite(image.resize(small, Image.Resampling.BOX), Image.new("RGB", small), weight)
    reach = ImageFilter.GaussianBlur(max(small) * 0.02)
    share = np.asarray(weight.filter(reach), dtype=np.float32)[..., None] / 255
    spread = np.clip(pixels_of(colours.filter(reach)) / np.maximum(share, 0.02), 0, 255)
    return pixels_of(Image.fromarray(spread.astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR))


def _blurred_without(image: Image.Image, mask: Plane) -> Image.Image:
    """The old background far out of focus, without the person in it."""
    small = (max(1, image.width // 4), max(1, image.height // 4))
    weight = Image.fromarray(((1 - mask) * 255).astype(np.uint8)).resize(small, Image.Resampling.BOX)
    colours = Image.composite(image.resize(small, Image.Resampling.BOX), Image.new("RGB", small), weight)
    reach = ImageFilter.GaussianBlur(max(small) * 0.06)
    share = np.asarray(weight.filter(reach), dtype=np.float32)[..., None] / 255
    spread = np.clip(pixels_of(colours.filter(reach)) / np.maximum(share, 0.03), 0, 255)
    return Image.fromarray(spread.astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
