"""The graphics card changes hands: read from a real program called nvidia-smi that tells fixed figures, asked of a real HTTP server."""

import dataclasses
import http.server
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from comfyui_flenwheel.training import card, hand_over, preflight, run
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training.errors import Stopped, TrainingFailed
from comfyui_flenwheel.training.job import Places, jobs_of

from .conftest import made

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvidia-smi is a shell script")


@pytest.fixture
def comfyui():
    """Answers as ComfyUI does on /queue and /free, and remembers what it was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer({"queue_running": [[0, "x"]] * server.busy, "queue_pending": []})

        def do_POST(self):
            server.freed.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer(None)

        def _answer(self, told):
            body = b"" if told is None else json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.busy, server.freed = 0, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def job(spec, project, comfyui):
    one = made(project, dataclasses.replace(spec, resolution=1024))
    return jobs.find_or_create(project.root, one.spec, Places(address=f"http://127.0.0.1:{comfyui.server_port}"))


FREE = "GPU-1, NVIDIA GeForce RTX 4090, 24564, 23900\n"
TAKEN = "GPU-1, NVIDIA GeForce RTX 4090, 24564, 3000\n"


def test_the_card_and_its_holders_are_read_with_the_scripts_they_run(smi):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "training"])
    try:
        smi(
            TAKEN,
            f"GPU-1, {sleeper.pid}, [Not Found], 1500\nGPU-1, 999999, C:\\games\\game.exe, [N/A]\nGPU-2, 1, x, 9000\nGPU-1, 999998, /opt/blender, 20000\n",
        )
        seen = card.look()
    finally:
        sleeper.kill()
        sleeper.wait()
    assert seen and str(seen) == "2.9 GiB of 24.0 GiB are free on NVIDIA GeForce RTX 4090"
    assert [holder.bytes for holder in seen.holders] == [20000 << 20, 1500 << 20, None]
    assert str(seen.holders[0]) == "blender (process 999998) holds 19.5 GiB"
    assert seen.holders[1].name.startswith("python") and seen.holders[2].name == "game.exe"


@pytest.mark.parametrize("told", ["", "nonsense\n", "GPU-1, name, [N/A], [N/A]\n", "NVIDIA-SMI has failed, because, it could, not\n"])
def test_a_card_that_cannot_be_read_is_none(smi, told):
    smi(told)
    assert card.look() is None


def test_without_nvidia_smi_nothing_is_claimed(job, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    hand_over.take_over(job, lambda _: None)
    assert "there is no nvidia-smi here" in job.events()[-1]["text"]


def test_models_are_unloaded_and_the_free_memory_is_told(job, smi, comfyui):
    smi(FREE)
    phases = []
    hand_over.take_over(job, phases.append)
    assert comfyui.freed == [{"unload_models": True, "free_memory": True}] and phases == ["ComfyUI unloads its models"]
    assert job.events()[-1]["text"] == "23.3 GiB of 24.0 GiB are free on NVIDIA GeForce RTX 4090"


def test_it_waits_until_comfyui_is_idle_where_the_person_wanted_that(job, smi, comfyui):
    smi(FREE)
    job.hold(True)
    comfyui.busy = 1
    phases, done = [], threading.Event()
    worker = threading.Thread(target=lambda: (hand_over.take_over(job, phases.append), done.set()))
    worker.start()
    while len(phases) < 2:
        time.sleep(0.05)
    assert set(phases) == {"waiting for ComfyUI to finish what it runs"} and not comfyui.freed
    comfyui.busy = 0
    assert done.wait(20) and comfyui.freed
    worker.join(5)


def test_who_holds_the_memory_is_named(job, smi, monkeypatch):
    monkeypatch.setattr(hand_over, "FREE_S", 0.6)
    smi(TAKEN, "GPU-1, 999998, /opt/blender, 20000\n")
    with pytest.raises(TrainingFailed, match=r"Only 2.9 GiB of 24.0 GiB are free.*blender \(process 999998\) holds 19.5 GiB.*Close these"):
        hand_over.take_over(job, lambda _: None)


def test_a_smaller_card_than_the_profile_is_a_note_not_a_refusal(job, smi):
    smi("GPU-1, NVIDIA GeForce RTX 4060, 8188, 7900\n")
    hand_over.take_over(job, lambda _: None)
    assert "for a larger card than this one with 8.0 GiB" in job.events()[-1]["text"]


def test_preflight_tells_the_card_and_warns_of_one_that_is_too_small(spec, project, smi):
    smi("GPU-1, NVIDIA GeForce RTX 4060, 8188, 7900\n")
    told = preflight.check(made(project, dataclasses.replace(spec, resolution=1024, options={"takes_card": True})))
    assert "7.7 GiB of 8.0 GiB are free on NVIDIA GeForce RTX 4060" in told.facts
    assert any("for a larger card than this one with 8.0 GiB" in warning for warning in told.warnings)
    smi(FREE)
    assert not any(
        "larger card" in warning
        for warning in preflight.check(made(project, dataclasses.replace(spec, resolution=1024, options={"takes_card": True}))).warnings
    )


def test_waiting_for_memory_can_be_stopped(job, smi):
    smi(TAKEN)
    job.ask_to_stop()
    with pytest.raises(Stopped):
        hand_over.take_over(job, lambda _: None)


def test_a_job_holds_the_card_from_its_turn_to_its_end(job):
    assert not job.has_card
    job.append("queued", **jobs.identity())
    assert not job.has_card
    job.append("turn")
    job.append("started", steps=10, **jobs.identity())
    assert job.has_card
    job.append("stopped", step=3, message="")
    assert not job.has_card
    job.append("queued", **jobs.identity())
    assert not job.has_card, "an earlier turn is over"
    job.append("turn")
    job.append("started", steps=10, pid=999999, created=1.0)
    assert not job.has_card, "the dead hold nothing"


@pytest.mark.slow
def test_a_dry_run_steps_down_when_memory_is_short_and_says_what_it_changed(spec, project):
    whole = dataclasses.replace(spec, resolution=1024, options={"trouble": "out of memory", "seconds_per_step": 0.0})
    first = run.dry_run(project.root, whole, Places())
    run.start(first)
    deadline = time.monotonic() + 90
    while len(run.last_tried(first)[1]) < 2 or not run.last_tried(first)[0].status().is_over:
        assert time.monotonic() < deadline, [event for event in run.last_tried(first)[0].events() if event["kind"] != "step"]
        time.sleep(0.1)
    last, changes = run.last_tried(first)
    assert changes == ("profile 16 GB: resolution 1024 to 768", "profile 12 GB: resolution 768 to 512")
    assert last.spec.resolution == 512 and run.rehearsed(last).steps == whole.steps and last.status().state == "failed"
    assert "The memory was not enough" in first.status().cause


@pytest.mark.slow
def test_the_training_follows_only_a_dry_run_that_fits(spec, project):
    def tried(**options):
        whole = dataclasses.replace(spec, resolution=512, options={"seconds_per_step": 0.0, **options})
        job = run.dry_run(project.root, whole, Places(), run.Then("", "", False))
        run.start(job)
        return job, run.wait(job, 60).state

    assert tried(trouble="out of memory")[1] == "failed" and len(jobs_of(project)) == 1
    dry, state = tried()
    assert state == "done"
    until = time.monotonic() + 60
    while not (others := [job for job in jobs_of(project) if job.spec.steps == spec.steps]) or not others[0].status().is_over:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert others[0].status().state == "done" and others[0].places == dry.places


@pytest.mark.slow
def test_memory_is_measured_from_outside(spec, start):
    job = start(spec, options={"seconds_per_step": 0.05})
    assert run.wait(job, 60).state == "done"
    assert job.peak_bytes and 20 << 20 < job.peak_bytes < 4 << 30
    assert job.events()[[event["kind"] for event in job.events()].index("memory")]["device"] == "main memory"
