"""diffusers' example scripts and the built-in trainer: metadata.jsonl beside images/ and control_N/. Columns: image, control_1 …, prompt.

Read it with `--dataset_name <folder> --image_column image --cond_image_column control_1 --caption_column prompt`.
"""

from __future__ import annotations

from pathlib import Path

from .manifest import Found, Layout, Manifest, Out, Row, found_in_rows, inside, json_lines, read_rows, slot_names

LISTING = "metadata.jsonl"
CAPTION = "prompt"


def write(manifest: Manifest, out: Out) -> None:
    write_listing(manifest, out, "", CAPTION)


def write_listing(manifest: Manifest, out: Out, below: str, caption: str) -> None:
    """Pictures and a metadata.jsonl in the subfolder `below` ("" or ending in /), with the caption in a column of this name."""
    rows: list[dict[str, str]] = []
    for item in manifest.items:
        row: dict[str, str] = {}
        for slot, picture in zip(slot_names(len(manifest.slots)), (item.target, *item.controls), strict=True):
            name = f"{'images' if slot == 'target' else slot}/{item.id}.png"
            out.picture(below + name, picture, item.target)
            row["file_name" if slot == "target" else f"{slot}_file_name"] = name
        rows.append({**row, caption: item.caption})
    out.text(below + LISTING, json_lines(rows))


def read(folder: Path, _: Path) -> Found:
    return read_listing(folder)


def read_listing(folder: Path) -> Found:
    rows = list(read_rows(folder / LISTING))
    slots = [slot for slot in slot_names(4)[1:] if any(f"{slot}_file_name" in row for row in rows)]
    last = int(slots[-1].rpartition("_")[2]) if slots else 0
    return found_in_rows(folder, [_row(folder, row, last, number) for number, row in enumerate(rows, 1)])


def _row(folder: Path, row: dict[str, object], last: int, number: int) -> Row:
    where = f"{LISTING}, line {number}"
    named = [row.get(f"control_{slot}_file_name") for slot in range(1, last + 1)]
    controls = tuple(None if name is None else inside(folder, name, where) for name in named)
    caption = next((row[name] for name in (CAPTION, "text", "caption") if isinstance(row.get(name), str)), "")
    return Row(inside(folder, row.get("file_name"), where), controls, str(caption))


LAYOUT = Layout(
    "diffusers and built-in",
    "images/, control_1/ … and metadata.jsonl with file_name, control_1_file_name …, prompt.",
    range(4),
    write,
    read,
    lambda folder: (folder / LISTING).is_file(),
)
