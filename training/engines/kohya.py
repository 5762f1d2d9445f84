"""kohya-ss/sd-scripts: character LoRAs for FLUX.1, in sd-scripts' own environment. Tested against version 0.10.1.

Source of the settings and their traps: sd-scripts' docs/flux_train_network.md and docs/config_README-en.md, and its source.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...flywheel.images import storage_error, write_whole
from .. import trainset
from ..errors import EngineNotInstalled, TrainingFailed
from ..job import Job
from ..spec import TrainingSpec
from . import _launch

ROOT, PYTHON, SCRIPT = "SD_SCRIPTS_ROOT", "SD_SCRIPTS_PYTHON", "flux_train_network.py"
PARSERS = ("train_network.py", SCRIPT, "library")  # where its options are declared
SWAP_MAX = 35  # blocks of FLUX.1 that may wait in RAM
TOKENIZERS = {"openai_clip-vit-large-patch14": "comfy/sd1_tokenizer", "google_t5-v1_1-xxl": "comfy/text_encoders/t5_tokenizer"}
_BAR = re.compile(r"steps:\s+\d+%\|[^|]*\|\s*(\d+)/(\d+) \[[^\]]*?(?:avr_loss=([-+.\w]+))?\]")
_SAVED = re.compile(r"saving checkpoint: .*-step(\d{8})\.safetensors")


@dataclass(frozen=True, slots=True)
class KohyaOptions:
    """What sd-scripts has to know beyond the settings."""

    clip_l: str = field(default="clip_l.safetensors", metadata={"help": "Text encoder CLIP-L: a file of models/text_encoders."})
    t5xxl: str = field(default="t5xxl_fp16.safetensors", metadata={"help": "Text encoder T5-XXL: fp16 or fp8_e4m3fn, not a 'scaled' one."})
    ae: str = field(
        default="ae.safetensors", metadata={"help": "FLUX's autoencoder as Black Forest Labs published it: a file of models/vae."}
    )
    fp8_base: bool = field(default=True, metadata={"help": "Hold the base model in 8 bit: 12 instead of 24 GB."})
    blocks_to_swap: int = field(
        default=0, metadata={"help": "Blocks of the model that wait in RAM: less memory, slower steps.", "min": 0, "max": SWAP_MAX}
    )
    optimizer: Literal["AdamW8bit", "AdamW", "Adafactor"] = field(
        default="AdamW8bit", metadata={"help": "AdamW8bit needs bitsandbytes; Adafactor needs the least memory."}
    )
    class_images: str = field(
        default="", metadata={"help": "Folder with pictures of other people of the same class, so that the class stays what it is."}
    )


class Kohya:
    """Runs flux_train_network.py and understands what it says."""

    name: ClassVar[str] = "kohya"
    uses_gpu: ClassVar[bool] = True
    trains: ClassVar[frozenset[tuple[str, str]]] = frozenset({("character", "flux1")})
    options: ClassVar[type] = KohyaOptions

    def check(self, job: Job) -> list[str]:
        spec, problems, facts = job.spec, list[str](), list[str]()
        try:
            root = _launch.checkout(ROOT, SCRIPT, ("sd-scripts", "kohya_ss/sd-scripts"), job.places.near)
            facts.append(f"sd-scripts: {root.name}, {_launch.interpreter(root, PYTHON)}")
            known = _launch.arguments_of(_parsers(root))
            problems += _launch.key_problems(config(spec, {}, job.folder, 0, None), known, "sd-scripts")
        except EngineNotInstalled as error:
            problems += error.problems or [str(error)]
        problems += _file_problems(job)
        if problems:
            raise EngineNotInstalled("sd-scripts cannot train this yet:", problems)
        return facts

    def train(self, job: Job) -> Path:
        spec = job.spec
        root = _launch.checkout(ROOT, SCRIPT, ("sd-scripts", "kohya_ss/sd-scripts"), job.places.near)
        job.append("phase", name="laying out the pictures")
        rows = _launch.lay_out(trainset.read(job.dataset), job.folder / "dataset")
        _launch.write_text(job.folder / "config" / "dataset.toml", dataset_toml(spec, rows, job.folder))
        _launch.write_text(job.folder / "config" / "prompts.txt", prompts(spec))
        _tokenizers(job)
        done, state = _resume(job)
        if done >= spec.steps:
            return _collect(job, None)
        attempt = len(list((job.folder / "config").glob("train-*.toml"))) + 1
        settings = config(spec, _files(job), job.folder, done, state) | {"output_name": f"{job.id}-{attempt}"}
        path = job.folder / "config" / f"train-{attempt}.toml"
        _launch.write_text(path, f"# {spec.project}: {spec.kind} LoRA, attempt {attempt}\n{_launch.toml(settings)}")
        command = _launch.Command(_launch.interpreter(root, PYTHON), (str(root / SCRIPT), "--config_file", str(path)), root)
        if state:
            job.append("note", text=f"goes on from step {done}")
        job.append("phase", name="loading the models, caching images and captions")
        _launch.launch(command, job, read=read, done=done, seen=lambda line: _noticed(job, line, done, settings["output_name"]))
        made = job.folder / "out" / f"{settings['output_name']}.safetensors"
        return _collect(job, made)


def read(line: str) -> _launch.Progress | None:
    """A line of the progress bar, as tqdm draws it."""
    found = _BAR.search(line)
    return _launch.Progress(int(found[1]), int(found[2]), float(found[3]) if found[3] else None) if found else None


def config(spec: TrainingSpec, files: Mapping[str, Path], folder: Path, done: int, state: Path | None) -> dict[str, Any]:
    """Everything sd-scripts is told, in its own words. `done`: steps of earlier launches; `state`: where they left off.

    A resumed launch counts from 0 and trains what remains; the rate is constant, since any other would start again.
    """
    options = KohyaOptions(**spec.options)  # type: ignore[arg-type]
    settings: dict[str, Any] = {
        "pretrained_model_name_or_path": files.get("base", spec.base_model),
        "clip_l": files.get("clip_l", options.clip_l),
        "t5xxl": files.get("t5xxl", options.t5xxl),
        "ae": files.get("ae", options.ae),
        "tokenizer_cache_dir": folder / "tokenizers",
        "dataset_config": folder / "config" / "dataset.toml",
        "output_dir": folder / "out",
        "output_name": "lora",
        "save_model_as": "safetensors",
        "save_precision": "bf16",
        "mixed_precision": "bf16",  # fp16 ends in nan and black pictures
        "network_module": "networks.lora_flux",
        "network_dim": spec.rank,
        "network_alpha": float(spec.alpha),
        "network_train_unet_only": True,  # else CLIP is trained too and its output cannot be cached
        "network_args": ["train_blocks=all"],
        "learning_rate": spec.learning_rate,
        "optimizer_type": options.optimizer,
        "lr_scheduler": "constant",
        "max_train_steps": spec.steps - done,
        "gradient_accumulation_steps": spec.gradient_accumulation,
        "gradient_checkpointing": True,
        "fp8_base": options.fp8_base,
        "sdpa": True,
        "guidance_scale": 1.0,
        "timestep_sampling": "shift",
        "discrete_flow_shift": 3.1582,
        "model_prediction_type": "raw",
        "weighting_scheme": "uniform",
        "cache_latents": True,
        "cache_latents_to_disk": True,
        "cache_text_encoder_outputs": True,
        "cache_text_encoder_outputs_to_disk": True,
        "t5xxl_max_token_length": 512,
        "max_data_loader_n_workers": 1,  # each holds a copy of the process in RAM
        "persistent_data_loader_workers": True,
        "save_every_n_steps": spec.save_every,
        "save_last_n_steps": 4 * spec.save_every,
        "save_state": True,
        "save_last_n_steps_state": spec.save_every,
        "seed": spec.seed,
        "logging_dir": folder / "logs",
        "log_with": "tensorboard",
        "console_log_simple": True,
        "sample_prompts": folder / "config" / "prompts.txt",
        "sample_every_n_steps": spec.save_every,
        "sample_sampler": "euler",
    }
    if options.optimizer == "Adafactor":
        settings |= {"optimizer_args": ["relative_step=False", "scale_parameter=False", "warmup_init=False"], "max_grad_norm": 0.0}
    if options.blocks_to_swap:
        settings["blocks_to_swap"] = options.blocks_to_swap
    if not spec.sample_prompts:
        for name in ("sample_prompts", "sample_every_n_steps", "sample_sampler"):
            settings.pop(name)
    settings |= {"resume": state, "initial_step": 0} if state else {}
    return {name: value.as_posix() if isinstance(value, Path) else value for name, value in settings.items()}


def dataset_toml(spec: TrainingSpec, rows: list[dict[str, Any]], folder: Path) -> str:
    """The data set: one subset per number of repeats, and the class images."""
    general = {"caption_extension": ".txt", "keep_tokens": 0}  # its default extension finds no caption at all
    shape = {
        "resolution": spec.resolution,
        "batch_size": spec.batch_size,
        "enable_bucket": True,
        "min_bucket_reso": 256,
        "max_bucket_reso": 2048,
        "bucket_reso_steps": 64,
        "bucket_no_upscale": False,
    }
    text = f"[general]\n{_launch.toml(general)}\n[[datasets]]\n{_launch.toml(shape)}"
    for repeats in sorted({row["repeats"] for row in rows}):
        subset = {
            "image_dir": folder / "dataset" / f"r{repeats}",
            "num_repeats": repeats,
            "class_tokens": f"{spec.instance_token} {spec.class_noun}",
        }
        text += f"\n[[datasets.subsets]]\n{_launch.toml(subset)}"
    if others := str(spec.options.get("class_images", "")).strip():
        subset = {"image_dir": Path(others), "is_reg": True, "class_tokens": spec.class_noun, "num_repeats": 1}
        text += f"\n[[datasets.subsets]]\n{_launch.toml(subset)}"
    return text


def prompts(spec: TrainingSpec) -> str:
    """Sample prompts, one per line, in sd-scripts' way of writing them."""
    side = min(spec.resolution, 1024)
    return "".join(
        f"{' '.join(prompt.split())} --w {side} --h {side} --s 20 --d {spec.seed} --l 1.0 --g 3.5\n" for prompt in spec.sample_prompts
    )


