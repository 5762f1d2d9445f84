"""Bad input in the real ComfyUI: each is named and either refused or treated as stated; nothing is skipped silently, nothing is lost."""

import shutil

import numpy as np
import pytest
from PIL import Image

from . import comfy

pytestmark = pytest.mark.comfy


def curate_only(name, folder, **inputs):
    prompt = comfy.first_lap(Project__name=name, Curate_Source__folder=str(folder), **inputs)
    return {key: prompt[key] for key in ("1", "2")}


@pytest.fixture
def album(tmp_path, photos):
    """Every kind of trouble in one folder, with spaces and umlauts in its names."""
    folder = tmp_path / "Zoë's photos"
    folder.mkdir()
    portrait = Image.open(photos / "obama2.jpg").convert("RGB")
    for number in range(3):
        portrait.crop((10 * number, 20 * number, 600, 1100)).save(folder / f"good {number}.png")
    whole = (photos / "obama.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "not an image.jpg").write_text("hello")
    (folder / "notes.txt").write_text("hello")
    shutil.copy(photos / "obama.jpg", folder / "twin.jpg")
    shutil.copy(photos / "obama.jpg", folder / "TWIN.JPG")
    Image.fromarray(np.asarray(portrait.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
    portrait.convert("CMYK").save(folder / "cmyk.jpg")
    portrait.quantize(64).save(folder / "palette.png")
    rgba = portrait.convert("RGBA")
    rgba.putalpha(180)
    rgba.save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    portrait.rotate(90, expand=True).save(folder / "rotated.jpg", exif=exif)
    portrait.resize((6000, 4000)).save(folder / "huge ümläut.jpg")
    Image.new("RGB", (800, 800), (90, 120, 90)).save(folder / "no face.png")
    both = Image.new("RGB", (1600, 1000))
    both.paste(portrait.resize((520, 1000)), (0, 0))
    both.paste(Image.open(photos / "biden.jpg").resize((440, 1000)), (900, 0))
    both.save(folder / "two faces.png")
    return folder


@pytest.mark.faces
def test_a_folder_full_of_trouble_is_told_in_full(server, album):
    outcome = comfy.run(server.address, curate_only("trouble", album))
    assert outcome.status == "success", outcome.error
    text = outcome.text("2")
    for name in (
        "truncated.jpg",
        "empty.jpg",
        "not an image.jpg",
        "notes.txt",
        "sixteen.png",
        "cmyk.jpg",
        "palette.png",
        "alpha.png",
        "rotated.jpg",
    ):
        assert name in text, name
    for word in ("0 bytes", "damaged", "not an image", "16-bit", "CMYK", "palette", "transparency", "EXIF"):
        assert word in text, word
    assert "no face.png" in text and "two faces.png" in text and ("twin.jpg" in text or "TWIN.JPG" in text)
    assert (album / "truncated.jpg").is_file(), "originals stay"


@pytest.mark.faces
def test_strict_refuses_and_names_every_file_at_once(server, album):
    outcome = comfy.run(server.address, curate_only("strict trouble", album, Curate_Source__strict=True))
    assert outcome.status == "error"
    for name in ("truncated.jpg", "empty.jpg", "not an image.jpg"):
        assert name in outcome.error


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"Project__instance_token": "woman"}, "normal word"),
        ({"Project__name": "///"}, "has no name"),
        ({"Curate_Source__folder": "no such folder"}, "no folder 'no such folder'"),
        ({"Prompt_Set__preset": "none", "Prompt_Set__prompts": "a [b\nc]"}, "without its ]"),
        ({"Prompt_Set__preset": "none", "Prompt_Set__prompts": "[0|1|2|3|4|5|6|7|8|9] " * 5}, "100,000"),
        ({"Prompt_Set__sources": "holiday*"}, "holiday*"),
        ({"Identity_References__names": "nobody.jpg"}, "nobody.jpg"),
    ],
)
@pytest.mark.faces
def test_a_wrong_widget_is_an_error_in_words(server, photos, inputs, told):
    prompt = comfy.first_lap(
        **{
            "Project__name": "wrong",
            "Curate_Source__folder": str(photos),
            "Enrich_Dataset__limit": 1,
            "Enrich_Dataset__megapixels": 0.1,
            **inputs,
        }
    )
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "error" and told in outcome.error, outcome.error


def test_an_empty_folder_is_an_error(server, tmp_path):
    outcome = comfy.run(server.address, curate_only("nothing", tmp_path))
    assert outcome.status == "error" and "photo" in outcome.error


@pytest.mark.faces
def test_images_go_out_to_other_nodes_and_come_back(server, photos):
    prompt = curate_only("round trip", photos)
    prompt |= {
        "3": {"class_type": "FLEN_DatasetToImages", "inputs": {"dataset": ["2", 0], "first": 1, "at_most": 3}},
        "4": {"class_type": "ImageInvert", "inputs": {"image": ["3", 0]}},
        "5": {
            "class_type": "FLEN_ImagesToDataset",
            "inputs": {"project": ["1", 0], "images": ["4", 0], "stage": "synthetic", "caption": "", "prompt": "inverted"},
        },
        "6": {"class_type": "FLEN_ContactSheet", "inputs": {"dataset": ["5", 0], "title": "", "columns": 0, "size": 128}},
    }
    for _ in range(2):
        outcome = comfy.run(server.address, prompt)
        assert outcome.status == "success", outcome.error
    state = comfy.call(server.address, comfy.review_path("round_trip", "synthetic"))[1]
    assert [item["prompt"] for item in state["items"]] == ["inverted"] * 3
