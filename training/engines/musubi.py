"""kohya-ss/musubi-tuner: edit LoRAs for Qwen-Image-Edit, FLUX.1 Kontext and FLUX.2, characters for FLUX.2. Tested against version 0.3.4.

Three programs in a row, which are one job here: pictures to latents, texts to embeddings, training. Training never encodes: what has no cache
is left out without a word, so the caches are counted before it begins. Source: musubi-tuner's docs/qwen_image.md, flux_2.md, flux_kontext.md,
dataset_config.md, and its source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...flywheel.images import write_json
from ...flywheel.pairs import PairedDataset
from .. import trainset
from ..errors import EngineNotInstalled, TrainingFailed
from ..job import Job
from ..spec import ARCHITECTURES, TrainingSpec
from . import _dataset, _environment, _kohya_family, _launch, _weights

ROOT, PYTHON, MARKER = "MUSUBI_ROOT", "MUSUBI_PYTHON", "src/musubi_tuner/qwen_image_train_network.py"
NAMES = ("musubi-tuner", "musubi_tuner")
SOURCE = Path("src/musubi_tuner")
MODULES = ("accelerate", "transformers", "diffusers", "safetensors", "toml", "voluptuous", "einops", "av", "cv2")
LAYOUT = "musubi-tuner"
QWEN_PICTURES = {  # what Qwen2.5-VL's processor does to pictures: read by musubi from a file that ComfyUI does not have
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


@dataclass(frozen=True, slots=True)
class Family:
    """How musubi-tuner trains one kind of model. `files`: option of the training script to (our option, ComfyUI's folder, usual name, what it is).

    `version` is its --model_version, where it has one; `short` is the end of its cache files' names; `marks` begin tensor names of the base.
    """

    scripts: str
    version: str
    short: str
    files: Mapping[str, tuple[str, str, str, str]]
    encoders: tuple[str, ...]
    settings: Mapping[str, Any]
    marks: tuple[str, ...]
    take: str
    swap_max: int
    drawn_with: Mapping[str, float]


LIGHT = {"qwen_image": "fp8_vl", "flux_kontext": "fp8_t5", "flux_2": "fp8_text_encoder"}  # its words for a text encoder in 8 bit
SLIP = "torch.float8e4m3fn"  # no such type: what is written so breaks off
_FLUX2_AE = ("vae_file", "vae", "flux2-vae.safetensors", "FLUX.2's autoencoder in Black Forest Labs' form (ae.safetensors)")


def _flux2(version: str, short: str, encoder: tuple[str, str], base: str, swap_max: int) -> Family:
    return Family(
        "flux_2",
        version,
        short,
        {"vae": _FLUX2_AE, "text_encoder": ("encoder_file", "text_encoders", *encoder)},
        ("text_encoder",),
        {"network_module": "networks.lora_flux_2", "timestep_sampling": "flux2_shift", "weighting_scheme": "none"},
        ("double_blocks.", "double_stream_modulation_img."),
        f"take {base} as Black Forest Labs published it",
        swap_max,
        {"guidance_scale": 4.0},
    )


FAMILIES: Mapping[str, Family] = {
    "qwen_image_edit": Family(
        "qwen_image",
        "edit-2509",
        "qie",
        {
            "vae": ("vae_file", "vae", "qwen_image_vae.safetensors", "Qwen-Image's autoencoder"),
            "text_encoder": ("encoder_file", "text_encoders", "qwen_2.5_vl_7b.safetensors", "Qwen2.5-VL 7B in bf16 (16.6 GB)"),
        },
        ("text_encoder",),
        {
            "network_module": "networks.lora_qwen_image",
            "timestep_sampling": "shift",
            "discrete_flow_shift": 2.2,
            "weighting_scheme": "none",
        },
        ("transformer_blocks.", "img_in."),
        "take the bf16 file (40.9 GB), for example qwen_image_edit_2509_bf16.safetensors",
        59,
        {"discrete_flow_shift": 2.2, "cfg_scale": 4.0},
    ),
    "flux1_kontext": Family(
        "flux_kontext",
        "",
        "fk",
        {
            "vae": ("vae_file", "vae", "ae.safetensors", "FLUX.1's autoencoder as Black Forest Labs published it"),
            "text_encoder1": ("encoder_file", "text_encoders", "t5xxl_fp16.safetensors", "T5-XXL"),
            "text_encoder2": ("encoder2_file", "text_encoders", "clip_l.safetensors", "CLIP-L"),
        },
        ("text_encoder1", "text_encoder2"),
        {"network_module": "networks.lora_flux", "timestep_sampling": "flux_shift", "weighting_scheme": "none"},
        ("double_blocks.",),
        "take flux1-kontext-dev.safetensors as Black Forest Labs published it",
        35,
        {"guidance_scale": 2.5},
    ),
    "flux2_klein_4b": _flux2(
        "klein-base-4b", "f2k4b", ("qwen_3_4b.safetensors", "Qwen3 4B in bf16"), "flux2-klein-base-4b.safetensors", 13
    ),
    "flux2_klein_9b": _flux2(
        "klein-base-9b", "f2k9b", ("qwen_3_8b.safetensors", "Qwen3 8B in bf16"), "flux2-klein-base-9b.safetensors", 16
    ),
    "flux2_dev": _flux2(
        "dev",
        "f2d",
        ("mistral_3_small_flux2_bf16.safetensors", "Mistral 3: the first file of FLUX.2-dev's text_encoder folder"),
        "flux2-dev.safetensors",
        29,
    ),
}


@dataclass(frozen=True, slots=True)
class MusubiOptions:
    """What musubi-tuner has to know beyond the settings. Empty file names take what the model usually has."""

    version: _weights.QwenVersion = field(default="auto", metadata={"help": _weights.QWEN_HELP})
    vae_file: str = field(default="", metadata={"help": "Autoencoder: a file of models/vae."})
    encoder_file: str = field(default="", metadata={"help": "Text encoder: a file of models/text_encoders, in bf16 or fp16."})
    encoder2_file: str = field(default="", metadata={"help": "Only Kontext has a second: CLIP-L."})
    fp8: bool = field(default=True, metadata={"help": "Hold the base model in scaled 8 bit while training: half the memory."})
    fp8_text_encoder: bool = field(default=False, metadata={"help": "Encode the texts in 8 bit: for cards below 16 GB."})
    blocks_to_swap: int = field(
        default=0, metadata={"help": "Blocks of the model that wait in RAM: less memory, slower steps.", "min": 0, "max": 59}
    )
    optimizer: Literal["adamw8bit", "AdamW", "adafactor"] = field(
        default="adamw8bit", metadata={"help": "adamw8bit needs bitsandbytes; adafactor needs the least memory."}
    )
    more: str = field(default="", metadata={"help": _launch.MORE_HELP})


class Musubi:
    """Runs musubi-tuner's three programs and understands what they say."""

    name: ClassVar[str] = "musubi"
    uses_gpu: ClassVar[bool] = True
    trains: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        {("edit", name) for name in FAMILIES} | {("character", name) for name in FAMILIES if name.startswith("flux2")}
    )
    most_controls: ClassVar[int] = 3
    options: ClassVar[type] = MusubiOptions

    def check(self, job: Job) -> list[str]:
        spec, problems, facts = job.spec, list[str](), list[str]()
        try:
            root = _launch.checkout(ROOT, MARKER, NAMES, job.places.near)
            found = _found(job, root)
            facts.append(f"musubi-tuner {_version(root)}: {root.name}, {found}")
            problems += found.problems
            problems += _key_problems(root, spec)
        except EngineNotInstalled as error:
            problems += error.problems or [str(error)]
        problems += _file_problems(job)
        problems += _dataset.problems(job)
        options = MusubiOptions(**spec.options)  # type: ignore[arg-type]
        if options.blocks_to_swap > _family(spec).swap_max:
            problems.append(
                f"blocks_to_swap is {options.blocks_to_swap}; {ARCHITECTURES[spec.architecture]} has {_family(spec).swap_max} at most"
            )
        if not _tokenizers(job.places.comfyui, spec.architecture):
            facts.append("musubi-tuner fetches this model's tokenizer from Hugging Face once, a few MB")
        if problems:
            raise EngineNotInstalled("musubi-tuner cannot train this yet:", problems)
        return facts

    def versions(self, job: Job) -> str:
        root = _launch.checkout(ROOT, MARKER, NAMES, job.places.near)
        return f"musubi-tuner {_version(root)}, {_found(job, root).told}"

    def train(self, job: Job) -> Path:
        spec = job.spec
        root = _launch.checkout(ROOT, MARKER, NAMES, job.places.near)
        tool = _Tool(root, _launch.interpreter(root, PYTHON), job, _hub(job))
        job.append("phase", name="laying out the pictures")
        folder, dataset = _dataset.lay_out(job, LAYOUT)
        _cache(tool, folder, dataset)
        told = _kohya_family.prompts(spec, lambda number: drawn_with(spec, dataset, number))
        _launch.write_text(job.folder / "config" / _kohya_family.PROMPTS, told)
        job.append("phase", name="loading the model")
        script = f"{_family(spec).scripts}_train_network.py"
        return _kohya_family.train(
            job,
            "musubi-tuner",
            lambda done, state: config(spec, _files(job), job.folder, folder, done, state),
            lambda path: tool.command(script, ("--config_file", str(path))),
        )


