"""Editing with the models ComfyUI has loaded: any MODEL, CLIP and VAE that its own or another pack's loaders bring, patched or quantised.

Never loads or frees a model: ComfyUI's memory manager does. What is left to us is asking in an order that makes it change over seldom: all prompts
are encoded before the model is needed, and kept on disk; images that use the same LoRAs are made one after another. Where it cannot be told which
text encoder is connected, nothing is kept, and so many prompts are encoded ahead as memory holds.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy_extras.nodes_cfg import CFGNorm
from comfy_extras.nodes_flux import get_schedule
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow
from PIL import Image

from ..flywheel import lora, qwen, registration
from ..flywheel.editors import Edit, EditRequest, Exposed, Rendered, Tick
from ..flywheel.editors.qwen import memory
from ..flywheel.editors.qwen.memory import Plan
from ..flywheel.errors import EditorError, OutOfRoom
from ..flywheel.images import value_key
from ..flywheel.instructions import parse
from ..flywheel.qwen import EditModel
from . import comfy_decode, comfy_plan, comfy_words, host
from .comfy_belonging import refuse_wrong_models
from .comfy_conditioning import Conditioning
from .comfy_decode import Decoder
from .comfy_loras import applied, fitted
from .comfy_pulse import Pulse, no_tick
from .comfy_tables import Tables, let_go

Made = TypeVar("Made")
VERSION = "1"  # raise it when the same request gives other pixels
BLACK = 3 / 255  # brightest value of a picture that counts as black
_BLACK_CAUSES = (
    "Known causes: SageAttention (start ComfyUI without --use-sage-attention), a VAE in half precision (--fp32-vae), a VAE or text encoder"
    " of another model, or a LoRA with too much weight."
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a person sets of any model; 0 stands for what suits it and its LoRAs."""

    steps: int = field(
        default=0,
        metadata={
            "help": "Denoising steps. 0 takes what suits the model, or 4 or 8 when a Lightning LoRA is in the stack.",
            "min": 0,
            "max": 200,
        },
    )
    cfg: float = field(
        default=0.0,
        metadata={
            "help": "How strictly the prompt is followed. 0 takes what suits the model and its LoRAs; 1 is twice as fast.",
            "min": 0.0,
            "max": 30.0,
            "step": 0.1,
        },
    )
    sampler: str = field(
        default="euler",
        metadata={"help": "Sampling method; euler is what the models were made for.", "choices": comfy.samplers.KSampler.SAMPLERS},
    )
    negative_prompt: str = field(default="", metadata={"help": "What must not appear. Only used when cfg is above 1.", "multiline": True})


@dataclass(frozen=True, slots=True)
class Options(Sampling):
    """What a person sets of an edit model."""

    control_megapixels: float = field(
        default=0.0,
        metadata={
            "help": "Size at which the photo is shown to the model. 0 is the size of the result, which keeps both aligned; a smaller one is faster and shows less detail.",
            "min": 0.0,
            "max": 4.0,
            "step": 0.05,
        },
    )
    modulation_tables: bool = field(
        default=False,
        metadata={
            "help": "Qwen only: keep a third of the model's weights off the card by computing once what depends on the step alone. Same image. For cards on which the model does not fit; not yet tried on one.",
            "optional": True,
        },
    )


