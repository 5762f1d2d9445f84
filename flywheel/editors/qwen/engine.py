"""A batch of edits with everything in its order: all words first, controls once per photograph, one pass per LoRA combination, decoding beside it.

What a batch needs is kept on disk by content, so a second run of it loads no text encoder at all.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ... import lora, registration
from ...errors import FlywheelError
from .. import EditRequest, Rendered, Tick
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
        self.pulse = Pulse(settings.device)
        self.parts = self.enter_context(Parts(model, settings, self.pulse, self.counts))
        self.inputs = Inputs(self.parts)
        self._row = row_of(model)
        self._expected: list[EditRequest] = []
        self._prepared = True
        self._made: dict[EditRequest, Rendered | FlywheelError] = {}
        self.callback(cache.trim, (self.inputs.words, self.inputs.pixels, self.parts.rows), cache.MOST_BYTES)
        self.callback(self._told)

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
        first = self.job(request)
        group = [first]
        for other in self._expected[self._expected.index(request) + 1 :] if request in self._expected else ():
            if len(group) >= self.settings.at_once:
                break
            if other not in self._made and (job := self.job(other)).batch == first.batch:
                group.append(job)
        self._made |= {asked: outcome for asked, outcome in self.many([job.request for job in group], tick)}

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
            except FlywheelError as error:
                told.append((job, error))
        self.parts.words_done()
        self.parts.tabulate([job for job, error in told if error is None])
        return told

    def _decoded(self, ready: Sequence[Job], tick: Tick) -> Iterator[Outcome]:
        """Denoise group after group; each is decoded beside the next."""
        with ThreadPoolExecutor(1, "flenwheel-decode") as decoder:
            waiting: list[tuple[_Latent, Future[list[Outcome]]]] = []
            for group in groups(ready, self.settings.at_once):
                for made in self._denoised(group, tick):
                    if isinstance(made, _Latent):
                        waiting.append((made, decoder.submit(self._finished, made)))
                    else:
                        yield from ((job.request, made) for job in group)
                while len(waiting) > 1:
                    yield from self._drained(*waiting.pop(0))
            while waiting:
                yield from self._drained(*waiting.pop(0))

    def _drained(self, made: _Latent, future: Future[list[Outcome]]) -> list[Outcome]:
        try:
            return future.result()
        except torch.OutOfMemoryError:
            log.warning("Memory ran out while decoding beside the next image; it is decoded again.")
        memory.release()
        try:
            return self.parts.with_room(lambda: self._finished(made))
        except FlywheelError as error:
            return [(job.request, error) for job in made.jobs]

    # --- making -------------------------------------------------------------------------------------------------------------------------

    def _denoised(self, group: list[Job], tick: Tick) -> Iterator[_Latent | FlywheelError]:
        """Finished latents of jobs that share a batch; when memory runs out they are made in smaller batches, then in other ways."""
        began = time.monotonic()
        try:
            made = self.parts.with_room(lambda: self.denoise(group, tick), alone=len(group) == 1)
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

    def _finished(self, made: _Latent) -> list[Outcome]:
        """Decode and look at each image."""
        outcomes: list[Outcome] = []
        for job, one in zip(made.jobs, made.tokens.split(1), strict=True):
            with memory.out_of_memory():
                pixels = latents.decode(self.parts.vae(), latents.unpack(one, job.size))
            try:
                guard.refuse_broken(one, pixels[0])
            except FlywheelError as error:
                outcomes.append((job.request, error))
                continue
            image = latents.pictures(pixels)[0]
            notes = self._notes(job, made.seconds)
            if lora.parse(job.request.prompt).kind != "camera":
                notes |= registration.noted(self.inputs.picture(job.controls[0]).image, image)
            outcomes.append((job.request, Rendered(image, notes)))
            self._counted(made.seconds)
        return outcomes

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
