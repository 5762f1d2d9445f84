"""Is a photograph good enough to train on, and how does it show the character? Figures, bounds and sentences; nothing is changed or thrown
away here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from .faces import PROMINENT, Face, prominent
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
BACKGROUND = f"narrower than {PROMINENT:.0%} of the widest is background"
CUT_OFF = 0.05  # share of a face's width that may lie beyond the edge
NEAR_DUPLICATE_BITS = 6  # of 64: JPEG at quality 20 differs by 3, distinct pictures by 14 and more
FRONT_DEGREES, PROFILE_DEGREES = 13, 45  # a head turned less is called front, one turned further profile; between them half
HEAD_ROOM, BUST_ROOM, HALF_ROOM = 0.6, 3.5, 7.0  # faces that fit below the chin; a standing adult needs about nine down to the feet

UNKNOWN = "unknown"
ANGLES = ("profile-left", "half-left", "front", "half-right", "profile-right")  # left and right are the viewer's
EXPRESSIONS = ("neutral", "smiling", "angry", "sad")  # the last two are not measured; `proposed` reads them off a file's name
MOODS = {"angry": ("angry", "anger", "furious", "scowling"), "sad": ("sad", "sadness", "crying", "tearful", "unhappy")}
FRAMINGS = ("head", "bust", "half body", "full body")

_BITS = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)


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

    `faces` counts those the picture is about; None means nobody looked. `problems` are sentences with the figure and its bound; `measures`
    say every figure with its bound, also where all is well.
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
    measures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """How a picture shows the character: one of ANGLES, EXPRESSIONS and FRAMINGS, or unknown. `measures` say what each was read from."""

    angle: str = UNKNOWN
    expression: str = UNKNOWN
    framing: str = UNKNOWN
    measures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Twin:
    """A picture that shows almost the same as others. `kept` is the best of them, `nearest` the one it differs least from, in `bits` of 64."""

    kept: str
    nearest: str
    bits: int
    mirrored: bool

    def __str__(self) -> str:
        way = ", mirrored" if self.mirrored else ""
        through = "" if self.nearest == self.kept else f"; {self.kept} is the best of them"
        return (
            f"almost the same picture as {self.nearest}{way} ({self.bits} of 64 bits differ, up to {NEAR_DUPLICATE_BITS} count as one)"
            f"{through}"
        )


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
        doubtful.append("no face was found" if not seen else f"{len(seen)} faces (exactly 1 is wanted; {BACKGROUND}): crop the photo")
    if face and face.found_by == "cnn":
        doubtful.append(f"{face.doubt}: identity cannot be checked on this photo")
    if face and face.drawn_look:
        doubtful.append(f"it looks drawn: {face.drawn_look}")
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
        tuple(_measures(measured, None if faces is None else len(seen), face)),
    )


def view(faces: tuple[Face, ...] | None, size: tuple[int, int]) -> View:
    """How the widest face of a picture of `size` (width, height, px) is seen.

    The angle is coarse: it was fitted up to 45 degrees and calls larger turns too small. A face that only the CNN sees is a profile, covered
    or hard to see, and where one is cut off the landmarks lie beyond the edge: its angle stays unknown, for a person to say. A smile with closed lips is often missed. The framing says how much of a
    body has room below the face, not that a body is there.
    """
    seen = prominent(faces or ())
    if not seen:
        return View()
    face = seen[0]
    framing, room = _framing(face, size[1])
    bounds = f"head below {HEAD_ROOM:g}, bust below {BUST_ROOM:g}, half body below {HALF_ROOM:g}"
    below = f"{framing}: room for {room:.1f} faces below the chin ({bounds})"
    if face.yaw is None:
        return View(framing=framing, measures=(f"angle and expression unknown: {face.doubt}", below))
    expression = "smiling" if face.smiling else "neutral"
    if (beyond := _beyond(face, size)) > CUT_OFF:
        hidden = f"angle unknown: {beyond:.0%} of the face's width lies beyond the edge (told up to {CUT_OFF:.0%})"
        return View(UNKNOWN, expression, framing, (hidden, _mouth(face), below))
    angle, degrees = _angle(face.yaw), abs(face.yaw) * 90
    side = f" to the viewer's {'left' if face.yaw < 0 else 'right'}" if angle != "front" else ""
    untested = ", a bound beyond which it was never tested" if degrees >= PROFILE_DEGREES else ""
    turned = f"{angle}: turned {degrees:.0f} degrees{side} (front below {FRONT_DEGREES}, profile from {PROFILE_DEGREES}{untested})"
    return View(angle, expression, framing, (turned, _mouth(face), below))


def _mouth(face: Face) -> str:
    """What the expression was read from. The measure sees laughing mouths only, so that everything else is called neutral."""
    return f"{'smiling' if face.smiling else 'neutral'}: the mouth laughs {face.smile or 0:.1f} times what a smile needs (at least 1)"


def proposed(seen: View, file: str) -> View:
    """The view with an angry or sad expression where the file's name says so, in one whole word: no measure here sees either."""
    words = set(re.findall(r"[^\W\d_]+", file.casefold()))
    moods = [mood for mood, names in MOODS.items() if words.intersection(names)]
    if len(moods) != 1:
        return seen
    told = f"{moods[0]}: proposed, because the file is called {file}; a person decides (measured: {seen.expression})"
    return replace(seen, expression=moods[0], measures=(*seen.measures, told))


