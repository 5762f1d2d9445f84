"""FLUX.1 Kontext and FLUX.2 klein at toy size: ComfyUI's own classes with random weights, in files that its own loaders read. Only for tests.

As in tiny_qwen, what a file does not tell (widths of text encoders and of the VAE) is made small before a file is loaded.
"""

import functools

import comfy.clip_model
import comfy.ldm.flux.model
import comfy.ldm.models.autoencoder
import comfy.ldm.modules.diffusionmodules.model as convolutions
import comfy.ops
import comfy.sd
import comfy.text_encoders.llama
import comfy.text_encoders.t5
import torch

WIDTH, HEAD, CHANNELS = 64, 128, 32  # of text, of the transformer's only head, of the VAE's first layer
T5 = {"d_model": WIDTH, "d_ff": 128, "d_kv": 32, "num_heads": 2, "num_layers": 2}
CLIP_L = {"hidden_size": WIDTH, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
QWEN3 = {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 28, "num_attention_heads": 2, "num_key_value_heads": 1}
VAE = {"double_z": True, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": CHANNELS, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
VAE |= {"attn_resolutions": [], "dropout": 0.0}
KONTEXT = {"in_channels": 16, "out_channels": 16, "vec_in_dim": WIDTH, "context_in_dim": WIDTH, "mlp_ratio": 4.0, "qkv_bias": True}
KONTEXT |= {"axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "guidance_embed": True, "txt_ids_dims": []}
KLEIN = {"in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 3 * WIDTH, "mlp_ratio": 3.0, "qkv_bias": False}
KLEIN |= {"axes_dim": [32, 32, 32, 32], "theta": 2000, "patch_size": 1, "guidance_embed": False, "global_modulation": True}
KLEIN |= {"mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3]}
PLACE = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}


def narrowed(made, narrow):
    @functools.wraps(made)
    def make(self, config, *rest, **named):
        made(self, {**config, **narrow}, *rest, **named)

    return make


def make_small():
    comfy.text_encoders.t5.T5.__init__ = narrowed(comfy.text_encoders.t5.T5.__init__, T5)
    comfy.clip_model.CLIPTextModel.__init__ = narrowed(comfy.clip_model.CLIPTextModel.__init__, CLIP_L)
    comfy.text_encoders.llama.Qwen3_4BConfig = functools.partial(comfy.text_encoders.llama.Qwen3_4BConfig, **QWEN3)
    for name in ("Encoder", "Decoder"):
        whole = getattr(convolutions, name)
        setattr(convolutions, name, lambda whole=whole, **given: whole(**{**given, "ch": CHANNELS}))
    detect = comfy.sd.detect_te_model  # knows Qwen3-4B by its width
    comfy.sd.detect_te_model = lambda state: comfy.sd.TEModel.QWEN3_4B if "model.layers.27.mlp.up_proj.weight" in state else detect(state)


def transformer(config, depth=1):
    return comfy.ldm.flux.model.Flux(
        hidden_size=sum(config["axes_dim"]), num_heads=1, depth=depth, depth_single_blocks=1, **{**config, **PLACE}
    )


def kontext_vae():
    parts = {"encoder": convolutions.Encoder(**VAE, z_channels=16), "decoder": convolutions.Decoder(**VAE, z_channels=16)}
    return torch.nn.ModuleDict(parts)


def klein_vae():
    return comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig={**VAE, "z_channels": 32, "batch_norm_latent": True}, embed_dim=32)


def files(randomised):
    """Folder and name to what makes the weights; `randomised` is that of tiny_qwen."""
    make_small()

    def of(build, seed):
        return lambda: {name: weight for name, weight in randomised(build(), seed, 1.0).items() if "num_batches" not in name}

    def halved(build, seed):
        return lambda: {name: weight.to(torch.bfloat16) for name, weight in randomised(build(), seed, 1.0).items()}

    return {
        ("diffusion_models", "tiny_kontext.safetensors"): of(lambda: transformer(KONTEXT), 3),
        ("diffusion_models", "tiny_klein.safetensors"): of(lambda: transformer(KLEIN), 4),
        ("text_encoders", "tiny_clip_l.safetensors"): of(
            lambda: comfy.clip_model.CLIPTextModel(
                {"eos_token_id": 49407, "hidden_act": "quick_gelu", "max_position_embeddings": 77}, **PLACE
            ),
            5,
        ),
        ("text_encoders", "tiny_t5.safetensors"): halved(
            lambda: comfy.text_encoders.t5.T5(
                {"vocab_size": 32128, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5"},
                torch.float32,
                "cpu",
                comfy.ops.disable_weight_init,
            ),
            6,
        ),
        ("text_encoders", "tiny_qwen3.safetensors"): halved(
            lambda: comfy.text_encoders.llama.Qwen3_4B({}, torch.float32, "cpu", comfy.ops.disable_weight_init), 7
        ),
        ("vae", "tiny_ae.safetensors"): of(kontext_vae, 8),
        ("vae", "tiny_flux2_vae.safetensors"): of(klein_vae, 9),
    }
