"""Step 1.2: from a dataset, prompts and an editor to candidates. Plans the orders, renders them, retries what drifted, writes metadata."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from . import identity, instructions, review
from .candidates import Shelf, record_of
from .dataset import Dataset, ImageRecord
from .editors import ControlRef, Editor, EditRequest, key_of
from .errors import PromptError
from .faces import Embedder
from .images import open_image, png_bytes, size_for, value_key, write_json
from .lora import split_tags
from .project import TRIES, StageName
from .prompts import Prompt, PromptSet
from .realign import realigned
from .registration import FAR
from .render import Finished, Order, Report, Run, made_some, render, silent, summary

REALIGNED = "1"  # raise it when re-aligning the same edit gives other pixels


@dataclass(frozen=True, slots=True)
class Drift:
    """Re-generate on drift: a candidate below `threshold` is tried again with a new seed, at most `retries` times."""

    references: identity.ReferenceSet
    embedder: Embedder
    threshold: float = identity.THRESHOLD
    retries: int = 2


@dataclass(frozen=True, slots=True)
class Enriched:
    """The candidates of one plan and what happened, in sentences."""

    dataset: Dataset
    notes: tuple[str, ...]
    run: Run


def plan(dataset: Dataset, prompts: PromptSet, *, seed: int, megapixels: float = 1.0) -> list[Order]:
    """One order per chosen source and prompt. Pure: reads nothing, writes nothing.

    With `per_source`, a source gets prompts of all templates in turn; which ones depends on the source's bytes, the prompts and the seed, not
    on its place in the list, so that one more photograph changes nothing for the others. Seeds likewise.

    Raises:
        PromptError: a source pattern matches no image.
    """
    sources = _chosen_sources(dataset, prompts.sources)
    expanded = prompts.expand()
    return [
        _order(dataset, source, prompt, attempt=0, seed=seed, megapixels=megapixels)
        for source in sources
        for prompt in _prompts_for(source, expanded, prompts.per_source, seed)
    ]


def enrich(
    dataset: Dataset,
    prompts: PromptSet,
    editor: Editor,
    *,
    stage: StageName = "enriched",
    seed: int = 0,
    megapixels: float = 1.0,
    sample_every: int = 10,
    limit: int = 0,
    drift: Drift | None = None,
    realign: bool = False,
    report: Report = silent,
) -> Enriched:
    """Make the candidates of a plan into data/<stage>/<version>/ and describe them in the metadata file of that stage.

    `realign` adds, beside every edit that is shifted or zoomed against its photo, a copy in the photo's frame as a candidate of its own.
    Finished images are kept and not made again. Every `sample_every`-th image is flagged for a close look (0: none). An image whose file a
    person deleted after rejecting it counts as finished.

    Raises:
        PromptError, EditorError, StorageError: see `plan` and `render`.
        EditorError: not one image could be made.
    """
    shelf = Shelf(dataset.project.stage(stage))
    orders = plan(dataset, prompts, seed=seed, megapixels=megapixels)
    wanted = [order for order in orders if not thrown_away(shelf, key_of(editor, order.request))]
    tries = _Tries(dataset, shelf, seed, megapixels, drift)
    run = made_some(render(wanted, editor, shelf, report=report, follow_up=tries.next_try if drift else None, limit=limit))
    shelf = Shelf(shelf.stage)  # a person may have sorted files while we were rendering
    chosen = tries.choose(shelf) if drift else [finished.request_key for finished in run.finished]
    copies = _realigned(shelf, dataset, chosen) if realign else []
    flag_samples(shelf, chosen, sample_every)
    images = tuple(record_of(shelf, request_key) for request_key in dict.fromkeys([*chosen, *copies]))
    write_metadata(shelf)
    notes = (
        *summary(run),
        *tries.notes(),
        *_shifted(shelf, chosen),
        *([f"{len(copies)} re-aligned copies lie beside them for your review."] if copies else []),
        *left_alone(len(orders) - len(wanted)),
    )
    return Enriched(Dataset(dataset.project, stage, images), notes, run)


@dataclass(frozen=True, slots=True)
class Preview:
    """The first images of a plan. `left`: images that are still to be made; `seconds_each`: how long one took, None if nobody knows."""

    dataset: Dataset
    notes: tuple[str, ...]
    left: int
    seconds_each: float | None


def preview(
    dataset: Dataset, prompts: PromptSet, editor: Editor, *, seed: int = 0, megapixels: float = 1.0, count: int = 4, report: Report = silent
) -> Preview:
    """Make a few images of a plan, of different prompts and photographs, to look at before the batch. `enrich` finds them made.

    Raises:
        PromptError, EditorError, StorageError: see `plan` and `render`.
        EditorError: not one of them could be made.
    """
    shelf = Shelf(dataset.project.stage("enriched"))
    orders = plan(dataset, prompts, seed=seed, megapixels=megapixels)
    run = made_some(render(_spread(orders, count), editor, shelf, report=report))
    write_metadata(shelf)
    keys = list(dict.fromkeys(finished.request_key for finished in run.finished))
    took = sorted(shelf.lineages[key].facts["seconds"] for key in keys)
    left = sum(key_of(editor, order.request) not in shelf.files for order in orders)
    return Preview(
        Dataset(dataset.project, "enriched", tuple(record_of(shelf, key) for key in keys)),
        tuple(summary(run)),
        left,
        took[len(took) // 2] if took else None,
    )


def _spread(orders: Sequence[Order], count: int) -> list[Order]:
    """As many templates as possible, each with another photograph."""
    by_template: dict[str, list[Order]] = {}
    for order in orders:
        by_template.setdefault(order.request.label, []).append(order)
    groups = [group[place * len(group) // len(by_template) :] + group for place, group in enumerate(by_template.values())]
    in_turn = [group[turn] for turn in range(max(map(len, groups), default=0)) for group in groups if turn < len(group)]
    chosen = list({id(order): order for order in in_turn}.values())[:count]
    return [order for order in orders if any(order is one for one in chosen)]


def flag_samples(shelf: Shelf, keys: Sequence[str], every: int) -> None:
    """Mark every so many-th image, by request key, for a close look; none with 0."""
    for place, request_key in enumerate(keys, 1):
        sampled = bool(every) and place % every == 0
        if sampled != shelf.lineages[request_key].facts.get("sample", False):
            shelf.note(request_key, sample=sampled)


def left_alone(count: int) -> Iterator[str]:
    """What to say of images that are not made again because a person threw them away."""
    if count:
        yield f"{count} rejected images were deleted by hand and are left alone."


def write_metadata(shelf: Shelf) -> None:
    """The metadata file of a stage: every candidate of the stage with its source, prompt, seed, editor and verdict."""
    stage = shelf.stage
    decided = review.labels(stage.project)
    images = [
        _described(shelf, request_key, decided)
        for request_key in sorted(shelf.files, key=lambda key: shelf.files[key].name)
        if shelf.folder_of(shelf.files[request_key]) != TRIES
    ]
    write_json(stage.metadata, {"dataset_version": stage.project.version, "images": images})


class _Tries:
    """The tries of each order. The best one becomes the candidate; the others are kept in tries/ and in its lineage."""

    def __init__(self, dataset: Dataset, shelf: Shelf, seed: int, megapixels: float, drift: Drift | None) -> None:
        self.dataset, self.shelf, self.seed, self.megapixels, self.drift = dataset, shelf, seed, megapixels, drift
        self.by_order: dict[tuple[str, str], list[tuple[str, identity.IdentityScore]]] = {}

    def next_try(self, finished: Finished) -> Order | None:
        assert self.drift
        facts = finished.order.facts
        lineage = self.shelf.lineages[finished.request_key]
        score = identity.score_image(
            open_image(self.shelf.files[finished.request_key]).image,
            lineage.image_key,
            self.dataset.project,
            self.drift.references,
            self.drift.embedder,
        )
        tries = self.by_order.setdefault((facts["source"]["key"], facts["prompt"]), [])
        tries.append((finished.request_key, score))
        drifted = score.similarity is not None and score.similarity < self.drift.threshold
        if not drifted or len(tries) > self.drift.retries:
            return None
        source = next(image for image in self.dataset.images if image.key == facts["source"]["key"])
        prompt = Prompt(" ".join([*finished.order.request.tags, facts["prompt"]]), facts["template"])
        return _order(self.dataset, source, prompt, attempt=len(tries), seed=self.seed, megapixels=self.megapixels)

    def choose(self, shelf: Shelf) -> list[str]:
        """Settle each order on its best try; a try that already has a verdict stays where the person put it."""
        decided = review.labels(shelf.stage.project)
        chosen: list[str] = []
        for tries in self.by_order.values():
            judged = [key for key, _ in tries if shelf.lineages[key].image_key in decided]
            best = judged[0] if judged else max(tries, key=lambda made: made[1].similarity if made[1].similarity is not None else -1.0)[0]
            chosen.append(best)
            told = [_try(shelf, key, score) for key, score in tries]
            for key, _ in tries:
                shelf.note(key, tries=told)
                if shelf.lineages[key].image_key not in decided:
                    shelf.move(key, "" if key == best else TRIES)
        return chosen

    def notes(self) -> list[str]:
        retried = [tries for tries in self.by_order.values() if len(tries) > 1]
        if not self.drift or not retried:
            return []
        rescued = sum(any((score.similarity or 0.0) >= self.drift.threshold for _, score in tries) for tries in retried)
        bound = f"{self.drift.threshold:g}"
        drifted = f"1 image drifted below {bound} and was" if len(retried) == 1 else f"{len(retried)} images drifted below {bound} and were"
        return [f"{drifted} tried again; {rescued} of them came back above it."]


def _shifted(shelf: Shelf, keys: Sequence[str]) -> list[str]:
    """What the pixel-shift guard of an editor flagged."""
    names = [shelf.files[key].name for key in dict.fromkeys(keys) if shelf.lineages[key].facts["notes"].get("shifted")]
    if not names:
        return []
    return [
        f"{len(names)} images are shifted or zoomed against their photo by more than {FAR:.1%}, first {names[0]}: no use as training pairs."
    ]


def _realigned(shelf: Shelf, dataset: Dataset, keys: Sequence[str]) -> list[str]:
    """Request keys of the copies of these edits that are in the photo's frame; made where they are missing and nobody threw them away."""
    sources = {image.key: image for image in dataset.images}
    copies: list[str] = []
    for request_key in dict.fromkeys(keys):
        lineage = shelf.lineages[request_key]
        copy_key = value_key(["realigned", REALIGNED, request_key])
        source = sources.get(lineage.facts["source"]["key"])
        if not lineage.facts["notes"].get("shifted") or source is None or thrown_away(shelf, copy_key):
            continue
        if copy_key not in shelf.files:
            edit = open_image(shelf.files[request_key]).image
            copy = realigned(open_image(dataset.path(source)).image, edit)
            if copy is None:
                continue
            notes = {
                "realigned_from": request_key,
                "undone_px": list(copy.undone_px),
                "zoom": copy.zoom,
                "mirrored_px": list(copy.mirrored_px),
            }
            facts = {**lineage.facts, "parents": [lineage.image_key], "notes": notes, "tries": [], "sample": False}
            shelf.add(
                copy_key,
                f"{shelf.files[request_key].stem.rpartition('-')[0]}-realigned",
                png_bytes(copy.image),
                copy.image,
                facts=facts,
            )
        copies.append(copy_key)
    return copies


