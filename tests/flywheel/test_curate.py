import errno
import json
import os
import shutil

import pytest
from comfyui_flenwheel.flywheel import curate as curation
from comfyui_flenwheel.flywheel import images
from comfyui_flenwheel.flywheel.curate import CAPTION, curate, edits_fingerprint, photos_in
from comfyui_flenwheel.flywheel.errors import DatasetError, PromptError, StorageError
from comfyui_flenwheel.flywheel.images import content_key, open_image, png_bytes
from comfyui_flenwheel.flywheel.project import open_project
from PIL import Image

from .conftest import picture
from .faces.painted import Painted, broken, painted_png
from .faces.portraits import engine, portraits

FRONT, LEFT, RIGHT = (10, 200, 0, 0, 100), (10, 200, 0, 0, 70), (10, 200, 0, 0, 130)


class Cancelled(BaseException):
    """What ComfyUI raises out of a progress report."""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "Фото von Anna"
    folder.mkdir()
    return folder


@pytest.fixture
def album(folder):
    """Twelve good photos, four of each angle."""
    for number in range(12):
        (folder / f"IMG {number}.png").write_bytes(painted_png((FRONT, LEFT, RIGHT)[number % 3], seed=number))
    return folder


def run(project, folder, embedder=None, **options):
    return curate(project, photos_in(folder).photos, embedder or Painted(), **options)


def metadata(project):
    return json.loads(project.stage("source").metadata.read_text(encoding="utf-8"))


def edit(project, filename, **fields):
    document = metadata(project)
    next(entry for entry in document["images"] if entry["filename"] == filename).update(fields)
    project.stage("source").metadata.write_text(json.dumps(document), encoding="utf-8")


def snapshot(project):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(project.stage("source").folder.iterdir())}


def record(curated, original):
    return next(photo.record for photo in curated.photos if photo.original == original)


# --- the folder


def test_a_folder_is_read_in_natural_order_and_nothing_is_left_unsaid(folder):
    for name in ("b10.JPG", "b2.jpg", "B1.jpg", "notes.txt", "clip.mp4", ".DS_Store", "Thumbs.db", "b2.jpg.bak"):
        (folder / name).write_bytes(b"x")
    (folder / "more.png").mkdir()
    found = photos_in(folder)
    assert [path.name for path in found.photos] == ["B1.jpg", "b2.jpg", "b10.JPG"]
    assert all(name in found.notes[0] for name in ("notes.txt", "clip.mp4", "b2.jpg.bak", "more.png/"))
    assert found.notes[1].startswith("2 hidden")


def test_no_folder_and_no_photos(folder):
    with pytest.raises(DatasetError, match="There is no folder"):
        photos_in(folder / "nowhere")
    (folder / "readme.md").write_text("hello")
    with pytest.raises(DatasetError, match=r"readme\.md"):
        photos_in(folder)


# --- one lap


def test_photos_become_a_described_dataset(project, album):
    curated = run(project, album)
    assert [check.passed for check in curated.checklist] == [True] * 4
    assert [image.name for image in curated.dataset.images] == [f"source_{number:03}.png" for number in range(1, 13)]
    assert curated.dataset.images[1].caption == "photo of ohwx_char person, neutral expression, half-left view"
    assert record(curated, "IMG 10.png").name == "source_011.png"
    document = metadata(project)
    assert document["dataset_version"] == "v1"
    entry = document["images"][0]
    wanted = {
        "filename": "source_001.png",
        "angle": "front",
        "expression": "neutral",
        "quality": "high",
        "usable": True,
        "original": "IMG 0.png",
    }
    assert {name: entry[name] for name in wanted} == wanted
    for image in curated.dataset.images:
        assert content_key(curated.dataset.path(image)) == image.key
    originals = sorted(content_key(path) for path in album.iterdir())
    assert sorted(image.key for image in curated.dataset.images) == originals  # PNG, RGB, upright: byte for byte


def test_running_twice_changes_nothing_on_disk_and_looks_at_nothing(project, album):
    first = run(project, album)
    before = snapshot(project)
    embedder = Painted()
    assert run(project, album, embedder) == first
    assert snapshot(project) == before and embedder.looks == 0


def test_a_growing_folder_keeps_its_numbers(project, album):
    first = run(project, album)
    (album / "IMG 1b.png").write_bytes(painted_png(FRONT, seed=50))
    (album / "IMG 3.png").rename(album / "aaa.png")
    again = run(project, album)
    assert record(again, "IMG 1b.png").name == "source_013.png"
    assert record(again, "aaa.png") == record(first, "IMG 3.png")


