"""Training in the real ComfyUI: started by a graph, out of its process, through a restart and a kill, to a LoRA that loads."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import lora
from comfyui_flenwheel.flywheel.images import open_image, png_bytes, write_json, write_whole
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.nodes.launch import Server
from comfyui_flenwheel.training import run
from comfyui_flenwheel.training.job import jobs_of
from PIL import Image

from . import comfy

pytestmark = pytest.mark.comfy
SETTINGS, START, MONITOR, TRAINED = "2", "3", "4", "5"


def graph(name, options="seconds_per_step = 0", steps=60, **settings):
    return {
        "1": {
            "class_type": "FLEN_Project",
            "inputs": {"name": name, "instance_token": "ohwx_char", "class_noun": "person", "version": 1, "pictures_are": "photographs"},
        },
        SETTINGS: {
            "class_type": "FLEN_CharacterLoraSettings",
            "inputs": {
                "project": ["1", 0],
                "model": "FLUX.1",
                "engine": "rehearsal",
                "base_model": "flux1-dev.safetensors",
                "quality": "draft",
                "memory": "24 GB",
                "rank": 4,
                "steps": steps,
                "seed": 1,
                "engine_options": options,
                **settings,
            },
        },
        START: {
            "class_type": "FLEN_TrainLora",
            "inputs": {"training": [SETTINGS, 0], "action": "train", "hours": "", "meanwhile": "ComfyUI waits"},
        },
        MONITOR: {"class_type": "FLEN_TrainingMonitor", "inputs": {"job": [START, 0], "smoothing": 0.9, "sample_size": 96}},
        TRAINED: {"class_type": "FLEN_TrainedLora", "inputs": {"job": [START, 0], "weight": 1.0}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": [TRAINED, 2]}},
    }


def project_in(server, name, images=12):
    project = open_project(
        server.base / "output" / "flenwheel", name, instance_token="ohwx_char", class_noun="person", medium="photographs"
    )
    folder = project.stage("training").folder / "10_ohwx_char person"
    for number in range(images):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        write_whole(folder / f"image_{number:03}.png", png_bytes(Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC)))
        write_whole(folder / f"image_{number:03}.txt", b"photo of ohwx_char person, front view\n")
    return project


def ran(server, prompt):
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "success", outcome.error
    return outcome


def until(happened, patience_s=60.0):
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_start_wait_silently_and_get_a_lora_that_every_loader_sees(server):
    project, prompt = project_in(server, "Trainee"), graph("Trainee", "seconds_per_step = 0.2")
    first = ran(server, prompt)
    (job,) = jobs_of(project)
    assert job.status().state in ("queued", "running") and "6" not in first.outputs, (
        "returns before the training has ended, and blocks silently"
    )
    assert "12 images, 60 steps, rank 4" in first.text(SETTINGS) and "rank 4: your choice" in first.text(SETTINGS)
    assert job.id in first.text(START) and "12 images, every caption names ohwx_char" in first.text(START)

    again = ran(server, prompt)
    assert len(jobs_of(project)) == 1 and "step" in again.text(MONITOR)
    assert run.wait(job, 60).state == "done", job.status()

    done = ran(server, prompt)
    name = done.outputs["6"]["text"][0]
    assert "done" in done.text(START) and "3 of 3 layers found in FLUX.1" in done.text(TRAINED)
    assert name == "flenwheel/Trainee/Trainee-character-v001.safetensors"
    loaders = comfy.call(server.address, "/object_info/LoraLoaderModelOnly")[1]["LoraLoaderModelOnly"]["input"]["required"]["lora_name"]
    assert name in (loaders[0] if isinstance(loaders[0], list) else loaders[1]["options"])
    events = len(job.events())
    cached = ran(server, prompt)
    assert len(job.events()) == events and {START, MONITOR, TRAINED} <= cached.cached, "nothing has changed, nothing runs"


def test_the_curve_and_the_samples_are_images_that_a_graph_can_use(server):
    project, prompt = project_in(server, "Pictured"), graph("Pictured")
    save = {"class_type": "SaveImage", "inputs": {"images": [MONITOR, 0], "filename_prefix": "curve"}}
    prompt |= {"curve": save, "sheet": {**save, "inputs": {"images": [MONITOR, 1], "filename_prefix": "sheet"}}}
    ran(server, prompt)
    (job,) = jobs_of(project)
    assert run.wait(job, 60).state == "done", job.status()

    outputs = ran(server, prompt).outputs
    curve, sheet = (open_image(server.base / "output" / outputs[node]["images"][0]["filename"]).image for node in ("curve", "sheet"))
    assert curve.width > curve.height > 100 and len(curve.getcolors(2**20)) > 2, "a line is drawn on it"
    steps, prompts, _ = (set(column) for column in zip(*job.sampled(), strict=True))
    assert len(steps) > 2 and len(prompts) > 1
    assert 96 * len(prompts) <= sheet.width < 96 * (len(prompts) + 1) and sheet.height >= 96 * len(steps), "steps down, prompts across"


def test_changed_captions_are_another_job_and_the_same_ones_are_not(server):
    project = project_in(server, "Changed")
    ran(server, graph("Changed"))
    text = next((project.stage("training").folder).rglob("image_000.txt"))
    text.write_text("photo of ohwx_char person, smiling")
    ran(server, graph("Changed"))
    assert len(jobs_of(project)) == 2
    ran(server, graph("Changed", memory="16 GB"))
    assert len(jobs_of(project)) == 3, "other settings too"
    for job in jobs_of(project):
        assert run.wait(job, 60).state == "done"
    settings = {"project": ["1", 0], "kind": "character", "before": 0, "after": 0, "size": 96}
    compared = ran(server, {"1": graph("Changed")["1"], "2": {"class_type": "FLEN_CompareLoras", "inputs": settings}})
    assert compared.text("2").startswith("v002: 60 steps") and "\nv003: 60 steps" in compared.text("2") and compared.outputs["2"]["images"]


def test_stop_from_the_graph_and_go_on(server):
    project, slow = project_in(server, "Stopped"), graph("Stopped", "seconds_per_step = 0.1")
    ran(server, slow)
    (job,) = jobs_of(project)
    until(lambda: job.status().step >= 3)
    slow[START]["inputs"]["action"] = "stop"
    ran(server, slow)
    assert run.wait(job, 20).state == "stopped"
    slow[START]["inputs"]["action"] = "only look"
    assert "is stopped at step" in ran(server, slow).text(START)
    slow[START]["inputs"]["action"] = "train"
    ran(server, slow)
    assert run.wait(job, 60).state == "done" and job.status().attempts == 2


def test_a_dry_run_says_how_long_it_will_take_and_registers_nothing(server):
    project, prompt = project_in(server, "Dry"), graph("Dry", "seconds_per_step = 0.05", steps=200)
    prompt[START]["inputs"]["action"] = "dry run"
    assert "Queue again" in ran(server, prompt).text(START)
    (job,) = jobs_of(project)
    assert job.spec.steps == 10 and run.wait(job, 60).state == "done"
    told = ran(server, prompt).text(START)
    assert "it fits" in told and "200 steps will take about" in told
    assert not (server.base / "models" / "loras" / "flenwheel" / "Dry").exists() and len(jobs_of(project)) == 1


def test_a_dry_run_that_fits_trains_by_itself(server):
    project, prompt = project_in(server, "Both"), graph("Both", steps=20)
    prompt[START]["inputs"]["action"] = "dry run, then train"
    assert "The training follows by itself" in ran(server, prompt).text(START)
    until(lambda: len(jobs_of(project)) == 2 and all(job.status().state == "done" for job in jobs_of(project)))
    assert sorted(job.spec.steps for job in jobs_of(project)) == [10, 20]
    done = ran(server, prompt)
    assert done.outputs["6"]["text"] == ["flenwheel/Both/Both-character-v001.safetensors"] and "it fits" in done.text(START)
    assert len(jobs_of(project)) == 2


def edit_graph(name, options="seconds_per_step = 0", engine="rehearsal", **settings):
    prompt = graph(name)
    shared = {key: value for key, value in prompt[SETTINGS]["inputs"].items() if key not in ("base_model", "engine")}
    told = {**shared, "model": "Qwen-Image-Edit", "engine": engine, "base_model": "qwen_image_edit_2509_bf16.safetensors"}
    prompt[SETTINGS] = {"class_type": "FLEN_EditLoraSettings", "inputs": {**told, "engine_options": options, **settings}}
    return prompt


def with_triplets(server, name, count=12, held_out=2):
    """A project whose triplets are written."""
    project, rows = project_in(server, name, images=0), []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC)
        names = [f"data/source/v1/photo_{number}.png", f"data/corrections/v1/target_{number}.png"]
        for path, picture in zip(names, (photo, photo.point(lambda value: value // 2)), strict=True):
            write_whole(project.root / path, png_bytes(picture))
        split = "train" if number < count - held_out else "held_out"
        rows.append(
            {
                "id": f"t{number}",
                "source_image": names[0],
                "target_image": names[1],
                "edit_prompt": f"make it night {number}",
                "split": split,
            }
        )
    write_json(project.stage("qwen_training").folder / "triplets.json", rows)
    return project


def test_triplets_become_an_edit_lora_that_a_stack_takes(server):
    project, prompt = with_triplets(server, "Edited"), edit_graph("Edited")
    first = ran(server, prompt)
    assert "10 triplets, 2 held out" in first.text(SETTINGS), first.text(SETTINGS)
    (job,) = jobs_of(project)
    assert job.spec.sample_prompts == ("make it night 10", "make it night 11", "make it night 0")
    assert "10 triplets" in first.text(START)
    assert run.wait(job, 60).state == "done", job.status()
    done = ran(server, prompt)
    assert done.outputs["6"]["text"] == ["flenwheel/Edited/Edited-edit-v001.safetensors"]
    assert "3 of 3 layers found in Qwen-Image-Edit" in done.text(TRAINED)


def test_pairs_of_the_graph_are_kept_as_a_set_and_trained(server):
    project = with_triplets(server, "Paired")
    prompt = edit_graph("Paired")
    folders = {"target": str(project.root / "data/corrections/v1"), "control_1": str(project.root / "data/source/v1")}
    for folder in folders.values():
        for path in Path(folder).glob("*_*.png"):
            path.rename(path.with_name(path.name.partition("_")[2]))
    prompt["7"] = {
        "class_type": "FLEN_LoadPairedDataset",
        "inputs": {
            "name": "night",
            **folders,
            "control_2": "",
            "control_3": "",
            "labels": "",
            "instruction": "make it night",
            "trigger_word": "",
            "on_problem": "refuse",
        },
    }
    prompt[SETTINGS]["inputs"]["pairs"] = ["7", 0]
    ran(server, prompt)
    (job,) = jobs_of(project)
    assert job.spec.dataset.startswith("data/qwen_training/v1/sets/") and run.wait(job, 60).state == "done", job.status()


def test_comfyui_waits_while_a_training_has_the_card_but_light_graphs_run(server):
    project, prompt = project_in(server, "Holding"), graph("Holding", "seconds_per_step = 0.1\ntakes_card = true", steps=300)
    ran(server, prompt)
    (job,) = jobs_of(project)
    until(lambda: job.has_card and job.status().step >= 1)
    until(lambda: comfy.call(server.address, "/flenwheel/jobs")[1]["waits"] == job.id)
    heavy = comfy.queue(
        server.address,
        {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
        },
    )
    look = {key: value for key, value in prompt.items() if key in ("1", SETTINGS, START, MONITOR)}
    assert "is running" in ran(server, look).text(START), "a graph that only looks runs meanwhile"
    assert heavy in [item[1] for item in comfy.call(server.address, "/queue")[1]["queue_pending"]], "and the other one waits"

    where = f"/flenwheel/jobs/Holding/{job.id}"
    assert comfy.call(server.address, f"{where}/hold", {"hold": False})[1]["hold"] is False
    assert comfy.wait(server.address, heavy).status == "success" and job.status().state == "running", "let go while it trains"
    comfy.call(server.address, f"{where}/hold", {"hold": True})
    until(lambda: comfy.call(server.address, "/flenwheel/jobs")[1]["waits"] == job.id)
    second = comfy.queue(
        server.address,
        {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
        },
    )
    assert comfy.call(server.address, f"{where}/stop", {})[0] == 200
    assert comfy.wait(server.address, second).status == "success" and job.status().state == "stopped", "its end gives the card back"


def test_a_job_folder_that_cannot_be_read_does_not_end_comfyuis_queue(server):
    folder = project_in(server, "Wreck").root / "jobs" / "0123456789abcdef"
    (folder / "events.jsonl").mkdir(parents=True)
    write_json(folder / "job.json", {})
    (folder / "hold").touch()
    black = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 2}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    try:
        until(lambda: ran(server, {"1": black, "2": save}) and "could not be found out" in server.log.read_text(errors="replace"))
        ran(server, {"1": black, "2": save})
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"options": "speed = 3"}, "speed is no option of rehearsal"),
        ({"options": "fast"}, "write name = value"),
        ({"options": "seconds_per_step = 100"}, "must lie between 0 and 60"),
    ],
)
def test_wrong_settings_are_an_error_in_words(server, settings, told):
    project_in(server, "Wrong settings")
    outcome = comfy.run(server.address, graph("Wrong settings", **settings))
    assert outcome.status == "error" and told in outcome.error, outcome.error


def test_a_bad_set_is_refused_before_anything_starts(server):
    project = project_in(server, "Bad set")
    next(project.stage("training").folder.rglob("image_003.txt")).write_text("somebody")
    outcome = comfy.run(server.address, graph("Bad set"))
    assert outcome.status == "error" and "image_003.png: its caption lacks the token" in outcome.error
    assert all(job.status().state == "new" for job in jobs_of(project))
    missing = comfy.run(server.address, graph("Nobody"))
    assert missing.status == "error" and "There is no training set in" in missing.error


@pytest.fixture
def mortal(comfyui, tmp_path):
    """A server of the test's own, to be killed and started again on the same files."""
    server = Server(comfyui, Path(sys.executable), tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_training_outlives_comfyui_and_a_killed_worker_goes_on_after_the_restart(mortal):
    project, prompt = project_in(mortal, "Restart"), graph("Restart", "seconds_per_step = 0.2", steps=100)
    ran(mortal, prompt)
    (job,) = jobs_of(project)
    until(lambda: job.status().step >= 5)
    mortal.kill()
    before = job.status().step
    until(lambda: job.status().step >= before + 10)
    assert job.status().state == "running", "it trains on without ComfyUI"

    worker = next(event["pid"] for event in reversed(job.events()) if event["kind"] == "started")
    os.kill(worker, signal.SIGKILL)
    until(lambda: job.status().state == "lost")
    lost, checkpoint = job.status().step, job.status().checkpoint
    mortal.start()
    ran(mortal, prompt)
    assert run.wait(job, 90).state == "done" and job.status().attempts == 2
    steps = [event["step"] for event in job.events() if event["kind"] == "step"]
    assert len(steps) == 100 + lost - checkpoint, "only the steps since the last checkpoint were repeated"
    assert "Restart-character-v001" in ran(mortal, prompt).text(TRAINED)
    assert len(lora.inspect(run.result_of(job).path).layers) == 3