def _try(shelf: Shelf, request_key: str, score: identity.IdentityScore) -> dict[str, Any]:
    facts = shelf.lineages[request_key].facts
    return {
        "request_key": request_key,
        "attempt": facts["attempt"],
        "seed": facts["seed"],
        "state": score.state,
        "similarity": score.similarity,
    }


def _chosen_sources(dataset: Dataset, patterns: Sequence[str]) -> list[ImageRecord]:
    unmatched = [pattern for pattern in patterns if not any(fnmatch(image.name, pattern) for image in dataset.images)]
    if unmatched:
        names = ", ".join(image.name for image in dataset.images[:5])
        raise PromptError(f"No source image is called like this (there are {names}, …):", [repr(pattern) for pattern in unmatched])
    return [image for image in dataset.images if not patterns or any(fnmatch(image.name, pattern) for pattern in patterns)]


def _prompts_for(source: ImageRecord, prompts: Sequence[Prompt], per_source: int, seed: int) -> list[Prompt]:
    if not per_source or per_source >= len(prompts):
        return list(prompts)
    by_template: dict[str, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda prompt: seed_from(seed, source.key, prompt.text)):
        by_template.setdefault(prompt.template, []).append(prompt)
    templates = sorted(by_template, key=lambda template: seed_from(seed, source.key, template))
    rounds = max(len(group) for group in by_template.values())
    in_turn = [by_template[name][turn] for turn in range(rounds) for name in templates if turn < len(by_template[name])]
    chosen = set(in_turn[:per_source])
    return [prompt for prompt in prompts if prompt in chosen]


