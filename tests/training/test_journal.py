"""Events read again and again: only what is new is parsed, and hands in the file are seen."""

import json

from comfyui_flenwheel.training import journal


def line(text):
    return json.dumps({"kind": "note", "at": "2026-01-01T00:00:00+00:00", "text": text}) + "\n"


def texts(path):
    return [event["text"] for event in journal.read(path).events]


def test_what_is_appended_is_read_and_what_was_read_stays(tmp_path):
    path = tmp_path / "events.jsonl"
    assert texts(path) == []
    path.write_text(line("one"))
    first = journal.read(path)
    with path.open("a") as file:
        file.write(line("two") + '{"kind": "no')
    assert texts(path) == ["one", "two"] and journal.read(path).damaged == 1
    with path.open("a") as file:
        file.write('te", "at": "2026-01-01T00:00:00+00:00", "text": "three"}\n')
    assert texts(path) == ["one", "two", "three"] and journal.read(path).damaged == 0
    assert [event["text"] for event in first.events] == ["one"], "what was handed out does not change"


def test_a_file_changed_by_hand_is_read_anew(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(line("one") + line("two"))
    assert texts(path) == ["one", "two"]
    path.write_text(line("other"))
    assert texts(path) == ["other"], "shorter"
    path.write_text(line("changed") + line("two") + line("three"))
    assert texts(path) == ["changed", "two", "three"], "longer"
    path.unlink()
    assert texts(path) == []


def test_many_journals_are_not_kept_for_ever(tmp_path):
    for number in range(journal.KEPT + 5):
        path = tmp_path / str(number)
        path.write_text(line(str(number)))
        assert texts(path) == [str(number)]
    assert texts(tmp_path / "0") == ["0"] and len(journal._read) <= journal.KEPT
