"""Step 1.1: photographs become the source dataset. Copies and describes; never changes or deletes an original, nor what a person wrote.

data/source/v1/source_001.jpg …   byte for byte the original where it is upright RGB as JPEG, PNG or WebP, else a lossless PNG of it
data/source/v1/source_001.txt …   the caption once more, as trainers read it
data/source/v1/metadata.json      one entry per original (known by the SHA-256 of its bytes, so a number is never given twice)

In metadata.json people may change caption, angle, expression, framing, setting, pose, quality, usable and odd, and in the .txt the caption.
`guessed` holds what was proposed for each: a value that differs from it is a person's and stays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import captions
from .dataset import Dataset, ImageRecord
from .drawings import SAY_SO, doubt, drawn_character
from .errors import DatasetError, IdentityError
from .faces import Embedder, Face
from .faces.measure import measure
from .photo_shelf import Taken, take_in
from .project import Project
from .quality import MOODS, UNKNOWN, PhotoQuality, View, assess, near_duplicates, proposed, view
from .references import choose_references
from .source_metadata import EDITABLE, NEVER_GUESSED, entries_of, is_edited, spoken, write_entries

Report = Callable[[int, int], None]

CAPTION = captions.TEMPLATE
AT_LEAST_PHOTOS, AT_LEAST_ANGLES = 10, 2  # success criteria of step 1.1


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph that was brought. `record` and `quality` are None where it could not be taken in; `problems` say why.

    A photograph with a record can still be unusable: too poor, or set so in metadata.json. `angle`, `expression` and `framing` are what a
    person said, else what was measured (`quality.View`), else unknown. `odd` where its face is unlike the faces of the other photographs.
    """

    original: str
    usable: bool
    problems: tuple[str, ...]
    treatments: tuple[str, ...] = ()
    record: ImageRecord | None = None
    quality: PhotoQuality | None = None
    angle: str = UNKNOWN
    expression: str = UNKNOWN
    framing: str = UNKNOWN
    measures: tuple[str, ...] = ()
    odd: bool = False


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


def curate(
    project: Project,
    files: Sequence[Path],
    embedder: Embedder | None,
    *,
    caption_template: str = CAPTION,
    keep_place: bool = False,
    strict: bool = False,
    report: Report | None = None,
) -> Curated:
    """Take photographs into the project, judge and caption them, and describe them in metadata.json.

    Running again changes nothing on disk unless a photograph, the template or a person's edit has changed. A photograph that is no longer
    among `files` leaves the dataset; its copy and its entry stay. Without an embedder faces are not measured and angles stay unknown.
    Unless `keep_place`, metadata that says where a photograph was taken is left out of its copy; the pixels stay.
    `report(done, total)` may raise to stop; what is copied and measured by then is kept.

    Raises:
        PromptError: the caption template has braces that mean nothing.
        DatasetError: metadata.json is damaged, a caption was changed in two places, no file is usable, or with `strict` a file is unreadable or a criterion is not met.
        StorageError: the disk refused. What is there stays valid.
    """
    captions.check_template(caption_template)
    stage = project.stage("source")
    entries = spoken(stage, entries_of(stage))
    total = len(files) * (2 if embedder else 1)
    taken, others = take_in(stage, files, entries, keep_place, lambda done: report(done, total) if report else None)
    refused = [Photo(file.original, False, (file.problem,)) for file in others]
    if strict and refused:
        raise DatasetError("These photos cannot be used; remove or mend them, or turn strict off:", _refusals(refused))
    if not taken:
        raise DatasetError("None of these files can be used:", _refusals(refused) or ["there are no files"])
    faces, notes = _faces(project, taken, embedder, lambda done: report(total - len(taken) + done, total) if report else None)
    photos, described = _describe(project, taken, faces, caption_template)
    odd, doubts = _odd_ones(project, photos, embedder)
    photos = [_pointed_at(photo, odd, described) for photo in photos]
    notes += doubts
    if not any(SAY_SO in note for note in doubts):
        notes += _asked(project, faces, [entry["caption"] for entry in described.values()])
    checklist = _checklist(project, photos)
    captions.write_text_files(stage.folder, {name: entry["caption"] for name, entry in described.items()})
    write_entries(stage, entries, described, [{"original": photo.original, "problems": list(photo.problems)} for photo in refused])
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
    notes += _moods(photos)
    notes += [f"captions: {finding}" for finding in captions.lint({image.name: image.caption for image in dataset.images}, project)]
    return Curated(dataset, (*photos, *refused), checklist, tuple(notes))


# --- judging


def _faces(
    project: Project, taken: Sequence[Taken], embedder: Embedder | None, done: Callable[[int], None]
) -> tuple[dict[str, tuple[Face, ...]], list[str]]:
    """Faces by image key; a key is missing where nobody could look."""
    if embedder is None:
        return {}, ["faces were not measured: angles and expressions are unknown, sharpness is that of the whole picture"]
    measured = measure(project, {copy.key: copy.path for copy in taken}, embedder, report=lambda finished, _: done(finished))
    return dict(measured.faces), [f"faces were not measured: {problem}" for problem in measured.problems.values()]


