"""One node per editor, made from the editor's own options where it needs no sockets; and the LoRAs they use."""

from __future__ import annotations

from ..flywheel.editors.rehearsal import Rehearsal
from . import comfy_editor, lora, qwen_diffusers
from .options import editor_node

NODES = [
    editor_node(Rehearsal, node_id="FLEN_RehearsalEditor", display_name="Rehearsal Editor (no model)"),
    *comfy_editor.NODES,
    *qwen_diffusers.NODES,
    *lora.NODES,
]
