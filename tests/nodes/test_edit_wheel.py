"""The second wheel in the real ComfyUI, as bundled: corrections, triplets, a training that outlives ComfyUI and a kill, the next enrichment with
the LoRA that came of it, in both engines, and the test scenes that show what a LoRA does. Toy weights in the real classes, real portraits."""

import os
import signal
import time

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.images import content_key
from comfyui_flenwheel.flywheel.project import load_project
from comfyui_flenwheel.training import run
from comfyui_flenwheel.training.job import jobs_of
from PIL import Image
from safetensors.numpy import save_file

from . import comfy

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NAME, FOLDER = "bundled wheel", "bundled_wheel"
TRIPLETS, START, TRAINED, ENRICH = "2", "5", "7", "14"
TINY = {"Load_Diffusion_Model__unet_name": "tiny_2511.safetensors", "Load_CLIP__clip_name": "tiny_text_encoder.safetensors"}
TINY |= {"Load_VAE__vae_name": "tiny_vae.safetensors"}


def ran(server, prompt):
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "success", outcome.error
    return outcome


@pytest.fixture(scope="module")
def corrected(tiny, few):
    """A lap whose edits were all corrected by hand and found good; how many they are."""
    lap = comfy.first_lap(Project__name=NAME, Curate_Source__folder=str(few), Prompt_Set__per_source=1, Enrich_Dataset__megapixels=0.1)
    ran(tiny, lap)
    project = load_project(tiny.base / "output" / "flenwheel" / FOLDER)
    folder = project.stage("corrections").folder
    folder.mkdir(parents=True, exist_ok=True)
    wrong = [item["key"] for item in comfy.review(tiny.address, FOLDER)["items"]]
    comfy.label(tiny.address, FOLDER, dict.fromkeys(wrong, "needs_correction"), ["identity"])
    for key in wrong:
        faulty = next(path for path in project.stage("enriched").folder.rglob("*.png") if content_key(path) == key)
        fixed = np.asarray(Image.open(faulty).convert("RGB")).copy()
        fixed[10:40, 10:40] = 255 - fixed[10:40, 10:40]
        Image.fromarray(fixed).save(folder / f"{key}.png")
    comfy.review(tiny.address, FOLDER)  # takes in what was saved
    events = [{"key": content_key(path), "label": "good", "reasons": [], "note": ""} for path in folder.glob("*.png")]
    status, answer = comfy.call(tiny.address, comfy.review_path(FOLDER, "corrections") + "/labels", {"reviewer": "test", "events": events})
    assert status == 200, answer
    return project, len(wrong)


def wheel(few):
    """The bundled workflow with the toy models, small."""
    return comfy.bundled(
        "flywheel2_edit_wheel",
        Project__name=NAME,
        Edit_LoRA_Settings__engine="peft_qlora",
        Edit_LoRA_Settings__base_model="tiny-qwen",
        Edit_LoRA_Settings__quality="draft",
        Edit_LoRA_Settings__rank=4,
        Edit_LoRA_Settings__steps=24,
        Edit_LoRA_Settings__memory="12 GB",
        Edit_LoRA_Settings__engine_options="sample_steps = 1\nsample_guidance = 1\nvalidate = 1\nwarmup = 0",
        Create_Correction_Triplets__doctor="off",
        Curate_Source__folder=str(few),
        Prompt_Set__preset="none",
        Prompt_Set__prompts="Change lighting to sunset, keep person identical",
        Prompt_Set__per_source=0,
        Enrich_Dataset__megapixels=0.1,
        **{"Qwen_Editor_(ComfyUI_models)__steps": 2},
        **TINY,
    )


