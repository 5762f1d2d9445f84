"""Pairing pictures by file name: one target and up to three controls. Reads folders; never writes one.

The rule: two files belong together when their names without the ending are the same, whatever the case of the letters: `Anna 1.PNG` in the target
folder pairs with `anna 1.jpg` in a control folder. A file that is missing, doubled or unreadable is an error, never a shift of the next one.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image, UnidentifiedImageError

from .dataset import Dataset
from .errors import DatasetError
from .images import EXIF_ORIENTATION, MAX_PIXELS, SUFFIXES, content_key, value_key

MAX_CONTROLS = 3
TARGET = "target"
METADATA = "metadata.jsonl"
CAPTION_FIELDS = ("text", "caption", "prompt")
TRIGGER = "[trigger]"  # where a caption says it, the trigger word is put
OnProblem = Literal["refuse", "drop the pair", "drop the control"]
ON_PROBLEM: tuple[OnProblem, ...] = get_args(OnProblem)
READERS = 4  # opening a header waits for the disk more than for Python


@dataclass(frozen=True, slots=True)
class Picture:
    """One image file outside a project's stages. `width`, `height`: px, upright as EXIF says."""

    path: Path
    width: int
    height: int

    @property
    def name(self) -> str:
        return self.path.name

    def key(self) -> str:
        """Hash of the bytes as they are now."""
        return content_key(self.path)


@dataclass(frozen=True, slots=True)
class Pair:
    """One training example: what shall come out, what goes in, and the words. Control n is the model's "Picture n".

    Without controls it is a captioned image. `facts` is its history in words for the manifest; it plays no part in comparisons.
    """

    stem: str
    target: Picture
    controls: tuple[Picture, ...]
    caption: str
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True, slots=True)
class PairedDataset:
    """An ordered set of pairs that all use the same control slots. `slots`: what each control folder holds, such as ("shirts", "logos").

    `notes` says in words what was dropped or added on the way.

    Raises:
        DatasetError: empty, a doubled name, a gap, a blank caption; every violation at once.
    """

    name: str
    pairs: tuple[Pair, ...]
    slots: tuple[str, ...]
    trigger_word: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        problems = list(_violations(self))
        if problems:
            raise DatasetError(f"{self.name!r} is no dataset of pairs:", problems)

    def fingerprint(self) -> str:
        """Changes when a picture, a caption or the order of the slots does. Reads every file."""
        told = [[match_key(pair.stem), [picture.key() for picture in (pair.target, *pair.controls)], pair.caption] for pair in self.pairs]
        return value_key([self.trigger_word, len(self.slots), sorted(told)])

    def keeping(self, stems: Iterable[str], note: str = "") -> PairedDataset:
        """The pairs with these stems, in this dataset's order."""
        wanted = set(stems)
        kept = tuple(pair for pair in self.pairs if pair.stem in wanted)
        return replace(self, pairs=kept, notes=(*self.notes, note) if note else self.notes)


def match_key(stem: str) -> str:
    """What two file names must share to be a pair. Composed and decomposed umlauts are the same; "ß" and "ss" are not."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).lower())


def load_pairs(
    target: Path,
    controls: Sequence[Path],
    *,
    name: str = "",
    labels: Sequence[str] = (),
    instruction: str = "",
    trigger_word: str = "",
    on_problem: OnProblem = "refuse",
) -> PairedDataset:
    """Read a target folder and one to three control folders.

    Captions come from `<target name>.txt`, else from metadata.jsonl of the target folder, else `instruction` holds for all. Headers of all
    files are opened, pixels are not: a file damaged further in is found by the pair doctor and by the export.

    Raises:
        DatasetError: whatever does not fit, all of it at once, with the file that would have slipped and the ways out.
    """
    _refuse_folders(target, controls)
    names = (TARGET, *(f"control_{number}" for number in range(1, len(controls) + 1)))
    slots = [scan(folder, slot) for folder, slot in zip((target, *controls), names, strict=True)]
    described, problems, notes = _metadata(target / METADATA, slots[0])
    slots[0].notes += notes
    return pair_up(
        slots,
        name=name.strip() or target.name,
        labels=labels,
        described=described,
        problems=problems,
        instruction=instruction,
        trigger_word=trigger_word,
        on_problem=on_problem,
    )


def load_captioned(folder: Path, *, name: str = "", instruction: str = "", trigger_word: str = "") -> PairedDataset:
    """Read a folder of single captioned images: the same rules, no controls.

    Raises:
        DatasetError: every problem at once.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder.")
    slot = scan(folder, TARGET)
    described, problems, notes = _metadata(folder / METADATA, slot)
    slot.notes += notes
    return pair_up(
        [slot],
        name=name.strip() or folder.name,
        described=described,
        problems=problems,
        instruction=instruction,
        trigger_word=trigger_word,
    )


