import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from comfyui_flenwheel.flywheel import review
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.errors import DatasetError, StorageError
from comfyui_flenwheel.flywheel.review import LabelEvent
from comfyui_flenwheel.flywheel.store import connect


def label(dataset, number, verdict, **facts):
    review.record(dataset.project, [LabelEvent(dataset.images[number].key, verdict, **facts)])


def where(dataset, number):
    """The label folder an image lies in."""
    shelf = Shelf(dataset.stage)
    return next(shelf.folder_of(path) for key, path in shelf.files.items() if shelf.lineages[key].image_key == dataset.images[number].key)


def file(dataset, number):
    shelf = Shelf(dataset.stage)
    return next(path for key, path in shelf.files.items() if shelf.lineages[key].image_key == dataset.images[number].key)


def test_files_follow_their_verdicts(candidates):
    for number, verdict in enumerate(("good", "needs_correction", "reject")):
        label(candidates, number, verdict)
    verdicts = review.verdicts(candidates)
    assert [where(candidates, number) for number in range(4)] == ["good", "corrections", "rejected", ""]
    assert verdicts.counts() == {"total": 6, "undecided": 3, "good": 1, "needs_correction": 1, "reject": 1}
    assert verdicts.good.path(verdicts.good.images[0]).is_file()


def test_a_change_of_mind_moves_the_file_again_and_history_keeps_both(candidates):
    label(candidates, 0, "reject", reasons=("hands",), note="six fingers", reviewer="Ada")
    review.verdicts(candidates)
    label(candidates, 0, "good")
    review.verdicts(candidates)
    label(candidates, 0, None)
    assert review.verdicts(candidates).counts()["undecided"] == 6 and where(candidates, 0) == ""
    told = review.history(candidates.project, candidates.images[0].key)
    assert [event.label for event in told] == ["reject", "good", None]
    assert (told[0].reasons, told[0].note, told[0].reviewer) == (("hands",), "six fingers", "Ada") and told[0].at


def test_verdicts_cannot_be_changed_or_deleted_even_in_sql(candidates):
    label(candidates, 0, "good")
    for statement in ("DELETE FROM label_events", "UPDATE label_events SET label = 'reject'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"), connect(candidates.project.database) as db:
            db.execute(statement)


def test_a_full_disk_is_said_so_and_keeps_what_was_stored(candidates):
    label(candidates, 0, "good")
    with connect(candidates.project.database) as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    with pytest.raises(StorageError, match="full"), connect(candidates.project.database) as db:
        db.execute(f"PRAGMA max_page_count = {pages}")
        db.execute("INSERT INTO faces VALUES ('k', 'e', '[]', ?)", (b"x" * 100_000,))
    assert len(review.labels(candidates.project)) == 1


def test_a_damaged_database_is_named(candidates):
    candidates.project.database.write_bytes(b"not a database, but long enough to look like a file " * 100)
    with pytest.raises(StorageError, match=r"flenwheel\.db .*damaged"):
        review.labels(candidates.project)


def test_a_renamed_file_keeps_its_verdict_and_follows_the_next(candidates):
    label(candidates, 0, "good")
    review.verdicts(candidates)
    file(candidates, 0).rename(candidates.stage.folder / "good" / "the best one.png")
    assert review.verdicts(candidates).counts()["good"] == 1
    label(candidates, 0, "reject")
    review.verdicts(candidates)
    assert (candidates.stage.folder / "rejected" / "the best one.png").is_file()


def test_files_sorted_by_hand_are_verdicts(candidates):
    label(candidates, 1, "good")
    review.verdicts(candidates)
    good, rejected = candidates.stage.folder / "good", candidates.stage.folder / "rejected"
    rejected.mkdir()
    file(candidates, 0).rename(good / file(candidates, 0).name)
    file(candidates, 1).rename(rejected / file(candidates, 1).name)
    verdicts = review.verdicts(candidates)
    assert verdicts.counts() == {"total": 6, "undecided": 4, "good": 1, "needs_correction": 0, "reject": 1}
    assert review.history(candidates.project, candidates.images[0].key)[-1].origin == "folder"
    assert where(candidates, 0) == "good" and where(candidates, 1) == "rejected"
    file(candidates, 0).rename(candidates.stage.folder / file(candidates, 0).name)
    assert review.verdicts(candidates).counts()["undecided"] == 5


def test_a_verdict_whose_move_was_cut_off_is_followed_later_and_not_taken_for_hand_work(candidates):
    label(candidates, 0, "good")  # killed before the file was moved
    assert review.verdicts(candidates).counts()["good"] == 1
    assert [event.origin for event in review.history(candidates.project, candidates.images[0].key)] == ["person"]


def test_the_revision_is_the_same_before_and_after_files_follow(candidates):
    before = review.revision(candidates.stage)
    label(candidates, 0, "good")
    file(candidates, 1).rename(_made(candidates.stage.folder / "rejected") / file(candidates, 1).name)
    changed = review.revision(candidates.stage)
    review.verdicts(candidates)
    assert before != changed == review.revision(candidates.stage)


def test_a_deleted_candidate_is_an_error_unless_it_was_rejected(candidates):
    label(candidates, 0, "reject")
    review.verdicts(candidates)
    file(candidates, 0).unlink()
    assert review.verdicts(candidates).counts()["reject"] == 1
    file(candidates, 1).unlink()
    with pytest.raises(DatasetError, match="no longer on disk"):
        review.verdicts(candidates)


def test_a_name_that_is_taken_gets_a_number_and_overwrites_nothing(candidates):
    rival = _made(candidates.stage.folder / "good") / file(candidates, 0).name
    rival.write_bytes(b"somebody else's")
    label(candidates, 0, "good")
    review.verdicts(candidates)
    assert rival.read_bytes() == b"somebody else's"
    assert where(candidates, 0) == "good"


def test_events_from_outside_are_checked_all_at_once(candidates):
    events = [LabelEvent("nobody", "good"), LabelEvent(candidates.images[0].key, "fine", ("ugly",))]  # type: ignore[arg-type]
    problems = review.problems_of(events, [candidates.images[0].key])
    assert len(problems) == 3 and "nobody" in problems[0] and "fine" in problems[1] and "ugly" in problems[2]


def test_what_is_under_review_and_how_to_go_on_survive(candidates):
    part = candidates.keeping([image.key for image in candidates.images[:2]])
    assert len(review.under_review(candidates.stage).images) == 6
    review.open_review(part, {"prompt": {"1": {}}})
    assert review.under_review(candidates.stage).images == part.images
    assert review.resume_of(candidates.stage) == {"prompt": {"1": {}}}


def test_many_hands_at_once_lose_no_verdict(candidates):
    keys = [image.key for image in candidates.images]

    def burst(reviewer: int) -> None:
        for turn in range(10):
            review.record(candidates.project, [LabelEvent(keys[turn % 6], "good", reviewer=str(reviewer))])
            review.follow(candidates.stage)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(burst, range(4)))
    assert sum(len(review.history(candidates.project, key)) for key in keys) == 40


def test_a_moved_project_keeps_everything(candidates, tmp_path):
    label(candidates, 0, "good")
    review.verdicts(candidates)
    moved = replace(candidates.project, root=candidates.project.root.rename(tmp_path / "elsewhere"))
    assert review.verdicts(replace(candidates, project=moved)).counts()["good"] == 1


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder
