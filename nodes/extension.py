"""What ComfyUI gets from this pack."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from . import (
    curate,
    editors,
    enrich,
    export,
    generator,
    identity,
    image_to_image,
    job_routes,
    layouts,
    likeness,
    model_card,
    pair_doctor,
    pair_routes,
    pairs,
    pictures,
    pristine,
    project,
    prompts,
    queue_gate,
    repair,
    review,
    routes,
    synthesis,
    train,
    train_compare,
    train_settings,
    triplets,
)

NODES: list[type[io.ComfyNode]] = [
    *project.NODES,
    *curate.NODES,
    *prompts.NODES,
    *editors.NODES,
    *enrich.NODES,
    *generator.NODES,
    *synthesis.NODES,
    *image_to_image.NODES,
    *model_card.NODES,
    *identity.NODES,
    *likeness.NODES,
    *review.NODES,
    *repair.NODES,
    *pristine.NODES,
    *export.NODES,
    *train_settings.NODES,
    *train.NODES,
    *train_compare.NODES,
    *pairs.NODES,
    *pair_doctor.NODES,
    *triplets.NODES,
    *layouts.NODES,
    *pictures.NODES,
]


class FlenwheelExtension(ComfyExtension):
    async def on_load(self) -> None:
        routes.register()
        job_routes.register(PromptServer.instance.routes)
        queue_gate.install()
        pair_routes.register(PromptServer.instance.routes)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
