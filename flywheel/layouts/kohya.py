"""kohya sd-scripts: <repeats>_<name>/ with .txt captions, and a dataset.toml. One control becomes conditioning_data_dir, as its ControlNet and
Control-LoRA trainers read it; sd-scripts has no trainer for more."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DatasetError
from ..pair_slots import Slot, scan
from .manifest import Found, Layout, Manifest, Out, file_name, quoted

CONTROL = "conditioning"
_REPEATS = re.compile(r"\d+_.+")


def write(manifest: Manifest, out: Out) -> None:
    settings = out.settings
    images = f"{settings.repeats}_{file_name(manifest.name)}"
    for item in manifest.items:
        out.picture(f"{images}/{item.id}.png", item.target, item.target)
        out.text(f"{images}/{item.id}.txt", item.caption + "\n")
        for control in item.controls:
            out.picture(f"{CONTROL}/{item.id}.png", control, item.target)
    conditioning = [f"  conditioning_data_dir = {quoted(out.folder / CONTROL)}"] if manifest.slots else []
    lines = [
        "[general]",
        'caption_extension = ".txt"',
        "",
        "[[datasets]]",
        f"resolution = {settings.resolution}",
        f"batch_size = {settings.batch_size}",
        "enable_bucket = true",
        "bucket_reso_steps = 64",
        "",
        "  [[datasets.subsets]]",
        f"  image_dir = {quoted(out.folder / images)}",
        *conditioning,
        f"  num_repeats = {settings.repeats}",
    ]
    out.text("dataset.toml", "\n".join(lines) + "\n")


def read(folder: Path, _: Path) -> Found:
    images = _image_folders(folder)
    if len(images) != 1:
        named = ", ".join(path.name for path in images) or "none"
        raise DatasetError(f"{folder} should hold exactly one folder called like 10_name; it holds {named}.")
    controls = [scan(folder / CONTROL, "control_1")] if (folder / CONTROL).is_dir() else list[Slot]()
    return Found((scan(images[0], "target"), *controls))


def _image_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _REPEATS.fullmatch(path.name))


LAYOUT = Layout(
    "kohya sd-scripts",
    "Folders <repeats>_<name> with .txt captions and dataset.toml; one control at most, as conditioning images.",
    range(2),
    write,
    read,
    lambda folder: bool(_image_folders(folder)),
)
