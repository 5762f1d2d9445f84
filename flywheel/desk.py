"""One stage under review, held in memory, so that a verdict costs no walk over the disk.

The disk and the ledger stay the truth: before each use the desk asks whether a folder or the ledger has changed, and reads again what has. So two
tabs, a script, the file manager and a second ComfyUI may all work on one project.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from . import corrections, ledger, review, store
from .candidates import Shelf
from .errors import DatasetError, StorageError
from .ledger import LABELS, LabelEvent, Pass, Position, Standing, Step
from .project import FOLDERS, Project, Stage

REPEATED = 10  # one image in so many is shown again in the repeat pass


class Turned(Protocol):
    """`ledger.undo` or `ledger.redo`."""

    def __call__(self, project: Project, reviewer: str, during: Pass, keys: Collection[str], *, batch: str = "") -> Step | None: ...


@dataclass(frozen=True, slots=True)
class Decided:
    """What a request came to: image keys it changed, and those a rule left alone because a person had decided.

    `before` and `after`: where the ledger ended, with nothing of anybody else in between.
    """

    changed: tuple[str, ...]
    left_alone: tuple[str, ...]
    before: Position
    after: Position


@dataclass(frozen=True, slots=True)
class Change:
    """What a verdict would change."""

    key: str
    before: str | None
    after: str | None


class Desk:
    """Made once per stage and kept; every method may be called from any thread."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.shelf = Shelf(stage)
        self.standing: Standing = {}
        self.by_image: dict[str, str] = {}  # image key to request key, in the order of the review
        self.position = Position()
        self.turns = 0  # grows when files came, went or were moved by others
        self._stamps: tuple[object, ...] = ()
        self._walks = 0
        self._counted: tuple[object, dict[Pass, dict[str, int]]] = None, {}
        self._guard = threading.RLock()

    def refresh(self) -> None:
        """Walk the disk: afterwards files and verdicts agree, and what people sorted by hand is a verdict."""
        with self._guard, review.taking_turns(self.stage.project):
            self._walk()

    def catch_up(self) -> None:
        """Walk only if a folder has changed."""
        with self._guard, review.taking_turns(self.stage.project):
            self._catch_up()

    def inspect(self) -> None:
        """Look at every file, and walk only if one is not what it was, so that no verdict waits for the look. Verdicts given meanwhile move files."""
        self.catch_up()
        seen, known = Shelf(self.stage).files, self.shelf.files
        moved = [key for key, path in list(known.items()) if seen.get(key) != path]
        if seen.keys() - known.keys() or not all(self.shelf.is_whole(key) for key in moved):
            self.refresh()

    def decide(self, events: Sequence[LabelEvent], *, batch: str = "") -> Decided:
        """Record verdicts and move their files. Verdicts of a rule touch only what is undecided.

        Raises:
            DatasetError: an event is wrong; then none is stored.
        """
        with self._guard, review.taking_turns(self.stage.project):
            self._catch_up(read_ledger=any(event.origin == "policy" for event in events))  # else it is read once, after recording
            wanted, left_alone = self._allowed(events)
            store.hold(self.stage.project.database)
            before = ledger.position(self.stage.project)
            if wanted:
                ledger.record(self.stage.project, wanted, batch=batch)
            keys = tuple(dict.fromkeys(event.image_key for event in wanted))
            self._follow(keys)
            return Decided(keys, left_alone, before, self.position)

    def preview(self, events: Sequence[LabelEvent]) -> tuple[list[Change], tuple[str, ...]]:
        """What `decide` would change, and what it would leave alone."""
        with self._guard, review.taking_turns(self.stage.project):
            self._catch_up()
            wanted, left_alone = self._allowed(events)
            changes = [Change(event.image_key, self.label(event.image_key, event.during), event.label) for event in wanted]
            return [change for change in changes if change.before != change.after], left_alone

    def undo(self, reviewer: str, during: Pass, batch: str = "") -> tuple[Step | None, Decided]:
        """See `ledger.undo`; files go back as well."""
        return self._turned(ledger.undo, reviewer, during, batch)

    def redo(self, reviewer: str, during: Pass, batch: str = "") -> tuple[Step | None, Decided]:
        return self._turned(ledger.redo, reviewer, during, batch)

    def steps(self, reviewer: str, during: Pass) -> tuple[Step | None, Step | None]:
        """The reviewer's next undo and next redo here."""
        return ledger.steps(self.stage.project, reviewer, during, self.by_image)

    def label(self, key: str, during: Pass) -> str | None:
        event = self.standing.get(key, {}).get(during)
        return event.label if event else None

    def in_force(self, key: str) -> LabelEvent | None:
        return ledger.in_force(self.standing.get(key, {}))

    def keys(self, during: Pass) -> list[str]:
        """Image keys a pass is about, in the order of the review."""
        if during == "first":
            return list(self.by_image)
        standing = self.standing  # another thread may put a new one in its place
        stands = [(key, standing[key]) for key in self.by_image if key in standing]
        decided = [key for key, passes in stands if "first" in passes and passes["first"].label]
        if during == "strict":
            good = {key for key in decided if standing[key]["first"].label == "good"}
            return [key for key, passes in stands if key in good or "strict" in passes]
        tenth = -(-len(decided) // REPEATED)
        chosen = set(sorted(decided, key=_reversed)[:tenth])  # keys are hashes: any fixed order of them is a fair draw
        return [key for key, passes in stands if key in chosen or "repeat" in passes]

    def counts(self, during: Pass = "first") -> dict[str, int]:
        """Images of a pass: total, undecided, and by label."""
        at, known = self._counted
        if at != (self.position, self._walks):
            at, known = self._counted = (self.position, self._walks), dict[Pass, dict[str, int]]()
        if during not in known:
            known[during] = self._count(during)
        return dict(known[during])

    def _count(self, during: Pass) -> dict[str, int]:
        keys = self.by_image if during == "first" else set(self.keys(during))
        stands = list(self.standing.items())  # another thread may add to it
        found = Counter(passes[during].label for key, passes in stands if during in passes and key in keys)
        decided = {label: found[label] for label in LABELS}
        return {"total": len(keys), "undecided": len(keys) - sum(decided.values()), **decided}

    @property
    def undecided(self) -> int:
        """Images the first pass has not decided, as of the last look."""
        return self.counts()["undecided"]

    def file(self, key: str) -> Path | None:
        """Where the image lies now; a file that was moved or made since the last look is found."""
        for look in (self.catch_up, self.refresh):
            path = self._known_file(key)
            if path and path.is_file():
                return path
            look()
        path = self._known_file(key)
        return path if path and path.is_file() else None

    def missing(self) -> list[tuple[str, str, str]]:
        """Key, name and reason of images under review whose file is gone or is another one."""
        session = review.session_keys(self.stage)
        lineages = {lineage.image_key: lineage for lineage in self.shelf.lineages.values()}
        known = session if session is not None else list(lineages)
        gone: list[tuple[str, str, str]] = []
        for key in known:
            event = self.in_force(key)
            if key in self.by_image or key not in lineages or (event and event.label == "reject"):
                continue
            request_key = lineages[key].request_key
            if request_key in self.shelf.files:
                continue  # a try that lost
            changed = [path.name for path in self.shelf.strangers() if path.stem.endswith(request_key)]
            why = f"{changed[0]} was changed on disk since it was made" if changed else "the file was deleted, or moved out of the project"
            gone.append((key, changed[0] if changed else request_key, f"{why}; its verdict is kept"))
        return gone

    def _known_file(self, key: str) -> Path | None:
        request_key = self.by_image.get(key) or next(
            (made for made, lineage in self.shelf.lineages.items() if lineage.image_key == key), None
        )
        return self.shelf.files.get(request_key) if request_key else None

    def _allowed(self, events: Sequence[LabelEvent]) -> tuple[list[LabelEvent], tuple[str, ...]]:
        problems = ledger.problems_of(events, self.by_image)
        if problems:
            raise DatasetError("Nothing was stored:", problems)
        left_alone = {event.image_key for event in events if event.origin == "policy" and self._by_person(event)}
        return [event for event in events if event.image_key not in left_alone], tuple(left_alone)

    def _by_person(self, event: LabelEvent) -> bool:
        stands = self.standing.get(event.image_key, {}).get(event.during)
        sent_again = event.event_id is not None and stands is not None and stands.event_id == event.event_id
        return stands is not None and stands.label is not None and stands.origin != "policy" and not sent_again

    def _turned(self, turned: Turned, reviewer: str, during: Pass, batch: str) -> tuple[Step | None, Decided]:
        with self._guard, review.taking_turns(self.stage.project):
            self._catch_up()
            before = ledger.position(self.stage.project)
            step = turned(self.stage.project, reviewer, during, self.by_image, batch=batch)
            changed = ledger.keys_of(self.stage.project, step.batch) if step else ()
            self._follow(changed)
            return step, Decided(tuple(changed), (), before, self.position)

    def _catch_up(self, *, read_ledger: bool = True) -> None:
        if self._stamps != self._read_stamps():
            self._walk()
        elif read_ledger:
            self.standing, self.position = ledger.catch_up(self.stage.project, self.standing, self.position)

    def _walk(self) -> None:
        before, known = self._read_stamps(), (list(self.by_image), dict(self.shelf.files) if self._walks else {})
        self.shelf = review.settle(self.stage)
        self.by_image = {self.shelf.lineages[key].image_key: key for key in review.keys_under_review(self.shelf)}
        self.standing, self.position = ledger.catch_up(self.stage.project, self.standing, self.position)
        self._walks += 1
        self.turns += known != (list(self.by_image), self.shelf.files)
        self._stamps = before if before == self._read_stamps() else ()  # where something moved meanwhile, look again next time

    def _follow(self, keys: Iterable[str]) -> None:
        """Take note of what was recorded and move the files of these images."""
        self.standing, self.position = ledger.catch_up(self.stage.project, self.standing, self.position)
        places: dict[str, str] = {}
        try:
            for key in keys:
                request_key = self.by_image.get(key)
                if request_key in self.shelf.files:
                    was = self.shelf.folder_of(self.shelf.files[request_key])
                    now = review.place(self.shelf, request_key, self.in_force(key))
                    if now != was:
                        places[key] = now
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            self._stamps = ()  # deleted or moved by hand this moment: the verdict is stored, the next look will tell
            return
        finally:
            if places:
                review.remember_places(self.stage, places)
        if places:
            self._stamps = self._read_stamps()

    def _read_stamps(self) -> tuple[object, ...]:
        """When each folder was last changed, as it is by files that came, went or were renamed; and each working copy, which is saved in place."""
        folders = [self.stage.folder / name for name in FOLDERS]
        lent = corrections.working_copies(self.stage) if self.stage.name == "corrections" else []
        return *(_changed_at(folder) for folder in (*folders, self.stage.lineage)), *((path.name, _changed_at(path)) for path in lent)


def _reversed(key: str) -> str:
    return key[::-1]


def _changed_at(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
