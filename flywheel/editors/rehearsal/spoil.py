"""What goes wrong in an edit: another face, or what a failing sampler leaves behind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .person import Face
from .pixels import Pixels, image_of


def drift(image: Image.Image, face: Face, rng: np.random.Generator) -> Image.Image:
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


def artefact(image: Image.Image, face: Face, rng: np.random.Generator) -> Image.Image:
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
    result.paste(image_of(patch + (spoilt - patch) * share), (left, top))
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
