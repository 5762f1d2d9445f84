"""The trainers' own loaders read what we wrote. Name checkouts by SD_SCRIPTS_ROOT, MUSUBI_ROOT, AITK_ROOT, DIFFUSERS_ROOT and DIFFSYNTH_ROOT.
Each runs in its checkout's own Python (`venv` or `.venv` in it); where it has none, and for `datasets` alone, FLEN_TRAINER_PYTHON names one that has
the packages. What is not named, or cannot be imported, is skipped with the reason. What the files must be called is tested without them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel.images import content_key, open_image
from comfyui_flenwheel.flywheel.layouts import Settings, export, plan
from comfyui_flenwheel.flywheel.pairs import load_captioned, load_pairs

from .conftest import picture

pytestmark = pytest.mark.slow
STEMS = ("Anna", "Anna_1", "b 2", "b 10")

SD_SCRIPTS = """
import argparse, json, sys
sys.path.insert(0, sys.argv[1])
from library import config_util
controlnet = sys.argv[3] == "controlnet"
sanitizer = config_util.ConfigSanitizer(not controlnet, False, controlnet, True)
config = config_util.load_user_config(sys.argv[2])
blueprint = config_util.BlueprintGenerator(sanitizer).generate(config, argparse.Namespace())
group, _ = config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
told = [[info.absolute_path, info.caption, [info.cond_img_path] if controlnet else [], info.num_repeats]
        for dataset in group.datasets for info in dataset.image_data.values()]
print("TOLD" + json.dumps(told))
"""
MUSUBI = """
import argparse, json, sys
sys.path.insert(0, sys.argv[1] + "/src")
from musubi_tuner.dataset import config_utils
config = config_utils.load_user_config(sys.argv[2])
generator = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer())
blueprint = generator.generate(config, argparse.Namespace(), architecture="qie")
group = config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group)
told = []
for dataset in group.datasets:
    source = dataset.datasource
    for index in range(len(source)):
        path, image, caption, controls = source.get_image_data(index)
        told.append([path, caption, [list(control.convert("RGB").getpixel((0, 0))) for control in controls or []], dataset.num_repeats])
print("TOLD" + json.dumps(told))
"""
AI_TOOLKIT = """
import json, os, sys
os.chdir(sys.argv[1])
sys.path.insert(0, sys.argv[1])
import yaml
from toolkit.config_modules import DatasetConfig, ModelConfig, preprocess_dataset_raw_config
from toolkit.data_loader import AiToolkitDataset
from toolkit.stable_diffusion_model import StableDiffusion
model = StableDiffusion("cpu", ModelConfig(name_or_path="none", arch="qwen_image_edit_plus"))
model.vae = model.unet = None  # as before its weights are loaded
model.encode_control_in_text_embeddings = model.has_multiple_control_images = model.use_raw_control_images = True  # as its Qwen edit model says
told = []
for block in preprocess_dataset_raw_config(yaml.safe_load(open(sys.argv[2]))["datasets"]):
    dataset = AiToolkitDataset(DatasetConfig(**{**block, "cache_latents_to_disk": False}), 1, model)
    for batch in range(len(dataset)):
        for item in dataset[batch]:
            controls = [image[:, 0, 0].mul(255).round().int().tolist() for image in item.control_tensor_list or [item.control_tensor]
                        if image is not None]
            told.append([item.path, item.caption.strip(), controls, item.dataset_config.num_repeats])
print("TOLD" + json.dumps(told))
"""
DIFFUSERS = """
import json, sys
sys.path[:0] = [sys.argv[1] + "/examples/dreambooth", sys.argv[1] + "/src"]
import train_dreambooth_lora_flux_kontext as script
named = {"pretrained_model_name_or_path": "none", "dataset_name": sys.argv[2], "cache_dir": sys.argv[3], "image_column": "image",
         "cond_image_column": "control_1", "caption_column": "prompt", "instance_prompt": "x", "resolution": "256"}
