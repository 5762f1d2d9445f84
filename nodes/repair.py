"""Step 2.1: what needs correction is made again, as the reviewer asked for it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..flywheel import corrections, repair, review
from ..flywheel.editors import Editor
from ..flywheel.project import Project
from . import host, sockets


class RepairCandidates(io.ComfyNode):
    """Carries out the repairs you ordered on the review page: the same photo with a better prompt, another seed, or only a painted spot. Each
    result is bound to the image it corrects and waits for your verdict like any other. Images you corrected by hand are picked up as well."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_RepairCandidates",
            display_name="Repair Candidates",
            category="FLENwheel/review",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.PROJECT.Input("project", tooltip="The character whose repairs are to be made."),
                sockets.EDITOR.Input("editor", tooltip="Who makes them. It may be another one than made the images."),
                io.Int.Input(
                    "limit",
                    default=0,
                    min=0,
                    max=10_000,
                    tooltip="Stop after this many new images; queue again for the next ones. 0 makes all.",
                ),
                io.Int.Input(
                    "tries_each",
                    default=0,
                    min=0,
                    max=16,
                    tooltip="Also try so many repairs of every image labelled needs correction for which nothing was ordered or corrected yet. The"
                    " prompt is proposed from your reasons and note. 0: only what you ordered.",
                ),
            ],
            outputs=[
                sockets.DATASET.Output("corrections", tooltip="Corrected images. Next: a Review Gate of their own."),
                io.String.Output("report", tooltip="Which repairs were made, and which could not be and why."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["inpaint", "fix", "correct", "redo"],
        )

    @classmethod
    def fingerprint_inputs(cls, tries_each: int = 0, **_: Any) -> str:
        """Runs again when a repair was ordered, taken back, or an image was corrected by hand; and, if it orders itself, with every verdict."""
        verdicts = [host.fingerprint(stage, review.revision) for stage in corrections.CORRECTED] if tries_each else []
        return "".join([host.fingerprint("corrections", repair.revision), *verdicts])

    @classmethod
    def execute(cls, project: Project, editor: Editor, limit: int, tries_each: int = 0) -> io.NodeOutput:
        reporter = host.Reporter(cls.hidden.unique_id, f"Repairing with {editor.name}")
        placed = repair.order_for_all(project, tries_each) if tries_each else []
        repaired = repair.carry_out(project, editor, report=reporter, limit=limit)
        failed = [f"Repair of {order.key} failed: {order.problem}" for order in repaired.orders if order.state == "failed"]
        ordered = [f"{len(placed)} images got an order of {tries_each} tries each."] if placed else []
        text = "\n".join(
            [f"{len(repaired.dataset.images)} corrections in {repaired.dataset.stage.folder}", *ordered, *repaired.notes, *failed]
        )
        return io.NodeOutput(repaired.dataset, text, ui=host.shown(text))


NODES = [RepairCandidates]
