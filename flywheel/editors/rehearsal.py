"""The rehearsal editor: edits without any model, so that a lap of the wheel can be tried in minutes and tested anywhere.

It is honest about what it is. Nothing is learnt and nothing understood: pictures are relit, recoloured, cut out, filtered and shifted by
fixed recipes that the words of the prompt choose. Its results are for rehearsing and testing; a LoRA trained on them learns the recipes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..errors import EditorError
from ..images import open_image
from ..instructions import Instruction, parse
from . import Edit, EditRequest, Rendered, Tick
from ._person import Face, cut_out, find_face
from ._scenes import colours_of, draw_scene

Pixels = NDArray[np.floating[Any]]  # (height, width, 3), sRGB 0…255
Plane = NDArray[np.floating[Any]]  # (height, width)

VERSION = "1"  # raise it when the same request gives other pixels
TICK_S = 0.05
PREVIEW_PX = 256
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
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
        rng = np.random.default_rng([request.seed, _number(wish.kind + wish.value.casefold())])
        source = _framed(open_image(request.controls[0].path, at_least=max(request.width, request.height)).image, request, rng)
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
        chance, which = np.random.default_rng([seed, _number("spoil")]).random(2)
        return None if chance >= self.spoil_rate else _DRIFT if which < 0.5 else _ARTEFACT

    def _wait(self, source: Image.Image, image: Image.Image, tick: Tick) -> None:
        """Pass the time of a slower editor, showing the picture turn into its edit."""
        before, after, started = _preview(source), _preview(image), time.monotonic()
        while (passed := time.monotonic() - started) < self.seconds_per_image:
            share = passed / self.seconds_per_image
            tick(0.8 + 0.2 * share, Image.blend(before, after, share))
            time.sleep(min(TICK_S, self.seconds_per_image - passed))


def _number(words: str) -> int:
    """A number that belongs to words, the same in every process (hash() is not)."""
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")


def _preview(image: Image.Image) -> Image.Image:
    scale = min(1.0, PREVIEW_PX / max(image.size))
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)


def _framed(image: Image.Image, request: EditRequest, rng: np.random.Generator) -> Image.Image:
    """The photograph at the requested size: cut to its aspect around the upper middle and reframed by a few per cent, which varies by seed."""
    scale = min(image.width / request.width, image.height / request.height) * rng.uniform(0.95, 0.995)
    width, height = request.width * scale, request.height * scale
    left, top = (image.width - width) * rng.uniform(0.35, 0.65), (image.height - height) * rng.uniform(0.0, 0.3)
    return image.resize(
        (request.width, request.height), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height), reducing_gap=3.0
    )


# --- background -------------------------------------------------------------------------------------------------------------------------


def _background(image: Image.Image, face: Face, wish: Instruction, rng: np.random.Generator) -> Image.Image:
    mask = cut_out(image, face)
    pixels = _pixels(image)
    words = wish.value.casefold()
    scene = _pixels(_blurred_without(image, mask) if "blur" in words else draw_scene(words, image.size, rng))
    inner = _pushed_out(image, mask)
    edge = (np.clip(1.25 - mask, 0, 1) * (mask < 0.98))[..., None]
    person = pixels + (inner - pixels) * edge  # at its edge the person's own colours, not those of the old background
    ambient = scene.mean(axis=(0, 1)) / max(1.0, float(scene.mean()))
    person = person * (1 + 0.16 * (ambient - 1)) * rng.uniform(0.97, 1.03)
    mixed = scene + (person - scene) * mask[..., None]
    return _image(mixed + _grain(mixed.shape[:2], rng, 2.2)[..., None])


def _pushed_out(image: Image.Image, mask: Plane) -> Pixels:
    """The person's colours carried over the edge: a blur that counts only what is surely the person. Made at a quarter of the size."""
    small = (max(1, image.width // 4), max(1, image.height // 4))
    sure = np.clip((mask - 0.85) / 0.15, 0, 1)
    weight = Image.fromarray((sure * 255).astype(np.uint8)).resize(small, Image.Resampling.BOX)
    colours = Image.composite(image.resize(small, Image.Resampling.BOX), Image.new("RGB", small), weight)
    reach = ImageFilter.GaussianBlur(max(small) * 0.02)
    share = np.asarray(weight.filter(reach), dtype=np.float32)[..., None] / 255
    spread = np.clip(_pixels(colours.filter(reach)) / np.maximum(share, 0.02), 0, 255)
    return _pixels(Image.fromarray(spread.astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR))


def _blurred_without(image: Image.Image, mask: Plane) -> Image.Image:
    """The old background far out of focus, without the person in it."""
    small = (max(1, image.width // 4), max(1, image.height // 4))
    weight = Image.fromarray(((1 - mask) * 255).astype(np.uint8)).resize(small, Image.Resampling.BOX)
    colours = Image.composite(image.resize(small, Image.Resampling.BOX), Image.new("RGB", small), weight)
    reach = ImageFilter.GaussianBlur(max(small) * 0.06)
    share = np.asarray(weight.filter(reach), dtype=np.float32)[..., None] / 255
    spread = np.clip(_pixels(colours.filter(reach)) / np.maximum(share, 0.03), 0, 255)
    return Image.fromarray(spread.astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)


# --- lighting ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Light:
    """A light from one side. `key` and `shadow` multiply red, green and blue; `contrast` is around the middle grey."""

    key: tuple[float, float, float]
    shadow: tuple[float, float, float]
    contrast: float = 1.0
    colourfulness: float = 1.0
    backdrop: float = 1.0  # brightness of what is not the person
    vignette: float = 0.25


_LIGHTS: tuple[tuple[tuple[str, ...], _Light], ...] = (
    (
        ("night", "moon", "dark", "midnight"),
        _Light(key=(0.86, 0.90, 1.12), shadow=(0.28, 0.36, 0.64), contrast=1.05, colourfulness=0.65, backdrop=0.55, vignette=0.5),
    ),
    (
        ("sunset", "sunrise", "golden", "dusk", "dawn", "warm", "evening"),
        _Light(key=(1.32, 0.98, 0.62), shadow=(0.74, 0.56, 0.66), contrast=1.05, colourfulness=1.15, vignette=0.3),
    ),
    (
        ("studio", "softbox", "professional", "flash"),
        _Light(key=(1.16, 1.15, 1.14), shadow=(0.72, 0.73, 0.76), contrast=1.12, backdrop=0.42, vignette=0.4),
    ),
    (
        ("daylight", "day", "sunny", "sunlight", "bright", "noon", "morning", "overcast", "cool"),
        _Light(key=(1.20, 1.22, 1.24), shadow=(0.92, 0.98, 1.08), contrast=0.96, colourfulness=1.1, vignette=0.05),
    ),
)


def _light_for(words: str) -> _Light:
    for names, light in _LIGHTS:
        if any(name in words for name in names):
            return light
    key, shadow = (np.array(colour, dtype=np.float32) for colour in colours_of(words, 2)[::-1])
    return _Light(_tuple(key / key.mean() * 0.5 + 0.55), _tuple(shadow / shadow.mean() * 0.35 + 0.4), colourfulness=0.85, vignette=0.35)


def _lighting(image: Image.Image, face: Face, wish: Instruction, rng: np.random.Generator) -> Image.Image:
    light = _light_for(wish.value.casefold())
    mask = cut_out(image, face)
    pixels = _pixels(image)
    grey = (pixels @ _LUMA)[..., None]
    pixels = grey + (pixels - grey) * light.colourfulness
    pixels = 118 + (pixels - 118) * light.contrast
    side = rng.choice([-1.0, 1.0]) * rng.uniform(0.6, 1.0)
    lit = _lit_from(side, mask, face, image.size)[..., None]
    pixels = pixels * (np.array(light.shadow, np.float32) + lit * (np.array(light.key, np.float32) - np.array(light.shadow, np.float32)))
    falloff = 1 - light.vignette * _from_centre(image.size, face)[..., None]
    backdrop = light.backdrop + (1 - light.backdrop) * mask[..., None]
    return _image(pixels * falloff * backdrop * rng.uniform(0.96, 1.04) + _grain(mask.shape, rng, 1.8)[..., None])


def _lit_from(side: float, mask: Plane, face: Face, size: tuple[int, int]) -> Plane:
    """How much of the light each pixel gets, 0…1: the person is taken for a rounded relief, lit from one side and from above."""
    small = (max(8, size[0] // 8), max(8, size[1] // 8))
    shape = Image.fromarray((mask * 255).astype(np.uint8)).resize(small, Image.Resampling.BOX)
    relief = np.asarray(shape.filter(ImageFilter.GaussianBlur(max(2.0, face.width / 8 * 0.28))), dtype=np.float32) / 255
    slope_y, slope_x = np.gradient(relief * face.width / 8)
    across = (np.arange(small[0], dtype=np.float32)[None, :] * 8 - face.x) / (2.5 * face.width)
    lit = 0.62 - 0.75 * side * slope_x + 0.30 * slope_y + side * np.clip(across, -1, 1) * 0.30
    smooth = Image.fromarray((np.clip(lit, 0, 1) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    return np.asarray(smooth.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255


def _from_centre(size: tuple[int, int], face: Face) -> Plane:
    """0 at the face, 1 in the far corners."""
    x = (np.arange(size[0], dtype=np.float32) - face.x) / size[0]
    y = (np.arange(size[1], dtype=np.float32) - face.y) / size[1]
    return np.clip((x[None, :] ** 2 + y[:, None] ** 2) * 1.2, 0, 1)


# --- style ------------------------------------------------------------------------------------------------------------------------------


def _style(image: Image.Image, face: Face, wish: Instruction, rng: np.random.Generator) -> Image.Image:
    words = wish.value.casefold()
    for names, paint in _STYLES:
        if any(name in words for name in names):
            return paint(image, face, rng)
    return _poster(image, words, rng)


def _oil(image: Image.Image, face: Face, rng: np.random.Generator) -> Image.Image:
    painted = _kuwahara(image, max(2, round(face.width * 0.02)))
    pixels = _pixels(painted)
    grey = (pixels @ _LUMA)[..., None]
    pixels = grey + (pixels - grey) * rng.uniform(1.2, 1.45)
    pixels = 122 + (pixels - 122) * 1.08
    strokes = _strokes(image.size, rng, long=9)
    return _image(pixels + 17 * strokes[..., None] + 10 * _canvas(image.size)[..., None])


def _watercolor(image: Image.Image, face: Face, rng: np.random.Generator) -> Image.Image:
    painted = _kuwahara(image, max(2, round(face.width * 0.025)))
    pixels = _pixels(painted)
    outline = _outlines(painted.filter(ImageFilter.GaussianBlur(1.2)))
    pools = _clouds(image.size, rng, (6, 18, 60))
    density = (1 - pixels / 255) * (0.82 + 0.3 * pools[..., None])  # how much pigment lies on the paper
    density = np.clip(density + 0.35 * outline[..., None] * (0.3 + density), 0, 1)
    paper = np.array([252, 249, 240], dtype=np.float32) - 7 * np.abs(_canvas(image.size))[..., None]
    wet = 1 - 0.9 * np.clip((_border(image.size) + 0.35 * pools - 0.80) * 5, 0, 1)  # the wash ends in an uneven border
    return _image(paper * (1 - density * wet[..., None] * 0.92))


def _sketch(image: Image.Image, face: Face, rng: np.random.Generator) -> Image.Image:
    grey = image.convert("L")
    soft = np.asarray(grey.filter(ImageFilter.GaussianBlur(max(2.0, face.width * 0.035))), dtype=np.float32)
    tone = np.asarray(grey, dtype=np.float32)
    dodged = np.clip(255 * (tone + 8) / (soft + 8), 0, 255) / 255  # dodge: only what is darker than its surroundings remains
    dark = np.clip(1 - soft / 150, 0, 1)
    hatching = np.clip(0.5 + 2.2 * _strokes(image.size, rng, long=15), 0, 1)
    shade = np.clip(dodged**1.6 - 0.55 * dark * hatching - 0.10 * dark, 0, 1) * (0.75 + 0.25 * np.clip(tone / 160, 0, 1))
    pencil, paper = np.array([46, 44, 48], dtype=np.float32), np.array([247, 244, 236], dtype=np.float32)
    return _image(pencil + (paper - pencil) * shade[..., None] + _grain(shade.shape, rng, 3)[..., None])


def _poster(image: Image.Image, words: str, rng: np.random.Generator) -> Image.Image:
    """Flat tones in colours that belong to the words, with dark outlines."""
    smooth = image.filter(ImageFilter.GaussianBlur(1.5))
    pixels = _pixels(smooth)
    grey = pixels @ _LUMA
    dark, middle, bright, _ = (np.array(colour, dtype=np.float32) for colour in colours_of(words, 4))
    stops = np.array([0, 70, 150, 255], dtype=np.float32)
    ramp = np.stack([dark * 0.35, dark * 0.6 + middle * 0.4, middle * 0.3 + bright * 0.6 + 30, np.full(3, 248, dtype=np.float32)])
    steps = np.round(grey / 255 * 7 + rng.uniform(-0.15, 0.15)) / 7 * 255
    flat = np.stack([np.interp(steps, stops, ramp[:, channel]) for channel in range(3)], axis=-1)
    own = np.round(pixels / 36) * 36
    share = rng.uniform(0.4, 0.7)
    return _image((share * flat + (1 - share) * own) * (1 - 0.6 * _outlines(smooth)[..., None]))


_Paint = Callable[[Image.Image, Face, np.random.Generator], Image.Image]
_STYLES: tuple[tuple[tuple[str, ...], _Paint], ...] = (
    (("watercol", "aquarel", "gouache", "ink wash"), _watercolor),
    (("sketch", "pencil", "drawing", "charcoal", "line art", "engraving", "ink"), _sketch),
    (("oil", "paint", "impression", "van gogh", "rembrandt", "monet", "canvas", "renaissance", "baroque"), _oil),
)


def _kuwahara(image: Image.Image, radius: int) -> Image.Image:
    """Each pixel takes the mean of the calmest of its four quarters, which keeps edges and makes dabs. Source: Kuwahara et al. 1976."""
    box = ImageFilter.BoxBlur(radius / 2)
    means = np.asarray(image.filter(box))
    grey = image.convert("L")
    squares = np.asarray(grey, dtype=np.float32) ** 2 / 255
    spread = np.asarray(Image.fromarray(squares.astype(np.uint8)).filter(box), dtype=np.float32) * 255
    spread -= np.asarray(grey.filter(box), dtype=np.float32) ** 2
    reach = (radius + 1) // 2
    padded, calm = np.pad(means, ((reach, reach), (reach, reach), (0, 0)), mode="edge"), np.pad(spread, reach, mode="edge")
    height, width = spread.shape
    best, painted = np.full_like(spread, np.inf), means.copy()
    for down in (0, 2 * reach):
        for right in (0, 2 * reach):
            quarter = calm[down : down + height, right : right + width]
            wins = quarter < best
            best = np.where(wins, quarter, best)
            np.copyto(painted, padded[down : down + height, right : right + width], where=wins[..., None])
    return Image.fromarray(painted)


def _strokes(size: tuple[int, int], rng: np.random.Generator, *, long: int) -> Plane:
    """Relief of slanted strokes, about -1…1."""
    width, height = size[0] // 2 + 1, size[1] // 2 + 1
    noise = rng.standard_normal((height + long, width + long), dtype=np.float32)
    smeared = np.zeros((height, width), dtype=np.float32)
    for step in range(long):  # along the diagonal
        smeared += noise[step : step + height, long - step : long - step + width]
    return _enlarged(smeared / np.float32(2 * long**0.5), size)


def _canvas(size: tuple[int, int]) -> Plane:
    """Weave, -1…1."""
    return (np.sin(np.arange(size[0], dtype=np.float32) * 1.9)[None, :] + np.sin(np.arange(size[1], dtype=np.float32) * 1.7)[:, None]) / 2


def _clouds(size: tuple[int, int], rng: np.random.Generator, cells: tuple[int, ...]) -> Plane:
    """Soft noise of as many layers as there are numbers of patches across, 0…1."""
    layers = [_enlarged(rng.random((count, count), dtype=np.float32), size) for count in cells]
    return np.clip(np.mean(layers, axis=0), 0, 1)


def _border(size: tuple[int, int]) -> Plane:
    """0 in the middle, 1 at the border."""
    x, y = (np.abs(np.linspace(-1, 1, side, dtype=np.float32)) ** 6 for side in size)
    return np.maximum(x[None, :], y[:, None])


def _outlines(image: Image.Image) -> Plane:
    """Strength of edges, 0…1."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    steps = np.zeros_like(grey)
    steps[:, 1:-1] = np.abs(grey[:, 2:] - grey[:, :-2])
    steps[1:-1] += np.abs(grey[2:] - grey[:-2])
    return np.clip((steps - 10) / 70, 0, 1)


# --- camera and anything else -----------------------------------------------------------------------------------------------------------


def _camera(image: Image.Image, _face: Face, wish: Instruction, rng: np.random.Generator) -> Image.Image:
    """A small turn of the picture plane: perspective, shift, zoom. What comes in at the border is the picture's reflection."""
    words = wish.value.casefold()

    def has(*names: str) -> bool:
        return any(name in words for name in names)

    turn = 0.09 * ((has("right") or has("side", "profile")) - has("left")) * rng.uniform(0.85, 1.15)
    tilt = 0.09 * (has("high", "above", "up", "bird", "overhead") - has("low", "below", "down", "under")) * rng.uniform(0.85, 1.15)
    zoom = 1 + 0.14 * (has("zoom in", "close", "near") - has("zoom out", "far", "wide", "away"))
    if not (turn or tilt or zoom != 1):
        turn, tilt = (0.07 * sign for sign in np.random.default_rng(_number(words)).choice([-1.0, 1.0], 2))
    margin = 0.2
    pads = round(image.width * margin), round(image.height * margin)
    wide = np.pad(np.asarray(image), ((pads[1], pads[1]), (pads[0], pads[0]), (0, 0)), mode="reflect")
    corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    depth = 1 + turn * corners[:, :1] + tilt * corners[:, 1:]  # the nearer side is seen larger, so less of it is taken
    taken = corners * depth / zoom + np.array([0.6 * turn, 0.6 * tilt]) + rng.uniform(-0.01, 0.01, 2)
    taken = (taken + 1) / 2 * np.array(image.size) + np.array(pads)
    moved = Image.fromarray(wide).transform(
        image.size, Image.Transform.PERSPECTIVE, _perspective(taken, image.size), Image.Resampling.BICUBIC
    )
    return _image(_pixels(moved) * rng.uniform(0.98, 1.02))


def _perspective(taken: NDArray[np.float64], size: tuple[int, int]) -> list[float]:
    """Pillow's eight coefficients of the map from the corners of `size` to the four points `taken`."""
    width, height = size
    corners = ((0, 0), (width, 0), (width, height), (0, height))
    rows: list[list[Any]] = []
    for (x, y), (u, v) in zip(corners, taken, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    coefficients: list[float] = np.linalg.solve(np.array(rows), taken.reshape(8)).tolist()
    return coefficients


def _recolour(image: Image.Image, face: Face, wish: Instruction, rng: np.random.Generator) -> Image.Image:
    """A tint and a frame of light in the colours of the words, so that no prompt is without effect."""
    dark, bright = (np.array(colour, dtype=np.float32) for colour in colours_of(wish.value.casefold(), 2))
    pixels = _pixels(image)
    grey = (pixels @ _LUMA)[..., None] / 255
    toned = dark * (1 - grey) + (0.4 * bright + 150) * grey
    share = 0.22 + 0.45 * _from_centre(image.size, face)[..., None]
    return _image((pixels + (toned - pixels) * share) * rng.uniform(0.95, 1.05))


_RECIPES: dict[str, Callable[[Image.Image, Face, Instruction, np.random.Generator], Image.Image]] = {
    "background": _background,
    "lighting": _lighting,
    "style": _style,
    "camera": _camera,
    "other": _recolour,
}


# --- spoiling ---------------------------------------------------------------------------------------------------------------------------


def _drift(image: Image.Image, face: Face, rng: np.random.Generator) -> Image.Image:
    """Another person: eyes, nose, mouth and jaw move in the face, which keeps its place."""
    way = rng.choice([-1.0, 1.0])

    def shift(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        def near(at_x: float, at_y: float, width: float, height: float) -> NDArray[np.float64]:
            return np.exp(-(((x - at_x) / width) ** 2) - ((y - at_y) / height) ** 2)

        eyes = near(-0.22, -0.12, 0.2, 0.16) - near(0.22, -0.12, 0.2, 0.16)
        nose, jaw, mouth = near(0, 0.2, 0.16, 0.2), near(0, 0.45, 0.55, 0.35), near(0, 0.42, 0.28, 0.14)
        dx = way * 0.13 * eyes + x * (-way * 0.36 * jaw + way * 0.50 * nose + way * 0.25 * mouth)
        dy = way * 0.12 * nose + way * 0.10 * mouth - way * 0.06 * near(0, -0.2, 0.5, 0.14)
        return dx, dy

    return _warped(image, face, shift)


_Shift = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


def _warped(image: Image.Image, face: Face, shift: _Shift) -> Image.Image:
    """Each place takes its pixel from where `shift` says; coordinates and shifts in face widths from the bridge of the nose."""
    cell = max(4, round(face.width / 24))
    xs, ys = np.arange(0, image.width + cell, cell), np.arange(0, image.height + cell, cell)
    grid_x, grid_y = np.meshgrid(np.minimum(xs, image.width), np.minimum(ys, image.height))
    dx, dy = shift((grid_x - face.x) / face.width, (grid_y - face.y) / face.width)
    from_x, from_y = grid_x + dx * face.width, grid_y + dy * face.width
    moved = np.hypot(dx, dy) * face.width > 0.3  # px; what does not move is not drawn again
    mesh: list[tuple[tuple[int, int, int, int], tuple[float, ...]]] = []
    for row in range(grid_x.shape[0] - 1):
        for column in range(grid_x.shape[1] - 1):
            left, top, right, bottom = (
                int(grid_x[row, column]),
                int(grid_y[row, column]),
                int(grid_x[row, column + 1]),
                int(grid_y[row + 1, column]),
            )
            if right <= left or bottom <= top or not moved[row : row + 2, column : column + 2].any():
                continue
            corners = ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))
            mesh.append(((left, top, right, bottom), tuple(float(part) for at in corners for part in (from_x[at], from_y[at]))))
    warped = image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BICUBIC)
    drawn = Image.new("L", image.size)
    for box, _ in mesh:
        drawn.paste(255, box)
    return Image.composite(warped, image, drawn)


def _artefact(image: Image.Image, face: Face, rng: np.random.Generator) -> Image.Image:
    """What a failing sampler leaves behind, over the face: a smear, melted blocks or bands of noise."""
    reach = 0.8 * face.width
    left, top = max(0, round(face.x - reach)), max(0, round(face.y - reach))
    right, bottom = min(image.width, round(face.x + reach)), min(image.height, round(face.y + reach * 1.1))
    if right - left < 8 or bottom - top < 8:
        left, top, right, bottom = 0, 0, *image.size
    patch = np.asarray(image.crop((left, top, right, bottom)), dtype=np.float32)
    spoilt = (_smear, _blocks, _bands)[int(rng.integers(3))](patch, rng)
    y, x = np.linspace(-1, 1, patch.shape[0])[:, None], np.linspace(-1, 1, patch.shape[1])[None, :]
    share = np.clip((1 - np.hypot(x, y)) * 4, 0, 1).astype(np.float32)[..., None]
    result = image.copy()
    result.paste(_image(patch + (spoilt - patch) * share), (left, top))
    return result


def _smear(patch: Pixels, rng: np.random.Generator) -> Pixels:
    """Rows dragged sideways, each by its own soft random length."""
    height, width, _ = patch.shape
    drag = np.interp(np.arange(height), np.linspace(0, height, 9), rng.uniform(-0.28, 0.28, 9) * width)
    columns = (np.arange(width)[None, :] + drag[:, None]).astype(np.int64).clip(0, width - 1)
    return patch[np.arange(height)[:, None], columns]


def _blocks(patch: Pixels, rng: np.random.Generator) -> Pixels:
    """Blocks that moved and flattened, as of a broken latent."""
    cell = max(6, patch.shape[1] // 9)
    rows, columns = -(-patch.shape[0] // cell), -(-patch.shape[1] // cell)
    order_y, order_x = (
        rng.integers(-2, 3, (rows, columns)).repeat(cell, 0).repeat(cell, 1)[: patch.shape[0], : patch.shape[1]] for _ in "yx"
    )
    y = (np.arange(patch.shape[0])[:, None] + order_y * cell // 2).clip(0, patch.shape[0] - 1)
    x = (np.arange(patch.shape[1])[None, :] + order_x * cell // 2).clip(0, patch.shape[1] - 1)
    return patch[y, x] * 0.8 + 0.2 * patch[(y // cell) * cell, (x // cell) * cell]


def _bands(patch: Pixels, rng: np.random.Generator) -> Pixels:
    """Coloured noise in bands across the patch."""
    height = patch.shape[0]
    band = np.clip(np.sin(np.arange(height) / height * rng.uniform(14, 24) + rng.uniform(0, 6)) * 2.5, 0, 1)[:, None, None]
    coarse = rng.uniform(0, 255, (height // 3 + 1, patch.shape[1] // 3 + 1, 3)).repeat(3, 0).repeat(3, 1)[:height, : patch.shape[1]]
    return (patch * (1 - 0.75 * band) + coarse * 0.75 * band).astype(np.float32)


_SPOILS: dict[str, Callable[[Image.Image, Face, np.random.Generator], Image.Image]] = {_DRIFT: _drift, _ARTEFACT: _artefact}


# --- pixels -----------------------------------------------------------------------------------------------------------------------------


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float32)


def _image(pixels: NDArray[np.floating[Any]]) -> Image.Image:
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def _enlarged(plane: Plane, size: tuple[int, int]) -> Plane:
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))


def _grain(shape: tuple[int, ...], rng: np.random.Generator, strength: float) -> Plane:
    """Film grain, so that drawn and photographed parts look of one piece."""
    return rng.standard_normal(shape[:2], dtype=np.float32) * np.float32(strength)


def _tuple(colour: NDArray[np.float32]) -> tuple[float, float, float]:
    red, green, blue = colour.tolist()
    return red, green, blue
