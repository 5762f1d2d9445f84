"""Which base model a job trains, and whether it is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....flywheel.errors import EditorUnavailable
from ...job import Job
from .families import Family, device
from .flux import Flux
from .qwen import QwenEdit

if TYPE_CHECKING:
    from . import PeftQloraOptions


def family_of(job: Job, options: PeftQloraOptions, rank: int = 0) -> Family:
    """
    Raises:
        EditorUnavailable: the model is not here, or is another one than the spec says.
    """
    spec = job.spec
    root = job.places.find(spec.base_model)
    if root is None:
        where = ", ".join(str(folder) for folder in job.places.models) or "no folder at all"
        raise EditorUnavailable(
            f"There is no model {spec.base_model!r} in {where}. Give the folder of the model as downloaded from Hugging Face: a full path, or its name"
            " below ComfyUI's models/diffusers."
        )
    cache = job.folder.parent.parent / "cache" / "training"
    place = device(options.device, rank)
    return Flux(root, options, cache, place) if spec.architecture == "flux1" else QwenEdit(root, options, cache, place)
