"""ComfyUI's stock graph in the real ComfyUI: its loaders, text encoder node, sampler and VAE, fp8 weights as its users have them.

Must run in a process of its own: ComfyUI reads its arguments when it is imported. It is told to leave alone what lies above the cap.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from bench import GIB, ROOT, Bench, randomise, sparse, timed
from rows import Row

WARM = 2  # steps of the edit before the timed ones


def measure(row: Row, bench: Bench, *, comfyui: str = "") -> dict[str, Any]:
    if not (Path(comfyui) / "comfy").is_dir():
        return {"error": "not measured: give the folder of a ComfyUI with --comfyui or FLEN_COMFYUI"}
    _start(bench, comfyui)
    import stock_graph

    model, clip, vae = _loaded(bench)
    model = stock_graph.patched(model)
    photos = bench.photos(row.controls)

    def edit(number: int, steps: int = row.steps) -> None:
        stock_graph.edit(
            model,
            clip,
            vae,
            photos,
            f"Make it night {number}",
            seed=number,
            size=(bench.side, bench.side),
            steps=steps,
            cfg=row.guidance,
            same_size=True,
        )

    edit(9, WARM)
    count = bench.images(row.steps)
    seconds, peak = timed(bench.device, lambda: [edit(number) for number in range(count)])
    return {"seconds": seconds / count, "peak": peak}


def _start(bench: Bench, comfyui: str) -> None:
    """Import ComfyUI with its arguments and a folder of its own."""
    base = bench.place / "comfyui"
    base.mkdir(parents=True, exist_ok=True)
    arguments = ["--cpu"]
    if bench.device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        arguments = ["--reserve-vram", f"{max(0.0, total - bench.cap):.2f}"]
    sys.path[:0] = [comfyui]
    sys.path.append(str(ROOT / "benchmarks"))
    sys.argv = ["main.py", "--base-directory", str(base), *arguments]
    import comfy.options

    comfy.options.enable_args_parsing()
    import server

    torch.inference_mode().__enter__()
    server.PromptServer(asyncio.new_event_loop())


def _loaded(bench: Bench) -> tuple[Any, Any, Any]:
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
        randomise(root)
    return model, clip, vae


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
