"""Triplets of a synthetic portrait, and jobs of the built-in trainer on the smallest real Qwen-Image-Edit."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from comfyui_flenwheel.flywheel.images import png_bytes, write_json, write_whole
from comfyui_flenwheel.flywheel.project import Project
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training import trainset
from comfyui_flenwheel.training.job import Job, Places
from comfyui_flenwheel.training.spec import TrainingSpec
from PIL import Image

EDITORS = Path(__file__).resolve().parents[2] / "flywheel" / "editors"


def helper(name: str):
    """A module beside the editor's tests."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EDITORS / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def model(folder: Path, *, zero_cond_t: bool = False) -> Path:
    torch.set_num_threads(1)  # two threads on a busy machine wait for each other most of the time
    helper("qwen_tiny").build(folder, zero_cond_t=zero_cond_t)
    return folder


def triplets(project: Project, train: int = 4, *, held_out: int = 0, controls: int = 1, size=(96, 80), odd=()) -> Path:
    """A portrait at many places and, as targets, the same in other colours. `odd`: numbers of those that stand upright instead."""
    folder = project.stage("qwen_training").folder
    photo, rows = helper("portrait").portrait(), []
    for number in range(train + held_out):
        shape = size[::-1] if number in odd else size
        moved = Image.fromarray(np.roll(np.asarray(photo), 37 * number, axis=1)).resize(shape)
        pictures = {"target": Image.fromarray(255 - np.asarray(moved))}
        pictures |= {f"source_{slot}": Image.fromarray(np.roll(np.asarray(moved), slot, axis=2)) for slot in range(controls)}
        for name, picture in pictures.items():
            write_whole(folder / "images" / f"{number}_{name}.png", png_bytes(picture))
        named = [project.relative(folder / "images" / f"{number}_source_{slot}.png") for slot in range(controls)]
        rows.append(
            {
                "id": f"e{number}",
                "source_image": named[0] if controls == 1 else named,
                "target_image": project.relative(folder / "images" / f"{number}_target.png"),
                "edit_prompt": "Invert the colours" + " again" * number,
                "split": "train" if number < train else "held_out",
            }
        )
    write_json(folder / "triplets.json", rows)
    return folder


def spec(project: Project, folder: Path, base: Path, **changes) -> TrainingSpec:
    """A short run; `changes` are fields of the spec or options of the engine."""
    options = {"precision": "as stored", "optimizer": "adamw", "sample_steps": 0, "warmup": 0, "caption_dropout": 0.0}
    fields = {entry.name for entry in dataclasses.fields(TrainingSpec)}
    options |= {name: value for name, value in changes.items() if name not in fields}
    told = {
        "project": project.folder_name,
        "kind": "edit",
        "engine": "peft_qlora",
        "architecture": "qwen_image_edit",
        "base_model": str(base),
        "dataset": project.relative(folder),
        "dataset_key": trainset.read(folder).key,
        "instance_token": project.instance_token,
        "class_noun": project.class_noun,
        "rank": 4,
        "alpha": 4,
        "learning_rate": 2e-3,
        "steps": 6,
        "save_every": 3,
        "resolution": 64,
        "options": options,
    }
    return TrainingSpec(**{**told, **{name: value for name, value in changes.items() if name in fields}})


def job(project: Project, given: TrainingSpec, loras: Path | None = None) -> Job:
    return jobs.find_or_create(project.root, given, Places(loras=loras))
