"""What a finding of the pair doctor looks like: control and target beside each other, and what differs drawn out. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .images import open_image
from .pair_doctor import Checkup, Finding, Kind
from .pair_measures import detail
from .pair_mending import cut_to
from .pairs import Pair
from .registration import Registration, onto
from .sheets import AMBER, GROUND, Tile, contact_sheet

LOUDER = 6  # times: differences that matter are too faint to see
CLOSE_UP = 5  # the part shown of a blurred picture is its longer side over this


def drawn(checkup: Checkup, finding: Finding, *, cell_px: int = 320) -> Image.Image | None:
    """One finding as a sheet of two or three pictures; None for a pair that cannot be read."""
    if finding.kind == "unreadable":
        return None
    pair = next(pair for pair in checkup.dataset.pairs if pair.stem == finding.stem)
    control, target, moved = _opened(pair, finding.slot, checkup.moved(finding.stem, finding.slot), 2 * cell_px)
    tiles = _TILES.get(finding.kind, _side_by_side)(control, target, moved)
    figure = f"{finding.value:.1f} times the limit" if finding.kind == "shift" else f"{finding.value:.2f}, limit {finding.limit:g}"
    return contact_sheet(tiles, columns=len(tiles), cell_px=cell_px, title=f"{finding.stem}: {finding.kind} {figure}")


def overlay(pair: Pair, moved: Registration | None, *, slot: str = "control_1", size_px: int = 512) -> Image.Image:
    """Control in red and target in cyan, as they are and aligned: where both agree it is grey, a double contour is a shift."""
    control, target, moved = _opened(pair, slot, moved, size_px)
    shown = [tile.image for tile in _anaglyphs(control, target, moved)]
    width, height = target.size
    both = Image.new("RGB", (width * len(shown) + 10 * (len(shown) - 1), height), GROUND)
    for number, picture in enumerate(shown):
        both.paste(picture, (number * (width + 10), 0))
    return both


def _opened(pair: Pair, slot: str, moved: Registration | None, size_px: int) -> tuple[Image.Image, Image.Image, Registration | None]:
    """Control, target at `size_px`, and the move in px of the control as it was opened."""
    chosen = pair.controls[int(slot.removeprefix("control_")) - 1]
    control, target = (open_image(picture.path, at_least=size_px).image for picture in (chosen, pair.target))
    scale = min(1.0, size_px / max(target.size))
    target = target.resize((max(1, round(target.width * scale)), max(1, round(target.height * scale))), Image.Resampling.LANCZOS)
    grown = control.width / chosen.width  # the control may have been decoded smaller
    return control, target, moved and replace(moved, dx=moved.dx * grown, dy=moved.dy * grown)


def _framed(control: Image.Image, target: Image.Image, moved: Registration | None) -> Image.Image:
    """The control as the target frames it."""
    return onto(control, moved, target.size)[0] if moved else control.resize(target.size, Image.Resampling.LANCZOS)


def _anaglyphs(control: Image.Image, target: Image.Image, moved: Registration | None) -> Sequence[Tile]:
    def laid(over: Image.Image) -> Image.Image:
        red, cyan = over.convert("L"), target.convert("L")
        return Image.merge("RGB", (red, cyan, cyan))

    as_is = Tile(laid(control.resize(target.size, Image.Resampling.LANCZOS)), "as they are: control red, target cyan")
    if moved is None:
        return (as_is,)
    framed, box = onto(control, moved, target.size)
    aligned = laid(framed)
    ImageDraw.Draw(aligned).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=AMBER, width=2)
    return as_is, Tile(aligned, "aligned; the frame is what both show")


def _side_by_side(control: Image.Image, target: Image.Image, moved: Registration | None) -> tuple[Tile, Tile]:
    return Tile(_framed(control, target, moved), "control"), Tile(target, "target")


def _shapes(control: Image.Image, target: Image.Image, _: Registration | None) -> Sequence[Tile]:
    kept = cut_to(control, target.width / target.height)
    left, top = (control.width - kept.width) // 2, (control.height - kept.height) // 2
    framed = control.copy()
    wide = max(2, max(control.size) // 150)
    ImageDraw.Draw(framed).rectangle((left, top, left + kept.width - 1, top + kept.height - 1), outline=AMBER, width=wide)
    return Tile(framed, "control; the frame is what a crop keeps"), Tile(target, "target")


def _sizes(control: Image.Image, target: Image.Image, _: Registration | None) -> Sequence[Tile]:
    beside = Image.new("RGB", target.size, GROUND)
    shown = control.copy()
    shown.thumbnail(target.size)
    beside.paste(shown, ((target.width - shown.width) // 2, (target.height - shown.height) // 2))
    return Tile(beside, "control, as large as it is beside the target"), Tile(target, "target")


def _differences(control: Image.Image, target: Image.Image, moved: Registration | None) -> Sequence[Tile]:
    framed = _framed(control, target, moved)
    louder = ImageChops.difference(framed, target).point([min(255, LOUDER * value) for value in range(256)] * 3)
    return *_side_by_side(control, target, moved), Tile(louder, f"what differs, {LOUDER} times as strong")


def _colours(control: Image.Image, target: Image.Image, moved: Registration | None) -> Sequence[Tile]:
    ours, theirs = (np.asarray(picture, np.float32) for picture in (_framed(control, target, moved), target))
    signed = Image.fromarray(np.clip(127 + 3 * (theirs - ours), 0, 255).astype(np.uint8))
    return *_side_by_side(control, target, moved), Tile(signed, "what was added, 3 times as strong; grey is nothing")


def _close_up(control: Image.Image, target: Image.Image, moved: Registration | None) -> Sequence[Tile]:
    """Where the control has the most fine detail."""
    framed = _framed(control, target, moved)
    side = max(16, max(target.size) // CLOSE_UP)
    fine = Image.fromarray(detail(np.asarray(framed.convert("L"), np.float32)))
    rows, columns = max(1, target.height // side), max(1, target.width // side)
    blocks = np.asarray(fine.resize((columns, rows), Image.Resampling.BOX))
    row, column = divmod(int(blocks.argmax()), columns)
    box = (column * side, row * side, column * side + side, row * side + side)
    near = (picture.crop(box).resize((side * 3, side * 3), Image.Resampling.NEAREST) for picture in (framed, target))
    return tuple(Tile(picture, f"{name}, the same spot close up") for picture, name in zip(near, ("control", "target"), strict=True))


def _gains(control: Image.Image, target: Image.Image, moved: Registration | None) -> Sequence[Tile]:
    before, after = (detail(np.asarray(picture.convert("L"), np.float32)) for picture in (_framed(control, target, moved), target))
    gained = np.log((after + 1) / (before + 1))
    planes = [np.clip(60 * part, 0, 255).astype(np.uint8) for part in (-gained, gained)]
    told = Image.merge("RGB", (Image.fromarray(planes[0]), Image.fromarray(planes[1]), Image.new("L", target.size)))
    return *_side_by_side(control, target, moved), Tile(told, "green: detail the target has more of; red: less")


_TILES: Mapping[Kind, Callable[[Image.Image, Image.Image, Registration | None], Sequence[Tile]]] = {
    "shift": _anaglyphs,
    "aspect": _shapes,
    "size": _sizes,
    "identical": _differences,
    "colour": _colours,
    "soft": _close_up,
    "reversed": _gains,
    "identity": _side_by_side,
}