def _order(dataset: Dataset, source: ImageRecord, prompt: Prompt, *, attempt: int, seed: int, megapixels: float) -> Order:
    words, tags = split_tags(prompt.text)  # a tag chooses LoRAs; it is no word of the prompt and changes no seed
    own_seed = seed_from(seed, source.key, words, attempt)
    width, height = size_for(source.width, source.height, megapixels=megapixels)
    request = EditRequest(words, (ControlRef(dataset.path(source), source.key),), own_seed, width, height, prompt.template, tags)
    return Order(request, f"{source.stem}-{_slug(words)}", _facts(source, Prompt(words, prompt.template), own_seed, attempt))


def _facts(source: ImageRecord, prompt: Prompt, seed: int, attempt: int) -> dict[str, Any]:
    return {
        "origin": "edit",
        "prompt": prompt.text,
        "template": prompt.template,
        "seed": seed,
        "attempt": attempt,
        "caption": instructions.edited_caption(source.caption, prompt.text),
        "source": {"key": source.key, "name": source.name},
        "parents": [source.key],
        "depth": source.depth + 1,
    }


def _slug(prompt: str) -> str:
    wish = instructions.parse(prompt)
    words = re.findall(r"\w+", wish.value if wish.kind == "other" else f"{wish.kind} {wish.value}")
    return "_".join(words)[:40].rstrip("_").lower()


