"""A transformer put together for a purpose: timestep layers as tables, the rest in the wanted precision, tensor by tensor.

Quantised weights are made once and kept as one file beside the caches; loading them again is a straight read. A fp8 file of ComfyUI keeps its bits
and its scales.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn

from ...errors import EditorUnavailable, StorageError
from ...images import value_key
from . import modulation, quantised
from .models import ModelFolder
from .modulation import Tables
from .tensors import FP8, TensorFiles

Precision = Literal["as stored", "fp8", "int8", "w8a8", "nf4"]
FULL = (
    "img_in",
    "txt_in",
    "x_embedder",
    "context_embedder",
    "proj_out",
    "norm_out",
    "time_text_embed",
)  # small and sensitive: never quantised
ENCODER_FULL = ("visual", "lm_head")
SHOWN = 5  # names in a message
Progress = Callable[[int, int], None]  # done, total; may raise
_PARTS = re.compile(r"\.(?:weight|bias|scale)(?=\.|$)")


def transformer(
    model: ModelFolder,
    tables: Tables,
    *,
    precision: Precision,
    dtype: torch.dtype,
    device: torch.device | str,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[Any, dict[str, tuple[int, int] | None]]:
    """The transformer in evaluation mode, and the sizes of all linear layers it was made with (for fitting LoRAs).

    `cache`: folder in which quantised weights are kept. `progress` counts weights.

    Raises:
        EditorUnavailable: the files are of another model, or of a format that cannot be read truthfully.
    """
    made = _empty(model)
    sizes = sizes_of(made)
    modulation.install(made, tables, device=device)
    fill(made, sizes, model, precision=precision, dtype=dtype, device=device, cache=cache, progress=progress)
    return made.requires_grad_(False).eval(), dict(sizes)


def refuse_lost_weights(model: ModelFolder) -> None:
    """
    Raises:
        EditorUnavailable: the transformer's files lack weights, or hold those of another model; says which.
    """
    _refuse_strangers(_empty(model), TensorFiles(model.files("transformer")), model)


def _empty(model: ModelFolder) -> Any:
    """The transformer without weights."""
    from accelerate import init_empty_weights
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

    config = {
        name: value for name, value in model.config("transformer").items() if not name.startswith("_") and name != "quantization_config"
    }
    with init_empty_weights():
        return QwenImageTransformer2DModel.from_config(config)


def sizes_of(made: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) features of every linear layer."""
    return {name: (layer.out_features, layer.in_features) for name, layer in made.named_modules() if isinstance(layer, nn.Linear)}