def _parsers(root: Path) -> list[Path]:
    return [root / PARSERS[0], root / PARSERS[1], *sorted((root / PARSERS[2]).glob("*.py"))]


def _files(job: Job) -> dict[str, Path]:
    """The model files by role; those that are not there are missing."""
    spec = job.spec
    options = KohyaOptions(**spec.options)  # type: ignore[arg-type]
    names = {"base": spec.base_model, "clip_l": options.clip_l, "t5xxl": options.t5xxl, "ae": options.ae}
    found = {role: job.places.find(name) for role, name in names.items()}
    return {role: path for role, path in found.items() if path}


def _file_problems(job: Job) -> list[str]:
    spec, found = job.spec, _files(job)
    options = KohyaOptions(**spec.options)  # type: ignore[arg-type]
    wanted = {
        "base": (spec.base_model, "diffusion_models", "FLUX.1-dev, for example flux1-dev.safetensors (23.8 GB)"),
        "clip_l": (options.clip_l, "text_encoders", "CLIP-L, clip_l.safetensors"),
        "t5xxl": (options.t5xxl, "text_encoders", "T5-XXL, t5xxl_fp16.safetensors"),
        "ae": (options.ae, "vae", "FLUX's autoencoder, ae.safetensors"),
    }
    problems = [
        f"{name or 'no file'} is not in models/{place}: put {what} there"
        for role, (name, place, what) in wanted.items()
        if role not in found
    ]
    if "base" in found:
        problems += _base_problems(found["base"], options.fp8_base)
    if "t5xxl" in found and any("scale_weight" in key or key == "scaled_fp8" for key in _tensors(found["t5xxl"])):
        problems.append(f"{found['t5xxl'].name} is a scaled fp8 file, which sd-scripts cannot read: take t5xxl_fp16 or t5xxl_fp8_e4m3fn")
    others = options.class_images.strip()
    if others and not Path(others).is_dir():
        problems.append(f"class_images names {others}, which is no folder")
    return problems


