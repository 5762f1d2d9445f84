"""The bundled Qwen workflow in the real server, through both engines: toy weights in the real classes, real portraits."""

import re
import shutil
import time

import pytest
from comfyui_flenwheel.flywheel import repair
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.images import open_image, png_bytes
from comfyui_flenwheel.flywheel.project import load_project
from PIL import Image, ImageChops
from safetensors.numpy import load_file, save_file

from . import comfy
from .conftest import lora_files

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ENRICH, EDITOR, PREVIEW = "12", "8", "11"
COMFY, DIFFUSERS = "ComfyUI models", "diffusers"
BACKGROUNDS, CAMERA = "Change background to [forest|beach]", "Change camera angle to slightly left"


@pytest.fixture(params=[COMFY, DIFFUSERS])
def engine(request):
    """Each engine in turn; for diffusers the toy folder is made first."""
    if request.param == DIFFUSERS:
        request.getfixturevalue("tiny_folder")
    return request.param


def lap(engine, name, photos, *, steps=2, **overrides):
    """The bundled workflow with the toy models: few prompts, small images."""
    small = {
        "Project__name": name,
        "Curate_Source__folder": str(photos),
        "Prompt_Set__per_source": 0,
        "Prompt_Set__preset": "none",
        "Prompt_Set__prompts": f"{BACKGROUNDS}\n{CAMERA}",
        "Enrich_Dataset__megapixels": 0.1,
        "Preview_Four__megapixels": 0.1,
        "Preview_Four__go_on": True,
        "Qwen_Editor_(ComfyUI_models)__steps": steps,
        "Load_Diffusion_Model__unet_name": "tiny_2511.safetensors",
        "Load_CLIP__clip_name": "tiny_text_encoder.safetensors",
        "Load_VAE__vae_name": "tiny_vae.safetensors",
        "LoRA_for_every_prompt__lora_name": "mine.safetensors",
        "LoRA_for_camera_prompts__lora_name": "angles.safetensors",
    }
    graph = comfy.bundled("flywheel1_qwen", **{**small, **overrides})
    return graph if engine == COMFY else with_diffusers(graph, steps)


def with_diffusers(graph, steps, model="tiny-qwen"):
    """The same graph with the other editor in the editor's place; the loaders go."""
    kept = {number: node for number, node in graph.items() if number not in "345"}
    options = {"model": model, "transformer_file": "", "steps": steps, "guidance": 0.0, "schedule": "auto", "negative_prompt": " "}
    options |= {"precision": "auto", "memory": "auto", "control_megapixels": 0.0, "at_once": 1, "guided_share": 1.0, "block_cache": 0.0}
    node = {"class_type": "FLEN_QwenDiffusers", "inputs": {**options, "compile": False, "loras": graph[EDITOR]["inputs"]["loras"]}}
    return {**kept, EDITOR: node}


def stage(server, name):
    return load_project(server.base / "output" / "flenwheel" / name.replace(" ", "_")).stage("enriched")


def images(server, name):
    """Name to bytes of every finished image."""
    return {path.name: path.read_bytes() for path in Shelf(stage(server, name)).files.values()}


def wait_for(server, name, count):
    until = time.monotonic() + comfy.PATIENCE_S
    while time.monotonic() < until:
        folder = server.base / "output" / "flenwheel" / name.replace(" ", "_") / "data" / "enriched" / "v1"
        if folder.is_dir() and len(list(folder.glob("*.png"))) >= count:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{name} did not get {count} images")


