"""Step 1.5: what is planned, made, found again and refused. The models themselves run in tests/nodes/test_synthesis.py."""

import json

import pytest
from comfyui_flenwheel.flywheel import coverage, enrich, filtered, review, synthesis
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.errors import EditorError, PromptError
from comfyui_flenwheel.flywheel.images import content_key
from comfyui_flenwheel.flywheel.prompts import parse
from comfyui_flenwheel.flywheel.review import LabelEvent

from .stamp import Stamp

TWO = parse("photo of {token} {noun} [in a forest|on a beach]")
SMALL = {"width": 64, "height": 64}


def words() -> Stamp:
    """An editor that makes images of words alone."""
    return Stamp(controls=range(1))


def requests(project, prompts, each=2, seed=0):
    return [order.request for order in synthesis.plan(project, prompts, each=each, seed=seed, **SMALL)]


def test_the_prompts_of_the_document_make_more_than_fifty_diverse_images(project):
    orders = synthesis.plan(project, parse(synthesis.PROMPTS), each=4, seed=0, width=1024, height=1024)
    prompts = [order.request.prompt for order in orders]
    assert len(orders) >= synthesis.WANTED and len(set(prompts)) * 4 == len(orders)
    assert len({order.request.seed for order in orders}) == len(orders)
    for word in ("profile view", "smiling", "spaceship", "sitting on a chair"):
        assert any(word in prompt for prompt in prompts)
    assert all(prompt.count("ohwx_char person") == 1 for prompt in prompts)


def test_every_prompt_is_made_once_before_any_is_made_again_and_another_prompt_changes_no_seed(project):
    made = requests(project, TWO)
    assert [request.prompt.rpartition(" ")[2] for request in made] == ["forest", "beach", "forest", "beach"]
    more = requests(project, parse("photo of {token} {noun} [at home|in a forest|on a beach]"), each=3)
    assert {(request.prompt, request.seed) for request in made} <= {(request.prompt, request.seed) for request in more}
    assert not {request.seed for request in made} & {request.seed for request in requests(project, TWO, seed=1)}


def test_prompts_that_would_show_anybody_or_have_strange_braces_are_all_named(project):
    with pytest.raises(PromptError) as told:
        synthesis.plan(project, parse("a [man|woman] in a forest\n{token} with a {hat}\nohwx_char asleep"), each=1, seed=0, **SMALL)
    assert len(told.value.problems) == 3
    assert "'a man in a forest' lacks {token}" in str(told.value) and "{hat} means nothing" in str(told.value)


def test_what_is_made_is_described_filtered_reviewed_and_not_made_again(project):
    made = synthesis.synthesise(project, TWO, words(), each=3, sample_every=2, **SMALL)
    assert len(made.dataset.images) == 6 and any("6 of the 50" in note for note in made.notes)
    described = json.loads(project.stage("synthetic").metadata.read_text(encoding="utf-8"))["images"]
    assert {image["edit_prompt"] for image in described} == {
        "photo of ohwx_char person in a forest",
        "photo of ohwx_char person on a beach",
    }
    assert len({image["seed"] for image in described}) == 6 and sum(image["sample"] for image in described) == 3
    assert all(image["source_image"] is None and image["caption"] == image["edit_prompt"] for image in described)
    assert {image.origin for image in made.dataset.images} == {"synthetic"}
    assert {image.name.partition("-")[0] for image in made.dataset.images} == {"photo_of_in_a_forest", "photo_of_on_a_beach"}

    filtered.put_apart(made.dataset, made.dataset.keeping({image.key for image in made.dataset.images[:3]}))
    review.record(project, [LabelEvent(made.dataset.images[0].key, "good"), LabelEvent(made.dataset.images[1].key, "reject")])
    review.follow(made.dataset.stage)
    (made.dataset.stage.folder / "rejected" / made.dataset.images[1].name).unlink()
    again = synthesis.synthesise(project, TWO, words(), each=3, **SMALL)
    assert again.notes[0].startswith("0 images made") and "1 rejected images were deleted by hand" in " ".join(again.notes)
    assert [image.key for image in again.dataset.images] == [image.key for image in made.dataset.images if image != made.dataset.images[1]]
    assert all(content_key(again.dataset.path(image)) == image.key for image in again.dataset.images)


def test_interrupted_it_keeps_what_was_made_and_makes_only_the_rest(project):
    def stop(progress):
        if progress.made == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesis.synthesise(project, TWO, words(), each=3, report=stop, **SMALL)
    kept = {path: path.read_bytes() for path in Shelf(project.stage("synthetic")).files.values()}
    assert 2 <= len(kept) < 6
    rest = synthesis.synthesise(project, TWO, words(), each=3, **SMALL)
    assert len(rest.dataset.images) == 6 and f"{len(kept)} were there already" in rest.notes[0]
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert "2 images are left" in " ".join(synthesis.synthesise(project, TWO, words(), each=5, limit=2, **SMALL).notes)


def test_an_editor_of_photos_is_no_generator_and_the_other_way_round(project, sources):
    with pytest.raises(EditorError, match="Connect a generator"):
        synthesis.synthesise(project, TWO, Stamp(), **SMALL)
    assert not project.stage("synthetic").folder.exists()
    with pytest.raises(EditorError, match="makes images of words alone"):
        enrich.enrich(sources, parse("a cat"), words(), megapixels=0.01)


def test_a_good_image_of_a_prompt_of_the_card_fills_its_cell(project):
    card = coverage.card_prompts(coverage.card(), project)
    made = synthesis.synthesise(project, parse("\n".join(card)), words(), each=1, **SMALL)
    assert len(made.dataset.images) == 23
    review.record(project, [LabelEvent(image.key, "good") for image in made.dataset.images])
    review.follow(made.dataset.stage)
    filled = coverage.coverage(coverage.look(made.dataset, None))
    assert len(filled.missing()) < len(coverage.coverage(()).missing()) == 23
