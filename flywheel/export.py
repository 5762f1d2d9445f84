"""A reviewed dataset as a training folder: image + .txt caption (kohya style), metadata.jsonl, and a report against the success criteria.

The folder is a copy that can be made again at any time. A caption that a person edited in its .txt is kept; a file we did not write is left.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import identity, review
from .dataset import Dataset, ImageRecord
from .errors import DatasetError
from .images import write_json, write_whole

ENOUGH_GOOD = 30
IDENTITY_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Criterion:
    """One success criterion of the process document, with the figure that decides it."""

    name: str
    met: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Exported:
    """Where the training set is, how many images it holds, and what is still missing."""

    folder: Path
    images: int
    criteria: tuple[Criterion, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        return told(f"{self.images} images with captions in {self.folder}", self.criteria, self.notes)


def told(heading: str, criteria: Sequence[Criterion], notes: Sequence[str]) -> str:
    """A heading, which criteria are met, and what else a person should know."""
    lines = [heading, "", *(f"{'✔' if criterion.met else '✘'} {criterion.name}: {criterion.detail}" for criterion in criteria)]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def export(good: Dataset, *, photographs: Dataset | None = None, pristine: Dataset | None = None, repeats: int = 10) -> Exported:
    """Write data/training/<version>/<repeats>_<token> <noun>/ with the good images and, where given, the photographs and the pristine images.

    Raises:
        DatasetError: there is nothing to export, or a file is gone. Nothing is written then.
        StorageError: the disk refused; the old export stays usable.
    """
    members = _members(photographs, good, pristine)
    _refuse(members, good)
    stage = good.project.stage("training")
    folder = stage.folder / f"{repeats}_{good.project.instance_token} {good.project.class_noun}"
    before = _written_before(stage.folder)
    rows: list[dict[str, Any]] = []
    kept_captions: list[str] = []
    for dataset, image in members:
        name = f"{folder.name}/{image.name}"
        caption = _write(dataset, image, stage.folder / name, before.get(name, image.caption))
        if caption != image.caption:
            kept_captions.append(name)
        rows.append(
            {
                "file_name": name,
                "text": caption,
                "generated_text": image.caption,
                "key": image.key,
                "depth": image.depth,
                "from": image.path,
            }
        )
    stale = [name for name in before if name not in {row["file_name"] for row in rows}]
    for name in stale:
        (stage.folder / name).unlink(missing_ok=True)
        (stage.folder / name).with_suffix(".txt").unlink(missing_ok=True)
    write_whole(stage.folder / "metadata.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    notes = tuple(_notes(members, photographs, pristine, kept_captions, stale))
    exported = Exported(folder, len(rows), criteria(review.under_review(good.stage)), notes)
    write_json(stage.folder / "report.json", _described(exported))
    write_whole(stage.folder / "report.txt", (exported.text() + "\n").encode())
    return exported


def criteria(reviewed: Dataset) -> tuple[Criterion, ...]:
    """Steps 1.2 and 1.3 of the process document, measured on what was under review."""
    verdicts = review.verdicts(reviewed)
    counts = verdicts.counts()
    decided = review.labels(reviewed.project)
    without = [
        image.name for part in (verdicts.reject, verdicts.needs_correction) for image in part.images if not _reasoned(decided[image.key])
    ]
    scores = identity.comparable_scores(reviewed.project, [image.key for image in reviewed.images])
    measured = [score.similarity for score in scores.values() if score.similarity is not None]
    alike = sum(similarity >= identity.THRESHOLD for similarity in measured)
    faulty = counts["reject"] + counts["needs_correction"]
    return (
        Criterion(f"at least {ENOUGH_GOOD} good images", counts["good"] >= ENOUGH_GOOD, f"{counts['good']}"),
        Criterion("all images reviewed", counts["undecided"] == 0, f"{counts['total'] - counts['undecided']} of {counts['total']}"),
        Criterion("rejection reasons documented", not without, f"{faulty - len(without)} of {faulty}" + _examples(without)),
        Criterion(
            f"identity kept in at least {IDENTITY_SHARE:.0%}",
            bool(measured) and alike >= IDENTITY_SHARE * len(measured),
            f"{alike} of {len(measured)} measured ({len(reviewed.images) - len(measured)} not measurable or not scored)",
        ),
        Criterion("every image linked to its source", all(image.parents for image in reviewed.images), f"{len(reviewed.images)} images"),
    )


def _reasoned(event: review.LabelEvent) -> bool:
    return bool(event.reasons or event.note.strip())


def _examples(names: Sequence[str]) -> str:
    return f"; no reason yet for {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else ""


def _members(*datasets: Dataset | None) -> list[tuple[Dataset, ImageRecord]]:
    """Every image once: a pristine one may be among the good ones as well."""
    found = [(dataset, image) for dataset in datasets if dataset for image in dataset.images]
    return list({image.key: (dataset, image) for dataset, image in reversed(found)}.values())[::-1]


def _refuse(members: Sequence[tuple[Dataset, ImageRecord]], good: Dataset) -> None:
    problems: list[str] = []
    if not good.images:
        problems.append("no image was labelled good: open the review and label some, then queue again")
    problems += [f"{image.path} is gone" for dataset, image in members if not dataset.path(image).is_file()]
    stems = Counter(image.stem.casefold() for _, image in members)
    problems += [f"{image.path}: another image of the set has the same name" for _, image in members if stems[image.stem.casefold()] > 1]
    token = good.project.instance_token
    spoken = re.compile(rf"(?<!\w){re.escape(token)}(?!\w)")
    problems += [f"{image.path}: its caption lacks the token {token!r}" for _, image in members if not spoken.search(image.caption)]
    if problems:
        raise DatasetError("The training set cannot be exported:", problems)


def _write(dataset: Dataset, image: ImageRecord, target: Path, written_before: str) -> str:
    """Copy the image unless it is there already; answer the caption that holds, which is a person's where one edited it."""
    if not target.is_file() or target.stat().st_size != dataset.path(image).stat().st_size:
        write_whole(target, dataset.path(image).read_bytes())
    text = target.with_suffix(".txt")
    found = text.read_text(encoding="utf-8").strip() if text.is_file() else written_before
    caption = found if found != written_before else image.caption
    write_whole(text, (caption + "\n").encode())
    return caption


def _written_before(folder: Path) -> dict[str, str]:
    """Captions of the last export by file name, as we generated them."""
    listing = folder / "metadata.jsonl"
    if not listing.is_file():
        return {}
    rows = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row["file_name"]: row["generated_text"] for row in rows}


def _notes(
    members: Sequence[tuple[Dataset, ImageRecord]],
    photographs: Dataset | None,
    pristine: Dataset | None,
    kept: Sequence[str],
    stale: Sequence[str],
) -> Iterator[str]:
    if photographs:
        share = len(photographs.images) / len(members)
        yield f"{len(photographs.images)} photographs are part of it ({share:.0%}); the rest are edits of them."
    if pristine:
        own = sum(dataset is pristine for dataset, _ in members)
        yield f"{own} of the {len(pristine.images)} pristine images add to it; the others are among the good images."
    if kept:
        yield f"{len(kept)} captions edited by hand were kept."
    if stale:
        yield f"{len(stale)} images of the last export are no longer good and were taken out; the originals are where they were."


def _described(exported: Exported) -> dict[str, Any]:
    return {
        "images": exported.images,
        "folder": exported.folder.name,
        "criteria": [{"name": criterion.name, "met": criterion.met, "detail": criterion.detail} for criterion in exported.criteria],
        "notes": list(exported.notes),
    }
