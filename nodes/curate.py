"""Step 1.1: photographs in, described source dataset out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from PIL import Image

from ..flywheel import curate
from ..flywheel.errors import FlywheelError, IdentityError
from ..flywheel.faces import Embedder, embedder
from ..flywheel.images import content_key, open_image, png_bytes, value_key, write_whole
from ..flywheel.project import Project, Stage
from ..flywheel.sheets import Tile, contact_sheet
from . import host, sockets


class CurateSource(io.ComfyNode):
    """Takes in 10 to 20 photos of the character: rotates them as EXIF says, checks sharpness, light, size, faces and duplicates, and captions
    them. Your originals are copied, never changed. Edit captions, angles and expressions in data/source/v1/metadata.json: your words are kept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_CurateSource",
            display_name="Curate Source",
            category="FLENwheel/curate",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.PROJECT.Input("project", tooltip="The character these photos show."),
                io.String.Input(
                    "folder", default="", tooltip="Folder with the photos: a full path, or a folder inside ComfyUI's input folder."
                ),
                io.String.Input(
                    "caption_template",
                    default=curate.CAPTION,
                    tooltip="Caption of each photo. {token} and {noun} come from the project, {expression} and {angle} are guessed from the face.",
                ),
                io.Boolean.Input(
                    "strict",
                    default=False,
                    tooltip="On: stop when a check fails (10 usable photos, 2 angles, all captioned, nothing unreadable). Off: warn and go on.",
                ),
                io.Image.Input("images", optional=True, tooltip="Photos from another node, instead of or besides the folder."),
            ],
            outputs=[
                sockets.DATASET.Output("dataset", tooltip="The usable photos."),
                io.Image.Output("sheet", tooltip="All photos with what was found, as one picture."),
                io.String.Output("report", tooltip="The checklist and every problem, in words."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["dataset", "quality", "captions", "photos", "near duplicates"],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, caption_template: str, strict: bool, **_: Any) -> str:
        """Changes when a photo does, or when a person edits a metadata.json."""
        edits = host.fingerprint("source", lambda stage: curate.edits_fingerprint(stage.project))
        return value_key([_listing(folder), caption_template, strict, edits])

    @classmethod
    def execute(
        cls, project: Project, folder: str, caption_template: str, strict: bool, images: torch.Tensor | None = None
    ) -> io.NodeOutput:
        found = curate.photos_in(host.folder(folder)) if folder.strip() or images is None else curate.Folder((), ())
        files = [*found.photos, *_saved(images, project)]
        engine, without_faces = _engine()
        report = host.Reporter(cls.hidden.unique_id, "Reading photos and faces")
        curated = curate.curate(project, files, engine, caption_template=caption_template, strict=strict, report=report.count)
        text = "\n".join([*_lines(curated), *found.notes, *without_faces])
        sheet = host.tensor(_sheet(curated, project.stage("source")))
        return io.NodeOutput(curated.dataset, sheet, text, ui=host.shown(text, sheet, cls))


def _engine() -> tuple[Embedder | None, tuple[str, ...]]:
    try:
        return embedder(), ()
    except IdentityError as error:
        return None, (f"Faces were not looked at: {error}",)


def _listing(folder: str) -> list[list[object]]:
    try:
        entries = sorted(host.folder(folder).iterdir())
    except FlywheelError:
        return []
    return [[entry.name, entry.stat().st_size, entry.stat().st_mtime_ns] for entry in entries if entry.is_file()]


def _saved(images: torch.Tensor | None, project: Project) -> list[Path]:
    """Photos that came over a socket, as files named by content."""
    saved: list[Path] = []
    for image in host.pictures(images) if images is not None else ():
        png = png_bytes(image)
        path = project.cache / "received" / f"image-{content_key(png)}.png"
        if not path.is_file():
            write_whole(path, png)
        saved.append(path)
    return saved


def _lines(curated: curate.Curated) -> list[str]:
    usable = [photo for photo in curated.photos if photo.usable]
    lines = [f"{len(usable)} of {len(curated.photos)} photos are usable.", ""]
    lines += [f"{'✔' if check.passed else '✘'} {check.name}: {check.detail}" for check in curated.checklist]
    told = [photo for photo in curated.photos if photo.problems or photo.treatments]
    if told:
        lines.append("")
    lines += [f"{photo.original}: {'; '.join([*photo.problems, *photo.treatments])}" for photo in told]
    return [*lines, *curated.notes]


def _sheet(curated: curate.Curated, stage: Stage) -> Image.Image:
    tiles = [
        Tile(
            open_image(stage.project.path(photo.record.path), at_least=512).image,
            f"{photo.record.name} · {photo.angle} · {photo.expression}",
            photo.quality.verdict if photo.quality else "",
        )
        for photo in curated.photos
        if photo.record
    ]
    return contact_sheet(tiles, title=f"{stage.project.name}: {len(curated.dataset.images)} of {len(curated.photos)} photos usable")


NODES = [CurateSource]
