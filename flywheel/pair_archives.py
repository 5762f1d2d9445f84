"""Archives and projects as a source of a set: what a zip holds goes to the slots it names; good images of a project go where they are wanted."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from . import review
from .candidates import Shelf
from .errors import DatasetError
from .images import SUFFIXES, write_whole
from .layouts import LAYOUTS, import_dataset
from .pair_sets import SLOTS, PairSet
from .pair_slots import TARGET
from .project import STAGES, Project, StageName
from .triplets import load_triplets

MOST_FILES, MOST_BYTES = 40_000, 8 << 30  # unpacked
LISTINGS = (".txt", ".json", ".jsonl", ".toml", ".yaml")
_CALLED = {
    TARGET: ("target", "targets", "result", "results", "end", "output", "outputs", "after"),
    "control_1": ("control_1", "control1", "control", "controls", "source", "sources", "start", "input", "inputs", "before"),
    "control_2": ("control_2", "control2"),
    "control_3": ("control_3", "control3"),
}


def slot_called(name: str, into: PairSet) -> str | None:
    """The slot a folder's name means: its own name, what people call it, or its label in this set."""
    plain = name.strip().casefold().replace(" ", "_").replace("-", "_")
    slots = into.about().slots
    for slot, about in zip(SLOTS, slots, strict=False):
        if about.label and plain == about.label.casefold().replace(" ", "_"):
            return slot
    return next((slot for slot, names in _CALLED.items() if plain in names), None)


def import_archive(into: PairSet, content: bytes, slot: str) -> list[str]:
    """Take in what a zip holds: a dataset of any layout known here, folders called like slots, or plain pictures, which go to `slot`.

    Returns what was done, in words.

    Raises:
        DatasetError: no zip, too much in it, or its files do not fit.
    """
    with tempfile.TemporaryDirectory(prefix="flenwheel-") as name:
        folder = Path(name) / "unpacked"
        _unpack(content, folder)
        while len(entries := [entry for entry in folder.iterdir() if entry.name != "__MACOSX"]) == 1 and entries[0].is_dir():
            if slot_called(entries[0].name, into):
                break
            folder = entries[0]
        named = {found: entry for entry in sorted(entries) if entry.is_dir() and (found := slot_called(entry.name, into))}
        layout = _layout(folder)
        if layout:
            dataset = import_dataset(folder, layout, unpack_to=Path(name) / "inner")
            return [f"{into.take_in(dataset)} pairs with {len(dataset.slots)} controls, from the layout of {layout}"]
        if named:
            return [_folder_into(into, found, entry) for found, entry in sorted(named.items(), key=lambda one: SLOTS.index(one[0]))]
        if _is_fal(folder):
            archive = Path(name) / "set.zip"
            write_whole(archive, content)
            return [f"{into.take_in(import_dataset(archive, unpack_to=Path(name) / 'inner'))} pairs from a fal archive"]
        return [_folder_into(into, slot, folder)]


def import_stage(into: PairSet, project: Project, stage: str, slot: str) -> list[str]:
    """Take in images of a project: its photos, what was found good in a stage, or its triplets as whole pairs.

    Returns what was done, in words.

    Raises:
        DatasetError: no such stage, nothing there, or a place is taken.
    """
    if stage == "qwen_training":
        return [f"{into.take_in(load_triplets(project))} triplets"]
    chosen: StageName | None = next((name for name in STAGES if name == stage), None)
    if chosen is None or not project.stage(chosen).folder.is_dir():
        raise DatasetError(f"{project.name} has no stage {stage!r}.")
    if chosen == "source":
        paths = [path for path in sorted(project.stage("source").folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    else:
        decided = review.labels(project)
        shelf = Shelf(project.stage(chosen))
        good = (
            (key, path)
            for key, path in shelf.files.items()
            if (event := decided.get(shelf.lineages[key].image_key)) and event.label == "good"
        )
        paths = [path for _, path in sorted(good, key=lambda one: one[1].name)]
    if not paths:
        raise DatasetError(f"There is no {'photo' if chosen == 'source' else 'image labelled good'} in {chosen} of {project.name}.")
    for path in paths:
        into.put(slot, path.name, path.read_bytes())
    return [f"{len(paths)} images of {project.name} into {slot}"]


def _unpack(content: bytes, folder: Path) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir() and _wanted(member.filename)]
            size = sum(member.file_size for member in members)
            if len(members) > MOST_FILES or size > MOST_BYTES:
                raise DatasetError(
                    f"The archive holds {len(members)} files with {size >> 20} MB; at most {MOST_FILES} files and {MOST_BYTES >> 20} MB."
                )
            if not members:
                raise DatasetError("The archive holds no pictures and no captions.")
            for member in members:
                write_whole(folder / PurePosixPath(member.filename), archive.read(member))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise DatasetError(f"This is no zip archive that can be read ({error}).") from error


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
    return not hidden and not outside and path.suffix.lower() in {*SUFFIXES, *LISTINGS}


def _layout(folder: Path) -> str:
    """A trainer's layout that is more than folders called like slots; those may be incomplete yet."""
    return next((name for name, layout in LAYOUTS.items() if name not in ("fal zip", "ai-toolkit") and layout.here(folder)), "")


def _is_fal(folder: Path) -> bool:
    names = [path.stem for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    return any(name.endswith("_end") for name in names) and any("_start" in name for name in names)


def _folder_into(into: PairSet, slot: str, folder: Path) -> str:
    while slot not in SLOTS[: len(into.about().slots)]:
        into.add_control()
    count = 0
    for path in _files(folder):
        if path.suffix.lower() in SUFFIXES or slot == TARGET:
            into.put(slot, path.name, path.read_bytes())
            count += 1
    return f"{count} files into {slot}"


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))
