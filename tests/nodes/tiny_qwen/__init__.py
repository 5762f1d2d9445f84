"""The real Qwen-Image-Edit classes of ComfyUI at toy size, with random weights: a custom node pack that tests put into a server of theirs.

ComfyUI's loaders read the number of blocks from a file and take all widths for granted, so this pack makes those widths small before any
file is loaded, and writes the files. Everything else is ComfyUI's own: loaders, tokenizer, model code, sampler, VAE. Only for tests.
"""

import contextlib
import functools
import importlib
import json
import time
from pathlib import Path

import comfy.ldm.qwen_image.model
import comfy.ldm.wan.vae
import comfy.ops
import comfy.quant_ops
import comfy.supported_models
import comfy.text_encoders.llama
import comfy.text_encoders.qwen_vl
import folder_paths
import safetensors.torch
import torch
from PIL import Image, ImageChops

WIDTH, BLOCKS, TEXT = 64, 2, 64
DIT = {"attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": TEXT, "axes_dims_rope": (8, 12, 12)}
LLAMA = {"hidden_size": TEXT, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
VISION = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "num_layers": 2}


def make_small():
    comfy.supported_models.QwenImage.unet_extra_config = DIT
    comfy.text_encoders.llama.Qwen25_7BVLI_Config = functools.partial(comfy.text_encoders.llama.Qwen25_7BVLI_Config, **LLAMA)
    vision = comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer
    comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer = lambda **given: vision(**{**given, **VISION})


def randomised(module, seed, size):
    torch.manual_seed(seed)
    state = module.state_dict()
    for name, weight in state.items():
        if weight.ndim >= 2:
            state[name] = torch.randn(weight.shape) * size / max(1, weight[0].numel()) ** 0.5
        elif weight.numel():
            state[name] = torch.zeros(weight.shape) if name.endswith("bias") else torch.ones(weight.shape)
    return {name: weight.contiguous() for name, weight in state.items()}


def write(kind, name, state):
    path = Path(folder_paths.get_folder_paths(kind)[0]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        safetensors.torch.save_file(state(), path)
    return path


def dit(method):
    return randomised(
        comfy.ldm.qwen_image.model.QwenImageTransformer2DModel(
            num_layers=BLOCKS, default_ref_method=method, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init, **DIT
        ),
        0,
        1.0,
    )


def text_encoder():
    encoder = comfy.text_encoders.llama.Qwen25_7BVLI({}, torch.float32, "cpu", comfy.ops.disable_weight_init)
    return {name: weight.to(torch.bfloat16) if "embed_tokens" in name else weight for name, weight in randomised(encoder, 1, 1.0).items()}


def vae():
    return randomised(
        comfy.ldm.wan.vae.WanVAE(
            dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True], dropout=0.0
        ),
        2,
        1.0,
    )


