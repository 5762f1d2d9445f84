"""sd-scripts: what it is told, what it says, how it ends. A stand-in prints the real lines; SD_SCRIPTS_ROOT brings in the real parser."""

import ast
import dataclasses
import json
import os
from pathlib import Path

import psutil
import pytest
from comfyui_flenwheel.flywheel import lora
from comfyui_flenwheel.flywheel.images import png_bytes, write_whole
from comfyui_flenwheel.training import engines, preflight, run, trainset
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training.engines import _kohya_family, _launch, kohya
from comfyui_flenwheel.training.errors import EngineNotInstalled, PreflightError
from comfyui_flenwheel.training.job import Places
from PIL import Image
from safetensors.numpy import save_file

from .conftest import declared, gone, own_python, posix, seen, until

pytestmark = pytest.mark.slow  # more than a few seconds together: not in the quick part

HERE = Path(__file__).parent
KNOWN = json.loads((HERE / "sd_scripts_0.10.1_arguments.json").read_text())
GOLDEN = HERE / "kohya_golden"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with an interpreter of its own, in a folder with a space and an umlaut."""
    root = tmp_path / "Zoë's trainers" / "sd-scripts"
    (root / "library").mkdir(parents=True)
    (root / "train_network.py").write_text(declared(KNOWN))
    (root / "flux_train_network.py").write_text((HERE / "fake_kohya.py").read_text(encoding="utf-8"), encoding="utf-8")
    (root / "FAKE").write_text("ok")
    (root / "README.md").write_text("- **Version 0.10.1 (2026-02-13):**\n- **Version 0.10.0 (2026-01-19):**\n")
    own_python(root, "SD_SCRIPTS_PYTHON", monkeypatch)
    monkeypatch.setenv("SD_SCRIPTS_ROOT", str(root))
    return root


@pytest.fixture
def models(tmp_path):
    """Files with the headers of the real ones and next to nothing in them."""
    import numpy as np

    folder = tmp_path / "models"
    folder.mkdir()
    one = np.zeros(1, np.float16)
    save_file({"double_blocks.0.img_attn.qkv.weight": one}, folder / "flux1-dev.safetensors")
    for name in ("clip_l", "t5xxl_fp16", "ae"):
        save_file({"weight": one}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def job(project, spec, models, tmp_path):
    spec = dataclasses.replace(spec, engine="kohya", steps=20, save_every=5, learning_rate=1e-4, options={})
    made = jobs.find_or_create(project.root, spec, Places(loras=tmp_path / "loras", models=(models,)))
    yield made
    run.stop(made)
    run.wait(made, 20)


@posix
def test_a_run_ends_with_a_registered_lora_and_every_step_is_an_event(checkout, job, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    assert [step for step, _ in job.losses()] == list(range(1, 21))
    assert [event["step"] for event in job.events() if event["kind"] == "checkpoint"] == [5, 10, 15, 20]
    made = run.result_of(job)
    assert made.path.name == "Anna-character-v001.safetensors" and made.layers == 1
    marks = lora.inspect(made.path).metadata
    assert marks["flenwheel.versions"].startswith("sd-scripts 0.10.1, Python 3.") and str(job.folder.parents[3]) not in str(marks)
    told = seen(checkout)
    assert "MY_API_KEY" not in told["env"] and "PYTHONPATH" not in told["env"] and told["env"]["PYTHONUTF8"] == "1"
    assert gone(int((checkout / "HELPER").read_text())), "no helper is left"
    assert "学習開始" in job.log.read_text(encoding="utf-8")
    dataset = job.folder / "dataset" / "r10"
    assert len(list(dataset.glob("p*.png"))) == 12 and (dataset / "p0000.txt").read_text() == "photo of ohwx_char person, front view\n"


@posix
def test_stop_ends_the_whole_group_and_going_on_trains_what_remains(checkout, job):
    (checkout / "FAKE").write_text("slow")
    run.start(job)
    until(lambda: job.status().step >= 12)
    helper = int((checkout / "HELPER").read_text())
    run.stop(job)
    assert run.wait(job, 20).state == "stopped"
    assert gone(helper)
    (checkout / "FAKE").write_text("ok")
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    config = seen(checkout)["config"]
    assert (config["max_train_steps"], config["initial_step"]) == (10, 0) and config["resume"].endswith("-1-step00000010-state")
    assert config["output_name"] == f"{job.id}-2", "a second launch never overwrites the first"
    assert [step for step, _ in job.losses()] == list(range(1, 21))
    assert [step for step, _, _ in job.sampled()] == [0, 5, 10, 15, 20], "one without the LoRA, and none at a step that was another"


@posix
def test_a_killed_worker_leaves_a_trainer_that_the_next_one_ends_first(checkout, job):
    (checkout / "FAKE").write_text("stubborn")
    run.start(job)
    until(lambda: job.status().step >= 7)
    worker = next(event["pid"] for event in reversed(job.events()) if event["kind"] == "started")
    trainer = next(event["pid"] for event in reversed(job.events()) if event["kind"] == "launched")
    psutil.Process(worker).kill()
    until(lambda: job.status().state == "lost")
    assert not gone(trainer), "it holds the GPU still"
    (checkout / "FAKE").write_text("ok")
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    assert gone(trainer)
    assert any("ended the trainer of an earlier attempt" in event.get("text", "") for event in job.events())
    assert seen(checkout)["config"]["max_train_steps"] == 15


@posix
@pytest.mark.parametrize(
    ("plan", "code", "told"),
    [
        ("memory", "memory", "The next smaller is profile 16 GB: blocks_to_swap 0 to 10"),
        ("nan", "nan", "learning rate"),
        ("disk", "disk", "Free some space"),
        ("old", "version", "Update the engine"),
        ("nothing", "garbage", "wrote no LoRA"),
        ("killed", "killed", "main memory"),
        ("garbage", "garbage", "is no LoRA"),
    ],
)
def test_every_bad_end_has_a_cause_and_one_thing_to_do(checkout, job, plan, code, told):
    (checkout / "FAKE").write_text(plan)
    run.start(job)
    status = run.wait(job, 60)
    failed = [event for event in job.events() if event["kind"] == "failed"][-1]
    assert status.state == "failed" and failed["code"] == code and told in status.cause, failed
    assert not list((job.folder / "result").glob("Anna*")), "nothing is registered"


def test_everything_that_is_missing_is_told_at_once(job, models, monkeypatch):
    monkeypatch.delenv("SD_SCRIPTS_ROOT", raising=False)
    for name in ("flux1-dev", "ae"):
        (models / f"{name}.safetensors").unlink()
    with pytest.raises(PreflightError) as caught:
        preflight.check(job)
    told = "\n".join(caught.value.problems)
    for words in ("set SD_SCRIPTS_ROOT", "flux1-dev.safetensors is not in models/diffusion_models", "ae.safetensors is not in models/vae"):
        assert words in told
    assert len(caught.value.problems) == 3


@posix
def test_class_images_are_copied_and_an_empty_folder_of_them_is_refused(checkout, job, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    spec = dataclasses.replace(job.spec, options={"class_images": str(others)})
    made = jobs.find_or_create(job.folder.parents[1], spec, job.places)
    with pytest.raises(EngineNotInstalled, match="holds no pictures"):
        kohya.Kohya().check(made)
    for number in range(2):
        write_whole(others / f"c{number}.jpg", png_bytes(Image.new("RGB", (64, 64), (number,) * 3)))
    (others / "c1.txt").write_text("a person in the rain")
    run.start(made)
    assert run.wait(made, 60).state == "done", made.status()
    folder = made.folder / "dataset" / "class" / "r1"
    assert sorted(path.name for path in folder.iterdir()) == ["p0000.png", "p0000.txt", "p0001.png", "p0001.txt"]
    assert [(folder / f"p000{number}.txt").read_text().strip() for number in range(2)] == ["person", "a person in the rain"]
    assert f'image_dir = "{folder.as_posix()}"\nis_reg = true' in (made.folder / "config" / "dataset.toml").read_text()


@posix
def test_other_class_images_are_another_job(checkout, job, tmp_path):
    others = tmp_path / "others"
    others.mkdir()

    def spec():
        return dataclasses.replace(job.spec, options=engines.with_data("kohya", {"class_images": str(others)}))

    write_whole(others / "a.jpg", png_bytes(Image.new("RGB", (64, 64))))
    before = spec()
    made = jobs.find_or_create(job.folder.parents[1], before, job.places)
    assert spec().id == before.id and kohya.Kohya().check(made)
    (others / "a.txt").write_text("a person in the rain")
    assert spec().id != before.id
    with pytest.raises(EngineNotInstalled, match="not those this job was made for"):
        kohya.Kohya().check(made)
    assert engines.with_data("kohya", {"class_images": "nowhere"}) == {"class_images": "nowhere"}
    assert engines.with_data("rehearsal", {"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("key", "kind", "told"),
    [
        ("model.diffusion_model.double_blocks.0.x", "float16", "all-in-one"),
        ("transformer_blocks.0.attn.to_q.weight", "float16", "no FLUX.1 model"),
        ("double_blocks.0.x.scale_weight", "float16", "quantised"),
        ("double_blocks.0.x", "uint8", "quantised"),
    ],
)
def test_a_base_that_sd_scripts_cannot_read_is_refused_before_it_is_loaded(checkout, job, models, key, kind, told):
    import numpy as np

    save_file(
        {key: np.zeros(1, kind), "double_blocks.1.y" if "scale" in key else "other": np.zeros(1, np.float16)},
        models / "flux1-dev.safetensors",
    )
    with pytest.raises(EngineNotInstalled, match=told):
        engines.engine("kohya").check(job)


def test_an_engine_that_is_too_old_is_known_by_the_options_it_lacks(checkout, job):
    (checkout / "train_network.py").write_text(declared({name: told for name, told in KNOWN.items() if name != "discrete_flow_shift"}))
    with pytest.raises(EngineNotInstalled, match="does not know discrete_flow_shift: it is too old"):
        engines.engine("kohya").check(job)


def test_a_variable_that_names_no_checkout_and_a_checkout_without_python(checkout, job, monkeypatch, tmp_path):
    import shutil

    shutil.rmtree(checkout / "venv")
    with pytest.raises(EngineNotInstalled, match="has no Python of its own"):
        engines.engine("kohya").check(job)
    monkeypatch.setenv("SD_SCRIPTS_ROOT", str(tmp_path))
    with pytest.raises(EngineNotInstalled, match="SD_SCRIPTS_ROOT names"):
        engines.engine("kohya").check(job)


def generated(spec, folder):
    rows = [{"name": "p0000", "repeats": 10}, {"name": "p0001", "repeats": 2}]
    files = {
        "base": Path("/models/flux1-dev.safetensors"),
        "clip_l": Path("/models/clip_l.safetensors"),
        "t5xxl": Path("/models/t5.safetensors"),
        "ae": Path("/models/ae.safetensors"),
    }
    return {
        "train.toml": _launch.toml(kohya.config(spec, files, folder, 10, folder / "out" / "a-state")),
        "dataset.toml": kohya.dataset_toml(spec, rows, folder),
        "prompts.json": _kohya_family.prompts(spec, kohya.drawn_with),
    }


def test_the_files_are_the_golden_ones(spec):
    """Golden files are read by people: look at the difference before you replace them."""
    spec = dataclasses.replace(
        spec,
        engine="kohya",
        options={"blocks_to_swap": 8, "class_images": "/data/class"},
        steps=1500,
        save_every=250,
        resolution=1024,
        rank=16,
        alpha=16,
    )
    for name, text in generated(spec, Path("/job")).items():
        if os.environ.get("WRITE_GOLDEN"):
            (GOLDEN / name).write_text(text, encoding="utf-8")
        assert text == (GOLDEN / name).read_text(encoding="utf-8"), name


def test_a_sample_prompt_is_only_a_prompt(spec):
    """In their text files " --" begins a setting, "#" a comment that takes the prompt's number away, and "I " another picture."""
    written = ("# of the beach --w 64", "I stand", "Zoë\nat night")
    read = json.loads(_kohya_family.prompts(dataclasses.replace(spec, sample_prompts=written), kohya.drawn_with))
    assert [row["prompt"] for row in read] == ["# of the beach --w 64", "I stand", "Zoë at night"]


