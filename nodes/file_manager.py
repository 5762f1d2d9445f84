"""A folder in the file manager of the machine that ComfyUI runs on. A fixed program with one argument; knows no route."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

PROGRAMS = {"win32": "explorer", "darwin": "open"}


def program() -> str | None:
    """What shows folders here; None where nobody would see it."""
    if sys.platform in PROGRAMS:
        return shutil.which(PROGRAMS[sys.platform])
    seen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return shutil.which("xdg-open") if seen else None


def show(folder: Path) -> bool:
    """Open a folder; whether there was something to open it with."""
    if (opener := program()) is None:
        return False
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([opener, str(folder)], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=os.name != "nt")
    threading.Thread(target=process.wait, name="file manager", daemon=True).start()  # or it would stay a zombie
    return True
