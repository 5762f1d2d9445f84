"""What loading a paired dataset costs against merely opening the headers, and what the pair doctor costs per pair.

    python benchmarks/pairs.py [pairs] [doctored]

10,000 pairs with two controls are 30,000 files. The naive way, in the same run: `Image.open` of each file, one after the other, nothing checked.
Prints a table and writes results/pairs.md.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel.pair_doctor import examine  # noqa: E402
from comfyui_flenwheel.flywheel.pairs import load_pairs  # noqa: E402

GOAL = 2.0
SLOTS = ("target", "control_1", "control_2")
ROUNDS = 3


def photograph_like(seed: int, size: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (size // 6, size // 6, 3), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return Image.blend(coarse, fine, 0.3)


def make_headers(root: Path, count: int) -> None:
    contents = []
    for seed in range(4):
        photograph_like(seed, 256).save(root / "one.jpg", quality=90)
        contents.append((root / "one.jpg").read_bytes())
    (root / "one.jpg").unlink()
    for slot in SLOTS:
        (root / slot).mkdir()
        for number in range(count):
            (root / slot / f"photo_{number:05}.jpg").write_bytes(contents[number % 4])


def naive(root: Path) -> int:
    opened = 0
    for slot in SLOTS:
        for name in sorted(os.listdir(root / slot)):
            with Image.open(root / slot / name) as image:
                opened += image.size[0] > 0
    return opened


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several rounds: the others were disturbed."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    doctored = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_headers(root, count)
        theirs = best(lambda: naive(root))
        ours = best(lambda: load_pairs(root / "target", [root / "control_1", root / "control_2"], instruction="put the logo on the shirt"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for slot in ("target", "control_1"):
            (root / slot).mkdir()
        for number in range(doctored):
            control = photograph_like(number, 1024)
            target = control.copy()
            target.paste(photograph_like(number + 9999, 400), (200, 300))
            control.save(root / "control_1" / f"{number:03}.jpg", quality=92)
            target.save(root / "target" / f"{number:03}.jpg", quality=92)
        dataset = load_pairs(root / "target", [root / "control_1"], instruction="x")
        began = time.perf_counter()
        examine(dataset, cache=root / "cache")
        first = (time.perf_counter() - began) / doctored * 1000
        began = time.perf_counter()
        examine(dataset, cache=root / "cache")
        again = (time.perf_counter() - began) / doctored * 1000
    table = (
        f"# Paired datasets\n\n{count:,} pairs with two controls ({3 * count:,} files); {psutil.cpu_count()} cores, Python {platform.python_version()},"
        f" best of {ROUNDS} rounds.\n\n"
        "| way | seconds | ratio |\n|---|---|---|\n"
        f"| naive: `Image.open` of each file, nothing checked | {theirs:.2f} | 1 |\n"
        f"| `load_pairs`: listed, opened, matched, captioned, every disagreement found | {ours:.2f} | {ours / theirs:.2f} |\n\n"
        f"Goal: at most {GOAL:g}.\n\n"
        f"Pair doctor, {doctored} pairs of 1024 x 1024 JPEG, all cores: {first:.0f} ms per pair, {again:.1f} ms when measured before (files are read for"
        " their hash).\n"
    )
    print(table)
    (ROOT / "benchmarks" / "results" / "pairs.md").write_text(table)


if __name__ == "__main__":
    main()
