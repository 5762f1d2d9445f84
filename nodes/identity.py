"""Steps 1.2 and 1.6: is it still the same face?"""

from __future__ import annotations

import re

import torch
from comfy_api.latest import io
from PIL import Image

from ..flywheel import filtered, identity, identity_report, sifting
from ..flywheel.dataset import Dataset
from ..flywheel.drawings import drawn_character
from ..flywheel.errors import IdentityError
from ..flywheel.faces import EMBEDDERS, embedder
from ..flywheel.faces.unseeing import Unseeing
from ..flywheel.project import MEDIA
from ..flywheel.references import calibrate, choose_references, no_references
from ..flywheel.sheets import Tile, contact_sheet, histogram
from . import host, sockets
from .spread_routes import KEEP, offer, sieve_of

NOT_MEASURABLE = ("pass on", "hold back")
ENGINE = (
    "What measures faces; all of it happens on this machine. dlib: free for any use. The others also know profiles; you bring their weights, nothing is"
    " downloaded by itself. insightface: for non-commercial research only. auraface, uniface: offered under Apache-2.0 and MIT, see docs/faces.md."
)
RULES: dict[str, identity.Rule] = {"the nearest reference": "best", "the mean of all references": "mean"}
SAY_WHICH = "say which"
SCORED = ("not scored", "scored all the same")
TAKEN = ("not taken", "taken all the same")
UNMEASURED = ("stop with an error", "give -1")
DRAWN = (
    "Images whose prompt, or whose source's prompt, asks for a drawing (in anime style, an oil painting of), or whose face"
    " looks drawn: the number of a drawn face means nothing, so"
)


def _scores() -> io.Input:
    return sockets.SCORES.Input("scores", tooltip="From Identity Score.")


