"""A batch of edits in our order against the plain diffusers loop, on the tiny model of the tests (real classes, random weights), on the CPU.

    python benchmarks/qwen_diffusers.py [photos] [prompts]

Photos x prompts x three LoRA combinations, both sides with the same weights, seeds, steps and guidance. The peer is the loop of every example:
for each photo, prompt and combination `set_adapters` and one call of QwenImageEditPlusPipeline. It is given our embeddings' maths (the pipeline's own
puts the text tokens at wrong positions), so that the images can be compared; the time of encoding stays in. Model loading is in neither time.
CPU seconds of the process count, not those on the clock: other programs share this machine. Prints a table and writes results/qwen_diffusers.md.
"""

from __future__ import annotations

import dataclasses
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

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "flywheel" / "editors")]
import conftest  # noqa: E402, F401 - gives the pack its name
import qwen_tiny  # noqa: E402
from comfyui_flenwheel.flywheel import lora, registration  # noqa: E402
from comfyui_flenwheel.flywheel.editors import EditRequest, Rendered  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen import adapters, encode, latents  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen_diffusers import QwenDiffusers  # noqa: E402
from PIL import Image  # noqa: E402
from portrait import control, portrait  # noqa: E402

GUIDANCE = 4.0
CASES = ((64, 4), (128, 8))  # side in px and steps
PROMPTS = ("Change background to a forest", "Make it night", "Turn into a watercolour painting", "Put on a red hat", "Zoom in", "Add a dog")
GOAL = 0.5


def main(photos: int = 3, prompts: int = 4) -> None:
    torch.set_num_threads(1)
    told = [_case(photos, prompts, side, steps) for side, steps in CASES]
    text = "\n".join([*HEAD, *told, *FOOT]) + "\n"
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    (ROOT / "benchmarks" / "results" / "qwen_diffusers.md").write_text(text, encoding="utf-8")
    print(text)


