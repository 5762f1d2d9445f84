"""Our editor on ComfyUI's models against the stock nodes, in one process, on toy Qwen models of ComfyUI's real classes (tests/nodes/tiny_qwen).

    FLEN_COMFYUI=… FLEN_PHOTOS=… python benchmarks/qwen_comfy.py [photographs] [megapixels] [rounds]

Each photograph gets four prompts, two of them with one more LoRA. The stock graph runs as a queue of single edits would: per edit both prompts
through TextEncodeQwenImageEditPlus, LoRA loaders, KSampler, VAEDecode, save. "Same size" gives the stock nodes our control size, so that both
make the same pictures; "as shipped" is the plain graph, whose controls are always about one megapixel. The ways take turns, and the fastest round of
each counts, on the clock too: other programs share this machine. One thread. Prints a table and writes results/qwen_comfy.md.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNT, MEGAPIXELS, ROUNDS = (
    kind(given) for kind, given in zip((int, float, int), sys.argv[1:] + ["2", "0.1", "3"][len(sys.argv) - 1 :], strict=True)
)
BASE = tempfile.TemporaryDirectory()
sys.path[:1] = [os.environ["FLEN_COMFYUI"], str(ROOT / "tests"), str(ROOT / "benchmarks")]
sys.argv = ["main.py", "--cpu", "--base-directory", BASE.name]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import torch  # noqa: E402

torch.set_num_threads(1)
torch.inference_mode().__enter__()
import comfy.sd  # noqa: E402
import conftest  # noqa: E402, F401 - gives the pack its name
import folder_paths  # noqa: E402
import numpy as np  # noqa: E402
import server  # noqa: E402
from PIL import Image  # noqa: E402

from flywheel import lora_files  # noqa: E402

server.PromptServer(asyncio.new_event_loop())
import stock_graph  # noqa: E402
from comfyui_flenwheel.flywheel import candidates, enrich, instructions, lora, prompts, qwen  # noqa: E402
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord  # noqa: E402
from comfyui_flenwheel.flywheel.images import content_key, open_image  # noqa: E402
from comfyui_flenwheel.flywheel.project import open_project  # noqa: E402
from comfyui_flenwheel.nodes import comfy_engine, host  # noqa: E402

spec = importlib.util.spec_from_file_location("tiny_qwen", ROOT / "tests" / "nodes" / "tiny_qwen" / "__init__.py")
assert spec and spec.loader
spec.loader.exec_module(importlib.util.module_from_spec(spec))
where = folder_paths.get_full_path_or_raise
MODEL = comfy.sd.load_diffusion_model(where("diffusion_models", "tiny_2511.safetensors"))
CLIP = comfy.sd.load_clip([where("text_encoders", "tiny_text_encoder.safetensors")], clip_type=comfy.sd.CLIPType.QWEN_IMAGE)
VAE = comfy.sd.VAE(sd=comfy.utils.load_torch_file(where("vae", "tiny_vae.safetensors")))
STEPS, CFG = 4, 2.5
PROMPTS = prompts.parse("Change background to [forest|beach]\nChange camera angle to [slightly left|slightly right]")


def orders(folder):
    """The plan: photographs of a third of a megapixel and more, four prompts each."""
    project = open_project(folder, "bench", instance_token="ohwx_char", class_noun="person", medium="photographs")
    source = project.stage("source").folder
    source.mkdir(parents=True, exist_ok=True)
    records = []
    for path in [path for path in sorted(Path(os.environ["FLEN_PHOTOS"]).glob("*.jpg"))][:COUNT]:
        target = source / path.name
        target.write_bytes(path.read_bytes())
        image = open_image(target).image
        records.append(
            ImageRecord(content_key(target), project.relative(target), *image.size, "photo of ohwx_char person", "source", (), 0)
        )
    dataset = Dataset(project, "source", tuple(records))
    return dataset, enrich.plan(dataset, PROMPTS, seed=1, megapixels=MEGAPIXELS)


def stock(plan, folder, loras, same_size):
    """The stock graph, edit by edit in the plan's order."""
    made, changes, before, model = {}, 0, None, None
    for order in plan:
        request = order.request
        used = loras if instructions.parse(request.prompt).kind == "camera" else loras[:1]
        changes += used != before
        if used != before:  # ComfyUI's cache keeps the loaders' result while the inputs stay
            model, before = stock_graph.patched(MODEL, used), used
        photo = open_image(request.controls[0].path).image
        size = (request.width, request.height)
        pixels = stock_graph.edit(
            model, CLIP, VAE, [photo], request.prompt, seed=request.seed, size=size, steps=STEPS, cfg=CFG, same_size=same_size
        )
        image = host.pictures(pixels)[0]
        image.save(folder / f"{len(made)}.png", compress_level=4)  # as SaveImage does
        made[order.name] = np.asarray(image, np.int16)
    return made, changes