def _drawn_styles(options: tuple[str, str], tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("drawn_styles", options=list(options), default=options[0], optional=True, tooltip=f"{DRAWN} {tooltip}")


def _threshold(tooltip: str) -> io.Float.Input:
    return io.Float.Input("threshold", default=identity.THRESHOLD, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def _engine() -> io.Combo.Input:
    return io.Combo.Input("engine", options=list(EMBEDDERS), default="dlib", tooltip=ENGINE)


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
                _engine(),
                io.Combo.Input(
                    "compare_with",
                    options=list(RULES),
                    default=next(iter(RULES)),
                    optional=True,
                    tooltip="The nearest reference: tells which one matched, and a half profile among them is of use. The mean of all: fewer errors"
                    " if every reference is right, more if one is wrong. 0.60 means the same for both.",
                ),
                _drawn_styles(
                    TAKEN,
                    "they are no references. If those words mean something else here or it is a photograph, have them taken all the same.",
                ),
            ],
            outputs=[
                sockets.REFERENCES.Output("references", tooltip="Connect to Identity Score and Enrich Dataset."),
                io.String.Output("report", tooltip="Which photos were taken, and which do not fit and why."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            search_aliases=["face", "reference"],
        )

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        names: str,
        engine: str,
        compare_with: str = next(iter(RULES)),
        drawn_styles: str = TAKEN[0],
    ) -> io.NodeOutput:
        if drawn := drawn_character(dataset.project):
            faces = no_references(drawn)
            text = "\n".join([f"The character counts as drawn: {drawn}.", *faces.notes])
            return io.NodeOutput(sockets.References(faces, Unseeing()), text, ui=host.shown(text))
        measuring = embedder(engine)
        report = host.Reporter(cls.hidden.unique_id, "Measuring faces").count
        named = [name for name in re.split(r"[,\s]+", names) if name]
        drawn_too = drawn_styles == TAKEN[1]
        faces = choose_references(dataset, measuring, named, rule=RULES[compare_with], drawn_too=drawn_too, report=report)
        meaning = calibrate(dataset, faces, measuring, drawn_too=drawn_too, report=report).words
        text = "\n".join([f"References: {', '.join(faces.names)}", *meaning, *faces.notes])
        return io.NodeOutput(sockets.References(faces, measuring), text, ui=host.shown(text))


class IdentityScore(io.ComfyNode):
    """Scores how much each image looks like the references: 1 is the same photo, 0.60 about where strangers begin. An image whose face cannot be
    measured, or that is drawn, gets no number, and says why. Faces never leave this machine."""

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
                _drawn_styles(
                    SCORED,
                    "they get none and go to your review. If those words mean something else here or it is a photograph, have them scored all the same.",
                ),
            ],
            outputs=[
                sockets.SCORES.Output("scores", tooltip="Connect to Identity Filter."),
                io.String.Output("report", tooltip="Every score in words."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            search_aliases=["score identity", "face similarity", "face recognition"],
        )

    @classmethod
    def execute(cls, dataset: Dataset, references: sockets.References, drawn_styles: str = SCORED[0]) -> io.NodeOutput:
        report = host.Reporter(cls.hidden.unique_id, "Measuring faces")
        scores = identity.score(dataset, references.faces, references.embedder, drawn_too=drawn_styles == SCORED[1], report=report.count)
        text = "\n".join(_line(image.name, scores.by_key[image.key]) for image in dataset.images)
        return io.NodeOutput(scores, text, ui=host.shown(text))


class IdentityFilter(io.ComfyNode):
    """Parts images by their identity score. Nothing is deleted: what failed stays where it is and on its own output. Synthetic images that pass
    are put into filtered/ of their folder until you decide on them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_IdentityFilter",
            display_name="Identity Filter",
            category="FLENwheel/identity",
            description=cls.__doc__ or "",
            inputs=[
                _scores(),
                _threshold("Similarity an image needs. 0.60 keeps 99 % of true images and lets under 1 % of strangers in; 0.64 is strict."),
                io.Combo.Input(
                    "not_measurable",
                    options=list(NOT_MEASURABLE),
                    default=NOT_MEASURABLE[0],
                    tooltip="Profiles, tiny or heavily painted faces cannot be measured. Pass them on so that you decide, or hold them back.",
                ),
                io.Combo.Input(
                    "keep",
                    options=list(KEEP),
                    default=next(iter(KEEP)),
                    optional=True,
                    tooltip="A threshold alone seldom thins a set out: most images of a good editor pass. Keep only the best so many, or so many per cent"
                    " of those measured; those below the threshold stay out in any case.",
                ),
                io.Int.Input(
                    "amount",
                    default=50,
                    min=1,
                    max=100_000,
                    optional=True,
                    tooltip="How many images, or how many per cent. Not used with: all above the threshold.",
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
                sockets.DATASET.Output(
                    "accepted", tooltip="Surely the same person: 0.04 above the threshold, and among the best if only those stay."
                ),
                sockets.DATASET.Output("review", tooltip="Look at these: near the threshold, or the face cannot be measured."),
                sockets.DATASET.Output("rejected", tooltip="Surely not: 0.05 below the threshold, or not among the best."),
            ],
            is_output_node=True,
            search_aliases=["filter identity", "face filter", "threshold", "top"],
        )

    @classmethod
    def execute(
        cls, scores: identity.Scores, threshold: float, not_measurable: str, keep: str = next(iter(KEEP)), amount: int = 50
    ) -> io.NodeOutput:
        sifted = sifting.sift(scores, sieve_of(threshold, keep, amount))
        split, parts = sifted.split, sifted.parts
        passed = split.passed
        if not_measurable == NOT_MEASURABLE[0]:
            passed = scores.dataset.keeping({image.key for part in (split.passed, split.unmeasurable) for image in part.images})
        picture = host.tensor(histogram([score.similarity for score in scores.by_key.values()], sifted.kept_from))
        text = "\n".join([_report(scores, sifted), *filtered.put_apart(scores.dataset, passed)])
        return io.NodeOutput(
            passed,
            split.failed,
            split.unmeasurable,
            picture,
            text,
            parts.accepted,
            parts.review,
            parts.rejected,
            ui={**host.shown(text, picture, cls), "flen_spread": [offer(scores)]},
        )


class IdentityReport(io.ComfyNode):
    """Shows how a scoring went: the spread, the least and most alike faces beside their reference, and which prompts, editors and photos keep the
    face. Also written as a page of its own that you can open in a browser or send."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_IdentityReport",
            display_name="Identity Report",
            category="FLENwheel/identity",
            description=cls.__doc__ or "",
            inputs=[
                _scores(),
                sockets.REFERENCES.Input("references", tooltip="The references these scores were made with."),
                _threshold("Where the report draws the line between passed and failed."),
                io.Int.Input("faces", default=8, min=1, max=40, tooltip="How many of the least and of the most alike faces are shown."),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="The report as one picture."),
                io.String.Output("file", tooltip="Where the page lies: an HTML file that holds everything in itself."),
                io.String.Output("report", tooltip="The counts, and the weakest prompt, editor and photo."),
            ],
            is_output_node=True,
            search_aliases=["face report", "histogram", "breakdown"],
        )

    @classmethod
    def execute(cls, scores: identity.Scores, references: sockets.References, threshold: float, faces: int) -> io.NodeOutput:
        report = identity_report.build(scores, references.faces, threshold, faces)
        path = identity_report.write(report, scores.dataset)
        lines = [identity_report.summary(list(scores.by_key.values())), *_weakest(report), f"page: {path}"]
        picture, text = host.tensor(report.picture), "\n".join(lines)
        return io.NodeOutput(picture, str(path), text, ui=host.shown(text, picture, cls))


