"""Targets with their controls: the values, and how folders become them. Reads folders; never writes one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .dataset import Dataset
from .errors import DatasetError
from .images import value_key
from .pair_captions import captions_of, read_metadata
from .pair_slots import METADATA, TARGET, Picture, Slot, faults, has_problems, listed, match_key, read_headers, scan, shown_name, summary

MAX_CONTROLS = 3
OnProblem = Literal["refuse", "drop the pair", "drop the control"]
ON_PROBLEM: tuple[OnProblem, ...] = get_args(OnProblem)


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
    described, problems, notes = read_metadata(target / METADATA, slots[0])
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
    described, problems, notes = read_metadata(folder / METADATA, slot)
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
    slots = read_headers(slots)
    notes: list[str] = [note for slot in slots for note in slot.notes]
    labels = tuple(label.strip() or slot.slot for label, slot in zip([*labels, *[""] * MAX_CONTROLS], slots[1:], strict=False))
    if on_problem == "drop the control":
        slots, labels, dropped = _without_faulty_controls(slots, labels)
        notes += [f"{', '.join(dropped)} left out as asked: not every target has its file there."] if dropped else []
    captions = captions_of(slots[0], described or {}, instruction.strip(), trigger_word.strip())
    faulty = faults(slots)
    for stem, problem in (*problems, *captions.problems):
        faulty.setdefault(stem, []).append(problem)
    if on_problem == "drop the pair" and set(slots[0].files) - set(faulty):
        gone = [stem for stem in faulty if stem]
        notes += [f"{len(gone)} names left out as asked: {listed([shown_name(slots, stem) for stem in sorted(gone)])}."] if gone else []
        faulty = {stem: told for stem, told in faulty.items() if not stem}
        for slot in slots:
            slot.drop(gone)
    if faulty:
        raise DatasetError(summary(slots), [problem for stem in sorted(faulty) for problem in faulty[stem]])
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


def captioned(dataset: Dataset, name: str = "") -> PairedDataset:
    """A dataset of single captioned images in the form every exporter takes."""
    pairs = tuple(
        Pair(
            image.stem, Picture(dataset.path(image), image.width, image.height), (), image.caption, {"key": image.key, "depth": image.depth}
        )
        for image in dataset.images
    )
    return PairedDataset(name or f"{dataset.project.folder_name}-{dataset.stage_name}", pairs, (), dataset.project.instance_token)


def _without_faulty_controls(slots: Sequence[Slot], labels: Sequence[str]) -> tuple[Sequence[Slot], tuple[str, ...], list[str]]:
    """Slots and labels that are whole, and the names of the others; everything stays where none is whole."""
    kept = [number for number, slot in enumerate(slots[1:]) if not has_problems(slots[0], slot)]
    if not kept:
        return slots, tuple(labels), []
    dropped = [slot.slot for number, slot in enumerate(slots[1:]) if number not in kept]
    return [slots[0], *(slots[1 + number] for number in kept)], tuple(labels[number] for number in kept), dropped


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
