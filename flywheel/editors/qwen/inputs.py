"""What goes into the transformer, each made once and kept on disk by content: words about their pictures, control latents, noise."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from PIL import Image

from ...images import open_image, value_key
from .. import ControlRef
from . import denoise, encode, latents
from .cache import TensorCache
from .jobs import Job
from .parts import Parts

PICTURES_HELD = 12


@dataclass(frozen=True, slots=True)
class Picture:
    """A control image as read: upright RGB, and what was done to get there."""

    image: Image.Image
    treatments: tuple[str, ...]


class Inputs:
    """Of one session. Loads the text encoder or the VAE only for what is on disk nowhere."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.settings = parts.settings
        folder = self.settings.cache
        self.words = TensorCache(folder / "words" if folder else None)
        self.pixels = TensorCache(folder / "controls" if folder else None)
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._preview: dict[str, latents.Preview] = {}

    def prepare(self, job: Job) -> None:
        """Have all that this job needs."""
        for prompt in (job.prompt, *([self.settings.negative_prompt] if job.guidance > 1 else [])):
            self.embedded(job, prompt)
        for control, size in zip(job.controls, job.sizes, strict=True):
            self.control(control, size)

    def cell(self, job: Job) -> denoise.Cell:
        controls = [latents.pack(self.control(control, size)) for control, size in zip(job.controls, job.sizes, strict=True)]
        unwanted = self.embedded(job, self.settings.negative_prompt) if job.guidance > 1 else None
        noise = denoise.noise(job.request.seed, job.size)
        return denoise.Cell(noise, torch.cat(controls, dim=1), self.embedded(job, job.prompt), unwanted, job.shapes)

    def embedded(self, job: Job, prompt: str) -> torch.Tensor:
        key = value_key(
            [
                self.parts.keys["text_encoder"],
                self.parts.text_precision,
                str(self.settings.dtype),
                prompt,
                [one.key for one in job.controls],
            ]
        )

        def make() -> dict[str, torch.Tensor]:
            pictures = [self.picture(control).image for control in job.controls]
            self.parts.counts.encoded += 1
            shown = tuple(one.key for one in job.controls)
            return {"words": self.parts.with_room(lambda: encode.encode(*self.parts.text_encoder(), prompt, pictures, shown=shown))}

        return self.words.get(key, make)["words"]

    def control(self, control: ControlRef, size: tuple[int, int]) -> torch.Tensor:
        """Latents (1, 16, 1, H/8, W/8)."""
        key = value_key([self.parts.keys["vae"], str(self.settings.dtype), control.key, list(size)])

        def encoded() -> torch.Tensor:
            vae, picture = self.parts.vae(), self.picture(control).image
            with self.parts.vae_free:
                return latents.encode(vae, picture, size)

        def make() -> dict[str, torch.Tensor]:
            return {"latents": self.parts.with_room(encoded)}

        return self.pixels.get(key, make)["latents"]

    def picture(self, control: ControlRef) -> Picture:
        picture = self._pictures.get(control.key)
        if picture is None:
            opened = open_image(control.path)
            picture = self._pictures[control.key] = Picture(opened.image, opened.treatments)
            while len(self._pictures) > PICTURES_HELD:
                self._pictures.popitem(last=False)
        return picture

    def preview(self, job: Job) -> latents.Preview:
        """How this job's unfinished latents become small pictures."""
        control, size = job.controls[0], job.sizes[0]
        key = f"{control.key} {size}"
        if key not in self._preview:
            self._preview.clear()
            self._preview[key] = latents.Preview(self.control(control, size), self.picture(control).image)
        return self._preview[key]
