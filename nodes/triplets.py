"""Step 2.1: corrections that were found good become training triplets."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..flywheel import review, triplets
from ..flywheel.pair_sheet import pair_sheet
from ..flywheel.project import Project
from . import host, sockets
from .pairs import PREVIEWED, listing_of


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
                    "held_out",
                    display_name="held out",
                    tooltip="The triplets to measure with. While there are none, Edit LoRA Settings trains without, and other nodes wait.",
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
        listing = host.fingerprint("corrections", lambda stage: listing_of(str(stage.folder)))
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
        return io.NodeOutput(created.train, created.held_out, text, ui=host.shown(text, sheet, cls))


NODES = [CreateCorrectionTriplets]
