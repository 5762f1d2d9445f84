from dataclasses import replace

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.faces import Face
from comfyui_flenwheel.flywheel.faces.chip import light, sharpness, turn
from comfyui_flenwheel.flywheel.quality import Figures, assess, figures, near_duplicates
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from .conftest import picture
from .faces.portraits import engine, portraits

GOOD = Figures(1024, 1024, 200.0, 120.0, 0.0, 0.0, 0, 0)
FACE = Face((300, 300, 600, 600), "hog", 2.0, np.zeros(128, np.float32), 0.0, False, 200.0, 120.0, 0.0, 0.0)


def test_a_good_photo():
    quality = assess(GOOD, (FACE,))
    assert quality.verdict == "high" and quality.problems == () and quality.measured_on == "face" and quality.faces == 1


@pytest.mark.parametrize(
    ("picture_change", "face_change", "verdict", "words"),
    [
        ({}, {"sharpness": 19.0}, "low", "blurred: sharpness 19"),
        ({}, {"sharpness": 30.0}, "medium", "soft: sharpness 30"),
        ({}, {"luma": 30.0}, "medium", "dark: median brightness 30 of 255"),
        ({}, {"luma": 10.0}, "low", "dark"),
        ({}, {"luma": 210.0}, "medium", "very bright"),
        ({}, {"luma": 240.0}, "low", "very bright"),
        ({}, {"clipped_high": 0.3}, "medium", "30% of the face is white"),
        ({}, {"clipped_low": 0.4}, "medium", "40% of the face is black"),
        ({}, {"clipped_low": 0.4, "box": (-60, 300, 240, 600)}, "medium", "cut off"),
        ({}, {"box": (300, 300, 370, 370)}, "medium", "70 px wide"),
        ({}, {"box": (300, 300, 330, 330)}, "low", "30 px wide"),
        ({}, {"found_by": "cnn", "yaw": None}, "medium", "identity cannot be checked"),
        ({"width": 400}, {"box": (10, 10, 300, 300)}, "medium", "small: 400 x 1024 px"),
        ({"width": 200}, {"box": (10, 10, 190, 190)}, "low", "small: 200 x 1024 px"),
        ({"luma": 20.0, "sharpness": 5.0, "clipped_low": 0.9}, {}, "high", ""),  # a dark blurred background is no fault
    ],
)
def test_each_problem_has_its_figure_and_bound(picture_change, face_change, verdict, words):
    quality = assess(replace(GOOD, **picture_change), (replace(FACE, **face_change),))
    assert quality.verdict == verdict
    assert len(quality.problems) == bool(words) and words in "".join(quality.problems)


def test_pictures_without_one_face():
    none = assess(replace(GOOD, sharpness=5.0, luma=20.0), ())
    assert none.verdict == "medium" and none.measured_on == "picture" and none.faces == 0
    assert [problem.split(":")[0] for problem in none.problems] == ["blurred", "the picture is dark", "no face was found"]
    unmeasured = assess(GOOD, None)
    assert unmeasured.verdict == "high" and unmeasured.faces is None
    two = assess(GOOD, (FACE, replace(FACE, box=(0, 0, 200, 200)), replace(FACE, box=(0, 0, 100, 100))))
    assert two.faces == 2 and "2 faces" in two.problems[0]


def test_sharpness_ignores_brightness_but_not_blur():
    image = picture(1, (512, 512)).filter(ImageFilter.UnsharpMask(2, 300))
    grey = np.asarray(image.convert("L"))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(6)).convert("L"))
    dark = np.asarray(ImageEnhance.Brightness(image).enhance(0.3).convert("L"))
    assert sharpness(blurred) < sharpness(grey) / 3
    assert sharpness(dark) == pytest.approx(sharpness(grey), rel=0.35)
    assert sharpness(np.full((64, 64), 128, np.uint8)) == 0.0 == sharpness(np.zeros((2, 2), np.uint8))


def test_light():
    grey = np.array([[0] * 3 + [100] * 5 + [255] * 2], dtype=np.uint8)
    assert (light(grey).luma, light(grey).clipped_low, light(grey).clipped_high) == (100.0, 0.3, 0.2)


def test_a_head_turns_the_way_its_nose_points():
    eyes = [(100, 50), (80, 50), (20, 50), (40, 50)]  # as dlib orders them: the eye on the right of the picture first
    ahead, left, right = (turn(np.array([*eyes, (x, 90)], float)) for x in (60, 50, 70))
    assert ahead == pytest.approx(0) and left == pytest.approx(-right) and right > 0.1
    assert turn(np.zeros((5, 2))) == 0.0


def test_near_duplicates_keep_the_largest_then_the_sharpest():
    image = picture(1, (640, 480))
    shown = {
        "small": image.resize((320, 240)),
        "best": image,
        "mirrored": ImageOps.mirror(image),
        "brighter": ImageEnhance.Brightness(image).enhance(1.15),
        "another": picture(2, (640, 480)),
    }
    measured = {name: figures(picture) for name, picture in shown.items()}
    sharp = {"small": 90.0, "best": 50.0, "mirrored": 40.0, "brighter": 40.0, "another": 10.0}
    measured = {name: replace(figures, sharpness=sharp[name]) for name, figures in measured.items()}
    assert near_duplicates(measured) == {"small": "best", "mirrored": "best", "brighter": "best"}


def test_figures_of_any_size():
    for size in ((1, 1), (3, 2000), (2000, 3)):
        assert figures(Image.new("RGB", size, "grey")).width == size[0]


@pytest.mark.faces
def test_blurring_a_portrait_lowers_its_verdict():
    embedder = engine()
    for path in portraits():
        if path.stem in ("biden", "obama2", "obama3"):
            image = Image.open(path).convert("RGB")
            (face,) = embedder.faces(image)
            assert assess(figures(image), (face,)).verdict == "high", path.name
            blurred = image.filter(ImageFilter.GaussianBlur(face.width * 0.02))
            faces = embedder.faces(blurred)
            assert assess(figures(blurred), faces).verdict != "high", path.name
            assert all(found.sharpness < face.sharpness / 2 for found in faces)
