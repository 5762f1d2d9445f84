"""A picture of pairs for people: one row per pair, target first, then its controls, with names, caption and problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from .images import open_image
from .pair_slots import Picture
from .pairs import Pair, PairedDataset
from .sheets import Tile, contact_sheet


def pair_sheet(
    dataset: PairedDataset, pairs: Sequence[Pair] | None = None, problems: Mapping[str, Iterable[str]] | None = None, *, cell_px: int = 256
) -> Image.Image:
    """Rows for the given pairs (all of them by default). `problems`: by stem; such rows are framed and say what is wrong.

    Raises:
        ImageError: a picture cannot be read.
    """
    shown = dataset.pairs if pairs is None else pairs
    told = problems or {}
    tiles = (tile for pair in shown for tile in _row(dataset, pair, list(told.get(pair.stem, ())), cell_px))
    slots = ", ".join(["target", *dataset.slots])
    title = f"{dataset.name}: {len(shown)} of {len(dataset.pairs)} pairs ({slots})"
    return contact_sheet(tiles, columns=1 + len(dataset.slots), cell_px=cell_px, title=title)


def _row(dataset: PairedDataset, pair: Pair, problems: Sequence[str], cell_px: int) -> Iterable[Tile]:
    mark = f"failed: {', '.join(problems)}" if problems else ""
    yield Tile(_small(pair.target, cell_px), f"{pair.target.name}: {pair.caption}", mark)
    for number, (slot, control) in enumerate(zip(dataset.slots, pair.controls, strict=True), 1):
        yield Tile(_small(control, cell_px), f"{control.name}: {slot} (Picture {number})", mark)


def _small(picture: Picture, cell_px: int) -> Image.Image:
    return open_image(picture.path, at_least=cell_px).image
