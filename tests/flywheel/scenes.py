"""Pictures with something to hold on to everywhere, and what edit models do to them."""

import numpy as np
from PIL import Image


def scene(seed, size=(512, 384)):
    """Coarse shapes with texture: something to hold on to everywhere, like a photograph."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (size[1] // cell, size[0] // cell, 3), dtype=np.uint8)).resize(size, 3), np.float32)
        for cell in (64, 16, 5)
    ]
    return Image.fromarray(np.clip(0.5 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2], 0, 255).astype(np.uint8))


def moved(image, dx, dy, zoom):
    """Grown about the centre and slid, mirrored at the border."""
    padded = Image.fromarray(np.pad(np.asarray(image), ((64, 64), (64, 64), (0, 0)), mode="reflect"))
    width, height = image.size
    step = 1 / (1 + zoom)
    x0, y0 = width / 2 - step * (width / 2 + dx) + 64, height / 2 - step * (height / 2 + dy) + 64
    return padded.transform((width, height), Image.Transform.AFFINE, (step, 0, x0, 0, step, y0), Image.Resampling.BICUBIC)


def painted(image, seed=9, share=0.5):
    """A patch in the middle replaced."""
    result = image.copy()
    size = round(image.width * share), round(image.height * share)
    result.paste(scene(seed, size), (image.width // 5, image.height // 5))
    return result
