"""ostris/ai-toolkit: FLUX.1 and FLUX.2 [klein] characters, edit LoRAs for Qwen-Image-Edit (up to three controls), Kontext and klein. Version 0.12.26.

One program from a config file, of which it ignores every key it does not know, so the keys are looked for in its source first. A control that is
missing lets the later ones move up a slot without a word, so the folders are read back before every launch. It goes on by itself from the newest
file under the same name. Source: its config/examples, its user interface and its source.
"""

from __future__ import annotations

import contextlib
import math
import re
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...flywheel.images import write_json, write_whole
from .. import trainset
from ..errors import EngineNotInstalled, TrainingFailed
from ..job import Job
from ..spec import ARCHITECTURES, TrainingSpec
from . import _dataset, _environment, _launch, _weights
from ._ai_toolkit_config import MARKER, MODELS, ONE_CONTROL, QWEN, AiToolkitOptions, arch, block_problems, config, generation

ROOT, PYTHON = "AITK_ROOT", "AITK_PYTHON"
NAMES = ("ai-toolkit", "ai_toolkit")
MODULES = ("transformers", "diffusers", "accelerate", "peft", "optimum", "torchao", "lycoris", "oyaml", "cv2", "bitsandbytes")
LAYOUT = "ai-toolkit"
FLUX2_VAE = "ai-toolkit/flux2_vae"
_BAR = re.compile(r"%\|[^|]*\|\s*(\d+)/(\d+) \[[^\]]*?lr: [-+.\w]+ loss: ([-+.\w]+)")
_SAVED = re.compile(r"Saved checkpoint to (.+_(\d{9})\.safetensors)")
_SAMPLE = re.compile(r"__(\d{9})_(\d+)\.\w+$")
_SAVED_ALL = "Saved optimizer to"
SAVE_S = 300.0  # how long a stop waits for the checkpoint it asked for
_SKIPPED = "OOM during training step"
_UNREAD = re.compile(r"Error (?:loading|processing) (?:control )?(?:image|file)")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


class AiToolkit:
    """Runs ai-toolkit's run.py and understands what it says."""

    name: ClassVar[str] = "ai_toolkit"
    uses_gpu: ClassVar[bool] = True
    trains: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        {("character", name) for name in ("flux1", "flux2_klein_4b", "flux2_klein_9b")}
        | {("edit", name) for name in MODELS if name != "flux1"}
    )
    most_controls: ClassVar[int] = 3
    options: ClassVar[type] = AiToolkitOptions

    def check(self, job: Job) -> list[str]:
        problems, facts = list[str](), list[str]()
        try:
            root = _launch.checkout(ROOT, MARKER, NAMES, job.places.near)
            found = _found(root)
            facts.append(f"ai-toolkit {_version(root)}: {root.name}, {found}")
            problems += found.problems
            problems += block_problems(config(job.spec, "model", Path(), Path(), None), root)
        except EngineNotInstalled as error:
            problems += error.problems or [str(error)]
        model, wrong = _model(job)
        problems += wrong
        if downloads := _downloads(job.spec, model):
            facts.append(f"ai-toolkit takes {', '.join(downloads)} from Hugging Face; what is not there yet it downloads at its start")
        if job.spec.alpha != job.spec.rank:
            problems.append("ai-toolkit makes alpha the rank, whatever it is told, so alpha must be the rank: leave it as it is")
        problems += _dataset.problems(job) or _control_problems(job)
        problems += _unspeakable(job)
        if problems:
            raise EngineNotInstalled("ai-toolkit cannot train this yet:", problems)
        return facts

    def versions(self, job: Job) -> str:
        root = _launch.checkout(ROOT, MARKER, NAMES, job.places.near)
        return f"ai-toolkit {_version(root)}, {_found(root).told}"

    def train(self, job: Job) -> Path:
        root = _launch.checkout(ROOT, MARKER, NAMES, job.places.near)
        job.append("phase", name="laying out the pictures")
        folder, dataset = _dataset.lay_out(job, LAYOUT)
        path = job.folder / "config" / f"{job.id}.json"
        write_json(path, config(job.spec, _model(job)[0], job.folder, folder, dataset))
        if checkpoint := _launch.newest(_numbered(job)):
            job.append("note", text=f"goes on from {checkpoint.name}")
        job.append("phase", name="loading the model, caching images and captions")
        control = _Control(job.folder / "aitk.db", job)
        control.create()
        command = _launch.Command(_launch.interpreter(root, PYTHON), (str(root / "run.py"), str(path)), root, {"AITK_JOB_ID": job.id})
        _launch.launch(command, job, read=read, seen=control.seen, stepped=lambda step: _sampled(job, before=step), ready=control.saved)
        return _collect(job)


