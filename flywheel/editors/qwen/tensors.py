"""Stored tensors by name, from a folder's files or a single ComfyUI file, with fp8 scales applied. Holds nothing in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ...errors import EditorUnavailable
from .models import TIMESTEP_ZERO

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
SCALES = ("scale_weight", "weight_scale")  # ComfyUI's older and newer name of what an fp8 weight is multiplied with
IGNORED = ("scale_input", "input_scale", "comfy_quant")  # for computing in fp8 itself, which is not done here
MARKS = ("scaled_fp8", TIMESTEP_ZERO)  # empty tensors that say something of the whole file
FP8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})


class TensorFiles:
    """The weights of one part. Names are the model's own; a prefix such as ComfyUI's is taken off. `raw`: whoever asks knows how they are
    stored, and reads nothing but `raw`."""

    def __init__(self, paths: list[Path], *, raw: bool = False) -> None:
        self._where: dict[str, tuple[Any, str]] = {}
        self._raw = raw
        for path in paths:
            file = safe_open(path, framework="pt")
            stored = list(file.keys())
            prefix = next((one for one in PREFIXES if stored and all(name.startswith(one) or name in MARKS for name in stored)), "")
            self._where |= {name.removeprefix(prefix): (file, name) for name in stored}
        if not raw:
            self._refuse_unknown(paths)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> Iterator[str]:
        """Of the weights and biases themselves; of `raw` files, of everything."""
        for name in self._where:
            if self._raw or name.rpartition(".")[2] not in (*SCALES, *IGNORED, *MARKS):
                yield name

    def dtype(self, name: str) -> torch.dtype:
        return self.raw(name).dtype

    def raw(self, name: str) -> torch.Tensor:
        """As it is stored.

        Raises:
            EditorUnavailable: it is not in the files.
        """
        if name not in self._where:
            raise EditorUnavailable(f"The weight {name} is not in the transformer's files; they belong to another model.")
        file, stored = self._where[name]
        return file.get_tensor(stored)

    def scale(self, name: str) -> torch.Tensor | None:
        """What a stored fp8 weight is to be multiplied with, fp32."""
        owner = name.removesuffix(".weight")
        found = next((f"{owner}.{scale}" for scale in SCALES if name.endswith(".weight") and f"{owner}.{scale}" in self._where), None)
        return self.raw(found).float() if found else None

    def read(self, name: str) -> torch.Tensor:
        """A weight as numbers: an fp8 one times its scale."""
        tensor, scale = self.raw(name), self.scale(name)
        if tensor.dtype in FP8:
            tensor = tensor.float()
        return tensor * scale if scale is not None else tensor

    def _refuse_unknown(self, paths: list[Path]) -> None:
        """ComfyUI marks layers in formats of its own; one that is not understood must not be read as if it were."""
        for name in self._where:
            if name.endswith(".comfy_quant"):
                told = json.loads(bytes(self.raw(name).tolist()))
                if told.get("format") != "float8_e4m3fn":
                    raise EditorUnavailable(
                        f"{paths[0].name} holds weights in ComfyUI's format {told.get('format')!r}, which only the ComfyUI models editor reads."
                        " Use that one, or a bf16 or fp8 file."
                    )
        packed = [name for name in self.names() if self._where[name][0].get_slice(self._where[name][1]).get_dtype() in ("U8", "I8")]
        if packed:
            raise EditorUnavailable(
                f"{paths[0].name} holds packed weights ({packed[0]}) in a format that is not known here. Use a bf16 or fp8 file, or the ComfyUI"
                " models editor with the loader that belongs to it."
            )
