"""Step 1.7's result as a node: what the strict pass picked becomes a dataset for the next training."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..flywheel import pristine
from ..flywheel.dataset import Dataset
from . import host, routes, sockets


class PristineSet(io.ComfyNode):
    """The best of the best for the next training: what you called good in the strict pass of the review (four questions, a reason for
    whatever falls). Copies these images to data/pristine and says how they stand against the success criteria. Waits silently while there
    are none."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_PristineSet",
            display_name="Pristine Set",
            category="FLENwheel/review",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input(
                    "reviewed",
                    tooltip="The good images of a Review Gate. They say which character and lap is meant; the picks of all its stages are gathered.",
                )
            ],
            outputs=[
                sockets.DATASET.Output("pristine", tooltip="The picked images: connect to Export Training Set."),
                io.String.Output("report", tooltip="How the set stands against the success criteria of step 1.7."),
            ],
            search_aliases=["strict pass", "picks", "best of"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when a pick is made or taken back."""
        return "".join(host.fingerprint(name, pristine.revision) for name in pristine.PICKED_FROM)

    @classmethod
    def execute(cls, reviewed: Dataset) -> io.NodeOutput:
        found = pristine.gather(reviewed.project)
        if not found.dataset.images:
            where = routes.review_address(reviewed.stage) + "&pass=strict"
            text = f"No image is picked yet: give verdicts in the strict pass, {where}"
            return io.NodeOutput(ExecutionBlocker(None), text, ui=host.shown(text))
        return io.NodeOutput(found.dataset, found.text(), ui=host.shown(found.text()))


NODES = [PristineSet]
