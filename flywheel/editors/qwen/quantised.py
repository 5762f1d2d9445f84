"""Linear layers in 8 and 4 bits. They are stored small and computed in the type of what comes in, so LoRAs on them stay exact.

8 bits (`fp8`, `int8`) need nothing but torch: a number per weight and a scale per row. 4 bits (`nf4`, doubly quantised) are bitsandbytes'. `w8a8` has
the weights of `int8` and rounds what comes in too, token by token, so that the products are integers, which cards compute twice as fast as bf16.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import EditorUnavailable

Kind = Literal["fp8", "int8", "w8a8", "nf4"]
BYTES: dict[str, float] = {"fp8": 1.0, "int8": 1.0, "w8a8": 1.0, "nf4": 0.516}  # per weight, scales included
_TOP = {"fp8": 448.0, "int8": 127.0, "w8a8": 127.0}  # the largest number of each
_ROWS = 2048  # tokens whose integer products are held at once: 32 bits each, four times a bf16 result with its scaling
_ROWS_LEAST = 32  # CUDA's integer product takes no fewer than 17
NF4_BLOCK = 64


class ScaledLinear(nn.Linear):
    """8-bit weights (out, in) times a scale per row or one for all. The bits are kept as integers, so that PEFT makes its layers in full precision."""

    def __init__(self, bits: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, kind: str) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features, self.kind = *bits.shape, kind
        self.weight = nn.Parameter(bits.view(torch.uint8) if kind == "fp8" else bits, requires_grad=False)
        self.register_parameter("bias", nn.Parameter(bias, requires_grad=False) if bias is not None else None)
        self.register_buffer("scale", scale.float().reshape(-1, 1))

    def full(self, dtype: torch.dtype) -> torch.Tensor:
        bits = self.weight.view(torch.float8_e4m3fn) if self.kind == "fp8" else self.weight
        return bits.to(dtype) * self.get_buffer("scale").to(dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = self._parameters.get("bias")
        bias = bias.to(input.dtype) if bias is not None else None
        if self.kind != "w8a8":
            return F.linear(input, self.full(input.dtype), bias)
        rows = input.reshape(-1, self.in_features).split(_ROWS)
        made = torch.cat([self._product(some) for some in rows]).reshape(*input.shape[:-1], self.out_features)
        return made + bias if bias is not None else made

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, in) to (N, out) in its type, through integers of 8 bits: each row is divided by its largest number and rounded."""
        per_row = (rows.abs().amax(dim=1, keepdim=True).float() / _TOP["w8a8"]).clamp(min=1e-12)
        bits = F.pad((rows / per_row).round().to(torch.int8), (0, 0, 0, max(0, _ROWS_LEAST - len(rows))))
        made = torch._int_mm(bits, self.weight.t())[: len(rows)]  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return (made * (per_row * self.get_buffer("scale").reshape(1, -1))).to(rows.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        scale = self.get_buffer("scale")
        done = super()._apply(fn, recurse)
        self.register_buffer("scale", scale.to(self.get_buffer("scale").device))  # follows to a device, never to another type
        return done


def eight_bits(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits and scale per row of a weight (out, in)."""
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / _TOP[kind]).clamp(min=1e-12)
    numbers = weight.float() / scale
    return (numbers.to(torch.float8_e4m3fn) if kind == "fp8" else numbers.round().to(torch.int8)), scale


def linear(weight: torch.Tensor, bias: torch.Tensor | None, kind: Kind, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """A quantised layer from full weights, made on `device`.

    Raises:
        EditorUnavailable: bitsandbytes is not installed (nf4).
    """
    weight, bias = weight.to(device), bias.to(device, dtype) if bias is not None else None
    if kind != "nf4":
        return ScaledLinear(*eight_bits(weight, kind), bias, kind)
    bnb = bitsandbytes()
    made = _empty_4bit(bnb, weight.shape, bias, dtype)
    made.weight = bnb.nn.Params4bit(
        weight.to(dtype).contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True, blocksize=NF4_BLOCK, module=made
    )._quantize(device)
    return made


def restored(stored: Mapping[str, torch.Tensor], kind: Kind, shape: tuple[int, int], *, dtype: torch.dtype, device: Any) -> nn.Module:
    """A quantised layer from what its state_dict held."""
    bias = stored["bias"].to(device, dtype) if "bias" in stored else None
    if kind != "nf4":
        bits = stored["weight"].to(device)
        return ScaledLinear(bits.view(torch.float8_e4m3fn) if kind == "fp8" else bits, stored["scale"].to(device), bias, kind)
    bnb = bitsandbytes()
    made = _empty_4bit(bnb, shape, bias, dtype)
    state = {f"weight.{name}": tensor for name, tensor in _within(stored, "weight.")}
    made.weight = bnb.nn.Params4bit.from_prequantized(stored["weight"], state, requires_grad=False, device=device, module=made)
    return made


def _empty_4bit(bnb: Any, shape: Sequence[int], bias: torch.Tensor | None, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        made = bnb.nn.Linear4bit(shape[1], shape[0], bias=bias is not None, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
    made.bias = nn.Parameter(bias, requires_grad=False) if bias is not None else None
    made.support_avx512bf16_for_cpu = False  # 0.50 repacks the weights at the first inference on such a CPU; training then fails
    return made


def _within(stored: Mapping[str, torch.Tensor], prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in stored.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor


def quantise(
    root: nn.Module,
    kind: Kind,
    *,
    skip: Sequence[str] = (),
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:
    """Replace the linear layers below `root` in place, except those whose name starts with one of `skip`; returns how many."""
    chosen = [
        (name, module)
        for name, module in root.named_modules()
        if type(module) is nn.Linear and not name.startswith(tuple(skip)) and fits(module.in_features, kind)
    ]
    for done, (name, module) in enumerate(chosen):
        progress(done, len(chosen))
        parent, _, last = name.rpartition(".")
        bias = dict(module.named_parameters(recurse=False)).get("bias")
        setattr(
            root.get_submodule(parent),
            last,
            linear(module.weight.data, bias.data if bias is not None else None, kind, dtype=dtype, device=device),
        )
    return len(chosen)


def fits(in_features: int, kind: Kind) -> bool:
    return kind != "nf4" or in_features % NF4_BLOCK == 0


def refuse_without_integer_products(device: torch.device | str) -> None:
    """
    Raises:
        EditorUnavailable: torch cannot multiply 8-bit integers on this device, or does it wrongly.
    """
    one = torch.arange(32 * 64, device=device).remainder(251).sub(125).to(torch.int8).reshape(32, 64)
    try:
        right = torch.equal(torch._int_mm(one, one.t()).cpu(), one.cpu().int() @ one.cpu().int().t())  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    except (RuntimeError, NotImplementedError) as error:
        raise EditorUnavailable(
            f"w8a8 needs products of 8-bit integers, which {device} does not offer ({error}). Choose int8 or fp8."
        ) from error
    if not right:
        raise EditorUnavailable(f"The products of 8-bit integers on {device} are wrong, so w8a8 cannot be used. Choose int8 or fp8.")


def kinds(root: nn.Module) -> set[str]:
    """The quantised kinds that occur below a module."""
    found = {module.kind for module in root.modules() if isinstance(module, ScaledLinear)}
    return found | ({"nf4"} if any(type(module).__name__ == "Linear4bit" for module in root.modules()) else set())


def bitsandbytes() -> Any:
    """
    Raises:
        EditorUnavailable: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EditorUnavailable(
            "4-bit weights (nf4) need bitsandbytes, which is not installed. Install it into ComfyUI's Python with"
            " `python -m pip install bitsandbytes`, or choose fp8 or int8, which need nothing more."
        )
    import bitsandbytes as bnb

    return bnb
