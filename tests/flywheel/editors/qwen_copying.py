"""Weights by which the real Qwen classes at toy size copy their photo: a model of random weights makes noise, and noise has no face that could drift.

Every layer computes as it always does. The VAE keeps the mean colours of 8 x 8 px in three of its channels. In the transformer's first block each place
of the result looks, by its rotary position alone, at the same place of Picture 1; the rest adds up to the velocity from noise to what was seen there,
which a schedule of one step follows to its end. Only for tests.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

LARGE = 100.0  # one constant channel beside small ones, so that a norm is nearly a plain factor
SEEN = 12  # numbers of a token that carry the picture: three channels, 2 x 2
SHARPNESS = 7.0
ROPE = (8, 12, 12)  # dimensions of a head for frame, row and column

State = dict[str, torch.Tensor]


def transformer(state: Mapping[str, torch.Tensor], *, noise: float = 0.0, right: int = 0) -> State:
    """Of a toy transformer's weights those of one that copies. `noise`: what stays of the noise of a seed. `right`: places of 16 px by which it moves
    the picture."""
    made = {name: weight.clone() if "txt_in" in name or "time" in name else torch.zeros_like(weight) for name, weight in state.items()}
    made |= {name: torch.ones_like(weight) for name, weight in state.items() if "norm" in name and weight.ndim == 1 and "bias" not in name}
    seen, width = torch.arange(SEEN), made["img_in.weight"].shape[0]
    made["img_in.weight"][seen, seen], made["img_in.weight"][seen + SEEN, seen] = 1.0, -1.0
    made["img_in.bias"][2 * SEEN], made["img_in.bias"][2 * SEEN + 1] = LARGE, -LARGE
    normed = LARGE * (2 / width) ** 0.5  # by what a LayerNorm divides all numbers of a token
    made["proj_out.weight"][seen, seen] = (1 - noise) * normed
    made["proj_out.weight"][seen, seen + 26] = -normed
    block = "transformer_blocks.0"
    made[f"{block}.img_mod.1.bias"][2 * width : 3 * width] = 1.0  # the gate of what attention saw
    for which, frame, column in (("q", 1, -right), ("k", 0, 0)):
        made[f"{block}.attn.to_{which}.bias"] = place(frame, column).repeat(width // sum(ROPE))
        made[f"{block}.attn.norm_{which}.weight"] = torch.full((sum(ROPE),), SHARPNESS)
    made[f"{block}.attn.to_v.weight"][seen, seen] = normed
    made[f"{block}.attn.to_out.0.weight"][seen + 26, seen] = 1.0
    made[f"{block}.attn.to_out.0.weight"][seen + 26 + SEEN, seen] = -1.0
    return made


def place(frame: int, column: int) -> torch.Tensor:
    """What is nearest, once turned by its position, to the same of another place: so many frames and columns further."""
    made = torch.zeros(sum(ROPE))
    start = 0
    for size, offset, pairs in zip(ROPE, (frame, 0, column), (1, 2, 2), strict=True):
        for pair in range(pairs):
            turn = torch.tensor(float(offset)) * 10000.0 ** (-2 * pair / size)
            made[start + 2 * pair], made[start + 2 * pair + 1] = torch.cos(turn), torch.sin(turn)
        start += size
    return made


def vae(state: Mapping[str, torch.Tensor]) -> State:
    """Of a toy VAE's weights, in ComfyUI's spelling or diffusers', those of one that keeps mean colours."""
    made = {name: torch.zeros_like(weight) for name, weight in state.items()}
    for name, weight in made.items():
        path = name.split(".")
        if name.endswith("gamma"):
            weight += LARGE / weight.numel() ** 0.5
        elif not name.endswith("weight"):
            continue
        elif name in ("encoder.conv1.weight", "encoder.conv_in.weight", "decoder.conv1.weight", "decoder.conv_in.weight"):
            enter(weight, made[name.replace("weight", "bias")])
        elif path[1:-1] in (["head", "2"], ["conv_out"]):
            for colour in range(3):
                weight[(colour, colour, *middle(weight))], weight[(colour, colour + 3, *middle(weight))] = 1.0, -1.0
        elif "shortcut" in name or "quant_conv" in name or len(path) == 2:
            for channel in range(min(weight.shape[:2])):
                weight[(channel, channel, *middle(weight))] = 1.0
        elif "resample.1" in name:
            resample(weight, down=name.startswith("encoder"))
    return made


def middle(weight: torch.Tensor) -> tuple[int, ...]:
    """Where a kernel has the pixel itself; of a video's, the newest frame."""
    return tuple(size - 1 if axis == 0 and weight.ndim == 5 else size // 2 for axis, size in enumerate(weight.shape[2:]))


def enter(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Three colours as they are and negative, since silu(x) - silu(-x) is x, and a constant."""
    for colour in range(3):
        weight[(colour, colour, *middle(weight))], weight[(colour + 3, colour, *middle(weight))] = 1.0, -1.0
    bias[6] = LARGE


def resample(weight: torch.Tensor, *, down: bool) -> None:
    tent = torch.tensor([0.25, 0.5, 0.25])
    for channel in range(6):
        if down:
            weight[channel, channel, :2, :2] = 0.25
        else:
            weight[channel, channel] = torch.outer(tent, tent)
    if down:
        weight[6, 6, :2, :2] = 0.25
    else:
        weight[6, 6, 1, 1] = 1.0
