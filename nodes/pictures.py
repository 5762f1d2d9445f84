"""Datasets to and from ComfyUI's own images, and pictures of datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from comfy_api.latest import io
from PIL import Image

from ..flywheel import identity, review
from ..flywheel.candidates import Shelf, adopt
from ..flywheel.dataset import Dataset, ImageRecord
from ..flywheel.errors import DatasetError
from ..flywheel.images import open_image
from ..flywheel.project import Project
from ..flywheel.sheets import Tile, before_after, contact_sheet, stacked
from . import host, sockets

STAGES = ("enriched", "synthetic")


class DatasetToImages(io.ComfyNode):
    """Loads the images of a dataset for any other node. They come as a list, each in its own size; a node behind it runs once per image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_DatasetToImages",
            display_name="Dataset to Images",
            category="FLENwheel/pictures",
            description=cls.__doc__ or "",
            inputs=[
                sockets.DATASET.Input("dataset", tooltip="Images to load."),
                io.Int.Input("first", default=1, min=1, max=100_000, tooltip="Number of the first image, counted from 1."),
                io.Int.Input(
                    "at_most",
                    default=16,
                    min=1,
                    max=1000,
                    tooltip="How many to load at once: each 1024 x 1024 image takes 12 MB of memory.",
                ),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The images, one by one."),
                io.String.Output("captions", is_output_list=True, tooltip="Their captions in the same order."),
                io.String.Output("names", is_output_list=True, tooltip="Their file names in the same order."),
            ],
        )

    @classmethod
    def execute(cls, dataset: Dataset, first: int, at_most: int) -> io.NodeOutput:
        chosen = list(islice(dataset.images, first - 1, first - 1 + at_most))
        if not chosen:
            raise DatasetError(f"The dataset has {len(dataset.images)} images; there is none from number {first} on.")
        images = [host.tensor(open_image(dataset.path(image)).image) for image in chosen]
        return io.NodeOutput(images, [image.caption for image in chosen], [image.name for image in chosen])


class ImagesToDataset(io.ComfyNode):
    """Takes in images that any other node has made as candidates of a project, so that they can be scored, reviewed and exported. The same image
    is taken in once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ImagesToDataset",
            display_name="Images to Dataset",
            category="FLENwheel/pictures",
            description=cls.__doc__ or "",
            inputs=[
                sockets.PROJECT.Input("project", tooltip="The character these images show."),
                io.Image.Input("images", tooltip="Images of any node."),
                io.Combo.Input(
                    "stage",
                    options=list(STAGES),
                    default=STAGES[0],
                    tooltip="enriched: edits of photos. synthetic: made by the character's LoRA.",
                ),
                io.String.Input("caption", default="", tooltip="Caption for training. Empty: photo of <token> <noun>."),
                io.String.Input("prompt", default="", tooltip="The prompt that made them, for the records."),
            ],
            outputs=[sockets.DATASET.Output("candidates", tooltip="Next: Identity Score or Review Gate.")],
        )

    @classmethod
    def execute(cls, project: Project, images: torch.Tensor, stage: str, caption: str, prompt: str) -> io.NodeOutput:
        words = caption.strip() or f"photo of {project.instance_token} {project.class_noun}"
        return io.NodeOutput(adopt(project.stage(stage), host.pictures(images), caption=words, prompt=prompt))  # type: ignore[arg-type]


class ContactSheet(io.ComfyNode):
    """All images of a dataset on one sheet, each with its score and verdict."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ContactSheet",
            display_name="Contact Sheet",
            category="FLENwheel/pictures",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input("dataset", tooltip="Images to show."),
                io.String.Input("title", default="", tooltip="Heading of the sheet. Empty: project and count."),
                io.Int.Input("columns", default=0, min=0, max=50, tooltip="Images per row; 0 chooses."),
                io.Int.Input("size", default=256, min=64, max=1024, tooltip="Size of one image on the sheet, in pixels."),
            ],
            outputs=[io.Image.Output("sheet", tooltip="The sheet as one image.")],
            search_aliases=["grid", "overview"],
        )

    @classmethod
    def execute(cls, dataset: Dataset, title: str, columns: int, size: int) -> io.NodeOutput:
        heading = title or f"{dataset.project.name} · {dataset.stage_name} {dataset.project.version} · {len(dataset.images)} images"
        sheet = host.tensor(contact_sheet(_tiles(dataset, size), columns=columns, cell_px=size, title=heading))
        return io.NodeOutput(sheet, ui=host.shown(heading, sheet, cls))


class BeforeAfter(io.ComfyNode):
    """Photo and edit side by side, for the first images of a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_BeforeAfter",
            display_name="Before / After",
            category="FLENwheel/pictures",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input("candidates", tooltip="Edited images."),
                io.Int.Input("first", default=1, min=1, max=100_000, tooltip="Number of the first image, counted from 1."),
                io.Int.Input("count", default=4, min=1, max=20, tooltip="How many pairs."),
            ],
            outputs=[io.Image.Output("pairs", tooltip="The pairs, one below the other.")],
            search_aliases=["compare"],
        )

    @classmethod
    def execute(cls, candidates: Dataset, first: int, count: int) -> io.NodeOutput:
        facts = {lineage.image_key: lineage.facts for lineage in Shelf(candidates.stage).lineages.values()}
        edited = [image for image in candidates.images if facts[image.key]["source"]]
        if not edited:
            raise DatasetError("None of these images is an edit of a photo, so there is no before.")
        chosen = edited[first - 1 : first - 1 + count]
        if not chosen:
            raise DatasetError(f"There are {len(edited)} edited images; there is none from number {first} on.")
        sheet = host.tensor(stacked(pairs(candidates, chosen)))
        return io.NodeOutput(sheet, ui=host.shown(f"{len(chosen)} of {len(edited)} pairs", sheet, cls))


def pairs(edits: Dataset, images: Sequence[ImageRecord]) -> list[Image.Image]:
    """Photo and edit side by side, for edits of photos."""
    facts = {lineage.image_key: lineage.facts for lineage in Shelf(edits.stage).lineages.values()}
    return [_pair(edits, image, facts[image.key]) for image in images]


def _pair(dataset: Dataset, image: ImageRecord, facts: Mapping[str, Any]) -> Image.Image:
    source = dataset.project.stage("source").folder / facts["source"]["name"]
    return before_after(open_image(source, at_least=1024).image, open_image(dataset.path(image)).image, facts["prompt"])


def _tiles(dataset: Dataset, size: int) -> list[Tile]:
    decided = review.labels(dataset.project)
    scores = identity.comparable_scores(dataset.project, [image.key for image in dataset.images])
    return [_tile(dataset, image, size, decided.get(image.key), scores.get(image.key)) for image in dataset.images]


def _tile(dataset: Dataset, image: ImageRecord, size: int, event: review.LabelEvent | None, score: identity.IdentityScore | None) -> Tile:
    picture = open_image(dataset.path(image), at_least=size).image
    picture.thumbnail((size, size))
    measured = "" if score is None else "not measurable" if score.similarity is None else f"{score.similarity:.2f}"
    return Tile(
        picture, " · ".join(part for part in (image.stem.rpartition("-")[0] or image.stem, measured) if part), (event and event.label) or ""
    )


NODES = [DatasetToImages, ImagesToDataset, ContactSheet, BeforeAfter]
