"""Runs in musubi-tuner's own Python: `in_musubi.py <task as JSON>`. Makes the caches and the base of a training, trains, and says how long a step took.

The step's end is when its optimizer has stepped; the first is not counted. Peak is what torch held of the card, of a CPU what the process holds.
"""

import argparse
import itertools
import json
import os
import resource
import struct
import sys
import threading
import time
from math import prod
from pathlib import Path

import torch
from accelerate.optimizer import AcceleratedOptimizer
from musubi_tuner import qwen_image_train_network as training
from musubi_tuner.dataset import architectures, cache_io, config_utils
from musubi_tuner.qwen_image import qwen_image_model

WORDS, PICTURE, WIDTH, CHANNELS, BLOCK = 24, 196, 3584, 16, 2**24
CUDA = torch.cuda.is_available()
task = json.loads(sys.argv[1])
laps = []


def watch(parent=os.getppid()):  # noqa: B008 - whoever started this
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)  # the benchmark was cut off


def caches():
    """What its caching programs write, by its own functions, random."""
    user = config_utils.load_user_config(task["dataset"])
    generator = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer())
    blueprint = generator.generate(user, argparse.Namespace(), architecture=architectures.ARCHITECTURE_QWEN_IMAGE_EDIT)
    for dataset in config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group).datasets:
        for _, batch in dataset.retrieve_latent_cache_batches(1):
            for item in batch:
                wide, high = item.bucket_size[0] // 8, item.bucket_size[1] // 8
                pictures = [torch.randn(CHANNELS, 1, high, wide, dtype=torch.bfloat16) for _ in range(1 + task["controls"])]
                cache_io.save_latent_cache_qwen_image(item, pictures[0], pictures[1:])
        for batch in dataset.retrieve_text_encoder_output_cache_batches(1):
            for item in batch:
                words = torch.randn(WORDS + PICTURE * task["controls"], WIDTH, dtype=torch.bfloat16)
                cache_io.save_text_encoder_output_cache_qwen_image(item, words)


def base(path):
    """A safetensors file of the transformer that is all hole. Format: https://github.com/huggingface/safetensors#format"""
    model = qwen_image_model.create_model("torch", False, False, False, False, torch.bfloat16, num_layers=task["layers"])
    header, place = {}, 0
    for name, value in model.state_dict().items():
        size = 2 * prod(value.shape)
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [place, place + size]}
        place += size
    told = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(told)) + told)
        file.truncate(8 + len(told) + place)


@torch.no_grad()
def randomise(model):
    """Zeros would draw less power and run faster."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            block = torch.empty(min(BLOCK, parameter.numel()), device=parameter.device).normal_(0, 0.02).to(parameter.dtype)
            flat = parameter.data.view(-1)
            for start in range(0, len(flat), len(block)):
                piece = flat[start : start + len(block)]
                piece.copy_(block[: len(piece)])
    return model


def timed(step):
    def stepped(self, *words, **named):
        made = step(self, *words, **named)
        if CUDA:
            torch.cuda.synchronize()
        laps.append(time.perf_counter())
        return made

    return stepped


threading.Thread(target=watch, daemon=True).start()
if CUDA and task["cap"]:
    torch.cuda.set_per_process_memory_fraction(min(1.0, task["cap"] * 2**30 / torch.cuda.get_device_properties(0).total_memory))
if not CUDA:
    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parents[2] / "tests" / "training" / "engines"))
    import bf16_in_fp32

    bf16_in_fp32.begin()
caches()
if not Path(task["base"]).is_file():
    base(Path(task["base"]))
load = training.QwenImageNetworkTrainer.load_transformer
training.QwenImageNetworkTrainer.load_transformer = lambda *words, **named: randomise(load(*words, **named))
AcceleratedOptimizer.step = timed(AcceleratedOptimizer.step)
sys.argv = [task["script"], "--config_file", task["config"]]
training.main()
each = sorted(later - earlier for earlier, later in itertools.pairwise(laps))
peak = torch.cuda.max_memory_reserved() if CUDA else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print("MEASURED" + json.dumps({"seconds": each[len(each) // 2], "peak": peak / 2**30}))
