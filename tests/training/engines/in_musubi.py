"""Runs in musubi-tuner's own Python (PYTHONPATH: its src): `in_musubi.py models <folder>` | `eyes <file>` | `texts <dataset.toml> <version>` | `read <dataset.toml> <version>`.

models: one block of Qwen-Image-Edit and its autoencoder with random numbers, in the engine's own classes. eyes: the text
encoder as this checkout describes it, with random numbers. texts: random text embeddings, written by the engine's own function, since its 7 B text
encoder is too much here. read: what the engine's own loader makes of a data set, as JSON.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from musubi_tuner.dataset import config_utils
from musubi_tuner.dataset.config_utils import BlueprintGenerator, ConfigSanitizer
from safetensors.torch import save_file


def random_of(model, path):
    torch.manual_seed(0)
    values = {name: torch.randn(value.shape, dtype=torch.bfloat16) * 0.02 for name, value in model.state_dict().items()}
    save_file(values, str(path))


def models(folder):
    from musubi_tuner.qwen_image import qwen_image_model, qwen_image_utils

    random_of(
        qwen_image_model.create_model("torch", False, False, False, False, torch.bfloat16, num_layers=1),
        folder / "qwen_image_edit_2509_bf16.safetensors",
    )
    vae = qwen_image_utils.AutoencoderKLQwenImage(
        base_dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True], dropout=0.0
    )
    random_of(vae, folder / "qwen_image_vae.safetensors")
    save_file({"weight": torch.zeros(1, dtype=torch.bfloat16)}, str(folder / "qwen_2.5_vl_7b.safetensors"))


def eyes(path):
    """Names and sizes are asked of the loader itself, which refuses an empty file with the whole list of what it lacks."""
    from musubi_tuner.qwen_image import qwen_image_utils
    from transformers import Qwen2_5_VLForConditionalGeneration

    class Read(Exception):
        pass

    def reading(model, *_, **__):
        torch.manual_seed(0)
        values = {}
        for name, value in model.state_dict().items():
            plain = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
            make = torch.zeros if value.numel() > 200_000_000 else torch.randn  # the table of all words is too much to draw
            values[plain] = make(value.shape, dtype=torch.bfloat16) * 0.02 + (1.0 if name.endswith("norm.weight") else 0.0)
        save_file(values, path)
        raise Read

    Qwen2_5_VLForConditionalGeneration.load_state_dict = reading
    try:
        qwen_image_utils.load_qwen2_5_vl("", torch.bfloat16, "cpu", state_dict={})
    except Read:
        print("EYES")


def group(config, version):
    from musubi_tuner.dataset import architectures

    short = {
        "edit-2509": architectures.ARCHITECTURE_QWEN_IMAGE_EDIT,
        "kontext": architectures.ARCHITECTURE_FLUX_KONTEXT,
        "klein-base-4b": architectures.ARCHITECTURE_FLUX_2_KLEIN_4B,
    }[version]
    blueprint = BlueprintGenerator(ConfigSanitizer()).generate(
        config_utils.load_user_config(config), argparse.Namespace(), architecture=short
    )
    return config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group)


def texts(config, version):
    from musubi_tuner.dataset import cache_io

    for dataset in group(config, version).datasets:
        for batch in dataset.retrieve_text_encoder_output_cache_batches(1):
            for item in batch:
                cache_io.save_text_encoder_output_cache_qwen_image(item, torch.randn(24, 3584, dtype=torch.bfloat16))


def read(config, version):
    told = []
    for dataset in group(config, version).datasets:
        for _, batch in dataset.retrieve_latent_cache_batches(1):
            for item in batch:
                controls = item.control_content or []
                told.append(
                    {
                        "name": Path(item.item_key).stem,
                        "caption": item.caption,
                        "bucket": list(item.bucket_size),
                        "controls": [int(control.mean()) for control in controls],
                        "repeats": dataset.num_repeats,
                    }
                )
    print("READ" + json.dumps(told))


if __name__ == "__main__":
    {"models": lambda folder: models(Path(folder)), "eyes": eyes, "texts": texts, "read": read}[sys.argv[1]](*sys.argv[2:])
