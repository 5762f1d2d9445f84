"""Images that belong together: loading, looking at, mending and exporting them; corrections that become triplets."""

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

from ..flywheel import edit_families, pair_doctor, pairs, review, triplets
from ..flywheel.dataset import Dataset
from ..flywheel.errors import DatasetError
from ..flywheel.faces import embedder
from ..flywheel.images import content_key, png_bytes, value_key, write_whole
from ..flywheel.layouts import LAYOUTS, Settings, export, import_dataset, plan
from ..flywheel.pair_sheet import pair_sheet
from ..flywheel.pair_slots import TARGET
from ..flywheel.pairs import PairedDataset
from ..flywheel.project import Project
from ..flywheel.sheets import stacked
from . import host, sockets
from .options import widgets
from .pair_routes import sets, shelf_of_pairs

PREVIEWED = 12
ANY_MODEL, ANY_LAYOUT = "any", "recognise it"
REPORT_ONLY = "report only"


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
                io.String.Input(
                    "target",
                    default="",
                    tooltip="Folder with the results the model shall learn to make: the logo on the shirt. Full path, or a folder in input/.",
                ),
                io.String.Input(
                    "control_1", default="", tooltip="Folder with what each result was made from: the plain shirts. Picture 1 of the model."
                ),
                io.String.Input("control_2", default="", tooltip="Folder with a second picture per pair, such as the logos. Empty: none."),
                io.String.Input("control_3", default="", tooltip="Folder with a third picture per pair, such as poses. Empty: none."),
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
                io.Image.Input(
                    "target_images", optional=True, tooltip="Results from other nodes instead of a folder, paired by their order."
                ),
                io.Image.Input("control_1_images", optional=True, tooltip="As many pictures as there are results, in the same order."),
                io.Image.Input("control_2_images", optional=True, tooltip="As many pictures as there are results, in the same order."),
                io.Image.Input("control_3_images", optional=True, tooltip="As many pictures as there are results, in the same order."),
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
        listings = [_listing(folder) for folder in (target, control_1, control_2, control_3)]
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
    def execute(cls, pairs: PairedDataset, first: int, count: int, size: int) -> io.NodeOutput:
        chosen = list(islice(pairs.pairs, first - 1, first - 1 + count))
        if not chosen:
            raise DatasetError(f"The dataset has {len(pairs.pairs)} pairs; there is none from number {first} on.")
        sheet = host.tensor(pair_sheet(pairs, chosen, cell_px=size))
        return io.NodeOutput(sheet, ui=host.shown(f"{len(chosen)} of {len(pairs.pairs)} pairs", sheet, cls))


