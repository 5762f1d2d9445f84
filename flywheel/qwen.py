"""What is known of edit models and of LoRAs for them, as data: a new model or LoRA is a row of data/qwen_models.json, not code."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .images import size_for
from .lora import StackedLora

VISION_PIXELS = 384 * 384  # what the vision encoder saw in training, per picture


@dataclass(frozen=True, slots=True)
class Template:
    """What the text encoder is given. {} is in `words` the pictures and the instruction, in `picture` the picture's number."""

    words: str
    picture: str

    def prompt(self, instruction: str, pictures: int) -> str:
        """What goes into `words`."""
        return "".join(self.picture.format(number) for number in range(1, pictures + 1)) + instruction


@dataclass(frozen=True, slots=True)
class Folder:
    """A model as Hugging Face lays it out: where it is, its size, and how its transformer's configuration tells it from others."""

    repository: str
    size: str
    zero_cond_t: bool


@dataclass(frozen=True, slots=True)
class EditModel:
    """An instruction-editing model, or, without controls, one that makes images of words. None means: leave alone what the model brings.

    `template`: with one, the text encoder sees the pictures too. `clip_type`: what Load CLIP calls its kind. `blocks`: width of the
    model, which tells its sizes apart, to kind of block to how many there are. `shift`: of the flow-matching schedule.
    `reference_method`: how the controls get their places in the model. `schedule`: a scheduler's name, or "flux2". `controls`: at most. `folder`: for
    the diffusers editor; None where that cannot take the model.
    """

    name: str
    family: str
    template: Template | None
    clip_type: str
    blocks: dict[str, dict[str, int]]
    shift: float | None
    reference_method: str | None
    cfg_norm: float | None
    guidance: float | None
    schedule: str
    steps: int
    cfg: float
    controls: int
    folder: Folder | None
    license: str
    files: tuple[tuple[str, str, str, str], ...]  # folder below models/, name, size, address


@dataclass(frozen=True, slots=True)
class KnownLora:
    """A published LoRA, recognised by its file's name. `words`: how to prompt it; `trigger`: words to put before every such prompt. `steps`, `cfg` and
    the schedule's `shift`: what a distilled one was made for. `file` and `size` are empty for a row that stands for many files."""

    pattern: str
    title: str
    model: str
    what: str
    words: str
    when: str
    weight: float
    address: str
    file: str
    size: str
    trigger: str = ""
    steps: int | None = None
    cfg: float | None = None
    shift: float | None = None

    def described(self) -> str:
        words = f" Prompt it with: {self.words}." if self.words else ""
        return f"{self.title}, for {self.model}: {self.what}.{words} Usual: weight {self.weight:g}, {self.when}."


@cache
def models() -> dict[str, EditModel]:
    """By name, the recommended one first."""
    told = _data()
    return {name: _model(name, row, told["templates"]) for name, row in told["models"].items()}


@cache
def generators() -> dict[str, EditModel]:
    """Models that make an image of words alone, by name; the one that character LoRAs are trained for by default first. Some are edit models, too."""
    told = _data()
    rows = {name: {**told["models"][row], "controls": 0} if isinstance(row, str) else row for name, row in told["generators"].items()}
    return {name: _model(name, row, told["templates"]) for name, row in rows.items()}


def _model(name: str, row: dict[str, Any], templates: dict[str, Any]) -> EditModel:
    template = Template(**templates[row["template"]]) if row["template"] else None
    folder = Folder(**row["folder"]) if row.get("folder") else None
    built: dict[str, Any] = {"name": name, "template": template, "folder": folder, "files": tuple(tuple(file) for file in row["files"])}
    return EditModel(**{**row, **built})


def of_folder(name: str, zero_cond_t: bool) -> EditModel:
    """What is known of the model in a folder: the row that the folder is named after, else the first whose transformer is configured like this."""
    fits = [row for row in models().values() if row.folder and row.folder.zero_cond_t == zero_cond_t]
    return next((row for row in fits if row.name.lower() in name.lower()), fits[0])


@cache
def known_loras() -> tuple[KnownLora, ...]:
    return tuple(KnownLora(**row) for row in _data()["loras"])


def known(file_name: str) -> KnownLora | None:
    return next((row for row in known_loras() if re.search(row.pattern, file_name, re.IGNORECASE)), None)


def mismatches(model: str, loras: Iterable[StackedLora]) -> list[str]:
    """What to tell of known LoRAs that were made for another edit model: they load, and work worse."""
    rows = [(lora.name, row) for lora in loras if (row := known(lora.name)) and row.file and row.model != model]
    return [f"{name} was made for {row.model}; on {model} it works worse or not at all." for name, row in rows]


def fewer_blocks(row: EditModel, width: int, blocks: Mapping[str, int]) -> str:
    """What to tell of a model of full width with fewer blocks than that has: a pruned one, or one whose file lost its end. Empty for any other."""
    whole = row.blocks.get(str(width), {})
    fewer = [f"{blocks.get(kind, 0)} of {count} {kind}" for kind, count in whole.items() if blocks.get(kind, 0) < count]
    if not fewer:
        return ""
    return f"The model has {' and '.join(fewer)} of {row.name}: if it was not pruned on purpose, its file lacks its end; download it again."


def distilled_row(loras: Iterable[StackedLora]) -> KnownLora | None:
    """The first of them that was made for few steps."""
    return next((row for lora in loras if (row := known(lora.name)) and row.steps), None)


def steps_and_cfg(model: EditModel, loras: Iterable[StackedLora], steps: int, cfg: float) -> tuple[int, float]:
    """The person's numbers; 0 stands for what a distilled LoRA of these was made for, else for what suits the model."""
    distilled = distilled_row(loras)
    return (
        steps or (distilled and distilled.steps) or model.steps,
        cfg or (distilled and distilled.cfg) or model.cfg,
    )


def control_size(width: int, height: int, result: tuple[int, int], megapixels: float) -> tuple[int, int]:
    """Size in px at which a control of width x height is given to the model: its own aspect, no cropping, multiples of 16.

    `megapixels` 0 takes the result's area. A control of the result's aspect gets the result's very size, so that both stay aligned pixel by
    pixel.
    """
    area = megapixels or result[0] * result[1] / 1e6
    size = size_for(width, height, megapixels=area)
    same_shape = abs(math.log(width / height * result[1] / result[0])) < 16 / min(result)
    if same_shape and abs(result[0] * result[1] / 1e6 - area) < 0.02 * area:
        return result
    return size


def vision_size(width: int, height: int) -> tuple[int, int]:
    """Size in px at which the text encoder sees a control: its aspect, the area of training."""
    scale = math.sqrt(VISION_PIXELS / (width * height))
    return max(28, round(width * scale)), max(28, round(height * scale))


def _data() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "qwen_models.json").read_text(encoding="utf-8"))