def _case(photos: int, prompts: int, side: int, steps: int) -> str:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pipeline = qwen_tiny.build(folder / "tiny")
        stack = _stack(pipeline, folder)
        controls = [control(folder, f"{n}.png", portrait().rotate(7 * n).resize((side * 3 // 2, side * 3 // 2))) for n in range(photos)]
        combinations = [(), stack[:1], stack]
        cells = [(photo, prompt, combination) for photo in controls for prompt in PROMPTS[:prompts] for combination in combinations]
        plain_s, plain, plain_facts = _plain(pipeline, cells, side, steps)
        rows = [("plain diffusers loop", plain_s, plain_facts, None)]
        editor = QwenDiffusers(
            model=str(folder / "tiny"), steps=steps, guidance=GUIDANCE, device="cpu", cache=folder / "cache", loras=_tagged(stack)
        )
        for name, options in (
            ("ours, one at once, first run", {}),
            ("ours, one at once, run again (from the caches)", {}),
            ("ours, six at once, first run", {"at_once": 6, "cache": folder / "cache6"}),
        ):
            seconds, images, facts = _ours(dataclasses.replace(editor, **options), cells, side)
            rows.append((name, seconds, facts, max(float((images[n] - plain[n]).abs().max()) for n in range(len(cells)))))
    return _table(
        rows, len(cells), f"{photos} photos x {prompts} prompts x 3 LoRA combinations = {len(cells)} edits, {side} px, {steps} steps"
    )


def _stack(pipeline: Any, folder: Path) -> tuple[lora.StackedLora, ...]:
    """Two LoRAs on attention and MLPs, as trainers make them."""
    modules = {name: size for name, size in qwen_tiny.linears(pipeline.transformer).items() if "attn" in name or "mlp" in name}
    files = [qwen_tiny.lora_file(folder / f"lora{n}.safetensors", modules, rank=16, seed=n, scale=0.03) for n in (1, 2)]
    return tuple(lora.stacked(path, weight) for path, weight in zip(files, (0.8, 0.6), strict=True))


def _tagged(stack: tuple[lora.StackedLora, ...]) -> lora.LoraStack:
    """The combinations by tags: @a takes the first, @b the second."""
    return lora.LoraStack(tuple(dataclasses.replace(one, when=tag) for one, tag in zip(stack, ("@a", "@b"), strict=True)))


def _plain(pipeline: Any, cells: list[Any], side: int, steps: int) -> tuple[float, list[torch.Tensor], dict[str, int]]:
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as upstream

    upstream.VAE_IMAGE_SIZE = side * side
    counts = {"encoded": 0, "controls": 0, "switches": 0}
    sizes = qwen_tiny.linears(pipeline.transformer)
    template = encode.template_of(qwen_tiny.CLASS)
    members = {one.path.stem: adapters.read(one, sizes, "tiny") for _, _, combination in cells for one in combination}
    for name, weights in members.items():
        adapters.inject(pipeline.transformer, weights, name)

    def embeds(prompt: list[str], image: list[Image.Image], *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        counts["encoded"] += 1
        made = encode.encode(pipeline.text_encoder, pipeline.processor, template, prompt[0], image)  # already at the size it sees
        return made, torch.ones(made.shape[:2], dtype=torch.long)

    pipeline._get_qwen_prompt_embeds = embeds
    images, active = [], None
    began = time.process_time()
    for seed, (photo, prompt, combination) in enumerate(cells):
        counts["controls"] += 1
        if combination != active:
            counts["switches"], active = counts["switches"] + 1, combination
            if combination:
                pipeline.transformer.set_adapters([one.path.stem for one in combination], [one.weight for one in combination])
                pipeline.transformer.enable_adapters()
            else:
                pipeline.transformer.disable_adapters()
        with Image.open(photo.path) as opened:
            made = pipeline(
                image=[opened.convert("RGB")],
                prompt=prompt,
                negative_prompt=" ",
                true_cfg_scale=GUIDANCE,
                height=side,
                width=side,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
            )
        images.append(made.images[0].permute(1, 2, 0))
    return time.process_time() - began, images, counts


def _ours(editor: QwenDiffusers, cells: list[Any], side: int) -> tuple[float, list[torch.Tensor], dict[str, int]]:
    tags = {0: (), 1: ("@a",), 2: ("@a", "@b")}
    orders = [
        EditRequest(prompt, (photo,), seed, side, side, tags=tags[len(combination)])
        for seed, (photo, prompt, combination) in enumerate(cells)
    ]
    decoded: list[torch.Tensor] = []
    decode, noted = latents.decode, registration.noted
    registration.noted = lambda *_: {}  # the check for moved pictures, and nothing the loop does
    latents.decode = lambda vae, frame: decoded.append(decode(vae, frame)) or decoded[-1]  # the numbers before they become 8 bits
    try:
        with editor.session() as edit:
            engine: Any = edit
            engine.load(orders[:3], lambda *_: None)  # one of each combination: loading is in neither time
            engine.parts.adapters.use(())
            switched = engine.parts.adapters.switches
            began = time.process_time()
            outcomes = list(engine.many(orders, lambda *_: None))
            seconds = time.process_time() - began
            facts = {"encoded": engine.counts.encoded, "controls": engine.inputs.pixels.made, "switches": engine.parts.adapters.switches - switched}
    finally:
        latents.decode, registration.noted = decode, noted
    failed = [outcome for _, outcome in outcomes if not isinstance(outcome, Rendered)]
    assert not failed, failed[0]
    images = {order: pixels[0] for (order, _), pixels in zip(outcomes, decoded, strict=True)}
    return seconds, [images[order] for order in orders], facts


def _table(rows: list[Any], edits: int, what: str) -> str:
    base = rows[0][1]
    lines = [
        "",
        what,
        "",
        "| | CPU s per edit | share of the plain loop | texts encoded | controls encoded | LoRA switches | largest difference of a pixel (0…1) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, seconds, facts, difference in rows:
        told = "" if difference is None else f"{difference:.1e}"
        lines.append(
            f"| {name} | {seconds / edits:.3f} | {seconds / base:.0%} | {facts['encoded']} | {facts['controls']} | {facts['switches']} | {told} |"
        )
    met = sum(seconds / base <= GOAL and difference < 1e-5 for _, seconds, _, difference in rows[1:])
    lines += ["", f"Goal (at most {GOAL:.0%} of the time, images equal to 1e-5): met by {met} of {len(rows) - 1} rows."]
    return "\n".join(lines)


HEAD = (
    "# A batch of Qwen edits against the plain diffusers loop",
    "",
    f"Tiny model (real classes, random weights), fp32, guidance {GUIDANCE:g}, {platform.machine()} CPU, one thread, torch {torch.__version__}."
    " Made with `python benchmarks/qwen_diffusers.py`.",
)
FOOT = (
    "",
    "Left out of our time: the check for moved pictures, made beside the card, which the plain loop does not make.",
    "",
    "The tiny model weighs text encoding more than a real one does, where denoising rules; what a real card gains is in `gpu/`, not here.",
)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
