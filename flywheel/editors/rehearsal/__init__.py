"""The rehearsal editor: edits without any model, so that a lap of the wheel can be tried in minutes and tested anywhere.

It is honest about what it is. Nothing is learnt and nothing understood: pictures are relit, recoloured, cut out, filtered and shifted by
fixed recipes that the words of the prompt choose. Its results are for rehearsing and testing; a LoRA trained on them learns the recipes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ...errors import EditorError
from ...images import open_image
from ...instructions import Instruction, parse
from .. import Edit, EditRequest, Rendered, Tick
from .background import background
from .camera import camera
from .lighting import lighting
from .person import Face, find_face
from .pixels import LUMA, from_centre, image_of, number_of, pixels_of
from .scenes import colours_of
from .spoil import artefact, drift
from .style import style

VERSION = "1"  # raise it when the same request gives other pixels
TICK_S = 0.05
PREVIEW_PX = 256
_DRIFT, _ARTEFACT = "identity drift", "artefact"


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Edits photographs without any model, as a dry run of the real thing; spoils some on purpose, for filters and reviewers to catch.

    Deterministic: the same request gives the same pixels, and another seed visibly others. Only Picture 1 is used.
    """

    spoil_rate: float = field(
        default=0.1,
        metadata={
            "help": "Share of images spoilt on purpose, by a changed face or an artefact: 0 spoils none, 1 all of them.",
            "min": 0.0,
            "max": 1.0,
            "step": 0.05,
        },
    )
    seconds_per_image: float = field(
        default=0.0,
        metadata={
            "help": "Wait this long for every image, to rehearse the pace of a real model. It changes no pixel.",
            "min": 0.0,
            "max": 600.0,
            "step": 0.5,
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.spoil_rate <= 1:
            raise EditorError(f"spoil_rate is {self.spoil_rate:g}; it is a share and must lie between 0 and 1.")
        if not self.seconds_per_image >= 0:
            raise EditorError(f"seconds_per_image is {self.seconds_per_image:g}; it cannot be negative.")

    @property
    def name(self) -> str:
        return "rehearsal"

    @property
    def controls(self) -> range:
        return range(1, 4)

    def fingerprint(self) -> dict[str, str]:
        return {"editor": self.name, "version": VERSION, "spoil_rate": f"{self.spoil_rate:g}"}

    @contextmanager
    def session(self) -> Iterator[Edit]:
        yield self._edit  # nothing to load, nothing to free

    def _edit(self, request: EditRequest, tick: Tick) -> Rendered:
        if len(request.controls) not in self.controls:
            raise EditorError(
                f"The rehearsal editor needs 1 to {self.controls[-1]} control images and got {len(request.controls)}"
                f" for {request.label or request.prompt!r}. Connect the picture to be edited."
            )
        tick(0.0)
        wish = parse(request.prompt)
        rng = np.random.default_rng([request.seed, number_of(wish.kind + wish.value.casefold())])
        source = framed(open_image(request.controls[0].path, at_least=max(request.width, request.height)).image, request, rng)
        tick(0.2, _preview(source))
        face = find_face(source)
        tick(0.3)
        image = _RECIPES[wish.kind](source, face, wish, rng)
        tick(0.8, _preview(image))
        spoiled = self._spoil_for(request.seed)
        if spoiled is not None:
            # a moved camera takes the face along, so it is looked for again
            where = find_face(image) if wish.kind == "camera" else face
            image = _SPOILS[spoiled](image, where, rng)
        self._wait(source, image, tick)
        tick(1.0, _preview(image))
        unused = {"unused_controls": len(request.controls) - 1} if len(request.controls) > 1 else {}
        return Rendered(image, {"instruction": wish.kind, "spoiled": spoiled, **unused})

    def _spoil_for(self, seed: int) -> str | None:
        chance, which = np.random.default_rng([seed, number_of("spoil")]).random(2)
        return None if chance >= self.spoil_rate else _DRIFT if which < 0.5 else _ARTEFACT

    def _wait(self, source: Image.Image, image: Image.Image, tick: Tick) -> None:
        """Pass the time of a slower editor, showing the picture turn into its edit."""
        before, after, started = _preview(source), _preview(image), time.monotonic()
        while (passed := time.monotonic() - started) < self.seconds_per_image:
            share = passed / self.seconds_per_image
            tick(0.8 + 0.2 * share, Image.blend(before, after, share))
            time.sleep(min(TICK_S, self.seconds_per_image - passed))


def _preview(image: Image.Image) -> Image.Image:
    scale = min(1.0, PREVIEW_PX / max(image.size))
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)


def framed(image: Image.Image, request: EditRequest, rng: np.random.Generator) -> Image.Image:
    """The photograph at the requested size: cut to its aspect around the upper middle and reframed by a few per cent, which varies by seed."""
    scale = min(image.width / request.width, image.height / request.height) * rng.uniform(0.95, 0.995)
    width, height = request.width * scale, request.height * scale
    left, top = (image.width - width) * rng.uniform(0.35, 0.65), (image.height - height) * rng.uniform(0.0, 0.3)
    return image.resize(
        (request.width, request.height), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height), reducing_gap=3.0
    )


def recolour(image: Image.Image, face: Face, wish: Instruction, rng: np.random.Generator) -> Image.Image:
    """A tint and a frame of light in the colours of the words, so that no prompt is without effect."""
    dark, bright = (np.array(colour, dtype=np.float32) for colour in colours_of(wish.value.casefold(), 2))
    pixels = pixels_of(image)
    grey = (pixels @ LUMA)[..., None] / 255
    toned = dark * (1 - grey) + (0.4 * bright + 150) * grey
    share = 0.22 + 0.45 * from_centre(image.size, face)[..., None]
    return image_of((pixels + (toned - pixels) * share) * rng.uniform(0.95, 1.05))


_RECIPES: dict[str, Callable[[Image.Image, Face, Instruction, np.random.Generator], Image.Image]] = {
    "background": background,
    "lighting": lighting,
    "style": style,
    "camera": camera,
    "other": recolour,
}

_SPOILS: dict[str, Callable[[Image.Image, Face, np.random.Generator], Image.Image]] = {_DRIFT: drift, _ARTEFACT: artefact}
