"""Each layout: exactly the files its trainer wants, the same bytes every time, and back again through our importer."""

import json
import os
import tempfile
import zipfile
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel.errors import DatasetError
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.layouts import LAYOUTS, Settings, export, import_dataset, load_manifest, plan, recognised
from comfyui_flenwheel.flywheel.pair_slots import match_key
from comfyui_flenwheel.flywheel.pairs import captioned, load_captioned, load_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from .conftest import picture

CAPTIONS = {"Anna 1": "put the logo on the shirt", "anna_2": 'say "hello"\\ to ü', "b_1": "third\nwith two lines"}


def dataset_of(root, controls):
    """Names that trip trainers up: spaces, underscores, one a beginning of another; formats that need treatment."""
    for slot, folder in enumerate(["target", "shirts", "logos", "poses"][: controls + 1]):
        (root / folder).mkdir(parents=True)
        for number, stem in enumerate(CAPTIONS):
            image = picture(10 * slot + number, (64, 48) if slot < 2 else (40, 40))
            if number == 1:
                image.putalpha(120)
            image.save(root / folder / (stem + (".jpg" if number == 2 else ".png")))
            if slot == 0:
                (root / folder / (stem + ".txt")).write_text(CAPTIONS[stem], encoding="utf-8")
    if not controls:
        return load_captioned(root / "target", name="Logo, shirts!", trigger_word="")
    return load_pairs(
        root / "target",
        [root / name for name in ("shirts", "logos", "poses")[:controls]],
        labels=("shirts", "logos", "poses"),
        name="Logo, shirts!",
    )


def pixels(picture):
    return open_image(picture.path).image.tobytes()


CASES = [(name, controls) for name, layout in LAYOUTS.items() for controls in layout.controls]


@pytest.mark.parametrize(("layout", "controls"), CASES)
def test_what_is_written_comes_back_in_the_same_slots(tmp_path, layout, controls):
    dataset = dataset_of(tmp_path, controls)
    exported = export(plan(dataset), tmp_path / "out", layout)
    assert recognised(exported.folder).name == layout
    back = import_dataset(exported.folder)
    assert (back.name, back.slots) == (dataset.name, dataset.slots)
    assert [pair.stem for pair in back.pairs] == ["Anna 1", "anna_2", "b_1"]
    for ours, theirs in zip(dataset.pairs, back.pairs, strict=True):
        assert theirs.caption == ours.caption and len(theirs.controls) == controls
        for one, other in zip((ours.target, *ours.controls), (theirs.target, *theirs.controls), strict=True):
            assert pixels(one) == pixels(other) and (one.width, one.height) == (other.width, other.height)
            if layout != "fal zip":
                with Image.open(other.path) as written:
                    assert (written.format, written.mode, other.path.suffix) == ("PNG", "RGB", ".png")


@pytest.mark.parametrize(("layout", "controls"), [(name, layout.controls[-1]) for name, layout in LAYOUTS.items()])
def test_without_our_manifest_only_the_old_names_are_lost(tmp_path, layout, controls):
    dataset = dataset_of(tmp_path, controls)
    exported = export(plan(dataset), tmp_path / "out", layout)
    (exported.folder / "manifest.json").unlink()
    back = import_dataset(exported.folder, layout)
    assert [pair.stem for pair in back.pairs] == ["p0001", "p0002", "p0003"]
    assert [[pixels(one) for one in (pair.target, *pair.controls)] for pair in back.pairs] == [
        [pixels(one) for one in (pair.target, *pair.controls)] for pair in dataset.pairs
    ]


@pytest.mark.parametrize(("layout", "controls"), [(name, layout.controls[-1]) for name, layout in LAYOUTS.items()])
def test_the_same_manifest_gives_the_same_bytes(tmp_path, layout, controls):
    exported = export(plan(dataset_of(tmp_path, controls)), tmp_path / "out", layout, Settings(megapixels=0.01, multiple=16))
    before = contents(exported.folder)
    manifest = load_manifest(exported.folder / "manifest.json")
    assert export(manifest, tmp_path / "out", layout, Settings(megapixels=0.01, multiple=16)).folder == exported.folder
    assert contents(exported.folder) == before
    for path in before:
        (exported.folder / path).unlink()
    export(manifest, tmp_path / "out", layout, Settings(megapixels=0.01, multiple=16))
    assert contents(exported.folder) == before


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


