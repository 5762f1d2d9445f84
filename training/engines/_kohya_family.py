"""What sd-scripts and musubi-tuner have in common, being one author's: the bar they draw, the states they save, the way they go on.

Neither counts on after a resume: a launch counts from 0 and trains what remains, under an output name of its own. Both save on no signal.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...flywheel.images import write_whole
from ..errors import TrainingFailed
from ..job import Job
from ..spec import TrainingSpec
from . import _launch

_BAR = re.compile(
    r"(?<!Denoising )steps:\s+\d+%\|[^|]*\|\s*(\d+)/(\d+) \[[^\]]*?(?:avr_loss=([-+.\w]+))?\]"
)  # a sample has a bar of its own
_SAVED = re.compile(r"saving checkpoint: .*-step(\d{8})\.safetensors")
_SAMPLE = re.compile(r"_e?(?P<step>000000|(?<!e)\d{6})_(?P<prompt>\d{2})_\d+")  # the first is called epoch 0; other epochs repeat a step
PROMPTS = "prompts.json"  # as text a prompt could not hold " --", nor begin with "#" or "I "
SAMPLE_STEPS = 20
LAST_OF_A_STATE = "random_states_0.pkl"  # written last: a state that has it is whole


def read(line: str) -> _launch.Progress | None:
    """A line of the progress bar, as tqdm draws it."""
    found = _BAR.search(line)
    return _launch.Progress(int(found[1]), int(found[2]), float(found[3]) if found[3] else None) if found else None


def train(
    job: Job,
    engine: str,
    settings: Callable[[int, Path | None], Mapping[str, Any]],
    command: Callable[[Path], _launch.Command],
) -> Path:
    """Train what remains and answer the LoRA file. `settings`: of a launch, from the steps done and the state they left; `command`: for a config file.

    Raises:
        Stopped, TrainingFailed: as `_launch.launch`.
    """
    done, state = resume_point(job)
    if done >= job.spec.steps:
        return _collect(job, engine, None)
    attempt = len(list((job.folder / "config").glob("train-*.toml"))) + 1
    name = f"{job.id}-{attempt}"  # a second launch never overwrites what the first saved
    path = job.folder / "config" / f"train-{attempt}.toml"
    written = {**settings(done, state), "output_name": name}
    _launch.write_text(path, f"# {job.spec.project}: {job.spec.kind} LoRA, attempt {attempt}\n{_launch.toml(written)}")
    if state:
        job.append("note", text=f"goes on from step {done}")
    _launch.launch(
        command(path),
        job,
        read=read,
        done=done,
        seen=lambda line: _noticed(job, line, done, name),
        stepped=lambda step: _samples(job, done, name, before=step),
    )
    _samples(job, done, name)
    return _collect(job, engine, job.folder / "out" / f"{name}.safetensors")


def sampling(spec: TrainingSpec, folder: Path, resumes: bool) -> dict[str, Any]:
    """Settings that both understand: samples before the first step, so without the LoRA, and at every checkpoint. Nothing where there are no prompts."""
    if not spec.sample_prompts:
        return {}
    return {
        "sample_prompts": folder / "config" / PROMPTS,
        "sample_every_n_steps": spec.save_every,
        "sample_at_first": not resumes,
    }


def prompts(spec: TrainingSpec, drawn_with: Callable[[int], Mapping[str, Any]]) -> str:
    """The sample prompts as JSON, which both read. `drawn_with`: what the prompt of this number has beside size, steps and seed."""
    side = min(spec.resolution, 1024)
    rows = [
        {
            "prompt": " ".join(prompt.split()),
            "width": side,
            "height": side,
            "sample_steps": SAMPLE_STEPS,
            "seed": spec.seed,
            **drawn_with(number),
        }
        for number, prompt in enumerate(spec.sample_prompts)
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def keeping(spec: TrainingSpec, folder: Path, optimizer: str, blocks_to_swap: int) -> dict[str, Any]:
    """Settings that both understand: what is saved and when, and what the optimizer and the swapping of blocks need."""
    settings: dict[str, Any] = {
        "save_every_n_steps": spec.save_every,
        "save_last_n_steps": 4 * spec.save_every,
        "save_state": True,
        "save_last_n_steps_state": spec.save_every,
        "seed": spec.seed,
        "logging_dir": folder / "logs",
    }
    if optimizer.lower() == "adafactor":
        settings |= {"optimizer_args": ["relative_step=False", "scale_parameter=False", "warmup_init=False"], "max_grad_norm": 0.0}
    if blocks_to_swap:
        settings["blocks_to_swap"] = blocks_to_swap
    return settings


def resume_point(job: Job) -> tuple[int, Path | None]:
    """Steps done and the newest state that is whole."""
    saved = sorted((event["step"], job.folder / event["file"]) for event in job.events() if event["kind"] == "checkpoint")
    whole = [(step, state) for step, state in saved if (state / LAST_OF_A_STATE).is_file()]
    return whole[-1] if whole else (0, None)


def _noticed(job: Job, line: str, done: int, output_name: str) -> None:
    """A checkpoint in the log becomes an event; what a resume needs is written down, since the trainer counts from 0 again."""
    if not (found := _SAVED.search(line)):
        return
    step = int(found[1])
    state = job.folder / "out" / f"{output_name}-step{step:08}-state"
    job.append("checkpoint", step=done + step, file=state.relative_to(job.folder).as_posix())
    _samples(job, done, output_name)


def _samples(job: Job, done: int, output_name: str, before: float = math.inf) -> None:
    """Those of one launch: their names count from 0, as it does. Of the step `before`, and later ones, a file may still be half written."""
    told = {event["file"] for event in job.events() if event["kind"] == "sample"}
    for path in sorted((job.folder / "out" / "sample").glob(f"{output_name}_*.png")):
        name, found = path.relative_to(job.folder).as_posix(), _SAMPLE.search(path.name)
        if found and name not in told and int(found["step"]) < before:
            job.append("sample", step=done + int(found["step"]), prompt=int(found["prompt"]), file=name)


def _collect(job: Job, engine: str, made: Path | None) -> Path:
    """The final file, copied to where results lie: a trainer's exit code alone says nothing."""
    made = made or _launch.newest((job.folder / "out").glob("*.safetensors"))
    if made is None or not made.is_file():
        raise TrainingFailed(
            "garbage", f"{engine} ended without an error, but wrote no LoRA.", "Read log.txt: most often it found no pictures.", ()
        )
    result = job.folder / "result" / f"{job.spec.engine}-{made.name}"
    write_whole(result, made.read_bytes())
    return result
