"""Step 1.1: photographs become the source dataset. Copies and describes; never changes or deletes an original, nor what a person wrote.

data/source/v1/source_001.jpg …   byte for byte the original where it is upright RGB as JPEG, PNG or WebP, else a lossless PNG of it
data/source/v1/source_001.txt …   the caption once more, as trainers read it
data/source/v1/metadata.json      one entry per original (known by the SHA-256 of its bytes, so a number is never given twice)

In metadata.json people may change caption, angle, expression, framing, setting, pose, quality, usable and odd, and in the .txt the caption.
`guessed` holds what was proposed for each: a value that differs from it is a person's and stays.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from . import captions, identity
from .dataset import Dataset, ImageRecord
from .errors import DatasetError, IdentityError, ImageError
from .faces import Embedder, Face
from .faces.measure import measure
from .images import SUFFIXES, content_key, open_image, png_bytes, storage_error, value_key, write_json, write_whole
from .location import Unclear, names_a_place, without_metadata
from .project import Project, Stage
from .quality import UNKNOWN, Figures, PhotoQuality, View, assess, figures, near_duplicates, view

Report = Callable[[int, int], None]

CAPTION = captions.TEMPLATE
EDITABLE = ("caption", "angle", "expression", "framing", "setting", "pose", "quality", "usable", "odd")
NEVER_GUESSED = ("setting", "pose")  # only a person can say where it is, and what the body does
READERS, AHEAD = 2, 4  # threads that read photographs, and how many photographs they may be ahead: decoded, 12 megapixels are 36 MB
PLACE_KEPT = "the copy still says where the photo was taken (GPS); to have it copied without, turn keep_place off and delete the copy"
AT_LEAST_PHOTOS, AT_LEAST_ANGLES = 10, 2  # success criteria of step 1.1
VERBATIM = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
SCHEMA = 1

_NAMED = re.compile(r"source_(\d{3,})\.(?:jpg|png|webp)")


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
    entries = _spoken(stage, _entries(stage))
    total = len(files) * (2 if embedder else 1)
    taken, refused = _take(stage, files, entries, keep_place, lambda done: report(done, total) if report else None)
    if strict and refused:
        raise DatasetError("These photos cannot be used; remove or mend them, or turn strict off:", _refusals(refused))
    if not taken:
        raise DatasetError("None of these files can be used:", _refusals(refused) or ["there are no files"])
    faces, notes = _faces(project, taken, embedder, lambda done: report(total - len(taken) + done, total) if report else None)
    photos, described = _describe(project, taken, faces, caption_template)
    odd, doubts = _odd_ones(project, photos, embedder)
    photos = [_pointed_at(photo, odd, described) for photo in photos]
    notes += doubts
    checklist = _checklist(project, photos)
    captions.write_text_files(stage.folder, {name: entry["caption"] for name, entry in described.items()})
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
    notes += [f"captions: {finding}" for finding in captions.lint({image.name: image.caption for image in dataset.images}, project)]
    return Curated(dataset, (*photos, *refused), checklist, tuple(notes))


def edits_fingerprint(project: Project) -> str:
    """Changes when a person changes metadata.json or a .txt beside it, and only then: what this pack writes there does not count. Empty while
    nothing is edited.

    Raises:
        DatasetError: metadata.json is damaged, or a caption was changed in two places.
    """
    stage = project.stage("source")
    entries = _spoken(stage, _entries(stage))
    edited = [[entry["sha256"], name, entry[name]] for _, entry in sorted(entries.items()) for name in EDITABLE if _is_edited(entry, name)]
    return value_key(edited) if edited else ""


def set_captions(project: Project, changed: Mapping[str, str]) -> None:
    """Write captions (by image name) as a person's, into metadata.json and the .txt files; both or, where one fails, at the next run.

    Raises:
        DatasetError: an image has no entry, a caption is empty, or what is there is damaged. Nothing is written then.
        StorageError: the disk refused.
    """
    stage = project.stage("source")
    entries = _spoken(stage, _entries(stage))
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
    return frozenset(name for name, entry in _spoken(stage, _entries(stage)).items() if _is_edited(entry, "caption"))


def said_of_sources(project: Project) -> dict[str, dict[str, Any]]:
    """What holds for each photograph of metadata.json that is among the photos, by image key: its file name and every editable field.

    Raises:
        DatasetError: metadata.json is damaged, or a caption was changed in two places.
    """
    stage = project.stage("source")
    return {
        entry["key"]: {"framing": UNKNOWN, **dict.fromkeys(NEVER_GUESSED, UNKNOWN), "odd": False}
        | {field: entry[field] for field in ("filename", *EDITABLE) if field in entry}
        for entry in _spoken(stage, _entries(stage)).values()
        if not entry.get("removed")
    }


# --- taking in


@dataclass(frozen=True, slots=True)
class _Read:
    """A photograph as it will be stored; `copied` is None where `entry` tells that its copy is there already."""

    sha256: str
    copied: bytes | None = None
    suffix: str = ""
    treatments: tuple[str, ...] = ()
    figures: Figures | None = None


def _take(
    stage: Stage, files: Sequence[Path], entries: Mapping[str, Mapping[str, Any]], keep_place: bool, done: Callable[[int], None]
) -> tuple[list[_Taken], list[Photo]]:
    """Copies of all files that are images of their own, by number; the others as unusable photos. Reads ahead, numbers in order."""
    taken: dict[str, _Taken] = {}  # by SHA-256
    refused: list[Photo] = []
    shelf = _Shelf(stage, entries)
    with closing(_ahead(files, lambda path: _read(path, shelf, keep_place))) as photos:
        for number, (path, read) in enumerate(photos, 1):
            try:
                photo = read.result()
                if photo.sha256 in taken:
                    raise ImageError(f"the same file as {taken[photo.sha256].original}, byte for byte")
                taken[photo.sha256] = shelf.take(path, photo)
            except ImageError as error:
                refused.append(Photo(path.name, False, (str(error),)))
            except OSError as error:
                refused.append(Photo(path.name, False, (f"cannot be read: {error.strerror or error}",)))
            done(number)
    return sorted(taken.values(), key=lambda copy: _natural(copy.path.name)), refused


def _ahead(files: Sequence[Path], read: Callable[[Path], _Read]) -> Generator[tuple[Path, Future[_Read]], None, None]:
    """Files in order, the next AHEAD of them being read meanwhile."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="flenwheel-photos") as pool:
        begun: deque[tuple[Path, Future[_Read]]] = deque()
        try:
            for path in files:
                begun.append((path, pool.submit(read, path)))
                if len(begun) > AHEAD:
                    yield begun.popleft()
            while begun:
                yield begun.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(path: Path, shelf: _Shelf, keep_place: bool) -> _Read:
    """Runs in a thread; writes nothing.

    Raises:
        ImageError, OSError: the photograph cannot be read.
    """
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if shelf.has(sha256):
        return _Read(sha256)
    opened = open_image(path, content=content)
    treatments, suffix, copied = opened.treatments, "", b""
    if opened.mode == "RGB" and not treatments and opened.format in VERBATIM:
        suffix, copied = VERBATIM[opened.format], content
        if names_a_place(content, opened.format):
            suffix, copied, treatments = _without_place(content, opened.format, keep_place)
    if not suffix:
        copied, treatments = png_bytes(opened.image), (*treatments, _stored(opened.format, opened.mode))
    return _Read(sha256, copied, suffix or ".png", treatments, figures(opened.image))


