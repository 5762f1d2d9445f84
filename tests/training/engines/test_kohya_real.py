"""sd-scripts itself, on the CPU, with random weights: SD_SCRIPTS_ROOT names a checkout with a Python of its own. Minutes, 1.5 GB of disk, 12 GB of RAM.

On a processor without bf16 instructions bf16_in_fp32 is laid into that Python while they run, or a step takes minutes;
sd-scripts itself stays as it is.
"""

import dataclasses
import json
import os
from pathlib import Path

import psutil
import pytest
from comfyui_flenwheel.flywheel.images import open_image, png_bytes, write_whole
from comfyui_flenwheel.training import engines, proof, run, trainset
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training.engines import _kohya_family, _launch, kohya
from comfyui_flenwheel.training.job import Places
from PIL import Image
from safetensors import safe_open

from . import bf16_in_fp32
from .conftest import changed, gone, inside, parsed, reads, started_by_hand, tended, until
from .in_comfyui import patched

ROOT = os.environ.get("SD_SCRIPTS_ROOT", "")
INSIDE = Path(__file__).parent / "in_sd_scripts.py"
TOKENS = 64
SMALL = {
    "fp8_base": False,
    "optimizer": "AdamW",
    "more": f't5xxl_max_token_length = {TOKENS}; network_args = ["train_blocks=all", "verbose=False"]; no_half_vae = true',
}
LONG_S = 1800.0  # for what takes a minute on a machine that has nothing else to do
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not ROOT, reason="SD_SCRIPTS_ROOT names no checkout of sd-scripts with a Python of its own; fake trainers ran instead"
    ),
]


def ask(*words):
    return inside(ROOT, _launch.interpreter(Path(ROOT), kohya.PYTHON), _launch.environment({}), INSIDE, *words)


@pytest.fixture(scope="module", autouse=True)
def quick_products():
    with bf16_in_fp32.put_into(_launch.interpreter(Path(ROOT), kohya.PYTHON)):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory, quick_products):
    kept = os.environ.get("FLEN_FLUX_MODELS")  # they take a minute to make
    if kept:
        return Path(kept)
    folder = tmp_path_factory.mktemp("models")
    ask("models", str(folder))
    return folder


def test_trained_stopped_killed_resumed_proved_and_loaded_in_comfyui(project, spec, models, tmp_path):
    comfyui = Path(os.environ["FLEN_COMFYUI"])
    spec = dataclasses.replace(spec, engine="kohya", steps=12, save_every=2, resolution=256, options=SMALL, sample_prompts=())
    job = jobs.find_or_create(project.root, spec, Places(loras=tmp_path / "loras", models=(models,), comfyui=comfyui))
    assert kohya.Kohya().check(job)
    _launch.lay_out(trainset.read(job.dataset), job.folder / "dataset")
    ask("texts", str(job.folder / "dataset" / "r10"), str(TOKENS))

    with tended(job):
        run.start(job)
        until(lambda: job.status().checkpoint >= 2 or job.status().is_over, LONG_S)
        trainer = psutil.Process(next(event["pid"] for event in reversed(job.events()) if event["kind"] == "launched"))
        family = [trainer.pid, *(child.pid for child in trainer.children(recursive=True))]
        run.stop(job)
        assert run.wait(job, LONG_S).state == "stopped", (job.status(), job.log.read_text()[-3000:])
        assert all(gone(pid) for pid in family), "the whole group ended"

        run.start(job)  # goes on; then the worker is killed, and the trainer it leaves is ended by the next
        until(lambda: job.status().checkpoint >= 4 or job.status().is_over, LONG_S)
        psutil.Process(next(event["pid"] for event in reversed(job.events()) if event["kind"] == "started")).kill()
        until(lambda: job.status().state == "lost", LONG_S)
        run.start(job)
        status = run.wait(job, LONG_S)
        assert status.state == "done", (status, job.log.read_text()[-3000:])
    assert job.losses()[-1][0] == 12 and status.step == 12  # a step that takes less than a moment is not drawn
    made = run.result_of(job)
    assert made.layers == 13 and made.rank == 4  # ten layers of a double block, three of a single one
    assert patched(comfyui, models / "flux1-dev.safetensors", made.path) == {"keys": 13, "layers": 13, "changed": True}


def class_images(place, count):
    """A folder with other people of the class."""
    folder = place / "class"
    for number in range(count):
        write_whole(folder / f"c{number}.png", png_bytes(Image.new("RGB", (128, 96), (40 * number, 90, 60))))
    return folder


