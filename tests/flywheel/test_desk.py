import multiprocessing
import shutil
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from comfyui_flenwheel.flywheel import candidates, ledger, review, store
from comfyui_flenwheel.flywheel.candidates import Shelf, adopt
from comfyui_flenwheel.flywheel.desk import Desk
from comfyui_flenwheel.flywheel.errors import DatasetError
from comfyui_flenwheel.flywheel.ledger import LabelEvent
from comfyui_flenwheel.flywheel.project import TRIES

from .conftest import picture


@pytest.fixture
def desk(candidates):
    made = Desk(candidates.stage)
    made.refresh()
    return made


def keys(desk):
    return list(desk.by_image)


def give(desk, label, *numbers, **facts):
    return desk.decide([LabelEvent(keys(desk)[number], label, reviewer="Ada", **facts) for number in numbers])


def folders(desk):
    """Where the files really lie."""
    shelf = Shelf(desk.stage)
    found = {shelf.lineages[made].image_key: shelf.folder_of(path) for made, path in shelf.files.items()}
    return [found[key] for key in desk.by_image]


def test_a_verdict_is_stored_and_its_file_moved_and_undo_brings_both_back(desk):
    give(desk, "good", 0, 1)
    give(desk, "reject", 0)
    assert folders(desk)[:3] == ["rejected", "good", ""]
    assert desk.counts() == {"total": 6, "undecided": 4, "good": 1, "needs_correction": 0, "reject": 1}
    desk.undo("Ada", "first")
    assert folders(desk)[:2] == ["good", "good"]
    desk.undo("Ada", "first")
    assert folders(desk)[:2] == ["", ""] and desk.undecided == 6
    desk.redo("Ada", "first")
    assert folders(desk)[:2] == ["good", "good"] and desk.undecided == 4


def test_undo_survives_a_restart(desk):
    give(desk, "good", 0)
    again = Desk(desk.stage)
    step, decided = again.undo("Ada", "first")
    assert step.label == "good" and decided.changed == (keys(desk)[0],) and folders(desk)[0] == ""


def test_the_desk_never_differs_from_a_walk_over_the_disk(desk):
    give(desk, "good", 0, 1, 2)
    file = desk.file(keys(desk)[3])
    (desk.stage.folder / "rejected").mkdir(exist_ok=True)
    file.rename(desk.stage.folder / "rejected" / file.name)  # sorted by hand
    desk.file(keys(desk)[4]).unlink()
    adopt(desk.stage, [picture(500)], caption="x")
    give(desk, "reject", 0)
    fresh = Desk(desk.stage)
    fresh.refresh()
    assert desk.by_image == fresh.by_image and desk.counts() == fresh.counts() and desk.position == fresh.position
    assert fresh.counts() == {"total": 6, "undecided": 2, "good": 2, "needs_correction": 0, "reject": 2}


def test_a_rule_touches_only_what_nobody_has_decided(desk):
    give(desk, "good", 0)
    decided = give(desk, "reject", 0, 1, origin="policy")
    assert decided.left_alone == (keys(desk)[0],) and decided.changed == (keys(desk)[1],)
    assert [desk.label(key, "first") for key in keys(desk)[:2]] == ["good", "reject"]


def test_a_preview_says_what_would_change_and_changes_nothing(desk):
    give(desk, "good", 0)
    changes, left = desk.preview([LabelEvent(key, "good") for key in keys(desk)[:3]])
    assert [change.before for change in changes] == [None, None] and left == () and desk.counts()["good"] == 1


def test_one_wrong_verdict_stores_none(desk):
    with pytest.raises(DatasetError, match="nobody"):
        desk.decide([LabelEvent(keys(desk)[0], "good"), LabelEvent("nobody", "good")])
    assert desk.undecided == 6 and ledger.labels(desk.stage.project) == {}


def test_the_passes_have_their_own_images(desk):
    give(desk, "good", 0, 1)
    give(desk, "reject", 2)
    give(desk, "good", 0, during="strict")
    give(desk, "reject", 1, during="strict", reasons=("hands",))
    assert desk.keys("strict") == keys(desk)[:2] and desk.counts("strict")["undecided"] == 0
    assert folders(desk)[:3] == ["good", "rejected", "rejected"]
    assert len(desk.keys("repeat")) == 1 and desk.keys("repeat")[0] in keys(desk)[:3]
    assert desk.counts()["good"] == 2  # what the first pass said stays on record


def test_sorting_by_hand_after_the_strict_pass_is_a_strict_verdict(desk):
    give(desk, "good", 0)
    give(desk, "good", 0, during="strict")
    file = desk.file(keys(desk)[0])
    (desk.stage.folder / "rejected").mkdir()
    file.rename(desk.stage.folder / "rejected" / file.name)
    desk.refresh()
    event = desk.in_force(keys(desk)[0])
    assert (event.label, event.during, event.origin) == ("reject", "strict", "folder")


def test_a_file_deleted_under_the_cursor_keeps_its_verdict_and_is_named(desk):
    key, path = keys(desk)[0], desk.file(keys(desk)[0])
    path.unlink()
    desk._stamps = desk._read_stamps()  # as if it had gone between the look and the move
    give(desk, "good", 0)
    assert ledger.labels(desk.stage.project)[key].label == "good"
    desk.refresh()
    (missing,) = desk.missing()
    assert missing[0] == key and "deleted" in missing[2]


