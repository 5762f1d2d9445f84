"""An engine's own Python, looked into before it is needed: what it is, and what it lacks. Nothing is imported there, so it takes a moment."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import card
from . import _launch

PATIENCE_S = 60.0  # a cold disk takes its time
TOLD = ("mflux", "mlx", "torch", "transformers", "diffusers", "accelerate")
_MARK = "LOOKED "
_CODE = f"""
import importlib.metadata, importlib.util, json, pathlib, platform, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
found = {{name: importlib.util.find_spec(name) for name in sys.argv[1:]}}
torch = found.get("torch")
built = pathlib.Path(torch.origin).with_name("version.py") if torch and torch.origin else None
print({_MARK!r} + json.dumps({{
    "python": platform.python_version(),
    "missing": [name for name, spec in found.items() if spec is None],
    "versions": {{name: version(name) for name in {TOLD!r} if version(name)}},
    "built": built.read_text(encoding="utf-8") if built and built.is_file() else "",
}}))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """What was found. `problems`: why the engine would not run there, each with what to do."""

    python: Path
    versions: Mapping[str, str]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.python}, {self.told}" if self.versions else str(self.python)

    @property
    def told(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())


def look(python: Path, root: Path, modules: Iterable[str], install: str) -> Environment:
    """Look into a Python for `modules`, from the engine's folder. `install`: what pip is told to get them."""
    command = [str(python), "-c", _CODE, *dict.fromkeys(["torch", *modules])]
    try:
        done = subprocess.run(
            command, cwd=root, env=_launch.environment({}), stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Environment(python, {}, (f"{python} does not run ({error}): make this environment anew and install {root.name} in it",))
    line = next((line for line in done.stdout.decode("utf-8", "replace").splitlines() if line.startswith(_MARK)), None)
    if line is None:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Environment(python, {}, (f"{python} does not run ({last}): make this environment anew and install {root.name} in it",))
    told = json.loads(line.removeprefix(_MARK))
    problems: list[str] = []
    if told["missing"]:
        problems.append(f"{python} lacks {', '.join(told['missing'])}: start it with -m pip install {install}")
    elif re.search(r"^cuda\b.*= None", told["built"], re.MULTILINE) and (seen := card.look()):
        problems.append(
            f"the PyTorch of {python} was made for the processor only, and could not use the {seen.name}: install the one for it there (pytorch.org)"
        )
    return Environment(python, {"Python": told["python"], **told["versions"]}, tuple(problems))