class CompareFaces(io.ComfyNode):
    """Is it the same face? Compares images of any node with one or more reference images, here on this machine. Needs no project.
    Photographs only: the number of a drawn face means nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_CompareFaces",
            display_name="Compare Faces",
            category="FLENwheel/identity",
            description=cls.__doc__ or "",
            inputs=[
                io.Image.Input("images", tooltip="Images to judge. Any face in an image may be the one."),
                io.Image.Input(
                    "reference", tooltip="One image of the person, or a batch of several: the nearest counts. One face in each."
                ),
                _threshold("Similarity from which two faces count as one person. 0.60 is where strangers begin."),
                io.Combo.Input(
                    "not_measurable",
                    options=list(UNMEASURED),
                    default=UNMEASURED[0],
                    tooltip="What to do with an image that shows no face, or one that is turned away, tiny or blurred.",
                ),
                _engine(),
                io.Combo.Input(
                    "pictures_are",
                    options=[SAY_WHICH, *MEDIA],
                    default=SAY_WHICH,
                    tooltip="What the images and the reference are; generated ones that look like photographs are photographs. The engines learned from"
                    " photographs and seldom see that a face is drawn. Of drawn, painted or stylised ones nothing is compared: every image is one that cannot be"
                    " measured. Compare Pictures says how alike whole pictures look.",
                ),
                io.Combo.Input(
                    "drawn_styles",
                    options=list(SCORED),
                    default=SCORED[0],
                    optional=True,
                    tooltip="Images whose face looks drawn are ones that cannot be measured. If they are photographs, have them scored all the same.",
                ),
            ],
            outputs=[
                io.Float.Output("similarity", is_output_list=True, tooltip="0 to 1 for each image; -1 where it cannot be measured."),
                io.Boolean.Output("same", is_output_list=True, tooltip="Whether each image reaches the threshold."),
                io.Image.Output("picture", tooltip="Reference and images with their similarities."),
                io.String.Output("report", tooltip="One line for each image."),
            ],
            is_output_node=True,
            search_aliases=["face similarity", "face distance", "same person"],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        reference: torch.Tensor,
        threshold: float,
        not_measurable: str,
        engine: str,
        pictures_are: str,
        drawn_styles: str = SCORED[0],
    ) -> io.NodeOutput:
        if pictures_are == SAY_WHICH:
            raise IdentityError(
                "Say under pictures_are what the images are: photographs, or drawn. Faces are compared in photographs only."
            )
        shown, against = host.pictures(images), host.pictures(reference)
        if pictures_are == "drawn":
            scores = identity.not_compared(len(shown), "somebody said so in Compare Faces")
        else:
            scores = identity.compare(shown, against, embedder(engine), drawn_too=drawn_styles == SCORED[1])
        if not_measurable == UNMEASURED[0] and (
            unclear := [f"{score.image_key}: {score.note}" for score in scores if score.similarity is None]
        ):
            raise IdentityError("These images cannot be measured; leave them out, or set not_measurable to give -1:", unclear)
        text = "\n".join(_line(score.image_key, score) for score in scores)
        picture = host.tensor(contact_sheet(_tiles(against, shown, scores, threshold), title="Compare Faces"))
        values = [-1.0 if score.similarity is None else score.similarity for score in scores]
        return io.NodeOutput(values, [value >= threshold for value in values], picture, text, ui=host.shown(text, picture, cls))


def _tiles(against: list[Image.Image], shown: list[Image.Image], scores: list[identity.IdentityScore], threshold: float) -> list[Tile]:
    tiles = [Tile(image, f"reference {number}") for number, image in enumerate(against, 1)]
    for image, score in zip(shown, scores, strict=True):
        mark = "not measurable" if score.similarity is None else "passed" if score.similarity >= threshold else "failed"
        tiles.append(Tile(image, _line(score.image_key, score), mark))
    return tiles


def _weakest(report: identity_report.Report) -> list[str]:
    """The weakest row of each breakdown that has more than one."""
    return [
        f"{title.lower()}: weakest is {rows[0].name} (median {rows[0].similarity:.2f}, {rows[0].passed} of {rows[0].images} passed)"
        for title, rows in report.groups
        if len(rows) > 1 and rows[0].similarity is not None
    ]


def _line(name: str, score: identity.IdentityScore) -> str:
    if score.similarity is None:
        return f"{name}: not measurable ({score.note or score.state.replace('_', ' ')})"
    others = f", {score.faces} faces" if score.faces > 1 else ""
    doubt = f"; {score.note}" if score.note else ""
    return (
        f"{name}: {score.similarity:.2f} (distance {score.distance:.2f}, nearest {score.matched}{others})"
        f" {identity.band(score.similarity)}{doubt}"
    )


def _report(scores: identity.Scores, sifted: sifting.Sifted) -> str:
    lines = [sifted.words]
    several = [image.name for image in scores.dataset.images if scores.by_key[image.key].faces > 1]
    if several:
        lines.append(f"{len(several)} with more than one face: {', '.join(several[:10])}{', …' if len(several) > 10 else ''}")
    lines += [
        _line(image.name, scores.by_key[image.key]) for part in (sifted.split.failed, sifted.split.unmeasurable) for image in part.images
    ]
    return "\n".join(lines)


NODES = [IdentityReferences, IdentityScore, IdentityFilter, IdentityReport, CompareFaces]
