"""The aid for processors without bf16 instructions: what it changes, what it leaves alone, and that it goes again."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from . import bf16_in_fp32

torch = pytest.importorskip("torch")
PRODUCTS = """
import torch
torch.manual_seed(0)
def products(dtype):
    a, b, c = (torch.randn(8, 8).to(dtype) for _ in range(3))
    x, w = torch.randn(1, 2, 6, 6).to(dtype), torch.randn(3, 2, 3, 3).to(dtype)
    return [a @ b, torch.addmm(c, a, b, beta=0.5, alpha=2), a[None] @ b[None], torch.baddbmm(c[None], a[None], b[None]),
            torch.nn.functional.conv2d(x, w), torch.nn.functional.conv3d(x[:, :, None], w[:, :, None], c[0, :3])]
layer, given = torch.nn.Linear(8, 8, dtype=torch.bfloat16), torch.randn(2, 3, 8, dtype=torch.bfloat16)
layer(given).sum().backward()
torch.save([products(torch.float32), products(torch.bfloat16), layer.weight.grad], OUT)
"""


@pytest.fixture
def trainers_python(tmp_path):
    """An environment of its own, as trainers have one; PyTorch is that of the tests."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    (_site(python) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def _site(python: Path) -> Path:
    return Path(_said(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))


def _said(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _made(python: Path, path: Path):
    told = subprocess.run(
        [python, "-W", "error", "-c", PRODUCTS.replace("OUT", repr(str(path)))], capture_output=True, text=True, check=True
    )
    assert told.stderr == ""
    return torch.load(path)


def test_only_narrow_products_are_computed_otherwise_and_only_while_it_is_there(trainers_python, tmp_path):
    if not bf16_in_fp32.is_needed():
        pytest.skip("this processor has instructions for bf16, so the aid does nothing")
    before = sorted(path.name for path in _site(trainers_python).iterdir())
    wide, narrow, learnt = _made(trainers_python, tmp_path / "plain.pt")
    with bf16_in_fp32.put_into(trainers_python):
        assert _said(trainers_python, "import sys; print('torch' in sys.modules)") == "False", "what does not use PyTorch does not load it"
        wide_so, narrow_so, learnt_so = _made(trainers_python, tmp_path / "so.pt")
    assert all(torch.equal(one, other) for one, other in zip(wide, wide_so, strict=True)), "fp32 as ever, to the last bit"
    for one, other in zip([*narrow, learnt], [*narrow_so, learnt_so], strict=True):
        assert other.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.05)
    assert sorted(path.name for path in _site(trainers_python).iterdir() if path.name != "__pycache__") == before


def test_a_processor_that_can_is_left_alone(monkeypatch):
    monkeypatch.setattr(bf16_in_fp32, "is_needed", lambda: False)
    bf16_in_fp32.begin()
    assert bf16_in_fp32._KEPT == []
