"""Small things a reviewer leaves behind: saved filters and where the review was left. Convenience; losing them loses no verdict.

<project>/views.json        saved filters, by name
<project>/reviewers.json    by stage, pass and reviewer: the image last looked at
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .errors import DatasetError
from .images import write_json
from .project import Project, Stage
from .review import taking_turns

MAX_VIEWS, MAX_NAME, MAX_JSON = 100, 100, 10_000


def views(project: Project) -> list[dict[str, Any]]:
    """Saved filters by name; what is in a filter is the page's affair."""
    saved = _read(project.root / "views.json")
    return [{"name": name, "filter": saved[name]} for name in sorted(saved, key=str.casefold)]


def save_view(project: Project, name: str, chosen: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Add or replace a filter, or delete it with None; answers all of them.

    Raises:
        DatasetError: the name is empty or too long, the filter too large, or there are too many.
    """
    name = name.strip()
    if not 0 < len(name) <= MAX_NAME:
        raise DatasetError(f"Give the view a name of 1 to {MAX_NAME} characters.")
    _refuse_large(chosen)
    with taking_turns(project):
        saved = _read(project.root / "views.json")
        if chosen is None:
            saved.pop(name, None)
        elif name not in saved and len(saved) >= MAX_VIEWS:
            raise DatasetError(f"There are {MAX_VIEWS} saved views already; delete one first.")
        else:
            saved[name] = chosen
        write_json(project.root / "views.json", saved)
    return views(project)


def stopped_at(stage: Stage, reviewer: str, during: str) -> dict[str, Any] | None:
    """Where this reviewer left this pass."""
    return _read(stage.project.root / "reviewers.json").get(_place(stage, during), {}).get(reviewer)


def leave(stage: Stage, reviewer: str, during: str, left: dict[str, Any]) -> None:
    """Note where the reviewer is."""
    _refuse_large(left)
    path = stage.project.root / "reviewers.json"
    with taking_turns(stage.project):
        known = _read(path)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        known.setdefault(_place(stage, during), {})[reviewer] = {**left, "at": now}
        write_json(path, known)


def _place(stage: Stage, during: str) -> str:
    return f"{stage.name}/{stage.project.version}/{during}"


def _read(path: Path) -> dict[str, Any]:
    """What is there; a damaged file counts as none, because nothing but convenience is lost."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _refuse_large(value: Any) -> None:
    if len(json.dumps(value)) > MAX_JSON:
        raise DatasetError(f"This is larger than {MAX_JSON} characters of JSON.")
