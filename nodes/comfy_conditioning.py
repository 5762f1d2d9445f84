"""What ComfyUI's models are told of a request: its words and pictures, encoded before the model is needed and kept, on disk where it is known by whom.

All prompts of a run are encoded first, then all control pictures, so that ComfyUI's memory manager changes models twice and not for every image.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import node_helpers
import torch
from PIL import Image

from ..flywheel import lora, qwen
from ..flywheel.editors import ControlRef, EditRequest
from ..flywheel.editors.qwen.cache import MOST_BYTES, TensorCache, trim
from ..flywheel.errors import EditorError, FlywheelError
from ..flywheel.images import open_image, value_key
from ..flywheel.qwen import EditModel
from . import comfy_words, host
from .comfy_pulse import Pulse

LOOKAHEAD = 32  # prompts encoded before the model is needed where they cannot be kept on disk: about 10 MB of memory each
KEPT = LOOKAHEAD + 2  # prompts, negatives, control images (and Pictures 2 and 3): fewer, and each image would need the text encoder again
MAX_TOKENS = 1024  # of a prompt without its pictures: what Qwen-Image was trained with


@dataclass(eq=False)
class Conditioning:
    """What the requests of one run are made from. `extras` are Pictures 2 and 3 of every request; `cfg_with`: the guidance there is with some LoRAs;
    `cache`: folder for encoded prompts and photos, None keeps none; `clip_loader`: what the graph tells of the text encoder's loader."""

    row: EditModel
    clip: Any  # comfy.sd.CLIP
    vae: Any  # comfy.sd.VAE
    loras: lora.LoraStack
    extras: tuple[tuple[str, Image.Image], ...]
    negative_prompt: str
    control_megapixels: float
    cfg_with: Callable[[tuple[lora.StackedLora, ...]], float]
    cache: Path | None
    clip_loader: comfy_words.Loader | None
    pulse: Pulse

    def __post_init__(self) -> None:
        self.coming: list[EditRequest] = []
        self.all_kept = False
        self.positives: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self.negatives: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self.pictures: OrderedDict[tuple[Any, ...], _Picture] = OrderedDict()
        self.latents: OrderedDict[tuple[Any, ...], torch.Tensor] = OrderedDict()
        self.words, self.controls = (
            _Kept(self.cache, "words", self.clip, self.clip_loader),
            _Kept(self.cache, "controls", self.vae),
        )  # once per run

    def expect(self, requests: Sequence[EditRequest]) -> None:
        self.coming, self.all_kept = list(requests), False

    def close(self) -> None:
        trim([self.words.tensors, self.controls.tensors], MOST_BYTES)

    def of(self, request: EditRequest, loras: tuple[lora.StackedLora, ...]) -> tuple[Any, Any]:
        """Positive and negative, as a sampler takes them."""
        key = self._key(request, loras)
        if key not in self.positives:
            self._encode_ahead(request)
        positive = _kept(self.positives, key, lambda: self._encoded(key[0], request))
        if math.isclose(self.cfg_with(loras), 1.0):
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
        loras = self.loras.for_prompt(request.prompt, request.tags)
        _kept(self.positives, self._key(request, loras), lambda: self._encoded(words, request))
        if negative:
            self._negative(request)

    def _asked(self, request: EditRequest) -> list[str]:
        """The prompts of a request: its own, and where guidance looks at it the negative one."""
        loras = self.loras.for_prompt(request.prompt, request.tags)
        guided = not math.isclose(self.cfg_with(loras), 1.0)
        return [lora.with_triggers(request.prompt, loras), *([self.negative_prompt] if guided else [])]

    def _key(self, request: EditRequest, loras: tuple[lora.StackedLora, ...]) -> tuple[Any, ...]:
        return (lora.with_triggers(request.prompt, loras), *(control.key for control in request.controls), request.width, request.height)

    def _negative(self, request: EditRequest) -> Any:
        key = (*(control.key for control in request.controls), request.width, request.height)
        return _kept(self.negatives, key, lambda: self._encoded(self.negative_prompt, request))

    def _encoded(self, prompt: str, request: EditRequest) -> Any:
        """ComfyUI's conditioning of a prompt with its pictures: text states (1, T, D) and the controls' latents."""
        conditioning = self._words(prompt, request)
        latents = [self._latent(control, request) for control in request.controls]
        latents += [self._extra_latent(place, request) for place in range(len(self.extras))]
        values: dict[str, Any] = {"reference_latents": latents} if latents else {}
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
        seen = [*(control.key for control in request.controls), *(key for key, _ in self.extras)] if template else []
        asked = [prompt, seen, template and [template.words, template.prompt(prompt, len(seen))]]
        try:
            return comfy_words.unpacked(self.words.get(asked, lambda: comfy_words.packed(self._read(prompt, request))))
        except comfy_words.Unnamed as error:
            self.words.give_up(error)
        return self._read(prompt, request)

    def _read(self, prompt: str, request: EditRequest) -> Any:
        if template := self.row.template:
            pictures = [self._picture(control, request) for control in request.controls]
            pictures += [self._extra(place, request) for place in range(len(self.extras))]
            words, seen = template.prompt(prompt, len(pictures)), [picture.vision for picture in pictures]
            tokens = self.clip.tokenize(words, images=seen, llama_template=template.words)
        else:
            tokens = self.clip.tokenize(prompt)
        longest = max(len(batch[0]) for batch in tokens.values())
        if longest > MAX_TOKENS:
            raise EditorError(
                f"The prompt {prompt[:40]!r}… is {len(prompt.split()):,} words long; {self.row.name} understands about {MAX_TOKENS * 3 // 4}. Shorten it."
            )
        with self.pulse.heard_in(getattr(self.clip, "cond_stage_model", None)):
            return self.clip.encode_from_tokens_scheduled(tokens, show_pbar=False)

    def photo(self, request: EditRequest) -> Image.Image:
        """Picture 1, as it is shown to the model."""
        return self._picture(request.controls[0], request).shown

    def _picture(self, control: ControlRef, request: EditRequest) -> _Picture:
        key = (control.key, request.width, request.height)
        return _kept(self.pictures, key, lambda: self._prepare(open_image(control.path).image, request))

    def _extra(self, place: int, request: EditRequest) -> _Picture:
        key, image = self.extras[place]
        return _kept(self.pictures, (key, request.width, request.height), lambda: self._prepare(image, request))

    def _prepare(self, image: Image.Image, request: EditRequest) -> _Picture:
        result = (request.width, request.height)
        size = qwen.control_size(image.width, image.height, result, self.control_megapixels)
        shown, seen = (image.resize(pixels, Image.Resampling.LANCZOS) for pixels in (size, qwen.vision_size(*image.size)))
        return _Picture(shown, host.tensor(seen))

    def _latent(self, control: ControlRef, request: EditRequest) -> torch.Tensor:
        return self._seen_by_vae(control.key, lambda: self._picture(control, request).shown, request)

    def _extra_latent(self, place: int, request: EditRequest) -> torch.Tensor:
        return self._seen_by_vae(self.extras[place][0], lambda: self._extra(place, request).shown, request)

    def _seen_by_vae(self, key: str, shown: Callable[[], Image.Image], request: EditRequest) -> torch.Tensor:
        """Latents of a control, fp32 (1, C, H/8, W/8), with a frame axis where the VAE has one: from memory, from the disk, or now."""
        size = (request.width, request.height)
        asked = [key, size, f"{self.control_megapixels:g}"]

        def made() -> dict[str, torch.Tensor]:
            with self.pulse.heard_in(getattr(self.vae, "first_stage_model", None)):
                return {"latent": self.vae.encode(host.tensor(shown()))}

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
