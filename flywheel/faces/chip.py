"""What can be read off a face without a model: sharpness, light, a coarse turn of the head, teeth. Finds no face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

REFERENCE_STD = 48.0  # contrast every picture is brought to first, so that a dark picture is not taken for a blurred one
FLAT_STD = 2.0  # below it there is nothing but noise, which must not be blown up
WHITE, BLACK = 250, 8
LUMA = np.array([0.299, 0.587, 0.114])
OVAL = (slice(14, 136), slice(19, 131))  # px of the chip in which the face lies
MIN_SHOWN = 0.4  # share of the face that must be neither black nor white to tell how flat it is
STEEPNESS = 0.5  # added to the median, so that a surface without any grain is not divided by nothing
TEETH = 0.15  # share of the mouth that is brighter and paler than skin
CORNERS = 0.20  # how sharply the corners of the mouth stand out


@dataclass(frozen=True, slots=True)
class Light:
    """`luma`: median, 0 … 255. `clipped_low`, `clipped_high`: share of pixels that are black or white."""

    luma: float
    clipped_low: float
    clipped_high: float


def in_grey(chip: np.ndarray) -> np.ndarray:
    """A chip (150, 150, 3) uint8 in grey."""
    return np.asarray(Image.fromarray(chip).convert("L"))


def light(grey: np.ndarray) -> Light:
    """How a grey image of 8 bits is exposed."""
    return Light(float(np.median(grey)), float((grey < BLACK).mean()), float((grey > WHITE).mean()))


def sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian after bringing the contrast to a fixed value. About 20 and less looks blurred; noise raises it."""
    pixels = grey.astype(np.float64)
    if min(pixels.shape) < 3 or (spread := float(pixels.std())) < FLAT_STD:
        return 0.0
    pixels *= REFERENCE_STD / spread
    around = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    return float((around - 4 * pixels[1:-1, 1:-1]).var())


def flatness(grey: np.ndarray) -> float:
    """How many times as steep the steep edges of a chip, (150, 150) uint8, are as its surfaces: high where areas of one colour meet in outlines.

    Of the face alone, without black and white areas and lightly blurred: the gradient (grey levels a px) that 85 % of the pixels stay below, over its
    median. 0 where most of the face is black or white.
    """
    face = grey[OVAL].astype(np.float32)
    rows = face[:-2] + 2 * face[1:-1] + face[2:]
    soft = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16
    steepness = np.hypot(soft[1:-1, 2:] - soft[1:-1, :-2], soft[2:, 1:-1] - soft[:-2, 1:-1]) / 2
    inner = face[2:-2, 2:-2]
    shown = steepness[(inner > BLACK) & (inner < WHITE)]
    if shown.size < MIN_SHOWN * steepness.size:
        return 0.0
    median, steep = np.percentile(shown, (50, 85))
    return float(steep / (median + STEEPNESS))


def turn(points: np.ndarray) -> float:
    """How far a head is turned, -1 (a quarter turn to the viewer's left) … 1 (to the viewer's right), from dlib's five points, (5, 2) px.

    The nose moves away from the middle of the eyes, and the farther eye gets narrower. The factors were fitted to a 3D pose of 68 points on
    84 faces (residual 6 degrees); nothing beyond half a quarter turn was in that set.
    """
    left, right = points[2:4].mean(axis=0), points[0:2].mean(axis=0)  # as the viewer sees them
    apart = float(np.linalg.norm(right - left))
    if apart < 1.0:
        return 0.0
    offset = float((points[4] - (left + right) / 2) @ (right - left)) / apart**2
    width_left, width_right = (float(np.linalg.norm(points[a] - points[b])) for a, b in ((2, 3), (0, 1)))
    narrowing = (width_right - width_left) / max(width_right + width_left, 1.0)
    return float(np.clip((96.3 * offset - 61.9 * narrowing) / 90.0, -1.0, 1.0))


def smile(chip: np.ndarray, yaw: float) -> float:
    """How much a face laughs with open lips, from 1 on enough to be called a smile. `chip`: (150, 150, 3) uint8, upright face.

    The lesser of two shares, each of its own bound: how much of the mouth is teeth, and how sharply its corners stand out.

    A guess: of 84 faces 82 % were called right, three in four of those called smiling do smile, and half of all smiles are missed (closed
    lips). Compared with the shape of the mouth in 68 points.
    """
    shift = round(18 * yaw)  # a turned mouth lies beside the middle
    mouth = chip[96:122, 50 + shift : 100 + shift].reshape(-1, 3).astype(np.float64)
    skin = np.concatenate([chip[rows, columns].reshape(-1, 3) for rows, columns in _SKIN]).astype(np.float64)
    bright, pale = np.median(skin @ LUMA), np.median(_saturation(skin))
    teeth = float(((mouth @ LUMA > 1.05 * bright) & (_saturation(mouth) < 0.8 * pale)).mean())
    band = chip[96:124, 40 + shift : 110 + shift].astype(np.float64) @ LUMA
    edges = np.abs(np.diff(band, axis=0)).max(axis=0) / max(float(bright), 1.0)
    corners = float(np.concatenate([edges[5:15], edges[-15:-5]]).mean())
    return min(teeth / TEETH, corners / CORNERS)


_SKIN = (
    (slice(80, 100), slice(35, 50)),  # cheeks and bridge of the nose, px of the chip
    (slice(80, 100), slice(100, 115)),
    (slice(60, 85), slice(65, 85)),
)


def _saturation(pixels: np.ndarray) -> np.ndarray:
    top = pixels.max(axis=-1)
    return (top - pixels.min(axis=-1)) / np.maximum(top, 1.0)
