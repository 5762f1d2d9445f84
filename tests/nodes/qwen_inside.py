"""Runs inside a ComfyUI without its server and tells what came out, as JSON: python qwen_inside.py COMFYUI BASE PHOTO.

A process of its own, so that neither torch nor ComfyUI's settings stay in the test process. The models are ComfyUI's Qwen classes at toy
size, see tiny_qwen. Images are 128 x 160 px or smaller, two steps.
"""

import asyncio
import contextlib
import copy
import dataclasses
import importlib.util
import io
import json
import logging
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

COMFYUI, BASE, PHOTO = sys.argv[1:4]
HERE = Path(__file__).resolve().parent
sys.path[:1] = [COMFYUI, str(HERE.parent)]  # ComfyUI has modules called comfy and nodes, and so have the tests
sys.argv = ["main.py", "--cpu", "--base-directory", BASE]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy_aimdo.control  # noqa: E402

if comfy_aimdo.control.init("cuda"):  # the library alone, before what binds to it is imported; its hooks need a card
    comfy_aimdo.control.set_log_none()
import torch  # noqa: E402

torch.set_num_threads(1)
torch.inference_mode().__enter__()  # as ComfyUI does around every node
import comfy.sd  # noqa: E402
import conftest  # noqa: E402, F401 - gives the pack its name
import folder_paths  # noqa: E402
import node_helpers  # noqa: E402
import numpy as np  # noqa: E402
import server  # noqa: E402
from PIL import Image  # noqa: E402

import nodes  # noqa: E402
from flywheel import lora_files  # noqa: E402

server.PromptServer(asyncio.new_event_loop())
from comfy_execution.graph import DynamicPrompt  # noqa: E402
from comfy_extras.nodes_cfg import CFGNorm  # noqa: E402
from comfy_extras.nodes_custom_sampler import CFGGuider, KSamplerSelect, RandomNoise, SamplerCustomAdvanced  # noqa: E402
from comfy_extras.nodes_edit_model import ReferenceLatent  # noqa: E402
from comfy_extras.nodes_flux import Flux2Scheduler, FluxGuidance  # noqa: E402
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow  # noqa: E402
from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus  # noqa: E402
from comfyui_flenwheel.flywheel import lora, qwen  # noqa: E402
from comfyui_flenwheel.flywheel.editors import Choosy, ControlRef, EditRequest, Foresighted, key_of  # noqa: E402
from comfyui_flenwheel.flywheel.errors import FlywheelError  # noqa: E402
from comfyui_flenwheel.flywheel.render import Order, Progress, render  # noqa: E402
from comfyui_flenwheel.nodes import comfy_conditioning, comfy_decode, comfy_engine, comfy_plan, comfy_tables, comfy_whole, comfy_words, host  # noqa: E402


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_qwen = module_at(HERE / "tiny_qwen" / "__init__.py")
tiny_flux = module_at(HERE / "tiny_flux.py")

where = folder_paths.get_full_path_or_raise
SIZE = (128, 160)
CONTROL = Path(BASE) / "control.png"
OPTIONS = comfy_engine.Options(steps=2, cfg=2.0)


def load():
    sd = comfy.utils.load_torch_file(where("vae", "tiny_vae.safetensors"))
    return {
        "2511": comfy.sd.load_diffusion_model(where("diffusion_models", "tiny_2511.safetensors")),
        "2509": comfy.sd.load_diffusion_model(where("diffusion_models", "tiny_2509.safetensors")),
        "clip": comfy.sd.load_clip([where("text_encoders", "tiny_text_encoder.safetensors")], clip_type=comfy.sd.CLIPType.QWEN_IMAGE),
        "vae": comfy.sd.VAE(sd=sd),
        "nothing": None,
        "black vae": comfy.sd.VAE(
            sd={**sd, "decoder.head.2.weight": sd["decoder.head.2.weight"] * 0, "decoder.head.2.bias": sd["decoder.head.2.bias"] - 9}
        ),
    }


def editor(row="Qwen-Image-Edit-2511", model="2511", vae="vae", loras=(), options=OPTIONS, extras=(), patched=None, clip="clip"):
    stack = lora.LoraStack()
    for one in loras:
        stack = stack.plus(one)
    return comfy_engine.ComfyEditor(
        qwen.models()[row], patched or MODELS[model], MODELS[clip], MODELS[vae], "graph", options, stack, tuple(extras)
    )


def request(prompt="Change background to forest", seed=1, size=SIZE, controls=(CONTROL,), tags=()):
    return EditRequest(prompt, tuple(ControlRef(path, f"{path.name}{path.stat().st_size}") for path in controls), seed, *size, "", tags)


def quiet(fraction=0.0, preview=None):
    pass


class Loop:
    """Ticks and holds what it ticks for, as the render loop does."""

    def __init__(self, edit, report):
        self.edit, self.report = edit, report

    def tick(self, fraction=0.0, preview=None):
        self.report(fraction, preview)


def make(made_by, order=None, tick=quiet):
    with made_by.session() as edit:
        loop = Loop(edit, tick)
        return loop.edit(order or request(), loop.tick)


def pixels(made_by, order=None):
    return np.asarray(make(made_by, order).image, dtype=np.int16)


def apart(one, other):
    """Largest and mean difference of two pictures, 0..255."""
    return [int(np.abs(one - other).max()), round(float(np.abs(one - other).mean()), 3)]


def refusal(act):
    try:
        act()
    except FlywheelError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def file(name, named):
    return lora_files.save(Path(BASE) / f"{name}.safetensors", named)


def one(name, weight=1.0, when=lora.ALWAYS, style="diffusers", **how):
    return lora.stacked(file(name, lora_files.tensors(style, **{"size": 0.5, **how})), weight, when)


# --- what is checked --------------------------------------------------------------------------------------------------------------------


