"""What every engine owes at its end: a LoRA that says where it comes from and not where it was made; and a config that a person can use by hand.

All are run to the end: rehearsal and peft_qlora themselves, the cloud against a server on this machine, the others' stand-ins. Everything lies in
folders whose names hold a space, an apostrophe and an umlaut.
"""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.training import engines, proof, run
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training.engines import _command
from comfyui_flenwheel.training.job import Places
from safetensors import safe_open

from . import test_ai_toolkit, test_diffusers_scripts, test_kohya, test_mflux, test_musubi, test_remote
from .conftest import edit_job, posix, seen

pytestmark = pytest.mark.slow
cloud = test_remote.cloud
kohya, kohya_models = test_kohya.checkout, test_kohya.models
musubi, musubi_models = test_musubi.checkout, test_musubi.models
ai_toolkit, diffusers, mflux = test_ai_toolkit.checkout, test_diffusers_scripts.checkout, test_mflux.program
FACTS = {
    "project",
    "kind",
    "architecture",
    "base_model",
    "engine",
    "rank",
    "alpha",
    "steps",
    "instance_token",
    "class_noun",
    "dataset",
    "job",
}
BY_HAND = {  # engine to its config and how many steps it says there
    "kohya": ("train-1.toml", r"max_train_steps = (\d+)"),
    "musubi": ("train-1.toml", r"max_train_steps = (\d+)"),
    "ai_toolkit": ("{id}.json", r'"steps": (\d+)'),
    "mflux": ("train.json", r'"num_epochs": (\d+)'),
    "diffusers": ("run-train_dreambooth_lora_flux_kontext.sh", r"--max_train_steps (\d+)"),
}


@pytest.fixture
def project(tmp_path):
    return open_project(tmp_path / "Zoë's Bilder", "Anna", instance_token="ohwx_char", class_noun="person", medium="photographs")


@pytest.fixture
def made(request, project, spec, tmp_path):
    """The job of an engine on this project, with all that it needs to be done here."""

    def make(engine):
        loras = tmp_path / "Zoë's LoRAs"
        if engine == "rehearsal":
            return jobs.find_or_create(project.root, spec, Places(loras=loras))
        if engine == "peft_qlora":
            pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `diffusers`)")
            from . import peft_tiny

            model = peft_tiny.model(tmp_path / "Zoë's models" / "Qwen-Image-Edit-2509")
            return peft_tiny.job(project, peft_tiny.spec(project, peft_tiny.triplets(project), model, steps=2, save_every=1), loras)
        if engine in ("fal", "replicate"):
            request.getfixturevalue("cloud")
        else:
            request.getfixturevalue(engine)
        if engine == "kohya":
            changed = dataclasses.replace(spec, engine=engine, steps=20, save_every=5, options={})
            return jobs.find_or_create(project.root, changed, Places(loras=loras, models=(request.getfixturevalue("kohya_models"),)))
        if engine == "replicate":
            options = {**test_remote.AGREED, "destination": "me/anna"}
            changed = dataclasses.replace(spec, engine=engine, steps=20, options=options, learning_rate=4e-4)
            return jobs.find_or_create(project.root, changed, Places(loras=loras))
        models = request.getfixturevalue("musubi_models") if engine == "musubi" else tmp_path
        changes = {"fal": {"options": test_remote.AGREED}, "mflux": {"architecture": "flux2_klein_4b"}}.get(engine, {})
        changes |= {"diffusers": {"architecture": "flux1_kontext"}}.get(engine, {})
        return edit_job(project, engine, models, loras, sample_prompts=("make it night",), **changes)

    return make


def test_no_engine_is_left_out():
    assert set(BY_HAND) | {"rehearsal", "peft_qlora", "fal", "replicate"} == set(engines.ENGINES)


