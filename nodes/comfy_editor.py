"""The node of the editor of connected models: its widgets, and the fingerprint of the graph above its sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..flywheel import lora, qwen
from ..flywheel.errors import EditorError
from ..flywheel.images import value_key
from . import comfy_whole, comfy_words, host, more_pictures, sockets
from .comfy_belonging import refuse_wrong_models
from .comfy_engine import ComfyEditor, Options
from .comfy_loras import fitted
from .options import widgets


class ComfyEditorNode(io.ComfyNode):
    """Edits with models you have loaded in this graph: Qwen-Image-Edit-2511 or 2509, FLUX.1 Kontext or FLUX.2 klein, in fp8, int8 or GGUF, with
    stacked LoRAs. The whole picture is edited in its own shape; nothing is cropped."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_ComfyEditor",
            display_name="Qwen Editor (ComfyUI models)",
            category="FLENwheel/editors",
            description=cls.__doc__ or "",
            inputs=[
                io.Model.Input("model", tooltip="The edit model, from Load Diffusion Model or any other loader."),
                io.Clip.Input("clip", tooltip="Its text encoder, from Load CLIP with the type of the model (qwen_image for Qwen)."),
                io.Vae.Input("vae", tooltip="Its VAE, from Load VAE."),
                io.Combo.Input(
                    "edit_model",
                    options=list(qwen.models()),
                    default=next(iter(qwen.models())),
                    tooltip="Which model is connected: it decides schedule, guidance and how the photo is shown to it. 2511 keeps faces better than 2509.",
                ),
                *widgets(Options),
                sockets.LORAS.Input("loras", optional=True, tooltip="LoRA Stack: Lightning, angles, your own edit LoRA."),
                *more_pictures.inputs(),
            ],
            outputs=[
                sockets.EDITOR.Output("editor", tooltip="Connect to Enrich Dataset or Preview Four."),
                io.String.Output("report", tooltip="The memory plan: what will lie where, the expected peak; and how each LoRA fits."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            search_aliases=["qwen image edit", "kontext", "klein"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        edit_model: str,
        loras: lora.LoraStack | None = None,
        picture_2: torch.Tensor | None = None,
        picture_3: torch.Tensor | None = None,
        **options: Any,
    ) -> io.NodeOutput:
        extras = more_pictures.connected(picture_2, picture_3)
        options["negative_prompt"] = options["negative_prompt"].strip()
        row = qwen.models()[edit_model]
        if len(extras) >= row.controls:
            surplus = " and ".join(f"picture_{place}" for place in range(row.controls + 1, len(extras) + 2))
            raise EditorError(
                f"{edit_model} takes {host.counted(row.controls, 'picture')} at most, the photo among them. Disconnect {surplus}."
            )
        words = comfy_words.loader_above(cls.hidden.dynprompt, cls.hidden.unique_id, "clip")
        above = graph_above(cls.hidden.dynprompt, cls.hidden.unique_id, ("model", "clip", "vae"))
        cache = host.home() / ".cache" / "comfyui"
        editor = ComfyEditor(row, model, clip, vae, above, Options(**options), loras or lora.LoraStack(), extras, cache, words)
        refuse_wrong_models(row, model, clip, vae, tables=editor.options.modulation_tables)
        fits = [str(fitted(model, one, edit_model)) for one in editor.loras]
        controls = sorted({len(extras) + 1, row.controls})
        plans = [f"1 MP, {host.counted(count, 'control')}: {editor.plan(width=1024, height=1024, controls=count)}" for count in controls]
        doubts = [*filter(None, [comfy_whole.fewer_blocks(model.model.diffusion_model, row)]), *qwen.mismatches(edit_model, editor.loras)]
        text = "\n".join([*plans, *fits, *doubts])
        return io.NodeOutput(editor, text, ui=host.shown(text))


def graph_above(dynprompt: Any, node_id: Any, inputs: Sequence[str]) -> str:
    """Hash of the part of the graph that feeds these inputs: class types and widget values, not ids, titles or positions.

    Models do not know their file names, so this stands for them: another file, loader, patch or strength is another fingerprint.
    """

    hashes: dict[str, str] = {}

    def hashed(node_id: str) -> str:
        if node_id not in hashes:
            node = dynprompt.get_node(node_id)
            hashes[node_id] = value_key([node["class_type"], {name: value(entry) for name, entry in node["inputs"].items()}])
        return hashes[node_id]

    def value(entry: Any) -> Any:
        is_link = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and dynprompt.has_node(entry[0])
        return [hashed(entry[0]), entry[1]] if is_link else entry

    node = dynprompt.get_node(node_id)
    return value_key([value(node["inputs"].get(name)) for name in inputs])


NODES = [ComfyEditorNode]