def test_a_person_changes_the_settings_and_starts_the_shown_file(project, spec, models, tmp_path):
    """What docs/training.md tells: nothing of ours runs, and a LoRA lies in out/. With class images, which is all that is different with them."""
    comfyui, others = Path(os.environ["FLEN_COMFYUI"]), class_images(tmp_path, 2)
    spec = dataclasses.replace(spec, engine="kohya", steps=2, save_every=2, resolution=128, sample_prompts=())
    spec = dataclasses.replace(spec, options=engines.with_data("kohya", {**SMALL, "class_images": str(others)}))
    job = jobs.find_or_create(project.root, spec, Places(loras=tmp_path / "loras", models=(models,), comfyui=comfyui))
    _launch.lay_out(trainset.read(job.dataset), job.folder / "dataset")
    _launch.lay_out(kohya.class_set(spec), job.folder / "dataset" / kohya.CLASS)
    for images in ("r10", f"{kohya.CLASS}/r1"):
        ask("texts", str(job.folder / "dataset" / images), str(TOKENS))
    assert run.work(job) == 0, (job.status(), job.log.read_text()[-3000:])
    proved = run.result_of(job)
    changed(job.folder / "config" / "train-1.toml", "max_train_steps = 2\n", "max_train_steps = 3\n")
    started_by_hand(job, "run-flux_train_network.sh")
    made = job.folder / "out" / f"{job.id}-1.safetensors"
    with safe_open(made, "numpy") as file:
        assert file.metadata()["ss_steps"] == "3" and file.metadata()["ss_num_reg_images"] == "2"
    assert patched(comfyui, models / "flux1-dev.safetensors", made) == {"keys": 13, "layers": 13, "changed": True}
    assert job.status().state == "done" and proof.sha256(proved.path) == proved.sha256, "what was proved stays as it is"


def test_it_draws_samples_before_the_first_step_and_while_it_trains(project, spec, models, tmp_path, monkeypatch):
    monkeypatch.setattr(_kohya_family, "SAMPLE_STEPS", 5)
    prompts = ("photo of ohwx_char person", "# photo of --w 64 a lamp")
    spec = dataclasses.replace(
        spec, engine="kohya", steps=4, save_every=2, resolution=128, options=SMALL, sample_prompts=prompts, learning_rate=1e-2
    )
    job = jobs.find_or_create(
        project.root, spec, Places(loras=tmp_path / "loras", models=(models,), comfyui=Path(os.environ["FLEN_COMFYUI"]))
    )
    _launch.lay_out(trainset.read(job.dataset), job.folder / "dataset")
    ask("texts", str(job.folder / "dataset" / "r10"), str(TOKENS))
    assert run.work(job) == 0, (job.status(), job.log.read_text()[-3000:])
    assert [(step, prompt) for step, prompt, _ in job.sampled()] == [(step, prompt) for step in (0, 2, 4) for prompt in (0, 1)]
    drawn = {(step, prompt): open_image(path).image for step, prompt, path in job.sampled()}
    assert {image.size for image in drawn.values()} == {(128, 128)}
    assert drawn[0, 0].tobytes() != drawn[4, 0].tobytes(), "the LoRA shows"
    assert drawn[0, 0].tobytes() != drawn[0, 1].tobytes(), "each prompt is drawn with its own words"
    kinds = [(event["kind"], event["step"]) for event in job.events() if event["kind"] in ("step", "sample", "checkpoint")]
    assert kinds.index(("sample", 0)) < kinds.index(("checkpoint", 2)), "the first is seen before the first checkpoint"
    steps = [event["step"] for event in job.events() if event["kind"] == "step"]
    assert steps[-1] == 4 and set(steps) <= {1, 2, 3, 4}, "the steps of a sample are none of the training"


def test_its_loader_reads_what_is_written(project, spec, folder, tmp_path):
    """Images, captions, repeats and class images: as sd-scripts' own loader sees them."""
    rare, others = folder / "3_other", class_images(tmp_path, 2)
    rare.mkdir()
    for path in sorted((folder / "10_ohwx_char person").glob("image_00[01].*")):
        path.rename(rare / path.name)
    spec = dataclasses.replace(spec, engine="kohya", options={"class_images": str(others)}, dataset_key=trainset.read(folder).key)
    job = jobs.find_or_create(project.root, spec)
    rows = _launch.lay_out(trainset.read(job.dataset), job.folder / "dataset")
    _launch.lay_out(kohya.class_set(spec), job.folder / "dataset" / kohya.CLASS)
    _launch.write_text(job.folder / "config" / "dataset.toml", kohya.dataset_toml(spec, rows, job.folder))
    told = json.loads(ask("read", str(job.folder / "config" / "dataset.toml")).partition("READ")[2])
    assert sorted((item["repeats"], item["reg"]) for item in told if not item["reg"]) == [(3, False)] * 2 + [(10, False)] * 10
    assert {item["caption"] for item in told if not item["reg"]} == {"photo of ohwx_char person, front view"}
    assert [item["caption"] for item in told if item["reg"]] == ["person"] * 2
    assert len(list(others.iterdir())) == 2, "nothing is written beside a person's own pictures"


def test_its_parser_reads_every_setting(spec, tmp_path):
    """Its own program, as far as it has read what it was told: names, values, and a folder that is not plain ASCII."""
    written = []
    for options in (
        {},
        {"optimizer": "Adafactor", "blocks_to_swap": 3, "more": 'network_args = ["train_blocks=single"]; max_grad_norm = 0.5'},
    ):
        for state in (None, tmp_path / "out" / "state"):
            settings = kohya.config(dataclasses.replace(spec, engine="kohya", options=options), {}, tmp_path / "Zoë's job", 5, state)
            path = tmp_path / "Zoë's job" / f"train-{len(written) + 1}.toml"
            _launch.write_text(path, _launch.toml(settings))
            written.append((settings, ["--config_file", str(path)]))
    python = _launch.interpreter(Path(ROOT), kohya.PYTHON)
    told = parsed(ROOT, python, _launch.environment({}), Path(ROOT) / kohya.SCRIPT, [words for _, words in written])
    for read, (settings, _) in zip(told, written, strict=True):
        reads(read, settings)
