"""A server with toy models of both engines and two LoRAs, for every test that edits with Qwen-Image-Edit."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
from comfyui_flenwheel.nodes.launch import PACK, Server

HERE = Path(__file__).parent


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lora_files = module_at(HERE.parent / "flywheel" / "lora_files.py")


@pytest.fixture(scope="session")
def tiny(comfyui, tmp_path_factory):
    """A server with the toy models and two LoRAs, of different trainers. Tests may kill it if they start it again."""
    base = tmp_path_factory.mktemp("tiny")
    shutil.copytree(HERE / "tiny_qwen", base / "custom_nodes" / "tiny_qwen", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "tiny_flux.py", base / "custom_nodes" / "tiny_qwen")
    loras = base / "models" / "loras"
    loras.mkdir(parents=True)
    lora_files.save(loras / "mine.safetensors", lora_files.tensors("PEFT", seed=1, size=0.3))
    lora_files.save(loras / "angles.safetensors", lora_files.tensors("kohya and musubi", seed=2, size=0.3))
    flux = {
        f"lora_unet_double_blocks_{n}_img_attn_qkv.{part}.weight": lora_files.np.zeros((4, 4))
        for n in range(19)
        for part in lora_files.DOWN_UP
    }
    lora_files.save(loras / "flux.safetensors", flux)
    (loras / "cut.safetensors").write_bytes((loras / "mine.safetensors").read_bytes()[:-99])
    with Server(comfyui, Path(sys.executable), base, extra_args=["--whitelist-custom-nodes", PACK, "tiny_qwen"]) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_folder(tiny):
    """The toy model as Hugging Face lays one out, below this server's models/diffusers; the name of its folder."""
    for name in ("diffusers", "peft", "transformers", "accelerate"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra `diffusers`)")
    module_at(HERE.parent / "flywheel" / "editors" / "qwen_tiny.py").build(tiny.base / "models" / "diffusers" / "tiny-qwen")
    return "tiny-qwen"


@pytest.fixture(scope="session")
def few(photos, tmp_path_factory):
    """Three of the portraits: nine edits."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("obama.jpg", "obama2.jpg", "biden.jpg"):
        shutil.copy(photos / name, folder / name)
    return folder
