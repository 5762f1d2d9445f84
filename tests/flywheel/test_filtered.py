"""What passed the identity check of step 1.6 lies apart until it is decided on, and no move is taken for a verdict."""

import json

import pytest
from comfyui_flenwheel.flywheel import filtered, review
from comfyui_flenwheel.flywheel.candidates import Shelf, adopt
from comfyui_flenwheel.flywheel.images import content_key
from comfyui_flenwheel.flywheel.review import LabelEvent

from .conftest import picture


@pytest.fixture
def made(project):
    return adopt(project.stage("synthetic"), [picture(200 + number) for number in range(5)], caption="photo of ohwx_char person")


def places(made) -> list[str]:
    """The folder each image lies in, in the order of the dataset."""
    shelf = Shelf(made.stage)
    by_key = {shelf.lineages[key].image_key: shelf.folder_of(path) for key, path in shelf.files.items()}
    return [by_key[image.key] for image in made.images]


def only(made, *numbers):
    return made.keeping({made.images[number].key for number in numbers})


def say(made, number, label):
    review.record(made.project, [LabelEvent(made.images[number].key, label)])
    review.follow(made.stage)


def test_what_passed_lies_apart_and_another_sieve_sorts_anew(made):
    (told,) = filtered.put_apart(made, only(made, 0, 1, 2))
    assert told.startswith("3 images in data/synthetic/v1/filtered until you decide; 40% are left out")
    assert places(made) == ["filtered", "filtered", "filtered", "", ""]
    assert all(content_key(made.path(image)) == image.key for image in made.images), "each is found where it lies now"
    filtered.put_apart(made, only(made, 2, 3))
    assert places(made) == ["", "", "filtered", "filtered", ""]
    assert filtered.put_apart(made, made.keeping(()))[0].startswith("0 images in ")
    assert places(made) == [""] * 5
    described = json.loads(made.stage.metadata.read_text(encoding="utf-8"))
    assert len(described["images"]) == 5


def test_lying_there_is_no_verdict_and_a_verdict_takes_it_out(made):
    filtered.put_apart(made, only(made, 0, 1, 2))
    review.follow(made.stage)
    assert places(made) == ["filtered", "filtered", "filtered", "", ""] and not review.labels(made.project)
    assert len(review.verdicts(made).undecided.images) == 5
    say(made, 0, "good")
    say(made, 3, "reject")
    assert places(made) == ["good", "filtered", "filtered", "rejected", ""]
    assert filtered.put_apart(made, only(made, 1, 3, 4))[0].startswith("2 images in "), "decided ones are left alone"
    assert places(made) == ["good", "filtered", "", "rejected", "filtered"]
    say(made, 0, None)
    assert places(made)[0] == "", "a verdict that is taken back"


def test_what_a_person_moves_is_a_verdict_and_what_was_moved_before_a_crash_is_none(made, monkeypatch):
    with monkeypatch.context() as dying:
        dying.setattr(review, "remember_places", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            filtered.put_apart(made, only(made, 0, 1))
    assert places(made)[:2] == ["filtered", "filtered"]
    review.follow(made.stage)
    assert places(made)[:2] == ["filtered", "filtered"] and not review.labels(made.project)

    good = made.stage.folder / "good"
    good.mkdir()
    apart = made.path(made.images[0])
    apart.rename(good / apart.name)
    review.follow(made.stage)
    assert review.labels(made.project)[made.images[0].key].label == "good"
    (good / apart.name).rename(apart)
    review.follow(made.stage)
    assert made.images[0].key not in review.labels(made.project), "put back by hand: undecided again"
    assert places(made)[0] == "filtered"


def test_only_synthetic_images_are_moved(candidates):
    before = places(candidates)
    assert filtered.put_apart(candidates, candidates.keeping({candidates.images[0].key})) == []
    assert places(candidates) == before == [""] * 6