def test_two_stacked_loras_enrich_portraits_preview_first_and_nothing_twice(tiny, few, engine):
    name = f"two loras {engine}"
    waiting = comfy.run(tiny.address, lap(engine, name, few, Preview_Four__go_on=False))
    assert waiting.status == "success", waiting.error
    assert ENRICH not in waiting.outputs, "held back"
    shelf = Shelf(stage(tiny, name))
    assert len(shelf.files) == 4 and {lineage.facts["template"] for lineage in shelf.lineages.values()} == {BACKGROUNDS, CAMERA}
    assert "images are left: about" in waiting.text(PREVIEW) and waiting.outputs[PREVIEW]["images"]
    assert "4 images in " in waiting.text(PREVIEW) and "memory at most" in waiting.text(PREVIEW)
    assert "peak about" in waiting.text(EDITOR) and "angles.safetensors: 28 of 28 layers" in waiting.text(EDITOR)

    done = comfy.run(tiny.address, lap(engine, name, few))
    assert done.status == "success", done.error
    assert EDITOR in done.cached and "4 were there already" in done.text(ENRICH)
    assert re.search(r"5 images in .* memory at most [\d.]+ GiB \(expected [\d.]+\)", done.text(ENRICH))
    shelf = Shelf(stage(tiny, name))
    notes = {lineage.facts["prompt"]: lineage.facts["notes"] for lineage in shelf.lineages.values()}
    assert notes["Change background to forest"]["loras"] == ["mine x 1"]
    assert notes[CAMERA]["loras"] == ["mine x 1", "angles x 0.9"]
    order = [
        lineage.facts["prompt"].split()[1]
        for lineage in sorted(shelf.lineages.values(), key=lambda made: shelf.files[made.request_key].stat().st_mtime_ns)
    ]
    assert order[4:] == sorted(order[4:]), "LoRA-major: all backgrounds, then all camera moves"
    for request_key, path in shelf.files.items():
        lineage = shelf.lineages[request_key]
        assert open_image(path).image.size == (lineage.width, lineage.height) and lineage.width % 16 == 0

    cache = tiny.base / "output" / "flenwheel" / ".cache" / ("comfyui" if engine == COMFY else "qwen")
    kept = {kind: sorted(path.name for path in (cache / kind).iterdir()) for kind in ("words", "controls")}
    assert len(kept["words"]) >= 9 + 3 and len(kept["controls"]) >= 3, "every prompt about every photo, and a negative for each"
    assert comfy.run(tiny.address, lap(engine, name, few, LoRA_for_camera_prompts__weight=0.5)).status == "success"
    assert kept == {kind: sorted(path.name for path in (cache / kind).iterdir()) for kind in kept}, "nothing was encoded again"
    cameras = sum("camera" in lineage.facts["prompt"] for lineage in shelf.lineages.values())
    again = len(Shelf(stage(tiny, name)).files) - len(shelf.files)
    assert again == cameras, "the backgrounds, which do not use that LoRA, are not made again"
    assert "memory leak" not in tiny.log.read_text(errors="replace"), "ComfyUI collects garbage before every image then, for seconds"


@pytest.mark.parametrize(("name", "says"), [("flux.safetensors", "0 of 19 layers: this is a FLUX LoRA"), ("cut.safetensors", "cut off")])
def test_a_wrong_lora_stops_the_graph_before_anything_is_made(tiny, few, engine, name, says):
    outcome = comfy.run(tiny.address, lap(engine, f"wrong lora {engine}", few, LoRA_for_every_prompt__lora_name=name))
    assert outcome.status == "error" and says in outcome.error
    assert not stage(tiny, f"wrong lora {engine}").folder.exists()


def from_registry(graph, chosen, **widgets):
    """The graph with LoRA from Registry in the place of the LoRA for camera prompts."""
    usual = {"strength": 1.0, "enabled": True, "when_to_use": "as usual", "tag": "@angle", "use_trigger_words": True}
    inputs = {"lora_entry": chosen, **usual, **widgets, "loras": ["6", 0]}
    report = {"class_type": "PreviewAny", "inputs": {"source": ["7", 2]}}
    return {**graph, "7": {"class_type": "FLEN_LoraFromRegistry", "inputs": inputs}, "20": report}


