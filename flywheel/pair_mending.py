"""Putting the pictures of a pair on each other: controls are resampled into the target's framing; the target keeps its pixels. New files only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from PIL import Image

from .images import content_key, open_image, png_bytes, write_whole
from .pair_measures import Beside
from .pair_slots import Picture, open_header
from .pairs import Pair
from .registration import Registration, onto, register

Box = tuple[int, int, int, int]
STILL = Registration(0.0, 0.0, 0.0, 0.0, 0, 0.0)


def aligned(pair: Pair, moved: Registration | None, others: Sequence[Beside], folder: Path, megapixels: float) -> Pair:
    """The pair with its controls in the target's framing, all cut to what every one of them shows.

    `moved`: of control 1; None cuts it about the middle and looks again. `others`: the further controls; those that do not show the target's
    scene, such as a logo, stay as they are. `megapixels`: a larger target is scaled down to this first; 0 never does.
    """
    target, *controls = (open_image(picture.path).image for picture in (pair.target, *pair.controls))
    shrink = (megapixels * 1e6 / prod(target.size)) ** 0.5 if megapixels else 1.0
    if shrink < 1:
        target = target.resize((round(target.width * shrink), round(target.height * shrink)), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if moved is None:  # another shape
        controls[0] = cut_to(controls[0], target.width / target.height)
        moved = register(controls[0], target) or STILL
    moves = {0: moved, **{number: other.moved for number, other in enumerate(others, 1) if other.moved}}
    framed = {number: onto(controls[number], move, target.size) for number, move in moves.items()}
    box = _inside_all([shown for _, shown in framed.values()])
    whole = shrink >= 1 and box == (0, 0, *target.size)
    mended = tuple(
        _saved(framed[number][0].crop(box), folder, f"{pair.stem}-control_{number + 1}") if number in framed else picture
        for number, picture in enumerate(pair.controls)
    )
    mended_target = pair.target if whole else _saved(target.crop(box), folder, f"{pair.stem}-target")
    facts = {"aligned": {"dx": round(moved.dx, 2), "dy": round(moved.dy, 2), "zoom": round(moved.zoom, 5)}}
    return replace(pair, target=mended_target, controls=mended, facts={**pair.facts, **facts})


def _inside_all(boxes: Sequence[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return max(left), max(top), min(right), min(bottom)


def cut_to(image: Image.Image, aspect: float) -> Image.Image:
    width, height = min(image.width, round(image.height * aspect)), min(image.height, round(image.width / aspect))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _saved(image: Image.Image, folder: Path, name: str) -> Picture:
    png = png_bytes(image)
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:80]
    path = folder / f"{plain}-{content_key(png)}.png"
    if not path.is_file():
        write_whole(path, png)
    return open_header(path)
