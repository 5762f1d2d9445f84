"""What would stop a run later is told before it begins, all of it at once."""

import dataclasses
import json

import pytest
from comfyui_flenwheel.flywheel.images import png_bytes, write_whole
from comfyui_flenwheel.training import preflight, run, trainset
from comfyui_flenwheel.training.errors import PreflightError, UnsupportedTraining
from PIL import Image

from .conftest import made, training_set, triplets


def problems_of(project, spec, folder, **options):
    with pytest.raises(PreflightError) as caught:
        preflight.check(made(project, dataclasses.replace(spec, dataset_key=trainset.read(folder).key)), **options)
    return caught.value.problems


def test_a_good_set_passes_and_is_described(project, spec):
    told = preflight.check(made(project, spec))
    assert "12 images, every caption names ohwx_char; 60 steps show each about 5 times" in told.text() and not told.warnings


def test_an_empty_set_and_a_missing_one(project, spec, folder):
    part = next(folder.iterdir())
    for path in part.iterdir():
        path.unlink()
    assert "holds no images" in problems_of(project, spec, folder)[0]
    with pytest.raises(PreflightError, match="There is no training set"):
        preflight.check(made(project, dataclasses.replace(spec, dataset="data/training/v9")))


def test_one_image_is_too_few_and_five_are_a_warning(project, spec, folder):
    part = next(folder.iterdir())
    for path in sorted(part.iterdir())[10:]:
        path.unlink()
    key = trainset.read(folder).key
    assert preflight.check(made(project, dataclasses.replace(spec, dataset_key=key))).warnings[0].startswith("Only 5 images")
    for path in sorted(part.iterdir())[2:]:
        path.unlink()
    assert "image_000.png is the only image" in problems_of(project, spec, folder)[0]


def test_every_bad_file_is_named(project, spec, folder):
    part = next(folder.iterdir())
    (part / "image_000.txt").unlink()
    (part / "image_001.txt").write_text("  \n")
    (part / "image_002.txt").write_bytes(b"\xff\xfe\x00caption")
    (part / "image_003.txt").write_text("a person")
    (part / "image_004.png").write_bytes((part / "image_004.png").read_bytes()[:200])
    (part / "image_005.png").write_bytes(b"")
    (part / "image_006.txt").write_text("photo of ohwx_character person")
    told = problems_of(project, spec, folder)
    expected = {0: "has no caption", 1: "is empty", 2: "UTF-8", 3: "lacks the token", 4: "damaged", 5: "0 bytes", 6: "lacks the token"}
    for number, words in expected.items():
        assert any(f"image_{number:03}" in problem and words in problem for problem in told), (number, told)
    assert len(told) == len(expected)


def test_small_and_repeated_pictures_are_warned_of(project, spec, folder):
    part = next(folder.iterdir())
    write_whole(part / "twin.png", png_bytes(Image.open(part / "image_000.png").point(lambda value: min(255, value + 3))))
    write_whole(part / "twin.txt", b"photo of ohwx_char person")
    changed = dataclasses.replace(spec, dataset_key=trainset.read(folder).key, resolution=1024)
    small, twins = preflight.check(made(project, changed)).warnings
    assert small.startswith("13 images are smaller") and "twin.png and image_000.png" in twins


def test_data_that_changed_since_is_refused(project, spec, folder):
    training_set(project, 13)
    with pytest.raises(PreflightError, match="have changed since this job was made"):
        preflight.check(made(project, spec))


def test_a_disk_that_is_too_full_is_refused_with_both_figures(project, spec, folder):
    assert "0.0 GiB free, and the run needs about 0.1 GiB" in problems_of(project, spec, folder, free=lambda path: 1_000_000)[0]
    assert preflight.disk_needed(dataclasses.replace(spec, engine="kohya", rank=16)) > 2e9


def test_a_wrong_base_is_refused(project, spec):
    with pytest.raises(UnsupportedTraining, match="kohya cannot train"):
        preflight.check(made(project, dataclasses.replace(spec, engine="kohya", architecture="qwen_image_edit")))


def test_the_worker_refuses_too_and_the_job_says_why(spec, folder, start):
    (next(folder.iterdir()) / "image_000.txt").write_text("nobody")
    job = start(spec)
    status = run.wait(job, 20)
    assert status.state == "failed" and "lacks the token" in status.cause and status.attempts == 0


@pytest.fixture
def edits(project, spec):
    """A spec that trains six triplets."""
    folder = triplets(project, 6, held_out=1)
    key = trainset.read(folder).key
    return dataclasses.replace(
        spec, kind="edit", architecture="qwen_image_edit", dataset=project.relative(folder), dataset_key=key, resolution=96
    )


def test_triplets_need_no_token_and_are_described(project, edits):
    told = preflight.check(made(project, edits)).text()
    assert "5 triplets of 1 control, 1 more to measure with" in told and "shapes as trainers sort them: 128 x 64 (5)" in told


def test_the_pair_doctors_verdicts_are_told(project, edits):
    folder = project.stage("qwen_training").folder
    for number in range(2):
        photo = project.root / f"data/source/v1/photo_{number}.png"
        write_whole(project.root / f"data/corrections/v1/target_{number}.png", photo.read_bytes())
    told = preflight.check(made(project, dataclasses.replace(edits, dataset_key=trainset.read(folder).key))).warnings
    assert any(
        warning.startswith("Pair doctor: 3 of 5 pairs are well. target_0-0:") and "Pair Doctor mends" in warning for warning in told
    ), told


def test_a_pair_that_lacks_a_control_is_refused(project, edits):
    folder = project.stage("qwen_training").folder
    rows = json.loads((folder / "triplets.json").read_text())
    rows[0]["source_image"] = [rows[0]["source_image"], rows[1]["source_image"]]
    (folder / "triplets.json").write_text(json.dumps(rows))
    changed = dataclasses.replace(edits, dataset_key=trainset.read(folder).key)
    (project.root / rows[2]["source_image"]).unlink()
    with pytest.raises(PreflightError) as caught:
        preflight.check(made(project, changed))
    assert any("t2: photo_2.png is not where it was" in problem for problem in caught.value.problems)
    assert sum("it has 1 of 2 controls" in problem for problem in caught.value.problems) == 4
