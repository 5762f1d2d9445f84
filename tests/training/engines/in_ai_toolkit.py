"""Runs in ai-toolkit's own Python, from its checkout: `in_ai_toolkit.py <config>`: what its own reader and data loader make of a config, as JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, ".")
from toolkit import config_modules
from toolkit.config import get_config
from toolkit.data_loader import AiToolkitDataset


class Model:
    """What the loader asks of the model, which is not there: sizes in steps of 32, nothing special."""

    encode_control_in_text_embeddings = True
    latent_space_version = text_embedding_space_version = "qwen"
    te_padding_side = "right"

    def get_bucket_divisibility(self):
        return 32

    def get_frame_count_snapper(self):
        return None

    def __getattr__(self, name):
        return None

    @property
    def model_config(self):
        return model


process = get_config(sys.argv[1])["config"]["process"][0]
network = config_modules.NetworkConfig(**process["network"])
save, model = config_modules.SaveConfig(**process["save"]), config_modules.ModelConfig(**process["model"])
train = config_modules.TrainConfig(**process["train"])
sample = config_modules.SampleConfig(**process["sample"])
(raw,) = config_modules.preprocess_dataset_raw_config(process["datasets"])
cached = config_modules.DatasetConfig(**raw)
assert cached.cache_latents_to_disk
pictures = config_modules.DatasetConfig(**{**raw, "cache_latents_to_disk": False})  # no model is there that could encode them
dataset = AiToolkitDataset(pictures, batch_size=train.batch_size, sd=Model())
told = []
for item in dataset.file_list:
    item.load_caption()
    controls = item.control_path if isinstance(item.control_path, list) else [item.control_path] if item.control_path else []
    told.append({"path": item.path, "caption": item.raw_caption, "controls": controls})
settings = {
    "lr": train.lr,
    "steps": train.steps,
    "rank": network.linear,
    "every": save.save_every,
    "dtype": save.dtype,
    "qtype": model.qtype,
    "arch": model.arch,
    "scheduler": train.noise_scheduler,
    "name": Path(sys.argv[1]).stem,
    "controls": [getattr(one, "ctrl_img_2", None) for one in sample.samples],
}
print("READ" + json.dumps({"items": told, "settings": settings}))
