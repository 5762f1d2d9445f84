"""What a reviewer is shown of an image: the verdicts, the score and what speaks for it, and how the image came to be. Decides nothing.

`described` is the light list of a whole review; `evidence` is everything about one image, read when somebody asks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np

from . import corrections, identity, ledger, modelcard, quality
from .candidates import Lineage, Shelf
from .desk import Desk
from .errors import ImageError
from .faces import Face, prominent
from .faces.measure import known as known_faces
from .images import open_image, write_json
from .instructions import parse
from .ledger import LabelEvent, Pass
from .project import Project, Stage

UNKNOWN = "unknown"
HIDDEN_WHEN_BLIND = (
    *("name", "editor", "loras", "seed", "source", "sample", "generation", "lap", "caption", "template", "in_force", "labels"),
    *(
        "state",
        "similarity",
        "distance",
        "band",
        "score_note",
        "matched",
        "suggestion",
        "disagreement",
        "corrects",
        "corrections",
        "repairs",
    ),
)


def described(
    desk: Desk, during: Pass, *, blind: bool = False, keys: Iterable[str] | None = None, repairs: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Items of a pass in the order of the review, as JSON values; of these image keys only, if given. The desk must be up to date."""
    only = None if keys is None else set(keys)
    wanted = [key for key in desk.keys(during) if only is None or key in only]
    project = desk.stage.project
    photographs = {photo["key"]: photo for photo in photographs_of(project)}
    by_name = {photo["filename"]: photo["key"] for photo in photographs.values()}
    scores = identity.comparable_scores(project, wanted, desk.by_image)
    corrected = corrections.by_original(project.stage("corrections")) if desk.stage.name in corrections.CORRECTED else {}
    labels = ledger.labels(project) if corrected else {}
    faces = _faces_of_card(desk, scores)
    items: list[dict[str, Any]] = []
    for key in wanted:
        item = _item(desk, key, during, photographs) | _scored(desk, key, during, scores.get(key), by_name)
        if item["suggestion"] and desk.stage.name == "card":
            item["suggestion"] = _of_card(item, scores[key], faces.get(key, ()))
        item["corrections"] = [_correction(made, labels) for made in corrected.get(key, ())]
        item["repairs"] = (repairs or {}).get(key, 0)
        items.append(item)
    return _blinded(items) if blind else items


def changed(desk: Desk, during: Pass, keys: Iterable[str]) -> list[dict[str, Any]]:
    """The part of items that a verdict changes."""
    return [{"key": key, **_verdicts(desk, key, during)} for key in keys]


