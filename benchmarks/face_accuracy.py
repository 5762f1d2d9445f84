"""How often the right face is recognised, and a wrong one taken for it, on real photographs and on edits of them.

    python benchmarks/face_accuracy.py [folder with obama*.jpg and biden.jpg]      (default: FLEN_PHOTOS)

The photographs are the public-domain portraits that set-up fetches: one man in three independent photographs, another man in one. Each is edited as
an image editor or a careless export may, and scored against the other, unedited photographs of the first man. Writes the table into docs/faces.md
between its two marks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel import identity  # noqa: E402
from comfyui_flenwheel.flywheel.faces import embedder, prominent  # noqa: E402
from comfyui_flenwheel.flywheel.images import open_image  # noqa: E402

SAME = ("obama", "obama2", "obama3")
OTHER = ("biden",)
FACE_PX = 170
BEGIN, END = "<!-- accuracy: written by benchmarks/face_accuracy.py -->", "<!-- end of accuracy -->"

Edit = Callable[[Image.Image], Image.Image]


def _light(low: float, high: float) -> Edit:
    """Light from the left."""

    def edit(image: Image.Image) -> Image.Image:
        ramp = np.linspace(high, low, image.width)[None, :, None]
        return Image.fromarray(np.clip(np.asarray(image, np.float32) * ramp, 0, 255).astype(np.uint8))

    return edit


def _noise(strength: float) -> Edit:
    def edit(image: Image.Image) -> Image.Image:
        grain = np.random.default_rng(0).normal(0, strength, (image.height, image.width, 3))
        return Image.fromarray(np.clip(np.asarray(image, np.float32) + grain, 0, 255).astype(np.uint8))

    return edit


def _detail(px: int) -> Edit:
    """Only so much detail is left of the face as `px` across it can hold."""

    def edit(image: Image.Image) -> Image.Image:
        small = image.resize((max(1, image.width * px // FACE_PX), max(1, image.height * px // FACE_PX)), Image.Resampling.LANCZOS)
        return small.resize(image.size, Image.Resampling.BICUBIC)

    return edit


def _scaled(px: int) -> Edit:
    return lambda image: image.resize((image.width * px // FACE_PX, image.height * px // FACE_PX), Image.Resampling.LANCZOS)


EDITS: dict[str, Edit] = {
    "none": lambda image: image,
    "brightness x 0.5": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
    "brightness x 0.3": lambda image: ImageEnhance.Brightness(image).enhance(0.3),
    "brightness x 2": lambda image: ImageEnhance.Brightness(image).enhance(2),
    "light from one side": _light(0.2, 1.3),
    "hard light from one side": _light(0.05, 1.6),
    "contrast x 0.4": lambda image: ImageEnhance.Contrast(image).enhance(0.4),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "blur, 2 % of the face": lambda image: image.filter(ImageFilter.GaussianBlur(FACE_PX * 0.02)),
    "blur, 4 % of the face": lambda image: image.filter(ImageFilter.GaussianBlur(FACE_PX * 0.04)),
    "detail of a 40 px face": _detail(40),
    "detail of a 24 px face": _detail(24),
    "noise 25": _noise(25),
    "poster, 2 bits": lambda image: ImageOps.posterize(image, 2),
    "paint, 4 % strokes": lambda image: image.filter(ImageFilter.ModeFilter(7)),
    "paint, 8 % strokes": lambda image: image.filter(ImageFilter.ModeFilter(15)),
    "edges only": lambda image: ImageOps.grayscale(image).filter(ImageFilter.FIND_EDGES).convert("RGB"),
    "mirror": ImageOps.mirror,
    "rotate 15 degrees": lambda image: image.rotate(15, Image.Resampling.BICUBIC),
    "rotate 30 degrees": lambda image: image.rotate(30, Image.Resampling.BICUBIC),
    "rotate 90 degrees": lambda image: image.rotate(90, expand=True),
    "face 60 px wide": _scaled(60),
    "face 40 px wide": _scaled(40),
    "face 20 px wide": _scaled(20),
}


def portrait(path: Path) -> Image.Image:
    """The picture with its face 170 px wide."""
    image = open_image(path).image
    face = prominent(embedder().faces(image))[0]
    scale = FACE_PX / face.width
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def rows(folder: Path) -> list[str]:
    paths = {path.stem: path for path in folder.iterdir()}
    pictures = {name: portrait(paths[name]) for name in (*SAME, *OTHER)}
    scores: dict[str, list[identity.IdentityScore]] = {}
    for who, image in pictures.items():
        others = [pictures[other] for other in SAME if other != who]
        scores[who] = identity.compare([edit(image) for edit in EDITS.values()], others, embedder())
    return [_row(name, [scores[who][at] for who in SAME], [scores[who][at] for who in OTHER]) for at, name in enumerate(EDITS)]


def _row(name: str, same: list[identity.IdentityScore], other: list[identity.IdentityScore]) -> str:
    values = [score.similarity for score in same if score.similarity is not None]
    kept = sum(value >= identity.THRESHOLD for value in values)
    spread = f"{min(values):.2f} to {max(values):.2f}" if values else "–"
    strange = [score.similarity for score in other if score.similarity is not None]
    stranger = ", ".join(f"{value:.2f}" for value in strange) or "not measurable"
    return f"| {name} | {kept} | {len(values) - kept} | {len(same) - len(values)} | {spread} | {stranger} |"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["FLEN_PHOTOS"])
    head = "| edit | same man: passed | below 0.60 | not measurable | his similarity | the other man |\n|---|---|---|---|---|---|"
    page = ROOT / "docs" / "faces.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    table = "\n".join([head, *rows(folder)])
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
