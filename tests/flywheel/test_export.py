import json

import pytest
from comfyui_flenwheel.flywheel import review
from comfyui_flenwheel.flywheel.errors import DatasetError
from comfyui_flenwheel.flywheel.export import export


def judged(candidates, *labels, reasons=()):
    events = [review.LabelEvent(image.key, label, reasons) for image, label in zip(candidates.images, labels, strict=False)]
    review.record(candidates.project, events)
    return review.verdicts(candidates)


def files(project):
    folder = project.stage("training").folder / "10_ohwx_char person"
    return sorted(path.name for path in folder.iterdir())


def test_good_images_and_photographs_become_pairs_of_image_and_caption(candidates, sources):
    exported = export(judged(candidates, "good", "good", "reject").good, photographs=sources)
    assert exported.images == 5 and len(files(candidates.project)) == 10
    rows = [json.loads(line) for line in (candidates.project.stage("training").folder / "metadata.jsonl").read_text().splitlines()]
    assert all((candidates.project.stage("training").folder / row["file_name"]).is_file() and "ohwx_char" in row["text"] for row in rows)
    assert "60%" in " ".join(exported.notes)


def test_an_image_that_is_no_longer_good_leaves_the_set_and_nothing_else_does(candidates):
    verdicts = judged(candidates, "good", "good")
    export(verdicts.good)
    folder = candidates.project.stage("training").folder / "10_ohwx_char person"
    (folder / "mine.png").write_bytes(b"not ours")
    exported = export(judged(candidates, "reject").good)
    assert exported.images == 1 and files(candidates.project) == sorted(
        ["mine.png", *(name for name in files(candidates.project) if name != "mine.png")]
    )
    assert len(files(candidates.project)) == 3
    assert "taken out" in " ".join(exported.notes)


def test_a_caption_edited_by_hand_is_kept_again_and_again(candidates):
    good = judged(candidates, "good").good
    exported = export(good)
    text = next(exported.folder.glob("*.txt"))
    text.write_text("photo of ohwx_char person, laughing\n")
    for _ in range(2):
        assert "edited by hand" in " ".join(export(good).notes)
        assert text.read_text() == "photo of ohwx_char person, laughing\n"


def test_the_report_tells_what_is_missing(candidates):
    exported = export(judged(candidates, "good", "reject").good)
    met = {criterion.name: (criterion.met, criterion.detail) for criterion in exported.criteria}
    assert met["at least 30 good images"] == (False, "1")
    assert met["all images reviewed"] == (False, "2 of 6")
    assert not met["rejection reasons documented"][0] and "no reason yet for" in met["rejection reasons documented"][1]
    judged(candidates, "good", "reject", reasons=("hands",))
    assert export(review.verdicts(candidates).good).criteria[2].met
    report = (candidates.project.stage("training").folder / "report.txt").read_text()
    assert "✘ at least 30 good images: 1" in report


def test_nothing_good_is_an_error_and_writes_nothing(candidates):
    with pytest.raises(DatasetError, match="no image was labelled good"):
        export(judged(candidates, "reject").good)
    assert not candidates.project.stage("training").folder.exists()


def test_exporting_twice_changes_no_byte(candidates):
    good = judged(candidates, "good", "good").good
    export(good)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns if path.suffix == ".png" else 0) for path in _all(candidates)}
    export(good)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns if path.suffix == ".png" else 0) for path in _all(candidates)}


def _all(candidates):
    return [path for path in candidates.project.stage("training").folder.rglob("*") if path.is_file()]