@dataclass(frozen=True, slots=True, eq=False)
class ComfyEditor:
    """An editor of connected models. `graph` is the fingerprint of what is above the sockets; `extras` are Pictures 2 and 3 of every request; `cache`:
    folder for encoded prompts and photos, None keeps none; `clip_loader`: what the graph tells of the text encoder's loader."""

    row: EditModel
    model: Any  # comfy.model_patcher.ModelPatcher
    clip: Any  # comfy.sd.CLIP
    vae: Any  # comfy.sd.VAE
    graph: str
    options: Options = field(default_factory=Options)
    loras: lora.LoraStack = field(default_factory=lora.LoraStack)
    extras: tuple[tuple[str, Image.Image], ...] = ()
    cache: Path | None = None
    clip_loader: comfy_words.Loader | None = None

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def controls(self) -> range:
        return range(min(1, self.row.controls), self.row.controls - len(self.extras) + 1)

    def fingerprint(self) -> dict[str, str]:
        return self._fingerprint(tuple(self.loras))

    def fingerprint_for(self, request: EditRequest) -> dict[str, str]:
        return self._fingerprint(self.loras.for_prompt(request.prompt, request.tags))

    def group(self, request: EditRequest) -> str:
        return lora.fingerprint(self.loras.for_prompt(request.prompt, request.tags))

    def steps_and_cfg(self, loras: Iterable[lora.StackedLora]) -> tuple[int, float]:
        return qwen.steps_and_cfg(self.row, loras, self.options.steps, self.options.cfg)

    def _fingerprint(self, loras: tuple[lora.StackedLora, ...]) -> dict[str, str]:
        steps, cfg = self.steps_and_cfg(loras)
        told = {
            "editor": f"comfyui {VERSION}",
            "model": value_key([self.row.name, self.row.shift, self.row.reference_method, self.row.cfg_norm, self.row.guidance]),
            "graph": self.graph,
            "steps": str(steps),
            "cfg": f"{cfg:g}",
            "sampler": f"{self.options.sampler} {self.row.schedule}",
            "negative": self.options.negative_prompt,
            "control_megapixels": f"{self.options.control_megapixels:g}",
            "loras": lora.fingerprint(loras),
        }
        told |= {"modulation_tables": "1"} if self.options.modulation_tables else {}
        return told | {f"picture_{place}": key for place, (key, _) in enumerate(self.extras, 2)}

    def plan(self, *, width: int, height: int, controls: int) -> Plan:
        """What will lie where for an image of this size in px with so many controls of the same size. Loads nothing."""
        steps, cfg = self.steps_and_cfg(self.loras)
        rows = steps + 1 if self.options.modulation_tables else 0
        batch = 1 if math.isclose(cfg, 1.0) else 2
        return comfy_plan.plan(self.model, self.clip, self.vae, width=width, height=height, controls=controls, batch=batch, rows=rows)

    @contextmanager
    def session(self) -> Iterator[Edit]:
        session = _Session(self)
        try:
            yield session
        finally:
            session.close()
        for line in session.account():
            host.log.info("%s", line)


@dataclass(frozen=True, slots=True)
class _Latent:
    """Finished latents of a request, fp32 (1, C, H/8, W/8), with a frame axis where the model has one; the photo they are an edit of, if of one, and
    what is known of how they came to be."""

    request: EditRequest
    samples: torch.Tensor
    photo: Image.Image | None
    notes: dict[str, Any]


