"""The desks of this process: one per stage that is or was under review."""

from __future__ import annotations

import threading
from pathlib import Path

from ..flywheel.desk import Desk
from ..flywheel.project import Project, Stage, StageName
from . import host

REVIEWED: tuple[StageName, ...] = ("enriched", "synthetic", "corrections", "card")

_desks: dict[tuple[Path, str, int], Desk] = {}
_guard = threading.Lock()
_all_seen = False


def desk_of(stage: Stage) -> Desk:
    """The desk of a stage; the same one every time."""
    with _guard:
        desk = _desks.setdefault((stage.project.root, stage.name, stage.project.lap), Desk(stage))
        desk.stage = stage  # the character's words may have changed
        return desk


def reviewed(project: Project) -> list[Desk]:
    """Desks of every stage and lap of a project that is for people to decide on, up to date."""
    desks = [desk_of(stage) for stage in host.stages_of(project) if stage.name in REVIEWED]
    for desk in desks:
        desk.catch_up()
    return [desk for desk in desks if desk.by_image]


def undecided_total() -> int:
    """Undecided images of all projects, as far as the desks know; every project is looked at once."""
    global _all_seen
    if not _all_seen:
        for project in host.readable_projects():
            reviewed(project)
        _all_seen = True
    with _guard:
        desks = [desk for (root, _, _), desk in _desks.items() if root.is_dir()]
    return sum(desk.undecided for desk in desks)
