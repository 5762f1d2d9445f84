"""Every way in which names, counts and files can disagree; and that no folder, however odd, ever gives a wrong pair."""

import json
import os
import shutil
import tempfile
import unicodedata
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel import pair_slots
from comfyui_flenwheel.flywheel.errors import DatasetError
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.pair_slots import match_key
from comfyui_flenwheel.flywheel.pairs import Pair, PairedDataset, captioned, load_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


def folders(root, target, *controls):
    """Folders of tiny pictures; the colour of each says which slot it belongs to, and it carries its own stem as text."""
    made = []
    for slot, names in enumerate((target, *controls)):
        folder = root / ("target" if slot == 0 else f"c{slot}")
        folder.mkdir()
        for name in names:
            if name.endswith(".txt"):
                (folder / name).write_text("caption of " + name[:-4])
            else:
                Image.new("RGB", (8 + slot, 8), (slot * 60, 0, 0)).save(folder / name)
        made.append(folder)
    return made[0], made[1:]


def problems(root, target, *controls, **options):
    with pytest.raises(DatasetError) as caught:
        load_pairs(*folders(root, target, *controls), **{"instruction": "put the logo on the shirt", **options})
    return str(caught.value), list(caught.value.problems)


def test_pairs_are_matched_by_name_whatever_ending_and_case(tmp_path):
    target, controls = folders(tmp_path, ["b.png", "A.jpg", "c.d.webp"], ["a.PNG", "B.jpeg", "C.D.png"], ["a.bmp", "b.gif", "c.d.tif"])
    dataset = load_pairs(target, controls, labels=("shirts", ""), instruction="put the logo on the shirt")
    assert [pair.stem for pair in dataset.pairs] == ["A", "b", "c.d"]
    assert [[control.name for control in pair.controls] for pair in dataset.pairs] == [
        ["a.PNG", "a.bmp"],
        ["B.jpeg", "b.gif"],
        ["C.D.png", "c.d.tif"],
    ]
    assert dataset.slots == ("shirts", "control_2") and {pair.caption for pair in dataset.pairs} == {"put the logo on the shirt"}
    assert "3 of 3 pairs use the general instruction" in dataset.notes[0]


@pytest.mark.parametrize(
    ("target", "controls", "told"),
    [
        (["a.png", "b.png"], [["a.png"], ["a.png", "b.png"]], "control_1 has no file for target/b.png: control_2/b.png would have slipped"),
        (["a.png", "b.png", "c.png"], [["a.png", "c.png"]], "paired by order, control_1/c.png would have slipped into its place"),
        (["a.png", "b.png"], [["a.png"]], "trained without Picture 1"),
        (["a.png"], [["a.png", "b.png"]], "control_1/b.png has no target"),
        (["a.png", "a.jpg"], [["a.png"]], "target/a.jpg and target/a.png have the same name: keep one"),
        (["a.png"], [["A.png", "a.jpg"]], "differ only in upper and lower case"),
        (["é.png"], [["é.png", unicodedata.normalize("NFD", "é") + ".png"]], "how an accent is written"),
        ([], [["a.png"]], "there is no picture in"),
    ],
)
def test_a_disagreement_is_named_with_the_file_that_would_have_slipped(tmp_path, target, controls, told):
    text, listed = problems(tmp_path, target, *controls)
    assert any(told in problem for problem in listed), listed
    assert "drop the pair" in text and "drop the control" in text


def test_every_gap_is_listed_at_once(tmp_path):
    names = [f"{number:02}.png" for number in range(20)]
    _, listed = problems(tmp_path, names, names[:5] + names[9:], [*names[:12], "stray.png"])
    assert len(listed) == 4 + 8 + 1
    assert sum("control_1 has no file" in problem for problem in listed) == 4


def test_unreadable_files_are_listed_by_name(tmp_path):
    target, controls = folders(tmp_path, ["a.png", "b.png", "c.png"], ["a.png", "b.png", "c.png"])
    (controls[0] / "a.png").write_bytes(b"")
    (controls[0] / "b.png").write_text("hello")
    (target / "c.png").write_bytes((target / "c.png").read_bytes()[:20])
    with pytest.raises(DatasetError) as caught:
        load_pairs(target, controls, instruction="x")
    listed = caught.value.problems
    assert len(listed) == 3
    assert "a.png is empty (0 bytes)" in listed[0] and "b.png is not an image" in listed[1] and "c.png" in listed[2]


