"""Step 1.5 in the real ComfyUI, with toy FLUX models: the bundled graph, what a generator makes, and what it refuses."""

import io
import time

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.project import load_project
from PIL import Image

from . import comfy
from .conftest import lora_files

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

LORA = "flenwheel/synthetic/synthetic-character-v001.safetensors"
SIDE = 64
SEED = 5
SYNTHETIC, GENERATOR, STACK, FILTER, GATE, PRISTINE = "9", "8", "7", "11", "12", "13"
KLEIN = {
    "class_type": "CLIPLoader",
    "_meta": {"title": "Load CLIP"},
    "inputs": {"clip_name": "tiny_qwen3.safetensors", "type": "flux2", "device": "default"},
}


@pytest.fixture(scope="module")
def flux(tiny):
    """The toy server with a character LoRA, as a training puts it there."""
    path = tiny.base / "models" / "loras" / LORA
    path.parent.mkdir(parents=True, exist_ok=True)
    lora_files.save(path, lora_files.tensors("kohya and musubi", seed=3, size=0.5, chosen={"double_blocks.0.img_attn.proj": (128, 128)}))
    return tiny


def graph(name, **overrides):
    """The bundled graph with the toy models: few prompts, small images."""
    small = {
        "Project__name": name,
        "Load_Diffusion_Model__unet_name": "tiny_kontext.safetensors",
        "Load_Diffusion_Model__weight_dtype": "default",
        "Load_CLIP__clip_name1": "tiny_clip_l.safetensors",
        "Load_CLIP__clip_name2": "tiny_t5.safetensors",
        "Load_VAE__vae_name": "tiny_ae.safetensors",
        "Your_LoRA__lora_name": LORA,
        "Generator_(ComfyUI_models)__steps": 2,
        "Synthetic_Images__prompts": "photo of {token} {noun} [in a forest|on a beach]",
        "Synthetic_Images__images_per_prompt": 2,
        "Synthetic_Images__base_seed": SEED,
    }
    sides = {f"Synthetic_Images__{side}": 256 for side in ("width", "height")}
    return comfy.bundled("flywheel1_synthetic", **{**small, **sides, **overrides})


def only_generating(prompt):
    return {number: node for number, node in prompt.items() if number in ("1", "4", "5", "6", STACK, GENERATOR, SYNTHETIC)}


def stage(server, name):
    return load_project(server.base / "output" / "flenwheel" / name.replace(" ", "_")).stage("synthetic")


def made(server, name):
    """Prompt and seed of each image, and its pixels."""
    shelf = Shelf(stage(server, name))
    return {
        (shelf.lineages[key].facts["prompt"], shelf.lineages[key].facts["seed"]): np.asarray(open_image(path).image, dtype=np.int16)
        for key, path in shelf.files.items()
    }


def stock(server, words, seed, strength):
    """What ComfyUI's own nodes make of the same words, seed, model and LoRA."""
    chain = {number: node for number, node in graph("stock").items() if number in ("4", "5", "6")}
    inputs = {
        "20": ("LoraLoaderModelOnly", {"model": ["4", 0], "lora_name": LORA, "strength_model": strength}),
        "21": ("CLIPTextEncode", {"clip": ["5", 0], "text": words}),
        "22": ("FluxGuidance", {"conditioning": ["21", 0], "guidance": 3.5}),
        "23": ("EmptySD3LatentImage", {"width": 256, "height": 256, "batch_size": 1}),
        "25": ("VAEDecode", {"samples": ["24", 0], "vae": ["6", 0]}),
        "26": ("SaveImage", {"images": ["25", 0], "filename_prefix": "stock"}),
    }
    sampled = {"model": ["20", 0], "positive": ["22", 0], "negative": ["22", 0], "latent_image": ["23", 0], "seed": seed, "steps": 2}
    inputs["24"] = ("KSampler", {**sampled, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0})
    chain |= {number: {"class_type": kind, "inputs": given} for number, (kind, given) in inputs.items()}
    outcome = comfy.run(server.address, chain)
    assert outcome.status == "success", outcome.error
    (shown,) = outcome.outputs["26"]["images"]
    content = (server.base / shown["type"] / shown["subfolder"] / shown["filename"]).read_bytes()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.int16)


@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_each_image_is_the_one_that_the_stock_nodes_make(flux, strength):
    name = f"as stock {strength:g}"
    outcome = comfy.run(flux.address, only_generating(graph(name, Your_LoRA__weight=strength, Your_LoRA__enabled=bool(strength))))
    assert outcome.status == "success", outcome.error
    assert outcome.text(SYNTHETIC).startswith("4 images in ") and "4 of the 50 that step 1.5 asks for" in outcome.text(SYNTHETIC)
    images = made(flux, name)
    assert {words for words, _ in images} == {"photo of ohwx_char person in a forest", "photo of ohwx_char person on a beach"}
    assert len(images) == 4
    for (words, seed), pixels in images.items():
        assert np.abs(stock(flux, words, seed, strength) - pixels).max() <= 1