def _describe(
    project: Project, taken: Sequence[Taken], faces: Mapping[str, tuple[Face, ...]], template: str
) -> tuple[list[Photo], dict[str, dict[str, Any]]]:
    """Photos and their entries in metadata.json, by file name."""
    qualities = {copy.path.name: assess(copy.figures, faces.get(copy.key)) for copy in taken}
    for name, twin in near_duplicates({copy.path.name: copy.figures for copy in taken}).items():
        quality = qualities[name]
        problems = (*quality.problems, str(twin))
        qualities[name] = replace(quality, problems=problems, verdict="low" if quality.verdict == "low" else "medium")
    photos: list[Photo] = []
    described: dict[str, dict[str, Any]] = {}
    for copy in taken:
        quality = qualities[copy.path.name]
        seen = proposed(view(faces.get(copy.key), (copy.figures.width, copy.figures.height)), copy.original)
        values, guessed = _values(project, copy.entry, quality, seen, template)
        described[copy.path.name] = described_as(copy, quality, seen, values, guessed)
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
                values["framing"],
                (*quality.measures, *seen.measures),
            )
        )
    return photos, described


def _values(
    project: Project, entry: Mapping[str, Any], quality: PhotoQuality, seen: View, template: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What counts for a photograph, and what was guessed. Each guess builds on what a person said before it."""
    guessed: dict[str, Any] = {}
    values: dict[str, Any] = {}

    def settle(name: str, guess: str | bool) -> Any:
        guessed[name] = guess
        values[name] = entry[name] if is_edited(entry, name) else guess
        return values[name]

    known = {"angle": settle("angle", seen.angle), "expression": settle("expression", seen.expression)}
    known["framing"] = settle("framing", seen.framing)
    for name in NEVER_GUESSED:
        known[name] = settle(name, UNKNOWN)
    settle("caption", captions.fill(template, project, **known))
    settle("usable", settle("quality", quality.verdict) != "low")
    values["odd"], guessed["odd"] = entry.get("odd", False), entry.get("guessed", {}).get("odd", False)  # settled when all faces are known
    return values, guessed


def _odd_ones(project: Project, photos: list[Photo], embedder: Embedder | None) -> tuple[dict[str, str], list[str]]:
    """Words on each photograph (by file name) whose face is unlike the others', and what else is to be said of the faces."""
    records = tuple(photo.record for photo in photos if photo.usable and photo.record)
    if embedder is None or not records:
        return {}, []
    if drawn := drawn_character(project):
        return {}, [f"faces are not compared, because the character counts as drawn: {drawn}"]
    try:
        odd = choose_references(Dataset(project, "source", records), embedder).odd
    except IdentityError as error:
        return {}, [f"the photos do not show one person clearly: {error}"]
    bound = f" (faces up to {embedder.reach:.2f} apart count as one person)"
    return {photo.name: f"it {photo.words}{bound}" for photo in odd}, []


def _asked(project: Project, faces: Mapping[str, tuple[Face, ...]], captions_written: Iterable[str]) -> list[str]:
    """Whether the character is drawn, where it looks or sounds so and somebody has said that it is not."""
    asked = "" if drawn_character(project) else doubt(list(faces.values()), captions_written)
    return [asked] if asked else []


def _pointed_at(photo: Photo, odd: Mapping[str, str], described: Mapping[str, dict[str, Any]]) -> Photo:
    """The photograph, called odd where it was found to be and no person has said otherwise; its entry likewise. It stays in the dataset."""
    assert photo.record
    entry, found = described[photo.record.name], photo.record.name in odd
    said = entry["odd"] if is_edited(entry, "odd") else found
    entry["guessed"]["odd"], entry["odd"] = found, said
    if not said:
        return photo
    words = f"{odd[photo.record.name]}; if it is the same person, set odd to false" if found else "somebody said so"
    problems = (f"odd one out: {words}", *photo.problems)
    entry["problems"] = list(problems)
    return replace(photo, problems=problems, odd=True)


def _moods(photos: Iterable[Photo]) -> list[str]:
    """What to look through for the two expressions that are not measured."""
    used = [photo for photo in photos if photo.usable and photo.record]
    neutral = [photo.record.name for photo in used if photo.record and photo.expression == "neutral"]
    missing = [mood for mood in MOODS if not any(photo.expression == mood for photo in used)]
    if not neutral or not missing:
        return []
    shown = ", ".join(neutral[:10]) + (" and others" if len(neutral) > 10 else "")
    return [f"neutral means only that no laugh was seen; if one of these is {' or '.join(missing)}, say so in metadata.json: {shown}"]


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


def described_as(copy: Taken, quality: PhotoQuality, seen: View, values: Mapping[str, Any], guessed: Mapping[str, Any]) -> dict[str, Any]:
    measured = {name: f"{value:016x}" if name.endswith("hash") else value for name, value in asdict(copy.figures).items()}
    figures_shown = {
        name: value for name, value in asdict(quality).items() if name not in ("width", "height", "verdict", "problems", "measures")
    }
    described: dict[str, Any] = {
        "filename": copy.path.name,
        **{name: values[name] for name in EDITABLE},
        captions.IN_TEXT_FILE: values["caption"],
        "measures": [*quality.measures, *seen.measures],
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
