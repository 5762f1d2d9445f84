"""The bundled graph that checks a folder of faces, on sixty real and edited portraits of two people in the real ComfyUI."""

import re
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel.images import open_image
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from . import comfy

pytestmark = [pytest.mark.comfy, pytest.mark.faces]

EDITS = {
    "as-it-is": lambda image: image,
    "mirrored": ImageOps.mirror,
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "bright": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "flat": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "hard": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "pale": lambda image: ImageEnhance.Color(image).enhance(0.4),
    "warm": lambda image: Image.blend(image, Image.new("RGB", image.size, (255, 170, 60)), 0.15),
    "cold": lambda image: Image.blend(image, Image.new("RGB", image.size, (60, 120, 255)), 0.15),
    "turned": lambda image: image.rotate(10, Image.Resampling.BICUBIC),
    "poster": lambda image: ImageOps.posterize(image, 3),
    "sharpened": lambda image: image.filter(ImageFilter.UnsharpMask(3, 120)),
    "small": lambda image: image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS),
    "painted": lambda image: image.filter(ImageFilter.ModeFilter(5)),
}
PEOPLE = {"obama": "him", "obama2": "him", "obama3": "him", "biden": "other"}


@pytest.fixture(scope="module")
def sixty(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sixty")
    for name, who in PEOPLE.items():
        image = open_image(photos / f"{name}.jpg").image
        image.thumbnail((700, 900), Image.Resampling.LANCZOS)
        for edit, change in EDITS.items():
            change(image).save(folder / f"{who} {name} {edit}.jpg", quality=92)
    assert len(list(folder.iterdir())) == 60
    return folder


@pytest.fixture(scope="module")
def checked(server, sixty):
    prompt = comfy.bundled("identity_check", Project__name="sixty", Curate_Source__folder=str(sixty))
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "success", outcome.error
    return prompt, outcome


def test_sixty_portraits_of_two_people_are_scored_filtered_and_reported(checked, server):
    _, outcome = checked
    scored = outcome.text("4")
    described = (server.base / "output" / "flenwheel" / "sixty" / "data" / "source" / "v1" / "metadata.json").read_text(encoding="utf-8")
    originals = {name: original for name, original in re.findall(r'"filename": "([^"]+)".*?"original": "([^"]+)"', described, re.DOTALL)}
    values = {originals[name]: float(value) for name, value in re.findall(r"^(\S+): (\d\.\d\d) ", scored, re.MULTILINE)}
    unclear = {originals[name] for name in re.findall(r"^(\S+): not measurable", scored, re.MULTILINE)}
    assert len(values) + len(unclear) >= 57, "hardly one is too poor to be used"
    him = {name: value for name, value in values.items() if name.startswith("him")}
    other = {name: value for name, value in values.items() if name.startswith("other")}
    assert len(him) >= 40 and len(other) >= 12
    assert min(him.values()) >= 0.60 > 0.55 > max(other.values()), (sorted(him.items(), key=lambda pair: pair[1])[:3], max(other.values()))
    filtered = outcome.text("5")
    assert filtered.startswith(
        f"{len(him)} at or above 0.60, {len(other)} below, {len(unclear)} not measurable, of {len(values) + len(unclear)}."
    )


def test_the_report_is_a_picture_and_a_page(checked, server):
    _, outcome = checked
    shown = outcome.outputs["6"]["images"][0]
    picture = open_image(server.base / shown["type"] / shown["subfolder"] / shown["filename"]).image
    assert picture.width >= 800 and picture.height > 1000
    page = Path(outcome.text("6").rpartition("page: ")[2]).read_text(encoding="utf-8")
    assert "Least alike" in page and page.count('class="failed"') + page.count("class='failed'") == 6, "the least alike are the other man"


def test_another_threshold_measures_nothing_again_and_its_figures_can_be_asked_for_before(checked, server):
    prompt, outcome = checked
    spread = outcome.outputs["5"]["flen_spread"][0]
    keep = "the best of them, a number"
    status, told = comfy.call(server.address, f"/flenwheel/spread/{spread}?threshold=0.7&keep={keep.replace(' ', '%20')}&amount=20")
    assert status == 200 and 0 < told["passed"] <= 20 and sum(bar["kept"] for bar in told["bins"]) == told["passed"]
    assert sum(bar["left_out"] for bar in told["bins"]) == told["failed"]
    changed = {**prompt, "5": {**prompt["5"], "inputs": {**prompt["5"]["inputs"], "threshold": 0.7, "keep": keep, "amount": 20}}}
    again = comfy.run(server.address, changed)
    assert again.status == "success" and {"2", "3", "4"} <= again.cached
    assert again.text("5").startswith(told["words"]), "what was foretold is what comes"
    for wrong in ("threshold=2", "threshold=x", "keep=some", "amount=0", "keep=the%20best%20of%20them,%20a%20percentage&amount=101"):
        assert comfy.call(server.address, f"/flenwheel/spread/{spread}?{wrong}")[0] == 400
    assert comfy.call(server.address, "/flenwheel/spread/0123")[0] == 404
