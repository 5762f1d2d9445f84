"""kohya-ss/sd-scripts: character LoRAs for FLUX.1, in sd-scripts' own environment. Tested against version 0.10.1.

Source of the settings and their traps: sd-scripts' docs/flux_train_network.md and docs/config_README-en.md, and its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from .. import trainset
from ..errors import EngineNotInstalled
from ..job import Job
from ..spec import Option, TrainingSpec
from . import _environment, _kohya_family, _launch, _weights

ROOT, PYTHON, SCRIPT = "SD_SCRIPTS_ROOT", "SD_SCRIPTS_PYTHON", "flux_train_network.py"
NAMES = ("sd-scripts", "kohya_ss/sd-scripts")
MODULES = ("accelerate", "transformers", "diffusers", "safetensors", "toml", "voluptuous", "imagesize", "einops", "cv2")
PARSERS = ("train_network.py", SCRIPT, "library")  # where its options are declared
CLASS = "class"  # folder below the job's dataset
SWAP_MAX = 35  # blocks of FLUX.1 that may wait in RAM
TOKENIZERS = {"openai_clip-vit-large-patch14": "comfy/sd1_tokenizer", "google_t5-v1_1-xxl": "comfy/text_encoders/t5_tokenizer"}


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
    class_key: str = field(default="", metadata={"help": "What class_images holds; the settings node writes it by itself."})
    more: str = field(default="", metadata={"help": _launch.MORE_HELP})


class Kohya:
    """Runs flux_train_network.py and understands what it says."""

    name: ClassVar[str] = "kohya"
    uses_gpu: ClassVar[bool] = True
    trains: ClassVar[frozenset[tuple[str, str]]] = frozenset({("character", "flux1")})
    most_controls: ClassVar[int] = 0
    options: ClassVar[type] = KohyaOptions

    def check(self, job: Job) -> list[str]:
        spec, problems, facts = job.spec, list[str](), list[str]()
        try:
            root = _launch.checkout(ROOT, SCRIPT, NAMES, job.places.near)
            found = _found(job, root)
            facts.append(f"sd-scripts {_version(root)}: {root.name}, {found}")
            problems += found.problems
            known = _launch.arguments_of(_parsers(root))
            problems += _launch.key_problems(config(spec, {}, job.folder, 0, None), known, "sd-scripts")
        except EngineNotInstalled as error:
            problems += error.problems or [str(error)]
        problems += _file_problems(job)
        if problems:
            raise EngineNotInstalled("sd-scripts cannot train this yet:", problems)
        return facts

    def with_data(self, given: Mapping[str, Option]) -> dict[str, Option]:
        others = Path(str(given.get("class_images", "")).strip() or "?")
        return {**given, "class_key": trainset.read(others).key} if others.is_dir() else dict(given)

    def versions(self, job: Job) -> str:
        root = _launch.checkout(ROOT, SCRIPT, NAMES, job.places.near)
        return f"sd-scripts {_version(root)}, {_found(job, root).told}"

    def train(self, job: Job) -> Path:
        spec = job.spec
        root = _launch.checkout(ROOT, SCRIPT, NAMES, job.places.near)
        job.append("phase", name="laying out the pictures")
        rows = _launch.lay_out(trainset.read(job.dataset), job.folder / "dataset")
        if others := class_set(spec):
            _launch.lay_out(others, job.folder / "dataset" / CLASS)
        _launch.write_text(job.folder / "config" / "dataset.toml", dataset_toml(spec, rows, job.folder))
        _launch.write_text(job.folder / "config" / _kohya_family.PROMPTS, _kohya_family.prompts(spec, drawn_with))
        _tokenizers(job)
        job.append("phase", name="loading the models, caching images and captions")
        python = _launch.interpreter(root, PYTHON)
        return _kohya_family.train(
            job,
            "sd-scripts",
            lambda done, state: config(spec, _files(job), job.folder, done, state),
            lambda path: _launch.Command(python, (str(root / SCRIPT), "--config_file", str(path)), root),
        )


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
        **_kohya_family.keeping(spec, folder, options.optimizer, options.blocks_to_swap),
        "log_with": "tensorboard",
        "console_log_simple": True,
        "sample_sampler": "euler",
        **_kohya_family.sampling(spec, folder, state is not None),
    }
    settings |= {"resume": state, "initial_step": 0} if state else {}
    settings |= _launch.own_words(options.more)
    return {name: value.as_posix() if isinstance(value, Path) else value for name, value in settings.items()}


def dataset_toml(spec: TrainingSpec, rows: list[dict[str, Any]], folder: Path) -> str:
    """The data set: one subset per number of repeats, and the class images."""
    general = {"caption_extension": ".txt", "keep_tokens": 0}  # its default extension finds no caption at all
    shape = {
        "resolution": spec.resolution,
        "batch_size": spec.batch_size,
        "enable_bucket": True,
        "min_bucket_reso": min(256, spec.resolution),
        "max_bucket_reso": max(2048, spec.resolution),
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
    if _class_folder(spec):
        subset = {"image_dir": folder / "dataset" / CLASS / "r1", "is_reg": True, "class_tokens": spec.class_noun, "num_repeats": 1}
        text += f"\n[[datasets.subsets]]\n{_launch.toml(subset)}"
    return text


def class_set(spec: TrainingSpec) -> trainset.TrainingSet | None:
    """Pictures of others of the class, each once; without a caption the class speaks for them. They are copied, since sd-scripts caches beside them."""
    if not (others := _class_folder(spec)):
        return None
    found = trainset.read(Path(others))
    examples = (replace(example, caption=example.caption or spec.class_noun, repeats=1) for example in found.examples)
    return replace(found, examples=tuple(examples), problems=())


def _class_folder(spec: TrainingSpec) -> str:
    return str(spec.options.get("class_images", "")).strip()


def drawn_with(_: int) -> dict[str, float]:
    """What every sample is drawn with: FLUX.1-dev wants no second pass, and the guidance it was distilled with."""
    return {"scale": 1.0, "guidance_scale": 3.5}


def _found(job: Job, root: Path) -> _environment.Environment:
    eight_bit = KohyaOptions(**job.spec.options).optimizer == "AdamW8bit"  # type: ignore[arg-type]
    modules = (*MODULES, *(["bitsandbytes"] if eight_bit else []))
    return _environment.look(_launch.interpreter(root, PYTHON), root, modules, f"-r {root / 'requirements.txt'}")


def _version(root: Path) -> str:
    return _launch.version_in(root / "README.md", r"\*\*Version (\d[\w.]*)")  # the newest is told first


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
    if "t5xxl" in found and _weights.is_scaled(found["t5xxl"]):
        problems.append(f"{found['t5xxl'].name} is a scaled fp8 file, which sd-scripts cannot read: take t5xxl_fp16 or t5xxl_fp8_e4m3fn")
    return [*problems, *_class_problems(_class_folder(spec), options.class_key)]


def _class_problems(others: str, key: str) -> list[str]:
    if not others:
        return []
    if not Path(others).is_dir():
        return [f"class_images names {others}, which is no folder"]
    found = trainset.read(Path(others))
    if not found.examples:
        return [f"class_images names {others}, which holds no pictures: sd-scripts would train without them and not say so"]
    if key not in ("", found.key):
        return [f"the pictures in {others} are not those this job was made for: queue the settings node again, for a new job"]
    return []


def _base_problems(path: Path, fp8_base: bool) -> list[str]:
    """Whether sd-scripts can read this base model: a plain FLUX.1 transformer, not quantised otherwise than in fp8."""
    take = "take the model alone as Black Forest Labs published it, flux1-dev.safetensors"
    if problem := _weights.model_problem(path, "sd-scripts", "FLUX.1", ("double_blocks.",), take, eight_bit=True):
        return [problem]
    if _weights.is_eight_bit(path) and not fp8_base:
        return [f"{path.name} is in 8 bit: set fp8_base = true, or take the bf16 file"]
    return []


def _tokenizers(job: Job) -> None:
    """ComfyUI's own tokenizers under the names sd-scripts looks for, so that nothing is downloaded."""
    if job.places.comfyui:
        for name, inside in TOKENIZERS.items():
            _launch.copy_folder(job.places.comfyui / inside, job.folder / "tokenizers" / name)