FILES = {
    "kohya sd-scripts": ["1_logo-shirts/p0001.png", "1_logo-shirts/p0001.txt", "conditioning/p0001.png", "dataset.toml"],
    "musubi-tuner": [
        "target/p0001.png",
        "target/p0001.txt",
        "control/p0001_0.png",
        "control/p0001_2.png",
        "dataset.toml",
        "dataset_jsonl.toml",
        "items.jsonl",
    ],
    "ai-toolkit": ["target/p0001.png", "target/p0001.txt", "control_1/p0001.png", "control_3/p0001.png", "dataset.yaml"],
    "mflux": ["data/p0001_out.png", "data/p0001_in.png", "data/p0001_in.txt"],
    "diffusers and built-in": ["images/p0001.png", "control_1/p0001.png", "control_3/p0001.png", "metadata.jsonl"],
    "Hugging Face imagefolder": ["train/images/p0001.png", "train/control_3/p0001.png", "train/metadata.jsonl"],
    "DiffSynth-Studio": ["target/p0001.png", "control_3/p0001.png", "metadata.json"],
    "fal zip": ["dataset.zip"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_files_are_called_as_the_trainer_wants_them(tmp_path, layout):
    exported = export(plan(dataset_of(tmp_path, LAYOUTS[layout].controls[-1])), tmp_path / "out", layout)
    written = contents(exported.folder)
    assert set(FILES[layout]) <= set(written)
    assert not any("Anna" in name or " " in name for name in written)
    assert all(content.count(b"\n") == 1 and content.strip() for name, content in written.items() if name.endswith(".txt")), (
        "one line, not empty"
    )


def test_kohya_toml_names_everything(tmp_path):
    tomllib = pytest.importorskip("tomllib")
    exported = export(
        plan(dataset_of(tmp_path, 1)), tmp_path / "out", "kohya sd-scripts", Settings(repeats=10, resolution=768, batch_size=2)
    )
    told = tomllib.loads((exported.folder / "dataset.toml").read_text())
    assert told["general"] == {"caption_extension": ".txt"}
    assert told["datasets"] == [
        {
            "resolution": 768,
            "batch_size": 2,
            "enable_bucket": True,
            "bucket_reso_steps": 64,
            "subsets": [
                {
                    "image_dir": str(exported.folder / "10_logo-shirts"),
                    "conditioning_data_dir": str(exported.folder / "conditioning"),
                    "num_repeats": 10,
                }
            ],
        }
    ]


def test_musubi_toml_and_listing_name_every_slot(tmp_path):
    tomllib = pytest.importorskip("tomllib")
    exported = export(plan(dataset_of(tmp_path, 2)), tmp_path / "out", "musubi-tuner")
    by_folder = tomllib.loads((exported.folder / "dataset.toml").read_text())["datasets"][0]
    assert by_folder["control_directory"] == str(exported.folder / "control") and by_folder["control_resolution"] == [1024, 1024]
    by_listing = tomllib.loads((exported.folder / "dataset_jsonl.toml").read_text())["datasets"][0]
    assert by_listing["cache_directory"] != by_folder["cache_directory"]
    rows = [json.loads(line) for line in Path(by_listing["image_jsonl_file"]).read_text(encoding="utf-8").splitlines()]
    assert [sorted(row) for row in rows] == [["caption", "control_path_0", "control_path_1", "image_path"]] * 3
    assert rows[1]["caption"] == CAPTIONS["anna_2"] and rows[2]["caption"] == "third with two lines"


def test_aitoolkit_yaml_is_yaml(tmp_path):
    yaml = pytest.importorskip("yaml")
    exported = export(plan(dataset_of(tmp_path, 2)), tmp_path / "out", "ai-toolkit", Settings(resolution=512))
    block = yaml.safe_load((exported.folder / "dataset.yaml").read_text())["datasets"][0]
    assert block["control_path"] == [str(exported.folder / "control_1"), str(exported.folder / "control_2")] and block["resolution"] == [
        512
    ]


def test_too_many_controls_are_refused_and_the_other_layouts_named(tmp_path):
    manifest = plan(dataset_of(tmp_path, 2))
    for layout in ("mflux", "kohya sd-scripts"):
        with pytest.raises(DatasetError, match=r"at most 1 control .* musubi-tuner, ai-toolkit"):
            export(manifest, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


def test_plain_pictures_are_linked_and_others_made_plain(tmp_path):
    exported = export(plan(dataset_of(tmp_path, 1)), tmp_path / "out", "ai-toolkit")
    assert os.path.samefile(tmp_path / "target" / "Anna 1.png", exported.folder / "target" / "p0001.png")
    assert not os.path.samefile(tmp_path / "target" / "anna_2.png", exported.folder / "target" / "p0002.png")
    assert "2 pictures are links" in exported.text() and "transparency laid on grey" in exported.text()


def test_resizing_never_parts_a_pair(tmp_path):
    dataset = dataset_of(tmp_path, 3)
    back = import_dataset(export(plan(dataset), tmp_path / "out", "musubi-tuner", Settings(megapixels=0.02, multiple=16)).folder)
    for pair in back.pairs:
        sizes = [(one.width, one.height) for one in (pair.target, *pair.controls)]
        assert sizes[0] == sizes[1] == (160, 128) and sizes[2] == (144, 144), "same framing, same size; another shape keeps its shape"


def test_a_changed_lost_or_damaged_picture_stops_the_export(tmp_path):
    dataset = dataset_of(tmp_path, 1)
    manifest = plan(dataset)
    picture(99).save(tmp_path / "target" / "Anna 1.png")
    (tmp_path / "shirts" / "anna_2.png").unlink()
    with pytest.raises(DatasetError) as caught:
        export(manifest, tmp_path / "out", "ai-toolkit")
    assert len(caught.value.problems) == 2 and "another picture" in caught.value.problems[0] and "is gone" in caught.value.problems[1]
    whole = (tmp_path / "target" / "b_1.jpg").read_bytes()
    (tmp_path / "target" / "b_1.jpg").write_bytes(whole[: len(whole) // 2])
    picture(20).save(tmp_path / "shirts" / "anna_2.png")
    for layout in LAYOUTS:
        with pytest.raises(DatasetError, match=r"b_1\.jpg is damaged"):
            export(plan(dataset), tmp_path / "again", layout)
        assert not list((tmp_path / "again").rglob("manifest.json"))


def test_a_caption_edited_in_the_export_is_not_overwritten(tmp_path):
    manifest = plan(dataset_of(tmp_path, 1))
    exported = export(manifest, tmp_path / "out", "ai-toolkit")
    (exported.folder / "target" / "p0001.txt").write_text("my own words\n")
    with pytest.raises(DatasetError, match=r"p0001\.txt was changed after the export"):
        export(manifest, tmp_path / "out", "ai-toolkit")
    assert import_dataset(exported.folder).pairs[0].caption == "my own words"


def test_an_import_is_as_strict_as_the_folders(tmp_path):
    manifest = plan(dataset_of(tmp_path, 2))
    musubi = export(manifest, tmp_path / "out", "musubi-tuner").folder
    (musubi / "control" / "p0002_0.png").unlink()
    with pytest.raises(DatasetError, match=r"control_1 has no file for target/p0002\.png: control_2/p0002_1\.png would have slipped"):
        import_dataset(musubi)
    aitoolkit = export(manifest, tmp_path / "out", "ai-toolkit").folder
    (aitoolkit / "control_1" / "p0001.png").unlink()
    with pytest.raises(DatasetError, match=r"control_2/p0001\.png would have slipped"):
        import_dataset(aitoolkit)
    diffusers = export(manifest, tmp_path / "out", "diffusers and built-in").folder
    rows = [json.loads(line) for line in (diffusers / "metadata.jsonl").read_text().splitlines()]
    del rows[0]["control_1_file_name"]
    (diffusers / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DatasetError, match="control_1 has no file for"):
        import_dataset(diffusers)
    rows[0]["control_1_file_name"] = "../../target/Anna 1.png"
    (diffusers / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DatasetError, match="leads out of"):
        import_dataset(diffusers)


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("../../evil_end.png", b"x")
        opened.writestr("..\\evil_start.png", b"x")
        opened.writestr("/abs_end.png", b"x")
    with pytest.raises(DatasetError):
        import_dataset(archive, unpack_to=tmp_path / "deep" / "er")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["evil.zip"]
    archive.write_bytes(b"not a zip")
    with pytest.raises(DatasetError, match="no readable zip"):
        import_dataset(archive)


def test_a_foreign_fal_archive_is_read(tmp_path):
    archive = tmp_path / "theirs.zip"
    picture(1).save(tmp_path / "a.png")
    with zipfile.ZipFile(archive, "w") as opened:
        for name in ("set/photo 1_start.png", "set/photo 1_start2.png", "set/photo 1_end.png"):
            opened.write(tmp_path / "a.png", name)
        opened.writestr("set/photo 1.txt", "make it red")
        opened.writestr("__MACOSX/._photo 1_end.png", b"x")
    dataset = import_dataset(archive)
    assert dataset.pairs[0].stem == "photo 1" and dataset.pairs[0].caption == "make it red" and len(dataset.slots) == 2


def test_a_captioned_dataset_of_a_project_exports_too(tmp_path, candidates):
    exported = export(plan(captioned(candidates)), tmp_path / "out", "kohya sd-scripts", Settings(repeats=10))
    assert exported.examples == 6 and import_dataset(exported.folder).trigger_word == "ohwx_char"


def test_an_unknown_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="none of the layouts"):
        import_dataset(tmp_path)
    with pytest.raises(DatasetError, match="There is no"):
        import_dataset(tmp_path / "nowhere")


NAMES = st.lists(
    st.text(st.sampled_from("aAbß_. 01ä-'\u0301(CON"), min_size=1, max_size=9).map(lambda name: f"{name.strip(' .')}x"),
    min_size=1,
    max_size=4,
    unique_by=match_key,
)
WORDS = st.text(st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=40).filter(str.strip)


def marked_dataset(root, names, words, controls):
    """Every picture says in its corner which slot and pair it is of."""
    for slot, folder in enumerate(("target", "c1", "c2", "c3")[: controls + 1]):
        (root / folder).mkdir()
        for number, name in enumerate(names):
            Image.new("RGB", (32, 32), (slot * 60, number * 50, 99)).save(root / folder / f"{name}.png")
            (root / "target" / f"{name}.txt").write_text(words, encoding="utf-8")
    if not controls:
        return load_captioned(root / "target", name=names[0])
    return load_pairs(root / "target", [root / f"c{number}" for number in range(1, controls + 1)], name=names[0])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CASES), NAMES, WORDS, st.lists(st.integers(0, 60), max_size=3), st.booleans())
def test_whatever_is_lost_from_an_export_no_import_pairs_wrongly(case, names, words, lost, with_manifest):
    """Any names and words go out and come back; files deleted from the export are missed, or their pairs are, but nothing slips."""
    layout, controls = case
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = marked_dataset(root, names, words, controls)
        exported = export(plan(dataset), root / "out", layout).folder
        if not with_manifest:
            (exported / "manifest.json").unlink()
        pictures = sorted(path for path in exported.rglob("*.png"))
        gone = {pictures[number % len(pictures)] for number in lost} if pictures else set()
        for path in gone:
            path.unlink()
        try:
            back = import_dataset(exported, layout, instruction="general")
        except DatasetError:
            assert gone
            return
        for pair in back.pairs:
            corners = [open_image(one.path).image.getpixel((0, 0)) for one in (pair.target, *pair.controls)]
            assert len({number for _, number, _ in corners}) == 1, "every picture of a pair has the pair's number"
            assert [slot for slot, _, _ in corners] == sorted({slot for slot, _, _ in corners}) and corners[0][0] == 0
            assert not with_manifest or [slot for slot, _, _ in corners] == [60 * slot for slot in range(controls + 1)]
        if with_manifest and not gone:
            assert [(pair.stem, pair.caption) for pair in back.pairs] == [(pair.stem, pair.caption) for pair in dataset.pairs]


@pytest.mark.parametrize("layout", ["musubi-tuner", "ai-toolkit", "Hugging Face imagefolder"])
def test_a_whole_slot_that_was_lost_is_missed(tmp_path, layout):
    """Without its first control the second would be Picture 1."""
    exported = export(plan(dataset_of(tmp_path, 2)), tmp_path / "out", layout).folder
    for path in [*exported.rglob("control_1/*.png"), *exported.rglob("*_0.png")]:
        path.unlink()
    for folder in exported.rglob("control_1"):
        folder.rmdir()
    with pytest.raises(DatasetError):
        import_dataset(exported)
