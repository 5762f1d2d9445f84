"""diffusers' example scripts: characters for FLUX.1 and FLUX.2, edits with one control for Kontext and FLUX.2. A fallback for large cards.

They hold the base model in 16 bit, so FLUX.1 wants more than 24 GB, and they need diffusers installed from the very checkout they lie in. There is
no script for Qwen-Image-Edit. Source: examples/dreambooth of diffusers, read at 0.40.0.dev0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ...flywheel.images import write_whole
from ..errors import EngineNotInstalled, TrainingFailed
from ..job import Job
from ..spec import ARCHITECTURES, TrainingSpec
from . import _dataset, _environment, _launch, _weights

ROOT, PYTHON, MARKER = "DIFFUSERS_ROOT", "DIFFUSERS_PYTHON", "examples/dreambooth/train_dreambooth_lora_flux.py"
MODULES = ("diffusers", "transformers", "accelerate", "peft", "datasets", "torchvision")
LAYOUT = "diffusers and built-in"
RESULT = "pytorch_lora_weights.safetensors"
SCRIPTS: Mapping[tuple[str, str], str] = {  # (kind, architecture) to what comes after train_dreambooth_lora_
    ("character", "flux1"): "flux",
    ("edit", "flux1_kontext"): "flux_kontext",
    **{("character", f"flux2_{size}"): "flux2_klein" for size in ("klein_4b", "klein_9b")},
    **{("edit", f"flux2_{size}"): "flux2_klein_img2img" for size in ("klein_4b", "klein_9b")},
    ("character", "flux2_dev"): "flux2",
    ("edit", "flux2_dev"): "flux2_img2img",
}
HUB: Mapping[str, str] = {
    "flux1": "black-forest-labs/FLUX.1-dev",
    "flux1_kontext": "black-forest-labs/FLUX.1-Kontext-dev",
    "flux2_klein_4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "flux2_klein_9b": "black-forest-labs/FLUX.2-klein-base-9B",
    "flux2_dev": "black-forest-labs/FLUX.2-dev",
}
_BAR = re.compile(r"Steps:\s+\d+%\|[^|]*\|\s*(\d+)/(\d+) \[[^\]]*?(?:loss=([-+.\w]+))?(?:, lr=[^\]]*)?\]")
_SAVED = re.compile(r"Saved state to .*checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class DiffusersOptions:
    """What the scripts have to know beyond the settings."""

    model: str = field(
        default="",
        metadata={"help": "A folder in diffusers' layout, or a name on Hugging Face, which is downloaded. Empty: the usual one."},
    )
    eight_bit_adam: bool = field(default=True, metadata={"help": "An optimizer that takes a quarter of the memory; needs bitsandbytes."})


class DiffusersScripts:
    """Runs one of the train_dreambooth_lora scripts."""

    name: ClassVar[str] = "diffusers"
    uses_gpu: ClassVar[bool] = True
    trains: ClassVar[frozenset[tuple[str, str]]] = frozenset(SCRIPTS)
    most_controls: ClassVar[int] = 1
    options: ClassVar[type] = DiffusersOptions

    def check(self, job: Job) -> list[str]:
        spec, problems, facts = job.spec, _dataset.problems(job), list[str]()
        try:
            root = _launch.checkout(ROOT, MARKER, ("diffusers",), job.places.near)
            found = _found(job, root)
            facts.append(f"diffusers' scripts: {root.name}, {found}")
            problems += [*found.problems, *_script_problems(root, spec, found.versions.get("diffusers", ""))]
        except EngineNotInstalled as error:
            problems += error.problems or [str(error)]
        model = _model(job)
        if not Path(model).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            problems.append(f"model is {model!r}: neither a folder that is there nor a name on Hugging Face")
        elif not Path(model).is_dir():
            facts.append(f"diffusers takes {model} from Hugging Face; what is not there yet it downloads at its start")
        elif wrong := _weights.folder_problem(Path(model), spec.architecture):
            problems.append(wrong)
        if spec.alpha != spec.rank:
            problems.append("ComfyUI does not read the alpha that diffusers writes, so alpha must be the rank: leave it as it is")
        if problems:
            raise EngineNotInstalled("diffusers' scripts cannot train this yet:", problems)
        return facts

    def versions(self, job: Job) -> str:
        return _found(job, _launch.checkout(ROOT, MARKER, ("diffusers",), job.places.near)).told

    def train(self, job: Job) -> Path:
        root = _launch.checkout(ROOT, MARKER, ("diffusers",), job.places.near)
        job.append("phase", name="laying out the pictures")
        folder, _ = _dataset.lay_out(job, LAYOUT)
        out = job.folder / "out"
        (out / RESULT).unlink(missing_ok=True)  # of an attempt before
        told = arguments(job.spec, _model(job), folder, out)
        resumes = any(out.glob("checkpoint-*/random_states_0.pkl"))
        words = command_line({**told, **({"resume_from_checkpoint": "latest"} if resumes else {})})
        job.append("phase", name="loading the model, caching images and captions")
        command = _launch.Command(_launch.interpreter(root, PYTHON), (str(_script(root, job.spec)), *words), root)
        _launch.launch(command, job, read=read, seen=lambda line: _noticed(job, line))
        if not (out / RESULT).is_file():
            raise TrainingFailed("garbage", "diffusers' script ended without an error, but wrote no LoRA.", "Read log.txt.", ())
        result = job.folder / "result" / f"diffusers-{job.id}.safetensors"
        write_whole(result, (out / RESULT).read_bytes())
        return result


def read(line: str) -> _launch.Progress | None:
    """A line of the training bar; it counts on after a resume."""
    found = _BAR.search(line)
    return _launch.Progress(int(found[1]), int(found[2]), float(found[3]) if found[3] else None) if found else None


def arguments(spec: TrainingSpec, model: str, data: Path, out: Path) -> dict[str, Any]:
    """What the script is told, by the names of its options."""
    options = DiffusersOptions(**spec.options)  # type: ignore[arg-type]
    columns = {"image_column": "image", "cond_image_column": "control_1"} if spec.kind == "edit" else {"image_column": "image"}
    bare = {"skip_final_inference": True} if spec.architecture.startswith("flux2") else {}
    return {
        "pretrained_model_name_or_path": model,
        "dataset_name": data.as_posix(),
        **columns,
        "caption_column": "prompt",
        "instance_prompt": f"photo of {spec.instance_token} {spec.class_noun}",  # demanded, though every picture has its own
        "output_dir": out.as_posix(),
        "resolution": spec.resolution,
        "train_batch_size": spec.batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation,
        "gradient_checkpointing": True,
        "cache_latents": True,
        "use_8bit_adam": options.eight_bit_adam,
        "mixed_precision": "bf16",
        "rank": spec.rank,
        "lora_alpha": spec.rank,
        "learning_rate": spec.learning_rate,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "guidance_scale": 1.0,
        "max_train_steps": spec.steps,
        "checkpointing_steps": spec.save_every,
        "checkpoints_total_limit": 3,
        "seed": spec.seed,
        **bare,
    }


def command_line(told: Mapping[str, Any]) -> list[str]:
    """Options as words; a false one is left out."""
    return [
        word
        for name, value in told.items()
        if value is not False
        for word in ((f"--{name}",) if value is True else (f"--{name}", str(value)))
    ]


def _script(root: Path, spec: TrainingSpec) -> Path:
    return root / "examples" / "dreambooth" / f"train_dreambooth_lora_{SCRIPTS[spec.kind, spec.architecture]}.py"


def _model(job: Job) -> str:
    wanted = str(job.spec.options.get("model", "")).strip() or HUB[job.spec.architecture]
    found = job.places.find(wanted)
    return found.as_posix() if found else wanted


def _found(job: Job, root: Path) -> _environment.Environment:
    eight_bit = DiffusersOptions(**job.spec.options).eight_bit_adam  # type: ignore[arg-type]
    install = f"-e {root} -r {root / 'examples' / 'dreambooth' / 'requirements_flux.txt'}"
    return _environment.look(_launch.interpreter(root, PYTHON), root, (*MODULES, *(["bitsandbytes"] if eight_bit else [])), install)


def _script_problems(root: Path, spec: TrainingSpec, installed: str) -> list[str]:
    script = _script(root, spec)
    if not script.is_file():
        return [f"this checkout of diffusers has no {script.name}: it is too old for {ARCHITECTURES[spec.architecture]}; update it"]
    problems = _launch.key_problems(arguments(spec, "", Path(), Path()), _launch.arguments_of([script]), "diffusers")
    wanted = re.search(r'^check_min_version\("([\d.]+\d)', script.read_text(encoding="utf-8"), re.MULTILINE)
    if wanted and installed and _numbers(installed) < _numbers(wanted[1]):
        problems.append(
            f"{script.name} wants diffusers {wanted[1]} or newer, and {installed} is installed there: install it from {root} itself"
        )
    return problems


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _noticed(job: Job, line: str) -> None:
    if found := _SAVED.search(line):
        job.append("checkpoint", step=int(found[1]), file=f"out/checkpoint-{found[1]}")