def same_as_the_stock_nodes(row="Qwen-Image-Edit-2511", model="2511", method="index_timestep_zero", count=1):
    """Same model, seed and prompt through ComfyUI's own nodes. The controls are 384 x 384, so that the text encoder sees the same pixels. `method`: of
    the node for reference latents, which ComfyUI's template of this model has or has not."""
    pictures = [Image.open(PHOTO).convert("RGB").resize((384, 384)).rotate(90 * number) for number in range(count)]
    for number, picture in enumerate(pictures):
        picture.save(Path(BASE) / f"square{number}.png")
    size = (160, 160)
    ours = pixels(editor(row, model), request(size=size, controls=[Path(BASE) / f"square{number}.png" for number in range(count)]))
    patched = ModelSamplingAuraFlow().patch_aura(MODELS[model], qwen.models()[row].shift)[0]
    patched = CFGNorm.execute(patched, 1.0).args[0]
    latents = [MODELS["vae"].encode(host.tensor(picture.resize(size, Image.Resampling.LANCZOS))) for picture in pictures]
    values = {"reference_latents": latents, **({"reference_latents_method": method} if method else {})}

    def conditioning(prompt):
        seen = {f"image{number}": host.tensor(picture) for number, picture in enumerate(pictures, 1)}
        encoded = TextEncodeQwenImageEditPlus.execute(MODELS["clip"], prompt, **seen).args[0]
        return node_helpers.conditioning_set_values(encoded, values)

    positive, negative = conditioning("Change background to forest"), conditioning("")
    out = nodes.common_ksampler(patched, 1, 2, 2.0, "euler", "simple", positive, negative, {"samples": torch.zeros_like(latents[0])})[0]
    decoded = MODELS["vae"].decode(out["samples"]).reshape(1, 160, 160, 3)
    return apart(ours, np.asarray(host.pictures(decoded)[0], dtype=np.int16))


def every_row_and_count():
    """The same of both Qwen rows and of one, two and three pictures."""
    templates = {"2511": "index_timestep_zero", "2509": None}
    return {
        f"{version} {count}": same_as_the_stock_nodes(f"Qwen-Image-Edit-{version}", version, method, count)
        for version, method in templates.items()
        for count in (1, 2, 3)
    }


def later_model():
    """A model that comes later is one more row: its schedule, steps and words are used, and no code knows its name."""
    row = {**TOLD["models"]["Qwen-Image-Edit-2511"], "shift": 2.2, "steps": 12}
    rows = {"later": row, "other words": {**row, "template": "short"}, "four": {**row, "controls": 4}}
    short = {"words": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "picture": "<|vision_start|><|image_pad|><|vision_end|>"}
    told = {**TOLD, "models": {**TOLD["models"], **rows}, "templates": {**TOLD["templates"], "short": short}}
    qwen._data = lambda: told
    qwen.models.cache_clear()
    later, other = pixels(editor("later")), pixels(editor("other words"))
    return {
        "as stock": same_as_the_stock_nodes("later"),
        "another schedule": apart(BASELINE, later)[1],
        "other words": apart(later, other)[1],
        "steps": editor("later", options=comfy_engine.Options()).fingerprint()["steps"],
        "four": pixels(editor("four"), request(controls=[CONTROL] * 4)).shape,
    }


def styles():
    """Each style against the first; and the first against the model without a LoRA."""
    made = {style: pixels(editor(loras=[one(f"style{place}", style=style, seed=7)])) for place, style in enumerate(lora_files.STYLES)}
    first = next(iter(made.values()))
    return {"apart": {style: apart(first, picture) for style, picture in made.items()}, "effect": apart(first, pixels(editor()))}


def stacks():
    a, b = one("a", seed=1), one("b", seed=2)
    base, both = pixels(editor()), pixels(editor(loras=[a, b]))
    off = [lora.stacked(a.path, 0.0), lora.stacked(b.path, 0.0)]
    with editor(loras=[a, b]).session() as edit:  # the base after its LoRAs were on, in one session and after it
        edit(request(), quiet)
    return {
        "weight 0": apart(base, pixels(editor(loras=off))),
        "same fingerprint": editor(loras=off).fingerprint() == editor().fingerprint(),
        "base afterwards": apart(base, pixels(editor())),
        "one": apart(base, pixels(editor(loras=[a]))),
        "both": apart(pixels(editor(loras=[a])), both),
        "other order": apart(both, pixels(editor(loras=[b, a]))),
        "negative undoes": apart(base, pixels(editor(loras=[a, lora.stacked(a.path, -1.0)]))),
    }


def per_prompt():
    """An angle LoRA for camera prompts: background prompts are made as if it were not there, under the same key."""
    angle = one("angle", when="camera", seed=3)
    plain, stacked = editor(), editor(loras=[angle])
    background, camera = request(), request("Change camera angle to slightly left")
    tagged = editor(loras=[one("tagged", when="@angle", seed=3)])
    return {
        "is": [isinstance(plain, Choosy)],
        "background": apart(pixels(plain, background), pixels(stacked, background)),
        "same key": plain.fingerprint_for(background) == stacked.fingerprint_for(background),
        "camera": apart(pixels(plain, camera), pixels(stacked, camera)),
        "tag": apart(pixels(stacked, camera), pixels(tagged, request(camera.prompt, tags=("@angle",)))),
        "groups": [
            stacked.group(background) == stacked.group(request("Change lighting to sunset")),
            stacked.group(camera) != stacked.group(background),
        ],
        "notes": make(stacked, camera).notes["loras"],
    }


def lightning_sets_the_steps():
    fast = one("Qwen-Image-Edit-2511-Lightning-4steps-V1.0")
    made_by = editor(loras=[fast], options=comfy_engine.Options())
    notes = make(made_by).notes
    return [notes["steps"], notes["cfg"], editor(options=comfy_engine.Options()).fingerprint()["steps"]]


