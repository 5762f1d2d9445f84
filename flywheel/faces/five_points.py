"""A face as the optional engines tell it: a box, five points and numbers. Finds no face."""

from __future__ import annotations

import numpy as np
from PIL import Image

from . import Face
from .chip import flatness, in_grey, light, sharpness, smile, turn

CHIP_PX = 150


def described(image: Image.Image, box: np.ndarray, points: np.ndarray, confidence: float, embedding: np.ndarray) -> Face:
    """The face with what its pixels say, its embedding of unit length.

    `box`: left, top, right, bottom; `points`: (5, 2) or more rows, the eyes and the nose first, left to right as the viewer sees them; both px of
    the image.
    """
    left, top, right, bottom = (round(float(side)) for side in box)
    eye, other, nose = (np.asarray(point, dtype=np.float64) for point in points[:3])
    chip = _chip(image, eye, other)
    grey = in_grey(chip)
    exposed = light(grey)
    yaw = turn(np.stack([other, other, eye, eye, nose]))
    numbers = np.asarray(embedding, dtype=np.float32).ravel()
    return Face(
        box=(left, top, right, bottom),
        found_by="hog",  # of no doubt; "cnn" would say that the face can hardly be seen
        confidence=float(confidence),
        embedding=numbers / max(float(np.linalg.norm(numbers)), 1e-6),
        yaw=yaw,
        smile=smile(chip, yaw),
        sharpness=sharpness(grey),
        luma=exposed.luma,
        clipped_low=exposed.clipped_low,
        clipped_high=exposed.clipped_high,
        flatness=flatness(grey),
    )


def _chip(image: Image.Image, eye: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(150, 150, 3) uint8: the face upright, eyes where dlib puts them."""
    across = other - eye
    scale = float(np.linalg.norm(across)) / (CHIP_PX * 0.35) or 1.0  # px of the image for one of the chip
    along = across / max(float(np.linalg.norm(across)), 1e-6) * scale
    down = np.array([-along[1], along[0]])
    corner = (eye + other) / 2 - along * CHIP_PX / 2 - down * CHIP_PX * 0.4
    terms = (along[0], down[0], corner[0], along[1], down[1], corner[1])
    turned = image.convert("RGB").transform((CHIP_PX, CHIP_PX), Image.Transform.AFFINE, terms, Image.Resampling.BILINEAR)
    return np.asarray(turned)
