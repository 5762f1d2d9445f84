"""All that is measured on a card, in one command that may be cut off and run again.

    python benchmarks/gpu                            on any CUDA card: every row that is not measured yet
    python benchmarks/gpu --rows 'ours/1-*' --list   which rows there are
    python benchmarks/gpu --tiny --device cpu        the same code on the tiny model, in some minutes

Ours (both engines), diffusers with offloading and ComfyUI's stock graph make the same edits with a model of full size (random weights, nothing is downloaded) on a
card whose memory is capped at 24 GiB; the trainer takes steps, and so does musubi-tuner where MUSUBI_ROOT names it. Each row is a process of its own. Results are kept beside the page
(benchmarks/results/gpu-<card>.json and .md) after every row; a row that failed is tried again, one that ran out of memory is not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rows import WAYS, Row, chosen, rows

HERE = Path(__file__).resolve().parent
MODULES = {"ours": "ours", "diffusers": "peer_diffusers", "comfyui": "peer_comfyui", "train": "train", "musubi": "peer_musubi"}
MODULES |= {"ours_comfyui": "ours_comfyui", "ceiling": "ceiling"}
NO_CARD = (
    "There is no CUDA card that torch can use here, so nothing was measured. `--tiny --device cpu` runs the same code on the tiny model."
)


def main() -> int:
    options = _arguments()
    every = rows(tiny=options.tiny)
    wanted = chosen(every, options.rows)
    if not wanted:
        print(f"No row is called like {options.rows!r}; --list shows them.", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(row.name for row in wanted))
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_CARD, file=sys.stderr)
        return 2
    if options.device == "cpu" and not options.tiny:
        print("A model of full size is only measured on a card; add --tiny.", file=sys.stderr)
        return 2
    if options.only:
        return _one(wanted[0], options)
    return _all(wanted, every, options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="*", help="only rows whose name fits, such as 'ours*' or '*/40-steps'")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--again", action="store_true", help="measure these rows even if they have been")
    parser.add_argument("--cap", type=float, default=24.0, help="GiB of the card that may be used")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the tiny model: checks that all of this runs")
    parser.add_argument("--comfyui", default=os.environ.get("FLEN_COMFYUI", ""), help="the folder of a ComfyUI, for its rows")
    parser.add_argument(
        "--place", type=Path, default=Path(tempfile.gettempdir()) / "flenwheel-gpu", help="where the (sparse) model files lie"
    )
    parser.add_argument("--results", type=Path, default=HERE.parent / "results", help="the folder of the page")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which a row is given up")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)  # a row's own process: measure it and write its numbers here
    return parser.parse_args()


def _all(wanted: list[Row], every: list[Row], options: argparse.Namespace) -> int:
    card = _card(options)
    options.results.mkdir(parents=True, exist_ok=True)
    store = options.results / f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    results: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    failed = 0
    for row in wanted:
        if _is_settled(results.get(row.name)) and not options.again:
            continue
        print(f"{row.name} …", flush=True)
        results[row.name] = _in_a_process(row, options)
        failed += bool(results[row.name].get("again"))
        print(f"  {json.dumps(results[row.name])}", flush=True)
        store.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        store.with_suffix(".md").write_text(_page(results, every, card, options), encoding="utf-8")
    print(f"{store.with_suffix('.md')}: {sum('seconds' in made for made in results.values())} rows measured.")
    return 1 if failed else 0


def _is_settled(made: dict[str, Any] | None) -> bool:
    """Measured, or proved not to fit. All else may be better the next time: a ComfyUI given, a trainer there."""
    return made is not None and ("error" not in made or made["error"].startswith("out of memory"))


def _page(results: dict[str, Any], every: list[Row], card: str, options: argparse.Namespace) -> str:
    from bench import FULL_SIDE, TINY_SIDE
    from report import page

    cap = options.cap if options.device == "cuda" else 0.0
    return page(results, every, card=card, cap=cap, side=TINY_SIDE if options.tiny else FULL_SIDE, tiny=options.tiny)


def _in_a_process(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "row.json"
        command = [
            sys.executable,
            str(HERE),
            "--rows",
            row.name,
            "--only",
            str(answer),
            "--device",
            options.device,
            "--cap",
            str(options.cap),
        ]
        command += ["--place", str(options.place), "--comfyui", options.comfyui, *(["--tiny"] if options.tiny else [])]
        try:
            ran = subprocess.run(command, timeout=options.limit, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"given up after {options.limit:.0f} s", "again": True}
        if answer.is_file():
            return json.loads(answer.read_text(encoding="utf-8"))
    told = [line for line in ran.stderr.splitlines() if line.strip()] or [f"exit code {ran.returncode}"]
    return {"error": f"failed: {told[-1][:200]}", "again": True}


def _one(row: Row, options: argparse.Namespace) -> int:
    """Measure one row in this very process."""
    import torch
    from bench import Bench, cap_memory

    device = torch.device(options.device)
    cap = cap_memory(options.cap) if device.type == "cuda" else 0.0
    if device.type == "cpu":
        torch.set_num_threads(1)
    options.place.mkdir(parents=True, exist_ok=True)
    way = WAYS[row.way]
    more = {"comfyui": options.comfyui} if way.kind in ("comfyui", "ours_comfyui") else {}
    measure = importlib.import_module(MODULES[way.kind]).measure
    try:
        made = measure(row, Bench(device, options.tiny, cap, options.place), **way.options, **more)
    except torch.OutOfMemoryError:
        made = {"error": f"out of memory with {cap:g} GiB"}
    options.only.write_text(json.dumps(made), encoding="utf-8")
    return 0


def _card(options: argparse.Namespace) -> str:
    import torch

    return torch.cuda.get_device_name(0) if options.device == "cuda" else "a CPU" if not options.tiny else "a CPU, tiny model"


if __name__ == "__main__":
    sys.exit(main())