@pytest.mark.faces
def test_the_bundled_graph_makes_filters_and_waits_for_two_verdicts_on_each(flux, few):
    name = "synthetic whole"
    prompt = graph(name, Curate_Source__folder=str(few))
    outcome = comfy.run(flux.address, prompt)
    assert outcome.status == "success", outcome.error
    assert "1 MP: " in outcome.text(GENERATOR) and "synthetic-character-v001" in outcome.text(GENERATOR)
    assert "4 images in data/synthetic/v1/filtered until you decide" in outcome.text(FILTER), "noise has no face, so a person decides"
    assert PRISTINE not in outcome.outputs, "nothing is good yet"
    path = comfy.review_path(name.replace(" ", "_"), "synthetic")
    status, review = comfy.call(flux.address, path)
    assert status == 200 and len(review["items"]) == 4
    answers = dict.fromkeys(("character", "anatomy", "artefacts", "gap"), True)
    events = [{"key": item["key"], "label": "good", "reasons": [], "note": ""} for item in review["items"]]
    assert comfy.call(flux.address, f"{path}/labels", {"reviewer": "test", "events": events})[0] == 200
    strict = {"reviewer": "test", "pass": "strict", "events": [{**event, "answers": answers} for event in events]}
    assert comfy.call(flux.address, f"{path}/labels", strict)[0] == 200
    again = comfy.run(flux.address, prompt)
    assert again.status == "success", again.error
    assert again.text(PRISTINE).startswith("4 pristine images in ")
    pristine = load_project(stage(flux, name).project.root).stage("pristine").folder
    assert len(list(pristine.glob("*.png"))) == 4 and len(list((stage(flux, name).folder / "good").glob("*.png"))) == 4


@pytest.mark.parametrize("row", ["FLUX.2 klein", "FLUX.2 klein base"])
def test_another_model_is_other_loaders_and_another_choice(flux, row):
    prompt = only_generating(
        graph(row, Load_Diffusion_Model__unet_name="tiny_klein.safetensors", Load_VAE__vae_name="tiny_flux2_vae.safetensors")
    )
    prompt["5"] = KLEIN
    prompt[GENERATOR]["inputs"]["generator_model"] = row
    del prompt[GENERATOR]["inputs"]["loras"]
    outcome = comfy.run(flux.address, prompt)
    assert outcome.status == "success", outcome.error
    images = list(made(flux, row).values())
    assert len(images) == 4 and any(np.any(images[0] != other) for other in images[1:])
    prompt[GENERATOR]["inputs"]["guidance"] = 2.0
    ignored = comfy.run(flux.address, prompt)
    assert ignored.status == "error" and f"{row} knows no guidance: set guidance to 0" in ignored.error, "never silently"
    prompt[GENERATOR]["inputs"] |= {"generator_model": "FLUX.1 [dev]", "guidance": 0.0}
    wrong = comfy.run(flux.address, prompt)
    assert wrong.status == "error" and "but FLUX.1 [dev] is chosen" in wrong.error and "flux1-dev.safetensors (24 GB)" in wrong.error


def test_the_guidance_counts_and_what_was_made_is_not_made_again(flux):
    name = "guided"
    comfy.run(flux.address, only_generating(graph(name)))
    before = {path: path.read_bytes() for path in Shelf(stage(flux, name)).files.values()}
    told = comfy.run(flux.address, only_generating(graph(name, Synthetic_Images__images_per_prompt=3))).text(SYNTHETIC)
    assert "2 images made" in told and "4 were there already" in told
    other = comfy.run(flux.address, only_generating(graph(name, **{"Generator_(ComfyUI_models)__guidance": 1.5}))).text(SYNTHETIC)
    assert "4 images made" in other, "another guidance makes other images"
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_prompt_without_the_token_is_refused_before_a_model_is_loaded(flux):
    outcome = comfy.run(flux.address, only_generating(graph("nobody", Synthetic_Images__prompts="a man in a forest")))
    assert outcome.status == "error" and "'a man in a forest' lacks {token}" in outcome.error


def test_killed_in_the_middle_it_keeps_every_image_and_makes_only_the_rest(flux):
    name, wanted = "killed", 8
    prompt = only_generating(graph(name, Synthetic_Images__images_per_prompt=wanted // 2, **{"Generator_(ComfyUI_models)__steps": 12}))
    comfy.queue(flux.address, prompt)
    folder = flux.base / "output" / "flenwheel" / name / "data" / "synthetic" / "v1"
    until = time.monotonic() + comfy.PATIENCE_S
    while len(list(folder.glob("*.png"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.02)
    flux.kill()
    kept = {path: path.read_bytes() for path in Shelf(stage(flux, name)).files.values()}
    assert 2 <= len(kept) < wanted
    flux.start()
    outcome = comfy.run(flux.address, prompt)
    assert outcome.status == "success", outcome.error
    assert f"{wanted - len(kept)} image" in outcome.text(SYNTHETIC) and f"{len(kept)} were there already" in outcome.text(SYNTHETIC)
    assert len(made(flux, name)) == wanted and all(path.read_bytes() == content for path, content in kept.items())
