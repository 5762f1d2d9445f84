"""Training engines: what each can train, and how it is asked. One file per engine; none is imported before it is used."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, get_args, get_type_hints, runtime_checkable

from ...flywheel.pairs import MAX_CONTROLS
from ..errors import SpecError, UnsupportedTraining
from ..job import Job
from ..spec import ARCHITECTURES, Option, TrainingSpec

ENGINES: dict[str, str] = {  # name to "module:class", in the order they are offered
    "rehearsal": "rehearsal:Rehearsal",
    "peft_qlora": "peft_qlora:PeftQlora",
    "kohya": "kohya:Kohya",
    "musubi": "musubi:Musubi",
    "ai_toolkit": "ai_toolkit:AiToolkit",
    "mflux": "mflux:Mflux",
    "diffusers": "diffusers_scripts:DiffusersScripts",
    "fal": "fal:Fal",
    "replicate": "replicate:Replicate",
}


class Engine(Protocol):
    """Trains LoRAs. An instance is cheap and holds nothing.

    While it trains it appends to the job: `phase` (name), `step` (step, loss, lr if known), `validation` (step, loss on held-out examples),
    `sample` (step, prompt: its number, file), `checkpoint` (step, file), `note` (text). How much memory the run takes is measured outside, from
    the worker's processes; an engine that knows better appends `memory` (peak_bytes, device: "cuda:0" or "cpu").

    When memory runs out it raises TrainingFailed("memory", …), MemoryError or torch's OutOfMemoryError. A dry run is an ordinary short job; when
    it fails like that the next smaller memory profile is tried. What a profile sets of an engine are rows named like its options, in the
    table "memory" of presets.json: from the first profile to the last every value must be no heavier than the one before.
    """

    name: ClassVar[str]
    uses_gpu: ClassVar[bool]
    trains: ClassVar[frozenset[tuple[str, str]]]  # (kind, architecture)
    most_controls: ClassVar[int]  # pictures to start from that it takes per example
    options: ClassVar[type]  # a frozen dataclass whose fields have help

    def check(self, job: Job) -> list[str]:
        """Facts about the engine as it is found here: version, environment, files.

        Raises:
            EngineNotInstalled: with everything that is missing.
        """
        ...

    def train(self, job: Job) -> Path:
        """Train to the end and answer the LoRA file; emits events, resumes from its own last checkpoint.

        Raises:
            Stopped: someone asked to stop; it stopped at a step boundary.
            TrainingFailed: with the cause.
        """
        ...


@runtime_checkable
class KnowsLayers(Protocol):
    """An engine that can look into the very model it trains, so that the proof need not rely on the architecture's usual sizes."""

    def layers(self, job: Job) -> Mapping[str, tuple[int, int] | None]:
        """Every linear layer with its (out, in) features."""
        ...


@runtime_checkable
class KnowsVersions(Protocol):
    """An engine that can say which versions of what made a LoRA, for its metadata."""

    def versions(self, job: Job) -> str:
        """For example "musubi-tuner 0.3.4, Python 3.11.7, torch 2.11.0"; no paths. Asked before it trains; where nothing is known yet, again after."""
        ...


def engine(name: str) -> Engine:
    """The engine of this name.

    Raises:
        UnsupportedTraining: there is none.
    """
    if name not in ENGINES:
        raise UnsupportedTraining(f"There is no training engine {name!r}. There are {', '.join(ENGINES)}.")
    module, _, cls = ENGINES[name].partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), cls)()


@runtime_checkable
class BringsData(Protocol):
    """An engine whose options name data beside the training set."""

    def with_data(self, given: Mapping[str, Option]) -> dict[str, Option]:
        """The options with a fingerprint of that data among them, so that other data is another job."""
        ...


def with_data(name: str, given: Mapping[str, Option]) -> dict[str, Option]:
    """An engine's options, complete: see BringsData."""
    chosen = engine(name)
    return chosen.with_data(given) if isinstance(chosen, BringsData) else dict(given)


def versions(job: Job) -> str:
    """Which versions of what make this job's LoRA; empty where its engine does not know (yet)."""
    chosen = engine(job.spec.engine)
    return chosen.versions(job) if isinstance(chosen, KnowsVersions) else ""


def uses_card(spec: TrainingSpec) -> bool:
    """Whether this training takes turns at the graphics card."""
    return spec.engine in ENGINES and (engine(spec.engine).uses_gpu or spec.options.get("takes_card") is True)


def supports(spec: TrainingSpec) -> None:
    """Refuse before anything is loaded what the engine cannot train.

    Raises:
        UnsupportedTraining: names the engines that can.
    """
    if (spec.kind, spec.architecture) not in engine(spec.engine).trains:
        able = [name for name in ENGINES if (spec.kind, spec.architecture) in engine(name).trains]
        raise UnsupportedTraining(
            f"{spec.engine} cannot train {spec.kind} LoRAs for {ARCHITECTURES[spec.architecture]}. Engines that can: {', '.join(able) or 'none'}."
        )


def too_many_controls(spec: TrainingSpec, count: int) -> list[str]:
    """What is wrong with so many pictures to start from per example, for this model and this engine; names the engines that take them."""
    if spec.kind == "character":
        return (
            ["the data has pictures to start from, and a character LoRA learns from captioned images: export a training set"]
            if count
            else []
        )
    if not count:
        return ["an edit LoRA learns from pairs, and the data has no pictures to start from: make correction triplets first"]
    able = [name for name in ENGINES if ("edit", spec.architecture) in engine(name).trains and count <= _most(name, spec.architecture)]
    if spec.engine in able:
        return []
    most = _most(spec.engine, spec.architecture)
    return [
        f"{spec.engine} takes {most} picture{'s' if most > 1 else ''} to start from for {ARCHITECTURES[spec.architecture]}, and the data has {count}."
        f" Engines that take {count}: {', '.join(able) or 'none'}"
    ]


def _most(name: str, architecture: str) -> int:
    """Controls that both the engine and the model take."""
    return min(engine(name).most_controls, 1 if architecture == "flux1_kontext" else MAX_CONTROLS)


def options(spec: TrainingSpec) -> Any:
    """The engine's options as its dataclass, defaults where the spec says nothing.

    Raises:
        SpecError: an option is unknown, has the wrong type or is out of range; every problem is named.
    """
    kind = engine(spec.engine).options
    if problems := list(_option_problems(kind, spec)):
        raise SpecError(f"These options of {spec.engine} do not work:", problems)
    return kind(**spec.options)


def _option_problems(kind: type, spec: TrainingSpec) -> Iterator[str]:
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    for name, value in spec.options.items():
        if name not in fields:
            yield f"{name} is no option of {spec.engine}; there are {', '.join(fields) or 'none'}"
            continue
        choices, hint, metadata = get_args(hints[name]), hints[name], fields[name].metadata
        if choices:
            if value not in choices:
                yield f"{name} is {value!r}: it must be one of {', '.join(map(str, choices))}"
        elif not isinstance(value, (int, float) if hint is float else hint) or (isinstance(value, bool) and hint is not bool):
            yield f"{name} is {value!r}: it must be {dict(bool='true or false', int='a whole number', float='a number', str='a text')[hint.__name__]}"
        elif "min" in metadata and isinstance(value, (int, float)) and not metadata["min"] <= value <= metadata["max"]:
            yield f"{name} is {value:g}: it must lie between {metadata['min']:g} and {metadata['max']:g}"