def test_a_lora_from_the_registry_is_found_by_name_or_its_absence_explained(tiny, few):
    """A published one under another file name and one that a training here wrote: their strength, words and prompts are their own."""
    loras = tiny.base / "models" / "loras"
    trained = loras / "flenwheel" / "anna" / "anna-character-v001.safetensors"
    trained.parent.mkdir(parents=True, exist_ok=True)
    facts = {"kind": "character", "project": "anna", "instance_token": "ohwx_anna", "base_model": "tiny"}
    lora_files.save(trained, lora_files.tensors("bare", seed=3), {f"flenwheel.{name}": text for name, text in facts.items()})
    lora_files.save(loras / "镜头转换.safetensors", lora_files.tensors("DiffSynth", seed=4))

    offered = comfy.call(tiny.address, "/object_info/FLEN_LoraFromRegistry")[1]["FLEN_LoraFromRegistry"]["input"]["required"]["lora_entry"]
    assert offered[1]["options"][0] == "anna · anna-character-v001"

    camera = from_registry(lap(COMFY, "registry", few), "Multiple angles (dx8152) · Qwen-Image-Edit-2509")
    outcome = comfy.run(tiny.address, camera)
    assert outcome.status == "success", outcome.error
    used = {lineage.facts["prompt"]: lineage.facts["notes"]["loras"] for lineage in Shelf(stage(tiny, "registry")).lineages.values()}
    assert used["Change background to forest"] == ["mine x 1"] and used[CAMERA] == ["mine x 1", "镜头转换 x 1"]
    assert "moves the camera" in outcome.text("7") and "28 layers, rank 4" in outcome.text("7")

    own = from_registry(lap(COMFY, "registry own", few), "anna · anna-character-v001", strength=0.5)
    outcome = comfy.run(tiny.address, own)
    assert outcome.status == "success", outcome.error
    assert "Trigger words: ohwx_anna." in outcome.text("7") and "anna-character-v001 x 0.5" in outcome.text("7")
    assert "mine x 1, anna-character-v001 x 0.5" in outcome.text("7"), "after the stack before it"

    outcome = comfy.run(tiny.address, from_registry(lap(COMFY, "registry", few), "Relight (dx8152) · Qwen-Image-Edit-2509"))
    wanted = ("Qwen-Image-Edit-2509-Relight.safetensors (236 MB)", "huggingface.co/Comfy-Org", str(loras), "never downloads")
    assert outcome.status == "error" and [words for words in wanted if words not in outcome.error] == []


KONTEXT_WORDS = {"clip_name1": "tiny_clip_l.safetensors", "clip_name2": "tiny_t5.safetensors", "type": "flux", "device": "default"}
KLEIN_WORDS = {"clip_name": "tiny_qwen3.safetensors", "type": "flux2", "device": "default"}


@pytest.mark.parametrize(
    ("name", "model", "words", "vae"),
    [
        ("FLUX.1 Kontext", "tiny_kontext", {"class_type": "DualCLIPLoader", "inputs": KONTEXT_WORDS}, "tiny_ae"),
        ("FLUX.2 klein", "tiny_klein", {"class_type": "CLIPLoader", "inputs": KLEIN_WORDS}, "tiny_flux2_vae"),
        ("FLUX.2 klein base", "tiny_klein", {"class_type": "CLIPLoader", "inputs": KLEIN_WORDS}, "tiny_flux2_vae"),
    ],
)
def test_models_of_the_flux_family_edit_in_the_same_graph(tiny, few, name, model, words, vae):
    """Another model is other loaders and another choice of edit_model, nothing else."""
    graph = lap(COMFY, name, few, Prompt_Set__sources="source_001*", Prompt_Set__prompts=BACKGROUNDS)
    graph["3"]["inputs"]["unet_name"] = f"{model}.safetensors"
    graph["4"] = words
    graph["5"]["inputs"]["vae_name"] = f"{vae}.safetensors"
    graph[EDITOR]["inputs"]["edit_model"] = name
    refused(tiny, graph, f"mine.safetensors does not fit {name}", "made for another model")
    del graph[EDITOR]["inputs"]["loras"]
    outcome = comfy.run(tiny.address, graph)
    assert outcome.status == "success", outcome.error
    made = Shelf(stage(tiny, name)).lineages.values()
    assert [lineage.facts["notes"]["model"] for lineage in made] == [name] * 2


