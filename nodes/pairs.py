"""Images that belong together: loading them from folders, from a set built in the panel, from a trainer's layout; looking at them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..flywheel import pairs
from ..flywheel.errors import DatasetError
from ..flywheel.images import content_key, png_bytes, value_key, write_whole
from ..flywheel.layouts import LAYOUTS, import_dataset
from ..flywheel.pair_sheet import pair_sheet
from ..flywheel.pairs import PairedDataset
from . import host, sockets
from .pair_routes import sets, shelf_of_pairs

PREVIEWED = 12
ANY_LAYOUT = "recognise it"
SLOT_HOLDS = {
    "target": "Folder with the results the model shall learn to make: the logo on the shirt. Full path, or a folder in input/. All empty: the panel.",
    "control_1": "Folder with what each result was made from: the plain shirts. Picture 1 of the model.",
    "control_2": "Folder with a second picture per pair, such as the logos. Empty: none.",
    "control_3": "Folder with a third picture per pair, such as poses. Empty: none.",
}
BY_ORDER = "Pictures from other nodes instead of a folder, paired by their order: as many as there are results."


class LoadPairedDataset(io.ComfyNode):
    """Loads a target folder and one to three control folders for training an image editor. Files belong together when their names are the same,
    whatever their ending and the case of their letters: 01.png in the target folder pairs with 01.jpg in control 1. Anything missing, doubled or
    unreadable stops here, and everything is named at once: nothing can slip into another's place. Leave all folders empty to use the set of this
    name that was built in the panel."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_LoadPairedDataset",
            display_name="Load Paired Dataset",
            category="FLENwheel/pairs",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "name",
                    default="my pairs",
                    tooltip="Name of the dataset and of the set in the panel below; it also names the folders of its exports.",
                ),
                *(io.String.Input(slot, default="", tooltip=holds) for slot, holds in SLOT_HOLDS.items()),
                io.String.Input(
                    "labels", default="", tooltip="What the control folders hold, for people: shirts, logos. Separated by commas."
                ),
                io.String.Input(
                    "instruction",
                    default="",
                    multiline=True,
                    tooltip="One instruction for every pair without a caption of its own (a .txt of the target's name, or metadata.jsonl).",
                ),
                io.String.Input(
                    "trigger_word",
                    default="",
                    tooltip="A word that shall call the effect. It replaces [trigger] in captions, or is put in front of those without it.",
                ),
                io.Combo.Input(
                    "on_problem",
                    options=list(pairs.ON_PROBLEM),
                    default="refuse",
                    tooltip="When names do not fit: stop and list everything, leave out the pairs concerned, or leave out the control folder.",
                ),
                *(io.Image.Input(f"{slot}_images", optional=True, tooltip=BY_ORDER) for slot in SLOT_HOLDS),
            ],
            outputs=[
                sockets.PAIRS.Output("pairs", tooltip="Next: Pair Doctor, Pair Sheet, Export Dataset."),
                io.Image.Output("sheet", tooltip="The first pairs, one row each."),
                io.String.Output("report", tooltip="How many pairs, where their captions come from, what was left out."),
            ],
            search_aliases=["image edit training", "control images", "kontext dataset", "qwen edit dataset", "before after pairs"],
        )

    @classmethod
    def fingerprint_inputs(cls, target: str, control_1: str, control_2: str, control_3: str, **inputs: Any) -> str:
        """Changes when a file in one of the folders does."""
        listings = [listing_of(folder) for folder in (target, control_1, control_2, control_3)]
        built = sets.get(str(inputs.get("name", "")))
        words = sorted((name, str(value)) for name, value in inputs.items() if isinstance(value, str))
        return value_key([listings, words, built.listing() if built else []])

    @classmethod
    def execute(
        cls,
        name: str,
        target: str,
        control_1: str,
        control_2: str,
        control_3: str,
        labels: str,
        instruction: str,
        trigger_word: str,
        on_problem: pairs.OnProblem,
        target_images: torch.Tensor | None = None,
        control_1_images: torch.Tensor | None = None,
        control_2_images: torch.Tensor | None = None,
        control_3_images: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        received = (target_images, control_1_images, control_2_images, control_3_images)
        folders = (target, control_1, control_2, control_3)
        built = None if any(map(str.strip, folders)) or any(images is not None for images in received) else sets.get(name)
        read = built.dataset if built else partial(pairs.load_pairs, *_from_first(_given(folders, received)), name=name)
        dataset = read(labels=labels.split(","), instruction=instruction, trigger_word=trigger_word, on_problem=on_problem)
        text = _described(dataset)
        host.log.info("Loaded %s", text.splitlines()[0])
        sheet = host.tensor(pair_sheet(dataset, dataset.pairs[:PREVIEWED], cell_px=192))
        return io.NodeOutput(dataset, sheet, text, ui=host.shown(text, sheet, cls))


class ImportPairedDataset(io.ComfyNode):
    """Reads a dataset that already lies in a trainer's layout, ours or anybody's: kohya, musubi-tuner, ai-toolkit, mflux, diffusers, DiffSynth-Studio,
    a fal zip or a Hugging Face imagefolder. As strict as Load Paired Dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ImportPairedDataset",
            display_name="Import Paired Dataset",
            category="FLENwheel/pairs",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "path", default="", tooltip="Folder or .zip of the dataset: a full path, or a name inside ComfyUI's input folder."
                ),
                io.Combo.Input(
                    "layout",
                    options=[ANY_LAYOUT, *LAYOUTS],
                    default=ANY_LAYOUT,
                    tooltip="The trainer it was laid out for. Usually it can be recognised.",
                ),
                io.String.Input(
                    "instruction", default="", multiline=True, tooltip="One instruction for every pair that has no caption of its own."
                ),
            ],
            outputs=[
                sockets.PAIRS.Output("pairs", tooltip="Next: Pair Doctor, Pair Sheet, Export Dataset."),
                io.String.Output("report", tooltip="How many pairs, and what they hold."),
            ],
            search_aliases=["fal zip", "musubi", "ai-toolkit", "kohya", "diffsynth"],
        )

    @classmethod
    def fingerprint_inputs(cls, path: str, layout: str, instruction: str) -> str:
        """Changes when a file in the folder does."""
        return value_key([_deep_listing(_input_path(path)) if path.strip() else [], layout, instruction])

    @classmethod
    def execute(cls, path: str, layout: str, instruction: str) -> io.NodeOutput:
        found = _input_path(path)
        unpacked = shelf_of_pairs() / "unpacked" / (f"{found.stem}-{content_key(found)}" if found.is_file() else found.name)
        dataset = import_dataset(found, "" if layout == ANY_LAYOUT else layout, instruction=instruction, unpack_to=unpacked)
        text = _described(dataset)
        return io.NodeOutput(dataset, text, ui=host.shown(text))


class PairSheet(io.ComfyNode):
    """Shows pairs, one row each: target, controls, caption."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_PairSheet",
            display_name="Pair Sheet",
            category="FLENwheel/pairs",
            description="Shows pairs on one sheet, one row each: the target, its control images, their names and the caption.",
            is_output_node=True,
            inputs=[
                sockets.PAIRS.Input("pairs", tooltip="Pairs to show."),
                io.Int.Input("first", default=1, min=1, max=1_000_000, tooltip="Number of the first pair, counted from 1."),
                io.Int.Input("count", default=20, min=1, max=200, tooltip="How many pairs to show."),
                io.Int.Input("size", default=256, min=64, max=1024, tooltip="Size of one image on the sheet, in pixels."),
            ],
            outputs=[io.Image.Output("sheet", tooltip="The sheet as one image.")],
            search_aliases=["contact sheet", "grid", "compare"],
        )

    @classmethod
    def execute(cls, pairs: PairedDataset | None, first: int, count: int, size: int) -> io.NodeOutput:
        if pairs is None:
            return io.NodeOutput(ExecutionBlocker(None), ui=host.shown(sockets.NO_PAIRS))
        chosen = list(islice(pairs.pairs, first - 1, first - 1 + count))
        if not chosen:
            raise DatasetError(f"The dataset has {len(pairs.pairs)} pairs; there is none from number {first} on.")
        sheet = host.tensor(pair_sheet(pairs, chosen, cell_px=size))
        return io.NodeOutput(sheet, ui=host.shown(f"{len(chosen)} of {len(pairs.pairs)} pairs", sheet, cls))


