"""A training set as a trainer sees it: images, captions, controls. Reads folders; writes none.

Reads what `flywheel.export` writes, `<repeats>_<words>/<image>` with a caption in `<image>.txt`; and what `flywheel.triplets` writes,
`triplets.json` with pictures named from the project's folder.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..flywheel.errors import DatasetError, ImageError
from ..flywheel.images import SUFFIXES, content_key, difference_hash, open_image, value_key
from ..flywheel.pair_slots import open_header
from ..flywheel.pairs import Pair, PairedDataset

REPEATS = re.compile(r"(\d{1,4})_")
TWINS_BITS = 6  # as near-duplicates in `flywheel.images`
FEW = 10
WATCHED = 3
STEP = 64  # px
LISTING = "triplets.json"


@dataclass(frozen=True, slots=True)
class Example:
    """One picture to learn. `controls`: for edit training, the pictures the edit starts from, in order."""

    image: Path
    caption: str
    key: str
    repeats: int = 1
    controls: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Examples with the hash over all of them. `problems`: files that cannot be used, in words. `held_out`: kept from training, to measure with."""

    folder: Path
    examples: tuple[Example, ...]
    problems: tuple[str, ...]
    held_out: tuple[Example, ...] = ()

    @property
    def key(self) -> str:
        """Changes when an image, a control, a caption or a repeat does; file names do not count."""
        shown = sorted(_told(example) for example in self.examples)
        return value_key([shown, sorted(_told(example) for example in self.held_out)] if self.held_out else shown)

    @property
    def controls(self) -> int:
        """The most controls that an example has."""
        return max((len(example.controls) for example in self.examples), default=0)

    @property
    def watched(self) -> tuple[Example, ...]:
        """For edits: the examples that samples are made of during training, in the order of the spec's sample prompts; held-out ones first."""
        return (*self.held_out, *self.examples)[:WATCHED]

    @property
    def shown_per_epoch(self) -> int:
        return sum(example.repeats for example in self.examples)


