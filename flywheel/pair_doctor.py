"""What is wrong with pairs that fit by name: pixels that slid, shapes that differ, targets that teach nothing, sides that look swapped.

Measures pictures and proposes a fix for each finding; `mend` carries the fixes out into new files. Originals are never changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import log, prod
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from .errors import DatasetError, ImageError
from .faces import Embedder
from .identity import THRESHOLD, similarity
from .images import content_key, open_image, png_bytes, value_key, write_json, write_whole
from .instructions import parse
from .pair_slots import Picture, open_header
from .pairs import Pair, PairedDataset
from .registration import Registration, onto, register

VERSION = "1"  # raise it when the same files measure otherwise
LOOK_PX = 512  # longer side at which colours and changed regions are looked at
BLOCK_PX = 16
ALIKE = 0.8  # correlation of a block with its counterpart from which it counts as unchanged
FEWEST_ALIKE = 0.05  # of the picture
SMALLEST_CHANGE = 0.01

Kind = Literal["unreadable", "aspect", "size", "identical", "shift", "colour", "soft", "identity", "reversed"]
Fix = Literal["align", "crop", "drop", "keep"]
FIX_OF: Mapping[Kind, Fix] = {
    "unreadable": "drop",
    "aspect": "crop",
    "size": "align",
    "identical": "drop",
    "shift": "align",
    "colour": "keep",
    "soft": "drop",
    "identity": "drop",
    "reversed": "drop",
}
KINDS: tuple[Kind, ...] = get_args(Kind)
_TAKES_AWAY = ("remove", "erase", "delete", "without", "clean up", "blur")
_ADDS = ("add ", "put ", "insert", "place ", "wear", "draw ")

Report = Callable[[int, int], None]
Plane = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a measurement is a finding."""

    shift_px: float = field(
        default=1.5,
        metadata={"help": "Shift between control and target, in pixels, from which a pair is flagged.", "min": 0.2, "max": 50.0},
    )
    zoom: float = field(
        default=0.003,
        metadata={
            "help": "Zoom between control and target from which a pair is flagged: 0.003 is 0.3 %.",
            "min": 0.001,
            "max": 0.2,
            "step": 0.001,
        },
    )
    colour: float = field(
        default=10.0,
        metadata={
            "help": "Mean colour difference (0 to 255) in the unchanged parts from which a pair is flagged.",
            "min": 1.0,
            "max": 128.0,
        },
    )
    softness: float = field(
        default=0.35,
        metadata={"help": "Share of the control's fine detail that the target must keep in the unchanged parts.", "min": 0.0, "max": 1.0},
    )
    identical: float = field(
        default=1.5,
        metadata={
            "help": "Mean difference (0 to 255) below which target and control are called the same picture.",
            "min": 0.0,
            "max": 20.0,
        },
    )

    def alarm(self, moved: Registration) -> bool:
        return moved.shift > self.shift_px or abs(moved.zoom) > self.zoom


ASPECT = 0.01  # shapes that differ by more cannot lie on each other


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one target and its first control. None: could not be.

    `difference`: mean, 0 … 255. `unchanged`, `changed`: shares of the picture. `colour`: mean of target minus control per channel in the unchanged
    part. `kept_detail`: fine detail of the target over that of the control there. `change_detail`: the same in the changed part, median of blocks.
    `faces`: similarity of the two faces.
    """

    control_px: tuple[int, int]
    target_px: tuple[int, int]
    difference: float
    moved: Registration | None = None
    unchanged: float = 0.0
    colour: tuple[float, float, float] | None = None
    kept_detail: float | None = None
    change_detail: float | None = None
    faces: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with one pair: the figure, the limit it passed, what it means, and what to do."""

    stem: str
    kind: Kind
    value: float
    limit: float
    text: str
    fix: Fix


