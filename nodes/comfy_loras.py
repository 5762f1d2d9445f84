"""LoRAs on ComfyUI's models, as patches of weights: all of a file's layers or none."""

from __future__ import annotations

from typing import Any

import comfy.lora

from ..flywheel import lora
from ..flywheel.errors import LoraError

_SUFFIXES = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}


def fitted(model: Any, one: lora.StackedLora, name: str) -> lora.Fit:
    """Every layer of a LoRA in this model, or a LoraError that says why not."""
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    linear = {
        f"diffusion_model.{path}.weight": size
        for path, module in model.model.diffusion_model.named_modules()
        if (size := linear_size(module))
    }
    return lora.fit(
        lora.inspect(one.path), {alias: linear.get(key) if isinstance(key, str) else None for alias, key in names.items()}, name
    )


def linear_size(module: Any) -> tuple[int, int] | None:
    """(out, in) features of a linear layer, None for any other: ComfyUI's quantised ones are not torch's Linear."""
    out, into = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (out, into) if isinstance(out, int) and isinstance(into, int) else None


def applied(model: Any, fit: lora.Fit, weight: float) -> Any:
    """The model with one more LoRA; the given one stays as it is.

    Raises:
        LoraError: ComfyUI does not understand a layer that we found a place for.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    named = {f"{target}.{_SUFFIXES.get(role, role)}": tensor for target, _, tensors in lora.parts(fit) for role, tensor in tensors.items()}
    patches = comfy.lora.load_lora(named, {target: names[target] for target in fit.placed}, log_missing=False)
    patched = model.clone()
    taken = patched.add_patches(patches, weight)
    if len(taken) < len(fit.placed):
        raise LoraError(
            f"{fit.file.path.name}: ComfyUI took only {len(taken)} of {len(fit.placed)} layers of this kind ({fit.file.described()})."
            " Take it out of the stack."
        )
    return patched
