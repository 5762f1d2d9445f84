"""Repair orders: what a reviewer wants made again, and the run that carries them out with any editor.

An order waits as data/corrections/<version>/orders/<id>.json. Its results are corrections bound to the candidate, as undecided as any other.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageFilter

from . import corrections
from .candidates import Shelf, record_of
from .corrections import Original
from .dataset import Dataset
from .editors import (
    Accountable,
    Choosy,
    ControlRef,
    Developing,
    Edit,
    Editor,
    EditRequest,
    Exposed,
    Foresighted,
    Rendered,
    Tick,
    expose,
    fingerprint_of,
)
from .errors import DatasetError, EditorError, ImageError, StorageError
from .images import content_key, open_image, png_bytes, value_key, write_json, write_whole
from .project import TRIES, Project, Stage
from .render import Order, Report, render, silent, summary
from .review import follow, labels, taking_turns

State = Literal["waiting", "done", "failed", "withdrawn"]
Start = Literal["source", "candidate"]

MAX_SEEDS = 32
MAX_PROMPT = 4_000
FEATHER = 64  # a mask's edge is softened by a 64th of the picture's longer side
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True, slots=True)
class RepairOrder:
    """One candidate to be made again, once per seed.

    `start`: the photograph again with a better prompt, or the candidate itself. `mask` names a picture, white where something shall change;
    what lies outside stays as it is, to the bit. `results`: image keys in the corrections stage.
    """

    id: str
    key: str
    prompt: str
    seeds: tuple[int, ...]
    start: Start = "source"
    mask: str | None = None
    reviewer: str = ""
    at: str = ""
    state: State = "waiting"
    problem: str = ""
    results: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Repaired:
    """What carrying out the waiting orders came to."""

    dataset: Dataset
    orders: tuple[RepairOrder, ...]
    notes: tuple[str, ...]


def proposal(prompt: str, reasons: Sequence[str], note: str = "", *, start: Start = "source") -> str:
    """An edit prompt that asks for what the reasons complain of; a beginning for a person to edit."""
    wanted = [phrases()[start][reason] for reason in reasons if phrases()[start].get(reason)]
    begin = [prompt.strip().rstrip(".,;")] if start == "source" and prompt.strip() else []
    parts = [*begin, *wanted, *([note.strip().rstrip(".")] if note.strip() else [])]
    if start == "candidate":
        parts.append(phrases()["keep"])
    return ", ".join(parts)


@cache
def phrases() -> dict[str, Any]:
    """Words per reason, for a repair from the photograph and from the candidate."""
    return json.loads((Path(__file__).parent / "data" / "repair_phrases.json").read_text(encoding="utf-8"))


def place_order(
    project: Project,
    key: str,
    prompt: str,
    seeds: Sequence[int],
    *,
    start: Start = "source",
    mask: str | None = None,
    reviewer: str = "",
    order_id: str = "",
) -> RepairOrder:
    """Store an order; with an `order_id` that is known already, answer that one.

    Raises:
        DatasetError: image, prompt, seeds or mask do not work; all problems at once.
    """
    stage = project.stage("corrections")
    if order_id and (known := _read(stage, order_id)):
        return known
    original = corrections.original_of(stage, key)
    problems = list(_problems(stage, original, prompt, seeds, start, mask, order_id))
    if problems:
        raise DatasetError("This repair cannot be ordered:", problems)
    order_id = order_id or uuid.uuid4().hex[:16]
    order = RepairOrder(order_id, key, prompt.strip(), tuple(dict.fromkeys(seeds)), start, mask, reviewer, _now())
    _write(stage, order)
    return order


def order_for_all(project: Project, tries: int) -> list[RepairOrder]:
    """An order of `tries` seeds for every image labelled needs_correction that nobody has ordered or corrected yet.

    The prompt is the proposal from the reviewer's reasons and note; it starts from the photograph where there is one.
    """
    stage = project.stage("corrections")
    corrections.pick_up(stage)
    known = {original.lineage.image_key: original for original in corrections.originals(stage)}
    ordered = {order.key for order in orders(project) if order.state != "withdrawn"}
    told = (lineage.facts.get("corrects") for lineage in Shelf(stage).lineages.values())
    corrected = {corrects["key"] for corrects in told if corrects}
    placed: list[RepairOrder] = []
    for key, event in labels(project).items():
        if event.label == "needs_correction" and key in known and key not in ordered | corrected:
            facts = known[key].lineage.facts
            start: Start = "source" if facts["source"] else "candidate"
            prompt = proposal(str(facts["prompt"]), event.reasons, event.note, start=start)
            placed.append(place_order(project, key, prompt, fresh_seeds(project, key, tries), start=start, reviewer="batch"))
    return placed


def fresh_seeds(project: Project, key: str, count: int) -> list[int]:
    """Seeds that no order of this image has used yet; the same image gets them in the same order."""
    used = {seed for order in orders(project) if order.key == key for seed in order.seeds}
    drawn = (int.from_bytes(hashlib.sha256(f"{key} {number}".encode()).digest()[:4], "big") for number in range(len(used) + count + 1))
    return [seed for seed in dict.fromkeys(drawn) if seed not in used][:count]


def orders(project: Project) -> list[RepairOrder]:
    """Every order of this lap, oldest first.

    Raises:
        StorageError: an order's file is damaged.
    """
    folder = _folder(project.stage("corrections"))
    found = [_parsed(path) for path in folder.glob("*.json")] if folder.is_dir() else []
    return sorted(found, key=lambda order: (order.at, order.id))


def withdraw(project: Project, order_id: str) -> RepairOrder | None:
    """Take back an order that still waits; None when there is no such order. What was made stays."""
    stage = project.stage("corrections")
    with taking_turns(project):
        order = _read(stage, order_id)
        if order and order.state in ("waiting", "failed"):
            order = replace(order, state="withdrawn")
            _write(stage, order)
        return order


def keep_mask(project: Project, key: str, content: bytes) -> str:
    """Store a mask for the image `key` and answer its name.

    Raises:
        DatasetError: no such image, another shape than the image, or nothing is painted.
        ImageError: it is no picture.
    """
    stage = project.stage("corrections")
    original = corrections.original_of(stage, key)
    mask = open_image(Path("mask.png"), content=content).image.convert("L")
    size = (original.lineage.width, original.lineage.height)
    if mask.size != size:
        raise DatasetError(f"The mask has {mask.width} x {mask.height} px, the image {size[0]} x {size[1]}. Paint it at the image's size.")
    if mask.getbbox() is None:
        raise DatasetError("Nothing is painted in the mask: make the spot to repaint white.")
    png = png_bytes(mask)
    name = content_key(png)
    write_whole(_folder(stage) / f"{name}.png", png)
    return name


def mask_file(project: Project, mask: str) -> Path | None:
    path = _folder(project.stage("corrections")) / f"{mask}.png"
    return path if _ID.fullmatch(mask) and path.is_file() else None


def carry_out(project: Project, editor: Editor, *, report: Report = silent, limit: int = 0) -> Repaired:
    """Make what the waiting orders ask for. Running again is resuming; an order that failed is tried again.

    Raises:
        EditorError: the editor cannot do this kind of work, or fails again and again; finished images are kept.
        StorageError: the disk refused.
    """
    stage = project.stage("corrections")
    waiting = [order for order in orders(project) if order.state in ("waiting", "failed")]
    notes: list[str] = []
    finished: list[RepairOrder] = []
    left = limit
    with ExitStack() as stack:
        shared = _Shared(editor, stack)
        for mask, group in _grouped(waiting):
            if limit and left <= 0:
                notes.append(f"{len(group)} orders are left for the next run (limit).")
                continue
            painter = _Inside(shared, mask, project) if mask else shared
            shelf = Shelf(stage)
            planned, broken = _plan(stage, group)
            finished += broken
            run = render([made for made, _ in planned], painter, shelf, report=report, limit=left if limit else 0)
            left -= run.made
            notes += summary(run)
            finished += _settled(group, planned, run.finished, run.failed, shelf)
        for order in finished:
            _write(stage, order)
    shelf = follow(stage)
    images = tuple(record_of(shelf, key) for key, path in shelf.files.items() if shelf.folder_of(path) != TRIES)
    return Repaired(Dataset(project, "corrections", images), tuple(finished), tuple(notes or ["No repair is waiting."]))


def revision(stage: Stage) -> str:
    """Changes when there is something to carry out, and when a correction came by hand. Empty while nothing was ever ordered or corrected."""
    waiting = [order.id for order in orders(stage.project) if order.state == "waiting"]
    by_hand = sorted(key for key, lineage in Shelf(stage).lineages.items() if lineage.facts["editor"].get("editor") == "by hand")
    return value_key([waiting, by_hand, corrections.unbound(stage)]) if waiting or by_hand else ""


class _Shared:
    """An editor whose one session serves several renders; opened when the first image is due."""

    def __init__(self, editor: Editor, stack: ExitStack) -> None:
        self.editor, self.stack = editor, stack
        self.name, self.controls = editor.name, editor.controls
        self._edit: Edit | None = None

    def fingerprint(self) -> dict[str, str]:
        return self.editor.fingerprint()

    def fingerprint_for(self, request: EditRequest) -> dict[str, str]:
        return fingerprint_of(self.editor, request)

    def group(self, request: EditRequest) -> str:
        return self.editor.group(request) if isinstance(self.editor, Choosy) else ""

    @contextmanager
    def session(self) -> Iterator[Edit]:
        self._edit = self._edit or self.stack.enter_context(self.editor.session())
        yield self._edit


class _Inside:
    """Lets an editor change only what a mask shows white: its result is laid over the candidate through the mask, whatever model it is."""

    def __init__(self, editor: _Shared, mask: str, project: Project) -> None:
        path = mask_file(project, mask)
        if path is None:
            raise EditorError(f"The mask {mask} of a repair order is gone. Withdraw the order and paint the mask again.")
        self.editor, self.mask = editor, mask
        self.name, self.controls = editor.name, editor.controls
        self.picture = open_image(path).image.convert("L")

    def fingerprint(self) -> dict[str, str]:
        return {**self.editor.fingerprint(), "mask": self.mask}

    def fingerprint_for(self, request: EditRequest) -> dict[str, str]:
        return {**self.editor.fingerprint_for(request), "mask": self.mask}

    def group(self, request: EditRequest) -> str:
        return self.editor.group(request)

    @contextmanager
    def session(self) -> Iterator[Edit]:
        with self.editor.session() as edit:
            yield _MaskedEdit(edit, self._laid_over)

    def _laid_over(self, rendered: Rendered, request: EditRequest) -> Rendered:
        before = open_image(request.controls[0].path).image
        soft = self.picture.filter(ImageFilter.GaussianBlur(max(before.size) / FEATHER / 3))
        grown = Image.composite(soft, Image.new("L", soft.size, 0), self.picture.filter(ImageFilter.MaxFilter(3)))
        image = Image.composite(rendered.image.convert("RGB").resize(before.size), before, grown)
        return Rendered(image, {**rendered.notes, "mask": self.mask})


@dataclass(frozen=True, slots=True)
class _MaskedEdit:
    """An editor's session whose every image is laid over its candidate, as soon as it has pixels."""

    edit: Edit
    laid_over: Callable[[Rendered, EditRequest], Rendered]

    def __call__(self, request: EditRequest, tick: Tick) -> Rendered:
        return self.laid_over(self.edit(request, tick), request)

    def expose(self, request: EditRequest, tick: Tick) -> Exposed:
        exposed = expose(self.edit, request, tick)
        return Exposed(
            lambda: self.laid_over(exposed.develop(), request),
            lambda: self.laid_over(exposed.develop_alone(), request),
        )

    def abandon(self) -> None:
        if isinstance(self.edit, Developing):
            self.edit.abandon()

    def expect(self, requests: Sequence[EditRequest]) -> None:
        if isinstance(self.edit, Foresighted):
            self.edit.expect(requests)

    def account(self) -> Sequence[str]:
        return self.edit.account() if isinstance(self.edit, Accountable) else ()