def photographs_of(project: Project) -> list[dict[str, Any]]:
    """Entries of the source stage's metadata.json; empty where there is none. What is wrong with it is for Curate Source to say."""
    try:
        images = json.loads(project.stage("source").metadata.read_text(encoding="utf-8"))["images"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [
        entry
        for entry in images
        if isinstance(entry, dict) and isinstance(entry.get("key"), str) and isinstance(entry.get("filename"), str)
    ]


def coverage(desk: Desk) -> dict[str, Any]:
    """How often each angle and expression occurs: among the photographs, what is good, and what the strict pass picked."""
    photographs = {photo["key"]: photo for photo in photographs_of(desk.stage.project)}
    good = [key for key in desk.by_image if desk.label(key, "first") == "good"]
    picked = [key for key in good if desk.label(key, "strict") == "good"]
    table: dict[str, Any] = {"picked": len(picked), "missing": []}
    for what in ("angle", "expression"):
        counted: dict[str, dict[str, int]] = {}
        for photo in photographs.values():
            _count(counted, str(photo.get(what) or UNKNOWN), "sources")
        for column, keys in (("good", good), ("picked", picked)):
            for key in keys:
                _count(counted, _cell(desk.shelf.lineages[desk.by_image[key]], photographs)[what] or UNKNOWN, column)
        table[what] = [{"value": value, "sources": 0, "good": 0, "picked": 0, **counts} for value, counts in sorted(counted.items())]
        table["missing"] += [f"{what} {row['value']}" for row in table[what] if not row["picked"] and row["value"] != UNKNOWN]
    return table


def agreement(desk: Desk, reviewer: str) -> dict[str, Any]:
    """How often a later pass said what the first had said; `share` is None where nothing was decided in both."""
    told: dict[str, Any] = {"changed": []}
    for later in ("strict", "repeat"):
        pairs = [pair for pair in ledger.agreement(desk.standing, reviewer, later) if pair[0] in desk.by_image]
        same = sum(first == then for _, first, then in pairs)
        told[f"first_{later}"] = {"both": len(pairs), "same": same, "share": round(same / len(pairs), 4) if pairs else None}
        told["changed"] += [
            {"key": key, "name": _name(desk.shelf, desk.by_image[key]), "pass": later, "first": first, "then": then}
            for key, first, then in pairs
            if first != then
        ]
    return told


def evidence(desk: Desk, key: str) -> dict[str, Any]:
    """Everything about one image. `key` must be under review."""
    lineage = desk.shelf.lineages[desk.by_image[key]]
    facts = lineage.facts
    score = identity.comparable_scores(desk.stage.project, [key], desk.by_image).get(key)
    return {
        "key": key,
        "lineage": lineage_of(desk.stage, key),
        "siblings": _siblings(desk, key),
        "quality": _quality(desk, key, score),
        "score": {name: value for name, value in asdict(score).items() if name != "image_key"} if score else None,
        **_faces_beside(desk, key, score),
        "tries": list(facts.get("tries", [])),
        "seconds": facts.get("seconds"),
        "notes": dict(facts.get("notes", {})),
    }


def lineage_of(stage: Stage, key: str) -> list[dict[str, Any]]:
    """From an image back to the photograph, by first parents; a parent nobody knows ends the chain."""
    project = stage.project
    photographs = {photo["key"]: photo["filename"] for photo in photographs_of(project)}
    known: dict[str, tuple[Stage, Shelf, Lineage]] = {}
    for name in dict.fromkeys((stage.name, "enriched", "synthetic", "corrections")):
        shelf = Shelf(project.stage(name))
        known |= {lineage.image_key: (shelf.stage, shelf, lineage) for lineage in shelf.lineages.values() if lineage.image_key not in known}
    chain: list[dict[str, Any]] = []
    seen: set[str] = set()
    while key in known and key not in seen:
        seen.add(key)
        where, shelf, lineage = known[key]
        facts = lineage.facts
        chain.append(
            {
                "name": _name(shelf, lineage.request_key),
                "key": key,
                "stage": where.name,
                "prompt": facts["prompt"],
                "seed": facts["seed"],
                "editor": facts["editor"].get("editor", ""),
                "loras": loras_of(facts),
                "depth": facts["depth"],
            }
        )
        parents = facts.get("parents") or ([facts["source"]["key"]] if facts.get("source") else [])
        key = parents[0] if parents else ""
        if key in photographs or (facts.get("source") and key == facts["source"]["key"]):
            name = photographs.get(key) or facts["source"]["name"]
            return [
                *chain,
                {"name": name, "key": key, "stage": "source", "prompt": "", "seed": None, "editor": "", "loras": [], "depth": 0},
            ]
    return chain


def loras_of(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """LoRAs that took part, by name and weight, from the editor's fingerprint ("name x 0.8; …")."""
    told = facts.get("notes", {}).get("loras") or facts["editor"].get("loras") or []
    if isinstance(told, str):
        parts = [part.split(" x ") for part in told.split("; ") if part and part != "none"]
        return [{"name": part[0].strip(), "weight": _number(part[1].split()[0]) if len(part) > 1 else None} for part in parts]
    return [entry if isinstance(entry, dict) else {"name": str(entry), "weight": None} for entry in told]


def suggestion(score: identity.IdentityScore | None) -> dict[str, str] | None:
    """What the likeness alone speaks for. An opinion: only a person, or a rule a person has stated, decides."""
    if score is None or score.similarity is None:
        return None
    band, figure = identity.band(score.similarity), f"Similarity {score.similarity:.2f}"
    if band == "match":
        return {"label": "good", "why": f"{figure}: a stranger hardly ever gets {identity.MATCH:.2f}; look at everything but the face"}
    if band == "review":
        return {
            "label": "needs_correction",
            "why": f"{figure}: between {identity.REVIEW:.2f} and {identity.MATCH:.2f} the face is in doubt",
        }
    return {"label": "reject", "why": f"{figure}: below {identity.REVIEW:.2f} it is hardly ever the same person"}


def _faces_of_card(desk: Desk, scores: Mapping[str, identity.IdentityScore]) -> dict[str, tuple[Face, ...]]:
    embedder = next((score.embedder for score in scores.values()), None)
    return known_faces(desk.stage.project, scores, embedder) if embedder and desk.stage.name == "card" else {}


def _of_card(item: Mapping[str, Any], score: identity.IdentityScore, faces: tuple[Face, ...]) -> dict[str, str] | None:
    """A likeness is not enough on the model card: the image has to show what its slot asks for."""
    likeness: dict[str, str] = item["suggestion"]
    said = modelcard.opinion(item["prompt"], (item["width"], item["height"]), score, faces)
    if likeness["label"] != "good" or said is None or said[0] == "passed":
        return likeness
    return {"label": "needs_correction", "why": f"{said[1][0].upper()}{said[1][1:]}"} if said[0] == "failed" else None


def _item(desk: Desk, key: str, during: Pass, photographs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    request_key = desk.by_image[key]
    lineage = desk.shelf.lineages[request_key]
    facts = lineage.facts
    return {
        "key": key,
        "name": _name(desk.shelf, request_key),
        "stage": desk.stage.name,
        "width": lineage.width,
        "height": lineage.height,
        "prompt": facts["prompt"],
        "template": facts.get("template", facts["prompt"]),
        "caption": facts["caption"],
        "source": facts["source"],
        "seed": facts["seed"],
        "editor": facts["editor"].get("editor", ""),
        "loras": loras_of(facts),
        "generation": facts["depth"],
        "lap": desk.stage.project.lap,
        **_cell(lineage, photographs),
        "sample": facts.get("sample", False),
        "corrects": facts.get("corrects"),
        **_verdicts(desk, key, during),
    }


def _verdicts(desk: Desk, key: str, during: Pass) -> dict[str, Any]:
    stands = desk.standing.get(key, {})
    shown, in_force = _verdict(stands.get(during)), ledger.in_force(stands)
    blank = {"label": None, "reasons": [], "note": "", "reviewer": "", "origin": None, "at": "", "answers": {}}
    return {
        **(shown or blank),
        "in_force": in_force.label if in_force else None,
        "labels": {name: _verdict(stands.get(name)) for name in ledger.PASSES},
    }


def _verdict(event: LabelEvent | None) -> dict[str, Any] | None:
    if event is None or event.label is None:
        return None
    return {
        "label": event.label,
        "reasons": list(event.reasons),
        "note": event.note,
        "reviewer": event.reviewer,
        "origin": event.origin,
        "at": event.at,
        "answers": dict(event.answers),
    }


def _scored(desk: Desk, key: str, during: Pass, score: identity.IdentityScore | None, by_name: Mapping[str, str]) -> dict[str, Any]:
    measured = score is not None and score.similarity is not None
    event = desk.in_force(key)
    return {
        "state": score.state if score else None,
        "similarity": score.similarity if score else None,
        "distance": score.distance if score else None,
        "band": identity.band(score.similarity) if score and score.similarity is not None else None,
        "score_note": score.note if score else "",
        "matched": {"name": score.matched, "key": by_name.get(score.matched)} if score and score.matched else None,
        "suggestion": suggestion(score) if desk.label(key, during) is None else None,
        "disagreement": _disagreement(event, score) if measured and event else None,
    }


def _disagreement(event: LabelEvent, score: identity.IdentityScore | None) -> str | None:
    """Where a person and the likeness say opposite things about the face."""
    if event.origin == "policy" or score is None or score.similarity is None:
        return None
    band = identity.band(score.similarity)
    if event.label == "good" and band == "different":
        return f"human good, score different ({score.similarity:.2f})"
    if event.label != "good" and "identity" in event.reasons and band == "match":
        return f"human says identity, score match ({score.similarity:.2f})"
    return None


def _cell(lineage: Lineage, photographs: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    """Angle and expression: what the prompt asked for, else what the photograph shows."""
    source = lineage.facts.get("source")
    photo = photographs.get(source["key"], {}) if source else {}
    angle = _camera(lineage.facts["prompt"]) or photo.get("angle")
    return {
        "angle": None if angle == UNKNOWN else angle,
        "expression": None if photo.get("expression") == UNKNOWN else photo.get("expression"),
    }


@lru_cache(maxsize=10_000)
def _camera(prompt: str) -> str | None:
    wish = parse(prompt)
    return wish.value if wish.kind == "camera" else None


def _siblings(desk: Desk, key: str) -> dict[str, list[str]]:
    facts = desk.shelf.lineages[desk.by_image[key]].facts
    own = facts["source"]["key"] if facts["source"] else None
    alike: dict[str, list[str]] = {"source": [], "prompt": []}
    for other, request_key in desk.by_image.items():
        theirs = desk.shelf.lineages[request_key].facts
        if other != key and own and theirs["source"] and theirs["source"]["key"] == own:
            alike["source"].append(other)
        if other != key and theirs["prompt"] == facts["prompt"]:
            alike["prompt"].append(other)
    return alike


def _quality(desk: Desk, key: str, score: identity.IdentityScore | None) -> dict[str, Any] | None:
    """Figures of the picture, measured once and kept in the cache; None where the file cannot be read."""
    project, path = desk.stage.project, desk.file(key)
    faces = known_faces(project, [key], score.embedder).get(key) if score else None
    cached = project.cache / "quality" / f"{key}.json"
    if path is None:
        return None
    try:
        figures = quality.Figures(**json.loads(cached.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        try:
            figures = quality.figures(open_image(path).image)
        except ImageError:
            return None
        write_json(cached, asdict(figures))
    return asdict(quality.assess(figures, faces))


def _faces_beside(desk: Desk, key: str, score: identity.IdentityScore | None) -> dict[str, Any]:
    """The image's face beside each measured photograph: likeness to each, how alike the photographs are, and where the faces are."""
    nothing: dict[str, Any] = {"references": [], "spread": None, "crops": {"image": None, "matched": None}}
    if score is None:
        return nothing
    project = desk.stage.project
    photographs = photographs_of(project)
    found = known_faces(project, [key, *(photo["key"] for photo in photographs)], score.embedder)
    main = {image: seen[0] for image, faces in found.items() if (seen := prominent(faces))}
    face = main.get(key)
    measured = face if score.state == "measured" else None  # what proves nothing, or is drawn, is like nobody by any number
    beside = [(photo, main[photo["key"]]) for photo in photographs if photo["key"] in main]
    reach = _reach(desk, score)
    references = [
        {"name": photo["filename"], "key": photo["key"], "similarity": round(_alike(measured, other, reach), 4) if measured else None}
        for photo, other in beside
    ]
    pairs = [_alike(one, other, reach) for number, (_, one) in enumerate(beside if measured else []) for _, other in beside[number + 1 :]]
    matched = next((other for photo, other in beside if photo["filename"] == score.matched), None)
    return {
        "references": sorted(references, key=lambda reference: -(reference["similarity"] or 0.0)),
        "spread": {"low": round(min(pairs), 4), "high": round(max(pairs), 4)} if pairs else None,
        "crops": {"image": list(face.box) if face else None, "matched": list(matched.box) if matched else None},
    }


def _alike(one: Face, other: Face, reach: float) -> float:
    return identity.similarity(float(np.linalg.norm(one.embedding.astype(np.float64) - other.embedding.astype(np.float64))), reach)


def _reach(desk: Desk, score: identity.IdentityScore) -> float:
    """The engine's scale, which any of its scores tells, at best this one."""
    if found := _told_by(score):
        return found
    others = identity.comparable_scores(desk.stage.project, desk.by_image).values()
    return next(filter(None, (_told_by(other) for other in others if other.embedder == score.embedder)), 0.55)


def _told_by(score: identity.IdentityScore) -> float | None:
    """Similarity falls by 1 - THRESHOLD over the reach."""
    if score.similarity is None or score.distance is None or not 0 < score.similarity < 1:
        return None
    return score.distance * (1 - identity.THRESHOLD) / (1 - score.similarity)


def _correction(made: Lineage, labels: Mapping[str, LabelEvent]) -> dict[str, Any]:
    event = labels.get(made.image_key)
    return {
        "stage": "corrections",
        "key": made.image_key,
        "name": made.facts["corrects"]["name"],
        "by": made.facts["editor"].get("editor", ""),
        "label": event.label if event else None,
    }


def _blinded(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Nothing that could sway, in an order that tells nothing and is the same every time."""
    shown = [{name: value for name, value in item.items() if name not in HIDDEN_WHEN_BLIND} for item in items]
    return sorted(shown, key=lambda item: item["key"][::-1])


def _name(shelf: Shelf, request_key: str) -> str:
    path = shelf.files.get(request_key)
    return path.name if path else f"{request_key} (no longer on disk)"


def _count(counted: dict[str, dict[str, int]], value: str, column: str) -> None:
    counts = counted.setdefault(value, {})
    counts[column] = counts.get(column, 0) + 1


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
