"""The built-in trainer: a LoRA on a frozen base in 4 or 8 bits, in this Python. Imports no torch before it is used.

`plan` says which examples a step shows, `families` know the models, `draws` makes noise and timesteps, `loop` trains, `checkpoint` keeps the state.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ....flywheel.errors import FlywheelError
from ....flywheel.pairs import MAX_CONTROLS
from ...errors import EngineNotInstalled, TrainingFailed
from ...job import Job
from ...trainset import read

LIBRARIES = ("torch", "safetensors", "diffusers", "transformers", "peft", "accelerate")


@dataclass(frozen=True, slots=True)
class PeftQloraOptions:
    """How the built-in trainer works. The defaults are the recipe; each may be changed."""

    precision: Literal["nf4", "int8", "fp8", "as stored"] = field(
        default="nf4",
        metadata={"help": "Bits of the frozen base. nf4 (4 bits, doubly quantised; needs bitsandbytes) is what fits 16 and 24 GB cards."},
    )
    text_encoder: Literal["as stored", "fp8", "nf4"] = field(
        default="as stored",
        metadata={
            "help": "Bits of the text encoder, which is on the card before the training only. as stored needs 16 GB for Qwen. Those of FLUX.1 (10 GB) always stay as stored."
        },
    )
    control_megapixels: float = field(
        default=0.0,
        metadata={
            "help": "Size at which controls are shown. 0 is the target's size. Use the same value in the editor afterwards.",
            "min": 0.0,
            "max": 4.0,
        },
    )
    targets: Literal["attention and mlp", "attention", "all"] = field(
        default="attention and mlp",
        metadata={
            "help": "Layers that learn. attention alone makes a smaller file and learns less; all adds the layers at both ends of the model."
        },
    )
    optimizer: Literal["adamw8bit", "adamw"] = field(
        default="adamw8bit", metadata={"help": "adamw8bit keeps its memory in 8 bits (needs bitsandbytes), adamw in 32."}
    )
    schedule: Literal["constant", "cosine", "linear"] = field(
        default="constant", metadata={"help": "How the learning rate goes after the warm-up: stays, or falls to zero."}
    )
    warmup: int = field(
        default=20, metadata={"help": "Steps over which the learning rate rises to its full value.", "min": 0, "max": 100_000}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Pull of the weights towards zero.", "min": 0.0, "max": 1.0})
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "Longer gradients are shortened to this. 0 leaves them.", "min": 0.0, "max": 1e6}
    )
    caption_dropout: float = field(
        default=0.05,
        metadata={"help": "Share of examples shown without their words, so that guidance keeps working.", "min": 0.0, "max": 1.0},
    )
    ema: float = field(
        default=0.0,
        metadata={"help": "Keep an average of the weights, such as 0.99, and save that. 0 is off.", "min": 0.0, "max": 0.99999},
    )
    checkpointing: Literal["full", "keep attention", "off"] = field(
        default="full",
        metadata={
            "help": "What is computed again in the backward pass. keep attention is a tenth faster for 3 to 4 GB more; off needs far more."
        },
    )
    validate: int = field(
        default=8, metadata={"help": "Held-out examples the loss is measured on at each checkpoint. 0 is none.", "min": 0, "max": 64}
    )
    sample_steps: int = field(default=20, metadata={"help": "Denoising steps of samples. 0 makes none.", "min": 0, "max": 100})
    sample_guidance: float = field(
        default=4.0, metadata={"help": "Guidance of samples; for Qwen 1 takes half the time.", "min": 1.0, "max": 20.0}
    )
    flux_guidance: float = field(
        default=1.0, metadata={"help": "FLUX.1-dev only: the guidance it is told while it learns; 1 is usual.", "min": 0.0, "max": 20.0}
    )
    gpus: int = field(
        default=1,
        metadata={
            "help": "Cards of this machine to share the work. Each shows as many images per step as one alone would.",
            "min": 1,
            "max": 16,
        },
    )
    device: Literal["auto", "cuda", "cpu"] = field(
        default="auto", metadata={"help": "Where to compute. auto takes the card if there is one."}
    )


class PeftQlora:
    """QLoRA with diffusers and PEFT in the worker's own process."""

    name: ClassVar[str] = "peft_qlora"
    uses_gpu: ClassVar[bool] = True
    trains: ClassVar[frozenset[tuple[str, str]]] = frozenset({("edit", "qwen_image_edit"), ("character", "flux1")})
    most_controls: ClassVar[int] = MAX_CONTROLS
    options: ClassVar[type] = PeftQloraOptions

    def check(self, job: Job) -> list[str]:
        spec, options = job.spec, options_of(job)
        problems = _missing_libraries(options)
        facts: list[str] = []
        if not problems:
            try:
                from .base import family_of

                problems += _unsuitable(job)
                facts = family_of(job, options, options.gpus - 1).facts()
            except FlywheelError as error:
                problems.append(str(error))
        if problems:
            raise EngineNotInstalled(f"peft_qlora cannot train {spec.base_model!r} here:", problems)
        return [f"peft_qlora: {fact}" for fact in facts]

    def layers(self, job: Job) -> Mapping[str, tuple[int, int] | None]:
        """The linear layers of the very model that is trained, for the proof."""
        from .base import family_of

        return family_of(job, options_of(job)).layers()

    def versions(self, job: Job) -> str:  # noqa: ARG002 - its own are those of this Python
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers", "peft"))

    def train(self, job: Job) -> Path:
        from .loop import is_out_of_memory, train

        try:
            return train(job, options_of(job))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            advice = "Choose the next smaller memory profile, or a lower resolution, and train again."
            raise TrainingFailed("memory", f"The memory was not enough ({str(error).splitlines()[0]}).", advice) from error


def _unsuitable(job: Job) -> list[str]:
    """Why the examples do not suit the model: an edit is learnt from one to three controls, as many for each example."""
    found = read(job.dataset)
    if job.spec.kind != "edit" or not found.examples:
        return []
    odd = [example for example in (*found.examples, *found.held_out) if len(example.controls) != found.controls]
    if found.controls not in range(1, MAX_CONTROLS + 1):
        return [f"{job.dataset.name} has {found.controls} controls per example; an edit is learnt from 1 to {MAX_CONTROLS}"]
    return [f"{example.image.name} has {len(example.controls)} controls, others have {found.controls}" for example in odd]


def options_of(job: Job) -> PeftQloraOptions:
    return PeftQloraOptions(**job.spec.options)  # type: ignore[arg-type]


def _missing_libraries(options: PeftQloraOptions) -> list[str]:
    small = options.precision == "nf4" or options.text_encoder == "nf4" or options.optimizer == "adamw8bit"
    wanted = [*LIBRARIES, *(["bitsandbytes"] if small else [])]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    told = f"ComfyUI's Python lacks {', '.join(missing)}: install with `python -m pip install {' '.join(missing)}`"
    if missing == ["bitsandbytes"]:
        told += ", or set precision = int8 and optimizer = adamw (the text encoder: fp8), which need more memory"
    return [told]
