"""The Pair Doctor: what is wrong with pairs that fit by name, and mending it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..flywheel import pair_doctor, triplets
from ..flywheel.faces import embedder
from ..flywheel.pairs import PairedDataset
from ..flywheel.sheets import stacked
from . import host, sockets
from .options import widgets
from .pair_routes import shelf_of_pairs

REPORT_ONLY = "report only"


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
    def execute(cls, pairs: PairedDataset | None, fix: str, faces: bool, **limits: float) -> io.NodeOutput:
        if pairs is None:
            return io.NodeOutput(None, *[ExecutionBlocker(None)] * 2, ui=host.shown(sockets.NO_PAIRS))
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


def _overlays(checkup: pair_doctor.Checkup) -> Any:
    """The pairs that slid the most, each against the control it slid against; the first pair where none did."""
    worst = sorted((one for one in checkup.findings if one.kind == "shift"), key=lambda one: -one.value)
    chosen = [(one.stem, one.slot) for one in worst[:4]] or [(next(iter(checkup.measured), checkup.dataset.pairs[0].stem), "control_1")]
    shown = {pair.stem: pair for pair in checkup.dataset.pairs}
    drawn = [pair_doctor.overlay(shown[stem], checkup.moved(stem, slot), slot=slot) for stem, slot in chosen if stem in checkup.measured]
    return stacked(drawn)


NODES = [PairDoctor]
