"""Step 1.8: is the new LoRA better than the one before? Shows what training left behind; generates nothing."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io
from PIL import Image

from ..flywheel.images import open_image
from ..flywheel.project import Project
from ..flywheel.sheets import Tile, contact_sheet
from ..training import job as jobs
from ..training import versions
from ..training.spec import Kind
from . import host, jobs_here, sockets


class CompareLoras(io.ComfyNode):
    """Two finished trainings of a character side by side: the last samples of the same prompts, and the figures of both. With more data or other
    settings the next LoRA should be better; here you see whether it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_CompareLoras",
            display_name="Compare LoRAs",
            category="FLENwheel/train",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.PROJECT.Input("project", tooltip="The character whose LoRAs are compared."),
                io.Combo.Input("kind", options=list(get_args(Kind)), default="character", tooltip="Character LoRAs or edit LoRAs."),
                io.Int.Input(
                    "before", default=0, min=0, max=9999, tooltip="Version on the left: 1 for v001. 0 takes the one before the other."
                ),
                io.Int.Input("after", default=0, min=0, max=9999, tooltip="Version on the right: 2 for v002. 0 takes the newest."),
                io.Int.Input("size", default=384, min=64, max=1024, tooltip="Size of one sample on the sheet, in pixels."),
            ],
            outputs=[
                io.Image.Output("sheet", tooltip="One row per prompt: left the version before, right the one after."),
                io.String.Output("report", tooltip="Images, steps, loss and length of both."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["v1 v2", "iteration", "before after lora"],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        return jobs_here.revision(lambda one: [one.id, one.status().state])

    @classmethod
    def execute(cls, project: Project, kind: Kind, before: int, after: int, size: int) -> io.NodeOutput:
        before, after = versions.pair(project, kind, before, after)
        there = versions.registered(project, kind)
        sheet = contact_sheet(
            _tiles(versions.side_by_side(there[before], there[after]), before, after, size),
            columns=2,
            cell_px=size,
            title=f"{project.name}: v{before:03} and v{after:03}",
        )
        text = "\n".join(_figures(number, there[number]) for number in (before, after))
        return io.NodeOutput(host.tensor(sheet), text, ui=host.shown(text, host.tensor(sheet), cls))


def _tiles(rows: list[versions.Row], before: int, after: int, size_px: int) -> list[Tile]:
    empty = Image.new("RGB", (size_px, size_px), (43, 43, 43))
    return [
        Tile(open_image(path, at_least=size_px).image if path else empty, f"v{number:03} · {row.prompt}{'' if path else ' · no sample'}")
        for row in rows
        for number, path in ((before, row.before), (after, row.after))
    ] or [Tile(empty, "no samples")]


def _figures(number: int, one: jobs.Job) -> str:
    spec, losses, held_out = one.spec, one.losses(), one.validations()
    last = [loss for _, loss in losses[-50:]]
    told = f", held out {held_out[-1][1]:.4g}" if held_out else ""
    mean = f", loss {sum(last) / len(last):.4g} over the last {len(last)} steps" if last else ""
    return f"v{number:03}: {spec.steps} steps, rank {spec.rank}, learning rate {spec.learning_rate:g}{mean}{told}, data {spec.dataset_key[:8]}, job {one.id}"


NODES = [CompareLoras]