def ours(dataset, loras):
    """The whole batch as Enrich Dataset makes it, on an empty shelf."""
    shutil.rmtree(dataset.project.stage("enriched").folder, ignore_errors=True)
    stack = lora.LoraStack()
    for (path, weight), when in zip(loras, (lora.ALWAYS, "camera"), strict=True):
        stack = stack.plus(lora.stacked(path, weight, when))
    editor = comfy_engine.ComfyEditor(
        qwen.models()["Qwen-Image-Edit-2511"], MODEL, CLIP, VAE, "bench", comfy_engine.Options(STEPS, CFG), stack
    )
    enrich.enrich(dataset, PROMPTS, editor, seed=1, megapixels=MEGAPIXELS)
    shelf = candidates.Shelf(dataset.project.stage("enriched"))
    return {path.stem.rpartition("-")[0]: np.asarray(Image.open(path), np.int16) for path in shelf.files.values()}


def timed(act):
    """What came out, CPU seconds, seconds on the clock, and seconds that any thread waited until the disk had what was written."""
    waited, fsync = [], os.fsync

    def waiting(file):
        began = time.perf_counter()
        fsync(file)
        waited.append(time.perf_counter() - began)

    os.fsync = waiting
    wall, cpu = time.perf_counter(), time.process_time()
    result = act()
    seconds = time.process_time() - cpu, time.perf_counter() - wall
    os.fsync = fsync
    return result, *seconds, sum(waited)


def main():
    folder = Path(BASE.name)
    loras = [
        (lora_files.save(folder / f"{name}.safetensors", lora_files.tensors("ComfyUI", seed=seed, size=0.3)), 1.0)
        for seed, name in enumerate("ab")
    ]
    dataset, plan = orders(folder)
    (folder / "stock").mkdir()
    ways = {
        "stock nodes, same size as ours": lambda: stock(plan, folder / "stock", loras, True),
        "ours: FLEN editor and render loop": lambda: (ours(dataset, loras), 2),
    }
    some = plan[::5]  # a control of 1 MP is slow on a CPU
    stock(plan[:1], folder / "stock", loras, True)  # warm up: kernels, tokenizer
    shipped = [seconds * len(plan) / len(some) for seconds in timed(lambda: stock(some, folder / "stock", loras, False))[1:]]
    rounds = [{name: timed(way) for name, way in ways.items()} for _ in range(ROUNDS)]
    best = {name: [min(one[name][what] for one in rounds) for what in (1, 2, 3)] for name in ways}
    (same, changes), (made, _) = (rounds[0][name][0] for name in ways)
    worst = max(int(np.abs(same[name] - made[name]).max()) for name in same)
    count = len(plan)
    rows = [("stock nodes, control at 1 MP as shipped", *shipped, changes)]
    rows += [(name, *seconds, rounds[0][name][0][1]) for name, seconds in best.items()]
    same_cpu = rows[1][1]
    table = "\n".join(
        f"| {name} | {cpu / count:.2f} | {cpu / same_cpu:.2f} | {wall / count:.2f} | {disk / count:.3f} | {switched} |"
        for name, cpu, wall, disk, switched in rows
    )
    text = (
        f"# ComfyUI's models: our editor against the stock nodes\n\n{count} edits: {len(dataset.images)} photographs x 4 prompts at {MEGAPIXELS:g} MP,"
        f" two LoRA combinations, {STEPS} steps, CFG {CFG:g}. Toy Qwen-Image-Edit (ComfyUI's classes, 2 blocks of width 64,"
        f" random weights); one thread of {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}. Fastest of {ROUNDS} rounds in"
        " which the ways take turns.\n\n"
        "| way | CPU s per edit | ratio | s on the clock | s waiting for the disk | changes of LoRAs |\n|---|---|---|---|---|---|\n"
        f"{table}\n\nLargest difference of a pixel between ours and the stock nodes at the same size: {worst} of 255.\n\n"
        "What is saved: control and negative prompt are encoded once per photograph instead of with every edit (as shipped: the control twice per edit); LoRAs change once,"
        " not with every photograph. What this toy cannot show: on a card that cannot hold text encoder and model together, the stock graph changes"
        " between them with every edit, ours once per batch (per 32 edits where it cannot be told which text encoder is connected). Ours decodes in a second"
        " thread, beside the next edit, so that its clock may show less than its CPU time. It waits for the disk, mostly beside the next edit, so that what it calls finished"
        " survives a crash; the stock nodes do not.\n"
    )
    print(text)
    (ROOT / "benchmarks" / "results" / "qwen_comfy.md").write_text(text)


main()
