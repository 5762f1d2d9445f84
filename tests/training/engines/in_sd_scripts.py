"""Runs in sd-scripts' own Python, from its checkout: `in_sd_scripts.py models <folder>` | `texts <folder of images> <tokens>` | `read <dataset.toml>`.

models: FLUX.1 with one block of each kind, its autoencoder and CLIP-L with random numbers, in the engine's own classes; T5-XXL as a file of 9.5 GB
zeros that takes no room on the disk, since its size is fixed and it never runs. texts: the embeddings it would have made. read: what the engine's
own loader makes of a data set, as JSON.
"""

import argparse
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, ".")
import numpy as np
import torch
from safetensors.torch import save_file


def random_of(model, path):
    torch.manual_seed(0)
    values = {name: torch.randn(value.shape, dtype=torch.bfloat16) * 0.02 for name, value in model.state_dict().items()}
    save_file(values, str(path))


def models(folder):
    from library import flux_models
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    known = flux_models.configs["dev"]
    with torch.device("meta"):
        flux, ae = flux_models.Flux(replace(known.params, depth=1, depth_single_blocks=1)), flux_models.AutoEncoder(known.ae_params)
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))
        t5 = T5EncoderModel(
            T5Config(d_ff=10240, d_kv=64, d_model=4096, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu", vocab_size=32128)
        )
    for model, name in ((flux, "flux1-dev"), (ae, "ae"), (clip, "clip_l")):
        random_of(model, folder / f"{name}.safetensors")
    header, size = {}, 0
    for name, value in t5.state_dict().items():
        if name != "encoder.embed_tokens.weight":  # the same tensor as shared.weight
            header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [size, size := size + 2 * value.numel()]}
    head = json.dumps(header).encode()
    with (folder / "t5xxl_fp16.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + size)


def texts(folder, tokens):
    made = np.random.default_rng(0)
    for image in sorted(Path(folder).glob("*.png")):
        np.savez(
            image.with_name(f"{image.stem}_flux_te.npz"),
            l_pooled=made.normal(size=768).astype(np.float32),
            t5_out=made.normal(size=(int(tokens), 4096)).astype(np.float32),
            txt_ids=np.zeros((int(tokens), 3), np.float32),
            t5_attn_mask=np.ones(int(tokens), np.int64),
            apply_t5_attn_mask=False,
        )


def read(config):
    from library import config_util

    args = argparse.Namespace(train_data_dir=None, reg_data_dir=None, masked_loss=False, debug_dataset=False, prior_loss_weight=1.0)
    blueprint = config_util.BlueprintGenerator(config_util.ConfigSanitizer(True, True, False, True)).generate(
        config_util.load_user_config(config), args
    )
    group, _ = config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
    told = [
        {"name": Path(key).stem, "caption": info.caption, "repeats": info.num_repeats, "reg": info.is_reg}
        for dataset in group.datasets
        for key, info in dataset.image_data.items()
    ]
    print("READ" + json.dumps(told))


if __name__ == "__main__":
    {"models": lambda folder: models(Path(folder)), "texts": texts, "read": read}[sys.argv[1]](*sys.argv[2:])
