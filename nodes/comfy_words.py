"""What ComfyUI's text encoders and VAEs made of prompts and photos, kept on disk under the names of the files they were loaded from.

A model that ComfyUI has loaded does not say what its weights are, but ComfyUI's own loaders leave a note of the files it could be loaded from again.
Of a loader that leaves none but whose every widget is known (ComfyUI-GGUF's for text encoders), the graph tells. Where neither does, or the weights are
patched, nothing is kept: a conditioning of another text encoder would make wrong pictures silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfyui_version
import folder_paths
import torch

from ..flywheel.images import value_key

_PATCHES = ("patches", "hook_patches", "weight_wrapper_patches", "additional_models", "injections", "forced_hooks")
_NONE = ".none"
TOLD_BY_GRAPH = frozenset({"CLIPLoaderGGUF", "DualCLIPLoaderGGUF"})  # their widgets are file names and the type, nothing else


@dataclass(frozen=True, slots=True)
class Loader:
    """What loads a part, and everything it was given: paths of files, options by name, in one row."""

    name: str
    given: tuple[Any, ...]

    @property
    def files(self) -> list[Path]:
        return [path for path in (Path(one) for one in self.given if isinstance(one, str)) if path.is_file()]


class Unnamed(Exception):
    """The weights of a text encoder or VAE have no name that outlasts this process; says why."""


def loader_above(dynprompt: Any, node_id: Any, socket: str) -> Loader | None:
    """The loader that a CLIP socket of a node links to, where the graph tells all about it; None where it does not."""
    link = dynprompt.get_node(node_id)["inputs"].get(socket)
    if not (isinstance(link, list) and dynprompt.has_node(link[0])):
        return None
    node = dynprompt.get_node(link[0])
    if node["class_type"] not in TOLD_BY_GRAPH or any(isinstance(value, list) for value in node["inputs"].values()):
        return None
    given = {
        name: folder_paths.get_full_path("clip", value) if name.startswith("clip_name") else value for name, value in node["inputs"].items()
    }
    return Loader(node["class_type"], tuple(_flat(given)))


def name_of(part: Any, loader: Loader | None = None) -> str:
    """A name for the weights of a CLIP or VAE and for the way they are used: files with size and time, options, layer, device, ComfyUI's version.

    Raises:
        Unnamed: they have none.
    """
    patcher = part.patcher
    if patched(patcher) or getattr(part, "apply_hooks_to_conds", None):
        raise Unnamed("something is patched")
    loader = _noted(patcher) or loader
    if not loader or not loader.files:
        raise Unnamed("the loader does not say from which file it comes")
    options = [str(one) for one in loader.given if not Path(str(one)).exists()]  # folders change nothing
    if any(re.search(r" at 0x[0-9a-f]+", one) for one in options):
        raise Unnamed("the options it was loaded with have no name")
    model = patcher.model
    return value_key(
        {
            "loader": loader.name,
            "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in loader.files],
            "options": options,
            "class": type(model).__qualname__,
            "types": [sorted({str(weight.dtype) for weight in model.parameters()}), str(patcher.object_patches)],
            "used": [str(getattr(part, name, None)) for name in ("layer_idx", "use_clip_schedule", "tokenizer_options", "vae_dtype")],
            "device": str(patcher.load_device),
            "comfyui": comfyui_version.__version__,
        }
    )


def files_of(patcher: Any) -> list[Path]:
    """The files a model was loaded from, as ComfyUI's loaders note them; none where there is no note."""
    loader = _noted(patcher)
    return loader.files if loader else []


def _noted(patcher: Any) -> Loader | None:
    """The function that loads a model again and what it is given, of which ComfyUI's loaders leave a note."""
    note = getattr(patcher, "cached_patcher_init", None)
    return Loader(note[0].__qualname__, tuple(_flat(note[1]))) if note else None


def patched(patcher: Any) -> bool:
    """Whether anybody has changed what it computes. The type to compute in is such a patch too, and ComfyUI's own."""
    objects = [value for value in patcher.object_patches.values() if not isinstance(value, torch.dtype)]
    hung = [hook for kind in (patcher.wrappers, patcher.callbacks) for group in kind.values() for hook in group.values() if hook]
    return bool(objects or hung or any(patcher.model_options.values()) or any(getattr(patcher, kind, None) for kind in _PATCHES))


def _flat(given: Any) -> Iterator[Any]:
    """Every plain value in a loader's arguments, names of options among them."""
    if isinstance(given, dict):
        for name in sorted(given):
            yield from (f"{name}=", *_flat(given[name]))
    elif isinstance(given, (list, tuple)):
        for one in given:
            yield from _flat(one)
    else:
        yield given


def packed(conditioning: Any) -> dict[str, torch.Tensor]:
    """A conditioning, (text states (1, T, D), values) for each of its parts, as tensors by name.

    Raises:
        Unnamed: it holds something else than tensors.
    """
    named: dict[str, torch.Tensor] = {}
    for place, (states, values) in enumerate(conditioning):
        for name, value in {"": states, **values}.items():
            if not (value is None or isinstance(value, torch.Tensor)):
                raise Unnamed(f"the conditioning holds {name}, which is no tensor")
            named[f"{place}:{name}" + (_NONE if value is None else "")] = torch.empty(0) if value is None else value.clone()
    return named


def unpacked(named: dict[str, torch.Tensor]) -> list[list[Any]]:
    """The reverse of `packed`."""
    parts: dict[int, dict[str, Any]] = {}
    for stored, tensor in named.items():
        place, _, name = stored.partition(":")
        parts.setdefault(int(place), {})[name.removesuffix(_NONE)] = None if name.endswith(_NONE) else tensor
    return [[parts[place].pop(""), parts[place]] for place in sorted(parts)]