def _base_problems(path: Path, fp8_base: bool) -> list[str]:
    """Whether sd-scripts can read this base model: a plain FLUX.1 transformer, not quantised otherwise than in fp8."""
    if path.suffix.lower() == ".gguf":
        return [f"{path.name} is a GGUF file, which sd-scripts cannot read: take flux1-dev.safetensors"]
    tensors = _tensors(path)
    if not tensors:
        return [f"{path.name} is not a safetensors file: download it again"]
    if any(key.startswith(("model.diffusion_model.", "text_encoders.", "first_stage_model.")) for key in tensors):
        return [f"{path.name} is an all-in-one checkpoint, which sd-scripts cannot read: take the model alone, flux1-dev.safetensors"]
    if not any(key.startswith("double_blocks.") for key in tensors):
        return [f"{path.name} is no FLUX.1 model in Black Forest Labs' form: it has no double_blocks"]
    kinds = {entry.get("dtype", "") for entry in tensors.values()}
    if any("scale_weight" in key for key in tensors) or kinds & {"U8", "I8"}:
        return [f"{path.name} is quantised in a way sd-scripts cannot read: take the bf16 file, or plain fp8_e4m3fn with fp8_base"]
    if "F8_E4M3" in kinds and not fp8_base:
        return [f"{path.name} is in 8 bit: set fp8_base = true, or take the bf16 file"]
    return []


