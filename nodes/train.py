"""Steps 1.4 and 2.2: from a training set to a LoRA. Training runs in a process of its own; the nodes start it, find it and show it."""

from __future__ import annotations

from collections.abc import Sequence
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
from ..flywheel.images import open_image
from ..flywheel.sheets import Tile, contact_sheet
from ..training import card, engines, preflight, run
from ..training import job as jobs
from ..training.curve import loss_curve
from . import host, jobs_here, sockets

TRAIN, DRY, BOTH, LOOK, STOP = "train", "dry run", "dry run, then train", "only look", "stop"
WAITS, GOES_ON = "ComfyUI waits", "ComfyUI goes on"


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
                sockets.TRAINING.Input("training", tooltip="What to train: Character LoRA Settings or Edit LoRA Settings."),
                io.Combo.Input(
                    "action",
                    options=[TRAIN, DRY, BOTH, LOOK, STOP],
                    default=TRAIN,
                    tooltip="train: start, or go on after a stop. dry run: a few steps, to see whether it fits and how long it will take; where memory is short it tries the smaller profiles by itself. dry run, then train: the same, and with what fits the training begins by itself. only look: start nothing. stop: end at the next step; 'train' goes on later.",
                ),
                io.String.Input(
                    "hours",
                    default="",
                    tooltip="Begin only in these hours, such as 22:00-07:00 for the night. Empty: at once. Several trainings wait for each other.",
                ),
                io.Combo.Input(
                    "meanwhile",
                    options=[WAITS, GOES_ON],
                    default=WAITS,
                    tooltip="While the training has the graphics card. ComfyUI waits: graphs you queue run afterwards, so that neither runs out of memory. ComfyUI goes on: both share the card. The rehearsal and cloud engines leave the card alone, so nothing waits for them.",
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
        return jobs_here.revision(lambda one: [one.id, one.status().state, one.status().attempts])

    @classmethod
    def execute(cls, training: sockets.Training, action: str, hours: str, meanwhile: str) -> io.NodeOutput:
        hold = meanwhile == WAITS
        if action in (DRY, BOTH):
            text, one = _dry_run(training, hold, hours if action == BOTH else None)
            if one:
                text = "\n".join([text, jobs_here.standing(one)])
                return io.NodeOutput(one, text, ui=_shown(one, text))
            return io.NodeOutput(ExecutionBlocker(None), ExecutionBlocker(None), ui=host.shown(text))
        one = jobs.find_or_create(training.project.root, training.spec, jobs_here.places())
        if action == STOP:
            run.stop(one)
        text = _started(one, hours, hold) if action == TRAIN else jobs_here.standing(one)
        return io.NodeOutput(one, text, ui=_shown(one, text))


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
        return jobs_here.revision(lambda one: [one.id, one.status().state])

    @classmethod
    def execute(cls, job: jobs.Job, weight: float, model: Any = None) -> io.NodeOutput:
        if job.status().state != "done":
            return io.NodeOutput(*[ExecutionBlocker(None)] * 4, ui=_shown(job, jobs_here.standing(job)))
        made = run.result_of(job)
        text = f"{made}\ntoken {made.instance_token}, sha256 {made.sha256[:16]}…\nTo see what it does: the workflow try_this_lora, or Try it on the Jobs page."
        name = next((name for name in folder_paths.get_filename_list("loras") if Path(name).name == made.path.name), made.path.name)
        patched = _patched(model, made.path, weight) if model is not None else ExecutionBlocker(None)
        stack = lora.LoraStack().plus(lora.stacked(made.path, weight))
        return io.NodeOutput(stack, patched, name, text, ui=_shown(job, text))


class TrainingMonitor(io.ComfyNode):
    """How the training stands: loss curve, pace, time left, memory, samples, the last lines of the log. On the node it is live; the outputs are
    of the moment, queue again for newer ones."""

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
        return jobs_here.revision(jobs.revision)

    @classmethod
    def execute(cls, job: jobs.Job, smoothing: float, sample_size: int) -> io.NodeOutput:
        status, spec = job.status(), job.spec
        curve = loss_curve(
            job.losses(),
            steps=status.steps or spec.steps,
            checkpoints=[event["step"] for event in job.events() if event["kind"] == "checkpoint"],
            validation=job.validations(),
            weight=smoothing,
            title=f"{spec.project} · {spec.kind} LoRA · {job.id}",
        )
        text = "\n".join([jobs_here.standing(job), *jobs_here.tail(job)])
        return io.NodeOutput(host.tensor(curve), host.tensor(_sample_sheet(job, sample_size)), text, ui=_shown(job, text))


def _shown(one: jobs.Job, text: str) -> dict[str, list[Any]]:
    """What a node says, and which training it means: the page shows that live."""
    return {**host.shown(text), "flen_job": [{"project": one.folder.parent.parent.name, "id": one.id}]}


def _started(one: jobs.Job, hours: str, hold: bool) -> str:
    """Start a job unless it runs or is done, and say what was checked."""
    uses_card = engines.uses_card(one.spec)
    one.hold(hold and uses_card)
    status = one.status()
    if status.state == "done" or not (status.is_over or status.state == "new"):
        return jobs_here.standing(one)
    checked = preflight.check(one)
    freed = _hand_over() if uses_card else ""
    run.start(one, hours=hours)
    host.log.info("Training: %s", jobs_here.standing(one))
    return "\n".join(part for part in (jobs_here.standing(one), freed, checked.text()) if part)


def _dry_run(training: sockets.Training, hold: bool, train_in: str | None) -> tuple[str, jobs.Job | None]:
    """Start the dry run, or say what it came to. Its LoRA is proved, but registered nowhere.

    `train_in`: the hours in which the training itself shall follow, None for never. The job is that training once the dry run is done.
    """
    places = jobs_here.places()
    then = run.Then(str(places.loras or ""), train_in, hold) if train_in is not None else None
    first = run.dry_run(training.project.root, training.spec, places, then)
    last, changes = run.last_tried(first)
    if last != first and (lighter := run.rehearsed(last)):
        run.dry_run(training.project.root, lighter, places, then)  # what follows is what is asked for now
    state = last.status().state
    smaller = "\n".join(f"Memory was not enough, so it tried {words}." for words in changes)
    if state != "done":
        told = (
            _started(last, "", hold)
            if state in ("new", "stopped", "lost") or (state == "failed" and last == first)
            else jobs_here.standing(last)
        )
        goes_on = "The training follows by itself. " if then else ""
        parts = ("Dry run.", smaller, told, f"{goes_on}Queue again for what it comes to." if state != "failed" else "")
        return "\n".join(part for part in parts if part), None
    whole = run.rehearsed(last) or training.spec
    pace = last.pace_s() or 0.0
    lines = [
        f"Dry run: it fits, {pace:.2g} s per step. The whole training of {whole.steps} steps will take about {host.duration(pace * whole.steps)}.",
        f"At most {card.gib(last.peak_bytes)} of memory." if last.peak_bytes else "",
        f"The first sample with the LoRA comes at step {whole.save_every}, after about {host.duration(_warm_up_s(last) + pace * whole.save_every)}.",
        smaller,
        _next_step(changes, trained=then is not None),
    ]
    return "\n".join(line for line in lines if line), run.train_after(last)


def _next_step(changes: Sequence[str], *, trained: bool) -> str:
    if trained:
        return f"It trains with that: {changes[-1]}." if changes else ""
    return f"In the settings choose that: {changes[-1]}." if changes else "Set action to 'train'."


def _warm_up_s(one: jobs.Job) -> float:
    """From the start to the first step: loading and caching."""
    events = one.events()
    begun = next((n for n in range(len(events) - 1, -1, -1) if events[n]["kind"] == "started"), None)
    first = next((event for event in events[begun or 0 :] if event["kind"] == "step"), None)
    return jobs.seconds_between(events[begun], first) if begun is not None and first else 0.0


def _hand_over() -> str:
    """Take ComfyUI's models off the graphics card, and say what is free then. The worker asks again when its turn comes."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    device = comfy.model_management.get_torch_device()
    free: Any = comfy.model_management.get_free_memory(device)
    total: Any = comfy.model_management.get_total_memory(device)
    return f"ComfyUI's models were unloaded: {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free on {device}."


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


NODES = [TrainLora, TrainedLora, TrainingMonitor]
