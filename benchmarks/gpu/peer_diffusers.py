"""The diffusers pipeline, edit by edit, with what it offers against too little memory."""

from __future__ import annotations

from typing import Any

import torch
from bench import Bench, randomise, small_controls, timed
from rows import Row

WARM = 2  # steps of the edit before the timed ones


def measure(row: Row, bench: Bench, *, offload: str, nf4: bool = False) -> dict[str, Any]:
    with small_controls(bench):
        return _measured(row, bench, _pipeline(bench, offload, nf4))


def _pipeline(bench: Bench, offload: str, nf4: bool) -> Any:
    import diffusers

    quantised = {}
    if nf4 and bench.device.type == "cuda":  # diffusers quantises on cards only
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": bench.dtype}
        quantised["quantization_config"] = diffusers.PipelineQuantizationConfig(
            quant_backend="bitsandbytes_4bit", quant_kwargs=settings, components_to_quantize=["transformer", "text_encoder"]
        )
    pipeline: Any = diffusers.QwenImageEditPlusPipeline.from_pretrained(bench.model(), torch_dtype=bench.dtype, **quantised)
    pipeline.set_progress_bar_config(disable=True)
    randomise(pipeline.transformer)
    if bench.device.type != "cuda":
        return pipeline
    if offload == "model":
        pipeline.enable_model_cpu_offload()
    else:
        move = {"onload_device": bench.device, "offload_device": torch.device("cpu"), "use_stream": True}
        pipeline.transformer.enable_group_offload(offload_type="block_level", num_blocks_per_group=1, **move)
        diffusers.hooks.apply_group_offloading(pipeline.text_encoder, offload_type="leaf_level", **move)
        pipeline.vae.to(bench.device)
    return pipeline


def _measured(row: Row, bench: Bench, pipeline: Any) -> dict[str, Any]:
    photos = bench.photos(row.controls)

    def edit(number: int, steps: int = row.steps) -> None:
        pipeline(
            image=photos,
            prompt=f"Make it night {number}",
            negative_prompt=" ",
            true_cfg_scale=row.guidance,
            height=bench.side,
            width=bench.side,
            num_inference_steps=steps,
            output_type="pt",
            generator=torch.Generator().manual_seed(number),
        )

    edit(9, WARM)
    count = bench.images(row.steps)
    seconds, peak = timed(bench.device, lambda: [edit(number) for number in range(count)])
    return {"seconds": seconds / count, "peak": peak}
