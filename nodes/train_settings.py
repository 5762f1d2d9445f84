"""Step 1.4 and 2.2, before anything is started: few questions, presets with their reasons, a complete description of the training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..flywheel.errors import FlywheelError
from ..flywheel.images import value_key
from ..flywheel.pairs import PairedDataset
from ..flywheel.project import Project
from ..training import engines, pairset, presets, trainset
from ..training.errors import SpecError
from ..training.spec import ARCHITECTURES, Architecture, Kind, Option, TrainingSpec
from . import host, sockets

SAMPLES = (
    "photo of {token} {noun}, front view",
    "photo of {token} {noun} laughing in a street cafe, side view",
    "photo of a {noun}",  # must not become the character
)


def _able(kind: Kind) -> list[str]:
    return [name for name in engines.ENGINES if any(trained == kind for trained, _ in engines.engine(name).trains)]


def _models(kind: Kind) -> list[str]:
    """What people call the architectures that some engine trains such LoRAs for."""
    able = {architecture for name in engines.ENGINES for trained, architecture in engines.engine(name).trains if trained == kind}
    return [words for architecture, words in ARCHITECTURES.items() if architecture in able]


def _architecture(model: str) -> Architecture:
    return next(name for name, words in ARCHITECTURES.items() if words == model)  # type: ignore[return-value]


def _questions(kind: Kind) -> list[Any]:
    """The widgets that both settings nodes share, in their order."""
    per = "image" if kind == "character" else "triplet"
    each = presets.steps_for("balanced", 50, kind) // 50
    return [
        io.Combo.Input(
            "quality",
            options=presets.qualities(kind),
            default="balanced",
            tooltip="draft shows in a fraction of the time whether the set works; thorough takes nearly twice as long as balanced.",
        ),
        io.Combo.Input(
            "memory",
            options=presets.memories(),
            default=presets.memories()[0],
            tooltip="The memory of your graphics card. Less memory means smaller training images and slower steps.",
        ),
        io.Int.Input("rank", default=0, min=0, max=512, tooltip="Size of the LoRA. 0 takes the preset's: 8, 16 or 32."),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=1_000_000,
            tooltip=f"Length of the training. 0 counts the {per}s: {each} steps each when balanced.",
        ),
        io.Int.Input(
            "seed",
            default=42,
            min=0,
            max=2**32 - 1,
            control_after_generate=False,
            tooltip="Another number makes another run of the same settings.",
        ),
        io.String.Input(
            "engine_options",
            default="",
            multiline=True,
            tooltip="For experts: options of the engine, one 'name = value' per line. A name it does not know is refused with the list of those it knows.",
        ),
    ]


def _outputs() -> list[Any]:
    return [
        sockets.TRAINING.Output("training", tooltip="Connect to Train LoRA."),
        io.String.Output("report", tooltip="Every value with the reason for it."),
    ]


class CharacterLoraSettings(io.ComfyNode):
    """Few questions; everything else comes from presets whose reasons are shown. Nothing is started here: connect Train LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_CharacterLoraSettings",
            display_name="Character LoRA Settings",
            category="FLENwheel/train",
            description=cls.__doc__ or "",
            inputs=[
                sockets.PROJECT.Input("project", tooltip="The character; its token must be in every caption."),
                io.Combo.Input(
                    "model",
                    options=_models("character"),
                    default=ARCHITECTURES["flux1"],
                    tooltip="The model that shall learn the character.",
                ),
                io.Combo.Input(
                    "engine",
                    options=_able("character"),
                    default="rehearsal",
                    tooltip="Who trains. rehearsal needs no model and no graphics card: a dry run of everything. kohya is sd-scripts, in its own environment.",
                ),
                io.String.Input(
                    "base_model",
                    default="flux1-dev.safetensors",
                    tooltip="The model the LoRA is for: a file of ComfyUI's models/diffusion_models. The rehearsal does not open it.",
                ),
                *_questions("character"),
                io.String.Input(
                    "folder",
                    optional=True,
                    force_input=True,
                    tooltip="Connect Export Training Set, so that it runs first. Without it the project's last export is used.",
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
            search_aliases=["lora", "dreambooth", "flux", "training config"],
        )

    @classmethod
    def fingerprint_inputs(cls, engine: str = "", engine_options: str = "", **_: Any) -> str:
        """Runs again when images or captions of a training set change, or what the options name beside it."""
        return host.fingerprint("training", lambda stage: _files(stage.folder)) + _beside(engine, engine_options)

    @classmethod
    def execute(
        cls,
        project: Project,
        model: str,
        engine: str,
        base_model: str,
        quality: str,
        memory: str,
        rank: int,
        steps: int,
        seed: int,
        engine_options: str,
        folder: str | None = None,
    ) -> io.NodeOutput:
        data = Path(folder).parent if folder else project.stage("training").folder
        found = trainset.read(data)
        words = {"token": project.instance_token, "noun": project.class_noun}
        prompts = tuple(prompt.format(**words) for prompt in SAMPLES)
        asked = _Asked("character", _architecture(model), engine, base_model, quality, memory, rank, steps, seed, engine_options)
        return asked.answer(project, data, found, prompts)


class EditLoraSettings(io.ComfyNode):
    """Few questions about a LoRA that teaches the editor what it got wrong: corrections as triplets in, a complete training out, every value
    with its reason. Nothing is started here: connect Train LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_EditLoraSettings",
            display_name="Edit LoRA Settings",
            category="FLENwheel/train",
            description=cls.__doc__ or "",
            inputs=[
                sockets.PROJECT.Input("project", tooltip="The character that the LoRA and its folder are named after."),
                io.Combo.Input(
                    "model", options=_models("edit"), default=ARCHITECTURES["qwen_image_edit"], tooltip="The editor that shall learn."
                ),
                io.Combo.Input(
                    "engine",
                    options=_able("edit"),
                    default="rehearsal",
                    tooltip="Who trains. rehearsal needs no model and no graphics card: a dry run of everything. An engine that cannot train this model says who can.",
                ),
                io.String.Input(
                    "base_model",
                    default="qwen_image_edit_2509_bf16.safetensors",
                    tooltip="The model the LoRA is for: a file or folder in ComfyUI's model folders, or a full path. Which of the two the engine wants it says itself. The rehearsal does not open it.",
                ),
                *_questions("edit"),
                sockets.PAIRS.Input(
                    "pairs",
                    optional=True,
                    tooltip="What to learn from: Create Correction Triplets, Pair Doctor or Load Paired Dataset. Without it the project's last triplets are used.",
                ),
                sockets.PAIRS.Input(
                    "held_out",
                    optional=True,
                    tooltip="Pairs that are not trained on, to measure with, where you have some. Those of Create Correction Triplets are found without a link.",
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
            search_aliases=["lora", "qwen image edit", "kontext", "triplets", "training config"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when triplets of a project change."""
        return host.fingerprint("qwen_training", lambda stage: _listing(stage.folder / trainset.LISTING))

    @classmethod
    def execute(
        cls,
        project: Project,
        model: str,
        engine: str,
        base_model: str,
        quality: str,
        memory: str,
        rank: int,
        steps: int,
        seed: int,
        engine_options: str,
        pairs: PairedDataset | None = None,
        held_out: PairedDataset | None = None,
    ) -> io.NodeOutput:
        data = pairset.keep(project, pairs, held_out) if pairs else project.stage("qwen_training").folder
        found = trainset.read(data)
        asked = _Asked("edit", _architecture(model), engine, base_model, quality, memory, rank, steps, seed, engine_options)
        return asked.answer(project, data, found, tuple(example.caption for example in found.watched))


@dataclass(frozen=True, slots=True)
class _Asked:
    """The answers to a settings node's questions."""

    kind: Kind
    architecture: Architecture
    engine: str
    base_model: str
    quality: str
    memory: str
    rank: int
    steps: int
    seed: int
    engine_options: str

    def answer(self, project: Project, data: Path, found: trainset.TrainingSet, prompts: tuple[str, ...]) -> io.NodeOutput:
        """The training they come to, and every value with its reason."""
        images = len(found.examples)
        spec = TrainingSpec(
            project=project.folder_name,
            engine=self.engine,
            base_model=self.base_model.strip(),
            dataset=project.relative(data) if data.is_relative_to(project.root) else str(data),
            dataset_key=found.key,
            instance_token=project.instance_token,
            class_noun=project.class_noun,
            seed=self.seed,
            sample_prompts=prompts,
            options=engines.with_data(
                self.engine, presets.options_for(self.engine, self.memory, _options(self.engine_options), self.architecture)
            ),
            **presets.chosen(
                self.quality, self.memory, images, rank=self.rank, steps=self.steps, kind=self.kind, architecture=self.architecture
            ),
        )
        engines.supports(spec)
        engines.options(spec)
        amount = f"{images} images" if self.kind == "character" else f"{images} triplets, {len(found.held_out)} held out"
        text = "\n".join(
            [
                f"{amount}, {spec.steps} steps, rank {spec.rank}, {spec.resolution} px, checkpoint every {spec.save_every} steps",
                *presets.reasons(spec, self.quality, self.memory, images),
                f"job {spec.id}",
            ]
        )
        return io.NodeOutput(sockets.Training(project, spec), text, ui=host.shown(text))


def _beside(engine: str, text: str) -> str:
    """Changes with data that an engine's options name, such as pictures of the class."""
    try:
        return value_key(engines.with_data(engine, _options(text)))
    except FlywheelError:
        return ""  # running the node says what is wrong


def _options(text: str) -> dict[str, Option]:
    """name = value per line: numbers, true and false, else a text."""
    given: dict[str, Option] = {}
    problems: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, sign, value = (part.strip() for part in line.partition("="))
        if not sign or not name:
            problems.append(f"{line!r}: write name = value")
        else:
            given[name] = _value(value)
    if problems:
        raise SpecError("Some lines of engine_options cannot be read:", problems)
    return given


def _value(text: str) -> Option:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip('"')


def _files(folder: Path) -> list[Any]:
    """Names, sizes and times of what a training set consists of."""
    if not folder.is_dir():
        return []
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent != folder)
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in found]


def _listing(path: Path) -> list[Any]:
    """Size and time of a stage's list of triplets."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


NODES = [CharacterLoraSettings, EditLoraSettings]
