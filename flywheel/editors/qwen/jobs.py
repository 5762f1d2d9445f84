"""What a request comes to: the words that are encoded, the LoRAs that go with it, sizes, steps; and the order in which a batch switches least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ... import lora, qwen
from ...errors import EditorError
from .. import ControlRef, EditRequest
from . import denoise, latents
from .models import ModelFolder

ASPECT_MAX = 16
LIGHTNING_SHIFT = 3.0  # of a Lightning LoRA that is not known by its name
# From so many tokens on a card computes one pass at its full speed, and two without a mask take the fast attention that one with a mask cannot.
# Not measured on a card yet: `benchmarks/gpu` has a row for each.
APART_FROM = 3000


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is to be used; see the fields of the editor, which explain each."""

    steps: int  # 0: what suits the model and its LoRAs; so with the next two
    guidance: float
    schedule: str
    guided_share: float
    negative_prompt: str
    control_megapixels: float
    at_once: int
    precision: str
    memory: str
    device: torch.device
    dtype: torch.dtype
    block_cache: float
    compile: bool
    cache: Path | None
    pictures: tuple[ControlRef, ...] = ()  # shown with every request, after its own controls
    name: str = "qwen_diffusers"


@dataclass(frozen=True, slots=True)
class Job:
    """A request with what its words ask for: the prompt that is encoded, the LoRAs that go with it and what these need. `sizes` of its controls, px."""

    request: EditRequest
    controls: tuple[ControlRef, ...]
    prompt: str
    loras: tuple[lora.StackedLora, ...]
    sizes: tuple[tuple[int, int], ...]
    steps: int
    guidance: float
    shift: float | None  # of the schedule a distilled LoRA was made with

    @property
    def size(self) -> tuple[int, int]:
        return self.request.width, self.request.height

    @property
    def shapes(self) -> tuple[denoise.Shape, ...]:
        return tuple(latents.shape_of(size) for size in (self.size, *self.sizes))

    @property
    def tokens(self) -> int:
        return sum(rows * columns for _, rows, columns in self.shapes)

    @property
    def batch(self) -> object:
        """Jobs of equal value here may be made at once."""
        return self.combination, self.shapes, self.steps, self.guidance

    @property
    def combination(self) -> tuple[tuple[str, float], ...]:
        return tuple((one.key, one.weight) for one in self.loras)


@dataclass
class Counts:
    """What a session did, for its report and for measuring."""

    images: int = 0
    seconds: float = 0.0
    loads: list[str] = field(default_factory=list)
    encoded: int = 0


def passes(guidance: float, tokens: int, device: torch.device) -> int:
    """How many images' worth of tokens are in the transformer at once for one image: two where guidance shares the pass."""
    return 2 if guidance > 1 and (device.type == "cpu" or tokens < APART_FROM) else 1


def job_of(
    request: EditRequest,
    settings: Settings,
    stack: lora.LoraStack,
    row: qwen.EditModel,
    size_of: Callable[[ControlRef], tuple[int, int]],
) -> Job:
    """`size_of` answers with the size of a control as the file has it.

    Raises:
        EditorError: this editor cannot make such an image; says why.
    """
    controls = (*request.controls, *settings.pictures)
    if not request.controls or len(controls) > 3:
        raise EditorError(f"{settings.name} takes 1 to 3 control images and got {len(controls)} for {request.label or request.prompt!r}.")
    if request.width % latents.PATCH or request.height % latents.PATCH or min(request.width, request.height) < latents.PATCH:
        raise EditorError(f"{request.width} x {request.height} px cannot be made: both sides must be multiples of {latents.PATCH}.")
    loras = stack.for_prompt(request.prompt, request.tags)
    sizes = tuple(_control_size(request, control, size_of(control), settings.control_megapixels) for control in controls)
    steps, guidance = qwen.steps_and_cfg(row, loras, settings.steps, settings.guidance)
    return Job(
        request, controls, lora.with_triggers(request.prompt, loras), loras, sizes, steps, guidance, _shift(settings.schedule, loras)
    )


def _shift(schedule: str, loras: Sequence[lora.StackedLora]) -> float | None:
    if schedule == "standard":
        return None
    distilled = qwen.distilled_row(loras)
    return distilled.shift if distilled else LIGHTNING_SHIFT if schedule == "lightning" else None


def _control_size(request: EditRequest, control: ControlRef, size: tuple[int, int], megapixels: float) -> tuple[int, int]:
    width, height = size
    if max(size) > ASPECT_MAX * min(size):
        raise EditorError(f"{control.path.name} is {width} x {height} px; more than {ASPECT_MAX} to 1 is not edited. Crop it.")
    return qwen.control_size(width, height, (request.width, request.height), megapixels)


def ordered(jobs: Sequence[Job]) -> list[Job]:
    """One pass per LoRA combination, like sizes beside each other."""
    first = {job.combination: place for place, job in reversed(list(enumerate(jobs)))}
    return sorted(jobs, key=lambda job: (first[job.combination], job.size, job.sizes))


def groups(jobs: Sequence[Job], at_once: int) -> Iterator[list[Job]]:
    """Neighbours that may share a batch: the same LoRAs and shapes."""
    group: list[Job] = []
    for job in jobs:
        if group and (len(group) >= at_once or job.batch != group[0].batch):
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def row_of(model: ModelFolder) -> qwen.EditModel:
    """What is known of the model in a folder."""
    return qwen.of_folder(model.root.name, bool(model.config("transformer").get("zero_cond_t")))