def test_a_removed_original_leaves_the_dataset_and_may_come_back(project, album, tmp_path):
    run(project, album)
    shutil.move(album / "IMG 2.png", tmp_path / "IMG 2.png")
    without = run(project, album)
    assert len(without.dataset.images) == 11 and "source_003.png" in without.notes[0]
    assert (project.stage("source").folder / "source_003.png").is_file() and metadata(project)["images"][2]["removed"]
    (album / "new.png").write_bytes(painted_png(FRONT, seed=60))
    assert record(run(project, album), "new.png").name == "source_013.png"
    shutil.move(tmp_path / "IMG 2.png", album / "IMG 2.png")
    back = run(project, album)
    assert record(back, "IMG 2.png").name == "source_003.png" and "removed" not in metadata(project)["images"][2]


def test_originals_are_never_touched(project, album):
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in album.iterdir()}
    run(project, album)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in album.iterdir()} == before


# --- what people write


def test_an_edited_value_survives_every_run(project, album):
    run(project, album)
    edit(project, "source_001.png", caption="ohwx_char person on a horse", mine="keep me")
    edit(project, "source_002.png", angle="profile", expression="laughing")
    edit(project, "source_003.png", usable=False)
    for template in (CAPTION, "{noun} {token}, {angle}", CAPTION):
        curated = run(project, album, caption_template=template)
    first, second = curated.dataset.images[:2]
    assert first.caption == "ohwx_char person on a horse" and metadata(project)["images"][0]["mine"] == "keep me"
    assert second.caption == "photo of ohwx_char person, laughing expression, profile view"
    assert "source_003.png" not in [image.name for image in curated.dataset.images] and len(curated.dataset.images) == 11
    assert metadata(project)["images"][1]["guessed"]["angle"] == "half-left"


def test_a_poor_photo_is_left_out_until_a_person_wants_it(project, album):
    (album / "blurred.png").write_bytes(painted_png((10, 200, 0, 1), seed=70))
    curated = run(project, album)
    photo = next(photo for photo in curated.photos if photo.original == "blurred.png")
    assert not photo.usable and photo.quality.verdict == "low" and "sharpness 5" in photo.problems[0]
    edit(project, photo.record.name, usable=True)
    assert len(run(project, album).dataset.images) == 13


def test_the_edits_fingerprint_sees_people_only(project, album):
    assert edits_fingerprint(project) == edits_fingerprint(project)
    run(project, album)
    clean = edits_fingerprint(project)
    run(project, album, caption_template="{token} {noun}")
    (album / "more.png").write_bytes(painted_png(FRONT, seed=50))
    run(project, album)
    assert edits_fingerprint(project) == clean
    edit(project, "source_001.png", angle="profile")
    edited = edits_fingerprint(project)
    assert edited != clean
    run(project, album)
    assert edits_fingerprint(project) == edited
    edit(project, "source_001.png", caption="ohwx_char person")
    assert edits_fingerprint(project) not in (clean, edited)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "not readable JSON"),
        (lambda text: "[]", "no list of images"),
        (lambda text: text.replace('"angle": "front"', '"angle": ""'), "entry 1: angle is empty"),
        (lambda text: text.replace('"usable": true', '"usable": "yes"'), "usable must be true or false"),
        (lambda text: text.replace('"filename": "source_002.png"', '"filename": "../../x.png"'), "no file name of this dataset"),
    ],
)
def test_damaged_metadata_is_refused_and_left_as_it_is(project, album, damage, words):
    run(project, album)
    path = project.stage("source").metadata
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(DatasetError, match=words):
        run(project, album)
    with pytest.raises(DatasetError, match=words):
        edits_fingerprint(project)
    assert path.read_bytes() == before


def test_a_copy_changed_by_hand_is_not_written_over(project, album):
    run(project, album)
    changed = project.stage("source").folder / "source_001.png"
    changed.write_bytes(painted_png(FRONT, seed=99))
    before = changed.read_bytes()
    curated = run(project, album)
    assert "has been changed by hand" in curated.photos[-1].problems[0] and len(curated.dataset.images) == 11
    assert changed.read_bytes() == before
    changed.unlink()
    assert len(run(project, album).dataset.images) == 12 and changed.is_file()


# --- bad files