@dataclass(slots=True)
class _Control:
    """The small database through which ai-toolkit's own interface speaks to a training: here it asks for a checkpoint before a stop.

    Source: extensions_built_in/sd_trainer/DiffusionTrainer.py, which looks into it at every step.
    """

    path: Path
    job: Job
    asked_at: float = 0.0
    is_saved: bool = False

    def create(self) -> None:
        self.path.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(self.path)) as store, store:
            store.execute(
                "CREATE TABLE Job (id TEXT PRIMARY KEY, name TEXT, status TEXT, info TEXT, step INTEGER, total_steps INTEGER, speed_string TEXT,"
                " stop INTEGER DEFAULT 0, return_to_queue INTEGER DEFAULT 0, save_now INTEGER DEFAULT 0, sample_now INTEGER DEFAULT 0, pid INTEGER)"
            )
            store.execute("INSERT INTO Job (id, name, step) VALUES (?, ?, 0)", (self.job.id, self.job.id))

    def seen(self, line: str) -> None:
        _noticed(self.job, line)
        self.is_saved = self.is_saved or (bool(self.asked_at) and _SAVED_ALL in line)

    def saved(self) -> bool:
        """Whether the training may be ended: nothing was learnt yet, it is saved, or it does not answer."""
        if self.job.status().step == 0 or self.is_saved:
            return True
        if not self.asked_at:
            self.asked_at = time.monotonic()
            self.job.append("phase", name="saving before the stop")
            with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(self.path, timeout=5)) as store, store:
                store.execute("UPDATE Job SET save_now = 1 WHERE id = ?", (self.job.id,))
        return time.monotonic() - self.asked_at > SAVE_S


def read(line: str) -> _launch.Progress | None:
    """A line of the training bar; its other bars have no rate in them. It counts on after a resume."""
    found = _BAR.search(line)
    return _launch.Progress(int(found[1]), int(found[2]), float(found[3])) if found else None


def _model(job: Job) -> tuple[str, list[str]]:
    """What name_or_path says, and why that does not work."""
    spec, problems = job.spec, list[str]()
    which = generation(spec)
    usual = MODELS[spec.architecture].hub
    if spec.architecture == "qwen_image_edit":
        usual = QWEN.get(which, QWEN["edit-2509"])[1]
        problems += [] if which else [_weights.QWEN_UNKNOWN.format(name=spec.options.get("model") or spec.base_model)]
    wanted = str(spec.options.get("model", "")).strip() or usual
    found = job.places.find(wanted)
    if found is None:
        if not _HUB.fullmatch(wanted) or wanted.endswith((".safetensors", ".gguf")):
            problems.append(f"model is {wanted!r}: neither a folder that is there nor a name on Hugging Face")
        return wanted, problems
    return found.as_posix(), [*problems, *_place_problems(spec, found)]


def _place_problems(spec: TrainingSpec, found: Path) -> list[str]:
    """Why ai-toolkit cannot read the model in this file or folder."""
    file, called = MODELS[spec.architecture].file, ARCHITECTURES[spec.architecture]
    if file:
        path = found / file if found.is_dir() else found
        if not path.is_file():
            return [f"{found.name} holds no {file}, and of {called} ai-toolkit reads nothing else: put it there"]
        take = f"take {file} as Black Forest Labs published it"
        return list(filter(None, [_weights.model_problem(path, "ai-toolkit", called, ("double_blocks.",), take)]))
    if found.is_file():
        return [f"{found.name} is a single file; for {called} ai-toolkit needs a folder in diffusers' layout"]
    return list(filter(None, [_weights.folder_problem(found, spec.architecture)]))


