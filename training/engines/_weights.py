"""What a model file is, read from its header alone: which model, and whether a trainer can read its form and precision."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from ..spec import ARCHITECTURES, Architecture

ALL_IN_ONE = ("text_encoders.", "first_stage_model.", "cond_stage_model.", "conditioner.")
PREFIX = "model.diffusion_model."  # of files that ComfyUI saved
QwenVersion = Literal["auto", "edit", "edit-2509", "edit-2511"]
QWEN_HELP = "Which Qwen-Image-Edit it is; auto reads it from the model's name. Other models: auto."
QWEN_UNKNOWN = "{name!r} does not say which Qwen-Image-Edit it is: set the option version to edit, edit-2509 or edit-2511"
QWEN_ONE = "the first Qwen-Image-Edit takes one picture to start from, and the data has {count}: take 2509 or 2511"
TRANSFORMERS = {  # diffusers' class for what lies in a model folder's transformer/
    "flux1": "FluxTransformer2DModel",
    "flux1_kontext": "FluxTransformer2DModel",
    "qwen_image_edit": "QwenImageTransformer2DModel",
    "flux2_klein_4b": "Flux2Transformer2DModel",
    "flux2_klein_9b": "Flux2Transformer2DModel",
    "flux2_dev": "Flux2Transformer2DModel",
}
_SCALED = ("scale_weight", "weight_scale", "scaled_fp8", "comfy_quant")


def tensors(path: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file; empty where it is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(100_000_000, path.stat().st_size):
                return {}
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error):
        return {}
    return {key: entry for key, entry in header.items() if key != "__metadata__" and isinstance(entry, dict)}


def is_whole(path: Path) -> bool:
    """A safetensors file that is as long as its header says: one that a crash cut off is not."""
    found = tensors(path)
    try:
        ends = [entry["data_offsets"][1] for entry in found.values()]
        with path.open("rb") as file:
            start = 8 + struct.unpack("<Q", file.read(8))[0]
        return bool(ends) and path.stat().st_size == start + max(ends)
    except (OSError, KeyError, IndexError, TypeError, struct.error):
        return False


def is_scaled(path: Path) -> bool:
    """8 bit with a scale per tensor: ComfyUI's own form, which trainers do not know."""
    return any(mark in key for key in tensors(path) for mark in _SCALED)


def is_eight_bit(path: Path) -> bool:
    return any(str(entry.get("dtype", "")).startswith("F8_") for entry in tensors(path).values())


def model_problem(
    path: Path, engine: str, model: str, marks: Collection[str], take: str, *, eight_bit: bool = False, prefix: bool = False
) -> str:
    """Why a trainer cannot read this diffusion model; empty when it can.

    `marks`: beginnings of names that only this model has, in the form the trainer reads. `take`: what to take instead, in words. `eight_bit`:
    plain fp8_e4m3fn is read too. `prefix`: names may begin with `model.diffusion_model.`.
    """
    if path.suffix.lower() == ".gguf":
        return f"{path.name} is a GGUF file, which {engine} cannot read: {take}"
    found = tensors(path)
    if not found:
        return f"{path.name} is not a safetensors file: download it again"
    if not is_whole(path):
        return f"{path.name} is cut off, only part of it is here: download it again"
    named = {key.removeprefix(PREFIX) if prefix else key for key in found}
    if any(key.startswith((*ALL_IN_ONE, PREFIX)) for key in named):
        return f"{path.name} is an all-in-one checkpoint, which {engine} cannot read: {take}"
    lacking = [mark for mark in marks if not any(key.startswith(mark) for key in named)]
    if lacking:
        return f"{path.name} is no {model} model in the form {engine} reads (it has no {lacking[0].rstrip('.')}): {take}"
    kinds = {str(entry.get("dtype", "")) for entry in found.values()}
    if is_scaled(path) or kinds & {"U8", "I8", "F8_E5M2"} or (not eight_bit and is_eight_bit(path)):
        return f"{path.name} is quantised in a way {engine} cannot read: take the bf16 file{', or plain fp8_e4m3fn' if eight_bit else ''}"
    return ""


def folder_problem(folder: Path, architecture: Architecture) -> str:
    """Why this is no folder of that model in diffusers' layout; empty when it is."""
    try:
        told = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder.name} is no model folder in diffusers' layout: it has no transformer/config.json that can be read"
    if told == TRANSFORMERS[architecture]:
        return ""
    return (
        f"{folder.name} holds a {told}, and {ARCHITECTURES[architecture]} is a {TRANSFORMERS[architecture]}: take the folder of that model"
    )


def qwen_version(name: str, told: str) -> str:
    """The generation of Qwen-Image-Edit: what an option says, else what a file's or model's name does; empty when neither."""
    if told != "auto":
        return told
    found = re.search(r"25(?:09|11)", Path(name).name)
    return f"edit-{found[0]}" if found else "edit" if name == "Qwen/Qwen-Image-Edit" else ""
