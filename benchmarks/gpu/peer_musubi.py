"""musubi-tuner at the same step: its own training script in its own Python, told as our musubi engine tells it, fp8 base and blocks swapped.

MUSUBI_ROOT names the checkout. What its caching programs would have made is random; the base is all hole until it is loaded. The fewest swapped
blocks that fit count: from what our 24 GB profile says upwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import ROOT, Bench
from rows import Row

INSIDE = Path(__file__).parent / "in_musubi.py"
STEPS, LAYERS, SWAP_MORE = 6, 60, 8


def measure(row: Row, bench: Bench) -> dict[str, Any]:
    sys.path.append(str(ROOT / "tests" / "training" / "engines"))
    from comfyui_flenwheel.training.engines import _launch, musubi
    from comfyui_flenwheel.training.errors import EngineNotInstalled

    root = Path(os.environ.get(musubi.ROOT, ""))
    if not (root / musubi.MARKER).is_file():
        return {"error": f"not measured: {musubi.ROOT} names no checkout of musubi-tuner"}
    try:
        python = _launch.interpreter(root, musubi.PYTHON)
    except EngineNotInstalled as error:
        return {"error": f"not measured: {error}"}
    env = _launch.environment({"PYTHONPATH": str(root / "src"), "HF_HUB_OFFLINE": "1"})
    first = _swapped(row)
    for swap in [0] if bench.tiny else range(first, musubi.FAMILIES["qwen_image_edit"].swap_max, SWAP_MORE):
        done = subprocess.run(
            [python, INSIDE, json.dumps(_task(row, bench, root, swap))], env=env, capture_output=True, text=True, check=False
        )
        if "OutOfMemoryError" not in done.stderr:
            break
    told = done.stdout.rpartition("MEASURED")[2]
    if done.returncode or not told:
        words = "out of memory" if "OutOfMemoryError" in done.stderr else (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
        return {"error": f"{words} with {bench.cap:g} GiB, {swap} blocks swapped"}
    return {**json.loads(told), "how": f"fp8, {swap} blocks swapped" if not bench.tiny else "one block, as stored"}


def _swapped(row: Row) -> int:
    """As our 24 GB profile says: 24 for one control at a megapixel, 7 more for each further one; a quarter of the pixels, a third of that."""
    at_full = 24 + 7 * (row.controls - 1)
    return at_full if row.megapixels >= 1 else at_full // 3


def _task(row: Row, bench: Bench, root: Path, swap: int) -> dict[str, Any]:
    """Training set, config and what it needs to know, laid out by our engine."""
    import peft_tiny
    from comfyui_flenwheel.flywheel.project import open_project
    from comfyui_flenwheel.training.engines import _dataset, _launch, musubi

    side = row.side
    place = bench.place / f"musubi-{row.controls}-{side}-{swap}"
    project = open_project(place / "home", "Anna", instance_token="ohwx_char", class_noun="person", medium="photographs")
    data = peft_tiny.triplets(project, 2, controls=row.controls, size=(side, side))
    light = {"fp8": False, "optimizer": "AdamW", "more": "num_layers = 1; max_data_loader_n_workers = 1"}
    options = light if bench.tiny else {"fp8": True, "blocks_to_swap": swap}
    spec = peft_tiny.spec(project, data, Path("qwen_image_edit_2509_bf16.safetensors"), engine="musubi", resolution=side, rank=16, alpha=16)
    spec = peft_tiny.dataclasses.replace(spec, options=options, learning_rate=1e-5, steps=STEPS, save_every=STEPS)
    job = peft_tiny.job(project, spec)
    folder, _ = _dataset.lay_out(job, musubi.LAYOUT)
    base = bench.place / f"musubi-{1 if bench.tiny else LAYERS}" / "qwen_image_edit_2509_bf16.safetensors"
    config = {**musubi.config(spec, {"dit": base}, job.folder, folder, 0, None), "output_name": "lora"}
    path = job.folder / "config" / "train.toml"
    _launch.write_text(path, _launch.toml(config))
    script = root / musubi.SOURCE / "qwen_image_train_network.py"
    return {
        "config": str(path),
        "dataset": str(folder / "dataset.toml"),
        "base": str(base),
        "layers": 1 if bench.tiny else LAYERS,
        "controls": row.controls,
        "cap": bench.cap,
        "script": str(script),
    }