def test_toml_says_what_was_meant():
    tomllib = pytest.importorskip("tomllib")
    value = {"path": 'C:\\models\\Zoë "x"\n', "list": ["a=1", "b"], "yes": True, "rate": 1e-4, "tiny": 7e-05, "count": 3, "empty": []}
    assert tomllib.loads(_launch.toml(value)) == value


@pytest.mark.parametrize(
    ("line", "step", "loss"),
    [
        ("steps:  75%|███████▌  | 6/8 [02:02<00:40, 20.41s/it, avr_loss=2.49]", 6, 2.49),
        ("steps:  33%|███▎      | 2/6 [00:02<00:04,  1.13s/it, avr_loss=2.31]", 2, 2.31),
        ("steps:   0%|          | 0/8 [00:00<?, ?it/s]", 0, None),
        ("Denoising steps:  50%|█████     | 10/20 [00:04<00:04,  2.21it/s]steps:  12%|█▎        | 1/8 [00:20<02:22, 20.41s/it]", 1, None),
        ("epoch 1/2 steps:  12%|█▎        | 1/8 [00:20<02:22, 20.41s/it]", 1, None),
    ],
)
def test_real_lines_of_the_bar_are_read(line, step, loss):
    assert _kohya_family.read(line) == _launch.Progress(step, 8 if "/8" in line else 6, loss)
    assert _kohya_family.read("saving checkpoint: /out/mira-step00000003.safetensors") is None
    assert _kohya_family.read("Denoising steps:  50%|█████     | 10/20 [00:04<00:04,  2.21it/s]") is None, "that is a sample being drawn"


