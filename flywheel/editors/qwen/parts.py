"""Which part of a model is where and when: loaded when first needed, let go when memory asks for it, and never more of it than the plan says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch

from ... import lora
from ...errors import Abandoned, EditorError
from ...images import value_key
from . import denoise, encode, load, memory, modulation
from .adapters import Adapters
from .cache import TensorCache
from .jobs import Counts, Job, Settings, passes
from .models import ModelFolder
from .pulse import Pulse
from .tensors import TensorFiles

log = logging.getLogger("flenwheel")
T = TypeVar("T")
MESSAGE_OF_LAST_RESORT = (
    "Memory ran out even with the transformer brought in block by block. Choose fewer megapixels in Enrich Dataset, fewer control images, a smaller"
    " control_megapixels, or close what else uses the card."
)


ONE_AFTER_THE_OTHER = (
    "Memory ran out while one image was decoded and the next was made; from here on one follows the other. Nothing is lost."
)


class Parts(ExitStack):
    """Text encoder, VAE, transformer with its adapters and modulation rows. Enter it; leaving frees everything."""

    def __init__(self, model: ModelFolder, settings: Settings, pulse: Pulse, counts: Counts) -> None:
        super().__init__()
        self.model, self.settings, self.pulse, self.counts = model, settings, pulse, counts
        self.keys = {part: model.key(part) for part in ("transformer", "text_encoder", "vae")}
        self.scheduler = model.config("scheduler")
        self.rows = TensorCache(settings.cache / "modulation" if settings.cache else None)
        self.ladder: memory.Ladder | None = None
        self.plan: memory.Plan | None = None
        self.adapters: Adapters | None = None
        self._text: tuple[Any, Any, encode.Template] | None = None
        self._vae: Any = None
        self._transformer: Any = None
        self._tables: modulation.Tables | None = None
        self._levels: dict[tuple[int, int, float | None], torch.Tensor] = {}
        self._blocks = ExitStack()  # what was hung on the transformer's blocks
        self._maker = threading.get_ident()
        self.vae_free = threading.Lock()  # the VAE remembers where in an image it is
        self.beside = False  # whether an image may be decoded while the next is made
        self.abandoned = threading.Event()
        self.callback(self._free)

    # --- how much there is room for -----------------------------------------------------------------------------------------------------

    def start(self, jobs: Sequence[Job]) -> None:
        """Plan the memory once, for the largest image of the first batch.

        Raises:
            EditorUnavailable: the transformer's files are not whole.
        """
        if self.plan is not None or not jobs:
            return
        load.refuse_lost_weights(self.model)
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
            batch=settings.at_once * passes(largest.guidance, largest.tokens, settings.device),
        )
        self.beside = self.plan.beside
        self.ladder = memory.Ladder(self.plan.rung, has_nf4=self.plan.precision != "nf4" and memory.has_nf4(settings.device))
        memory.start_measuring(settings.device)
        log.info("Qwen-Image-Edit %s on %s", self.model.root.name, self.plan)

    def with_room(self, make: Callable[[], T], *, alone: bool = True) -> T:
        """Make something; when memory runs out (and no smaller batch would help), step down the ladder and make it again.

        Raises:
            EditorError: there is no further step down.
            torch.OutOfMemoryError: memory ran out and `alone` is False.
        """
        while True:
            try:
                with memory.out_of_memory():
                    return make()
            except torch.OutOfMemoryError as error:
                decoding = self.vae_free.locked()
                if not alone and not decoding:
                    raise
                assert self.ladder
                told = "" if decoding else self.ladder.down()
                if told is None:
                    raise EditorError(MESSAGE_OF_LAST_RESORT) from error
            if decoding:
                self.one_after_the_other()
                with self.vae_free:
                    memory.release()
                continue
            log.warning(told)
            self.words_done()
            self.drop_transformer()

    def one_after_the_other(self) -> None:
        """From here on decode no image while the next is made. From any thread."""
        if self.beside:
            self.beside = False
            log.warning(ONE_AFTER_THE_OTHER)
        memory.release()

    @property
    def rung(self) -> memory.Rung:
        assert self.ladder  # made with the first batch
        return self.ladder.rung

    @property
    def precision(self) -> load.Precision:
        """Of the transformer, now."""
        return "nf4" if self.rung == "nf4" else self._plan.precision

    @property
    def text_precision(self) -> load.Precision:
        return self._plan.text_precision

    @property
    def _plan(self) -> memory.Plan:
        assert self.plan  # made with the first batch
        return self.plan

    @property
    def _in_turns(self) -> bool:
        return self.ladder is not None and self.ladder.rung != "resident"

    # --- text encoder and VAE -----------------------------------------------------------------------------------------------------------

    def text_encoder(self) -> tuple[Any, Any, encode.Template]:
        """With its processor and the template of its prompts."""
        if self._text is None:
            settings = self.settings
            if self._in_turns:
                self.drop_transformer()
            self.counts.loads.append("text_encoder")
            made = load.text_encoder(
                self.model,
                precision=self.text_precision,
                dtype=settings.dtype,
                device=settings.device,
                cache=settings.cache,
                progress=lambda done, total: self.pulse.doing("loading the text encoder", done, total),
            )
            for layers in [one for one in made.modules() if isinstance(one, torch.nn.ModuleList)]:
                for layer in layers:
                    layer.register_forward_pre_hook(self.pulse.block)
            self._text = encode.with_sight(made), load.processor(self.model), encode.template_of(self.model.pipeline_class)
        return self._text

    def words_done(self) -> None:
        """No words are to be encoded for now."""
        if self._text and self._in_turns:
            self._text = None
            memory.release()

    def vae(self) -> Any:
        if self._vae is None:
            self.counts.loads.append("vae")
            self._vae = load.vae(self.model, dtype=self.settings.dtype, device=self.settings.device)
            for layer in self._vae.modules():
                if isinstance(layer, torch.nn.Conv3d):
                    layer.register_forward_pre_hook(self._between)
        return self._vae

    def _between(self, *_: Any) -> None:
        """Before each layer of the VAE. Whoever decodes beside us has nobody to tell, but ends when nobody wants the image any more."""
        if threading.get_ident() == self._maker:
            self.pulse.block()
        elif self.abandoned.is_set():
            raise Abandoned("The image was given up before its pixels were there.")

    # --- the transformer ----------------------------------------------------------------------------------------------------------------

    def transformer(self, levels: torch.Tensor, loras: Sequence[lora.StackedLora] = ()) -> Any:
        """With the rows of this schedule and these LoRAs active."""
        base = self._rows_for(levels)
        if self._transformer is None:
            if self._in_turns:
                self.words_done()
            self._load_transformer(base)
        if self._tables is None or not torch.equal(self._tables.times, base.times):
            self._tables = base
            self._install()
        assert self.adapters
        self.adapters.use(loras, self._install)
        return self._transformer

    def _load_transformer(self, base: modulation.Tables) -> None:
        settings, away, precision = self.settings, self.rung == "streamed", self.precision
        self.counts.loads.append("transformer")
        made, sizes = load.transformer(
            self.model,
            base,
            precision=precision,
            dtype=settings.dtype,
            device="cpu" if away else settings.device,
            cache=settings.cache,
            progress=lambda done, total: self.pulse.doing(f"loading the transformer ({precision})", done, total),
        )
        self._arranged(made, away)
        self._transformer, self.adapters = made, Adapters(made, sizes, self.model.root.name)

    def _arranged(self, made: Any, away: bool) -> None:
        if away:
            for name, child in made.named_children():
                if name != "transformer_blocks":
                    child.to(self.settings.device)
            self._blocks.enter_context(memory.streamed(made, self.settings.device))
        for block in made.transformer_blocks:
            if self.settings.compile:  # the forward alone: hooks and cancelling stay outside what is compiled
                block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True)
            block.register_forward_pre_hook(self.pulse.block)

    def drop_transformer(self) -> None:
        self._blocks.close()
        self._transformer = self.adapters = self._tables = None
        memory.release()

    # --- its rows -----------------------------------------------------------------------------------------------------------------------

    def levels(self, job: Job) -> torch.Tensor:
        """Noise levels of this job's schedule, (steps + 1,)."""
        _, rows, columns = job.shapes[0]
        key = job.steps, rows * columns, job.shift
        if key not in self._levels:
            self._levels[key] = denoise.sigmas(self.scheduler, job.steps, rows * columns, shift=job.shift)
        return self._levels[key]

    def tabulate(self, jobs: Sequence[Job]) -> None:
        """Make the tables of every schedule of a batch (each size of image has its own) in one pass through the weights."""
        schedules = {self._rows_key(times): times for times in (self._times(self.levels(job)) for job in jobs)}
        missing = {key: times for key, times in schedules.items() if key not in self.rows}
        if len(missing) > 1:
            together = self._built(torch.unique(torch.cat(list(missing.values()))), ())
            for key, times in missing.items():
                self.rows.put(key, together.pick(times).tensors())

    def _rows_for(self, levels: torch.Tensor) -> modulation.Tables:
        """The bare model's modulation at these noise levels: from the disk, or from one pass through the weights that make it."""
        times = self._times(levels)
        return modulation.Tables(**self.rows.get(self._rows_key(times), lambda: self._built(times, ()).tensors()))

    def _times(self, levels: torch.Tensor) -> torch.Tensor:
        zero = bool(self.model.config("transformer").get("zero_cond_t"))
        return modulation.grid(denoise.times(levels), self.settings.dtype, zero=zero)

    def _rows_key(self, times: torch.Tensor) -> str:
        return value_key([self.keys["transformer"], str(self.settings.dtype), times.tolist()])

    def _built(self, times: torch.Tensor, folds: Sequence[modulation.Fold]) -> modulation.Tables:
        self.counts.loads.append("modulation")
        files = TensorFiles(self.model.files("transformer"))
        return modulation.build(
            files.read,
            self.model.config("transformer")["num_layers"],
            times,
            self.settings.dtype,
            device=self.settings.device,
            folds=folds,
            on_layer=lambda done, total: self.pulse.doing("making modulation tables", done, total),
        )

    def _install(self) -> None:
        """Put the current schedule's rows in, with what the active adapters fold into them."""
        assert self._tables and self.adapters
        rows, folds = self._tables, self.adapters.folds
        if folds:
            rows = modulation.fold(rows, folds) or self._built(rows.times, folds)
        modulation.install(self._transformer, rows, device=self.settings.device)

    def _free(self) -> None:
        self._text = self._vae = None
        self.drop_transformer()
