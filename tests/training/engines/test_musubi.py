"""musubi-tuner: three programs as one job, told and read. Stand-ins print the real lines; test_musubi_real.py brings in the real one."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from comfyui_flenwheel.training import engines, preflight, run
from comfyui_flenwheel.training.engines import _dataset, _launch, musubi
from comfyui_flenwheel.training.errors import EngineNotInstalled, PreflightError, UnsupportedTraining
from comfyui_flenwheel.training.spec import TrainingSpec
from safetensors.numpy import save_file

from .conftest import declared, edit_job, gone, lay, own_python, posix, seen, until

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
KNOWN = json.loads((HERE / "musubi_0.3.4_arguments.json").read_text())
GOLDEN = HERE / "musubi_golden"
SPEC_OPTIONS = ({}, {"optimizer": "adafactor", "blocks_to_swap": 5}, {"fp8_text_encoder": True})


def spec_of(architecture, **changes):
    base = {"flux1_kontext": "flux1-kontext-dev", "qwen_image_edit": "qwen_image_edit_2509_bf16"}.get(architecture, "flux2")
    spec = TrainingSpec(
        project="Anna",
        kind="edit",
        engine="musubi",
        architecture=architecture,
        base_model=f"{base}.safetensors",
        dataset="data",
        dataset_key="0",
        instance_token="ohwx_char",
        class_noun="person",
        sample_prompts=("make it night",),
    )
    return dataclasses.replace(spec, **changes)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "Zoë's trainers" / "musubi-tuner"
    source = root / "src" / "musubi_tuner"
    lay(
        source,
        {
            "training/parser_common.py": declared(KNOWN["qwen_image"]),
            "qwen_image/qwen_image_utils.py": 'VERSIONS = {"edit", "edit-2509", "edit-2511"}\n',
            "qwen_image_train_network.py": (HERE / "fake_kohya.py").read_text(encoding="utf-8"),
            "qwen_image_cache_latents.py": (HERE / "fake_musubi_cache.py").read_text(encoding="utf-8"),
            "qwen_image_cache_text_encoder_outputs.py": (HERE / "fake_musubi_cache.py").read_text(encoding="utf-8"),
            "FAKE": "ok",
            "../../pyproject.toml": 'version = "0.3.4"\n',
        },
    )
    own_python(root, "MUSUBI_PYTHON", monkeypatch)
    monkeypatch.setenv("MUSUBI_ROOT", str(root))
    return source


@pytest.fixture
def models(tmp_path):
    folder, one = tmp_path / "models", np.zeros(1, np.float16)
    folder.mkdir()
    save_file({"transformer_blocks.0.attn.to_q.weight": one, "img_in.weight": one}, folder / "qwen_image_edit_2509_bf16.safetensors")
    for name in ("qwen_image_vae", "qwen_2.5_vl_7b"):
        save_file({"weight": one}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def job(project, models, tmp_path):
    made = edit_job(project, "musubi", models, tmp_path / "loras", controls=2, sample_prompts=("make it night",))
    yield made
    run.stop(made)
    run.wait(made, 20)


@posix
def test_the_three_programs_are_one_job(checkout, job):
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    assert [step for step, _ in job.losses()] == list(range(1, 21))
    phases = [event["name"] for event in job.events() if event["kind"] == "phase"]
    assert phases == ["laying out the pictures", "pictures to latents", "texts to embeddings", "loading the model", "proving that it loads"]
    assert run.result_of(job).path.name == "Anna-edit-v001.safetensors"
    told = seen(checkout)
    assert told["env"]["PYTHONPATH"] == str(checkout.parent) and told["config"]["model_version"] == "edit-2509"
    data = Path(told["config"]["dataset_config"]).parent
    assert sorted(path.name for path in (data / "control").iterdir())[:3] == ["p0001_0.png", "p0001_1.png", "p0002_0.png"]
    (prompt,) = json.loads((job.folder / "config" / "prompts.json").read_text())
    assert [Path(path).name for path in prompt["control_image_path"]] == ["p0001_0.png", "p0001_1.png"]
    assert prompt["cfg_scale"] == 4.0 and prompt["discrete_flow_shift"] == 2.2
    assert [step for step, _, _ in job.sampled()] == [0, 5, 10, 15, 20], "the first is without the LoRA"
    assert len([event for event in job.events() if event["kind"] == "sample"]) == 5, "what it draws twice at an epoch's end counts once"


@posix
def test_a_stop_while_it_caches_and_one_while_it_trains(checkout, job):
    (checkout / "FAKE").write_text("slow cache")
    run.start(job)
    until(lambda: any(event["kind"] == "launched" for event in job.events()))
    run.stop(job)
    assert run.wait(job, 20).state == "stopped" and job.status().step == 0
    (checkout / "FAKE").write_text("slow")
    run.start(job)
    until(lambda: job.status().step >= 7)
    launched = [event for event in job.events() if event["kind"] == "launched"]
    run.stop(job)
    assert run.wait(job, 20).state == "stopped" and all(gone(event["pid"]) for event in launched)
    (checkout / "FAKE").write_text("ok")
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    config = seen(checkout)["config"]
    assert config["max_train_steps"] == 15 and config["resume"].endswith("-1-step00000005-state") and "initial_step" not in config
    last = max(number for number, event in enumerate(job.events()) if event["kind"] == "started")
    again = [event["arguments"][1] for event in job.events()[last:] if event["kind"] == "launched"]
    assert [Path(script).name for script in again] == ["qwen_image_train_network.py"], "whole caches are not made again"


@posix
@pytest.mark.parametrize("plan", ["no latents", "no text"])
def test_an_example_that_was_not_encoded_is_never_left_out_in_silence(checkout, job, plan):
    (checkout / "FAKE").write_text(plan)
    run.start(job)
    status = run.wait(job, 60)
    assert status.state == "failed" and "encoded 3 of 4 examples" in status.cause, status


def test_every_weight_it_cannot_read_is_refused_at_once(checkout, job, models):
    one = np.zeros(1, np.float16)
    save_file({"transformer_blocks.0.x.scale_weight": one, "img_in.weight": one}, models / "qwen_image_edit_2509_bf16.safetensors")
    save_file({"model.layers.0.weight_scale": one}, models / "qwen_2.5_vl_7b.safetensors")
    (models / "qwen_image_vae.safetensors").unlink()
    with pytest.raises(EngineNotInstalled) as caught:
        musubi.Musubi().check(job)
    told = "\n".join(caught.value.problems)
    for words in (
        "quantised in a way musubi-tuner cannot read",
        "qwen_2.5_vl_7b.safetensors is in 8 bit",
        "qwen_image_vae.safetensors is not in models/vae",
    ):
        assert words in told
    save_file({"double_blocks.0.x": one}, models / "qwen_image_edit_2509_bf16.safetensors")
    with pytest.raises(EngineNotInstalled, match="is no Qwen-Image-Edit model"):
        musubi.Musubi().check(job)


def test_too_old_absent_and_of_unknown_generation(checkout, job, project, models, monkeypatch, tmp_path):
    (checkout / "qwen_image" / "qwen_image_utils.py").write_text('VERSIONS = {"edit"}\n')
    with pytest.raises(EngineNotInstalled, match="does not know Qwen-Image-edit-2509: update it"):
        musubi.Musubi().check(job)
    (checkout / "qwen_image" / "qwen_image_utils.py").unlink()
    with pytest.raises(EngineNotInstalled, match="too old for Qwen-Image-Edit"):
        musubi.Musubi().check(job)
    monkeypatch.delenv("MUSUBI_ROOT")
    other = edit_job(project, "musubi", models, tmp_path, base_model="mine.safetensors")
    with pytest.raises(PreflightError) as caught:
        preflight.check(other)
    told = "\n".join(caught.value.problems)
    assert "set MUSUBI_ROOT" in told and "does not say which Qwen-Image-Edit it is" in told and "mine.safetensors is not in" in told


def test_eight_bits_that_it_would_break_off_with_are_refused(checkout, project, models, tmp_path):
    """musubi-tuner 0.3.4 misspells a type for Kontext's text encoder; where it does, it is known before anything is loaded."""
    job = edit_job(project, "musubi", models, tmp_path, options={"fp8_text_encoder": True})
    assert musubi.Musubi().check(job)
    script = checkout / "qwen_image_train_network.py"
    script.write_text(f"dtype = lambda: {musubi.SLIP}\n{script.read_text(encoding='utf-8')}", encoding="utf-8")
    with pytest.raises(EngineNotInstalled, match="breaks off with fp8_vl, by a slip of its own: set fp8_text_encoder = false"):
        musubi.Musubi().check(job)