@pytest.mark.parametrize("waits", [False, True])
def test_headers_are_read_alike_at_hand_and_from_a_slow_disk(tmp_path, monkeypatch, waits):
    """One after the other, and by threads from the second handful on: every picture keeps its own size and every fault its own file."""
    target, controls = folders(tmp_path, [f"{number:03}.png" for number in range(150)], [f"{number:03}.png" for number in range(150)])
    for number in range(150):
        Image.new("RGB", (1 + number, 4)).save(controls[0] / f"{number:03}.png")
    (target / "070.png").write_bytes(b"")
    (controls[0] / "140.png").write_text("hello")
    monkeypatch.setattr(pair_slots.time, "thread_time", (lambda: 0.0) if waits else pair_slots.time.perf_counter)
    dataset = load_pairs(target, controls, instruction="x", on_problem="drop the pair")
    assert {pair.stem: pair.controls[0].width for pair in dataset.pairs} == {
        f"{number:03}": 1 + number for number in range(150) if number not in (70, 140)
    }


@pytest.mark.parametrize("count", [0, 4])
def test_one_to_three_controls(tmp_path, count):
    _, listed = problems(tmp_path, ["a.png"], *[["a.png"]] * count)
    assert listed and "control folder" in listed[0]


def test_the_same_folder_twice_is_refused(tmp_path):
    target, _ = folders(tmp_path, ["a.png"])
    with pytest.raises(DatasetError, match="same folder"):
        load_pairs(target, [target], instruction="x")
    with pytest.raises(DatasetError, match="is not a folder"):
        load_pairs(target, [tmp_path / "nowhere"], instruction="x")


def test_the_faulty_pairs_can_be_dropped_and_that_is_said(tmp_path):
    target, controls = folders(tmp_path, ["a.png", "b.png", "c.png", "d.png"], ["a.png", "c.png", "C.jpg", "d.png", "e.png"])
    (controls[0] / "d.png").write_bytes(b"")
    dataset = load_pairs(target, controls, instruction="x", on_problem="drop the pair")
    assert [pair.stem for pair in dataset.pairs] == ["a"]
    assert any("4 names left out as asked: b, c, d, e" in note for note in dataset.notes)


def test_a_control_folder_can_be_dropped_but_not_the_last(tmp_path):
    target, controls = folders(tmp_path, ["a.png", "b.png"], ["a.png"], ["a.png", "b.png"])
    dataset = load_pairs(target, controls, labels=("shirts", "logos"), instruction="x", on_problem="drop the control")
    assert dataset.slots == ("logos",) and [pair.controls[0].path.parent.name for pair in dataset.pairs] == ["c2", "c2"]
    with pytest.raises(DatasetError, match="control_1 has no file"):
        load_pairs(target, controls[:1], instruction="x", on_problem="drop the control")


