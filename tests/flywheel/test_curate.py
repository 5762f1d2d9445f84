import errno
import json
import os
import shutil

import pytest
from comfyui_flenwheel.flywheel import curate as curation
from comfyui_flenwheel.flywheel import images, photo_shelf
from comfyui_flenwheel.flywheel.curate import CAPTION, curate
from comfyui_flenwheel.flywheel.errors import DatasetError, PromptError, StorageError
from comfyui_flenwheel.flywheel.images import content_key, open_image, png_bytes
from comfyui_flenwheel.flywheel.photo_shelf import photos_in
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.flywheel.source_metadata import edits_fingerprint, said_of_sources, set_captions
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


def test_whether_the_character_is_drawn_is_asked_at_once_and_then_believed(project, album):
    assert not any("drawn" in note for note in run(project, album).notes), "twelve clear faces"
    for number in range(12):
        (album / f"odd {number}.png").write_bytes(painted_png(*([(200,)] if number == 0 else []), seed=50 + number))
    notes = run(project, album).notes
    assert not any("drawn" in note for note in notes), "not yet half"
    (album / "odd 12.png").write_bytes(painted_png(seed=70))
    (album / "odd 13.png").write_bytes(painted_png(seed=71))
    assert any(
        note.startswith("In 13 of 26 pictures no clear face was found. If the character is drawn or stylised after all")
        for note in run(project, album).notes
    )
    for path in album.glob("IMG*.png"):
        path.unlink()
    (album / "odd 0.png").unlink()
    assert "\n".join(run(project, album).notes).count("If the character is drawn") == 1, "asked once, also where no face is clear at all"
    drawn = open_project(project.root.parent, "Comic", instance_token="ohwx_char", class_noun="anime girl", medium="drawn")
    told = run(drawn, album)
    assert "faces are not compared, because the character counts as drawn: the project says so" in told.notes
    assert not any("If the character is drawn" in note for note in told.notes) and not any(photo.odd for photo in told.photos)


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


# --- captions in two places


def text_of(project, filename):
    return (project.stage("source").folder / filename).with_suffix(".txt")


def agreeing(project):
    """Captions by file name, where metadata.json and the .txt files say the same."""
    described = {entry["filename"]: entry["caption"] for entry in metadata(project)["images"]}
    assert {name: text_of(project, name).read_text(encoding="utf-8").strip() for name in described} == described
    return described


def test_each_photo_has_its_caption_beside_it(project, album):
    run(project, album)
    assert agreeing(project)["source_002.png"] == "photo of ohwx_char person, neutral expression, half-left view"
    run(project, album, caption_template="{token} {noun}")
    assert set(agreeing(project).values()) == {"ohwx_char person"}


def test_a_caption_may_be_edited_in_either_place(project, album):
    run(project, album)
    clean = edits_fingerprint(project)
    text_of(project, "source_001.png").write_text("ohwx_char person on a horse\n")
    edited = edits_fingerprint(project)
    assert edited != clean, "the node runs again"
    edit(project, "source_002.png", caption="ohwx_char person in a boat")
    text_of(project, "source_003.png").unlink()
    for template in (CAPTION, "{token} {noun}", CAPTION):
        captions = [image.caption for image in run(project, album, caption_template=template).dataset.images]
        assert captions[:2] == ["ohwx_char person on a horse", "ohwx_char person in a boat"]
        assert agreeing(project)["source_001.png"] == "ohwx_char person on a horse"
    text_of(project, "source_002.png").write_text("ohwx_char person in a red boat")
    assert run(project, album).dataset.images[1].caption == "ohwx_char person in a red boat"
    assert agreeing(project)


def test_a_caption_edited_in_both_places_is_refused_and_kept(project, album):
    run(project, album)
    edit(project, "source_001.png", caption="one")
    text_of(project, "source_001.png").write_text("two")
    with pytest.raises(DatasetError, match=r"source_001\.txt and metadata\.json were both changed"):
        run(project, album)
    assert metadata(project)["images"][0]["caption"] == "one" and text_of(project, "source_001.png").read_text() == "two"


def test_a_crash_between_the_two_files_loses_nobodys_words(project, album, monkeypatch):
    run(project, album)
    edit(project, "source_001.png", caption="ohwx_char person on a horse")

    def crash(*_):
        raise Cancelled

    with monkeypatch.context() as patched:
        patched.setattr(curation, "write_entries", crash)
        with pytest.raises(Cancelled):
            run(project, album, caption_template="{token} {noun}")
    assert text_of(project, "source_002.png").read_text() == "ohwx_char person\n", "the texts were written, metadata.json was not"
    for template in ("{token} {noun}", CAPTION):
        captions = [image.caption for image in run(project, album, caption_template=template).dataset.images]
        assert captions[0] == "ohwx_char person on a horse"
    assert agreeing(project)


