"""Measuring a target against its controls: shift and zoom, colours, fine detail, faces. Kept by the bytes of the pictures; judges nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from .errors import ImageError
from .faces import Embedder
from .identity import similarity
from .images import content_key, open_image, value_key, write_json
from .pairs import Pair
from .registration import Registration, furthest, onto, register

VERSION = "3"  # raise it when the same files measure otherwise
LOOK_PX = 512  # longer side at which colours and changed regions are looked at
BLOCK_PX = 16
STILL_PX = 0.1  # of what is looked at: what moved less is compared as it lies
ALIKE = 0.8  # correlation of a block with its counterpart from which it counts as unchanged
FEWEST_ALIKE = 0.05  # of the picture
SMALLEST_CHANGE = 0.01
ASPECT = 0.01  # shapes that differ by more cannot lie on each other
FRAMED_ALIKE = (
    0.3  # of the windows agree: a further control shows the target's very scene (a depth map, a mask, the photo again), not a logo
)

Plane = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Beside:
    """A further control. `same_as`: the slot that holds the same picture, or "". `moved`: how the target lies against it, if it shows its scene."""

    same_as: str = ""
    moved: Registration | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one target and its first control. None: could not be. `others`: of its further controls.

    `difference`: mean, 0 … 255; `strongest`: of the block that differs most. `unchanged`, `changed`: shares of the picture. `colour`: mean of target minus control per channel in the unchanged
    part. `kept_detail`: fine detail of the target over that of the control there. `change_detail`: the same in the changed part, median of blocks.
    `faces`: similarity of the two faces.
    """

    control_px: tuple[int, int]
    target_px: tuple[int, int]
    difference: float
    strongest: float = 0.0
    moved: Registration | None = None
    unchanged: float = 0.0
    colour: tuple[float, float, float] | None = None
    kept_detail: float | None = None
    change_detail: float | None = None
    faces: float | None = None
    others: tuple[Beside, ...] = ()


def same_shape(found: Measured) -> bool:
    """Whether target and control 1 can lie on each other."""
    return _alike_shapes(found.control_px, found.target_px)


def _alike_shapes(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= ASPECT


def measured_or_reason(pair: Pair, cache: Path | None, embedder: Embedder | None) -> Measured | str:
    """What was measured, or why it could not be read. `cache`: a folder for what was measured before."""
    try:
        return _measured(pair, cache, embedder)
    except (ImageError, OSError) as error:
        return str(error)


def _measured(pair: Pair, cache: Path | None, embedder: Embedder | None) -> Measured:
    contents = [picture.path.read_bytes() for picture in (pair.target, *pair.controls)]
    keys = [content_key(content) for content in contents]
    kept = cache / f"{value_key([VERSION, keys, embedder.fingerprint() if embedder else ''])}.json" if cache else None
    if kept and kept.is_file() and (found := _recalled(kept)):
        return found
    target, control, *others = (
        open_image(picture.path, content=content).image for picture, content in zip((pair.target, *pair.controls), contents, strict=True)
    )
    found = replace(compare(control, target), others=tuple(_beside(keys, number, target, other) for number, other in enumerate(others, 2)))
    if embedder:
        found = replace(found, faces=_alike(control, target, embedder))
    if kept:
        write_json(kept, asdict(found))
    return found


def _beside(keys: Sequence[str], number: int, target: Image.Image, control: Image.Image) -> Beside:
    same = keys.index(keys[number])
    if same < number:
        return Beside(f"control_{same}" if same else "target")
    if not _alike_shapes(control.size, target.size):
        return Beside()
    moved = register(control, target)
    return Beside("", moved if moved and moved.agreement >= FRAMED_ALIKE else None)


def _recalled(path: Path) -> Measured | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        moved = _registration(told.pop("moved"))
        others = tuple(Beside(other["same_as"], _registration(other["moved"])) for other in told.pop("others"))
        pairs: dict[str, Any] = {name: tuple(told.pop(name)) for name in ("control_px", "target_px")}
        colour = told.pop("colour")
        return Measured(**pairs, **told, moved=moved, others=others, colour=tuple(colour) if colour else None)
    except (ValueError, TypeError, KeyError):
        return None  # of another version, or cut off: measured again


def _registration(told: dict[str, Any] | None) -> Registration | None:
    return Registration(**told) if told else None


def compare(control: Image.Image, target: Image.Image) -> Measured:
    """Measure a target against the picture it was made from."""
    scale = min(1.0, LOOK_PX / max(target.size))
    size = max(BLOCK_PX, round(target.width * scale)), max(BLOCK_PX, round(target.height * scale))
    seen, plain = (picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0) for picture in (target, control))
    differs = np.asarray(ImageChops.difference(seen, plain), np.float32).mean(axis=2)
    rows, columns = differs.shape[0] // BLOCK_PX, differs.shape[1] // BLOCK_PX
    found = Measured(control.size, target.size, float(differs.mean()), float(_blocks(differs, rows, columns).mean(axis=2).max()))
    if not same_shape(found):
        return found
    moved = register(control, target)
    if moved is None:
        return found
    reach = size[0] / control.width
    seen_move = replace(moved, dx=moved.dx * reach, dy=moved.dy * reach)
    still = furthest(seen_move.dx, seen_move.dy, moved.zoom, size) < STILL_PX
    framed, box = (plain, (0, 0, *size)) if still else onto(plain, seen_move, size)
    ours, theirs = (np.asarray(image.crop(box), np.float32) for image in (framed, seen))
    return replace(found, moved=moved, **_regions(ours, theirs))


