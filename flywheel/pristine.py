"""Step 1.7's result: what the strict pass called good, as data/pristine/<version>/, for the next training to learn from.

The folder is a copy that follows the verdicts: run again, it takes in new picks and lets go of those that were taken back. A file that it did
not write stays where it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import evidence, ledger
from .candidates import Shelf, record_of
from .dataset import Dataset, ImageRecord
from .desk import Desk
from .errors import DatasetError
from .export import Criterion, told
from .images import content_key, write_json, write_whole
from .ledger import LabelEvent
from .project import Project, Stage, StageName

PICKED_FROM: tuple[StageName, ...] = ("enriched", "synthetic", "corrections")
FEWEST, MOST = 10, 20  # images the process document wants


@dataclass(frozen=True, slots=True)
class Pristine:
    """The set, and how it stands against step 1.7. `notes`: what else a person should know, in words."""

    dataset: Dataset
    criteria: tuple[Criterion, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        return told(f"{len(self.dataset.images)} pristine images in {self.dataset.stage.folder}", self.criteria, self.notes)


@dataclass(frozen=True, slots=True)
class _Pick:
    stage: Stage
    record: ImageRecord
    path: Path
    verdict: LabelEvent
    facts: dict[str, Any]


def gather(project: Project) -> Pristine:
    """Bring data/pristine/<version>/ in line with the strict pass over everything of this lap.

    Raises:
        StorageError: the disk refused; what was there before stays usable.
    """
    stage = project.stage("pristine")
    desks = _desks(project)
    picks = [pick for desk in desks for pick in _picks(desk)]
    before = {entry["filename"]: entry["key"] for entry in _listed(stage)}
    replaced = [pick.record.name for pick in picks if _copy(pick, stage)]
    kept = {pick.record.name for pick in picks}
    gone = [name for name, key in before.items() if name not in kept and _is(stage.folder / name, key)]
    write_json(stage.metadata, {"images": [_described(pick) for pick in picks]})
    for name in gone:
        (stage.folder / name).unlink(missing_ok=True)
    dataset = Dataset(project, "pristine", tuple(_record(stage, pick.record) for pick in picks))
    pristine = Pristine(dataset, tuple(_criteria(desks, picks)), tuple(_notes(picks, gone, replaced)))
    write_json(stage.folder / "report.json", {"images": len(picks), "criteria": [asdict(criterion) for criterion in pristine.criteria]})
    write_whole(stage.folder / "report.txt", (pristine.text() + "\n").encode())
    return pristine


def load(project: Project) -> Dataset:
    """The pristine set of this lap as it was gathered last.

    Raises:
        DatasetError: there is none, or a file of it is gone.
    """
    stage = project.stage("pristine")
    entries = _listed(stage)
    if not entries:
        raise DatasetError(
            f"{project.name} {project.version} has no pristine images: give verdicts in the strict pass, then run Pristine Set."
        )
    lost = [entry["filename"] for entry in entries if not (stage.folder / entry["filename"]).is_file()]
    if lost:
        raise DatasetError("These pristine images are gone; run Pristine Set again:", lost)
    return Dataset(project, "pristine", tuple(_from_entry(stage, entry) for entry in entries))


def revision(stage: Stage) -> str:
    """Changes when a pick is made or taken back; empty while there is none. Reads only."""
    shelf = Shelf(stage)
    standing = ledger.standing(stage.project)
    return "".join(sorted(lineage.image_key for lineage in shelf.lineages.values() if _is_pick(standing.get(lineage.image_key, {}))))


def _desks(project: Project) -> list[Desk]:
    desks = [Desk(project.stage(name)) for name in PICKED_FROM if project.stage(name).folder.is_dir()]
    for desk in desks:
        desk.catch_up()
    return desks


def _picks(desk: Desk) -> Iterator[_Pick]:
    for key in desk.by_image:
        passes, path = desk.standing.get(key, {}), desk.file(key)
        if path and _is_pick(passes):
            made = desk.by_image[key]
            yield _Pick(desk.stage, record_of(desk.shelf, made), path, passes["strict"], dict(desk.shelf.lineages[made].facts))


def _is_pick(passes: dict[ledger.Pass, LabelEvent]) -> bool:
    return "strict" in passes and passes["strict"].label == "good"


def _copy(pick: _Pick, stage: Stage) -> bool:
    """Put the image into the folder; whether another file of its name lay there."""
    target = stage.folder / pick.record.name
    if _is(target, pick.record.key):
        return False
    other = target.is_file()
    write_whole(target, pick.path.read_bytes())
    return other


def _is(path: Path, key: str) -> bool:
    return path.is_file() and content_key(path) == key


def _record(stage: Stage, record: ImageRecord) -> ImageRecord:
    path = stage.project.relative(stage.folder / record.name)
    return ImageRecord(record.key, path, record.width, record.height, record.caption, record.origin, record.parents, record.depth)


def _described(pick: _Pick) -> dict[str, Any]:
    """One entry of pristine_metadata.json: the image, where it came from, and who chose it."""
    record, verdict = pick.record, pick.verdict
    return {
        "filename": record.name,
        "key": record.key,
        "stage": pick.stage.name,
        "from": record.path,
        "width": record.width,
        "height": record.height,
        "caption": record.caption,
        "origin": record.origin,
        "parents": list(record.parents),
        "depth": record.depth,
        "prompt": pick.facts["prompt"],
        "seed": pick.facts["seed"],
        "picked_by": verdict.reviewer,
        "picked_at": verdict.at,
        "answers": dict(verdict.answers),
        "note": verdict.note,
    }


def _from_entry(stage: Stage, entry: dict[str, Any]) -> ImageRecord:
    path = stage.project.relative(stage.folder / entry["filename"])
    size = entry["width"], entry["height"]
    return ImageRecord(entry["key"], path, *size, entry["caption"], entry["origin"], tuple(entry["parents"]), entry["depth"])


def _listed(stage: Stage) -> list[dict[str, Any]]:
    try:
        return json.loads(stage.metadata.read_text(encoding="utf-8"))["images"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{stage.project.relative(stage.metadata)} is not readable ({error}). Delete it and run Pristine Set again."
        ) from error


def _criteria(desks: list[Desk], picks: list[_Pick]) -> Iterator[Criterion]:
    """Step 1.7 of the process document."""
    counts = [desk.counts("strict") for desk in desks]
    total, undecided = (sum(count[name] for count in counts) for name in ("total", "undecided"))
    new = sorted({value for desk in desks for value in _new_values(desk)})
    unsure = [
        pick.record.name for pick in picks if not all(pick.verdict.answers.get(name) for name in ("character", "anatomy", "artefacts"))
    ]
    few = ", …" if len(unsure) > 3 else ""
    yield Criterion("strict pass finished", bool(total) and not undecided, f"{total - undecided} of {total}")
    yield Criterion(f"at least {FEWEST} pristine images", len(picks) >= FEWEST, f"{len(picks)}")
    yield Criterion("angles or expressions that no photograph shows", bool(new), ", ".join(new) or "none")
    yield Criterion(
        "character, anatomy and artefacts answered with yes",
        bool(picks) and not unsure,
        f"{len(picks) - len(unsure)} of {len(picks)}" + (f"; not so for {', '.join(unsure[:3])}{few}" if unsure else ""),
    )


def _new_values(desk: Desk) -> Iterator[str]:
    table = evidence.coverage(desk)
    for what in ("angle", "expression"):
        yield from (
            f"{what} {row['value']}" for row in table[what] if row["picked"] and not row["sources"] and row["value"] != evidence.UNKNOWN
        )


def _notes(picks: list[_Pick], gone: list[str], replaced: list[str]) -> Iterator[str]:
    if len(picks) > MOST:
        yield f"{MOST} are enough: keep the best, and give the others back with “needs correction” or “reject” in the strict pass."
    if gone:
        yield f"{len(gone)} images are no longer picked and were taken out of the folder; the originals are where they were."
    if replaced:
        yield (
            f"{', '.join(replaced[:3])}{', …' if len(replaced) > 3 else ''}: changed in the folder since, and replaced by the reviewed image."
            " Save your own corrections in data/corrections, so that they are reviewed too."
        )
