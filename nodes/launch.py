"""The real ComfyUI as a process of its own, with this pack and no other. Standard library only: `flen.py` and the tests start it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACK = "ComfyUI-FLENwheel"
WINDOWS = sys.platform == "win32"
NEW_GROUP = 0x200  # Windows' CREATE_NEW_PROCESS_GROUP, which subprocess only names there
START_S, STOP_S = 300.0, 10.0
GRAPHICS = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd", "dri", "accel*", "davinci*")  # in /dev: CUDA, Jetson, WSL, AMD, any, NPUs


class Problem(Exception):
    """Something the person can act on: what is wrong, which thing, what to do."""


class Server:
    """ComfyUI on a port of its own. A context manager; can be killed and started again on the same port.

    `base` is ComfyUI's base directory: input, output and user folder lie there, so the ComfyUI that runs is not written to.
    `port` 0 takes a free one. `log` holds what the server writes. `tick` is called while it starts.
    """

    def __init__(
        self,
        comfyui: Path,
        python: Path,
        base: Path,
        pack: Path = ROOT,
        port: int = 0,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.comfyui, self.python, self.base, self.pack, self.port = comfyui, python, base.resolve(), pack, port
        self.extra_args, self.env, self.tick = tuple(extra_args), env, tick
        self.log = self.base / "comfyui.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait for its nodes.

        Raises:
            Problem: the port is taken, ComfyUI ends, or the pack does not load; the text holds the end of the log.
        """
        self.port = _free_port(self.port)
        command = self._command()
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.comfyui,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=not WINDOWS,  # Ctrl+C is for us; we end the server when its work is stored
                creationflags=NEW_GROUP if WINDOWS else 0,
            )
        (self.base / "server.json").write_text(json.dumps({"address": self.address, "pid": self.process.pid}), encoding="utf-8")
        try:
            self._wait(self.process)
        except BaseException:
            self.kill()
            raise

    def _command(self) -> list[str]:
        packs = link(self.pack, self.base / "packs" / PACK).parent
        (self.base / "custom_nodes").mkdir(exist_ok=True)  # ComfyUI lists it
        paths = self.base / "packs.yaml"
        paths.write_text(f"flenwheel:\n  custom_nodes: {json.dumps(str(packs))}\n", encoding="utf-8")
        # fmt: off
        return [
            str(self.python), "main.py", "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(self.base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes",
            "--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK, "--extra-model-paths-config", str(paths),
            *([] if sees_gpu(self.python) else ["--cpu"]), *self.extra_args,
        ]
        # fmt: on

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < deadline:
            try:
                nodes = ask(f"{self.address}/object_info")
            except OSError:
                self.tick()
                time.sleep(0.1)
                continue
            if not any(name.startswith("FLEN_") for name in nodes):
                raise Problem(f"ComfyUI started without FLENwheel's nodes. From {self.log}:\n\n{last_lines(self.log)}")
            return
        state = "did not answer in time" if process.poll() is None else f"ended with exit code {process.returncode}"
        raise Problem(f"ComfyUI {state}. The end of {self.log}:\n\n{last_lines(self.log)}")

    def stop(self) -> None:
        """End it; what does not end by itself is killed."""
        if self.process and not WINDOWS:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, signal.SIGTERM)
                self.process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """End it as a power cut would, with all that it has started."""
        if self.process is None:
            return
        if sys.platform == "win32":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.process.pid)], capture_output=True)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def running(base: Path) -> str | None:
    """The address of the server that already runs on this base directory."""
    try:
        address = json.loads((base / "server.json").read_text(encoding="utf-8"))["address"]
        argv = ask(f"{address}/system_stats")["system"]["argv"]
    except (OSError, ValueError, KeyError):  # never started, ended since, or something else has its port
        return None
    return address if str(base.resolve()) in argv else None


def ask(address: str) -> dict[str, Any]:
    """The JSON at this address. Raises OSError when nobody answers."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


def link(target: Path, at: Path) -> Path:
    """Make `at` show the folder `target`, without a copy. A junction on Windows, where a symbolic link needs a right that people lack."""
    if at.exists() and at.resolve() == target.resolve():
        return at
    at.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        import _winapi

        if at.exists():
            at.rmdir()  # removes the junction, not what it shows
        _winapi.CreateJunction(str(target), str(at))
    else:
        at.unlink(missing_ok=True)
        at.symlink_to(target, target_is_directory=True)
    return at


@functools.cache
def sees_gpu(python: Path) -> bool:
    """Whether this Python's PyTorch can use a graphics card; without one ComfyUI must be told."""
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in GRAPHICS):
        return False  # saves the seconds that importing PyTorch takes
    code = "import torch; print(any(kind.is_available() for kind in (torch.cuda, torch.backends.mps, torch.xpu)))"
    return b"True" in subprocess.run([python, "-c", code], capture_output=True).stdout


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a log as a person wants it: with the whole last traceback, without blank lines, colours and half-drawn bars."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", log.read_bytes().decode(errors="replace").replace("\r\n", "\n"))
    lines = [line.split("\r")[-1].rstrip() for line in text.split("\n") if line.strip()]
    traceback = max((n for n, line in enumerate(lines) if line.startswith("Traceback")), default=len(lines))
    return "\n".join(lines[max(min(len(lines) - count, traceback), len(lines) - 3 * count, 0) :])


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        if not WINDOWS:  # there the option would let two servers share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Problem(
                f"Port {port} is in use ({error.strerror}). Name another with --port, or none and a free one is taken."
            ) from error
        return probe.getsockname()[1]