def lokr():
    """Factors in full and factored once more, against the same change written out; and against the model without it."""
    rng, factors, whole = np.random.default_rng(1), {}, {}
    for number, (module, (out, inner)) in enumerate(lora_files.modules().items()):
        name, first = f"lycoris_{module.replace('.', '_')}", rng.standard_normal((2, 2)) * 0.3
        left, right = rng.standard_normal((out // 2, 3)) * 0.3, rng.standard_normal((3, inner // 2)) * 0.3
        second, scale = left @ right, 2.0 if number % 2 else 1.0
        factors[f"{name}.lokr_w1"] = first
        factors |= (
            {f"{name}.lokr_w2_a": left, f"{name}.lokr_w2_b": right, f"{name}.alpha": np.array(6.0)}
            if number % 2
            else {f"{name}.lokr_w2": second}
        )
        whole[f"diffusion_model.{module}.diff"] = np.kron(first, second) * scale
    made, expected = (pixels(editor(loras=[lora.stacked(file(name, named), 1.0)])) for name, named in (("lokr", factors), ("diff", whole)))
    return {"apart": apart(made, expected), "effect": apart(pixels(editor()), made)}


def quantised():
    """Files of 8 bits as ComfyUI's own loader gives them: nearly the same image; LoRAs reach every layer or none, through tables too."""
    told, a = {}, one("on 8 bits", seed=1)
    wide = one("wide on 8 bits", width=128)
    off, on = (comfy_engine.Options(steps=3, cfg=2.0, modulation_tables=tables) for tables in (False, True))
    exact, with_lora = pixels(editor(options=off)), pixels(editor(options=off, loras=[a]))
    for kind in ("float8_e4m3fn", "int8_tensorwise"):
        model = comfy.sd.load_diffusion_model(str(tiny_qwen.quantised(kind)))
        base, changed = pixels(editor(options=off, patched=model)), pixels(editor(options=off, patched=model, loras=[a]))
        told[kind] = {
            "base": apart(exact, base),
            "lora": apart(with_lora, changed)[1],
            "effect": apart(base, changed)[1],
            "tables": apart(base, pixels(editor(options=on, patched=model))),
            "lora in tables": apart(with_lora, pixels(editor(options=on, patched=model, loras=[a])))[1],
            "wide": refusal(lambda model=model: make(editor(patched=model, loras=[wide]))),
        }
    return told


def patched_elsewhere():
    """What nodes before ours did to the model stays: a LoRA of ComfyUI's loader is the LoRA of our stack, and both add up."""
    a, b = one("elsewhere", seed=1), one("here", seed=2)
    model = comfy.sd.load_lora_for_models(MODELS["2511"], None, comfy.utils.load_torch_file(str(a.path)), 1.0, 0.0)[0]
    return [apart(pixels(editor(loras=here)), pixels(editor(patched=model, loras=there))) for here, there in (([a], []), ([a, b], [b]))]


def refusals():
    flux = {
        f"lora_unet_double_blocks_{n}_img_attn_qkv.{part}.weight": np.zeros((4, 4)) for n in range(19) for part in ("lora_down", "lora_up")
    }
    broken = lora_files.tensors("diffusers")
    broken = {key: array * np.inf for key, array in broken.items()}

    def runs_out(times):
        left = [times]

        def patch(state):
            left[0] -= 1
            if left[0] >= 0:
                raise torch.cuda.OutOfMemoryError("simulated")
            return state

        model = MODELS["2511"].clone()
        model.set_model_patch(patch, "double_block")
        return editor(patched=model)

    checkpoint = comfy.sd.load_checkpoint_guess_config(str(tiny_qwen.checkpoint()), output_vae=True, output_clip=True)
    MODELS["no clip"], MODELS["no vae"] = checkpoint[1:3]
    empty = Path(BASE) / "empty.png"
    empty.touch()
    return {
        "no parts": refusal(lambda: make(editor(patched=checkpoint[0], clip="no clip", vae="no vae"))),
        "no vae at all": refusal(lambda: make(editor(vae="nothing"))),
        "empty": refusal(lambda: make(editor(), request(controls=[empty]))),
        "flux": refusal(lambda: make(editor(loras=[lora.stacked(file("flux", flux), 1.0)]))),
        "size": refusal(lambda: make(editor(loras=[one("wide", width=128)]))),
        "nan": refusal(lambda: make(editor(loras=[lora.stacked(file("broken", broken), 1.0)]))),
        "black": refusal(lambda: make(editor(vae="black vae"))),
        "2509": refusal(lambda: make(editor(row="Qwen-Image-Edit-2509"))),
        "kontext": refusal(lambda: make(editor(row="FLUX.1 Kontext"))),
        "words": refusal(lambda: make(editor(), request("word " * 5000))),
        "four": refusal(lambda: render([Order(request(controls=[CONTROL] * 4), "four")], editor(), None)),
        "tag": refusal(lambda: editor().fingerprint_for(request(tags=("@angle",)))),
        "memory once": make(runs_out(1)).notes.get("out_of_memory_once"),
        "memory": refusal(lambda: make(runs_out(9))),
        "after all that": apart(pixels(editor()), BASELINE),
    }


def memory_elsewhere():
    """Memory runs out in the text encoder, while a photo is encoded, or while an image is decoded: once, and each time."""
    told = {}
    for name, owner, attribute in (
        ("text encoder", type(MODELS["clip"]), "encode_from_tokens_scheduled"),
        ("photo", comfy.sd.VAE, "encode"),
        ("decoding", comfy.sd.VAE, "decode"),
    ):
        left = [0]

        def full(*given, left=left, **named):
            left[0] -= 1
            if left[0] >= 0:
                raise torch.cuda.OutOfMemoryError("simulated")
            return known(*given, **named)

        with instead(owner, attribute, full) as known:
            left[0] = 1
            made = make(editor())
            left[0] = 99
            told[name] = [
                apart(np.asarray(made.image, dtype=np.int16), BASELINE),
                made.notes["out_of_memory_once"],
                refusal(lambda: make(editor())),
            ]
    return told


def not_whole():
    """Valid files of the right kind that lack layers, through ComfyUI's loaders: a layer of a block, a block between others, one of all that is outside
    the blocks, of a text encoder and of a VAE."""

    def without(kind, name, lost, **renamed):
        state = comfy.utils.load_torch_file(where(kind, name))
        kept = {renamed.get(key, key): weight for key, weight in state.items() if not key.startswith(lost)}
        assert len(kept) < len(state) or renamed
        tiny_qwen.write(kind, f"lacks_{lost}.safetensors", lambda: kept)
        return where(kind, f"lacks_{lost}.safetensors")

    state = comfy.utils.load_torch_file(where("diffusion_models", "tiny_2511.safetensors"))
    gap = {key: key.replace("transformer_blocks.1.", "transformer_blocks.2.") for key in state}
    told = {}
    for name, path in (
        ("layer", without("diffusion_models", "tiny_2511.safetensors", "transformer_blocks.1.attn.to_q")),
        ("gap", without("diffusion_models", "tiny_2511.safetensors", "nothing", **gap)),
        ("outside", without("diffusion_models", "tiny_2511.safetensors", "norm_out.linear")),
    ):
        told[name] = refusal(lambda path=path: make(editor(patched=comfy.sd.load_diffusion_model(path))))
    clip, vae = fresh()
    path = without("text_encoders", "tiny_text_encoder.safetensors", "model.layers.1.mlp")
    clip = comfy.sd.load_clip([path], clip_type=comfy.sd.CLIPType.QWEN_IMAGE)
    told["clip"] = refusal(lambda: make(dataclasses.replace(editor(), clip=clip, vae=vae)))
    without("vae", "tiny_vae.safetensors", "decoder.upsamples.1")
    vae = nodes.VAELoader().load_vae("lacks_decoder.upsamples.1.safetensors")[0]
    told["vae"] = refusal(lambda: make(dataclasses.replace(editor(), vae=vae)))
    return told


def without_an_end():
    """Full width on no memory at all: as many blocks as the family has, one fewer, and this toy's, which is another width."""
    kinds = {"dtype": torch.float16, "device": "meta", "operations": comfy.ops.disable_weight_init}
    row = qwen.models()["Qwen-Image-Edit-2511"]
    told = {
        str(count): comfy_whole.fewer_blocks(comfy.ldm.qwen_image.model.QwenImageTransformer2DModel(num_layers=count, **kinds), row)
        for count in (60, 59)
    }
    return {**told, "toy": comfy_whole.fewer_blocks(MODELS["2511"].model.diffusion_model, row)}


def controls():
    """1 to 3 pictures change the result, each; odd sizes and transparency are taken; the range leaves room for the extras."""
    odd = Path(BASE) / "odd.png"
    Image.open(PHOTO).convert("RGBA").resize((201, 333)).save(odd)
    extra = ("x", Image.open(PHOTO).convert("RGB").resize((300, 200)))
    pictures = [pixels(editor(), request(controls=[CONTROL, odd, CONTROL][:count])) for count in (1, 2, 3)]
    return {
        "apart": [apart(pictures[0], pictures[1])[0], apart(pictures[1], pictures[2])[0]],
        "2509": apart(pictures[0], pixels(editor("Qwen-Image-Edit-2509", "2509")))[0],
        "extra": apart(pixels(editor(extras=[extra])), pictures[0])[0],
        "ranges": [list(editor().controls), list(editor(extras=[extra, extra]).controls)],
        "sizes": [list(make(editor(), request(size=size)).image.size) for size in ((64, 64), (96, 256), (272, 80))],
        "smaller control": apart(pixels(editor(options=comfy_engine.Options(2, 2.0, control_megapixels=0.01))), pictures[0])[0],
    }


def progress():
    """Fractions and previews that a person sees; how soon a cancel takes effect."""
    seen, previews = [], []

    def watch(fraction=0.0, preview=None):
        seen.append(fraction)
        previews.extend([list(preview.size)] if preview else [])

    make(editor(options=comfy_engine.Options(4, 2.0)), tick=watch)
    asked = []

    class Cancelled(BaseException):
        pass

    def cancel(fraction=0.0, preview=None):
        if fraction > 0.2:
            asked.append(time.monotonic())
            raise Cancelled

    try:
        make(editor(options=comfy_engine.Options(20, 2.0)), tick=cancel)
    except Cancelled:
        ended = time.monotonic() - asked[0]
    return {"grows": seen == sorted(seen), "last": seen[-1], "ticks": len(seen), "previews": previews, "cancelled after s": round(ended, 3)}


def reports():
    """What reaches the page: no preview is lost because another report came just before it."""
    sent, clock = [], iter([1.0, 1.01, 1.02, 1.2, 1.21, 1.4, 1.41])
    known, told = host.time, comfy.utils.PROGRESS_BAR_HOOK
    host.time = SimpleNamespace(monotonic=lambda: next(clock))
    comfy.utils.set_progress_bar_global_hook(lambda done, total, preview, **_: sent.append([done, preview[1].size[0] if preview else None]))
    report = host.Reporter(None, "Making")
    for done, preview in enumerate((None, 16, 32, None, None, 48, 64), 1):
        report(Progress(done / 10, 0.7 if done == 7 else 1, 0, None, Image.new("RGB", (preview, preview)) if preview else None))
    host.time = known
    comfy.utils.set_progress_bar_global_hook(told)
    return sent


def ahead():
    """With foresight the same images; the text encoder is asked once for all."""
    orders = [request(seed=seed, prompt=f"Change background to {place}") for seed, place in enumerate(("forest", "beach", "cafe"))]
    alone = [pixels(editor(), order) for order in orders]
    calls = []
    encode = MODELS["clip"].encode_from_tokens_scheduled
    MODELS["clip"].encode_from_tokens_scheduled = lambda *given, **named: (calls.append(sampled[0]), encode(*given, **named))[1]
    sampled = [0]
    made_by = editor()
    with made_by.session() as edit:
        edit.expect(orders)
        together = []
        for order in orders:
            together.append(np.asarray(edit(order, quiet).image, dtype=np.int16))
            sampled[0] += 1
        foresighted = isinstance(edit, Foresighted)
    del MODELS["clip"].encode_from_tokens_scheduled
    return {"is": foresighted, "apart": [apart(a, b) for a, b in zip(alone, together, strict=True)], "encoded before image": calls}


def many_photos():
    """As many photographs as prompts are encoded ahead: nothing is encoded again between the images."""
    photo, orders = Image.open(PHOTO).convert("RGB").resize((64, 64)), []
    for number in range(comfy_conditioning.LOOKAHEAD):
        path = Path(BASE) / f"many{number}.png"
        photo.rotate(number).save(path)
        orders.append(request(size=(64, 64), controls=(path,), seed=number))
    encode, calls, made = MODELS["clip"].encode_from_tokens_scheduled, [], 0
    MODELS["clip"].encode_from_tokens_scheduled = lambda *given, **named: (calls.append(made), encode(*given, **named))[1]
    with editor(options=comfy_engine.Options(steps=1, cfg=2.0)).session() as edit:
        edit.expect(orders)
        for order in orders[:3]:
            edit(order, quiet)
            made += 1
    del MODELS["clip"].encode_from_tokens_scheduled
    return [len(calls) / comfy_conditioning.LOOKAHEAD, max(calls)]


def another_try():
    """Of an image that drifted, with another seed, and one with words that nobody foresaw: what is encoded already stays."""
    orders = [request(seed=seed, prompt=f"Change background to {place}") for seed, place in enumerate(("forest", "beach", "cafe"))]
    encode, calls, made = MODELS["clip"].encode_from_tokens_scheduled, [], 0
    MODELS["clip"].encode_from_tokens_scheduled = lambda *given, **named: (calls.append(made), encode(*given, **named))[1]
    with editor().session() as edit:
        edit.expect(orders)
        for order in (orders[0], request(orders[0].prompt, seed=9), request("Make it night"), *orders[1:]):
            edit(order, quiet)
            made += 1
    del MODELS["clip"].encode_from_tokens_scheduled
    return calls


def making_room_beside():
    """Why a copy of the decoder works beside the next image, and not VAE.decode: to decode, ComfyUI makes room on the card, and takes it from a model at
    work. Here that is asked for in another thread, between two blocks, as VAE.decode does when a card is full; the weights lose their LoRA in the middle."""
    a, took = one("at work", seed=1), []
    expected = pixels(editor(loras=[a]))

    def make_room():
        device = MODELS["2511"].load_device
        unloaded = comfy.model_management.free_memory(1e12, device)
        took.append(any(one.model is not None and one.model.is_clone(MODELS["2511"]) for one in unloaded))

    def patch(state):
        if not took:
            thread = threading.Thread(target=make_room)
            thread.start()
            thread.join()
        return state

    model = MODELS["2511"].clone()
    model.set_model_patch(patch, "double_block")
    made = apart(expected, pixels(editor(loras=[a], patched=model)))
    return {"taken": took, "apart": made, "afterwards": apart(pixels(editor()), BASELINE)}


class Kept(dict):
    """Keeps images by key, as a shelf does."""

    def add(self, key, name, png, image, *, facts):
        self[key] = np.asarray(Image.open(io.BytesIO(png)), dtype=np.int16)
        return Path(name)


def three(prompt="Change background to"):
    return [Order(request(f"{prompt} {place}", seed), place) for seed, place in enumerate(("forest", "beach", "cafe"))]


def watched(before):
    """The model; this is called before each of its blocks."""
    model = MODELS["2511"].clone()
    model.set_model_patch(lambda state: (before(), state)[1], "double_block")
    return model


@contextlib.contextmanager
def instead(owner, name, other):
    known = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield known
    finally:
        setattr(owner, name, known)


def decoding_beside():
    """Each image but the last is decoded only once a block of the next has run: it would wait in vain if one followed the other."""
    a, images, copies, waited, exposing = one("beside", seed=1), Kept(), [], [], [0]
    alone, decoders = [pixels(editor(loras=[a]), order.request) for order in three()], []
    begun = {seed: threading.Event() for seed in range(3)}

    def decode(self, samples):
        copies.append(weakref.ref(self))
        waited.append(len(copies) == 3 or begun[len(copies)].wait(60))
        return decoded(self, samples)

    def made(self, vae):
        decoders.append(1)
        init(self, vae)

    def expose(session, order, tick):
        exposing[0] = order.seed
        return exposed(session, order, tick)

    made_by = editor(loras=[a], patched=watched(lambda: begun[exposing[0]].set()))
    with (
        instead(comfy_decode.Decoder, "__init__", made) as init,
        instead(comfy_decode.Decoder, "__call__", decode) as decoded,
        instead(comfy_engine._Session, "expose", expose) as exposed,
    ):
        run = render(three(), made_by, images)
    weights = {weight.data_ptr() for weight in MODELS["vae"].first_stage_model.parameters()}
    return {
        "waited": waited,
        "apart": [apart(one, other) for one, other in zip(alone, images.values(), strict=True)],
        "decoders": len(decoders),
        "let go": copies[0]() is None,
        "shared weights": sum(weight.data_ptr() in weights for weight in comfy_decode.Decoder(MODELS["vae"])._copy.parameters()),
        "account": list(run.account),
    }


def decoding_in_order():
    """Where a copy cannot be trusted and where there is no room, or no longer any: the same images, decoded by ComfyUI, and why is said once."""
    expected, told = [pixels(editor(), order.request) for order in three()], {}
    other = copy.copy(MODELS["vae"])
    other.__class__ = type("Other", (comfy.sd.VAE,), {})
    patched = fresh()[1]
    patched.patcher.add_patches({"conv2.bias": ("diff", (torch.zeros_like(patched.first_stage_model.conv2.bias),))})

    def full(self, samples):
        raise torch.cuda.OutOfMemoryError("simulated")

    small = comfy_plan.plan(MODELS["2511"], MODELS["clip"], MODELS["vae"], width=SIZE[0], height=SIZE[1], controls=1, batch=2)
    host.log.setLevel(logging.INFO)
    for name, vae, cause in (
        ("another pack's", other, contextlib.nullcontext()),
        ("patched", patched, contextlib.nullcontext()),
        ("dynamic", MODELS["vae"], instead(comfy.memory_management, "aimdo_enabled", True)),
        ("no room", MODELS["vae"], instead(comfy_plan, "_free", lambda device: small.peak - small.decoding / 2)),
        ("ran out", MODELS["vae"], instead(comfy_decode.Decoder, "__call__", full)),
        ("no second decoder", MODELS["vae"], instead(comfy_decode.Decoder, "__init__", full)),
    ):
        images, threads, lines = Kept(), [], []
        handler = logging.Handler()
        handler.emit = lambda record, lines=lines: lines.append(record.getMessage())
        host.log.addHandler(handler)

        def decode(self, samples, threads=threads):
            threads.append(threading.current_thread().name)
            return decoded(self, samples)

        with cause, instead(comfy.sd.VAE, "decode", decode) as decoded:
            render(three(), dataclasses.replace(editor(), vae=vae), images)
        host.log.removeHandler(handler)
        made = [images[key_of(editor(), order.request)] for order in three()]
        told[name] = {
            "apart": [apart(one, two) for one, two in zip(expected, made, strict=True)],
            "threads": threads,
            "said": [line for line in lines if "decoded before the next" in line],
        }
    return told


def cancelled_beside():
    """A person cancels while an image is decoded beside the next: the decoder stops between two layers, and the next run makes what is missing."""
    images, decoding = Kept(), threading.Event()

    class Cancelled(BaseException):
        pass

    def slowly(self, samples):
        def wait(*_):
            decoding.set()
            layers.append(self.abandoned.wait(60))

        self._copy.conv2.register_forward_pre_hook(wait)
        return decoded(self, samples)

    def report(progress):
        if decoding.is_set():
            raise Cancelled

    layers = []
    with instead(comfy_decode.Decoder, "__call__", slowly) as decoded:
        try:
            render(three("Cancel at the"), editor(), images, report=report)
            ended = "was not cancelled"
        except Cancelled:
            ended = "cancelled"
    kept = len(images)
    again = render(three("Cancel at the"), editor(), images)
    return {"ended": ended, "layers": layers, "kept": kept, "again": again.made, "in all": len(images)}


def cancelling_in_other_parts():
    """A person who cancels is heard between two layers of the text encoder and of the VAE, and nothing is left hanging on them."""

    class Cancelled(BaseException):
        pass

    told = {}
    for name, module, owner, attribute in (
        ("text encoder", MODELS["clip"].cond_stage_model, type(MODELS["clip"]), "encode_from_tokens_scheduled"),
        ("encoding a photo", MODELS["vae"].first_stage_model, comfy.sd.VAE, "encode"),
        ("decoding", MODELS["vae"].first_stage_model, comfy.sd.VAE, "decode"),
    ):
        inside, ticks = [False], []

        def call(*given, inside=inside, **named):
            inside[0] = True
            return known(*given, **named)

        def tick(fraction=0.0, preview=None, inside=inside, ticks=ticks):
            ticks.extend([1] if inside[0] else [])
            if len(ticks) == 3:
                raise Cancelled

        with instead(owner, attribute, call) as known:
            try:
                make(editor(), tick=tick)
            except Cancelled:
                told[name] = [len(ticks), sum(len(layer._forward_pre_hooks) for layer in module.modules())]
    return {**told, "afterwards": apart(pixels(editor()), BASELINE)}


def fresh(clip_file="tiny_text_encoder.safetensors"):
    """Text encoder and VAE as ComfyUI's loader nodes bring them, anew."""
    clip = comfy.sd.load_clip([where("text_encoders", clip_file)], clip_type=comfy.sd.CLIPType.QWEN_IMAGE)
    return clip, nodes.VAELoader().load_vae("tiny_vae.safetensors")[0]


def loader_in_graph(class_type, between=False, **inputs):
    """What the graph tells of a loader of this class, linked to our node's CLIP, or to a node between them."""
    nodes_of = {
        "1": {"class_type": class_type, "inputs": {"clip_name": "tiny_text_encoder.safetensors", "type": "qwen_image", **inputs}},
        "2": {"class_type": "FLEN_ComfyEditor", "inputs": {"clip": ["3" if between else "1", 0]}},
        "3": {"class_type": "LoraLoader", "inputs": {"clip": ["1", 0]}},
    }
    return comfy_words.loader_above(DynamicPrompt(nodes_of), "2", "clip")


def kept_on_disk():
    """More prompts than memory would hold ahead; all are encoded, then all photos, before the first image; a second run loads no text encoder."""
    count = comfy_conditioning.LOOKAHEAD + 8
    other = Path(BASE) / "other.png"
    Image.open(CONTROL).rotate(90).resize((64, 64)).save(other)
    orders = [request(f"Make it {n}", n, (64, 64), (CONTROL if n % 2 else other,)) for n in range(count)]
    cache, told = Path(BASE) / "kept", {}
    options = comfy_engine.Options(steps=1, cfg=2.0)

    def run(name, clip, vae, wanted=orders[:3], extras=(), cache=cache, loader=None):
        made_by = dataclasses.replace(editor(options=options, extras=extras), clip=clip, vae=vae, cache=cache, clip_loader=loader)
        calls, made, loaded = [], [], []
        encode, see, load = clip.encode_from_tokens_scheduled, vae.encode, clip.load_model
        clip.encode_from_tokens_scheduled = lambda *given, **named: (calls.append(("words", len(made))), encode(*given, **named))[1]
        clip.load_model = lambda *given: (loaded.append(1), load(*given))[1]
        vae.encode = lambda *given: (calls.append(("photo", len(made))), see(*given))[1]
        with made_by.session() as edit:
            edit.expect(orders)
            for order in wanted:  # the calls above look at how many there are
                made += [np.asarray(edit(order, quiet).image, dtype=np.int16)]
            name_known = edit.conditioning.words.name is not None
        told[name] = {
            "kinds": "".join(kind[0] for kind, _ in calls),
            "before image": max((before for _, before in calls), default=0),
            "loaded": len(loaded),
            "kept": name_known,
        }
        return made

    alone = [pixels(editor(options=options), order) for order in orders[:3]]
    first = run("first", *fresh())
    told["files"] = [len(list((cache / kind).glob("*.safetensors"))) for kind in ("words", "controls")]
    clip, vae = fresh()
    again = run("again", clip, vae)
    told["apart"] = [apart(one, other) for both in zip(alone, first, again, strict=True) for one, other in (both[:2], both[1:])]
    extra = ("x", Image.open(PHOTO).convert("RGB").resize((64, 64)))
    run("with picture 2", *fresh(), orders[:1], [extra])
    layer, vae = fresh()
    layer.clip_layer(-2)
    run("another layer", layer, vae, orders[:1])
    patched, vae = fresh()
    weight = next(name for name, value in patched.cond_stage_model.state_dict().items() if value.ndim == 2 and "layers.0" in name)
    patched.add_patches({weight: ("diff", (torch.ones_like(patched.cond_stage_model.state_dict()[weight]),))})
    run("patched", patched, vae, orders[:1])
    unknown, vae = fresh()
    unknown.patcher.cached_patcher_init = None
    run("unknown loader", unknown, vae, orders[:1])
    by_graph = loader_in_graph("CLIPLoaderGGUF")
    run("told by the graph", unknown, vae, orders[:1], loader=by_graph)
    run("told by the graph again", unknown, vae, orders[:1], loader=by_graph)
    unknown.add_patches({weight: ("diff", (torch.ones_like(unknown.cond_stage_model.state_dict()[weight]),))})
    run("told by the graph and patched", unknown, vae, orders[:1], loader=by_graph)
    told["not told by the graph"] = [
        loader_in_graph("LoaderOfAnotherPack"),
        loader_in_graph("CLIPLoaderGGUF", clip_name=["3", 0]),
        loader_in_graph("CLIPLoaderGGUF", between=True),
    ]
    copy = Path(where("text_encoders", "tiny_text_encoder.safetensors"))
    copy.with_name("other_text_encoder.safetensors").write_bytes(copy.read_bytes())
    run("another file", *fresh("other_text_encoder.safetensors"), orders[:1])
    copy.with_name("other_text_encoder.safetensors").touch()
    run("the file replaced", *fresh("other_text_encoder.safetensors"), orders[:1])
    return told


def encoding_on_the_side():
    """A second session makes the same bytes."""
    return apart(pixels(editor()), BASELINE)


def plans():
    """The plan of a session and the truth after it; and how it is planned for cards of several sizes, of which there is none here."""
    made_by = editor(loras=[one("planned", when="camera")])
    with made_by.session() as edit:
        edit.expect([request(), request("Change camera angle to lower")])
        before = edit.account()
        for order in (request(), request("Change camera angle to lower")):
            edit(order, quiet)
        after = edit.account()
    plan = made_by.plan(width=1024, height=1024, controls=1)
    stored = sum(weight.nbytes for weight in MODELS["2511"].model.diffusion_model.state_dict().values()) / 2**30
    known, rungs = comfy_plan._free, {}
    parts = (plan.transformer, plan.text_encoder, plan.vae, plan.working)
    alone = dataclasses.replace(plan, decoding=0.0).peak
    for name, free in {
        "large": plan.peak + 0.01,
        "middle": alone - min(parts[:2]) / 2,
        "small": plan.working + plan.vae + 0.5001,
    }.items():
        comfy_plan._free = lambda device, free=free: free
        rungs[name] = str(made_by.plan(width=1024, height=1024, controls=1))
    comfy_plan._free = known
    three = made_by.plan(width=1024, height=1024, controls=3)
    return {
        "before": before,
        "after": after,
        "stored": 0 <= plan.transformer - stored < 1e-4,
        "rungs": rungs,
        "more": three.working > plan.working,
    }


def tables():
    """Modulation tables: the same images with and without LoRAs, also on the tabled layers; fewer bytes loaded; everything as before afterwards."""
    on = comfy_engine.Options(steps=3, cfg=2.0, modulation_tables=True)
    off = comfy_engine.Options(steps=3, cfg=2.0)
    mods = {"time_text_embed.timestep_embedder.linear_1": (64, 256), "norm_out.linear": (128, 64)}
    odd = lora.stacked(file("on mods", lora_files.tensors("ComfyUI", size=0.5, chosen={**lora_files.modules(), **mods})), 1.0, "camera")
    camera = request("Change camera angle to lower")
    whole, told = MODELS["2511"].model_size(), {}
    for name, loras, order in (("plain", [], request()), ("lora", [odd], camera)):
        told[name] = apart(pixels(editor(options=off, loras=loras), order), pixels(editor(options=on, loras=loras), order))
    told["2509"] = apart(*(pixels(editor("Qwen-Image-Edit-2509", "2509", options=options)) for options in (off, on)))
    with editor(options=on, loras=[odd]).session() as edit:
        loaded = []
        for order in (request(), camera, request()):
            edit(order, quiet)
            loaded += [
                one.model_loaded_memory() for one in comfy.model_management.current_loaded_models if one.model.is_clone(MODELS["2511"])
            ]
    told["loaded"] = [round(one / whole, 3) for one in loaded]
    told["share"] = round(1 - comfy_tables.tabled_bytes(MODELS["2511"]) / whole, 3)
    plans = [editor(options=options).plan(width=1024, height=1024, controls=1) for options in (off, on)]
    told["plan"] = [round(plan.transformer * 2**30 / whole, 3) for plan in plans] + [plans[1].tables > 0]
    told["afterwards"] = apart(pixels(editor()), BASELINE)
    between = comfy_engine.Options(3, 2.0, "dpm_2", modulation_tables=True)
    told["between"] = refusal(lambda: make(editor(options=between)))
    told["after a failure"] = apart(pixels(editor()), BASELINE)
    return told


class Staged(comfy.model_patcher.ModelPatcherDynamic):
    """ComfyUI's dynamic VRAM where there is no card, for which ComfyUI itself takes another class: models mapped from their files, and staged."""

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def partially_unload(self, *_, **__):
        return self.restore_loaded_backups()  # what it does beside giving pages of the card back


def dynamic():
    """What ComfyUI does by default on NVIDIA cards, but for the pages: layers stay in their file and are fetched when they are used. LoRAs come on with
    the pages, so that only those on tabulated layers can be looked at here."""
    if comfy_aimdo.control.lib is None:
        return None
    off, on = (comfy_engine.Options(steps=3, cfg=2.0, modulation_tables=tables) for tables in (False, True))
    mods = {f"transformer_blocks.{n}.{stream}_mod.1": (6 * 64, 64) for n in range(2) for stream in ("img", "txt")}
    timed = one("timed layers", style="ComfyUI", chosen=mods)
    plain, with_lora = pixels(editor(options=off)), pixels(editor(options=off, loras=[timed]))
    known, images = dict(MODELS), Kept()
    with instead(comfy.model_patcher, "CoreModelPatcher", Staged), instead(comfy.memory_management, "aimdo_enabled", True):
        MODELS.update(load())
        layer = MODELS["2511"].model.diffusion_model.transformer_blocks[0].img_mod[1]
        made = {
            "kinds": [MODELS["2511"].is_dynamic(), MODELS["clip"].patcher.is_dynamic(), MODELS["vae"].patcher.is_dynamic()],
            "from the file": hasattr(layer.weight.untyped_storage(), "_comfy_tensor_file_slice"),
            "same": apart(pixels(editor()), BASELINE),
            "tables": apart(pixels(editor(options=on)), plain),
        }
        make(editor(options=off, loras=[timed]))  # leaves that LoRA on the layers that are tabulated next
        layer._v = "a page"
        made["left"] = type(layer.weight_lowvram_function).__name__
        made["lora in tables"] = apart(pixels(editor(options=on, loras=[timed])), with_lora)
        made["effect"] = apart(plain, with_lora)[1]
        made["page"] = vars(layer).pop("_v", "gone")
        made["afterwards"] = [apart(pixels(editor(options=on)), plain), apart(pixels(editor()), BASELINE)]
        run = render(three(), editor(), images)
    MODELS.update(known)
    return {**made, "batch": [run.made, len(run.failed)], "back": apart(pixels(editor()), BASELINE)}


def flux():
    """Kontext and klein against ComfyUI's own nodes of the same size; a LoRA for FLUX fits, one for Qwen does not; Kontext takes one picture."""
    models = load_flux()
    size, told = (160, 160), {}
    picture = Image.open(PHOTO).convert("RGB").resize(size)
    picture.save(Path(BASE) / "flux.png")
    order = request(size=size, controls=(Path(BASE) / "flux.png",))
    for row, kind, stock in (
        ("FLUX.1 Kontext", "kontext", stock_kontext),
        ("FLUX.2 klein", "klein", stock_klein),
        ("FLUX.2 klein base", "klein", stock_klein),
    ):
        model, clip, vae = models[kind]

        def made(loras=(), row=row, model=model, clip=clip, vae=vae):
            stack = lora.LoraStack(tuple(loras))
            return comfy_engine.ComfyEditor(qwen.models()[row], model, clip, vae, "graph", comfy_engine.Options(steps=2), stack)

        latent = vae.encode(host.tensor(picture))
        expected = vae.decode(stock(model, clip, latent, qwen.models()[row].cfg)).reshape(1, *size, 3)
        ours = pixels(made(), order)
        modules = {
            "double_blocks.0.img_attn.proj": (128, 128),
            "single_blocks.0.linear2": (128, 128 + 128 * (4 if kind == "kontext" else 3)),
        }
        fits = lora.stacked(file(f"{kind} lora", lora_files.tensors("ComfyUI", size=0.5, chosen=modules)), 1.0)
        told[row] = {
            "as stock": apart(ours, np.asarray(host.pictures(expected)[0], dtype=np.int16)),
            "with lora": apart(ours, pixels(made([fits]), order))[1],
            "wrong lora": refusal(lambda made=made: make(made([one("for qwen")]), order)),
            "wrong clip": refusal(
                lambda row=row, model=model, vae=vae: make(
                    comfy_engine.ComfyEditor(qwen.models()[row], model, MODELS["clip"], vae, "graph", comfy_engine.Options(steps=2)), order
                )
            ),
            "controls": list(made().controls),
        }
    return told


def load_flux():
    for (folder, name), state in tiny_flux.files(tiny_qwen.randomised).items():
        tiny_qwen.write(folder, name, state)

    def clip(kind, *names):
        return comfy.sd.load_clip([where("text_encoders", name) for name in names], clip_type=kind)

    def whole(model, clip, vae):
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(where("vae", vae)))
        return comfy.sd.load_diffusion_model(where("diffusion_models", model)), clip, vae

    return {
        "kontext": whole(
            "tiny_kontext.safetensors",
            clip(comfy.sd.CLIPType.FLUX, "tiny_clip_l.safetensors", "tiny_t5.safetensors"),
            "tiny_ae.safetensors",
        ),
        "klein": whole("tiny_klein.safetensors", clip(comfy.sd.CLIPType.FLUX2, "tiny_qwen3.safetensors"), "tiny_flux2_vae.safetensors"),
    }


def stock_conditioning(clip, latent, prompt):
    encoded = nodes.CLIPTextEncode().encode(clip, prompt)[0]
    return ReferenceLatent.execute(encoded, {"samples": latent}).args[0]


def stock_kontext(model, clip, latent, cfg):
    positive = FluxGuidance.execute(stock_conditioning(clip, latent, "Change background to forest"), 2.5).args[0]
    return nodes.common_ksampler(model, 1, 2, cfg, "euler", "simple", positive, positive, {"samples": torch.zeros_like(latent)})[0][
        "samples"
    ]


def stock_klein(model, clip, latent, cfg):
    positive, negative = (stock_conditioning(clip, latent, prompt) for prompt in ("Change background to forest", ""))
    guider = CFGGuider.execute(model, positive, negative, cfg).args[0]
    noise, sampler = RandomNoise.execute(1).args[0], KSamplerSelect.execute("euler").args[0]
    sigmas = Flux2Scheduler.execute(2, 160, 160).args[0]
    return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, {"samples": torch.zeros_like(latent)}).args[0]["samples"]


Image.open(PHOTO).convert("RGB").resize(SIZE).save(CONTROL)
TOLD = qwen._data()
MODELS = load()
BASELINE = pixels(editor())
CHECKS = (
    every_row_and_count,
    styles,
    stacks,
    per_prompt,
    lightning_sets_the_steps,
    lokr,
    quantised,
    patched_elsewhere,
    refusals,
    memory_elsewhere,
    not_whole,
    without_an_end,
    controls,
    progress,
    reports,
    ahead,
    many_photos,
    another_try,
    making_room_beside,
    decoding_beside,
    decoding_in_order,
    cancelled_beside,
    cancelling_in_other_parts,
    kept_on_disk,
    encoding_on_the_side,
    plans,
    tables,
    dynamic,
    flux,
    later_model,
)
told = {}
for check in CHECKS:
    began = time.monotonic()
    told[check.__name__] = check()
    print(check.__name__, round(time.monotonic() - began, 1), file=sys.stderr)
print(json.dumps(told))
