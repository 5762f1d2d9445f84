"""Our editor on ComfyUI's models, a batch as Enrich Dataset makes it: every prompt a new one, encoding, decoding and saving included, loading not.

`check` asks what no machine without a card can tell: under dynamic VRAM, what does it do to the images, and to the time they take, when one is decoded
while the next is made? The editor itself does not do that there, see docs/qwen.md.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from pathlib import Path
from typing import Any

import in_comfyui
from bench import Bench
from portrait import control
from rows import Row

CHECKED = 6  # images of the check: five of them have a next one


def measure(
    row: Row, bench: Bench, *, comfyui: str = "", dynamic: bool = True, tables: bool = False, check: bool = False
) -> dict[str, Any]:
    if not in_comfyui.is_there(comfyui):
        return in_comfyui.NO_COMFYUI
    in_comfyui.start(bench, comfyui, dynamic=dynamic)
    from comfyui_flenwheel.flywheel import qwen
    from comfyui_flenwheel.nodes import comfy_decode, comfy_engine, comfy_plan

    model, clip, vae = in_comfyui.loaded(bench)
    untouched = copy.deepcopy(vae.first_stage_model)  # by the memory manager, whose handles must not be copied
    options = comfy_engine.Options(steps=row.steps, cfg=row.guidance, modulation_tables=tables)
    editor = comfy_engine.ComfyEditor(qwen.models()["Qwen-Image-Edit-2511"], model, clip, vae, "benchmark", options)
    count = CHECKED if check else bench.images(row.steps)
    with tempfile.TemporaryDirectory() as place:
        orders = _orders(Path(place), bench, row, count)
        _made(editor, orders[:1])  # warm up
        seconds, peak, made, how = _measured(bench, editor, orders[1:])
        if not check:
            return {"seconds": seconds / count, "peak": peak, "how": how}
        comfy_decode.obstacle = lambda _: ""
        comfy_plan.lack_of_room = lambda *_: ""
        comfy_decode._copied = lambda _, __: untouched.to(vae.vae_dtype)
        beside, peak, other, how = _measured(bench, editor, orders[1:])
    same = len(set(made) & set(other))
    told = f"{same} of {len(made)} images are those made one after the other, in {seconds / count:.2f} s each; {how}"
    return {"seconds": beside / count, "peak": peak, "how": told}


def _orders(place: Path, bench: Bench, row: Row, count: int) -> list[Any]:
    """One more than `count`, the first with another photo."""
    from comfyui_flenwheel.flywheel.editors import EditRequest
    from comfyui_flenwheel.flywheel.render import Order

    photos = tuple(control(place, f"{n}.png", photo) for n, photo in enumerate(bench.photos(row.controls + 1)))
    size = (bench.side, bench.side)
    wanted = [EditRequest(f"Make it night {n}", photos[: row.controls], n, *size) for n in range(count)]
    return [Order(request, request.prompt) for request in (EditRequest("Something else", photos[1:], 9, *size), *wanted)]


def _measured(bench: Bench, editor: Any, orders: list[Any]) -> tuple[float, float, list[tuple[str, bytes]], str]:
    """Seconds, GiB, the images, and whether they were decoded beside each other, in words."""
    images: list[tuple[str, bytes]] = []
    said = _Said()
    logging.getLogger("flenwheel").addHandler(said)
    seconds, peak = in_comfyui.timed_here(bench, lambda: images.extend(_made(editor, orders)))
    logging.getLogger("flenwheel").removeHandler(said)
    return seconds, peak, images, said.told or "each image is decoded while the next is made"


def _made(editor: Any, orders: list[Any]) -> list[tuple[str, bytes]]:
    """Name and bytes of every image, saved as a person has them.

    Raises:
        RuntimeError: an image could not be made.
    """
    from comfyui_flenwheel.flywheel.image_edits import Tray
    from comfyui_flenwheel.flywheel.render import render

    with tempfile.TemporaryDirectory() as place:
        run = render(orders, editor, Tray(Path(place)))
        if run.failed:
            raise RuntimeError(run.failed[0][1])
        return sorted((path.name, path.read_bytes()) for path in Path(place).glob("*.png"))


class _Said(logging.Handler):
    """Why one image followed the other."""

    told = ""

    def emit(self, record: logging.LogRecord) -> None:
        if "decoded before the next" in record.getMessage():
            self.told = record.getMessage().rpartition(": ")[2].rstrip(".")
