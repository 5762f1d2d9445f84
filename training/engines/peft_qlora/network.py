"""The LoRA on a frozen transformer: its matrices in fp32, their average, and the file they become."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...errors import TrainingFailed
from .draws import generator

ADAPTER = "learnt"  # PEFT keeps adapters as modules: no name of a module's own attribute, no dots


class Network:
    """LoRA matrices by layer: A (rank, in), B (out, rank). The layer gains B A times `scale`."""

    def __init__(self, transformer: Any, pattern: str, *, rank: int, alpha: float, seed: int, ema: float) -> None:
        from peft import LoraConfig

        scale: Any = alpha  # any number does; peft states a whole one
        transformer.requires_grad_(False)
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=scale, target_modules=pattern), adapter_name=ADAPTER)
        self.scale, self.decay = alpha / rank, ema
        self.matrices: dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
        for name, layer in transformer.named_modules():
            if ADAPTER in getattr(layer, "lora_A", {}):
                pair = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                for matrix in pair:
                    matrix.data = matrix.data.float()  # in bf16 a third of them would never move at these rates
                    matrix.requires_grad_(True)
                self.matrices[name] = pair
        if not self.matrices:
            raise TrainingFailed(
                "weights", "None of the layers to learn was found in the model.", "Choose the model that the settings name."
            )
        self._begin(seed)
        self.average = {name: tuple(matrix.detach().clone() for matrix in pair) for name, pair in self.matrices.items()} if ema else {}

    def _begin(self, seed: int) -> None:
        """A as PEFT draws it, B zero; on the CPU layer by layer, so that a seed means the same everywhere."""
        for name, (down, up) in self.matrices.items():
            bound = 1 / down.shape[1] ** 0.5
            drawn = torch.rand(down.shape, generator=generator(seed, "layer", name))
            down.data.copy_(((drawn * 2 - 1) * bound).to(down.device))
            up.data.zero_()

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [matrix for pair in self.matrices.values() for matrix in pair]

    def learnt(self) -> None:
        """Count the step that was just made into the average."""
        for name, pair in self.average.items():
            for mean, matrix in zip(pair, self.matrices[name], strict=True):
                mean.lerp_(matrix.detach(), 1 - self.decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """While this lasts the average is in use, where one is kept."""
        now = {name: tuple(matrix.data for matrix in self.matrices[name]) for name in self.average}
        self._use(self.average)
        try:
            yield
        finally:
            self._use(now)

    def _use(self, values: Mapping[str, tuple[torch.Tensor, ...]]) -> None:
        for name, pair in values.items():
            for matrix, value in zip(self.matrices[name], pair, strict=True):
                matrix.data = value

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a LoRA file: what is in use now, in bf16, the scale within B, so that it needs no alpha."""
        made: dict[str, torch.Tensor] = {}
        for name, (down, up) in self.matrices.items():
            made[f"transformer.{name}.lora_A.weight"] = down.detach().to("cpu", torch.bfloat16).contiguous()
            made[f"transformer.{name}.lora_B.weight"] = (up.detach() * self.scale).to("cpu", torch.bfloat16).contiguous()
        return made

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint: everything in full."""
        now = {f"lora.{name}.{half}": matrix for name, pair in self.matrices.items() for half, matrix in zip("AB", pair, strict=True)}
        mean = {f"ema.{name}.{half}": matrix for name, pair in self.average.items() for half, matrix in zip("AB", pair, strict=True)}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in {**now, **mean}.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what `state` gave, all of it or nothing.

        Raises:
            KeyError: it is of other layers or another rank.
        """
        kinds = (("lora", self.matrices), ("ema", self.average))
        halves = [
            (matrix, state[f"{kind}.{name}.{half}"], name)
            for kind, pairs in kinds
            for name, pair in pairs.items()
            for half, matrix in zip("AB", pair, strict=True)
        ]
        if odd := [name for matrix, stored, name in halves if stored.shape != matrix.shape]:
            raise KeyError(f"{odd[0]} has another size")
        for matrix, stored, _ in halves:
            matrix.data.copy_(stored)