class PairDoctor(io.ComfyNode):
    """Looks into each pair: did the target slide or grow against its control (edit models do that), do shapes differ, are both the same picture, are
    they swapped, did colours shift, is it blurred? Compares the target with control 1. Originals are never changed: mended pairs are new files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_PairDoctor",
            display_name="Pair Doctor",
            category="FLENwheel/pairs",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.PAIRS.Input("pairs", tooltip="Pairs to examine."),
                io.Combo.Input(
                    "fix",
                    options=[REPORT_ONLY, "align", "align and drop"],
                    default=REPORT_ONLY,
                    tooltip="align: put the control into the target's framing, to a fraction of a pixel. drop: leave out what cannot be mended.",
                ),
                io.Boolean.Input(
                    "faces", default=False, tooltip="Also compare the faces of target and control. Slow; needs the face engine."
                ),
                *widgets(pair_doctor.Limits),
            ],
            outputs=[
                sockets.PAIRS.Output("pairs", tooltip="The pairs, mended if asked for."),
                io.Image.Output(
                    "overlays", tooltip="Control in red on target in cyan, as it is and aligned, for the pairs that slid the most."
                ),
                io.String.Output("report", tooltip="Every finding with its figure, and what helps."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["alignment", "pixel shift", "zoom", "registration", "validate pairs"],
        )

    @classmethod
    def execute(cls, pairs: PairedDataset, fix: str, faces: bool, **limits: float) -> io.NodeOutput:
        report = host.Reporter(cls.hidden.unique_id, "Examining pairs")
        home = shelf_of_pairs()
        checkup = pair_doctor.examine(
            pairs,
            pair_doctor.Limits(**limits),
            cache=home / "measured",
            embedder=embedder() if faces else None,
            report=report.count,
        )
        mended = pair_doctor.mend(checkup, home / "mended", triplets.FIXES[fix]) if fix != REPORT_ONLY else pairs
        text = "\n".join([checkup.text(), *mended.notes[len(pairs.notes) :]])
        overlays = host.tensor(_overlays(checkup))
        return io.NodeOutput(mended, overlays, text, ui=host.shown(text, overlays, cls))


class CreateCorrectionTriplets(io.ComfyNode):
    """Step 2.1: corrections that you labelled good become training triplets (photo, instruction, corrected image) for the edit LoRA, in
    data/qwen_training/v1/triplets.json. Corrections come from the repair queue, from uploads, or from files you saved into data/corrections/v1/."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_CreateCorrectionTriplets",
            display_name="Create Correction Triplets",
            category="FLENwheel/pairs",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.PROJECT.Input("project", tooltip="The character whose corrections are meant."),
                io.Combo.Input(
                    "direction",
                    options=list(triplets.DIRECTIONS),
                    default="forward",
                    tooltip="forward: photo to edit. reverse: edit back to the real photo, only for lighting and style, where that can be known.",
                ),
                io.Int.Input(
                    "positives",
                    default=0,
                    min=0,
                    max=10_000,
                    tooltip="Add up to this many edits that were good at the first try, so that the model also sees what it does well.",
                ),
                io.Float.Input(
                    "held_out",
                    default=0.1,
                    min=0.0,
                    max=0.5,
                    step=0.05,
                    tooltip="Share of the photos kept from training, to measure with afterwards. All triplets of a photo stay together.",
                ),
                io.Combo.Input(
                    "doctor",
                    options=list(triplets.DOCTORS),
                    default="align",
                    tooltip="What the pair doctor does: align what slid, also drop what cannot be mended, only warn, or nothing.",
                ),
                io.String.Input(
                    "template",
                    default="",
                    tooltip="How an instruction is written; empty: {instruction}, {keep}. {keep} is what must stay, from the review's reasons.",
                ),
                io.String.Input("keep", default="", tooltip="Words for {keep} instead of those that belong to the reasons."),
                io.Boolean.Input(
                    "with_token",
                    default=False,
                    tooltip="Leave the instance token in the instructions. Usually off: an edit LoRA shall keep any face.",
                ),
            ],
            outputs=[
                sockets.PAIRS.Output("train", tooltip="The triplets to train with. Next: Export Dataset."),
                sockets.PAIRS.Output(
                    "held_out", display_name="held out", tooltip="The triplets to measure with; nothing while there are none."
                ),
                io.String.Output("report", tooltip="How many, what is missing to a useful number, what the pair doctor found."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["edit lora", "corrections", "flywheel 2", "source prompt target"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when a verdict changes or a correction comes."""
        stages = ("enriched", "corrections", "synthetic")
        listing = host.fingerprint("corrections", lambda stage: _listing(str(stage.folder)))
        return "".join([*(host.fingerprint(name, review.revision) for name in stages), listing])

    @classmethod
    def execute(
        cls,
        project: Project,
        direction: triplets.Direction,
        positives: int,
        held_out: float,
        doctor: triplets.Doctor,
        template: str,
        keep: str,
        with_token: bool,
    ) -> io.NodeOutput:
        recipe = triplets.Recipe(direction, positives, held_out, with_token, doctor, template.strip(), keep.strip())
        report = host.Reporter(cls.hidden.unique_id, "Examining triplets")
        created = triplets.create_triplets(project, recipe, report=report.count)
        text = created.text()
        host.log.info("Triplets: %s", text.splitlines()[0])
        sheet = host.tensor(pair_sheet(created.train, created.train.pairs[:PREVIEWED], cell_px=192))
        return io.NodeOutput(created.train, created.held_out or ExecutionBlocker(None), text, ui=host.shown(text, sheet, cls))


class ExportDataset(io.ComfyNode):
    """Writes pairs, or captioned images, in the layout of a trainer: upright RGB pictures under safe names, captions, and the trainer's own dataset
    file. The same dataset gives the same folder, byte for byte; another one gives another folder, so no trainer's cache can go stale."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ExportDataset",
            display_name="Export Dataset",
            category="FLENwheel/pairs",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                io.MultiType.Input("dataset", [sockets.PAIRS, sockets.DATASET], tooltip="Pairs, or a dataset of captioned images."),
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    default="musubi-tuner",
                    tooltip="; ".join(f"{one.name}: {one.help}" for one in LAYOUTS.values()),
                ),
                io.Combo.Input(
                    "model",
                    options=[ANY_MODEL, *(family.name for family in edit_families.families())],
                    default=ANY_MODEL,
                    tooltip="The model to be trained. What it cannot learn from is refused here and not after an hour: number of controls, no edits.",
                ),
                io.Float.Input(
                    "megapixels",
                    default=0.0,
                    min=0.0,
                    max=4.0,
                    step=0.1,
                    tooltip="Size of the pictures; 0 leaves them as they are. Nothing is ever cropped, so pairs stay on each other.",
                ),
                io.Int.Input(
                    "resolution", default=1024, min=256, max=4096, step=64, tooltip="Training resolution written into the trainer's file."
                ),
                io.Int.Input("repeats", default=1, min=1, max=1000, tooltip="How often the trainer shows each example per epoch."),
                io.String.Input("folder", default="", tooltip="Where to write. Empty: output/flenwheel/_pairs/exports."),
            ],
            outputs=[
                io.String.Output("folder", tooltip="The folder that was written."),
                io.String.Output("report", tooltip="What was written, and what was done to the pictures."),
            ],
            search_aliases=["kohya", "musubi", "ai-toolkit", "fal", "huggingface", "diffusers", "training set"],
        )

    @classmethod
    def execute(
        cls, dataset: PairedDataset | Dataset, layout: str, model: str, megapixels: float, resolution: int, repeats: int, folder: str
    ) -> io.NodeOutput:
        chosen = pairs.captioned(dataset) if isinstance(dataset, Dataset) else dataset
        if model != ANY_MODEL:
            edit_families.refuse_unsuitable(chosen, model, layout)
        home = Path(folder.strip()).expanduser() if folder.strip() else shelf_of_pairs() / "exports"
        settings = Settings(megapixels=megapixels, resolution=resolution, repeats=repeats)
        exported = export(plan(chosen), (host.home() / home).resolve(), layout, settings)
        text = exported.text()
        host.log.info("Exported %s", text.splitlines()[0])
        return io.NodeOutput(str(exported.folder), text, ui=host.shown(text))


