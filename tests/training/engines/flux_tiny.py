"""The smallest FLUX.1-dev there is: the real classes with random weights, 2 MB, made in a second and without a network."""

import string
from pathlib import Path
from typing import Any

import torch

SCHEDULER = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, "shift": 3.0}


def build(folder: Path) -> Any:
    """Write the model folder; returns its pipeline."""
    import diffusers
    import transformers
    from tokenizers import pre_tokenizers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{letter}</w>" for letter in alphabet)]
    clip = transformers.CLIPTokenizer(vocab={letter: number for number, letter in enumerate(letters)}, merges=[], model_max_length=77)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in string.printable if not letter.isspace()]
    pieces += [(f"<extra_id_{number}>", 0.0) for number in range(99, -1, -1)]
    t5 = transformers.T5TokenizerFast(vocab=pieces, model_max_length=512)
    words = transformers.CLIPTextConfig(
        vocab_size=len(letters),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    long = transformers.T5Config(
        vocab_size=len(t5), d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=128,  # by which ComfyUI knows it
        num_attention_heads=1,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    vae = diffusers.AutoencoderKL(
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1159,
        scaling_factor=0.3611,
    )
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **SCHEDULER),
        vae=vae.eval(),
        text_encoder=transformers.CLIPTextModel(words).eval(),
        tokenizer=clip,
        text_encoder_2=transformers.T5EncoderModel(long).eval(),
        tokenizer_2=t5,
        transformer=transformer.eval(),
    )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
