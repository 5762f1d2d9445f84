"""Step 1.1: photographs in, described source dataset out; what is missing for the model card; captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image

from ..flywheel import captions, coverage, curate, photo_shelf, recaption, source_metadata
from ..flywheel.dataset import Dataset
from ..flywheel.errors import DatasetError, EditorUnavailable, FlywheelError, IdentityError
from ..flywheel.faces import Embedder, embedder
from ..flywheel.images import content_key, open_image, png_bytes, value_key, write_whole
from ..flywheel.project import Project, Stage
from ..flywheel.quality import ANGLES, EXPRESSIONS, FRAMINGS, UNKNOWN
from ..flywheel.sheets import MapCell, Tile, contact_sheet, coverage_map, stacked
from . import host, sockets

SHEET_PIXELS = 16_000_000  # of the contact sheet; as a tensor three times four bytes each
TOLD_IN_FULL = 40  # photos whose every figure is in the report; more are in metadata.json
WHAT_TO_LOAD = "Load one that can see and write in Load CLIP, for example Qwen3-VL, Qwen2.5-VL or Gemma."
QWEN_25_VL = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"  # without the words on edits
)
CAPTION_TEMPLATE = "photo of {token} {noun}, {text}"
INSTRUCTION = (
    "Describe this photo of a person in one sentence of comma-separated parts: clothes, pose, place, background, light."
    " Do not describe hair, face, eyes, skin, age or body. Do not begin with 'The image'."
)


class CurateSource(io.ComfyNode):
    """Takes in 10 to 20 photos of the character: rotates them as EXIF says, checks sharpness, light, size, faces and duplicates, and captions
    them. Your originals are copied, never changed. Edit captions, angles and expressions in data/source/v1/metadata.json, or captions in the .txt
    beside each photo: your words are kept. Points at the odd one out among the faces before anything is made from it."""

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
                    tooltip="Caption of each photo. {token} and {noun} come from the project, {expression}, {angle} and {framing} are guessed from the face,"
                    " {setting} is what you wrote in metadata.json. A part between commas that is unknown is left out.",
                ),
                io.Boolean.Input(
                    "strict",
                    default=False,
                    tooltip="On: stop when a check fails (10 usable photos, 2 angles, all captioned, nothing unreadable). Off: warn and go on.",
                ),
                io.Image.Input("images", optional=True, tooltip="Photos from another node, instead of or besides the folder."),
                io.Boolean.Input(
                    "keep_place",
                    default=False,
                    optional=True,
                    tooltip="Off: if a photo says where it was taken (GPS), its copy does not; pixels and originals stay as they are. On: copies keep it.",
                ),
            ],
            outputs=[
                sockets.DATASET.Output("dataset", tooltip="The usable photos."),
                io.Image.Output("sheet", tooltip="All photos with what was found, as one picture."),
                io.String.Output("report", tooltip="The checklist, every problem and every figure with its bound, in words."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["dataset", "quality", "captions", "photos", "near duplicates"],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, caption_template: str, strict: bool, keep_place: bool = False, **_: Any) -> str:
        """Changes when a photo does, or when a person edits a metadata.json."""
        edits = host.fingerprint("source", lambda stage: source_metadata.edits_fingerprint(stage.project))
        return value_key([_listing(folder), caption_template, strict, keep_place, edits])

    @classmethod
    def execute(
        cls,
        project: Project,
        folder: str,
        caption_template: str,
        strict: bool,
        images: torch.Tensor | None = None,
        keep_place: bool = False,
    ) -> io.NodeOutput:
        found = photo_shelf.photos_in(host.folder(folder)) if folder.strip() or images is None else photo_shelf.Folder((), ())
        files = [*found.photos, *_saved(images, project)]
        engine, without_faces = _engine()
        report = host.Reporter(cls.hidden.unique_id, "Reading photos and faces")
        curated = curate.curate(
            project, files, engine, caption_template=caption_template, keep_place=keep_place, strict=strict, report=report.count
        )
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
    lines += ["", *curated.notes] if curated.notes else []
    measured = [photo for photo in curated.photos if photo.record and photo.quality]
    if len(measured) > TOLD_IN_FULL:
        return [*lines, "", f"The figures of all {len(measured)} photos with their bounds are in metadata.json under measures."]
    return [*lines, "", *(_figures(photo) for photo in measured)]


def _figures(photo: curate.Photo) -> str:
    assert photo.record and photo.quality
    return f"{photo.record.name} ({photo.original}), {photo.quality.verdict}: {'; '.join(photo.measures)}"


def _sheet(curated: curate.Curated, stage: Stage) -> Image.Image:
    """One tile per photo, smaller the more there are, so that the sheet of 1,000 photos takes no more memory than that of 250."""
    cell_px = max(96, min(256, int((SHEET_PIXELS / max(1, len(curated.photos))) ** 0.5)))
    return contact_sheet(
        _tiles(curated, stage, cell_px),
        cell_px=cell_px,
        title=f"{stage.project.name}: {len(curated.dataset.images)} of {len(curated.photos)} photos usable",
    )


def _tiles(curated: curate.Curated, stage: Stage, cell_px: int) -> Iterator[Tile]:
    for photo in curated.photos:
        if photo.record and photo.quality:
            picture = open_image(stage.project.path(photo.record.path), at_least=2 * cell_px).image
            said = " · ".join((photo.record.name, photo.angle, photo.expression, photo.framing))
            yield Tile(picture, said, "warning: odd one out" if photo.odd else photo.quality.verdict)


class CoverageMap(io.ComfyNode):
    """Which of the model card's 23 images (5 angles x 4 expressions, 3 poses of the body) your pictures already show, and the prompts for those
    that are missing. Connect its prompts to Enrich Dataset to make exactly the empty cells."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_CoverageMap",
            display_name="Coverage Map",
            category="FLENwheel/curate",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input("dataset", tooltip="Photos of Curate Source, or candidates that you labelled good."),
                io.Int.Input("per_cell", default=1, min=1, max=20, tooltip="How many pictures a cell needs to count as covered."),
                io.Int.Input(
                    "photos",
                    default=2,
                    min=1,
                    max=20,
                    tooltip="From how many of your best photos each missing cell is to be made: 2 photos and 6 empty cells make 12 images.",
                ),
            ],
            outputs=[
                io.Image.Output("map", tooltip="The map as a picture."),
                sockets.PROMPTS.Output(
                    "prompts",
                    tooltip="One edit per missing cell, for Enrich Dataset with the photos. Runs nothing behind it when all is covered.",
                ),
                io.String.Output("edit_prompts", tooltip="The same prompts as text, one per line, for Prompt Set or to change them."),
                io.String.Output(
                    "card_prompts", tooltip="The card's own prompts for the missing cells: connect to the prompts of Synthetic Images."
                ),
                io.Int.Output("missing", tooltip="How many cells are missing."),
                io.String.Output("report", tooltip="The map in words, and which pictures fit nowhere and why."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["model card", "angles", "expressions", "what is missing", "balance"],
        )

    @classmethod
    def execute(cls, dataset: Dataset, per_cell: int, photos: int) -> io.NodeOutput:
        engine, without_faces = _engine() if dataset.stage_name != "source" else (None, ())
        report = host.Reporter(cls.hidden.unique_id, "Measuring faces")
        found = coverage.coverage(coverage.look(dataset, engine, report=report.count))
        missing = found.missing(per_cell)
        edits = coverage.prompts(missing, coverage.best_photos(dataset.project, photos)) if missing else None
        picture = host.tensor(_map(found, dataset))
        text = "\n".join([found.text(per_cell), *without_faces])
        return io.NodeOutput(
            picture,
            edits or ExecutionBlocker(None),
            "\n".join(slot.edit for slot in missing),
            "\n".join(coverage.card_prompts(missing, dataset.project)),
            len(missing),
            text,
            ui=host.shown(text, picture, cls),
        )


def _map(found: coverage.Coverage, dataset: Dataset) -> Image.Image:
    files = {image.name: dataset.path(image) for image in dataset.images}
    cells = {(cell.slot.angle, cell.slot.expression): _cell(cell, files) for cell in found.cells if not cell.slot.pose}
    rows = [(expression, [cells[angle, expression] for angle in ANGLES]) for expression in EXPRESSIONS]
    bodies = [cell for cell in found.cells if cell.slot.pose]
    covered = sum(bool(cell.pictures) for cell in found.cells)
    title = f"{dataset.project.name}, {dataset.stage_name}: {covered} of {len(found.cells)} cells of the model card"
    portraits = coverage_map(ANGLES, rows, title=title)
    poses = coverage_map([str(cell.slot.pose) for cell in bodies], [("full body", [_cell(cell, files) for cell in bodies])])
    return stacked([portraits, poses])


def _cell(cell: coverage.Cell, files: dict[str, Path]) -> MapCell:
    if not cell.pictures:
        return MapCell(0)
    framings = Counter(said.framing for said in cell.pictures)
    words = ", ".join(f"{framings[framing]} {framing}" for framing in (*FRAMINGS, UNKNOWN) if framings[framing])
    return MapCell(len(cell.pictures), open_image(files[cell.pictures[0].name], at_least=320).image, words)


class EditCaptions(io.ComfyNode):
    """Changes captions of photos or candidates: find and replace, or a list of captions. Shows what would change first; writes it when you say so.
    The .txt beside a photo and metadata.json always say the same."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_EditCaptions",
            display_name="Edit Captions",
            category="FLENwheel/curate",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input("dataset", tooltip="Photos of Curate Source, or candidates."),
                io.String.Input("find", default="", tooltip="Words to replace in every caption. Empty: nothing is replaced."),
                io.String.Input("replace", default="", tooltip="What to write instead. Empty removes the words."),
                io.Boolean.Input("whole_words", default=True, tooltip="On: 'man' is not found in 'woman'."),
                io.Boolean.Input("match_case", default=False, tooltip="On: 'Smile' and 'smile' are different words."),
                io.String.Input(
                    "list",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    placeholder="source_003: photo of ohwx_char person, angry expression, front view, in a kitchen",
                    tooltip="Captions of single images, one 'name: caption' per line. They come after finding and replacing.",
                ),
                io.Boolean.Input("apply", default=False, tooltip="Off: only show what would change. On: write it."),
                io.String.Input(
                    "texts",
                    optional=True,
                    force_input=True,
                    tooltip="Captions from another node, in the order of the images, for example of a captioning model behind Dataset to Images.",
                ),
                io.String.Input(
                    "template",
                    optional=True,
                    default=CAPTION_TEMPLATE,
                    tooltip="What is written around each of the texts. It must hold {text} and should hold {token} and {noun}.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    optional=True,
                    tooltip="Off: the texts leave captions alone that somebody edited or described before. On: they replace those too.",
                ),
            ],
            outputs=[
                sockets.DATASET.Output("dataset_out", display_name="dataset", tooltip="The dataset with the captions it has now."),
                io.String.Output("report", tooltip="What changed or would change, and what is wrong with the captions then."),
            ],
            is_input_list=True,
            search_aliases=["find and replace", "caption lint", "bulk edit", "captioning", "tags"],
        )

    @classmethod
    def execute(cls, **given: list[Any]) -> io.NodeOutput:
        one = {name: values[0] for name, values in given.items() if name != "texts" and values}
        dataset: Dataset = one["dataset"]
        before = {image.name: image.caption for image in dataset.images}
        after = _edited(dataset, before, one, given.get("texts") or [])
        changes = [captions.Change(name, before[name], caption) for name, caption in after.items() if caption != before[name]]
        if changes and one["apply"]:
            dataset = recaption.rewrite(dataset, {change.name: change.after for change in changes})
        done = "changed" if one["apply"] else "would change; turn apply on to write them"
        lines = [f"{len(changes)} of {len(before)} captions {done}", *map(str, changes)]
        findings = captions.lint(after, dataset.project)
        lines += ["", "What is wrong with the captions then:" if findings else "No fault was found in the captions.", *map(str, findings)]
        text = "\n".join(lines)
        return io.NodeOutput(dataset, text, ui=host.shown(text))


def _edited(dataset: Dataset, before: dict[str, str], one: dict[str, Any], texts: list[str]) -> dict[str, str]:
    """Captions after texts, find and replace, and the list, in this order."""
    after = dict(before)
    if texts:
        if len(texts) != len(before):
            raise DatasetError(f"There are {len(texts)} texts for {len(before)} images. Connect one text per image, in the same order.")
        template = one.get("template") or CAPTION_TEMPLATE
        told = {name: captions.written_by_model(text, template, dataset.project) for name, text in zip(before, texts, strict=True)}
        free = before if one.get("overwrite") else recaption.untouched(dataset)
        after |= {name: told[name] for name in free}
    if one["find"]:
        found = captions.replaced(after, one["find"], one["replace"], whole_words=one["whole_words"], match_case=one["match_case"])
        after |= {change.name: change.after for change in found}
    return after | {change.name: change.after for change in captions.listed(one["list"], after)}


class CaptionImages(io.ComfyNode):
    """Lets a vision language model that ComfyUI has loaded describe each image, and writes that into the captions around token and noun. Captions you
    changed yourself are left alone. Needs a model that can see, for example Qwen3-VL or Gemma in Load CLIP; none is downloaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FLEN_CaptionImages",
            display_name="Caption Images",
            category="FLENwheel/curate",
            description=cls.__doc__ or "",
            is_output_node=True,
            inputs=[
                sockets.DATASET.Input("dataset", tooltip="Photos of Curate Source, or candidates."),
                io.Clip.Input(
                    "clip", tooltip="A language model that can see, from Load CLIP. The same as for ComfyUI's own Generate Text."
                ),
                io.String.Input(
                    "instruction", default=INSTRUCTION, multiline=True, dynamic_prompts=False, tooltip="What the model is asked."
                ),
                io.String.Input(
                    "template",
                    default=CAPTION_TEMPLATE,
                    tooltip="What is written around the model's words. It must hold {text} and should hold {token} and {noun}.",
                ),
                io.Int.Input("max_length", default=120, min=8, max=1024, tooltip="How many tokens the model may say."),
                io.Boolean.Input("again", default=False, tooltip="On: also images that were captioned or edited before."),
            ],
            outputs=[
                sockets.DATASET.Output("dataset_out", display_name="dataset", tooltip="The dataset with its new captions."),
                io.String.Output("report", tooltip="Every new caption, and what is wrong with the captions."),
            ],
            hidden=[io.Hidden.unique_id],
            search_aliases=["captioning", "VLM", "describe", "auto caption"],
        )

    @classmethod
    def execute(cls, dataset: Dataset, clip: Any, instruction: str, template: str, max_length: int, again: bool) -> io.NodeOutput:
        def model(picture: Image.Image) -> str:
            return _described(clip, picture, instruction, max_length)

        report = host.Reporter(cls.hidden.unique_id, "Describing images")
        dataset, count = recaption.describe(dataset, model, template=template, again=again, report=report.count)
        findings = captions.lint({image.name: image.caption for image in dataset.images}, dataset.project)
        lines = [f"{count} images described, {len(dataset.images) - count} left as they were."]
        lines += [f"{image.name}: {image.caption}" for image in dataset.images]
        text = "\n".join([*lines, "", *map(str, findings)])
        return io.NodeOutput(dataset, text, ui=host.shown(text))