def _tensors(path: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file; empty where it is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(100_000_000, path.stat().st_size):
                return {}
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error):
        return {}
    return {key: entry for key, entry in header.items() if key != "__metadata__" and isinstance(entry, dict)}


def _tokenizers(job: Job) -> None:
    """ComfyUI's own tokenizers under the names sd-scripts looks for, so that nothing is downloaded."""
    if job.places.comfyui is None:
        return
    for name, inside in TOKENIZERS.items():
        source, target = job.places.comfyui / inside, job.folder / "tokenizers" / name
        if source.is_dir() and not target.is_dir():
            partial = target.with_name(f".{name}.part")
            try:
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(source, partial)
                partial.rename(target)
            except OSError as error:
                raise storage_error(target, error) from error


def _noticed(job: Job, line: str, done: int, output_name: str) -> None:
    """A checkpoint in the log becomes an event; what a resume needs is written down, since sd-scripts counts from 0 again."""
    if not (found := _SAVED.search(line)):
        return
    step = int(found[1])
    state = job.folder / "out" / f"{output_name}-step{step:08}-state"
    job.append("checkpoint", step=done + step, file=state.relative_to(job.folder).as_posix())
    _samples(job, done)


def _samples(job: Job, done: int) -> None:
    told = {event["file"] for event in job.events() if event["kind"] == "sample"}
    for path in sorted((job.folder / "out" / "sample").glob("*.png")):
        name, found = path.relative_to(job.folder).as_posix(), re.search(r"_(\d{6})_(\d{2})_\d+", path.name)
        if found and name not in told:
            job.append("sample", step=done + int(found[1]), prompt=int(found[2]), file=name)


def _resume(job: Job) -> tuple[int, Path | None]:
    """Steps done and the newest state that is whole."""
    saved = sorted((event["step"], job.folder / event["file"]) for event in job.events() if event["kind"] == "checkpoint")
    whole = [(step, state) for step, state in saved if (state / "random_states_0.pkl").is_file()]  # written last
    return whole[-1] if whole else (0, None)


def _collect(job: Job, made: Path | None) -> Path:
    """The final file, copied to where results lie: a trainer's exit code alone says nothing."""
    made = made or _launch.newest((job.folder / "out").glob("*.safetensors"))
    if made is None or not made.is_file():
        raise TrainingFailed(
            "garbage", "sd-scripts ended without an error, but wrote no LoRA.", "Read log.txt: most often it found no pictures.", ()
        )
    _samples(job, 0)
    result = job.folder / "result" / f"kohya-{made.name}"
    write_whole(result, made.read_bytes())
    return result