def near_duplicates(measured: Mapping[str, Figures]) -> dict[str, Twin]:
    """Photographs that show almost the same picture, also mirrored: each surplus one and its twin.

    Pictures linked through others count as one group; its best is the largest, then the sharpest.
    """
    names = list(measured)
    plain = np.array([shown.hash for shown in measured.values()], dtype=np.uint64)
    mirrored = np.array([shown.mirror_hash for shown in measured.values()], dtype=np.uint64)
    twins: dict[str, Twin] = {}
    left = list(range(len(names)))
    while left:
        group = [left.pop(0)]
        for index in group:  # grows while it is walked
            others = np.array(left, dtype=np.intp)
            near = np.minimum(_bits(plain[index] ^ plain[others]), _bits(mirrored[index] ^ plain[others])) <= NEAR_DUPLICATE_BITS
            group += others[near].tolist()
            left = others[~near].tolist()
        best = max(
            group, key=lambda index: (measured[names[index]].width * measured[names[index]].height, measured[names[index]].sharpness)
        )
        for index in group:
            if index != best:
                twins[names[index]] = _twin(index, best, [other for other in group if other != index], names, plain, mirrored)
    return twins


def _twin(index: int, best: int, others: list[int], names: list[str], plain: np.ndarray, mirrored: np.ndarray) -> Twin:
    """The nearest of a group; the best one, where it is as near as any other within the bound."""
    straight, turned = _bits(plain[index] ^ plain[others]), _bits(mirrored[index] ^ plain[others])
    bits = np.minimum(straight, turned)
    place = others.index(best)
    if bits[place] > NEAR_DUPLICATE_BITS:
        place = int(bits.argmin())
    return Twin(names[best], names[others[place]], int(bits[place]), bool(turned[place] < straight[place]))


def _bits(words: np.ndarray) -> np.ndarray:
    """How many bits are set in each of (n,) 64-bit words."""
    return _BITS[words.view(np.uint8)].reshape(len(words), 8).sum(axis=1)


def is_cut_off(face: Face, measured: Figures) -> bool:
    """Whether a face reaches over the edge of its picture."""
    return _beyond(face, (measured.width, measured.height)) > CUT_OFF


def _beyond(face: Face, size: tuple[int, int]) -> float:
    """How far a face reaches over the edge, as a share of its width."""
    left, top, right, bottom = face.box
    return max(-left, -top, right - size[0], bottom - size[1]) / max(1, face.width)


def _angle(yaw: float) -> str:
    degrees = abs(yaw) * 90
    if degrees < FRONT_DEGREES:
        return "front"
    return f"{'profile' if degrees >= PROFILE_DEGREES else 'half'}-{'left' if yaw < 0 else 'right'}"


def _framing(face: Face, height: int) -> tuple[str, float]:
    """What has room in the picture, and how many faces fit between chin and lower edge."""
    room = max(0.0, height - face.box[3]) / max(1, face.box[3] - face.box[1])
    return next(
        (name for name, bound in zip(FRAMINGS, (HEAD_ROOM, BUST_ROOM, HALF_ROOM), strict=False) if room < bound), FRAMINGS[-1]
    ), room


def _measures(measured: Figures, count: int | None, face: Face | None) -> Iterator[str]:
    yield f"{measured.width} x {measured.height} px (shorter side at least {SHORT_PX})"
    if count is not None:
        yield f"{count} {'face' if count == 1 else 'faces'} (exactly 1; {BACKGROUND})"
    if face is None:
        yield f"sharpness {measured.sharpness:.0f} on the whole picture (at least {SHARP_PICTURE:.0f})"
        yield f"brightness {measured.luma:.0f} ({DARK:.0f} to {BRIGHT:.0f})"
        return
    yield f"face {face.width} px wide (at least {FACE_PX})"
    yield f"sharpness {face.sharpness:.0f} on the face (at least {SOFT_FACE:.0f})"
    yield f"brightness {face.luma:.0f} ({DARK:.0f} to {BRIGHT:.0f})"
    yield f"{face.clipped_high:.0%} white (at most {CLIPPED_HIGH:.0%}), {face.clipped_low:.0%} black (at most {CLIPPED_LOW:.0%})"


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
        beyond = _beyond(face, (measured.width, measured.height))
        doubtful.append(f"the face is cut off: {beyond:.0%} of its width lies beyond the edge (at most {CUT_OFF:.0%} may)")
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
