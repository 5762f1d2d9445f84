"""Qwen-Image-Edit at full size on a card, with its memory capped: ours against diffusers with offload, and against the card's own ceiling.

    python benchmarks/gpu/qwen_diffusers.py [--cap 24] [--steps 4,8,40] [--no-peer]     on any CUDA card
    python benchmarks/gpu/qwen_diffusers.py --tiny                                      the same code on the CPU, in a minute

No download: the model has the real sizes and random weights. Its files are sparse (holes read as zeros and take no disk), and the weights are made
random once they are on the card, because zeros would draw less power and run faster. Prints a table with the card's name and writes it to
benchmarks/results/qwen_diffusers_gpu.md (not with --tiny).
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "flywheel" / "editors")]
import conftest  # noqa: E402, F401 - gives the pack its name
import qwen_tiny  # noqa: E402
from comfyui_flenwheel.flywheel.editors import EditRequest  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen import latents, memory, quantised  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen.models import GIB  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen_diffusers import QwenDiffusers  # noqa: E402
from portrait import control, portrait  # noqa: E402

WIDTH, LAYERS = 3072, 60
WORDS = 220  # text tokens per control, about
FULL_TEXT = {  # Qwen2.5-VL-7B
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
FULL_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def main() -> None:
    options = _arguments()
    device = torch.device("cpu" if options.tiny else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No CUDA card here. `--tiny` runs the same code on the CPU.")
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        cap = min(options.cap, total)
        torch.cuda.set_per_process_memory_fraction(cap / total)
        memory.free_gib = lambda _: cap - torch.cuda.memory_reserved() / GIB - 0.3  # what a card of that size would say
    else:
        cap = 0.0
        torch.set_num_threads(1)
    steps = [2] if options.tiny else [int(one) for one in options.steps.split(",")]
    side = 64 if options.tiny else 1024
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        qwen_tiny.build(folder)
        if not options.tiny:
            _grow(folder)
        rows = list(_ours(folder, device, steps, side, Path(place)))
        if not options.no_peer:
            rows += list(_peer(folder, device, min(steps), side))
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "CPU, tiny model"
    _report(rows, name, cap, _ceiling(device), side, write=not options.tiny)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cap", type=float, default=24.0, help="GiB of the card that may be used")
    parser.add_argument("--steps", default="4,8,40", help="step counts to measure")
    parser.add_argument("--no-peer", action="store_true", help="leave out diffusers with offload, which is slow")
    parser.add_argument("--tiny", action="store_true", help="the tiny model on the CPU: checks that all of this runs")
    return parser.parse_args()


# --- a model of the real size -----------------------------------------------------------------------------------------------------------


def _grow(folder: Path) -> None:
    """Turn the tiny folder into one of full size: real configurations, sparse bf16 weights."""
    import diffusers
    from accelerate import init_empty_weights
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with init_empty_weights():
        transformer = diffusers.QwenImageTransformer2DModel()
        config = json.loads((folder / "text_encoder" / "config.json").read_text())
        config["text_config"] |= FULL_TEXT
        config["vision_config"] |= FULL_VISION
        text = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    for part, made in (("transformer", transformer), ("text_encoder", text)):
        for old in (folder / part).glob("*.safetensors"):
            old.unlink()
        _sparse(folder / part / ("diffusion_pytorch_model" if part == "transformer" else "model"), made)
    transformer.save_config(folder / "transformer")
    text.config.save_pretrained(folder / "text_encoder")
    diffusers.AutoencoderKLQwenImage().save_pretrained(folder / "vae")


def _sparse(stem: Path, made: Any) -> None:
    header, place = {}, 0
    for name, weight in made.named_parameters():
        size = 2 * prod(weight.shape)
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [place, place + size]}
        place += size
    told = json.dumps(header).encode()
    with stem.with_suffix(".safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(told)) + told)
        file.truncate(8 + len(told) + place)


@torch.no_grad()
def _randomise(root: Any) -> None:
    """Weights as a model has them: small, all different, nowhere a code that is not a number."""
    for module in root.modules():
        if isinstance(module, quantised.ScaledLinear):
            module.weight.random_(0, 0x70) if module.kind == "fp8" else module.weight.random_(-127, 127)
            module.get_buffer("scale").fill_(0.02 / (448 if module.kind == "fp8" else 127))
        elif type(module).__name__ == "Linear4bit":
            module.weight.data.random_(0, 256)
        elif type(module) in (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv3d):
            module.weight.normal_(0, 0.02)
    for name, buffer in root.named_buffers():
        if name.endswith("table"):
            buffer.normal_(0, 0.1)


# --- measuring --------------------------------------------------------------------------------------------------------------------------


def _timed(device: torch.device, make: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and peak GiB."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    make()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, memory.measured_peak(device)


def _ours(folder: Path, device: torch.device, steps: list[int], side: int, place: Path) -> Any:
    pictures = [control(place, f"{n}.png", portrait().rotate(90 * n).resize((side, side))) for n in range(3)]
    for count in steps:
        guidance = 1.0 if count <= 8 else 4.0
        editor = QwenDiffusers(model=str(folder), steps=count, guidance=guidance, device=str(device), cache=place / "cache")
        with editor.session() as edit:
            engine: Any = edit
            for controls in (1, 2, 3):
                orders = [EditRequest(f"Make it night {n}", tuple(pictures[:controls]), n, side, side) for n in range(3)]
                engine.load(orders, _silent)
                if device.type == "cuda":
                    _randomise(engine.parts._transformer)
                _denoised(engine, orders[0])  # warm up
                seconds, peak = _timed(device, lambda: [_denoised(engine, order) for order in orders])  # noqa: B023 - called at once
                forwards = count * (2 if guidance > 1 else 1)
                yield {
                    "who": f"ours ({engine.parts.plan.rung}, {engine.parts.plan.precision})",
                    "controls": controls,
                    "steps": count,
                    "seconds": seconds / len(orders),
                    "peak": peak,
                    "flop": forwards * _flop(side, controls),
                }


def _denoised(engine: Any, order: EditRequest) -> None:
    """All that an image takes, up to its pixels; random weights make no picture the guard would pass."""
    job = engine.job(order)
    tokens = engine.denoise([job], _silent)
    latents.decode(engine.parts.vae(), latents.unpack(tokens, job.size).nan_to_num(0))


def _silent(*_: Any, **__: Any) -> None:
    pass


def _peer(folder: Path, device: torch.device, steps: int, side: int) -> Any:
    """The pipeline in bf16 with its largest part brought in group by group: what fits under the cap without quantising."""
    import diffusers

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pipeline: Any = diffusers.QwenImageEditPlusPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    if device.type == "cuda":
        _randomise(pipeline.transformer)
        move = {"onload_device": device, "offload_device": torch.device("cpu"), "use_stream": True}
        pipeline.transformer.enable_group_offload(offload_type="block_level", num_blocks_per_group=1, **move)
        diffusers.hooks.apply_group_offloading(pipeline.text_encoder, offload_type="leaf_level", **move)
        pipeline.vae.to(device)
    picture = portrait().resize((side, side)).convert("RGB")
    if device.type == "cpu":
        import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as upstream

        upstream.VAE_IMAGE_SIZE = side * side

    def make() -> None:
        pipeline(
            image=[picture],
            prompt="Make it night",
            height=side,
            width=side,
            num_inference_steps=steps,
            true_cfg_scale=1.0,
            output_type="pt",
            generator=torch.Generator().manual_seed(0),
        )

    make()
    seconds, peak = _timed(device, make)
    yield {
        "who": "diffusers, bf16, group offload",
        "controls": 1,
        "steps": steps,
        "seconds": seconds,
        "peak": peak,
        "flop": steps * _flop(side, 1),
    }


def _flop(side: int, controls: int) -> float:
    """Of one pass through the full-size transformer: linear layers and attention."""
    tokens = (1 + controls) * (side // latents.PATCH) ** 2 + WORDS * controls
    return 24 * WIDTH**2 * LAYERS * tokens + 4 * tokens**2 * WIDTH * LAYERS


def _ceiling(device: torch.device) -> float:
    """FLOP per second of a large bf16 matrix product on this card."""
    size = 8192 if device.type == "cuda" else 256
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    one = torch.randn(size, size, device=device, dtype=dtype)

    def products() -> None:
        for _ in range(20):
            one @ one

    products()
    return 20 * 2 * size**3 / _timed(device, products)[0]


def _report(rows: list[dict[str, Any]], name: str, cap: float, ceiling: float, side: int, *, write: bool) -> None:
    lines = [
        f"# Qwen-Image-Edit at {side} px on {name}" + (f", capped at {cap:g} GiB" if cap else ""),
        "",
        f"Random weights. bf16 matmul ceiling measured: {ceiling / 1e12:.1f} TFLOP/s. torch {torch.__version__}.",
        "",
        "| | controls | steps | s per edit | peak GiB | share of the ceiling |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = row["flop"] / row["seconds"] / ceiling if write else float("nan")
        lines.append(f"| {row['who']} | {row['controls']} | {row['steps']} | {row['seconds']:.2f} | {row['peak']:.1f} | {share:.0%} |")
    text = "\n".join(lines) + "\n"
    if write:
        (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
        (ROOT / "benchmarks" / "results" / "qwen_diffusers_gpu.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
