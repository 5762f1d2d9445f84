"""How alike pictures look as a whole, by a general image model of ComfyUI (CLIP or DINO). For drawn and stylised characters, whom no face engine here
knows. It says nothing about identity, and its numbers never meet those of a face engine: they travel on no socket of ours."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch.nn.functional import normalize

from ..flywheel.errors import EditorUnavailable
from ..flywheel.sheets import Tile, contact_sheet
from . import host


class ComparePictures(io.ComfyNode):
    """How alike do pictures look as a whole: style, clothes, colours, framing? For drawn and stylised characters. This is not identity: two people in the
    same coat score high. Uses a CLIP vision model of yours, from Load CLIP Vision (CLIP, SigLIP or DINO); nothing is downloaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ComparePictures",
            display_name="Compare Pictures",
            category="FLENwheel/identity",
            description=cls.__doc__ or "",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="From Load CLIP Vision. Numbers of different models cannot be compared."),
                io.Image.Input("images", tooltip="Pictures to judge."),
                io.Image.Input("reference", tooltip="One picture of the character, or a batch of several: the nearest counts."),
            ],
            outputs=[
                io.Float.Output(
                    "likeness",
                    is_output_list=True,
                    tooltip="Cosine of the two pictures' embeddings for each image: 1 is the same picture. It is no identity score and has no threshold.",
                ),
                io.Image.Output("picture", tooltip="References and images, the most alike first."),
                io.String.Output("report", tooltip="One line for each image."),
            ],
            is_output_node=True,
            search_aliases=["CLIP similarity", "DINO", "drawn", "anime", "style"],
        )

    @classmethod
    def execute(cls, clip_vision: Any, images: torch.Tensor, reference: torch.Tensor) -> io.NodeOutput:
        alike = _embedded(clip_vision, images) @ _embedded(clip_vision, reference).T  # (images, references)
        values, nearest = alike.max(dim=1)
        told = [(float(value), int(index) + 1) for value, index in zip(values, nearest, strict=True)]
        lines = [f"image {number}: {value:.3f} (nearest reference {near})" for number, (value, near) in enumerate(told, 1)]
        text = "\n".join(["Likeness of whole pictures, not identity:", *lines])
        tiles = [Tile(picture, f"reference {number}") for number, picture in enumerate(host.pictures(reference), 1)]
        shown = sorted(zip(host.pictures(images), lines, told, strict=True), key=lambda entry: -entry[2][0])
        tiles += [Tile(picture, line) for picture, line, _ in shown]
        picture = host.tensor(contact_sheet(tiles, title="Likeness of whole pictures, not identity"))
        return io.NodeOutput([value for value, _ in told], picture, text, ui=host.shown(text, picture, cls))


def _embedded(clip_vision: Any, images: torch.Tensor) -> torch.Tensor:
    """(n, width) float32 of length 1. Models without a projection are read off the mean of their last layer.

    Raises:
        EditorUnavailable: the model gives no numbers.
    """
    seen = clip_vision.encode_image(images[..., :3], crop=False)  # the whole picture: a head at the edge counts too
    pooled: Any = seen["image_embeds"]
    if pooled is None or pooled.ndim != 2:
        pooled = seen["last_hidden_state"].mean(dim=1)
    pooled = pooled.float().cpu()
    if not bool(torch.isfinite(pooled).all()):
        raise EditorUnavailable("This CLIP vision model gives no numbers for these pictures. Load another one in Load CLIP Vision.")
    return normalize(pooled, dim=1)


NODES = [ComparePictures]
