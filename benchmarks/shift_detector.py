"""How well the shift detector of the pair doctor measures: known shifts and zooms over real photos and over edits of them.

    python benchmarks/shift_detector.py [folder with photos]

Every edit is first made without a move, so that the truth is known: the control is the picture which the rehearsal editor really started from.
Then the edit is moved by a known shift (0 to 12 px) and zoom (0 to 3 %), and the detector is asked. Prints a table and writes results/shift_detector.md.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel.editors import ControlRef, EditRequest, rehearsal  # noqa: E402
from comfyui_flenwheel.flywheel.editors.rehearsal.pixels import number_of  # noqa: E402
from comfyui_flenwheel.flywheel.images import open_image, size_for  # noqa: E402
from comfyui_flenwheel.flywheel.instructions import parse  # noqa: E402
from comfyui_flenwheel.flywheel.pair_doctor import Limits  # noqa: E402
from comfyui_flenwheel.flywheel.registration import register  # noqa: E402

MOVES = 6
GOAL_PX, GOAL_ZOOM = 0.5, 0.002
PROMPTS = {
    "background replaced": ("change background to forest", "change background to city street at night", "change background to a beach"),
    "relit": ("change lighting to golden hour", "change lighting to neon", "change lighting to dramatic side light"),
    "restyled": ("make it look like an oil painting", "make it look like a pencil sketch", "in the style of anime"),
}


@dataclass(frozen=True)
class Case:
    """A control and a target that lie exactly on each other."""

    kind: str
    control: Image.Image
    target: Image.Image


def cases(folder: Path) -> Iterator[Case]:
    rng = np.random.default_rng(5)
    for path in sorted(folder.iterdir()):
        photo = open_image(path).image
        yield Case("photo, unchanged", photo, photo)
        yield Case("photo, JPEG 60", photo, _jpeg(photo, 60))
        yield Case("photo, blurred and grained", photo, _worn(photo, rng))
        yield Case("photo, one third painted over", photo, _painted(photo, rng))
        for kind, prompts in PROMPTS.items():
            for seed, prompt in enumerate(prompts):
                yield Case(kind, *_edited(path, photo, prompt, seed))


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _worn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), np.float32)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8))


def _painted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    patch = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    size = (round(image.width * 0.58), round(image.height * 0.58))
    result = image.copy()
    result.paste(Image.fromarray(patch).resize(size, Image.Resampling.BICUBIC), (image.width // 5, image.height // 5))
    return result


def _edited(path: Path, photo: Image.Image, prompt: str, seed: int) -> tuple[Image.Image, Image.Image]:
    """What the rehearsal editor made, and its own starting picture, framed as it framed it."""
    width, height = size_for(*photo.size, megapixels=0.7)
    request = EditRequest(prompt, (ControlRef(path, "x"),), seed, width, height)
    wish = parse(prompt)
    started = open_image(path, at_least=max(width, height)).image
    rng = np.random.default_rng([seed, number_of(wish.kind + wish.value.casefold())])
    control = rehearsal.framed(started, request, rng)
    with rehearsal.Rehearsal(spoil_rate=0.0).session() as edit:
        return control, edit(request, lambda *_: None).image


def moved(image: Image.Image, dx: float, dy: float, zoom: float) -> Image.Image:
    """The picture grown about its centre and slid; mirrored at the edge, so that no black border gives the answer away."""
    margin = 64
    padded = Image.fromarray(np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="reflect"))
    width, height = image.size
    step = 1 / (1 + zoom)
    x0, y0 = width / 2 - step * (width / 2 + dx) + margin, height / 2 - step * (height / 2 + dy) + margin
    return padded.transform((width, height), Image.Transform.AFFINE, (step, 0, x0, 0, step, y0), Image.Resampling.BICUBIC)


@dataclass
class Tally:
    measured: int = 0
    unknown: int = 0
    missed: int = 0
    px: list[float] | None = None
    zoom: list[float] | None = None
    still: int = 0
    alarms: int = 0

    def __post_init__(self) -> None:
        self.px, self.zoom = [], []


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["FLEN_PHOTOS"])
    rng = np.random.default_rng(11)
    limits, tallies, spent, calls = Limits(), dict[str, Tally](), 0.0, 0
    for case in cases(folder):
        tally = tallies.setdefault(case.kind, Tally())
        for number in range(MOVES):
            still = number == 0
            angle, length = rng.uniform(0, 2 * np.pi), 0.0 if still else rng.uniform(0, 12)
            zoom = 0.0 if still else float(rng.uniform(0, 0.03) * rng.choice([-1, 1]))
            dx, dy = length * np.cos(angle), length * np.sin(angle)
            began = time.perf_counter()
            found = register(case.control, case.target if still else moved(case.target, dx, dy, zoom))
            spent, calls = spent + time.perf_counter() - began, calls + 1
            if still:
                tally.still += 1
                tally.alarms += found is not None and limits.alarm(found)
                continue
            if found is None:
                tally.unknown += 1
                continue
            off, off_zoom = float(np.hypot(found.dx - dx, found.dy - dy)), abs(found.zoom - zoom)
            tally.measured += 1
            tally.missed += off > GOAL_PX or off_zoom > GOAL_ZOOM
            tally.px.append(off)
            tally.zoom.append(off_zoom)
    lines = [_line(kind, tally) for kind, tally in tallies.items()]
    every = Tally()
    for tally in tallies.values():
        for name in ("measured", "unknown", "missed", "still", "alarms"):
            setattr(every, name, getattr(every, name) + getattr(tally, name))
        every.px += tally.px
        every.zoom += tally.zoom
    table = (
        "# Shift detector\n\n"
        f"{calls} measurements, {spent / calls * 1000:.0f} ms each on one core. Known shifts of 0 to 12 px and zooms of 0 to ±3 %, pictures of"
        f" 0.5 to 3.3 megapixels. Goal: within {GOAL_PX} px and {GOAL_ZOOM:.1%}; false alarms (a pair that lies exactly, called moved) under 2 %.\n\n"
        "| target | moved pairs measured | within the goal | shift error, median / 95 % / worst | zoom error, 95 % / worst | not measurable | false alarms |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n" + _line("**all**", every) + "\n"
    )
    print(table)
    (ROOT / "benchmarks" / "results" / "shift_detector.md").write_text(table)


def _line(kind: str, tally: Tally) -> str:
    px, zoom = np.array(tally.px or [np.nan]), np.array(tally.zoom or [np.nan])
    within = (tally.measured - tally.missed) / max(1, tally.measured)
    return (
        f"| {kind} | {tally.measured} | {within:.1%} | {np.median(px):.2f} / {np.quantile(px, 0.95):.2f} / {px.max():.2f} px |"
        f" {np.quantile(zoom, 0.95):.2%} / {zoom.max():.2%} | {tally.unknown} | {tally.alarms} of {tally.still} |"
    )


if __name__ == "__main__":
    main()
