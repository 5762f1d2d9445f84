"""Pictures to latents and back: one frame of a video VAE, packed two by two as the transformer wants it.

Latents are (B, 16, 1, H/8, W/8), fp32, normalised by the VAE's own mean and deviation. Packed they are (B, H/16 * W/16, 64).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

PATCH = 16  # px per token: 8 of the VAE times 2 of the packing


def single_frame(vae: Any) -> int:
    """Make the VAE's causal 3-D convolutions compute a lone frame in 2-D; returns how many.

    A lone frame is padded with two empty ones, so only the last slice of a kernel ever meets it. Exact, and 2.4 to 2.7 times faster. On a CPU the
    normalisation too is computed another way: torch's norm over channels took more than half of the time that was left.
    """
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d, QwenImageRMS_norm

    convolutions = [module for module in vae.modules() if isinstance(module, QwenImageCausalConv3d)]
    for convolution in convolutions:
        convolution.forward = MethodType(_convolve, convolution)
    for norm in [module for module in vae.modules() if isinstance(module, QwenImageRMS_norm)]:
        norm.forward = MethodType(_normalise, norm)
    return len(convolutions)


def _convolve(self: Any, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
    if x.shape[2] != 1 or cache_x is not None or self.stride[0] != 1:
        return type(self).forward(self, x, cache_x)
    pad = self._padding[:4]
    frame = F.pad(x[:, :, 0], pad) if any(pad) else x[:, :, 0]
    return F.conv2d(frame, self.weight[:, :, -1], self.bias, self.stride[1:], 0, self.dilation[1:], self.groups).unsqueeze(2)


def _normalise(self: Any, x: torch.Tensor) -> torch.Tensor:
    if x.device.type != "cpu" or not self.channel_first:
        return type(self).forward(self, x)
    wide = x.float()
    length = wide.square().sum(dim=1, keepdim=True).sqrt_().clamp_min_(1e-12)
    return (wide / length).to(x.dtype) * self.scale * self.gamma + self.bias


@torch.no_grad()
def encode(vae: Any, picture: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Latents (1, 16, 1, H/8, W/8) of a picture at `size` (width, height in px, multiples of 16): the mode, so always the same."""
    pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), dtype=np.float32) / 127.5 - 1
    frame = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, None].to(vae.device, vae.dtype)
    mean, deviation = _statistics(vae)
    return (vae.encode(frame).latent_dist.mode().float() - mean) / deviation


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pictures (B, H, W, 3), fp32 in 0…1 on the CPU; not a number where the latents are none."""
    mean, deviation = _statistics(vae)
    frames = vae.decode((latents * deviation + mean).to(vae.dtype), return_dict=False)[0][:, :, 0]
    return (frames.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()


def pictures(pixels: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(one) for one in (pixels * 255).round().to(torch.uint8).numpy()]


def _statistics(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean, deviation = (
        torch.tensor(numbers, dtype=torch.float32, device=vae.device).view(shape)
        for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, 1, h, w) to (B, h/2 * w/2, 4 C): each token is a square of two by two."""
    batch, channels, _, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), 4 * channels)


def unpack(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The reverse of `pack` for a picture of `size` (width, height in px)."""
    batch, _, channels = tokens.shape
    width, height = size[0] // PATCH, size[1] // PATCH
    squares = tokens.reshape(batch, height, width, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(batch, channels // 4, 1, 2 * height, 2 * width)


def shape_of(size: tuple[int, int]) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens of a picture of `size` px: what the transformer's positions are made of."""
    return 1, size[1] // PATCH, size[0] // PATCH


class Preview:
    """Quick small pictures of unfinished latents: a linear map to colours, fitted to a picture whose latents are known."""

    def __init__(self, latents: torch.Tensor, picture: Image.Image) -> None:
        cells = latents[0, :, 0].float().cpu()  # (16, h, w)
        colours = np.asarray(picture.convert("RGB").resize((cells.shape[2], cells.shape[1]), Image.Resampling.BOX), dtype=np.float32)
        flat = cells.flatten(1).T
        known = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
        self.map = torch.linalg.lstsq(known, torch.from_numpy(colours.reshape(-1, 3)), driver="gelsd").solution

    def __call__(self, latents: torch.Tensor) -> Image.Image:
        cells = latents[0, :, 0].float().cpu()
        colours = torch.addmm(self.map[-1], cells.flatten(1).T, self.map[:-1]).nan_to_num_(0).clamp_(0, 255).to(torch.uint8)
        return Image.fromarray(colours.reshape(cells.shape[1], cells.shape[2], 3).numpy())
