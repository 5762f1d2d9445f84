"""Whether the files of a model hold all of it. ComfyUI logs what is missing and computes with whatever memory held in its place.

Told by names alone, and only where the loader left a note of its files and the names are the model's own: a file in another spelling is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_detection

from ..flywheel import qwen
from ..flywheel.editors.qwen.models import header_bytes
from ..flywheel.qwen import EditModel
from . import comfy_words

SHOWN = 5  # names in a message
_ENDS = (".weight", ".bias", ".gamma", ".scale")  # scales of 8 bits have other endings, and other names in older files
_BLOCK = re.compile(r"(\w+)\.(\d+)\.")
_NUMBER = re.compile(r"\.\d+\.")


def lacks_of_model(patcher: Any) -> str:
    """What the file of a MODEL lacks, in words; empty when nothing is known to be missing."""
    stored = _stored(patcher)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(dict.fromkeys(stored))
    own = {name.removeprefix(prefix): None for name in stored if name.startswith(prefix)}
    names = set(patcher.model.model_config.process_unet_state_dict(own or dict.fromkeys(stored)))
    wanted = _weights(patcher.model.diffusion_model)
    return _told(patcher, [*_gaps(names, wanted), *_missing(names, wanted)])


def lacks_of_part(patcher: Any) -> str:
    """The same of a CLIP's or VAE's."""
    stored, wanted = _stored(patcher), _weights(patcher.model)
    ends = {name: list(_ends(name)) for name in wanted}
    named = {name for name in wanted if any(end in stored for end in ends[name])}
    kinds = {_NUMBER.sub(".#.", name) for name in named}  # a text encoder has weights that no file holds; those have no sisters in it
    return _told(patcher, [name for name in _missing(named, wanted) if _NUMBER.sub(".#.", name) in kinds])


def fewer_blocks(diffusion_model: Any, row: EditModel) -> str:
    """What to tell of a model with fewer blocks than its row's of the same width. Not refused: ComfyUI counts blocks in the file, and pruned models exist."""
    kinds = {kind for blocks in row.blocks.values() for kind in blocks}
    return qwen.fewer_blocks(row, diffusion_model.img_in.out_features, {kind: len(getattr(diffusion_model, kind)) for kind in kinds})


def _stored(patcher: Any) -> set[str]:
    """Names of the weights in the files a model was loaded from; none where they are not known, or not .safetensors."""
    return {name for path in _files(patcher) for name in json.loads(header_bytes(path)) if name.endswith(_ENDS)}


def _files(patcher: Any) -> list[Path]:
    return [path for path in comfy_words.files_of(patcher) if path.suffix == ".safetensors"]


def _weights(module: Any) -> set[str]:
    return {name for name, _ in module.named_parameters() if name.endswith(_ENDS)}


def _ends(name: str) -> Iterator[str]:
    """A name and what is left of it when its first words go, as long as there is a number in it."""
    while _NUMBER.search(f".{name}"):
        yield name
        name = name.partition(".")[2]


def _missing(stored: set[str], wanted: set[str]) -> list[str]:
    return sorted(wanted - stored) if len(wanted & stored) > len(wanted) / 2 else []


def _gaps(stored: set[str], wanted: set[str]) -> list[str]:
    """Blocks before those in the file that the model, which ends where a number is left out, has no place for."""
    mine = _counts(wanted)
    return [f"{kind}.{count}" for kind, count in mine.items() if _counts(stored).get(kind, 0) > count]


def _counts(names: Iterable[str]) -> dict[str, int]:
    """Kind of block to its highest number, counted from 1."""
    counts: dict[str, int] = {}
    for found in filter(None, map(_BLOCK.match, names)):
        counts[found[1]] = max(counts.get(found[1], 0), int(found[2]) + 1)
    return counts


def _told(patcher: Any, lost: list[str]) -> str:
    more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
    return f"{_files(patcher)[0].name} lacks {', '.join(lost[:SHOWN])}{more}" if lost else ""
