"""How far an edit moved against its source: edit models shift and zoom the picture by some pixels, which spoils pairs for training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 256  # px: where the correlation is computed; finds shifts to about an eighth of a pixel there
ZOOMS = tuple(1 + step * 0.01 for step in range(-4, 5))
LIMIT = 0.005  # share of the longer side: 5 px of 1024, where doubled contours begin to show in a blend of both
CERTAIN = 0.12  # height of the peak: pairs of other photographs reach 0.08, a photograph and its repainting 0.35 and more

_Plane = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Move:
    """What the result did against the source: right and down in px of the result, and zoom. `peak` 0…1 tells how sure that is."""

    right: float
    down: float
    zoom: float
    peak: float

    @property
    def is_certain(self) -> bool:
        return self.peak >= CERTAIN

    def exceeds(self, size: tuple[int, int], limit: float = LIMIT) -> bool:
        """Whether some corner of the picture moved by more than `limit` of its longer side."""
        corner = abs(self.zoom - 1) / 2 * np.hypot(*size) + np.hypot(self.right, self.down)
        return self.is_certain and bool(corner > limit * max(size))


def move(source: Image.Image, result: Image.Image) -> Move:
    """Estimate by phase correlation of the pictures' edges, tried at several zooms; the zoom with the highest peak counts.

    The whole picture votes: where a new background covers most of it, little is left to compare and `peak` is low.

    Source: Kuglin and Hines 1975; Foroosh et al. 2002 for the fraction of a pixel.
    """
    target = np.fft.rfft2(_edges(result.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=2.0)))
    small = source.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    tried = [(_correlated(_edges(_zoomed(small, zoom)), target), zoom) for zoom in ZOOMS]
    (x, y, peak), zoom = max(tried, key=lambda one: one[0][2])
    return Move(round(x * result.width / SIZE, 2), round(y * result.height / SIZE, 2), round(zoom, 3), round(peak, 3))


def noted(source: Image.Image, result: Image.Image) -> dict[str, Any]:
    """What an image's notes keep of its move: nothing where it cannot be told."""
    moved = move(source, result)
    if not moved.is_certain:
        return {}
    told: dict[str, Any] = {"moved_px": [moved.right, moved.down], "zoom": moved.zoom}
    return told | {"shifted": True} if moved.exceeds(result.size) else told


def _zoomed(image: Image.Image, zoom: float) -> Image.Image:
    if zoom == 1:
        return image
    margin = SIZE / 2 * (1 - 1 / zoom)
    return image.transform(image.size, Image.Transform.EXTENT, (margin, margin, SIZE - margin, SIZE - margin), Image.Resampling.BILINEAR)


def _edges(image: Image.Image) -> _Plane:
    """Strength of edges under a window that lets the border count little: edits change colours, seldom contours."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    strength = np.hypot(np.gradient(grey, axis=0), np.gradient(grey, axis=1))
    window = np.hanning(SIZE).astype(np.float32)
    return ((strength - strength.mean()) * window[:, None] * window[None, :]).astype(np.float32)


def _correlated(source: _Plane, target: NDArray[np.complexfloating[Any, Any]]) -> tuple[float, float, float]:
    """x, y and height of the peak."""
    cross = target * np.conj(np.fft.rfft2(source))
    surface = np.fft.irfft2(cross / (np.abs(cross) + 1e-6), s=source.shape)
    row, column = (int(place) for place in np.unravel_index(np.argmax(surface), surface.shape))
    peak = float(surface[row, column])
    y = row + _fraction(surface[(row - 1) % SIZE, column], peak, surface[(row + 1) % SIZE, column])
    x = column + _fraction(surface[row, column - 1], peak, surface[row, (column + 1) % SIZE])
    return (x + SIZE / 2) % SIZE - SIZE / 2, (y + SIZE / 2) % SIZE - SIZE / 2, peak


def _fraction(before: float, peak: float, after: float) -> float:
    """Where between pixels the peak lies: two neighbours share it as the fraction says."""
    side, sign = (after, 1.0) if after > before else (before, -1.0)
    return float(sign * side / (side + peak)) if side > 0 else 0.0
