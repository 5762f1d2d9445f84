import threading

import pytest
from comfyui_flenwheel.flywheel import corrections, evidence, ledger, repair, review
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.desk import Desk
from comfyui_flenwheel.flywheel.enrich import enrich
from comfyui_flenwheel.flywheel.errors import Abandoned, DatasetError, EditorError, ImageError
from comfyui_flenwheel.flywheel.images import open_image, png_bytes
from comfyui_flenwheel.flywheel.ledger import LabelEvent
from comfyui_flenwheel.flywheel.prompts import PromptSet
from PIL import Image, ImageChops, ImageDraw

from .conftest import picture
from .stamp import Darkroom, Foreseeing, Stamp


@pytest.fixture
def made(sources):
    """Candidates with a photograph behind each."""
    return enrich(sources, PromptSet(("Change background to [forest|beach]",)), Stamp(), megapixels=0.01).dataset


def corrected(project):
    shelf = Shelf(project.stage("corrections"))
    return [shelf.lineages[key] for key in shelf.files]


def test_a_repair_is_made_bound_to_its_original_and_undecided(made):
    image = made.images[0]
    order = repair.place_order(made.project, image.key, "Change background to a meadow", [7, 8], reviewer="Ada")
    repaired = repair.carry_out(made.project, Stamp())
    (done,) = repair.orders(made.project)
    assert done.state == "done" and done.id == order.id and len(done.results) == 2
    assert {lineage.facts["corrects"]["key"] for lineage in corrected(made.project)} == {image.key}
    assert {lineage.facts["seed"] for lineage in corrected(made.project)} == {7, 8}
    assert len(repaired.dataset.images) == 2 and review.verdicts(repaired.dataset).counts()["undecided"] == 2
    assert [image.depth for image in repaired.dataset.images] == [1, 1]  # from the photograph again, not from the candidate


def test_carrying_out_again_makes_nothing(made):
    repair.place_order(made.project, made.images[0].key, "a", [1])
    repair.carry_out(made.project, Stamp())
    editor = Stamp()
    assert repair.carry_out(made.project, editor).notes == ("No repair is waiting.",) and editor.sessions == []


