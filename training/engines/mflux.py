"""mflux on Apple machines: characters and edits with one control for FLUX.2 [klein]. It trains FLUX.1 no more, and no Qwen-Image-Edit.

Read at version 0.18, which prints a bar without a loss, and keeps all it knows in a zip per checkpoint. It counts epochs, not steps, so the last
epoch is finished even when that is a few steps more. Source: mflux's models/common/training and README.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...flywheel.images import write_json, write_whole
from ..errors import EngineNotInstalled, TrainingFailed
from ..job import Job
from ..spec import TrainingSpec
from . import _dataset, _environment, _launch

PROGRAM = "MFLUX_TRAIN"
LAYOUT = "mflux"
BLOCKS: Mapping[str, tuple[str, int, int]] = {  # its name for the model, double and single blocks
    "flux2_klein_4b": ("flux2-klein-base-4b", 5, 20),
    "flux2_klein_9b": ("flux2-klein-base-9b", 8, 24),
}
DOUBLE = ("to_q", "to_k", "to_v", "to_out", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
SINGLE = ("to_qkv_mlp_proj", "to_out")
OLDEST = (0, 18)  # the oldest whose source was read
GRID = 40  # steps of the noise schedule that a training step draws from: FLUX.2's base is used with about so many
_BAR = re.compile(r"^\s*\d+%\|[^|]*\|\s*(\d+)/(\d+) \[")


@dataclass(frozen=True, slots=True)
class MfluxOptions:
    """What mflux has to know beyond the settings."""

    model_path: str = field(default="", metadata={"help": "A folder with the model. Empty: mflux downloads it from Hugging Face."})
    quantize: Literal["no", "8", "4"] = field(
        default="no", metadata={"help": "Bits the base model is held in: less memory, a little less exact."}
    )
    low_ram: bool = field(default=False, metadata={"help": "Keep encoded pictures on the disk: for machines with little memory."})


class Mflux:
    """Runs mflux-train and takes the LoRA out of its last checkpoint."""

    name: ClassVar[str] = "mflux"
    uses_gpu: ClassVar[bool] = True
    trains: ClassVar[frozenset[tuple[str, str]]] = frozenset((kind, name) for kind in ("character", "edit") for name in BLOCKS)
    most_controls: ClassVar[int] = 1
    options: ClassVar[type] = MfluxOptions

    def check(self, job: Job) -> list[str]:
        problems = _dataset.problems(job)
        if job.spec.alpha != job.spec.rank:
            problems.append("mflux writes no alpha into its files, so alpha must be the rank: leave it as it is")
        if job.spec.gradient_accumulation > 1:
            problems.append("mflux has no gradient accumulation: set it to 1")
        try:
            facts = [f"mflux: {_program()}, {(told := self.versions(job))}"]
            if (found := re.search(r"mflux (\d+)\.(\d+)", told)) and (int(found[1]), int(found[2])) < OLDEST:
                problems.append(f"{found[0]} is too old: it needs {'.'.join(map(str, OLDEST))} or newer (uv tool upgrade mflux)")
        except EngineNotInstalled as error:
            raise EngineNotInstalled("mflux cannot train this yet:", [str(error), *problems]) from error
        if problems:
            raise EngineNotInstalled("mflux cannot train this yet:", problems)
        return facts

    def versions(self, job: Job) -> str:  # noqa: ARG002 - one mflux does every job
        """Those in the environment that the program lies in; a program that lies elsewhere does not tell."""
        folder = _program().resolve().parent
        python = folder / "python"
        told = _environment.look(python, folder, (), "mflux").told if python.is_file() else ""
        return told if "mflux " in told else ", ".join(filter(None, ["mflux of unknown version", told]))

    def train(self, job: Job) -> Path:
        program = _program()
        job.append("phase", name="laying out the pictures")
        folder, dataset = _dataset.lay_out(job, LAYOUT)
        settings = config(job.spec, folder, job.folder / "out", len(dataset.pairs))
        path = job.folder / "config" / "train.json"
        write_json(path, settings)
        total = settings["training_loop"]["num_epochs"] * math.ceil(len(dataset.pairs) / job.spec.batch_size)
        last = _last(job)
        if last is None:
            shutil.rmtree(job.folder / "out", ignore_errors=True)  # it would write beside a folder that is there
            job.append("phase", name="asking mflux whether it understands the settings")
            _launch.launch(_launch.Command(program, ("--config", str(path), "--dry-run"), job.folder), job, read=lambda _: None)
        else:
            job.append("note", text=f"goes on from step {_step(last)}")
        if total > job.spec.steps:
            job.append("note", text=f"mflux counts whole rounds: it makes {total} steps")
        job.append("phase", name="loading the model, encoding pictures and captions")
        arguments = ("--resume", str(last)) if last else ("--config", str(path))
        _launch.launch(_launch.Command(program, arguments, job.folder), job, read=lambda line: _read(job, line, total))
        return _collect(job, total)


def config(spec: TrainingSpec, data: Path, out: Path, examples: int) -> dict[str, Any]:
    """The file mflux-train is given. Its `steps` are those of the noise schedule, not of the training."""
    options = MfluxOptions(**spec.options)  # type: ignore[arg-type]
    name, double, single = BLOCKS[spec.architecture]
    targets = [
        {"module_path": f"transformer_blocks.{{block}}.attn.{layer}", "blocks": {"start": 0, "end": double}, "rank": spec.rank}
        for layer in DOUBLE
    ]
    targets += [
        {"module_path": f"single_transformer_blocks.{{block}}.attn.{layer}", "blocks": {"start": 0, "end": single}, "rank": spec.rank}
        for layer in SINGLE
    ]
    return {
        "model": name,
        **({"model_path": options.model_path} if options.model_path.strip() else {}),
        "data": (data / "data").as_posix(),
        "seed": spec.seed,
        "steps": GRID,
        "guidance": 1.0,
        "quantize": None if options.quantize == "no" else int(options.quantize),
        "max_resolution": spec.resolution,
        "low_ram": options.low_ram,
        "training_loop": {
            "num_epochs": math.ceil(spec.steps / math.ceil(examples / spec.batch_size)),
            "batch_size": spec.batch_size,
            "timestep_low": 0,
            "timestep_high": GRID,
        },
        "optimizer": {"name": "AdamW", "learning_rate": spec.learning_rate},
        "checkpoint": {"output_path": out.as_posix(), "save_frequency": spec.save_every},
        "lora_layers": {"targets": targets},
    }


def _program() -> Path:
    told = os.environ.get(PROGRAM, "").strip()
    found = shutil.which(told or "mflux-train")
    if found is None:
        raise EngineNotInstalled(
            f"mflux-train was not found{f' at {told}' if told else ''}. On an Apple machine: uv tool install mflux. Or set {PROGRAM} to it, then start ComfyUI again."
        )
    return Path(found)


def _read(job: Job, line: str, total: int) -> _launch.Progress | None:
    """The training bar is the one with the right end; checkpoints are seen on the disk, since nothing is said of them."""
    found = _BAR.search(line)
    if not found or int(found[2]) != total:
        return None
    told = {event["file"] for event in job.events() if event["kind"] == "checkpoint"} if int(found[1]) % job.spec.save_every == 0 else None
    for path in _checkpoints(job) if told is not None else ():
        name = path.relative_to(job.folder).as_posix()
        if name not in (told or ()):
            job.append("checkpoint", step=_step(path), file=name)
    return _launch.Progress(int(found[1]), total)


def _checkpoints(job: Job) -> list[Path]:
    return sorted((job.folder / "out" / "checkpoints").glob("*_checkpoint.zip"))


def _step(path: Path) -> int:
    return int(path.name.partition("_")[0])


def _last(job: Job) -> Path | None:
    """The newest checkpoint that is whole."""
    return next((path for path in reversed(_checkpoints(job)) if _adapter(path)), None)


def _adapter(path: Path) -> str:
    """The name of the LoRA in a checkpoint; empty where it is damaged."""
    try:
        with zipfile.ZipFile(path) as opened:
            found = [name for name in opened.namelist() if name.endswith("_adapter.safetensors") and "/" not in name]
            return found[0] if len(found) == 1 and opened.testzip() is None else ""
    except (zipfile.BadZipFile, OSError):
        return ""


def _collect(job: Job, total: int) -> Path:
    last = _last(job)
    if last is None or _step(last) < total:
        raise TrainingFailed(
            "garbage", "mflux ended without an error, but did not finish its LoRA.", "Read log.txt; queue again to go on.", ()
        )
    result = job.folder / "result" / f"mflux-{job.id}.safetensors"
    with zipfile.ZipFile(last) as opened:
        write_whole(result, opened.read(_adapter(last)))
    return result
