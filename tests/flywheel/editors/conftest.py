"""The tiny Qwen-Image-Edit, built once for all tests that edit with it."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Tiny(NamedTuple):
    folder: Path
    pipeline: Any


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """2509: controls modulated like the image."""
    return _built(tmp_path_factory, zero_cond_t=False)


@pytest.fixture(scope="session")
def tiny_2511(tmp_path_factory) -> Tiny:
    """2511: controls modulated at time zero."""
    return _built(tmp_path_factory, zero_cond_t=True)


def _built(tmp_path_factory: pytest.TempPathFactory, *, zero_cond_t: bool) -> Tiny:
    for name in ("diffusers", "transformers", "peft", "accelerate"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra `diffusers`)")
    import torch

    from . import qwen_tiny

    torch.set_num_threads(1)  # two threads on a busy machine wait for each other most of the time
    folder = tmp_path_factory.mktemp("qwen") / ("tiny_2511" if zero_cond_t else "tiny")
    return Tiny(folder, qwen_tiny.build(folder, zero_cond_t=zero_cond_t))
