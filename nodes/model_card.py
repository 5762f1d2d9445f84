"""The model card of an editor: 23 standard images, made and judged."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..flywheel import candidates, modelcard, review
from ..flywheel.dataset import Dataset
from ..flywheel.editors import Editor
from ..flywheel.images import open_image
from ..flywheel.sheets import Tile, contact_sheet
from . import host, sockets
from .options import base_seed, megapixels

CELL_PX = 256


class ModelCard(io.ComfyNode):
    """Makes the 23 standard images of the character (5 angles x 4 expressions, 3 poses of the body) from one photo and says how many of them show
    the character as asked at the first try. Change the editor or its LoRAs and queue again to see which one is better: nothing that is made gets
    lost or made twice."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ModelCard",
            display_name="Model Card",
            category="FLENwheel/enrich",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input("dataset", tooltip="The photos of Curate Source."),
                sockets.EDITOR.Input("editor", tooltip="Whose card it is: an editor with the LoRAs you want to know about."),
                io.String.Input(
                    "photo",
                    default="",
                    tooltip="File name of the photo all 23 are made from, such as source_001. Empty: the best one, from the front and sharp.",
                ),
                base_seed("The seeds of the 23 images come from this. Keep it the same for cards you want to compare."),
                megapixels("Size of the images. 1.0 is about 1024 x 1024."),
                sockets.REFERENCES.Input(
                    "references", optional=True, tooltip="The character's face. Without it nothing is measured, and only you can judge."
                ),
            ],
            outputs=[
                sockets.DATASET.Output(
                    "images", tooltip="The 23 images. A Review Gate behind this asks you; your word counts before the machine's."
                ),
                io.Image.Output("sheet", tooltip="The card as one picture: a row for each expression, a column for each angle."),
                io.Int.Output("passed", tooltip="How many of the 23 show the character as asked, by your word or by measurement."),
                io.String.Output("report", tooltip="The share that passed, and every image that did not, with the reason."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["benchmark", "test images", "character sheet", "evaluate LoRA"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when one of its images is gone, or somebody has judged one."""
        return host.fingerprint("card", candidates.missing) + host.fingerprint("card", review.revision)

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        editor: Editor,
        photo: str,
        base_seed: int,
        megapixels: float,
        references: sockets.References | None = None,
    ) -> io.NodeOutput:
        report = host.Reporter(cls.hidden.unique_id, f"Model card of {editor.name}")
        made = modelcard.make(
            dataset,
            editor,
            references.faces if references else None,
            references.embedder if references else None,
            photo=photo,
            seed=base_seed,
            megapixels=megapixels,
            report=report,
        )
        title = f"{dataset.project.name}: {made.passed} of {len(made.shots)} passed, {editor.name}"
        tiles = [_tile(made, shot) for shot in made.shots if shot.image]
        sheet = contact_sheet(tiles, columns=5, cell_px=CELL_PX, title=title)
        report.end_with(sheet)
        shown, text = host.tensor(sheet), made.text()
        return io.NodeOutput(made.images, shown, made.passed, text, ui=host.shown(text, shown, cls))


def _tile(made: modelcard.ModelCard, shot: modelcard.Shot) -> Tile:
    assert shot.image
    picture = open_image(made.images.path(shot.image), at_least=CELL_PX).image
    return Tile(picture, f"{shot.slot.id}: {shot.why}", shot.verdict)


NODES = [ModelCard]
