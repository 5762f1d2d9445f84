"""A batch of edits with everything in its order: all words first, controls once per photograph, one pass per LoRA combination, decoding beside it.

What a batch needs is kept on disk by content, so a second run of it loads no text encoder at all.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from ... import lora, qwen, registration
from ...errors import EditorError, FlywheelError
from ...images import open_image, value_key
from .. import ControlRef, EditRequest, Rendered, Tick
from . import denoise, encode, guard, latents, load, memory, modulation
from .adapters import Adapters
from .cache import TensorCache
from .models import ModelFolder
from .tensors import TensorFiles

log = logging.getLogger("flenwheel")

TICK_S = 0.25  # between looks at whether the person cancelled, within a step
ASPECT_MAX = 16
PICTURES_HELD = 12
QUEUED_BLOCKS = 2  # blocks a GPU may be behind: with more, cancelling would wait for the whole step
MESSAGE_OF_LAST_RESORT = (
    "Memory ran out even with the transformer brought in block by block. Choose fewer megapixels in Enrich Dataset, fewer control images, a smaller"
    " control_megapixels, or close what else uses the card."
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is to be used; see the fields of the editor, which explain each."""

    steps: int  # 0: what suits the model and its LoRAs; so with the next two
    guidance: float
    schedule: str
    guided_share: float
    negative_prompt: str
    control_megapixels: float
    at_once: int
    precision: str
    memory: str
    device: torch.device
    dtype: torch.dtype
    block_cache: float
    compile: bool
    cache: Path | None
    name: str = "qwen_diffusers"


@dataclass(frozen=True, slots=True)
class Job:
    """A request with what its words ask for: the prompt that is encoded, the LoRAs that go with it and what these need. `sizes` of its controls, px."""

    request: EditRequest
    prompt: str
    loras: tuple[lora.StackedLora, ...]
    sizes: tuple[tuple[int, int], ...]
    steps: int
    guidance: float
    lightning: bool

    @property
    def size(self) -> tuple[int, int]:
        return self.request.width, self.request.height

    @property
    def shapes(self) -> tuple[denoise.Shape, ...]:
        return tuple(latents.shape_of(size) for size in (self.size, *self.sizes))

    @property
    def tokens(self) -> int:
        return sum(rows * columns for _, rows, columns in self.shapes)

    @property
    def batch(self) -> object:
        """Jobs of equal value here may be made at once."""
        return self.combination, self.shapes, self.steps, self.guidance

    @property
    def combination(self) -> tuple[tuple[str, float], ...]:
        return tuple((one.key, one.weight) for one in self.loras)


@dataclass(frozen=True, slots=True)
class Picture:
    """A control image as read: upright RGB, and what was done to get there."""

    image: Image.Image
    treatments: tuple[str, ...]


@dataclass
class Counts:
    """What a session did, for its report and for measuring."""

    images: int = 0
    seconds: float = 0.0
    loads: list[str] = field(default_factory=list)
    encoded: int = 0


