"""Pictures 2 and 3 of an editor: shown to the model with every photo, such as an outfit. Sockets, and what comes through them."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io
from PIL import Image

from ..flywheel.editors import ControlRef
from ..flywheel.errors import EditorError
from ..flywheel.images import content_key, png_bytes, write_whole
from . import host


def inputs() -> list[io.Image.Input]:
    return [
        io.Image.Input(
            "picture_2",
            optional=True,
            tooltip="Shown to the model as Picture 2 with every photo, for example an outfit. First image of a batch.",
        ),
        io.Image.Input("picture_3", optional=True, tooltip="Shown as Picture 3 with every photo. Needs picture_2."),
    ]


def connected(picture_2: torch.Tensor | None, picture_3: torch.Tensor | None) -> tuple[tuple[str, Image.Image], ...]:
    """The pictures with their content keys.

    Raises:
        EditorError: there is a gap.
    """
    if picture_3 is not None and picture_2 is None:
        raise EditorError("picture_3 is connected but picture_2 is not. Connect it to picture_2: pictures are numbered without gaps.")
    images = [host.pictures(picture[:1])[0] for picture in (picture_2, picture_3) if picture is not None]
    return tuple((content_key(png_bytes(image)), image) for image in images)


def kept(pictures: tuple[tuple[str, Image.Image], ...], folder: Path) -> tuple[ControlRef, ...]:
    """The same as files in `folder`, for an editor that reads files."""
    refs = tuple(ControlRef(folder / f"{key}.png", key) for key, _ in pictures)
    for ref, (_, image) in zip(refs, pictures, strict=True):
        if not ref.path.is_file():
            write_whole(ref.path, png_bytes(image))
    return refs
