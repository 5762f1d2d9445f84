"""Curation, the coverage map and captions in the real ComfyUI on real photographs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.project import load_project, open_project
from PIL import Image

from . import comfy

pytestmark = pytest.mark.comfy
ROOT = Path(__file__).parent.parent.parent


def project_of(server, name):
    return load_project(server.base / "output" / "flenwheel" / name)


def described(server, name):
    return json.loads(project_of(server, name).stage("source").metadata.read_text(encoding="utf-8"))["images"]


def curated(name, folder, **inputs):
    prompt = comfy.first_lap(Project__name=name, Curate_Source__folder=str(folder), **inputs)
    return {key: prompt[key] for key in ("1", "2")}


def node(kind, **inputs):
    return {"class_type": f"FLEN_{kind}", "inputs": inputs}


EDIT = {"find": "", "replace": "", "whole_words": True, "match_case": False, "list": "", "apply": False}


@pytest.mark.faces
def test_the_map_asks_for_what_is_missing_and_enriching_makes_exactly_that(server, photos):
    prompt = comfy.first_lap(Project__name="covered", Curate_Source__folder=str(photos))
    enrich = next(key for key, value in prompt.items() if value["class_type"] == "FLEN_EnrichDataset")
    wanted = {"1", "2", enrich, prompt[enrich]["inputs"]["editor"][0]}
    prompt = {key: value for key, value in prompt.items() if key in wanted}
    linked = {name: value for name, value in prompt[enrich]["inputs"].items() if not isinstance(value, list) or value[0] in prompt}
    prompt[enrich]["inputs"] = {**linked, "dataset": ["2", 0], "prompts": ["20", 1], "megapixels": 0.1, "limit": 3}
    prompt["20"] = node("CoverageMap", dataset=["2", 0], per_cell=1, photos=2)
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "success", outcome.error
    report = outcome.text("2")
    assert "biden.jpg: odd one out: it does not look like the other photos" in report
    assert "of 64 bits differ, up to 6 count as one" in report and "degrees to the viewer's left (front below 13" in report
    told = outcome.text("20")
    assert "of 23 cells of the model card are covered" in told and "front-angry" in told and "5 bust, 2 half body" in told
    missing = int(told.split(" are missing")[0].rsplit(" ", 1)[1])
    made = outcome.text(enrich)
    assert "3 images made" in made and f"{2 * missing - 3} images are left" in made
    shown = outcome.outputs["20"]["images"][0]
    folder = server.base / "temp" if shown["type"] == "temp" else server.base / "output"
    assert open_image(folder / shown["subfolder"] / shown["filename"]).image.width > 900


@pytest.mark.faces
def test_captions_are_previewed_then_written_and_the_graph_goes_on_with_them(server, photos):
    prompt = curated("words", photos)
    prompt["3"] = node("EditCaptions", dataset=["2", 0], **EDIT | {"find": "photo", "replace": "portrait", "list": "source_002: mine"})
    count = 7
    looked = comfy.run(server.address, prompt)
    assert looked.status == "success", looked.error
    assert f"{count} of {count} captions would change" in looked.text("3") and "- photo of ohwx_char" in looked.text("3")
    assert "the token 'ohwx_char' is missing (source_002" in looked.text("3"), "the lint speaks of what the captions would be"
    assert all(entry["caption"].startswith("photo of") for entry in described(server, "words"))

    prompt["3"]["inputs"]["apply"] = True
    prompt["4"] = node("DatasetToImages", dataset=["3", 0], first=1, at_most=20)
    prompt["5"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 1]}}
    written = comfy.run(server.address, prompt)
    assert written.status == "success", written.error
    captions = [entry["caption"] for entry in described(server, "words")]
    assert captions[1] == "mine" and all(caption.startswith("portrait of") for caption in captions if caption != "mine")
    assert "portrait of ohwx_char person" in str(written.outputs["5"])
    again = comfy.run(server.address, prompt)
    assert f"0 of {count} captions changed" in again.text("3"), "nothing is left to replace"
    (project_of(server, "words").stage("source").folder / "source_001.txt").write_text("ohwx_char person by hand")
    by_hand = comfy.run(server.address, prompt)
    assert "2" not in by_hand.cached and "ohwx_char person by hand" in str(by_hand.outputs["5"])


@pytest.mark.faces
def test_texts_of_any_other_node_become_captions_around_the_token(server, photos):
    prompt = curated("texts", photos)
    prompt |= {
        "3": node("DatasetToImages", dataset=["2", 0], first=1, at_most=20),
        "4": {"class_type": "StringConcatenate", "inputs": {"string_a": "in room", "string_b": ["3", 2], "delimiter": " "}},
        "5": node("EditCaptions", dataset=["2", 0], texts=["4", 0], **EDIT | {"find": ".png", "apply": True, "whole_words": False}),
    }
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "success", outcome.error
    assert described(server, "texts")[0]["caption"] == "photo of ohwx_char person, in room source_001"
    (project_of(server, "texts").stage("source").folder / "source_002.txt").write_text("ohwx_char person by hand")
    for overwrite, caption in ((False, "ohwx_char person by hand"), (True, "photo of ohwx_char person, in hall source_002.jpg")):
        prompt["4"]["inputs"]["string_a"] = "in hall"
        prompt["5"]["inputs"]["overwrite"] = overwrite
        assert comfy.run(server.address, prompt).status == "success"
        assert described(server, "texts")[1]["caption"] == caption
    prompt["3"]["inputs"]["at_most"] = 3
    few = comfy.run(server.address, prompt)
    assert few.status == "error" and "3 texts for 7 images" in few.error


def test_a_place_is_left_out_of_the_copy_and_that_is_told(server, tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    for number in range(2):
        Image.effect_noise((640, 640), 60 + number).convert("RGB").save(tmp_path / f"holiday {number}.jpg", exif=exif)
    outcome = comfy.run(server.address, curated("places", tmp_path))
    assert outcome.status == "success", outcome.error
    assert outcome.text("2").count("place and other metadata left out of the copy, pixels unchanged") == 2


SEAM = """
import asyncio, sys
sys.path[:0] = [{tests!r}, {comfyui!r}]
sys.argv = ["main.py", "--cpu", "--base-directory", {base!r}]
import comfy.options
comfy.options.enable_args_parsing()
import server, nodes
server.PromptServer(asyncio.new_event_loop())
import conftest
from PIL import Image
from comfyui_flenwheel.flywheel.errors import EditorUnavailable
from comfyui_flenwheel.nodes import curate
from comfy.sd1_clip import SD1Tokenizer
from comfy.text_encoders.qwen_image import QwenImageTokenizer
from comfy.text_encoders.qwen3vl import Qwen3VLTokenizer

