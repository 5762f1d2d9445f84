"""Workers in real processes: to the end, stopped, killed, started twice, and with what goes wrong."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from comfyui_flenwheel.flywheel import lora
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.training import proof, run, trainset
from comfyui_flenwheel.training.errors import TrainingFailed

from .conftest import made, training_set

pytestmark = pytest.mark.slow  # more than a few seconds together: not in the quick part

WITHOUT_DISK_CHECK = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import conftest
from pathlib import Path
from comfyui_flenwheel.training import preflight, run
preflight.disk_needed = lambda spec: 0
sys.exit(run.work(run.Job(Path(sys.argv[1]))))
"""
SLOW = {"seconds_per_step": 0.05}


def until(happened, patience_s=30.0):
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def worker_of(job):
    return next(event["pid"] for event in reversed(job.events()) if event["kind"] == "started")


def steps_of(job):
    return [event["step"] for event in job.events() if event["kind"] == "step"]


def test_a_job_ends_with_a_registered_lora_that_was_proved_to_load(spec, start, tmp_path):
    job = start(spec)
    assert run.wait(job, 30).state == "done", job.status()
    reference = run.result_of(job)
    assert reference.path == tmp_path / "loras" / "flenwheel" / "Anna" / "Anna-character-v001.safetensors"
    assert reference.sha256 == proof.sha256(reference.path) and reference.layers == 3
    assert len(lora.fit(lora.inspect(reference.path), proof.modules("flux1"), "FLUX.1").placed) == 3
    metadata = lora.inspect(reference.path).metadata
    assert metadata["flenwheel.instance_token"] == "ohwx_char" and metadata["flenwheel.dataset"] == spec.dataset_key
    assert not any(str(tmp_path) in value for value in metadata.values()), "no paths"
    losses = dict(job.losses())
    assert len(losses) == 60 and losses[60] < losses[1] / 2, "the loss is real and falls"
    assert steps_of(job) == list(range(1, 61)) and [step for step, _, _ in job.sampled()] == [10, 20, 30, 40, 50, 60]


def test_starting_a_job_that_is_done_does_nothing_and_a_removed_copy_comes_back(spec, start):
    job = start(spec)
    run.wait(job, 30)
    events = len(job.events())
    assert run.start(job).state == "done" and len(job.events()) == events
    first = run.result_of(job)
    first.path.unlink()
    assert run.result_of(job) == first and first.path.is_file()


def test_a_second_start_while_it_runs_finds_the_first(spec, start):
    job = start(spec, options=SLOW)
    assert run.start(job).state in ("queued", "running") and run.start(job).attempts <= 1
    until(lambda: job.status().state == "running")
    told = psutil.Process(worker_of(job)).environ()
    assert (told["OMP_WAIT_POLICY"], told["PYTHONUTF8"]) == ("PASSIVE", "1")
    twin = run._spawn(job, Path(os.sys.executable), "")  # a race of two starters: the second worker leaves at once
    assert twin.wait(20) == 0
    run.stop(job)
    assert run.wait(job, 20).state == "stopped"
    assert len([event for event in job.events() if event["kind"] == "started"]) == 1


def test_stop_ends_at_a_step_boundary_and_going_on_repeats_nothing(spec, start):
    job = start(spec, options=SLOW)
    until(lambda: len(steps_of(job)) >= 13)
    assert run.stop(job).state == "stopping"
    status = run.wait(job, 10)
    first = worker_of(job)
    assert status.state == "stopped" and status.step == steps_of(job)[-1] == status.checkpoint
    run.start(job)  # at once: the worker may still be leaving
    assert worker_of(job) != first or job.status().state == "queued"
    assert run.wait(job, 30).state == "done" and steps_of(job) == list(range(1, 61))


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_kill_9_loses_no_more_than_the_steps_since_the_last_checkpoint_and_the_result_is_the_same(spec, start, project):
    job = start(spec, options=SLOW)
    until(lambda: len(steps_of(job)) >= 27)
    os.kill(worker_of(job), signal.SIGKILL)
    until(lambda: job.status().state == "lost")
    done = steps_of(job)
    assert "go" in job.status().cause
    run.start(job)
    assert run.wait(job, 30).state == "done"
    again = steps_of(job)[len(done) :]
    assert again[0] == done[-1] - done[-1] % spec.save_every + 1, "resumed at the last checkpoint"
    assert again == list(range(again[0], 61)) and job.status().attempts == 2
    assert [step for step, _ in job.losses()] == list(range(1, 61))

    whole = made(project, dataclasses.replace(spec, options={"seconds_per_step": 0.001}))
    run.start(whole)
    assert run.wait(whole, 30).state == "done"
    assert whole.losses() == job.losses(), "two halves equal one whole"


