"""A job is its folder: what crashes and hands do to it is seen through."""

import json
import os
import threading

import pytest
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training import run
from comfyui_flenwheel.training.errors import JobError

from .conftest import made


def test_the_same_spec_is_the_same_job(spec, project):
    assert made(project, spec) == made(project, spec)
    assert jobs.jobs_of(project) == [made(project, spec)] and made(project, spec).status().state == "new"


def test_a_job_changed_by_hand_is_refused_with_the_way_back(spec, project):
    job = made(project, spec)
    path = job.folder / "job.json"
    path.write_text(path.read_text().replace('"rank": 4', '"rank": 64'))
    for use in (lambda: job.spec, lambda: run.start(job), lambda: made(project, spec)):
        with pytest.raises(JobError, match="changed by hand"):
            use()
    path.write_text("{")
    with pytest.raises(JobError, match="cannot be read"):
        _ = job.spec
    path.unlink()
    assert made(project, spec).spec == spec, "deleted is made anew"


def test_a_half_written_line_is_left_out_and_the_next_event_stands_by_itself(spec, project):
    job = made(project, spec)
    job.append("note", text="one")
    with (job.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "step": 3, "lo')
    assert [event["text"] for event in job.events()] == ["one"] and job.damaged_lines == 1
    job.append("note", text="two")
    assert [event["text"] for event in job.events()] == ["one", "two"]


@pytest.mark.parametrize(
    "line", ["[]", "7", '{"kind": 3}', '{"kind": "step", "at": "2026-01-01T00:00:00+00:00"}', "nonsense", '{"kind": "started", "at": ""}']
)
def test_events_edited_by_hand_never_break_the_status(spec, project, line):
    job = made(project, spec)
    with (job.folder / "events.jsonl").open("a") as file:
        file.write(line + "\n")
    assert job.status().state in ("new", "lost") and job.losses() == [] and job.sampled() == []


def test_a_pid_that_was_used_again_is_not_the_worker(spec, project):
    job = made(project, spec)
    job.append("started", steps=60, **{**jobs.identity(), "created": 1.0})
    assert job.status().state == "lost"
    job.append("started", steps=60, **jobs.identity())
    assert job.status().state == "running"


def test_events_of_several_writers_stay_whole(spec, project):
    job = made(project, spec)
    threads = [threading.Thread(target=lambda n=n: [job.append("note", text=f"{n}-{i}" * 50) for i in range(40)]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(job.events()) == 160 and job.damaged_lines == 0


def test_pace_is_that_of_late_and_one_slow_step_does_not_count(spec, project):
    job = made(project, spec)
    job.append("started", steps=100, **jobs.identity())
    lines = []
    for step in range(1, 31):
        second = step * 2 + (40 if step > 20 else 0)
        lines.append(
            json.dumps({"kind": "step", "at": f"2026-01-01T00:{second // 60:02}:{second % 60:02}+00:00", "step": step, "loss": 1.0})
        )
    with (job.folder / "events.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")
    status = job.status()
    assert status.pace_s == 2.0 and status.left_s == 140.0 and status.step == 30


def test_a_full_disk_is_told_in_words(spec, project, monkeypatch):
    job = made(project, spec)
    os.symlink("/dev/full", job.folder / "events.jsonl")
    from comfyui_flenwheel.flywheel.errors import StorageError

    with pytest.raises(StorageError, match="disk is full"):
        job.append("note", text="x")
