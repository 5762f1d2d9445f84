"""LoRA files of random numbers in every spelling trainers use, written without any library but numpy."""

import json
import struct

import numpy as np

BLOCK = {  # the linear layers of a Qwen-Image block by their share of (out, in): d is the model's width
    "attn.to_q": (1, 1),
    "attn.to_k": (1, 1),
    "attn.to_v": (1, 1),
    "attn.to_out.0": (1, 1),
    "attn.add_q_proj": (1, 1),
    "attn.add_k_proj": (1, 1),
    "attn.add_v_proj": (1, 1),
    "attn.to_add_out": (1, 1),
    "img_mlp.net.0.proj": (4, 1),
    "img_mlp.net.2": (1, 4),
    "txt_mlp.net.0.proj": (4, 1),
    "txt_mlp.net.2": (1, 4),
    "img_mod.1": (6, 1),
    "txt_mod.1": (6, 1),
}
AB, DOWN_UP, DOTS = ("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up")
STYLES = {  # prefix, parts, what stands before ".weight", flat names, alpha
    "diffusers": ("transformer.", AB, "", False, False),
    "diffusers, older": ("transformer.", DOTS, "", False, False),
    "ai-toolkit": ("diffusion_model.", AB, "", False, False),
    "ComfyUI": ("diffusion_model.", DOWN_UP, "", False, True),
    "kohya and musubi": ("lora_unet_", DOWN_UP, "", True, True),
    "Lightning": ("", DOWN_UP, "", False, True),
    "without alpha": ("", DOWN_UP, "", False, False),
    "DiffSynth": ("", AB, ".default", False, False),
    "bare": ("", AB, "", False, False),
    "PEFT": ("base_model.model.", AB, "", False, False),
    "PEFT with an adapter's name": ("base_model.model.", AB, ".default", False, False),
    "unet": ("unet.", AB, "", False, False),
    "OneTrainer": ("transformer.", DOWN_UP, "", False, True),
    "SimpleTuner": ("lycoris_", DOWN_UP, "", True, True),
    "whole checkpoint": ("model.diffusion_model.", AB, "", False, False),
}


def modules(blocks=2, width=64):
    return {
        f"transformer_blocks.{block}.{name}": (out * width, inner * width)
        for block in range(blocks)
        for name, (out, inner) in BLOCK.items()
    }


def tensors(style, blocks=2, width=64, rank=4, seed=0, size=0.05, chosen=None):
    """The same change of weights in any style; with alpha it is twice the rank and the numbers are half."""
    prefix, (down, up), adapter, flat, alpha = STYLES[style]
    rng = np.random.default_rng(seed)
    made = {}
    for module, (out, inner) in (chosen or modules(blocks, width)).items():
        name = prefix + (module.replace(".", "_") if flat else module)
        a, b = (rng.standard_normal(shape, dtype=np.float32) * np.float32(size) for shape in ((rank, inner), (out, rank)))
        made[f"{name}.{down}{adapter}.weight"] = a
        made[f"{name}.{up}{adapter}.weight"] = b / 2 if alpha else b
        if alpha:
            made[f"{name}.alpha"] = np.array(2.0 * rank, dtype=np.float32)
    return made


def save(path, named, metadata=None):
    """A safetensors file of float32 arrays. Format: https://github.com/huggingface/safetensors#format"""
    named = {name: array.astype("<f4") for name, array in named.items()}
    header, start = {"__metadata__": metadata} if metadata else {}, 0
    for name, array in named.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    path.write_bytes(struct.pack("<Q", len(described)) + described + b"".join(array.tobytes() for array in named.values()))
    return path