@posix
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", list(engines.ENGINES))
def test_the_lora_says_what_it_is_and_holds_no_path(engine, made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home of Zoë"))
    job = made(engine)
    assert run.work(job) == 0, (job.status(), job.log.read_text(encoding="utf-8")[-2000:] if job.log.is_file() else "")
    with safe_open(run.result_of(job).path, "numpy") as file:
        told = file.metadata()
    facts = {name.removeprefix("flenwheel."): value for name, value in told.items() if name.startswith("flenwheel.")}
    spec = job.spec
    assert set(facts) >= {*FACTS, "versions"} and all(facts.values()), facts
    assert (facts["instance_token"], facts["dataset"], facts["job"]) == ("ohwx_char", spec.dataset_key, job.id)
    assert facts["base_model"] == Path(spec.base_model).name and int(facts["rank"]) == spec.rank and facts["engine"] == engine
    places = [str(tmp_path), "Zoë", str(job.folder), str(job.dataset), sys.prefix, str(Path.home())]
    assert not [(name, value) for name, value in told.items() if any(place in value for place in places)]
    assert not [(name, value) for name, value in told.items() if re.search(r"(?:^|[\s\"'=:(\[,])/\w|[A-Z]:[\\/]|~/", value)]


def test_what_the_trainer_says_itself_stays():
    kept = {"ss_network_args": '{"train_blocks": "all"}', "modelspec.implementation": "https://github.com/black-forest-labs/flux"}
    kept |= {
        "base": "Qwen/Qwen-Image-Edit-2509",
        "ss_tag_frequency": '{"r10": {"left/right, 3/4 view": 12}}',
        "modelspec.date": "2026-11-29T13:49:13",
    }
    gone = {
        "a": "/home/zoe/x",
        "b": '{"dir": "/data/x y"}',
        "c": "C:\\models\\a",
        "d": '"C:\\\\models"',
        "e": r"\\nas\share",
        "f": "~/loras",
    }
    gone |= {"g": "out=/tmp/a", "h": "file:///x/y", "i": "from d:/x"}
    assert [name for name, text in {**kept, **gone}.items() if proof.names_a_place(text)] == list(gone)


@posix
@pytest.mark.parametrize("engine", list(BY_HAND))
def test_a_person_changes_the_config_and_starts_the_shown_command(engine, made, request):
    """What lies in the job's config/ is enough: nothing of ours runs."""
    job = made(engine)
    assert run.work(job) == 0, (job.status(), job.log.read_text(encoding="utf-8")[-2000:])
    name, steps = BY_HAND[engine]
    config = job.folder / "config" / name.format(id=job.id)
    text = config.read_text(encoding="utf-8")
    (whole,) = re.findall(steps, text)
    config.write_text(re.sub(steps, lambda found: found[0].replace(whole, "3"), text), encoding="utf-8")
    results = {path: path.read_bytes() for path in (job.folder / "result").iterdir()}
    beside = request.getfixturevalue(engine)
    (beside / "SEEN").unlink()
    scripts = sorted((job.folder / "config").glob("run-*.sh"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name for path in scripts][-1].startswith("run-") and len(scripts) == (3 if engine == "musubi" else 1)
    bare = {"PATH": os.environ["PATH"], "LANG": "C"}
    done = subprocess.run(["sh", scripts[-1]], env=bare, cwd="/", capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    if engine == "diffusers":
        words = seen(beside)["argv"]
        assert words[words.index("--max_train_steps") + 1] == "3" and "Steps:  100%|###  | 3/3" in done.stderr
    elif engine == "mflux":
        assert seen(beside)["config"]["training_loop"]["num_epochs"] == 3 and "100%|###  | 12/12" in done.stderr
    elif engine == "ai_toolkit":
        assert seen(beside)["config"]["process"][0]["train"]["steps"] == 3
    else:
        assert seen(beside)["config"]["max_train_steps"] == 3 and "| 3/3 [" in done.stdout
    assert results == {path: path.read_bytes() for path in results}, "what was proved stays as it is"


@posix
def test_every_program_before_the_training_can_be_started_by_hand_too(made, musubi):
    job = made("musubi")
    assert run.work(job) == 0, job.status()
    scripts = [
        job.folder / "config" / f"run-qwen_image_{what}.sh" for what in ("cache_latents", "cache_text_encoder_outputs", "train_network")
    ]
    for path in (job.folder / "dataset").rglob("*_qie*.safetensors"):
        path.unlink()
    for script in scripts:
        assert subprocess.run(["sh", script], env={"PATH": os.environ["PATH"]}, capture_output=True, timeout=60).returncode == 0, (
            script.name
        )
    assert len(list((job.folder / "dataset").rglob("*_qie_te.safetensors"))) == 4


def test_the_command_for_windows():
    command = _command.Command(
        Path("C:/Zoë & Co/venv/Scripts/python.exe"),
        ("train.py", "--config_file", "C:/100% (mine)/a b.toml", "--fast"),
        Path("C:/x"),
        {"A": "50%"},
    )
    name, text = _command.by_hand(command, windows=True)
    assert name == "run-train.cmd" and text.splitlines()[1] == "chcp 65001 >nul"
    assert text.endswith(
        'cd /d C:/x\r\nif errorlevel 1 exit /b 1\r\nset "PYTHONUTF8=1"\r\nset "A=50%%"\r\n"C:/Zoë & Co/venv/Scripts/python.exe" train.py ^\r\n'
        '  --config_file "C:/100%% (mine)/a b.toml" ^\r\n  --fast\r\n'
    )


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("--lr", "--lr"),
        ("", '""'),
        ("C:\\a&b\\", '"C:\\a&b\\\\"'),
        ("a,b;c=d", '"a,b;c=d"'),
        ("50%PATH%", '"50%%PATH%%"'),
        ('say "hi" & go', '^"say \\^"hi\\^" ^& go^"'),
        ('x\\"y', '^"x\\\\\\^"y^"'),
        ("(a) <in>|out ^", '"(a) <in>|out ^"'),
    ],
)
def test_a_word_for_the_three_readers_of_windows(word, quoted):
    """These were given to a program by the cmd of Wine 8, and came through as they are."""
    assert (
        _command.by_hand(_command.Command(Path("p"), (word,), Path("d")), windows=True)[1].splitlines()[-1].split("p ", 1)[-1].strip()
        == quoted
    )


@posix
def test_the_worker_itself_can_be_started_by_hand(made, tmp_path):
    """What docs/training.md tells: a job without ComfyUI."""
    job = made("rehearsal")
    done = subprocess.run([sys.executable, Path(run.PACK), job.folder], capture_output=True, text=True, cwd="/", timeout=120)
    assert done.returncode == 0 and job.status().state == "done", done.stderr
