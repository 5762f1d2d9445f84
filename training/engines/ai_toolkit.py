"""ostris/ai-toolkit: FLUX.1 and FLUX.2 [klein] characters, edit LoRAs for Qwen-Image-Edit (up to three controls), Kontext and klein. Version 0.12.26.

One program from a config file, of which it ignores every key it does not know, so the keys are looked for in its source first. A control that is
missing lets the later ones move up a slot without a word, so the folders are read back before every launch. It goes on by itself from the newest
file under the same name. Source: its config/examples, its user interface and its source.
"""

from __future__ import annotations

import ast
import contextlib
import math
import re
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...flywheel.images import write_json, write_whole
from ...flywheel.pairs import PairedDataset
from .. import trainset
from ..errors import EngineNotInstalled, TrainingFailed
from ..job import Job
from ..spec import ARCHITECTURES, TrainingSpec
from . import _dataset, _environment, _launch, _weights

ROOT, PYTHON, MARKER = "AITK_ROOT", "AITK_PYTHON", "toolkit/config_modules.py"
NAMES = ("ai-toolkit", "ai_toolkit")
MODULES = ("transformers", "diffusers", "accelerate", "peft", "optimum", "torchao", "lycoris", "oyaml", "cv2", "bitsandbytes")
LAYOUT = "ai-toolkit"
CLASSES = {  # block of the config to the class of toolkit/config_modules.py that reads it
    "network": "NetworkConfig",
    "save": "SaveConfig",
    "datasets": "DatasetConfig",
    "train": "TrainConfig",
    "model": "ModelConfig",
    "logging": "LoggingConfig",
    "sample": "SampleConfig",
}
FLUX2_VAE = "ai-toolkit/flux2_vae"
_BAR = re.compile(r"%\|[^|]*\|\s*(\d+)/(\d+) \[[^\]]*?lr: [-+.\w]+ loss: ([-+.\w]+)")
_SAVED = re.compile(r"Saved checkpoint to (.+_(\d{9})\.safetensors)")
_SAMPLE = re.compile(r"__(\d{9})_(\d+)\.\w+$")
_SAVED_ALL = "Saved optimizer to"
SAMPLE_STEPS = 20
SAVE_S = 300.0  # how long a stop waits for the checkpoint it asked for
_SKIPPED = "OOM during training step"
_UNREAD = re.compile(r"Error (?:loading|processing) (?:control )?(?:image|file)")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
QWEN: Mapping[str, tuple[str, str, str]] = {  # generation to ai-toolkit's arch, the name on the hub, what makes up for 3 bit
    "edit": ("qwen_image_edit", "Qwen/Qwen-Image-Edit", "qwen_image_edit_torchao_uint3"),
    "edit-2509": ("qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509", "qwen_image_edit_2509_torchao_uint3"),
    "edit-2511": ("qwen_image_edit_plus:2511", "Qwen/Qwen-Image-Edit-2511", "qwen_image_edit_2511_torchao_uint3"),
}
ONE_CONTROL = frozenset({"flux_kontext", "qwen_image_edit"})  # these take one, shaped like its target, and call a sample's by another name


@dataclass(frozen=True, slots=True)
class Model:
    """How ai-toolkit knows an architecture: its `arch`, where it has what it downloads, and what else its blocks say.

    `file`: where it is read from one file, that file's name; `encoder`: from where the encoder is then downloaded.
    """

    arch: str
    hub: str
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    file: str = ""
    encoder: str = ""


MODELS: Mapping[str, Model] = {
    "flux1": Model("flux", "black-forest-labs/FLUX.1-dev", {}, {"timestep_type": "sigmoid"}),
    "flux1_kontext": Model("flux_kontext", "black-forest-labs/FLUX.1-Kontext-dev", {}, {"timestep_type": "weighted"}),
    "qwen_image_edit": Model(
        "qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509", {"model_kwargs": {"match_target_res": False}}, {"timestep_type": "weighted"}
    ),
    "flux2_klein_4b": Model(
        "flux2_klein_4b",
        "black-forest-labs/FLUX.2-klein-base-4B",
        {},
        {"timestep_type": "weighted"},
        "flux-2-klein-base-4b.safetensors",
        "Qwen/Qwen3-4B",
    ),
    "flux2_klein_9b": Model(
        "flux2_klein_9b",
        "black-forest-labs/FLUX.2-klein-base-9B",
        {},
        {"timestep_type": "weighted"},
        "flux-2-klein-base-9b.safetensors",
        "Qwen/Qwen3-8B",
    ),
}


