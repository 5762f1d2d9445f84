"""The pixel-shift guard on real photographs: finds moves that were made, and says nothing of pictures that have nothing in common."""

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.alignment import move, noted
from PIL import Image, ImageEnhance, ImageFilter


@pytest.fixture(scope="module")
def photo(photos):
    image = Image.open(photos / "obama.jpg").convert("RGB")
    return image.resize((896, 1120))


def moved(image, right, down, zoom=1.0):
    width, height = image.size
    margin_x, margin_y = width / 2 * (1 - 1 / zoom), height / 2 * (1 - 1 / zoom)
    box = (margin_x - right, margin_y - down, width - margin_x - right, height - margin_y - down)
    return image.transform(image.size, Image.Transform.EXTENT, box, Image.Resampling.BICUBIC)


def edited(image):
    """Another light and softness, as an edit gives."""
    return ImageEnhance.Color(ImageEnhance.Brightness(image.filter(ImageFilter.GaussianBlur(1.5))).enhance(0.6)).enhance(0.3)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (6, 0), (-9, 14), (3, -3), (40, 25)])
def test_a_shift_is_found_within_two_pixels(photo, right, down):
    found = move(photo, edited(moved(photo, right, down)))
    assert found.is_certain and abs(found.right - right) < 2 and abs(found.down - down) < 2 and found.zoom == 1
    assert found.exceeds(photo.size) == (np.hypot(right, down) > 0.005 * 1120)


@pytest.mark.parametrize("zoom", [0.97, 1.02, 1.04])
def test_a_zoom_is_found(photo, zoom):
    found = move(photo, edited(moved(photo, 0, 0, zoom)))
    assert found.is_certain and found.zoom == pytest.approx(zoom, abs=0.011) and found.exceeds(photo.size)


def test_other_pictures_give_no_answer(photo, photos):
    other = Image.open(photos / "biden.jpg").convert("RGB").resize(photo.size)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1120, 896, 3), dtype=np.uint8))
    assert noted(photo, other) == {} and noted(photo, noise) == {} and noted(photo, Image.new("RGB", photo.size)) == {}


def test_notes_flag_only_what_is_far(photo):
    assert noted(photo, edited(photo)) == {"moved_px": pytest.approx([0, 0], abs=1), "zoom": 1.0}
    assert noted(photo, edited(moved(photo, 12, 0)))["shifted"] is True
