"""Runs inside a ComfyUI without its server and tells what came out, as JSON: python vision_inside.py COMFYUI BASE PHOTO OTHER.

ComfyUI's own CLIP vision and DINO classes at toy size, with random weights: they tell pictures apart, and know nothing.
"""

import asyncio
import json
import sys
from pathlib import Path

COMFYUI, BASE, PHOTO, OTHER = sys.argv[1:5]
HERE = Path(__file__).resolve().parent
sys.path[:1] = [COMFYUI, str(HERE.parent)]  # ComfyUI has modules called comfy and nodes, and so have the tests
sys.argv = ["main.py", "--cpu", "--base-directory", BASE]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import torch  # noqa: E402

torch.set_num_threads(1)
torch.inference_mode().__enter__()  # as ComfyUI does around every node
import comfy.clip_vision  # noqa: E402
import conftest  # noqa: E402, F401 - gives the pack its name
import server  # noqa: E402
from PIL import Image  # noqa: E402

server.PromptServer(asyncio.new_event_loop())
from comfyui_flenwheel.nodes import host, likeness  # noqa: E402

TOY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14}
CONFIGS = {
    "clip": {
        **TOY,
        "model_type": "clip_vision_model",
        "projection_dim": 16,
        "num_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    },
    "dino": {**TOY, "model_type": "dinov2", "layer_norm_eps": 1e-6, "use_swiglu_ffn": False, "image_size": 518},
}


def model(config):
    torch.manual_seed(0)
    vision = comfy.clip_vision.ClipVisionModel(config)
    vision.load_sd({name: torch.randn(weight.shape) * 0.2 for name, weight in vision.get_sd().items()})
    return vision


def batch(*paths):
    return torch.cat([host.tensor(Image.open(path).convert("RGB").resize((112, 112))) for path in paths])


told = {}
for name, config in CONFIGS.items():
    answer = likeness.ComparePictures.execute(model(config), batch(PHOTO, OTHER), batch(PHOTO))
    told[name] = {"likeness": answer.args[0], "size": list(answer.args[1].shape), "text": answer.args[2]}
print(json.dumps(told))
