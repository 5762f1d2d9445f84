"""ai-toolkit: its config, its slip with control slots, its log. A stand-in prints the real lines; AITK_ROOT brings in the real source."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from comfyui_flenwheel.training import run
from comfyui_flenwheel.training.engines import _dataset, _launch, ai_toolkit
from comfyui_flenwheel.training.errors import EngineNotInstalled

from .conftest import edit_job, inside, lay, own_python, posix, seen, until
from .test_musubi import spec_of

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
KNOWN = json.loads((HERE / "ai_toolkit_0.12.26_keys.json").read_text())
GOLDEN = HERE / "ai_toolkit_golden"
OPTIONS = ({}, {"qtype": "uint3", "offload": 0.3, "low_vram": True}, {"qtype": "none"})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "Zoë's trainers" / "ai-toolkit"
    source = "".join(
        f"class {cls}:\n    def __init__(self, **kwargs):\n{''.join(f'        kwargs.get({key!r}, None){chr(10)}' for key in keys)}"
        for cls, keys in KNOWN.items()
    )
    lay(
        root,
        {
            "toolkit/config_modules.py": source,
            "extensions_built_in/diffusion_models/qwen_image/plus.py": 'arch = "qwen_image_edit_plus"\n',
            "run.py": (HERE / "fake_ai_toolkit.py").read_text(encoding="utf-8"),
            "version.py": 'VERSION = "0.12.26"\n',
            "FAKE": "ok",
        },
    )
    own_python(root, "AITK_PYTHON", monkeypatch)
    monkeypatch.setenv("AITK_ROOT", str(root))
    return root


@pytest.fixture
def job(project, tmp_path):
    made = edit_job(project, "ai_toolkit", tmp_path, tmp_path / "loras", controls=3, sample_prompts=("make it night",))
    yield made
    run.stop(made)
    run.wait(made, 20)


@posix
def test_three_control_folders_and_a_lora_at_the_end(checkout, job):
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    assert [step for step, _ in job.losses()] == list(range(1, 21)) and job.losses()[3] == (4, 0.25)
    assert [event["step"] for event in job.events() if event["kind"] == "checkpoint"] == [5, 10, 15]
    assert [step for step, _, _ in job.sampled()] == [5, 10, 15]
    process = seen(checkout)["config"]["process"][0]
    controls = [Path(folder) for folder in process["datasets"][0]["control_path"]]
    assert [folder.name for folder in controls] == ["control_1", "control_2", "control_3"]
    assert all(len(list(folder.iterdir())) == 4 for folder in controls)
    assert process["sample"]["samples"][0]["ctrl_img_3"] == str(controls[2] / "p0001.png")
    assert run.result_of(job).path.name == "Anna-edit-v001.safetensors"


@posix
def test_a_stop_saves_first_and_it_goes_on_by_itself_under_the_same_name(checkout, job):
    (checkout / "FAKE").write_text("slow")
    run.start(job)
    until(lambda: job.status().step >= 12)
    run.stop(job)
    assert run.wait(job, 20).state == "stopped"
    newest = ai_toolkit._numbered(job)[-1]
    saved = int(newest.stem[-9:])
    assert saved >= 12 and saved >= job.status().step - 2, "a stop costs next to nothing"
    cut = newest.with_name(f"{job.id}_000000019.safetensors")
    cut.write_bytes(newest.read_bytes()[:-100])  # killed while it wrote
    (checkout / "FAKE").write_text("ok")
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    last = max(number for number, event in enumerate(job.events()) if event["kind"] == "started")
    assert next(event["step"] for event in job.events()[last:] if event["kind"] == "step") == saved + 1
    told = [event.get("text") for event in job.events()]
    assert f"goes on from {newest.name}" in told and f"{cut.name} was cut off by the end of the run and is not used" in told


def test_a_training_that_does_not_save_is_ended_all_the_same(job, monkeypatch):
    control = ai_toolkit._Control(job.folder / "aitk.db", job)
    control.create()
    assert control.saved(), "nothing was learnt yet"
    job.append("started", pid=1, created=0.0, steps=20)
    job.append("step", step=3, loss=0.5)
    assert not control.saved()
    monkeypatch.setattr(ai_toolkit, "SAVE_S", 0.0)
    assert control.saved()


@posix
@pytest.mark.parametrize(
    ("plan", "code", "told"),
    [
        ("interrupted", "garbage", "did not finish its LoRA"),
        ("memory", "memory", "The memory was not enough"),
        ("unread", "data", "could not read a picture"),
        ("garbage", "garbage", "is no LoRA"),
    ],
)
def test_bad_ends_have_a_cause(checkout, job, plan, code, told):
    (checkout / "FAKE").write_text(plan)
    run.start(job)
    status = run.wait(job, 60)
    failed = [event for event in job.events() if event["kind"] == "failed"][-1]
    assert failed["code"] == code and told in status.cause, failed


@posix
def test_steps_it_skipped_are_noted(checkout, job):
    (checkout / "FAKE").write_text("skips")
    run.start(job)
    assert run.wait(job, 60).state == "done"
    assert any("a step was skipped" in event.get("text", "") for event in job.events())


def test_a_control_that_goes_missing_never_lets_the_others_slip(job):
    """ai-toolkit would make Picture 3 into Picture 2: the folders are read back, and a missing picture is made again."""
    folder, _ = _dataset.lay_out(job, ai_toolkit.LAYOUT)
    (folder / "control_2" / "p0002.png").unlink()
    _, again = _dataset.lay_out(job, ai_toolkit.LAYOUT)
    assert (folder / "control_2" / "p0002.png").is_file()
    assert [[control.path.parent.name for control in pair.controls] for pair in again.pairs] == [
        ["control_1", "control_2", "control_3"]
    ] * 4
    (folder / "control_2" / "p0009.png").write_bytes((folder / "control_2" / "p0001.png").read_bytes())
    with pytest.raises(ai_toolkit._dataset.DatasetError, match="p0009"):
        _dataset.lay_out(job, ai_toolkit.LAYOUT)


def test_keys_and_models_that_this_one_does_not_know(checkout, job, project, tmp_path):
    path = checkout / "toolkit" / "config_modules.py"
    path.write_text(path.read_text().replace("'cache_text_embeddings'", "'other'"))
    (checkout / "extensions_built_in/diffusion_models/qwen_image/plus.py").write_text("")
    with pytest.raises(EngineNotInstalled) as caught:
        ai_toolkit.AiToolkit().check(job)
    told = "\n".join(caught.value.problems)
    assert "does not know train.cache_text_embeddings" in told and "does not know the model qwen_image_edit_plus" in told
    strange = edit_job(
        project, "ai_toolkit", tmp_path, tmp_path, options={"model": "no/such/model"}, sample_prompts=("a ${HOME} of [name]",)
    )
    with pytest.raises(EngineNotInstalled) as caught:
        ai_toolkit.AiToolkit().check(strange)
    told = "\n".join(caught.value.problems)
    assert (
        "neither a folder that is there nor a name on Hugging Face" in told
        and "a sample prompt holds ${" in told
        and "holds [name]" in told
    )


@pytest.mark.parametrize(
    ("base", "options", "arch", "model", "qtype"),
    [
        ("a_2509.safetensors", {}, "qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509", "qfloat8"),
        (
            "a_2511.gguf",
            {"qtype": "uint3"},
            "qwen_image_edit_plus:2511",
            "Qwen/Qwen-Image-Edit-2511",
            "uint3|ostris/accuracy_recovery_adapters/qwen_image_edit_2511_torchao_uint3.safetensors",
        ),
        ("a", {"version": "edit", "qtype": "uint3", "recovery_adapter": ""}, "qwen_image_edit", "Qwen/Qwen-Image-Edit", "uint3"),
        ("a", {"model": "me/Edit-2509", "qtype": "uint4", "recovery_adapter": "/x"}, "qwen_image_edit_plus", "me/Edit-2509", "uint4|/x"),
    ],
)
def test_the_generations_of_qwen_image_edit(project, tmp_path, base, options, arch, model, qtype):
    job = edit_job(project, "ai_toolkit", tmp_path, tmp_path, base_model=base, options=options)
    name, problems = ai_toolkit._model(job)
    told = ai_toolkit.config(job.spec, name, Path("/job"), Path("/data"), None)["config"]["process"][0]["model"]
    assert problems == [] and (told["arch"], told["name_or_path"], told["qtype"]) == (arch, model, qtype)


def test_a_generation_that_nothing_tells_is_asked_for(project, tmp_path):
    assert "set the option version" in ai_toolkit._model(edit_job(project, "ai_toolkit", tmp_path, tmp_path, base_model="mine"))[1][0]


@pytest.mark.parametrize("architecture", list(ai_toolkit.MODELS))
def test_the_files_are_the_golden_ones(architecture):
    """Golden files are read by people: look at the difference before you replace them."""
    kind = "character" if architecture == "flux1" else "edit"
    spec = spec_of(architecture, engine="ai_toolkit", kind=kind, steps=1500)
    config = ai_toolkit.config(spec, ai_toolkit.MODELS[architecture].hub, Path("/job"), Path("/data"), None)
    config["config"]["name"] = "id"
    told = json.dumps(config, indent=1) + "\n"
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / f"{architecture}.json").write_text(told, encoding="utf-8")
    assert told == (GOLDEN / f"{architecture}.json").read_text(encoding="utf-8")


def test_every_key_is_asked_for_by_the_real_source():
    root = os.environ.get("AITK_ROOT")
    if not root:
        pytest.skip("AITK_ROOT names no checkout of ai-toolkit; the list of its keys kept here was used instead")
    real = ai_toolkit.keys_of(Path(root) / ai_toolkit.MARKER)
    assert all(set(keys) <= real[cls] for cls, keys in KNOWN.items())
    for architecture in ai_toolkit.MODELS:
        for options in OPTIONS:
            spec = spec_of(architecture, engine="ai_toolkit", kind="character" if architecture == "flux1" else "edit", options=options)
            assert ai_toolkit.block_problems(ai_toolkit.config(spec, "m", Path("/job"), Path("/data"), None), Path(root)) == []


def test_its_reader_and_loader_see_every_setting_picture_and_control(project, tmp_path):
    root = os.environ.get("AITK_ROOT")
    if not root or not any((Path(root) / name).is_dir() for name in ("venv", ".venv")):
        pytest.skip("AITK_ROOT names no checkout of ai-toolkit with a Python of its own; golden files were used instead")
    job = edit_job(project, "ai_toolkit", tmp_path, tmp_path, controls=3, sample_prompts=("make it night",), options={"qtype": "uint3"})
    folder, dataset = _dataset.lay_out(job, ai_toolkit.LAYOUT)
    path = job.folder / f"{job.id}.json"
    path.write_text(json.dumps(ai_toolkit.config(job.spec, "m", job.folder, folder, dataset)))
    python = _launch.interpreter(Path(root), ai_toolkit.PYTHON)
    said = inside(root, python, _launch.environment({}), HERE / "in_ai_toolkit.py", path)
    told = json.loads(said.rpartition("READ")[2])
    assert len(told["items"]) == 4 and {item["caption"].strip() for item in told["items"]} == {"make it night, keep the person identical"}
    for item in told["items"]:
        name = Path(item["path"]).name
        assert item["controls"] == [str(folder / f"control_{slot}" / name) for slot in (1, 2, 3)]
    settings = told["settings"]
    assert (settings["lr"], settings["steps"], settings["rank"], settings["every"]) == (1e-4, 20, 4, 5)
    assert (
        settings["scheduler"] == "flowmatch"
        and settings["arch"] == "qwen_image_edit_plus"
        and settings["controls"][0].endswith("p0001.png")
    )
    assert settings["qtype"].startswith("uint3")


def test_the_kept_keys_cover_what_is_written():
    for architecture in ai_toolkit.MODELS:
        for options in OPTIONS:
            spec = dataclasses.replace(spec_of(architecture, engine="ai_toolkit"), options=options)
            process = ai_toolkit.config(spec, "m", Path("/job"), Path("/data"), None)["config"]["process"][0]
            for block, cls in ai_toolkit.CLASSES.items():
                rows = process[block] if isinstance(process[block], list) else [process[block]]
                assert {key for row in rows for key in row} <= set(KNOWN[cls])


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ("mira:  12%|█▎        | 250/2000 [10:00<1:10:00,  2.40s/it, lr: 1.0e-04 loss: 4.123e-01]", _launch.Progress(250, 2000, 0.4123)),
        ("Caching latents:  50%|█████     | 6/12 [00:03<00:03,  2.00it/s]", None),
        ("mira:   0%|          | 0/2000 [00:00<?, ?it/s]", None),
    ],
)
def test_only_the_bar_of_the_training_counts(line, progress):
    assert ai_toolkit.read(line) == progress
