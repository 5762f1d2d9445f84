"""Editing with ComfyUI's own models: the real Qwen classes, loaders, sampler and server at toy size (see tiny_qwen), on real photographs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.project import load_project
from comfyui_flenwheel.nodes.launch import PACK, Server

from . import comfy

pytestmark = [pytest.mark.comfy]
HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("lora_files", HERE.parent / "flywheel" / "lora_files.py")
lora_files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lora_files)
ENRICH, EDITOR, PREVIEW = "12", "8", "11"
NOTHING = [0, 0.0]


@pytest.fixture(scope="module")
def told(comfyui, photos, tmp_path_factory):
    """What qwen_inside.py found, by check."""
    base = tmp_path_factory.mktemp("inside")
    command = [sys.executable, "-W", "ignore", str(HERE / "qwen_inside.py"), str(comfyui), str(base), str(photos / "obama.jpg")]
    done = subprocess.run(command, cwd=comfyui, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "memory leak" not in done.stderr, "a session must not keep the model it patched"
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_an_edit_is_exactly_what_the_stock_nodes_make_of_the_same_size(told):
    assert told["same_as_the_stock_nodes"] == NOTHING


def test_every_style_of_lora_is_the_same_lora(told):
    assert set(told["styles"]["apart"]) == set(lora_files.STYLES)
    assert all(difference == NOTHING for difference in told["styles"]["apart"].values())
    assert told["styles"]["effect"][1] > 5 < told["lokr"][1]


def test_stacks_add_up_and_weight_0_is_the_base_to_the_bit(told):
    stacks = told["stacks"]
    assert stacks["weight 0"] == NOTHING == stacks["base afterwards"] and stacks["same fingerprint"]
    assert stacks["one"][1] > 5 and stacks["both"][1] > 5, "each has an effect"
    assert stacks["other order"][0] <= 1 and stacks["negative undoes"][0] <= 1, "changes of weights are sums"


def test_a_lora_for_camera_prompts_leaves_the_others_and_their_keys_alone(told):
    chosen = told["per_prompt"]
    assert chosen["background"] == NOTHING and chosen["same key"] and chosen["camera"][1] > 5
    assert chosen["tag"] == NOTHING and all(chosen["groups"]) and chosen["notes"] == ["angle x 1"]


def test_a_lightning_lora_brings_its_own_steps(told):
    assert told["lightning_sets_the_steps"] == [4, 1.0, "40"]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (
            "flux",
            ["LoraError", "flux.safetensors does not fit Qwen-Image-Edit-2511", "0 of 19 layers", "this is a FLUX LoRA", "Take it out"],
        ),
        ("size", ["LoraError", "0 of 28 layers", "another size", "128 to 128 wide, the model's 64 to 64"]),
        ("nan", ["EditorError", "NaN", "SageAttention"]),
        ("black", ["EditorError", "is black and was not kept", "SageAttention", "VAE"]),
        ("2509", ["EditorError", "model is Qwen-Image-Edit-2511, but Qwen-Image-Edit-2509 is chosen"]),
        ("kontext", ["EditorError", "model is a QwenImage, but FLUX.1 Kontext is chosen"]),
        ("words", ["EditorError", "is 5,000 words long", "Shorten it"]),
        ("tag", ["EditorError", "@angle names no LoRA", "LoRA Stack"]),
        ("memory", ["EditorError", "Out of memory at 128 x 160 px", "Lower megapixels"]),
    ],
)
def test_what_cannot_work_is_refused_in_words(told, case, says):
    assert [words for words in says if words not in told["refusals"][case]] == []


def test_running_out_of_memory_once_is_survived_and_nothing_sticks(told):
    assert told["refusals"]["memory once"] is True
    assert told["refusals"]["after all that"] == NOTHING


def test_one_to_three_pictures_of_any_size_and_results_of_any_shape(told):
    pictures = told["controls"]
    assert all(difference > 0 for difference in pictures["apart"]), "every picture counts"
    assert pictures["2509"] > 0 < pictures["extra"] and pictures["smaller control"] > 0
    assert pictures["ranges"] == [[1, 2, 3], [1]]
    assert pictures["sizes"] == [[64, 64], [96, 256], [272, 80]]


def test_progress_previews_and_cancelling_between_two_blocks(told):
    progress = told["progress"]
    assert progress["grows"] and progress["last"] == 1.0
    assert progress["ticks"] > 4 * 2, "oftener than once per step"
    assert progress["previews"] == [[16, 20]] * 4 + [[128, 160]], "one per step, then the image"
    assert progress["cancelled after s"] < 1


def test_prompts_are_encoded_before_the_first_image_and_the_images_are_the_same(told):
    ahead = told["ahead"]
    assert ahead["is"] and ahead["encoded before image"] == [0, 0, 0, 0], "three prompts and one negative"
    assert all(difference == NOTHING for difference in ahead["apart"])


# --- in the server ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(comfyui, tmp_path_factory):
    """A server with the toy models and two LoRAs, of different trainers."""
    base = tmp_path_factory.mktemp("tiny")
    shutil.copytree(HERE / "tiny_qwen", base / "custom_nodes" / "tiny_qwen", ignore=shutil.ignore_patterns("__pycache__"))
    loras = base / "models" / "loras"
    loras.mkdir(parents=True)
    lora_files.save(loras / "mine.safetensors", lora_files.tensors("PEFT", seed=1, size=0.3))
    lora_files.save(loras / "angles.safetensors", lora_files.tensors("kohya and musubi", seed=2, size=0.3))
    flux = {
        f"lora_unet_double_blocks_{n}_img_attn_qkv.{part}.weight": lora_files.np.zeros((4, 4))
        for n in range(19)
        for part in lora_files.DOWN_UP
    }
    lora_files.save(loras / "flux.safetensors", flux)
    (loras / "cut.safetensors").write_bytes((loras / "mine.safetensors").read_bytes()[:-99])
    server = Server(comfyui, Path(sys.executable), base, extra_args=["--whitelist-custom-nodes", PACK, "tiny_qwen"])
    with server:
        yield server


@pytest.fixture(scope="module")
def few(photos, tmp_path_factory):
    """Three of the portraits: nine edits."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("obama.jpg", "obama2.jpg", "biden.jpg"):
        shutil.copy(photos / name, folder / name)
    return folder


