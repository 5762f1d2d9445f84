"""Runs in ai-toolkit's own Python, from its checkout: `in_ai_toolkit.py <config>…`: what its own reader, model class and data loader make of each
config, as JSON. The loader is gone through once, batch by batch, as a training would; `error`: what it broke off with."""

import json
import sys
from types import SimpleNamespace

import torch

sys.path.insert(0, ".")
from toolkit import config_modules
from toolkit.config import get_config
from toolkit.data_loader import get_dataloader_from_datasets
from toolkit.util.get_model import get_model_class

torch.cuda.current_device = lambda: 0  # one of its other models asks for the card while it is imported
torch.cuda.get_device_properties = lambda *_: SimpleNamespace(warp_size=32)


def read(path):
    process = get_config(path)["config"]["process"][0]
    network, save = config_modules.NetworkConfig(**process["network"]), config_modules.SaveConfig(**process["save"])
    train, model = config_modules.TrainConfig(**process["train"]), config_modules.ModelConfig(**process["model"])
    sample = config_modules.SampleConfig(**process["sample"])
    raw = config_modules.preprocess_dataset_raw_config(process["datasets"])
    pictures = [config_modules.DatasetConfig(**row) for row in raw]
    assert all(one.cache_latents_to_disk for one in pictures)
    config_modules.validate_configs(train, model, save, pictures)
    sd = get_model_class(model)("cpu", model, dtype="bf16")
    sd.vae = sd.unet = None  # no weights are there, so nothing is encoded
    inside = [config_modules.DatasetConfig(**{**row, "cache_latents_to_disk": False, "num_workers": 0}) for row in raw]
    loader = get_dataloader_from_datasets(inside, batch_size=train.batch_size, sd=sd)
    batches, error = [], ""
    try:
        batches = [[seen(item) for item in batch.file_items] for batch in loader]
    except RuntimeError as broken:
        error = str(broken)
    return {
        "batches": batches,
        "error": error,
        "resolutions": [one.resolution for one in pictures],
        "model": type(sd).__name__,
        "several": sd.has_multiple_control_images,
        "settings": {
            "lr": train.lr,
            "steps": train.steps,
            "rank": network.linear,
            "every": save.save_every,
            "dtype": save.dtype,
            "scheduler": train.noise_scheduler,
            "qtype": model.qtype,
        },
        "samples": [
            {name: getattr(one, name) for name in ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")} for one in sample.samples
        ],
    }


def seen(item):
    """One example of a batch: its files, and how bright each control is in the tensors that the model would get."""
    controls = item.control_path if isinstance(item.control_path, list) else [item.control_path] if item.control_path else []
    tensors = item.control_tensor_list or ([] if item.control_tensor is None else [item.control_tensor])
    return {
        "path": item.path,
        "caption": item.raw_caption,
        "controls": controls,
        "greys": [round(float(tensor.mean()) * 255) for tensor in tensors],
    }


print("READ" + json.dumps([read(path) for path in sys.argv[1:]]))
