"""LoRA stacks on a transformer through PEFT: every combination is one adapter, made once and switched to by name.

A and B of the members are laid side by side (B times its weight), which equals stacking them and costs one adapter's time. Nothing is ever fused:
merging into a quantised base and back destroys it (measured: after ten times the base is off by more than itself). What touches layers that see only
the timestep is folded into the modulation tables.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ... import lora
from ...errors import EditorError, LoraError
from ...images import value_key
from ..qwen import modulation
from .modulation import Fold, Pair

KEPT = 4  # combinations that stay loaded: 0.2 to 0.6 GiB each
Weights = Mapping[str, Pair]


def read(stacked: lora.StackedLora, modules: Mapping[str, tuple[int, int] | None], model: str) -> dict[str, Pair]:
    """A LoRA's weights by the model's own layer names, alpha already in B.

    Raises:
        LoraError: it fits another model, or is of a kind that cannot be stacked here; names the first reason.
    """
    pairs: dict[str, Pair] = {}
    for target, layer, tensors in lora.parts(lora.fit(lora.inspect(stacked.path), modules, model)):
        pairs[target] = _pair(stacked.path.name, layer, tensors)
    return pairs


def _pair(name: str, layer: lora.LoraLayer, tensors: Mapping[str, torch.Tensor]) -> Pair:
    if "dora_scale" in tensors or layer.kind not in ("lora", "lokr") or any(role in tensors for role in ("mid", "lokr_t2", "diff_b")):
        what = "DoRA" if "dora_scale" in tensors else {"loha": "LoHa", "diff": "full weights"}.get(layer.kind, "convolutions")
        raise LoraError(
            f"{name} holds {what} ({layer.name}), which the diffusers editor cannot stack. Use it with the ComfyUI models editor."
        )
    if layer.kind == "lora":
        down, up = tensors["down"].float(), tensors["up"].float()
        return down, up * (float(tensors["alpha"]) / len(down) if "alpha" in tensors else 1.0)
    return _kronecker(name, layer, tensors)


def _kronecker(name: str, layer: lora.LoraLayer, tensors: Mapping[str, torch.Tensor]) -> Pair:
    """kron(w1, a b) is kron(w1, a) kron(1, b): still of low rank, so exact. A full second factor is not."""
    if "lokr_w2_a" not in tensors:
        raise LoraError(
            f"{name} is a LoKr whose second factor is stored in full ({layer.name}): as a LoRA it would be as large as the model."
            " Use it with the ComfyUI models editor."
        )
    left, right = tensors["lokr_w2_a"].float(), tensors["lokr_w2_b"].float()
    first = tensors["lokr_w1"].float() if "lokr_w1" in tensors else tensors["lokr_w1_a"].float() @ tensors["lokr_w1_b"].float()
    scale = float(tensors["alpha"]) / len(right) if "alpha" in tensors else 1.0
    return torch.kron(torch.eye(first.shape[1]), right), torch.kron(first, left) * scale


def beside(stack: Sequence[tuple[Weights, float]]) -> dict[str, Pair]:
    """One adapter that does what all of them do at these weights."""
    joined: dict[str, Pair] = {}
    for module in dict.fromkeys(module for weights, _ in stack for module in weights):
        members = [(weights[module], weight) for weights, weight in stack if module in weights]
        joined[module] = (torch.cat([down for (down, _), _ in members]), torch.cat([up * weight for (_, up), weight in members], dim=1))
    return joined


class Adapters:
    """The combinations of one transformer. `tables` answers with modulation rows for the folds it is given."""

    def __init__(self, transformer: Any, modules: Mapping[str, tuple[int, int] | None], model: str) -> None:
        self.transformer, self.modules, self.model = transformer, modules, model
        self.switches = 0
        self.folds: tuple[Fold, ...] = ()
        self._loaded: OrderedDict[str, tuple[Fold, ...]] = OrderedDict()
        self._injected: set[str] = set()
        self._files: dict[str, dict[str, Pair]] = {}
        self._active: str | None = ""

    def use(self, combination: Sequence[lora.StackedLora], on_folds: Callable[[], None] | None = None) -> None:
        """Make this combination the active one; an empty one is the bare model, bit for bit.

        `on_folds` is called whenever `folds`, which belong into the modulation tables, have changed.
        """
        wanted = [one for one in combination if one.weight]
        name = "c_" + value_key([[one.key, one.weight] for one in wanted]) if wanted else ""
        if name == self._active:
            return
        before, self._active = self.folds, None  # unknown, should anything below fail
        self.folds = self._load(name, wanted) if name else ()
        if name in self._injected:
            self.transformer.set_adapters([name], [1.0])
            self.transformer.enable_adapters()
        elif self._injected:
            self.transformer.disable_adapters()
        if on_folds and (self.folds or before):
            on_folds()
        self._active = name
        self.switches += 1

    def _load(self, name: str, stack: Sequence[lora.StackedLora]) -> tuple[Fold, ...]:
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        while len(self._loaded) >= KEPT:
            old, _ = self._loaded.popitem(last=False)
            if old in self._injected:
                self.transformer.delete_adapters(old)
                self._injected.discard(old)
        joined = beside([(self._read(one), one.weight) for one in stack])
        timed = {module: pair for module, pair in joined.items() if modulation.belongs(module)}
        rest = {module: pair for module, pair in joined.items() if module not in timed}
        if rest:
            inject(self.transformer, rest, name)
            self._injected.add(name)
        self._loaded[name] = ((timed, 1.0),) if timed else ()
        return self._loaded[name]

    def _read(self, stacked: lora.StackedLora) -> dict[str, Pair]:
        if stacked.key not in self._files:
            self._files[stacked.key] = read(stacked, self.modules, self.model)
        return self._files[stacked.key]


def inject(transformer: Any, weights: Weights, name: str) -> None:
    """Load weights as a PEFT adapter of scale 1, active. Every layer must exist.

    Raises:
        EditorError: PEFT placed other layers than were given.
    """
    state = {
        f"{module}.lora_{half}.weight": matrix.contiguous()
        for module, pair in weights.items()
        for half, matrix in zip("AB", pair, strict=True)
    }
    transformer.load_lora_adapter(state, prefix=None, adapter_name=name)
    placed = {module for module, layer in transformer.named_modules() if name in getattr(layer, "lora_A", {})}
    if placed != set(weights):
        odd = sorted(placed ^ set(weights))
        raise EditorError(
            f"PEFT placed {len(placed & set(weights))} of {len(weights)} LoRA layers (for example not {odd[0]}), so the LoRA was not used."
            " Update peft and diffusers, or use the ComfyUI models editor."
        )


def refuse_fusing(transformer: Any) -> None:
    """
    Raises:
        EditorError: the base is quantised; merging would round the LoRA away and could never be undone.
    """
    from .quantised import kinds

    if found := kinds(transformer):
        raise EditorError(
            f"A LoRA is not fused into a {'/'.join(sorted(found))} base: rounding would lose most of it, and taking it out again would damage the"
            " model. Keep it in the LoRA stack, or fuse it into the bf16 model before that is quantised."
        )


@torch.no_grad()
def fuse(transformer: Any, weights: Weights, weight: float = 1.0) -> None:
    """Merge a LoRA for good into a full-precision transformer, for example Lightning before quantising.

    Raises:
        EditorError: the base is quantised.
    """
    refuse_fusing(transformer)
    for module, (down, up) in weights.items():
        base = transformer.get_submodule(module).weight
        base += (weight * up.to(base.device) @ down.to(base.device)).to(base.dtype)
