"""Corrected images: data/corrections/<version>/, each bound to the candidate it corrects by its lineage. Whether they are good is for the review.

They come from four sides: an editor that carries out a repair order, an upload, a file that a person saved there under the key or the name of
the candidate, or a working copy in editing/ that was lent to another program and saved there. The edit wheel learns from these pairs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ledger
from .candidates import Lineage, Shelf
from .errors import DatasetError, ImageError
from .images import SUFFIXES, content_key, open_image, write_whole
from .known_files import known_key
from .project import TRIES, Stage, StageName

log = logging.getLogger("flenwheel")

CORRECTED: tuple[StageName, ...] = ("enriched", "synthetic")  # where the originals may lie
SUFFIX_OF = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif", "AVIF": ".avif", "HEIF": ".heic"}
EDITING = "editing"  # working copies lie here, below the corrections folder
_ADDED = re.compile(r"^[\s_.()-]+")  # what may follow the candidate's name, as in "anna-forest (2)" or "anna-forest_fixed"


@dataclass(frozen=True, slots=True)
class Original:
    """A candidate that may be corrected. `name` is its file's name as it is now."""

    stage: Stage
    lineage: Lineage
    name: str


def originals(stage: Stage) -> list[Original]:
    """Every candidate of the lap to which a corrections stage belongs."""
    shelves = [Shelf(stage.project.stage(name)) for name in CORRECTED]
    return [
        Original(shelf.stage, lineage, shelf.files[key].name if key in shelf.files else "")
        for shelf in shelves
        for key, lineage in shelf.lineages.items()
    ]


def original_of(stage: Stage, key: str) -> Original:
    """The candidate with this image key, in any stage of this lap.

    Raises:
        DatasetError: there is none.
    """
    found = next((original for original in originals(stage) if original.lineage.image_key == key), None)
    if found is None:
        raise DatasetError(f"There is no image {key!r} to correct in {stage.project.folder_name} {stage.project.version}.")
    return found


