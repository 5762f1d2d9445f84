"""Which model families train on pairs, and with how many control images. The facts are data: data/edit_families.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .errors import DatasetError
from .pairs import PairedDataset


@dataclass(frozen=True, slots=True)
class Family:
    """A model family. `controls`: how many control images it takes at most. `layouts`: of the trainers that know it. `why` it trains no edits."""

    id: str
    name: str
    edits: bool
    controls: int
    layouts: tuple[str, ...]
    why: str = ""


@cache
def families() -> tuple[Family, ...]:
    told: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "edit_families.json").read_text(encoding="utf-8"))
    return tuple(Family(layouts=tuple(row.pop("layouts")), **row) for row in told)


def refuse_unsuitable(dataset: PairedDataset, name: str, layout: str = "") -> None:
    """Say now, not after an hour, that a model cannot learn from a dataset, or that a layout's trainer does not know the model.

    `name`: a family's name or id.

    Raises:
        DatasetError: what does not fit, and which families would.
    """
    family = next((family for family in families() if name in (family.name, family.id)), None)
    if family is None:
        raise DatasetError(f"There is no model family {name!r} here. Known: {', '.join(family.name for family in families())}.")
    count = len(dataset.slots)
    problems: list[str] = []
    if count and not family.edits:
        problems.append(f"{family.name} cannot be trained on pairs: {family.why}")
    elif count > family.controls:
        problems.append(
            f"{family.name} takes at most {family.controls} control image{'s' if family.controls > 1 else ''}; the dataset has {count}"
        )
    elif not count and family.edits:
        problems.append(f"{family.name} is trained on pairs, and this dataset has no control images")
    if layout and layout not in family.layouts:
        problems.append(f"the trainer of the layout {layout!r} does not train {family.name}; these do: {', '.join(family.layouts)}")
    if problems:
        able = [other.name for other in families() if (other.edits and other.controls >= count) == bool(count)]
        raise DatasetError(f"{dataset.name!r} does not suit the model. Families that it suits: {', '.join(able)}.", problems)