def test_captions_come_from_text_files_then_metadata_then_the_instruction(tmp_path):
    target, controls = folders(tmp_path, ["a.png", "b.png", "c.png", "A.txt"], ["a.png", "b.png", "c.png"])
    rows = [
        {"file_name": "a.png", "text": "lost"},
        {"file_name": "sub/B.jpg", "prompt": "of  b\n"},
        {"file_name": "x.png", "caption": "gone"},
    ]
    (target / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    dataset = load_pairs(target, controls, instruction="general", trigger_word="ohwx")
    assert [pair.caption for pair in dataset.pairs] == ["ohwx, caption of A", "ohwx, of b", "ohwx, general"]
    notes = " ".join(dataset.notes)
    assert "x.png" in notes and "1 of 3 pairs" in notes and "put in front of 3 captions" in notes


def test_a_trigger_word_goes_where_the_caption_wants_it(tmp_path):
    target, controls = folders(tmp_path, ["a.png", "b.png"], ["a.png", "b.png"])
    (target / "a.txt").write_text("a photo of [trigger] smiling", encoding="utf-8-sig")
    (target / "b.txt").write_text("Ohwx laughing")
    assert [pair.caption for pair in load_pairs(target, controls, trigger_word="ohwx").pairs] == [
        "a photo of ohwx smiling",
        "Ohwx laughing",
    ]


def test_captions_that_do_not_work_are_named(tmp_path):
    target, controls = folders(tmp_path, ["a.png", "b.png", "c.png"], ["a.png", "b.png", "c.png"])
    (target / "a.txt").write_bytes(b"\xff\xfe\x00caption")
    (target / "b.txt").write_text("  \n")
    (target / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "one"}\nnonsense\n{"file_name": "c.jpg", "text": "two"}\n')
    with pytest.raises(DatasetError) as caught:
        load_pairs(target, controls)
    told = " | ".join(caught.value.problems)
    assert (
        "line 2" in told
        and "a.txt cannot be read as UTF-8" in told
        and "target/b.png has no caption" in told
        and "two different captions" in told
    )


def test_sizes_are_upright_and_other_files_are_named(tmp_path):
    target, controls = folders(tmp_path, ["a.png"], ["a.png"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(target / "b.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(controls[0] / "b.jpg")
    (target / "notes.doc").write_text("x")
    (target / "sub").mkdir()
    dataset = load_pairs(target, controls, instruction="x")
    assert (dataset.pairs[1].target.width, dataset.pairs[1].target.height) == (20, 30)
    assert "notes.doc, sub/" in dataset.notes[0]


def test_the_fingerprint_sees_pixels_captions_and_slots(tmp_path):
    target, controls = folders(tmp_path, ["a.png"], ["a.png"], ["a.png"])
    first = load_pairs(target, controls, instruction="x").fingerprint()
    assert load_pairs(target, controls, instruction="x", name="other").fingerprint() == first
    others = [
        load_pairs(target, controls[::-1], instruction="x"),
        load_pairs(target, controls, instruction="y"),
        load_pairs(target, controls[:1], instruction="x"),
    ]
    Image.new("RGB", (8, 8), "blue").save(target / "a.png")
    assert len({first, load_pairs(target, controls, instruction="x").fingerprint(), *(other.fingerprint() for other in others)}) == 4 + 1


def test_a_dataset_of_pairs_cannot_be_wrong(tmp_path):
    target, controls = folders(tmp_path, ["a.png"], ["a.png"])
    pair = load_pairs(target, controls, instruction="x").pairs[0]
    wrong = [
        Pair("a", pair.target, (), "x"),
        Pair("A", pair.target, pair.controls, "  "),
        Pair("b", pair.target, (pair.target,), "x"),
    ]
    with pytest.raises(DatasetError) as caught:
        PairedDataset("d", tuple(wrong), ("one",))
    assert len(caught.value.problems) == 4
    with pytest.raises(DatasetError, match="no pairs"):
        PairedDataset("d", (), ("one",))


def test_a_captioned_set_is_a_dataset_without_controls(candidates):
    dataset = captioned(candidates)
    assert dataset.slots == () and len(dataset.pairs) == 6 and dataset.trigger_word == "ohwx_char"


STEMS = st.sampled_from(["a", "A", "b", "B", "a_1", "a.b", "ä", "a\u0308", "Ä", "ß", "ss", "01", "1", "ﬁ", "fi", "İ", "i", "σ", "ς", " a"])
NAMES = st.sets(st.tuples(STEMS, st.sampled_from([".png", ".PNG", ".bmp"])), max_size=5)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(NAMES, min_size=2, max_size=4), st.sampled_from(["refuse", "drop the pair", "drop the control"]), st.sampled_from([0, 0, 1, 2])
)
def test_no_folder_ever_gives_a_wrong_pair(contents, on_problem, damaged):
    root = Path(tempfile.mkdtemp())
    try:
        made = []
        for slot, names in enumerate(contents):
            folder = root / str(slot)
            folder.mkdir()
            made.append(folder)
            for stem, suffix in names:
                # the picture itself says whose it is: slot in red, the letters of its plain name in green and blue
                mark = sum(map(ord, match_key(stem)))
                Image.new("RGB", (4, 4), (slot, mark % 256, mark // 256)).save(folder / (stem + suffix), "PNG")
        for folder in made[:damaged]:
            for path in sorted(folder.iterdir())[:1]:
                path.write_bytes(b"broken")
        alone = {slot: _alone(folder) for slot, folder in enumerate(made)}
        complete = set.intersection(*(set(keys) for keys in alone.values()))
        try:
            dataset = load_pairs(made[0], made[1:], instruction="x", on_problem=on_problem)
        except DatasetError as error:
            assert error.problems
            if on_problem == "drop the pair":
                assert not complete
            return
        for pair in dataset.pairs:
            pixels = [open_image(picture.path).image.getpixel((0, 0)) for picture in (pair.target, *pair.controls)]
            assert len({pixel[1:] for pixel in pixels}) == 1, "the same plain name in every slot"
            slots = [pixel[0] for pixel in pixels]
            assert slots[0] == 0 and slots == sorted(set(slots)), "every slot once, in order"
            if on_problem != "drop the control":
                assert slots == list(range(len(made)))
        if on_problem == "drop the pair":
            assert {match_key(pair.stem) for pair in dataset.pairs} == complete
        if on_problem == "refuse":
            assert all(set(keys) == complete for keys in alone.values())
    finally:
        shutil.rmtree(root)


def _alone(folder):
    """Match keys that exactly one whole file of a folder has."""
    found = {}
    for name in os.listdir(folder):
        found.setdefault(match_key(Path(name).stem), []).append(folder / name)
    return [key for key, paths in found.items() if len(paths) == 1 and paths[0].read_bytes() != b"broken"]
