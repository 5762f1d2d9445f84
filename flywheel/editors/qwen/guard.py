"""A look at every result before it counts as an image: a number that is none, or a black picture, is an error with known causes."""

from __future__ import annotations

import torch

from ...errors import EditorError

BLACK = 4 / 255  # brightest value of a picture that counts as black
CAUSES = (
    "Known causes: SageAttention 2 (start ComfyUI without --use-sage-attention), a transformer file in fp16 (use bf16 or fp8), a LoRA with too high a"
    " weight or made for another model, a damaged or wrongly scaled fp8 file."
)


def refuse_broken(latents: torch.Tensor, pixels: torch.Tensor) -> None:
    """`latents` of one image and its decoded `pixels` (H, W, 3) in 0…1.

    Raises:
        EditorError: there is nothing to see.
    """
    if not torch.isfinite(latents).all():
        raise EditorError(f"The model computed values that are not numbers, so there is no image. {CAUSES}")
    if not torch.isfinite(pixels).all():
        raise EditorError(f"The decoder computed values that are not numbers, so there is no image. {CAUSES}")
    if float(pixels.max()) < BLACK:
        raise EditorError(f"The image came out black. {CAUSES}")