Planned = list[tuple[Order, RepairOrder]]


def _plan(stage: Stage, group: Sequence[RepairOrder]) -> tuple[Planned, list[RepairOrder]]:
    """One render order per seed, and the repair orders that cannot be carried out."""
    planned: Planned = []
    broken: list[RepairOrder] = []
    for order in group:
        try:
            original = corrections.original_of(stage, order.key)
            control = _control(original, order.start)
        except (DatasetError, ImageError) as error:
            broken.append(replace(order, state="failed", problem=str(error)))
            continue
        lineage = original.lineage
        for seed in order.seeds:
            request = EditRequest(order.prompt, (control,), seed, lineage.width, lineage.height, label="repair")
            facts = corrections.corrected_facts(original, prompt=order.prompt, seed=seed, editor={}, order=order.id)
            facts["parents"] = [control.key]
            facts["depth"] = lineage.facts["depth"] + (order.start == "candidate")
            planned.append((Order(request, f"{Path(original.name).stem[:60] or order.key}-repair", facts), order))
    return planned, broken


def _control(original: Original, start: Start) -> ControlRef:
    """The picture a repair starts from.

    Raises:
        DatasetError: it is gone.
    """
    if start == "candidate":
        shelf = Shelf(original.stage)
        path = shelf.files.get(original.lineage.request_key)
        if path:
            return ControlRef(path, original.lineage.image_key)
        raise DatasetError(
            f"The image {original.lineage.image_key} is no longer on disk, so it cannot be repaired. Start from its photograph."
        )
    source = original.lineage.facts["source"]
    path = original.stage.project.stage("source").folder / source["name"] if source else None
    if source and path and path.is_file():
        return ControlRef(path, source["key"])
    raise DatasetError(f"The photograph of {original.name} is not there, so it cannot be made again from it. Start from the candidate.")


