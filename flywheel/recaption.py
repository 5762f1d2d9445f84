"""Changing captions where they live: metadata.json and .txt for photographs, the lineage for candidates. The export follows at its next run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from . import captions, enrich, source_metadata
from .candidates import Shelf, record_of
from .dataset import Dataset, ImageRecord
from .errors import DatasetError
from .images import open_image
from .project import Stage

Describe = Callable[[Image.Image], str]  # a captioning model: an upright RGB picture to what is in it
Report = Callable[[int, int], None]

SEEN_PX = 1024  # longer side a captioning model is shown; more only costs it time
WRITTEN_EVERY = 10  # images; what was described is also written when somebody cancels
EDITED = "caption_edited"  # fact of a lineage: somebody has changed the caption since it was made


def rewrite(dataset: Dataset, changed: Mapping[str, str]) -> Dataset:
    """The dataset with other captions (by image name), which are written for good and count as a person's.

    Raises:
        DatasetError: an image is not in the dataset, a caption is empty, or nothing holds captions for this stage. Nothing is written then.
        StorageError: the disk refused; captions written by then stay.
    """
    keys = {image.name: image.key for image in dataset.images}
    problems = [f"{name} is not in this dataset" for name in changed if name not in keys]
    problems += [f"the caption of {name} is empty" for name, caption in changed.items() if not caption.strip()]
    if problems:
        raise DatasetError("These captions cannot be set:", problems)
    if dataset.stage_name == "source":
        source_metadata.set_captions(dataset.project, changed)
    elif dataset.stage_name in ("enriched", "synthetic"):
        _note(Shelf(dataset.stage), {keys[name]: caption for name, caption in changed.items()})
    else:
        raise DatasetError(f"Captions of {dataset.stage_name} images are edited in the .txt files beside them.")
    return replace(dataset, images=tuple(replace(image, caption=changed.get(image.name, image.caption)) for image in dataset.images))


def dataset_of(stage: Stage) -> Dataset:
    """Every image of a stage with the caption it has now.

    Raises:
        DatasetError: nothing holds captions for this stage, or metadata.json is damaged.
    """
    if stage.name == "source":
        entries = source_metadata.spoken(stage, source_metadata.entries_of(stage))
        there = (entry for entry in entries.values() if not entry.get("removed"))
        records = tuple(_photo(stage, entry) for entry in there)
    elif stage.name in ("enriched", "synthetic"):
        shelf = Shelf(stage)
        records = tuple(record_of(shelf, key) for key in sorted(shelf.files, key=lambda key: shelf.files[key].name))
    else:
        raise DatasetError(f"Captions of {stage.name} images are edited in the .txt files beside them.")
    return Dataset(stage.project, stage.name, records)


def _photo(stage: Stage, entry: Mapping[str, Any]) -> ImageRecord:
    path = stage.project.relative(stage.folder / entry["filename"])
    return ImageRecord(entry["key"], path, entry["width"], entry["height"], entry["caption"])


def untouched(dataset: Dataset) -> tuple[str, ...]:
    """Names of the images whose caption is still the one that was made for them.

    Raises:
        DatasetError: metadata.json is damaged.
    """
    if dataset.stage_name == "source":
        edited = source_metadata.edited_captions(dataset.project)
        return tuple(image.name for image in dataset.images if image.name not in edited)
    facts = {lineage.image_key: lineage.facts for lineage in Shelf(dataset.stage).lineages.values()}
    return tuple(image.name for image in dataset.images if not facts.get(image.key, {}).get(EDITED))


def describe(dataset: Dataset, model: Describe, *, template: str, again: bool = False, report: Report | None = None) -> tuple[Dataset, int]:
    """The dataset captioned by a model, and how many images it described. Captions that were edited or described before stay, unless `again`.

    `template` is filled with {text}, {token} and {noun}. `report(done, total)` may raise to stop; what is described by then is kept.

    Raises:
        PromptError: the template does not work (before the model is asked), or the model said nothing.
        DatasetError, StorageError: see `rewrite`.
    """
    captions.written_by_model("words", template, dataset.project)
    names = {image.name for image in dataset.images} if again else set(untouched(dataset))
    wanted = [image for image in dataset.images if image.name in names]
    waiting: dict[str, str] = {}
    try:
        for number, image in enumerate(wanted):
            if report:
                report(number, len(wanted))
            answer = model(open_image(dataset.path(image), at_least=SEEN_PX).image)
            waiting[image.name] = captions.written_by_model(answer, template, dataset.project)
            if len(waiting) == WRITTEN_EVERY:
                dataset = rewrite(dataset, waiting)
                waiting = {}
    finally:
        if waiting:
            dataset = rewrite(dataset, waiting)
    if report:
        report(len(wanted), len(wanted))
    return dataset, len(wanted)


def _note(shelf: Shelf, captions: Mapping[str, str]) -> None:
    requests = {lineage.image_key: key for key, lineage in shelf.lineages.items()}
    for image_key, caption in captions.items():
        shelf.note(requests[image_key], caption=caption, **{EDITED: True})
    enrich.write_metadata(shelf)
