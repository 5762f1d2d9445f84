"""A project with a training set made of real files, and jobs on it."""

import dataclasses
import os
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.images import png_bytes, write_json, write_whole
from comfyui_flenwheel.flywheel.project import Project, open_project
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training import run, trainset
from comfyui_flenwheel.training.job import Job, Places
from comfyui_flenwheel.training.spec import TrainingSpec
from PIL import Image

SMI = """#!/bin/sh
case "$1" in
  --query-gpu*) cat "{folder}/cards" ;;
  --query-compute-apps*) cat "{folder}/apps" 2>/dev/null ;;
esac
"""


@pytest.fixture(autouse=True)
def own_queue(tmp_path, monkeypatch):
    """Turns at the GPU are kept below the temporary folder; tests have one of their own, and so have the workers they start."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return open_project(tmp_path / "flenwheel", "Anna", instance_token="ohwx_char", class_noun="person", medium="photographs")


@pytest.fixture
def folder(project: Project) -> Path:
    return training_set(project, 12)


def training_set(project: Project, count: int) -> Path:
    """What Export Training Set writes."""
    folder = project.stage("training").folder / f"10_{project.instance_token} {project.class_noun}"
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC)
        write_whole(folder / f"image_{number:03}.png", png_bytes(picture))
        write_whole(folder / f"image_{number:03}.txt", b"photo of ohwx_char person, front view\n")
    return folder.parent


def triplets(project: Project, count: int, held_out: int = 0) -> Path:
    """What Create Correction Triplets writes: photographs and darker targets."""
    folder, rows = project.stage("qwen_training").folder, []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC)
        names = [f"data/source/v1/photo_{number}.png", f"data/corrections/v1/target_{number}.png"]
        for name, picture in zip(names, (photo, photo.point(lambda value: value // 2)), strict=True):
            write_whole(project.root / name, png_bytes(picture))
        prompt = "make it night, keep the person identical"
        split = "train" if number < count - held_out else "held_out"
        rows.append({"id": f"t{number}", "source_image": names[0], "target_image": names[1], "edit_prompt": prompt, "split": split})
    write_json(folder / "triplets.json", rows)
    return folder


@pytest.fixture
def spec(project: Project, folder: Path) -> TrainingSpec:
    """60 quick steps with a checkpoint every 10."""
    return TrainingSpec(
        project=project.folder_name,
        kind="character",
        engine="rehearsal",
        architecture="flux1",
        base_model="flux1-dev.safetensors",
        dataset=project.relative(folder),
        dataset_key=trainset.read(folder).key,
        instance_token=project.instance_token,
        class_noun=project.class_noun,
        rank=4,
        learning_rate=1e-3,
        alpha=4,
        steps=60,
        save_every=10,
        resolution=64,
        sample_prompts=("photo of ohwx_char person",),
        options={"seconds_per_step": 0.0},
    )


@pytest.fixture
def start(project, tmp_path):
    """Start the job of a spec; whatever still runs at the end of the test is ended."""
    begun: list[Job] = []

    def begin(spec: TrainingSpec, **changes) -> Job:
        job = made(project, dataclasses.replace(spec, **changes), tmp_path / "loras")
        begun.append(job)
        run.start(job)
        return job

    yield begin
    for job in begun:
        run.stop(job)
        run.wait(job, 20)


def made(project: Project, spec: TrainingSpec, loras: Path | None = None) -> Job:
    return jobs.find_or_create(project.root, spec, Places(loras=loras))


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """An nvidia-smi before all others on the PATH; call it with what it shall tell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(SMI.format(folder=folder))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def tells(cards, apps=""):
        (folder / "cards").write_text(cards)
        (folder / "apps").write_text(apps)

    return tells
