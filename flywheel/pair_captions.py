"""The words of pairs: a .txt beside the target, a row of metadata.jsonl, or one instruction for all; and the trigger word."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .pair_slots import Slot, listed, match_key

CAPTION_FIELDS = ("text", "caption", "prompt")
TRIGGER = "[trigger]"  # where a caption says it, the trigger word is put


@dataclass(frozen=True, slots=True)
class Captions:
    """Words by match key. `lacking`: keys that have none; `problems` says so of each, and what else is wrong."""

    of: dict[str, str]
    problems: list[tuple[str, str]]
    notes: list[str]
    lacking: frozenset[str]


def captions_of(target: Slot, described: Mapping[str, str], instruction: str, trigger: str) -> Captions:
    found: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    notes: list[str] = []
    lacking: set[str] = set()
    general = told = 0
    for key, paths in target.files.items():
        caption = described.get(key, "")
        texts = target.texts.get(key, [])
        if len(texts) > 1:
            problems.append((key, f"{' and '.join(map(target.shown, texts))} are both captions of {target.shown(paths[0])}: keep one"))
        elif texts:
            try:
                caption = texts[0].read_text(encoding="utf-8-sig").strip() or caption
            except (OSError, UnicodeDecodeError) as error:
                problems.append((key, f"{target.shown(texts[0])} cannot be read as UTF-8 text ({error}): save it again as UTF-8"))
                continue
        if not caption:
            caption, general = instruction, general + bool(instruction)
        if not caption:
            lacking.add(key)
            problems.append(
                (key, f"{target.shown(paths[0])} has no caption: add {paths[0].stem}.txt, or give one instruction for all pairs")
            )
            continue
        caption, added = _with_trigger(" ".join(caption.split()), trigger)
        found[key], told = caption, told + added
    if general:
        notes.append(f"{general} of {len(target.files)} pairs use the general instruction {instruction!r}.")
    if told:
        notes.append(f"The trigger word {trigger!r} was put in front of {told} captions that lacked it.")
    lost = [path.name for key, paths in target.texts.items() if key not in target.files for path in paths]
    if lost:
        notes.append(f"Captions without a picture: {listed(lost)}.")
    return Captions(found, problems, notes, frozenset(lacking))


def _with_trigger(caption: str, trigger: str) -> tuple[str, bool]:
    if not trigger:
        return caption, False
    if TRIGGER in caption:
        return caption.replace(TRIGGER, trigger), False
    spoken = re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE)
    return (caption, False) if spoken else (f"{trigger}, {caption}", True)


def read_metadata(path: Path, target: Slot) -> tuple[dict[str, str], list[tuple[str, str]], list[str]]:
    """Captions of a metadata.jsonl by match key, what is wrong with it, and rows without a picture."""
    if not path.is_file():
        return {}, [], []
    found: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    lost: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return {}, [("", f"{path.name} cannot be read as UTF-8 text ({error})")], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            problems.append(("", f"{path.name}, line {number}: not a JSON object with file_name and one of {', '.join(CAPTION_FIELDS)}"))
            continue
        file_name, caption = row
        key = match_key(Path(file_name).stem)
        if key not in target.files:
            lost.append(file_name)
        elif key in found and found[key] != caption:
            problems.append((key, f"{path.name}, line {number}: {file_name} has two different captions"))
        else:
            found[key] = caption
    return found, problems, [f"{path.name} names files that are not there: {listed(lost)}."] if lost else []


def _row(line: str) -> tuple[str, str] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        return None
    caption = next((row[name] for name in CAPTION_FIELDS if isinstance(row.get(name), str)), None)
    return None if caption is None else (row["file_name"], caption)