def _described(clip: Any, picture: Image.Image, instruction: str, max_length: int) -> str:
    """What the model says of a picture, the most likely words each time.

    Raises:
        EditorUnavailable: this text encoder cannot see, or cannot write.
    """
    tokens = _shown_to(clip, host.tensor(picture), instruction)
    try:
        return str(clip.decode(clip.generate(tokens, do_sample=False, max_length=max_length)))
    except (AttributeError, NotImplementedError) as error:  # a text encoder without a language head has no generate()
        raise EditorUnavailable(f"This text encoder cannot write text ({error}). {WHAT_TO_LOAD}") from error


def _shown_to(clip: Any, picture: torch.Tensor, instruction: str) -> dict[str, Any]:
    """Tokens of the instruction with the picture in them. Encoders differ in how they are given one, and take no notice of what they do not know."""
    for given in ({"image": picture}, {"images": [picture], "llama_template": QWEN_25_VL}):
        tokens: dict[str, Any] = clip.tokenize(instruction, min_length=1, **given)
        if any(
            isinstance(entry[0], dict) for batches in tokens.values() for batch in batches for entry in batch
        ):  # a picture among the words
            return tokens
    raise EditorUnavailable(f"This text encoder takes no picture. {WHAT_TO_LOAD}")


NODES = [CurateSource, CoverageMap, EditCaptions, CaptionImages]
