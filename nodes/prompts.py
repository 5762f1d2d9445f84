"""Which edits to ask for."""

from __future__ import annotations

from comfy_api.latest import io

from ..flywheel import enrich
from ..flywheel.dataset import Dataset
from ..flywheel.prompts import PromptSet, parse, presets
from . import host, sockets

NO_PRESET = "none"
SHOWN = 40


class PromptSetNode(io.ComfyNode):
    """Prompts for enrichment, one per line. [forest|studio|beach] makes one prompt per choice. Shows what will be made before anything is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_PromptSet",
            display_name="Prompt Set",
            category="FLENwheel/enrich",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=["all four", *(name for name in presets() if name != "all four"), NO_PRESET],
                    default="all four",
                    tooltip="Ready prompts for backgrounds, lighting, styles and camera angles. They come before your own lines.",
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    placeholder="Change background to [a cafe|a library], keep person identical",
                    tooltip="Your own prompts, one per line. [a|b] makes one prompt per choice. Lines starting with # are notes.",
                ),
                io.Int.Input(
                    "per_source",
                    default=5,
                    min=0,
                    max=200,
                    tooltip="How many of the prompts each photo gets, spread over the lines; 3 to 5 is usual. 0 gives every photo every prompt.",
                ),
                io.String.Input("sources", default="", tooltip="Only these photos, for example source_001* source_004*. Empty means all."),
                sockets.DATASET.Input("dataset", optional=True, tooltip="Connect the photos to see here exactly what will be made."),
            ],
            outputs=[
                sockets.PROMPTS.Output("prompts_out", display_name="prompts", tooltip="Connect to Enrich Dataset."),
                io.String.Output("preview", tooltip="What will be made, one line per image."),
                io.Int.Output("count", tooltip="How many images that is, or how many prompts when no dataset is connected."),
            ],
            search_aliases=["wildcards", "matrix", "batch prompts"],
        )

    @classmethod
    def execute(cls, preset: str, prompts: str, per_source: int, sources: str, dataset: Dataset | None = None) -> io.NodeOutput:
        text = "\n".join([*(presets()[preset] if preset != NO_PRESET else ()), prompts])
        chosen = parse(text, per_source=per_source, sources=sources)
        lines = _planned(dataset, chosen) if dataset else [prompt.text for prompt in chosen.expand()]
        kind = f"images from {len(dataset.images)} photos" if dataset else "prompts"
        shown = [f"{len(lines)} {kind}", "", *lines[:SHOWN], *([f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])]
        return io.NodeOutput(chosen, "\n".join(lines), len(lines), ui=host.shown("\n".join(shown)))


def _planned(dataset: Dataset, prompts: PromptSet) -> list[str]:
    orders = enrich.plan(dataset, prompts, seed=0)
    return [f"{order.facts['source']['name']}: {order.request.prompt}" for order in orders]


NODES = [PromptSetNode]