Outcome = tuple[EditRequest, "Rendered | FlywheelError"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Latent:
    """Finished tokens (B, N, 64) of these jobs, and the seconds each took."""

    jobs: tuple[Job, ...]
    tokens: torch.Tensor
    seconds: float


class Engine(ExitStack):
    """One model, loaded part by part when first needed. Enter it; leaving frees everything."""

    def __init__(self, model: ModelFolder, stack: lora.LoraStack, settings: Settings) -> None:
        super().__init__()
        self.model, self.stack, self.settings = model, stack, settings
        self.counts = Counts()
        self.scheduler = model.config("scheduler")
        self.keys = {part: model.key(part) for part in ("transformer", "text_encoder", "vae")}
        folder = settings.cache
        self.words = TensorCache(folder / "words" if folder else None)
        self.pixels = TensorCache(folder / "controls" if folder else None)
        self.rows = TensorCache(folder / "modulation" if folder else None)
        self.ladder: memory.Ladder | None = None
        self.plan: memory.Plan | None = None
        self._text: tuple[Any, Any, encode.Template] | None = None
        self._vae: Any = None
        self._transformer: Any = None
        self._adapters: Adapters | None = None
        self._tables: modulation.Tables | None = None
        self._expected: list[EditRequest] = []
        self._prepared = True
        self._made: dict[EditRequest, Rendered | FlywheelError] = {}
        self._preview: dict[str, latents.Preview] = {}
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._tick: Tick | None = None
        self._ticked = 0.0
        self._step = (0, 1)
        self._events: list[Any] = []
        self.callback(self._free)

    # --- the batch ----------------------------------------------------------------------------------------------------------------------

    def __call__(self, request: EditRequest, tick: Tick) -> Rendered:
        """One image; or, of those expected, as many as may be made at once, of which the others wait for their turn."""
        if request not in self._made:
            self._make(request, tick)
        outcome = self._made.pop(request)
        if isinstance(outcome, FlywheelError):
            raise outcome
        tick(1.0)
        return outcome

    def expect(self, requests: Sequence[EditRequest]) -> None:
        """The requests to come. All their words and pictures are encoded before the first is made."""
        self._expected, self._prepared = list(requests), False

    def _make(self, request: EditRequest, tick: Tick) -> None:
        if not self._prepared:
            self._prepared = True
            self.prepare(self._expected, tick)
        first = self._job(request)
        group = [first]
        for other in self._expected[self._expected.index(request) + 1 :] if request in self._expected else ():
            if len(group) >= self.settings.at_once:
                break
            if other not in self._made and (job := self._job(other)).batch == first.batch:
                group.append(job)
        self._made |= {asked: outcome for asked, outcome in self.many([job.request for job in group], tick)}

    def prepare(self, requests: Sequence[EditRequest], tick: Tick) -> None:
        """Encode every prompt about its pictures and every control picture of a batch and tabulate every schedule; then let the text encoder go if
        it must. What fails here fails again, and is told, when its turn comes."""
        jobs: list[Job] = []
        for request in requests:
            with contextlib.suppress(FlywheelError):
                jobs.append(self._job(request))
        for job in self._ordered(jobs):
            with contextlib.suppress(FlywheelError):
                self._prepare([job], tick, planned=jobs)
        self._words_done()
        self._tabulate(jobs)

    def many(self, requests: Sequence[EditRequest], tick: Tick) -> Iterator[Outcome]:
        """The images of a batch in the best order. A request that fails is answered with its error; the batch goes on."""
        jobs, ready = [], []
        for request in requests:
            try:
                jobs.append(self._job(request))
            except FlywheelError as error:
                yield request, error
        for job in self._ordered(jobs):
            try:
                self._prepare([job], tick, planned=jobs)
                ready.append(job)
            except FlywheelError as error:
                yield job.request, error
        self._words_done()
        self._tabulate(ready)
        with ThreadPoolExecutor(1, "flenwheel-decode") as decoder:
            waiting: list[tuple[_Latent, Future[list[Outcome]]]] = []
            for group in _groups(ready, self.settings.at_once):
                for made in self._denoised(group, tick):
                    if isinstance(made, _Latent):
                        waiting.append((made, decoder.submit(self._finished, made)))
                    else:
                        yield from ((job.request, made) for job in group)
                while len(waiting) > 1:
                    yield from self._drained(*waiting.pop(0))
            while waiting:
                yield from self._drained(*waiting.pop(0))
        tick(1.0)

    def _drained(self, made: _Latent, future: Future[list[Outcome]]) -> list[Outcome]:
        try:
            return future.result()
        except torch.OutOfMemoryError:
            log.warning("Memory ran out while decoding beside the next image; it is decoded again.")
        memory.release()
        try:
            return self._with_room(lambda: self._finished(made))
        except FlywheelError as error:
            return [(job.request, error) for job in made.jobs]

    def _ordered(self, jobs: Sequence[Job]) -> list[Job]:
        first = {job.combination: place for place, job in reversed(list(enumerate(jobs)))}
        return sorted(jobs, key=lambda job: (first[job.combination], job.size, job.sizes))

    def _job(self, request: EditRequest) -> Job:
        if not 1 <= len(request.controls) <= 3:
            raise EditorError(
                f"{self.settings.name} takes 1 to 3 control images and got {len(request.controls)} for {request.label or request.prompt!r}."
            )
        if request.width % latents.PATCH or request.height % latents.PATCH or min(request.width, request.height) < latents.PATCH:
            raise EditorError(f"{request.width} x {request.height} px cannot be made: both sides must be multiples of {latents.PATCH}.")
        settings, loras = self.settings, self.stack.for_prompt(request.prompt, request.tags)
        sizes = tuple(self._control_size(request, control) for control in request.controls)
        steps, guidance = qwen.steps_and_cfg(row_of(self.model), loras, settings.steps, settings.guidance)
        lightning = settings.schedule == "lightning" or (settings.schedule == "auto" and is_distilled(loras))
        return Job(request, lora.with_triggers(request.prompt, loras), loras, sizes, steps, guidance, lightning)

    def _control_size(self, request: EditRequest, control: ControlRef) -> tuple[int, int]:
        picture = self._picture(control).image
        if max(picture.size) > ASPECT_MAX * min(picture.size):
            raise EditorError(
                f"{control.path.name} is {picture.width} x {picture.height} px; more than {ASPECT_MAX} to 1 is not edited. Crop it."
            )
        return qwen.control_size(*picture.size, (request.width, request.height), self.settings.control_megapixels)

    # --- words, pictures, schedules -----------------------------------------------------------------------------------------------------

    def _start(self, jobs: Sequence[Job]) -> None:
        """Plan the memory once, for the largest image of the first batch."""
        if self.plan is not None or not jobs:
            return
        settings, largest = self.settings, max(jobs, key=lambda job: job.tokens)
        self.plan = memory.plan(
            self.model,
            device=settings.device,
            dtype=settings.dtype,
            precision=settings.precision,
            rung=settings.memory,
            tokens=largest.tokens,
            pixels=largest.size[0] * largest.size[1],
            steps=largest.steps,
            batch=settings.at_once * (2 if largest.guidance > 1 else 1),
        )
        self.ladder = memory.Ladder(self.plan.rung, has_nf4=self.plan.precision != "nf4" and settings.device.type == "cuda")
        memory.start_measuring(settings.device)
        log.info("Qwen-Image-Edit %s on %s", self.model.root.name, self.plan)

    def _prepare(self, jobs: Sequence[Job], tick: Tick, *, planned: Sequence[Job]) -> None:
        self._start(planned)
        self._tick = tick
        for job in jobs:
            tick(0.0)
            for prompt in (job.prompt, *([self.settings.negative_prompt] if job.guidance > 1 else [])):
                self._embedded(job, prompt)
            for control, size in zip(job.request.controls, job.sizes, strict=True):
                self._control(control, size)

    def _words_done(self) -> None:
        if self._text and self._in_turns:
            self._text = None
            memory.release()

    def _embedded(self, job: Job, prompt: str) -> torch.Tensor:
        key = value_key(
            [
                self.keys["text_encoder"],
                self._plan.text_precision,
                str(self.settings.dtype),
                prompt,
                [one.key for one in job.request.controls],
            ]
        )

        def make() -> dict[str, torch.Tensor]:
            text_encoder, processor, template = self._text_encoder()
            pictures = [self._picture(control).image for control in job.request.controls]
            self.counts.encoded += 1
            return {"words": self._with_room(lambda: encode.encode(text_encoder, processor, template, prompt, pictures))}

        return self.words.get(key, make)["words"]

    def _control(self, control: ControlRef, size: tuple[int, int]) -> torch.Tensor:
        """Latents (1, 16, 1, H/8, W/8)."""
        key = value_key([self.keys["vae"], str(self.settings.dtype), control.key, list(size)])
        made = self.pixels.get(
            key, lambda: {"latents": self._with_room(lambda: latents.encode(self._decoder(), self._picture(control).image, size))}
        )
        return made["latents"]

    def _picture(self, control: ControlRef) -> Picture:
        picture = self._pictures.get(control.key)
        if picture is None:
            opened = open_image(control.path)
            picture = self._pictures[control.key] = Picture(opened.image, opened.treatments)
            while len(self._pictures) > PICTURES_HELD:
                self._pictures.popitem(last=False)
        return picture

    def _levels(self, job: Job) -> torch.Tensor:
        _, rows, columns = job.shapes[0]
        return denoise.sigmas(self.scheduler, job.steps, rows * columns, lightning=job.lightning)

    def _times(self, levels: torch.Tensor) -> torch.Tensor:
        zero = bool(self.model.config("transformer").get("zero_cond_t"))
        return modulation.grid(denoise.times(levels), self.settings.dtype, zero=zero)

    def _rows_key(self, times: torch.Tensor) -> str:
        return value_key([self.keys["transformer"], str(self.settings.dtype), times.tolist()])

    def _tabulate(self, jobs: Sequence[Job]) -> None:
        """Make the tables of every schedule of a batch (each size of image has its own) in one pass through the weights."""
        schedules = {self._rows_key(times): times for times in (self._times(self._levels(job)) for job in jobs)}
        missing = {key: times for key, times in schedules.items() if key not in self.rows}
        if len(missing) > 1:
            together = self._built(torch.unique(torch.cat(list(missing.values()))), ())
            for key, times in missing.items():
                self.rows.put(key, together.pick(times).tensors())

    def _rows_for(self, levels: torch.Tensor) -> modulation.Tables:
        """The bare model's modulation at these noise levels: from the disk, or from one pass through the weights that make it."""
        times = self._times(levels)
        return modulation.Tables(**self.rows.get(self._rows_key(times), lambda: self._built(times, ()).tensors()))

    def _built(self, times: torch.Tensor, folds: Sequence[modulation.Fold]) -> modulation.Tables:
        self.counts.loads.append("modulation")
        files = TensorFiles(self.model.files("transformer"))
        layers = self.model.config("transformer")["num_layers"]
        dtype, device = self.settings.dtype, self.settings.device
        return modulation.build(files.read, layers, times, dtype, device=device, folds=folds, on_layer=lambda *_: self._pulse(0.0))

    # --- parts --------------------------------------------------------------------------------------------------------------------------

    @property
    def _in_turns(self) -> bool:
        return self.ladder is not None and self.ladder.rung != "resident"

    @property
    def _plan(self) -> memory.Plan:
        assert self.plan  # made with the first batch
        return self.plan

    def _text_encoder(self) -> tuple[Any, Any, encode.Template]:
        if self._text is None:
            settings = self.settings
            if self._in_turns:
                self._drop_transformer()
            self.counts.loads.append("text_encoder")
            made = load.text_encoder(self.model, precision=self._plan.text_precision, dtype=settings.dtype, device=settings.device)
            self._text = made, load.processor(self.model), encode.template_of(self.model.pipeline_class)
        return self._text

    def _decoder(self) -> Any:
        if self._vae is None:
            self.counts.loads.append("vae")
            self._vae = load.vae(self.model, dtype=self.settings.dtype, device=self.settings.device)
        return self._vae

    def _denoiser(self, levels: torch.Tensor) -> Any:
        """The transformer with the rows of this schedule."""
        assert self.ladder
        settings = self.settings
        base = self._rows_for(levels)
        if self._transformer is None:
            if self._in_turns:
                self._words_done()
            self.counts.loads.append("transformer")
            precision = "nf4" if self.ladder.rung == "nf4" else self._plan.precision
            away = self.ladder.rung == "streamed"
            made, sizes = load.transformer(
                self.model,
                base,
                precision=precision,
                dtype=settings.dtype,
                device="cpu" if away else settings.device,
                cache=settings.cache,
                progress=lambda *_: self._pulse(0.0),
            )
            self._arranged(made, away)
            self._transformer, self._adapters = made, Adapters(made, sizes, self.model.root.name)
        if self._tables is None or not torch.equal(self._tables.times, base.times):
            self._tables = base
            self._install()
        return self._transformer

    def _arranged(self, made: Any, away: bool) -> None:
        settings = self.settings
        if away:
            for name, child in made.named_children():
                if name != "transformer_blocks":
                    child.to(settings.device)
            self.enter_context(memory.streamed(made, settings.device))
        if settings.compile:
            made.compile_repeated_blocks(fullgraph=True, dynamic=True)
        for block in made.transformer_blocks:
            block.register_forward_pre_hook(lambda *_: self._within_step())

    def _install(self) -> None:
        """Put the current schedule's rows in, with what the active adapters fold into them."""
        assert self._tables and self._adapters
        folds = self._adapters.folds
        rows = self._tables
        if folds:
            rows = modulation.fold(rows, folds) or self._built(rows.times, folds)
        modulation.install(self._transformer, rows, device=self.settings.device)

    def _free(self) -> None:
        if self.counts.images:
            peak = memory.measured_peak(self.settings.device)
            expected = self.plan.peak if self.plan else 0.0
            log.info(
                "%d images in %.1f s, %.2f s each; %d LoRA switches; memory at most %.1f GiB (expected %.1f).",
                self.counts.images,
                self.counts.seconds,
                self.counts.seconds / self.counts.images,
                self._adapters.switches if self._adapters else 0,
                peak,
                expected,
            )
        self._text = self._vae = None
        self._drop_transformer()

    def _drop_transformer(self) -> None:
        self._transformer = self._adapters = self._tables = None
        memory.release()

    # --- making -------------------------------------------------------------------------------------------------------------------------

    def _denoised(self, group: list[Job], tick: Tick) -> Iterator[_Latent | FlywheelError]:
        """Finished latents of jobs that share a batch; when memory runs out they are made in smaller batches, then in other ways."""
        began = time.monotonic()
        try:
            made = self._with_room(lambda: self._denoise(group, tick), alone=len(group) == 1)
        except torch.OutOfMemoryError:
            made = None
        except FlywheelError as error:
            yield error
            return
        if made is not None:
            yield _Latent(tuple(group), made, (time.monotonic() - began) / len(group))
            return
        log.warning("Memory ran out with %d images at once; they are made in two batches.", len(group))
        memory.release()
        for half in (group[: len(group) // 2], group[len(group) // 2 :]):
            yield from self._denoised(half, tick)

    def _with_room(self, make: Callable[[], T], *, alone: bool = True) -> T:
        """Make something; when memory runs out (and no smaller batch would help), step down the ladder and make it again."""
        while True:
            try:
                return make()
            except torch.OutOfMemoryError as error:
                if not alone:
                    raise
                assert self.ladder
                told = self.ladder.down()
                if told is None:
                    raise EditorError(MESSAGE_OF_LAST_RESORT) from error
            log.warning(told)
            self._words_done()
            self._drop_transformer()

    def _denoise(self, group: list[Job], tick: Tick) -> torch.Tensor:
        settings, job = self.settings, group[0]
        levels = self._levels(job)
        self._tick, self._step = tick, (0, job.steps)
        transformer = self._denoiser(levels)
        assert self._adapters
        self._adapters.use(job.loras, self._install)
        cells = [self._cell(one) for one in group]
        show = self._shown(group[0])

        def on_step(done: int, foreseen: torch.Tensor) -> None:
            self._step = (done, job.steps)
            self._events.clear()
            self._ticked = time.monotonic()
            tick(self._fraction(), show(latents.unpack(foreseen[:1], job.size)))

        if settings.block_cache:
            self._forget_blocks(transformer)
        return denoise.denoise(
            transformer,
            cells,
            levels,
            guidance=job.guidance,
            guided_share=settings.guided_share,
            dtype=settings.dtype,
            device=settings.device,
            on_step=on_step,
        )

    def _forget_blocks(self, transformer: Any) -> None:
        """What the first-block cache remembers is of the image before."""
        from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

        if transformer.is_cache_enabled:
            transformer.disable_cache()
        transformer.enable_cache(FirstBlockCacheConfig(threshold=self.settings.block_cache))

    def _cell(self, job: Job) -> denoise.Cell:
        controls = [latents.pack(self._control(control, size)) for control, size in zip(job.request.controls, job.sizes, strict=True)]
        unwanted = self._embedded(job, self.settings.negative_prompt) if job.guidance > 1 else None
        noise = denoise.noise(job.request.seed, job.size)
        return denoise.Cell(noise, torch.cat(controls, dim=1), self._embedded(job, job.prompt), unwanted, job.shapes)

    def _shown(self, job: Job) -> latents.Preview:
        control, size = job.request.controls[0], job.sizes[0]
        key = f"{control.key} {size}"
        if key not in self._preview:
            self._preview.clear()
            self._preview[key] = latents.Preview(self._control(control, size), self._picture(control).image)
        return self._preview[key]

    def _finished(self, made: _Latent) -> list[Outcome]:
        """Decode and look at each image."""
        outcomes: list[Outcome] = []
        for job, one in zip(made.jobs, made.tokens.split(1), strict=True):
            pixels = latents.decode(self._decoder(), latents.unpack(one, job.size))
            try:
                guard.refuse_broken(one, pixels[0])
            except FlywheelError as error:
                outcomes.append((job.request, error))
                continue
            image = latents.pictures(pixels)[0]
            moved = registration.noted(self._picture(job.request.controls[0]).image, image)
            outcomes.append((job.request, Rendered(image, {**self._notes(job, made.seconds), **moved})))
            self._counted(made.seconds)
        return outcomes

    def _counted(self, seconds: float) -> None:
        self.counts.images += 1
        self.counts.seconds += seconds
        if self.counts.images == 2:
            log.info("Qwen-Image-Edit: %.1f s per image (the first two).", self.counts.seconds / 2)

    def _notes(self, job: Job, seconds: float) -> dict[str, Any]:
        treated = {
            control.path.name: list(self._picture(control).treatments)
            for control in job.request.controls
            if self._picture(control).treatments
        }
        assert self.ladder
        return {
            "prompt_used": job.prompt,
            "steps": job.steps,
            "guidance": job.guidance,
            "loras": [f"{one.name} x {one.weight:g}" for one in job.loras],
            "control_sizes": [list(size) for size in job.sizes],
            "memory": self.ladder.rung,
            "precision": "nf4" if self.ladder.rung == "nf4" else self._plan.precision,
            "denoising_s": round(seconds, 3),
            **({"treated": treated} if treated else {}),
        }

    # --- cancelling ---------------------------------------------------------------------------------------------------------------------

    def _within_step(self) -> None:
        """Before each block: stay close to the GPU, and ask about once in a quarter of a second whether to go on."""
        if self.settings.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._events.append(event)
            if len(self._events) > QUEUED_BLOCKS:
                self._events.pop(0).synchronize()
        self._pulse(self._fraction())

    def _pulse(self, fraction: float) -> None:
        now = time.monotonic()
        if self._tick and now - self._ticked > TICK_S:
            self._ticked = now
            self._tick(fraction)

    def _fraction(self) -> float:
        return 0.95 * self._step[0] / self._step[1]


def row_of(model: ModelFolder) -> qwen.EditModel:
    """What is known of the model in a folder: 2511 and later modulate their controls at time zero."""
    return qwen.models()["Qwen-Image-Edit-2511" if model.config("transformer").get("zero_cond_t") else "Qwen-Image-Edit-2509"]


def is_distilled(loras: Iterable[lora.StackedLora]) -> bool:
    """Whether one of them was made for few steps, which need the schedule it was made with."""
    return any(row.steps for one in loras if (row := qwen.known(one.name)))


def _groups(jobs: Sequence[Job], at_once: int) -> Iterator[list[Job]]:
    """Neighbours that may share a batch: the same LoRAs and shapes."""
    group: list[Job] = []
    for job in jobs:
        if group and (len(group) >= at_once or job.batch != group[0].batch):
            yield group
            group = []
        group.append(job)
    if group:
        yield group