def test_what_an_engine_cannot_do_is_known_with_those_that_can(project, tmp_path):
    with pytest.raises(
        UnsupportedTraining, match=r"kohya cannot train edit LoRAs for Qwen-Image-Edit\. Engines that can: .*musubi, ai_toolkit"
    ):
        engines.supports(spec_of("qwen_image_edit", engine="kohya"))
    with pytest.raises(UnsupportedTraining, match=r"Engines that can: .*musubi"):
        engines.supports(spec_of("flux2_dev", engine="replicate"))
    two = edit_job(project, "fal", tmp_path, tmp_path, controls=2)
    with pytest.raises(
        PreflightError, match=r"fal takes 1 picture to start from for Qwen-Image-Edit, and the data has 2\. Engines that take 2: .*musubi"
    ):
        preflight.check(two)
    kontext = edit_job(project, "musubi", tmp_path, tmp_path, controls=2, architecture="flux1_kontext")
    with pytest.raises(PreflightError, match=r"for FLUX\.1 Kontext, and the data has 2\. Engines that take 2: none"):
        preflight.check(kontext)


def test_a_gap_in_the_controls_is_refused_before_anything_is_written(project, models, tmp_path, checkout):
    job = edit_job(project, "musubi", models, tmp_path, controls=2)
    listing = job.dataset / "triplets.json"
    rows = json.loads(listing.read_text())
    rows[2]["source_image"] = rows[2]["source_image"][:1]
    listing.write_text(json.dumps(rows))
    with pytest.raises(PreflightError, match="1 controls where the dataset has 2 slots"):
        preflight.check(job)
    assert not (job.folder / "dataset").exists()


