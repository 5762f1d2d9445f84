"""The graphics card as nvidia-smi tells it: how much is free, and who holds the rest. Needs no torch; knows no job."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE_S = 20.0  # a driver that wakes up takes its time
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with memory on the card. `bytes` is None where the driver does not tell (Windows, some containers)."""

    pid: int
    name: str
    bytes: int | None

    def __str__(self) -> str:
        held = f"holds {gib(self.bytes)}" if self.bytes is not None else "holds some of it"
        return f"{self.name} (process {self.pid}) {held}"


@dataclass(frozen=True, slots=True)
class Card:
    """One card at one moment. `holders`: the largest first."""

    name: str
    total: int
    free: int
    holders: tuple[Holder, ...]

    def __str__(self) -> str:
        return f"{gib(self.free)} of {gib(self.total)} are free on {self.name}"


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{round(size / MIB)} MiB"


def look() -> Card | None:
    """The card that trainers use, as it is now. None where there is no nvidia-smi, or it does not answer."""
    which = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip() or "0"
    cards = _rows("--query-gpu=uuid,name,memory.total,memory.free", "-i", which)
    if not cards or len(cards[0]) != 4:
        return None
    uuid, name, total, free = cards[0]
    if _bytes(total) is None or _bytes(free) is None:
        return None
    told = (row for row in _rows("--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "-i", which) or () if len(row) == 4)
    holders = [
        Holder(int(pid), _called(int(pid), program), _bytes(used)) for owner, pid, program, used in told if owner == uuid and pid.isdigit()
    ]
    return Card(name, _bytes(total) or 0, _bytes(free) or 0, tuple(sorted(holders, key=lambda holder: -(holder.bytes or 0))))


def _rows(*arguments: str) -> list[list[str]] | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return [[part.strip() for part in line.split(",")] for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()]


def _bytes(mib: str) -> int | None:
    """From a figure in MiB; None where it says [N/A]."""
    return int(float(mib) * MIB) if mib.replace(".", "", 1).isdigit() else None


def _called(pid: int, program: str) -> str:
    """What people call a process: of a Python the script it runs."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        scripts = [part for part in process.cmdline()[1:3] if part.endswith((".py", "training"))]
        return " ".join([process.name(), *(f"{Path(script).parent.name}/{Path(script).name}" for script in scripts[:1])])
    return Path(program.replace("\\", "/")).name or "a process of another user"