def _without_place(content: bytes, format: str, keep_place: bool) -> tuple[str, bytes, tuple[str, ...]]:
    """Suffix, bytes and treatments of the copy of a photograph that says where it was taken; no suffix where it must become a PNG."""
    if keep_place:
        return VERBATIM[format], content, (PLACE_KEPT,)
    try:
        return VERBATIM[format], without_metadata(content, format), ("place and other metadata left out of the copy, pixels unchanged",)
    except Unclear as error:
        return "", b"", (f"metadata with the place could not be taken out of the {format} ({error})",)


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

    def has(self, sha256: str) -> bool:
        """Whether this photograph has its copy; safe to ask from any thread."""
        name = self._known.get(sha256)
        return name is not None and (self._stage.folder / name).is_file()

    def take(self, original: Path, photo: _Read) -> _Taken:
        """The copy of a photograph, made now if it is not there.

        Raises:
            ImageError: it shows what another one shows, or its copy is no longer what was made.
        """
        name = self._known.get(photo.sha256)
        if photo.copied is None or photo.figures is None:
            assert name is not None
            return self._again(original, photo.sha256, name)
        key = content_key(photo.copied)
        if key in self._originals:
            raise ImageError(f"the same picture as {self._originals[key]}, pixel for pixel")
        self._originals[key] = original.name
        if name is None or Path(name).suffix != photo.suffix:  # deleted to have it copied again, and now of another format
            name = self._strays.get(key) or f"source_{self._next():03}{photo.suffix}"
        path = self._stage.folder / name
        if self._strays.get(key) != name:
            write_whole(path, photo.copied)
        return _Taken(
            original.name,
            photo.sha256,
            path,
            key,
            photo.treatments,
            photo.figures,
            self._entries.get(self._known.get(photo.sha256, name), {}),
        )

    def _again(self, original: Path, sha256: str, name: str) -> _Taken:
        entry, path = self._entries[name], self._stage.folder / name
        content = path.read_bytes()
        if content_key(content) != entry["key"]:
            raise ImageError(
                f"its copy {name} has been changed by hand. Delete {name} to have it copied again, or put the changed picture among your"
                " photos and this one away"
            )
        self._originals[entry["key"]] = original.name
        return _Taken(original.name, sha256, path, entry["key"], _treatments(entry, content), _figures(entry), entry)

    def _next(self) -> int:
        number = max(self._numbers, default=0) + 1
        self._numbers.add(number)
        return number