def corrected_facts(original: Original, *, prompt: str, seed: int | None, editor: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The lineage of an image that corrects another."""
    facts = original.lineage.facts
    return {
        "origin": "correction",
        "prompt": prompt,
        "template": facts.get("template", facts["prompt"]),
        "seed": seed,
        "attempt": 0,
        "caption": facts["caption"],
        "source": facts["source"],
        "parents": [original.lineage.image_key],
        "depth": facts["depth"] + 1,
        "editor": dict(editor),
        "notes": {},
        "corrects": {"stage": original.stage.name, "key": original.lineage.image_key, "name": original.name, "prompt": facts["prompt"]},
        **more,
    }


def take_upload(stage: Stage, key: str, content: bytes, *, reviewer: str = "") -> tuple[str, Path]:
    """Keep an uploaded image that corrects the candidate `key`; its bytes are stored as they came. Answers key and file.

    Raises:
        DatasetError: there is no such candidate.
        ImageError: it is no picture.
    """
    original = original_of(stage, key)
    opened = open_image(Path(original.name or key), content=content)
    own = content_key(content)
    shelf = Shelf(stage)
    if own in shelf.files:
        return own, shelf.files[own]
    path = stage.folder / f"{Path(original.name).stem or key}-{own}{SUFFIX_OF.get(opened.format, '.png')}"
    write_whole(path, content)
    facts = corrected_facts(original, prompt=original.lineage.facts["prompt"], seed=None, editor={"editor": "by hand"}, reviewer=reviewer)
    return shelf.bind(path, size=opened.image.size, facts=facts), path


def lend(stage: Stage, key: str) -> Path:
    """A working copy of the candidate `key` for another program; what is saved there is picked up. One that was lent before is not written over.

    Raises:
        DatasetError: there is no such candidate, or its file is gone.
    """
    original = original_of(stage, key)
    lent = _working_copy(stage, original)
    if lent is not None:
        return lent
    file = Shelf(original.stage).files.get(original.lineage.request_key)
    if file is None:
        raise DatasetError(f"The file of {original.name or key} is gone: there is nothing to edit.")
    path = stage.folder / EDITING / file.name
    write_whole(path, file.read_bytes())
    return path


def working_copies(stage: Stage) -> list[Path]:
    """Images in editing/, by name."""
    folder = stage.folder / EDITING
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in files if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def pick_up(stage: Stage) -> list[str]:
    """Bind the files that a person saved into the folder or into editing/; answers, in words, which ones could not be.

    A file that is still being written cannot be decoded yet: it is looked at again the next time. One that was saved again is another image.
    """
    shelf = Shelf(stage)
    strangers, lent = shelf.strangers(), working_copies(stage)
    if not strangers and not lent:
        return []
    known = originals(stage)
    problems = _take_back(shelf, lent, known)
    for path in strangers:
        original = _meant(path.stem, known)
        if original is None:
            problems.append(f"{path.name} in data/corrections: name it after the image it corrects, or after that image's key")
            continue
        try:
            size = open_image(path).image.size
        except ImageError as error:
            problems.append(str(error))
            continue
        facts = corrected_facts(original, prompt=original.lineage.facts["prompt"], seed=None, editor={"editor": "by hand"})
        shelf.bind(path, size=size, facts=facts)
    for problem in problems:
        log.warning("%s", problem)
    return problems


def _take_back(shelf: Shelf, lent: Iterable[Path], known: Iterable[Original]) -> list[str]:
    """Keep what was saved in working copies, each as an image of its own; answers, in words, what could not be. The working copy stays where
    it is; what came of it earlier and nobody has decided on is a try that lost."""
    problems: list[str] = []
    for path in lent:
        original = _meant(path.stem, known)
        try:
            own = known_key(path)
            if original is None or own == original.lineage.image_key or own in shelf.lineages:
                continue
            content = path.read_bytes()
            size = open_image(path, content=content).image.size
        except FileNotFoundError:  # some programs replace the file when they save
            continue
        except ImageError as error:
            problems.append(str(error))
            continue
        _retire(shelf, path.name)
        target = shelf.stage.folder / f"{path.stem}-{content_key(content)}{path.suffix.lower()}"
        write_whole(target, content)
        facts = corrected_facts(
            original, prompt=original.lineage.facts["prompt"], seed=None, editor={"editor": "by hand"}, working_copy=path.name
        )
        shelf.bind(target, size=size, facts=facts)
    return problems


def _retire(shelf: Shelf, working_copy: str) -> None:
    decided = ledger.labels(shelf.stage.project)
    for request_key in list(shelf.files):
        made = shelf.lineages[request_key]
        if made.facts.get("working_copy") == working_copy and made.image_key not in decided:
            shelf.move(request_key, TRIES)


def _working_copy(stage: Stage, original: Original) -> Path | None:
    return next((path for path in working_copies(stage) if _meant(path.stem, [original]) is not None), None)


def unbound(stage: Stage) -> list[str]:
    """Names of files in the corrections folder that belong to no image yet."""
    return [path.name for path in Shelf(stage).strangers() if path.suffix.lower() in SUFFIXES]


def by_original(stage: Stage) -> dict[str, list[Lineage]]:
    """Corrections on disk, by the key of the image they correct."""
    shelf = Shelf(stage)
    found: dict[str, list[Lineage]] = {}
    for key in shelf.files:
        lineage = shelf.lineages[key]
        if corrects := lineage.facts.get("corrects"):
            found.setdefault(corrects["key"], []).append(lineage)
    return found


def _meant(stem: str, known: Iterable[Original]) -> Original | None:
    """The original a file is named after: by key, by name, or by the longest name it begins with."""
    text = stem.casefold()
    best: tuple[int, Original] | None = None
    for original in known:
        for name in (original.lineage.image_key, Path(original.name).stem.casefold()):
            rest = text[len(name) :]
            if name and text.startswith(name) and (not rest or _ADDED.match(rest)) and (best is None or len(name) > best[0]):
                best = (len(name), original)
    return best[1] if best else None
