"""musubi-tuner itself, on the CPU, with random weights: MUSUBI_ROOT names a checkout with a Python of its own. Some minutes and 1 GB of disk."""

import dataclasses
import os
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from comfyui_flenwheel.flywheel import lora
from comfyui_flenwheel.training import proof, run
from comfyui_flenwheel.training.engines import _dataset, _launch, musubi

from .conftest import edit_job, inside, parsed, reads, until
from .in_comfyui import patched

ROOT = os.environ.get("MUSUBI_ROOT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not ROOT, reason="MUSUBI_ROOT names no checkout of musubi-tuner with a Python of its own; fake trainers ran instead"
    ),
]
INSIDE = Path(__file__).parent / "in_musubi.py"
SMALL = {"fp8": False, "optimizer": "AdamW", "more": "num_layers = 1; max_data_loader_n_workers = 1"}


def ask(*words):
    return inside(
        ROOT, _launch.interpreter(Path(ROOT), musubi.PYTHON), _launch.environment({"PYTHONPATH": str(Path(ROOT) / "src")}), INSIDE, *words
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
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

    run.start(job)
    until(lambda: job.status().step >= 6 or job.status().is_over, 240)
    trainer = psutil.Process(next(event["pid"] for event in reversed(job.events()) if event["kind"] == "launched"))
    family = [trainer, *trainer.children(recursive=True)]
    run.stop(job)
    assert run.wait(job, 30).state == "stopped", (job.status(), job.log.read_text()[-3000:])
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE], "the whole group ended"
    first = job.status().step

    run.start(job)  # goes on; then the worker is killed, and the trainer it leaves is ended by the next
    until(lambda: job.status().step >= first + 6 or job.status().is_over, 240)
    psutil.Process(next(event["pid"] for event in reversed(job.events()) if event["kind"] == "started")).kill()
    until(lambda: job.status().state == "lost", 20)
    run.start(job)
    status = run.wait(job, 400)
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
            assert musubi._key_problems(Path(ROOT), dataclasses.replace(spec_of(architecture), options=options)) == []


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
            spec = dataclasses.replace(spec_of(architecture), options={**options, "fp8_text_encoder": bool(options)})
            settings = musubi.config(spec, {}, folder, folder / "dataset", 5, folder / "state" if options else None)
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