def _given(folders: Sequence[str], received: Sequence[torch.Tensor | None]) -> list[Path]:
    """The folder of each slot: named in a widget, or made of what came over the socket. Slots must be filled from the first.

    Raises:
        DatasetError: a slot is empty before a filled one, or filled twice.
    """
    names = tuple(SLOT_HOLDS)
    filled = [bool(folder.strip()) or images is not None for folder, images in zip(folders, received, strict=True)]
    count = 1 + max((number for number, full in enumerate(filled) if full), default=0)
    problems = [
        f"{name} is empty: name a folder or connect images" for name, full in zip(names, filled[: max(2, count)], strict=False) if not full
    ]
    problems += [
        f"{name} has a folder and connected images: use one of them"
        for name, folder, images in zip(names, folders, received, strict=True)
        if folder.strip() and images is not None
    ]
    if problems:
        raise DatasetError("The slots of the paired dataset are not filled in order:", problems)
    return [
        host.folder(folder) if images is None else _saved(images) for folder, images in zip(folders[:count], received[:count], strict=True)
    ]


def _from_first(folders: Sequence[Path]) -> tuple[Path, Sequence[Path]]:
    return folders[0], folders[1:]


def _saved(images: torch.Tensor) -> Path:
    """Pictures of a socket as numbered files, in a folder named by their content."""
    pngs = [png_bytes(image) for image in host.pictures(images)]
    folder = shelf_of_pairs() / "received" / value_key([content_key(png) for png in pngs])
    for number, png in enumerate(pngs, 1):
        path = folder / f"{number:04}.png"
        if not path.is_file():
            write_whole(path, png)
    return folder


def _described(dataset: PairedDataset) -> str:
    slots = f" with {', '.join(dataset.slots)}" if dataset.slots else ", without controls"
    return "\n".join([f"{dataset.name}: {len(dataset.pairs)} pairs{slots}.", *dataset.notes])


def _input_path(text: str) -> Path:
    """A folder or file named in a widget: absolute, or below ComfyUI's input folder.

    Raises:
        DatasetError: nothing was named.
    """
    cleaned = text.strip().strip('"')
    if not cleaned:
        raise DatasetError("No dataset is named: type the full path of its folder or zip, or a name inside ComfyUI's input folder.")
    return Path(folder_paths.get_input_directory()) / Path(cleaned).expanduser()


def listing_of(folder: str) -> list[list[object]]:
    """Names, sizes and times of the files of a folder; empty where there is none."""
    if not folder.strip():
        return []
    path = Path(folder_paths.get_input_directory()) / Path(folder.strip().strip('"')).expanduser()
    return _deep_listing(path, deep=False)


def _deep_listing(path: Path, *, deep: bool = True) -> list[list[object]]:
    files = [path] if path.is_file() else path.rglob("*") if deep else path.iterdir() if path.is_dir() else ()
    return sorted([os.fspath(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file())


NODES = [LoadPairedDataset, ImportPairedDataset, PairSheet]
