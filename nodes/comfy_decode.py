"""Decoding an image beside the next one, without ComfyUI's memory manager, which would make room by taking weights from the model at work.

A copy of the decoder does it, made once per run and known to nobody else: whatever the manager moves or unloads meanwhile, these weights stay.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import comfy.memory_management
import comfy.model_management
import comfy.sd
import torch

from ..flywheel.errors import Abandoned, OutOfRoom
from . import comfy_words

WAIT_S = 0.25  # between looks at whether the person cancelled


class Decoder:
    """A copy of what a VAE without `obstacle` decodes with, on its device. One image at a time; from any thread."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.abandoned = vae, threading.Event()
        self._free = threading.Lock()
        self._copy: Any = _copied(vae.first_stage_model, self.abandoned).to(vae.device)

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """Pixels (1, [frames,] H, W, 3) in 0..1, what `VAE.decode` makes of these latents.

        Raises:
            OutOfRoom: the decoder was let go.
            Abandoned: nobody wants the image any more.
            torch.OutOfMemoryError: memory ran out.
        """
        vae = self.vae
        if vae.latent_dim == 2 and samples.ndim == 5:
            samples = samples[:, :, 0]
        with self._free, torch.inference_mode(), comfy.model_management.cuda_device_context(vae.device):
            if self._copy is None:
                raise OutOfRoom("The decoder beside the next image was let go.")
            out = self._copy.decode(samples.to(device=vae.device, dtype=vae.vae_dtype))
            pixels = out.to(device=vae.output_device, dtype=vae.vae_output_dtype(), copy=True)
            vae.process_output(pixels)
        return pixels.movedim(1, -1)

    def let_go(self, wait: Callable[[], None]) -> None:
        """Free the copy once nobody decodes; `wait` is called while somebody does."""
        while not self._free.acquire(timeout=WAIT_S):
            wait()
        self._copy = None
        self._free.release()


def obstacle(vae: Any) -> str:
    """Why a VAE has no copy that decodes as it does; empty when it has one."""
    inner = vae.first_stage_model
    if type(vae) is not comfy.sd.VAE or "decode" in vars(vae):
        return "the VAE is another pack's"
    if comfy.memory_management.aimdo_enabled or vae.patcher.is_dynamic():
        # any thread's allocation takes pages from the model at work, unlocked
        return "ComfyUI moves weights while they are used (dynamic VRAM)"
    if comfy_words.patched(vae.patcher) or {"decode", "forward"} & set(vars(inner)):
        return "the VAE is patched"
    if getattr(inner, "comfy_has_chunked_io", False):
        return "this kind of VAE decodes piece by piece"
    if odd := {type(weight).__name__ for weight in inner.parameters()} - {"Parameter"}:
        return f"the VAE's weights are of a kind of their own ({', '.join(odd)})"
    return ""


def needed(vae: Any, latent: Sequence[int]) -> float:
    """Bytes that decoding latents of this shape beside the next image takes, by ComfyUI's estimate, the copy's weights among them."""
    return vae.memory_used_decode(latent, vae.vae_dtype) + vae.patcher.model_size()


def _copied(inner: Any, abandoned: threading.Event) -> Any:
    """All of a VAE but its encoder; each layer stops when the image was abandoned."""

    def between(*_: Any) -> None:
        if abandoned.is_set():
            raise Abandoned("The image was given up before its pixels were there.")

    made = copy.deepcopy(inner, {id(inner.encoder): None} if hasattr(inner, "encoder") else None)
    for layer in made.modules():
        layer.register_forward_pre_hook(between)
    return made
