"""Edits of any pictures, outside a project: one result per picture and prompt, kept in a folder under the name of what made it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from .editors import ControlRef, Editor, EditRequest, key_of
from .enrich import seed_from
from .errors import EditorError
from .images import content_key, png_bytes, size_for, write_json, write_whole
from .lora import split_tags
from .prompts import Prompt, PromptSet
from .render import Order, Report, Run, render, silent

_NAMED = re.compile(r".+-([0-9a-f]{16})")


class Tray:
    """A folder of results, <words>-<request key>.png, with how each was made in lineage/<request key>.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def files(self) -> dict[str, Path]:
        """By request key."""
        named = ((_NAMED.fullmatch(path.stem), path) for path in self.folder.glob("*.png"))
        return {match[1]: path for match, path in named if match}

    def __contains__(self, request_key: object) -> bool:
        return request_key in self.files

    def add(self, request_key: str, name: str, png: bytes, image: Image.Image, *, facts: Mapping[str, Any]) -> Path:
        """Write how it was made, then the image."""
        write_json(
            self.folder / "lineage" / f"{request_key}.json",
            {"request_key": request_key, "width": image.width, "height": image.height, **facts},
        )
        path = self.folder / f"{name}-{request_key}.png"
        write_whole(path, png)
        self.files[request_key] = path
        return path


@dataclass(frozen=True, slots=True)
class Edited:
    """`pairs`: the picture's number, from 0, the prompt and the file of the edit; all prompts of the first picture, then those of the next."""

    pairs: tuple[tuple[int, str, Path], ...]
    run: Run


def edit(
    pictures: Sequence[Image.Image],
    prompts: PromptSet,
    editor: Editor,
    folder: Path,
    *,
    seed: int = 0,
    megapixels: float = 0.0,
    report: Report = silent,
) -> Edited:
    """Every prompt on every picture, in the picture's own shape; what is in `folder` is not made again. `megapixels`: 0 keeps the picture's size.

    Raises:
        EditorError: see `render`; or not one image could be made.
        StorageError: the disk refused.
    """
    tray = Tray(folder)
    orders = [
        (number, _order(control, picture.size, prompt, seed, megapixels))
        for number, (control, picture) in enumerate(zip(_kept(pictures, folder / "pictures"), pictures, strict=True))
        for prompt in prompts.expand()
    ]
    run = render([order for _, order in orders], editor, tray, report=report)
    if run.failed and not run.finished:
        raise EditorError(f"Not one of {len(orders)} images could be made. The first reason: {run.failed[0][1]}")
    made = ((number, order.request.prompt, tray.files.get(key_of(editor, order.request))) for number, order in orders)
    return Edited(tuple((number, prompt, path) for number, prompt, path in made if path), run)


def _kept(pictures: Sequence[Image.Image], folder: Path) -> list[ControlRef]:
    """The pictures as files, for editors that read files."""
    refs: list[ControlRef] = []
    for picture in pictures:
        png = png_bytes(picture)
        key = content_key(png)
        refs.append(ControlRef(folder / f"{key}.png", key))
        if not refs[-1].path.is_file():
            write_whole(refs[-1].path, png)
    return refs


def _order(control: ControlRef, size: tuple[int, int], prompt: Prompt, seed: int, megapixels: float) -> Order:
    words, tags = split_tags(prompt.text)
    own_seed = seed_from(seed, control.key, words)
    width, height = size_for(*size, megapixels=megapixels or size[0] * size[1] / 1_000_000)
    request = EditRequest(words, (control,), own_seed, width, height, prompt.template, tags)
    facts = {"prompt": words, "template": prompt.template, "seed": own_seed, "picture": control.key}
    return Order(request, "_".join(re.findall(r"\w+", words))[:40].lower() or "edit", facts)