@dataclass(frozen=True, slots=True)
class Checkup:
    """A dataset with what was found. `measured` by stem; a pair that could not be read has findings only."""

    dataset: PairedDataset
    measured: Mapping[str, Measured]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def of(self, stem: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.stem == stem)

    def text(self) -> str:
        ill = {finding.stem for finding in self.findings}
        counts = ", ".join(f"{kind} {count}" for kind in KINDS if (count := sum(one.kind == kind for one in self.findings)))
        head = f"{len(self.dataset.pairs) - len(ill)} of {len(self.dataset.pairs)} pairs are well" + (
            f"; found: {counts}." if counts else "."
        )
        return "\n".join([head, *(f"{one.stem}: {one.text} [{one.fix}]" for one in self.findings), *self.notes])


def examine(
    dataset: PairedDataset,
    limits: Limits | None = None,
    *,
    cache: Path | None = None,
    embedder: Embedder | None = None,
    report: Report | None = None,
) -> Checkup:
    """Look at every pair, several at once; `cache` keeps what was measured, by the bytes of the pictures.

    Target and control 1 are compared: that is the picture being edited. Further controls (a logo, a pose) are only decoded.

    Raises:
        DatasetError: the dataset has no controls.
    """
    if not dataset.slots:
        raise DatasetError(f"{dataset.name!r} has no control images: there is nothing to compare.")
    limits = limits or Limits()
    measured: dict[str, Measured] = {}
    findings: list[Finding] = []
    with ThreadPoolExecutor(os.cpu_count() or 1, "flenwheel-doctor") as pool:
        results = pool.map(partial(_measured_or_reason, cache=cache, embedder=embedder), dataset.pairs)
        for number, (pair, found) in enumerate(zip(dataset.pairs, results, strict=True), 1):
            if isinstance(found, str):
                findings.append(Finding(pair.stem, "unreadable", 0, 0, found, "drop"))
            else:
                measured[pair.stem] = found
                findings += _findings(pair, found, limits)
            if report:
                report(number, len(dataset.pairs))
    findings += _reversed(dataset, measured)
    unknown = [stem for stem, found in measured.items() if found.moved is None and _same_shape(found)]
    notes = [f"Shift not measurable in {len(unknown)} pairs (too little is unchanged): {', '.join(unknown[:5])}."] if unknown else []
    return Checkup(dataset, measured, tuple(findings), tuple(notes))


def mend(checkup: Checkup, folder: Path, fixes: Iterable[Fix] = ("align", "crop", "drop"), *, megapixels: float = 0.0) -> PairedDataset:
    """Carry out the fixes that are wanted; new pictures go to `folder`, named by content. Pairs without such a finding stay as they are.

    align, crop: the control is resampled to the target's framing; the target, which the model learns, keeps its pixels and loses at most a border
    that the control does not show. drop: the pair is left out. `megapixels`: a larger target is scaled down to this first; 0 never does.

    Raises:
        DatasetError: nothing would be left.
    """
    wanted = set(fixes)
    kept: list[Pair] = []
    told: dict[str, list[str]] = {"aligned": [], "left out": []}
    for pair in checkup.dataset.pairs:
        asked = {finding.fix for finding in checkup.of(pair.stem)} & wanted
        if "drop" in asked:
            told["left out"].append(pair.stem)
        elif asked & {"align", "crop"}:
            kept.append(_aligned(pair, checkup.measured[pair.stem].moved, folder, megapixels))
            told["aligned"].append(pair.stem)
        else:
            kept.append(pair)
    notes = [f"{len(stems)} pairs {what}: {', '.join(stems[:8])}{' …' if len(stems) > 8 else ''}." for what, stems in told.items() if stems]
    return replace(checkup.dataset, pairs=tuple(kept), notes=(*checkup.dataset.notes, *notes))


def overlay(pair: Pair, moved: Registration | None, *, size_px: int = 512) -> Image.Image:
    """Control in red and target in cyan, as they are and aligned: where both agree it is grey, a double contour is a shift."""
    control, target = (open_image(picture.path, at_least=size_px).image for picture in (pair.controls[0], pair.target))
    scale = size_px / max(target.size)
    size = max(1, round(target.width * scale)), max(1, round(target.height * scale))
    as_is = _anaglyph(control.resize(size, Image.Resampling.LANCZOS), target.resize(size, Image.Resampling.LANCZOS))
    if moved is None:
        return as_is
    grown = control.width / pair.controls[0].width  # the control may have been decoded smaller
    framed, box = onto(control, replace(moved, dx=moved.dx * grown, dy=moved.dy * grown), size)
    aligned = _anaglyph(framed, target.resize(size, Image.Resampling.LANCZOS))
    ImageDraw.Draw(aligned).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=(232, 178, 72), width=2)
    both = Image.new("RGB", (size[0] * 2 + 10, size[1]), (32, 32, 32))
    both.paste(as_is, (0, 0))
    both.paste(aligned, (size[0] + 10, 0))
    return both


