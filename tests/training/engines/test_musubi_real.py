"""musubi-tuner itself, on the CPU, with random weights: MUSUBI_ROOT names a checkout with a Python of its own. Some minutes and 1 GB of disk.

On a processor without bf16 instructions bf16_in_fp32 is laid into that Python while they run, or a step takes minutes;
musubi-tuner itself stays as it is.
"""

import dataclasses
import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from comfyui_flenwheel.flywheel import lora
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.training import proof, run
from comfyui_flenwheel.training.engines import _dataset, _kohya_family, _launch, musubi
from safetensors import safe_open

from . import bf16_in_fp32
from .conftest import changed, edit_job, inside, parsed, reads, started_by_hand, tended, until
from .in_comfyui import patched

ROOT = os.environ.get("MUSUBI_ROOT", "")
LONG_S = 1800.0  # for what takes a minute on a machine that has nothing else to do
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not ROOT, reason="MUSUBI_ROOT names no checkout of musubi-tuner with a Python of its own; fake trainers ran instead"
    ),
]
INSIDE = Path(__file__).parent / "in_musubi.py"
EYES = "qwen_2.5_vl_tiny.safetensors"
SMALL = {"fp8": False, "optimizer": "AdamW", "more": "num_layers = 1; max_data_loader_n_workers = 1"}


def ask(*words):
    return inside(
        ROOT, _launch.interpreter(Path(ROOT), musubi.PYTHON), _launch.environment({"PYTHONPATH": str(Path(ROOT) / "src")}), INSIDE, *words
    )


@pytest.fixture(scope="module", autouse=True)
def quick_products():
    with bf16_in_fp32.put_into(_launch.interpreter(Path(ROOT), musubi.PYTHON)):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory, quick_products):
    kept = os.environ.get("FLEN_MUSUBI_MODELS")  # they take a minute to make
    if kept:
        return Path(kept)
    folder = tmp_path_factory.mktemp("models")
    ask("models", str(folder))
    return folder


def test_trained_stopped_killed_resumed_proved_and_loaded_in_comfyui(project, models, tmp_path):
    comfyui = Path(os.environ["FLEN_COMFYUI"]) if os.environ.get("FLEN_COMFYUI") else None
    job = edit_job(project, "musubi", models, tmp_path / "loras", steps=40, save_every=4, options=SMALL, comfyui=comfyui)
    assert any("musubi-tuner 0." in fact for fact in musubi.Musubi().check(job))
    folder, dataset = _dataset.lay_out(job, musubi.LAYOUT)
    tool = musubi._Tool(Path(ROOT), _launch.interpreter(Path(ROOT), musubi.PYTHON), job, musubi._hub(job))
    tool.run(*musubi.caching(job.spec, musubi._files(job), folder)[0])  # the real autoencoder, through our command
    ask("texts", str(folder / "dataset.toml"), "edit-2509")
    assert musubi._uncached(folder, musubi.FAMILIES["qwen_image_edit"], dataset) == []
    _launch.write_text(folder / "cache" / "complete", "\n")

    with tended(job):
        run.start(job)
        until(lambda: job.status().step >= 6 or job.status().is_over, LONG_S)
        trainer = psutil.Process(next(event["pid"] for event in reversed(job.events()) if event["kind"] == "launched"))
        family = [trainer, *trainer.children(recursive=True)]
        run.stop(job)
        assert run.wait(job, LONG_S).state == "stopped", (job.status(), job.log.read_text()[-3000:])
        assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE], "the whole group ended"
        first = job.status().step

        run.start(job)  # goes on; then the worker is killed, and the trainer it leaves is ended by the next
        until(lambda: job.status().step >= first + 6 or job.status().is_over, LONG_S)
        psutil.Process(next(event["pid"] for event in reversed(job.events()) if event["kind"] == "started")).kill()
        until(lambda: job.status().state == "lost", LONG_S)
        run.start(job)
        status = run.wait(job, LONG_S)
        assert status.state == "done", (status, job.log.read_text()[-3000:])

    told = [event["text"] for event in job.events() if event["kind"] == "note"]
    assert sum(text.startswith("goes on from step") for text in told) == 2
    assert job.losses()[-1][0] == 40 and status.step == 40  # a step that takes less than a moment is not drawn
    made = run.result_of(job)
    assert (
        made.layers == 14
        and made.rank == 4
        and len(lora.fit(lora.inspect(made.path), proof.modules("qwen_image_edit"), "Qwen").placed) == 14
    )
    if comfyui:
        assert patched(comfyui, models / "qwen_image_edit_2509_bf16.safetensors", made.path) == {"keys": 14, "layers": 14, "changed": True}