def test_every_key_is_known_to_the_real_sd_scripts(spec):
    """The real parser's options, read from a real checkout; the list kept here is checked against it."""
    root = os.environ.get("SD_SCRIPTS_ROOT")
    if not root:
        pytest.skip("SD_SCRIPTS_ROOT names no checkout of sd-scripts; the list of its options kept here was used instead")
    real = _launch.arguments_of(kohya._parsers(Path(root)))
    assert {name: real.get(name) for name in KNOWN} == {name: told for name, told in KNOWN.items()}
    for options in ({}, {"optimizer": "Adafactor", "blocks_to_swap": 3}):
        config = kohya.config(dataclasses.replace(spec, options=options), {}, Path("/job"), 5, Path("/job/state"))
        assert _launch.key_problems(config, real, "sd-scripts") == []


def test_the_golden_list_covers_every_key(spec):
    for options in ({}, {"optimizer": "Adafactor", "blocks_to_swap": 3}):
        config = kohya.config(dataclasses.replace(spec, options=options), {}, Path("/job"), 5, Path("/job/state"))
        assert _launch.key_problems(config, KNOWN, "sd-scripts") == []
    assert (
        _launch.key_problems({"network_rank": 3, "network_dim": "8", "sdpa": 1, "network_args": "a", "mixed_precision": "half"}, KNOWN, "x")
        != []
    )
    assert (
        len(
            _launch.key_problems(
                {"network_rank": 3, "network_dim": "8", "sdpa": 1, "network_args": "a", "mixed_precision": "half"}, KNOWN, "x"
            )
        )
        == 5
    )


def test_the_stand_in_is_python(checkout):
    ast.parse((checkout / "train_network.py").read_text())
    assert trainset.REPEATS.match("10_x")