def test_a_changed_file_is_named(desk):
    path = desk.file(keys(desk)[0])
    path.write_bytes(path.read_bytes() + b"tail")
    desk.refresh()
    (missing,) = desk.missing()
    assert missing[1] == path.name and "changed on disk" in missing[2]


def test_a_look_at_every_file_walks_only_where_one_is_another(desk, monkeypatch):
    give(desk, "good", 0)
    desk.catch_up()
    with monkeypatch.context() as patch:
        patch.setattr(desk, "_walk", lambda: pytest.fail("walked, and nothing had changed"))
        desk.inspect()
    path, turns = desk.file(keys(desk)[1]), desk.turns
    path.write_bytes(path.read_bytes() + b"tail")  # the folder does not tell
    desk.catch_up()
    assert not desk.missing() and desk.turns == turns
    desk.inspect()
    assert [name for _, name, _ in desk.missing()] == [path.name] and desk.turns == turns + 1


def test_verdicts_given_during_a_look_at_every_file_do_not_make_it_walk(desk, monkeypatch):
    listed = candidates.files_in

    def meanwhile(folder):
        found = listed(folder)
        if folder == desk.stage.folder / TRIES:  # the last one: all others are read
            give(desk, "good", 0)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(candidates, "files_in", meanwhile)
        patch.setattr(desk, "_walk", lambda: pytest.fail("walked under the guard, while a person decided"))
        desk.inspect()
    assert folders(desk)[0] == "good"


def test_an_empty_stage_has_a_review_of_nothing(project):
    stage = project.stage("synthetic")
    stage.folder.mkdir(parents=True)
    desk = Desk(stage)
    desk.refresh()
    assert desk.counts()["total"] == 0 and desk.keys("repeat") == [] and desk.missing() == [] and desk.steps("", "first") == (None, None)


def test_many_hands_at_one_desk_lose_no_verdict(desk):
    def burst(reviewer):
        for turn in range(15):
            desk.decide([LabelEvent(keys(desk)[turn % 6], ("good", "reject")[turn % 2], reviewer=str(reviewer))])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(burst, range(4)))
    assert sum(len(ledger.history(desk.stage.project, key)) for key in keys(desk)) == 60
    wanted = [review.FOLDER_OF[desk.in_force(key).label] for key in keys(desk)]
    assert folders(desk) == wanted


def _other_process(stage, path, reviewer):
    sys.path[:] = path
    desk = Desk(stage)
    desk.refresh()
    for turn in range(20):
        desk.decide([LabelEvent(list(desk.by_image)[turn % 6], ("good", "reject")[turn % 2], reviewer=reviewer)])


@pytest.mark.skipif(sys.platform != "linux", reason="starts the second process by fork")
@pytest.mark.filterwarnings("ignore:This process")
def test_two_processes_on_one_project_agree(desk):
    fork = multiprocessing.get_context("fork")
    others = [fork.Process(target=_other_process, args=(desk.stage, sys.path, name)) for name in ("Ada", "Ben")]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    desk.catch_up()
    history = [event for key in keys(desk) for event in ledger.history(desk.stage.project, key)]
    assert len(history) == 40 and {event.origin for event in history} == {"person"}  # nobody's move was taken for hand work
    assert folders(desk) == [review.FOLDER_OF[desk.in_force(key).label] for key in keys(desk)]


def test_a_burst_of_verdicts_holds_the_database_open_and_lets_it_go(desk, monkeypatch):
    log, timers = desk.stage.project.database.with_name(desk.stage.project.database.name + "-wal"), []
    monkeypatch.setattr(store, "_let_go_later", lambda path, seconds: timers.append((path, seconds)))
    give(desk, "good", 0)
    assert timers == [(desk.stage.project.database, store.HOLD_S)]
    assert log.is_file()  # else every verdict would pay for writing it back
    assert [event.label for event in ledger.history(desk.stage.project, keys(desk)[0])] == ["good"]
    monkeypatch.setattr(store, "HOLD_S", 0.0)
    store._let_go(desk.stage.project.database)
    assert not log.exists()
    give(desk, "reject", 0)
    assert folders(desk)[0] == "rejected"


def test_a_database_that_was_replaced_while_it_was_held_open_is_the_one_that_is_written(desk, tmp_path):
    database = desk.stage.project.database
    give(desk, "good", 0)
    shutil.copy(database, tmp_path / "without the verdict")
    for file in database.parent.glob(f"{database.name}*"):
        file.unlink()
    shutil.move(tmp_path / "without the verdict", database)
    give(desk, "reject", 1)
    with closing(sqlite3.connect(database)) as db:
        assert [label for (label,) in db.execute("SELECT label FROM label_events")] == ["reject"]


def test_a_verdict_costs_no_walk(desk):
    read: list[str] = []
    sys.addaudithook(lambda event, arguments: read.append(event) if event == "os.scandir" and watching else None)
    watching = True
    for number in range(6):
        give(desk, "good", number)
    watching = False
    assert read == [] and folders(desk) == ["good"] * 6
