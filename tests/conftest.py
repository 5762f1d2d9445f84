"""Gives the pack its name outside ComfyUI, so that tests import it as `comfyui_flenwheel` from any working directory."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = "comfyui_flenwheel"

if PACK not in sys.modules:
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)

from comfyui_flenwheel.nodes.launch import Server  # noqa: E402 - only now has the pack its name


@pytest.fixture(scope="session")
def photos() -> Path:
    """The public-domain portraits that set-up has fetched: several of one man, one of another."""
    folder = os.environ.get("FLEN_PHOTOS")
    if not folder:
        pytest.skip("FLEN_PHOTOS names no folder with the demo portraits; `python flen.py test` fetches them")
    return Path(folder)


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The real ComfyUI that set-up has fetched."""
    folder = os.environ.get("FLEN_COMFYUI")
    if not folder:
        pytest.skip("FLEN_COMFYUI names no ComfyUI; `python flen.py test` fetches one")
    return Path(folder)


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One ComfyUI for all tests that do not kill it. It would forget results where less than a tenth of the memory is free, whoever holds it."""
    with Server(comfyui, Path(sys.executable), tmp_path_factory.mktemp("comfyui"), extra_args=["--cache-ram", "0.2"]) as running:
        yield running