def _treatments(entry: Mapping[str, Any], content: bytes) -> tuple[str, ...]:
    """What was done to a copy that is there already. Entries from before places were left out do not tell of them; their bytes do."""
    told = tuple(entry["treatments"])
    format = next(format for format, suffix in VERBATIM.items() if entry["filename"].endswith(suffix))
    older = captions.IN_TEXT_FILE not in entry
    return (*told, PLACE_KEPT) if older and names_a_place(content, format) else told


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
    for name, twin in near_duplicates({copy.path.name: copy.figures for copy in taken}).items():
        quality = qualities[name]
        problems = (*quality.problems, str(twin))
        qualities[name] = replace(quality, problems=problems, verdict="low" if quality.verdict == "low" else "medium")
    photos: list[Photo] = []
    described: dict[str, dict[str, Any]] = {}
    for copy in taken:
        quality, seen = qualities[copy.path.name], view(faces.get(copy.key), copy.figures.height)
        values, guessed = _values(project, copy.entry, quality, seen, template)
        described[copy.path.name] = _entry(copy, quality, seen, values, guessed)
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
        values[name] = entry[name] if _is_edited(entry, name) else guess
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
    """Words on each photograph (by file name) whose face is unlike the others', and what else is to be said of the faces.

    The verdict is `identity.references`'s own; its words begin with the file name of the photograph they are about.
    """
    records = tuple(photo.record for photo in photos if photo.usable and photo.record)
    if embedder is None or not records:
        return {}, []
    try:
        said = identity.references(Dataset(project, "source", records), embedder).notes
    except IdentityError as error:
        return {}, [f"the photos do not show one person clearly: {error}"]
    bound = f" (faces up to {embedder.reach:.2f} apart count as one person)"
    return {note.partition(" ")[0]: note.partition(" ")[2] + bound for note in said if "does not look like" in note}, []


def _pointed_at(photo: Photo, odd: Mapping[str, str], described: Mapping[str, dict[str, Any]]) -> Photo:
    """The photograph, called odd where it was found to be and no person has said otherwise; its entry likewise. It stays in the dataset."""
    assert photo.record
    entry, found = described[photo.record.name], photo.record.name in odd
    said = entry["odd"] if _is_edited(entry, "odd") else found
    entry["guessed"]["odd"], entry["odd"] = found, said
    if not said:
        return photo
    words = f"it {odd[photo.record.name]}; if it is the same person, set odd to false" if found else "somebody said so"
    problems = (f"odd one out: {words}", *photo.problems)
    entry["problems"] = list(problems)
    return replace(photo, problems=problems, odd=True)


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


def _spoken(stage: Stage, entries: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Entries with the captions that somebody changed in a .txt."""
    changed = captions.changed_in_text_files(stage.folder, entries)
    return {name: {**entry, "caption": changed.get(name, entry["caption"])} for name, entry in entries.items()}


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
    if not _NAMED.fullmatch(fields["filename"]):
        return f"{fields['filename']!r} is no file name of this dataset (source_001.jpg)"
    if fields["measured"].keys() != Figures.__dataclass_fields__.keys():
        return "measured is incomplete"
    return ""


def _is_edited(entry: Mapping[str, Any], name: str) -> bool:
    return name in entry and entry[name] != entry["guessed"].get(name)


def _figures(entry: Mapping[str, Any]) -> Figures:
    return Figures(**{name: int(value, 16) if name.endswith("hash") else value for name, value in entry["measured"].items()})


def _entry(copy: _Taken, quality: PhotoQuality, seen: View, values: Mapping[str, Any], guessed: Mapping[str, Any]) -> dict[str, Any]:
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
