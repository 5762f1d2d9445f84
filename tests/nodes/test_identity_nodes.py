"""The identity nodes in the real ComfyUI, where importing face_recognition would end the server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_flenwheel.nodes.launch import Server
from PIL import Image

from . import comfy

pytestmark = [pytest.mark.comfy, pytest.mark.faces]


def without(package: str) -> str:
    """A sitecustomize.py of a Python that lacks this package."""
    return f"""
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError("No module named {package!r}")


sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def bare(comfyui, tmp_path_factory):
    """ComfyUI in a Python that has face_recognition and lacks pkg_resources, as every new virtual environment does."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(without("pkg_resources"))
    env = {**os.environ, "PYTHONPATH": str(site)}
    trap = subprocess.run(
        [sys.executable, "-c", "import face_recognition; print('lived')"], env=env, capture_output=True, text=True, timeout=120
    )
    if "No module named 'face_recognition'" in trap.stderr:
        pytest.skip("face_recognition is not installed here")
    assert "lived" not in trap.stdout, "the trap is there: this import ends the process"
    with Server(comfyui, Path(sys.executable), tmp_path_factory.mktemp("bare"), env=env) as running:
        yield running


def graph(folder: Path, name: str, **overrides):
    """Curate, references, score, filter, report; and two photos compared. By number: 3 references, 4 score, 5 filter, 6 report, 9 compare."""
    lap = comfy.first_lap(Project__name=name, Curate_Source__folder=str(folder))
    chain = {number: node for number, node in lap.items() if node["class_type"] in ("FLEN_Project", "FLEN_CurateSource")}
    (curated,) = (number for number, node in chain.items() if node["class_type"] == "FLEN_CurateSource")
    filtering = {"threshold": 0.6, "not_measurable": "hold back", **overrides}
    return {
        **chain,
        "103": {"class_type": "FLEN_IdentityReferences", "inputs": {"dataset": [curated, 0], "names": "", "engine": "dlib"}},
        "104": {"class_type": "FLEN_IdentityScore", "inputs": {"dataset": [curated, 0], "references": ["103", 0]}},
        "105": {"class_type": "FLEN_IdentityFilter", "inputs": {"scores": ["104", 0], **filtering}},
        "106": {
            "class_type": "FLEN_IdentityReport",
            "inputs": {"scores": ["104", 0], "references": ["103", 0], "threshold": 0.6, "faces": 4},
        },
        "107": {"class_type": "LoadImage", "inputs": {"image": "obama.jpg"}},
        "108": {"class_type": "LoadImage", "inputs": {"image": "biden.jpg"}},
        "109": {
            "class_type": "FLEN_CompareFaces",
            "inputs": {
                "images": ["108", 0],
                "reference": ["107", 0],
                "threshold": 0.6,
                "not_measurable": "stop with an error",
                "engine": "dlib",
                "pictures_are": "photographs",
            },
        },
    }


def test_identity_works_where_importing_face_recognition_ends_the_process(bare, photos):
    for name in ("obama.jpg", "biden.jpg"):
        (bare.base / "input").mkdir(exist_ok=True)
        shutil.copy(photos / name, bare.base / "input")
    prompt = graph(photos, "bare")
    outcome = comfy.run(bare.address, prompt)
    assert outcome.status == "success", outcome.error
    assert bare.process.poll() is None, "the server lives"
    references = outcome.text("103")
    assert "Your photos agree at" in references and "does not look like the other photos" in references
    assert "Strangers: 1 in 12 reaches 0.55, 1 in 125 reaches 0.60." in references
    assert "1 below" in outcome.text("105") and "different" in outcome.text("105")
    page = Path(outcome.text("106").rpartition("page: ")[2])
    assert page.is_file() and page.name == "identity_report.html" and page.is_relative_to(bare.base)
    assert "Least alike" in page.read_text(encoding="utf-8")
    assert "different" in outcome.text("109")

    again = comfy.run(bare.address, graph(photos, "bare", keep="the best of them, a number", amount=2))
    assert again.status == "success" and {"103", "104", "106"} <= again.cached, "another filter measures nothing"
    assert "only the best may stay" in again.text("105") and "1 below" not in again.text("105")


def all_to_the_review(outcome, why) -> bool:
    """The graph runs to its end, and no image has a number."""
    assert outcome.status == "success", outcome.error
    lines = outcome.text("104").splitlines()
    assert lines and all(f"not measurable (counts as drawn: {why}" in line for line in lines)
    assert outcome.text("105").startswith(f"0 at or above 0.60, 0 below, {len(lines)} not measurable, of {len(lines)}.")
    page = Path(outcome.text("106").rpartition("page: ")[2]).read_text(encoding="utf-8")
    return "Compared with nothing, because the character counts as drawn" in page and "similarity" not in outcome.text("104")


def test_what_cannot_be_said_is_not_said(bare, photos):
    drawn = graph(photos, "bare cartoon")
    drawn["1"]["inputs"] |= {"class_noun": "cartoon dog", "pictures_are": "as said before"}
    outcome = comfy.run(bare.address, drawn)
    assert outcome.status == "error" and "nobody has said yet whether the pictures are photographs or drawn" in outcome.error
    assert not (bare.base / "output" / "flenwheel" / "bare_cartoon").exists()
    drawn["1"]["inputs"]["pictures_are"] = "drawn"
    outcome = comfy.run(bare.address, drawn)
    assert all_to_the_review(outcome, "the project says so")
    assert "faces are not compared, because the character counts as drawn" in "".join(str(shown) for shown in outcome.outputs.values())
    drawn["1"]["inputs"] |= {"class_noun": "dog", "pictures_are": "as said before"}
    asked_again = comfy.run(bare.address, drawn)
    assert all_to_the_review(asked_again, "the project says so")
    comfy.run(bare.address, graph(photos, "bare cartoon"))
    told_otherwise = comfy.run(bare.address, drawn)
    assert "104" not in told_otherwise.cached and "similarity" not in told_otherwise.text("104"), "another graph has said it since"
    assert "nearest" in told_otherwise.text("104")
    Image.new("RGB", (300, 300), "grey").save(bare.base / "input" / "grey.png")
    nobody = {number: node for number, node in graph(photos, "bare").items() if number in ("107", "108", "109")}
    nobody["108"]["inputs"]["image"] = "grey.png"
    outcome = comfy.run(bare.address, nobody)
    assert outcome.status == "error" and "image 1: no face was found" in outcome.error
    nobody["109"]["inputs"]["not_measurable"] = "give -1"
    assert comfy.run(bare.address, nobody).status == "success"


def test_drawn_faces_are_not_compared(bare, photos):
    (bare.base / "input").mkdir(exist_ok=True)
    for name in ("obama.jpg", "biden.jpg"):
        shutil.copy(photos / name, bare.base / "input")
    pair = {number: node for number, node in graph(photos, "bare").items() if number in ("107", "108", "109")}
    pair["109"]["inputs"]["pictures_are"] = "say which"
    outcome = comfy.run(bare.address, pair)
    assert outcome.status == "error" and "Say under pictures_are what the images are" in outcome.error
    pair["109"]["inputs"]["pictures_are"] = "drawn"
    outcome = comfy.run(bare.address, pair)
    assert outcome.status == "error" and "image 1: counts as drawn: somebody said so in Compare Faces" in outcome.error
    pair["109"]["inputs"]["not_measurable"] = "give -1"
    outcome = comfy.run(bare.address, pair)
    assert outcome.status == "success" and outcome.text("109").startswith("image 1: not measurable (counts as drawn: ")


def test_a_drawn_character_goes_through_where_no_face_engine_is_installed(comfyui, photos, tmp_path):
    """The whole first lap, with retries on drift; a photographed character is told what to install."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(without("dlib"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    lap = {"Curate_Source__folder": str(photos), "Prompt_Set__per_source": 1, "Enrich_Dataset__megapixels": 0.1}
    with Server(comfyui, Path(sys.executable), tmp_path / "comfyui", env=env) as running:
        drawn = comfy.run(
            running.address, comfy.first_lap(Project__name="girl", Project__class_noun="anime girl", Project__pictures_are="drawn", **lap)
        )
        assert drawn.status == "success", drawn.error
        for scored in ("4", "9"):
            lines = drawn.text(scored).splitlines()
            assert lines and all("not measurable (counts as drawn: the project says so" in line for line in lines)
        items = comfy.review(running.address, "girl")["items"]
        assert items and all(item["similarity"] is None and item["suggestion"] is None for item in items), "the review shows no number"
        person = comfy.run(running.address, comfy.first_lap(Project__name="person", **lap))
    assert person.status == "error" and "the package dlib-bin is missing" in person.error