@pytest.mark.parametrize("architecture", list(musubi.FAMILIES))
def test_the_files_are_the_golden_ones(architecture):
    """Golden files are read by people: look at the difference before you replace them."""
    spec = spec_of(architecture, options={"blocks_to_swap": 8}, steps=1500)
    told = _launch.toml(musubi.config(spec, {}, Path("/job"), Path("/data"), 250, Path("/job/out/a-state")))
    told += "".join(f"# {script} {' '.join(arguments)}\n" for script, arguments in musubi.caching(spec, {}, Path("/data")))
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / f"{architecture}.toml").write_text(told, encoding="utf-8")
    assert told == (GOLDEN / f"{architecture}.toml").read_text(encoding="utf-8")


def test_the_kept_list_of_options_covers_every_key():
    for architecture, family in musubi.FAMILIES.items():
        for options in SPEC_OPTIONS:
            config = musubi.config(spec_of(architecture, options=options), {}, Path("/job"), Path("/data"), 5, Path("/state"))
            assert _launch.key_problems(config, KNOWN[family.scripts], "musubi-tuner") == []


def test_repeats_become_copies_in_the_smallest_proportion(project, spec, folder):
    """A character for FLUX.2: musubi counts steps, so only how often one is shown against another tells."""
    from comfyui_flenwheel.training import job as jobs
    from comfyui_flenwheel.training import trainset

    rare = folder / "4_other"
    rare.mkdir()
    for path in sorted((folder / "10_ohwx_char person").glob("image_00[01].*")):
        path.rename(rare / path.name)
    spec = dataclasses.replace(spec, engine="musubi", architecture="flux2_klein_4b", dataset_key=trainset.read(folder).key, options={})
    laid, dataset = _dataset.lay_out(jobs.find_or_create(project.root, spec), musubi.LAYOUT)
    assert len(dataset.pairs) == 10 * 5 + 2 * 2 and not (laid / "control").exists()


def test_own_words_come_last_and_are_checked():
    spec = spec_of("qwen_image_edit", options={"more": 'num_layers = 1; mixed_precision = no; network_args = ["verbose=True"]'})
    config = musubi.config(spec, {}, Path("/job"), Path("/data"), 0, None)
    assert (config["num_layers"], config["mixed_precision"], config["network_args"]) == (1, "no", ["verbose=True"])
    wrong = musubi.config(spec_of("qwen_image_edit", options={"more": "netwrk_dim = 1"}), {}, Path("/job"), Path("/data"), 0, None)
    assert any("does not know netwrk_dim" in problem for problem in _launch.key_problems(wrong, KNOWN["qwen_image"], "musubi-tuner"))