def test_a_masked_repair_leaves_the_rest_as_it_is_to_the_bit(made):
    image = made.images[0]
    mask = Image.new("L", (image.width, image.height), 0)
    spot = (10, 10, image.width // 2, image.height // 2)
    ImageDraw.Draw(mask).rectangle(spot, fill=255)
    name = repair.keep_mask(made.project, image.key, png_bytes(mask))
    repair.place_order(made.project, image.key, "mend the spot", [3], start="candidate", mask=name)
    repair.place_order(made.project, image.key, "mend the spot", [3], start="candidate")
    editor = Stamp(strength=0.9)
    repaired = repair.carry_out(made.project, editor)
    assert len(repaired.dataset.images) == 2 and editor.sessions == ["opened", "closed"]  # one session for both kinds
    before = open_image(made.path(image)).image
    after = [open_image(repaired.dataset.path(made)).image for made in repaired.dataset.images]
    changed = sorted(ImageChops.difference(before, picture).getbbox() for picture in after)
    assert (0, 0, image.width, image.height) in changed
    left, top, right, bottom = next(box for box in changed if box != (0, 0, image.width, image.height))
    assert left >= spot[0] - 1 and top >= spot[1] - 1 and right <= spot[2] + 2 and bottom <= spot[3] + 2
    assert {made.depth for made in repaired.dataset.images} == {2}


def test_a_masked_repair_is_developed_while_the_next_is_made_and_all_its_words_are_foreseen(made):
    image = made.images[0]
    mask = repair.keep_mask(made.project, image.key, png_bytes(Image.new("L", (image.width, image.height), 255)))
    repair.place_order(made.project, image.key, "mend it", [1, 2], start="candidate", mask=mask)
    second = threading.Event()

    def wait_for_the_second(request, beside):
        assert beside and (request.seed == 2 or second.wait(30)), "the second was not begun"

    editor = Foreseeing(before=lambda request: request.seed == 2 and second.set(), develops=wait_for_the_second)
    repaired = repair.carry_out(made.project, editor)
    assert len(repaired.dataset.images) == 2 and "so much memory" in repaired.notes
    assert [request.seed for request in editor.foreseen] == [1, 2]


def test_a_cancelled_masked_repair_gives_up_what_is_being_developed(made):
    image = made.images[0]
    mask = repair.keep_mask(made.project, image.key, png_bytes(Image.new("L", (image.width, image.height), 255)))
    repair.place_order(made.project, image.key, "mend it", [1, 2], start="candidate", mask=mask)
    stuck = threading.Event()

    class Cancelled(BaseException):
        pass

    def wait_to_be_given_up(request, beside):
        stuck.set()
        assert editor.given_up.wait(30), "nobody gave it up"
        raise Abandoned("given up")

    def cancel(progress):
        if stuck.is_set():
            raise Cancelled

    editor = Darkroom(develops=wait_to_be_given_up)
    with pytest.raises(Cancelled):
        repair.carry_out(made.project, editor, report=cancel)
    assert repair.carry_out(made.project, Stamp()).orders[0].state == "done"


def test_a_mask_of_another_size_or_without_paint_is_refused(made):
    image = made.images[0]
    for mask, complaint in (
        (Image.new("L", (5, 5), 255), "at the image's size"),
        (Image.new("L", (image.width, image.height)), "Nothing is painted"),
    ):
        with pytest.raises(DatasetError, match=complaint):
            repair.keep_mask(made.project, image.key, png_bytes(mask))
    with pytest.raises(ImageError):
        repair.keep_mask(made.project, image.key, b"no picture")


def test_an_order_says_all_that_is_wrong_with_it(made, candidates):
    with pytest.raises(DatasetError) as caught:
        repair.place_order(made.project, made.images[0].key, " ", [], start="source", mask="0" * 16)
    assert len(caught.value.problems) == 4
    with pytest.raises(DatasetError, match="no photograph is known"):
        repair.place_order(candidates.project, candidates.images[0].key, "a", [1])
    with pytest.raises(DatasetError, match="no image 'nobody'"):
        repair.place_order(made.project, "nobody", "a", [1])


def test_an_order_sent_again_is_stored_once_and_can_be_taken_back(made):
    for _ in range(2):
        repair.place_order(made.project, made.images[0].key, "a", [1], order_id="lost-answer")
    assert len(repair.orders(made.project)) == 1
    assert repair.withdraw(made.project, "lost-answer").state == "withdrawn" and repair.withdraw(made.project, "nothing") is None
    assert repair.carry_out(made.project, Stamp()).notes == ("No repair is waiting.",)


def test_one_order_that_fails_does_not_hold_up_the_others(made):
    def refuse(request):
        if request.prompt == "bad":
            raise EditorError("no such thing")

    repair.place_order(made.project, made.images[0].key, "bad", [1])
    repair.place_order(made.project, made.images[1].key, "fine", [1])
    repair.carry_out(made.project, Stamp(before=refuse))
    assert {order.prompt: (order.state, order.problem) for order in repair.orders(made.project)} == {
        "bad": ("failed", "no such thing"),
        "fine": ("done", ""),
    }
    repair.carry_out(made.project, Stamp())
    assert {order.state for order in repair.orders(made.project)} == {"done"}


def test_a_cancelled_run_goes_on_where_it_stopped(made):
    calls = []

    def stop(request):
        calls.append(request.seed)
        if len(calls) == 2:
            raise KeyboardInterrupt

    repair.place_order(made.project, made.images[0].key, "a", [1, 2, 3])
    with pytest.raises(KeyboardInterrupt):
        repair.carry_out(made.project, Stamp(before=stop))
    assert repair.orders(made.project)[0].state == "waiting" and len(corrected(made.project)) == 1
    repair.carry_out(made.project, Stamp())
    assert len(repair.orders(made.project)[0].results) == 3


def test_seeds_are_fresh_each_time(made):
    key = made.images[0].key
    first = repair.fresh_seeds(made.project, key, 3)
    repair.place_order(made.project, key, "a", first)
    second = repair.fresh_seeds(made.project, key, 3)
    assert len({*first, *second}) == 6


def test_reasons_become_words_of_a_prompt():
    text = repair.proposal("Change background to forest.", ("hands", "other"), "six fingers.", start="source")
    assert text.startswith("Change background to forest, ") and "five natural fingers" in text and text.endswith("six fingers")
    assert "keep everything else identical" in repair.proposal("x", ("blur",), start="candidate")
    assert set(ledger.REASONS) == set(repair.phrases()["source"]) == set(repair.phrases()["candidate"])


def test_an_upload_is_kept_as_it_came_and_bound(made):
    image = made.images[0]
    content = png_bytes(picture(900))
    stage = made.project.stage("corrections")
    key, path = corrections.take_upload(stage, image.key, content, reviewer="Ada")
    assert path.read_bytes() == content and path.parent == stage.folder
    assert corrections.take_upload(stage, image.key, content)[0] == key and len(corrected(made.project)) == 1
    assert corrected(made.project)[0].facts["corrects"]["key"] == image.key
    with pytest.raises(ImageError):
        corrections.take_upload(stage, image.key, b"\x89PNG half")


def test_files_dropped_by_hand_are_found_by_key_and_by_name(made):
    folder = made.project.stage("corrections").folder
    folder.mkdir(parents=True)
    first, second = made.images[:2]
    picture(901).save(folder / f"{first.key}.jpg")
    picture(902).save(folder / f"{second.stem} (2).webp")
    (folder / "holiday.png").write_bytes(png_bytes(picture(903)))
    (folder / f"{first.key}_half.png").write_bytes(png_bytes(picture(904))[:200])
    desk = Desk(made.project.stage("corrections"))
    desk.refresh()
    bound = {lineage.facts["corrects"]["key"] for lineage in corrected(made.project)}
    assert bound == {first.key, second.key} and desk.undecided == 2
    assert corrections.unbound(desk.stage) == ["holiday.png", f"{first.key}_half.png"] or set(corrections.unbound(desk.stage)) == {
        "holiday.png",
        f"{first.key}_half.png",
    }
    (folder / f"{first.key}_half.png").write_bytes(png_bytes(picture(904)))  # the editor has finished saving
    desk.refresh()
    assert desk.undecided == 3
    picture(905).save(folder / f"{first.key}.jpg")  # saved again: another image
    desk.refresh()
    assert len(corrected(made.project)) == 3 and len(Shelf(desk.stage).lineages) == 4


def test_a_working_copy_comes_back_each_time_it_is_saved(made):
    image = made.images[0]
    desk = Desk(made.project.stage("corrections"))
    path = corrections.lend(desk.stage, image.key)
    desk.catch_up()
    assert path.read_bytes() == made.path(image).read_bytes() and desk.undecided == 0  # not changed yet
    before = desk.turns
    path.write_bytes(png_bytes(picture(910))[:200])  # being saved
    desk.catch_up()
    assert desk.undecided == 0
    path.write_bytes(png_bytes(picture(910)))
    desk.catch_up()
    (first,) = desk.by_image
    assert desk.turns > before and corrected(made.project)[0].facts["corrects"]["key"] == image.key
    path.write_bytes(png_bytes(picture(911)))  # saved again, nobody has decided yet: it takes the place of the first
    desk.catch_up()
    (second,) = desk.by_image
    assert second != first and desk.undecided == 1
    desk.decide([LabelEvent(second, "good", reviewer="Ada")])
    path.write_bytes(png_bytes(picture(912)))
    desk.catch_up()
    assert len(desk.by_image) == 2 and desk.counts()["good"] == 1
    assert corrections.lend(desk.stage, image.key) == path and path.read_bytes() == png_bytes(picture(912))  # not written over


def test_a_correction_is_judged_in_its_own_review_and_shown_with_the_original(made):
    image = made.images[0]
    corrections.take_upload(made.project.stage("corrections"), image.key, png_bytes(picture(900)))
    desk = Desk(made.project.stage("corrections"))
    desk.refresh()
    (key,) = desk.by_image
    desk.decide([LabelEvent(key, "good", reviewer="Ada")])
    assert desk.file(key).parent.name == "good"
    original = Desk(made.stage)
    original.refresh()
    item = next(item for item in evidence.described(original, "first") if item["key"] == image.key)
    assert [(made["key"], made["label"]) for made in item["corrections"]] == [(key, "good")]
    chain = evidence.lineage_of(desk.stage, key)
    assert [step["stage"] for step in chain] == ["corrections", "enriched", "source"]
