"""Paired datasets in the real ComfyUI: load, refuse, examine, mend, export, import; and a lap's corrections become exported triplets."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.images import content_key, open_image, png_bytes
from comfyui_flenwheel.flywheel.layouts import import_dataset
from comfyui_flenwheel.flywheel.pair_examples import EXAMPLES, make_example
from comfyui_flenwheel.flywheel.project import load_project
from PIL import Image, ImageDraw

from . import comfy

pytestmark = pytest.mark.comfy


@pytest.fixture
def shirts(tmp_path, photos):
    """Logo on shirt: photographs, a logo, and the photographs with the logo on; one of them slid."""
    root = tmp_path / "logo on shirt"
    for name in ("results", "shirts", "logos"):
        (root / name).mkdir(parents=True)
    for number, path in enumerate(sorted(photos.iterdir())[:4], 1):
        photo = open_image(path, at_least=600).image
        photo.thumbnail((480, 480))
        logo = Image.new("RGB", (96, 96), (20 * number, 40, 160))
        ImageDraw.Draw(logo).ellipse((16, 16, 80, 80), fill=(240, 220, 60))
        result = photo.copy()
        result.paste(logo.resize((80, 80)), (photo.width // 2 - 40, photo.height - 100))
        if number == 2:
            result = result.transform(result.size, Image.Transform.AFFINE, (1, 0, -5, 0, 1, 3), Image.Resampling.BICUBIC)
        result.save(root / "results" / f"{number:02}.png")
        photo.save(root / "shirts" / f"{number:02}.jpg", quality=95)
        logo.save(root / "logos" / f"{number:02}.PNG")
    return root


def doctored(pairs):
    limits = {"shift_px": 1.5, "zoom": 0.003, "colour": 10.0, "softness": 0.35, "identical": 1.5}
    limits |= {"aspect": 0.01, "size": 0.5, "identity": 0.6, "reversed": 1.6}
    return {"class_type": "FLEN_PairDoctor", "inputs": {"pairs": pairs, "fix": "align", "faces": False, **limits}}


def settings(held_out):
    """Edit LoRA Settings of the rehearsal, which needs no model."""
    answers = {"model": "Qwen-Image-Edit", "engine": "rehearsal", "base_model": "", "quality": "draft", "memory": "24 GB"}
    answers |= {"rank": 4, "steps": 20, "seed": 1, "engine_options": ""}
    return {"class_type": "FLEN_EditLoraSettings", "inputs": {"project": ["1", 0], "pairs": ["2", 0], "held_out": held_out, **answers}}


def graph(root, **inputs):
    wanted = {
        "name": "shirts",
        "target": str(root / "results"),
        "control_1": str(root / "shirts"),
        "control_2": str(root / "logos"),
        "control_3": "",
        "labels": "shirts, logos",
        "instruction": "put the logo on the shirt",
        "trigger_word": "",
        "on_problem": "refuse",
        **inputs,
    }
    export = {"layout": "musubi-tuner", "model": "Qwen-Image-Edit-2509", "megapixels": 0.0, "resolution": 1024, "repeats": 1, "folder": ""}
    return {
        "1": {"class_type": "FLEN_LoadPairedDataset", "inputs": wanted},
        "2": doctored(["1", 0]),
        "3": {"class_type": "FLEN_PairSheet", "inputs": {"pairs": ["2", 0], "first": 1, "count": 10, "size": 128}},
        "4": {"class_type": "FLEN_ExportDataset", "inputs": {"dataset": ["2", 0], **export}},
    }


def exported_to(outcome, node="4"):
    return Path(outcome.text(node).splitlines()[0].partition(" files in ")[2])


def test_pairs_are_loaded_mended_shown_and_exported(server, shirts):
    outcome = comfy.run(server.address, graph(shirts))
    assert outcome.status == "success", outcome.error
    assert "4 pairs with shirts, logos" in outcome.text("1")
    assert "02: the target slid by" in outcome.text("2") and "1 pairs aligned: 02" in outcome.text("2")
    back = import_dataset(exported_to(outcome))
    assert [pair.stem for pair in back.pairs] == ["01", "02", "03", "04"] and back.slots == ("shirts", "logos")
    assert (back.pairs[0].controls[1].width, back.pairs[0].controls[1].height) == (96, 96)
    before = {path: path.read_bytes() for path in exported_to(outcome).rglob("*") if path.is_file()}
    again = comfy.run(server.address, {**graph(shirts), "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}}})
    assert again.cached >= {"1", "2", "3", "4"}
    assert before == {path: path.read_bytes() for path in exported_to(outcome).rglob("*") if path.is_file()}


def test_the_bundled_graph_takes_both_examples_to_exports(server, photos):
    for example in EXAMPLES:
        make_example(example, photos, server.base / "input" / "flenwheel_examples", pairs=3)
    prompt = comfy.bundled("paired_dataset")
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "success", outcome.error
    node = {described["_meta"]["title"]: number for number, described in prompt.items()}
    assert "3 of 3 pairs are well" in outcome.text(node["Pair Doctor"])
    shirts, plain = (import_dataset(exported_to(outcome, node[f"Export for {trainer}"])) for trainer in ("musubi-tuner", "diffusers"))
    assert [pair.stem for pair in shirts.pairs] == [pair.stem for pair in plain.pairs] == ["01", "02", "03"]
    assert [len(dataset.pairs[0].controls) for dataset in (shirts, plain)] == [2, 1]
    assert "logo of Picture 2" in shirts.pairs[0].caption and "remove the background" in plain.pairs[0].caption


def test_a_gap_is_an_alert_that_names_the_file_and_can_be_mended(server, shirts):
    lost = shirts / "shirts" / "03.jpg"
    content = lost.read_bytes()
    lost.unlink()
    refused = comfy.run(server.address, graph(shirts))
    assert refused.status == "error"
    assert "control_1 has no file for target/03.png: control_2/03.PNG would have slipped into its place" in refused.error
    dropped = comfy.run(server.address, graph(shirts, on_problem="drop the pair"))
    assert dropped.status == "success" and "1 names left out as asked: 03" in dropped.text("1")
    lost.write_bytes(content)
    mended = comfy.run(server.address, graph(shirts))
    assert mended.status == "success" and "4 pairs" in mended.text("1")


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"target": "nowhere"}, "There is no folder 'nowhere'"),
        ({"control_1": ""}, "control_1 is empty"),
        ({"control_1": "", "control_2": ""}, "control_1 is empty"),
        ({"instruction": ""}, "has no caption"),
    ],
)
def test_what_does_not_work_is_said_in_words(server, shirts, inputs, told):
    outcome = comfy.run(server.address, graph(shirts, **inputs))
    assert outcome.status == "error" and told in outcome.error, outcome.error


def test_a_model_that_cannot_learn_it_is_refused(server, shirts):
    prompt = graph(shirts)
    prompt["4"]["inputs"] |= {"model": "FLUX.1 Kontext [dev]", "layout": "ai-toolkit"}
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "error" and "at most 1 control image" in outcome.error


def test_every_layout_is_written_and_read_by_the_nodes(server, shirts):
    prompt = graph(shirts, control_2="")
    for number, layout in enumerate(["kohya sd-scripts", "mflux", "fal zip", "Hugging Face imagefolder"], 10):
        export = {**prompt["4"]["inputs"], "dataset": ["1", 0], "layout": layout, "model": "any"}
        prompt[str(number)] = {"class_type": "FLEN_ExportDataset", "inputs": export}
        read = {"path": [str(number), 0], "layout": "recognise it", "instruction": ""}
        prompt[str(number + 10)] = {"class_type": "FLEN_ImportPairedDataset", "inputs": read}
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "success", outcome.error
    assert all("shirts: 4 pairs with shirts." in outcome.text(str(number)) for number in range(20, 24))


def test_pictures_of_other_nodes_are_paired_by_order(server, shirts):
    prompt = graph(shirts, target="", control_1="", control_2="")
    prompt["8"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 3, "color": 255}}
    prompt["9"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 65280}}
    prompt["1"]["inputs"] |= {"target_images": ["8", 0], "control_1_images": ["8", 0]}
    same = comfy.run(server.address, {"1": prompt["1"], "8": prompt["8"]})
    assert same.status == "error" and "same folder" in same.error
    prompt["1"]["inputs"]["control_1_images"] = ["9", 0]
    short = comfy.run(server.address, {key: prompt[key] for key in "189"})
    assert short.status == "error" and "control_1 has no file for target/0003.png" in short.error


def pixels(path):
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def put(address, path, content):
    with urllib.request.urlopen(urllib.request.Request(address + path, content, {"Content-Type": "image/png"}, method="PUT")) as answer:
        return json.loads(answer.read())


@pytest.mark.faces
def test_a_laps_corrections_become_exported_triplets(server, photos):
    """One image is corrected by hand, one by a painted spot, the others by four tries each; what is found good is exported."""
    name, reviewed = "wheel two", comfy.review_path("wheel_two")
    prompt = comfy.first_lap(
        Project__name=name, Curate_Source__folder=str(photos), Prompt_Set__per_source=1, Enrich_Dataset__megapixels=0.2
    )
    assert comfy.run(server.address, prompt).status == "success"
    project = load_project(server.base / "output" / "flenwheel" / "wheel_two")
    wrong = [item["key"] for item in comfy.review(server.address, "wheel_two")["items"][:3]]
    by_hand, painted, _ = wrong
    comfy.label(server.address, "wheel_two", dict.fromkeys(wrong, "needs_correction"), ["identity"])
    inputs = {"direction": "forward", "positives": 0, "held_out": 0.1, "doctor": "align", "template": "", "keep": "", "with_token": False}
    export = {"layout": "ai-toolkit", "model": "Qwen-Image-Edit-2509", "megapixels": 0.0, "resolution": 1024, "repeats": 1, "folder": ""}
    triplets = {
        "1": prompt["1"],
        "2": {"class_type": "FLEN_CreateCorrectionTriplets", "inputs": {"project": ["1", 0], **inputs}},
        "4": {"class_type": "FLEN_ExportDataset", "inputs": {"dataset": ["2", 0], **export}},
    }
    none_yet = comfy.run(server.address, triplets)
    assert none_yet.status == "error" and "3 images are labelled needs_correction" in none_yet.error

    faulty = {content_key(path): path for path in project.stage("enriched").folder.rglob("*.png")}
    folder = project.stage("corrections").folder
    folder.mkdir(parents=True, exist_ok=True)
    fixed = pixels(faulty[by_hand])
    fixed[10:40, 10:40] = 255 - fixed[10:40, 10:40]
    Image.fromarray(fixed).save(folder / f"{by_hand}.png")
    original = pixels(faulty[painted])
    mask = Image.new("L", (original.shape[1], original.shape[0]))
    ImageDraw.Draw(mask).ellipse((60, 60, 160, 160), fill=255)
    kept = put(server.address, f"{reviewed}/mask/{painted}", png_bytes(mask))["mask"]
    order = {"reviewer": "test", "key": painted, "prompt": "change lighting to neon", "seeds": [5], "from": "candidate", "mask": kept}
    assert comfy.call(server.address, f"{reviewed}/repair", order)[0] == 200
    repairs = {
        "1": prompt["1"],
        "2": {"class_type": "FLEN_RehearsalEditor", "inputs": {"spoil_rate": 0.0, "seconds_per_image": 0.0}},
        "3": {"class_type": "FLEN_RepairCandidates", "inputs": {"project": ["1", 0], "editor": ["2", 0], "limit": 0, "tries_each": 4}},
    }
    done = comfy.run(server.address, repairs)
    assert done.status == "success", done.error
    assert "6 corrections" in done.text("3") and "1 images got an order of 4 tries" in done.text("3"), done.text("3")
    again = comfy.run(server.address, repairs)
    assert again.status == "success" and "got an order" not in again.text("3"), "nothing is ordered twice"

    waiting = comfy.run(server.address, triplets)
    assert waiting.status == "error" and "6 corrections wait for a verdict" in waiting.error
    results = comfy.call(server.address, comfy.review_path("wheel_two", "corrections"))[1]["items"]
    of = {key: [item["key"] for item in results if item["corrects"]["key"] == key] for key in wrong}
    assert [len(of[key]) for key in wrong] == [1, 1, 4]
    spot = next(path for path in folder.rglob("*.png") if content_key(path) == of[painted][0])
    changed = np.abs(original.astype(np.int16) - pixels(spot)).max(axis=2)
    assert changed[90:130, 90:130].max() > 8 and changed[200:].max() == 0, "only the painted spot is another"
    events = [
        {"key": key, "label": label, "reasons": [], "note": ""}
        for keys in of.values()
        for key, label in zip(keys, ["good", "reject", "reject", "reject"], strict=False)
    ]
    status, answer = comfy.call(
        server.address, comfy.review_path("wheel_two", "corrections") + "/labels", {"reviewer": "test", "events": events}
    )
    assert status == 200, answer
    outcome = comfy.run(server.address, triplets)
    assert outcome.status == "success", outcome.error
    to_export = {**triplets["4"]["inputs"], "dataset": ["2", 1]}
    look = {"training": ["6", 0], "action": "only look", "hours": "", "meanwhile": "ComfyUI waits"}
    alone = {
        **triplets,
        "4": {**triplets["4"], "inputs": to_export},
        "5": doctored(["2", 1]),
        "6": settings(["5", 0]),
        "7": {"class_type": "FLEN_TrainLora", "inputs": look},
    }
    nothing_held = comfy.run(server.address, alone)
    assert nothing_held.status == "success", nothing_held.error
    assert [nothing_held.text(node) for node in ("4", "5")] == ["No pairs came over the link: nothing is held out."] * 2
    assert "3 triplets, 0 held out" in nothing_held.text("6"), "what is not there stops no training"
    assert "3 triplets" in outcome.text("2") and "7 more reach the minimum" in outcome.text("2")
    rows = json.loads((project.stage("qwen_training").folder / "triplets.json").read_text())
    assert len(rows) == 3 and sum(row["improvement"] == "Corrected by hand" for row in rows) == 1
    assert {row["issue"] for row in rows} == {"identity"}
    assert {row["lineage"]["edit_key"] for row in rows} == {of[key][0] for key in wrong}
    back = import_dataset(exported_to(outcome))
    assert len(back.pairs) == 3 and all(pair.target.width == pair.controls[0].width for pair in back.pairs)