@dataclass(frozen=True, slots=True)
class _Tool:
    """The checkout and how its programs are started. `hub`: the working folder, where tokenizers lie under their hub names."""

    root: Path
    python: Path
    job: Job
    hub: Path

    def command(self, script: str, arguments: Sequence[str]) -> _launch.Command:
        env = {"PYTHONPATH": str(self.root / "src")}  # it need not be installed
        if any(self.hub.iterdir()):
            env["HF_HUB_OFFLINE"] = "1"
        return _launch.Command(self.python, (str(self.root / SOURCE / script), *arguments), self.hub, env)

    def run(self, script: str, arguments: Sequence[str]) -> None:
        _launch.launch(self.command(script, arguments), self.job, read=lambda _: None)


def config(spec: TrainingSpec, files: Mapping[str, Path], folder: Path, dataset: Path, done: int, state: Path | None) -> dict[str, Any]:
    """Everything the training script is told, in its own words. `done`: steps of earlier launches; `state`: where they left off."""
    options, family = MusubiOptions(**spec.options), _family(spec)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"dit": files.get("dit", spec.base_model)}
    settings |= {name: files.get(name, usual) for name, (_, _, usual, _) in family.files.items()}
    settings |= {"model_version": version(spec)} if family.version else {}
    settings |= {
        "dataset_config": dataset / "dataset.toml",
        "output_dir": folder / "out",
        "output_name": "lora",
        **family.settings,
        "network_dim": spec.rank,
        "network_alpha": float(spec.alpha),  # its default of 1 makes every rate tiny
        "learning_rate": spec.learning_rate,
        "optimizer_type": options.optimizer,
        "lr_scheduler": "constant",
        "max_train_steps": spec.steps - done,
        "gradient_accumulation_steps": spec.gradient_accumulation,
        "gradient_checkpointing": True,
        "mixed_precision": "bf16",
        "save_precision": "bf16",
        "sdpa": True,
        "fp8_base": options.fp8,
        "fp8_scaled": options.fp8,  # 8 bit without scales is visibly worse
        "max_data_loader_n_workers": 1,
        "persistent_data_loader_workers": True,
        **_kohya_family.keeping(spec, folder, options.optimizer, options.blocks_to_swap),
        **_kohya_family.sampling(spec, folder, state is not None),
        **({LIGHT[family.scripts]: True} if options.fp8_text_encoder and spec.sample_prompts else {}),  # the prompts are encoded once more
    }
    settings |= {"resume": state} if state else {}
    settings |= _launch.own_words(options.more)
    return {name: value.as_posix() if isinstance(value, Path) else value for name, value in settings.items()}