def read(folder: Path) -> TrainingSet:
    """The training set in `folder`: its triplets.json, or its subfolders `10_ohwx_char person`, or the folder itself.

    Raises:
        DatasetError: there is no such folder, or triplets.json cannot be read.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"There is no training set in {folder}. Export Training Set or Create Correction Triplets makes it; queue that first."
        )
    if (folder / LISTING).is_file():
        return _edits(folder)
    parts = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and REPEATS.match(entry.name)] or [folder]
    examples: list[Example] = []
    problems: list[str] = []
    for part in parts:
        found = REPEATS.match(part.name)
        for image in sorted(path for path in part.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")):
            caption, problem = _caption(image)
            if problem:
                problems.append(problem)
            examples.append(Example(image, caption, content_key(image), max(1, int(found[1])) if found else 1))
    return TrainingSet(folder, tuple(examples), tuple(problems))


def _told(example: Example) -> list[object]:
    controls = [content_key(control) for control in example.controls]
    return [example.key, example.caption, example.repeats, *([controls] if controls else [])]


def _edits(folder: Path) -> TrainingSet:
    """Triplets: the target is learnt from its controls and the instruction."""
    path = folder / LISTING
    root = next((parent for parent in folder.parents if (parent / "project.json").is_file()), folder)
    parts: dict[str, list[Example]] = {"train": [], "held_out": []}
    problems: list[str] = []
    try:
        for row in json.loads(path.read_text(encoding="utf-8")):
            sources = row["source_image"] if isinstance(row["source_image"], list) else [row["source_image"]]
            target, *controls = (root / name for name in (row["target_image"], *sources))
            if gone := [file.name for file in (target, *controls) if not file.is_file()]:
                problems.append(f"{row['id']}: {', '.join(gone)} is not where it was; run Create Correction Triplets again")
                continue
            caption = " ".join(row["edit_prompt"].split())
            if not caption:
                problems.append(f"{row['id']}: its instruction is empty")
            parts[row["split"]].append(Example(target, caption, content_key(target), 1, tuple(controls)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is not readable ({type(error).__name__}: {error}). Run Create Correction Triplets again.") from error
    return TrainingSet(folder, tuple(parts["train"]), tuple(problems), tuple(parts["held_out"]))


def _caption(image: Path) -> tuple[str, str]:
    """The caption on one line, and what is wrong with its file."""
    text = image.with_suffix(".txt")
    try:
        caption = " ".join(text.read_bytes().decode("utf-8-sig").split())
    except FileNotFoundError:
        return "", f"{image.name} has no caption: write {text.name} next to it"
    except UnicodeDecodeError:
        return "", f"{text.name} is not readable text: save it as UTF-8"
    except OSError as error:
        return "", f"{text.name} cannot be read ({error.strerror or error})"
    return caption, "" if caption else f"{text.name} is empty: write what the picture shows, with the token"


def problems(found: TrainingSet, token: str) -> list[str]:
    """Why this set cannot be trained on, every reason. Opens every image. `token`: the word that every caption must hold; empty for edits."""
    if not found.examples:
        return [*found.problems, f"{found.folder} holds no images: export a training set first"]
    told = [*found.problems]
    if len(found.examples) == 1:
        told.append(
            f"{found.examples[0].image.name} is the only image: one picture teaches that picture, not the character; add at least {FEW - 1} more"
        )
    if token:
        spoken = re.compile(rf"(?<!\w){re.escape(token)}(?!\w)")
        told += [
            f"{example.image.name}: its caption lacks the token {token!r}"
            for example in found.examples
            if example.caption and not spoken.search(example.caption)
        ]
    told += [
        f"{example.image.name}: it has {len(example.controls)} of {found.controls} controls; give it what is missing, or leave it out"
        for example in (*found.examples, *found.held_out)
        if len(example.controls) != found.controls
    ]
    if not found.controls:
        stems = Counter(example.image.stem.casefold() for example in found.examples)
        told += [
            f"{example.image.name}: another image has the same name"
            for example in found.examples
            if stems[example.image.stem.casefold()] > 1
        ]
    for path in dict.fromkeys(path for example in (*found.examples, *found.held_out) for path in (example.image, *example.controls)):
        try:
            open_image(path)
        except ImageError as error:
            told.append(str(error))
    return told


def warnings(found: TrainingSet, resolution: int) -> list[str]:
    """What does not stand in the way, but a person should know. Call it on a set without problems."""
    told: list[str] = []
    if 1 < len(found.examples) < FEW:
        told.append(f"Only {len(found.examples)} images: the LoRA will know few situations; 30 is a good number.")
    small: list[str] = []
    seen: dict[tuple[int, tuple[str, ...]], str] = {}
    twins: list[str] = []
    for example in found.examples:
        image = open_image(example.image).image
        if image.width * image.height < 0.6 * resolution**2:
            small.append(f"{example.image.name} ({image.width} x {image.height})")
        mark = difference_hash(image)
        shown = tuple(map(content_key, example.controls)) + ((example.caption,) if example.controls else ())
        twin = next((name for (other, given), name in seen.items() if given == shown and (other ^ mark).bit_count() <= TWINS_BITS), "")
        if twin:
            twins.append(f"{example.image.name} and {twin}")
        seen.setdefault((mark, shown), example.image.name)
    if small:
        told.append(
            f"{len(small)} images are smaller than the training size of {resolution} x {resolution} and will be enlarged: {_some(small)}."
        )
    if twins:
        told.append(f"{len(twins)} images nearly repeat another one and so count double: {_some(twins)}.")
    return told


def buckets(found: TrainingSet, resolution: int) -> list[tuple[tuple[int, int], int]]:
    """Into which shapes a trainer sorts the pictures, and how many lie in each, the most first: the picture's shape at the spec's number of
    pixels, in steps of 64 as the trainers round."""
    counted: Counter[tuple[int, int]] = Counter()
    for example in found.examples:
        image = open_image(example.image).image
        scale = (resolution**2 / (image.width * image.height)) ** 0.5
        counted[(_rounded(image.width * scale), _rounded(image.height * scale))] += example.repeats
    return counted.most_common()


def _rounded(side: float) -> int:
    return max(STEP, round(side / STEP) * STEP)


def pairs_of(found: TrainingSet) -> PairedDataset | None:
    """The examples with controls as the pair doctor takes them; None where there are none."""
    paired = [example for example in found.examples if len(example.controls) == found.controls > 0]
    if not paired:
        return None
    told = [
        Pair(f"{example.image.stem}-{number}", open_header(example.image), tuple(map(open_header, example.controls)), example.caption)
        for number, example in enumerate(paired)
    ]
    return PairedDataset(found.folder.name, tuple(told), tuple(f"control {number + 1}" for number in range(found.controls)))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
