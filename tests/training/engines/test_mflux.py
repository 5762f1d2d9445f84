"""mflux: what it is given and what is taken from it. A stand-in draws its bar; MFLUX_ROOT brings in the real reader of its settings."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel import lora
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training import run
from comfyui_flenwheel.training.engines import _dataset, _launch, mflux
from comfyui_flenwheel.training.errors import EngineNotInstalled

from ..conftest import training_set
from .conftest import edit_job, lay, posix, seen, spec_for, until
from .test_musubi import spec_of

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
INSTALLED = shutil.which(os.environ.get("MFLUX_TRAIN") or "mflux-train")


@pytest.fixture
def program(tmp_path, monkeypatch):
    folder = tmp_path / "Zoë's mflux"
    folder.mkdir()
    path = folder / "mflux-train"
    path.write_text(f"#!{sys.executable}\n" + (HERE / "fake_mflux.py").read_text(encoding="utf-8"), encoding="utf-8")
    path.chmod(0o755)
    (folder / "FAKE").write_text("ok")
    monkeypatch.setenv("MFLUX_TRAIN", str(path))
    return folder


@pytest.fixture
def job(project, tmp_path):
    made = edit_job(project, "mflux", tmp_path, tmp_path / "loras", architecture="flux2_klein_4b", steps=18, save_every=5)
    yield made
    run.stop(made)
    run.wait(made, 20)


@posix
def test_whole_rounds_are_trained_and_the_lora_comes_out_of_the_last_zip(program, job):
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    notes = [event["text"] for event in job.events() if event["kind"] == "note"]
    assert "mflux counts whole rounds: it makes 20 steps" in notes
    assert [event["step"] for event in job.events() if event["kind"] == "checkpoint"] == [5, 10, 15, 20]
    made = run.result_of(job)
    assert job.status().step == 20 and made.layers == 1
    assert lora.inspect(made.path).metadata["flenwheel.versions"] == "mflux of unknown version", "none is invented"
    assert "Training config validated" in job.log.read_text(encoding="utf-8")


@posix
def test_its_version_is_that_of_the_environment_the_program_lies_in(program, job, tmp_path, monkeypatch):
    (program / "python").symlink_to(sys.executable)
    lay(program, {f"{name}-9.8.dist-info/METADATA": f"Name: {name}\nVersion: 9.8\n" for name in ("mflux", "mlx")})
    linked = tmp_path / "mflux-train"
    linked.symlink_to(program / "mflux-train")  # as uv puts it on the PATH
    monkeypatch.setenv("MFLUX_TRAIN", str(linked))
    told = mflux.Mflux().versions(job)
    assert "Python 3." in told and "mflux 9.8, mlx 9.8" in told and str(tmp_path) not in told
    assert any("mflux 9.8" in fact for fact in mflux.Mflux().check(job))
    lay(program, {"mflux-9.8.dist-info/METADATA": "Name: mflux\nVersion: 0.9.6\n"})
    with pytest.raises(EngineNotInstalled, match=r"mflux 0\.9 is too old: it needs 0\.18 or newer"):
        mflux.Mflux().check(job)


@posix
def test_a_stop_a_damaged_zip_and_on(program, job):
    (program / "FAKE").write_text("slow")
    run.start(job)
    until(lambda: job.status().checkpoint >= 10)
    run.stop(job)
    assert run.wait(job, 20).state == "stopped"
    newest = mflux._checkpoints(job)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    (program / "FAKE").write_text("ok")
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    assert seen(program)["argv"][-1].endswith("0000005_checkpoint.zip")


@posix
def test_an_end_without_a_lora_is_none(program, job):
    (program / "FAKE").write_text("stops")
    run.start(job)
    assert "did not finish its LoRA" in run.wait(job, 60).cause


def test_absent_and_what_it_cannot_do(job, project, tmp_path, monkeypatch):
    monkeypatch.setenv("MFLUX_TRAIN", str(tmp_path / "none"))
    with pytest.raises(EngineNotInstalled, match="mflux-train was not found at"):
        mflux.Mflux().check(job)
    odd = edit_job(project, "mflux", tmp_path, tmp_path, architecture="flux2_klein_4b", alpha=2, gradient_accumulation=2)
    with pytest.raises(EngineNotInstalled) as caught:
        mflux.Mflux().check(odd)
    assert "alpha must be the rank" in str(caught.value) and "no gradient accumulation" in str(caught.value)


def test_the_file_is_the_golden_one():
    told = json.dumps(mflux.config(spec_of("flux2_klein_4b", engine="mflux"), Path("/data"), Path("/job/out"), 30), indent=1) + "\n"
    golden = HERE / "mflux_golden.json"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text(told)
    assert told == golden.read_text()


def test_mflux_itself_reads_the_settings_and_finds_the_pairs(job):
    root = os.environ.get("MFLUX_ROOT")
    if not root:
        pytest.skip("MFLUX_ROOT names no checkout of mflux; a golden file was used instead")
    folder, _ = _dataset.lay_out(job, mflux.LAYOUT)
    path = job.folder / "train.json"
    path.write_text(json.dumps(mflux.config(job.spec, folder, job.folder / "out", 4)))
    script = (
        "import sys, types, importlib.util, json\n"
        "from pathlib import Path\n"
        f"base = Path({root!r}) / 'src/mflux/models/common/training/state'\n"
        "names = 'mflux mflux.models mflux.models.common mflux.models.common.training mflux.models.common.training.state'.split()\n"
        "for name in names: sys.modules[name] = types.ModuleType(name)\n"  # its packages import MLX, its reader does not
        "sys.modules[names[-1]].__path__ = [str(base)]\n"
        "from mflux.models.common.training.state.training_spec import TrainingSpec\n"
        "told = TrainingSpec.resolve(config_path=sys.argv[1], resume_path=None, create_output_dir=False)\n"
        "print(json.dumps([told.model, told.is_edit, len(told.data), told.data[0].prompt, len(told.lora_layers.targets), told.training_loop.num_epochs]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["flux2-klein-base-4b", True, 4, "make it night, keep the person identical", 10, 5]


@pytest.mark.parametrize("architecture", mflux.BLOCKS)
@pytest.mark.parametrize("kind", ["edit", "character"])
def test_an_installed_mflux_takes_the_settings(project, tmp_path, kind, architecture):
    """Its own dry run, started as the engine starts it."""
    if not INSTALLED:
        pytest.skip("mflux-train is neither installed nor named by MFLUX_TRAIN; a golden file was used instead")
    if kind == "edit":
        job = edit_job(project, "mflux", tmp_path, tmp_path, architecture=architecture)
    else:
        job = jobs.find_or_create(
            project.root, spec_for(project, training_set(project, 4), "mflux", kind="character", architecture=architecture)
        )
    folder, dataset = _dataset.lay_out(job, mflux.LAYOUT)
    path = job.folder / "train.json"
    path.write_text(json.dumps(mflux.config(job.spec, folder, job.folder / "out", len(dataset.pairs))))
    command = _launch.Command(Path(INSTALLED), ("--config", str(path), "--dry-run"), job.folder)
    _launch.launch(command, job, read=lambda _: None)
    assert "Training config validated" in job.log.read_text(encoding="utf-8")
    assert re.search(r"\bmflux \d+\.\d", mflux.Mflux().versions(job))


def test_only_the_bar_with_the_right_end_counts(job):
    assert mflux._read(job, " 25%|##  | 3/20 [00:10<00:10,  2.40s/it]", 20) == _launch.Progress(3, 20)
    assert mflux._read(job, " 25%|##  | 3/40 [00:10<00:10,  2.40s/it]", 20) is None
