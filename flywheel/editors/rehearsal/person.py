"""Where the person is in a portrait, guessed from skin, shape and colour. No model, nothing learnt: good enough to rehearse with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Plane = NDArray[np.floating[Any]]  # (height, width)

SEARCH_PX = 180  # longer side of the picture in which the face is looked for
FACE_PX = 16  # width of a face in the raster the templates are drawn for
EYES_ABOVE = 0.08  # the face's centre lies this much above the middle of the templates, in face widths
MASK_PX = 160  # longer side of the picture in which the person is cut out


@dataclass(frozen=True, slots=True)
class Face:
    """Centre (the bridge of the nose) and width of a face, px."""

    x: float
    y: float
    width: float


def find_face(image: Image.Image) -> Face:
    """The most face-like place of a picture. There is always an answer: in a picture without a face it means nothing.

    Every size from 9 % to 62 % of the longer side is tried. What counts: the light and dark pattern of eyes, nose and mouth, an oval of
    skin colour, and a place in the middle of the upper half.
    """
    scale = min(1.0, SEARCH_PX / max(image.size))
    small = image.resize(_scaled(image.size, scale), Image.Resampling.BOX)
    best, face = -np.inf, Face(image.width / 2, image.height * 0.3, max(image.size) / 4)
    for share in np.geomspace(0.09, 0.62, 12):
        scores, xs, ys = _face_scores(small, float(share))
        top = int(scores.argmax())
        row, column = divmod(top, scores.shape[1])
        if scores.flat[top] > best:
            best = scores.flat[top]
            face = Face(float(xs[column] * image.width), float(ys[row] * image.height), float(share) * max(image.size))
    return face


def _face_scores(image: Image.Image, share: float) -> tuple[Plane, Plane, Plane]:
    """Scores of all places for faces of one size, and the places' x and y as shares of the picture's width and height."""
    features, oval = _templates()
    size = _scaled(image.size, FACE_PX / (share * max(image.size)))
    above, beside = oval.shape[0] // 2, oval.shape[1] // 2  # faces at the border are looked for as well
    raster = np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0), dtype=np.float32)
    raster = np.pad(raster, ((above, above), (beside, beside), (0, 0)), mode="edge")
    light = np.sqrt(raster @ np.array([0.30, 0.59, 0.11], dtype=np.float32))
    skin = _skin(raster)
    inset = (oval.shape[0] - features.shape[0]) // 2
    pattern = _correlation(light, features, 8.0)[inset:-inset, inset:-inset]
    shape = _correlation(skin, oval, 2.0)
    inside = _sums(skin, 12, 12)[8:, 6:][: shape.shape[0], : shape.shape[1]] / 144  # the middle of the oval
    xs = (np.arange(shape.shape[1], dtype=np.float32) + (oval.shape[1] - 1) / 2 - beside) / size[0]
    ys = (np.arange(shape.shape[0], dtype=np.float32) + (oval.shape[0] - 1) / 2 - above - EYES_ABOVE * FACE_PX) / size[1]
    expected = 2.5 * ((xs[None, :] - 0.5) ** 2 + (ys[:, None] - 0.35) ** 2) + 0.16 * np.log(share / 0.36) ** 2
    return pattern + 1.6 * shape + 0.5 * np.sqrt(np.clip(inside, 0, 1)) - expected, xs, ys


@cache
def _templates() -> tuple[Plane, Plane]:
    """Light and dark of a face's features, 20 x 16; an oval of skin, 28 x 24. Drawn by hand, zero mean, unit length."""
    x, y = _template_grid(20, 16)

    def blob(centre_x: float, centre_y: float, width: float, height: float) -> Plane:
        """Two blobs, left and right of the nose, or one on it."""
        sides = {centre_x, -centre_x}
        return sum(np.exp(-(((x - side) / width) ** 2) - ((y - centre_y) / height) ** 2) for side in sorted(sides))  # type: ignore[return-value]

    features = (
        -1.0 * blob(0.22, -0.14, 0.12, 0.07)  # eyes
        - 0.5 * blob(0.24, -0.25, 0.16, 0.05)  # brows
        - 0.45 * blob(0.0, 0.40, 0.2, 0.07)  # mouth
        - 0.3 * blob(0.08, 0.20, 0.05, 0.05)  # nostrils
        - 0.3 * blob(0.55, 0.30, 0.12, 0.4)  # beside the jaw
        + 0.45 * blob(0.0, 0.02, 0.08, 0.20)  # ridge of the nose
        + 0.45 * blob(0.27, 0.10, 0.13, 0.12)  # cheeks
        + 0.35 * blob(0.0, -0.42, 0.35, 0.10)  # forehead
    )
    inside = (x / 0.52) ** 2 + ((y - 0.05) / 0.68) ** 2 < 1
    features = np.where(inside, features - features[inside].mean(), 0)
    x, y = _template_grid(28, 24)
    oval = 1 / (1 + np.exp((np.hypot(x / 0.56, (y - 0.05) / 0.78) - 1) / 0.10))
    oval -= oval.mean()
    return (features / np.linalg.norm(features)).astype(np.float32), (oval / np.linalg.norm(oval)).astype(np.float32)


