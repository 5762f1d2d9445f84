"""The proof that a run ended with a LoRA: opened, every layer found in the model, finite, not empty; then marked, hashed and registered.

Needs neither torch nor the model: layer names and sizes of the architectures are written down here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..flywheel import lora
from ..flywheel.errors import LoraError
from ..flywheel.images import storage_error
from ..flywheel.lora_registry import MARK, TRAINED
from .errors import TrainingFailed
from .spec import ARCHITECTURES, Architecture

Sizes = Mapping[str, "tuple[int, int] | None"]  # module to (out, in) features


@dataclass(frozen=True, slots=True)
class LoraRef:
    """A LoRA that was proved to load. `sha256` is of the whole file; `dataset` the key of the data it was trained on."""

    path: Path
    sha256: str
    kind: str
    architecture: str
    rank: int
    instance_token: str
    job: str
    dataset: str
    layers: int

    @property
    def name(self) -> str:
        return self.path.stem

    def __str__(self) -> str:
        return f"{self.path.name}: {self.layers} of {self.layers} layers found in {ARCHITECTURES[self.architecture]}, rank {self.rank}"


def prove(path: Path, architecture: Architecture, sizes: Sizes | None = None) -> lora.Fit:
    """That the file is a LoRA for this architecture which has learnt something. `sizes`: the layers of the very model it is for, where known.

    Raises:
        TrainingFailed: with code garbage or nan, and what is wrong.
    """
    advice = "Look at the log, then train again; if it happens again, choose another engine."
    try:
        fitted = lora.fit(lora.inspect(path), sizes or modules(architecture), ARCHITECTURES[architecture])
    except LoraError as error:
        raise TrainingFailed(
            "garbage", f"The trainer ended, but its file is no LoRA for {ARCHITECTURES[architecture]}: {error}", advice
        ) from error
    learnt = False
    for name, layer, values in _tensors(fitted):
        if not np.isfinite(values).all():
            raise TrainingFailed(
                "nan", f"The LoRA is broken: {layer} holds values that are no numbers.", "Train with a lower learning rate."
            )
        learnt = learnt or (name in ("up", "lokr_w1", "lokr_w1_b", "hada_w1_b") and bool(values.any()))
    if not learnt:
        raise TrainingFailed(
            "garbage",
            f"{path.name} has learnt nothing: it changes no weight at all.",
            "Train for more steps, or with a higher learning rate.",
        )
    return fitted


def alpha(fitted: lora.Fit, rank: int) -> float:
    """The alpha that loaders will apply: the largest in the file, else its rank, which is what a file without alpha means."""
    return max((float(values.max()) for _, _, values in _tensors(fitted, ("alpha",))), default=float(rank))


def _tensors(fitted: lora.Fit, roles: Collection[str] = ()) -> Iterator[tuple[str, str, np.ndarray]]:
    """Role, layer and values of every tensor, or of those of these roles, one at a time. bfloat16 is widened, since numpy has none."""
    header, start = _header(fitted.file.path)
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
    with fitted.file.path.open("rb") as file:
        for layer in fitted.placed.values():
            for role, key in layer.keys.items():
                if roles and role not in roles:
                    continue
                begin, end = header[key]["data_offsets"]
                file.seek(start + begin)
                content = file.read(end - begin)
                if header[key]["dtype"] == "BF16":
                    yield role, layer.name, (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
                elif header[key]["dtype"] in kinds:
                    yield role, layer.name, np.frombuffer(content, kinds[header[key]["dtype"]])


def _header(path: Path) -> tuple[dict, int]:  # type: ignore[type-arg]
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), 8 + length


def marked(path: Path, facts: Mapping[str, str]) -> bytes:
    """The file's bytes with these facts in its metadata; the tensors are copied as they are. What the trainer wrote there itself stays, unless it
    names a place on this machine: a LoRA is given to others.

    Source: https://github.com/huggingface/safetensors#format
    """
    header, start = _header(path)
    own = {name: value for name, value in header.get("__metadata__", {}).items() if not names_a_place(value)}
    header["__metadata__"] = {**own, **{MARK + name: value for name, value in facts.items()}}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text + path.read_bytes()[start:]


_PLACE = re.compile(r"(?<![\w./~\\-])/[^/\s]|(?<![A-Za-z])[A-Za-z]:[\\/]|\\\\[A-Za-z]|~[/\\]|file:/")


def names_a_place(text: str) -> bool:
    """Whether a text holds a full path, of this system or of another; addresses on the web and names such as Qwen/Qwen-Image are none."""
    return bool(_PLACE.search(text))


def register(path: Path, loras: Path, project: str, kind: str, job_id: str) -> Path:
    """Copy a proved file to `<loras>/flenwheel/<project>/<project>-<kind>-v003.safetensors`: the next free number.

    A file of the same job that is there with the same bytes is that copy.

    Raises:
        StorageError: the disk refused.
    """
    folder = loras / TRAINED / project
    content = path.read_bytes()
    for other in _versions(folder, project, kind).values():
        if other.stat().st_size == len(content) and sha256(other) == hashlib.sha256(content).hexdigest():
            return other
    partial = folder / f".{job_id}.{uuid.uuid4().hex[:8]}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        while True:
            number = max(_versions(folder, project, kind), default=0) + 1
            target = folder / f"{project}-{kind}-v{number:03}.safetensors"
            try:
                _name_once(partial, target)
                return target
            except FileExistsError:  # another job was faster
                continue
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _name_once(partial: Path, target: Path) -> None:
    """Give a file its name unless it is taken."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        os.rename(partial, target)


