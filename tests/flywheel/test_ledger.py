import sqlite3

import pytest
from comfyui_flenwheel.flywheel import ledger
from comfyui_flenwheel.flywheel.ledger import LabelEvent, Position
from comfyui_flenwheel.flywheel.store import MIGRATIONS, connect

KEYS = ("a", "b", "c")


def give(project, label, *keys, reviewer="Ada", during="first", **facts):
    ledger.record(project, [LabelEvent(key, label, reviewer=reviewer, during=during, **facts) for key in keys])


def labels(project):
    return {key: event.label for key, event in ledger.labels(project).items()}


def test_undo_goes_back_step_by_step_without_end_and_redo_forward(project):
    for turn in range(30):
        give(project, ("good", "reject")[turn % 2], KEYS[turn % 3])
    before = labels(project)
    for _ in range(30):
        assert ledger.undo(project, "Ada", "first", KEYS)
    assert labels(project) == {} and ledger.undo(project, "Ada", "first", KEYS) is None
    for _ in range(30):
        assert ledger.redo(project, "Ada", "first", KEYS)
    assert labels(project) == before and ledger.redo(project, "Ada", "first", KEYS) is None


def test_one_request_is_one_step_and_names_itself(project):
    give(project, "good", *KEYS)
    step = ledger.next_undo(project, "Ada", "first", KEYS)
    assert (step.count, step.label, step.keys) == (3, "good", KEYS)
    assert ledger.undo(project, "Ada", "first", KEYS) == step and labels(project) == {}


def test_undo_of_one_reviewer_leaves_what_another_decided_since(project):
    give(project, "good", "a")
    give(project, "reject", "a", reviewer="Ben")
    ledger.undo(project, "Ada", "first", KEYS)
    assert labels(project) == {"a": "reject"}
    ledger.undo(project, "Ben", "first", KEYS)
    assert labels(project) == {}


def test_a_new_verdict_ends_redo(project):
    give(project, "good", "a")
    ledger.undo(project, "Ada", "first", KEYS)
    give(project, "reject", "b")
    assert ledger.next_redo(project, "Ada", "first", KEYS) is None
    assert ledger.next_undo(project, "Ada", "first", KEYS).label == "reject"


def test_undo_sent_twice_undoes_once_and_a_stale_one_nothing(project):
    give(project, "good", "a")
    older = ledger.next_undo(project, "Ada", "first", KEYS).batch
    give(project, "good", "b")
    newer = ledger.next_undo(project, "Ada", "first", KEYS).batch
    assert ledger.undo(project, "Ada", "first", KEYS, batch=older) is None and labels(project) == {"a": "good", "b": "good"}
    for _ in range(2):
        assert ledger.undo(project, "Ada", "first", KEYS, batch=newer).batch == newer
    assert labels(project) == {"a": "good"}


def test_undo_keeps_to_its_images_and_its_pass(project):
    give(project, "good", "a")
    give(project, "good", "elsewhere")
    give(project, "reject", "a", during="strict", reasons=("hands",))
    assert ledger.undo(project, "Ada", "first", KEYS).keys == ("a",)
    assert labels(project) == {"elsewhere": "good", "a": "reject"}


def test_the_strict_pass_stands_above_the_first_and_the_repeat_beside_them(project):
    give(project, "good", *KEYS)
    give(project, "needs_correction", "a", during="strict", reasons=("hands",), answers={"anatomy": False})
    give(project, "reject", "b", during="repeat")
    give(project, "reject", "c", during="strict", reasons=("blur",))
    give(project, None, "c", during="strict")
    assert labels(project) == {"a": "needs_correction", "b": "good", "c": "good"}
    assert ledger.labels(project)["a"].answers == {"anatomy": False}
    assert ledger.agreement(ledger.standing(project), "Ada", "repeat") == [("b", "good", "reject")]


def test_the_strict_pass_wants_a_reason(project):
    told = ledger.problems_of([LabelEvent("a", "reject", during="strict"), LabelEvent("a", "good", during="strict")], KEYS)
    assert len(told) == 1 and "reason" in told[0]


def test_catching_up_comes_to_the_same_as_reading_everything(project):
    known, at = ledger.catch_up(project, {}, Position())
    for number, step in enumerate((("good", "a"), ("reject", "b"), (None, "a"), "undo", ("good", "c"), "undo", "undo", "redo")):
        if isinstance(step, tuple):
            give(project, step[0], step[1])
        else:
            getattr(ledger, step)(project, "Ada", "first", KEYS)
        known, at = ledger.catch_up(project, known, at)
        assert known == ledger.standing(project), number
        assert at == ledger.position(project)


def test_what_changed_since_a_position_is_told(project):
    give(project, "good", "a")
    at = ledger.position(project)
    give(project, "good", "b")
    assert ledger.touched_since(project, at) == {"b"}
    ledger.undo(project, "Ada", "first", KEYS)
    ledger.undo(project, "Ada", "first", KEYS)
    assert ledger.touched_since(project, at) == {"a", "b"}


def test_a_clock_set_back_changes_no_order(project):
    give(project, "good", "a", at="2030-01-01T00:00:00+00:00")
    give(project, "reject", "a", at="2020-01-01T00:00:00+00:00")
    assert labels(project) == {"a": "reject"}


def test_verdicts_of_the_first_release_count_and_can_be_undone(project):
    with sqlite3.connect(project.database) as db:
        for migration in MIGRATIONS[:2]:
            migration(db)
        db.execute("PRAGMA user_version = 2")
        db.execute(
            "INSERT INTO label_events (image_key, label, reasons, note, at, reviewer, origin) VALUES ('a', 'good', '[]', '', '', 'Ada', 'person')"
        )
    db.close()
    assert labels(project) == {"a": "good"}
    assert ledger.undo(project, "Ada", "first", KEYS).keys == ("a",) and labels(project) == {}


def test_undo_is_append_only_too(project):
    give(project, "good", "a")
    ledger.undo(project, "Ada", "first", KEYS)
    for statement in ("DELETE FROM undo_events", "UPDATE undo_events SET undone = 0"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"), connect(project.database) as db:
            db.execute(statement)


def test_a_batch_that_was_undone_is_not_used_again(project):
    ledger.record(project, [LabelEvent("a", "good", reviewer="Ada")], batch="mine")
    ledger.undo(project, "Ada", "first", KEYS)
    ledger.record(project, [LabelEvent("b", "good", reviewer="Ada")], batch="mine")
    assert labels(project) == {"b": "good"}


def test_events_that_name_their_own_batch_are_steps_of_their_own(project):
    def send():
        named = [LabelEvent(key, "good", reviewer="Ada", event_id=f"id {key}", batch=f"step {key}") for key in "ab"]
        ledger.record(project, [*named, LabelEvent("c", "good", reviewer="Ada", event_id="id c")], batch="rest")

    send()
    assert ledger.undo(project, "Ada", "first", KEYS).batch == "rest"
    assert ledger.undo(project, "Ada", "first", KEYS).batch == "step b"
    send()  # its answer was lost
    assert labels(project) == {"a": "good"} and len(ledger.history(project, "b")) == 1
    ledger.record(project, [LabelEvent("d", "good", reviewer="Ada", batch="step b")])
    assert labels(project) == {"a": "good", "d": "good"}
