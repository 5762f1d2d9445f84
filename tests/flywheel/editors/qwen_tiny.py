"""The smallest Qwen-Image-Edit there is: the real classes with random weights, 6 MB, made in a second and without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CLASS = "QwenImageEditPlusPipeline"
HEADS, HEAD, HIDDEN = 2, 32, 64  # every width a multiple of 64, as 4-bit layers need it
SCHEDULER = {  # the real one; the class's own defaults are not Qwen's
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}


def build(folder: Path, *, zero_cond_t: bool = False, layers: int = 2) -> Any:
    """Write the model folder; returns its pipeline."""
    import diffusers
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    empty = getattr(diffusers, CLASS)(scheduler=None, vae=None, text_encoder=None, tokenizer=None, processor=None, transformer=None)
    tokenizer = _tokenizer(empty.prompt_template_encode)
    ids = {special: tokenizer.convert_tokens_to_ids(special) for special in SPECIAL}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=12845056, patch_size=14, temporal_patch_size=2, merge_size=2),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template="{% for m in messages %}{{m.content}}{% endfor %}",
    )
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 4, 8]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    text_encoder = Qwen2_5_VLForConditionalGeneration(config).eval()
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=HIDDEN,
        axes_dims_rope=(8, 12, 12),
        zero_cond_t=zero_cond_t,
    ).eval()
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()
    pipeline = getattr(diffusers, CLASS)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        processor=processor,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tokenizer(template: str) -> Any:
    """Trained on the model's own template, so that what comes before the prompt is as long as in the real tokenizer: 64 tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trained.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1200, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    words = template
    for special in SPECIAL:
        words = words.replace(special, "\n")
    trained.train_from_iterator(
        [words.replace("{}", "")] * 50 + ["system\nuser\nassistant\nPicture 1: Picture 2: Picture 3: "] * 20, trainer
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        additional_special_tokens=SPECIAL[1:],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=131072,
    )


def linears(transformer: Any) -> dict[str, tuple[int, int]]:
    """Name to (out, in) of every linear layer."""
    return {
        name: (layer.out_features, layer.in_features) for name, layer in transformer.named_modules() if isinstance(layer, torch.nn.Linear)
    }


def lora_file(path: Path, modules: dict[str, tuple[int, int]], *, rank: int = 4, seed: int = 1, scale: float = 0.1) -> Path:
    """A LoRA for these layers in the plainest style."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (out, into) in modules.items():
        state[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(rank, into, generator=generator) * scale
        state[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * scale
    save_file(state, path)
    return path
