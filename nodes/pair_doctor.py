"""The Pair Doctor: what is wrong with pairs that fit by name, and mending it."""

from __future__ import annotations

from itertools import islice
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..flywheel import pair_doctor, triplets
from ..flywheel.faces import embedder
from ..flywheel.pair_overlays import drawn, overlay
from ..flywheel.pairs import PairedDataset
from ..flywheel.sheets import stacked
from . import host, sockets
from .options import widgets
from .pair_routes import shelf_of_pairs

REPORT_ONLY = "report only"
MOST_OVERLAYS = 9  # one of each kind


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
                    "faces",
                    default=False,
                    tooltip="Also compare the faces of target and control. For photographs only: the number of a drawn face means nothing. Slow; needs"
                    " the face engine.",
                ),
                *widgets(pair_doctor.Limits),
            ],
            outputs=[
                sockets.PAIRS.Output("pairs", tooltip="The pairs, mended if asked for."),
                io.Image.Output(
                    "overlays",
                    tooltip="What was found, drawn: a shift as control in red on target in cyan; colours, blur and the rest as what differs.",
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
    """Findings as sheets, one of each kind before the second of any; the first pair where nothing was found."""
    seen: dict[str, int] = {}
    ordered: list[tuple[int, pair_doctor.Finding]] = []
    for finding in sorted(checkup.findings, key=lambda one: (pair_doctor.KINDS.index(one.kind), -one.value)):
        seen[finding.kind] = seen.get(finding.kind, -1) + 1
        ordered.append((seen[finding.kind], finding))
    chosen = [finding for _, finding in sorted(ordered, key=lambda one: one[0])]
    sheets = (sheet for finding in chosen if (sheet := drawn(checkup, finding)) is not None)
    shown = list(islice(sheets, MOST_OVERLAYS))
    if not shown and (stem := next(iter(checkup.measured), None)) is not None:
        pair = next(pair for pair in checkup.dataset.pairs if pair.stem == stem)
        shown = [overlay(pair, checkup.moved(stem))]
    return stacked(shown)


NODES = [PairDoctor]
