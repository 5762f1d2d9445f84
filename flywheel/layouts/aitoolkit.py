"""ai-toolkit: target/, control_1/ … with equal names, and the dataset blocks for its YAML. The control folders lie beside the target's, never in
it: ai-toolkit would take what is inside for targets."""

from __future__ import annotations

from pathlib import Path

from ..errors import DatasetError
from ..pair_slots import scan
from ..pairs import MAX_CONTROLS
from .manifest import Found, Layout, Manifest, Out, quoted, slot_names


def write(manifest: Manifest, out: Out) -> None:
    slots = slot_names(len(manifest.slots))
    for item in manifest.items:
        out.text(f"target/{item.id}.txt", item.caption + "\n")
        for slot, picture in zip(slots, (item.target, *item.controls), strict=True):
            out.picture(f"{slot}/{item.id}.png", picture, item.target)
    controls = ["    control_path:", *(f"      - {quoted(out.folder / slot)}" for slot in slots[1:])] if manifest.slots else []
    lines = [
        "datasets:",
        f"  - folder_path: {quoted(out.folder / 'target')}",
        *controls,
        '    caption_ext: "txt"',
        f"    resolution: [{out.settings.resolution}]",
        f"    num_repeats: {out.settings.repeats}",
        "    cache_latents_to_disk: true",
        "    flip_x: false",
    ]
    out.text("dataset.yaml", "\n".join(lines) + "\n")


def read(folder: Path, _: Path) -> Found:
    present = [number for number in range(1, MAX_CONTROLS + 2) if (folder / f"control_{number}").is_dir()]
    if present != list(range(1, len(present) + 1)):
        named = ", ".join(f"control_{number}" for number in present)
        raise DatasetError(f"{folder} holds {named}: the control folders must be numbered from 1 without a gap.")
    return Found(tuple(scan(folder / slot, slot) for slot in slot_names(len(present))))


LAYOUT = Layout(
    "ai-toolkit",
    "target/, control_1/ … with equal names, and the dataset block for its YAML.",
    range(MAX_CONTROLS + 1),
    write,
    read,
    lambda folder: (folder / "target").is_dir() and not (folder / "control").is_dir() and not (folder / "metadata.json").is_file(),
)
