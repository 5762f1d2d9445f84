"""The denoising loop: what the diffusers pipeline does, to 1e-6, for many prompts at once and with the guidance in the same batch.

Noise is drawn and the image is kept in fp32, whatever the transformer computes in: otherwise a seed means another image on another card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .latents import pack

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Cell:
    """One image to be made. Of all that share a batch the shapes are equal; the words may differ.

    `noise` (1, N, 64) and `controls` (1, M, 64) fp32 tokens; `words` and `unwanted` (1, S, D); `shapes`: the image's own, then the controls'.
    """

    noise: torch.Tensor
    controls: torch.Tensor
    words: torch.Tensor
    unwanted: torch.Tensor | None
    shapes: tuple[Shape, ...]


OnStep = Callable[[int, torch.Tensor], None]  # steps done, the image as foreseen now (B, N, 64); may raise


def sigmas(scheduler: Mapping[str, Any], steps: int, tokens: int, *, shift: float | None = None) -> torch.Tensor:
    """Noise levels from 1 down to 0, (steps + 1,) fp32. They depend on the size of the image in tokens, unless a distilled LoRA was made for one `shift`."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    config = {**scheduler, **({"base_shift": log(shift), "max_shift": log(shift), "shift_terminal": None} if shift else {})}
    if steps == 1:
        config["shift_terminal"] = None  # stretching the one level 1, which stays where it is, would divide 0 by 0
    made: Any = FlowMatchEulerDiscreteScheduler.from_config({name: value for name, value in config.items() if not name.startswith("_")})
    slope = (made.config.max_shift - made.config.base_shift) / (made.config.max_image_seq_len - made.config.base_image_seq_len)
    mu = made.config.base_shift + slope * (tokens - made.config.base_image_seq_len)
    made.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return made.sigmas


def noise(seed: int, size: tuple[int, int], channels: int = 16) -> torch.Tensor:
    """The noise a seed means for a picture of `size` px, (1, N, 64) fp32, drawn on the CPU: the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(1, 1, channels, size[1] // 8, size[0] // 8, generator=generator)
    return pack(drawn.transpose(1, 2))


@torch.no_grad()
def denoise(
    transformer: Any,
    cells: Sequence[Cell],
    levels: torch.Tensor,
    *,
    guidance: float = 1.0,
    guided_share: float = 1.0,
    together: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """The finished tokens (B, N, 64), fp32.

    `guidance` above 1 pushes away from `unwanted`, which every cell must then have; after `guided_share` of the steps it is left out. `together`: wanted
    and unwanted words in one pass of the transformer, which needs a mask because they differ in length; else in two, which need none.
    """
    x = torch.cat([cell.noise for cell in cells]).to(device)
    controls = torch.cat([cell.controls for cell in cells]).to(device)
    guided = guidance > 1
    wanted = [cell.words for cell in cells]
    unwanted = [cell.unwanted for cell in cells if cell.unwanted is not None]
    if guided and len(unwanted) != len(cells):
        raise ValueError("guidance needs a negative prompt for every cell")
    plain = padded(wanted, dtype, device)
    other = padded([*wanted, *unwanted] if together else unwanted, dtype, device) if guided else plain
    steps, shapes = len(levels) - 1, [list(cells[0].shapes)]
    levels, seen = levels.to(device), times(levels).to(device)

    def velocity(step: int, context: str, words: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        times = len(words) // len(cells)
        with transformer.cache_context(context):
            out = transformer(
                hidden_states=torch.cat([x, controls], dim=1).repeat(times, 1, 1).to(dtype),
                encoder_hidden_states=words,
                encoder_hidden_states_mask=mask,
                timestep=seen[step].expand(len(words)),
                img_shapes=shapes * len(words),
                return_dict=False,
            )[0]
        return out[:, : x.shape[1]].float()

    for step in range(steps):
        if guided and step < round(guided_share * steps):
            if together:
                towards, away = velocity(step, "guided", *other).chunk(2)
            else:
                towards, away = velocity(step, "plain", *plain), velocity(step, "away", *other)
            v = _rescaled(away + guidance * (towards - away), towards)
        else:
            v = velocity(step, "plain", *plain)
        if on_step:
            on_step(step + 1, x - levels[step] * v)
        x = x + (levels[step + 1] - levels[step]) * v
    return x


def times(levels: torch.Tensor) -> torch.Tensor:
    """The timesteps the transformer sees at these noise levels, (steps,) fp32 in 0…1."""
    return levels[:-1] * 1000 / 1000  # as the pipeline rounds them


def _rescaled(v: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Guidance may turn a token's velocity but not lengthen it."""
    return v * (like.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True))


def padded(words: Sequence[torch.Tensor], dtype: torch.dtype, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings of different lengths as one batch (B, S, D), and which tokens are real; no mask where all are, for the fast kernels."""
    longest = max(one.shape[1] for one in words)
    batch = torch.cat([F.pad(one, (0, 0, 0, longest - one.shape[1])) for one in words]).to(device, dtype)
    if all(one.shape[1] == longest for one in words):
        return batch, None
    real = torch.arange(longest)[None] < torch.tensor([one.shape[1] for one in words])[:, None]
    return batch, real.to(device)
