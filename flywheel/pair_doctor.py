"""What is wrong with pairs that fit by name: pixels that slid, shapes that differ, targets that teach nothing, sides that look swapped.

Measures pictures and proposes a fix for each finding; `mend` carries the fixes out into new files. Originals are never changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from math import exp, log, prod
from pathlib import Path
from statistics import median
from typing import Literal, get_args

from .errors import DatasetError
from .faces import Embedder
from .identity import THRESHOLD
from .instructions import parse
from .pair_measures import ASPECT, Measured, measured_or_reason, same_shape
from .pair_mending import aligned
from .pairs import Pair, PairedDataset
from .registration import Registration

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
LOCAL = 8  # a block that differs by this many times the limit is a change, however small its share of the picture
_TAKES_AWAY = ("remove", "erase", "delete", "without", "clean up", "blur")
_ADDS = ("add ", "put ", "insert", "place ", "wear", "draw ")

Report = Callable[[int, int], None]


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
    aspect: float = field(
        default=ASPECT,
        metadata={
            "help": "Difference of width to height from which a pair is flagged: 0.01 is 1 %. Pairs that differ by more than 1 % cannot be laid on each other.",
            "min": 0.0,
            "max": 1.0,
        },
    )
    size: float = field(
        default=0.5,
        metadata={"help": "Pixels of the control as a share of the target's, below which a pair is flagged.", "min": 0.0, "max": 1.0},
    )
    identity: float = field(
        default=THRESHOLD,
        metadata={"help": "Similarity of the two faces below which a pair is flagged, when faces are compared.", "min": 0.0, "max": 1.0},
    )
    reversed: float = field(
        default=1.6,
        metadata={
            "help": "How many times more (or less) fine detail the changed part must have than its words say, to be called swapped.",
            "min": 1.1,
            "max": 1000.0,
            "step": 0.1,
        },
    )

    def alarm(self, moved: Registration) -> bool:
        return moved.shift > self.shift_px or abs(moved.zoom) > self.zoom


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with one pair: the figure, the limit it passed, what it means, and what to do."""

    stem: str
    kind: Kind
    value: float
    limit: float
    text: str
    fix: Fix
    slot: str = "control_1"


@dataclass(frozen=True, slots=True)
class Checkup:
    """A dataset with what was found. `measured` by stem; a pair that could not be read has findings only."""

    dataset: PairedDataset
    measured: Mapping[str, Measured]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def of(self, stem: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.stem == stem)

    def moved(self, stem: str, slot: str = "control_1") -> Registration | None:
        """How the target of a pair lies against one of its controls."""
        found, number = self.measured[stem], int(slot.removeprefix("control_"))
        return found.moved if number == 1 else found.others[number - 2].moved

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

    Target and control 1, the picture being edited, are compared in everything. A further control is compared where it shows the target's scene,
    such as a depth map or a mask; a logo or a pose has nothing to compare, but may not be the same file as another slot's.

    Raises:
        DatasetError: the dataset has no controls.
    """
    if not dataset.slots:
        raise DatasetError(f"{dataset.name!r} has no control images: there is nothing to compare.")
    limits = limits or Limits()
    measured: dict[str, Measured] = {}
    findings: list[Finding] = []
    with ThreadPoolExecutor(os.cpu_count() or 1, "flenwheel-doctor") as pool:
        results = pool.map(partial(measured_or_reason, cache=cache, embedder=embedder), dataset.pairs)
        for number, (pair, found) in enumerate(zip(dataset.pairs, results, strict=True), 1):
            if isinstance(found, str):
                findings.append(Finding(pair.stem, "unreadable", 0, 0, found, "drop"))
            else:
                measured[pair.stem] = found
                findings += [*_findings(pair, found, limits), *_beside(pair, found, limits)]
            if report:
                report(number, len(dataset.pairs))
    unusable = {one.stem for one in findings if one.kind in ("identical", "soft")}  # what was blurred lost detail without being swapped
    findings += _reversed(dataset, {stem: found for stem, found in measured.items() if stem not in unusable}, limits.reversed)
    shaped_otherwise = {one.stem for one in findings if one.kind == "aspect"}
    unknown = [stem for stem, found in measured.items() if found.moved is None and stem not in shaped_otherwise]
    why = "too little is unchanged, or the shapes differ"
    notes = [f"Shift not measurable in {len(unknown)} pairs ({why}): {', '.join(unknown[:5])}."] if unknown else []
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
            found = checkup.measured[pair.stem]
            kept.append(aligned(pair, found.moved, found.others, folder, megapixels))
            told["aligned"].append(pair.stem)
        else:
            kept.append(pair)
    notes = [f"{len(stems)} pairs {what}: {', '.join(stems[:8])}{' …' if len(stems) > 8 else ''}." for what, stems in told.items() if stems]
    return replace(checkup.dataset, pairs=tuple(kept), notes=(*checkup.dataset.notes, *notes))


def _findings(pair: Pair, found: Measured, limits: Limits) -> Iterator[Finding]:
    def finding(kind: Kind, value: float, limit: float, text: str) -> Finding:
        return Finding(pair.stem, kind, value, limit, text, FIX_OF[kind])

    wide, narrow = " x ".join(map(str, found.control_px)), " x ".join(map(str, found.target_px))
    off = abs(found.control_px[0] * found.target_px[1] / (found.control_px[1] * found.target_px[0]) - 1)
    if off > limits.aspect:
        text = f"control_1 is {wide} and the target {narrow}: trainers would stretch or cut one of them"
        yield finding("aspect", off, limits.aspect, text)
    if not same_shape(found):
        return
    if (share := prod(found.control_px) / prod(found.target_px)) < limits.size:
        yield finding("size", share, limits.size, f"control_1 is only {wide}, the target {narrow}")
    moved = found.moved
    if found.difference < limits.identical and found.strongest < LOCAL * limits.identical:
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
    if found.faces is not None and found.faces < limits.identity:
        yield finding(
            "identity", found.faces, limits.identity, f"the face of the target is like that of control_1 only to {found.faces:.2f}"
        )


def _beside(pair: Pair, found: Measured, limits: Limits) -> Iterator[Finding]:
    """What is wrong with the further controls."""
    for number, other in enumerate(found.others, 2):
        slot = f"control_{number}"
        if other.same_as:
            text = f"{slot} and {other.same_as} are the same picture: Picture {number} tells the model nothing"
            yield Finding(pair.stem, "identical", 0.0, limits.identical, text, "drop", slot)
        elif (moved := other.moved) and limits.alarm(moved):
            text = f"the target slid by {moved.dx:+.1f}, {moved.dy:+.1f} px and grew by {moved.zoom:+.2%} against {slot}"
            yield Finding(pair.stem, "shift", max(moved.shift / limits.shift_px, abs(moved.zoom) / limits.zoom), 1.0, text, "align", slot)


def _reversed(dataset: PairedDataset, measured: Mapping[str, Measured], times: float) -> Iterator[Finding]:
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
        against_words = wanted and ratio * wanted < -log(times)
        against_rest = abs(usual) > log(1.3) and agreeing >= 0.75 * len(ratios) and ratio * usual < 0 and abs(ratio) > log(times)
        if against_words or against_rest:
            why = (
                f"{pair.caption!r} should {'simplify' if wanted < 0 else 'add to'} the picture"
                if against_words
                else "the others do the opposite"
            )
            direction = "more" if ratio > 0 else "less"
            text = f"source and target look swapped: the changed part of the target has {direction} detail than the control's, and {why}"
            yield Finding(pair.stem, "reversed", exp(abs(ratio)), times, text, "drop")