def test_set_captions_writes_both_or_nothing(project, album):
    run(project, album)
    set_captions(project, {"source_004.png": "ohwx_char person asleep"})
    assert agreeing(project)["source_004.png"] == "ohwx_char person asleep"
    assert run(project, album, caption_template="{token} {noun}").dataset.images[3].caption == "ohwx_char person asleep"
    with pytest.raises(DatasetError) as caught:
        set_captions(project, {"source_001.png": "fine", "source_002.png": " ", "nobody.png": "x"})
    assert len(caught.value.problems) == 2 and agreeing(project)["source_001.png"] == "ohwx_char person"


def test_people_say_framing_setting_and_pose(project, album):
    run(project, album)
    edit(project, "source_001.png", setting="in a kitchen", framing="full body", pose="standing")
    curated = run(project, album, caption_template="{token} {noun}, {framing}, {setting}, {angle} view")
    assert curated.photos[0].framing == "full body"
    assert curated.dataset.images[0].caption == "ohwx_char person, full body, in a kitchen, front view"
    assert curated.dataset.images[1].caption == "ohwx_char person, bust, half-left view"
    said = said_of_sources(project)[curated.dataset.images[0].key]
    assert (said["filename"], said["pose"], said["setting"]) == ("source_001.png", "standing", "in a kitchen")


def test_a_project_of_an_older_version_goes_on(project, album):
    run(project, album)
    document = metadata(project)
    for entry in document["images"]:
        for name in ("framing", "setting", "pose", "measures", "caption_in_txt"):
            entry.pop(name), entry["guessed"].pop(name, None)
        text_of(project, entry["filename"]).unlink()
    document["images"][0]["caption"] = "mine"
    project.stage("source").metadata.write_text(json.dumps(document), encoding="utf-8")
    curated = run(project, album)
    assert curated.dataset.images[0].caption == "mine" and len(curated.dataset.images) == 12
    assert agreeing(project)["source_001.png"] == "mine" and metadata(project)["images"][0]["framing"] == "bust"


# --- damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "not readable JSON"),
        (lambda text: "[]", "no list of images"),
        (lambda text: text.replace('"angle": "front"', '"angle": ""'), "entry 1: angle is empty"),
        (lambda text: text.replace('"usable": true', '"usable": "yes"'), "usable must be true or false"),
        (lambda text: text.replace('"setting": "unknown"', '"setting": ["a kitchen"]', 1), "entry 1: setting must be text"),
        (lambda text: text.replace('"odd": false', '"odd": "no"', 1), "entry 1: odd must be true or false"),
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


# --- where it was taken


def with_place(path, **tags):
    exif = Image.Exif()
    exif.update({getattr(images, tag): value for tag, value in tags.items()})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    picture(3, (640, 512)).save(path, exif=exif)
    return path


def exif_of(path):
    with Image.open(path) as opened:
        exif = opened.getexif()
        return {**exif, **exif.get_ifd(0x8825)}


def test_the_copy_of_a_photo_forgets_where_it_was_taken_and_no_pixel_changes(project, folder):
    path = with_place(folder / "holiday.jpg")
    before = path.read_bytes()
    (photo,) = run(project, folder).photos
    copy = project.path(photo.record.path)
    assert copy.suffix == ".jpg" and not exif_of(copy) and exif_of(path) and path.read_bytes() == before
    assert open_image(copy).image.tobytes() == open_image(path).image.tobytes()
    assert photo.treatments == ("place and other metadata left out of the copy, pixels unchanged",)
    assert run(project, folder).photos == (photo,), "and says so every time"


def test_the_place_is_kept_only_when_asked_for_and_that_is_told(project, folder):
    path = with_place(folder / "holiday.jpg")
    (kept,) = run(project, folder, keep_place=True).photos
    copy = project.path(kept.record.path)
    assert copy.read_bytes() == path.read_bytes() and "still says where the photo was taken" in kept.treatments[0]
    edit(project, kept.record.name, caption="ohwx_char person at sea")
    assert "still says" in run(project, folder).photos[0].treatments[0], (
        "labels hang on its bytes: it is not exchanged behind anyone's back"
    )
    copy.unlink()
    (without,) = run(project, folder).photos
    assert without.record.name == kept.record.name and without.record.caption == "ohwx_char person at sea"
    assert not exif_of(copy)


def test_a_turned_photo_becomes_a_png_without_its_place(project, folder):
    with_place(folder / "turned.jpg", EXIF_ORIENTATION=6)
    (photo,) = run(project, folder).photos
    copy = project.path(photo.record.path)
    assert copy.suffix == ".png" and "rotated as its EXIF says" in photo.treatments and not exif_of(copy)


