"""Whether connected models belong together and are whole: sockets that do not make grey noise and no error, and a checkpoint may lack a part."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.text_encoders.flux
import comfy.text_encoders.qwen_image

from ..flywheel import qwen
from ..flywheel.errors import EditorError
from ..flywheel.qwen import EditModel
from . import comfy_whole

CLASSES: dict[str, tuple[type, tuple[type, ...]]] = {  # by the type in Load CLIP: the model's class and what may read the prompt
    "qwen_image": (comfy.model_base.QwenImage, (comfy.text_encoders.qwen_image.QwenImageTokenizer,)),
    "flux": (comfy.model_base.Flux, (comfy.text_encoders.flux.FluxTokenizer,)),
    "flux2": (comfy.model_base.Flux2, (comfy.text_encoders.flux.KleinTokenizer, comfy.text_encoders.flux.Flux2Tokenizer)),
}
_NOT_WHOLE = "ComfyUI would fill that with whatever memory held. Download the file again"


def refuse_wrong_models(row: EditModel, model: Any, clip: Any, vae: Any, *, tables: bool) -> None:
    """Compare a MODEL, CLIP and VAE with the model that was chosen; `tables`: whether it is to do with modulation tables.

    Raises:
        EditorError: names every socket that does not fit or is not whole, and of each file that belongs there its size, folder and address.
    """
    inner = model.model
    problems: list[tuple[str, str]] = []  # folder below models/ of what belongs there, and what is wrong
    model_class, tokenizers = CLASSES[row.clip_type]
    if tables and row.clip_type != "qwen_image":
        problems.append(("", f"modulation_tables is for Qwen-Image-Edit; switch it off for {row.name}"))
    if type(inner) is not model_class:
        problems.append(("diffusion_models", f"model is a {type(inner).__name__}, but {row.name} is chosen"))
    elif row.clip_type == "qwen_image" and inner.diffusion_model.default_ref_method != row.reference_method == "index":
        rows = [other.name for other in qwen.models().values() if other.reference_method == inner.diffusion_model.default_ref_method]
        problems.append(("diffusion_models", f"model is {' or '.join(rows)}, but {row.name} is chosen"))
    elif lacks := comfy_whole.lacks_of_model(model):
        problems.append(("diffusion_models", f"model is not whole: {lacks}; {_NOT_WHOLE}"))
    if clip is None:
        problems.append(("text_encoders", f"clip is empty: what is connected holds no text encoder; load one with type {row.clip_type}"))
    elif not isinstance(clip.tokenizer, tokenizers):
        problems.append(("text_encoders", f"clip is a {type(clip.tokenizer).__name__}; load one with type {row.clip_type}"))
    elif lacks := comfy_whole.lacks_of_part(clip.patcher):
        problems.append(("text_encoders", f"clip is not whole: {lacks}; {_NOT_WHOLE}"))
    wanted = model.get_model_object("latent_format").latent_channels
    if vae is None or getattr(vae, "first_stage_model", vae) is None:
        problems.append(("vae", "vae is empty: what is connected holds none"))
    elif getattr(vae, "latent_channels", wanted) != wanted:  # another pack's VAE may not say
        problems.append(("vae", f"vae makes {vae.latent_channels} channels, the model takes {wanted}"))
    elif lacks := comfy_whole.lacks_of_part(vae.patcher):
        problems.append(("vae", f"vae is not whole: {lacks}; {_NOT_WHOLE}"))
    if problems:
        places = {place for place, _ in problems}
        right = [f"  {name} ({size}) into models/{place}: {address}" for place, name, size, address in row.files if place in places]
        told = ["The connected models do not belong together:", *(f"  - {problem}" for _, problem in problems)]
        raise EditorError("\n".join([*told, *([f"For {row.name} download into ComfyUI's folder and load:", *right] if right else [])]))
