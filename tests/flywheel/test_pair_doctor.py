"""The pair doctor on pairs made ill on purpose, and the shift detector against known moves of real photographs."""

import json

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.errors import DatasetError
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.pair_doctor import Limits, compare, examine, mend, overlay
from comfyui_flenwheel.flywheel.pairs import load_captioned, load_pairs
from comfyui_flenwheel.flywheel.registration import onto, register
from PIL import Image, ImageFilter

from .conftest import picture

pytestmark = pytest.mark.slow  # more than a few seconds together: not in the quick part


def scene(seed, size=(512, 384)):
    """Coarse shapes with texture: something to hold on to everywhere, like a photograph."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (size[1] // cell, size[0] // cell, 3), dtype=np.uint8)).resize(size, 3), np.float32)
        for cell in (64, 16, 5)
    ]
    return Image.fromarray(np.clip(0.5 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2], 0, 255).astype(np.uint8))


def moved(image, dx, dy, zoom):
    """Grown about the centre and slid, mirrored at the border."""
    padded = Image.fromarray(np.pad(np.asarray(image), ((64, 64), (64, 64), (0, 0)), mode="reflect"))
    width, height = image.size
    step = 1 / (1 + zoom)
    x0, y0 = width / 2 - step * (width / 2 + dx) + 64, height / 2 - step * (height / 2 + dy) + 64
    return padded.transform((width, height), Image.Transform.AFFINE, (step, 0, x0, 0, step, y0), Image.Resampling.BICUBIC)


def painted(image, seed=9, share=0.5):
    """A patch in the middle replaced."""
    result = image.copy()
    size = round(image.width * share), round(image.height * share)
    result.paste(scene(seed, size), (image.width // 5, image.height // 5))
    return result


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


@pytest.fixture
def ward(tmp_path):
    """Pairs with one illness each, and a healthy one."""
    (tmp_path / "t").mkdir()
    (tmp_path / "c").mkdir()
    base = [scene(seed) for seed in range(8)]
    red = Image.fromarray(np.clip(np.asarray(painted(base[4]), np.int16) + np.array([30, 0, -20]), 0, 255).astype(np.uint8))
    ills = {
        "healthy": (base[0], painted(base[0])),
        "shifted": (base[1], moved(painted(base[1]), 5, -3, 0.01)),
        "same": (base[2], base[2]),
        "cut": (base[3], painted(base[3]).crop((0, 0, 512, 300))),
        "tinted": (base[4], red),
        "blurred": (base[5], painted(base[5]).filter(ImageFilter.GaussianBlur(2))),
        "tiny": (base[6].resize((128, 96), Image.Resampling.LANCZOS), painted(base[6])),
        "broken": (base[7], painted(base[7])),
    }
    for name, (control, target) in ills.items():
        control.save(tmp_path / "c" / f"{name}.png")
        target.save(tmp_path / "t" / f"{name}.png")
    whole = (tmp_path / "t" / "broken.png").read_bytes()
    (tmp_path / "t" / "broken.png").write_bytes(whole[: len(whole) // 2])
    return load_pairs(tmp_path / "t", [tmp_path / "c"], instruction="change the middle")


def test_every_illness_is_found_and_nothing_else(ward):
    checkup = examine(ward)
    found = {pair.stem: {finding.kind for finding in checkup.of(pair.stem)} for pair in ward.pairs}
    found["tiny"] -= {"soft"}
    assert found == {
        "healthy": set(),
        "shifted": {"shift"},
        "same": {"identical"},
        "cut": {"aspect"},
        "tinted": {"colour"},
        "blurred": {"soft"},
        "tiny": {"size"},
        "broken": {"unreadable"},
    }
    assert "1 of 8 pairs are well" in checkup.text() and "slid by +5" in checkup.text() and "broken.png is damaged" in checkup.text()


def test_what_was_measured_is_kept_by_content(ward, tmp_path):
    first = examine(ward, cache=tmp_path / "cache")
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) == 7
    assert examine(ward, cache=tmp_path / "cache") == first
    told = json.loads(kept[0].read_text())
    kept[0].write_text(json.dumps({**told, "difference": 99.0, "moved": None}))
    assert examine(ward, cache=tmp_path / "cache").measured != first.measured, "the cache is really used"
    kept[0].write_text("{")
    assert examine(ward, cache=tmp_path / "cache").measured == first.measured, "a cut-off entry is measured again"


def test_mended_pairs_are_well_and_the_originals_untouched(ward, tmp_path):
    before = {picture.path: picture.path.read_bytes() for pair in ward.pairs for picture in (pair.target, *pair.controls)}
    checkup = examine(ward)
    mended = mend(checkup, tmp_path / "mended")
    assert [pair.stem for pair in mended.pairs] == ["cut", "healthy", "shifted", "tinted", "tiny"]
    again = examine(mended)
    assert {finding.kind for finding in again.findings} <= {"colour", "soft"}, again.text()
    assert before == {path: path.read_bytes() for path in before}
    assert any("3 pairs aligned" in note for note in mended.notes) and any("3 pairs left out" in note for note in mended.notes)
    shifted = next(pair for pair in mended.pairs if pair.stem == "shifted")
    assert shifted.facts["aligned"]["dx"] == pytest.approx(5, abs=0.3)
    assert [pair.stem for pair in mend(checkup, tmp_path / "mended", ["drop"]).pairs] == ["cut", "healthy", "shifted", "tinted", "tiny"]
    assert mend(checkup, tmp_path / "none", []).pairs == ward.pairs


def test_swapped_sides_are_suspected_by_the_words_and_by_the_rest(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "c").mkdir()
    for number in range(10):
        full = scene(number)
        plain = full.copy()
        plain.paste((120, 120, 120), (100, 100, 400, 300))
        control, target = (full, plain) if number != 4 else (plain, full)
        control.save(tmp_path / "c" / f"{number}.png")
        target.save(tmp_path / "t" / f"{number}.png")
    for instruction in ("remove the thing in the middle", "edit it like the others"):
        checkup = examine(load_pairs(tmp_path / "t", [tmp_path / "c"], instruction=instruction))
        assert [finding.stem for finding in checkup.findings if finding.kind == "reversed"] == ["4"], instruction


@pytest.mark.faces
def test_another_face_is_a_finding(tmp_path, photos):
    from comfyui_flenwheel.flywheel.faces import embedder

    for folder in "tc":
        (tmp_path / folder).mkdir()
    size = (480, 600)
    for name, target in (("same", "obama.jpg"), ("other", "biden.jpg")):
        open_image(photos / "obama2.jpg").image.crop((0, 0, 626, 782)).resize(size).save(tmp_path / "c" / f"{name}.png")
        whole = open_image(photos / target).image
        whole.crop((0, 0, whole.width, round(whole.width * 1.25))).resize(size).save(tmp_path / "t" / f"{name}.png")
    checkup = examine(load_pairs(tmp_path / "t", [tmp_path / "c"], instruction="x"), embedder=embedder())
    assert [finding.stem for finding in checkup.findings if finding.kind == "identity"] == ["other"]


def test_an_overlay_shows_both_states(ward):
    pair = next(pair for pair in ward.pairs if pair.stem == "shifted")
    shown = overlay(pair, examine(ward).measured["shifted"].moved, size_px=256)
    left, right = (np.asarray(shown, np.float32)[:, start : start + 256] for start in (0, 266))
    border = np.s_[5:30, 20:-20]
    doubled = [np.abs(half[..., 0] - half[..., 1])[border].mean() for half in (left, right)]
    assert doubled[1] < 0.5 * doubled[0]


def test_captioned_images_have_nothing_to_compare(tmp_path):
    picture(1).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="no control images"):
        examine(load_captioned(tmp_path, instruction="x"))


def test_compare_tells_how_much_is_unchanged():
    control = scene(3)
    found = compare(control, painted(control, share=0.5))
    assert 0.6 < found.unchanged < 0.85 and found.colour is not None and max(map(abs, found.colour)) < 2