def test_unusable_files_are_all_reported_and_the_others_go_on(project, album):
    whole = (album / "IMG 1.png").read_bytes()
    (album / "cut.png").write_bytes(whole[: len(whole) // 2])
    (album / "empty.jpg").write_bytes(b"")
    (album / "text.jpg").write_text("I am no picture")
    (album / "Copy of IMG 1.png").write_bytes(whole)
    open_image(album / "IMG 2.png").image.save(album / "same pixels.bmp")
    curated = run(project, album)
    refused = {photo.original: photo.problems[0] for photo in curated.photos if not photo.usable}
    assert set(refused) == {"cut.png", "empty.jpg", "text.jpg", "IMG 1.png", "same pixels.bmp"}
    assert "the same file as Copy of IMG 1.png" in refused["IMG 1.png"]  # the first in natural order is taken
    assert len(curated.dataset.images) == 12
    assert any(note.startswith("5 of 17 files cannot be used") for note in curated.notes)
    assert {entry["original"] for entry in metadata(project)["unusable_files"]} == set(refused)
    with pytest.raises(DatasetError) as caught:
        run(project, album, strict=True)
    assert len(caught.value.problems) == 5


def test_the_same_pixels_in_two_formats_are_one_photo(project, album):
    pixels = picture(5, (512, 512))
    pixels.save(album / "a.bmp")
    pixels.save(album / "b.tif")
    curated = run(project, album)
    assert curated.photos[-1].problems == ("the same picture as a.bmp, pixel for pixel",)
    assert len(list(project.stage("source").folder.glob("*.png"))) == 13


def test_nothing_usable_names_every_file(project, folder):
    (folder / "a.png").write_bytes(b"")
    (folder / "b.png").write_bytes(b"nonsense")
    with pytest.raises(DatasetError) as caught:
        run(project, folder)
    assert len(caught.value.problems) == 2
    with pytest.raises(DatasetError, match="None of these files"):
        curate(project, [], None)


@pytest.mark.parametrize(
    ("name", "save", "copied", "treatment"),
    [
        ("plain.jpg", lambda image, path: image.save(path), ".jpg", None),
        ("plain.webp", lambda image, path: image.save(path, lossless=True), ".webp", None),
        ("really a jpeg.png", lambda image, path: image.save(path, "JPEG"), ".jpg", None),
        ("grey.jpg", lambda image, path: image.convert("L").save(path), ".png", "stored as PNG (the original is grey JPEG)"),
        ("alpha.png", lambda image, path: image.convert("RGBA").save(path), ".png", "transparency laid on grey"),
        ("palette.png", lambda image, path: image.quantize(64).save(path), ".png", "palette converted to RGB"),
        ("print.jpg", lambda image, path: image.convert("CMYK").save(path), ".png", "CMYK converted to RGB"),
        ("turned.jpg", lambda image, path: image.save(path, exif=orientation(6)), ".png", "rotated as its EXIF says"),
        ("scan.tif", lambda image, path: image.save(path), ".png", "stored as PNG (the original is TIFF)"),
    ],
)
def test_a_copy_is_verbatim_or_says_what_was_done(project, folder, name, save, copied, treatment):
    save(picture(3, (640, 512)), folder / name)
    (photo,) = run(project, folder).photos
    path = project.path(photo.record.path)
    assert path.name == f"source_001{copied}"
    if treatment is None:
        assert path.read_bytes() == (folder / name).read_bytes() and photo.treatments == ()
    else:
        assert treatment in photo.treatments and open_image(path).treatments == ()
    assert (photo.record.width, photo.record.height) == open_image(path).image.size


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = value
    return exif


# --- faces, captions, criteria


def test_without_a_face_engine_curation_works_and_says_so(project, album):
    curated = curate(project, photos_in(album).photos, None)
    assert len(curated.dataset.images) == 12 and curated.dataset.images[0].caption == "photo of ohwx_char person"
    assert any("faces were not measured" in note for note in curated.notes)
    assert {check.name: check.passed for check in curated.checklist}["at least 2 different angles"] is False
    assert all(photo.quality.faces is None and photo.angle == "unknown" for photo in curated.photos)
    later = run(project, album)  # dlib installed meanwhile
    assert later.dataset.images[0].caption == "photo of ohwx_char person, neutral expression, front view"


def test_an_engine_that_fails_on_one_photo_does_not_lose_the_others(project, album):
    (album / "hard.png").write_bytes(png_bytes(broken(80)))
    curated = run(project, album)
    assert len(curated.dataset.images) == 13
    assert [note for note in curated.notes if "failed" in note] == ["faces were not measured: the engine failed on this image"]


def test_near_duplicates_are_flagged_not_removed(project, album):
    image = open_image(album / "IMG 0.png").image
    image.save(album / "again.jpg", quality=60)
    curated = run(project, album)
    (flagged,) = (photo for photo in curated.photos if any("almost the same picture" in problem for problem in photo.problems))
    assert flagged.original in ("IMG 0.png", "again.jpg") and flagged.usable and flagged.quality.verdict == "medium"
    assert len(curated.dataset.images) == 13


@pytest.mark.parametrize(
    ("template", "with_face", "without"),
    [
        (CAPTION, "photo of ohwx_char person, neutral expression, front view", "photo of ohwx_char person"),
        ("a {angle} photo of {token} {noun}", "a front photo of ohwx_char person", "a photo of ohwx_char person"),
        ("{token} {noun} , {angle}, soft light", "ohwx_char person, front, soft light", "ohwx_char person, soft light"),
    ],
)
def test_the_caption_leaves_out_what_is_unknown(project, folder, template, with_face, without):
    (folder / "a.png").write_bytes(painted_png(FRONT))
    (folder / "b.png").write_bytes(painted_png(seed=1))
    captions = [image.caption for image in run(project, folder, caption_template=template).dataset.images]
    assert captions == [with_face, without]


@pytest.mark.parametrize("template", ["photo of {tokn}", "photo of {token", "{}", " ", "{token.__class__}", "{token!r}"])
def test_a_caption_template_that_means_nothing(project, album, template):
    with pytest.raises(PromptError):
        run(project, album, caption_template=template)
    assert not project.stage("source").folder.exists()


def test_strict_lists_every_criterion_that_fails(project, folder):
    (folder / "a.png").write_bytes(painted_png(FRONT))
    (folder / "b.png").write_bytes(painted_png(seed=1))
    curated = run(project, folder, caption_template="photo of {token}")
    assert [check.passed for check in curated.checklist] == [False] * 4
    with pytest.raises(DatasetError) as caught:
        run(project, folder, caption_template="photo of {token}", strict=True)
    assert len(caught.value.problems) == 4
    assert metadata(project)["images"]  # described all the same, so that it can be mended there


# --- trouble


def test_a_stop_in_the_middle_leaves_nothing_twice(project, album):
    for stop in (3, 14):

        def report(done: int, total: int, stop: int = stop) -> None:
            assert total == 24
            if done == stop:
                raise Cancelled

        with pytest.raises(Cancelled):
            run(project, album, report=report)
    (album / "000.png").write_bytes(painted_png(FRONT, seed=90))  # sorts before those that have a number already
    curated = run(project, album)
    assert len(list(project.stage("source").folder.glob("source_*"))) == 13 == len(curated.dataset.images)
    assert record(curated, "IMG 0.png").name == "source_001.png" and record(curated, "000.png").name == "source_013.png"


def test_progress_ends_at_the_total(project, album):
    steps = []
    (album / "bad.png").write_bytes(b"")
    run(project, album, report=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (26, 26) and steps == sorted(steps)


def test_a_full_disk_keeps_what_is_there(project, album, monkeypatch):
    written = []

    def full(path, content, write=images.write_whole):
        if len(written) == 5:
            raise images.storage_error(path, OSError(errno.ENOSPC, "No space left on device"))
        written.append(path)
        write(path, content)

    monkeypatch.setattr(curation, "write_whole", full)
    with pytest.raises(StorageError, match="full"):
        run(project, album)
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in written}
    assert len(run(project, album).dataset.images) == 12
    assert {path: path.stat().st_mtime_ns for path in written} == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_photo_without_permission(project, album):
    (album / "IMG 3.png").chmod(0)
    assert any("cannot be read" in photo.problems[0] for photo in run(project, album).photos if photo.problems)


def test_moved_with_its_project(project, album, tmp_path):
    run(project, album)
    moved = tmp_path / "elsewhere"
    shutil.move(project.root.parent, moved)
    again = open_project(moved, "Anna", instance_token="ohwx_char", class_noun="person")
    embedder = Painted()
    curated = run(again, album, embedder)
    assert embedder.looks == 0 and all(curated.dataset.path(image).is_file() for image in curated.dataset.images)


@pytest.mark.faces
def test_the_portraits(project):
    curated = curate(project, portraits(), engine())
    angles = {photo.original: photo.angle for photo in curated.photos}
    smiles = {photo.original for photo in curated.photos if photo.expression == "smiling"}
    assert angles["obama.jpg"] == angles["biden.jpg"] == "front" and angles["obama2.jpg"] == "half-left"
    assert smiles == {"obama.jpg", "obama_partial_face.jpg", "obama_partial_face2.jpg"}
    assert len(curated.dataset.images) == 7 and all(photo.quality.verdict != "low" for photo in curated.photos)
    assert sum("almost the same picture" in problem for photo in curated.photos for problem in photo.problems) == 1  # 32bit.png is obama2
