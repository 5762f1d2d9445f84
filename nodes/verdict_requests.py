"""Verdicts, and who gives them in which pass, as a request tells them: checked before anything is stored."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

from ..flywheel import ledger
from ..flywheel.errors import DatasetError
from ..flywheel.ledger import PASSES, LabelEvent, Pass, Position

MAX_EVENTS, MAX_NOTE, MAX_NAME = 20_000, 2_000, 100


def events_of(body: dict[str, Any]) -> list[LabelEvent]:
    described, reviewer, origin = body.get("events"), body.get("reviewer", ""), body.get("origin", "person")
    if (
        not isinstance(described, list)
        or not all(isinstance(event, dict) and isinstance(event.get("key"), str) for event in cast("list[Any]", described))
        or not isinstance(reviewer, str)
        or origin not in ("person", "policy")
    ):
        raise DatasetError('The body must be {"reviewer": "…", "events": [{"key": "…", "label": "good", "reasons": [], "note": ""}, …]}.')
    told = cast("list[dict[str, Any]]", described)
    if len(told) > MAX_EVENTS:
        raise DatasetError(f"{len(told)} verdicts at once are too many; send at most {MAX_EVENTS}.")
    if len(reviewer) > MAX_NAME:
        raise DatasetError(f"The reviewer's name is longer than {MAX_NAME} characters.")
    return [_event(event, reviewer, origin, pass_of(body.get("pass"))) for event in told]


def _event(described: dict[str, Any], reviewer: str, origin: Any, during: Pass) -> LabelEvent:
    label, reasons, note, event_id = described.get("label"), described.get("reasons", []), described.get("note", ""), described.get("id")
    answers = described.get("answers", {})
    if (
        not isinstance(reasons, list)
        or not isinstance(note, str)
        or len(note) > MAX_NOTE
        or not (label is None or isinstance(label, str))
        or not (event_id is None or (isinstance(event_id, str) and 0 < len(event_id) <= MAX_NAME))
        or not (isinstance(answers, dict) and all(isinstance(answer, bool) for answer in cast("dict[str, Any]", answers).values()))
    ):
        raise DatasetError(
            f"The verdict on {described['key']!r} needs a label or null, a list of reasons, a note of at most {MAX_NOTE} characters."
            " Answers are true or false by question."
        )
    words = tuple(map(str, cast("Iterable[Any]", reasons)))
    return LabelEvent(
        described["key"],
        cast("ledger.Label | None", label),
        words,
        note,
        reviewer,
        origin,
        event_id=event_id,
        during=during,
        answers=answers,
        batch=batch_of(described),
    )


def pass_of(name: Any) -> Pass:
    if name in (None, ""):
        return "first"
    if name not in PASSES:
        raise DatasetError(f"{name!r} is no pass: use {', '.join(PASSES)}.")
    return name


def position_of(text: str | None) -> Position | None:
    """A revision that was answered earlier; anything else asks for everything."""
    found = re.fullmatch(r"(\d{1,18})\.(\d{1,18})", text or "")
    return Position(int(found[1]), int(found[2])) if found else None


def number_of(text: str | None) -> int:
    """A number that was asked for; 0 where there is none."""
    return int(text) if text and re.fullmatch(r"\d{1,5}", text) else 0


def batch_of(body: dict[str, Any]) -> str:
    batch = text_of(body, "batch", MAX_NAME)
    if batch.startswith("event-"):
        raise DatasetError("A batch id may not begin with event-.")
    return batch


def text_of(body: dict[str, Any], name: str, limit: int) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str) or len(value) > limit:
        raise DatasetError(f"{name} must be a text of at most {limit} characters.")
    return value
