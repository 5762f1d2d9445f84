"""What ai-toolkit is told: the models it knows, its options, the config file; and which of its keys it would ignore. Version 0.12.26.

It ignores every key it does not know, so each is looked for in its source. Source: its config/examples, its user interface and its source.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...flywheel.pairs import PairedDataset
from ..spec import TrainingSpec
from . import _weights

MARKER = "toolkit/config_modules.py"
SAMPLE_STEPS = 20
CLASSES = {  # block of the config to the class of toolkit/config_modules.py that reads it
    "network": "NetworkConfig",
    "save": "SaveConfig",
    "datasets": "DatasetConfig",
    "train": "TrainConfig",
    "model": "ModelConfig",
    "logging": "LoggingConfig",
    "sample": "SampleConfig",
}
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
            "arch": arch(spec),
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
        names = ("ctrl_img",) if arch(spec) in ONE_CONTROL else ("ctrl_img_1", "ctrl_img_2", "ctrl_img_3")
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
    model = process["model"]["arch"].partition(":")[0]
    sources = (*(root / "extensions_built_in" / "diffusion_models").glob("*/*.py"), root / MARKER)
    if not any(f'"{model}"' in (text := source.read_text(encoding="utf-8")) or f"'{model}'" in text for source in sources):
        problems.append(f"this ai-toolkit does not know the model {model}: update it")
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
        known = QWEN.get(generation(spec)) if spec.architecture == "qwen_image_edit" and options.qtype == "uint3" else None
        adapter = f"ostris/accuracy_recovery_adapters/{known[2]}.safetensors" if known else ""
    return {"qtype": f"{options.qtype}|{adapter}" if adapter else options.qtype}


def generation(spec: TrainingSpec) -> str:
    """Which Qwen-Image-Edit; empty when nothing says so."""
    return _weights.qwen_version(str(spec.options.get("model") or spec.base_model), str(spec.options.get("version", "auto")))


def arch(spec: TrainingSpec) -> str:
    """Its name for the architecture; the generations of Qwen-Image-Edit differ."""
    if spec.architecture == "qwen_image_edit":
        return QWEN.get(generation(spec), QWEN["edit-2509"])[0]
    return MODELS[spec.architecture].arch