def _downloads(spec: TrainingSpec, model: str) -> list[str]:
    """What it takes from Hugging Face, by name."""
    found = [model] if _HUB.fullmatch(model) else []
    if encoder := MODELS[spec.architecture].encoder:
        found += [encoder, *([] if (Path(model) / "ae.safetensors").is_file() else [FLUX2_VAE])]
    return found


def _control_problems(job: Job) -> list[str]:
    """What its models cannot do with these controls: take several, or lay controls of several sizes into one batch, since they are not scaled."""
    spec = job.spec
    found = trainset.read(job.dataset)
    if arch(spec) in ONE_CONTROL:
        return [_weights.QWEN_ONE.format(count=found.controls)] if generation(spec) == "edit" and found.controls > 1 else []
    paired = trainset.pairs_of(found) if spec.batch_size > 1 else None
    slots = zip(*(pair.controls for pair in paired.pairs), strict=True) if paired else ()
    sizes = [len({(one.width, one.height) for one in slot}) for slot in slots]
    return [
        f"the pictures of control {slot} have {count} sizes, which ai-toolkit cannot put into one batch: set batch_size to 1"
        f" and gradient_accumulation to {spec.batch_size * spec.gradient_accumulation}, which comes to the same"
        for slot, count in enumerate(sizes, 1)
        if count > 1
    ]


def _unspeakable(job: Job) -> list[str]:
    """Texts that ai-toolkit would replace in its config."""
    texts = {"a sample prompt": " ".join(job.spec.sample_prompts), "the project's path": str(job.folder)}
    return [
        f"{what} holds {mark}, which ai-toolkit replaces: take it out"
        for what, text in texts.items()
        for mark in ("${", "[name]")
        if mark in text
    ]


def _found(root: Path) -> _environment.Environment:
    return _environment.look(_launch.interpreter(root, PYTHON), root, MODULES, f"-r {root / 'requirements.txt'}")


def _version(root: Path) -> str:
    return _launch.version_in(root / "version.py", r'VERSION\s*=\s*"(.+?)"')


def _numbered(job: Job) -> list[Path]:
    """Its checkpoints that are whole. One that a kill cut off is removed, since ai-toolkit would choke on it: it takes the newest."""
    whole: list[Path] = []
    for path in sorted((job.folder / "out" / job.id).glob(f"{job.id}_{'[0-9]' * 9}.safetensors")):
        if _weights.is_whole(path):
            whole.append(path)
        else:
            path.unlink()
            job.append("note", text=f"{path.name} was cut off by the end of the run and is not used")
    return whole


def _noticed(job: Job, line: str) -> None:
    if _UNREAD.search(line):
        raise TrainingFailed(
            "data", "ai-toolkit could not read a picture and would train on without it.", "Export the training set again.", (line.strip(),)
        )
    if _SKIPPED in line:
        job.append("note", text="a step was skipped, since the memory was not enough; after three in a row the run ends")
    if found := _SAVED.search(line):
        name = (job.folder / "out" / job.id / Path(found[1]).name).relative_to(job.folder).as_posix()
        job.append("checkpoint", step=int(found[2]), file=name)
        _sampled(job)


def _sampled(job: Job, before: float = math.inf) -> None:
    """Samples that are not told yet. Of the step `before`, and later ones, a file may still be half written."""
    told = {event["file"] for event in job.events() if event["kind"] == "sample"}
    for path in sorted((job.folder / "out" / job.id / "samples").glob("*")):
        name, found = path.relative_to(job.folder).as_posix(), _SAMPLE.search(path.name)
        if found and name not in told and int(found[1]) < before:
            job.append("sample", step=int(found[1]), prompt=int(found[2]), file=name)


def _collect(job: Job) -> Path:
    """The final file has no number; ai-toolkit also ends without an error when it was interrupted, and then there is none."""
    made = job.folder / "out" / job.id / f"{job.id}.safetensors"
    if not made.is_file():
        raise TrainingFailed(
            "garbage", "ai-toolkit ended without an error, but did not finish its LoRA.", "Read log.txt; queue again to go on.", ()
        )
    _sampled(job)
    result = job.folder / "result" / f"ai_toolkit-{made.name}"
    write_whole(result, made.read_bytes())
    return result