def test_interrupted_then_killed_then_resumed_with_the_same_bytes(tiny, few, engine):
    """Only what is missing is made, and what was there keeps its bytes; an image made again after a restart has the same ones."""
    name = f"resumed {engine}"
    prompt = lap(engine, name, few, steps=8)
    queued = comfy.queue(tiny.address, prompt)
    wait_for(tiny, name, 5)
    comfy.call(tiny.address, "/interrupt", {"prompt_id": queued})
    stopped = comfy.wait(tiny.address, queued)
    assert stopped.status == "error" and any(kind == "execution_interrupted" for kind, _ in stopped.messages)
    after_interrupt = images(tiny, name)
    assert 5 <= len(after_interrupt) < 9

    comfy.queue(tiny.address, prompt)
    wait_for(tiny, name, len(after_interrupt) + 1)
    tiny.kill()
    after_kill = images(tiny, name)
    tiny.start()
    assert after_interrupt.items() <= after_kill.items()

    outcome = comfy.run(tiny.address, prompt)
    assert outcome.status == "success", outcome.error
    assert f"{len(after_kill)} were there already" in outcome.text(ENRICH)
    whole = images(tiny, name)
    assert len(whole) == 9 and after_kill.items() <= whole.items()

    first = next(iter(Shelf(stage(tiny, name)).files.values()))
    first.unlink()
    comfy.run(tiny.address, prompt)
    assert images(tiny, name) == whole, "the fingerprint of the models is the same after a restart, and so are the pixels"


def test_cancelling_ends_the_node_before_another_block_of_the_model_is_through(tiny, few, engine, record_property):
    """Each block takes 0.4 s, a step 0.8: a person who cancels waits for the block that runs, at most for one more, not for the step."""
    name, told = f"cancelled {engine}", tiny.base / "output" / "blocks.txt"
    told.unlink(missing_ok=True)
    graph = lap(engine, name, few, steps=8, Prompt_Set__sources="source_001*", Prompt_Set__prompts="Change background to forest")
    graph["21"] = {"class_type": "TinySlow", "inputs": {"editor": [EDITOR, 0], "seconds": 0.4}}
    for user in (PREVIEW, ENRICH):
        graph[user]["inputs"]["editor"] = ["21", 0]
    queued = comfy.queue(tiny.address, graph)
    until = time.monotonic() + comfy.PATIENCE_S
    while not told.is_file() or len(told.read_text().splitlines()) < 3:
        assert time.monotonic() < until
        time.sleep(0.02)
    comfy.call(tiny.address, "/interrupt", {"prompt_id": queued})
    heard = time.time()
    stopped = comfy.wait(tiny.address, queued)
    ended = next(what["timestamp"] / 1000 for kind, what in stopped.messages if kind == "execution_interrupted")
    begun_later = [begun for begun in map(float, told.read_text().split()) if begun > heard]
    record_property("seconds from interrupt to end", round(ended - heard, 3))
    print(f"{engine}: ended {ended - heard:.2f} s after the interrupt, {len(begun_later)} blocks begun after it")
    assert len(begun_later) <= 1 and images(tiny, name) == {}
    graph["21"]["inputs"]["seconds"] = 0.0
    assert comfy.run(tiny.address, graph).status == "success" and len(images(tiny, name)) == 1