def caching(spec: TrainingSpec, files: Mapping[str, Path], dataset: Path) -> list[tuple[str, tuple[str, ...]]]:
    """The two programs before the training, with their arguments. One picture at a time: an example without controls would shift the others."""
    options, family = MusubiOptions(**spec.options), _family(spec)  # type: ignore[arg-type]
    common = ("--dataset_config", (dataset / "dataset.toml").as_posix(), "--batch_size", "1")
    common += ("--model_version", version(spec)) if family.version else ()
    named = {name: files.get(name, Path(usual)).as_posix() for name, (_, _, usual, _) in family.files.items()}
    encoders = tuple(word for name in family.encoders for word in (f"--{name}", named[name]))
    return [
        (f"{family.scripts}_cache_latents.py", (*common, "--vae", named["vae"])),
        (
            f"{family.scripts}_cache_text_encoder_outputs.py",
            (*common, *encoders, *([f"--{LIGHT[family.scripts]}"] if options.fp8_text_encoder else [])),
        ),
    ]


def version(spec: TrainingSpec) -> str:
    """Its --model_version. For Qwen-Image-Edit the name of the base tells, unless the option does."""
    options, family = MusubiOptions(**spec.options), _family(spec)  # type: ignore[arg-type]
    if spec.architecture != "qwen_image_edit":
        return family.version
    return _weights.qwen_version(spec.base_model, options.version)