@pytest.fixture
def short_sighted(models, tmp_path, monkeypatch):
    """musubi-tuner with one layer of its text encoder instead of 28, two of its eyes instead of 32, and pictures to start from of 128 pixels
    instead of 1024: all else is its own."""
    root = tmp_path / "Zoë's trainers" / "musubi-tuner"
    shutil.copytree(Path(ROOT) / "src", root / "src")
    shutil.copy(Path(ROOT) / "pyproject.toml", root)
    source = root / musubi.SOURCE / "qwen_image" / "qwen_image_utils.py"
    text = re.sub(r'"layer_types": \[[^\]]*\]', '"layer_types": ["full_attention"]', source.read_text(encoding="utf-8"))
    for whole, part in (
        ('"num_hidden_layers": 28', '"num_hidden_layers": 1'),
        ('"depth": 32', '"depth": 2'),
        ("VAE_IMAGE_RESOLUTION = (1024, 1024)", "VAE_IMAGE_RESOLUTION = (128, 128)"),
    ):
        assert whole in text
        text = text.replace(whole, part)
    source.write_text(text, encoding="utf-8")
    monkeypatch.setenv("MUSUBI_ROOT", str(root))
    python = _launch.interpreter(Path(ROOT), musubi.PYTHON)
    monkeypatch.setenv("MUSUBI_PYTHON", str(python))
    env = _launch.environment({"PYTHONPATH": str(root / "src")})
    assert "EYES" in inside(root, python, env, INSIDE, "eyes", str(models / EYES))


def test_it_draws_samples_before_the_first_step_and_while_it_trains(project, models, tmp_path, short_sighted, monkeypatch):
    """All three of its programs, its text encoder too; and what our job sees of the samples."""
    monkeypatch.setattr(_kohya_family, "SAMPLE_STEPS", 5)
    job = edit_job(
        project,
        "musubi",
        models,
        tmp_path / "loras",
        steps=4,
        save_every=2,
        sample_prompts=("make it night", "# make it --w 64 day"),
        options={**SMALL, "encoder_file": EYES},
        comfyui=Path(os.environ["FLEN_COMFYUI"]),
    )
    assert run.work(job) == 0, (job.status(), job.log.read_text()[-3000:])
    assert [(step, prompt) for step, prompt, _ in job.sampled()] == [(step, prompt) for step in (0, 2, 4) for prompt in (0, 1)]
    drawn = {(step, prompt): open_image(path).image for step, prompt, path in job.sampled()}
    twice = [path.name for path in (job.folder / "out" / "sample").iterdir() if "_e000001_" in path.name]
    assert len(twice) == 2 and not {path.name for _, _, path in job.sampled()} & set(twice), "the epoch's end draws them again, in vain"
    assert {image.size for image in drawn.values()} == {(128, 128)}
    assert drawn[0, 0].tobytes() != drawn[4, 0].tobytes(), "the LoRA shows"
    assert drawn[0, 0].tobytes() != drawn[0, 1].tobytes(), "each prompt is drawn with its own words and picture"
    kinds = [(event["kind"], event["step"]) for event in job.events() if event["kind"] in ("step", "sample", "checkpoint")]
    assert kinds.index(("sample", 0)) < kinds.index(("checkpoint", 2)), "the first is seen before the first checkpoint"
    steps = [event["step"] for event in job.events() if event["kind"] == "step"]
    assert steps[-1] == 4 and set(steps) <= {1, 2, 3, 4}, "the steps of a sample are none of the training"


