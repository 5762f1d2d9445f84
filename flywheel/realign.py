"""An edit that slid or grew against its photo, put back into the photo's frame. Makes a copy; the edit itself is never touched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import registration
from .registration import Registration


@dataclass(frozen=True, slots=True)
class Realigned:
    """The copy, of the edit's size. `undone_px`: right and down, px, that were taken back; `zoom` likewise. `mirrored_px`: width of the strips left,
    top, right and bottom for which the edit has no pixels; they mirror what lies beside them."""

    image: Image.Image
    undone_px: tuple[float, float]
    zoom: float
    mirrored_px: tuple[int, int, int, int]


def realigned(photo: Image.Image, edit: Image.Image) -> Realigned | None:
    """None where too little is unchanged to say how far the edit moved. Both have the same aspect; the photo may be larger."""
    moved = registration.register(photo, edit)
    if moved is None:
        return None
    scale = edit.width / photo.width
    right, down, growth = moved.dx * scale, moved.dy * scale, 1 + moved.zoom
    back = Registration(-right / growth, -down / growth, 1 / growth - 1, moved.agreement, moved.windows, moved.spread * scale)
    framed, box = registration.onto(edit, back, edit.size)
    strips = (box[0], box[1], edit.width - box[2], edit.height - box[3])
    return Realigned(_mirrored(framed, box, strips), (round(right, 2), round(down, 2)), round(growth, 4), strips)


def _mirrored(picture: Image.Image, box: tuple[int, int, int, int], strips: tuple[int, int, int, int]) -> Image.Image:
    if not any(strips):
        return picture
    left, top, right, bottom = strips
    inside = np.asarray(picture.crop(box).convert("RGB"))
    return Image.fromarray(np.pad(inside, ((top, bottom), (left, right), (0, 0)), mode="symmetric"))
