"""How quickly the review's server answers, with 100, 1,000 and 5,000 images.

    FLEN_COMFYUI=<ComfyUI> python benchmarks/review_server.py [images …]

Starts the real ComfyUI on its own base directory and talks to it over HTTP as the page does, one kept connection. A label counts from sending to
the answer, which comes after the verdict is on disk and its file has moved. The peer, in the same run and on the same files, is a walk over the
disk before and after each verdict, as the first release did it. Prints a table and writes results/review_server.md.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel import review  # noqa: E402
from comfyui_flenwheel.flywheel.images import png_bytes  # noqa: E402
from comfyui_flenwheel.flywheel.ledger import LabelEvent, record  # noqa: E402
from comfyui_flenwheel.flywheel.project import Stage, open_project  # noqa: E402
from comfyui_flenwheel.nodes.launch import Server  # noqa: E402

GOAL_MS = 50.0
LABELS, THUMBS, SIDE = 500, 96, 1024


def noisy(count: int) -> Callable[[int], bytes]:
    """THUMBS pictures of 1024 px; the others differ in one number, to save disk and time."""
    rng = np.random.default_rng(count)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    large = np.clip(np.asarray(coarse, np.float32) + rng.normal(0, 3, (SIDE, SIDE, 1)), 0, 255).astype(np.uint8)
    small = png_bytes(Image.fromarray(large[:64, :64]))
    return lambda number: png_bytes(Image.fromarray(np.roll(large, number, 0))) if number < THUMBS else small + number.to_bytes(4, "big")


def candidates(home: Path, count: int, png: Callable[[int], bytes], size: tuple[int, int] = (SIDE, SIDE), name: str = "bench") -> Stage:
    """A stage with `count` candidates; `png` draws each."""
    stage = open_project(home, f"{name} {count}", instance_token="ohwx_char", class_noun="person", medium="photographs").stage("enriched")
    stage.lineage.mkdir(parents=True)
    for number in range(count):
        content = png(number)
        made, key = (hashlib.sha256(part).hexdigest()[:16] for part in (b"%d" % number, content))
        facts = {
            "origin": "edit",
            "prompt": f"Change background to a forest of {number % 60} trees, keep person identical",
            "template": "Change background to [forest]",
            "seed": number,
            "attempt": 0,
            "caption": "photo of ohwx_char person, neutral expression, front view",
            "source": {"key": f"{number % 20:016x}", "name": f"source_{number % 20:03}.jpg"},
            "parents": [f"{number % 20:016x}"],
            "depth": 1,
            "editor": {"editor": "rehearsal"},
            "notes": {},
        }
        told = {"request_key": made, "image_key": key, "bytes": len(content), "width": size[0], "height": size[1]}
        (stage.lineage / f"{made}.json").write_text(json.dumps({**told, **facts}))
        (stage.folder / f"source_{number:05}-forest-{made}.png").write_bytes(content)
    return stage


class Client:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def ask(self, method: str, path: str, body: Any = None) -> bytes:
        """What was answered, as it came over the wire: long lists come compressed, as browsers ask for them."""
        data = None if body is None else json.dumps(body).encode()
        self.connection.request(method, path, data, {"Content-Type": "application/json", "Accept-Encoding": "gzip"})
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return content


def unpacked(content: bytes) -> Any:
    return json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)


@contextmanager
def timed(spent: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spent.append((time.perf_counter() - began) * 1000)


def percentile(spent: list[float], share: float) -> float:
    return sorted(spent)[min(len(spent) - 1, int(len(spent) * share))]


def measure(server: Server, stage: Stage) -> dict[str, float]:
    client = Client(server.port)
    path = f"/flenwheel/review/{quote(stage.project.folder_name)}/enriched/v1"
    first: list[float] = []
    head: list[float] = []
    again: list[float] = []
    listed = b""
    with timed(first):
        client.ask("GET", path + "?head=48")
    for _ in range(5):
        with timed(head):
            client.ask("GET", path + "?head=48")
        with timed(again):
            listed = client.ask("GET", path + "?walk=0")
    keys = [item["key"] for item in unpacked(listed)["items"]]
    labels: list[float] = []
    for number in range(LABELS):
        event = {"id": f"{stage.project.folder_name}-{number}", "key": keys[number % len(keys)], "label": ("good", "reject")[number % 2]}
        with timed(labels):
            client.ask("POST", path + "/labels", {"reviewer": "bench", "events": [event]})
    undo: list[float] = []
    for _ in range(20):
        with timed(undo):
            client.ask("POST", path + "/undo", {"reviewer": "bench"})
    bulk: list[float] = []
    with timed(bulk):
        client.ask("POST", path + "/labels", {"reviewer": "bench", "events": [{"key": key, "label": "good"} for key in keys]})
    thumbs = path.replace("/review/", "/image/")
    cold: list[float] = []
    warm: list[float] = []
    shown = [key for key in keys if key in set(keys[:THUMBS])]
    for spent in (cold, warm):
        for key in shown:
            with timed(spent):
                client.ask("GET", f"{thumbs}/{key}?size=256")
    memory = psutil.Process(server.process.pid).memory_info().rss / 1e6 if server.process else 0.0
    return {
        "first screen, first": first[0],
        "first screen, again": percentile(head, 0.5),
        "whole list": percentile(again, 0.5),
        "whole list, kB": len(listed) / 1000,
        "whole list, kB unpacked": len(json.dumps(unpacked(listed))) / 1000,
        "label p50": percentile(labels, 0.5),
        "label p99": percentile(labels, 0.99),
        "label worst": max(labels),
        "undo p50": percentile(undo, 0.5),
        "bulk, all": bulk[0],
        "thumb cold": percentile(cold, 0.5),
        "thumb warm": percentile(warm, 0.5),
        "peer: walk per label p50": walk_per_label(stage, keys),
        "server MB": memory,
    }


def walk_per_label(stage: Stage, keys: list[str]) -> float:
    """A verdict that reads the whole stage before and after it."""
    spent: list[float] = []
    review.follow(stage)
    for number in range(5):
        with timed(spent):
            review.follow(stage)
            record(stage.project, [LabelEvent(keys[number], "reject", reviewer="peer")])
            review.follow(stage)
    return percentile(spent, 0.5)


def main() -> None:
    counts = [int(word) for word in sys.argv[1:]] or [100, 1000, 5000]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        stages = [candidates(base / "output" / "flenwheel", count, noisy(count)) for count in counts]
        with Server(Path(os.environ["FLEN_COMFYUI"]), Path(sys.executable), base) as server:
            columns = [measure(server, stage) for stage in stages]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    rows = "\n".join(f"| {name} | " + " | ".join(f"{column[name]:.1f}" for column in columns) + " |" for name in columns[0])
    table = (
        "# The review's server\n\n"
        f"ms unless another unit is named; {psutil.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, {LABELS} labels one after another.\n\n"
        f"| images | {' | '.join(f'{count:,}' for count in counts)} |\n|---|{'---|' * len(counts)}\n{rows}\n\n"
        "first screen, first: the server has not looked at the project yet. From 480 images on it is told before the list.\n"
        f"Goal: label p99 under {GOAL_MS:g} ms. A label is answered when it is on disk (fsync) and its file has moved.\n"
        "thumb: 1024 px PNG to 256 px WebP, one at a time. The peer reads the stage before and after each verdict, as the first release did"
        " (with today's cache of lineages, which it lacked).\n"
    )
    print(table)
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    (ROOT / "benchmarks" / "results" / "review_server.md").write_text(table)


if __name__ == "__main__":
    main()