def test_a_checkpoint_that_is_damaged_is_told_and_the_one_before_is_used(spec, start):
    job = start(spec, options=SLOW)
    until(lambda: len(list(job.checkpoints.glob("*.safetensors"))) == 2)
    os.kill(worker_of(job), signal.SIGTERM)
    until(lambda: job.status().is_over)
    newest, older = sorted(job.checkpoints.glob("*.safetensors"), reverse=True)[:2]
    newest.write_bytes(newest.read_bytes()[:100])
    run.start(job)
    until(lambda: any(event["kind"] == "note" and "goes on" in event["text"] for event in job.events()))
    notes = [event["text"] for event in job.events() if event["kind"] == "note"]
    assert any(newest.name in note and "damaged" in note for note in notes)
    assert f"goes on from step {int(older.stem[5:])}" in notes


@pytest.mark.parametrize(
    ("trouble", "state", "told"),
    [
        ("nan loss", "failed", "learning rate"),
        ("out of memory", "failed", "memory profile"),
        ("garbage", "failed", "is no LoRA"),
        ("crash", "lost", "killed"),
    ],
)
def test_what_goes_wrong_is_told_in_words_with_one_thing_to_do(spec, start, trouble, state, told):
    job = start(spec, options={"trouble": trouble, "seconds_per_step": 0.0})
    until(lambda: job.status().is_over)
    status = job.status()
    assert status.state == state and told in status.cause, status
    with pytest.raises(TrainingFailed, match=state):
        run.result_of(job)
    assert run.start(job).state != "done", "it may be tried again"


def test_a_result_that_was_removed_makes_the_job_not_done(spec, start):
    job = start(spec)
    result = run.wait(job, 30).result
    (job.folder / result).unlink()
    assert job.status().state == "failed" and "gone" in job.status().cause
    run.start(job)
    assert run.wait(job, 30).state == "done"


def test_a_worker_that_cannot_start_is_an_error_with_its_last_words(spec, project):
    job = made(project, spec)
    with pytest.raises(TrainingFailed, match="did not start"):
        run.start(job, python=Path("/bin/false"))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a few megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.name == "nt" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted as root on Linux")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_told_in_words_and_going_on_after_it_was_freed_ends_well(spec, small_disk):
    project = open_project(small_disk, "Anna", instance_token="ohwx_char", class_noun="person", medium="photographs")
    folder = training_set(project, 12)
    job = made(project, dataclasses.replace(spec, dataset_key=trainset.read(folder).key, rank=16, save_every=5))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - (72 << 10)))
    command = [sys.executable, "-c", WITHOUT_DISK_CHECK, str(job.folder)]
    worker = subprocess.run(command, capture_output=True, text=True, timeout=120)
    status = job.status()
    assert status.state == "failed" and "full" in status.cause, (status, worker.stderr[-2000:])
    filler.unlink()
    subprocess.run(command, check=True, timeout=120)
    assert job.status().state == "done" and job.status().attempts == 2


def test_a_worker_killed_while_it_waits_for_its_turn_leaves_the_queue(spec, start):
    options = {"seconds_per_step": 0.05, "takes_card": True}
    first, second = start(spec, options=options, steps=400), start(spec, options=options, seed=2)
    until(lambda: first.status().step >= 1 and second.status().phase == "waiting for the GPU")
    third = start(spec, options=options, seed=3)
    os.kill(next(event["pid"] for event in second.events() if event["kind"] == "queued"), signal.SIGKILL)
    until(lambda: second.status().state == "lost")
    run.stop(first)
    assert run.wait(third, 60).state == "done" and run.wait(first, 5).state == "stopped"


def test_several_jobs_of_a_night_run_one_after_the_other(spec, start):
    options = {"seconds_per_step": 0.01, "takes_card": True}
    jobs = [start(spec, options=options, seed=seed) for seed in (1, 2, 3)]
    for job in jobs:
        assert run.wait(job, 90).state == "done", job.status()
    times = [[event["at"] for event in job.events() if event["kind"] in ("turn", "done")] for job in jobs]
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(times)), "never two at once, in the order of asking"
