"""Shift and zoom against known moves: exact on the whole picture, quick for the pixel-shift guard, silent where nothing is shared."""

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.pair_doctor import Limits
from comfyui_flenwheel.flywheel.registration import noted, onto, register
from PIL import Image, ImageEnhance, ImageFilter

from .scenes import moved, painted, scene

MOVES = [(0, 0, 0), (0.4, -0.3, 0), (3.3, 1.7, 0.004), (-8.5, 8.4, -0.03), (12, 0, 0.03), (0, -12, 0.015), (-6, -2, -0.012)]


@pytest.mark.parametrize(("dx", "dy", "zoom"), MOVES)
def test_a_known_move_is_measured_within_half_a_pixel_and_a_fifth_of_a_per_cent(dx, dy, zoom):
    control = scene(1)
    for target in (control, painted(control), control.filter(ImageFilter.GaussianBlur(1))):
        found = register(control, moved(target, dx, dy, zoom))
        assert found is not None
        assert np.hypot(found.dx - dx, found.dy - dy) < 0.5 and abs(found.zoom - zoom) < 0.002
        assert Limits().alarm(found) == (np.hypot(dx, dy) > 1.5 or abs(zoom) > 0.003)


def test_photographs_are_measured_likewise(photos):
    rng = np.random.default_rng(3)
    for path in sorted(photos.iterdir())[:4]:
        photo = open_image(path, at_least=1000).image
        angle, length, zoom = rng.uniform(0, 6.28), rng.uniform(0, 12), rng.uniform(-0.03, 0.03)
        dx, dy = length * np.cos(angle), length * np.sin(angle)
        found = register(photo, moved(photo, dx, dy, zoom))
        assert found and np.hypot(found.dx - dx, found.dy - dy) < 0.5 and abs(found.zoom - zoom) < 0.002
        still = register(photo, photo)
        assert still and not Limits().alarm(still)


def test_pictures_that_share_nothing_give_no_answer():
    assert [register(scene(seed), scene(seed + 100)) for seed in range(6)] == [None] * 6
    assert register(Image.new("RGB", (300, 300)), Image.new("RGB", (300, 300))) is None


@pytest.mark.parametrize(("dx", "dy", "zoom"), MOVES)
def test_a_control_is_put_into_the_targets_framing(dx, dy, zoom):
    control = scene(2)
    target = moved(control, dx, dy, zoom)
    framed, box = onto(control, register(control, target), target.size)
    left, right = (np.asarray(image.crop(box), np.float32)[8:-8, 8:-8] for image in (framed, target))
    assert np.abs(left - right).mean() < 2.5
    assert (box[2] - box[0]) * (box[3] - box[1]) > 0.85 * target.width * target.height


def test_targets_of_another_size_are_measured_in_pixels_of_the_control():
    control = scene(4)
    found = register(control, moved(control, 6, -3, 0.01).resize((1024, 768), Image.Resampling.LANCZOS))
    assert found and np.hypot(found.dx - 6, found.dy + 3) < 0.5 and abs(found.zoom - 0.01) < 0.002


@pytest.fixture(scope="module")
def photo(photos):
    return open_image(photos / "obama.jpg").image.resize((896, 1120))


def edited(image):
    """Another light and softness, as an edit gives."""
    return ImageEnhance.Color(ImageEnhance.Brightness(image.filter(ImageFilter.GaussianBlur(1.5))).enhance(0.6)).enhance(0.3)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (6, 0), (-9, 14), (3, -3), (40, 25)])
def test_the_guard_finds_a_shift_within_two_pixels(photo, right, down):
    found = noted(photo, edited(moved(photo, right, down, 0)))
    assert found["moved_px"] == pytest.approx([right, down], abs=2) and found["zoom"] == pytest.approx(1, abs=0.002)
    assert found.get("shifted", False) == (np.hypot(right, down) > 0.005 * 1120)


@pytest.mark.parametrize("zoom", [0.97, 1.02, 1.04])
def test_the_guard_finds_a_zoom(photo, zoom):
    found = noted(photo, edited(moved(photo, 0, 0, zoom - 1)))
    assert found["zoom"] == pytest.approx(zoom, abs=0.003) and found["shifted"]


def test_the_guard_has_no_answer_for_other_pictures(photo, photos):
    other = open_image(photos / "biden.jpg").image.resize(photo.size)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1120, 896, 3), dtype=np.uint8))
    assert noted(photo, other) == {} and noted(photo, noise) == {} and noted(photo, Image.new("RGB", photo.size)) == {}


def test_the_guard_measures_in_pixels_of_the_result(photo):
    larger = edited(moved(photo, 12, 0, 0)).resize((1344, 1680))
    assert noted(photo, larger)["moved_px"] == pytest.approx([18, 0], abs=2)
