"""A batch of edits with everything in its order: all words first, controls once per photograph, one pass per LoRA combination, decoding beside it.

What a batch needs is kept on disk by content, so a second run of it loads no text encoder at all.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from ... import lora, registration
from ...errors import EditorUnavailable, FlywheelError, OutOfRoom
from ...instructions import parse
from .. import EditRequest, Exposed, Rendered, Tick
from . import cache, denoise, guard, latents, memory
from .inputs import Inputs
from .jobs import Counts, Job, Settings, groups, job_of, ordered, passes, row_of
from .models import ModelFolder
from .parts import Parts
from .pulse import Pulse

log = logging.getLogger("flenwheel")
Outcome = tuple[EditRequest, "Rendered | FlywheelError"]


@dataclass(frozen=True, slots=True)
class _Latent:
    """Finished tokens (1, N, 64) of a job, the photo they are an edit of, and what is known of how they came to be."""

    job: Job
    tokens: torch.Tensor
    photo: Image.Image
    notes: dict[str, Any]
    seconds: float


class Engine(ExitStack):
    """One model, loaded part by part when first needed. Enter it; leaving frees everything."""

    def __init__(self, model: ModelFolder, stack: lora.LoraStack, settings: Settings) -> None:
        super().__init__()
        self.model, self.stack, self.settings = model, stack, settings
        self.counts = Counts()
        self.pulse = Pulse(settings.device)
        self.parts = self.enter_context(Parts(model, settings, self.pulse, self.counts))
        self.inputs = Inputs(self.parts)
        self._row = row_of(model)
        self._expected: list[EditRequest] = []
        self._prepared = True
        self._made: dict[EditRequest, _Latent | FlywheelError] = {}
        self.callback(cache.trim, (self.inputs.words, self.inputs.pixels, self.parts.rows), cache.MOST_BYTES)
        self.callback(self._told)

    def __call__(self, request: EditRequest, tick: Tick) -> Rendered:
        """One image; or, of those expected, as many as may be made at once, of which the others wait for their turn."""
        rendered = self.expose(request, tick).develop_alone()
        tick(1.0)
        return rendered

    def expose(self, request: EditRequest, tick: Tick) -> Exposed:
        """One image but for its pixels. Where there is no room for a decoder at work beside the transformer, they are made at once."""
        if request not in self._made:
            self._make(request, tick)
        made = self._made.pop(request)
        if isinstance(made, FlywheelError):
            raise made
        self.parts.vae()  # loaded here, where nobody else asks for it
        if self.parts.beside:
            return Exposed(partial(self._developed_beside, made), partial(self._developed, made))
        rendered = self._developed(made)
        return Exposed(lambda: rendered, lambda: rendered)

    def abandon(self) -> None:
        """Let whoever develops an image beside us stop within a moment."""
        self.parts.abandoned.set()

    def expect(self, requests: Sequence[EditRequest]) -> None:
        """The requests to come. All their words and pictures are encoded before the first is made."""
        self._expected, self._prepared = list(requests), False

    def _make(self, request: EditRequest, tick: Tick) -> None:
        if not self._prepared:
            self._prepared = True
            self.prepare(self._expected, tick)
        first = self.job(request)
        group = [first]
        for other in self._expected[self._expected.index(request) + 1 :] if request in self._expected else ():
            if len(group) >= self.settings.at_once:
                break
            if other not in self._made and (job := self.job(other)).batch == first.batch:
                group.append(job)
        for job, error in self._ready(group, tick):
            if error:
                self._made[job.request] = error
        for together in groups([job for job in group if job.request not in self._made], self.settings.at_once):
            self._made |= {job.request: made for job, made in self._denoised(together, tick)}

    def job(self, request: EditRequest) -> Job:
        """What a request comes to.

        Raises:
            EditorError: such an image cannot be made; says why.
        """
        return job_of(request, self.settings, self.stack, self._row, lambda control: self.inputs.picture(control).image.size)

    # --- the batch ----------------------------------------------------------------------------------------------------------------------

    def prepare(self, requests: Sequence[EditRequest], tick: Tick) -> None:
        """Encode every prompt about its pictures and every control picture of a batch and tabulate every schedule; then let the text encoder go if
        it must. What fails here fails again, and is told, when its turn comes."""
        jobs: list[Job] = []
        for request in requests:
            with contextlib.suppress(FlywheelError):
                jobs.append(self.job(request))
        for _ in self._ready(jobs, tick):
            pass

    def load(self, requests: Sequence[EditRequest], tick: Tick) -> None:
        """All that these requests need, now: encoded, loaded and every combination of LoRAs at hand, so that what follows is making alone."""
        self.prepare(requests, tick)
        self.parts.vae()
        for job in {job.combination: job for job in map(self.job, requests)}.values():
            self.parts.transformer(self.parts.levels(job), job.loras)

    def many(self, requests: Sequence[EditRequest], tick: Tick) -> Iterator[Outcome]:
        """The images of a batch in the best order. A request that fails is answered with its error; the batch goes on."""
        jobs: list[Job] = []
        for request in requests:
            try:
                jobs.append(self.job(request))
            except FlywheelError as error:
                yield request, error
        ready: list[Job] = []
        for job, error in self._ready(jobs, tick):
            if error:
                yield job.request, error
            else:
                ready.append(job)
        yield from self._decoded(ready, tick)
        tick(1.0)

    def _ready(self, jobs: Sequence[Job], tick: Tick) -> list[tuple[Job, FlywheelError | None]]:
        """Every job with what its inputs failed with, in the order in which they are to be made."""
        self.parts.start(jobs)
        self.pulse.begin(tick)
        told: list[tuple[Job, FlywheelError | None]] = []
        for job in ordered(jobs):
            tick(0.0)
            try:
                self.inputs.prepare(job)
                told.append((job, None))
            except EditorUnavailable:
                raise  # of a part that is not whole: no other prompt would find it whole
            except FlywheelError as error:
                told.append((job, error))
        self.parts.words_done()
        self.parts.tabulate([job for job, error in told if error is None])
        return told

    def _decoded(self, ready: Sequence[Job], tick: Tick) -> Iterator[Outcome]:
        """Denoise group after group; each is decoded beside the next."""
        with ThreadPoolExecutor(1, "flenwheel-decode") as decoder:
            waiting: deque[tuple[_Latent, Future[Rendered]]] = deque()
            for group in groups(ready, self.settings.at_once):
                for job, made in self._denoised(group, tick):
                    if isinstance(made, FlywheelError):
                        yield job.request, made
                        continue
                    self.parts.vae()
                    waiting.append((made, decoder.submit(self._developed_beside, made)))
                while len(waiting) > len(group):
                    yield self._drained(*waiting.popleft())
            while waiting:
                yield self._drained(*waiting.popleft())

    def _drained(self, made: _Latent, future: Future[Rendered]) -> Outcome:
        try:
            return made.job.request, future.result()
        except OutOfRoom:
            pass
        except FlywheelError as error:
            return made.job.request, error
        try:
            return made.job.request, self._developed(made)
        except FlywheelError as error:
            return made.job.request, error

    # --- making -------------------------------------------------------------------------------------------------------------------------

    def _denoised(self, group: list[Job], tick: Tick) -> Iterator[tuple[Job, _Latent | FlywheelError]]:
        """Finished latents of jobs that share a batch; when memory runs out they are made in smaller batches, then in other ways."""
        began = time.monotonic()
        try:
            made = self.parts.with_room(lambda: self.denoise(group, tick), alone=len(group) == 1)
        except torch.OutOfMemoryError:
            made = None
        except FlywheelError as error:
            yield from ((job, error) for job in group)
            return
        if made is not None:
            seconds = (time.monotonic() - began) / len(group)
            for job, tokens in zip(group, made.split(1), strict=True):
                yield job, _Latent(job, tokens, self.inputs.picture(job.controls[0]).image, self._notes(job, seconds), seconds)
            return
        log.warning("Memory ran out with %d images at once; they are made in two batches.", len(group))
        memory.release()
        for half in (group[: len(group) // 2], group[len(group) // 2 :]):
            yield from self._denoised(half, tick)

    def denoise(self, group: list[Job], tick: Tick) -> torch.Tensor:
        """Finished tokens (B, N, 64) of jobs that share a batch."""
        settings, job = self.settings, group[0]
        levels = self.parts.levels(job)
        self.pulse.begin(tick, job.steps)
        transformer = self.parts.transformer(levels, job.loras)
        cells = [self.inputs.cell(one) for one in group]
        show = self.inputs.preview(job)
        if settings.block_cache:
            _forget_blocks(transformer, settings.block_cache)
        return denoise.denoise(
            transformer,
            cells,
            levels,
            guidance=job.guidance,
            guided_share=settings.guided_share,
            together=passes(job.guidance, job.tokens, settings.device) > 1,
            dtype=settings.dtype,
            device=settings.device,
            on_step=lambda done, foreseen: self.pulse.step(done, show(latents.unpack(foreseen[:1], job.size))),
        )

    def _developed(self, made: _Latent) -> Rendered:
        """The image of finished latents, made while nothing else is."""
        return self.parts.with_room(lambda: self._pixels(made))

    def _developed_beside(self, made: _Latent) -> Rendered:
        """The same, from another thread and while the next is denoised.

        Raises:
            OutOfRoom: memory does not suffice for both; from here on one follows the other.
        """
        with contextlib.suppress(torch.OutOfMemoryError):
            if self.parts.beside:
                return self._pixels(made)
        self.parts.one_after_the_other()
        raise OutOfRoom(f"There is no memory for decoding {made.job.request.label or made.job.prompt!r} beside the next image.")

    def _pixels(self, made: _Latent) -> Rendered:
        """Decode and look at an image."""
        job = made.job
        with memory.out_of_memory(), self.parts.vae_free:
            pixels = latents.decode(self.parts.vae(), latents.unpack(made.tokens, job.size))
        guard.refuse_broken(made.tokens, pixels[0])
        image, notes = latents.pictures(pixels)[0], made.notes
        if parse(job.request.prompt).kind != "camera":
            notes |= registration.noted(made.photo, image)
        self._counted(made.seconds)
        return Rendered(image, notes)

    # --- what is told -------------------------------------------------------------------------------------------------------------------

    def _counted(self, seconds: float) -> None:
        self.counts.images += 1
        self.counts.seconds += seconds

    def _notes(self, job: Job, seconds: float) -> dict[str, Any]:
        pictures = {control.path.name: self.inputs.picture(control).treatments for control in job.controls}
        treated = {name: list(treatments) for name, treatments in pictures.items() if treatments}
        return {
            "prompt_used": job.prompt,
            "steps": job.steps,
            "guidance": job.guidance,
            "loras": [f"{one.name} x {one.weight:g}" for one in job.loras],
            "control_sizes": [list(size) for size in job.sizes],
            "memory": self.parts.rung,
            "precision": self.parts.precision,
            "denoising_s": round(seconds, 3),
            **({"treated": treated} if treated else {}),
        }

    def account(self) -> list[str]:
        if not self.counts.images:
            return []
        switches = self.parts.adapters.switches if self.parts.adapters else 0
        told = memory.account(
            self.parts.plan, self.settings.device, images=self.counts.images, seconds=self.counts.seconds, switches=switches
        )
        return [told]

    def _told(self) -> None:
        for line in self.account():
            log.info("%s", line)


def _forget_blocks(transformer: Any, threshold: float) -> None:
    """What the first-block cache remembers is of the image before."""
    from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

    if transformer.is_cache_enabled:
        transformer.disable_cache()
    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
