"""Step 2.1: corrections that were found good become triplets (source, instruction, target) for training the editor.

A correction is an image whose lineage says what it corrects: made by a repair, uploaded, or saved into data/corrections/ by hand. Written to
data/qwen_training/<version>/triplets.json in the form of the process document, with our lineage added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from . import corrections, pair_doctor, review
from .candidates import Lineage, Shelf
from .errors import DatasetError, ImageError, PromptError, StorageError
from .faces import Embedder
from .images import content_key, open_image, value_key, write_json, write_whole
from .instructions import parse
from .pair_slots import Picture, open_header
from .pairs import Pair, PairedDataset
from .project import Project, StageName

ENOUGH = 10  # the process document's success criterion
ADVISED = 100  # what trainers of edit LoRAs ask for in the field
FEWEST_PHOTOS = 5  # with fewer, holding one out costs more than it tells
LARGEST_MP = 2.0  # of aligned copies: trainers use 1
STAGES: tuple[StageName, ...] = ("corrections", "enriched", "synthetic")
REVERSIBLE = ("lighting", "style")  # what was behind a person or beside the frame cannot be known from the edit

Direction = Literal["forward", "reverse", "both"]
Doctor = Literal["align", "align and drop", "warn", "off"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
DOCTORS: tuple[Doctor, ...] = get_args(Doctor)
FIXES: Mapping[str, tuple[pair_doctor.Fix, ...]] = {"align": ("align", "crop"), "align and drop": ("align", "crop", "drop"), "warn": ()}
_CARES = re.compile(r"\b(?:keep|keeping|preserv\w+|maintain\w*|identical|unchanged|same)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What triplets are made of. `positives`: how many images that were good at the first try are added. `held_out`: share of the photographs
    that is kept from training, to measure with; all triplets of one photograph stay together."""

    direction: Direction = "forward"
    positives: int = 0
    held_out: float = 0.1
    with_token: bool = False
    doctor: Doctor = "align"
    forward: str = ""
    keep: str = ""
    limits: pair_doctor.Limits = field(default_factory=pair_doctor.Limits)


@dataclass(frozen=True, slots=True)
class Triplets:
    """What was made: the two halves as datasets (None when empty), where, and everything worth knowing in words."""

    train: PairedDataset
    held_out: PairedDataset | None
    folder: Path
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.train.pairs) + (len(self.held_out.pairs) if self.held_out else 0)

    def text(self) -> str:
        held = len(self.held_out.pairs) if self.held_out else 0
        short = (
            f"{ENOUGH - self.count} more reach the minimum of {ENOUGH}: below it an edit LoRA learns these pictures by heart."
            if self.count < ENOUGH
            else f"The minimum of {ENOUGH} is reached; about {ADVISED} is the advice in the field, for edits that hold up on new pictures."
        )
        return "\n".join(
            [f"{self.count} triplets ({len(self.train.pairs)} to train, {held} held out) in {self.folder}", short, *self.notes]
        )


def create_triplets(
    project: Project, recipe: Recipe | None = None, *, embedder: Embedder | None = None, report: pair_doctor.Report | None = None
) -> Triplets:
    """Collect, check, align, split and write. Running again rewrites the list from the verdicts as they are now.

    Raises:
        DatasetError: no correction is good yet (with what is missing), or a picture cannot be read.
        StorageError: the disk refused.
    """
    recipe = recipe or Recipe()
    corrections.pick_up(project.stage("corrections"))
    notes: list[str] = []
    pairs = list(_collected(project, recipe, notes))
    if not pairs:
        raise DatasetError("There are no triplets yet:", _what_is_missing(project, notes))
    dataset = PairedDataset(f"{project.folder_name}-{project.version}-edits", tuple(pairs), ("photo",))
    folder = project.stage("qwen_training").folder
    if recipe.doctor != "off":
        dataset, told = _doctored(dataset, recipe, folder / "images", project.cache / "doctor", embedder, report)
        notes += told
    held_photos = _held_out(dataset.pairs, recipe.held_out, notes)
    rows = [_row(project, pair, held=pair.facts["photo"] in held_photos) for pair in dataset.pairs]
    write_json(folder / "triplets.json", rows)
    parts = [
        tuple(replace(pair, facts=row) for pair, row in zip(dataset.pairs, rows, strict=True) if row["split"] == split)
        for split in ("train", "held_out")
    ]
    train = replace(dataset, pairs=parts[0])
    held = replace(dataset, name=f"{dataset.name}-held-out", pairs=parts[1]) if parts[1] else None
    created = Triplets(train, held, folder, tuple(notes))
    write_whole(folder / "report.txt", (created.text() + "\n").encode())
    return created


