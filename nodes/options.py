"""Widgets from the fields of a dataclass: an editor's options are written once, as fields with help and bounds."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

from comfy_api.latest import io

from . import sockets


def widgets(options: type) -> list[io.Input]:
    """One widget per field. `metadata` holds help (the tooltip), min, max and step, choices of a text, and whether graphs may leave it out (optional).

    Raises:
        TypeError: a field's type has no widget, or a field has no help.
    """
    hints = get_type_hints(options)
    return [_widget(field, hints[field.name]) for field in dataclasses.fields(options) if field.init]


def editor_node(editor: type, *, node_id: str, display_name: str) -> type[io.ComfyNode]:
    """The node of an editor: its options as widgets, the editor as output."""

    class EditorNode(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(
                node_id=node_id,
                display_name=display_name,
                category="FLENwheel/editors",
                description=editor.__doc__ or "",
                inputs=widgets(editor),
                outputs=[sockets.EDITOR.Output("editor", tooltip="Connect to Enrich Dataset.")],
            )

        @classmethod
        def execute(cls, **options: Any) -> io.NodeOutput:
            return io.NodeOutput(editor(**options))

    EditorNode.__name__ = EditorNode.__qualname__ = editor.__name__ + "Node"
    return EditorNode


def base_seed(tooltip: str) -> io.Int.Input:
    """The seed that every image's own comes from; it never changes by itself, or nothing would be found made."""
    return io.Int.Input("base_seed", default=0, min=0, max=2**32 - 1, control_after_generate=False, tooltip=tooltip)


def megapixels(tooltip: str, *, default: float = 1.0, least: float = 0.1) -> io.Float.Input:
    """The size of results."""
    return io.Float.Input("megapixels", default=default, min=least, max=4.0, step=0.1, tooltip=tooltip)


def sample_every() -> io.Int.Input:
    """Which images the review points out."""
    tooltip = "Flag every n-th image for a close look in the review. 0 flags none."
    return io.Int.Input("sample_every", default=10, min=0, max=1000, tooltip=tooltip)


def limit() -> io.Int.Input:
    """How many images a run makes at most."""
    tooltip = "Stop after this many new images; queue again for the next ones. 0 makes all."
    return io.Int.Input("limit", default=0, min=0, max=100_000, tooltip=tooltip)


def _widget(field: dataclasses.Field[Any], hint: Any) -> io.Input:
    bounds: dict[str, Any] = {name: field.metadata[name] for name in ("min", "max", "step") if name in field.metadata}
    common: dict[str, Any] = {
        "default": field.default,
        "tooltip": field.metadata["help"],
        "optional": field.metadata.get("optional", False),
    }
    if hint is bool:
        return io.Boolean.Input(field.name, **common)
    if hint is int:
        return io.Int.Input(field.name, **common, **bounds)
    if hint is float:
        bounds.setdefault("step", 0.01)
        return io.Float.Input(field.name, **common, **bounds)
    if choices := field.metadata.get("choices") or get_args(hint):
        return io.Combo.Input(field.name, options=list(choices), **common)
    if hint is str:
        return io.String.Input(field.name, **common, multiline=field.metadata.get("multiline", False))
    raise TypeError(f"{field.name}: there is no widget for {hint}")
