import json

import pytest
from comfyui_flenwheel.flywheel import review
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.coverage import Said, best_photos, card, card_prompts, coverage, look, prompts
from comfyui_flenwheel.flywheel.curate import curate
from comfyui_flenwheel.flywheel.editors import ControlRef, EditRequest
from comfyui_flenwheel.flywheel.enrich import plan
from comfyui_flenwheel.flywheel.errors import DatasetError, PromptError
from comfyui_flenwheel.flywheel.images import png_bytes
from comfyui_flenwheel.flywheel.photo_shelf import photos_in
from comfyui_flenwheel.flywheel.quality import ANGLES, EXPRESSIONS

from .faces.painted import Painted, painted, painted_png

FRONT, LEFT, RIGHT = (10, 200, 0, 0, 100), (10, 200, 0, 0, 70), (10, 200, 0, 0, 130)


@pytest.fixture
def photographs(project, tmp_path):
    """Five of the front, two half-left, one half-right, all neutral; and one whose face cannot be seen well."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, face in enumerate((FRONT,) * 5 + (LEFT,) * 2 + (RIGHT, (10, 200, 1))):
        (folder / f"{number}.png").write_bytes(painted_png(face, seed=number))
    return curate(project, photos_in(folder).photos, Painted()).dataset


def say(project, filename, **fields):
    path = project.stage("source").metadata
    document = json.loads(path.read_text(encoding="utf-8"))
    next(entry for entry in document["images"] if entry["filename"] == filename).update(fields)
    path.write_text(json.dumps(document), encoding="utf-8")


def counts(found):
    return {cell.slot.id: len(cell.pictures) for cell in found.cells if cell.pictures}


def test_the_card_is_that_of_the_process_document():
    portraits = [slot for slot in card() if not slot.pose]
    assert sorted((slot.angle, slot.expression) for slot in portraits) == sorted((angle, face) for angle in ANGLES for face in EXPRESSIONS)
    assert [slot.pose for slot in card() if slot.pose] == ["t-pose", "standing", "sitting"]
    assert (
        len(card())
        == 23
        == len({slot.id for slot in card()})
        == len({slot.edit for slot in card()})
        == len({slot.prompt for slot in card()})
    )
    assert all("{token} {noun}" in slot.prompt and "keep person identical" in slot.edit for slot in card())


def test_photos_fill_the_cells_they_show_and_the_rest_is_missing(photographs):
    found = coverage(look(photographs, None))
    assert counts(found) == {"front-neutral": 5, "half-left-neutral": 2, "half-right-neutral": 1}
    assert len(found.missing()) == 20 and len(found.missing(2)) == 21 and len(found.missing(6)) == 23
    ((outside, why),) = found.outside
    assert outside.name == "source_009.png" and "angle 'unknown'" in why
    text = found.text()
    assert text.startswith("3 of 23 cells of the model card are covered, 20 are missing.")
    assert "angle: 0 profile-left, 2 half-left, 5 front, 1 half-right, 0 profile-right, 1 unknown" in text
    assert "framing: 0 head, 9 bust, 0 half body, 0 full body" in text and "source_009.png fills no cell" in text


def test_a_persons_word_decides(project, photographs):
    say(project, "source_001.png", expression="angry")
    say(project, "source_002.png", expression="laughing")
    say(project, "source_003.png", framing="full body")
    say(project, "source_004.png", framing="full body", pose="standing")
    say(project, "source_005.png", framing="full body", pose="sitting")
    say(project, "source_009.png", angle="profile", expression="sad")
    found = coverage(look(photographs, None))
    assert counts(found) == {"front-angry": 1, "half-left-neutral": 2, "half-right-neutral": 1, "standing": 1}
    why = {said.name: reason for said, reason in found.outside}
    assert set(why) == {"source_002.png", "source_003.png", "source_005.png", "source_009.png"}
    assert "laughing" in why["source_002.png"] and "its pose is unknown" in why["source_003.png"]
    assert why["source_005.png"] == "full body, sitting, but seen front" and "'profile'" in why["source_009.png"]
    say(project, "source_005.png", angle="profile-left")
    say(project, "source_009.png", angle="profile-left")
    assert counts(coverage(look(photographs, None))) | {"sitting": 1, "profile-left-sad": 1} == counts(coverage(look(photographs, None)))


def test_what_is_missing_becomes_a_plan_that_makes_exactly_that(project, photographs):
    say(project, "source_001.png", quality="medium")
    missing = coverage(look(photographs, None)).missing()
    photos = best_photos(project, 2)
    assert photos == ("source_002.png", "source_003.png"), "of high quality and from the front"
    orders = plan(photographs, prompts(missing[:6], photos), seed=1)
    assert len(orders) == 12 and {order.facts["source"]["name"] for order in orders} == set(photos)
    assert {order.request.prompt for order in orders} == {slot.edit for slot in missing[:6]}
    assert card_prompts(missing[:1], project)[0].startswith("portrait of ohwx_char person, ")
    with pytest.raises(PromptError):
        prompts((), photos)


def test_candidates_count_as_measured_and_once_called_good_as_asked(project, photographs):
    asked = next(slot for slot in card() if slot.id == "half-left-angry")
    body = next(slot for slot in card() if slot.pose == "t-pose")
    shelf = Shelf(project.stage("enriched"))
    facts = {"origin": "edit", "caption": "c", "parents": ["p"], "depth": 1, "source": None}
    for number, slot in enumerate((asked, asked, body)):
        image = painted(LEFT, seed=80 + number)
        request = EditRequest(slot.edit, (ControlRef(project.root, "c"),), number, 512, 512)
        shelf.add(request.key({"editor": "test"}), f"n{number}", png_bytes(image), image, facts={**facts, "prompt": slot.edit})
    dataset = review.under_review(project.stage("enriched"))
    assert counts(coverage(look(dataset, Painted()))) == {"half-left-neutral": 3}, "a measurement never says angry"
    assert counts(coverage(look(dataset, None))) == {}
    keys = [image.key for image in sorted(dataset.images, key=lambda image: image.name)]
    events = [review.LabelEvent(key, label) for key, label in zip(keys, ("good", "reject", "good"), strict=True)]
    review.record(project, events)
    assert counts(coverage(look(dataset, Painted()))) == {"half-left-angry": 1, "half-left-neutral": 1, "t-pose": 1}


def test_the_best_picture_of_a_cell_comes_first():
    seen = {"angle": "front", "expression": "neutral", "framing": "bust"}
    found = coverage([Said("b", **seen, quality="medium"), Said("c", **seen, quality="fine"), Said("a", **seen)])
    assert [said.name for said in found.cells[0].pictures] == ["a", "b", "c"]


def test_photos_that_metadata_does_not_know(project, photographs, sources):
    with pytest.raises(DatasetError, match="no entry for these photographs"):
        look(sources, None)


def test_nothing_is_made_from_the_odd_one_out_until_a_person_says_it_belongs(project, photographs, tmp_path):
    folder = tmp_path / "photos"
    (folder / "0.png").unlink()
    (folder / "00.png").write_bytes(painted_png((200, 200, 0, 0, 100), seed=50))

    def curated():
        return curate(project, photos_in(folder).photos, Painted()).dataset

    dataset = curated()
    found = coverage(look(dataset, None))
    odd = "source_010.png"
    assert counts(found)["front-neutral"] == 4 and "is it the same person" in dict((said.name, why) for said, why in found.outside)[odd]
    assert odd not in best_photos(project, 9)
    say(project, odd, odd=False)
    assert counts(coverage(look(curated(), None)))["front-neutral"] == 5 and odd in best_photos(project, 9)
    say(project, "source_002.png", odd=True)
    assert counts(coverage(look(curated(), None)))["front-neutral"] == 4
