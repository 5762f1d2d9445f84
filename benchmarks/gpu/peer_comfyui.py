"""ComfyUI's stock graph in the real ComfyUI: its loaders, text encoder node, sampler and VAE."""

from __future__ import annotations

from typing import Any

import in_comfyui
from bench import Bench
from rows import Row

WARM = 2  # steps of the edit before the timed ones


def measure(row: Row, bench: Bench, *, comfyui: str = "", dynamic: bool = True) -> dict[str, Any]:
    if not in_comfyui.is_there(comfyui):
        return in_comfyui.NO_COMFYUI
    in_comfyui.start(bench, comfyui, dynamic=dynamic)
    import stock_graph

    model, clip, vae = in_comfyui.loaded(bench)
    model = stock_graph.patched(model)
    photos = bench.photos(row.controls)

    def edit(number: int, steps: int = row.steps) -> None:
        stock_graph.edit(
            model,
            clip,
            vae,
            photos,
            f"Make it night {number}",
            seed=number,
            size=(bench.side, bench.side),
            steps=steps,
            cfg=row.guidance,
            same_size=True,
        )

    edit(9, WARM)
    count = bench.images(row.steps)
    seconds, peak = in_comfyui.timed_here(bench, lambda: [edit(number) for number in range(count)])
    return {"seconds": seconds / count, "peak": peak}
