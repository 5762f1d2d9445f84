"""A ComfyUI in this process: set up as its own main.py does it, with models of full size and fp8 weights as its users have them.

Must run in a process of its own: ComfyUI reads its arguments when it is imported. It is told to leave alone what lies above the cap.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import GIB, ROOT, Bench, randomise, sparse, timed

NO_COMFYUI = {"error": "not measured: give the folder of a ComfyUI with --comfyui or FLEN_COMFYUI"}


def is_there(comfyui: str) -> bool:
    return (Path(comfyui) / "comfy").is_dir()


def start(bench: Bench, comfyui: str, *, dynamic: bool) -> None:
    """Import ComfyUI's main.py with its arguments and a folder of its own. `dynamic`: with dynamic VRAM, its default on NVIDIA cards.

    Raises:
        RuntimeError: dynamic VRAM was wanted on a card and did not come.
    """
    base = bench.place / "comfyui"
    base.mkdir(parents=True, exist_ok=True)
    arguments = ["--cpu"]
    if bench.device.type == "cuda":
        above = max(0.0, torch.cuda.get_device_properties(0).total_memory / GIB - bench.cap)
        arguments = [*(["--vram-headroom"] if dynamic else ["--disable-dynamic-vram", "--reserve-vram"]), f"{above:.2f}"]
    sys.path[:0] = [comfyui]
    sys.path.append(str(ROOT / "benchmarks"))
    sys.argv = ["main.py", "--base-directory", str(base), "--disable-all-custom-nodes", *arguments]
    importlib.import_module("main")
    import asyncio

    import comfy.memory_management
    import server

    if bench.device.type == "cuda" and comfy.memory_management.aimdo_enabled != dynamic:
        raise RuntimeError("ComfyUI has no dynamic VRAM here: see its log for the reason.")
    torch.inference_mode().__enter__()
    server.PromptServer(asyncio.new_event_loop())


def loaded(bench: Bench) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE with random weights."""
    import comfy.memory_management
    import comfy.sd
    import comfy.utils
    import folder_paths

    if bench.tiny:
        pack = ROOT / "tests" / "nodes" / "tiny_qwen" / "__init__.py"
        spec = importlib.util.spec_from_file_location("tiny_qwen", pack)
        assert spec and spec.loader
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    name = "tiny_{}" if bench.tiny else "full_{}"
    if not bench.tiny:
        _write_full(Path(folder_paths.base_path) / "models")
    where = folder_paths.get_full_path_or_raise
    model = comfy.sd.load_diffusion_model(where("diffusion_models", f"{name.format(2511)}.safetensors"))
    clip = comfy.sd.load_clip(
        [where("text_encoders", f"{name.format('text_encoder')}.safetensors")], clip_type=comfy.sd.CLIPType.QWEN_IMAGE
    )
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(where("vae", f"{name.format('vae')}.safetensors")))
    for root in (model.model.diffusion_model, clip.cond_stage_model, vae.first_stage_model):
        if comfy.memory_management.aimdo_enabled:
            _own_memory(root)
        randomise(root)
    return model, clip, vae


def timed_here(bench: Bench, act: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and the most GiB that torch held meanwhile; with dynamic VRAM at least what that counts in the end, weights included."""
    import comfy.memory_management
    import comfy_aimdo.control

    seconds, peak = timed(bench.device, act)
    return seconds, max(peak, comfy_aimdo.control.get_total_vram_usage() / GIB if comfy.memory_management.aimdo_enabled else 0.0)


def _own_memory(root: torch.nn.Module) -> None:
    """Weights beside the file, which dynamic VRAM maps read-only."""
    for module in root.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(torch.zeros_like(weight, device="cpu"), requires_grad=False))


def _write_full(models: Path) -> None:
    """Sparse files of full size under the names and in the types that ComfyUI's users download."""
    import comfy.ldm.qwen_image.model
    import comfy.ldm.wan.vae
    import comfy.ops
    import comfy.text_encoders.llama

    if (models / "vae" / "full_vae.safetensors").exists():
        return
    plain = comfy.ops.disable_weight_init
    with torch.device("meta"):
        parts = {
            "diffusion_models/full_2511": comfy.ldm.qwen_image.model.QwenImageTransformer2DModel(
                num_layers=60, default_ref_method="index_timestep_zero", dtype=torch.bfloat16, device="meta", operations=plain
            ),
            "text_encoders/full_text_encoder": comfy.text_encoders.llama.Qwen25_7BVLI({}, torch.bfloat16, "meta", plain),
            "vae/full_vae": comfy.ldm.wan.vae.WanVAE(
                dim=96,
                z_dim=16,
                dim_mult=[1, 2, 4, 4],
                num_res_blocks=2,
                attn_scales=[],
                temperal_downsample=[False, True, True],
                dropout=0.0,
            ),
        }
    for name, part in parts.items():
        path = models / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        sparse(path, {weight: (_type(weight, tensor), tuple(tensor.shape)) for weight, tensor in part.state_dict().items()})


def _type(name: str, tensor: torch.Tensor) -> torch.dtype:
    is_block = ".layers." in name or "blocks." in name
    return torch.float8_e4m3fn if tensor.ndim == 2 and is_block else torch.bfloat16
