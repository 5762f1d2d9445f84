import json
from dataclasses import replace

import pytest
from comfyui_flenwheel.flywheel import enrich, review
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.dataset import Dataset
from comfyui_flenwheel.flywheel.editors.rehearsal import Rehearsal
from comfyui_flenwheel.flywheel.errors import EditorError, PromptError
from comfyui_flenwheel.flywheel.prompts import parse, presets
from comfyui_flenwheel.flywheel.references import choose_references

from .conftest import photographs
from .stamp import Stamp

ALL_FOUR = parse("\n".join(presets()["all four"]), per_source=5)


def planned(dataset, prompts=ALL_FOUR, seed=0):
    return {(order.facts["source"]["name"], order.request.prompt): order.request for order in enrich.plan(dataset, prompts, seed=seed)}


def test_each_source_gets_its_share_of_every_template(sources):
    orders = enrich.plan(sources, ALL_FOUR, seed=0)
    assert len(orders) == 15
    for source in sources.images:
        mine = [order for order in orders if order.facts["source"]["key"] == source.key]
        assert len({order.facts["template"] for order in mine}) == 4 and len({order.request.prompt for order in mine}) == 5


def test_one_more_photograph_or_prompt_changes_nothing_for_the_others(project):
    two, three = photographs(project, 2), photographs(project, 3)
    assert planned(two).items() <= planned(three).items()
    few, more = parse("a cat\na dog"), parse("a bird\na cat\na dog")
    assert planned(two, few).items() <= planned(two, more).items()


def test_sources_are_chosen_by_pattern_and_a_pattern_without_match_is_named(sources):
    chosen = parse("a cat", sources="source_001* source_003.png")
    assert {name for name, _ in planned(sources, chosen)} == {"source_001.png", "source_003.png"}
    with pytest.raises(PromptError, match=r"'photo_9\*'"):
        enrich.plan(sources, parse("a cat", sources="photo_9*"), seed=0)


def test_a_lap_of_enrichment_is_described_and_resumed(sources):
    enriched = enrich.enrich(sources, ALL_FOUR, Stamp(), megapixels=0.01, sample_every=5)
    assert len(enriched.dataset.images) == 15 and enriched.run.made == 15
    described = json.loads(sources.project.stage("enriched").metadata.read_text())
    assert len(described["images"]) == 15 and sum(image["sample"] for image in described["images"]) == 3
    image = described["images"][0]
    assert (sources.project.root / image["source_image"]).is_file() and image["edit_prompt"] and image["editor"]["editor"] == "stamp"
    again = enrich.enrich(sources, ALL_FOUR, Stamp(), megapixels=0.01, sample_every=5)
    assert again.run.made == 0 and again.dataset == enriched.dataset


def test_captions_say_what_was_edited_and_keep_the_token(sources):
    enriched = enrich.enrich(sources, parse("Change background to [forest|beach], keep person identical"), Stamp(), megapixels=0.01)
    assert all("ohwx_char" in image.caption for image in enriched.dataset.images)
    assert {image.caption.rpartition(", ")[2] for image in enriched.dataset.images} == {"forest background", "beach background"}


def test_labelled_images_stay_where_their_verdict_put_them(sources):
    first = enrich.enrich(sources, ALL_FOUR, Stamp(), megapixels=0.01)
    review.record(sources.project, [review.LabelEvent(first.dataset.images[0].key, "good")])
    review.verdicts(first.dataset)
    again = enrich.enrich(sources, ALL_FOUR, Stamp(), megapixels=0.01)
    assert again.run.made == 0
    moved = next(image for image in again.dataset.images if image.key == first.dataset.images[0].key)
    assert "/good/" in moved.path


def test_a_rejected_image_that_was_deleted_is_not_made_again(sources):
    first = enrich.enrich(sources, ALL_FOUR, Stamp(), megapixels=0.01)
    review.record(sources.project, [review.LabelEvent(first.dataset.images[0].key, "reject")])
    shelf = review.follow(first.dataset.stage)
    next(path for path in shelf.files.values() if path.parent.name == "rejected").unlink()
    again = enrich.enrich(sources, ALL_FOUR, Stamp(), megapixels=0.01)
    assert again.run.made == 0 and len(again.dataset.images) == 14 and "deleted by hand" in " ".join(again.notes)


def test_done_is_never_said_when_nothing_was_made(sources):
    def fail(request):
        raise EditorError("no such weights")

    with pytest.raises(EditorError, match="no such weights"):
        enrich.enrich(sources, parse("a cat"), Stamp(before=fail), megapixels=0.01)


def test_a_source_that_vanished_is_named_and_the_others_are_edited(sources):
    sources.path(sources.images[1]).unlink()
    enriched = enrich.enrich(sources, parse("a cat"), Stamp(), megapixels=0.01)
    assert enriched.run.made == 2 and "source_002.png is not there any more" in " ".join(enriched.notes)


@pytest.mark.faces
def test_drifted_images_are_tried_again_and_every_try_is_kept(project, portraits):
    from comfyui_flenwheel.flywheel.faces import embedder

    dlib = embedder()
    references = choose_references(portraits, dlib)
    one = replace(portraits, images=portraits.images[:1])
    prompts = parse("Change lighting to [daylight|sunset|studio|nighttime], keep person identical")
    editor = Rehearsal(spoil_rate=0.6)
    drift = enrich.Drift(references, dlib, retries=3)
    enriched = enrich.enrich(one, prompts, editor, megapixels=0.3, drift=drift)
    assert len(enriched.dataset.images) == 4
    shelf = Shelf(one.project.stage("enriched"))
    tried = [lineage for lineage in shelf.lineages.values() if lineage.facts["attempt"] > 0]
    assert tried, "with six of ten images spoilt, some must have been tried again"
    assert len(shelf.files) == 4 + len(tried), "no try was thrown away"
    chosen = next(lineage for lineage in shelf.lineages.values() if len(lineage.facts["tries"]) > 1)
    best = max(chosen.facts["tries"], key=lambda made: made["similarity"] or 0)
    assert shelf.folder_of(shelf.files[best["request_key"]]) == ""
    again = enrich.enrich(one, prompts, editor, megapixels=0.3, drift=drift)
    assert again.run.made == 0 and again.dataset == enriched.dataset


@pytest.fixture
def portraits(project, photos) -> Dataset:
    """Three real photographs of one man, as curated sources."""
    from comfyui_flenwheel.flywheel.curate import curate
    from comfyui_flenwheel.flywheel.faces import embedder

    return curate(project, [photos / f"obama{number}.jpg" for number in ("", 2, 3)], embedder()).dataset
