"""A drawn portrait: enough of a face for skin, shape and pattern to be found, and nobody's."""

from pathlib import Path

from comfyui_flenwheel.flywheel.editors import ControlRef, EditRequest
from comfyui_flenwheel.flywheel.images import content_key, png_bytes, write_whole
from PIL import Image, ImageDraw, ImageFilter

SIZE = (320, 416)
FACE = (160, 128, 92)  # centre and width, px
SHIRT = (40, 46, 64)


def portrait() -> Image.Image:
    image = Image.linear_gradient("L").resize(SIZE)
    image = Image.merge(
        "RGB", (image.point(lambda v: 60 + v // 4), image.point(lambda v: 110 + v // 4), image.point(lambda v: 150 - v // 4))
    )
    pen = ImageDraw.Draw(image)
    x, y, width = FACE
    skin, dark = (214, 164, 134), (70, 44, 40)
    pen.ellipse([x - 58, y - 84, x + 58, y + 40], fill=(58, 42, 34))  # hair
    pen.rounded_rectangle([x - 130, y + 96, x + 130, SIZE[1] + 40], 60, fill=SHIRT)
    pen.rectangle([x - 24, y + 40, x + 24, y + 104], fill=(188, 138, 112))
    pen.ellipse([x - width // 2, y - 54, x + width // 2, y + 70], fill=skin)
    for side in (-1, 1):
        pen.ellipse([x + side * 21 - 11, y - 19, x + side * 21 + 11, y - 7], fill=(236, 230, 226))
        pen.ellipse([x + side * 21 - 6, y - 19, x + side * 21 + 6, y - 7], fill=dark)
        pen.line([x + side * 10, y - 28, x + side * 34, y - 30], fill=dark, width=5)
        pen.ellipse([x + side * 8 - 3, y + 16, x + side * 8 + 3, y + 21], fill=(150, 96, 84))
    pen.rounded_rectangle([x - 22, y + 36, x + 22, y + 45], 5, fill=(150, 70, 72))
    return image.filter(ImageFilter.GaussianBlur(1.5))


def control(folder: Path, name: str = "portrait.png", image: Image.Image | None = None) -> ControlRef:
    path = folder / name
    write_whole(path, png_bytes(image or portrait()))
    return ControlRef(path, content_key(path))


def request(*controls: ControlRef, prompt: str = "Change background to forest", seed: int = 1, size: tuple[int, int] = SIZE) -> EditRequest:
    return EditRequest(prompt, controls, seed, *size)
