"""Step 1.3: a person decides. The gate finishes at once; the verdicts are the state."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..flywheel import enrich, review
from ..flywheel.candidates import Shelf
from ..flywheel.dataset import Dataset
from ..flywheel.errors import ReviewPending
from . import desks, host, routes, sockets

STOP, PASS, ERROR = "stop", "pass labelled only", "error"


class ReviewGate(io.ComfyNode):
    """You decide which images are good. While images are undecided, everything behind this node waits without holding the queue: label them on
    the review page (button below), now or next week, then queue again or press Continue there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ReviewGate",
            display_name="Review Gate",
            category="FLENwheel/review",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input("candidates", tooltip="Images to decide on."),
                io.Combo.Input(
                    "when_pending",
                    options=[STOP, PASS, ERROR],
                    default=STOP,
                    tooltip="While images are undecided: stop quietly here, pass on what is labelled, or fail with an error (for scripts).",
                ),
            ],
            outputs=[
                sockets.DATASET.Output("good", tooltip="Images labelled good."),
                sockets.DATASET.Output(
                    "needs_correction", display_name="needs correction", tooltip="Images worth repairing: data for the edit wheel."
                ),
                sockets.DATASET.Output("rejected", tooltip="Images not to be used."),
                io.String.Output("report", tooltip="The counts."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            search_aliases=["label", "curate", "human in the loop", "approve"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when a verdict changes, whether it came from the page, a script or the file manager."""
        return "".join(host.fingerprint(name, review.revision) for name in desks.REVIEWED)

    @classmethod
    def execute(cls, candidates: Dataset, when_pending: str) -> io.NodeOutput:
        review.open_review(candidates, _resume(cls.hidden.prompt, cls.hidden.extra_pnginfo))
        verdicts = review.verdicts(candidates)
        enrich.write_metadata(Shelf(candidates.stage))
        counts = verdicts.counts()
        state = {**routes.review_state(candidates.stage, counts), "address": routes.review_address(candidates.stage)}
        text = _report(counts, state["address"])
        host.broadcast("flenwheel.review", {**state, "node": cls.hidden.unique_id})
        shown = {**host.shown(text), "flen_review": [state]}
        if counts["undecided"] and when_pending == ERROR:
            raise ReviewPending(
                f"{counts['undecided']} of {counts['total']} images are undecided. Label them at {state['address']}, then queue again."
            )
        if counts["undecided"] and when_pending == STOP:
            return io.NodeOutput(*[ExecutionBlocker(None)] * 4, ui=shown)
        return io.NodeOutput(verdicts.good, verdicts.needs_correction, verdicts.reject, text, ui=shown)


def _resume(prompt: Any, extra_pnginfo: Any) -> dict[str, Any]:
    """The graph to queue again. Without `is_changed`, which ComfyUI writes into it: kept, it would freeze the gate."""
    nodes = {key: {name: value for name, value in node.items() if name != "is_changed"} for key, node in (prompt or {}).items()}
    return {"prompt": nodes, "workflow": (extra_pnginfo or {}).get("workflow")}


def _report(counts: dict[str, int], address: str) -> str:
    decided = f"{counts['good']} good, {counts['needs_correction']} need correction, {counts['reject']} rejected"
    if counts["undecided"]:
        return f"{counts['undecided']} of {counts['total']} images are waiting for you: {address}\n{decided}"
    return f"All {counts['total']} images decided: {decided}"


NODES = [ReviewGate]
