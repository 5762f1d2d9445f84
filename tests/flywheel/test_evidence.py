import io
import os
import shutil
import sys
import threading
from concurrent.futures import wait
from datetime import datetime

import pytest
from comfyui_flenwheel.flywheel import evidence, filters, identity, report, thumbs
from comfyui_flenwheel.flywheel.candidates import adopt
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord
from comfyui_flenwheel.flywheel.desk import Desk
from comfyui_flenwheel.flywheel.errors import DatasetError, ImageError
from comfyui_flenwheel.flywheel.images import content_key, png_bytes, write_json, write_whole
from comfyui_flenwheel.flywheel.ledger import LabelEvent
from comfyui_flenwheel.flywheel.references import choose_references
from PIL import Image, ImageChops, ImageStat

from .conftest import picture
from .faces.painted import Painted, painted


@pytest.fixture
def scored(project):
    """Four candidates, three faces near, in doubt and far, and one without; two photographs, measured."""
    photos = []
    for number, who in ((1, 100), (2, 110)):
        path = project.stage("source").folder / f"source_{number:03}.png"
        write_whole(path, png_bytes(painted((who,), seed=number)))
        photos.append(ImageRecord(content_key(path), project.relative(path), 512, 512, "photo of ohwx_char person"))
    described = [{"key": photo.key, "filename": photo.name, "angle": "front", "expression": "smiling"} for photo in photos]
    write_json(project.stage("source").metadata, {"images": described})
    pictures = [painted((105,), seed=10), painted((165,), seed=11), painted((200,), seed=12), picture(13, (512, 512))]
    candidates = adopt(project.stage("enriched"), pictures, caption="photo of ohwx_char person", prompt="a")
    embedder = Painted()
    references = choose_references(Dataset(project, "source", tuple(photos)), embedder, ["source_*"])
    identity.score(candidates, references, embedder)
    desk = Desk(candidates.stage)
    desk.refresh()
    return desk, [image.key for image in candidates.images]


def item(desk, key):
    return next(item for item in evidence.described(desk, "first") if item["key"] == key)


def test_the_likeness_suggests_and_stops_when_a_person_has_decided(scored):
    desk, keys = scored
    told = [item(desk, key)["suggestion"] for key in keys]
    assert [suggestion and suggestion["label"] for suggestion in told] == ["good", "needs_correction", "reject", None]
    assert told[0]["why"].startswith("Similarity")
    desk.decide([LabelEvent(keys[0], "good", reviewer="Ada")])
    assert item(desk, keys[0])["suggestion"] is None


def test_an_image_scored_against_other_references_counts_as_not_scored(scored):
    desk, keys = scored
    photos = [
        ImageRecord(content_key(path), desk.stage.project.relative(path), 512, 512, "")
        for path in sorted(desk.stage.project.stage("source").folder.glob("*.png"))
    ]
    other = choose_references(Dataset(desk.stage.project, "source", tuple(photos)), Painted(), [photos[0].name])
    before = [item(desk, key)["similarity"] for key in keys]
    fresh = adopt(desk.stage, [painted((101,), seed=14)], caption="photo of ohwx_char person", prompt="b")
    identity.score(fresh, other, Painted())
    desk.refresh()
    assert [item(desk, key)["similarity"] for key in keys] == before, "what was shown stays"
    (key,) = (image.key for image in fresh.images)
    assert item(desk, key)["state"] is None and item(desk, key)["similarity"] is None and evidence.evidence(desk, key)["score"] is None


def test_a_human_and_a_score_that_disagree_are_flagged(scored):
    desk, keys = scored
    desk.decide([LabelEvent(keys[2], "good"), LabelEvent(keys[0], "reject", ("identity",)), LabelEvent(keys[1], "reject", ("hands",))])
    assert "score different" in item(desk, keys[2])["disagreement"] and "score match" in item(desk, keys[0])["disagreement"]
    assert item(desk, keys[1])["disagreement"] is None
    found = filters.parse_filter({"disagreement": "1"}).apply(evidence.described(desk, "first"))
    assert {item["key"] for item in found} == {keys[0], keys[2]}


def test_evidence_shows_the_face_beside_each_photograph(scored):
    desk, keys = scored
    told = evidence.evidence(desk, keys[0])
    assert [reference["name"] for reference in told["references"]] and len(told["references"]) == 2
    best = told["references"][0]
    assert best["similarity"] == pytest.approx(item(desk, keys[0])["similarity"], abs=1e-4)
    assert told["spread"]["low"] == told["spread"]["high"] > 0.9  # one pair of photographs
    assert len(told["crops"]["image"]) == 4 and len(told["crops"]["matched"]) == 4
    assert item(desk, keys[0])["matched"]["key"] in {reference["key"] for reference in told["references"]}
    assert evidence.evidence(desk, keys[3])["references"][0]["similarity"] is None  # no face
    assert told["quality"]["measured_on"] == "face"


def test_the_uncertain_come_first(scored):
    desk, keys = scored
    desk.decide([LabelEvent(keys[0], "good")])
    order = [item["key"] for item in filters.parse_filter({"order": "uncertain"}).apply(evidence.described(desk, "first"))]
    assert order[0] == keys[1] and order[-1] == keys[0]


def test_filters_say_what_they_do_not_know(scored):
    desk, _ = scored
    items = evidence.described(desk, "first")
    assert [
        len(filters.parse_filter(query).apply(items))
        for query in ({"band": "unmeasured"}, {"label": "undecided"}, {"q": "BROUGHT"}, {"prompt": "zebra"})
    ] == [1, 4, 4, 0]
    with pytest.raises(DatasetError) as caught:
        filters.parse_filter({"colour": "red", "order": "best", "generation": "two"})
    assert len(caught.value.problems) == 3


