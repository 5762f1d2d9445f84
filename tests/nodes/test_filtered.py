"""Step 1.6 in the real ComfyUI: synthetic images are scored and filtered, and those that passed lie apart until they are decided on."""

import base64
import io
import re
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel.images import open_image
from PIL import Image, ImageOps

from . import comfy

pytestmark = [pytest.mark.comfy, pytest.mark.faces]

NAMES = ("obama", "obama2", "biden")
SCORE, FILTER, REPORT, GATE = "104", "105", "106", "107"


def graph(photos):
    """The references of the first lap; three pictures of any node as synthetic images, scored against them."""
    lap = comfy.first_lap(Project__name="synthetic", Curate_Source__folder=str(photos))
    chain = {number: node for number, node in lap.items() if number in ("1", "2", "3")}
    for number, name in enumerate(NAMES, 20):
        chain[str(number)] = {"class_type": "LoadImage", "inputs": {"image": f"fitted {name}.png"}}
    chain["30"] = {"class_type": "ImageBatch", "inputs": {"image1": ["20", 0], "image2": ["21", 0]}}
    chain["31"] = {"class_type": "ImageBatch", "inputs": {"image1": ["30", 0], "image2": ["22", 0]}}
    taken_in = {"project": ["1", 0], "images": ["31", 0], "stage": "synthetic", "caption": "", "prompt": "ohwx_char person in an office"}
    chain["103"] = {"class_type": "FLEN_ImagesToDataset", "inputs": taken_in}
    chain[SCORE] = {"class_type": "FLEN_IdentityScore", "inputs": {"dataset": ["103", 0], "references": ["3", 0]}}
    chain[FILTER] = {"class_type": "FLEN_IdentityFilter", "inputs": {"scores": [SCORE, 0], "threshold": 0.6, "not_measurable": "pass on"}}
    return chain


def fitted(photo: Path) -> Image.Image:
    """The photograph on a canvas that all of a batch share."""
    return ImageOps.pad(open_image(photo).image, (800, 1000), Image.Resampling.LANCZOS, color="grey")


def lying(folder: Path) -> dict[str, int]:
    return {name: len(list((folder / name).glob("*.png"))) for name in ("", "filtered", "good")}


def test_what_passed_lies_in_filtered_until_it_is_decided_on(server, photos):
    (server.base / "input").mkdir(exist_ok=True)
    for name in NAMES:
        fitted(photos / f"{name}.jpg").save(server.base / "input" / f"fitted {name}.png")
    prompt = graph(photos)
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "success", outcome.error
    told = outcome.text(FILTER)
    assert "2 images in data/synthetic/v1/filtered until you decide; 33% are left out" in told, told
    folder = server.base / "output" / "flenwheel" / "synthetic" / "data" / "synthetic" / "v1"
    assert lying(folder) == {"": 1, "filtered": 2, "good": 0}
    assert (folder / "synthetic_metadata.json").read_text(encoding="utf-8").count("filtered/") == 2

    prompt[REPORT] = {
        "class_type": "FLEN_IdentityReport",
        "inputs": {"scores": [SCORE, 0], "references": ["3", 0], "threshold": 0.6, "faces": 3},
    }
    prompt[GATE] = {"class_type": "FLEN_ReviewGate", "inputs": {"candidates": [FILTER, 0], "when_pending": "stop"}}
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "success" and {SCORE, FILTER} <= outcome.cached, outcome.error
    page = Path(outcome.text(REPORT).rpartition("page: ")[2]).read_text(encoding="utf-8")
    crops = [Image.open(io.BytesIO(base64.b64decode(crop))) for crop in re.findall(r"data:image/\w+;base64,([\w+/=]+)", page)]
    assert len(crops) > 6 and all(len(set(crop.convert("L").resize((8, 8)).tobytes())) > 1 for crop in crops), "none is a grey square"

    path = comfy.review_path("synthetic", "synthetic")
    status, review = comfy.call(server.address, path)
    assert status == 200 and len(review["items"]) == 2, "what passed is under review"
    event = {"key": review["items"][0]["key"], "label": "good", "reasons": [], "note": ""}
    assert comfy.call(server.address, f"{path}/labels", {"reviewer": "test", "events": [event]})[0] == 200
    assert lying(folder) == {"": 1, "filtered": 1, "good": 1}

    stricter = {**prompt, FILTER: {**prompt[FILTER], "inputs": {**prompt[FILTER]["inputs"], "threshold": 0.99}}}
    outcome = comfy.run(server.address, stricter)
    assert outcome.status == "success", outcome.error
    assert "0 images in data/synthetic/v1/filtered" in outcome.text(FILTER)
    assert lying(folder) == {"": 2, "filtered": 0, "good": 1}, "what a person decided stays"