def _anaglyph(control: Image.Image, target: Image.Image) -> Image.Image:
    red, cyan = control.convert("L"), target.convert("L")
    return Image.merge("RGB", (red, cyan, cyan))


# --- measuring --------------------------------------------------------------------------------------------------------------------------


def _measured_or_reason(pair: Pair, cache: Path | None, embedder: Embedder | None) -> Measured | str:
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
    target, control, *_ = (
        open_image(picture.path, content=content).image for picture, content in zip((pair.target, *pair.controls), contents, strict=True)
    )
    found = compare(control, target)
    if embedder:
        found = replace(found, faces=_alike(control, target, embedder))
    if kept:
        write_json(kept, asdict(found))
    return found


def _recalled(path: Path) -> Measured | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        moved = Registration(**told.pop("moved")) if told["moved"] else told.pop("moved")
        pairs: dict[str, Any] = {name: tuple(told.pop(name)) for name in ("control_px", "target_px")}
        colour = told.pop("colour")
        return Measured(**pairs, **told, moved=moved, colour=tuple(colour) if colour else None)
    except (ValueError, TypeError, KeyError):
        return None  # of another version, or cut off: measured again


def compare(control: Image.Image, target: Image.Image) -> Measured:
    """Measure a target against the picture it was made from."""
    scale = min(1.0, LOOK_PX / max(target.size))
    size = max(BLOCK_PX, round(target.width * scale)), max(BLOCK_PX, round(target.height * scale))
    seen = target.resize(size, Image.Resampling.LANCZOS)
    plain = control.resize(size, Image.Resampling.LANCZOS)
    difference = float(np.asarray(ImageChops.difference(seen, plain), np.float32).mean())
    found = Measured(control.size, target.size, difference)
    if not _same_shape(found):
        return found
    moved = register(control, target)
    if moved is None:
        return found
    framed, box = onto(control, moved, size)
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
    details = [_blocks(_detail(picture.mean(axis=2)), rows, columns).mean(axis=2) for picture in (control, target)]
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


def _detail(plane: Plane) -> Plane:
    """Energy of what a 3 x 3 blur would take away."""
    padded = np.pad(plane, 1, mode="edge")
    around = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
    return np.square(plane - around)


def _alike(control: Image.Image, target: Image.Image, embedder: Embedder) -> float | None:
    faces = [embedder.faces(image) for image in (control, target)]
    if not all(faces) or any(found[0].doubt for found in faces):
        return None
    return similarity(float(np.linalg.norm(faces[0][0].embedding - faces[1][0].embedding)), embedder.reach)


# --- judging ----------------------------------------------------------------------------------------------------------------------------


def _same_shape(found: Measured) -> bool:
    control, target = found.control_px[0] / found.control_px[1], found.target_px[0] / found.target_px[1]
    return abs(control / target - 1) <= ASPECT