class Clip:
    # ComfyUI's own tokenizer; in place of eight billion weights a note of what they were shown
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
    def tokenize(self, text, return_word_ids=False, **options):
        return self.tokenizer.tokenize_with_weights(text, return_word_ids, **options)
    def generate(self, tokens, **options):
        assert options == {{"do_sample": False, "max_length": 50}}, options
        (batch,) = next(iter(tokens.values()))
        return [entry[0] for entry in batch]
    def decode(self, ids):
        pictures = [entry["data"].shape for entry in ids if isinstance(entry, dict)]
        words = self.tokenizer.decode([entry for entry in ids if not isinstance(entry, dict)])
        return f"{{pictures}} {{words}}"

class Mute(Clip):
    generate = None
    def __getattribute__(self, name):
        if name == "generate":
            raise AttributeError("'CLIPTextModel' object has no attribute 'generate'")
        return super().__getattribute__(name)

picture = Image.new("RGB", (64, 48), "red")
for tokenizer in (QwenImageTokenizer, Qwen3VLTokenizer):
    said = curate._described(Clip(tokenizer()), picture, "What is there?", 50)
    assert said.startswith("[torch.Size([1, 48, 64, 3])]") and "What is there?" in said and "edit" not in said, said
for clip, words in ((Clip(SD1Tokenizer()), "takes no picture"), (Mute(QwenImageTokenizer()), "cannot write text")):
    try:
        curate._described(clip, picture, "What is there?", 50)
    except EditorUnavailable as error:
        assert words in str(error) and "Qwen3-VL" in str(error), error
    else:
        raise AssertionError(words)
print("fine")
"""


def test_encoders_are_shown_the_picture_as_they_take_it_or_are_refused_in_words(comfyui, tmp_path):
    code = SEAM.format(tests=str(ROOT / "tests"), comfyui=str(comfyui), base=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=comfyui, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip().endswith("fine"), done.stderr[-3000:]


def test_scripts_read_and_write_captions(server, photos):
    outcome = comfy.run(server.address, curated("spoken", photos))
    assert outcome.status == "success", outcome.error
    path = "/flenwheel/captions/spoken/source/v1"
    status, told = comfy.call(server.address, path)
    assert status == 200 and len(told["captions"]) == 7 and sorted(told["untouched"]) == sorted(told["captions"])
    name = min(told["captions"])
    status, after = comfy.call(server.address, path, {"captions": {name: "photo of ohwx_char person, laughing, brown hair"}})
    assert status == 200 and after["captions"][name].endswith("brown hair") and name not in after["untouched"]
    folder = project_of(server, "spoken").stage("source").folder
    assert (folder / name).with_suffix(".txt").read_text(encoding="utf-8").strip() == after["captions"][name]
    assert {entry["filename"]: entry["caption"] for entry in described(server, "spoken")} == after["captions"], "both files agree"
    again = comfy.call(server.address, path, {"captions": {name: "person without the token"}})[1]
    assert any("token" in finding and "missing" in finding for finding in again["findings"])
    for wrong in ({"captions": {name: ""}}, {"captions": {"gone.jpg": "photo of ohwx_char person"}}, {"captions": [name]}, {}):
        assert comfy.call(server.address, path, wrong)[0] == 400
    assert comfy.call(server.address, path)[1]["captions"] == again["captions"]
    assert comfy.call(server.address, "/flenwheel/captions/spoken/training/v1")[0] in (400, 404)


@pytest.mark.faces
def test_a_project_with_a_damaged_file_makes_no_other_graph_run_again(server, photos):
    broken = open_project(
        server.base / "output" / "flenwheel", "damaged here", instance_token="ohwx_char", class_noun="person", medium="photographs"
    )
    metadata = broken.stage("source").metadata
    metadata.parent.mkdir(parents=True)
    metadata.write_text("{half", encoding="utf-8")
    prompt = curated("beside a damaged one", photos)
    assert comfy.run(server.address, prompt).status == "success"
    assert {"1", "2"} <= comfy.run(server.address, prompt).cached
    told = comfy.run(server.address, curated("damaged here", photos))
    assert told.status == "error" and "metadata.json" in told.error, "the node that opens it tells"
    assert metadata.read_text(encoding="utf-8") == "{half"
