"""Image to image: an editor for any graph, without a project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..flywheel import image_edits, prompts
from ..flywheel.editors import Editor
from ..flywheel.images import open_image
from ..flywheel.render import summary
from ..flywheel.sheets import before_after, stacked
from . import host, sockets
from .options import base_seed, megapixels

FOLDER = "flenwheel_edits"
SHOWN = 4


class ImageToImage(io.ComfyNode):
    """Edits any images with an editor, as you say it in words, in any graph and without a project. The whole image is kept in its own shape. Each
    result lies in output/flenwheel_edits before the bar moves on, so you can cancel and queue again: only what is missing is made."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ImageToImage",
            display_name="Image to Image",
            category="FLENwheel/editors",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Images of any node; each is edited by itself."),
                sockets.EDITOR.Input("editor", tooltip="Who edits: any of the editors, with its LoRAs."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    dynamic_prompts=False,
                    placeholder="Change the light to [golden hour|studio light], keep person identical",
                    tooltip="What to change, one edit per line. [a|b] makes one edit of each. A word such as @angle chooses LoRAs of that name.",
                ),
                base_seed("Each result's own seed comes from this, its image and its prompt. Another number makes other results."),
                megapixels(
                    "Size of the results; 0 keeps the size of each image, to the nearest 16 pixels. Edit models are at their best near 1.0.",
                    default=0.0,
                    least=0.0,
                ),
            ],
            outputs=[
                io.Image.Output(
                    "edits", is_output_list=True, tooltip="The results one by one: all prompts of the first image, then the next."
                ),
                io.Image.Output("before_after", tooltip="The first results beside their images, as one picture."),
                io.String.Output("report", tooltip="What was made, what was there already, what failed and why."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["i2i", "img2img", "instruct edit", "modify"],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, editor: Editor, prompt: str, base_seed: int, megapixels: float) -> io.NodeOutput:
        pictures, report = host.pictures(images), host.Reporter(cls.hidden.unique_id, f"Editing with {editor.name}")
        edited = image_edits.edit(
            pictures,
            prompts.parse(prompt),
            editor,
            Path(folder_paths.get_output_directory()) / FOLDER,
            seed=base_seed,
            megapixels=megapixels,
            report=report,
        )
        results = [open_image(path).image for _, _, path in edited.pairs]
        told = zip(edited.pairs[:SHOWN], results, strict=False)
        sheet = stacked([before_after(pictures[number], result, prompt) for (number, prompt, _), result in told])
        report.end_with(sheet)
        shown = host.tensor(sheet)
        text = "\n".join(
            [f"{host.counted(len(results), 'edit')} of {host.counted(len(pictures), 'image')} in output/{FOLDER}", *summary(edited.run)]
        )
        return io.NodeOutput([host.tensor(result) for result in results], shown, text, ui=host.shown(text, shown, cls))

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when a result is gone; what is there is found, not made."""
        folder = Path(folder_paths.get_output_directory()) / FOLDER
        made = {path.stem for path in (folder / "lineage").glob("*.json")}
        return "" if made <= set(image_edits.Tray(folder).files) else str(sorted(made))


NODES = [ImageToImage]
