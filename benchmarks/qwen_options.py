"""What each way of saving time or memory changes in the image, and what it costs, on the tiny model of the tests, on the CPU.

    python benchmarks/qwen_options.py [images] [rounds]

Every option of the Qwen editor (diffusers) alone against the exact engine: CPU seconds of denoising, share of the transformer's blocks that ran, and
the difference of the pictures as PSNR (40 dB and more is hard to see, 30 dB plain to see). The options take turns and the fastest round of each
counts. Prints a table and writes results/qwen_options.md.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "flywheel" / "editors")]
import conftest  # noqa: E402, F401 - gives the pack its name
import qwen_tiny  # noqa: E402
from comfyui_flenwheel.flywheel.editors import EditRequest  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen import latents  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen_diffusers import QwenDiffusers  # noqa: E402
from portrait import control, portrait  # noqa: E402

SIDE, STEPS, GUIDANCE, LAYERS = 128, 20, 4.0, 6
WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "guided_share 0.8": {"guided_share": 0.8},
    "guided_share 0.6": {"guided_share": 0.6},
    "block_cache 0.3": {"block_cache": 0.3},
    "block_cache 0.4": {"block_cache": 0.4},
    "block_cache 0.5": {"block_cache": 0.5},
    "control_megapixels: a quarter of the area": {"control_megapixels": SIDE * SIDE / 4e6},
    "precision int8": {"precision": "int8"},
    "precision fp8": {"precision": "fp8"},
    "precision w8a8": {"precision": "w8a8"},
    "precision nf4": {"precision": "nf4"},
    "memory streamed": {"memory": "streamed"},
    "compile": {"compile": True},
}


@dataclasses.dataclass(slots=True)
class Made:
    seconds: float
    blocks: float  # share that ran
    pictures: list[np.ndarray]


def main(images: int = 3, rounds: int = 2) -> None:
    torch.set_num_threads(1)
    best: dict[str, Made] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        qwen_tiny.build(folder / "tiny", layers=LAYERS)
        photo = control(folder, "photo.png", portrait().resize((192, 192)))
        orders = [EditRequest(f"Change background to a forest {n}", (photo,), n, SIDE, SIDE) for n in range(images)]
        editor = QwenDiffusers(model=str(folder / "tiny"), steps=STEPS, guidance=GUIDANCE, device="cpu", cache=folder / "cache")
        for _ in range(rounds):
            for name, options in WAYS.items():
                made = _made(dataclasses.replace(editor, **options), orders)
                if name not in best or made.seconds < best[name].seconds:
                    best[name] = made
    text = _report(best, images, rounds)
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    (ROOT / "benchmarks" / "results" / "qwen_options.md").write_text(text, encoding="utf-8")
    print(text)


def _made(editor: QwenDiffusers, orders: list[EditRequest]) -> Made:
    ran = 0

    def count(*_: Any) -> None:
        nonlocal ran
        ran += 1

    with editor.session() as edit:
        engine: Any = edit
        engine.load(orders, _silent)
        jobs = [engine.job(order) for order in orders]
        engine.denoise(jobs[:1], _silent)  # warm up, and compile
        for block in engine.parts._transformer.transformer_blocks:
            if not editor.compile:  # which calls nothing that could be counted
                block.attn.register_forward_pre_hook(count)
        began = time.process_time()
        made = [engine.denoise([job], _silent) for job in jobs]
        seconds = time.process_time() - began
        pixels = [latents.decode(engine.parts.vae(), latents.unpack(one, job.size))[0] for one, job in zip(made, jobs, strict=True)]
    passes = len(orders) * STEPS
    return Made(seconds, 1.0 if editor.compile else ran / (passes * LAYERS), [(one * 255).round().numpy() for one in pixels])


def _silent(*_: Any, **__: Any) -> None:
    pass


def _report(best: dict[str, Made], images: int, rounds: int) -> str:
    exact = best["exact"]
    lines = [
        "# What the Qwen editor's options change",
        "",
        f"{images} images of {SIDE} px, {STEPS} steps, guidance {GUIDANCE:g}, one control, tiny model of {LAYERS} blocks (real classes, random weights), fp32,"
        f" {platform.machine()} CPU, one thread, torch {torch.__version__}; fastest of {rounds} rounds in turn. Made with `python benchmarks/qwen_options.py`.",
        "",
        "| | CPU s per image | time | blocks that ran | PSNR against exact | largest difference of a pixel (of 255) |",
        "|---|---|---|---|---|---|",
    ]
    for name, made in best.items():
        differences = np.concatenate([(ours - theirs).ravel() for ours, theirs in zip(made.pictures, exact.pictures, strict=True)])
        mean = float(np.square(differences).mean())
        psnr = f"{10 * math.log10(255**2 / mean):.1f} dB" if mean else "the same"
        lines.append(
            f"| {name} | {made.seconds / images:.3f} | {made.seconds / exact.seconds:.2f} | {made.blocks:.0%} | {psnr} | {np.abs(differences).max():.0f} |"
        )
    return "\n".join([*lines, *FOOT]) + "\n"


FOOT = (
    "",
    "All are off by default, `memory streamed` apart, which the engine steps down to when a card is full. How to read this:",
    "",
    "- Random weights have no images to make: how an option looks on a real model is not told here, only that it does what it says, in which order of"
    " size, and that nothing else changes. A real model's steps are more alike: there a block cache skips at thresholds of about 0.1.",
    "- On a CPU the quantised rows are slower: weights are unpacked at every use and no integer unit helps. On a card they save memory, and w8a8 time;"
    " `benchmarks/gpu` measures that.",
)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
