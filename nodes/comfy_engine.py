"""Editing with the models ComfyUI has loaded: any MODEL, CLIP and VAE that its own or another pack's loaders bring, patched or quantised.

Never loads or frees a model: ComfyUI's memory manager does. What is left to us is asking in an order that makes it change over seldom: all prompts
are encoded before the model is needed, and kept on disk; images that use the same LoRAs are made one after another. Where it cannot be told which
text encoder is connected, nothing is kept, and so many prompts are encoded ahead as memory holds.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management
import comfy.sample
import comfy.samplers
import latent_preview
import node_helpers
import torch
from comfy_extras.nodes_cfg import CFGNorm
from comfy_extras.nodes_flux import get_schedule
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow
from PIL import Image

from ..flywheel import lora, qwen, registration
from ..flywheel.editors import ControlRef, Edit, EditRequest, Exposed, Rendered, Tick
from ..flywheel.editors.qwen import memory
from ..flywheel.editors.qwen.cache import MOST_BYTES, TensorCache, trim
from ..flywheel.editors.qwen.memory import Plan
from ..flywheel.errors import EditorError, FlywheelError, OutOfRoom
from ..flywheel.images import open_image, value_key
from ..flywheel.instructions import parse
from ..flywheel.qwen import EditModel
from . import comfy_decode, comfy_plan, comfy_words, host
from .comfy_belonging import refuse_wrong_models
from .comfy_decode import Decoder
from .comfy_loras import applied, fitted
from .comfy_tables import Tables, let_go

Made = TypeVar("Made")
VERSION = "1"  # raise it when the same request gives other pixels
LOOKAHEAD = 32  # prompts encoded before the model is needed where they cannot be kept on disk: about 10 MB of memory each
KEPT = LOOKAHEAD + 2  # prompts, negatives, control images (and Pictures 2 and 3): fewer, and each image would need the text encoder again
MAX_TOKENS = 1024  # of a prompt without its pictures: what Qwen-Image was trained with
BLACK = 3 / 255  # brightest value of a picture that counts as black
_BLACK_CAUSES = (
    "Known causes: SageAttention (start ComfyUI without --use-sage-attention), a VAE in half precision (--fp32-vae), a VAE or text encoder"
    " of another model, or a LoRA with too much weight."
)


@dataclass(frozen=True, slots=True)
class Options:
    """What a person sets; 0 stands for what suits the model and its LoRAs."""

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
        return range(1, self.row.controls - len(self.extras) + 1)

    def fingerprint(self) -> dict[str, str]:
        return self._fingerprint(tuple(self.loras))

    def fingerprint_for(self, request: EditRequest) -> dict[str, str]:
        return self._fingerprint(self.loras.for_prompt(request.prompt, request.tags))

    def group(self, request: EditRequest) -> str:
        return lora.fingerprint(self.loras.for_prompt(request.prompt, request.tags))

    def _fingerprint(self, loras: tuple[lora.StackedLora, ...]) -> dict[str, str]:
        steps, cfg = qwen.steps_and_cfg(self.row, loras, self.options.steps, self.options.cfg)
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
        steps, cfg = qwen.steps_and_cfg(self.row, self.loras, self.options.steps, self.options.cfg)
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


class _Pulse:
    """Lets a person cancel between two blocks of the model or layers of another part. The model holds it, so it must not hold the session that holds the model."""

    def __init__(self) -> None:
        self.tick: Tick = _no_tick
        self.fraction = 0.0

    def __call__(self, state: dict[str, Any]) -> dict[str, Any]:
        self.tick(self.fraction)
        return state

    @contextmanager
    def heard_in(self, part: Any) -> Iterator[None]:
        """While this lasts, also between two layers of a text encoder or VAE."""
        layers = [layer for layer in part.modules() if not any(True for _ in layer.children())] if isinstance(part, torch.nn.Module) else []
        hooks = [layer.register_forward_pre_hook(lambda *_: self.tick(self.fraction)) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True, slots=True)
class _Latent:
    """Finished latents of a request, fp32 (1, C, H/8, W/8), with a frame axis where the model has one; the photo they are an edit of, and what is
    known of how they came to be."""

    request: EditRequest
    samples: torch.Tensor
    photo: Image.Image
    notes: dict[str, Any]


class _Session:
    """Makes the images of one run. Everything that can be refused is refused before the first of them."""

    def __init__(self, editor: ComfyEditor) -> None:
        self.editor, self.row, self.options = editor, editor.row, editor.options
        refuse_wrong_models(editor.row, editor.model, editor.clip, editor.vae, tables=self.options.modulation_tables)
        self.fits = {one: fitted(editor.model, one, self.row.name) for one in dict.fromkeys(editor.loras)}
        self.tables = Tables(editor.model) if self.options.modulation_tables else None
        self.tabled: tuple[tuple[Any, ...], Any] = ((), None)
        self.pulse = _Pulse()
        self.base = self._prepared(editor.model)
        self.patched: tuple[tuple[lora.StackedLora, ...], Any] = ((), self.base)
        self.coming: list[EditRequest] = []
        self.positives: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self.negatives: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self.pictures: OrderedDict[tuple[Any, ...], _Picture] = OrderedDict()
        self.latents: OrderedDict[tuple[Any, ...], torch.Tensor] = OrderedDict()
        self.words, self.controls = (
            _Kept(editor.cache, "words", editor.clip, editor.clip_loader),
            _Kept(editor.cache, "controls", editor.vae),
        )  # once per run
        self.all_kept = False
        self.decoder: Decoder | None = None  # beside the next image; None: one follows the other
        self.decoder_due = True
        self.plan: Plan | None = None
        self.short_of_memory: EditRequest | None = None  # last made only after everything else was unloaded
        self.images, self.seconds, self.switches = 0, 0.0, 0

    def expect(self, requests: Sequence[EditRequest]) -> None:
        self.coming, self.all_kept = list(requests), False

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
            self.pulse.tick = _no_tick  # whoever ticks knows this session: kept, the model could only be freed by a full garbage collection

    def close(self) -> None:
        self.decoder = None
        if self.tables:
            let_go(self.base)
        trim([self.words.tensors, self.controls.tensors], MOST_BYTES)

    def _start(self, first: EditRequest) -> None:
        """Plan the memory once, for the largest image of the batch."""
        if self.plan is None:
            largest = max([first, *self.coming], key=lambda request: request.width * request.height)
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
        positive, negative = self._conditioning(request, loras)
        samples = self._sample(request, loras, positive, negative)
        if not torch.isfinite(samples).all():
            raise EditorError(f"The model computed numbers that are none (NaN) for {request.prompt!r}. {_BLACK_CAUSES}")
        steps, cfg = qwen.steps_and_cfg(self.row, loras, self.options.steps, self.options.cfg)
        notes: dict[str, Any] = {
            "model": self.row.name,
            "steps": steps,
            "cfg": cfg,
            "loras": [f"{one.name} x {one.weight:g}" for one in loras],
        }
        return _Latent(request, samples, self._picture(request.controls[0], request).shown, notes)

    def _looked_at(self, made: _Latent, pixels: torch.Tensor) -> Rendered:
        """An image of decoded pixels (1, [frames,] H, W, 3), if there is anything to see."""
        pixels, prompt, notes = pixels.reshape(-1, *pixels.shape[-3:])[:1], made.request.prompt, made.notes  # a video VAE has a frame axis
        if not torch.isfinite(pixels).all():
            raise EditorError(f"The VAE made numbers that are none (NaN) for {prompt!r}. {_BLACK_CAUSES}")
        if float(pixels.max()) <= BLACK:
            raise EditorError(f"The result for {prompt!r} is black and was not kept. {_BLACK_CAUSES}")
        image = host.pictures(pixels)[0]
        if parse(prompt).kind != "camera":
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
        steps, cfg = qwen.steps_and_cfg(self.row, loras, self.options.steps, self.options.cfg)
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

    # --- conditioning -----------------------------------------------------------------------------------------------------------------

    def _conditioning(self, request: EditRequest, loras: tuple[lora.StackedLora, ...]) -> tuple[Any, Any]:
        key = self._key(request, loras)
        if key not in self.positives:
            self._encode_ahead(request)
        positive = _kept(self.positives, key, lambda: self._encoded(key[0], request))
        if math.isclose(qwen.steps_and_cfg(self.row, loras, self.options.steps, self.options.cfg)[1], 1.0):
            return positive, positive  # without guidance the negative is not looked at
        return positive, self._negative(request)

    def _encode_ahead(self, request: EditRequest) -> None:
        """Encode this request and the next ones while the text encoder is in memory, negatives too: to disk all of them, then all control pictures;
        into memory so many as it holds. What they replace was used before them: another try of an image that drifted, which nobody foresaw, costs no
        other prompt its place."""
        place = next((n for n, other in enumerate(self.coming) if other == request), None)
        if self.words.name is None:
            self._each([request] if place is None else self.coming[place : place + LOOKAHEAD], request, self._encode)
        elif not self.all_kept:
            self._each(self.coming, request, lambda other: [self._words(words, other) for words in self._asked(other)])
            self._each(self.coming, request, lambda other: [self._latent(control, other) for control in other.controls])
            self.all_kept = True

    def _each(self, requests: Sequence[EditRequest], now: EditRequest, act: Callable[[EditRequest], Any]) -> None:
        for other in requests:
            self.pulse.tick(0.0)
            try:
                act(other)
            except FlywheelError:
                if other == now:  # a later one is told when its turn comes
                    raise

    def _encode(self, request: EditRequest) -> None:
        words, *negative = self._asked(request)
        loras = self.editor.loras.for_prompt(request.prompt, request.tags)
        _kept(self.positives, self._key(request, loras), lambda: self._encoded(words, request))
        if negative:
            self._negative(request)

    def _asked(self, request: EditRequest) -> list[str]:
        """The prompts of a request: its own, and where guidance looks at it the negative one."""
        loras = self.editor.loras.for_prompt(request.prompt, request.tags)
        guided = not math.isclose(qwen.steps_and_cfg(self.row, loras, self.options.steps, self.options.cfg)[1], 1.0)
        return [lora.with_triggers(request.prompt, loras), *([self.options.negative_prompt] if guided else [])]

    def _key(self, request: EditRequest, loras: tuple[lora.StackedLora, ...]) -> tuple[Any, ...]:
        return (lora.with_triggers(request.prompt, loras), *(control.key for control in request.controls), request.width, request.height)

    def _negative(self, request: EditRequest) -> Any:
        key = (*(control.key for control in request.controls), request.width, request.height)
        return _kept(self.negatives, key, lambda: self._encoded(self.options.negative_prompt, request))

    def _encoded(self, prompt: str, request: EditRequest) -> Any:
        """ComfyUI's conditioning of a prompt with its pictures: text states (1, T, D) and the controls' latents."""
        conditioning = self._words(prompt, request)
        latents = [self._latent(control, request) for control in request.controls]
        latents += [self._extra_latent(place, request) for place in range(len(self.editor.extras))]
        values: dict[str, Any] = {"reference_latents": latents}
        if self.row.reference_method:
            values["reference_latents_method"] = self.row.reference_method
        if self.row.guidance is not None:
            values["guidance"] = self.row.guidance
        return node_helpers.conditioning_set_values(conditioning, values)

    def _words(self, prompt: str, request: EditRequest) -> Any:
        """What the text encoder makes of a prompt about its pictures: from the disk, or now."""
        if self.words.name is None or "embedding:" in prompt:  # ComfyUI's word for a file beside the text encoder
            return self._read(prompt, request)
        template = self.row.template
        seen = [*(control.key for control in request.controls), *(key for key, _ in self.editor.extras)] if template else []
        asked = [prompt, seen, template and [template.words, template.prompt(prompt, len(seen))]]
        try:
            return comfy_words.unpacked(self.words.get(asked, lambda: comfy_words.packed(self._read(prompt, request))))
        except comfy_words.Unnamed as error:
            self.words.give_up(error)
        return self._read(prompt, request)

    def _read(self, prompt: str, request: EditRequest) -> Any:
        if template := self.row.template:
            pictures = [self._picture(control, request) for control in request.controls]
            pictures += [self._extra(place, request) for place in range(len(self.editor.extras))]
            words, seen = template.prompt(prompt, len(pictures)), [picture.vision for picture in pictures]
            tokens = self.editor.clip.tokenize(words, images=seen, llama_template=template.words)
        else:
            tokens = self.editor.clip.tokenize(prompt)
        longest = max(len(batch[0]) for batch in tokens.values())
        if longest > MAX_TOKENS:
            raise EditorError(
                f"The prompt {prompt[:40]!r}… is {len(prompt.split()):,} words long; {self.row.name} understands about {MAX_TOKENS * 3 // 4}. Shorten it."
            )
        with self.pulse.heard_in(getattr(self.editor.clip, "cond_stage_model", None)):
            return self.editor.clip.encode_from_tokens_scheduled(tokens, show_pbar=False)

    def _picture(self, control: ControlRef, request: EditRequest) -> _Picture:
        key = (control.key, request.width, request.height)
        return _kept(self.pictures, key, lambda: self._prepare(open_image(control.path).image, request))

    def _extra(self, place: int, request: EditRequest) -> _Picture:
        key, image = self.editor.extras[place]
        return _kept(self.pictures, (key, request.width, request.height), lambda: self._prepare(image, request))

    def _prepare(self, image: Image.Image, request: EditRequest) -> _Picture:
        result = (request.width, request.height)
        size = qwen.control_size(image.width, image.height, result, self.options.control_megapixels)
        shown, seen = (image.resize(pixels, Image.Resampling.LANCZOS) for pixels in (size, qwen.vision_size(*image.size)))
        return _Picture(shown, host.tensor(seen))

    def _latent(self, control: ControlRef, request: EditRequest) -> torch.Tensor:
        return self._seen_by_vae(control.key, lambda: self._picture(control, request).shown, request)

    def _extra_latent(self, place: int, request: EditRequest) -> torch.Tensor:
        return self._seen_by_vae(self.editor.extras[place][0], lambda: self._extra(place, request).shown, request)

    def _seen_by_vae(self, key: str, shown: Callable[[], Image.Image], request: EditRequest) -> torch.Tensor:
        """Latents of a control, fp32 (1, C, H/8, W/8), with a frame axis where the VAE has one: from memory, from the disk, or now."""
        size = (request.width, request.height)
        asked = [key, size, f"{self.options.control_megapixels:g}"]

        def made() -> dict[str, torch.Tensor]:
            with self.pulse.heard_in(getattr(self.editor.vae, "first_stage_model", None)):
                return {"latent": self.editor.vae.encode(host.tensor(shown()))}

        return _kept(self.latents, (key, *size), lambda: self.controls.get(asked, made)["latent"])


class _Kept:
    """Tensors on disk that one text encoder or VAE has made, by what it was asked. `name` is None, and nothing is kept, where it cannot be told apart
    from others."""

    def __init__(self, folder: Path | None, kind: str, part: Any, loader: comfy_words.Loader | None = None) -> None:
        self.name: str | None = None
        self.kind = kind
        if folder is not None:
            try:
                self.name = comfy_words.name_of(part, loader)
            except comfy_words.Unnamed as error:
                self.give_up(error)
        self.tensors = TensorCache(folder / kind if folder and self.name else None)

    def give_up(self, why: Exception) -> None:
        self.name = None
        host.log.info("The %s are not kept on disk and are encoded anew by the next run: of what encodes them, %s.", self.kind, why)

    def get(self, asked: Any, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return self.tensors.get(value_key([self.name, asked]), make) if self.name else make()


@dataclass(frozen=True, slots=True)
class _Picture:
    """A control at the size it is shown at, and as the text encoder sees it (1, H, W, 3)."""

    shown: Image.Image
    vision: torch.Tensor


def _kept(store: OrderedDict[tuple[Any, ...], Any], key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    if key not in store:
        store[key] = make()
        while len(store) > KEPT:
            store.popitem(last=False)
    store.move_to_end(key)
    return store[key]


def _no_tick(fraction: float = 0.0, preview: Image.Image | None = None, doing: str = "") -> None:
    """Before a request there is nobody to tell."""


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