def _versions(folder: Path, project: str, kind: str) -> dict[int, Path]:
    name = re.compile(rf"{re.escape(project)}-{kind}-v(\d+)\.safetensors")
    found = ((name.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
    return {int(match[1]): path for match, path in found if match}


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- the architectures


@cache
def modules(architecture: Architecture) -> Sizes:
    """Every linear layer of an architecture with its (out, in) features, under each name that trainers use for it."""
    if architecture in _FLUX2:
        return {**_flux2_original(*_FLUX2[architecture]), **_flux2_diffusers(*_FLUX2[architecture])}
    return _qwen_image() if architecture == "qwen_image_edit" else {**_flux_original(), **_flux_diffusers()}


_FLUX2: Mapping[str, tuple[int, int, int, int]] = {  # width, width of the text, double blocks, single blocks
    "flux2_klein_4b": (3072, 7680, 5, 20),
    "flux2_klein_9b": (4096, 12288, 8, 24),
    "flux2_dev": (6144, 15360, 8, 48),
}


def _flux_original() -> dict[str, tuple[int, int]]:
    """FLUX.1 as Black Forest Labs names it: 19 double and 38 single blocks, 3072 wide. Source: https://github.com/black-forest-labs/flux"""
    wide, deep = 3072, 4 * 3072
    sizes = {
        "img_in": (wide, 64),
        "txt_in": (wide, 4096),
        "final_layer.linear": (64, wide),
        "final_layer.adaLN_modulation.1": (2 * wide, wide),
    }
    for name, features in (("time_in", 256), ("guidance_in", 256), ("vector_in", 768)):
        sizes |= {f"{name}.in_layer": (wide, features), f"{name}.out_layer": (wide, wide)}
    for block in range(19):
        for stream in ("img", "txt"):
            name = f"double_blocks.{block}.{stream}"
            sizes |= {f"{name}_attn.qkv": (3 * wide, wide), f"{name}_attn.proj": (wide, wide), f"{name}_mod.lin": (6 * wide, wide)}
            sizes |= {f"{name}_mlp.0": (deep, wide), f"{name}_mlp.2": (wide, deep)}
    for block in range(38):
        name = f"single_blocks.{block}"
        sizes |= {
            f"{name}.linear1": (3 * wide + deep, wide),
            f"{name}.linear2": (wide, wide + deep),
            f"{name}.modulation.lin": (3 * wide, wide),
        }
    return sizes


def _flux_diffusers() -> dict[str, tuple[int, int]]:
    """The same as diffusers names and splits it."""
    wide, deep = 3072, 4 * 3072
    sizes = {"x_embedder": (wide, 64), "context_embedder": (wide, 4096), "proj_out": (64, wide), "norm_out.linear": (2 * wide, wide)}
    for name, features in (("timestep", 256), ("guidance", 256), ("text", 768)):
        sizes |= {f"time_text_embed.{name}_embedder.linear_1": (wide, features), f"time_text_embed.{name}_embedder.linear_2": (wide, wide)}
    for block in range(19):
        name = f"transformer_blocks.{block}"
        sizes |= {f"{name}.attn.{part}": (wide, wide) for part in ATTENTION}
        for stream in ("ff", "ff_context"):
            sizes |= {f"{name}.{stream}.net.0.proj": (deep, wide), f"{name}.{stream}.net.2": (wide, deep)}
        sizes |= {f"{name}.norm1.linear": (6 * wide, wide), f"{name}.norm1_context.linear": (6 * wide, wide)}
    for block in range(38):
        name = f"single_transformer_blocks.{block}"
        sizes |= {f"{name}.attn.{part}": (wide, wide) for part in ("to_q", "to_k", "to_v")}
        sizes |= {f"{name}.proj_mlp": (deep, wide), f"{name}.proj_out": (wide, wide + deep), f"{name}.norm.linear": (3 * wide, wide)}
    return sizes


def _flux2_original(wide: int, text: int, double: int, single: int) -> dict[str, tuple[int, int]]:
    """FLUX.2 as Black Forest Labs names it; the MLPs are gated, so their first layer is twice as wide. Source: github.com/black-forest-labs/flux2"""
    deep = 3 * wide
    sizes = {"img_in": (wide, 128), "txt_in": (wide, text), "final_layer.linear": (128, wide)}
    sizes |= {"final_layer.adaLN_modulation.1": (2 * wide, wide), "single_stream_modulation.lin": (3 * wide, wide)}
    for name in ("time_in", "guidance_in"):
        sizes |= {f"{name}.in_layer": (wide, 256), f"{name}.out_layer": (wide, wide)}
    for stream in ("img", "txt"):
        sizes[f"double_stream_modulation_{stream}.lin"] = (6 * wide, wide)
        for block in range(double):
            name = f"double_blocks.{block}.{stream}"
            sizes |= {f"{name}_attn.qkv": (3 * wide, wide), f"{name}_attn.proj": (wide, wide)}
            sizes |= {f"{name}_mlp.0": (2 * deep, wide), f"{name}_mlp.2": (wide, deep)}
    for block in range(single):
        sizes |= {f"single_blocks.{block}.linear1": (3 * wide + 2 * deep, wide), f"single_blocks.{block}.linear2": (wide, wide + deep)}
    return sizes


def _flux2_diffusers(wide: int, text: int, double: int, single: int) -> dict[str, tuple[int, int]]:
    """The same as diffusers' Flux2Transformer2DModel names and splits it."""
    deep = 3 * wide
    sizes = {"x_embedder": (wide, 128), "context_embedder": (wide, text), "proj_out": (128, wide), "norm_out.linear": (2 * wide, wide)}
    sizes["single_stream_modulation.linear"] = (3 * wide, wide)
    for name in ("timestep", "guidance"):
        sizes |= {f"time_guidance_embed.{name}_embedder.linear_{part}": (wide, features) for part, features in ((1, 256), (2, wide))}
    for stream, layers in (("img", "ff"), ("txt", "ff_context")):
        sizes[f"double_stream_modulation_{stream}.linear"] = (6 * wide, wide)
        for block in range(double):
            name = f"transformer_blocks.{block}.{layers}"
            sizes |= {f"{name}.linear_in": (2 * deep, wide), f"{name}.linear_out": (wide, deep)}
    for block in range(double):
        sizes |= {f"transformer_blocks.{block}.attn.{part}": (wide, wide) for part in ATTENTION}
    for block in range(single):
        name = f"single_transformer_blocks.{block}.attn"
        sizes |= {f"{name}.to_qkv_mlp_proj": (3 * wide + 2 * deep, wide), f"{name}.to_out": (wide, wide + deep)}
    return sizes


def _qwen_image() -> dict[str, tuple[int, int]]:
    """Qwen-Image and its edit models: 60 blocks of 14 layers, 3072 wide. Source: diffusers' QwenImageTransformer2DModel"""
    wide, deep = 3072, 4 * 3072
    sizes = {"img_in": (wide, 64), "txt_in": (wide, 3584), "proj_out": (64, wide), "norm_out.linear": (2 * wide, wide)}
    sizes |= {f"time_text_embed.timestep_embedder.linear_{part}": (wide, features) for part, features in ((1, 256), (2, wide))}
    for block in range(60):
        name = f"transformer_blocks.{block}"
        sizes |= {f"{name}.attn.{part}": (wide, wide) for part in ATTENTION}
        for stream in ("img", "txt"):
            sizes |= {f"{name}.{stream}_mlp.net.0.proj": (deep, wide), f"{name}.{stream}_mlp.net.2": (wide, deep)}
            sizes[f"{name}.{stream}_mod.1"] = (6 * wide, wide)
    return sizes


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
