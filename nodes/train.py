"""Step 1.4: from a training set to a LoRA. Training runs in a process of its own; the nodes start it, find it and show it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import comfy
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image

from ..flywheel import lora
from ..flywheel.errors import FlywheelError
from ..flywheel.images import open_image, value_key
from ..flywheel.project import Project
from ..flywheel.sheets import Tile, contact_sheet
from ..training import engines, preflight, presets, run, trainset
from ..training import job as jobs
from ..training.curve import loss_curve
from ..training.errors import SpecError
from ..training.spec import Option, TrainingSpec
from . import host, sockets

TRAIN, DRY, LOOK, STOP = "train", "dry run", "only look", "stop"
FOLDERS = ("diffusion_models", "text_encoders", "vae", "checkpoints")
SAMPLES = (
    "photo of {token} {noun}, front view",
    "photo of {token} {noun} laughing in a street cafe, side view",
    "photo of a {noun}",  # must not become the character
)


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
                    "engine",
                    options=[name for name in engines.ENGINES if ("character", "flux1") in engines.engine(name).trains],
                    default="rehearsal",
                    tooltip="Who trains. rehearsal needs no model and no graphics card: a dry run of everything. kohya is sd-scripts, in its own environment.",
                ),
                io.String.Input(
                    "base_model",
                    default="flux1-dev.safetensors",
                    tooltip="The model the LoRA is for: a file of ComfyUI's models/diffusion_models. The rehearsal does not open it.",
                ),
                io.Combo.Input(
                    "quality",
                    options=presets.qualities(),
                    default="balanced",
                    tooltip="draft shows in a quarter of the time whether the set works; thorough takes nearly twice as long as balanced.",
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
                    tooltip="Length of the training. 0 counts the images: 60 steps each when balanced.",
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
                io.String.Input(
                    "folder",
                    optional=True,
                    force_input=True,
                    tooltip="Connect Export Training Set, so that it runs first. Without it the project's last export is used.",
                ),
            ],
            outputs=[
                sockets.TRAINING.Output("training", tooltip="Connect to Train LoRA."),
                io.String.Output("report", tooltip="Every value with the reason for it."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["lora", "dreambooth", "flux", "training config"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when images or captions of a training set change."""
        return host.fingerprint("training", lambda stage: _files(stage.folder))

    @classmethod
    def execute(
        cls,
        project: Project,
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
        spec = TrainingSpec(
            project=project.folder_name,
            engine=engine,
            base_model=base_model.strip(),
            dataset=project.relative(data) if data.is_relative_to(project.root) else str(data),
            dataset_key=found.key,
            instance_token=project.instance_token,
            class_noun=project.class_noun,
            seed=seed,
            sample_prompts=tuple(prompt.format(**words) for prompt in SAMPLES),
            options=presets.options_for(engine, memory, _options(engine_options)),
            **presets.chosen(quality, memory, len(found.examples), rank=rank, steps=steps),
        )
        engines.supports(spec)
        engines.options(spec)
        lines = [
            f"{len(found.examples)} images, {spec.steps} steps, rank {spec.rank}, {spec.resolution} px, checkpoint every {spec.save_every} steps"
        ]
        text = "\n".join([*lines, *presets.reasons(spec, quality, memory, len(found.examples)), f"job {spec.id}"])
        return io.NodeOutput(sockets.Training(project, spec), text, ui=host.shown(text))


class TrainLora(io.ComfyNode):
    """Starts the training in a process of its own, or finds it when it already runs, and is done at once: ComfyUI stays free, may be closed and
    started again. The same settings and images are always the same training, so queueing again never trains twice; what was stopped or
    killed goes on from its last checkpoint."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_TrainLora",
            display_name="Train LoRA",
            category="FLENwheel/train",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.TRAINING.Input("training", tooltip="What to train: Character LoRA Settings."),
                io.Combo.Input(
                    "action",
                    options=[TRAIN, DRY, LOOK, STOP],
                    default=TRAIN,
                    tooltip="train: start, or go on after a stop. dry run: a few steps, to see whether it fits and how long it will take. only look: start nothing. stop: end at the next step; 'train' goes on later.",
                ),
                io.String.Input(
                    "hours",
                    default="",
                    tooltip="Begin only in these hours, such as 22:00-07:00 for the night. Empty: at once. Several trainings wait for each other.",
                ),
            ],
            outputs=[
                sockets.JOB.Output("job", tooltip="Connect to Training Monitor and Trained LoRA."),
                io.String.Output("report", tooltip="What was checked and how the training stands."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when a training has ended, for better or worse."""
        return _revision(lambda one: [one.id, one.status().state, one.status().attempts])

    @classmethod
    def execute(cls, training: sockets.Training, action: str, hours: str) -> io.NodeOutput:
        if action == DRY:
            text = _dry_run(training)
            return io.NodeOutput(ExecutionBlocker(None), ExecutionBlocker(None), ui=host.shown(text))
        one = jobs.find_or_create(training.project.root, training.spec, _places())
        if action == STOP:
            run.stop(one)
        text = _started(one, hours) if action == TRAIN else _standing(one)
        return io.NodeOutput(one, text, ui=host.shown(text))


class TrainedLora(io.ComfyNode):
    """The finished LoRA. Until it is finished, whatever is connected behind this node waits without holding the queue: queue again later.
    Finished means: the file was opened, every layer was found in the model, and it was copied to models/loras."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_TrainedLora",
            display_name="Trained LoRA",
            category="FLENwheel/train",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.JOB.Input("job", tooltip="The training: Train LoRA."),
                io.Float.Input(
                    "weight", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="How strong the LoRA works. 1 is as trained."
                ),
                io.Model.Input("model", optional=True, tooltip="A model to put the LoRA on, for example from Load Diffusion Model."),
            ],
            outputs=[
                sockets.LORAS.Output("loras", tooltip="The LoRA as a stack: connect to an editor or a LoRA Stack."),
                io.Model.Output("model_out", display_name="model", tooltip="The connected model with the LoRA on it."),
                io.String.Output("lora_name", tooltip="Its name in ComfyUI's LoRA loaders."),
                io.String.Output("report", tooltip="What was proved: layers, rank, hash, token."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        return _revision(lambda one: [one.id, one.status().state])

    @classmethod
    def execute(cls, job: jobs.Job, weight: float, model: Any = None) -> io.NodeOutput:
        if job.status().state != "done":
            return io.NodeOutput(*[ExecutionBlocker(None)] * 4, ui=host.shown(_standing(job)))
        made = run.result_of(job)
        text = f"{made}\ntoken {made.instance_token}, sha256 {made.sha256[:16]}…"
        name = next((name for name in folder_paths.get_filename_list("loras") if Path(name).name == made.path.name), made.path.name)
        patched = _patched(model, made.path, weight) if model is not None else ExecutionBlocker(None)
        stack = lora.LoraStack().plus(lora.stacked(made.path, weight))
        return io.NodeOutput(stack, patched, name, text, ui=host.shown(text))


class TrainingMonitor(io.ComfyNode):
    """How the training stands: loss curve, pace, time left, samples, the last lines of the log. Queue again for newer figures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_TrainingMonitor",
            display_name="Training Monitor",
            category="FLENwheel/train",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.JOB.Input("job", tooltip="The training: Train LoRA."),
                io.Float.Input(
                    "smoothing",
                    default=0.9,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="How smooth the line is. 0 draws every step as it is; the dots always are.",
                ),
                io.Int.Input("sample_size", default=192, min=64, max=1024, tooltip="Size of one sample on the sheet, in pixels."),
            ],
            outputs=[
                io.Image.Output("loss_curve", display_name="loss curve", tooltip="Loss over steps, with the checkpoints."),
                io.Image.Output("samples", tooltip="Samples: one row per checkpoint, one column per prompt."),
                io.String.Output("report", tooltip="State, step, pace, time left, last lines of the log."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["loss", "progress"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        return _revision(jobs.revision)

    @classmethod
    def execute(cls, job: jobs.Job, smoothing: float, sample_size: int) -> io.NodeOutput:
        status, spec = job.status(), job.spec
        marks = [event["step"] for event in job.events() if event["kind"] == "checkpoint"]
        title = f"{spec.project} · {spec.kind} LoRA · {job.id}"
        curve = loss_curve(job.losses(), steps=status.steps or spec.steps, checkpoints=marks, weight=smoothing, title=title)
        sheet = _sample_sheet(job, sample_size)
        text = "\n".join([_standing(job), *_tail(job)])
        return io.NodeOutput(host.tensor(curve), host.tensor(sheet), text, ui=host.shown(text, host.tensor(curve), cls))


def _started(one: jobs.Job, hours: str) -> str:
    """Start a job unless it runs or is done, and say what was checked."""
    status = one.status()
    if status.state == "done" or not (status.is_over or status.state == "new"):
        return _standing(one)
    checked = preflight.check(one)
    freed = _hand_over() if engines.engine(one.spec.engine).uses_gpu else ""
    run.start(one, hours=hours)
    host.log.info("Training: %s", _standing(one))
    return "\n".join(part for part in (_standing(one), freed, checked.text()) if part)


def _dry_run(training: sockets.Training) -> str:
    """Start the dry run, or say what it came to. Its LoRA is proved, but registered nowhere."""
    one = jobs.find_or_create(training.project.root, presets.dry(training.spec), dataclasses.replace(_places(), loras=None))
    if one.status().state != "done":
        return f"Dry run. {_started(one, '')}\nQueue again for what it comes to."
    pace = one.pace_s() or 0.0
    whole = host.duration(pace * training.spec.steps)
    return f"Dry run: it fits, {pace:.2g} s per step. The whole training of {training.spec.steps} steps will take about {whole}. Set action to 'train'."


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


def _revision(of: Any) -> str:
    told: list[Any] = []
    for project in host.readable_projects():
        for one in jobs.jobs_of(project):
            try:
                told.append(of(one))
            except FlywheelError as error:
                told.append([one.id, str(error)])
    return value_key(told)


def _places() -> jobs.Places:
    """What trainers need to know of this ComfyUI."""
    comfyui = Path(comfy.__path__[0]).parent
    models = tuple(Path(path) for kind in FOLDERS for path in folder_paths.get_folder_paths(kind))
    return jobs.Places(Path(folder_paths.get_folder_paths("loras")[0]), models, comfyui, (comfyui.parent, comfyui))


def _hand_over() -> str:
    """Take ComfyUI's models off the graphics card, and say what is free then."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    device = comfy.model_management.get_torch_device()
    free: Any = comfy.model_management.get_free_memory(device)
    total: Any = comfy.model_management.get_total_memory(device)
    return f"ComfyUI's models were unloaded: {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free on {device}."


def _standing(one: jobs.Job) -> str:
    """One or two lines on how a job stands."""
    status = one.status()
    name = f"Job {one.id}"
    if status.state in ("running", "stopping"):
        pace = (
            f", {status.pace_s:.2g} s per step, {host.duration(status.left_s)} left" if status.pace_s and status.left_s is not None else ""
        )
        phase = f", {status.phase}" if status.phase else ""
        loss = f", loss {status.loss:.4g}" if status.loss is not None else ""
        return f"{name} is {status.state}: step {status.step} of {status.steps}{loss}{pace}{phase}. Last checkpoint: {status.checkpoint or 'none yet'}."
    if status.state == "done":
        return f"{name} is done: {run.result_of(one)}"
    if status.state == "queued":
        return f"{name} waits for its turn."
    if status.state == "new":
        return f"{name} was not started yet. Set action to 'train' and queue."
    return f"{name} is {status.state} at step {status.step} of {status.steps or one.spec.steps}. {status.cause}"


def _tail(one: jobs.Job) -> list[str]:
    """Notes of the run and the end of its log."""
    notes = [f"· {event['text']}" for event in one.events() if event["kind"] == "note"][-6:]
    last = one.log.read_text(encoding="utf-8", errors="replace").splitlines()[-6:] if one.log.is_file() else []
    return [*notes, *(f"| {line}" for line in last)]


def _sample_sheet(one: jobs.Job, size_px: int) -> Image.Image:
    prompts = one.spec.sample_prompts or ("",)
    sampled = one.sampled()
    if not sampled:
        return contact_sheet([Tile(Image.new("RGB", (size_px, size_px), (43, 43, 43)), "no sample yet")], columns=1, cell_px=size_px)
    tiles = (
        Tile(open_image(path, at_least=size_px).image, f"step {step} · {prompts[min(prompt, len(prompts) - 1)]}")
        for step, prompt, path in sampled
    )
    return contact_sheet(tiles, columns=len({prompt for _, prompt, _ in sampled}), cell_px=size_px, title="samples")


def _patched(model: Any, path: Path, weight: float) -> Any:
    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(model, None, weights, weight, 0.0)[0]


NODES = [CharacterLoraSettings, TrainLora, TrainedLora, TrainingMonitor]