def _template_grid(height: int, width: int) -> tuple[Plane, Plane]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return (x - (width - 1) / 2) / FACE_PX, (y - (height - 1) / 2) / FACE_PX + EYES_ABOVE


def _skin(rgb: NDArray[np.float32]) -> Plane:
    """How much a colour looks like skin of any tone, 0…1: human skin varies in brightness and hardly in hue."""
    total = rgb.sum(axis=-1) + 1
    red, green = (rgb[..., 0] / total - 0.43) / 0.07, (rgb[..., 1] / total - 0.32) / 0.03
    return np.exp(-0.5 * (red * red + green * green + 0.6 * red * green)) * np.clip((total - 91) / 120, 0, 1)


def _correlation(plane: Plane, template: Plane, floor: float) -> Plane:
    """Normalised correlation at every place; `floor` keeps flat places from being amplified."""
    height, width = template.shape
    shape = plane.shape[0], plane.shape[1]
    product = np.fft.irfft2(np.fft.rfft2(plane) * np.conj(np.fft.rfft2(template, shape)), shape)
    product = product[: shape[0] - height + 1, : shape[1] - width + 1]
    total = _sums(plane, height, width)
    spread = np.sqrt(np.maximum(_sums(plane * plane, height, width) - total * total / template.size, 0))
    return (product / (spread + floor)).astype(np.float32)


def _sums(plane: Plane, height: int, width: int) -> NDArray[np.float64]:
    """Sum over a window at every place where it fits."""
    sums = np.pad(plane.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]


def cut_out(image: Image.Image, face: Face) -> Plane:
    """How much of each pixel is the person, 0…1, shape (height, width).

    Head and shoulders are expected under the face; colours inside and outside correct that, neighbours of like colour agree, and the
    result is fitted to the edges of the full picture.
    """
    scale = min(1.0, MASK_PX / max(image.size))
    small = image.resize(_scaled(image.size, scale), Image.Resampling.BOX)
    rgb = np.asarray(small, dtype=np.float32)
    seen = Face(face.x * scale, face.y * scale, face.width * scale)
    expected = _silhouette(rgb.shape[:2], seen)
    person = expected
    regions = _regions(rgb.shape[:2], seen)
    weights = _likeness(np.asarray(small.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32))
    for _ in range(3):
        likely = _colour_evidence(rgb, person, expected, regions)
        person = _agreed(likely, weights)
    return _fitted(person, image)


def _silhouette(shape: tuple[int, int], face: Face) -> Plane:
    """Chance of being the person by place alone: an oval head with hair, a neck, shoulders, a trunk that goes on downwards."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    x, y = np.abs(x - face.x) / face.width, (y - face.y) / face.width
    head = 1 - np.hypot(x / 0.54, y / np.where(y < 0, 0.85, 0.74))  # hair above, a chin below
    half_width = np.interp(y, [0.4, 0.75, 0.95, 1.5, 2.2, 4.0, 8.0], [0.35, 0.42, 0.75, 1.35, 1.55, 1.5, 1.1]).astype(np.float32)
    trunk = np.where(y > 0.4, (half_width - x) / np.maximum(half_width, 0.6), -1)
    softness = np.where(trunk > head, 0.16, 0.10)  # a head has its shape, arms do what they like
    certain = np.maximum(head - 0.35, np.where(y > 0, 0.25 - x, -1) * (y < 1.2))  # face and neck, whatever their colours
    return 1 / (1 + np.exp(np.clip(-np.maximum(np.maximum(head, trunk) / softness, certain * 60), -30, 30)))


def _regions(shape: tuple[int, int], face: Face) -> tuple[tuple[NDArray[np.int64], int], ...]:
    """Maps of region numbers, each with the steps per colour channel it has pixels enough for: everywhere, a 4 x 4 grid, around the head."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    grid = (y * 4 // shape[0]) * 4 + x * 4 // shape[1]
    head = (np.abs(x - face.x) < 1.25 * face.width) & (np.abs(y - face.y) < 1.35 * face.width)
    return (np.zeros_like(grid), 14), (grid, 10), (head.astype(np.int64), 14)