def test_copies_of_an_older_version_that_know_the_place_are_named(project, folder):
    with_place(folder / "holiday.jpg")
    run(project, folder, keep_place=True)
    document = metadata(project)
    document["images"][0] |= {"treatments": []}
    document["images"][0].pop("caption_in_txt")
    project.stage("source").metadata.write_text(json.dumps(document), encoding="utf-8")
    assert "still says where the photo was taken" in run(project, folder).photos[0].treatments[0]


# --- the odd one out


def test_the_odd_one_out_is_pointed_at_and_stays(project, album):
    (album / "somebody else.png").write_bytes(painted_png((200, 200, 0, 0, 100), seed=40))
    curated = run(project, album)
    (odd,) = (photo for photo in curated.photos if photo.odd)
    assert odd.original == "somebody else.png" and odd.problems[0].startswith(
        "odd one out: it does not look like the other photos (nearest at"
    )
    assert f"faces up to {Painted().reach:.2f} apart count as one person" in odd.problems[0]
    assert odd.usable and len(curated.dataset.images) == 13
    entry = next(entry for entry in metadata(project)["images"] if entry["filename"] == odd.record.name)
    assert entry["problems"][0] == odd.problems[0]
    assert [photo.odd for photo in run(project, album).photos] == [photo.odd for photo in curated.photos]


def test_two_people_of_equal_share_are_told_before_anything_is_made(project, folder):
    for number, who in enumerate((10, 10, 200, 200)):
        (folder / f"{number}.png").write_bytes(painted_png((who, 200, 0, 0, 100), seed=number))
    curated = run(project, folder)
    assert not any(photo.odd for photo in curated.photos)
    assert any("not clear which of these people" in note for note in curated.notes)


# --- faces, captions, criteria


def test_faults_of_captions_are_in_the_notes(project, album):
    curated = run(project, album, caption_template="{token} {token} {noun} with brown hair, {angle} view")
    told = [note for note in curated.notes if note.startswith("captions: ")]
    assert len(told) == 2 and "more than once" in told[0] and "'brown hair' is said in 12 of 12" in told[1]
    assert not any(note.startswith("captions: ") for note in run(project, album).notes)


def test_moods_are_proposed_by_file_names_and_asked_for_among_the_neutral(project, album):
    first = sorted(album.iterdir())[0]
    mood = first.rename(album / f"angry {first.name}")
    curated = run(project, album)
    photo = next(photo for photo in curated.photos if photo.original == mood.name)
    entry = next(entry for entry in metadata(project)["images"] if entry["original"] == mood.name)
    assert photo.expression == entry["expression"] == entry["guessed"]["expression"] == "angry" and "angry expression" in entry["caption"]
    (asked,) = (note for note in curated.notes if note.startswith("neutral means only"))
    assert "is sad, say so" in asked and photo.record.name not in asked
    edit(project, photo.record.name, expression="neutral")
    again = run(project, album)
    assert next(photo for photo in again.photos if photo.original == mood.name).expression == "neutral", "a person decides"


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
    assert len(list(project.stage("source").folder.glob("source_*.png"))) == 13 == len(curated.dataset.images)
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

    monkeypatch.setattr(photo_shelf, "write_whole", full)
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
    again = open_project(moved, "Anna", instance_token="ohwx_char", class_noun="person", medium="photographs")
    embedder = Painted()
    curated = run(again, album, embedder)
    assert embedder.looks == 0 and all(curated.dataset.path(image).is_file() for image in curated.dataset.images)


@pytest.mark.faces
def test_the_portraits(project):
    curated = curate(project, portraits(), engine())
    angles = {photo.original: photo.angle for photo in curated.photos}
    smiles = {photo.original for photo in curated.photos if photo.expression == "smiling"}
    assert angles["obama.jpg"] == angles["biden.jpg"] == "front" and angles["obama2.jpg"] == "half-left"
    assert angles["obama_partial_face.jpg"] == angles["obama_partial_face2.jpg"] == "unknown", "a front, cut off through the face"
    assert smiles == {"obama.jpg", "obama_partial_face.jpg", "obama_partial_face2.jpg"}
    assert len(curated.dataset.images) == 7 and all(photo.quality.verdict != "low" for photo in curated.photos)
    twins = [problem for photo in curated.photos for problem in photo.problems if "almost the same picture" in problem]
    assert len(twins) == 1 and "of 64 bits differ" in twins[0]  # 32bit.png is obama2
    assert [photo.original for photo in curated.photos if photo.odd] == ["biden.jpg"]
    framings = {photo.original: photo.framing for photo in curated.photos}
    assert framings["biden.jpg"] == framings["obama3.jpg"] == "half body" and framings["obama.jpg"] == "bust"
