"""Words and pictures to embeddings: the text encoder of Qwen-Image-Edit with the positions it was trained with. Loads and caches nothing.

diffusers 0.42 calls the encoder without the token types; transformers >= 5.5 then counts image tokens as words, so that every later token sits
at a wrong place (the last one at 275 instead of 93) and nothing says so. Here everything the processor returns is passed on.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ...errors import EditorError

SEEN_AREA = 384 * 384  # px² of each picture as the text encoder sees it
SEEN_MULTIPLE = 32
LOOKS = 8  # sets of pictures whose look is remembered: about 4 MB each
MAX_TOKENS = 1024  # of the prompt alone: what the pipelines allow
PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True, slots=True)
class Template:
    """The conversation a prompt is put into, with one {} for it; `skip` tokens before it are the system's and are dropped."""

    text: str
    skip: int


class Sight:
    """What the vision tower of a text encoder answered for the pictures it was shown last: many prompts about the same ones cost one look."""

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self.shown: Hashable | None = None  # a name for the pictures of the prompt that is encoded; None remembers nothing

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self.shown is None or self.shown not in self._kept:
            model: Any = self._model()
            looked = type(model).get_image_features(model, *given, **named)
            if self.shown is None:
                return looked
            self._kept[self.shown] = looked
            if len(self._kept) > LOOKS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(self.shown)
        return self._kept[self.shown]


def with_sight(text_encoder: Any) -> Any:
    """The text encoder, which from now on remembers its looks."""
    text_encoder.model.get_image_features = Sight(text_encoder.model)
    return text_encoder


def template_of(pipeline_class: str) -> Template:
    """The template that belongs to a model, as the installed diffusers states it."""
    import diffusers

    pipeline = getattr(diffusers, pipeline_class)(
        scheduler=None, vae=None, text_encoder=None, tokenizer=None, processor=None, transformer=None
    )
    return Template(pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx)


def seen_size(picture: Image.Image, area: int = SEEN_AREA) -> tuple[int, int]:
    """Size at which the text encoder sees a picture: about `area` px², the same aspect, multiples of 32."""
    ratio = picture.width / picture.height
    width = (area * ratio) ** 0.5
    sides = (width, width / ratio)
    return tuple(max(SEEN_MULTIPLE, round(side / SEEN_MULTIPLE) * SEEN_MULTIPLE) for side in sides)  # type: ignore[return-value]


def refuse_long(processor: Any, prompt: str) -> None:
    """
    Raises:
        EditorError: the prompt is longer than the model was made for.
    """
    count = len(processor.tokenizer(prompt)["input_ids"])
    if count > MAX_TOKENS:
        raise EditorError(
            f"The prompt has {count} tokens ({len(prompt.split()):,} words); Qwen-Image-Edit takes {MAX_TOKENS}. Shorten it: {prompt[:60]!r} …"
        )


@torch.no_grad()
def encode(
    text_encoder: Any,
    processor: Any,
    template: Template,
    prompt: str,
    pictures: Sequence[Image.Image],
    *,
    area: int = SEEN_AREA,
    shown: Hashable | None = None,
) -> torch.Tensor:
    """Embeddings of one prompt about these pictures, (1, S, D) in the encoder's type.

    Picture n of the prompt is `pictures[n - 1]`. One prompt at a time: there is no padding, so no mask either. `shown`: a name for the pictures, by which
    an encoder `with_sight` knows them again.

    Raises:
        EditorError: the prompt is too long.
    """
    refuse_long(processor, prompt)
    seen = [picture.resize(seen_size(picture, area), Image.Resampling.LANCZOS) for picture in pictures]
    text = template.text.format("".join(PICTURE.format(number) for number in range(1, len(seen) + 1)) + prompt)
    tokens = processor(text=[text], images=seen or None, padding=True, return_tensors="pt").to(text_encoder.device)
    if isinstance(sight := text_encoder.model.get_image_features, Sight):
        sight.shown = shown
    states = text_encoder.model(**tokens).last_hidden_state  # .model: no logits over 150,000 words for nothing
    return states[:, template.skip :]
