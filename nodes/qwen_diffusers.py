"""Qwen-Image-Edit from a Hugging Face folder: the editor's options, the LoRA socket, and where ComfyUI keeps such things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io

from ..flywheel import lora, qwen
from ..flywheel.editors.qwen.jobs import row_of
from ..flywheel.editors.qwen_diffusers import QwenDiffusers, QwenOptions, refuse_missing_libraries
from . import comfy_plan, host, more_pictures, sockets
from .options import widgets


class QwenDiffusersNode(io.ComfyNode):
    """Edits with Qwen-Image-Edit through diffusers: a model folder as downloaded, LoRAs stacked on top, and everything kept on a 24 GB card. Says
    before anything is loaded what will lie where, and what is missing. Downloads nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_QwenDiffusers",
            display_name="Qwen Editor (diffusers)",
            category="FLENwheel/editors",
            description=cls.__doc__ or "",
            inputs=[
                *widgets(QwenOptions),
                sockets.LORAS.Input("loras", optional=True, tooltip="LoRA Stack: Lightning, angles, your own edit LoRA."),
                *more_pictures.inputs(),
            ],
            outputs=[
                sockets.EDITOR.Output("editor", tooltip="Connect to Enrich Dataset."),
                io.String.Output("report", tooltip="The memory plan: what will lie where, and the expected peak."),
            ],
            search_aliases=["qwen image edit", "peft", "hugging face"],
        )

    @classmethod
    def execute(
        cls,
        loras: lora.LoraStack | None = None,
        picture_2: torch.Tensor | None = None,
        picture_3: torch.Tensor | None = None,
        **options: Any,
    ) -> io.NodeOutput:
        cache = host.home() / ".cache" / "qwen"
        options["model"] = _model_folder(options["model"])
        options["transformer_file"] = _transformer_file(options["transformer_file"])
        editor = QwenDiffusers(
            **options,
            loras=loras or lora.LoraStack(),
            pictures=more_pictures.kept(more_pictures.connected(picture_2, picture_3), cache / "pictures"),
            cache=cache,
            device=str(comfy.model_management.get_torch_device()),
            make_room=_make_room,
        )
        refuse_missing_libraries()
        model = editor.folder()
        fits = [str(fit) for fit in editor.fits(model)]
        held = comfy_plan.held(comfy.model_management.get_torch_device())  # by models that make way when the run begins
        plans = [
            f"1 MP, {host.counted(count, 'control')}: {editor.plan(model, width=1024, height=1024, controls=count, held=held)}"
            for count in sorted({len(editor.pictures) + 1, 3})
        ]
        text = "\n".join([*plans, *fits, *qwen.mismatches(row_of(model).name, editor.loras)])
        return io.NodeOutput(editor, text, ui=host.shown(text))


def _model_folder(text: str) -> str:
    """A full path, or a folder below ComfyUI's models/diffusers."""
    name = text.strip().strip('"')
    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusers")]
    return next((str(root / name) for root in roots if name and (root / name).is_dir()), name)


def _transformer_file(text: str) -> str:
    """A full path, or a file of ComfyUI's models/diffusion_models."""
    name = text.strip().strip('"')
    return folder_paths.get_full_path("diffusion_models", name) or name if name else ""


def _make_room() -> None:
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


NODES = [QwenDiffusersNode]