class _Session:
    """Makes the images of one run. Everything that can be refused is refused before the first of them."""

    def __init__(self, editor: ComfyEditor) -> None:
        self.editor, self.row, self.options = editor, editor.row, editor.options
        refuse_wrong_models(editor.row, editor.model, editor.clip, editor.vae, tables=self.options.modulation_tables)
        self.fits = {one: fitted(editor.model, one, self.row.name) for one in dict.fromkeys(editor.loras)}
        self.tables = Tables(editor.model) if self.options.modulation_tables else None
        self.tabled: tuple[tuple[Any, ...], Any] = ((), None)
        self.pulse = Pulse()
        self.base = self._prepared(editor.model)
        self.patched: tuple[tuple[lora.StackedLora, ...], Any] = ((), self.base)
        self.conditioning = Conditioning(
            row=editor.row,
            clip=editor.clip,
            vae=editor.vae,
            loras=editor.loras,
            extras=editor.extras,
            negative_prompt=self.options.negative_prompt,
            control_megapixels=self.options.control_megapixels,
            cfg_with=lambda loras: editor.steps_and_cfg(loras)[1],
            cache=editor.cache,
            clip_loader=editor.clip_loader,
            pulse=self.pulse,
        )
        self.decoder: Decoder | None = None  # beside the next image; None: one follows the other
        self.decoder_due = True
        self.plan: Plan | None = None
        self.short_of_memory: EditRequest | None = None  # last made only after everything else was unloaded
        self.images, self.seconds, self.switches = 0, 0.0, 0

    def expect(self, requests: Sequence[EditRequest]) -> None:
        self.conditioning.expect(requests)

    def account(self) -> list[str]:
        if not self.images:
            return []
        device = self.base.load_device
        return [memory.account(self.plan, device, images=self.images, seconds=self.seconds, switches=self.switches)]

    def __call__(self, request: EditRequest, tick: Tick) -> Rendered:
        """One image, with its pixels."""
        with self._ticking(tick):
            rendered = self._developed(self._exposed(request))
            tick(1.0, rendered.image)
        return rendered

    def expose(self, request: EditRequest, tick: Tick) -> Exposed:
        """One image but for its pixels; with them where there is no decoding beside the next image."""
        with self._ticking(tick):
            made = self._exposed(request)
            if self._beside():
                return Exposed(partial(self._developed_beside, made), partial(self._developed, made))
            rendered = self._developed(made)
        return Exposed(lambda: rendered, lambda: rendered)

    def abandon(self) -> None:
        """Let whoever decodes an image beside us stop within a moment."""
        if decoder := self.decoder:  # another thread may take it away
            decoder.abandoned.set()

    @contextmanager
    def _ticking(self, tick: Tick) -> Iterator[None]:
        self.pulse.tick, self.pulse.fraction = tick, 0.0
        began = time.monotonic()
        try:
            tick(0.0)
            yield
            self.seconds += time.monotonic() - began
        finally:
            self.pulse.tick = no_tick  # whoever ticks knows this session: kept, the model could only be freed by a full garbage collection

    def close(self) -> None:
        self.decoder = None
        if self.tables:
            let_go(self.base)
        self.conditioning.close()

    def _start(self, first: EditRequest) -> None:
        """Plan the memory once, for the largest image of the batch."""
        if self.plan is None:
            largest = max([first, *self.conditioning.coming], key=lambda request: request.width * request.height)
            controls = len(largest.controls) + len(self.editor.extras)
            self.plan = self.editor.plan(width=largest.width, height=largest.height, controls=controls)
            memory.start_measuring(self.base.load_device)
            host.log.info("%s on %s", self.row.name, self.plan)

    def _exposed(self, request: EditRequest) -> _Latent:
        self._start(request)
        return self._with_room(lambda: self._latents_of(request), request)

    def _developed(self, made: _Latent) -> Rendered:
        """The image of finished latents, decoded by ComfyUI while nothing else is made."""
        return self._with_room(lambda: self._looked_at(made, self._decoded(made.samples)), made.request)

    def _decoded(self, samples: torch.Tensor) -> torch.Tensor:
        with self.pulse.heard_in(getattr(self.editor.vae, "first_stage_model", None)):
            return self.editor.vae.decode(samples)

    def _developed_beside(self, made: _Latent) -> Rendered:
        """The same, from another thread and while the next is made.

        Raises:
            OutOfRoom: memory does not suffice for both; from here on one follows the other.
        """
        decoder = self.decoder
        with contextlib.suppress(torch.OutOfMemoryError), memory.out_of_memory():
            if decoder:
                return self._looked_at(made, decoder(made.samples))
        self._one_after_the_other("memory ran out for both")
        raise OutOfRoom(f"There is no memory for decoding {made.request.prompt!r} beside the next image.")

    def _one_after_the_other(self, why: str) -> None:
        if self.decoder or self.decoder_due:
            host.log.info("Each image is decoded before the next is begun: %s.", why)
        self.decoder, self.decoder_due = None, False

    def _beside(self) -> bool:
        """Whether images are decoded while the next is made. Decided with the first, when the model is where it works."""
        assert self.plan  # made with the first image
        if self.decoder_due and self.decoder is None:
            if why := comfy_decode.obstacle(self.editor.vae) or comfy_plan.lack_of_room(self.plan, self.editor.vae.device):
                self._one_after_the_other(why)
                return False
            try:
                with memory.out_of_memory():
                    self.decoder = Decoder(self.editor.vae)
            except torch.OutOfMemoryError:
                self._one_after_the_other("there was no memory for another decoder")
        return self.decoder is not None

    def _with_room(self, make: Callable[[], Made], request: EditRequest) -> Made:
        try:
            with memory.out_of_memory():
                return make()
        except torch.OutOfMemoryError:
            host.log.warning("Out of memory at %d x %d px: unloading every model and trying once more.", request.width, request.height)
        if decoder := self.decoder:
            decoder.let_go(lambda: self.pulse.tick(self.pulse.fraction))
        self._one_after_the_other("memory ran out")
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        self.short_of_memory = request
        try:
            with memory.out_of_memory():
                return make()
        except torch.OutOfMemoryError as error:
            raise EditorError(
                f"Out of memory at {request.width} x {request.height} px, also with every other model unloaded. Lower megapixels in Enrich Dataset or"
                " control_megapixels here, load the model as fp8, or start ComfyUI with --lowvram."
            ) from error

    def _latents_of(self, request: EditRequest) -> _Latent:
        loras = self.editor.loras.for_prompt(request.prompt, request.tags)
        positive, negative = self.conditioning.of(request, loras)
        samples = self._sample(request, loras, positive, negative)
        if not torch.isfinite(samples).all():
            raise EditorError(f"The model computed numbers that are none (NaN) for {request.prompt!r}. {_BLACK_CAUSES}")
        steps, cfg = self.editor.steps_and_cfg(loras)
        notes: dict[str, Any] = {
            "model": self.row.name,
            "steps": steps,
            "cfg": cfg,
            "loras": [f"{one.name} x {one.weight:g}" for one in loras],
        }
        return _Latent(request, samples, self.conditioning.photo(request) if request.controls else None, notes)

    def _looked_at(self, made: _Latent, pixels: torch.Tensor) -> Rendered:
        """An image of decoded pixels (1, [frames,] H, W, 3), if there is anything to see."""
        pixels, prompt, notes = pixels.reshape(-1, *pixels.shape[-3:])[:1], made.request.prompt, made.notes  # a video VAE has a frame axis
        if not torch.isfinite(pixels).all():
            raise EditorError(f"The VAE made numbers that are none (NaN) for {prompt!r}. {_BLACK_CAUSES}")
        if float(pixels.max()) <= BLACK:
            raise EditorError(f"The result for {prompt!r} is black and was not kept. {_BLACK_CAUSES}")
        image = host.pictures(pixels)[0]
        if made.photo and parse(prompt).kind != "camera":
            notes |= registration.noted(made.photo, image)
        if self.short_of_memory == made.request:
            notes["out_of_memory_once"] = True
        self.images += 1
        return Rendered(image, notes)

    # --- model ------------------------------------------------------------------------------------------------------------------------

    def _prepared(self, model: Any) -> Any:
        """The model with its row's schedule and guidance, and with a chance to cancel in every block of it."""
        if self.row.shift is not None:
            model = ModelSamplingAuraFlow().patch_aura(model, self.row.shift)[0]
        if self.row.cfg_norm is not None:
            model = CFGNorm.execute(model, self.row.cfg_norm).args[0]
        model = model.clone()
        model.set_model_patch(self.pulse, "double_block")  # a step of a big model takes longer than a person waits
        return model

    def _model_with(self, loras: tuple[lora.StackedLora, ...]) -> Any:
        if self.patched[0] != loras:
            if self.tables:
                let_go(self.base)
            model = self.base
            for one in loras:
                model = applied(model, self.fits[one], one.weight)
            self.patched, self.switches = (loras, model), self.switches + 1
        return self.patched[1]

    def _with_tables(self, model: Any, loras: tuple[lora.StackedLora, ...], steps: int) -> Any:
        """The model with a row for every timestep of this schedule, and for time zero where its controls need it."""
        assert self.tables
        if self.tabled[0] != (loras, steps):
            sampling = model.get_model_object("model_sampling")
            sigmas = comfy.samplers.calculate_sigmas(sampling, self.row.schedule, steps)
            let_go(self.base)
            self.tabled = ((loras, steps), self.tables.installed(model, sampling.timestep(sigmas)))
        return self.tabled[1]

    def _sample(self, request: EditRequest, loras: tuple[lora.StackedLora, ...], positive: Any, negative: Any) -> torch.Tensor:
        """Latents of the result, fp32: (1, C, H/8, W/8), with a frame axis where the model has one."""
        model = self._model_with(loras)
        steps, cfg = self.editor.steps_and_cfg(loras)
        if self.tables:
            model = self._with_tables(model, loras, steps)
        latent = _empty(model, request.width, request.height)
        noise = comfy.sample.prepare_noise(latent, request.seed)
        previewer = _previewer(model)

        def after_step(step: int, x0: torch.Tensor, _: torch.Tensor, total: int) -> None:
            self.pulse.fraction = 0.05 + 0.9 * (step + 1) / total
            self.pulse.tick(self.pulse.fraction, previewer.decode_latent_to_preview_image("JPEG", x0)[1] if previewer else None)

        common: dict[str, Any] = {
            "positive": positive,
            "negative": negative,
            "latent_image": latent,
            "callback": after_step,
            "disable_pbar": True,
        }
        if self.row.schedule == "flux2":
            sigmas = get_schedule(steps, round(request.width * request.height / 256))
            sampler = comfy.samplers.sampler_object(self.options.sampler)
            return comfy.sample.sample_custom(model, noise, cfg, sampler, sigmas, seed=request.seed, **common)
        return comfy.sample.sample(model, noise, steps, cfg, self.options.sampler, self.row.schedule, seed=request.seed, **common)


def _previewer(model: Any) -> Any:
    """ComfyUI's own, as it was started; where that is without previews, its cheap map to colours. None where a latent format has none."""
    latents = model.model.latent_format
    chosen = latent_preview.get_previewer(model.load_device, latents)
    if chosen is None and latents.latent_rgb_factors is not None:
        colours = (latents.latent_rgb_factors, latents.latent_rgb_factors_bias, latents.latent_rgb_factors_reshape)
        return latent_preview.Latent2RGBPreviewer(*colours)
    return chosen


def _empty(model: Any, width: int, height: int) -> torch.Tensor:
    latent_format = model.get_model_object("latent_format")
    ratio = latent_format.spacial_downscale_ratio
    latent = torch.zeros(
        1, latent_format.latent_channels, height // ratio, width // ratio, device=comfy.model_management.intermediate_device()
    )
    return comfy.sample.fix_empty_latent_channels(model, latent)
