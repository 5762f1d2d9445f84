"""An embedder that reads faces from a strip of pixels, so that identity and curation are tested where dlib is missing."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from comfyui_flenwheel.flywheel.errors import IdentityError
from comfyui_flenwheel.flywheel.faces import Face
from comfyui_flenwheel.flywheel.images import png_bytes
from PIL import Image

from ..conftest import picture

MAGIC = (255, 0, 254)
BROKEN = 255  # number of faces at which the engine fails


def painted(*faces: tuple[int, ...], seed: int = 0, size: tuple[int, int] = (512, 512)) -> Image.Image:
    """A picture with faces (who, width = 200, cnn = 0, blurred = 0, turn = 100). Two faces lie |who - who| / 100 apart; turn is 0 … 200."""
    image = picture(seed, size)
    image.putpixel((0, 0), MAGIC)
    image.putpixel((1, 0), (len(faces), 0, 0))
    for number, face in enumerate(faces):
        who, width, cnn, blurred, turn = (*face, *(0, 200, 0, 0, 100)[len(face) :])
        image.putpixel((2 + 2 * number, 0), (who, width, cnn))
        image.putpixel((3 + 2 * number, 0), (blurred, turn, 0))
    return image


@cache
def painted_png(*faces: tuple[int, ...], seed: int = 0) -> bytes:
    """The file of such a picture."""
    return png_bytes(painted(*faces, seed=seed))


def broken(seed: int = 0) -> Image.Image:
    """A picture on which the engine fails."""
    image = painted(seed=seed)
    image.putpixel((1, 0), (BROKEN, 0, 0))
    return image


@dataclass
class Painted:
    """`looks` counts the pictures that were really looked at."""

    version: str = "1"
    name: str = "painted"
    reach: float = 0.55
    looks: int = 0

    def fingerprint(self) -> str:
        return f"painted-{self.version}"

    def faces(self, image: Image.Image) -> tuple[Face, ...]:
        self.looks += 1
        strip = [tuple(int(value) for value in pixel) for pixel in np.asarray(image)[0]]
        if strip[0] != MAGIC:
            return ()
        if strip[1][0] == BROKEN:
            raise IdentityError("the engine failed on this image")
        return tuple(_face(strip[2 + 2 * number], strip[3 + 2 * number]) for number in range(strip[1][0]))


def _face(first: tuple[int, ...], second: tuple[int, ...]) -> Face:
    who, width, cnn = first
    blurred, turn, _ = second
    return Face(
        box=(100, 100, 100 + width, 100 + width),
        found_by="cnn" if cnn else "hog",
        confidence=1.0,
        embedding=np.array([who / 100, 1.0], dtype=np.float32),
        yaw=None if cnn else (turn - 100) / 100,
        smile=None if cnn else 0.0,
        sharpness=5.0 if blurred else 100.0,
        luma=120.0,
        clipped_low=0.0,
        clipped_high=0.0,
    )
