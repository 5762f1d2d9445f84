"""Gives the pack its name outside ComfyUI, so that tests import it as `comfyui_flenwheel` from any working directory."""

import importlib.util
import os
import sys
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


@pytest.fixture(scope="session")
def photos() -> Path:
    """The public-domain portraits that set-up has fetched: several of one man, one of another."""
    folder = os.environ.get("FLEN_PHOTOS")
    if not folder:
        pytest.skip("FLEN_PHOTOS names no folder with the demo portraits; `python flen.py test` fetches them")
    return Path(folder)
