"""What shall be trained: a value that is JSON, is checked as a whole, and whose hash names the job. Knows no engine and no folder.

What an engine finds and owes is in `engines.Engine`. For kind "character" the data are captioned images; for kind "edit" they are examples with
controls (`trainset.Example.controls`, in the order of "Picture 1, 2, 3"), and `trainset.TrainingSet.held_out` is there to measure with, and `sample_prompts` are the captions of `TrainingSet.watched`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..flywheel.images import value_key
from .errors import SpecError

Kind = Literal["character", "edit"]
Architecture = Literal["flux1", "qwen_image_edit", "flux1_kontext", "flux2_klein_4b", "flux2_klein_9b", "flux2_dev"]
Option = bool | int | float | str

ARCHITECTURES: Mapping[str, str] = {  # what people call them
    "flux1": "FLUX.1",
    "qwen_image_edit": "Qwen-Image-Edit",
    "flux1_kontext": "FLUX.1 Kontext",
    "flux2_klein_4b": "FLUX.2 [klein] 4B",
    "flux2_klein_9b": "FLUX.2 [klein] 9B",
    "flux2_dev": "FLUX.2 [dev]",
}
ID_LENGTH = 12
PLACE_ONLY = "dataset"  # the field that says where something lies, not what it is


def _within(default: Any, low: float, high: float, help: str) -> Any:
    return field(default=default, metadata={"min": low, "max": high, "help": help})


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """One training, complete: equal specs are the same job.

    `base_model` is a file name in ComfyUI's model folders, or a model id. `dataset` is relative to the project's folder and is not part of
    the id; `dataset_key` is, so changed data is another job. `resolution` is the side of a square of as many pixels. `options` are the
    engine's own.

    Raises:
        SpecError: with every problem.
    """

    project: str
    kind: Kind
    engine: str
    architecture: Architecture
    base_model: str
    dataset: str
    dataset_key: str
    instance_token: str
    class_noun: str
    rank: int = _within(16, 1, 512, "Size of the LoRA.")
    alpha: float = _within(16.0, 0.01, 1024, "Scale of the LoRA: alpha / rank.")
    learning_rate: float = _within(1e-4, 1e-8, 1.0, "How far each step goes.")
    steps: int = _within(1500, 1, 1_000_000, "Optimizer updates.")
    batch_size: int = _within(1, 1, 64, "Images per step.")
    gradient_accumulation: int = _within(1, 1, 256, "Batches per step.")
    resolution: int = _within(1024, 64, 4096, "Side of a square of as many pixels as the images are trained at, in pixels.")
    save_every: int = _within(250, 1, 1_000_000, "Steps between checkpoints: what a crash can cost.")
    seed: int = _within(42, 0, 2**32 - 1, "Another seed is another run.")
    sample_prompts: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problems := _problems(self):
            raise SpecError("These training settings do not work:", problems)

    @property
    def id(self) -> str:
        """12 hex digits: the name of the job."""
        described = self.as_json()
        described.pop(PLACE_ONLY)
        return value_key(described)[:ID_LENGTH]

    def as_json(self) -> dict[str, Any]:
        described = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {**described, "sample_prompts": list(self.sample_prompts), "options": dict(self.options)}


def from_json(value: Any) -> TrainingSpec:
    """A spec that was written with `as_json`, or by hand.

    Raises:
        SpecError: fields are missing, unknown, of the wrong type or out of range; all of them are named.
    """
    if not isinstance(value, dict):
        raise SpecError("The training settings are not a JSON object. Start again from a settings node.")
    fields = {entry.name: entry for entry in dataclasses.fields(TrainingSpec)}
    needed = [
        name for name, entry in fields.items() if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    ]
    problems = [f"{name} is missing" for name in needed if name not in value]
    problems += [f"{name} is no setting; there are {', '.join(fields)}" for name in value if name not in fields]
    if problems:
        raise SpecError("These training settings do not work:", problems)
    given: dict[str, Any] = dict(value)
    if isinstance(given.get("sample_prompts"), list):
        given["sample_prompts"] = tuple(given["sample_prompts"])
    return TrainingSpec(**given)


def _problems(spec: TrainingSpec) -> list[str]:
    problems: list[str] = []
    for entry in dataclasses.fields(spec):
        value = getattr(spec, entry.name)
        if entry.metadata:
            problems += _number_problems(entry, value)
        elif entry.name not in ("sample_prompts", "options") and (
            not isinstance(value, str) or (entry.name != "base_model" and not value.strip())
        ):
            problems.append(f"{entry.name} is {value!r}: it must be a text")
    for name, choices in (("kind", get_args(Kind)), ("architecture", get_args(Architecture))):
        if isinstance(getattr(spec, name), str) and getattr(spec, name) not in choices:
            problems.append(f"{name} is {getattr(spec, name)!r}: it must be one of {', '.join(choices)}")
    if not isinstance(spec.sample_prompts, tuple) or not all(isinstance(prompt, str) for prompt in spec.sample_prompts):
        problems.append("sample_prompts must be a list of texts")
    if not isinstance(spec.options, Mapping) or not all(isinstance(value, (bool, int, float, str)) for value in spec.options.values()):
        problems.append("options must be names with a number, a text, true or false each")
    return problems


def _number_problems(entry: dataclasses.Field[Any], value: Any) -> list[str]:
    whole = entry.type == "int"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return [f"{entry.name} is {value!r}: it must be a {'whole ' if whole else ''}number"]
    low, high = entry.metadata["min"], entry.metadata["max"]
    return [] if low <= value <= high else [f"{entry.name} is {value:g}: it must lie between {low:g} and {high:g}"]
