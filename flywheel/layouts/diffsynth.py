"""DiffSynth-Studio: metadata.json with image, edit_image (a list), prompt; paths relative to --dataset_base_path, which is the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .manifest import Found, Layout, Manifest, Out, Row, found_in_rows, inside, read_rows, slot_names

LISTING = "metadata.json"


def write(manifest: Manifest, out: Out) -> None:
    rows: list[dict[str, Any]] = []
    for item in manifest.items:
        names = [f"{slot}/{item.id}.png" for slot in slot_names(len(manifest.slots))]
        for name, picture in zip(names, (item.target, *item.controls), strict=True):
            out.picture(name, picture, item.target)
        edited = {"edit_image": names[1:]} if manifest.slots else {}
        rows.append({"image": names[0], **edited, "prompt": item.caption})
    out.text(LISTING, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path, _: Path) -> Found:
    return found_in_rows(folder, [_row(folder, row, number) for number, row in enumerate(read_rows(folder / LISTING), 1)])


def _row(folder: Path, row: dict[str, Any], number: int) -> Row:
    where = f"{LISTING}, entry {number}"
    edited = row.get("edit_image", [])
    controls = tuple(inside(folder, name, where) for name in ([edited] if isinstance(edited, str) else edited))
    return Row(inside(folder, row.get("image"), where), controls, str(row.get("prompt") or ""))


LAYOUT = Layout(
    "DiffSynth-Studio",
    "metadata.json with image, edit_image list and prompt.",
    range(4),
    write,
    read,
    lambda folder: (folder / LISTING).is_file() and (folder / "target").is_dir(),
)
