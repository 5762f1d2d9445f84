"""metadata.json of the photographs: what was measured, what was guessed, and what people have said instead. Judges nothing itself.

One entry per original, known by the SHA-256 of its bytes, so that a number is never given twice. `guessed` holds what was proposed for each field
that people may change: a value that differs from it is a person's and stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from . import captions
from .errors import DatasetError
from .images import storage_error, value_key, write_json
from .project import Project, Stage
from .quality import UNKNOWN, Figures

EDITABLE = ("caption", "angle", "expression", "framing", "setting", "pose", "quality", "usable", "odd")
NEVER_GUESSED = ("setting", "pose")  # only a person can say where it is, and what the body does
SCHEMA = 1
NAMED = re.compile(r"source_(\d{3,})\.(?:jpg|png|webp)")


def edits_fingerprint(project: Project) -> str:
    """Changes when a person changes metadata.json or a .txt beside it, and only then: what this pack writes there does not count. Empty while
    nothing is edited.

    Raises:
        DatasetError: metadata.json is damaged, or a caption was changed in two places.
    """
    stage = project.stage("source")
    entries = spoken(stage, entries_of(stage))
    edited = [[entry["sha256"], name, entry[name]] for _, entry in sorted(entries.items()) for name in EDITABLE if is_edited(entry, name)]
    return value_key(edited) if edited else ""


def set_captions(project: Project, changed: Mapping[str, str]) -> None:
    """Write captions (by image name) as a person's, into metadata.json and the .txt files; both or, where one fails, at the next run.

    Raises:
        DatasetError: an image has no entry, a caption is empty, or what is there is damaged. Nothing is written then.
        StorageError: the disk refused.
    """
    stage = project.stage("source")
    entries = spoken(stage, entries_of(stage))
    problems = [f"{name} is not in {project.relative(stage.metadata)}" for name in changed if name not in entries]
    problems += [f"the caption of {name} is empty" for name, caption in changed.items() if not caption.strip()]
    if problems:
        raise DatasetError("These captions cannot be set:", problems)
    described = {name: {**entry, "caption": changed.get(name, entry["caption"])} for name, entry in entries.items()}
    captions.write_text_files(stage.folder, {name: described[name]["caption"] for name in changed})
    document = json.loads(stage.metadata.read_text(encoding="utf-8"))
    agreed = [{**entry, captions.IN_TEXT_FILE: entry["caption"]} if name in changed else entry for name, entry in described.items()]
    write_json(stage.metadata, {**document, "images": agreed})


def edited_captions(project: Project) -> frozenset[str]:
    """File names of the photographs whose caption somebody has changed.

    Raises:
        DatasetError: metadata.json is damaged, or a caption was changed in two places.
    """
    stage = project.stage("source")
    return frozenset(name for name, entry in spoken(stage, entries_of(stage)).items() if is_edited(entry, "caption"))


def said_of_sources(project: Project) -> dict[str, dict[str, Any]]:
    """What holds for each photograph of metadata.json that is among the photos, by image key: its file name and every editable field.

    Raises:
        DatasetError: metadata.json is damaged, or a caption was changed in two places.
    """
    stage = project.stage("source")
    return {
        entry["key"]: {"framing": UNKNOWN, **dict.fromkeys(NEVER_GUESSED, UNKNOWN), "odd": False}
        | {field: entry[field] for field in ("filename", *EDITABLE) if field in entry}
        for entry in spoken(stage, entries_of(stage)).values()
        if not entry.get("removed")
    }


def spoken(stage: Stage, entries: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Entries with the captions that somebody changed in a .txt."""
    changed = captions.changed_in_text_files(stage.folder, entries)
    return {name: {**entry, "caption": changed.get(name, entry["caption"])} for name, entry in entries.items()}


def entries_of(stage: Stage) -> dict[str, dict[str, Any]]:
    """Entries of metadata.json by file name; empty when there is none yet. A damaged file is never written over."""
    name = stage.project.relative(stage.metadata)
    try:
        document: Any = json.loads(stage.metadata.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{name} is not readable JSON ({error}). Mend it, or rename it to start over; it is left as it is.") from error
    except OSError as error:
        raise storage_error(stage.metadata, error) from error
    images = cast("dict[str, Any]", document).get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise DatasetError(f"{name} has no list of images. Mend it, or rename it to start over; it is left as it is.")
    entries = cast("list[Any]", images)
    problems = [f"entry {number}: {problem}" for number, entry in enumerate(entries, 1) if (problem := _entry_problem(entry))]
    if problems:
        raise DatasetError(f"{name} cannot be used. Mend these entries, or rename the file to start over; it is left as it is:", problems)
    return {entry["filename"]: entry for entry in entries}


_SHAPE: Mapping[str, type] = {
    "filename": str,
    "sha256": str,
    "key": str,
    "treatments": list,
    "measured": dict,
    "guessed": dict,
    "caption": str,
    "angle": str,
    "expression": str,
    "quality": str,
    "usable": bool,
}
_LATER: Mapping[str, type] = {"framing": str, "setting": str, "pose": str, "odd": bool}  # entries of older versions lack them


def _entry_problem(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "is not an object with fields"
    fields = cast("dict[str, Any]", entry)
    kinds = {**_SHAPE, **{name: kind for name, kind in _LATER.items() if name in fields}}
    wrong = [name for name, kind in kinds.items() if not isinstance(fields.get(name), kind)]
    if wrong:
        words = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
        return "; ".join(f"{name} must be {words[kinds[name]]}" for name in wrong)
    blank = [
        name
        for name in ("caption", "angle", "expression", "framing", "setting", "pose", "quality")
        if not fields.get(name, UNKNOWN).strip()
    ]
    if blank:
        return f"{', '.join(blank)} {'is' if len(blank) == 1 else 'are'} empty (write unknown if you do not know)"
    if not NAMED.fullmatch(fields["filename"]):
        return f"{fields['filename']!r} is no file name of this dataset (source_001.jpg)"
    if fields["measured"].keys() != Figures.__dataclass_fields__.keys():
        return "measured is incomplete"
    return ""


def is_edited(entry: Mapping[str, Any], name: str) -> bool:
    return name in entry and entry[name] != entry["guessed"].get(name)


def figures_of(entry: Mapping[str, Any]) -> Figures:
    return Figures(**{name: int(value, 16) if name.endswith("hash") else value for name, value in entry["measured"].items()})


def write_entries(
    stage: Stage, entries: Mapping[str, dict[str, Any]], described: Mapping[str, dict[str, Any]], unusable: Sequence[Mapping[str, Any]]
) -> None:
    """Bring metadata.json up to date; entries of photographs that are gone stay, marked as removed."""
    gone = {name: {**entry, "removed": True} for name, entry in entries.items() if name not in described}
    images = sorted([*described.values(), *gone.values()], key=lambda entry: natural_order(str(entry["filename"])))
    there: dict[str, Any] = json.loads(stage.metadata.read_text(encoding="utf-8")) if stage.metadata.is_file() else {}
    document = {**there, "dataset_version": stage.project.version, "schema": SCHEMA, "images": images, "unusable_files": list(unusable)}
    if document != there:
        write_json(stage.metadata, document)


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts 2 before 10 and does not care about case; equal names fall back to their exact spelling."""
    pieces = re.split(r"(\d+)", name.rpartition(".")[0].casefold() or name.casefold())
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece], name