def quantised(kind):
    """The 2511 file with the blocks' layers in one of ComfyUI's formats of 8 bits, marked as Comfy-Org's files are."""
    layout = comfy.quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"]
    state = {}
    for name, weight in safetensors.torch.load_file(
        folder_paths.get_full_path_or_raise("diffusion_models", "tiny_2511.safetensors")
    ).items():
        if name.startswith("transformer_blocks") and name.endswith(".weight") and weight.ndim == 2:
            how = {"scale": "recalculate"} if kind.startswith("float8") else {}
            state |= comfy.quant_ops.QuantizedTensor.from_float(weight, layout, **how).state_dict(name)
            state[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(
                list(json.dumps({"format": kind}).encode()), dtype=torch.uint8
            )
        else:
            state[name] = weight
    return write("diffusion_models", f"tiny_2511_{kind}.safetensors", lambda: {name: tensor.contiguous() for name, tensor in state.items()})


def checkpoint():
    """A checkpoint that holds the 2511 model and neither text encoder nor VAE."""
    weights = safetensors.torch.load_file(folder_paths.get_full_path_or_raise("diffusion_models", "tiny_2511.safetensors"))
    return write(
        "checkpoints", "tiny_2511.safetensors", lambda: {f"model.diffusion_model.{name}": weight for name, weight in weights.items()}
    )


torch.set_num_threads(1)  # at this size threads only wait for each other
make_small()
write("diffusion_models", "tiny_2511.safetensors", lambda: dit("index_timestep_zero"))
write("diffusion_models", "tiny_2509.safetensors", lambda: dit("index"))
write("text_encoders", "tiny_text_encoder.safetensors", text_encoder)
write("vae", "tiny_vae.safetensors", vae)
if Path(__file__).with_name("tiny_flux.py").is_file():  # the test server lays it beside this file
    from . import tiny_flux

    for (kind, name), state in tiny_flux.files(randomised).items():
        write(kind, name, state)


class OutOfMemory:
    """Passes an editor on and lets the next `times` blocks of either engine's transformer run out of memory."""

    left = 0
    RETURN_TYPES, FUNCTION, CATEGORY = ("FLEN_EDITOR",), "arm", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"editor": ("FLEN_EDITOR",), "times": ("INT", {"default": 0, "max": 10**9})}}

    def arm(self, editor, times):
        OutOfMemory.left = times
        for block in blocks_of(editor):
            if not hasattr(block, "whole"):
                block.whole, block.forward = block.forward, OutOfMemory.forward
        return (editor,)

    @staticmethod
    def forward(block, *given, **named):
        OutOfMemory.left -= 1
        if OutOfMemory.left >= 0:
            raise torch.cuda.OutOfMemoryError("simulated")
        return block.whole(*given, **named)


def blocks_of(editor):
    """The classes of transformer block an editor may use."""
    blocks = [comfy.ldm.qwen_image.model.QwenImageTransformerBlock]
    if editor.name == "qwen_diffusers":
        from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock

        blocks.append(QwenImageTransformerBlock)
    return blocks


class Slow:
    """Passes an editor on and lets every block take so long, as a real model's does; when each begins is written to output/blocks.txt. 0 undoes it."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("FLEN_EDITOR",), "slow", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"editor": ("FLEN_EDITOR",), "seconds": ("FLOAT", {"default": 0.0})}}

    def slow(self, editor, seconds):
        told = Path(folder_paths.get_output_directory()) / "blocks.txt"
        for block in blocks_of(editor):
            quick = getattr(block, "quick", None) or block.forward
            block.quick = block.forward = quick

            def forward(self, *given, quick=quick, **named):
                with told.open("a") as file:
                    print(time.time(), file=file)
                time.sleep(seconds)
                return quick(self, *given, **named)

            if seconds:
                block.forward = forward
        return (editor,)


class Moves:
    """Passes an editor on whose results are the photo itself, moved by so many px: what edit models do to the parts they leave alone."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("FLEN_EDITOR",), "wrap", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"editor": ("FLEN_EDITOR",), "right": ("INT", {"default": 0})}}

    def wrap(self, editor, right):
        return (MovingEditor(editor, right),)


class MovingEditor:
    def __init__(self, editor, right):
        self.editor, self.right, self.name, self.controls = editor, right, editor.name, editor.controls

    def fingerprint(self):
        return {**self.editor.fingerprint(), "moved": str(self.right)}

    @contextlib.contextmanager
    def session(self):
        with self.editor.session() as edit:

            def moving(request, tick):
                made = edit(request, tick)
                photo = Image.open(request.controls[0].path).convert("RGB").resize(made.image.size)
                image = ImageChops.offset(photo, self.right, 0)
                registration = importlib.import_module(type(made).__module__.removesuffix("editors") + "registration")
                return type(made)(image, {**made.notes, **registration.noted(photo, image)})

            yield moving


class Nothing:
    """An IMAGE without pixels, or a batch without images: what a crop or a filter of another pack may leave."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": ("INT", {"default": 1, "min": 0}), "height": ("INT", {"default": 0, "min": 0})}}

    def make(self, count, height):
        return (torch.zeros(count, height, 64, 3),)


NODE_CLASS_MAPPINGS = {"TinyOutOfMemory": OutOfMemory, "TinyMoves": Moves, "TinySlow": Slow, "TinyNothing": Nothing}
