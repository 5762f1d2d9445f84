"""What is drawn and no photograph. Of the character somebody has said it; of a picture its prompt tells, or its face (of a quarter of all drawings: docs/faces.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from .candidates import Shelf
from .faces import Face
from .instructions import drawing_asked_for, is_hand_made, photograph_asked_for
from .project import STAGES, Project, laps

SAY_SO = "If the character is drawn or stylised after all, say so: under pictures_are in Project. Then nothing is scored and every image goes to your review."


def drawn_character(project: Project) -> str:
    """Why the character itself counts as drawn; empty where somebody has said that the pictures are photographs."""
    if project.medium == "photographs":
        return ""
    return "the project says so" if project.medium else "nobody has said that the pictures are photographs (pictures_are in Project)"


def drawings(project: Project) -> dict[str, str]:
    """Why images count as drawn, by key: their prompt asks for it, or that of an image they were made from, in any lap."""
    facts = {
        lineage.image_key: lineage.facts
        for name in STAGES
        for lap in laps(project.root, name)
        for lineage in Shelf(replace(project, lap=lap).stage(name)).lineages.values()
    }
    told = ((key, _why(key, facts)) for key in facts)
    return {key: why for key, why in told if why}


def doubt(seen: Collection[Iterable[Face]], captions: Iterable[str]) -> str:
    """What to say where so few faces are clear that the character may be drawn, or where a caption calls it so; else empty.

    `seen`: the faces of each picture.
    """
    if called := next((caption for caption in captions if is_hand_made(caption)), ""):
        return f"A caption says {called!r}. {SAY_SO}"
    unclear = sum(not any(face.found_by == "hog" for face in faces) for faces in seen)
    return f"In {unclear} of {len(seen)} pictures no clear face was found. {SAY_SO}" if seen and 2 * unclear >= len(seen) else ""


def _why(key: str, facts: Mapping[str, Mapping[str, Any]]) -> str:
    """The first of an image, its source, that one's source …, whose prompt asks for a drawing or for a photograph, decides."""
    asked, seen, origin = key, set[str](), ""
    while asked in facts and asked not in seen:
        seen.add(asked)
        prompt = str(facts[asked].get("prompt") or "")
        if style := drawing_asked_for(prompt):
            return f"its prompt asks for {style!r}" if asked == key else f"it was made from {origin}, whose prompt asks for {style!r}"
        if photograph_asked_for(prompt):
            return ""
        parent: Mapping[str, Any] = facts[asked].get("corrects") or facts[asked].get("source") or {}
        asked, origin = str(parent.get("key") or ""), str(parent.get("name") or "another image")
    return ""
