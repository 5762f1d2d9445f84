"""A trainer without a model: it learns the average of your pictures with two small matrices, and leaves the same traces as a real one.

Every event, checkpoint, sample and file is real, and so is the falling loss; the LoRA it writes fits the architecture and loads everywhere,
but changes next to nothing. It is the dry run of the whole wheel.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from ...flywheel.images import open_image, png_bytes, write_whole
from ..errors import Stopped, TrainingFailed
from ..job import Job
from ..proof import ATTENTION, modules
from ..spec import ARCHITECTURES, TrainingSpec
from ..trainset import read

SIDE = 32  # px: the picture it learns is SIDE high and SIDE wide, its three colours side by side
NOISE = 0.05  # of the picture each step sees, so that the loss looks like one
TOUCH = 1e-4  # size of what the LoRA changes: it must load and be seen by nobody
KEPT = 2  # checkpoints
PREFIX = {"qwen_image_edit": "transformer_blocks.0.attn."}  # as trainers of it write; all others as diffusers does


@dataclass(frozen=True, slots=True)
class RehearsalOptions:
    """How the rehearsal behaves."""

    seconds_per_step: float = field(
        default=0.02,
        metadata={"help": "Pause per step, so that there is something to watch, stop and kill.", "min": 0.0, "max": 60.0, "step": 0.01},
    )
    takes_card: bool = field(
        default=False, metadata={"help": "Wait for a turn at the graphics card and let ComfyUI wait, as a real training does."}
    )
    trouble: Literal["none", "nan loss", "out of memory", "crash", "garbage"] = field(
        default="none", metadata={"help": "What goes wrong half way, to see what a failure looks like."}
    )


class Rehearsal:
    """Two matrices and Adam, in numpy."""

    name: ClassVar[str] = "rehearsal"
    uses_gpu: ClassVar[bool] = False
    trains: ClassVar[frozenset[tuple[str, str]]] = frozenset((kind, arch) for kind in ("character", "edit") for arch in ARCHITECTURES)
    most_controls: ClassVar[int] = 3
    options: ClassVar[type] = RehearsalOptions

    def check(self, job: Job) -> list[str]:  # noqa: ARG002 - other engines look into it
        return ["rehearsal: no model is needed; the LoRA will fit, and change next to nothing"]

    def versions(self, job: Job) -> str:  # noqa: ARG002 - its own are those of this Python
        return f"Python {platform.python_version()}, numpy {np.__version__}"

    def train(self, job: Job) -> Path:
        spec, options = job.spec, RehearsalOptions(**job.spec.options)  # type: ignore[arg-type]
        job.append("phase", name="reading the pictures")
        goal = _average(job)
        state = _latest(job, spec) or _State.fresh(spec)
        if state.step:
            job.append("note", text=f"goes on from step {state.step}")
        while state.step < spec.steps:
            if job.stop_wanted:
                _save(job, state, spec)
                raise Stopped
            time.sleep(options.seconds_per_step)
            loss = state.learn(goal, spec)
            if state.step >= max(1, spec.steps // 2):
                loss = _trouble(options.trouble, loss, state.step)
            job.append("step", step=state.step, loss=round(loss, 6), lr=spec.learning_rate)
            if state.step % spec.save_every == 0 or state.step == spec.steps:
                _save(job, state, spec)
                _sample(job, state, spec)
        if options.trouble == "garbage":
            write_whole(job.folder / "result" / "rehearsal.safetensors", b"not a LoRA")
        else:
            _write_lora(job.folder / "result" / "rehearsal.safetensors", state, spec)
        return job.folder / "result" / "rehearsal.safetensors"


@dataclass(slots=True)
class _State:
    """Everything that a resume needs. down: (rank, 3 * SIDE), up: (SIDE, rank); moments of Adam for both."""

    step: int
    down: np.ndarray
    up: np.ndarray
    moments: list[np.ndarray]

    @classmethod
    def fresh(cls, spec: TrainingSpec) -> _State:
        start = np.random.default_rng(spec.seed)
        down, up = start.normal(0, 0.2, (spec.rank, 3 * SIDE)), np.zeros((SIDE, spec.rank))
        return cls(0, down, up, [np.zeros_like(part) for part in (down, up) for _ in range(2)])

    def learn(self, goal: np.ndarray, spec: TrainingSpec) -> float:
        """One step of Adam; the noise of a step depends on seed and step alone, so a resumed run equals an uninterrupted one."""
        self.step += 1
        seen = goal + np.random.default_rng([spec.seed, self.step]).normal(0, NOISE, goal.shape)
        error = self.up @ self.down - seen
        gradients = (self.up.T @ error, error @ self.down.T)
        for number, (part, gradient) in enumerate(zip((self.down, self.up), gradients, strict=True)):
            first, second = self.moments[2 * number], self.moments[2 * number + 1]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            rate = spec.learning_rate * 100 * (1 - 0.999**self.step) ** 0.5 / (1 - 0.9**self.step)
            part -= rate * first / (np.sqrt(second) + 1e-8)
        return float((error**2).mean())

    def picture(self) -> Image.Image:
        """What was learnt so far."""
        pixels = np.clip((self.up @ self.down).reshape(SIDE, 3, SIDE).transpose(0, 2, 1) + 0.5, 0, 1)
        return Image.fromarray((pixels * 255).round().astype(np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)


def _average(job: Job) -> np.ndarray:
    """The average picture, (SIDE, 3 * SIDE), around 0."""
    pictures = [
        np.asarray(open_image(example.image, at_least=4 * SIDE).image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float) / 255 - 0.5
        for example in read(job.dataset).examples
    ]
    return np.mean(pictures, axis=0).transpose(0, 2, 1).reshape(SIDE, 3 * SIDE)


def _trouble(kind: str, loss: float, step: int) -> float:
    """What the option asks for, the way it really arrives."""
    if kind == "nan loss":
        raise TrainingFailed(
            "nan", f"The loss became nan at step {step}.", "Lower the learning rate, for example to half, and train again."
        )
    if kind == "out of memory":
        raise MemoryError(f"rehearsed at step {step}")
    if kind == "crash":
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    return loss


def _save(job: Job, state: _State, spec: TrainingSpec) -> None:
    from safetensors.numpy import save

    name = f"checkpoints/step-{state.step:08}.safetensors"
    if (job.folder / name).is_file():
        return
    tensors = {"down": state.down, "up": state.up, **{f"moment{number}": part for number, part in enumerate(state.moments)}}
    write_whole(job.folder / name, save(tensors, {"step": json.dumps(state.step), "job": spec.id}))
    job.append("checkpoint", step=state.step, file=name)
    for old in sorted(job.checkpoints.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()


def _latest(job: Job, spec: TrainingSpec) -> _State | None:
    """The newest checkpoint that is whole; damaged ones are told and passed over."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    for path in sorted(job.checkpoints.glob("step-*.safetensors"), reverse=True):
        try:
            tensors: dict[str, Any] = load(path.read_bytes())
            step = int(path.stem.partition("-")[2])
            moments = [tensors[f"moment{number}"].copy() for number in range(4)]
            state = _State(step, tensors["down"].copy(), tensors["up"].copy(), moments)
        except (SafetensorError, KeyError, ValueError) as error:
            job.append("note", text=f"{path.name} is damaged ({error}) and was passed over")
            continue
        if state.down.shape == (spec.rank, 3 * SIDE):
            return state
        job.append("note", text=f"{path.name} is of another run and was passed over")
    return None


