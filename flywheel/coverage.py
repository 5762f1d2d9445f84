"""Which of the model card's 23 images the pictures at hand already show, and what to ask for where there is none. Judges nobody's picture.

A picture fills a cell by its angle, expression and framing: for photographs those of metadata.json, where a person's word counts before a
measurement; for candidates what is measured, or, once a person has labelled one good, what its prompt asked for. Nothing here proposes angry
or sad, and nothing measures what a body does: both are for a person to say.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import review, source_metadata
from .candidates import Shelf
from .dataset import Dataset
from .errors import DatasetError
from .faces import Embedder
from .faces.measure import Report, measure
from .project import Project
from .prompts import PromptSet
from .quality import ANGLES, EXPRESSIONS, FRAMINGS, UNKNOWN, View, view

FULL_BODY = "full body"
QUALITIES = ("high", "medium", "low")


@dataclass(frozen=True, slots=True)
class Slot:
    """One image of the model card. `expression` is None for a body, `pose` None for a portrait. `prompt` is for a character LoRA with {token}
    and {noun}, `edit` for an edit of a photograph."""

    id: str
    angle: str
    expression: str | None
    framing: str
    pose: str | None
    prompt: str
    edit: str


@dataclass(frozen=True, slots=True)
class Said:
    """What is known of one picture. `odd`: its face is unlike the others'."""

    name: str
    angle: str = UNKNOWN
    expression: str = UNKNOWN
    framing: str = UNKNOWN
    pose: str = UNKNOWN
    quality: str = "high"
    odd: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A slot of the card and the pictures that show it, best first."""

    slot: Slot
    pictures: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """`cells` in the card's order. `outside`: pictures that fill no cell, each with the reason."""

    cells: tuple[Cell, ...]
    outside: tuple[tuple[Said, str], ...]

    def missing(self, per_cell: int = 1) -> tuple[Slot, ...]:
        """Slots with fewer pictures than wanted."""
        return tuple(cell.slot for cell in self.cells if len(cell.pictures) < per_cell)

    def text(self, per_cell: int = 1) -> str:
        """The map in words: counts, what is missing, what fits nowhere and why."""
        return "\n".join(_lines(self, per_cell))


@cache
def card() -> tuple[Slot, ...]:
    """The 23 slots: five angles times four expressions, and three poses of the body."""
    described = json.loads((Path(__file__).parent / "data" / "card_23.json").read_text(encoding="utf-8"))
    return tuple(Slot(**slot) for slot in described["slots"])


def coverage(pictures: Sequence[Said]) -> Coverage:
    """Sort pictures into the cells of the card."""
    ranked = sorted(pictures, key=lambda said: QUALITIES.index(said.quality) if said.quality in QUALITIES else len(QUALITIES))
    cells = tuple(Cell(slot, tuple(said for said in ranked if _shows(said, slot))) for slot in card())
    placed = {said.name for cell in cells for said in cell.pictures}
    return Coverage(cells, tuple((said, _why_outside(said)) for said in pictures if said.name not in placed))


def look(dataset: Dataset, embedder: Embedder | None, *, report: Report | None = None) -> tuple[Said, ...]:
    """What is known of each picture of a dataset; candidates are measured where they were not before.

    Raises:
        DatasetError: metadata.json is damaged, or has no entry for a photograph.
    """
    if dataset.stage_name == "source":
        return _look_at_photos(dataset)
    measured = (
        measure(dataset.project, {image.key: dataset.path(image) for image in dataset.images}, embedder, report=report)
        if embedder
        else None
    )
    asked = _asked_and_good(dataset)
    pictures: list[Said] = []
    for image in dataset.images:
        seen = view(measured.faces.get(image.key) if measured else None, (image.width, image.height))
        slot = asked.get(image.key)
        pictures.append(_as_asked(image.name, slot, seen) if slot else Said(image.name, seen.angle, seen.expression, seen.framing))
    return tuple(pictures)


def best_photos(project: Project, count: int) -> tuple[str, ...]:
    """File names of the photographs that missing cells are best made from: usable, not odd, of high quality, from the front, a neutral face.

    Raises:
        DatasetError: no photograph is usable.
    """
    usable = [said for said in source_metadata.said_of_sources(project).values() if said["usable"] and not said["odd"]]
    if not usable:
        raise DatasetError("There is no usable photograph to make the missing images from. Run Curate Source first.")

    def rank(said: Mapping[str, Any]) -> tuple[int, int, int]:
        angles = ("front", "half-left", "half-right")
        return (
            QUALITIES.index(said["quality"]) if said["quality"] in QUALITIES else len(QUALITIES),
            angles.index(said["angle"]) if said["angle"] in angles else len(angles),
            0 if said["expression"] == "neutral" else 1,
        )

    return tuple(said["filename"] for said in sorted(usable, key=rank)[:count])


