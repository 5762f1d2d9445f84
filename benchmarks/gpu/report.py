"""The rows so far as a page: one table per number of steps, ours beside its peers, and whether the goals were met."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ceiling import flop, training_flop
from rows import PEERS, TRAINERS, WAYS, Row

GOAL_RATIO, GOAL_SHARE = 1.5, 0.6
TRAINING_SHARE, TRAINING_PEAKS = 0.45, {1: 16.0, 3: 21.0}  # of the ceiling; GiB by controls, at a megapixel
Results = Mapping[str, Mapping[str, Any]]


def page(results: Results, rows: list[Row], *, card: str, cap: float, side: int, tiny: bool) -> str:
    ceiling = results.get("ceiling", {})
    best = float(ceiling.get("flops", 0.0))
    integers = f", {ceiling['int8_ops'] / 1e12:.2f} TOP/s with 8-bit integers" if "int8_ops" in ceiling else ""
    lines = [
        f"# Qwen-Image-Edit at {side} px on {card}" + (f", memory capped at {cap:g} GiB" if cap else ""),
        "",
        f"{'Tiny model' if tiny else 'Model of full size'}, random weights, torch {ceiling.get('torch', '?')}. Products of large matrices reach"
        f" {best / 1e12:.2f} TFLOP/s{integers}. Made with `python benchmarks/gpu`.",
        "",
        "An edit is everything from prompt and photo to pixels, each with a new prompt; loading is left out. 4 and 8 steps are without guidance, 40 with."
        " Peak is what torch held of the card, in ComfyUI with its dynamic VRAM also what that held in the end. Share of the ceiling: the transformer's arithmetic in that time, against the products above.",
    ]
    edits = [row for row in rows if row.steps]
    for steps in dict.fromkeys(row.steps for row in edits):
        lines += [
            "",
            f"## {steps} steps",
            "",
            "| | controls | s per edit | against the best peer | peak GiB | share of the ceiling | |",
            "|---" * 7 + "|",
        ]
        lines += [_line(row, results, best, side, tiny) for row in edits if row.steps == steps]
    training = [row for row in rows if WAYS[row.way].kind in TRAINERS]
    lines += ["", "## Training", "", "| | controls | megapixels | s per step | against musubi-tuner | peak GiB | share of the ceiling | |"]
    lines += ["|---" * 8 + "|", *(_step(row, results, best, tiny) for row in training)]
    return (
        "\n".join([*lines, "", *_goals(results, edits, best, side, cap), *([] if tiny else _training_goals(results, training, best))])
        + "\n"
    )


def _line(row: Row, results: Results, best: float, side: int, tiny: bool) -> str:
    made = results.get(row.name, {})
    if "seconds" not in made:
        return f"| {WAYS[row.way].title} | {row.controls} | | | | | {_remark(made)} |"
    peer = _best_peer(row, results)
    against = f"{peer / made['seconds']:.2f} x as fast" if peer and WAYS[row.way].is_ours else ""
    share = "" if tiny or not best else f"{_share(row, made, best, side):.0%}"
    return (
        f"| {WAYS[row.way].title} | {row.controls} | {made['seconds']:.2f} | {against} | {made['peak']:.1f} | {share} | {_remark(made)} |"
    )


def _step(row: Row, results: Results, best: float, tiny: bool) -> str:
    made = results.get(row.name, {})
    head = f"| {WAYS[row.way].title} | {row.controls} | {row.megapixels:g} |"
    if "seconds" not in made:
        return f"{head} | | | | {_remark(made)} |"
    against = f"{ratio:.2f} x as fast" if not tiny and (ratio := _against_musubi(row, results)) else ""  # tiny models are not of one size
    share = "" if tiny or not best else f"{training_flop(row) / made['seconds'] / best:.0%}"
    return f"{head} {made['seconds']:.2f} | {against} | {made['peak']:.1f} | {share} | {_remark(made)} |"


def _against_musubi(row: Row, results: Results) -> float | None:
    theirs = results.get(Row("musubi", row.controls, 0, row.megapixels).name, {})
    return theirs["seconds"] / results[row.name]["seconds"] if row.way == "train" and "seconds" in theirs else None


def _training_goals(results: Results, rows: list[Row], best: float) -> list[str]:
    """Only of rows that were run, and said of how many."""
    ours = [(row, results[row.name]) for row in rows if row.way == "train" and "seconds" in results.get(row.name, {})]
    peaks = [(row.controls, made["peak"]) for row, made in ours if row.megapixels == 1 and row.controls in TRAINING_PEAKS]
    ratios = [ratio for row, _ in ours if (ratio := _against_musubi(row, results))]
    shares = [training_flop(row) / made["seconds"] / best for row, made in ours if row.megapixels == 1 and best]
    return [
        f"- A training step at 1 megapixel in {' and '.join(f'{peak:g} GiB with {count} controls' for count, peak in TRAINING_PEAKS.items())}, no block"
        f" swapped: {sum(peak <= TRAINING_PEAKS[count] for count, peak in peaks)} of {len(peaks)} rows.",
        f"- At least {GOAL_RATIO:g} times as fast as musubi-tuner: {sum(ratio >= GOAL_RATIO for ratio in ratios)} of {len(ratios)} rows.",
        f"- A training step at 1 megapixel uses at least {TRAINING_SHARE:.0%} of the ceiling: {sum(share >= TRAINING_SHARE for share in shares)} of"
        f" {len(shares)} rows.",
    ]


def _remark(made: Mapping[str, Any]) -> str:
    return str(made.get("error") or made.get("how") or ("" if made else "not run yet")).replace("|", "/")


def _best_peer(row: Row, results: Results) -> float | None:
    names = [Row(peer, row.controls, row.steps).name for peer in PEERS]
    return min((results[name]["seconds"] for name in names if "seconds" in results.get(name, {})), default=None)


def _share(row: Row, made: Mapping[str, Any], best: float, side: int) -> float:
    return flop(row, side) / made["seconds"] / best


def _goals(results: Results, edits: list[Row], best: float, side: int, cap: float) -> list[str]:
    """Only of rows that were run, and said of how many."""
    ours = [(row, results[row.name]) for row in edits if row.way == "ours" and "seconds" in results.get(row.name, {})]
    ratios = [(row, peer / made["seconds"]) for row, made in ours if (peer := _best_peer(row, results))]
    shares = [_share(row, made, best, side) for row, made in ours if row.controls == 1 and best]
    resident = [made["how"].startswith("resident") for _, made in ours]
    told = [
        "## Goals",
        "",
        f"- Everything stays on a card of {cap or 24:g} GiB: {sum(resident)} of {len(resident)} rows.",
        f"- At least {GOAL_RATIO:g} times as fast as the best peer: {sum(ratio >= GOAL_RATIO for _, ratio in ratios)} of {len(ratios)} rows"
        + (f" ({min(ratio for _, ratio in ratios):.2f} to {max(ratio for _, ratio in ratios):.2f})." if ratios else "."),
    ]
    if cap:
        told.append(
            f"- At least {GOAL_SHARE:.0%} of the ceiling with one control: {sum(share >= GOAL_SHARE for share in shares)} of {len(shares)} rows."
        )
    return told
