"""What the render loop costs per image beyond the editor's own time, and whether its memory stays flat.

    python benchmarks/loop_overhead.py [images] [seconds per image]

The editor is a stand-in that waits like a model (the GPU works, Python idles) and returns a 1024 x 1024 image. The peer, in the same run, is the
naive loop of most node packs: edit, save PNG with Pillow's defaults, write a JSON beside it. Prints a table and writes results/loop_overhead.md.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel.candidates import Shelf  # noqa: E402
from comfyui_flenwheel.flywheel.editors import ControlRef, Edit, EditRequest, Rendered, Tick  # noqa: E402
from comfyui_flenwheel.flywheel.project import open_project  # noqa: E402
from comfyui_flenwheel.flywheel.render import Order, Progress, render  # noqa: E402

SIZE = 1024
GOAL_MS = 15.0


@dataclass(frozen=True)
class Waiting:
    """Waits like a model at work, then returns a photograph-like picture that no other seed has."""

    seconds: float
    picture: np.ndarray
    spent: list[float]
    name: str = "waiting"
    controls: range = range(2)

    def fingerprint(self) -> dict[str, str]:
        return {"editor": self.name}

    @contextmanager
    def session(self) -> Iterator[Edit]:
        yield self.edit

    def edit(self, request: EditRequest, _: Tick) -> Rendered:
        began = time.perf_counter()
        time.sleep(self.seconds)
        image = Image.fromarray(np.roll(self.picture, request.seed, axis=(0, 1)))
        self.spent.append(time.perf_counter() - began)
        return Rendered(image)


def photograph_like() -> np.ndarray:
    """Smooth shapes with fine grain: compresses like a photograph, about 1.5 MB as PNG."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 3, (SIZE, SIZE, 1))
    return np.clip(np.asarray(coarse, np.float32) + grain, 0, 255).astype(np.uint8)


def ours(folder: Path, count: int, seconds: float) -> tuple[float, list[float]]:
    """ms per image beyond the editor, and the process's memory in MB at each tenth of the run."""
    stage = open_project(folder, "bench", instance_token="ohwx_char", class_noun="person", medium="photographs").stage("enriched")
    editor, memory, process = Waiting(seconds, photograph_like(), []), [], psutil.Process()
    facts = {"origin": "edit", "caption": "photo of ohwx_char person", "parents": ["p"], "depth": 1}
    orders = [Order(EditRequest("a", (ControlRef(folder, "c"),), seed, SIZE, SIZE), f"n{seed}", facts) for seed in range(count)]

    def report(progress: Progress) -> None:
        if progress.name and int(progress.done) % max(1, count // 10) == 0:
            memory.append(process.memory_info().rss / 1e6)

    began = time.perf_counter()
    render(orders, editor, Shelf(stage), report=report)
    overhead = (time.perf_counter() - began - sum(editor.spent)) / count * 1000
    began = time.perf_counter()
    render(orders, editor, Shelf(stage))
    print(f"resuming {count} finished images: {(time.perf_counter() - began) / count * 1000:.2f} ms each")
    return overhead, memory


def naive(folder: Path, count: int, seconds: float) -> float:
    editor = Waiting(seconds, photograph_like(), [])
    began = time.perf_counter()
    for seed in range(count):
        image = editor.edit(EditRequest("a", (), seed, SIZE, SIZE), lambda *_: None).image
        image.save(folder / f"{seed}.png")
        (folder / f"{seed}.json").write_text(json.dumps({"seed": seed}))
    return (time.perf_counter() - began - sum(editor.spent)) / count * 1000


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.15
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "naive").mkdir()
        theirs = naive(Path(folder) / "naive", max(10, count // 10), seconds)
        mine, memory = ours(Path(folder) / "ours", count, seconds)
    growth = memory[-1] - memory[0]
    table = (
        f"# Overhead of the render loop\n\n{count} images of {SIZE} x {SIZE}, editor waits {seconds} s each;"
        f" {psutil.cpu_count()} cores, Python {platform.python_version()}.\n\n"
        "| loop | ms per image beyond the editor | ratio |\n|---|---|---|\n"
        f"| naive: edit, `image.save`, JSON | {theirs:.1f} | 1 |\n"
        f"| `render()`: lineage, hash, whole-file writes, fsync, in a thread | {mine:.1f} | {mine / theirs:.3f} |\n\n"
        f"Goal: under {GOAL_MS:g} ms. Memory from 10 % to 100 % of the run: {memory[0]:.0f} MB to {memory[-1]:.0f} MB ({growth:+.0f} MB).\n"
    )
    print(table)
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    (ROOT / "benchmarks" / "results" / "loop_overhead.md").write_text(table)


if __name__ == "__main__":
    main()