def _given(folders: Sequence[str], received: Sequence[torch.Tensor | None]) -> list[Path]:
    """The folder of each slot: named in a widget, or made of what came over the socket. Slots must be filled from the first.

    Raises:
        DatasetError: a slot is empty before a filled one, or filled twice.
    """
    names = TARGET, *(f"control_{number}" for number in range(1, pairs.MAX_CONTROLS + 1))
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


def _overlays(checkup: pair_doctor.Checkup) -> Any:
    """The pairs that slid the most, each against the control it slid against; the first pair where none did."""
    worst = sorted((one for one in checkup.findings if one.kind == "shift"), key=lambda one: -one.value)
    chosen = [(one.stem, one.slot) for one in worst[:4]] or [(next(iter(checkup.measured), checkup.dataset.pairs[0].stem), "control_1")]
    shown = {pair.stem: pair for pair in checkup.dataset.pairs}
    drawn = [pair_doctor.overlay(shown[stem], checkup.moved(stem, slot), slot=slot) for stem, slot in chosen if stem in checkup.measured]
    return stacked(drawn)


def _input_path(text: str) -> Path:
    """A folder or file named in a widget: absolute, or below ComfyUI's input folder.

    Raises:
        DatasetError: nothing was named.
    """
    cleaned = text.strip().strip('"')
    if not cleaned:
        raise DatasetError("No dataset is named: type the full path of its folder or zip, or a name inside ComfyUI's input folder.")
    return Path(folder_paths.get_input_directory()) / Path(cleaned).expanduser()


def _listing(folder: str) -> list[list[object]]:
    """Names, sizes and times of the files of a folder; empty where there is none."""
    if not folder.strip():
        return []
    path = Path(folder_paths.get_input_directory()) / Path(folder.strip().strip('"')).expanduser()
    return _deep_listing(path, deep=False)


def _deep_listing(path: Path, *, deep: bool = True) -> list[list[object]]:
    files = [path] if path.is_file() else path.rglob("*") if deep else path.iterdir() if path.is_dir() else ()
    return sorted([os.fspath(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file())


NODES = [LoadPairedDataset, ImportPairedDataset, PairSheet, PairDoctor, CreateCorrectionTriplets, ExportDataset]
