"""Ready examples of paired datasets, made of anybody's photos by plain picture work: a logo put on the shirt, a background taken away.

Not learnt and not edited by a model: target and control lie exactly on each other, which is what makes them good to try every step with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from .editors.rehearsal.person import Face, cut_out, find_face
from .errors import DatasetError, IdentityError
from .faces import embedder
from .images import SUFFIXES, open_image, png_bytes, write_whole

PAIRS = 12
SIZE = (640, 800)  # px of every picture made
GREY = (236, 236, 234)
LOGO_PX = 256
ROOMY, CLOSE = 0.36, 0.6  # of the width: a wider face leaves little shirt to put a logo on, and is cut out badly


@dataclass(frozen=True, slots=True)
class Example:
    """`folders`: target first, then controls. `make`: the pictures of one pair in that order."""

    folder: str
    folders: tuple[str, ...]
    instruction: str
    make: Callable[[Image.Image, int, Face], tuple[Image.Image, ...]]


def face_finder() -> tuple[Callable[[Image.Image], Face], str]:
    """Who says where the face is, and that in words: the face engine where it is installed, else a guess from skin and shape."""
    try:
        engine = embedder()
    except IdentityError as error:
        return find_face, f"Faces are guessed from skin and shape, and heads may be cut badly: {error}"

    def found(image: Image.Image) -> Face:
        left, top, right, bottom = max((face.box for face in engine.faces(image)), key=lambda box: box[2] - box[0], default=(0, 0, 0, 0))
        # its box ends at brows and chin; ours is about the bridge of the nose
        return Face((left + right) / 2, top + 0.36 * (bottom - top), 1.08 * (right - left)) if right > left else find_face(image)

    return found, f"Faces are found by {engine.name}."


def make_example(
    example: Example, photos: Path, home: Path, *, pairs: int = PAIRS, find: Callable[[Image.Image], Face] = find_face
) -> Path:
    """Write an example of `pairs` pairs below `home`, from the photos of a folder: each is used in several framings. `find`: where a face is.

    Raises:
        DatasetError: there is no photo.
    """
    listed = sorted(path for path in photos.iterdir() if path.suffix.lower() in SUFFIXES) if photos.is_dir() else []
    found = [path for path in listed if _shows_somebody(path, find, ROOMY)] or [
        path for path in listed if _shows_somebody(path, find, CLOSE)
    ]
    if not found:
        raise DatasetError(f"There are no portraits in {photos}: photos with a whole face in the upper half.")
    home = home / example.folder
    for number in range(pairs):
        framed = _framed(open_image(found[number % len(found)], at_least=1200).image, number // len(found))
        for folder, picture in zip(example.folders, example.make(framed, number, find(framed)), strict=True):
            write_whole(home / folder / f"{number + 1:02}.png", png_bytes(picture))
    for number in range(pairs):
        write_whole(home / example.folders[0] / f"{number + 1:02}.txt", (_said(example, number) + os.linesep).encode())
    return home


def logo(number: int) -> Image.Image:
    """A drawn logo on transparent ground; twelve that differ in shape and colours."""
    field, ink = _COLOURS[number % len(_COLOURS)]
    image = Image.new("RGBA", (LOGO_PX, LOGO_PX), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    middle, reach = LOGO_PX / 2, LOGO_PX / 2 - 8
    _SHAPES[number % len(_SHAPES)](draw, middle, reach, field)
    points = 3 + number % 5
    turn = np.arange(2 * points) * np.pi / points - np.pi / 2
    radius = np.where(np.arange(2 * points) % 2, reach * 0.22, reach * 0.55)
    draw.polygon([(middle + r * np.cos(a), middle + r * np.sin(a)) for a, r in zip(turn, radius, strict=True)], fill=ink)
    return image


def _logo_on_shirt(photo: Image.Image, number: int, face: Face) -> tuple[Image.Image, ...]:
    """The logo takes on the light of the cloth below it and leaves the face alone."""
    drawn = logo(number)
    across = round(photo.width * 0.3)
    mark = drawn.resize((across, across), Image.Resampling.LANCZOS)
    left, top = _on_the_chest(photo, face, across)
    below = photo.crop((left, top, left + across, top + across)).convert("L")
    light = below.filter(ImageFilter.GaussianBlur(3)).point([min(255, 150 + value * 105 // 255) for value in range(256)])
    worn = ImageChops.multiply(mark.convert("RGB"), Image.merge("RGB", (light, light, light)))
    result = photo.copy()
    result.paste(worn, (left, top), mark.getchannel("A").point([value * 92 // 100 for value in range(256)]))
    plain = Image.new("RGB", drawn.size, (255, 255, 255))
    plain.paste(drawn, mask=drawn.getchannel("A"))
    return result, photo, plain


def _background_removed(photo: Image.Image, _: int, face: Face) -> tuple[Image.Image, ...]:
    mask = Image.fromarray((np.clip(cut_out(photo, face), 0, 1) * 255).astype(np.uint8)).resize(photo.size)
    return Image.composite(photo, Image.new("RGB", photo.size, GREY), mask), photo


def _shows_somebody(path: Path, find: Callable[[Image.Image], Face], widest: float) -> bool:
    """Whether a face no wider than this share of the picture lies whole inside it, in its upper half, with room for a chest below."""
    photo = open_image(path, at_least=400).image
    face = find(photo)
    return face.width / 2 < face.x < photo.width - face.width / 2 and face.y < photo.height / 2 and face.width < photo.width * widest


def _on_the_chest(photo: Image.Image, face: Face, across: int) -> tuple[int, int]:
    """Left and top of a square below the chin, inside the picture."""
    left = round(face.x) - across // 2
    return min(max(0, left), photo.width - across), photo.height - across - photo.height // 40


def _framed(photo: Image.Image, turn: int) -> Image.Image:
    """A photo as one of several: plain, mirrored, closer."""
    whole = ImageOps.mirror(photo) if turn % 2 else photo
    closer = 1.0 - 0.06 * (turn // 2)
    width, height = round(whole.width * closer), round(whole.height * closer)
    left = (whole.width - width) // 2
    return ImageOps.fit(whole.crop((left, 0, left + width, height)), SIZE, Image.Resampling.LANCZOS, centering=(0.5, 0.0))


def _said(example: Example, number: int) -> str:
    kind = ("round", "square", "pointed")[number % 3]
    return example.instruction.format(kind=kind)


def _disc(draw: ImageDraw.ImageDraw, middle: float, reach: float, fill: str) -> None:
    draw.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=fill)


def _square(draw: ImageDraw.ImageDraw, middle: float, reach: float, fill: str) -> None:
    draw.rounded_rectangle((middle - reach, middle - reach, middle + reach, middle + reach), reach / 4, fill=fill)


def _diamond(draw: ImageDraw.ImageDraw, middle: float, reach: float, fill: str) -> None:
    draw.polygon([(middle, middle - reach), (middle + reach, middle), (middle, middle + reach), (middle - reach, middle)], fill=fill)


_SHAPES = (_disc, _square, _diamond)
_COLOURS = (
    ("#1f4fa3", "#ffd34d"),
    ("#b3261e", "#ffffff"),
    ("#1c7c54", "#f5f0d8"),
    ("#f2a900", "#202020"),
    ("#5b2a86", "#f7c6ff"),
    ("#0e7c86", "#ffffff"),
    ("#d9480f", "#fff3bf"),
)

LOGO_ON_SHIRT = Example(
    "logo_on_shirt", ("results", "shirts", "logos"), "put the {kind} logo of Picture 2 on the shirt of Picture 1", _logo_on_shirt
)
BACKGROUND_REMOVED = Example(
    "background_removed", ("results", "originals"), "remove the background, keep the person exactly as they are", _background_removed
)
EXAMPLES: Sequence[Example] = (LOGO_ON_SHIRT, BACKGROUND_REMOVED)