def pair_up(
    slots: Sequence[Slot],
    *,
    name: str,
    labels: Sequence[str] = (),
    described: Mapping[str, str] | None = None,
    problems: Sequence[tuple[str, str]] = (),
    instruction: str = "",
    trigger_word: str = "",
    on_problem: OnProblem = "refuse",
) -> PairedDataset:
    """Pair what lies in the slots; the first is the target's. `described`: captions by match key. `problems`: found on the way, by match key.

    Raises:
        DatasetError: every problem at once.
    """
    slots = _read_headers(slots)
    notes: list[str] = [note for slot in slots for note in slot.notes]
    labels = tuple(label.strip() or slot.slot for label, slot in zip([*labels, *[""] * MAX_CONTROLS], slots[1:], strict=False))
    if on_problem == "drop the control":
        slots, labels, dropped = _without_faulty_controls(slots, labels)
        notes += [f"{', '.join(dropped)} left out as asked: not every target has its file there."] if dropped else []
    captions = _captions(slots[0], described or {}, instruction.strip(), trigger_word.strip())
    faulty = _faults(slots)
    for stem, problem in (*problems, *captions.problems):
        faulty.setdefault(stem, []).append(problem)
    if on_problem == "drop the pair" and set(slots[0].files) - set(faulty):
        gone = [stem for stem in faulty if stem]
        notes += [f"{len(gone)} names left out as asked: {_listed([_shown(slots, stem) for stem in sorted(gone)])}."] if gone else []
        faulty = {stem: told for stem, told in faulty.items() if not stem}
        for slot in slots:
            slot.drop(gone)
    if faulty:
        raise DatasetError(_summary(slots), [problem for stem in sorted(faulty) for problem in faulty[stem]])
    pairs = tuple(
        Pair(
            slots[0].stems.get(key, paths[0].stem),
            slots[0].pictures[paths[0]],
            tuple(slot.pictures[slot.files[key][0]] for slot in slots[1:]),
            captions.of[key],
        )
        for key, paths in sorted(slots[0].files.items())
    )
    return PairedDataset(name, pairs, labels, trigger_word.strip(), (*notes, *captions.notes))


def _without_faulty_controls(slots: Sequence[Slot], labels: Sequence[str]) -> tuple[Sequence[Slot], tuple[str, ...], list[str]]:
    """Slots and labels that are whole, and the names of the others; everything stays where none is whole."""
    kept = [number for number, slot in enumerate(slots[1:]) if not _slot_problems(slots[0], slot)]
    if not kept:
        return slots, tuple(labels), []
    dropped = [slot.slot for number, slot in enumerate(slots[1:]) if number not in kept]
    return [slots[0], *(slots[1 + number] for number in kept)], tuple(labels[number] for number in kept), dropped


def captioned(dataset: Dataset, name: str = "") -> PairedDataset:
    """A dataset of single captioned images in the form every exporter takes."""
    pairs = tuple(
        Pair(
            image.stem, Picture(dataset.path(image), image.width, image.height), (), image.caption, {"key": image.key, "depth": image.depth}
        )
        for image in dataset.images
    )
    return PairedDataset(name or f"{dataset.project.folder_name}-{dataset.stage_name}", pairs, (), dataset.project.instance_token)


def open_header(path: Path) -> Picture:
    """Size of a picture without reading its pixels.

    Raises:
        DatasetError: empty, no image, too large, or not ours to read.
    """
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise DatasetError(f"{path.name} has {width} x {height} pixels, more than {MAX_PIXELS:,}. Scale it down first.")
            if (opened.format == "TIFF" or "exif" in opened.info) and opened.getexif().get(EXIF_ORIENTATION, 1) in range(5, 9):
                width, height = height, width
            return Picture(path, width, height)
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        raise DatasetError(f"{path.name} is {'empty (0 bytes)' if empty else 'not an image Pillow can read'}") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{path.name} has more than {MAX_PIXELS:,} pixels. Scale it down first.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DatasetError(f"{path.name} cannot be read ({error})") from error


@dataclass(slots=True)
class Slot:
    """What was found for one slot, target or control, before anything is paired.

    `files`: paths by match key; more than one is a problem. `texts`: caption files likewise. `stems`: how a key is written, where that is not
    the stem of the target's file.
    """

    folder: Path
    slot: str
    files: dict[str, list[Path]]
    notes: list[str] = field(default_factory=list[str])
    texts: dict[str, list[Path]] = field(default_factory=dict[str, list[Path]])
    stems: dict[str, str] = field(default_factory=dict[str, str])
    pictures: dict[Path, Picture] = field(default_factory=dict[Path, Picture])
    unreadable: dict[Path, str] = field(default_factory=dict[Path, str])

    def drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.files.pop(key, None)

    def shown(self, path: Path) -> str:
        return f"{self.slot}/{path.name}"