def _regions(control: Plane, target: Plane) -> dict[str, Any]:
    """Figures of the unchanged and the changed part of two pictures (height, width, 3) that lie on each other."""
    rows, columns = control.shape[0] // BLOCK_PX, control.shape[1] // BLOCK_PX
    if not rows or not columns:
        return {}
    a, b = (_blocks(picture.mean(axis=2), rows, columns) for picture in (control, target))
    a0, b0 = a - a.mean(axis=2, keepdims=True), b - b.mean(axis=2, keepdims=True)
    strength = np.sqrt((a0**2).sum(axis=2) * (b0**2).sum(axis=2))
    flat = np.maximum(a0.std(axis=2), b0.std(axis=2)) < 2.0
    near = np.abs(a.mean(axis=2) - b.mean(axis=2)) < 12.0
    alike = np.where(flat, near, (a0 * b0).sum(axis=2) >= ALIKE * np.maximum(strength, 1e-6))
    share = float(alike.mean())
    told: dict[str, Any] = {"unchanged": share}
    details = [_blocks(detail(picture.mean(axis=2)), rows, columns).mean(axis=2) for picture in (control, target)]
    if share >= FEWEST_ALIKE:
        means = [
            np.stack([_blocks(picture[..., channel], rows, columns).mean(axis=2) for channel in range(3)], axis=2)
            for picture in (control, target)
        ]
        told["colour"] = tuple(float(value) for value in np.median((means[1] - means[0])[alike], axis=0))
        told["kept_detail"] = float(details[1][alike].sum() / max(float(details[0][alike].sum()), 1e-6))
    if 1 - share >= SMALLEST_CHANGE:
        gained = np.log((details[1][~alike] + 0.1) / (details[0][~alike] + 0.1))  # the median: one hard new edge outweighs any texture
        told["change_detail"] = float(np.exp(np.median(gained)))
    return told


def _blocks(plane: Plane, rows: int, columns: int) -> Plane:
    """(rows, columns, pixels of a block)."""
    cut = plane[: rows * BLOCK_PX, : columns * BLOCK_PX].reshape(rows, BLOCK_PX, columns, BLOCK_PX)
    return cut.swapaxes(1, 2).reshape(rows, columns, BLOCK_PX * BLOCK_PX)


def detail(plane: Plane) -> Plane:
    """Energy of what a 3 x 3 blur would take away."""
    padded = np.pad(plane, 1, mode="edge")
    around = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
    return np.square(plane - around)


def _alike(control: Image.Image, target: Image.Image, embedder: Embedder) -> float | None:
    faces = [embedder.faces(image) for image in (control, target)]
    if not all(faces) or any(found[0].doubt or found[0].drawn_look for found in faces):
        return None
    return similarity(float(np.linalg.norm(faces[0][0].embedding - faces[1][0].embedding)), embedder.reach)
