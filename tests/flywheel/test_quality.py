import re
from dataclasses import replace

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import quality
from comfyui_flenwheel.flywheel.faces import Face
from comfyui_flenwheel.flywheel.faces.chip import light, sharpness, turn
from comfyui_flenwheel.flywheel.quality import FRAMINGS, Figures, Twin, View, assess, figures, near_duplicates, proposed, view
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from .conftest import picture
from .faces.portraits import engine, portraits

GOOD = Figures(1024, 1024, 200.0, 120.0, 0.0, 0.0, 0, 0)
SIZE = 1024, 800
FACE = Face((300, 300, 600, 600), "hog", 2.0, np.zeros(128, np.float32), 0.0, 0.0, 200.0, 120.0, 0.0, 0.0)


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
    assert not words or "cnn" in face_change.values() or re.search(r"\d+\D+(?:at least|at most) \d+", quality.problems[0]), (
        "figure, then bound"
    )


def test_pictures_without_one_face():
    none = assess(replace(GOOD, sharpness=5.0, luma=20.0), ())
    assert none.verdict == "medium" and none.measured_on == "picture" and none.faces == 0
    assert [problem.split(":")[0] for problem in none.problems] == ["blurred", "the picture is dark", "no face was found"]
    unmeasured = assess(GOOD, None)
    assert unmeasured.verdict == "high" and unmeasured.faces is None
    two = assess(GOOD, (FACE, replace(FACE, box=(0, 0, 200, 200)), replace(FACE, box=(0, 0, 100, 100))))
    assert two.faces == 2
    assert two.problems == ("2 faces (exactly 1 is wanted; narrower than 40% of the widest is background): crop the photo",)


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
    twins = near_duplicates(measured)
    assert {name: (twin.kept, twin.mirrored) for name, twin in twins.items()} == {
        "small": ("best", False),
        "mirrored": ("best", True),
        "brighter": ("best", False),
    }
    assert str(twins["mirrored"]) == "almost the same picture as best, mirrored (0 of 64 bits differ, up to 6 count as one)"


def test_a_chain_of_near_duplicates_is_one_group_and_says_through_whom():
    def shown(bits: int, size: int) -> Figures:
        return replace(GOOD, hash=(1 << bits) - 1, mirror_hash=0xFFFF << 40, width=size)

    twins = near_duplicates({"far": shown(10, 500), "between": shown(5, 600), "best": shown(0, 700), "other": shown(30, 400)})
    assert twins == {"far": Twin("best", "between", 5, False), "between": Twin("best", "best", 5, False)}
    assert str(twins["far"]).endswith("; best is the best of them")
    assert near_duplicates({}) == {} == near_duplicates({"alone": GOOD})


def test_near_duplicates_of_thousands_are_found_at_once(monkeypatch):
    hashes = np.random.default_rng(0).integers(0, 2**63, (3000, 2), dtype=np.int64)
    many = {str(number): replace(GOOD, hash=int(one), mirror_hash=int(other)) for number, (one, other) in enumerate(hashes)}
    compared = []

    def counted(words: np.ndarray) -> np.ndarray:
        compared.append(len(words))
        return bits(words)

    bits = quality._bits
    monkeypatch.setattr(quality, "_bits", counted)
    assert near_duplicates({**many, "again": many["7"]}) == {"again": Twin("7", "7", 0, False)}
    assert len(compared) <= 2 * 3001 + 2, "one photo is held against all others at once, not one by one"


# --- how the character is seen


@pytest.mark.parametrize(
    ("yaw", "angle", "words"),
    [
        (0.0, "front", "turned 0 degrees (front below 13, profile from 45)"),
        (-0.14, "front", "turned 13 degrees (front below 13"),
        (-0.15, "half-left", "turned 14 degrees to the viewer's left (front below 13, profile from 45)"),
        (0.4, "half-right", "turned 36 degrees to the viewer's right"),
        (-0.6, "profile-left", "beyond which it was never tested"),
        (0.6, "profile-right", "turned 54 degrees to the viewer's right"),
    ],
)
def test_the_angle_says_its_figure_and_its_bounds(yaw, angle, words):
    seen = view((replace(FACE, yaw=yaw),), (1024, 1024))
    assert seen.angle == angle and seen.measures[0].startswith(f"{angle}: ") and words in seen.measures[0]


@pytest.mark.parametrize(
    ("height", "framing"),
    [(610, "head"), (779, "head"), (781, "bust"), (1649, "bust"), (1651, "half body"), (2699, "half body"), (2701, "full body")],
)
def test_the_framing_is_the_room_below_the_chin(height, framing):
    seen = view((FACE,), (1024, height))  # 300 px high, chin at 600
    assert seen.framing == framing in FRAMINGS and f"room for {(height - 600) / 300:.1f} faces" in seen.measures[2]


def test_what_nobody_can_see_stays_unknown():
    assert view(None, SIZE) == View() == view((), SIZE)
    cut = view((replace(FACE, box=(-60, 300, 240, 600), yaw=0.2),), SIZE)
    assert cut.angle == "unknown" and cut.measures[0] == "angle unknown: 20% of the face's width lies beyond the edge (told up to 5%)"
    hidden = view((replace(FACE, found_by="cnn", yaw=None, smile=None),), SIZE)
    assert (hidden.angle, hidden.expression, hidden.framing) == ("unknown", "unknown", "bust")
    assert "turned away" in hidden.measures[0]
    assert [view((replace(FACE, smile=smile),), SIZE).expression for smile in (0.99, 1.0)] == ["neutral", "smiling"]


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("Anna angry 2.jpg", "angry"),
        ("IMG_12-SAD.png", "sad"),
        ("crying_03.webp", "sad"),
        ("ambassador.jpg", "neutral"),
        ("sadie.jpg", "neutral"),
        ("angry or sad.jpg", "neutral"),
    ],
)
def test_the_name_of_a_file_proposes_what_no_measure_sees(name, expression):
    seen = proposed(view((FACE,), SIZE), name)
    assert seen.expression == expression
    assert any(words.startswith(f"{expression}: ") for words in seen.measures)
    assert (expression == "neutral") or "a person decides (measured: neutral)" in seen.measures[-1]


def test_a_good_photo_says_its_figures_too():
    told = "; ".join(assess(GOOD, (FACE,)).measures)
    for figure in (
        "1024 x 1024 px (shorter side at least 512)",
        "1 face (exactly 1; narrower than 40% of the widest is background)",
        "face 300 px wide (at least 80)",
        "sharpness 200 on the face (at least 40)",
    ):
        assert figure in told
    assert "brightness 120 (40 to 200)" in told and "0% white (at most 20%), 0% black (at most 25%)" in told
    assert "sharpness 200 on the whole picture (at least 20)" in assess(GOOD, ()).measures


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
