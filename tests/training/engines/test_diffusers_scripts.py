"""diffusers' example scripts: their options and their log. A stand-in prints the real lines; DIFFUSERS_ROOT brings in the real scripts."""

import json
import os
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel import lora
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training import proof, run
from comfyui_flenwheel.training.engines import _launch, diffusers_scripts
from comfyui_flenwheel.training.errors import EngineNotInstalled
from comfyui_flenwheel.training.job import Places

from ..conftest import training_set
from . import bf16_in_fp32
from .conftest import changed, declared, edit_job, lay, own_python, parsed, posix, reads, seen, spec_for, started_by_hand, until
from .test_musubi import spec_of

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
KNOWN = json.loads((HERE / "diffusers_0.40_arguments.json").read_text())


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "Zoë's trainers" / "diffusers"
    scripts = root / "examples" / "dreambooth"
    scripts.mkdir(parents=True)
    source = declared(KNOWN["flux_kontext"]) + (HERE / "fake_diffusers.py").read_text(encoding="utf-8")
    (scripts / "train_dreambooth_lora_flux.py").write_text("")
    (scripts / "train_dreambooth_lora_flux_kontext.py").write_text(source, encoding="utf-8")
    (scripts / "FAKE").write_text("ok")
    own_python(root, "DIFFUSERS_PYTHON", monkeypatch)
    monkeypatch.setenv("DIFFUSERS_ROOT", str(root))
    return scripts


@pytest.fixture
def job(project, tmp_path):
    made = edit_job(project, "diffusers", tmp_path, tmp_path / "loras", architecture="flux1_kontext")
    yield made
    run.stop(made)
    run.wait(made, 20)


@posix
def test_pairs_in_columns_and_a_lora_at_the_end(checkout, job):
    run.start(job)
    assert run.wait(job, 60).state == "done", (job.status(), job.log.read_text())
    assert [step for step, _ in job.losses()] == list(range(1, 21))
    assert [event["step"] for event in job.events() if event["kind"] == "checkpoint"] == [5, 10, 15, 20]
    words = seen(checkout)["argv"]
    assert words[words.index("--cond_image_column") + 1] == "control_1" and words[words.index("--caption_column") + 1] == "prompt"


@posix
def test_it_goes_on_from_its_last_checkpoint(checkout, job):
    (checkout / "FAKE").write_text("slow")
    run.start(job)
    until(lambda: job.status().step >= 12)
    run.stop(job)
    assert run.wait(job, 20).state == "stopped"
    (checkout / "FAKE").write_text("ok")
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    last = max(number for number, event in enumerate(job.events()) if event["kind"] == "started")
    assert next(event["step"] for event in job.events()[last:] if event["kind"] == "step") == 11


@posix
@pytest.mark.parametrize(("plan", "told"), [("nothing", "wrote no LoRA"), ("old", "Update the engine")])
def test_bad_ends(checkout, job, plan, told):
    (checkout / "FAKE").write_text(plan)
    run.start(job)
    assert told in run.wait(job, 60).cause


def test_a_script_that_is_missing_or_old_and_a_model_that_is_none(checkout, job, project, tmp_path):
    klein = edit_job(project, "diffusers", tmp_path, tmp_path, architecture="flux2_klein_4b", options={"model": str(tmp_path)}, alpha=2)
    with pytest.raises(EngineNotInstalled) as caught:
        diffusers_scripts.DiffusersScripts().check(klein)
    told = str(caught.value)
    assert (
        "has no train_dreambooth_lora_flux2_klein_img2img.py" in told
        and "has no transformer/config.json" in told
        and "alpha must be the rank" in told
    )
    for name, kind in (("qwen", "QwenImageTransformer2DModel"), ("flux", "FluxTransformer2DModel")):
        lay(tmp_path, {f"{name}/transformer/config.json": json.dumps({"_class_name": kind})})
    kontext = {"architecture": "flux1_kontext", "options": {"model": str(tmp_path / "qwen")}}
    with pytest.raises(
        EngineNotInstalled, match=r"qwen holds a QwenImageTransformer2DModel, and FLUX\.1 Kontext is a FluxTransformer2DModel"
    ):
        diffusers_scripts.DiffusersScripts().check(edit_job(project, "diffusers", tmp_path, tmp_path, **kontext))
    kontext["options"]["model"] = str(tmp_path / "flux")
    assert diffusers_scripts.DiffusersScripts().check(edit_job(project, "diffusers", tmp_path, tmp_path, **kontext))
    script = checkout / "train_dreambooth_lora_flux_kontext.py"
    script.write_text(script.read_text().replace('"--cond_image_column"', '"--other"'))
    with pytest.raises(EngineNotInstalled, match="does not know cond_image_column"):
        diffusers_scripts.DiffusersScripts().check(job)