def _grouped(waiting: Sequence[RepairOrder]) -> list[tuple[str | None, list[RepairOrder]]]:
    groups: dict[str | None, list[RepairOrder]] = {}
    for order in waiting:
        groups.setdefault(order.mask, []).append(order)
    return list(groups.items())


def _settled(
    group: Sequence[RepairOrder], planned: Planned, finished: Sequence[Any], failed: Sequence[tuple[Order, str]], shelf: Shelf
) -> Iterator[RepairOrder]:
    """Orders whose every image is made are done; those with a failure have failed; the others go on waiting with what they have."""
    of = {id(made): order.id for made, order in planned}
    results: dict[str, list[str]] = {}
    for done in finished:
        results.setdefault(of[id(done.order)], []).append(shelf.lineages[done.request_key].image_key)
    problems: Mapping[str, str] = {of[id(order)]: reason for order, reason in failed}
    for order in group:
        keys = tuple(dict.fromkeys(results.get(order.id, ())))
        if order.id in problems:
            yield replace(order, state="failed", problem=problems[order.id], results=keys)
        elif keys and len(results[order.id]) == len(order.seeds):
            yield replace(order, state="done", problem="", results=keys)
        elif keys:
            yield replace(order, results=keys)


def _problems(
    stage: Stage, original: Original, prompt: str, seeds: Sequence[int], start: str, mask: str | None, order_id: str
) -> Iterator[str]:
    if not prompt.strip():
        yield "the prompt is empty: say what shall be different"
    if len(prompt) > MAX_PROMPT:
        yield f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT} are taken"
    if not 0 < len(seeds) <= MAX_SEEDS or not all(0 <= seed < 2**63 for seed in seeds):
        yield f"give 1 to {MAX_SEEDS} seeds, each from 0 to 2^63 - 1"
    if start not in ("source", "candidate"):
        yield f"{start!r} is no start: use source or candidate"
    if mask is not None and mask_file(stage.project, mask) is None:
        yield f"there is no mask {mask!r}: upload it first"
    if mask is not None and start != "candidate":
        yield 'a mask paints over the candidate: send "from": "candidate"'
    if start == "source" and not original.lineage.facts["source"]:
        yield 'no photograph is known for this image: send "from": "candidate"'
    if order_id and not _ID.fullmatch(order_id):
        yield "the id may have letters, digits, - and _, at most 64"


def _folder(stage: Stage) -> Path:
    return stage.folder / "orders"


def _read(stage: Stage, order_id: str) -> RepairOrder | None:
    path = _folder(stage) / f"{order_id}.json"
    return _parsed(path) if _ID.fullmatch(order_id) and path.is_file() else None


def _parsed(path: Path) -> RepairOrder:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        told["seeds"], told["results"] = tuple(told["seeds"]), tuple(told["results"])
        return RepairOrder(**told)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"The repair order {path.name} is not readable ({error}). Delete it and order again.") from error


def _write(stage: Stage, order: RepairOrder) -> None:
    write_json(_folder(stage) / f"{order.id}.json", asdict(order))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
