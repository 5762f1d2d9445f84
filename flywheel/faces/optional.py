"""What optional engines need and may lack: packages and weight files that a person brings. Installs and downloads nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import IdentityError


def imported(names: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The modules that load, by name, and why the others do not."""
    modules: dict[str, Any] = {}
    problems: list[str] = []
    for name in names:
        try:
            modules[name] = importlib.import_module(name)
        except ImportError as error:
            problems.append(f"the package {name.partition('.')[0]} is missing or does not load ({error})")
    return modules, problems


def failures() -> tuple[type[Exception], ...]:
    """What these engines raise for a picture that they cannot take. OpenCV and onnxruntime have classes of their own, known once they are loaded."""
    onnx = "onnxruntime.capi.onnxruntime_pybind11_state"
    own = (("cv2", "error"), (onnx, "Fail"), (onnx, "InvalidArgument"), (onnx, "RuntimeException"))
    loaded = (getattr(sys.modules.get(module), name, None) for module, name in own)
    return (RuntimeError, ValueError, MemoryError, *(kind for kind in loaded if kind))


def unusable(engine: str, packages: str, problems: Sequence[str]) -> IdentityError:
    """What to raise where an optional engine lacks something. `packages`: as pip is told them."""
    return IdentityError(
        f"The optional engine {engine} cannot be used here; choose dlib, or bring what is missing and start ComfyUI again:"
        f' "{sys.executable}" -m pip install {packages}   (nothing is installed or downloaded by itself)',
        problems,
    )