def fill(
    made: Any,
    sizes: dict[str, tuple[int, int]],
    model: ModelFolder,
    *,
    precision: Precision,
    dtype: torch.dtype,
    device: torch.device | str,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> None:
    """Put a model's transformer weights into an empty transformer of any family, quantised on the way or read from where they were kept.

    Raises:
        EditorUnavailable: the files are of another model, or of a format that cannot be read truthfully.
    """
    files = TensorFiles(model.files("transformer"))
    _refuse_strangers(made, files, model)
    kept = _kept(model, "transformer", precision, cache)
    if precision == "w8a8":
        quantised.refuse_without_integer_products(device)
    if kept and kept.is_file():
        _restore(made, kept, sizes, precision, dtype, device, progress)
    else:
        _stream(made, files, precision, dtype, device, progress)
        if kept:
            keep(made, kept, {"precision": precision, "model": model.key("transformer")})


def text_encoder(
    model: ModelFolder,
    *,
    precision: Precision,
    dtype: torch.dtype,
    device: torch.device | str,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Any:
    """The text encoder without its vocabulary head. Quantised on the way to `device`, and kept in `cache`; the vision tower stays as it is. One that is
    stored in fewer bits stays as it is stored.

    Raises:
        EditorUnavailable: the files are not whole.
    """
    import transformers
    from accelerate import init_empty_weights

    precision = "as stored" if model.quantised("text_encoder") else precision
    folder = str(model.root / "text_encoder")
    name = (model.config("text_encoder").get("architectures") or ["Qwen2_5_VLForConditionalGeneration"])[0]
    kept = _kept(model, "text_encoder", precision, cache)
    if kept and kept.is_file():
        with init_empty_weights():
            made: Any = getattr(transformers, name)(transformers.AutoConfig.from_pretrained(folder, local_files_only=True))
        made.lm_head = nn.Identity()
        sizes = {path: (layer.out_features, layer.in_features) for path, layer in made.named_modules() if isinstance(layer, nn.Linear)}
        _restore(made, kept, sizes, precision, dtype, device, _share(progress, 0, 3))
    else:
        made = _read_whole(getattr(transformers, name), model, dtype, _share(progress, 0, 3))
        made.lm_head = nn.Identity()
        if precision != "as stored":
            skip = ("model.visual", *ENCODER_FULL)
            quantised.quantise(made, precision, skip=skip, dtype=dtype, device=device, progress=_share(progress, 1, 3))
        if kept:
            keep(made, kept, {"precision": precision, "model": model.key("text_encoder")})
    for layer in made.modules():
        if isinstance(layer, nn.Conv3d) and layer.stride == layer.kernel_size:
            layer.forward = MethodType(_patches, layer)
    return _moved(made.requires_grad_(False).eval(), device, _share(progress, 2, 3))


def _patches(self: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """What the vision tower's convolution makes of (N, C, T, H, W) patches of its own size: a product, which takes a fraction of the time."""
    if x.shape[2:] != self.kernel_size:
        return nn.Conv3d.forward(self, x)
    return nn.functional.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


def _share(progress: Progress, number: int, of: int) -> Progress:
    """Progress of one of several parts of a work, `number` counted from 0."""
    return lambda done, total: progress(number * total + done, of * total)


def _read_whole(kind: Any, model: ModelFolder, dtype: torch.dtype, progress: Progress) -> Any:
    """A text encoder as it is stored, in `dtype`. Read weight by weight here, because transformers listens to nobody while it reads; it puts them where
    they belong, under whatever names the file has and however many bits they are stored in."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(model.root / "text_encoder"), local_files_only=True)
    packed = model.quantised("text_encoder")
    files = TensorFiles(model.files("text_encoder"), raw=packed)
    names = list(files.names())
    read: dict[str, torch.Tensor] = {}
    for count, name in enumerate(names):
        progress(count, len(names))
        tensor = files.raw(name) if packed else files.read(name)
        read[name] = tensor if packed or not tensor.is_floating_point() else tensor.to(dtype)
    progress(len(names), len(names))
    made, told = kind.from_pretrained(None, config=config, state_dict=read, dtype=dtype, output_loading_info=True)
    _refuse_lost(told, model, "text_encoder")
    return made


def _moved(made: Any, device: torch.device | str, progress: Progress) -> Any:
    """To a device, layer by layer."""
    layers = [layer for layer in made.modules() if not any(True for _ in layer.children())]
    for count, layer in enumerate(layers):
        progress(count, len(layers))
        layer.to(device)
    progress(len(layers), len(layers))
    return made.to(device)


def vae(model: ModelFolder, *, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The image encoder and decoder, with single frames computed in 2-D.

    Raises:
        EditorUnavailable: the files are not whole.
    """
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage

    from .latents import single_frame

    kind: Any = AutoencoderKLQwenImage
    made, told = kind.from_pretrained(str(model.root / "vae"), torch_dtype=dtype, local_files_only=True, output_loading_info=True)
    _refuse_lost(told, model, "vae")
    single_frame(made)
    return made.requires_grad_(False).eval().to(device)


def processor(model: ModelFolder) -> Any:
    """Tokenizer and picture processor of the text encoder."""
    from transformers import Qwen2VLProcessor

    return Qwen2VLProcessor.from_pretrained(str(model.root / "processor"), local_files_only=True)


def _refuse_strangers(made: Any, files: TensorFiles, model: ModelFolder) -> None:
    wanted = {name for name, _ in made.named_parameters()}
    stored = set(files.names())
    if lost := sorted(wanted - stored):
        raise EditorUnavailable(
            f"{_called(model)} lacks {len(lost)} of {len(wanted)} weights that the model's config.json asks for: {_some(lost)}."
            " It belongs to another model, or the download is not whole."
        )
    if odd := sorted(name for name in stored - wanted if not modulation.belongs(name.rpartition(".")[0])):
        raise EditorUnavailable(
            f"{_called(model)} holds weights that this model does not have, for example {odd[0]}: it belongs to another model."
        )


def _refuse_lost(told: Mapping[str, Any], model: ModelFolder, part: str) -> None:
    """The libraries only warn of weights that are missing, and fill them with noise."""
    if lost := sorted(name for name in told["missing_keys"] if not name.startswith("lm_head")):
        raise EditorUnavailable(
            f"{model.root.name}/{part} lacks {len(lost)} weights that its config.json asks for: {_some(lost)}."
            " It belongs to another model, or the download is not whole."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _called(model: ModelFolder) -> str:
    return model.transformer_file.name if model.transformer_file else f"{model.root.name}/transformer"


def _stream(made: Any, files: TensorFiles, precision: Precision, dtype: torch.dtype, device: Any, progress: Progress) -> None:
    layers = {name: layer for name, layer in made.named_modules() if isinstance(layer, nn.Linear)}
    names = [name for name, _ in made.named_parameters()]
    own = precision != "as stored"  # a view would keep the whole file in memory, which was read to quantise it
    for count, name in enumerate(names):
        progress(count, len(names))
        owner, _, last = name.rpartition(".")
        if last == "bias" and owner in layers and f"{owner}.weight" in files and _quantised_owner(files, owner, layers[owner], precision):
            continue  # goes with its weight
        if last == "weight" and owner in layers and _quantised_owner(files, owner, layers[owner], precision):
            bias = files.read(f"{owner}.bias").to(device, dtype, copy=own) if f"{owner}.bias" in files else None
            _put(made, owner, _layer(files, owner, bias, precision, dtype, device))
            continue
        made.get_submodule(owner)._parameters[last] = nn.Parameter(files.read(name).to(device, dtype, copy=own), requires_grad=False)
    progress(len(names), len(names))


def _quantised_owner(files: TensorFiles, owner: str, layer: nn.Linear, precision: Precision) -> bool:
    if owner.startswith(FULL):
        return False
    if precision == "as stored":
        return files.dtype(f"{owner}.weight") in FP8
    return quantised.fits(layer.in_features, precision)


def _layer(files: TensorFiles, owner: str, bias: torch.Tensor | None, precision: Precision, dtype: torch.dtype, device: Any) -> nn.Module:
    raw, scale = files.raw(f"{owner}.weight"), files.scale(f"{owner}.weight")
    if raw.dtype == torch.float8_e4m3fn and precision in ("as stored", "fp8"):
        one = scale if scale is not None else torch.ones(1)
        bias = bias.to(device, dtype) if bias is not None else None
        return quantised.ScaledLinear(raw.to(device), one.to(device), bias, "fp8")
    kind = "fp8" if precision == "as stored" else precision
    return quantised.linear(files.read(f"{owner}.weight"), bias, kind, dtype=dtype, device=device)


def _put(made: Any, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(made.get_submodule(parent), last, layer)


# --- made once --------------------------------------------------------------------------------------------------------------------------


def _kept(model: ModelFolder, part: str, precision: Precision, cache: Path | None) -> Path | None:
    if cache is None or precision == "as stored":
        return None
    precision = "int8" if precision == "w8a8" else precision  # the same weights
    what = f"{model.root.name}-{precision}" if part == "transformer" else f"{model.root.name}-{part}-{precision}"
    return cache / "quantised" / f"{what}-{value_key([model.key(part), precision])}.safetensors"


def keep(made: Any, path: Path, facts: dict[str, str]) -> None:
    """Write the weights as they are now, whole or not at all.

    Raises:
        StorageError: the disk refused.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous().cpu() for name, tensor in made.state_dict().items()}, partial, metadata=facts)
        partial.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the disk said
        partial.unlink(missing_ok=True)
        raise StorageError(f"The quantised weights could not be kept in {path.parent} ({error}). Free some space there.") from error


def _restore(made: Any, path: Path, sizes: Any, precision: Any, dtype: torch.dtype, device: Any, progress: Progress) -> None:
    files = TensorFiles([path], raw=True)
    grouped: dict[str, list[str]] = {}
    for name in files.names():
        grouped.setdefault(_PARTS.split(name)[0], []).append(name)
    for count, (owner, names) in enumerate(grouped.items()):
        progress(count, len(grouped))
        stored = {name.removeprefix(f"{owner}."): files.raw(name) for name in names}
        if stored.get("weight", torch.empty(0)).dtype in (torch.uint8, torch.int8):
            _put(made, owner, quantised.restored(stored, precision, sizes[owner], dtype=dtype, device=device))
        else:
            for last, tensor in stored.items():
                made.get_submodule(owner)._parameters[last] = nn.Parameter(tensor.to(device, dtype), requires_grad=False)
    progress(len(grouped), len(grouped))