@dataclass(frozen=True, slots=True)
class _Captions:
    of: dict[str, str]
    problems: list[tuple[str, str]]
    notes: list[str]


def _refuse_folders(target: Path, controls: Sequence[Path]) -> None:
    problems = [f"{folder} is not a folder" for folder in (target, *controls) if not folder.is_dir()]
    if not controls:
        problems.append("there is no control folder: the model needs at least one picture to start from")
    if len(controls) > MAX_CONTROLS:
        problems.append(f"there are {len(controls)} control folders; at most {MAX_CONTROLS} are possible")
    seen: dict[Path, str] = {}
    for number, folder in enumerate((target, *controls)):
        slot = f"control_{number}" if number else TARGET
        other = seen.setdefault(folder.resolve(), slot)
        if other != slot:
            problems.append(f"{slot} and {other} are the same folder {folder}")
    if problems:
        raise DatasetError("These folders cannot be paired:", problems)


def scan(folder: Path, slot: str) -> Slot:
    """What one folder holds for a slot; subfolders and hidden files are not read."""
    files: dict[str, list[Path]] = {}
    texts: dict[str, list[Path]] = {}
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name in (METADATA, "Thumbs.db", "desktop.ini"):
                continue
            if not entry.is_file():
                others.append(f"{entry.name}/")
            elif path.suffix.lower() in SUFFIXES:
                files.setdefault(match_key(path.stem), []).append(path)
            elif path.suffix.lower() == ".txt":
                texts.setdefault(match_key(path.stem), []).append(path)
            else:
                others.append(entry.name)
    notes = [f"{slot}: {_listed(others)} not used (neither picture nor caption)."] if others else []
    return Slot(folder, slot, files, notes, texts)


def _read_headers(slots: Sequence[Slot]) -> Sequence[Slot]:
    """Open every header, in threads; what cannot be opened is kept with the reason."""
    paths = [(slot, path) for slot in slots for paths in slot.files.values() for path in paths]
    with ThreadPoolExecutor(READERS, "flenwheel-headers") as pool:
        for (slot, path), found in zip(paths, pool.map(lambda told: _header_or_reason(told[1]), paths, chunksize=64), strict=True):
            if isinstance(found, str):
                slot.unreadable[path] = found
            else:
                slot.pictures[path] = found
    return slots


def _header_or_reason(path: Path) -> Picture | str:
    try:
        return open_header(path)
    except DatasetError as error:
        return str(error)


def _faults(slots: Sequence[Slot]) -> dict[str, list[str]]:
    """Everything wrong, by match key; "" for what concerns a whole folder."""
    found: dict[str, list[str]] = {}
    target = slots[0]
    if not target.files:
        found[""] = [f"{target.slot}: there is no picture in {target.folder}"]
    for slot in slots:
        for key, paths in slot.files.items():
            if len(paths) > 1:
                found.setdefault(key, []).append(_doubled(slot, paths))
            found.setdefault(key, []).extend(f"{slot.slot}: {slot.unreadable[path]}" for path in paths if path in slot.unreadable)
    for key in target.files:
        for number, slot in enumerate(slots[1:], 1):
            if key not in slot.files:
                found.setdefault(key, []).append(_gap(slots, number, key))
    for slot in slots[1:]:
        for key in slot.files.keys() - target.files.keys():
            found.setdefault(key, []).append(f"{slot.shown(slot.files[key][0])} has no target")
    return {key: told for key, told in found.items() if told}


def _slot_problems(target: Slot, slot: Slot) -> bool:
    return target.files.keys() != slot.files.keys() or bool(slot.unreadable) or any(len(paths) > 1 for paths in slot.files.values())


def _doubled(slot: Slot, paths: Sequence[Path]) -> str:
    shown = " and ".join(slot.shown(path) for path in paths)
    if len({path.stem for path in paths}) > 1:
        return f"{shown} differ only in upper and lower case or in how an accent is written: rename or remove one"
    return f"{shown} have the same name: keep one"


def _gap(slots: Sequence[Slot], number: int, key: str) -> str:
    """Who is missing, and which file a careless trainer would have put there."""
    slot, wanted = slots[number], slots[0].files[key][0]
    missing = f"{slot.slot} has no file for {slots[0].shown(wanted)}"
    later = next((other for other in slots[number + 1 :] if key in other.files), None)
    if later is not None:
        return f"{missing}: {later.shown(later.files[key][0])} would have slipped into its place (Picture {number})"
    following = min((other for other in slot.files if other > key), default=None)
    if following is not None:
        return f"{missing}: paired by order, {slot.shown(slot.files[following][0])} would have slipped into its place"
    return f"{missing}: the pair would have been trained without Picture {number}"


