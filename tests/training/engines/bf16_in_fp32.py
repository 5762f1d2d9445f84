"""Products of bf16 and fp16 numbers, computed in fp32 and rounded once, as a card does it: for a processor that has no instructions for them.

PyTorch takes a hundred times longer there for some of them than for fp32 (a step of sd-scripts, more than seven minutes). `put_into(python)` lays
this file into the environment of a trainer, which is started with a clean one and would not find it elsewhere; it waits there until the trainer has
imported PyTorch, and does nothing where PyTorch says that the processor can. Trainers themselves stay as they are, and so does every product in fp32.
"""

import contextlib
import importlib.abc
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

_KEPT = []  # what PyTorch was given holds as long as this
_PTH = Path(f"{Path(__file__).stem}.pth")


@contextlib.contextmanager
def put_into(python: Path) -> Iterator[None]:
    """For as long as this lasts, what that Python runs computes so. Other runs in the same environment do too."""
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    folder = Path(where.stdout.strip())
    module, line = folder / Path(__file__).name, folder / _PTH
    module.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    line.write_text(f"import {module.stem}; {module.stem}.wait()\n", encoding="utf-8")
    try:
        yield
    finally:
        line.unlink(missing_ok=True)
        module.unlink(missing_ok=True)


def wait() -> None:
    """Begin once PyTorch is imported; where it never is, it costs nothing."""
    sys.meta_path.insert(0, _Waiting())


class _Waiting(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def then_begin(module):
                execute(module)
                begin()

            spec.loader.exec_module = then_begin
        return spec


def is_needed() -> bool:
    """Whether PyTorch finds no instructions for bf16 in this processor."""
    import torch

    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def begin() -> None:
    """Compute so in this process from now on, where it is needed."""
    import torch

    if not is_needed():
        return
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)  # that a kernel is overridden, which is meant
        for name in ("mm", "addmm", "bmm", "baddbmm", "_slow_conv2d_forward", "slow_conv3d_forward"):
            library.impl(name, _widened(torch, name), "CPU", with_keyset=True, allow_override=True)
    _KEPT.append(library)


def _widened(torch, name):
    kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
    narrow = (torch.bfloat16, torch.float16)

    def product(keys, *given, **named):
        dtype = given[0].dtype
        if dtype not in narrow:
            return kernel.call_boxed(keys, *given, **named)
        wide = [one.float() if isinstance(one, torch.Tensor) else one for one in given]
        return kernel.call_boxed(keys, *wide, **named).to(dtype)

    return product
