"""Is a photograph good enough to train on? Figures, bounds and sentences; nothing is changed or thrown away here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from .faces import Face, prominent
from .faces.chip import light, sharpness
from .images import difference_hash

Verdict = Literal["high", "medium", "low"]

SIDE_PX = 512  # longer side at which a whole picture's sharpness and light are measured
BLURRED_FACE, SOFT_FACE = 20.0, 40.0  # below the first clearly blurred, below the second soft (1 in 10 sharp 90 px faces)
SHARP_PICTURE = 20.0  # for a picture without a face, where a blurred background counts too: a warning only
DARK, BRIGHT = 40.0, 200.0  # median luma
VERY_DARK, VERY_BRIGHT = 20.0, 235.0  # a face beyond these has little left to learn from
CLIPPED_LOW, CLIPPED_HIGH = 0.25, 0.20
FACE_PX, TINY_FACE_PX = 80, 40  # narrower faces carry little, or no, likeness
SHORT_PX, TINY_PX = 512, 256  # shorter side; trainers use 512 to 1024
CUT_OFF = 0.05  # share of a face's width that may lie beyond the edge
NEAR_DUPLICATE_BITS = 6  # of 64: JPEG at quality 20 differs by 3, distinct pictures by 14 and more


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured on a whole picture. Size in px; sharpness and light at 512 px; `mirror_hash` is the hash of the mirrored picture."""

    width: int
    height: int
    sharpness: float
    luma: float
    clipped_low: float
    clipped_high: float
    hash: int
    mirror_hash: int


@dataclass(frozen=True, slots=True)
class PhotoQuality:
    """How good a photograph is. The figures come from the face where there is one, because that is what must be sharp and well lit.

    `faces` counts those the picture is about; None means nobody looked. `problems` are sentences with the figure and its bound.
    """

    width: int
    height: int
    measured_on: Literal["face", "picture"]
    sharpness: float
    luma: float
    clipped_low: float
    clipped_high: float
    faces: int | None
    verdict: Verdict
    problems: tuple[str, ...]


def figures(image: Image.Image) -> Figures:
    """Measure an upright RGB picture."""
    small = image.convert("L")
    small.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
    grey = np.asarray(small)
    exposed = light(grey)
    return Figures(
        *image.size,
        round(sharpness(grey), 1),
        exposed.luma,
        round(exposed.clipped_low, 4),
        round(exposed.clipped_high, 4),
        difference_hash(small),
        difference_hash(ImageOps.mirror(small)),
    )


def assess(measured: Figures, faces: tuple[Face, ...] | None) -> PhotoQuality:
    """The verdict on one photograph: "low" if one thing is bad enough to harm training, "medium" if something is worth a look.

    `faces` is None where no face engine is at hand.
    """
    seen = prominent(faces or ())
    face = seen[0] if seen else None
    shown = face or measured
    bad, doubtful = _size_problems(measured, face)
    for worse, lesser in (_sharpness_problems(measured, face), _light_problems(measured, face)):
        bad, doubtful = bad + worse, doubtful + lesser
    if faces is not None and len(seen) != 1:
        doubtful.append("no face was found" if not seen else f"{len(seen)} faces: training wants the character alone; crop the photo")
    if face and face.found_by == "cnn":
        doubtful.append(f"{face.doubt}: identity cannot be checked on this photo")
    return PhotoQuality(
        measured.width,
        measured.height,
        "face" if face else "picture",
        round(shown.sharpness, 1),
        shown.luma,
        round(shown.clipped_low, 4),
        round(shown.clipped_high, 4),
        None if faces is None else len(seen),
        "low" if bad else "medium" if doubtful else "high",
        (*bad, *doubtful),
    )


def near_duplicates(measured: Mapping[str, Figures]) -> dict[str, str]:
    """Photographs that show almost the same picture, also mirrored: name of each surplus one to the name of the one to keep.

    Pictures linked through others count as one group; its best is the largest, then the sharpest.
    """
    best: dict[str, str] = {}
    left = list(measured)
    while left:
        group = [left.pop(0)]
        for name in group:  # grows while it is walked
            linked = [other for other in left if _alike(measured[name], measured[other])]
            group += linked
            left = [other for other in left if other not in linked]
        kept = max(group, key=lambda name: (measured[name].width * measured[name].height, measured[name].sharpness))
        best.update({name: kept for name in group if name != kept})
    return best


def is_cut_off(face: Face, measured: Figures) -> bool:
    """Whether a face reaches over the edge of its picture."""
    left, top, right, bottom = face.box
    return max(-left, -top, right - measured.width, bottom - measured.height) > CUT_OFF * face.width


def _alike(one: Figures, other: Figures) -> bool:
    return min((one.hash ^ other.hash).bit_count(), (one.mirror_hash ^ other.hash).bit_count()) <= NEAR_DUPLICATE_BITS


def _size_problems(measured: Figures, face: Face | None) -> tuple[list[str], list[str]]:
    """Sentences that make a photograph low, and those that make it medium; so do the next two."""
    bad: list[str] = []
    doubtful: list[str] = []
    short = min(measured.width, measured.height)
    if short < SHORT_PX:
        sentence = f"small: {measured.width} x {measured.height} px (the shorter side should have at least {SHORT_PX})"
        (bad if short < TINY_PX else doubtful).append(sentence)
    if face and face.width < FACE_PX:
        sentence = f"the face is only {face.width} px wide (at least {FACE_PX} are wanted)"
        (bad if face.width < TINY_FACE_PX else doubtful).append(sentence)
    if face and is_cut_off(face, measured):
        doubtful.append("the face is cut off by the edge of the picture")
    return bad, doubtful


def _sharpness_problems(measured: Figures, face: Face | None) -> tuple[list[str], list[str]]:
    if face is None:
        blurred = measured.sharpness < SHARP_PICTURE
        return [], [f"blurred: sharpness {measured.sharpness:.0f} (at least {SHARP_PICTURE:.0f} is wanted)"] if blurred else []
    sentence = f"the face is {{}}: sharpness {face.sharpness:.0f} (at least {SOFT_FACE:.0f} is wanted)"
    if face.sharpness < BLURRED_FACE:
        return [sentence.format("blurred")], []
    return [], [sentence.format("soft")] if face.sharpness < SOFT_FACE else []


def _light_problems(measured: Figures, face: Face | None) -> tuple[list[str], list[str]]:
    subject, shown = ("the face", face) if face else ("the picture", measured)
    bad: list[str] = []
    doubtful: list[str] = []
    if shown.luma < DARK:
        sentence = f"{subject} is dark: median brightness {shown.luma:.0f} of 255 (at least {DARK:.0f} is wanted)"
        (bad if face and shown.luma < VERY_DARK else doubtful).append(sentence)
    if shown.luma > BRIGHT:
        sentence = f"{subject} is very bright: median brightness {shown.luma:.0f} of 255 (at most {BRIGHT:.0f} is wanted)"
        (bad if face and shown.luma > VERY_BRIGHT else doubtful).append(sentence)
    if face and shown.clipped_high > CLIPPED_HIGH:  # a white wall or a black suit is no fault of the picture
        doubtful.append(f"burnt out: {shown.clipped_high:.0%} of the face is white (at most {CLIPPED_HIGH:.0%} is wanted)")
    if face and shown.clipped_low > CLIPPED_LOW and not is_cut_off(face, measured):  # beyond the edge a chip is black
        doubtful.append(f"no detail in the shadows: {shown.clipped_low:.0%} of the face is black (at most {CLIPPED_LOW:.0%} is wanted)")
    return bad, doubtful