def every_command():
    for (kind, architecture), script in diffusers_scripts.SCRIPTS.items():
        spec = spec_of(architecture, engine="diffusers", kind=kind)
        yield script, diffusers_scripts.arguments(spec, "model", Path("/data"), Path("/out"))


def test_the_kept_options_cover_every_word():
    for script, told in every_command():
        assert _launch.key_problems(told, KNOWN[script], "diffusers") == [], script


def test_the_options_are_those_of_the_real_scripts():
    root = os.environ.get("DIFFUSERS_ROOT")
    if not root:
        pytest.skip("DIFFUSERS_ROOT names no checkout of diffusers; the list of its options kept here was used instead")
    for script, told in every_command():
        real = _launch.arguments_of([Path(root) / f"examples/dreambooth/train_dreambooth_lora_{script}.py"])
        assert {name: real.get(name) for name in KNOWN[script]} == KNOWN[script]
        assert _launch.key_problems(told, real, "diffusers") == []


@pytest.mark.parametrize("script", sorted(set(diffusers_scripts.SCRIPTS.values())))
def test_the_real_scripts_read_every_word(script):
    root = os.environ.get("DIFFUSERS_ROOT")
    if not root or not any((Path(root) / name).is_dir() for name in ("venv", ".venv")):
        pytest.skip(
            "DIFFUSERS_ROOT names no checkout of diffusers with a Python of its own; the list of its options kept here was used instead"
        )
    commands = [told for name, told in every_command() if name == script]
    path = Path(root) / f"examples/dreambooth/train_dreambooth_lora_{script}.py"
    lines = [diffusers_scripts.command_line(told) for told in commands]
    for read, told in zip(
        parsed(root, _launch.interpreter(Path(root), diffusers_scripts.PYTHON), _launch.environment({}), path, lines), commands, strict=True
    ):
        reads(read, {name: value for name, value in told.items() if value is not False})


def test_words_and_lines():
    assert diffusers_scripts.command_line({"a": True, "b": False, "c": 1e-4}) == ["--a", "--c", "0.0001"]
    line = "Steps:  12%|█▏        | 60/500 [01:00<10:00,  1.20s/it, loss=0.41, lr=0.0001]"
    assert diffusers_scripts.read(line) == _launch.Progress(60, 500, 0.41)
    assert diffusers_scripts.read("Caching latents:  12%|█▏        | 60/500 [01:00<10:00,  1.20s/it]") is None


@pytest.fixture
def own_diffusers():
    """Its checkout has a Python, in which bf16_in_fp32 lies beside it, for a processor without bf16 instructions."""
    root = os.environ.get("DIFFUSERS_ROOT")
    if not root or not any((Path(root) / name).is_dir() for name in ("venv", ".venv")):
        pytest.skip("DIFFUSERS_ROOT names no checkout of diffusers with a Python of its own; a stand-in ran instead")
    with bf16_in_fp32.put_into(_launch.interpreter(Path(root), diffusers_scripts.PYTHON)):
        yield


@pytest.mark.usefixtures("own_diffusers")
def test_the_real_flux_script_trains_the_smallest_flux_and_goes_by_hand_too(project, tmp_path, monkeypatch):
    """A whole run on the CPU with the real classes, and then as a person starts it: to one step more, from the state of the last."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from . import flux_tiny

    model = tmp_path / "Zoë's models" / "FLUX.1-dev"
    flux_tiny.build(model)
    layers = diffusers.FluxTransformer2DModel.from_pretrained(model / "transformer").named_modules()
    sizes = {name: (one.out_features, one.in_features) for name, one in layers if isinstance(one, torch.nn.Linear) and "_blocks." in name}
    monkeypatch.setattr(proof, "modules", lambda _: sizes)  # those of this model, which is smaller than the one the table is of
    options = {"model": str(model), "eight_bit_adam": False}
    spec = spec_for(
        project, training_set(project, 4), "diffusers", kind="character", architecture="flux1", options=options, steps=2, save_every=1
    )
    job = jobs.find_or_create(project.root, spec, Places(loras=tmp_path / "loras"))
    assert run.work(job) == 0, (job.status(), job.log.read_text(encoding="utf-8")[-3000:])
    assert job.losses()[-1][0] == 2  # a step that takes less than a moment is not drawn
    proved = run.result_of(job)
    changed(
        job.folder / "config" / "run-train_dreambooth_lora_flux.sh",
        "--max_train_steps 2",
        "--max_train_steps 3 --resume_from_checkpoint latest",
    )
    assert " 3/3 [" in started_by_hand(job, "run-train_dreambooth_lora_flux.sh")
    made = job.folder / "out" / diffusers_scripts.RESULT
    assert len(lora.fit(lora.inspect(made), sizes, "FLUX.1").placed) == proved.layers > 0