def prompts(missing: Sequence[Slot], photos: Sequence[str]) -> PromptSet:
    """One edit of each of `photos` for every missing slot, for Enrich Dataset.

    Raises:
        PromptError: nothing is missing.
    """
    return PromptSet(tuple(slot.edit for slot in missing), 0, tuple(photos))


def card_prompts(missing: Sequence[Slot], project: Project) -> tuple[str, ...]:
    """The card's own prompts for missing slots, for a character LoRA."""
    return tuple(slot.prompt.format(token=project.instance_token, noun=project.class_noun) for slot in missing)


def _as_asked(name: str, slot: Slot, seen: View) -> Said:
    """A candidate that a person called good shows what its prompt asked for, whatever is measured."""
    angle = slot.angle if slot.angle in ANGLES else UNKNOWN
    if slot.pose:
        return Said(name, angle, seen.expression, FULL_BODY, slot.pose)
    return Said(name, angle, slot.expression or UNKNOWN, seen.framing)


def _look_at_photos(dataset: Dataset) -> tuple[Said, ...]:
    said = source_metadata.said_of_sources(dataset.project)
    lost = [image.name for image in dataset.images if image.key not in said]
    if lost:
        raise DatasetError("metadata.json has no entry for these photographs; run Curate Source again:", lost)
    entries = [said[image.key] for image in dataset.images]
    return tuple(
        Said(entry["filename"], entry["angle"], entry["expression"], entry["framing"], entry["pose"], entry["quality"], entry["odd"])
        for entry in entries
    )


def _asked_and_good(dataset: Dataset) -> dict[str, Slot]:
    """The slot each candidate was made for, by image key, where a person has called it good."""
    by_prompt = {slot.edit: slot for slot in card()} | dict(zip(card_prompts(card(), dataset.project), card(), strict=True))
    decided = review.labels(dataset.project)
    asked: dict[str, Slot] = {}
    for lineage in Shelf(dataset.stage).lineages.values():
        slot, event = by_prompt.get(lineage.facts.get("prompt", "")), decided.get(lineage.image_key)
        if slot and event and event.label == "good":
            asked[lineage.image_key] = slot
    return asked


def _shows(said: Said, slot: Slot) -> bool:
    if said.odd:
        return False
    if slot.pose:
        angles = (UNKNOWN, *(angle for angle in ANGLES if (angle == "front") == (slot.angle == "front")))  # "side" is any turned one
        return said.framing == FULL_BODY and said.pose == slot.pose and said.angle in angles
    return said.framing != FULL_BODY and (said.angle, said.expression) == (slot.angle, slot.expression)


def _why_outside(said: Said) -> str:
    if said.odd:
        return "its face is unlike the others': is it the same person? If so, set odd to false in metadata.json"
    if said.framing == FULL_BODY:
        poses = [slot.pose for slot in card() if slot.pose]
        if said.pose not in poses:
            return f"full body, but its pose is {said.pose}: write {', '.join(map(str, poses))} if it is one of these"
        return f"full body, {said.pose}, but seen {said.angle}"
    if said.angle not in ANGLES:
        return f"angle {said.angle!r}: the card wants {', '.join(ANGLES)}"
    return f"expression {said.expression!r}: the card wants {', '.join(EXPRESSIONS)}"


def _lines(found: Coverage, per_cell: int) -> Iterator[str]:
    missing = found.missing(per_cell)
    wanted = "" if per_cell == 1 else f" with at least {per_cell} pictures"
    yield f"{len(found.cells) - len(missing)} of {len(found.cells)} cells of the model card are covered{wanted}, {len(missing)} are missing."
    pictures = list({said.name: said for said in (*(said for cell in found.cells for said in cell.pictures), *_outsiders(found))}.values())
    for name, kinds, values in (
        ("angle", ANGLES, Counter(said.angle for said in pictures)),
        ("expression", EXPRESSIONS, Counter(said.expression for said in pictures)),
        ("framing", FRAMINGS, Counter(said.framing for said in pictures)),
    ):
        others = [kind for kind in values if kind not in kinds]
        yield f"{name}: {', '.join(f'{values[kind]} {kind}' for kind in (*kinds, *others))}"
    if missing:
        yield f"missing: {', '.join(slot.id for slot in missing)}"
    for said, reason in found.outside:
        yield f"{said.name} fills no cell: {reason}"


def _outsiders(found: Coverage) -> Iterator[Said]:
    return (said for said, _ in found.outside)
