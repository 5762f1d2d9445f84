"""What the HOG is asked, with dlib in this process."""

from pathlib import Path

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.faces.finding import Finder, Picture
from comfyui_flenwheel.flywheel.images import open_image
from PIL import Image

from .portraits import engine, portraits

pytestmark = pytest.mark.faces
dlib = pytest.importorskip("dlib")


@pytest.fixture(scope="module")
def finder():
    return Finder(dlib, Path(engine()._files["points"]))


@pytest.fixture(scope="module")
def small_face():
    """A face 110 px wide in a picture of 1024: too narrow for the first look."""
    image = open_image(portraits()[2], at_least=640).image
    image.thumbnail((420, 420))
    sheet = Image.new("RGB", (1024, 1024), (120, 130, 125))
    sheet.paste(image, (300, 200))
    return sheet


def test_the_second_look_leaves_out_what_the_first_has_seen_and_sees_the_rest_as_before(finder, small_face):
    pixels = np.asarray(small_face.convert("L").resize((988, 988)))
    whole = finder._hog.run(pixels, 0, 0.0)
    short = finder._hog_of(4)
    assert short is not finder._hog, "this dlib writes its detector down as we know it"
    assert [str(box) for box in short.run(pixels, 0, 0.0)[0]] == [str(box) for box in whole[0]] != []
    assert list(short.run(pixels, 0, 0.0)[1]) == list(whole[1])
    large = np.asarray(small_face.crop((300, 200, 720, 620)).resize((988, 988)).convert("L"))
    assert len(finder._hog.run(large, 0, 0.0)[0]) == 1 and not len(short.run(large, 0, 0.0)[0])


def test_a_dlib_that_writes_its_detector_in_another_way_looks_at_everything(small_face, monkeypatch):
    other = Finder(dlib, Path(engine()._files["points"]))
    monkeypatch.setattr("comfyui_flenwheel.flywheel.faces.finding.HOG_STEPS", b"no such bytes")
    assert other._hog_of(4) is other._hog
    (cut,) = other.look(Picture(small_face, small_face.width)).cuts
    assert 80 < cut.box[2] - cut.box[0] < 143 and cut.found_by == "hog"