args = script.parse_args([part for name, value in named.items() for part in ("--" + name, value)])
script.args = args
dataset = script.DreamBoothDataset(None, "x", None, args=args, buckets=[(256, 256)])
pixel = lambda image: image[:, 0, 0].add(1).mul(127.5).round().int().tolist()
rows = [dataset[number] for number in range(len(dataset))]
print("TOLD" + json.dumps([[pixel(row["instance_images"]), row["instance_prompt"], [pixel(row["cond_images"])]] for row in rows]))
"""
DIFFSYNTH = """
import json, sys
sys.path.insert(0, sys.argv[1])
from diffsynth.core.data.unified_dataset import UnifiedDataset
folder = sys.argv[2]
operator = UnifiedDataset.default_image_operator(folder, 1048576, None, None, 16, 16)  # as examples/qwen_image says
dataset = UnifiedDataset(folder, folder + "/metadata.json", 1, ("image", "edit_image"), operator)
rows = [dataset[number] for number in range(len(dataset))]
pixel = lambda image: list(image.getpixel((0, 0)))
print("TOLD" + json.dumps([[pixel(row["image"]), row["prompt"], [pixel(one) for one in row.get("edit_image", [])]] for row in rows]))
"""
DATASETS = """
import json, sys
import datasets
loaded = datasets.load_dataset("imagefolder", data_dir=sys.argv[1], cache_dir=sys.argv[2])
told = []
for row in loaded["train"]:
    controls = [row[name] for name in sorted(row) if name.startswith("control_")]
    told.append([list(row["image"].getpixel((0, 0))), row.get("text") or row.get("prompt"), [list(control.getpixel((0, 0))) for control in controls]])
