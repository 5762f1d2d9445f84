"""What ComfyUI's memory manager will keep on the card for an edit, said before it starts. By its own estimates; it decides, we only tell."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import comfy.model_management

from ..flywheel.editors.qwen.memory import ROOM, Plan, Rung
from ..flywheel.editors.qwen.models import GIB
from . import comfy_decode
from .comfy_tables import row_bytes, tabled_bytes


def plan(model: Any, clip: Any, vae: Any, *, width: int, height: int, controls: int, batch: int, rows: int = 0) -> Plan:
    """For an image of this size in px with so many controls of the same size; `batch` counts guidance twice; `rows`: timesteps
    in modulation tables, 0 without them. Loads nothing."""
    latent_format = model.get_model_object("latent_format")
    ratio = latent_format.spacial_downscale_ratio
    latent = [1, latent_format.latent_channels, *([1] if latent_format.latent_dimensions == 3 else []), height // ratio, width // ratio]
    shown = [batch, latent[1], controls * prod(latent[2:])]
    sampling = model.model.memory_required([batch, *latent[1:]], cond_shapes={"ref_latents": [shown]} if controls else {})
    working = max(sampling, vae.memory_used_decode(latent, vae.vae_dtype)) / GIB
    weights = {"transformer": _size(model), "text_encoder": _size(clip.patcher), "vae": _size(vae.patcher)}
    tables = row_bytes(model) * rows / GIB if rows else 0.0
    if rows:
        weights["transformer"] -= tabled_bytes(model) / GIB
    free = _free(model.load_device)

    def planned(rung: Rung, **fewer: float) -> Plan:
        return Plan(
            device=str(model.load_device),
            free=free,
            rung=rung,
            precision="as stored",
            text_precision="as stored",
            tables=tables,
            working=working,
            **(weights | fewer),
        )

    whole = next((one for one in (planned("resident"), planned("in turns")) if one.fits), None)
    if whole is not None:
        beside = replace(whole, decoding=0.0 if comfy_decode.obstacle(vae) else comfy_decode.needed(vae, latent) / GIB)
        return beside if beside.fits else whole
    assert free is not None  # else everything fits
    return planned("streamed", transformer=max(0.0, free - working - tables - weights["vae"] - ROOM))


def lack_of_room(plan: Plan, device: Any) -> str:
    """Why an image cannot be decoded while the next is made, with the model where it works; empty when it can."""
    if not plan.beside:
        return "the card has no room for both"
    if device.type == "cpu":
        return ""  # the system swaps
    free: Any = comfy.model_management.get_free_memory(device)
    missing = plan.working + plan.decoding - free / GIB
    return f"the card lacks {missing:.1f} GiB for both" if missing > 0 else ""


def _size(patcher: Any) -> float:
    """GiB of weights, as they are stored."""
    return patcher.model_size() / GIB


def _free(device: Any) -> float | None:
    """GiB that ComfyUI can have: what is free and what it holds and may let go. None on the CPU, where the system swaps."""
    if device.type == "cpu":
        return None
    free: Any = comfy.model_management.get_free_memory(device)
    return free / GIB + held(device)


def held(device: Any) -> float:
    """GiB of models that ComfyUI has there now and lets go when asked."""
    return sum(one.model_loaded_memory() or 0 for one in comfy.model_management.current_loaded_models if one.device == device) / GIB