def lap(name, photos, **overrides):
    """The bundled workflow with the toy models: few prompts, small images."""
    small = {
        "Project__name": name,
        "Curate_Source__folder": str(photos),
        "Prompt_Set__per_source": 0,
        "Prompt_Set__preset": "none",
        "Prompt_Set__prompts": "Change background to [forest|beach]\nChange camera angle to slightly left",
        "Enrich_Dataset__megapixels": 0.1,
        "Preview_Four__megapixels": 0.1,
        "Preview_Four__go_on": True,
        "Qwen_Editor_(ComfyUI_models)__steps": 2,
        "Load_Diffusion_Model__unet_name": "tiny_2511.safetensors",
        "Load_CLIP__clip_name": "tiny_text_encoder.safetensors",
        "Load_VAE__vae_name": "tiny_vae.safetensors",
        "LoRA_for_every_prompt__lora_name": "mine.safetensors",
        "LoRA_for_camera_prompts__lora_name": "angles.safetensors",
    }
    return comfy.bundled("flywheel1_qwen", **{**small, **overrides})


def stage(server, name):
    return load_project(server.base / "output" / "flenwheel" / name).stage("enriched")


def test_two_stacked_loras_enrich_portraits_preview_first_and_nothing_twice(tiny, few):
    waiting = comfy.run(tiny.address, lap("qwen", few, Preview_Four__go_on=False))
    assert waiting.status == "success", waiting.error
    assert ENRICH not in waiting.outputs, "held back"
    shelf = Shelf(stage(tiny, "qwen"))
    assert len(shelf.files) == 4 and {lineage.facts["template"] for lineage in shelf.lineages.values()} == {
        "Change background to [forest|beach]",
        "Change camera angle to slightly left",
    }
    assert "images are left: about" in waiting.text(PREVIEW) and waiting.outputs[PREVIEW]["images"]

    done = comfy.run(tiny.address, lap("qwen", few))
    assert done.status == "success", done.error
    assert EDITOR in done.cached and "4 were there already" in done.text(ENRICH)
    shelf = Shelf(stage(tiny, "qwen"))
    notes = {lineage.facts["prompt"]: lineage.facts["notes"] for lineage in shelf.lineages.values()}
    assert notes["Change background to forest"]["loras"] == ["mine x 1"]
    assert notes["Change camera angle to slightly left"]["loras"] == ["mine x 1", "angles x 0.9"]
    order = [
        lineage.facts["prompt"].split()[1]
        for lineage in sorted(shelf.lineages.values(), key=lambda made: shelf.files[made.request_key].stat().st_mtime_ns)
    ]
    assert order[4:] == sorted(order[4:]), "LoRA-major: all backgrounds, then all camera moves"
    for request_key, path in shelf.files.items():
        lineage = shelf.lineages[request_key]
        assert open_image(path).image.size == (lineage.width, lineage.height) and lineage.width % 16 == 0

    assert comfy.run(tiny.address, lap("qwen", few, LoRA_for_camera_prompts__weight=0.5)).status == "success"
    cameras = sum("camera" in lineage.facts["prompt"] for lineage in shelf.lineages.values())
    again = len(Shelf(stage(tiny, "qwen")).files) - len(shelf.files)
    assert again == cameras, "the backgrounds, which do not use that LoRA, are not made again"
    assert "memory leak" not in tiny.log.read_text(errors="replace"), "ComfyUI collects garbage before every image then, for seconds"


