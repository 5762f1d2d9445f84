"""Writing any dataset in the layout of a trainer."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..flywheel import edit_families, pairs
from ..flywheel.dataset import Dataset
from ..flywheel.layouts import LAYOUTS, Settings, export, plan
from ..flywheel.pairs import PairedDataset
from . import host, sockets
from .pair_routes import shelf_of_pairs

ANY_MODEL = "any"


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
        cls,
        dataset: PairedDataset | Dataset | None,
        layout: str,
        model: str,
        megapixels: float,
        resolution: int,
        repeats: int,
        folder: str,
    ) -> io.NodeOutput:
        if dataset is None:
            return io.NodeOutput(*[ExecutionBlocker(None)] * 2, ui=host.shown(sockets.NO_PAIRS))
        chosen = pairs.captioned(dataset) if isinstance(dataset, Dataset) else dataset
        if model != ANY_MODEL:
            edit_families.refuse_unsuitable(chosen, model, layout)
        home = Path(folder.strip()).expanduser() if folder.strip() else shelf_of_pairs() / "exports"
        settings = Settings(megapixels=megapixels, resolution=resolution, repeats=repeats)
        exported = export(plan(chosen), (host.home() / home).resolve(), layout, settings)
        text = exported.text()
        host.log.info("Exported %s", text.splitlines()[0])
        return io.NodeOutput(str(exported.folder), text, ui=host.shown(text))


NODES = [ExportDataset]
