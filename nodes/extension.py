"""What ComfyUI gets from this pack."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import curate, editors, enrich, export, identity, pairs, pictures, pristine, project, prompts, repair, review, routes, train

NODES: list[type[io.ComfyNode]] = [
    *project.NODES,
    *curate.NODES,
    *prompts.NODES,
    *editors.NODES,
    *enrich.NODES,
    *identity.NODES,
    *review.NODES,
    *repair.NODES,
    *pristine.NODES,
    *export.NODES,
    *train.NODES,
    *pairs.NODES,
    *pictures.NODES,
]


class FlenwheelExtension(ComfyExtension):
    async def on_load(self) -> None:
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