def test_loras_are_told_from_the_editors_fingerprint():
    facts = {"editor": {"loras": "angles_v2 x 0.8; light x 1 'trigger'"}, "notes": {}}
    assert evidence.loras_of(facts) == [{"name": "angles_v2", "weight": 0.8}, {"name": "light", "weight": 1.0}]
    assert evidence.loras_of({"editor": {"loras": "none"}}) == [] == evidence.loras_of({"editor": {}})


def test_a_report_survives_a_picture_that_cannot_be_read(scored):
    desk, keys = scored

    def thumb(key):
        if key == keys[0]:
            raise ImageError("damaged & gone")
        return thumbs.thumbnail(desk.file(key), 256)

    items = evidence.described(desk, "first")
    page = report.html_report(items, desk.counts(), thumb, title="A & B", words="", now=datetime(2026, 1, 2, 3, 4))
    assert page.count("<li") == 4 and "damaged &amp; gone" in page and "A &amp; B" in page and page.count("data:image/webp") == 3
    assert Image.open(io.BytesIO(report.sheet_png(items, thumb, title="t"))).width > 400


def test_a_report_of_nothing_is_a_page(candidates):
    page = report.html_report([], Desk(candidates.stage).counts(), lambda key: b"", title="t", words="label good", now=datetime(2026, 1, 2))
    assert "0 of 0 images: label good" in page


def test_what_a_grid_shows_is_there_when_an_image_is_saved(project):
    image = Image.merge("RGB", [Image.linear_gradient("L").rotate(turn).resize((700, 900)) for turn in (0, 90, 180)])
    (made,) = adopt(project.stage("enriched"), [image], caption="").images
    for px, size in ((512, (398, 512)), (256, (199, 256))):
        with Image.open(thumbs.thumbnail_path(project, made.key, px)) as kept:
            assert kept.size == size
            assert max(ImageStat.Stat(ImageChops.difference(kept.convert("RGB"), image.resize(size))).mean) < 4


def test_an_image_is_saved_where_no_thumbnail_can_be(project):
    project.cache.parent.mkdir(parents=True, exist_ok=True)
    project.cache.write_text("in the way")
    (made,) = adopt(project.stage("enriched"), [painted((105,), seed=20)], caption="").images
    assert (project.root / made.path).is_file()


@pytest.fixture
def unseen(candidates):
    """Candidates without thumbnails, as from a copied folder."""
    shutil.rmtree(candidates.project.cache / "thumbs")
    return candidates


def test_a_thumbnail_is_made_once_however_many_ask(unseen):
    image = unseen.images[0]
    path = unseen.path(image)
    small = thumbs.Thumbnails(threads=4)
    start = threading.Barrier(8)
    futures = []

    def ask():
        start.wait()
        futures.append(small.request(unseen.project, image.key, path, 256))

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    wait(futures)
    assert len({future.result() for future in futures}) == 1
    kept = thumbs.thumbnail_path(unseen.project, image.key, 256)
    made = kept.stat().st_mtime_ns
    assert small.request(unseen.project, image.key, path, 200).result() == kept.read_bytes() and kept.stat().st_mtime_ns == made


@pytest.mark.parametrize("left", [b"", b"RIFF\x00\x00", bytes(500)])
def test_a_thumbnail_that_a_power_cut_has_spoilt_is_made_anew(unseen, left):
    image = unseen.images[0]
    small, kept = thumbs.Thumbnails(), thumbs.thumbnail_path(unseen.project, image.key, 256)
    made = small.request(unseen.project, image.key, unseen.path(image), 256).result()
    kept.write_bytes(left)
    assert small.request(unseen.project, image.key, unseen.path(image), 256).result() == made == kept.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives single threads a priority")
def test_thumbnails_give_way_to_verdicts(unseen, monkeypatch):
    image, ways = unseen.images[0], []
    real = thumbs.thumbnail
    monkeypatch.setattr(
        thumbs, "thumbnail", lambda path, px: ways.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) or real(path, px)
    )
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thumbs.Thumbnails().request(unseen.project, image.key, unseen.path(image), 256).result()
    assert ways == [thumbs.NICE] and os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_file_that_changed_gets_no_thumbnail_under_the_old_name(unseen):
    image = unseen.images[0]
    path = unseen.path(image)
    path.write_bytes(png_bytes(picture(77)))
    with pytest.raises(thumbs.ChangedOnDisk, match="changed on disk"):
        thumbs.Thumbnails().request(unseen.project, image.key, path, 512).result()
    assert not thumbs.thumbnail_path(unseen.project, image.key, 512).exists()


def test_a_drawing_is_beside_the_photographs_without_a_number(project, scored):
    desk, _ = scored
    (drawn,) = adopt(desk.stage, [painted((105,), seed=20)], caption="", prompt="in anime style").images
    photos = tuple(
        ImageRecord(content_key(path), project.relative(path), 512, 512, "")
        for path in sorted(project.stage("source").folder.glob("*.png"))
    )
    references = choose_references(Dataset(project, "source", photos), Painted(), ["source_*"])
    identity.score(Dataset(project, "enriched", (drawn,)), references, Painted())
    desk.refresh()
    told = evidence.evidence(desk, drawn.key)
    assert [beside["similarity"] for beside in told["references"]] == [None, None] and told["spread"] is None
    assert told["crops"]["image"], "the face is shown all the same"
    shown = item(desk, drawn.key)
    assert (shown["state"], shown["similarity"], shown["suggestion"]) == ("unverifiable", None, None)
    assert shown["score_note"].startswith("counts as drawn: its prompt asks for 'anime'")
