"""A set that is built file by file: what may come in, what is told in place, and that nothing is lost."""

import io
import zipfile

import pytest
from comfyui_flenwheel.flywheel.errors import DatasetError, ImageError
from comfyui_flenwheel.flywheel.images import png_bytes
from comfyui_flenwheel.flywheel.layouts import LAYOUTS, export, plan
from comfyui_flenwheel.flywheel.pair_archives import import_archive, import_stage
from comfyui_flenwheel.flywheel.pair_sets import PairSets, Taken
from comfyui_flenwheel.flywheel.project import open_project

from .conftest import picture


def png(seed, size=(24, 24)):
    return png_bytes(picture(seed, size))


@pytest.fixture
def shirts(tmp_path):
    return PairSets(lambda: tmp_path / "sets").create("Logo on shirt")


@pytest.fixture
def full(shirts):
    for number in range(3):
        shirts.put("target", f"{number}.png", png(number))
        shirts.put("control_1", f"{number}.jpg", png(10 + number))
    shirts.describe(instruction="put the logo on the shirt")
    return shirts


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_an_empty_set_has_no_faults(shirts):
    state = shirts.state()
    assert state.problems == 0 and state.counts == (0, 0) and not state.rows


def test_a_set_that_fits_loads_as_pairs(full):
    state = full.state()
    assert state.problems == 0 and state.counts == (3, 3) and [row.stem for row in state.rows] == ["0", "1", "2"]
    dataset = full.dataset(labels=["shirts"])
    assert dataset.slots == ("shirts",) and {pair.caption for pair in dataset.pairs} == {"put the logo on the shirt"}


def test_words_yet_to_be_written_are_no_fault_until_it_is_loaded(full):
    full.describe(instruction="")
    assert full.state().problems == 0 and {row.caption for row in full.state().rows} == {""}
    with pytest.raises(DatasetError, match="no caption"):
        full.dataset()


def test_problems_stand_in_their_rows(full):
    full.remove("control_1", ["1.jpg"])
    full.put("control_1", "7.png", png(7))
    told = {row.stem: row.problems for row in full.state().rows}
    assert not told["0"] and "would have slipped" in told["1"][0] and told["7"] == ("control_1/7.png has no target",)
    with pytest.raises(DatasetError):
        full.dataset()


@pytest.mark.parametrize("name", ["../x.png", "a/b.png", ".hidden.png", "", "a\\b.png", "x" * 300 + ".png", "a:b.png", "..", "nul\x00.png"])
def test_names_that_lead_elsewhere_are_refused(shirts, name):
    with pytest.raises(DatasetError):
        shirts.put("target", name, png(1))
    with pytest.raises(DatasetError):
        shirts.picture("target", name)
    assert not [path for path in shirts.root.rglob("*") if path.suffix == ".png"]


def test_only_whole_pictures_and_captions_count(shirts):
    with pytest.raises(ImageError):
        shirts.put("target", "a.png", png(1)[:-40])
    for name, content in (("a.exe", b"MZ"), ("a.txt", b"\xff\xfe\xff")):
        with pytest.raises(DatasetError):
            shirts.put("target", name, content)
    with pytest.raises(DatasetError):
        shirts.put("control_1", "a.txt", b"captions belong to the target")
    with pytest.raises(DatasetError):
        shirts.put("control_2", "a.png", png(1))
    assert shirts.state().counts == (0, 0)


def test_a_taken_place_is_never_overwritten_unasked(full):
    with pytest.raises(Taken):
        full.put("target", "0.webp", png(99))
    assert full.put("target", "0.PNG", png(0)) == "0.png", "the same bytes again are no conflict"
    full.put("target", "0.webp", png(99), replacing=True)
    assert full.state().rows[0].names[0] == "0.webp" and full.state().counts == (3, 3)


def test_what_was_removed_comes_back(full):
    before = full.listing()
    batch = full.remove_pairs(["0", "2"])
    assert full.state().counts == (1, 1)
    assert full.restore(batch) == 4 and [entry[0] for entry in full.listing()] == [entry[0] for entry in before]
    for wrong in (batch, "../../x", "000000000000"):
        with pytest.raises(DatasetError) if wrong != batch else pytest.MonkeyPatch.context():
            assert full.restore(wrong) == 0