print("TOLD" + json.dumps(told))
"""


@pytest.fixture
def folders(tmp_path):
    for slot, folder in enumerate(("target", "c1", "c2", "c3")):
        (tmp_path / folder).mkdir()
        for number, stem in enumerate(STEMS):
            image = picture(10 * slot + number, (320, 256) if slot < 2 else (256, 256))
            image.putpixel((0, 0), (slot, number, 77))
            image.save(tmp_path / folder / f"{stem}.png")
            (tmp_path / "target" / f"{stem}.txt").write_text(f"edit of {stem}")
    return tmp_path


def pairs(folders, controls):
    if not controls:
        return load_captioned(folders / "target", name="set")
    return load_pairs(folders / "target", [folders / f"c{number}" for number in range(1, controls + 1)], name="set")


def told(code, *arguments, needs=None):
    """What the trainer's loader says it read."""
    if needs and not os.environ.get(needs):
        pytest.skip(f"{needs} names no checkout")
    command = [python_of(os.environ.get(needs or "")), "-c", code, *([os.environ[needs]] if needs else []), *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    line = next((line for line in done.stdout.splitlines() if line.startswith("TOLD")), None)
    if line is None:
        lines = done.stderr.strip().splitlines()
        lacking = [line for line in lines if line.startswith(("ModuleNotFoundError", "ImportError"))]
        lacking += [line for line in lines[-1:] if "NVIDIA" in line or "CUDA" in line]
        if lacking:  # also where the trainer raises something else about it
            pytest.skip(f"the loader cannot be imported here: {lacking[-1]}")
        pytest.fail(done.stderr[-3000:])
    return json.loads(line[4:])


def python_of(checkout):
    """Its own, since one trainer's packages are of other versions than the next one's."""
    own = [python for name in ("venv", ".venv") for python in Path(checkout, name).glob("bin/python")] if checkout else []
    return str(own[0]) if own else os.environ.get("FLEN_TRAINER_PYTHON", sys.executable)


def slot_and_number(path):
    red, green, blue = open_image(Path(path)).image.getpixel((0, 0))
    assert blue == 77
    return red, green


@pytest.mark.parametrize("controls", [0, 1])
def test_sd_scripts(folders, controls):
    exported = export(plan(pairs(folders, controls)), folders / "out", "kohya sd-scripts", Settings(repeats=3, resolution=256))
    read = told(SD_SCRIPTS, exported.folder / "dataset.toml", "controlnet" if controls else "dreambooth", needs="SD_SCRIPTS_ROOT")
    seen = sorted(
        (slot_and_number(path), caption, [slot_and_number(control) for control in cond], repeats) for path, caption, cond, repeats in read
    )
    assert seen == [((0, n), f"edit of {stem}", [(1, n)][:controls], 3) for n, stem in numbered()]


@pytest.mark.parametrize("toml", ["dataset.toml", "dataset_jsonl.toml"])
@pytest.mark.parametrize("controls", [1, 2, 3])
def test_musubi(folders, controls, toml):
    exported = export(plan(pairs(folders, controls)), folders / "out", "musubi-tuner", Settings(repeats=2))
    read = told(MUSUBI, exported.folder / toml, needs="MUSUBI_ROOT")
    seen = sorted((slot_and_number(path), caption, cond, repeats) for path, caption, cond, repeats in read)
    assert seen == [((0, n), f"edit of {stem}", [[slot, n, 77] for slot in range(1, controls + 1)], 2) for n, stem in numbered()]


def square(folders):
    """Cut everything to the trainers' bucket: nothing is scaled then, so the marked pixel stays."""
    for slot in ("target", "c1"):
        for stem in STEMS:
            path = folders / slot / f"{stem}.png"
            open_image(path).image.crop((0, 0, 256, 256)).save(path)


@pytest.mark.parametrize("controls", [0, 1, 3])
def test_ai_toolkit(folders, controls):
    square(folders)
    exported = export(plan(pairs(folders, controls)), folders / "out", "ai-toolkit", Settings(repeats=1, resolution=256))
    read = told(AI_TOOLKIT, exported.folder / "dataset.yaml", needs="AITK_ROOT")
    seen = sorted((slot_and_number(path), caption, controls, repeats) for path, caption, controls, repeats in read)
    assert seen == [((0, n), f"edit of {stem}", [[slot, n, 77] for slot in range(1, controls + 1)], 1) for n, stem in numbered()]


def test_diffusers_example_script(folders):
    square(folders)
    exported = export(plan(pairs(folders, 1)), folders / "out", "diffusers and built-in")
    read = told(DIFFUSERS, exported.folder, folders / "cache", needs="DIFFUSERS_ROOT")
    assert sorted(read) == [[[0, n, 77], f"edit of {stem}", [[1, n, 77]]] for n, stem in numbered()]


@pytest.mark.parametrize("controls", [0, 1, 3])
def test_diffsynth(folders, controls):
    exported = export(plan(pairs(folders, controls)), folders / "out", "DiffSynth-Studio")
    read = told(DIFFSYNTH, exported.folder, needs="DIFFSYNTH_ROOT")
    assert sorted(read) == [[[0, n, 77], f"edit of {stem}", [[slot, n, 77] for slot in range(1, controls + 1)]] for n, stem in numbered()]


@pytest.mark.parametrize("layout", ["Hugging Face imagefolder", "diffusers and built-in"])
@pytest.mark.parametrize("controls", [0, 1, 3])
def test_datasets(folders, layout, controls):
    exported = export(plan(pairs(folders, controls)), folders / "out", layout)
    read = told(DATASETS, exported.folder, folders / "cache")
    assert sorted(read) == [[[0, n, 77], f"edit of {stem}", [[slot, n, 77] for slot in range(1, controls + 1)]] for n, stem in numbered()]


def numbered():
    return sorted((STEMS.index(stem), stem) for stem in STEMS)


def test_a_fresh_dataset_gets_a_fresh_folder(folders):
    """Trainers cache by file name: another caption or picture must never meet an old cache."""
    first = export(plan(pairs(folders, 1)), folders / "out", "musubi-tuner").folder
    (folders / "target" / "Anna.txt").write_text("another caption")
    second = export(plan(pairs(folders, 1)), folders / "out", "musubi-tuner").folder
    assert first != second and content_key(first / "dataset.toml") != content_key(second / "dataset.toml")
