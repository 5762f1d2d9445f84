"""A set of pairs while it is being built: files come in one by one, gaps and all, until it pairs up. What the panel shows and changes.

    sets/<name>/set.json            labels, what each slot holds, instruction, trigger word
    sets/<name>/target/             results and their captions (.txt)
    sets/<name>/control_1/ …        what they were made from
    sets/<name>/removed/<batch>/    what was taken out; nothing is ever deleted

A file counts only once it was decoded whole. Everything here takes names of slots and files, never paths from outside.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from .errors import DatasetError, StorageError
from .images import SUFFIXES, open_image, storage_error, write_json, write_whole
from .known_files import signature_of
from .pair_captions import captions_of, read_metadata
from .pair_slots import METADATA, TARGET, Picture, Slot, faults, header_or_reason, match_key, read_headers, scan
from .pairs import MAX_CONTROLS, OnProblem, PairedDataset, load_pairs
from .project import folder_for, is_folder_name

ABOUT = "set.json"
REMOVED = "removed"
SLOTS = (TARGET, *(f"control_{number}" for number in range(1, MAX_CONTROLS + 1)))
MAX_LABEL, MAX_CAPTION = 60, 4_000
_HOLDS = (
    "The results that the model shall learn to make, such as the shirt with the logo on it.",
    "What each result was made from, such as the plain shirt. The model's Picture 1.",
    "A second picture for each result, such as the logo. The model's Picture 2.",
    "A third picture for each result, such as a pose. The model's Picture 3.",
)


@dataclass(frozen=True, slots=True)
class SlotAbout:
    """What people call a slot, and what belongs into it."""

    label: str = ""
    holds: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """What a set says of itself besides its files. `slots`: target first, then one to three controls."""

    name: str
    slots: tuple[SlotAbout, ...] = (SlotAbout("", _HOLDS[0]), SlotAbout("", _HOLDS[1]))
    instruction: str = ""
    trigger_word: str = ""


@dataclass(frozen=True, slots=True)
class PairRow:
    """One name across all slots. `pictures`: of each slot, None where there is none or it cannot be read. `own`: has a caption of its own;
    `caption` is empty where there are no words yet."""

    key: str
    stem: str
    names: tuple[str | None, ...]
    pictures: tuple[Picture | None, ...]
    caption: str
    own: bool
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetState:
    """A set as it is on the disk now. `general`: what concerns no single pair."""

    about: About
    rows: tuple[PairRow, ...]
    counts: tuple[int, ...]
    general: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def problems(self) -> int:
        return len(self.general) + sum(bool(row.problems) for row in self.rows)


class PairSet:
    """One set in its folder. Changes are made one at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.RLock()
        self._headers: dict[Path, tuple[tuple[int, int, int], Picture | str]] = {}

    @property
    def cache(self) -> Path:
        """Thumbnails; may be deleted at will."""
        return self.root / "cache"

    def about(self) -> About:
        """What set.json says.

        Raises:
            StorageError: it is broken.
        """
        path = self.root / ABOUT
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            slots = tuple(SlotAbout(str(slot["label"]), str(slot["holds"])) for slot in told["slots"])
            if not 2 <= len(slots) <= len(SLOTS):
                raise ValueError(f"{len(slots)} slots")
            return About(str(told["name"]), slots, str(told["instruction"]), str(told["trigger_word"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path} is not readable ({error}). Mend the file, or delete it and create the set again.") from error

    def describe(
        self, *, instruction: str | None = None, trigger_word: str | None = None, slots: Mapping[str, Mapping[str, str]] | None = None
    ) -> About:
        """Change what the set says of itself; None leaves a part as it is. `slots`: label and holds by slot name."""
        with self._lock:
            about = self.about()
            told = list(about.slots)
            for name, values in (slots or {}).items():
                number = self._number(name, about)
                told[number] = SlotAbout(
                    _line(values.get("label", told[number].label), MAX_LABEL), _line(values.get("holds", told[number].holds), 300)
                )
            return self._write(
                replace(
                    about,
                    slots=tuple(told),
                    instruction=about.instruction if instruction is None else _line(instruction, MAX_CAPTION),
                    trigger_word=about.trigger_word if trigger_word is None else _line(trigger_word, MAX_LABEL),
                )
            )

    def add_control(self) -> About:
        """One more control slot, at the end.

        Raises:
            DatasetError: there are three.
        """
        with self._lock:
            about = self.about()
            number = len(about.slots)
            if number == len(SLOTS):
                raise DatasetError(f"There are {MAX_CONTROLS} control folders already; no model here takes more.")
            return self._write(replace(about, slots=(*about.slots, SlotAbout("", _HOLDS[number]))))

    def remove_control(self, name: str) -> About:
        """Take a control slot away; those behind it move up, and its files go to removed/.

        Raises:
            DatasetError: it is the target, or the last control.
        """
        with self._lock:
            about = self.about()
            number = self._number(name, about)
            if number == 0:
                raise DatasetError("The target cannot be removed: it is what the model shall learn.")
            if len(about.slots) == 2:
                raise DatasetError("The last control cannot be removed: the model needs at least one picture to start from.")
            self._put_away(self._files(name))
            for later in range(number + 1, len(about.slots)):
                self._rename_folder(self.root / SLOTS[later], self.root / SLOTS[later - 1])
            return self._write(replace(about, slots=(*about.slots[:number], *about.slots[number + 1 :])))

    def put(self, slot: str, name: str, content: bytes, *, replacing: bool = False) -> str:
        """Take a file in: a picture that decodes whole, or, for the target, captions. The name it got.

        Raises:
            ImageError: the picture is damaged.
            DatasetError: it is no picture, or its place is taken (`replacing` moves the old one to removed/).
        """
        self._number(slot, self.about())
        path = self.root / slot / _file_name(name)
        suffix = path.suffix.lower()
        captions = slot == TARGET and (suffix == ".txt" or path.name == METADATA)
        if captions:
            _refuse_no_text(path.name, content)
        elif suffix in SUFFIXES:
            open_image(path, content=content)
        else:
            raise DatasetError(f"{path.name} is neither a picture nor, for the target, a caption (.txt or {METADATA}).")
        with self._lock:
            same_kind = [file for file in self._files(slot) if _rivals(file, path)]
            if same_kind and not replacing:
                if len(same_kind) == 1 and same_kind[0].read_bytes() == content:
                    return same_kind[0].name
                raise Taken(f"{slot} has {same_kind[0].name} already.")
            self._put_away(same_kind)
            write_whole(path, content)
        return path.name

    def remove(self, slot: str, names: Iterable[str]) -> str:
        """Take files out of a slot; the batch by which `restore` brings them back."""
        with self._lock:
            self._number(slot, self.about())
            wanted = set(names)
            return self._put_away([path for path in self._files(slot) if path.name in wanted])

    def remove_pairs(self, keys: Iterable[str]) -> str:
        """Take whole pairs out, captions too; the batch by which `restore` brings them back."""
        with self._lock:
            wanted = set(keys)
            slots = SLOTS[: len(self.about().slots)]
            return self._put_away([path for slot in slots for path in self._files(slot) if match_key(path.stem) in wanted])

    def restore(self, batch: str) -> int:
        """Bring back what was taken out together, except where another file took the place; how many came back.

        Raises:
            DatasetError: there is no such batch.
        """
        home = self.root / REMOVED / batch
        if not re.fullmatch(r"[0-9a-f]{12}", batch) or not home.is_dir():
            raise DatasetError("There is nothing to bring back.")
        count = 0
        with self._lock:
            for path in sorted(path for path in home.rglob("*") if path.is_file()):
                back = self.root / path.relative_to(home)
                if not back.exists() and back.parent.name in SLOTS[: len(self.about().slots)]:
                    _move(path, back)
                    count += 1
        return count

    def caption(self, captions: Mapping[str, str]) -> None:
        """Write captions by key; an empty one takes the pair's own words away, so that the instruction holds again.

        Raises:
            DatasetError: a key has no target.
        """
        with self._lock:
            slot = scan(self._folder(TARGET), TARGET)
            unknown = [key for key in captions if key not in slot.files]
            if unknown:
                raise DatasetError("There is no target for these captions:", unknown)
            for key, text in captions.items():
                old = slot.texts.get(key, [])
                words = _line(text, MAX_CAPTION)
                self._put_away(old[1:] if words else old)
                if words:
                    write_whole(old[0] if old else slot.files[key][0].with_suffix(".txt"), (words + "\n").encode())

    def words(self, keys: Iterable[str]) -> dict[str, tuple[str, bool]]:
        """The caption of each key as it is now, and whether it is the pair's own; far cheaper than `state`."""
        with self._lock:
            slot = scan(self._folder(TARGET), TARGET)
            described = read_metadata(slot.folder / METADATA, slot)[0]
            wanted = set(keys)
            slot.files = {key: paths for key, paths in slot.files.items() if key in wanted}
            captions = captions_of(slot, described, self.about().instruction, "").of
        return {key: (captions.get(key, ""), key in slot.texts or key in described) for key in slot.files}

    def replacing(self, find: str, put: str, *, any_case: bool = False) -> dict[str, str]:
        """What each caption of a pair's own that holds `find` would become, by key. Nothing is written.

        Raises:
            DatasetError: nothing to look for.
        """
        if not find:
            raise DatasetError("Type what shall be found.")
        pattern = re.compile(re.escape(find), re.IGNORECASE if any_case else 0)
        found = ((row.key, row.caption, pattern.sub(lambda _: put, row.caption)) for row in self.state().rows if row.own)
        return {key: after for key, before, after in found if after != before and after.strip()}

    def state(self) -> SetState:
        """Everything there is, with everything wrong, in place."""
        with self._lock:
            about = self.about()
            slots = [scan(self._folder(name), name) for name in SLOTS[: len(about.slots)]]
        read_headers(slots, self._known_header)
        described, problems, notes = read_metadata(slots[0].folder / METADATA, slots[0])
        captions = captions_of(slots[0], described, about.instruction, "")
        faulty = faults(slots)
        worded = (
            told for told in captions.problems if told[0] not in captions.lacking
        )  # words yet to be written are no fault of the files
        for key, problem in (*problems, *worded):
            faulty.setdefault(key, []).append(problem)
        general = tuple(faulty.pop("", ())) if slots[0].files else ()  # that an empty set is empty is no fault
        keys = sorted({key for slot in slots for key in slot.files})
        rows = tuple(_row(slots, key, captions.of.get(key, ""), key in slots[0].texts or key in described, faulty) for key in keys)
        counts = tuple(sum(map(len, slot.files.values())) for slot in slots)
        told = tuple(note for slot in slots for note in slot.notes)
        return SetState(about, rows, counts, general, (*told, *notes))

    def dataset(
        self, *, labels: Sequence[str] = (), instruction: str = "", trigger_word: str = "", on_problem: OnProblem = "refuse"
    ) -> PairedDataset:
        """The set as pairs; what is not given comes from the set itself.

        Raises:
            DatasetError: every problem at once.
        """
        about = self.about()
        given = [label.strip() for label in labels]
        return load_pairs(
            self._folder(TARGET),
            [self._folder(name) for name in SLOTS[1 : len(about.slots)]],
            name=about.name,
            labels=given if any(given) else [slot.label for slot in about.slots[1:]],
            instruction=instruction.strip() or about.instruction,
            trigger_word=trigger_word.strip() or about.trigger_word,
            on_problem=on_problem,
        )

    def take_in(self, dataset: PairedDataset) -> int:
        """Copy pairs in: pictures under the stem of their pair, captions beside the targets. How many.

        Raises:
            DatasetError: a place is taken, or a picture is damaged; what came before stays.
        """
        with self._lock:
            while len(self.about().slots) < 1 + len(dataset.slots):
                self.add_control()
            labels = self.about().slots
            for slot, label in zip(SLOTS[1:], dataset.slots, strict=False):
                if label not in SLOTS and not labels[SLOTS.index(slot)].label:
                    self.describe(slots={slot: {"label": label}})
            for pair in dataset.pairs:
                for slot, picture in zip(SLOTS, (pair.target, *pair.controls), strict=False):
                    self.put(slot, f"{_plain(pair.stem)}{picture.path.suffix.lower()}", picture.path.read_bytes())
                self.put(TARGET, f"{_plain(pair.stem)}.txt", (pair.caption + "\n").encode())
        return len(dataset.pairs)

    def picture(self, slot: str, name: str) -> Path:
        """The file of a picture.

        Raises:
            DatasetError: there is none.
        """
        self._number(slot, self.about())
        path = self.root / slot / name
        if not _is_plain(name) or path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise DatasetError(f"There is no picture {name!r} in {slot}.")
        return path

    def listing(self) -> list[list[object]]:
        """Names, sizes and times of all that counts: changes when the set does."""
        files = [self.root / ABOUT, *(path for name in SLOTS for path in self._files(name))]
        return [[path.relative_to(self.root).as_posix(), *signature_of(path.stat())] for path in files if path.is_file()]

    def _known_header(self, path: Path) -> Picture | str:
        signature = signature_of(path.stat())
        known = self._headers.get(path)
        if known and known[0] == signature:
            return known[1]
        found = header_or_reason(path)
        self._headers[path] = signature, found
        return found

    def _number(self, slot: str, about: About) -> int:
        if slot not in SLOTS[: len(about.slots)]:
            raise DatasetError(f"This set has no slot {slot!r}; it has {', '.join(SLOTS[: len(about.slots)])}.")
        return SLOTS.index(slot)

    def _folder(self, slot: str) -> Path:
        folder = self.root / slot
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _files(self, slot: str) -> list[Path]:
        folder = self.root / slot
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")) if folder.is_dir() else []

    def _put_away(self, paths: Iterable[Path]) -> str:
        batch = uuid.uuid4().hex[:12]
        for path in paths:
            _move(path, self.root / REMOVED / batch / path.relative_to(self.root))
        return batch

    def _rename_folder(self, old: Path, new: Path) -> None:
        try:
            if new.is_dir():
                new.rmdir()  # what it held was put away
            if old.is_dir():
                old.rename(new)
        except OSError as error:
            raise storage_error(new, error) from error

    def _write(self, about: About) -> About:
        write_json(self.root / ABOUT, asdict(about))
        return about


class Taken(DatasetError):
    """Another file is there already."""


class PairSets:
    """All sets below one folder, each opened once."""

    def __init__(self, home: Callable[[], Path]) -> None:
        self._home = home
        self._open: dict[Path, PairSet] = {}
        self._lock = threading.Lock()

    def names(self) -> Iterator[str]:
        """Ids of the sets there are."""
        home = self._home()
        if home.is_dir():
            yield from sorted(path.name for path in home.iterdir() if (path / ABOUT).is_file())

    def get(self, name: str) -> PairSet | None:
        """The set of this name or id, if there is one."""
        folder = folder_for(name)
        root = self._home() / folder
        if not is_folder_name(folder) or not (root / ABOUT).is_file():
            return None
        with self._lock:
            return self._open.setdefault(root, PairSet(root))

    def create(self, name: str) -> PairSet:
        """A set of this name: a new one with a target and one control, or the one that is there.

        Raises:
            DatasetError: no name that can name a folder.
        """
        folder = folder_for(name)
        if not is_folder_name(folder):
            raise DatasetError(f"{name!r} cannot name a set. Use letters and digits.")
        root = self._home() / folder
        if not (root / ABOUT).is_file():
            write_json(root / ABOUT, asdict(About(_line(name, MAX_LABEL))))
        found = self.get(name)
        if found is None:
            raise StorageError(f"{root / ABOUT} was written but is not there.")
        return found


def _row(slots: Sequence[Slot], key: str, caption: str, own: bool, faulty: Mapping[str, Sequence[str]]) -> PairRow:
    paths = [slot.files.get(key, [None])[0] for slot in slots]
    first = next(path for path in paths if path)
    pictures = tuple(slot.pictures.get(path) if path else None for slot, path in zip(slots, paths, strict=True))
    names = tuple(path.name if path else None for path in paths)
    return PairRow(key, first.stem, names, pictures, caption, own, tuple(faulty.get(key, ())))


def _rivals(file: Path, path: Path) -> bool:
    """Whether two files of a slot cannot stand beside each other: the same name without ending, both pictures or both captions."""
    return match_key(file.stem) == match_key(path.stem) and (file.suffix.lower() in SUFFIXES) == (path.suffix.lower() in SUFFIXES)


def _plain(stem: str) -> str:
    return re.sub(r'[/\\\x00-\x1f<>:"|?*]', "_", stem).lstrip(".") or "_"


def _is_plain(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not re.search(r'[/\\\x00-\x1f<>:"|?*]', name) and not name.startswith(".")


def _file_name(name: str) -> str:
    """A name as it may lie in a folder of ours.

    Raises:
        DatasetError: it leads elsewhere, is hidden, or too long.
    """
    cleaned = name.strip()
    if not _is_plain(cleaned) or len(cleaned.encode()) > 200:
        raise DatasetError(f"{name!r} cannot be used as a file name: no path, no hidden file, at most 200 bytes.")
    return cleaned


def _refuse_no_text(name: str, content: bytes) -> None:
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{name} is not UTF-8 text ({error}): save it again as UTF-8.") from error


def _line(text: str, most: int) -> str:
    """Words on one line."""
    line = " ".join(text.split())
    if len(line) > most:
        raise DatasetError(f"The text has {len(line)} characters; at most {most} are possible.")
    return line


def _move(path: Path, to: Path) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, to)
    except OSError as error:
        raise storage_error(to, error) from error
