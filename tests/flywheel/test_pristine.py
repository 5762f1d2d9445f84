"""Step 1.7: the strict pass's picks as a folder that follows the verdicts."""

import json

import pytest
from comfyui_flenwheel.flywheel import pristine, review
from comfyui_flenwheel.flywheel.errors import DatasetError
from comfyui_flenwheel.flywheel.export import export
from comfyui_flenwheel.flywheel.ledger import LabelEvent

YES = {"character": True, "anatomy": True, "artefacts": True, "gap": True}


def picked(candidates, *numbers, label="good", answers=YES, reasons=()):
    chosen = [candidates.images[number].key for number in numbers]
    review.record(candidates.project, [LabelEvent(key, "good") for key in chosen])
    review.record(candidates.project, [LabelEvent(key, label, reasons, during="strict", answers=answers, reviewer="Ada") for key in chosen])


def pictures(project):
    return sorted(path.name for path in project.stage("pristine").folder.glob("*.png"))


def test_what_the_strict_pass_called_good_becomes_the_set(candidates):
    project = candidates.project
    picked(candidates, 0, 2)
    review.record(project, [LabelEvent(candidates.images[1].key, "good")])  # only the first pass
    found = pristine.gather(project)
    assert {image.key for image in found.dataset.images} == {candidates.images[number].key for number in (0, 2)}
    assert pictures(project) == sorted(image.name for image in found.dataset.images)
    assert pristine.load(project) == found.dataset
    entry = json.loads(project.stage("pristine").metadata.read_text())["images"][0]
    assert (entry["picked_by"], entry["answers"], entry["stage"]) == ("Ada", YES, "enriched")
    met = {criterion.name: criterion.met for criterion in found.criteria}
    assert met["strict pass finished"] is False and met["at least 10 pristine images"] is False
    assert met["character, anatomy and artefacts answered with yes"] is True


def test_a_pick_taken_back_leaves_the_folder_and_other_files_stay(candidates):
    project = candidates.project
    picked(candidates, 0, 1)
    pristine.gather(project)
    folder = project.stage("pristine").folder
    (folder / "mine.png").write_bytes(b"not ours")
    before = pristine.revision(candidates.stage)
    picked(candidates, 0, label="reject", reasons=("hands",))
    assert pristine.revision(candidates.stage) != before
    found = pristine.gather(project)
    assert pictures(project) == sorted(["mine.png", candidates.images[1].name])
    assert "taken out" in " ".join(found.notes)


def test_a_file_changed_in_the_folder_is_replaced_and_that_is_told(candidates):
    picked(candidates, 0)
    found = pristine.gather(candidates.project)
    path = found.dataset.path(found.dataset.images[0])
    path.write_bytes(b"retouched")
    again = pristine.gather(candidates.project)
    assert path.name in " ".join(again.notes) and path.read_bytes() != b"retouched"
    assert not pristine.gather(candidates.project).notes


def test_unanswered_questions_are_named(candidates):
    picked(candidates, 3, answers={"character": True})
    found = pristine.gather(candidates.project)
    last = found.criteria[-1]
    assert not last.met and found.dataset.images[0].name in last.detail


def test_a_training_set_takes_pristine_images_once(candidates):
    picked(candidates, 0, 1)
    review.record(candidates.project, [LabelEvent(candidates.images[2].key, "good")])
    found = pristine.gather(candidates.project)
    good = review.verdicts(candidates).good.keeping([candidates.images[number].key for number in (0, 2)])
    exported = export(good, pristine=found.dataset)
    assert exported.images == 3 and "1 of the 2 pristine" in " ".join(exported.notes)


def test_no_set_and_a_lost_file_are_told(candidates):
    with pytest.raises(DatasetError, match="no pristine images"):
        pristine.load(candidates.project)
    picked(candidates, 0)
    found = pristine.gather(candidates.project)
    found.dataset.path(found.dataset.images[0]).unlink()
    with pytest.raises(DatasetError, match="are gone"):
        pristine.load(candidates.project)
    assert len(pristine.gather(candidates.project).dataset.images) == 1