def _sample(job: Job, state: _State, spec: TrainingSpec) -> None:
    for number in range(max(1, len(spec.sample_prompts))):
        name = f"samples/step-{state.step:08}-{number:02}.png"
        write_whole(job.folder / name, png_bytes(state.picture()))
        job.append("sample", step=state.step, prompt=number, file=name)


def _write_lora(path: Path, state: _State, spec: TrainingSpec) -> None:
    """What was learnt, in a corner of the first attention layers of the architecture."""
    from safetensors.numpy import save

    wide = (modules(spec.architecture)[f"transformer_blocks.0.attn.{ATTENTION[0]}"] or (0, 0))[0]
    down, up = np.zeros((spec.rank, wide), np.float32), np.zeros((wide, spec.rank), np.float32)
    down[:, : 3 * SIDE], up[:SIDE] = state.down, state.up * TOUCH
    tensors: dict[str, np.ndarray] = {}
    for layer in ATTENTION[:3]:
        name = PREFIX.get(spec.architecture, "transformer.transformer_blocks.0.attn.") + layer
        tensors |= {f"{name}.lora_A.weight": down.astype(np.float16), f"{name}.lora_B.weight": up.astype(np.float16)}
        tensors[f"{name}.alpha"] = np.array(spec.alpha, np.float32)
    write_whole(path, save(tensors, {"format": "pt"}))