def drawn_with(spec: TrainingSpec, dataset: PairedDataset, number: int) -> dict[str, Any]:
    """What the sample prompt of this number is drawn with; for edits the pictures of an example to start from, too."""
    controls = [control.path.as_posix() for control in dataset.pairs[number % len(dataset.pairs)].controls]
    return {**_family(spec).drawn_with, **({"control_image_path": controls} if controls else {})}


def _family(spec: TrainingSpec) -> Family:
    return FAMILIES[spec.architecture]


def _cache(tool: _Tool, folder: Path, dataset: PairedDataset) -> None:
    """Both caches, unless they are whole. They are believed only when there is one of each for every example."""
    job, spec = tool.job, tool.job.spec
    family, whole = _family(spec), folder / "cache" / "complete"
    if whole.is_file() and _uncached(folder, family, dataset) == []:
        return
    whole.unlink(missing_ok=True)
    for phase, (script, arguments) in zip(("pictures to latents", "texts to embeddings"), caching(spec, _files(job), folder), strict=True):
        job.append("phase", name=phase)
        tool.run(script, arguments)
    if lacking := _uncached(folder, family, dataset):
        raise TrainingFailed(
            "data",
            f"musubi-tuner encoded {len(dataset.pairs) - len(lacking)} of {len(dataset.pairs)} examples and would leave out the others.",
            "Read log.txt for the first picture it stumbled over.",
            tuple(lacking[:3]),
        )
    _launch.write_text(whole, "\n")


def _uncached(folder: Path, family: Family, dataset: PairedDataset) -> list[str]:
    """Examples that lack one of their two cache files."""
    cache = folder / "cache"
    found = {path.name for path in cache.iterdir()} if cache.is_dir() else set[str]()
    lacking: list[str] = []
    for pair in dataset.pairs:
        stem = pair.target.path.stem
        latents = re.compile(rf"{re.escape(stem)}_\d{{4,}}x\d{{4,}}_{family.short}\.safetensors")
        if f"{stem}_{family.short}_te.safetensors" not in found or not any(map(latents.fullmatch, found)):
            lacking.append(f"{stem} has no cache")
    return lacking


def _hub(job: Job) -> Path:
    """The folder the programs are started in: what lies there under a hub name is taken from there, so nothing is downloaded."""
    hub = job.folder / "tokenizers"
    hub.mkdir(parents=True, exist_ok=True)
    for name, source in _tokenizers(job.places.comfyui, job.spec.architecture).items():
        _launch.copy_folder(source, hub / name)
        if name.endswith("processor"):
            write_json(hub / name / "preprocessor_config.json", QWEN_PICTURES)
    return hub


def _tokenizers(comfyui: Path | None, architecture: str) -> dict[str, Path]:
    """Names on the hub to folders of ComfyUI that hold the same. Only Qwen-Image-Edit's are whole there."""
    source = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer" if comfyui else None
    if architecture != "qwen_image_edit" or source is None or not source.is_dir():
        return {}
    return {"Qwen/Qwen-Image/tokenizer": source, "Qwen/Qwen-Image-Edit/processor": source}


def _found(job: Job, root: Path) -> _environment.Environment:
    eight_bit = MusubiOptions(**job.spec.options).optimizer == "adamw8bit"  # type: ignore[arg-type]
    modules = (*MODULES, *(["bitsandbytes"] if eight_bit else []))
    return _environment.look(_launch.interpreter(root, PYTHON), root, modules, f"-e {root}")


