"""musubi-tuner: target/, control/<name>_0.png …, a dataset.toml that pairs by folder, and another that names every file in a JSONL.

Slot n is `_n` counted from 0, and `control_path_n` in the JSONL; the names hold no other underscore, which musubi would take for a slot.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DatasetError
from ..pair_slots import Slot, scan
from .manifest import Found, Layout, Manifest, Out, Row, found_in_rows, json_lines, quoted, read_rows, slot_names

TARGET, CONTROL, LISTING = "target", "control", "items.jsonl"
_NUMBERED = re.compile(r"control_path_(\d+)")


def write(manifest: Manifest, out: Out) -> None:
    rows: list[dict[str, str]] = []
    for item in manifest.items:
        out.picture(f"{TARGET}/{item.id}.png", item.target, item.target)
        out.text(f"{TARGET}/{item.id}.txt", item.caption + "\n")
        row = {"image_path": (out.folder / TARGET / f"{item.id}.png").as_posix(), "caption": item.caption}
        for number, control in enumerate(item.controls):
            name = f"{CONTROL}/{item.id}_{number}.png"
            out.picture(name, control, item.target)
            row[f"control_path_{number}"] = (out.folder / name).as_posix()
        rows.append(row)
    out.text(LISTING, json_lines(rows))
    control = [f"control_directory = {quoted(out.folder / CONTROL)}"] if manifest.slots else []
    by_folder = [f"image_directory = {quoted(out.folder / TARGET)}", *control, f"cache_directory = {quoted(out.folder / 'cache')}"]
    by_listing = [f"image_jsonl_file = {quoted(out.folder / LISTING)}", f"cache_directory = {quoted(out.folder / 'cache_jsonl')}"]
    for name, lines in (("dataset.toml", by_folder), ("dataset_jsonl.toml", by_listing)):
        out.text(name, "\n".join([*_general(out), "", "[[datasets]]", *lines, *_control_size(manifest, out)]) + "\n")


def _general(out: Out) -> list[str]:
    settings = out.settings
    return [
        "[general]",
        f"resolution = [{settings.resolution}, {settings.resolution}]",
        'caption_extension = ".txt"',
        f"batch_size = {settings.batch_size}",
        "enable_bucket = true",
        f"num_repeats = {settings.repeats}",
    ]


def _control_size(manifest: Manifest, out: Out) -> list[str]:
    """Its own bucket per control keeps the control's shape; without it musubi cuts the control to the target's."""
    return [f"control_resolution = [{out.settings.resolution}, {out.settings.resolution}]"] if manifest.slots else []


def read(folder: Path, _: Path) -> Found:
    if not (folder / TARGET).is_dir():
        return found_in_rows(folder, [_row(row, number) for number, row in enumerate(read_rows(folder / LISTING), 1)])
    target = scan(folder / TARGET, "target")
    if not (folder / CONTROL).is_dir():
        return Found((target,))
    numbered: dict[int, dict[str, list[Path]]] = {}
    problems: list[tuple[str, str]] = []
    for key, paths in scan(folder / CONTROL, "control").files.items():
        stem = max((stem for stem in target.files if key == stem or key.startswith(f"{stem}_")), key=len, default=None)
        suffix = "0" if stem is None or key == stem else key[len(stem) + 1 :]
        if stem is None:
            problems.append((key, f"{CONTROL}/{paths[0].name} has no target"))
        elif not suffix.isdecimal():
            problems.append((stem, f"{CONTROL}/{paths[0].name}: {suffix!r} after the name is no slot number"))
        else:
            numbered.setdefault(int(suffix), {}).setdefault(stem, []).extend(paths)
    names = slot_names(len(numbered))[1:]  # some count from 1: musubi goes by the order of the numbers, and so do we
    slots = [Slot(folder / CONTROL, name, numbered[number]) for name, number in zip(names, sorted(numbered), strict=True)]
    return Found((target, *slots), {}, tuple(problems))


def _row(row: dict[str, object], number: int) -> Row:
    image, caption = row.get("image_path"), row.get("caption")
    if not isinstance(image, str) or not isinstance(caption, str):
        raise DatasetError(f"{LISTING}, line {number}: image_path or caption is missing.")
    if isinstance(row.get("control_path"), str):
        row = {**row, "control_path_0": row["control_path"]}
    controls = {int(found[1]): path for name, path in row.items() if (found := _NUMBERED.fullmatch(name)) and isinstance(path, str)}
    slots = tuple(Path(controls[slot]) if slot in controls else None for slot in range(max(controls, default=-1) + 1))
    return Row(Path(image), slots, caption)


LAYOUT = Layout(
    "musubi-tuner",
    "target/ and control/<name>_0.png …, dataset.toml by folder and dataset_jsonl.toml by listing.",
    range(4),
    write,
    read,
    lambda folder: (folder / LISTING).is_file() or ((folder / TARGET).is_dir() and (folder / CONTROL).is_dir()),
)