def _summary(slots: Sequence[Slot]) -> str:
    counts = ", ".join(f"{slot.slot} {sum(map(len, slot.files.values()))}" for slot in slots)
    return (
        f"The folders do not pair up (pictures: {counts}). Files pair by name, without ending, in any case. Add or mend the files, drop the"
        ' pairs ("drop the pair"), or drop the control folder ("drop the control"):'
    )


def _shown(slots: Sequence[Slot], key: str) -> str:
    return next((slot.files[key][0].stem for slot in slots if key in slot.files), key)


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _captions(target: Slot, described: Mapping[str, str], instruction: str, trigger: str) -> _Captions:
    found: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    notes: list[str] = []
    general = told = 0
    for key, paths in target.files.items():
        caption = described.get(key, "")
        texts = target.texts.get(key, [])
        if len(texts) > 1:
            problems.append((key, f"{' and '.join(map(target.shown, texts))} are both captions of {target.shown(paths[0])}: keep one"))
        elif texts:
            try:
                caption = texts[0].read_text(encoding="utf-8-sig").strip() or caption
            except (OSError, UnicodeDecodeError) as error:
                problems.append((key, f"{target.shown(texts[0])} cannot be read as UTF-8 text ({error}): save it again as UTF-8"))
                continue
        if not caption:
            caption, general = instruction, general + bool(instruction)
        if not caption:
            problems.append(
                (key, f"{target.shown(paths[0])} has no caption: add {paths[0].stem}.txt, or give one instruction for all pairs")
            )
            continue
        caption, added = _with_trigger(" ".join(caption.split()), trigger)
        found[key], told = caption, told + added
    if general:
        notes.append(f"{general} of {len(target.files)} pairs use the general instruction {instruction!r}.")
    if told:
        notes.append(f"The trigger word {trigger!r} was put in front of {told} captions that lacked it.")
    lost = [path.name for key, paths in target.texts.items() if key not in target.files for path in paths]
    if lost:
        notes.append(f"Captions without a picture: {_listed(lost)}.")
    return _Captions(found, problems, notes)


def _with_trigger(caption: str, trigger: str) -> tuple[str, bool]:
    if not trigger:
        return caption, False
    if TRIGGER in caption:
        return caption.replace(TRIGGER, trigger), False
    spoken = re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE)
    return (caption, False) if spoken else (f"{trigger}, {caption}", True)


def _metadata(path: Path, target: Slot) -> tuple[dict[str, str], list[tuple[str, str]], list[str]]:
    """Captions of a metadata.jsonl by match key, what is wrong with it, and rows without a picture."""
    if not path.is_file():
        return {}, [], []
    found: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    lost: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return {}, [("", f"{path.name} cannot be read as UTF-8 text ({error})")], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            problems.append(("", f"{path.name}, line {number}: not a JSON object with file_name and one of {', '.join(CAPTION_FIELDS)}"))
            continue
        file_name, caption = row
        key = match_key(Path(file_name).stem)
        if key not in target.files:
            lost.append(file_name)
        elif key in found and found[key] != caption:
            problems.append((key, f"{path.name}, line {number}: {file_name} has two different captions"))
        else:
            found[key] = caption
    return found, problems, [f"{path.name} names files that are not there: {_listed(lost)}."] if lost else []


def _row(line: str) -> tuple[str, str] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        return None
    caption = next((row[name] for name in CAPTION_FIELDS if isinstance(row.get(name), str)), None)
    return None if caption is None else (row["file_name"], caption)


def _violations(dataset: PairedDataset) -> Iterator[str]:
    if not dataset.pairs:
        yield "it has no pairs"
    if len(dataset.slots) > MAX_CONTROLS:
        yield f"it has {len(dataset.slots)} control slots; at most {MAX_CONTROLS} are possible"
    seen: dict[str, str] = {}
    for pair in dataset.pairs:
        other = seen.setdefault(match_key(pair.stem), pair.stem)
        if other is not pair.stem:
            yield f"{pair.stem!r} is there twice (as {other!r})"
        if len(pair.controls) != len(dataset.slots):
            yield f"{pair.stem!r} has {len(pair.controls)} controls where the dataset has {len(dataset.slots)} slots"
        if not pair.caption.strip():
            yield f"{pair.stem!r} has no caption"
        if pair.target.path in {control.path for control in pair.controls}:
            yield f"{pair.stem!r}: its target {pair.target.name} is one of its controls"