@dataclass(frozen=True, slots=True)
class AiToolkitOptions:
    """What ai-toolkit has to know beyond the settings."""

    model: str = field(
        default="",
        metadata={
            "help": "A folder in diffusers' layout (FLUX.2 [klein]: Black Forest Labs' own file), or a name on Hugging Face, which ai-toolkit then downloads. Empty: the usual one."
        },
    )
    version: _weights.QwenVersion = field(default="auto", metadata={"help": _weights.QWEN_HELP})
    qtype: Literal["qfloat8", "float8", "uint8", "uint6", "uint4", "uint3", "none"] = field(
        default="qfloat8", metadata={"help": "How small the base model is held. Qwen-Image-Edit on 24 GB needs uint3 with an adapter."}
    )
    recovery_adapter: str = field(
        default="auto",
        metadata={
            "help": "A file that makes up for uint3: a path, or owner/repository/name.safetensors. auto: the published one for Qwen-Image-Edit. Empty: none."
        },
    )
    low_vram: bool = field(default=False, metadata={"help": "Quantise in RAM, and keep there what is not needed: slower, less memory."})
    offload: float = field(default=0.0, metadata={"help": "Share of the model's layers that wait in RAM.", "min": 0.0, "max": 1.0})
    optimizer: Literal["adamw8bit", "adamw", "adafactor", "prodigy"] = field(
        default="adamw8bit", metadata={"help": "adamw8bit is the usual one."}
    )
    caption_dropout: float = field(
        default=0.05, metadata={"help": "How often a picture is learnt without its caption.", "min": 0.0, "max": 1.0}
    )
    samples: bool = field(default=True, metadata={"help": "Draw samples at every checkpoint; they need memory of their own."})


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


def config(spec: TrainingSpec, model: str, folder: Path, data: Path, dataset: PairedDataset | None) -> dict[str, Any]:
    """The whole config file. `data`: the laid out training set; `dataset`: what lies in it, for the samples."""
    options, known = AiToolkitOptions(**spec.options), MODELS[spec.architecture]  # type: ignore[arg-type]
    slots = len(dataset.slots) if dataset else 1 if spec.kind == "edit" else 0
    pictures: dict[str, Any] = {
        "folder_path": (data / "target").as_posix(),
        "caption_ext": "txt",
        "caption_dropout_rate": options.caption_dropout,
        "resolution": [spec.resolution],
        "cache_latents_to_disk": True,
        "num_repeats": 1,
        "flip_x": False,
    }
    if slots:
        pictures["control_path"] = [(data / f"control_{slot}").as_posix() for slot in range(1, slots + 1)]
    process = {
        "type": "diffusion_trainer",
        "training_folder": (folder / "out").as_posix(),
        "sqlite_db_path": (folder / "aitk.db").as_posix(),
        "network": {"type": "lora", "linear": spec.rank, "linear_alpha": spec.alpha},
        "save": {"dtype": "bf16", "save_every": spec.save_every, "max_step_saves_to_keep": 4},
        "datasets": [pictures],
        "train": _train(spec, options, known),
        "model": {
            "name_or_path": model,
            "arch": _arch(spec),
            "quantize": options.qtype != "none",
            "quantize_te": options.qtype != "none",
            "low_vram": options.low_vram,
            **_precision(spec, options),
            **({"layer_offloading": True, "layer_offloading_transformer_percent": options.offload} if options.offload else {}),
            **known.model,
        },
        "logging": {"log_every": 1, "use_ui_logger": False},
        "sample": _samples(spec, dataset),
    }
    return {"job": "extension", "config": {"name": spec.id, "process": [process]}, "meta": {"name": "[name]", "version": "1.0"}}


def _train(spec: TrainingSpec, options: AiToolkitOptions, known: Model) -> dict[str, Any]:
    return {
        "batch_size": spec.batch_size,
        "steps": spec.steps,
        "lr": spec.learning_rate,  # its default is a hundredth of what a LoRA needs
        "optimizer": options.optimizer,
        "lr_scheduler": "constant",
        "noise_scheduler": "flowmatch",
        "dtype": "bf16",
        "gradient_checkpointing": True,
        "gradient_accumulation": spec.gradient_accumulation,
        "train_unet": True,
        "train_text_encoder": False,
        "cache_text_embeddings": True,
        "disable_sampling": not (options.samples and spec.sample_prompts),
        "skip_first_sample": False,  # the first is without the LoRA; a run that goes on makes none
        **known.train,
    }


