"""The pair doctor on pairs made ill on purpose, and the shift detector against known moves of real photographs."""

import json

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.errors import DatasetError
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.pair_doctor import KINDS, Limits, examine, mend
from comfyui_flenwheel.flywheel.pair_measures import compare
from comfyui_flenwheel.flywheel.pair_overlays import drawn, overlay
from comfyui_flenwheel.flywheel.pairs import load_captioned, load_pairs
from PIL import Image, ImageFilter

from .conftest import picture
from .scenes import moved, painted, scene

pytestmark = pytest.mark.slow  # more than a few seconds together: not in the quick part


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


def test_a_small_change_is_a_change(tmp_path):
    """A logo on a shirt leaves nearly every pixel as it was."""
    for folder in "tc":
        (tmp_path / folder).mkdir()
    photo = scene(1)
    result = photo.copy()
    result.paste((250, 240, 20), (240, 300, 270, 330))
    photo.save(tmp_path / "c" / "a.png")
    result.save(tmp_path / "t" / "a.png")
    photo.save(tmp_path / "c" / "b.png")
    photo.save(tmp_path / "t" / "b.jpg", quality=98, subsampling=0)
    checkup = examine(load_pairs(tmp_path / "t", [tmp_path / "c"], instruction="put the logo on the shirt"))
    assert checkup.measured["a"].difference < 1.5
    assert [finding.stem for finding in checkup.findings if finding.kind == "identical"] == ["b"]


def test_further_controls_are_compared_where_they_show_the_scene(tmp_path):
    """Control 2 is a drawing of the same scene, control 3 a logo; both are once a copy."""
    for folder in ("t", "c1", "c2", "c3"):
        (tmp_path / folder).mkdir()
    for number, (dx, second, third) in enumerate([(0, None, None), (6, None, None), (0, "target", "control_1")]):
        photo = scene(number)
        target = painted(photo, share=0.3)
        drawn = {"target": target}.get(second) or moved(target.convert("L").convert("RGB"), dx, 0, 0)
        logo = {"control_1": photo}.get(third) or scene(50 + number, (64, 64)).resize((512, 384))
        for folder, image in (("t", target), ("c1", photo), ("c2", drawn), ("c3", logo)):
            image.save(tmp_path / folder / f"{number}.png")
    dataset = load_pairs(tmp_path / "t", [tmp_path / f"c{n}" for n in (1, 2, 3)], instruction="x")
    checkup = examine(dataset, cache=tmp_path / "cache")
    assert [(one.stem, one.slot, one.kind) for one in checkup.findings] == [
        ("1", "control_2", "shift"),
        ("2", "control_2", "identical"),
        ("2", "control_3", "identical"),
    ], checkup.text()
    assert examine(dataset, cache=tmp_path / "cache") == checkup
    mended = mend(checkup, tmp_path / "mended")
    assert [pair.stem for pair in mended.pairs] == ["0", "1"]
    again = examine(mended)
    assert not again.findings, again.text()
    pair = mended.pairs[1]
    assert len({(picture.width, picture.height) for picture in (pair.target, *pair.controls[:2])}) == 1
    assert pair.controls[2] == dataset.pairs[1].controls[2], "a logo stays as it is"
    assert overlay(dataset.pairs[1], checkup.moved("1", "control_2"), slot="control_2", size_px=128).width == 266


def ailing(photo):
    """A control, and targets of it with one illness each: real photographs, real faults."""
    small = photo.resize((640, round(640 * photo.height / photo.width) // 2 * 2), Image.Resampling.LANCZOS)
    edited = painted(small, share=0.25)
    warm = np.clip(np.asarray(edited, np.int16) + np.array([26, 4, -20]), 0, 255).astype(np.uint8)
    wiped = small.copy()
    wiped.paste((120, 120, 120), (100, 100, 420, 400))
    return small, {
        "well": edited,
        "shift": moved(edited, 6, -4, 0.012),
        "aspect": edited.crop((0, 0, edited.width, edited.height - 60)),
        "size": edited.resize((edited.width * 2, edited.height * 2), Image.Resampling.LANCZOS),
        "identical": small,
        "colour": Image.fromarray(warm),
        "soft": edited.filter(ImageFilter.GaussianBlur(3)),
        "reversed": wiped,
    }


@pytest.fixture(scope="module")
def clinic(photos, tmp_path_factory):
    """Every illness on two real photographs."""
    root = tmp_path_factory.mktemp("clinic")
    for folder in "tc":
        (root / folder).mkdir()
    for name in ("obama", "biden"):
        control, targets = ailing(open_image(photos / f"{name}.jpg", at_least=1000).image)
        for ill, target in targets.items():
            control.save(root / "c" / f"{ill}-{name}.png")
            target.save(root / "t" / f"{ill}-{name}.png")
            (root / "t" / f"{ill}-{name}.txt").write_text("add a lamp" if ill == "reversed" else "change the middle")
    return load_pairs(root / "t", [root / "c"])


def test_every_illness_of_real_photographs_is_found_drawn_and_has_a_limit(clinic):
    checkup = examine(clinic)
    found = {pair.stem: {finding.kind for finding in checkup.of(pair.stem)} for pair in clinic.pairs}
    assert found == {stem: {stem.partition("-")[0]} - {"well"} for stem in found}
    sheets = {finding.kind: drawn(checkup, finding, cell_px=160) for finding in checkup.findings}
    assert set(sheets) == set(KINDS) - {"unreadable", "identity"}
    assert all(np.asarray(sheet).std() > 20 for sheet in sheets.values())
    blind = Limits(shift_px=50, zoom=0.2, colour=128, softness=0, identical=0, aspect=1, size=0, identity=0, reversed=1000)
    assert not examine(clinic, blind).findings, "every finding has a limit that can be moved"


def test_what_an_overlay_draws_is_what_is_wrong(clinic):
    checkup = examine(clinic)
    by_kind = {finding.kind: finding for finding in checkup.findings}
    pictures = {kind: np.asarray(drawn(checkup, by_kind[kind], cell_px=200), np.float32) for kind in ("identical", "colour", "reversed")}
    same, tint, gains = (picture[60:250, 440:620] for picture in (pictures["identical"], pictures["colour"], pictures["reversed"]))
    assert np.median(same) < 50, "nothing differs"
    red, _, blue = (np.median(tint[..., channel]) for channel in range(3))
    assert red > 150 and blue < 105, "what was added is warm"
    assert (gains[..., 0] > gains[..., 1] + 40).mean() > 0.1, "detail was lost"


def test_a_damaged_pair_has_no_picture(ward):
    checkup = examine(ward)
    assert [drawn(checkup, finding) for finding in checkup.of("broken")] == [None]