def test_a_person_changes_the_settings_and_starts_the_shown_files(project, models, tmp_path, short_sighted):
    """What docs/training.md tells: nothing of ours runs, the caches are made anew, and a LoRA lies in out/."""
    comfyui, options = Path(os.environ["FLEN_COMFYUI"]), {**SMALL, "encoder_file": EYES}
    job = edit_job(project, "musubi", models, tmp_path / "loras", steps=2, save_every=2, options=options, comfyui=comfyui)
    assert run.work(job) == 0, (job.status(), job.log.read_text()[-3000:])
    proved = run.result_of(job)
    for cache in (job.folder / "dataset").rglob("*_qie*.safetensors"):
        cache.unlink()
    changed(job.folder / "config" / "train-1.toml", "max_train_steps = 2\n", "max_train_steps = 3\n")
    for what in ("cache_latents", "cache_text_encoder_outputs", "train_network"):
        started_by_hand(job, f"run-qwen_image_{what}.sh")
    made = job.folder / "out" / f"{job.id}-1.safetensors"
    with safe_open(made, "numpy") as file:
        assert file.metadata()["ss_steps"] == "3"
    assert patched(comfyui, models / "qwen_image_edit_2509_bf16.safetensors", made) == {"keys": 14, "layers": 14, "changed": True}
    assert job.status().state == "done" and proof.sha256(proved.path) == proved.sha256, "what was proved stays as it is"


def test_its_loader_reads_what_is_written(project, tmp_path):
    """Images, controls in their order, captions, repeats: as musubi-tuner's own loader sees them."""
    import json

    for version, architecture, most in (
        ("edit-2509", "qwen_image_edit", 3),
        ("klein-base-4b", "flux2_klein_4b", 2),
        ("kontext", "flux1_kontext", 1),
    ):
        job = edit_job(project, "musubi", tmp_path, tmp_path, architecture=architecture, controls=most)
        folder, _ = _dataset.lay_out(job, musubi.LAYOUT)
        told = json.loads(ask("read", str(folder / "dataset.toml"), version).partition("READ")[2])
        assert [item["name"] for item in sorted(told, key=lambda item: item["name"])] == ["p0001", "p0002", "p0003", "p0004"]
        assert all(item["caption"] == "make it night, keep the person identical" and item["repeats"] == 1 for item in told)
        greys = [40, 80, 120][:most]  # control n is that grey
        assert all([round(grey / 40) * 40 for grey in item["controls"]] == greys for item in told), told


def test_its_parser_takes_every_key():
    """The options kept here are those of the real parser."""
    from .test_musubi import KNOWN, SPEC_OPTIONS, spec_of

    for scripts in ("qwen_image", "flux_2", "flux_kontext"):
        real = _launch.arguments_of(musubi.parsers(Path(ROOT), scripts))
        assert {name: real.get(name) for name in KNOWN[scripts]} == KNOWN[scripts]
    for architecture in musubi.FAMILIES:
        for options in SPEC_OPTIONS:
            told = musubi._key_problems(Path(ROOT), dataclasses.replace(spec_of(architecture), options=options))
            slips = architecture == "flux1_kontext" and "fp8_text_encoder" in options
            assert (["breaks off with fp8_t5" in one for one in told] == [True]) if slips else told == []


@pytest.mark.parametrize("scripts", ["qwen_image", "flux_2", "flux_kontext"])
def test_its_programs_read_every_setting(scripts, tmp_path):
    """The training and both caches, for every model they are for: names, values, and a folder that is not plain ASCII."""
    from .test_musubi import SPEC_OPTIONS, spec_of

    def asked(script, lines):
        env = _launch.environment({"PYTHONPATH": str(Path(ROOT) / "src")})
        return parsed(ROOT, _launch.interpreter(Path(ROOT), musubi.PYTHON), env, Path(ROOT) / musubi.SOURCE / script, lines)

    folder, trainings, caches = tmp_path / "Zoë's job", [], {}
    for architecture in (name for name, family in musubi.FAMILIES.items() if family.scripts == scripts):
        for options in SPEC_OPTIONS:
            spec = dataclasses.replace(spec_of(architecture), options=options)
            settings = musubi.config(spec, {}, folder, folder / "dataset", 5, folder / "state" if "optimizer" in options else None)
            path = folder / f"train-{len(trainings) + 1}.toml"
            _launch.write_text(path, _launch.toml(settings))
            trainings.append((settings, ["--config_file", str(path)]))
            for script, words in musubi.caching(spec, {}, folder / "dataset"):
                caches.setdefault(script, []).append(words)
    for read, (settings, _) in zip(asked(f"{scripts}_train_network.py", [words for _, words in trainings]), trainings, strict=True):
        reads(read, settings)
    for script, lines in caches.items():
        for read, words in zip(asked(script, lines), lines, strict=True):
            given = {word[2:]: value for word, value in pairwise([*words, "--"]) if word.startswith("--")}
            reads(read, {name: {"1": 1}.get(value, value) if not value.startswith("--") else True for name, value in given.items()})