def _samples(spec: TrainingSpec, dataset: PairedDataset | None) -> dict[str, Any]:
    side = min(spec.resolution, 1024)
    rows: list[dict[str, str]] = []
    for number, prompt in enumerate(spec.sample_prompts):
        controls = dataset.pairs[number % len(dataset.pairs)].controls if dataset else ()
        names = ("ctrl_img",) if _arch(spec) in ONE_CONTROL else ("ctrl_img_1", "ctrl_img_2", "ctrl_img_3")
        rows.append({"prompt": prompt, **{name: control.path.as_posix() for name, control in zip(names, controls, strict=False)}})
    return {
        "sampler": "flowmatch",
        "neg": "",  # its default is no text, and encoding that breaks off
        "sample_every": spec.save_every,
        "width": side,
        "height": side,
        "guidance_scale": 4,
        "sample_steps": SAMPLE_STEPS,
        "seed": spec.seed,
        "samples": rows,
    }


def block_problems(settings: Mapping[str, Any], root: Path) -> list[str]:
    """What ai-toolkit would ignore silently: keys that none of its classes asks for; and models it does not know."""
    process, known = settings["config"]["process"][0], keys_of(root / MARKER)
    problems: list[str] = []
    for block, cls in CLASSES.items():
        rows = process[block] if isinstance(process[block], list) else [process[block]]
        unknown = sorted({key for row in rows for key in row} - known.get(cls, set()))
        problems += [f"this ai-toolkit does not know {block}.{key}: it is too old or too new; update it" for key in unknown]
    arch = process["model"]["arch"].partition(":")[0]
    sources = (*(root / "extensions_built_in" / "diffusion_models").glob("*/*.py"), root / MARKER)
    if not any(f'"{arch}"' in (text := source.read_text(encoding="utf-8")) or f"'{arch}'" in text for source in sources):
        problems.append(f"this ai-toolkit does not know the model {arch}: update it")
    return problems


def keys_of(source: Path) -> dict[str, set[str]]:
    """Class to the keys it asks its keyword arguments for, read from the source without running it."""
    known: dict[str, set[str]] = {}
    for cls in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(cls, ast.ClassDef):
            known[cls.name] = {
                node.args[0].value
                for node in ast.walk(cls)
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("get", "pop")
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "kwargs"
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
            }
    return known


def _precision(spec: TrainingSpec, options: AiToolkitOptions) -> dict[str, str]:
    """The key qtype: bits, and behind a bar the file that makes up for them."""
    if options.qtype == "none":
        return {}
    adapter = options.recovery_adapter
    if adapter == "auto":
        known = QWEN.get(_generation(spec)) if spec.architecture == "qwen_image_edit" and options.qtype == "uint3" else None
        adapter = f"ostris/accuracy_recovery_adapters/{known[2]}.safetensors" if known else ""
    return {"qtype": f"{options.qtype}|{adapter}" if adapter else options.qtype}


def _generation(spec: TrainingSpec) -> str:
    """Which Qwen-Image-Edit; empty when nothing says so."""
    return _weights.qwen_version(str(spec.options.get("model") or spec.base_model), str(spec.options.get("version", "auto")))


def _arch(spec: TrainingSpec) -> str:
    """Its name for the architecture; the generations of Qwen-Image-Edit differ."""
    if spec.architecture == "qwen_image_edit":
        return QWEN.get(_generation(spec), QWEN["edit-2509"])[0]
    return MODELS[spec.architecture].arch


def _model(job: Job) -> tuple[str, list[str]]:
    """What name_or_path says, and why that does not work."""
    spec, problems = job.spec, list[str]()
    generation = _generation(spec)
    usual = MODELS[spec.architecture].hub
    if spec.architecture == "qwen_image_edit":
        usual = QWEN.get(generation, QWEN["edit-2509"])[1]
        problems += [] if generation else [_weights.QWEN_UNKNOWN.format(name=spec.options.get("model") or spec.base_model)]
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
    if _arch(spec) in ONE_CONTROL:
        return [_weights.QWEN_ONE.format(count=found.controls)] if _generation(spec) == "edit" and found.controls > 1 else []
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
