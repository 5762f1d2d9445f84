"""What loading a paired dataset costs against merely opening the headers, and what the pair doctor costs per pair.

    python benchmarks/pairs.py [pairs] [doctored]

10,000 pairs with two controls are 30,000 files. The naive way, in the same run: `Image.open` of each file, one after the other, nothing checked.
The doctor's peers, in the same run on the same pairs, one after the other: merely decoding both pictures; one phase correlation of the whole
pictures; and OpenCV's ECC, the usual tool for the job, where opencv-python is installed. Every target was slid and grown by a known amount and a
fifth of it painted over. Prints a table and writes results/pairs.md.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel.images import open_image  # noqa: E402
from comfyui_flenwheel.flywheel.pair_doctor import examine  # noqa: E402
from comfyui_flenwheel.flywheel.pair_measures import measured_or_reason  # noqa: E402
from comfyui_flenwheel.flywheel.pairs import Pair, load_pairs  # noqa: E402
from shift_detector import GOAL_PX, GOAL_ZOOM, moved  # noqa: E402

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


Move = tuple[float, float, float]  # right, down (px of the control), zoom


def make_pairs(root: Path, count: int) -> dict[str, Move]:
    """Pairs of 1 MP with a known move each, by stem."""
    rng = np.random.default_rng(3)
    truth: dict[str, Move] = {}
    for slot in ("target", "control_1"):
        (root / slot).mkdir()
    for number in range(count):
        move = float(rng.uniform(-8, 8)), float(rng.uniform(-8, 8)), float(rng.uniform(-0.03, 0.03))
        control = photograph_like(number, 1024)
        target = control.copy()
        target.paste(photograph_like(number + 9999, 460), (200, 300))
        control.save(root / "control_1" / f"{number:03}.jpg", quality=92)
        moved(target, *move).save(root / "target" / f"{number:03}.jpg", quality=92)
        truth[f"{number:03}"] = move
    return truth


def opened(pair: Pair) -> tuple[Image.Image, Image.Image]:
    return open_image(pair.controls[0].path).image, open_image(pair.target.path).image


def only_decoded(pair: Pair) -> None:
    opened(pair)


def whole_correlated(pair: Pair) -> Move:
    """The textbook: one phase correlation of the whole pictures. Knows no zoom."""
    control, target = (np.asarray(image.convert("L"), np.float32) for image in opened(pair))
    cross = np.fft.rfft2(target) * np.conj(np.fft.rfft2(control))
    surface = np.fft.irfft2(cross / (np.abs(cross) + 1e-6), s=control.shape)
    y, x = np.unravel_index(int(surface.argmax()), surface.shape)
    height, width = control.shape
    return float(x - width if x > width // 2 else x), float(y - height if y > height // 2 else y), 0.0


def ecc(pair: Pair) -> Move:
    """OpenCV's ECC with an affine motion, from the identity, with its usual stopping rule."""
    import cv2

    control, target = (np.asarray(image.convert("L")) for image in opened(pair))
    try:
        _, found = cv2.findTransformECC(control, target, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE)
    except cv2.error:
        return float("nan"), 0.0, 0.0  # it did not converge
    height, width = control.shape
    zoom = float((found[0, 0] + found[1, 1]) / 2 - 1)
    return float(found[0, 2] + zoom * width / 2), float(found[1, 2] + zoom * height / 2), zoom


def doctor(pair: Pair) -> Move | None:
    found = measured_or_reason(pair, None, None)
    return (found.moved.dx, found.moved.dy, found.moved.zoom) if not isinstance(found, str) and found.moved else None


def within(found: Move | None, true: Move) -> bool:
    return bool(found) and float(np.hypot(found[0] - true[0], found[1] - true[1])) <= GOAL_PX and abs(found[2] - true[2]) <= GOAL_ZOOM


def each(pairs: Sequence[Pair], work: Callable[[Pair], Move | None], truth: dict[str, Move]) -> tuple[float, str]:
    """Milliseconds a pair, one after the other, and how many moves were found within the goal."""
    work(pairs[0])
    began = time.perf_counter()
    told = [within(work(pair), truth[pair.stem]) for pair in pairs]
    return (time.perf_counter() - began) / len(pairs) * 1000, f"{sum(told)} of {len(told)}"


def doctored(count: int) -> list[str]:
    """Rows of the doctor's table."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        truth = make_pairs(root, count)
        dataset = load_pairs(root / "target", [root / "control_1"], instruction="x")
        decoding = each(dataset.pairs, only_decoded, truth)[0]
        rows = [("peer: both pictures decoded, nothing looked at", decoding, "–")]
        rows.append(("peer: one phase correlation of the whole pictures", *each(dataset.pairs, whole_correlated, truth)))
        try:
            rows.append(("peer: OpenCV's ECC, affine", *each(dataset.pairs, ecc, truth)))
        except ImportError:
            print("opencv-python is not installed: ECC is left out")
        rows.append(("pair doctor, one after the other: shift, zoom, colours, detail, blur", *each(dataset.pairs, doctor, truth)))
        for name in (f"pair doctor, {os.cpu_count()} at once, cached", "the same again: read for their hash, looked up"):
            began = time.perf_counter()
            checkup = examine(dataset, cache=root / "cache")
            spent = (time.perf_counter() - began) / count * 1000
            moves = {stem: found.moved and (found.moved.dx, found.moved.dy, found.moved.zoom) for stem, found in checkup.measured.items()}
            rows.append((name, spent, f"{sum(within(moves[stem], truth[stem]) for stem in truth)} of {count}"))
    return [f"| {name} | {spent:.1f} | {spent / decoding:.2f} | {told} |" for name, spent, told in rows]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_headers(root, count)
        theirs = best(lambda: naive(root))
        ours = best(lambda: load_pairs(root / "target", [root / "control_1", root / "control_2"], instruction="put the logo on the shirt"))
    rows = "\n".join(doctored(pairs))
    table = (
        f"# Paired datasets\n\n{count:,} pairs with two controls ({3 * count:,} files); {psutil.cpu_count()} cores, Python {platform.python_version()},"
        f" best of {ROUNDS} rounds.\n\n"
        "| way | seconds | ratio |\n|---|---|---|\n"
        f"| naive: `Image.open` of each file, nothing checked | {theirs:.2f} | 1 |\n"
        f"| `load_pairs`: listed, opened, matched, captioned, every disagreement found | {ours:.2f} | {ours / theirs:.2f} |\n\n"
        f"Goal: at most {GOAL:g}.\n\n"
        f"## Pair doctor\n\n{pairs} pairs of 1024 x 1024 JPEG; a known slide of up to 11 px and zoom of up to 3 %, a fifth painted over. Found: within"
        f" {GOAL_PX} px and {GOAL_ZOOM:.1%}. Load {os.getloadavg()[0]:.0f}.\n\n| way | ms per pair | ratio | moves found |\n|---|---|---|---|\n{rows}\n"
    )
    print(table)
    (ROOT / "benchmarks" / "results" / "pairs.md").write_text(table)


if __name__ == "__main__":
    main()
