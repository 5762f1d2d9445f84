"""Training sets as engines see them: triplets with their controls, and what changes the key."""

import json

import pytest
from comfyui_flenwheel.flywheel.errors import DatasetError
from comfyui_flenwheel.flywheel.triplets import load_triplets
from comfyui_flenwheel.training import pairset, trainset

from .conftest import triplets


@pytest.fixture
def folder(project):
    return triplets(project, 6, held_out=2)


def rewritten(folder, change):
    path = folder / trainset.LISTING
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_triplets_are_read_with_their_controls_and_what_is_held_out(folder):
    found = trainset.read(folder)
    assert (len(found.examples), len(found.held_out), found.controls) == (4, 2, 1)
    assert found.examples[0].caption == "make it night, keep the person identical" and found.examples[0].controls[0].is_file()
    assert not found.problems and not trainset.problems(found, "")


def test_several_controls_stay_in_order(folder, project):
    pictures = [f"data/source/v1/photo_{number}.png" for number in (3, 1, 2)]
    rewritten(folder, lambda rows: rows[0].update(source_image=pictures))
    found = trainset.read(folder)
    assert [path.name for path in found.examples[0].controls] == ["photo_3.png", "photo_1.png", "photo_2.png"] and found.controls == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[0].update(edit_prompt="make it day"),
        lambda rows: rows[0].update(source_image="data/source/v1/photo_2.png"),
        lambda rows: rows[0].update(split="held_out"),
        lambda rows: rows.pop(),
    ],
)
def test_another_instruction_control_or_split_is_other_data(folder, change):
    before = trainset.read(folder).key
    rewritten(folder, change)
    assert trainset.read(folder).key != before


def test_a_picture_that_is_gone_and_an_empty_instruction_are_named(folder, project):
    (project.stage("source").folder / "photo_0.png").unlink()
    rewritten(folder, lambda rows: rows[1].update(edit_prompt=" "))
    told = trainset.problems(trainset.read(folder), "")
    assert any("t0: photo_0.png is not where it was" in problem for problem in told)
    assert any("t1: its instruction is empty" in problem for problem in told)


@pytest.mark.parametrize(
    "text",
    ["nothing", "{}", '[{"id": "x"}]', "[3]", '[{"id": "x", "source_image": 3, "target_image": "", "edit_prompt": "", "split": "train"}]'],
)
def test_a_listing_that_makes_no_sense_is_an_error_in_words(folder, text):
    (folder / trainset.LISTING).write_text(text)
    with pytest.raises(DatasetError, match=r"is not readable|holds no images"):
        raise DatasetError(trainset.problems(trainset.read(folder), "")[0])


def test_pairs_of_the_graph_are_written_once_and_the_projects_own_triplets_bring_what_is_held_out(folder, project):
    own = load_triplets(project)
    assert pairset.keep(project, own) == folder and len(trainset.read(folder).held_out) == 2
    some = own.keeping([own.pairs[0].stem, own.pairs[1].stem])
    kept = pairset.keep(project, some)
    assert kept.parent == folder / "sets" and kept == pairset.keep(project, some) and len(trainset.read(kept).examples) == 2
    held = pairset.keep(project, some, load_triplets(project, "held_out"))
    assert held != kept and len(trainset.read(held).held_out) == 2
