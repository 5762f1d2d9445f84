"""Hugging Face imagefolder: train/metadata.jsonl, which `datasets.load_dataset` opens and the hub shows. Columns: image, control_1 …, text."""

from __future__ import annotations

from pathlib import Path

from . import diffusers
from .manifest import Found, Layout, Manifest, Out

SPLIT = "train"


def write(manifest: Manifest, out: Out) -> None:
    diffusers.write_listing(manifest, out, f"{SPLIT}/", "text")


def read(folder: Path, _: Path) -> Found:
    return diffusers.read_listing(folder / SPLIT)


LAYOUT = Layout(
    "Hugging Face imagefolder",
    "train/ with metadata.jsonl: opens with datasets.load_dataset, can be put on the hub as it is.",
    range(4),
    write,
    read,
    lambda folder: (folder / SPLIT / diffusers.LISTING).is_file(),
)