@pytest.mark.parametrize(("name", "says"), [("flux.safetensors", "0 of 19 layers: this is a FLUX LoRA"), ("cut.safetensors", "cut off")])
def test_a_wrong_lora_stops_the_graph_before_anything_is_made(tiny, few, name, says):
    outcome = comfy.run(tiny.address, lap("wrong lora", few, LoRA_for_every_prompt__lora_name=name))
    assert outcome.status == "error" and says in outcome.error
    assert not (tiny.base / "output" / "flenwheel" / "wrong_lora" / "data" / "enriched").exists()


def test_interrupt_takes_effect_within_a_second_and_the_rest_is_made_later(tiny, few):
    prompt = lap("interrupted qwen", few, **{"Qwen_Editor_(ComfyUI_models)__steps": 8})
    prompt_id = comfy.queue(tiny.address, prompt)
    _wait_for(tiny, "interrupted_qwen", 5)
    began = time.monotonic()
    comfy.call(tiny.address, "/interrupt", {"prompt_id": prompt_id})
    outcome = comfy.wait(tiny.address, prompt_id)
    assert outcome.status == "error" and time.monotonic() - began < 5, "a second on an idle machine; between two blocks, see above"
    kept = len(Shelf(stage(tiny, "interrupted_qwen")).files)
    again = comfy.run(tiny.address, prompt)
    assert again.status == "success" and f"{kept} were there already" in again.text(ENRICH)


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_with_the_same_bytes(tiny, few):
    prompt = lap("killed qwen", few)
    comfy.queue(tiny.address, prompt)
    _wait_for(tiny, "killed_qwen", 5)
    tiny.kill()
    whole = {path.name: path.read_bytes() for path in Shelf(stage(tiny, "killed_qwen")).files.values()}
    assert len(whole) >= 5

    tiny.start()
    outcome = comfy.run(tiny.address, prompt)
    assert outcome.status == "success", outcome.error
    assert f"{len(whole)} were there already" in outcome.text(ENRICH)
    shelf = Shelf(stage(tiny, "killed_qwen"))
    assert all(path.read_bytes() == whole[path.name] for path in shelf.files.values() if path.name in whole)
    first = next(iter(shelf.files.values()))
    before = first.read_bytes()
    first.unlink()
    comfy.run(tiny.address, prompt)
    assert first.read_bytes() == before, "the fingerprint of the sockets is the same after a restart, and so are the pixels"


def _wait_for(server, name, count):
    until = time.monotonic() + comfy.PATIENCE_S
    while time.monotonic() < until:
        folder = server.base / "output" / "flenwheel" / name / "data" / "enriched" / "v1"
        if folder.is_dir() and len(list(folder.glob("*.png"))) >= count:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{name} did not get {count} images")
