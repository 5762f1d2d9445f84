"""One Qwen edit as ComfyUI's stock graph makes it, node by node and in this process. Import it once ComfyUI's arguments have been read."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.utils
import node_helpers
import torch
from comfy_extras.nodes_cfg import CFGNorm
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow
from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus
from comfyui_flenwheel.flywheel import qwen
from comfyui_flenwheel.nodes import host
from PIL import Image

import nodes


def patched(model: Any, loras: Any = ()) -> Any:
    """What the graph does to a model before it samples. `loras`: (path, weight)."""
    made = CFGNorm.execute(ModelSamplingAuraFlow().patch_aura(model, 3.1)[0], 1.0).args[0]
    for path, weight in loras:
        made = comfy.sd.load_lora_for_models(made, None, comfy.utils.load_torch_file(str(path)), weight, 0.0)[0]
    return made


def edit(
    model: Any,
    clip: Any,
    vae: Any,
    photos: list[Image.Image],
    prompt: str,
    *,
    seed: int,
    size: tuple[int, int],
    steps: int,
    cfg: float,
    same_size: bool,
) -> torch.Tensor:
    """Pixels (1, H, W, 3) in 0…1. `same_size`: the controls are shown at the result's size, as ours are, and not always at one megapixel."""
    controls = [vae.encode(host.tensor(photo.resize(size, Image.Resampling.LANCZOS))) for photo in photos] if same_size else []
    seen = [host.tensor(photo.resize(qwen.vision_size(*photo.size), Image.Resampling.LANCZOS) if same_size else photo) for photo in photos]
    images = {f"image{number}": picture for number, picture in enumerate(seen, 1)}
    conditioning = []
    for words in (prompt, ""):
        encoded = TextEncodeQwenImageEditPlus.execute(clip, words, vae=None if same_size else vae, **images).args[0]
        values = {"reference_latents_method": "index_timestep_zero"} | ({"reference_latents": controls} if same_size else {})
        conditioning.append(node_helpers.conditioning_set_values(encoded, values))
    empty = torch.zeros(1, 16, 1, size[1] // 8, size[0] // 8)
    out = nodes.common_ksampler(model, seed, steps, cfg, "euler", "simple", *conditioning, {"samples": empty})[0]
    return vae.decode(out["samples"]).reshape(1, size[1], size[0], 3)