def _findings(pair: Pair, found: Measured, limits: Limits) -> Iterator[Finding]:
    def finding(kind: Kind, value: float, limit: float, text: str) -> Finding:
        return Finding(pair.stem, kind, value, limit, text, FIX_OF[kind])

    wide, narrow = " x ".join(map(str, found.control_px)), " x ".join(map(str, found.target_px))
    if not _same_shape(found):
        off = abs(found.control_px[0] * found.target_px[1] / (found.control_px[1] * found.target_px[0]) - 1)
        yield finding("aspect", off, ASPECT, f"control_1 is {wide} and the target {narrow}: trainers would stretch or cut one of them")
        return
    if prod(found.control_px) < 0.5 * prod(found.target_px):
        yield finding("size", prod(found.control_px) / prod(found.target_px), 0.5, f"control_1 is only {wide}, the target {narrow}")
    moved = found.moved
    if found.difference < limits.identical:
        text = f"target and control_1 are the same picture (mean difference {found.difference:.1f}): it teaches to change nothing"
        yield finding("identical", found.difference, limits.identical, text)
    elif moved and limits.alarm(moved):
        text = f"the target slid by {moved.dx:+.1f}, {moved.dy:+.1f} px and grew by {moved.zoom:+.2%} against control_1"
        yield finding("shift", max(moved.shift / limits.shift_px, abs(moved.zoom) / limits.zoom), 1.0, text)
    kind = parse(pair.caption).kind
    if found.colour and kind not in ("lighting", "style") and (off := max(map(abs, found.colour))) > limits.colour:
        shown = ", ".join(f"{value:+.0f}" for value in found.colour)
        yield finding("colour", off, limits.colour, f"colours of the unchanged part differ by {shown} (red, green, blue of 255)")
    if found.kept_detail is not None and kind != "style" and found.kept_detail < limits.softness:
        text = f"the unchanged part keeps only {found.kept_detail:.0%} of the control's fine detail: the target is blurred"
        yield finding("soft", found.kept_detail, limits.softness, text)
    if found.faces is not None and found.faces < THRESHOLD:
        yield finding("identity", found.faces, THRESHOLD, f"the face of the target is like that of control_1 only to {found.faces:.2f}")


def _reversed(dataset: PairedDataset, measured: Mapping[str, Measured]) -> Iterator[Finding]:
    """Pairs whose sides look swapped: by the instruction's own words, or against the rest of the set."""
    ratios = {stem: log(found.change_detail) for stem, found in measured.items() if found.change_detail}
    usual = median(ratios.values()) if len(ratios) >= 8 else 0.0
    agreeing = sum(ratio * usual > 0 and abs(ratio) > log(1.3) for ratio in ratios.values())
    for pair in dataset.pairs:
        ratio = ratios.get(pair.stem)
        if ratio is None:
            continue
        words = f" {pair.caption.casefold()} "
        wanted = -1 if any(word in words for word in _TAKES_AWAY) else 1 if any(f" {word}" in words for word in _ADDS) else 0
        against_words = wanted and ratio * wanted < -log(1.6)
        against_rest = abs(usual) > log(1.3) and agreeing >= 0.75 * len(ratios) and ratio * usual < 0 and abs(ratio) > log(1.6)
        if against_words or against_rest:
            why = (
                f"{pair.caption!r} should {'simplify' if wanted < 0 else 'add to'} the picture"
                if against_words
                else "the others do the opposite"
            )
            direction = "more" if ratio > 0 else "less"
            text = f"source and target look swapped: the changed part of the target has {direction} detail than the control's, and {why}"
            yield Finding(pair.stem, "reversed", ratio, usual, text, "drop")


# --- mending ----------------------------------------------------------------------------------------------------------------------------


def _aligned(pair: Pair, moved: Registration | None, folder: Path, megapixels: float) -> Pair:
    """The pair with control 1 in the target's framing, both cut to what both show."""
    control, target = open_image(pair.controls[0].path).image, open_image(pair.target.path).image
    shrink = (megapixels * 1e6 / prod(target.size)) ** 0.5 if megapixels else 1.0
    if shrink < 1:
        target = target.resize((round(target.width * shrink), round(target.height * shrink)), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if moved is None:  # another shape: cut about the middle, then look again
        control = _cut_to(control, target.width / target.height)
        moved = register(control, target) or Registration(0.0, 0.0, 0.0, 0.0, 0, 0.0)
    framed, box = onto(control, moved, target.size)
    whole = shrink >= 1 and box == (0, 0, *target.size)
    mended_control = _saved(framed.crop(box), folder, f"{pair.stem}-control_1")
    mended_target = pair.target if whole else _saved(target.crop(box), folder, f"{pair.stem}-target")
    facts = {"aligned": {"dx": round(moved.dx, 2), "dy": round(moved.dy, 2), "zoom": round(moved.zoom, 5)}}
    return replace(pair, target=mended_target, controls=(mended_control, *pair.controls[1:]), facts={**pair.facts, **facts})


def _cut_to(image: Image.Image, aspect: float) -> Image.Image:
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
