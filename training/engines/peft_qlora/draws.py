"""Noise, timesteps and dropped captions of a step: functions of seed and step alone, drawn on the CPU, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import torch

from ....flywheel.images import value_key

SMALLEST = 1 / 128  # noise level below which nothing is left to learn
VALIDATED = (0.15, 0.4, 0.65, 0.9)  # shares of the timesteps' distribution the validation looks at


@dataclass(frozen=True, slots=True)
class Draw:
    """`times` (B,) in 0…1, exact in bf16; `noise` (B, N, C) fp32; `blank`: whose words are left out."""

    times: torch.Tensor
    noise: torch.Tensor
    blank: tuple[bool, ...]


def generator(*of: Any) -> torch.Generator:
    return torch.Generator().manual_seed(int(value_key(of), 16) % 2**63)


def shift_of(scheduler: dict[str, Any], tokens: int) -> float:
    """How far the timesteps lean towards noise for an image of so many tokens.

    Source: Esser et al., https://arxiv.org/abs/2403.03206, in the exponential form of the schedulers of FLUX and Qwen-Image.
    """
    told = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192, **scheduler}
    slope = (told["max_shift"] - told["base_shift"]) / (told["max_image_seq_len"] - told["base_image_seq_len"])
    return exp(told["base_shift"] + slope * (tokens - told["base_image_seq_len"]))


def times(normal: torch.Tensor, shift: float) -> torch.Tensor:
    """Noise levels from standard normal numbers: logit-normal, shifted, rounded to bf16.

    That is what a bf16 transformer sees anyway; the noise is mixed with the very same level.
    """
    uniform = torch.sigmoid(normal.double())
    return (shift * uniform / (1 + (shift - 1) * uniform)).clamp(min=SMALLEST).to(torch.bfloat16).float()


def step_times(seed: int, batch: int, count: int, shift: float) -> torch.Tensor:
    return times(torch.randn(count, generator=generator(seed, "step", batch)), shift)


def draw(seed: int, batch: int, shape: Sequence[int], shift: float, dropout: float) -> Draw:
    """For the run's batch of this number. `shape`: (B, N, C) of the targets."""
    chance = generator(seed, "step", batch)
    level = times(torch.randn(shape[0], generator=chance), shift)
    blank = tuple(bool(one < dropout) for one in torch.rand(shape[0], generator=chance))
    return Draw(level, torch.randn(*shape, generator=chance), blank)


def validation_times(shift: float) -> torch.Tensor:
    return times(torch.special.ndtri(torch.tensor(VALIDATED, dtype=torch.float64)), shift)


def noised(clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    at = level.to(clean)[:, None, None]
    return (1 - at) * clean + at * noise
