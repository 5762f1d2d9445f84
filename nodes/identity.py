"""Steps 1.2 and 1.6: is it still the same face?"""

from __future__ import annotations

import re

from comfy_api.latest import io

from ..flywheel import identity
from ..flywheel.dataset import Dataset
from ..flywheel.faces import EMBEDDERS, embedder
from ..flywheel.sheets import histogram
from . import host, sockets

NOT_MEASURABLE = ("pass on", "hold back")


class IdentityReferences(io.ComfyNode):
    """The photos that define the character's face. Leave the names empty and the largest group of photos that agree with each other is taken;
    whoever does not belong is named."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_IdentityReferences",
            display_name="Identity References",
            category="FLENwheel/identity",
            description=cls.__doc__ or "",
            inputs=[
                sockets.DATASET.Input("dataset", tooltip="The curated photos."),
                io.String.Input(
                    "names",
                    default="",
                    tooltip="File names of 3 to 5 clear photos, one of them a half profile, for example source_001* source_004*. Empty: chosen for you.",
                ),
                io.Combo.Input(
                    "engine", options=list(EMBEDDERS), default="dlib", tooltip="What measures faces. All of it happens on this machine."
                ),
            ],
            outputs=[
                sockets.REFERENCES.Output("references", tooltip="Connect to Identity Score and Enrich Dataset."),
                io.String.Output("report", tooltip="Which photos were taken, and which do not fit and why."),
            ],
            is_output_node=True,
            search_aliases=["face", "reference"],
        )

    @classmethod
    def execute(cls, dataset: Dataset, names: str, engine: str) -> io.NodeOutput:
        measuring = embedder(engine)
        faces = identity.references(dataset, measuring, [name for name in re.split(r"[,\s]+", names) if name])
        text = "\n".join([f"References: {', '.join(faces.names)}", *faces.notes])
        return io.NodeOutput(sockets.References(faces, measuring), text, ui=host.shown(text))


class IdentityScore(io.ComfyNode):
    """Scores how much each image looks like the references: 1 is the same photo, 0.60 about where strangers begin. An image whose face cannot be
    measured gets no number, and says why. Faces never leave this machine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_IdentityScore",
            display_name="Identity Score",
            category="FLENwheel/identity",
            description=cls.__doc__ or "",
            inputs=[
                sockets.DATASET.Input("dataset", tooltip="Images to score: photos or candidates."),
                sockets.REFERENCES.Input("references", tooltip="The character's face."),
            ],
            outputs=[
                sockets.SCORES.Output("scores", tooltip="Connect to Identity Filter."),
                io.String.Output("report", tooltip="Every score in words."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            search_aliases=["face similarity", "face recognition"],
        )

    @classmethod
    def execute(cls, dataset: Dataset, references: sockets.References) -> io.NodeOutput:
        report = host.Reporter(cls.hidden.unique_id, "Measuring faces")
        scores = identity.score(dataset, references.faces, references.embedder, report=report.count)
        text = "\n".join(_line(image.name, scores.by_key[image.key]) for image in dataset.images)
        return io.NodeOutput(scores, text, ui=host.shown(text))


class IdentityFilter(io.ComfyNode):
    """Parts images by their identity score. Nothing is deleted or moved: what failed stays where it is and on its own output."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_IdentityFilter",
            display_name="Identity Filter",
            category="FLENwheel/identity",
            description=cls.__doc__ or "",
            inputs=[
                sockets.SCORES.Input("scores", tooltip="From Identity Score."),
                io.Float.Input(
                    "threshold",
                    default=identity.THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Similarity an image needs. 0.60 keeps 99 % of true images and lets under 1 % of strangers in; 0.64 is strict.",
                ),
                io.Combo.Input(
                    "not_measurable",
                    options=list(NOT_MEASURABLE),
                    default=NOT_MEASURABLE[0],
                    tooltip="Profiles, tiny or heavily painted faces cannot be measured. Pass them on so that you decide, or hold them back.",
                ),
            ],
            outputs=[
                sockets.DATASET.Output(
                    "passed", tooltip="Images at or above the threshold, with the not measurable ones if you pass them on."
                ),
                sockets.DATASET.Output("failed", tooltip="Images below the threshold."),
                sockets.DATASET.Output("unmeasurable", display_name="not measurable", tooltip="Images whose face cannot be measured."),
                io.Image.Output("histogram", tooltip="How the scores are spread, with the threshold."),
                io.String.Output("report", tooltip="The counts, and who failed."),
            ],
            is_output_node=True,
            search_aliases=["face filter", "threshold"],
        )

    @classmethod
    def execute(cls, scores: identity.Scores, threshold: float, not_measurable: str) -> io.NodeOutput:
        split = identity.split(scores, threshold)
        passed = split.passed
        if not_measurable == NOT_MEASURABLE[0]:
            passed = scores.dataset.keeping({image.key for part in (split.passed, split.unmeasurable) for image in part.images})
        picture = host.tensor(histogram([score.similarity for score in scores.by_key.values()], threshold))
        text = _report(scores, split, threshold)
        return io.NodeOutput(passed, split.failed, split.unmeasurable, picture, text, ui=host.shown(text, picture, cls))


def _line(name: str, score: identity.IdentityScore) -> str:
    if score.similarity is None:
        return f"{name}: not measurable ({score.note or score.state.replace('_', ' ')})"
    return f"{name}: {score.similarity:.2f} (distance {score.distance:.2f}, nearest {score.matched}) {identity.band(score.similarity)}"


def _report(scores: identity.Scores, split: identity.Split, threshold: float) -> str:
    lines = [
        f"{len(split.passed.images)} at or above {threshold:.2f}, {len(split.failed.images)} below,"
        f" {len(split.unmeasurable.images)} not measurable, of {len(scores.dataset.images)}."
    ]
    lines += [_line(image.name, scores.by_key[image.key]) for part in (split.failed, split.unmeasurable) for image in part.images]
    return "\n".join(lines)


NODES = [IdentityReferences, IdentityScore, IdentityFilter]
