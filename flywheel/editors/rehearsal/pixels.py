"""Pictures as arrays, and what several recipes do to them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .person import Face

Pixels = NDArray[np.floating[Any]]  # (height, width, 3), sRGB 0…255
Plane = NDArray[np.floating[Any]]  # (height, width)

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def pixels_of(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float32)


def image_of(pixels: NDArray[np.floating[Any]]) -> Image.Image:
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def enlarged(plane: Plane, size: tuple[int, int]) -> Plane:
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))


def grain(shape: tuple[int, ...], rng: np.random.Generator, strength: float) -> Plane:
    """Film grain, so that drawn and photographed parts look of one piece."""
    return rng.standard_normal(shape[:2], dtype=np.float32) * np.float32(strength)


def from_centre(size: tuple[int, int], face: Face) -> Plane:
    """0 at the face, 1 in the far corners."""
    x = (np.arange(size[0], dtype=np.float32) - face.x) / size[0]
    y = (np.arange(size[1], dtype=np.float32) - face.y) / size[1]
    return np.clip((x[None, :] ** 2 + y[:, None] ** 2) * 1.2, 0, 1)


def number_of(words: str) -> int:
    """A number that belongs to words, the same in every process (hash() is not)."""
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")
