"""mflux: data/<name>_out.png, <name>_in.png, <name>_in.txt for edits (one control); <name>.png and <name>.txt for captioned images."""

from __future__ import annotations

from pathlib import Path

from ..pair_slots import Slot, match_key, scan
from .manifest import Found, Layout, Manifest, Out

FOLDER = "data"
ENDS = ("_out", "_in")


def write(manifest: Manifest, out: Out) -> None:
    for item in manifest.items:
        if not item.controls:
            out.picture(f"{FOLDER}/{item.id}.png", item.target, item.target)
            out.text(f"{FOLDER}/{item.id}.txt", item.caption + "\n")
            continue
        out.picture(f"{FOLDER}/{item.id}_out.png", item.target, item.target)
        out.picture(f"{FOLDER}/{item.id}_in.png", item.controls[0], item.target)
        out.text(f"{FOLDER}/{item.id}_in.txt", item.caption + "\n")


def read(folder: Path, _: Path) -> Found:
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    everything = scan(folder, "target")
    for key in [key for key in everything.files if key.startswith("preview")]:
        del everything.files[key]  # previews, not data
    if not any(key.endswith(ENDS) for key in everything.files):
        return Found((everything,))
    slots = (Slot(folder, "target", {}), Slot(folder, "control_1", {}))
    problems: list[tuple[str, str]] = []
    for key, paths in everything.files.items():
        slot = next((slot for slot, end in zip(slots, ENDS, strict=True) if key.endswith(end)), None)
        if slot is None:
            problems.append((key, f"{paths[0].name} is neither …_out nor …_in"))
            continue
        stem = paths[0].stem[: -len(ENDS[slots.index(slot)])]
        slot.files.setdefault(match_key(stem), []).extend(paths)
        slot.stems[match_key(stem)] = stem
    for key, paths in everything.texts.items():
        slots[0].texts.setdefault(key.removesuffix("_in"), []).extend(paths)
    return Found(slots, {}, tuple(problems))


def _here(folder: Path) -> bool:
    data = folder / FOLDER
    return data.is_dir() and any(path.suffix == ".txt" for path in data.iterdir())


LAYOUT = Layout("mflux", "data/<name>_out.png, _in.png, _in.txt; one control at most.", range(2), write, read, _here)
