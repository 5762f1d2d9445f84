"""An engine's own Python, looked into before the training: real interpreters that lack something, do not run, or are for another card."""

import sys

import pytest
from comfyui_flenwheel.training.engines import _environment, diffusers_scripts, kohya
from comfyui_flenwheel.training.errors import EngineNotInstalled

from .conftest import edit_job, lay, posix
from .test_diffusers_scripts import checkout as diffusers_checkout  # noqa: F401 - fixtures
from .test_kohya import checkout, job, models  # noqa: F401

CPU_ONLY = {"torch/__init__.py": "raise AssertionError('nothing is imported')\n", "torch/version.py": "cuda: Optional[str] = None\n"}


def look(root, *modules):
    return _environment.look(sys.executable, root, modules, "-r requirements.txt")


def test_what_is_lacking_is_named_with_the_command(tmp_path):
    lay(
        tmp_path,
        CPU_ONLY | {"here.py": "", "here-1.2.dist-info/METADATA": "Name: here\n", "diffusers-9.8.dist-info/METADATA": "Version: 9.8\n"},
    )
    found = look(tmp_path, "here", "not_here", "nor_here")
    assert found.problems == (f"{sys.executable} lacks not_here, nor_here: start it with -m pip install -r requirements.txt",)
    assert found.versions["Python"] and found.versions["diffusers"] == "9.8" and "diffusers 9.8" in str(found)
    assert look(tmp_path, "here").problems == ()


@posix
def test_a_pytorch_for_the_processor_is_refused_where_there_is_a_card(tmp_path, smi):
    lay(tmp_path, CPU_ONLY)
    smi("GPU-1, NVIDIA GeForce RTX 4090, 24564, 24000")
    (problem,) = look(tmp_path).problems
    assert "made for the processor only" in problem and "RTX 4090" in problem
    (tmp_path / "torch" / "version.py").write_text("cuda: Optional[str] = '12.8'\n")
    assert look(tmp_path).problems == ()


@posix
@pytest.mark.parametrize(("script", "told"), [("#!/bin/sh\necho no such library >&2; exit 3\n", "no such library"), ("", "does not run")])
def test_an_interpreter_that_does_not_run_is_told(tmp_path, script, told):
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o755)
    (problem,) = _environment.look(python, tmp_path, (), "x").problems
    assert told in problem and "make this environment anew" in problem


@posix
@pytest.mark.slow
def test_preflight_tells_it_with_all_the_rest(checkout, job):  # noqa: F811
    (checkout / "voluptuous.py").unlink()
    (checkout / "toml.py").unlink()
    next(path for path in job.places.models[0].glob("ae.*")).unlink()
    with pytest.raises(EngineNotInstalled) as refused:
        kohya.Kohya().check(job)
    told = str(refused.value)
    assert "lacks toml, voluptuous" in told and "requirements.txt" in told and "ae.safetensors is not in models/vae" in told


@posix
@pytest.mark.slow
def test_diffusers_older_than_its_scripts_is_refused(diffusers_checkout, project, tmp_path):  # noqa: F811
    root = diffusers_checkout.parents[1]
    lay(root, {"diffusers-0.31.0.dist-info/METADATA": "Name: diffusers\nVersion: 0.31.0\n"})
    script = diffusers_checkout / "train_dreambooth_lora_flux_kontext.py"
    script.write_text(script.read_text() + '\n\ndef check_min_version(_):\n    pass\n\n\ncheck_min_version("0.40.0.dev0")\n')
    with pytest.raises(EngineNotInstalled, match=r"wants diffusers 0\.40\.0 or newer, and 0\.31\.0 is installed"):
        diffusers_scripts.DiffusersScripts().check(edit_job(project, "diffusers", tmp_path, tmp_path, architecture="flux1_kontext"))
