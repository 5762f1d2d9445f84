"""The training itself. Everything random is a function of seed and step, so stop, kill and resume leave no trace in the result."""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from ....flywheel.images import png_bytes, write_whole
from ....flywheel.pair_slots import open_header
from ...errors import Stopped, TrainingFailed
from ...job import Job
from ...trainset import Example, TrainingSet, read
from . import checkpoint, draws, plan
from .base import family_of
from .board import Board
from .crew import Crew, crew
from .families import Encoded, Family, Shown
from .network import Network

if TYPE_CHECKING:
    from . import PeftQloraOptions

SAY_EVERY_S = 2.0
SAMPLES = 3  # where no prompts were given
LATER = "Lower the learning rate, for example to half, and train again."


def train(job: Job, options: PeftQloraOptions, member: Crew | None = None) -> Path:
    """Train to the end and answer the LoRA file. `member`: which of several processes this is; without it the others are started here.

    Raises:
        Stopped, TrainingFailed: see `Engine.train`.
    """
    if member is not None:
        return Training(job, options, member=member).run()
    with crew(job, options.gpus) as first:
        return Training(job, options, member=first).run()


class Training:
    """One run of one job."""

    def __init__(self, job: Job, options: PeftQloraOptions, family: Family | None = None, member: Crew | None = None) -> None:
        self.job, self.spec, self.options = job, job.spec, options
        self.crew = member or Crew()
        self.family = family or family_of(job, options, self.crew.rank)
        self.batches = self.spec.gradient_accumulation * self.crew.world  # per step
        found = read(job.dataset)
        self.shown = [self._shown(example) for example in found.examples]
        if not self.shown:
            raise TrainingFailed("data", f"{job.dataset.name} holds no examples.", "Make the training set again.")
        self.order = plan.order(
            [one.sizes for one in self.shown], [one.example.repeats for one in self.shown], self.spec.batch_size, self.spec.seed
        )
        self.validated = [self._shown(example) for example in _validated(found, options.validate)]
        self.samples = self._samples(found) if options.sample_steps else []
        self.said = ("", 0.0)
        self.network: Any = None
        self.optimizer: Any = None

    # --- before

    def _shown(self, example: Example) -> Shown:
        pictures = [open_header(path) for path in (example.image, *example.controls)]
        target, *controls = [(picture.width, picture.height) for picture in pictures]
        spec = self.spec
        return Shown(example, plan.sizes(target, controls, spec.resolution, spec.batch_size, self.options.control_megapixels))

    def _samples(self, found: TrainingSet) -> list[tuple[Shown, str]]:
        """Prompts with the pictures they start from: held-out ones where there are some."""
        pool = [self._shown(example) for example in (found.held_out or found.examples)[: max(SAMPLES, len(self.spec.sample_prompts))]]
        if self.spec.sample_prompts:
            return [(pool[number % len(pool)], prompt) for number, prompt in enumerate(self.spec.sample_prompts)]
        return [(one, one.example.caption) for one in pool[:SAMPLES]]

    def _say(self, what: str) -> None:
        """Tell the phase, not more often than a person reads; a chance to stop."""
        if self.job.stop_wanted:
            raise Stopped
        topic, at = self.said
        begun = what.split(",")[0].rstrip("0123456789 of")
        if begun != topic or time.monotonic() - at > SAY_EVERY_S:
            self.said = (begun, time.monotonic())
            self.job.append("phase", name=what)

    def prepare(self) -> int:
        """Encode, load, resume; the answer is the step that was reached before."""
        self.crew.join(self.family.device)
        if self.crew.leads:
            self._load()
        self.crew.agreed(True, self.family.device)
        if not self.crew.leads:  # by now everything is encoded and quantised, and is read from the disk
            self._load()
        transformer = self.family.transformer
        self.network = Network(
            transformer,
            self.family.targets[self.options.targets],
            rank=self.spec.rank,
            alpha=self.spec.alpha,
            seed=self.spec.seed,
            ema=self.options.ema,
        )
        if self.options.checkpointing != "off":
            transformer.enable_gradient_checkpointing(_keeping_attention if self.options.checkpointing == "keep attention" else None)
        self.optimizer = _optimizer(self.network.parameters, self.spec.learning_rate, self.options)
        return checkpoint.resume(self.job, self.network, self.optimizer)

    def _load(self) -> None:
        every = [*self.shown, *self.validated]
        prompts = [one.example.caption for one in every]
        self.family.encode([*every, *(one for one, _ in self.samples)], [*prompts, *(prompt for _, prompt in self.samples)], self._say)
        self.family.load(self._times(), [one.sizes[0] for one, _ in self.samples], self._say)

    def _times(self) -> torch.Tensor:
        """Every noise level of the run: they are known beforehand."""
        told: list[torch.Tensor] = []
        for number in range(self.spec.steps * self.batches):
            chosen = self.order.batch(number)
            told.append(draws.step_times(self.spec.seed, number, len(chosen), self.family.shift(self.shown[chosen[0]].sizes[0])))
        told += [draws.validation_times(self.family.shift(one.sizes[0])) for one in self.validated]
        return torch.unique(torch.cat(told))

    # --- steps

    def run(self) -> Path:
        try:
            return self._run()
        finally:
            self.crew.leave()

    def _run(self) -> Path:
        step = self.prepare()
        board = Board(self.job.folder / "tensorboard", step) if self.crew.leads else None
        if step:
            self.job.append("note", text=f"goes on from step {step}")
        else:
            self._look(0, board)
        self.job.append("phase", name="training")
        with contextlib.closing(board) if board else contextlib.nullcontext():
            while step < self.spec.steps:
                if self.crew.agreed(self.job.stop_wanted, self.family.device):
                    self._save(step)
                    raise Stopped
                step += 1
                self.step(step, board)
                if step % self.spec.save_every == 0 or step == self.spec.steps:
                    self._save(step)
                    self._look(step, board)
            return self._finished()

    def _save(self, step: int) -> None:
        if self.crew.leads:
            checkpoint.save(self.job, step, self.network, self.optimizer)

    def step(self, step: int, board: Board | None = None) -> float:
        """One optimizer update; the answer is its loss.

        Raises:
            TrainingFailed: the loss is no number any more.
        """
        rate = self.spec.learning_rate * plan.rate(step, self.spec.steps, self.options.warmup, self.options.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number in range((step - 1) * self.batches + self.crew.rank, step * self.batches, self.crew.world):
            loss = self._loss(number) / self.batches
            loss.backward()
            total += float(loss.detach())
        total = self.crew.add_up(self.network.parameters, total)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters, self.options.max_grad_norm or math.inf)
        size = float(norm)
        for what, value in (("loss", total), ("length of the gradients", size)):
            if not math.isfinite(value):
                raise TrainingFailed("nan", f"The {what} became {value} at step {step}.", LATER)
        self.optimizer.step()
        self.network.learnt()
        self.job.append("step", step=step, loss=round(total, 6), lr=rate, grad_norm=round(size, 6))
        if board:
            board.add(step, loss=total, learning_rate=rate, grad_norm=size)
        return total

    def _loss(self, number: int) -> torch.Tensor:
        chosen = [self.shown[one] for one in self.order.batch(number)]
        encoded = [self.family.encoded(one, one.example.caption) for one in chosen]
        clean = torch.cat([one.target for one in encoded])
        shift = self.family.shift(chosen[0].sizes[0])
        drawn = draws.draw(self.spec.seed, number, clean.shape, shift, self.options.caption_dropout)
        return self._error(encoded, chosen, drawn)

    def _error(self, encoded: Sequence[Encoded], chosen: Sequence[Shown], drawn: draws.Draw) -> torch.Tensor:
        """Mean squared error of the velocity, which is noise minus picture."""
        clean = torch.cat([one.target for one in encoded])
        x = draws.noised(clean, drawn.noise, drawn.times)
        place = self.network.parameters[0].device
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type != "cpu"):
            velocity = self.family.velocity(encoded, chosen, drawn.blank, x, drawn.times)
        return torch.nn.functional.mse_loss(velocity, (drawn.noise - clean).to(velocity))

    # --- looking

    def _look(self, step: int, board: Board | None) -> None:
        """Validation loss and samples, with the average where one is kept."""
        if not self.crew.leads:
            return
        with self.network.averaged():
            if (loss := self.validation_loss()) is not None:
                self.job.append("validation", step=step, loss=round(loss, 6), examples=len(self.validated))
                if board:
                    board.add(step, validation_loss=loss)
            for number, (shown, prompt) in enumerate(self.samples):
                picture = self.family.sample(self.family.encoded(shown, prompt), shown, self.spec.seed + number)
                name = f"samples/step-{step:08}-{number:02}.png"
                write_whole(self.job.folder / name, png_bytes(picture))
                self.job.append("sample", step=step, prompt=number, file=name)
            if 0 < step < self.spec.steps:
                _write_lora(self.job.folder / "out" / f"step-{step:08}.safetensors", self.network, self._facts())
        if torch.cuda.is_available() and self.network.parameters[0].is_cuda:
            self.job.append("memory", peak_bytes=torch.cuda.max_memory_allocated(), device="cuda:0")

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """Mean over held-out examples at fixed noise and noise levels: comparable from step to step and from run to run."""
        losses: list[float] = []
        for number, shown in enumerate(self.validated):
            encoded = self.family.encoded(shown, shown.example.caption)
            for level in draws.validation_times(self.family.shift(shown.sizes[0])):
                noise = torch.randn(encoded.target.shape, generator=draws.generator("validation", number, float(level)))
                losses.append(float(self._error([encoded], [shown], draws.Draw(level[None], noise, (False,)))))
        return mean(losses) if losses else None

    # --- after

    def _facts(self) -> dict[str, str]:
        return {
            "format": "pt",
            "flenwheel.model": self.family.model_name,
            "flenwheel.precision": self.options.precision,
            "flenwheel.resolution": str(self.spec.resolution),
            "flenwheel.control_megapixels": f"{self.options.control_megapixels:g}",
        }

    def _finished(self) -> Path:
        path = self.job.folder / "result" / "peft_qlora.safetensors"
        if not self.crew.leads:
            return path
        with self.network.averaged():
            _write_lora(path, self.network, self._facts())
        best = min(((event["loss"], event["step"]) for event in self.job.events() if event["kind"] == "validation"), default=None)
        if best and 0 < best[1] < self.spec.steps:
            self.job.append(
                "note", text=f"the validation loss was lowest at step {best[1]} ({best[0]:.4g}): out/step-{best[1]:08}.safetensors"
            )
        return path


def _write_lora(path: Path, network: Network, facts: dict[str, str]) -> None:
    from safetensors.torch import save

    write_whole(path, save(network.tensors(), facts))


def _validated(found: TrainingSet, count: int) -> Sequence[Example]:
    """Held-out examples; where none are held out, some that are trained, whose loss still shows whether anything is learnt."""
    if found.held_out:
        return found.held_out[:count]
    apart = max(1, len(found.examples) // max(1, count))
    return found.examples[::apart][:count]


def _optimizer(parameters: list[torch.nn.Parameter], rate: float, options: PeftQloraOptions) -> Any:
    if options.optimizer == "adamw8bit":
        optim: Any = importlib.import_module("bitsandbytes.optim")
        return optim.AdamW8bit(parameters, lr=rate, weight_decay=options.weight_decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=options.weight_decay)


def _keeping_attention(module: Any, *args: Any) -> Any:
    """Checkpointing that keeps what attention answered, so that its forward pass is not made twice."""
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    def policy(_: Any, op: Any, *__: Any, **___: Any) -> Any:
        kept = "scaled_dot_product" in str(op)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(policy))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Also the CPU's, which is no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
