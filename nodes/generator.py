"""Who makes images of words alone: connected models with the character's LoRA, as an editor that takes no photo."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from comfy_api.latest import io

from ..flywheel import lora, qwen
from ..flywheel.errors import EditorError
from . import comfy_whole, comfy_words, host, sockets
from .comfy_belonging import refuse_wrong_models
from .comfy_editor import graph_above
from .comfy_engine import ComfyEditor, Options, Sampling
from .comfy_loras import fitted
from .options import widgets


@dataclass(frozen=True, slots=True)
class GeneratorOptions(Sampling):
    """What a person sets of a model that makes images of words."""

    guidance: float = field(
        default=0.0,
        metadata={
            "help": "How strictly FLUX [dev] follows the prompt; 0 takes the usual 3.5 or 4. Lower looks more like a photo. FLUX.2 klein has none.",
            "min": 0.0,
            "max": 20.0,
            "step": 0.1,
        },
    )


class ComfyGeneratorNode(io.ComfyNode):
    """Makes images of words with models you have loaded in this graph, FLUX.1 [dev] or FLUX.2, and your character's LoRA: from LoRA Stack, or already in
    the model (Trained LoRA)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ComfyGenerator",
            display_name="Generator (ComfyUI models)",
            category="FLENwheel/editors",
            description=cls.__doc__ or "",
            inputs=[
                io.Model.Input("model", tooltip="The model the character LoRA was trained for, from Load Diffusion Model or Trained LoRA."),
                io.Clip.Input(
                    "clip", tooltip="Its text encoder: DualCLIPLoader with type flux for FLUX.1, Load CLIP with type flux2 for FLUX.2."
                ),
                io.Vae.Input("vae", tooltip="Its VAE, from Load VAE."),
                io.Combo.Input(
                    "generator_model",
                    options=list(qwen.generators()),
                    default=next(iter(qwen.generators())),
                    tooltip="Which model is connected: it decides schedule and guidance.",
                ),
                *widgets(GeneratorOptions),
                sockets.LORAS.Input("loras", optional=True, tooltip="LoRA Stack: the character's LoRA and others."),
            ],
            outputs=[
                sockets.EDITOR.Output("generator", tooltip="Connect to Synthetic Images."),
                io.String.Output("report", tooltip="The memory plan: what will lie where, the expected peak; and how each LoRA fits."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            search_aliases=["flux", "text to image", "character lora"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        generator_model: str,
        loras: lora.LoraStack | None = None,
        guidance: float = 0.0,
        **options: Any,
    ) -> io.NodeOutput:
        row = qwen.generators()[generator_model]
        if guidance and row.guidance is None:
            raise EditorError(f"{generator_model} knows no guidance: set guidance to 0, and cfg if the prompt is to count more.")
        if guidance:
            row = replace(row, guidance=guidance)
        options["negative_prompt"] = options["negative_prompt"].strip()
        words = comfy_words.loader_above(cls.hidden.dynprompt, cls.hidden.unique_id, "clip")
        above = graph_above(cls.hidden.dynprompt, cls.hidden.unique_id, ("model", "clip", "vae"))
        cache = host.home() / ".cache" / "comfyui"
        generator = ComfyEditor(row, model, clip, vae, above, Options(**options), loras or lora.LoraStack(), (), cache, words)
        refuse_wrong_models(row, model, clip, vae, tables=False)
        fits = [str(fitted(model, one, generator_model)) for one in generator.loras]
        plan = f"1 MP: {generator.plan(width=1024, height=1024, controls=0)}"
        text = "\n".join([plan, *fits, *filter(None, [comfy_whole.fewer_blocks(model.model.diffusion_model, row)])])
        return io.NodeOutput(generator, text, ui=host.shown(text))


NODES = [ComfyGeneratorNode]
