"""Step 1.1: photographs become the source dataset. Copies and describes; never changes or deletes an original, nor what a person wrote.

data/source/v1/source_001.jpg …   byte for byte the original where it is upright RGB as JPEG, PNG or WebP, else a lossless PNG of it
data/source/v1/metadata.json      one entry per original (known by the SHA-256 of its bytes, so a number is never given twice)

In metadata.json people may change caption, angle, expression, quality and usable. `guessed` holds what was proposed for each: a value that
differs from it is a person's and stays.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from .dataset import Dataset, ImageRecord
from .errors import DatasetError, ImageError, PromptError
from .faces import Embedder, Face, prominent
from .faces.measure import measure
from .images import SUFFIXES, content_key, open_image, png_bytes, storage_error, value_key, write_json, write_whole
from .project import Project, Stage
from .quality import Figures, PhotoQuality, assess, figures, near_duplicates

Report = Callable[[int, int], None]

CAPTION = "photo of {token} {noun}, {expression} expression, {angle} view"
PLACEHOLDERS = frozenset({"token", "noun", "expression", "angle"})
UNKNOWN = "unknown"
EDITABLE = ("caption", "angle", "expression", "quality", "usable")
FRONT, PROFILE = 13 / 90, 45 / 90  # of a quarter turn: up to 13 degrees is called front, from 45 profile
AT_LEAST_PHOTOS, AT_LEAST_ANGLES = 10, 2  # success criteria of step 1.1
VERBATIM = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
SCHEMA = 1

_NAMED = re.compile(r"source_(\d{3,})\.(?:jpg|png|webp)")


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph that was brought. `record` and `quality` are None where it could not be taken in; `problems` say why.

    A photograph with a record can still be unusable: too poor, or set so in metadata.json. `angle`: front, half-left, half-right, profile or
    unknown; left and right are the viewer's. `expression`: neutral, smiling or unknown.
    """

    original: str
    usable: bool
    problems: tuple[str, ...]
    treatments: tuple[str, ...] = ()
    record: ImageRecord | None = None
    quality: PhotoQuality | None = None
    angle: str = UNKNOWN
    expression: str = UNKNOWN


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the checklist: a success criterion and how it stands."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Curated:
    """The usable photographs, every photograph, the success criteria of step 1.1, and what else a person should know."""

    dataset: Dataset
    photos: tuple[Photo, ...]
    checklist: tuple[Check, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Folder:
    """The images of a folder in natural order (2 before 10), and what else lies there in words."""

    photos: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Taken:
    """A photograph that has its copy in the project. `entry` is its last description in metadata.json, empty when it is new."""

    original: str
    sha256: str
    path: Path
    key: str
    treatments: tuple[str, ...]
    figures: Figures
    entry: Mapping[str, Any] = field(default_factory=dict)


def photos_in(folder: Path) -> Folder:
    """The images directly in a folder, told by their suffix; subfolders and other files are named in the notes, system files counted.

    Raises:
        DatasetError: there is no such folder, it cannot be listed, or there is no image in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {str(folder)!r}. Give the folder that holds the photos of the character.")
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: _natural(entry.name))
    except OSError as error:
        raise DatasetError(f"The folder {str(folder)!r} cannot be listed: {error.strerror or error}. Make it readable.") from error
    hidden = [entry for entry in entries if entry.name.startswith(".") or entry.name.casefold() in SYSTEM_FILES]
    shown = [entry for entry in entries if entry not in hidden]
    photos = tuple(entry for entry in shown if entry.is_file() and entry.suffix.lower() in SUFFIXES)
    others = [entry.name + ("/" if entry.is_dir() else "") for entry in shown if entry not in photos]
    if not photos:
        raise DatasetError(
            f"There is no image in {str(folder)!r}. Put the photos of the character there.", [f"{name} is no image" for name in others]
        )
    notes = [f"not images, left alone: {', '.join(others)}"] if others else []
    if hidden:
        notes.append(f"{len(hidden)} hidden or system {'file' if len(hidden) == 1 else 'files'} left alone")
    return Folder(photos, tuple(notes))


def curate(
    project: Project,
    files: Sequence[Path],
    embedder: Embedder | None,
    *,
    caption_template: str = CAPTION,
    strict: bool = False,
    report: Report | None = None,
) -> Curated:
    """Take photographs into the project, judge and caption them, and describe them in metadata.json.

    Running again changes nothing on disk unless a photograph, the template or a person's edit has changed. A photograph that is no longer
    among `files` leaves the dataset; its copy and its entry stay. Without an embedder faces are not measured and angles stay unknown.
    `report(done, total)` may raise to stop; what is copied and measured by then is kept.

    Raises:
        PromptError: the caption template has braces that mean nothing.
        DatasetError: metadata.json is damaged, no file is usable, or with `strict` a file is unreadable or a criterion is not met.
        StorageError: the disk refused. What is there stays valid.
    """
    _check_template(caption_template)
    stage = project.stage("source")
    entries = _entries(stage)
    total = len(files) * (2 if embedder else 1)
    taken, refused = _take(stage, files, entries, lambda done: report(done, total) if report else None)
    if strict and refused:
        raise DatasetError("These photos cannot be used; remove or mend them, or turn strict off:", _refusals(refused))
    if not taken:
        raise DatasetError("None of these files can be used:", _refusals(refused) or ["there are no files"])
    faces, notes = _faces(project, taken, embedder, lambda done: report(total - len(taken) + done, total) if report else None)
    photos, described = _describe(project, taken, faces, caption_template)
    checklist = _checklist(project, photos)
    _write(stage, entries, described, refused)
    if strict and (failed := [f"{check.name}: {check.detail}" for check in checklist if not check.passed]):
        raise DatasetError("These photos do not meet the criteria for training; mend this or turn strict off:", failed)
    dataset = Dataset(project, "source", tuple(photo.record for photo in photos if photo.usable and photo.record))
    if not dataset.images:
        raise DatasetError(
            "None of these photos is good enough; change usable to true in metadata.json to use one all the same:", _refusals(photos)
        )
    gone = [name for name, entry in entries.items() if name not in described and not entry.get("removed")]
    if gone:
        notes.append(f"no longer among the photos, so left out (copies kept): {', '.join(gone)}")
    if refused:
        notes.append(f"{len(refused)} of {len(files)} files cannot be used: {', '.join(photo.original for photo in refused)}")
    return Curated(dataset, (*photos, *refused), checklist, tuple(notes))


def edits_fingerprint(project: Project) -> str:
    """Changes when a person changes metadata.json, and only then: what this pack writes there does not count. Empty while nothing is edited.

    Raises:
        DatasetError: metadata.json is damaged.
    """
    entries = _entries(project.stage("source"))
    edited = [[entry["sha256"], name, entry[name]] for _, entry in sorted(entries.items()) for name in EDITABLE if _is_edited(entry, name)]
    return value_key(edited) if edited else ""


# --- taking in


def _take(
    stage: Stage, files: Sequence[Path], entries: Mapping[str, Mapping[str, Any]], done: Callable[[int], None]
) -> tuple[list[_Taken], list[Photo]]:
    """Copies of all files that are images of their own, by number; the others as unusable photos."""
    taken: dict[str, _Taken] = {}  # by SHA-256
    refused: list[Photo] = []
    shelf = _Shelf(stage, entries)
    for number, path in enumerate(files, 1):
        try:
            content = path.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            if sha256 in taken:
                raise ImageError(f"the same file as {taken[sha256].original}, byte for byte")
            taken[sha256] = shelf.take(path, content, sha256)
        except ImageError as error:
            refused.append(Photo(path.name, False, (str(error),)))
        except OSError as error:
            refused.append(Photo(path.name, False, (f"cannot be read: {error.strerror or error}",)))
        done(number)
    return sorted(taken.values(), key=lambda copy: _natural(copy.path.name)), refused


class _Shelf:
    """The numbered copies of one stage. Copies of a run that was cut short are found again by their bytes."""

    def __init__(self, stage: Stage, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._stage = stage
        self._known = {str(entry["sha256"]): name for name, entry in entries.items()}
        self._entries = entries
        there = sorted(path.name for path in stage.folder.iterdir()) if stage.folder.is_dir() else []
        strays = [name for name in there if _NAMED.fullmatch(name) and name not in entries]
        self._strays = {content_key(stage.folder / name): name for name in strays}
        self._originals: dict[str, str] = {}  # by key of their copy
        self._numbers = {int(match[1]) for name in (*entries, *strays) if (match := _NAMED.fullmatch(name))}

    def take(self, original: Path, content: bytes, sha256: str) -> _Taken:
        """The copy of a photograph, made now if it is not there.

        Raises:
            ImageError: the photograph is unreadable, shows what another one shows, or its copy is no longer what was made.
        """
        name = self._known.get(sha256)
        if name is not None and (self._stage.folder / name).is_file():
            entry = self._entries[name]
            path = self._stage.folder / name
            if content_key(path) != entry["key"]:
                raise ImageError(
                    f"its copy {name} has been changed by hand. Delete {name} to have it copied again, or put the changed picture among your"
                    " photos and this one away"
                )
            self._originals[entry["key"]] = original.name
            return _Taken(original.name, sha256, path, entry["key"], tuple(entry["treatments"]), _figures(entry), entry)
        opened = open_image(original, content=content)
        suffix = VERBATIM.get(opened.format, "") if opened.mode == "RGB" and not opened.treatments else ""
        treatments = opened.treatments if suffix else (*opened.treatments, _stored(opened.format, opened.mode))
        copied = content if suffix else png_bytes(opened.image)
        key = content_key(copied)
        if key in self._originals:
            raise ImageError(f"the same picture as {self._originals[key]}, pixel for pixel")
        self._originals[key] = original.name
        name = name or self._strays.get(key) or f"source_{self._next():03}{suffix or '.png'}"
        path = self._stage.folder / name
        if self._strays.get(key) != name:
            write_whole(path, copied)
        return _Taken(original.name, sha256, path, key, treatments, figures(opened.image), self._entries.get(name, {}))

    def _next(self) -> int:
        number = max(self._numbers, default=0) + 1
        self._numbers.add(number)
        return number


def _stored(format: str, mode: str) -> str:
    return "stored as a new PNG" if format == "PNG" else f"stored as PNG (the original is {'grey ' if mode in ('L', '1') else ''}{format})"


# --- judging


def _faces(
    project: Project, taken: Sequence[_Taken], embedder: Embedder | None, done: Callable[[int], None]
) -> tuple[dict[str, tuple[Face, ...]], list[str]]:
    """Faces by image key; a key is missing where nobody could look."""
    if embedder is None:
        return {}, ["faces were not measured: angles and expressions are unknown, sharpness is that of the whole picture"]
    measured = measure(project, {copy.key: copy.path for copy in taken}, embedder, report=lambda finished, _: done(finished))
    return dict(measured.faces), [f"faces were not measured: {problem}" for problem in measured.problems.values()]


def _describe(
    project: Project, taken: Sequence[_Taken], faces: Mapping[str, tuple[Face, ...]], template: str
) -> tuple[list[Photo], dict[str, dict[str, Any]]]:
    """Photos and their entries in metadata.json, by file name."""
    qualities = {copy.path.name: assess(copy.figures, faces.get(copy.key)) for copy in taken}
    for name, kept in near_duplicates({copy.path.name: copy.figures for copy in taken}).items():
        quality = qualities[name]
        problems = (*quality.problems, f"almost the same picture as {kept}")
        qualities[name] = replace(quality, problems=problems, verdict="low" if quality.verdict == "low" else "medium")
    photos: list[Photo] = []
    described: dict[str, dict[str, Any]] = {}
    for copy in taken:
        quality = qualities[copy.path.name]
        values, guessed = _values(project, copy.entry, quality, faces.get(copy.key), template)
        described[copy.path.name] = _entry(copy, quality, values, guessed)
        record = ImageRecord(copy.key, project.relative(copy.path), copy.figures.width, copy.figures.height, values["caption"])
        photos.append(
            Photo(
                copy.original,
                values["usable"],
                quality.problems,
                copy.treatments,
                record,
                quality,
                values["angle"],
                values["expression"],
            )
        )
    return photos, described


def _values(
    project: Project, entry: Mapping[str, Any], quality: PhotoQuality, faces: tuple[Face, ...] | None, template: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What counts for a photograph, and what was guessed. Each guess builds on what a person said before it."""
    angle, expression = _angle_and_expression(faces)
    guessed: dict[str, Any] = {}
    values: dict[str, Any] = {}

    def settle(name: str, guess: str | bool) -> Any:
        guessed[name] = guess
        values[name] = entry[name] if _is_edited(entry, name) else guess
        return values[name]

    angle, expression = settle("angle", angle), settle("expression", expression)
    settle("caption", _caption(template, project, expression=expression, angle=angle))
    settle("usable", settle("quality", quality.verdict) != "low")
    return values, guessed


def _angle_and_expression(faces: tuple[Face, ...] | None) -> tuple[str, str]:
    seen = prominent(faces or ())
    if not seen or seen[0].yaw is None:
        return UNKNOWN, UNKNOWN
    yaw = seen[0].yaw
    angle = "front" if abs(yaw) < FRONT else "profile" if abs(yaw) >= PROFILE else "half-left" if yaw < 0 else "half-right"
    return angle, "smiling" if seen[0].smiling else "neutral"


def _caption(template: str, project: Project, **guesses: str) -> str:
    """The template filled in. A part between commas that needs something unknown is left out; if the token is in it, only the word is."""
    words = {"token": project.instance_token, "noun": project.class_noun, **guesses}
    parts: list[str] = []
    for part in template.split(","):
        names = {name for _, name, _, _ in string.Formatter().parse(part) if name}
        unknown = {name for name in names if words[name] == UNKNOWN}
        if unknown and not names & {"token", "noun"}:
            continue
        parts.append(" ".join(part.format(**{**words, **dict.fromkeys(unknown, "")}).split()))
    return ", ".join(part for part in parts if part)


def _check_template(template: str) -> None:
    try:
        problems = [
            f"{{{name}}} means nothing here"
            for part in template.split(",")
            for _, name, form, conversion in string.Formatter().parse(part)
            if name is not None and (name not in PLACEHOLDERS or form or conversion)
        ]
    except ValueError as error:
        problems = [f"its braces do not fit together ({error})"]
    if not problems and not template.strip():
        problems = ["it is empty"]
    if problems:
        raise PromptError(
            f"The caption template {template!r} cannot be used; it knows {{token}}, {{noun}}, {{expression}} and {{angle}}:", problems
        )


def _checklist(project: Project, photos: Iterable[Photo]) -> tuple[Check, ...]:
    used = [(photo, photo.record) for photo in photos if photo.usable and photo.record]
    angles = Counter(photo.angle for photo, _ in used)
    known = [angle for angle in angles if angle != UNKNOWN]
    words = [re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in (project.instance_token, project.class_noun)]
    wordless = [record.name for _, record in used if not all(word.search(record.caption) for word in words)]
    vague = [record.name for photo, record in used if UNKNOWN in (photo.angle, photo.expression)]
    counted = ", ".join(f"{count} {angle}" for angle, count in angles.most_common())
    return (
        Check(f"at least {AT_LEAST_PHOTOS} usable photos", len(used) >= AT_LEAST_PHOTOS, f"{len(used)} usable"),
        Check(f"at least {AT_LEAST_ANGLES} different angles", len(known) >= AT_LEAST_ANGLES, counted or "none"),
        Check(
            "every photo captioned",
            bool(used) and not wordless,
            f"{project.instance_token!r} or {project.class_noun!r} is missing in the caption of {', '.join(wordless)}"
            if wordless
            else f"{len(used)} captions with {project.instance_token!r} and {project.class_noun!r}",
        ),
        Check(
            "metadata complete",
            bool(used) and not vague,
            f"angle or expression unknown, fill them in in metadata.json: {', '.join(vague)}" if vague else "every field is filled in",
        ),
    )


def _refusals(photos: Iterable[Photo]) -> list[str]:
    return [f"{photo.original}: {'; '.join(photo.problems) or 'set to not usable in metadata.json'}" for photo in photos]


# --- metadata.json


def _entries(stage: Stage) -> dict[str, dict[str, Any]]:
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


def _entry_problem(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "is not an object with fields"
    fields = cast("dict[str, Any]", entry)
    wrong = [name for name, kind in _SHAPE.items() if not isinstance(fields.get(name), kind)]
    if wrong:
        words = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
        return "; ".join(f"{name} must be {words[_SHAPE[name]]}" for name in wrong)
    blank = [name for name in ("caption", "angle", "expression", "quality") if not fields[name].strip()]
    if blank:
        return f"{', '.join(blank)} {'is' if len(blank) == 1 else 'are'} empty (write unknown if you do not know)"
    if not _NAMED.fullmatch(fields["filename"]):
        return f"{fields['filename']!r} is no file name of this dataset (source_001.jpg)"
    if fields["measured"].keys() != Figures.__dataclass_fields__.keys():
        return "measured is incomplete"
    return ""


def _is_edited(entry: Mapping[str, Any], name: str) -> bool:
    return name in entry and entry[name] != entry["guessed"].get(name)


def _figures(entry: Mapping[str, Any]) -> Figures:
    return Figures(**{name: int(value, 16) if name.endswith("hash") else value for name, value in entry["measured"].items()})


def _entry(copy: _Taken, quality: PhotoQuality, values: Mapping[str, Any], guessed: Mapping[str, Any]) -> dict[str, Any]:
    measured = {name: f"{value:016x}" if name.endswith("hash") else value for name, value in asdict(copy.figures).items()}
    figures_shown = {name: value for name, value in asdict(quality).items() if name not in ("width", "height", "verdict", "problems")}
    described: dict[str, Any] = {
        "filename": copy.path.name,
        "caption": values["caption"],
        "angle": values["angle"],
        "expression": values["expression"],
        "quality": values["quality"],
        "usable": values["usable"],
        "problems": list(quality.problems),
        "original": copy.original,
        "sha256": copy.sha256,
        "key": copy.key,
        "width": copy.figures.width,
        "height": copy.figures.height,
        "treatments": list(copy.treatments),
        "quality_figures": figures_shown,
        "measured": measured,
        "guessed": dict(guessed),
    }
    theirs = {name: value for name, value in copy.entry.items() if name not in described and name != "removed"}  # a person's own fields
    return {**described, **theirs}


def _write(stage: Stage, entries: Mapping[str, dict[str, Any]], described: Mapping[str, dict[str, Any]], refused: Sequence[Photo]) -> None:
    """Bring metadata.json up to date; entries of photographs that are gone stay, marked as removed."""
    gone = {name: {**entry, "removed": True} for name, entry in entries.items() if name not in described}
    images = sorted([*described.values(), *gone.values()], key=lambda entry: _natural(str(entry["filename"])))
    there: dict[str, Any] = json.loads(stage.metadata.read_text(encoding="utf-8")) if stage.metadata.is_file() else {}
    unusable = [{"original": photo.original, "problems": list(photo.problems)} for photo in refused]
    document = {**there, "dataset_version": stage.project.version, "schema": SCHEMA, "images": images, "unusable_files": unusable}
    if document != there:
        write_json(stage.metadata, document)


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts 2 before 10 and does not care about case; equal names fall back to their exact spelling."""
    pieces = re.split(r"(\d+)", name.rpartition(".")[0].casefold() or name.casefold())
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece], name
