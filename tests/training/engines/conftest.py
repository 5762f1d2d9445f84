"""Jobs for engines that are not ours: captioned images, or pairs with up to three pictures to start from; and what stands in for the engines."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from comfyui_flenwheel.flywheel.images import png_bytes, write_json, write_whole
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training import run, trainset
from comfyui_flenwheel.training.engines import ai_toolkit, diffusers_scripts, kohya, musubi
from comfyui_flenwheel.training.job import Places
from comfyui_flenwheel.training.spec import TrainingSpec
from PIL import Image

posix = pytest.mark.skipif(os.name == "nt", reason="process groups and kill -9 are POSIX")
PROMPT = "make it night, keep the person identical"


def until(happened, patience_s=30.0):
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@contextlib.contextmanager
def tended(job):
    """Whatever becomes of the test, nothing of the job works on."""
    try:
        yield
    finally:
        run.stop(job)
        run.wait(job, 60)


def pairs(project, count=4, controls=1):
    """Triplets as they are written: control n is an even grey of 40 n."""
    folder, rows = project.stage("qwen_training").folder, []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        target = f"data/corrections/v1/target_{number}.png"
        write_whole(project.root / target, png_bytes(Image.fromarray(pixels).resize((128, 96), Image.Resampling.BICUBIC)))
        sources = [f"data/source/v1/start_{number}_{slot}.png" for slot in range(1, controls + 1)]
        for slot, name in enumerate(sources, 1):
            write_whole(project.root / name, png_bytes(Image.new("RGB", (128, 96), (40 * slot,) * 3)))
        rows.append({"id": f"t{number}", "source_image": sources, "target_image": target, "edit_prompt": PROMPT, "split": "train"})
    write_json(folder / "triplets.json", rows)
    return folder


def spec_for(project, folder, engine, **changes):
    """A small training of this engine on the data in `folder`."""
    spec = TrainingSpec(
        project=project.folder_name,
        kind="edit",
        engine=engine,
        architecture="qwen_image_edit",
        base_model="qwen_image_edit_2509_bf16.safetensors",
        dataset=project.relative(folder),
        dataset_key=trainset.read(folder).key,
        instance_token=project.instance_token,
        class_noun=project.class_noun,
        rank=4,
        alpha=4,
        steps=20,
        save_every=5,
        resolution=128,
    )
    return dataclasses.replace(spec, **changes)


def edit_job(project, engine, models, loras, *, controls=1, comfyui=None, **changes):
    spec = spec_for(project, pairs(project, controls=controls), engine, **changes)
    return jobs.find_or_create(project.root, spec, Places(loras=loras, models=(models,), comfyui=comfyui))


def declared(known):
    """Source that declares these options, as sd-scripts does."""
    lines = ["import argparse", "parser = argparse.ArgumentParser()"]
    for name, told in known.items():
        words = "".join(f", {key}={value if key == 'type' else repr(value)}" for key, value in told.items())
        lines.append(f'parser.add_argument("--{name}"{words})')
    return "\n".join(lines) + "\n"


def own_python(root, variable, monkeypatch):
    """An interpreter inside a checkout, which is the one that runs the tests; and empty modules for what an engine stands on."""
    python = root / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True, exist_ok=True)
    python.symlink_to(sys.executable) if os.name != "nt" else monkeypatch.setenv(variable, sys.executable)
    wanted = (kohya.MODULES, musubi.MODULES, ai_toolkit.MODULES, diffusers_scripts.MODULES, ("torch", "bitsandbytes"))
    lay(root, {f"{name}.py": "" for names in wanted for name in names})


def seen(folder):
    """What a stand-in in this folder was given."""
    return json.loads((folder / "SEEN").read_text())


def gone(pid):
    """Ended; it may wait for its burial where no init does that."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def lay(root, files):
    """Write files by name below a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def changed(path, old, new):
    """A person changes a setting, which stands there once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, text
    path.write_text(text.replace(old, new), encoding="utf-8")


def started_by_hand(job, name):
    """What a file of a job's config/ says that a person starts in a terminal: nothing of ours runs, and nothing of our environment is there."""
    bare = {"PATH": os.environ["PATH"], "LANG": "C", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        ["sh", job.folder / "config" / name], env=bare, cwd="/", capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def inside(root, python, env, *words):
    """What a script says that runs in an engine's own Python, from its checkout."""
    done = subprocess.run([python, *words], env=env, capture_output=True, text=True, cwd=root, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def parsed(root, python, env, script, lines):
    """What the engine's own parser makes of command lines: for each the options it knows and the values it has."""
    said = inside(root, python, env, Path(__file__).parent / "in_parser.py", str(script), json.dumps(lines))
    return json.loads(said.rpartition("READ")[2])


def reads(told, settings):
    """Whether a parser knows each setting and has each value."""
    assert set(settings) <= set(told["known"]), set(settings) - set(told["known"])
    assert {name: told["args"][name] for name in settings} == settings