def seed_from(*parts: object) -> int:
    """A seed of 32 bits from content: inserting one prompt or photograph changes no other seed."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def thrown_away(shelf: Shelf, request_key: str) -> bool:
    if request_key in shelf.files or request_key not in shelf.lineages:
        return False
    event = review.labels(shelf.stage.project).get(shelf.lineages[request_key].image_key)
    return event is not None and event.label == "reject"


def _described(shelf: Shelf, request_key: str, decided: Mapping[str, review.LabelEvent]) -> dict[str, Any]:
    lineage, path, project = shelf.lineages[request_key], shelf.files[request_key], shelf.stage.project
    facts = lineage.facts
    event = decided.get(lineage.image_key)
    return {
        "filename": path.relative_to(shelf.stage.folder).as_posix(),
        "source_image": f"{project.relative(project.stage('source').folder)}/{facts['source']['name']}" if facts["source"] else None,
        "edit_prompt": facts["prompt"],
        "caption": facts["caption"],
        "seed": facts["seed"],
        "editor": facts["editor"],
        "label": event.label if event else None,
        "reasons": list(event.reasons) if event else [],
        "key": lineage.image_key,
        "request_key": request_key,
        "depth": facts["depth"],
        "sample": facts.get("sample", False),
        "tries": facts.get("tries", []),
        "notes": facts["notes"],
    }