def test_every_node_with_a_socket_for_an_editor_edits_and_a_lora_that_is_off_stays_out(tiny, few, engine):
    """Enrich Dataset, Model Card, Image to Image, and Repair Candidates once a verdict asks for it; through a mask too, with two seeds."""
    name, one = f"sockets {engine}", {"Prompt_Set__sources": "source_001*", "Prompt_Set__prompts": CAMERA}
    graph = lap(engine, name, few, steps=1, **one, LoRA_for_camera_prompts__enabled=False)
    graph["31"] = {"class_type": "FLEN_DatasetToImages", "inputs": {"dataset": ["2", 0], "first": 1, "at_most": 1}}
    edit = {"images": ["31", 0], "editor": [EDITOR, 0], "prompt": f"{name} [a|b]", "base_seed": 0, "megapixels": 0.05}
    graph["32"] = {"class_type": "FLEN_ImageToImage", "inputs": edit}
    card = {"dataset": ["2", 0], "editor": [EDITOR, 0], "photo": "", "base_seed": 0, "megapixels": 0.1}
    graph["33"] = {"class_type": "FLEN_ModelCard", "inputs": card}
    done = comfy.run(tiny.address, graph)
    assert done.status == "success", done.error
    assert "2 edits of 1 image" in done.text("32") and "23 images made" in done.text("33")
    (made,) = Shelf(stage(tiny, name)).lineages.values()
    assert made.facts["notes"]["loras"] == ["mine x 1"]

    comfy.label(tiny.address, name.replace(" ", "_"), {made.image_key: "needs_correction"}, ["identity"])
    repairs = {"project": ["1", 0], "editor": [EDITOR, 0], "limit": 0, "tries_each": 1}
    graph = {number: node for number, node in graph.items() if number in ("1", "3", "4", "5", "6", "7", EDITOR)}
    done = comfy.run(tiny.address, {**graph, "34": {"class_type": "FLEN_RepairCandidates", "inputs": repairs}})
    assert done.status == "success", done.error
    assert "1 corrections in" in done.text("34") and "1 image made" in done.text("34")

    project = load_project(tiny.base / "output" / "flenwheel" / name.replace(" ", "_"))
    candidate = open_image(Shelf(project.stage("enriched")).files[made.request_key]).image
    mask = Image.new("L", candidate.size, 0)
    mask.paste(255, (0, 0, candidate.width, candidate.height // 2))
    painted = repair.keep_mask(project, made.image_key, png_bytes(mask))
    repair.place_order(project, made.image_key, "Make it night", [1, 2], start="candidate", mask=painted)
    done = comfy.run(tiny.address, {**graph, "34": {"class_type": "FLEN_RepairCandidates", "inputs": repairs}})
    assert done.status == "success" and "2 images made" in done.text("34"), done.error
    shelf = Shelf(project.stage("corrections"))
    masked = [open_image(path).image for key, path in shelf.files.items() if "mask" in shelf.lineages[key].facts["notes"]]
    below = (0, candidate.height * 3 // 4, *candidate.size)
    assert len(masked) == 2
    assert all(ImageChops.difference(candidate, one).getbbox() for one in masked)
    assert not any(ImageChops.difference(candidate.crop(below), one.crop(below)).getbbox() for one in masked)


@pytest.mark.parametrize("name", ["2509", "2511"])
def test_a_transformer_file_of_comfyui_is_taken_by_the_other_engine_or_refused_over_another_model(tiny, tiny_folder, few, name):
    graph = lap(DIFFUSERS, f"file {name}", few, Prompt_Set__sources="source_001*", Prompt_Set__prompts=BACKGROUNDS)
    graph[EDITOR]["inputs"]["transformer_file"] = f"tiny_{name}.safetensors"
    if name == "2511":
        refused(tiny, graph, "tiny_2511.safetensors belongs to Qwen-Image-Edit-2511", "give that model's folder with it")
    else:
        outcome = comfy.run(tiny.address, graph)
        assert outcome.status == "success" and len(images(tiny, f"file {name}")) == 2, outcome.error


def test_an_edit_that_slid_is_flagged_and_gets_a_re_aligned_copy_when_asked(tiny, few):
    name = "slid"
    one = {"Prompt_Set__sources": "source_001*", "Prompt_Set__prompts": "Change background to forest"}

    def graph(**more):
        made = lap(COMFY, name, few, **one, **more)
        made["21"] = {"class_type": "TinyMoves", "inputs": {"editor": [EDITOR, 0], "right": 9}}
        for user in (PREVIEW, ENRICH):
            made[user]["inputs"]["editor"] = ["21", 0]
        return made

    flagged = comfy.run(tiny.address, graph())
    assert flagged.status == "success", flagged.error
    assert "1 images are shifted or zoomed" in flagged.text(ENRICH) and len(images(tiny, name)) == 1
    aligned = comfy.run(tiny.address, graph(Enrich_Dataset__shifted_edits="flag and add a re-aligned copy"))
    assert aligned.status == "success", aligned.error
    assert "1 re-aligned copies lie beside them" in aligned.text(ENRICH) and len(images(tiny, name)) == 2
    copy = next(made for made in Shelf(stage(tiny, name)).lineages.values() if "realigned_from" in made.facts["notes"])
    assert copy.facts["notes"]["undone_px"] == pytest.approx([9.0, 0.0], abs=0.5)


# --- bad input --------------------------------------------------------------------------------------------------------------------------


def refused(server, graph, *says):
    """The graph stops, and its message holds all of these words."""
    outcome = comfy.run(server.address, graph)
    assert outcome.status == "error" and [words for words in says if words not in outcome.error] == [], outcome.error


def test_a_prompt_of_5000_words_is_refused_with_its_length(tiny, few, engine):
    graph = lap(engine, f"words {engine}", few, Prompt_Set__prompts="Change background to a place " + "word " * 5000)
    refused(tiny, graph, "Not one of ", "5,005 words", "Shorten it")


def test_an_empty_file_among_the_photos_is_named_and_a_folder_of_nothing_else_refused(tiny, few, engine, tmp_path):
    (tmp_path / "empty.jpg").touch()
    refused(tiny, lap(engine, f"empty {engine}", tmp_path), "empty.jpg", "0 bytes")


def test_latents_are_taken_as_pictures_once_they_are_decoded_and_refused_before(tiny, few, engine):
    """A LATENT into a socket for pictures is refused by ComfyUI, which names both kinds."""
    graph = lap(engine, f"latents {engine}", few, Prompt_Set__sources="source_001*", Prompt_Set__prompts=CAMERA)
    graph = {number: node for number, node in graph.items() if number not in ("9", PREVIEW, ENRICH, "13", "14", "15")}
    edit = {"images": ["24", 0], "editor": [EDITOR, 0], "prompt": f"Make it night {engine}", "base_seed": 0, "megapixels": 0.02}
    graph |= {
        "5": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_vae.safetensors"}},
        "22": {"class_type": "EmptyImage", "inputs": {"width": 128, "height": 96, "batch_size": 1, "color": 0x806040}},
        "23": {"class_type": "VAEEncode", "inputs": {"pixels": ["22", 0], "vae": ["5", 0]}},
        "24": {"class_type": "VAEDecode", "inputs": {"samples": ["23", 0], "vae": ["5", 0]}},
        "32": {"class_type": "FLEN_ImageToImage", "inputs": edit},
    }
    graph[EDITOR]["inputs"]["picture_2"] = ["24", 0]
    outcome = comfy.run(tiny.address, graph)
    assert outcome.status == "success" and "1 image made" in outcome.text("32"), outcome.error
    edit["images"] = graph[EDITOR]["inputs"]["picture_2"] = ["23", 0]
    errors = comfy.call(tiny.address, "/prompt", {"prompt": graph})[1]["node_errors"]
    for number in ("32", EDITOR):
        assert "received_type(LATENT) mismatch input_type(IMAGE)" in str(errors[number]), errors


def test_an_image_without_pixels_is_refused_where_it_comes_in(tiny, few, engine):
    graph = lap(engine, f"no pixels {engine}", few)
    graph["22"] = {"class_type": "TinyNothing", "inputs": {"count": 1, "height": 0}}
    graph[EDITOR]["inputs"]["picture_2"] = ["22", 0]
    refused(tiny, graph, "1 image of 64 x 0 px came in", "Look at the node before this one")
    del graph[EDITOR]["inputs"]["picture_2"]
    edit = {"images": ["22", 0], "editor": [EDITOR, 0], "prompt": "Make it night", "base_seed": 0, "megapixels": 0.05}
    graph = {number: node for number, node in graph.items() if number not in (PREVIEW, ENRICH, "9", "13", "14", "15")}
    graph["22"]["inputs"] = {"count": 0, "height": 64}
    refused(tiny, graph | {"32": {"class_type": "FLEN_ImageToImage", "inputs": edit}}, "0 images of 64 x 64 px came in")


def test_pictures_go_with_every_photo_without_gaps_and_not_beyond_what_the_model_takes(tiny, few, engine):
    name = f"pictures {engine}"
    graph = lap(engine, name, few, Preview_Four__go_on=False)
    graph["22"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}
    graph[EDITOR]["inputs"]["picture_3"] = ["22", 0]
    refused(tiny, graph, "picture_3 is connected but picture_2 is not")
    graph[EDITOR]["inputs"]["picture_2"] = ["22", 0]
    assert comfy.run(tiny.address, graph).status == "success"
    made = Shelf(stage(tiny, name)).lineages.values()
    assert len(made) == 4 and all({"picture_2", "picture_3"} <= set(lineage.facts["editor"]) for lineage in made)
    if engine == COMFY:
        graph[EDITOR]["inputs"]["edit_model"] = "FLUX.1 Kontext"
        refused(tiny, graph, "FLUX.1 Kontext takes 1 picture at most", "Disconnect picture_2 and picture_3")


@pytest.mark.parametrize("times", [1, 10**6])
def test_running_out_of_memory_is_survived_once_and_explained_when_it_does_not_end(tiny, few, engine, times):
    name = f"memory {times} {engine}"
    graph = lap(engine, name, few, Prompt_Set__sources="source_001*", Prompt_Set__prompts="Change background to forest")
    graph["21"] = {"class_type": "TinyOutOfMemory", "inputs": {"editor": [EDITOR, 0], "times": times}}
    for user in (PREVIEW, ENRICH):
        graph[user]["inputs"]["editor"] = ["21", 0]
    if times == 1:
        outcome = comfy.run(tiny.address, graph)
        assert outcome.status == "success", outcome.error
        assert len(images(tiny, name)) == 1
    else:
        refused(tiny, graph, "emory", "megapixels", "control_megapixels")
        assert images(tiny, name) == {}
        graph["21"]["inputs"]["times"] = 0
        assert comfy.run(tiny.address, graph).status == "success" and len(images(tiny, name)) == 1, "with room again it goes on"


def test_models_that_do_not_belong_together_are_all_named(tiny, few):
    graph = lap(COMFY, "wrong models", few)
    graph[EDITOR]["inputs"]["edit_model"] = "FLUX.2 klein"
    refused(
        tiny,
        graph,
        "model is a QwenImage, but FLUX.2 klein is chosen",
        "clip is a QwenImageTokenizer",
        "load one with type flux2",
        "qwen_3_4b.safetensors (8 GB) into models/text_encoders: https://huggingface.co/",
    )


def test_models_of_comfyui_that_are_not_there_are_named(tiny, few):
    """By ComfyUI's own checks, before anything is made; an empty part of a checkpoint by ours, see test_qwen_comfy."""
    graph = lap(COMFY, "no models", few)
    graph["3"]["inputs"]["unet_name"] = "gone.safetensors"
    assert "gone.safetensors" in str(comfy.call(tiny.address, "/prompt", {"prompt": graph})[1]["node_errors"]["3"])
    del graph[EDITOR]["inputs"]["vae"]
    assert "vae" in str(comfy.call(tiny.address, "/prompt", {"prompt": graph})[1]["node_errors"][EDITOR])
    assert not (tiny.base / "output" / "flenwheel" / "no_models").exists()


@pytest.mark.parametrize(
    ("number", "kind", "name", "widget"),
    [
        ("3", "diffusion_models", "tiny_2511", "Load_Diffusion_Model__unet_name"),
        ("4", "text_encoders", "tiny_text_encoder", "Load_CLIP__clip_name"),
        ("5", "vae", "tiny_vae", "Load_VAE__vae_name"),
    ],
)
def test_a_damaged_model_file_stops_comfyuis_loader_whose_widget_names_it(tiny, few, number, kind, name, widget):
    folder, whole = tiny.base / "models" / kind, next((tiny.base / "models").rglob(f"{name}.safetensors")).read_bytes()
    folder.mkdir(exist_ok=True)
    for damage, content in (("page", b"<html>not found</html>"), ("half", whole[:-1000])):
        (folder / f"{damage}.safetensors").write_bytes(content)
        outcome = comfy.run(tiny.address, lap(COMFY, "damaged", few, **{widget: f"{damage}.safetensors"}))
        assert "deserializing header" in outcome.error, outcome.error
        assert [told["node_id"] for kind, told in outcome.messages if kind == "execution_error"] == [number]
    assert not stage(tiny, "damaged").folder.exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda folder: shutil.rmtree(folder),
            ["There is no Qwen-Image-Edit model folder", "54 GiB", "https://huggingface.co/Qwen", "never downloads"],
        ),
        (lambda folder: shutil.rmtree(folder / "vae"), ["vae is missing", "image encoder and decoder", "https://huggingface.co/Qwen"]),
        (lambda folder: cut(next((folder / "transformer").glob("*.safetensors"))), ["transformer", "cut off", "download it again"]),
        (
            lambda folder: next((folder / "text_encoder").glob("*.safetensors")).write_text("<html>"),
            ["text_encoder", "not a readable .safetensors"],
        ),
        (lambda folder: lose(folder / "transformer", "blocks.1."), ["spoilt/transformer lacks", "transformer_blocks.1.", "not whole"]),
        (lambda folder: lose(folder / "text_encoder", "layers.1."), ["spoilt/text_encoder lacks", "layers.1.", "not whole"]),
        (lambda folder: lose(folder / "vae", "decoder.mid_block"), ["spoilt/vae lacks", "decoder.mid_block", "not whole"]),
    ],
    ids=["no folder", "no vae", "cut off", "web page", "lacks a block", "lacks words", "lacks pixels"],
)
def test_missing_and_damaged_parts_of_a_folder_are_named_before_anything_is_made(tiny, tiny_folder, few, spoil, says):
    folder = tiny.base / "models" / "diffusers" / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folder.parent / tiny_folder, folder)
    spoil(folder)
    graph = lap(DIFFUSERS, "spoilt", few)
    graph[EDITOR]["inputs"]["model"] = "spoilt"
    del graph[EDITOR]["inputs"]["loras"]  # they would not fit what is left, and be refused first
    refused(tiny, graph, *says)
    assert not list((tiny.base / "output" / "flenwheel").glob("spoilt/data/enriched/v1/*.png"))


def lose(folder, lost):
    """A valid file without some of its weights."""
    (path,) = folder.glob("*.safetensors")
    save_file({name: weight for name, weight in load_file(path).items() if lost not in name}, path, {"format": "pt"})


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])
