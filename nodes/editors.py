"""One node per editor, made from the editor's own options."""

from __future__ import annotations

from ..flywheel.editors.rehearsal import Rehearsal
from .options import editor_node

NODES = [editor_node(Rehearsal, node_id="FLEN_RehearsalEditor", display_name="Rehearsal Editor (no model)")]