def _version(root: Path) -> str:
    return _launch.version_in(root / "pyproject.toml", r'^version = "(.+?)"')


def parsers(root: Path, scripts: str) -> list[Path]:
    """Sources that declare the options of a family's programs."""
    source = root / SOURCE
    own = {"qwen_image": "qwen_image/qwen_image_utils.py", "flux_2": "flux_2/flux2_utils.py"}
    return [
        source / "training" / "parser_common.py",
        source / f"{scripts}_train_network.py",
        *([source / own[scripts]] if scripts in own else []),
    ]


def _key_problems(root: Path, spec: TrainingSpec) -> list[str]:
    family = _family(spec)
    sources = parsers(root, family.scripts)
    if gone := [path.name for path in sources if not path.is_file()]:
        return [f"this musubi-tuner has no {', '.join(gone)}: it is too old for {ARCHITECTURES[spec.architecture]}; update it"]
    known = _launch.arguments_of(sources)
    problems = _launch.key_problems(config(spec, {}, Path(), Path(), 0, None), known, "musubi-tuner")
    options = MusubiOptions(**spec.options)  # type: ignore[arg-type]
    if options.fp8_text_encoder and any(SLIP in script.read_text(encoding="utf-8") for script in _encoding(root, family)):
        problems.append(f"this musubi-tuner breaks off with {LIGHT[family.scripts]}, by a slip of its own: set fp8_text_encoder = false")
    if spec.architecture == "qwen_image_edit" and version(spec) and f'"{version(spec)}"' not in sources[-1].read_text(encoding="utf-8"):
        problems.append(f"this musubi-tuner does not know Qwen-Image-{version(spec)}: update it")
    return problems


def _encoding(root: Path, family: Family) -> list[Path]:
    """Its programs that load the text encoder."""
    scripts = (f"{family.scripts}_{what}.py" for what in ("cache_text_encoder_outputs", "train_network"))
    return [path for path in (root / SOURCE / script for script in scripts) if path.is_file()]


def _names(spec: TrainingSpec) -> dict[str, tuple[str, str, str]]:
    """Argument of the training script to (file name, ComfyUI's folder, what it is)."""
    options, family = MusubiOptions(**spec.options), _family(spec)  # type: ignore[arg-type]
    base = {"dit": (spec.base_model, "diffusion_models", f"{ARCHITECTURES[spec.architecture]}; {family.take}")}
    return base | {name: (getattr(options, own) or usual, place, what) for name, (own, place, usual, what) in family.files.items()}


def _files(job: Job) -> dict[str, Path]:
    found = {role: job.places.find(name) for role, (name, _, _) in _names(job.spec).items()}
    return {role: path for role, path in found.items() if path}


def _file_problems(job: Job) -> list[str]:
    spec, found, family = job.spec, _files(job), _family(job.spec)
    problems = [
        f"{name or 'no file'} is not in models/{place}: put {what} there"
        for role, (name, place, what) in _names(spec).items()
        if role not in found
    ]
    if "dit" in found:
        told = _weights.model_problem(
            found["dit"], "musubi-tuner", ARCHITECTURES[spec.architecture], family.marks, family.take, prefix=family.scripts == "qwen_image"
        )
        problems += [told] if told else []
    problems += [
        f"{found[role].name} is in 8 bit, which musubi-tuner cannot read: take the bf16 or fp16 file, and set fp8_text_encoder where memory is short"
        for role in family.encoders
        if role in found and (_weights.is_scaled(found[role]) or (family.scripts != "flux_kontext" and _weights.is_eight_bit(found[role])))
    ]
    if (
        "vae" in found
        and family.scripts != "qwen_image"
        and any(key.startswith("encoder.down_blocks.") for key in _weights.tensors(found["vae"]))
    ):
        problems.append(
            f"{found['vae'].name} is an autoencoder in diffusers' form, which musubi-tuner cannot read: take {family.files['vae'][3]}"
        )
    if spec.architecture == "qwen_image_edit" and not version(spec):
        problems.append(_weights.QWEN_UNKNOWN.format(name=spec.base_model))
    most = trainset.read(job.dataset).controls
    if spec.kind == "edit" and version(spec) == "edit" and most > 1:
        problems.append(_weights.QWEN_ONE.format(count=most))
    return problems