def until(happened, patience_s=120.0):
    end = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def trained(tiny, tiny_folder, few, corrected):
    """The bundled wheel queued until its LoRA is there: ComfyUI is killed on the way, then the worker; and both go on."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    if os.name == "nt":
        pytest.skip("kill -9 is POSIX")
    project, count = corrected
    first = ran(tiny, wheel(few))
    assert f"{count} triplets" in first.text(TRIPLETS) and ENRICH not in first.outputs, "what needs the LoRA waits silently"
    (job,) = jobs_of(project)
    until(lambda: job.status().checkpoint >= 3)
    tiny.kill()
    reached = job.status().step
    until(lambda: job.status().step > reached)
    os.kill(next(event["pid"] for event in reversed(job.events()) if event["kind"] == "started"), signal.SIGKILL)
    until(lambda: job.status().state == "lost")
    kept = job.status().checkpoint
    tiny.start()
    ran(tiny, wheel(few))
    assert run.wait(job, 120).state == "done", job.status().cause
    assert job.status().attempts == 2 and any(event.get("text") == f"goes on from step {kept}" for event in job.events())
    return project, job


def test_the_bundled_wheel_enriches_with_the_lora_it_trained(tiny, trained, few):
    project, _ = trained
    done = ran(tiny, wheel(few))
    assert "found in Qwen-Image-Edit" in done.text(TRAINED)
    lineages = Shelf(project.stage("enriched")).lineages.values()
    used = [lineage for lineage in lineages if f"{FOLDER}-edit-v001" in str(lineage.facts)]
    assert len(used) == 3, [lineage.facts.get("editor") for lineage in lineages]


def test_the_editor_of_a_model_folder_edits_with_it_too(tiny, trained, tiny_folder, few):
    graph = comfy.first_lap(
        Project__name="elsewhere", Curate_Source__folder=str(few), Prompt_Set__per_source=1, Enrich_Dataset__megapixels=0.1
    )
    number = next(name for name, node in graph.items() if node["class_type"] == "FLEN_EnrichDataset")
    needed = {name: node for name, node in wheel(few).items() if name in ("1", TRIPLETS, "4", START, TRAINED)}
    graph |= {f"w{name}": renamed(node, "w") for name, node in needed.items()}
    options = {"transformer_file": "", "steps": 1, "guidance": 1.0, "schedule": "auto", "negative_prompt": " ", "precision": "auto"}
    options |= {"memory": "auto", "control_megapixels": 0.0, "at_once": 1, "guided_share": 1.0, "block_cache": 0.0, "compile": False}
    graph["e"] = {"class_type": "FLEN_QwenDiffusers", "inputs": {**options, "model": tiny_folder, "loras": [f"w{TRAINED}", 0]}}
    graph[number]["inputs"]["editor"] = ["e", 0]
    ran(tiny, graph)
    lineages = Shelf(load_project(tiny.base / "output" / "flenwheel" / "elsewhere").stage("enriched")).lineages.values()
    loras = [lineage.facts["notes"]["loras"] for lineage in lineages]
    assert loras and loras == [[f"{FOLDER}-edit-v001 x 1"]] * len(loras)


def renamed(node, prefix):
    """A node whose links lead to nodes with `prefix` before their number."""
    inputs = {name: [prefix + value[0], value[1]] if isinstance(value, list) else value for name, value in node["inputs"].items()}
    return {"class_type": node["class_type"], "inputs": inputs}


def test_comfyui_puts_every_layer_that_learnt_on_its_model(tiny, trained):
    _, job = trained
    made = run.result_of(job)
    name = made.path.relative_to(tiny.base / "models" / "loras").as_posix()
    graph = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_2509.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0], "lora_name": name, "strength_model": 1.0}},
        "3": {"class_type": "ModelSave", "inputs": {"model": ["2", 0], "filename_prefix": "with_lora"}},
    }
    before = len(tiny.log.read_text(errors="replace"))
    ran(tiny, graph)
    assert "lora key not loaded" not in tiny.log.read_text(errors="replace")[before:]
    from safetensors.torch import load_file

    bare = load_file(next((tiny.base / "models").rglob("tiny_2509.safetensors")))
    merged = load_file(next((tiny.base / "output").glob("with_lora*")))
    names = {key: key.removeprefix("model.diffusion_model.") for key in merged}
    second = {key: weight for key, weight in load_file(made.path).items() if ".lora_B." in key}
    learnt = {key.partition(".lora_B.")[0].removeprefix("transformer.") + ".weight" for key, weight in second.items() if weight.any()}
    assert {name for key, name in names.items() if not merged[key].equal(bare[name])} == learnt
    assert made.layers == len(second) == 24 and len(learnt) >= 20, "all but what the last block does to words, which nothing reads"


def picture_of(server, outcome, node="16"):
    shown = outcome.outputs[node]["images"][0]
    return np.asarray(Image.open(server.base / "output" / shown["subfolder"] / shown["filename"]).convert("RGB"), dtype=int)


def test_the_test_scene_and_the_trained_model_show_the_same_lora(tiny, trained, few):
    _, job = trained
    status, scene = comfy.call(tiny.address, f"/flenwheel/jobs/{FOLDER}/{job.id}/try")
    assert status == 200 and scene["name"] == f"flenwheel/{FOLDER}/{FOLDER}-edit-v001.safetensors"
    assert [node["widgets_values"][0] for node in scene["workflow"]["nodes"] if node["title"] == "This LoRA"] == [scene["name"]]

    (tiny.base / "input").mkdir(exist_ok=True)
    Image.effect_noise((128, 160), 80).convert("RGB").save(tiny.base / "input" / "example.png")
    strong = 10.0  # a few steps teach little
    graph = comfy.bundled("try_this_edit_lora", **TINY, This_LoRA__lora_name=scene["name"], This_LoRA__strength_model=strong)
    for sampler in ("10", "11"):
        graph[sampler]["inputs"] |= {"steps": 1, "cfg": 1.0}
    graph["5"] = {
        "class_type": "ImageScale",
        "inputs": {"image": ["4", 0], "upscale_method": "area", "width": 128, "height": 160, "crop": "disabled"},
    }
    picture = picture_of(tiny, ran(tiny, graph))
    assert picture.shape[1] == 3 * 128 + 2 * 16
    without, with_it = picture[:, 144:272], picture[:, 288:416]
    assert np.abs(without - with_it).max() > 2, "the LoRA changes the picture"

    graph |= {f"w{name}": renamed(node, "w") for name, node in wheel(few).items() if name in ("1", TRIPLETS, "4", START)}
    graph["6"] = {"class_type": "FLEN_TrainedLora", "inputs": {"job": [f"w{START}", 0], "weight": strong, "model": ["1", 0]}}
    graph["11"]["inputs"]["model"] = ["6", 1]
    graph["16"]["inputs"]["filename_prefix"] = "flenwheel/patched"
    assert np.array_equal(picture_of(tiny, ran(tiny, graph)), picture), "Trained LoRA's model is what the loader makes"


def test_the_scene_for_a_character_shows_what_a_flux_lora_does(tiny):
    name, layer, drawn = "flenwheel/her/her-character-v001.safetensors", "lora_unet_double_blocks_0_img_attn_qkv", np.random.default_rng(1)
    down, up = (drawn.standard_normal(shape, dtype=np.float32) for shape in ((4, 128), (384, 4)))
    (tiny.base / "models" / "loras" / name).parent.mkdir(parents=True)
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, tiny.base / "models" / "loras" / name)
    files = {"Load_Diffusion_Model__unet_name": "tiny_kontext.safetensors", "Load_VAE__vae_name": "tiny_ae.safetensors"}
    files |= {"Load_CLIP__clip_name1": "tiny_t5.safetensors", "Load_CLIP__clip_name2": "tiny_clip_l.safetensors"}
    small = {f"Size__{side}": 64 for side in ("width", "height")} | {f"{which}_the_LoRA__steps": 2 for which in ("With", "Without")}

    def scene(strength):
        graph = comfy.bundled("try_this_lora", **files, **small, This_LoRA__lora_name=name, This_LoRA__strength_model=strength)
        return picture_of(tiny, ran(tiny, graph), "14")

    for strength, differs in ((1.0, True), (0.0, False)):
        picture = scene(strength)
        assert picture.shape == (64, 2 * 64 + 16, 3)
        assert np.any(picture[:, :64] != picture[:, 80:]) == differs
