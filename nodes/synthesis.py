"""Step 1.5: prompts times a generator with the character's LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..flywheel import candidates, synthesis
from ..flywheel.editors import Editor
from ..flywheel.project import Project
from ..flywheel.prompts import parse
from . import host, options, sockets
from .options import base_seed


def _side(name: str) -> io.Int.Input:
    return io.Int.Input(
        name,
        default=1024,
        min=256,
        max=2048,
        step=16,
        tooltip=f"{name.capitalize()} of the images in pixels; FLUX is at its best near 1024 x 1024.",
    )


class SyntheticImages(io.ComfyNode):
    """Makes new images of the character, whom the generator knows by your LoRA, from prompts alone. Each image is on disk before the bar moves on, so
    you can cancel, crash or restart: queue again and only what is missing is made."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_SyntheticImages",
            display_name="Synthetic Images",
            category="FLENwheel/enrich",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.PROJECT.Input("project", tooltip="The character; its token and noun fill {token} and {noun}."),
                sockets.EDITOR.Input("generator", tooltip="From Generator (ComfyUI models). An editor of photos will not do."),
                io.String.Input(
                    "prompts",
                    default=synthesis.PROMPTS,
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="One prompt per line, each with {token}. [a|b] makes one prompt per choice. Lines starting with # are notes. The prompts of"
                    " Coverage Map's card fit, too.",
                ),
                io.Int.Input(
                    "images_per_prompt",
                    default=4,
                    min=1,
                    max=100,
                    tooltip="How many images of each prompt, each with a seed of its own; 4 to 8 is usual.",
                ),
                base_seed("Each image's own seed is derived from this, its prompt and its number. Another number makes a different set."),
                _side("width"),
                _side("height"),
                options.sample_every(),
                options.limit(),
            ],
            outputs=[
                sockets.DATASET.Output("candidates", tooltip="The images. Next: Identity Score, Identity Filter, then Review Gate."),
                io.String.Output("report", tooltip="What was made, what was there already, what failed and why."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["synthetic data", "text to image", "batch generate", "generate character"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when an image it had made is no longer there."""
        return host.fingerprint("synthetic", candidates.missing)

    @classmethod
    def execute(
        cls,
        project: Project,
        generator: Editor,
        prompts: str,
        images_per_prompt: int,
        base_seed: int,
        width: int,
        height: int,
        sample_every: int,
        limit: int,
    ) -> io.NodeOutput:
        made = synthesis.synthesise(
            project,
            parse(prompts),
            generator,
            each=images_per_prompt,
            seed=base_seed,
            width=width,
            height=height,
            sample_every=sample_every,
            limit=limit,
            report=host.Reporter(cls.hidden.unique_id, f"Generating with {generator.name}"),
        )
        text = "\n".join([f"{host.counted(len(made.dataset.images), 'image')} in {made.dataset.stage.folder}", *made.notes])
        host.log.info("Synthetic images: %s", " ".join(made.notes))
        return io.NodeOutput(made.dataset, text, ui=host.shown(text))


NODES = [SyntheticImages]
