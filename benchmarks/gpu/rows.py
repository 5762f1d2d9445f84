"""What is measured on a card: every row by name, each in a process of its own, so that one that fails or is cut off costs only itself."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

EDIT_STEPS, EDIT_CONTROLS = (4, 8, 40), (1, 2, 3)
TRAIN_MEGAPIXELS = (0.25, 1.0)
GUIDED = 4.0  # with a negative prompt, so twice the work; 4 and 8 steps stand for the distilled LoRAs, which need none


@dataclass(frozen=True, slots=True)
class Way:
    """A way of making images or of training. `kind`: which module measures it. `options`: what that module is told."""

    title: str
    kind: str
    options: dict[str, Any]

    @property
    def is_ours(self) -> bool:
        return self.kind in ("ours", "ours_comfyui", "train")


WAYS: dict[str, Way] = {
    "ceiling": Way("matrix products alone", "ceiling", {}),
    "ours": Way("ours, planned for the memory there is", "ours", {}),
    "ours-w8a8": Way("ours, w8a8", "ours", {"precision": "w8a8"}),
    "ours-compile": Way("ours, blocks compiled", "ours", {"compile": True}),
    "ours-one-pass": Way("ours, guidance in the same pass", "ours", {"one_pass": True}),
    "ours-nf4": Way("ours, nf4", "ours", {"precision": "nf4"}),
    "diffusers-model-offload": Way("diffusers, bf16, model offload", "diffusers", {"offload": "model"}),
    "diffusers-group-offload": Way("diffusers, bf16, group offload", "diffusers", {"offload": "group"}),
    "diffusers-nf4": Way("diffusers, nf4, model offload", "diffusers", {"offload": "model", "nf4": True}),
    "comfyui-stock": Way("ComfyUI's stock graph, fp8", "comfyui", {}),
    "comfyui-static": Way("ComfyUI's stock graph, fp8, without dynamic VRAM", "comfyui", {"dynamic": False}),
    "inside": Way("ours on ComfyUI's models, fp8", "ours_comfyui", {}),
    "inside-static": Way("ours on ComfyUI's models, fp8, without dynamic VRAM", "ours_comfyui", {"dynamic": False}),
    "inside-tables": Way("ours on ComfyUI's models, fp8, modulation tables", "ours_comfyui", {"dynamic": False, "tables": True}),
    "inside-beside": Way("ours on ComfyUI's models, fp8, decoding beside the next image all the same", "ours_comfyui", {"check": True}),
    "train": Way("our QLoRA trainer", "train", {}),
    "musubi": Way("musubi-tuner, fp8 and blocks swapped", "musubi", {}),
}
TRAINERS = ("train", "musubi")  # kinds
PEERS = ("diffusers-model-offload", "diffusers-group-offload", "diffusers-nf4", "comfyui-stock", "comfyui-static")
INSIDE = ("inside", "inside-static", "inside-tables")


@dataclass(frozen=True, slots=True)
class Row:
    way: str
    controls: int = 1
    steps: int = 0  # of denoising; 0 where there are none
    megapixels: float = 1.0

    @property
    def name(self) -> str:
        kind = WAYS[self.way].kind
        if kind == "ceiling":
            return self.way
        if kind in TRAINERS:
            return f"{self.way}/{self.controls}-controls/{self.megapixels:g}-megapixels"
        return f"{self.way}/{self.controls}-controls/{self.steps}-steps"

    @property
    def side(self) -> int:
        """Of a training picture, in pixels."""
        return round((self.megapixels * 1e6) ** 0.5 / 16) * 16

    @property
    def guidance(self) -> float:
        return GUIDED if self.steps > 8 else 1.0

    @property
    def passes(self) -> int:
        """Through the transformer for one image; with guidance both of a step count."""
        return self.steps * (2 if self.guidance > 1 else 1)


def rows(*, tiny: bool) -> list[Row]:
    """All of them, what matters most first; of the tiny model one of each kind."""
    edits = [(controls, steps) for steps in EDIT_STEPS for controls in EDIT_CONTROLS]
    sizes = TRAIN_MEGAPIXELS
    if tiny:
        edits, sizes = [(2, 2)], (64 * 64 / 1e6,)
    made = [Row("ceiling")]
    made += [Row(way, *edit) for edit in edits for way in ("ours", *PEERS)]
    made += [Row(way, *edit) for edit in edits if edit[0] == (2 if tiny else 1) for way in INSIDE]
    made += [Row("inside-beside", *edits[0])]
    made += [Row(way, controls, 0, size) for size in sizes for controls in (EDIT_CONTROLS if not tiny else (1,)) for way in TRAINERS]
    made += [Row(way, *edit) for edit in edits for way in WAYS if way.startswith("ours-")]
    return [row for row in made if row.way != "ours-one-pass" or row.guidance > 1]  # else it is what `ours` is


def chosen(every: list[Row], pattern: str) -> list[Row]:
    return [row for row in every if fnmatch(row.name, pattern)]
