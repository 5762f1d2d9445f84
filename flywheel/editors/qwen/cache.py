"""Tensors kept on disk by what they were made from: embeddings, control latents, modulation tables. Delete the folder at will."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ...images import write_whole

log = logging.getLogger("flenwheel")
MOST_BYTES = 10 * 2**30  # on disk: 20 photos of different shapes with 40 steps each come to 4 GiB of tables, 100 prompts each to 5 of words
HELD = 64  # entries that stay in memory: a batch asks for the same photograph's again and again

Tensors = dict[str, torch.Tensor]


class TensorCache:
    """`folder` None keeps nothing beyond this session."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.made = self.found = 0
        self._held: OrderedDict[str, Tensors] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._held or (self.folder is not None and self._path(key).is_file())

    def get(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        """What was made under this key before, or what `make` makes now. On the CPU.

        Raises:
            StorageError: the disk refused.
        """
        if key not in self._held:
            self.put(key, self._read(key) or self._made(make))
        self._held.move_to_end(key)
        return self._held[key]

    def put(self, key: str, tensors: Tensors) -> None:
        self._held[key] = tensors
        if self.folder is not None and not self._path(key).is_file():
            from safetensors.torch import save

            write_whole(self._path(key), save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        while self.folder is not None and len(self._held) > HELD:
            self._held.popitem(last=False)

    def _made(self, make: Callable[[], Tensors]) -> Tensors:
        self.made += 1
        return {name: tensor.detach().cpu() for name, tensor in make().items()}

    def _read(self, key: str) -> Tensors | None:
        if self.folder is None or not self._path(key).is_file():
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(self._path(key))
        except (SafetensorError, OSError) as error:
            log.warning("%s in the cache is damaged (%s) and is made again.", self._path(key).name, error)
            self._path(key).unlink(missing_ok=True)
            return None
        self.found += 1
        with contextlib.suppress(OSError):
            os.utime(self._path(key))  # used now: `trim` takes others first
        return tensors

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"


def trim(caches: Sequence[TensorCache], most_bytes: int) -> None:
    """Delete from the disk what was not used for longest, until these caches together hold no more than `most_bytes`."""
    found = [(path.stat(), path) for cache in caches if cache.folder for path in cache.folder.glob("*.safetensors")]
    kept = 0
    for stat, path in sorted(found, key=lambda one: one[0].st_mtime_ns, reverse=True):
        kept += stat.st_size
        if kept > most_bytes:
            with contextlib.suppress(OSError):  # another ComfyUI reads it or was faster
                path.unlink()