def test_controls_come_and_go_but_target_and_last_control_stay(full):
    full.add_control()
    full.put("control_2", "0.png", png(20))
    full.add_control()
    full.put("control_3", "0.png", png(30))
    with pytest.raises(DatasetError, match="3 control"):
        full.add_control()
    full.describe(slots={"control_3": {"label": "poses"}})
    full.remove_control("control_2")
    assert full.state().counts == (3, 3, 1) and full.about().slots[2].label == "poses"
    assert full.picture("control_2", "0.png").read_bytes() == png(30), "the third has moved up, picture and label together"
    full.remove_control("control_2")
    for slot in ("target", "control_1"):
        with pytest.raises(DatasetError):
            full.remove_control(slot)


def test_captions_are_written_changed_and_taken_away(full):
    full.caption({"0": "put  the red\nlogo on", "1": "put the blue logo on"})
    assert [(row.caption, row.own) for row in full.state().rows] == [
        ("put the red logo on", True),
        ("put the blue logo on", True),
        ("put the logo on the shirt", False),
    ]
    assert full.replacing("LOGO on", "badge on", any_case=True) == {"0": "put the red badge on", "1": "put the blue badge on"}
    assert full.state().rows[0].caption == "put the red logo on", "asking changes nothing"
    full.caption({"0": ""})
    assert not full.state().rows[0].own
    with pytest.raises(DatasetError):
        full.caption({"99": "x"})
    with pytest.raises(DatasetError):
        full.replacing("", "x")


def test_a_zip_with_named_folders_goes_to_its_slots_gaps_and_all(shirts):
    files = {f"my set/results/{n}.png": png(n) for n in range(3)} | {f"my set/control_1/{n}.png": png(10 + n) for n in range(2)}
    import_archive(
        shirts, zipped({**files, "my set/control_2/0.png": png(20), "__MACOSX/x.png": b"", "my set/results/0.txt": b"words"}), "target"
    )
    state = shirts.state()
    assert state.counts == (3, 2, 1) and state.rows[0].own and state.problems


@pytest.mark.parametrize("layout", [name for name, one in LAYOUTS.items() if 1 in one.controls])
def test_a_zip_of_any_trainers_layout_is_understood(full, layout, tmp_path):
    exported = export(plan(full.dataset()), tmp_path / "out", layout).folder
    archive = exported / "dataset.zip"
    files = {path.relative_to(exported.parent).as_posix(): path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    other = PairSets(lambda: tmp_path / "others").create("other")
    import_archive(other, archive.read_bytes() if archive.is_file() else zipped(files), "target")
    told = [
        (row.caption, tuple(open_pixel(other, slot, name) for slot, name in zip(("target", "control_1"), row.names, strict=True)))
        for row in other.state().rows
    ]
    assert told == [
        ("put the logo on the shirt", (picture(n, (24, 24)).getpixel((0, 0)), picture(10 + n, (24, 24)).getpixel((0, 0)))) for n in range(3)
    ]


def open_pixel(pair_set, slot, name):
    from PIL import Image

    return Image.open(pair_set.picture(slot, name)).convert("RGB").getpixel((0, 0))


def test_a_zip_of_plain_pictures_goes_to_the_open_slot(shirts):
    import_archive(shirts, zipped({"a.png": png(1), "deep/b.png": png(2)}), "control_1")
    assert shirts.state().counts == (0, 2)


@pytest.mark.parametrize(
    "content", [b"PK no zip", zipped({"../../evil.png": b"x"}), zipped({"readme.md": b"x"}), zipped({"/etc/x.png": b"x"})]
)
def test_archives_that_lead_elsewhere_or_hold_nothing_are_refused(shirts, content):
    with pytest.raises(DatasetError):
        import_archive(shirts, content, "target")
    assert shirts.state().counts == (0, 0)


def test_photos_of_a_project_come_in(shirts, tmp_path):
    project = open_project(tmp_path / "home", "Anna", instance_token="ohwx_anna", class_noun="woman", medium="photographs")
    source = project.stage("source").folder
    source.mkdir(parents=True, exist_ok=True)
    (source / "a.png").write_bytes(png(1))
    assert import_stage(shirts, project, "source", "control_1") == ["1 images of Anna into control_1"]
    for stage in ("enriched", "no such", "../data"):
        with pytest.raises(DatasetError):
            import_stage(shirts, project, stage, "control_1")


def test_sets_are_named_like_folders_and_found_again(tmp_path):
    sets = PairSets(lambda: tmp_path / "sets")
    sets.create("Logo on shirt")
    assert list(sets.names()) == ["Logo_on_shirt"] and sets.get("Logo on shirt") is sets.get("Logo_on_shirt")
    for name in ("", "..", "con"):
        assert sets.get(name) is None
        with pytest.raises(DatasetError):
            sets.create(name)
