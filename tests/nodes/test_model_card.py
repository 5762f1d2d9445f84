"""The editor's other two sockets in the real ComfyUI: the model card of real portraits, and any image without a project."""

import shutil

import pytest
from PIL import Image

from . import comfy

pytestmark = [pytest.mark.comfy]


@pytest.fixture
def picture(server, photos):
    (server.base / "input").mkdir(exist_ok=True)
    shutil.copy(photos / "obama.jpg", server.base / "input" / "obama.jpg")
    return "obama.jpg"


def lap(name, few):
    """The first lap up to the editor: 1 project, 2 photos, 3 references, 7 editor."""
    whole = comfy.first_lap(Project__name=name, Curate_Source__folder=str(few), Rehearsal_Editor__spoil_rate=0.0)
    return {number: whole[number] for number in ("1", "2", "3", "7")}


@pytest.mark.faces
def test_the_card_of_the_bundled_graph_is_made_measured_reviewed_and_not_made_again(server, few, picture):
    small = {
        "Image_to_Image__megapixels": 0.1,
        "Model_Card__megapixels": 0.3,
        "Model_Card__base_seed": 3,
        "Rehearsal_Editor__spoil_rate": 0.0,
    }
    graph = comfy.bundled("model_card", Project__name="card", Curate_Source__folder=str(few), A_picture__image=picture, **small)
    done = comfy.run(server.address, graph)
    assert done.status == "success", done.error
    assert "3 edits of 1 image in" in done.text("6")
    told = done.text("7")
    assert "of 23 images passed at the first try" in told and "23 images made" in told
    assert "half-left-neutral: failed" in told, "the rehearsal editor turns no head"
    assert "front-angry: failed, similarity" in told and "but smiling" in told, "and changes no face"
    (sheet,) = done.outputs["7"]["images"]
    with Image.open(server.base / "temp" / sheet["filename"]) as opened:
        assert opened.width > 5 * 256
    folder = server.base / "output" / "flenwheel" / "card" / "data" / "card" / "v1"
    assert len(list(folder.glob("*.png"))) == 23

    status, page = comfy.call(server.address, comfy.review_path("card", "card"))
    assert status == 200 and len(page["items"]) == 23
    suggested = {image["prompt"].partition(",")[0]: image["suggestion"] for image in page["items"]}
    assert suggested["Change the view to front view with a smiling expression"]["label"] == "good"
    turned = suggested["Change the view to half-left view with a neutral expression"]
    assert turned["label"] == "needs_correction" and turned["why"].endswith("but seen front"), "it is he, but not as asked"
    keys = [image["key"] for image in page["items"]]
    events = [{"key": key, "label": "good", "reasons": [], "note": ""} for key in keys]
    status, _ = comfy.call(server.address, comfy.review_path("card", "card") + "/labels", {"reviewer": "test", "events": events})
    assert status == 200
    again = comfy.run(server.address, graph)
    assert again.text("7").startswith("23 of 23 images passed at the first try (100%); the goal of 80% is reached.")
    assert "0 images made" in again.text("7") and "23 were there already" in again.text("7")


def test_any_image_is_edited_without_a_project_and_found_again(server, picture):
    edit = {
        "images": ["1", 0],
        "editor": ["2", 0],
        "prompt": "Change the light to [golden hour|studio light]",
        "base_seed": 0,
        "megapixels": 0.2,
    }
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": picture}},
        "2": {"class_type": "FLEN_RehearsalEditor", "inputs": {"spoil_rate": 0.0, "seconds_per_image": 0.0}},
        "3": {"class_type": "FLEN_ImageToImage", "inputs": edit},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    done = comfy.run(server.address, graph)
    assert done.status == "success", done.error
    assert "2 edits of 1 image in" in done.text("3") and len(done.outputs["4"]["images"]) == 2
    kept = sorted((server.base / "output" / "flenwheel_edits").glob("change_the_light_*.png"))
    assert [path.name.rpartition("-")[0] for path in kept] == ["change_the_light_to_golden_hour", "change_the_light_to_studio_light"]
    assert comfy.run(server.address, graph).cached >= {"3"}
    kept[0].unlink()
    again = comfy.run(server.address, graph)
    assert "1 image made" in again.text("3") and kept[0].is_file()


def test_no_prompt_and_a_wrong_photo_say_what_to_do(server, picture, few):
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": picture}},
        "2": {"class_type": "FLEN_RehearsalEditor", "inputs": {"spoil_rate": 0.0, "seconds_per_image": 0.0}},
        "3": {
            "class_type": "FLEN_ImageToImage",
            "inputs": {"images": ["1", 0], "editor": ["2", 0], "prompt": " ", "base_seed": 0, "megapixels": 0},
        },
    }
    assert "there is no prompt: type one per line" in comfy.run(server.address, graph).error
    card = {"dataset": ["2", 0], "editor": ["7", 0], "photo": "nobody", "base_seed": 0, "megapixels": 0.3}
    told = comfy.run(server.address, lap("wrong photo", few) | {"20": {"class_type": "FLEN_ModelCard", "inputs": card}}).error
    assert "no photo 'nobody'" in told and "source_001" in told