def load_triplets(project: Project, split: str = "train") -> PairedDataset:
    """The triplets written last, as pairs.

    Raises:
        DatasetError: there are none, or their pictures are not where they were.
    """
    path = project.stage("qwen_training").folder / "triplets.json"
    if not path.is_file():
        raise DatasetError(f"There are no triplets in {path.parent}. Run Create Correction Triplets first.")
    try:
        rows = [row for row in json.loads(path.read_text(encoding="utf-8")) if row["split"] == split]
        pairs = [(row["id"], row["target_image"], row["source_image"], row["edit_prompt"], row) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is not readable ({error}). Run Create Correction Triplets again.") from error
    gone = [name for _, *names, _, _ in pairs for name in names if not project.path(name).is_file()]
    if gone:
        raise DatasetError("Pictures of the triplets are not where they were; run Create Correction Triplets again:", gone)
    found = tuple(
        Pair(stem, open_header(project.path(target)), (open_header(project.path(source)),), prompt, row)
        for stem, target, source, prompt, row in pairs
    )
    return PairedDataset(f"{project.folder_name}-{project.version}-edits{'' if split == 'train' else '-held-out'}", found, ("photo",))


@cache
def phrases() -> dict[str, Any]:
    """Templates of instructions and words of what must be kept, per reason."""
    return json.loads((Path(__file__).parent / "data" / "triplet_phrases.json").read_text(encoding="utf-8"))


def instruction_for(prompt: str, reasons: Sequence[str], *, template: str = "", keep: str = "") -> str:
    """What the model is told: the original wish and what must stay as it is, which the reviewer's reasons name.

    A prompt that already says what to keep is not told twice; `keep` replaces the words of the reasons.

    Raises:
        PromptError: the template asks for something else than {instruction} and {keep}.
    """
    told = phrases()["keep"]
    cared = (
        [keep]
        if keep.strip()
        else [*([] if _CARES.search(prompt) else [told["always"]]), *(told[reason] for reason in reasons if reason in told)]
    )
    instruction = " ".join(prompt.split()).rstrip(" .,;")
    if not any(cared):
        return instruction
    try:
        return (template or phrases()["forward"]).format_map({"instruction": instruction, "keep": ", ".join(cared)})
    except (KeyError, ValueError, IndexError) as error:
        raise PromptError(
            f"The template {template!r} does not work ({error}). It may hold {{instruction}} and {{keep}}, nothing else in braces."
        ) from error


@dataclass(frozen=True, slots=True)
class _Good:
    """An image found good, the candidate it corrects (None: good at the first try), and the photograph both came from."""

    lineage: Lineage
    path: Path
    original: Lineage | None
    photo: Path


def _collected(project: Project, recipe: Recipe, notes: list[str]) -> Iterator[Pair]:
    decided = review.labels(project)
    shelves = [Shelf(project.stage(name)) for name in STAGES]
    by_key = {lineage.image_key: lineage for shelf in shelves for lineage in shelf.lineages.values()}
    corrected = {_corrects(lineage) for lineage in by_key.values()} - {""}
    left_out: list[str] = []
    tokens = skipped = 0
    found: dict[str, Pair] = {}
    firsts = 0
    for good in sorted(_good(project, shelves, decided, by_key, left_out), key=lambda one: (one.original is None, one.lineage.image_key)):
        key = good.lineage.image_key
        if good.original is None:
            if key in corrected or firsts >= recipe.positives:
                continue
            firsts += 1
        event = decided.get(good.original.image_key) if good.original else None
        prompt, plain = _without_token(_prompt_of(good), project, recipe.with_token)
        tokens += plain
        skipped += recipe.direction != "forward" and parse(prompt).kind not in REVERSIBLE
        for pair in _pairs(good, prompt, event, recipe):
            found.setdefault(pair.stem, pair)
    if tokens:
        notes.append(f"The instance token was taken out of {tokens} instructions: an edit LoRA learns to keep any face, not this one.")
    notes += [f"Left out: {told}." for told in left_out]
    if skipped:
        notes.append(f"{skipped} edits have no reverse: what the photo showed behind or beside the person cannot be known from the edit.")
    waiting = _waiting(shelves, decided)
    if waiting:
        notes.append(f"{waiting} corrections wait for a verdict.")
    yield from (found[stem] for stem in sorted(found))


def _good(
    project: Project, shelves: Sequence[Shelf], decided: Mapping[str, review.LabelEvent], by_key: Mapping[str, Lineage], left_out: list[str]
) -> Iterator[_Good]:
    for shelf in shelves:
        for request_key, path in shelf.files.items():
            lineage = shelf.lineages[request_key]
            event = decided.get(lineage.image_key)
            if event is None or event.label != "good":
                continue
            corrects = _corrects(lineage)
            original = by_key.get(corrects) if corrects else None
            if corrects and original is None:
                left_out.append(f"{path.name}: the image {corrects} that it corrects is not known here")
                continue
            source = (original or lineage).facts.get("source")
            photo = _photo(project, source)
            if photo is None:
                if corrects:
                    left_out.append(f"{path.name}: its photograph {source['name'] if source else ''} is not there or has changed")
                continue
            yield _Good(lineage, path, original, photo)


def _photo(project: Project, source: Mapping[str, Any] | None) -> Path | None:
    """The photograph of an edit, if it is the same still."""
    path = project.stage("source").folder / source["name"] if source else None
    return path if source and path and path.is_file() and content_key(path) == source["key"] else None


def _corrects(lineage: Lineage) -> str:
    told = lineage.facts.get("corrects")
    return told["key"] if isinstance(told, Mapping) else str(told or "")


def _prompt_of(good: _Good) -> str:
    """The original wish: a repair's own prompt may speak of the fault, which no source picture shows."""
    return str((good.original or good.lineage).facts["prompt"])


def _pairs(good: _Good, prompt: str, event: review.LabelEvent | None, recipe: Recipe) -> Iterator[Pair]:
    reasons = event.reasons if event else ()
    try:
        photo, edit = (_upright(path) for path in (good.photo, good.path))
    except ImageError as error:
        raise DatasetError(f"A triplet cannot be made: {error}") from error
    issue = "; ".join(part for part in (", ".join(reasons), (event.note.strip() if event else "")) if part)
    facts = {
        "photo": good.photo.name,
        "issue": issue or ("not said" if good.original else "none: good at the first try"),
        "improvement": _improvement(good),
        "lineage": {
            "photo_key": content_key(good.photo),
            "edit_key": good.lineage.image_key,
            "corrects": good.original.image_key if good.original else None,
            "prompt": good.lineage.facts["prompt"],
            "seed": good.lineage.facts.get("seed"),
            "editor": good.lineage.facts.get("editor"),
        },
    }
    stem = f"{good.photo.stem}-{good.lineage.image_key}"
    if recipe.direction in ("forward", "both"):
        told = instruction_for(prompt, reasons, template=recipe.forward, keep=recipe.keep)
        yield Pair(f"{stem}-forward", edit, (photo,), told, {**facts, "direction": "forward"})
    template = phrases()["reverse"].get(parse(prompt).kind)
    if recipe.direction in ("reverse", "both") and template:
        told = template.format_map({"keep": recipe.keep or phrases()["keep"]["always"]})
        improvement = {"improvement": phrases()["improvement"]["reverse"]}
        yield Pair(f"{stem}-reverse", photo, (edit,), told, {**facts, **improvement, "direction": "reverse"})


def _upright(path: Path) -> Picture:
    """Decoded once, so that a damaged file is named here."""
    image = open_image(path).image
    return Picture(path, image.width, image.height)


def _improvement(good: _Good) -> str:
    told = phrases()["improvement"]
    if good.original is None:
        return told["positive"]
    if dict(good.lineage.facts.get("editor") or {}).get("editor") == "by hand":
        return told["by hand"]
    return told["editor"].format_map({"prompt": good.lineage.facts["prompt"]})


def _without_token(prompt: str, project: Project, with_token: bool) -> tuple[str, bool]:
    if with_token:
        return prompt, False
    noun = re.escape(project.class_noun)
    plain = re.sub(rf"(?<!\w)(?:the )?{re.escape(project.instance_token)}(?:\s+{noun})?(?!\w)", f"the {project.class_noun}", prompt)
    return plain, plain != prompt


def _waiting(shelves: Iterable[Shelf], decided: Mapping[str, review.LabelEvent]) -> int:
    lineages = (shelf.lineages[key] for shelf in shelves for key in shelf.files)
    return sum(bool(_corrects(lineage)) and lineage.image_key not in decided for lineage in lineages)


def _what_is_missing(project: Project, notes: Sequence[str]) -> list[str]:
    ill = sum(event.label == "needs_correction" for event in review.labels(project).values())
    told = [
        f"{ill} images are labelled needs_correction: order repairs in the review, or save corrected files into data/corrections/{project.version}/"
    ]
    told.append("label the corrections good in the review, then queue again")
    return [*told, *(note.rstrip(".") for note in notes)]


def _doctored(
    dataset: PairedDataset, recipe: Recipe, folder: Path, cache: Path, embedder: Embedder | None, report: pair_doctor.Report | None
) -> tuple[PairedDataset, list[str]]:
    checkup = pair_doctor.examine(dataset, recipe.limits, cache=cache, embedder=embedder, report=report)
    mended = pair_doctor.mend(checkup, folder, FIXES[recipe.doctor], megapixels=LARGEST_MP)
    return mended, [*checkup.text().splitlines(), *mended.notes]


def _held_out(pairs: Sequence[Pair], share: float, notes: list[str]) -> set[str]:
    """Names of the photographs kept from training: chosen by content, so that new ones do not reshuffle the old."""
    photos = sorted({str(pair.facts["photo"]) for pair in pairs}, key=lambda name: value_key(["held out", name]))
    if not share:
        return set()
    if len(photos) < FEWEST_PHOTOS:
        notes.append(f"Nothing is held out: the triplets come from {len(photos)} photographs, and {FEWEST_PHOTOS} are needed for that.")
        return set()
    return set(photos[: min(len(photos) - 1, max(1, round(share * len(photos))))])


def _row(project: Project, pair: Pair, *, held: bool) -> dict[str, Any]:
    """One triplet in the document's JSON, and what we know besides."""
    facts = dict(pair.facts)
    lineage = {**facts.pop("lineage"), "aligned": facts.pop("aligned", None)}
    return {
        "source_image": project.relative(pair.controls[0].path),
        "edit_prompt": pair.caption,
        "target_image": project.relative(pair.target.path),
        "issue": facts["issue"],
        "improvement": facts["improvement"],
        "id": pair.stem,
        "direction": facts["direction"],
        "split": "held_out" if held else "train",
        "photo": facts["photo"],
        "lineage": {**lineage, "source_key": pair.controls[0].key(), "target_key": pair.target.key()},
    }
