"""A reviewed set becomes a folder that trainers read."""

from __future__ import annotations

from comfy_api.latest import io

from ..flywheel.dataset import Dataset
from ..flywheel.export import export
from . import host, sockets


class ExportTrainingSet(io.ComfyNode):
    """Writes image + .txt caption folders (kohya style) and metadata.jsonl, with a report against the success criteria. Captions you edit in
    the .txt files are kept when you export again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ExportTrainingSet",
            display_name="Export Training Set",
            category="FLENwheel/train",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input("good", tooltip="The good images of the Review Gate."),
                io.Int.Input(
                    "repeats",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="How often a kohya trainer shows each image per epoch; it reads this from the folder's name.",
                ),
                sockets.DATASET.Input("photographs", optional=True, tooltip="The original photos, to be trained together with the edits."),
                sockets.DATASET.Input(
                    "pristine",
                    optional=True,
                    tooltip="The picks of the strict pass (Pristine Set), for the next LoRA; each image is taken once.",
                ),
            ],
            outputs=[
                io.String.Output("folder", tooltip="Where the training set is."),
                io.String.Output("report", tooltip="How the set stands against the success criteria."),
            ],
            search_aliases=["kohya", "dataset export", "captions"],
        )

    @classmethod
    def execute(cls, good: Dataset, repeats: int, photographs: Dataset | None = None, pristine: Dataset | None = None) -> io.NodeOutput:
        exported = export(good, photographs=photographs, pristine=pristine, repeats=repeats)
        return io.NodeOutput(str(exported.folder), exported.text(), ui=host.shown(exported.text()))


NODES = [ExportTrainingSet]