def _colour_evidence(rgb: NDArray[np.float32], person: Plane, expected: Plane, regions: tuple[tuple[NDArray[np.int64], int], ...]) -> Plane:
    """Chance of being the person by place and colour, where colours are counted within regions: a navy suit before a navy flag."""
    odds = np.zeros_like(person)
    sure, surely_not = np.clip(2.5 * person - 1.5, 0, 1), np.clip(1 - 2.5 * person, 0, 1)
    for region, bins in regions:
        colour = (rgb * (bins / 256)).astype(np.int64)
        index = (colour[..., 0] * bins + colour[..., 1]) * bins + colour[..., 2]
        count = int(region.max()) + 1
        inside = _histogram(index, region, sure, count, bins)
        outside = _histogram(index, region, surely_not, count, bins)
        odds += np.log((inside + 0.3) / (outside + 0.3)).astype(np.float32)
    place = np.log((expected + 1e-3) / (1 - expected + 1e-3)) + 12 * (expected > 0.9999)
    return 1 / (1 + np.exp(-np.clip(0.7 * place + 0.6 * np.clip(odds, -5, 5), -12, 12)))


def _histogram(index: NDArray[np.int64], region: NDArray[np.int64], weight: Plane, regions: int, bins: int) -> NDArray[np.float64]:
    """Weighted count of each pixel's own colour within its region and, for half, its neighbours in colour."""
    counts = np.bincount((region * bins**3 + index).ravel(), weights=weight.ravel(), minlength=regions * bins**3)
    counts = counts.reshape(regions, bins, bins, bins)
    for axis in (1, 2, 3):
        padded = np.pad(counts, [(0, 0) if other != axis else (1, 1) for other in range(4)])
        before, after = np.split(padded, [2], axis=axis)[1], np.split(padded, [bins], axis=axis)[0]
        counts = 0.5 * counts + 0.25 * (before + after)
    return counts.reshape(-1)[region * bins**3 + index]


def _likeness(rgb: NDArray[np.float32]) -> tuple[Plane, Plane]:
    """How much each pixel should agree with its right and its lower neighbour: little across an edge."""
    right = np.abs(np.diff(rgb, axis=1, append=rgb[:, -1:])).sum(axis=-1)
    below = np.abs(np.diff(rgb, axis=0, append=rgb[-1:])).sum(axis=-1)
    contrast = 2 * float(np.mean(right**2 + below**2)) + 1
    return np.exp(-(right**2) / contrast) * 4, np.exp(-(below**2) / contrast) * 4


def _agreed(likely: Plane, weights: tuple[Plane, Plane]) -> Plane:
    """Smoothed within regions of like colour (a random walk with `likely` as its prior, 60 Jacobi steps)."""
    right, below = weights
    right, below = right.copy(), below.copy()
    right[:, -1], below[-1] = 0, 0
    left, above = np.roll(right, 1, axis=1), np.roll(below, 1, axis=0)
    certain = 0.05 + 1.5 * np.abs(likely - 0.5)
    total = certain + left + right + above + below
    person = likely
    for _ in range(60):
        person = (
            certain * likely
            + right * np.roll(person, -1, axis=1)
            + left * np.roll(person, 1, axis=1)
            + below * np.roll(person, -1, axis=0)
            + above * np.roll(person, 1, axis=0)
        ) / total
    return person


def _fitted(person: Plane, image: Image.Image) -> Plane:
    """The small mask at full size, its edge moved to the picture's: a guided filter, https://arxiv.org/abs/1505.00996 (fast variant)."""
    height, width = person.shape
    guide = np.asarray(image.convert("L").resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
    mean_guide, mean_person = _blurred(guide, 2), _blurred(person, 2)
    slope = (_blurred(guide * person, 2) - mean_guide * mean_person) / (_blurred(guide * guide, 2) - mean_guide**2 + 4e-4)
    offset = mean_person - slope * mean_guide
    full = np.asarray(image.convert("L"), dtype=np.float32) / 255
    fitted = _resized(_blurred(slope, 1), image.size) * full + _resized(_blurred(offset, 1), image.size)
    return _smoothstep((fitted - 0.42) / 0.36)


def _blurred(plane: Plane, radius: int) -> Plane:
    padded = np.pad(plane, radius, mode="edge")
    return (_sums(padded, 2 * radius + 1, 2 * radius + 1) / (2 * radius + 1) ** 2).astype(np.float32)


def _resized(plane: Plane, size: tuple[int, int]) -> Plane:
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def _smoothstep(values: Plane) -> Plane:
    values = np.clip(values, 0, 1)
    return values * values * (3 - 2 * values)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
