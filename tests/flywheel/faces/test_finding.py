"""What the HOG is asked, with dlib in this process."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.faces import prominent
from comfyui_flenwheel.flywheel.faces.finding import HOG_SECOND_FACE, Finder, Picture, fitted
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


def test_a_prepared_finder_has_read_all_that_it_needs(monkeypatch):
    prepared = Finder(dlib, Path(engine()._files["points"]))
    prepared.prepare()
    monkeypatch.setattr(prepared, "_file", Path("no such file"))
    monkeypatch.setattr(prepared, "_dlib", SimpleNamespace(rectangle=dlib.rectangle, get_face_chip=dlib.get_face_chip))
    image = open_image(portraits()[2]).image
    assert len(prepared.look(Picture(image, image.width)).cuts) == 1


def face_of(finder, name):
    """A face with its surroundings, 480 px square."""
    image = open_image(next(path for path in portraits() if path.name == name)).image
    left, top, right, bottom = finder.look(Picture(image, image.width)).cuts[0].box
    rim = round((right - left) * 0.6)
    return image.crop((left - rim, top - rim, right + rim, bottom + rim)).resize((480, 480))


def test_a_second_face_counts_from_a_bound_on_and_the_only_one_however_weak(finder):
    """A man beside another who leans more and more, which HOG sees less and less."""
    one, other = face_of(finder, "obama.jpg"), face_of(finder, "biden.jpg")
    grey = (120, 130, 125)
    counted: dict[int, float] = {}
    for turn in range(40, 60):
        leaning = other.rotate(turn, Image.Resampling.BICUBIC, fillcolor=grey)
        both, alone = (Image.new("RGB", (1024, 600), grey) for _ in range(2))
        both.paste(one, (20, 60))
        for sheet in (both, alone):
            sheet.paste(leaning, (520, 60))
        raw = sorted(finder._hog.run(np.asarray(fitted(both.convert("L"), 572)), 0, 0.0)[1])
        seen = finder.look(Picture(both, 1024)).cuts
        if len(raw) != 2:
            continue
        assert len(seen) == (2 if raw[0] >= HOG_SECOND_FACE else 1), (turn, raw)
        counted[len(seen)] = raw[0]
        if len(seen) == 1:
            (weak,) = finder.look(Picture(alone, 1024)).cuts
            assert weak.found_by == "hog" and weak.confidence < HOG_SECOND_FACE
            assert len(prominent(engine().faces(both))) == 1 == len(prominent(engine().faces(alone)))
        elif raw[0] < 0.5:
            assert len(prominent(engine().faces(both))) == 2, "a person beside the one"
    assert 0.0 < counted[1] < 0.25 <= counted[2] < 0.5, "the pictures lie on both sides of the bound, and near it"


@pytest.mark.parametrize("name", ["obama.jpg", "obama2.jpg", "obama3.jpg", "biden.jpg"])
def test_a_small_picture_is_enlarged_for_the_second_look(finder, name):
    """As face_recognition does: HOG sees nothing narrower than 80 px."""
    image = open_image(next(path for path in portraits() if path.name == name)).image
    face = finder.look(Picture(image, image.width)).cuts[0]
    scale = 60 / (face.box[2] - face.box[0])
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    (cut,) = finder.look(Picture(small, small.width)).cuts
    assert 48 < cut.box[2] - cut.box[0] < 80 and cut.found_by == "hog"
