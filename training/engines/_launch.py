"""Trainers that live in their own environment: found, asked, started, read, stopped, and their end understood.

Programs and arguments are fixed lists; no shell. A trainer gets a process group of its own and an environment without our Python and without
anybody's keys. Its exit code alone is never believed.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from ...flywheel.images import open_image, png_bytes, storage_error, write_json, write_whole
from ..errors import EngineNotInstalled, SpecError, Stopped, TrainingFailed
from ..job import Job
from ..trainset import TrainingSet
from ..turns import end_group
from ._causes import CAUSES, failure, last_words
from ._command import WINDOWS, Command, by_hand

TAIL = 400  # lines of log that are searched for the cause
LOOK_EVERY_S = 0.25
DRAIN_S = 5.0  # for what is still in the pipe when the trainer has ended

_BAR = re.compile(r"\d+%\|")  # of anything: loading, caching, training
_SECRET = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$")
_OURS = re.compile(r"^(?:PYTHON|VIRTUAL_ENV|CONDA|PIP_|UV_|FLEN_|COMFY)")
_QUIET = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8",
    "PYTHONUTF8": "1",  # trainers print Japanese; a Western console would break them
    "COLUMNS": "200",
    "TQDM_MININTERVAL": "0.1",  # a bar that is not drawn is a loss that is not seen
}


@dataclass(frozen=True, slots=True)
class Progress:
    """What a line of the log says of the run; `step` counts from this launch."""

    step: int
    steps: int
    loss: float | None = None


Reader = Callable[[str], "Progress | None"]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment for a trainer: the system's, without our Python's settings and without keys and passwords."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.search(name) and not _SECRET.search(name.upper())}
    return {**kept, **_QUIET, **extra}


def launch(
    command: Command,
    job: Job,
    *,
    read: Reader,
    done: int = 0,
    seen: Callable[[str], None] | None = None,
    stepped: Callable[[int], None] | None = None,
    ready: Callable[[], bool] = lambda: True,
) -> None:
    """Run a trainer to its end and turn its log into events.

    `done`: steps of earlier launches, added to what it counts. `seen` gets every line, for example to notice a checkpoint; `stepped` gets the
    number of each step as this launch counts them. `ready` is asked, again and again, once somebody wants it to stop: true when it may be ended, which gives a trainer that can the time to save.

    Raises:
        Stopped: someone asked for it; the whole group was ended between two steps.
        TrainingFailed: it ended otherwise, or its loss is no number any more.
    """
    tail: deque[str] = deque(maxlen=TAIL)
    process = _start(command, job)
    blocks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    assert process.stdout
    reader = threading.Thread(target=_read, args=(process.stdout, blocks), name=f"log of job {job.id}", daemon=True)
    reader.start()
    step = done
    try:
        with job.log.open("a", encoding="utf-8") as log:
            for line in _lines(process, blocks, read):
                if job.stop_wanted and (not line or _BAR.search(line)) and ready():
                    raise Stopped
                if not line:
                    continue
                progress = read(line)
                if progress is None and _BAR.search(line):
                    continue  # another bar: drawn many times a second, and not worth keeping
                if progress is None:
                    tail.append(line)
                    log.write(line + "\n")
                    log.flush()
                    if seen:
                        seen(line)
                elif done + progress.step > step:
                    step = done + progress.step
                    if progress.loss is not None and progress.loss != progress.loss:
                        raise TrainingFailed(
                            "nan", f"The loss is no number any more at step {step}.", CAUSES["nan"].advice, last_words(tail)
                        )
                    job.append("step", step=step, loss=progress.loss)
                    if stepped:
                        stepped(progress.step)
    finally:
        _end(process)
        reader.join(DRAIN_S)
        if not reader.is_alive():
            process.stdout.close()
    if process.returncode != 0:
        raise failure(process.returncode, tail)


def _start(command: Command, job: Job) -> subprocess.Popen[bytes]:
    name, text = by_hand(command)
    write_text(job.folder / "config" / name, text)
    try:
        process = subprocess.Popen(
            [str(command.program), *command.arguments],
            cwd=command.cwd,
            env=environment(command.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=not WINDOWS,
            creationflags=0x200 if WINDOWS else 0,  # CREATE_NEW_PROCESS_GROUP
            close_fds=WINDOWS,  # the lock on the GPU is inherited on purpose, see turns.turn
        )
    except OSError as error:
        raise EngineNotInstalled(
            f"{command.program} cannot be started ({error.strerror or error}). Repair the engine's environment."
        ) from error
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:
        created = time.time()
    job.append("launched", pid=process.pid, created=created, arguments=[Path(command.program).name, *command.arguments])
    return process


def _read(output: IO[bytes], blocks: queue.SimpleQueue[bytes]) -> None:
    """Whatever comes, as it comes; an empty block is the end."""
    while block := os.read(output.fileno(), 1 << 16):
        blocks.put(block)
    blocks.put(b"")


def _lines(process: subprocess.Popen[bytes], blocks: queue.SimpleQueue[bytes], read: Reader) -> Iterator[str]:
    """Lines, cut at carriage returns and line ends, since a bar is drawn over itself; and an empty one now and then, so that a stop is noticed.

    A bar begins with its carriage return, so the newest one is not cut yet: when nothing follows for a moment it is given as it stands.
    """
    rest, ended = b"", 0.0
    while True:
        try:
            block = blocks.get(timeout=LOOK_EVERY_S)
        except queue.Empty:
            if process.poll() is not None:  # a helper of its own may hold the pipe open
                ended = ended or time.monotonic()
                if time.monotonic() - ended > DRAIN_S:
                    return
            drawn = rest.decode("utf-8", "replace")
            yield drawn if read(drawn) else ""
            continue
        *whole, rest = re.split(rb"[\r\n]", rest + block)
        if not block:
            whole.append(rest)
        yield from filter(None, (part.decode("utf-8", "replace").rstrip() for part in whole))
        if not block:
            process.wait()
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole group, also what it left behind: measured trainers leave helpers that hold the GPU."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.poll() is None:
            end_group(psutil.Process(process.pid))
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- finding an engine


def checkout(variable: str, marker: str, names: Iterable[str], near: Iterable[Path]) -> Path:
    """The folder of an engine: the environment variable, else a folder of one of these names near ComfyUI.

    Raises:
        EngineNotInstalled: says how to name it.
    """
    names = tuple(names)
    told = os.environ.get(variable, "").strip()
    if told:
        if (Path(told) / marker).is_file():
            return Path(told).resolve()
        raise EngineNotInstalled(f"{variable} names {told}, where there is no {marker}. Correct the variable and start ComfyUI again.")
    for place in near:
        for name in names:
            if (place / name / marker).is_file():
                return (place / name).resolve()
    raise EngineNotInstalled(
        f"{names[0]} was not found. Install it in an environment of its own and set {variable} to its folder (the one with {marker}), then start ComfyUI again."
    )


def interpreter(root: Path, variable: str) -> Path:
    """The engine's own Python; never ours, whose packages are of other versions.

    Raises:
        EngineNotInstalled: it has none.
    """
    told = os.environ.get(variable, "").strip()
    inside = Path("Scripts/python.exe") if WINDOWS else Path("bin/python")
    places = [Path(told)] if told else [folder / name / inside for folder in (root, root.parent) for name in ("venv", ".venv", "env")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise EngineNotInstalled(
            f"{root.name} has no Python of its own ({root / 'venv'}). Create one and install its requirements.txt, or set {variable}."
        )
    return found


def version_in(source: Path, pattern: str) -> str:
    """The version an engine's own file names, for a person to read."""
    try:
        found = re.search(pattern, source.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else "of unknown version"


def arguments_of(sources: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The options an engine's parsers declare, read from their source without running it: name to type, action and choices."""
    known: dict[str, dict[str, Any]] = {}
    for source in sources:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # their strings are theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(source.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
                told = {word.arg: word.value for word in node.keywords if word.arg}
                described = {
                    name: ast.literal_eval(told[name]) for name in ("action", "nargs", "choices") if name in told and _literal(told[name])
                }
                if isinstance(kind := told.get("type"), ast.Name):
                    described["type"] = kind.id
                names = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
                known |= {name.lstrip("-").replace("-", "_"): described for name in names if name.startswith("--")}
    return known


def _literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def key_problems(config: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], engine: str) -> list[str]:
    """What the engine would ignore silently, or stumble over: unknown keys, values that its parser would not take."""
    problems: list[str] = []
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
    for name, value in config.items():
        if name not in known:
            problems.append(f"this {engine} does not know {name}: it is too old or too new; update it")
            continue
        told = known[name]
        if told.get("choices") and value not in told["choices"]:
            problems.append(f"{name} is {value!r}; this {engine} takes {', '.join(map(str, told['choices']))}")
        elif told.get("action") in ("store_true", "store_false") and not isinstance(value, bool):
            problems.append(f"{name} is {value!r}; this {engine} takes true or false")
        elif told.get("nargs") in ("*", "+") and not isinstance(value, list):
            problems.append(f"{name} is {value!r}; this {engine} takes a list")
        elif "nargs" not in told and told.get("type") in kinds and not isinstance(value, kinds[told["type"]]):
            problems.append(f"{name} is {value!r}; this {engine} takes {told['type']}")
    return problems


MORE_HELP = "Further settings in the trainer's own words, `name = value; name = value`. They come last and win; unknown names are refused."


def own_words(text: str) -> dict[str, Any]:
    """Settings that a person wrote in the trainer's own words: `name = value` between semicolons, values as JSON or as plain text.

    Raises:
        SpecError: a part is no such pair.
    """
    told: dict[str, Any] = {}
    for part in filter(None, map(str.strip, re.split(r"[;\n]", text))):
        name, sign, value = (word.strip() for word in part.partition("="))
        if not sign or not name.isidentifier():
            raise SpecError(f"more: {part!r} cannot be read. Write name = value, with a semicolon before the next.")
        try:
            told[name] = json.loads(value)
        except ValueError:
            told[name] = value
    return told


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder unless it is there already; whole or not at all. A source that does not exist is passed over."""
    if not source.is_dir() or target.is_dir():
        return
    partial = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.rename(target)
    except OSError as error:
        raise storage_error(target, error) from error


# --- the data in a form that no engine misreads


def lay_out(found: TrainingSet, folder: Path) -> list[dict[str, Any]]:
    """Copy the set under neutral names: p0000.png upright 8-bit RGB, p0000.txt one line. Engines cache by name, so the folder is the job's own.

    What is there already is kept; `index.json` says which picture is which.
    """
    rows = [
        {"name": f"p{number:04}", "key": example.key, "caption": example.caption, "repeats": example.repeats}
        for number, example in enumerate(found.examples)
    ]
    for row, example in zip(rows, found.examples, strict=True):
        part = folder / f"r{row['repeats']}"
        if not (part / f"{row['name']}.png").is_file():
            write_whole(part / f"{row['name']}.png", png_bytes(open_image(example.image).image))
        write_whole(part / f"{row['name']}.txt", f"{row['caption']}\n".encode())
    write_json(folder / "index.json", rows)
    return rows


def toml(config: Mapping[str, Any]) -> str:
    """The key = value lines of a TOML table."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in config.items())


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    text = value.as_posix() if isinstance(value, Path) else str(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f'"{escaped}"'


def write_text(path: Path, text: str) -> None:
    write_whole(path, text.encode("utf-8"))


def newest(paths: Iterable[Path]) -> Path | None:
    return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
