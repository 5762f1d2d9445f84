"""Captions: filled in from a template, checked for what spoils training, changed in many at once, and kept equal in metadata.json and .txt.

Pure but for the two functions on .txt files. What a caption may mention: everything that should stay changeable (clothes, place, light, angle,
expression). What it should not: what belongs to the character, because the token must learn that.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from .errors import DatasetError, PromptError
from .images import write_whole
from .project import Project, common_words
from .quality import UNKNOWN

TEMPLATE = "photo of {token} {noun}, {expression} expression, {angle} view"
ABOUT_THE_CHARACTER = frozenset({"token", "noun"})
PLACEHOLDERS = ABOUT_THE_CHARACTER | {"expression", "angle", "framing", "setting"}
IN_TEXT_FILE = "caption_in_txt"  # field of metadata.json: the caption both places had when we wrote them last
LEAK_SHARE, LEAK_LEAST = 0.8, 3  # share of the captions, and how many captions there must be, before a trait counts as always said
SAME_SHARE = 0.5  # of the captions word for word the same
SHOWN = 3  # names in one finding


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that spoils training, in words, and the images whose captions have it."""

    text: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.names) - SHOWN} more" if len(self.names) > SHOWN else ""
        return f"{self.text} ({', '.join(self.names[:SHOWN])}{more})"


@dataclass(frozen=True, slots=True)
class Change:
    """One caption before and after."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name}\n  - {self.before}\n  + {self.after}"


# --- templates


def check_template(template: str) -> None:
    """Refuse a template whose braces mean nothing.

    Raises:
        PromptError: says which, and what it may hold.
    """
    try:
        problems = [
            f"{{{name}}} means nothing here"
            for part in template.split(",")
            for _, name, form, conversion in string.Formatter().parse(part)
            if name is not None and (name not in PLACEHOLDERS or form or conversion)
        ]
    except ValueError as error:
        problems = [f"its braces do not fit together ({error})"]
    if not problems and not template.strip():
        problems = ["it is empty"]
    if problems:
        known = ", ".join(f"{{{name}}}" for name in sorted(PLACEHOLDERS))
        raise PromptError(f"The caption template {template!r} cannot be used; it knows {known}:", problems)


def fill(template: str, project: Project, **known: str) -> str:
    """The template filled in. A part between commas that needs something unknown is left out; if the token is in it, only the word is."""
    words = {**dict.fromkeys(PLACEHOLDERS, UNKNOWN), "token": project.instance_token, "noun": project.class_noun, **known}
    parts: list[str] = []
    for part in template.split(","):
        names = {name for _, name, _, _ in string.Formatter().parse(part) if name}
        unknown = {name for name in names if words[name] == UNKNOWN}
        if unknown and not names & ABOUT_THE_CHARACTER:
            continue
        parts.append(" ".join(part.format(**{**words, **dict.fromkeys(unknown, "")}).split()))
    return ", ".join(part for part in parts if part)


# --- lint


def lint(captions: Mapping[str, str], project: Project) -> tuple[Finding, ...]:
    """Everything in captions (by image name) that is known to spoil training; nothing is changed."""
    token, noun = _word(project.instance_token), _word(project.class_noun, re.IGNORECASE)
    times = {name: len(token.findall(caption)) for name, caption in captions.items()}
    said = [
        _finding(f"the token {project.instance_token!r} is missing", captions, lambda name, _: not times[name]),
        _finding(f"the token {project.instance_token!r} is said more than once", captions, lambda name, _: times[name] > 1),
        _finding(f"the class noun {project.class_noun!r} is missing", captions, lambda _, caption: not noun.search(caption)),
    ]
    said += [_finding(text, captions, lambda _, caption, left=left: bool(left.search(caption))) for text, left in _LEFTOVERS]
    if project.instance_token.casefold() in common_words():
        said.append(
            Finding(f"the token {project.instance_token!r} is an ordinary word the model already knows; use a rare one", tuple(captions))
        )
    return (*(finding for finding in said if finding and finding.names), *_leaks(captions, project), *_monotony(captions))


_LEFTOVERS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a placeholder or bracket was left over", re.compile(r"[{}\[\]<>|]")),
    ("the word 'unknown' was left over", re.compile(rf"\b{UNKNOWN}\b", re.IGNORECASE)),
    ("a note to yourself was left over", re.compile(r"\b(?:todo|fixme|tbd|xxx|placeholder|lorem ipsum)\b|\?\?", re.IGNORECASE)),
    ("an empty part between commas was left over", re.compile(r",\s*(?:,|\.?\s*$)|^\s*,")),
    ("a file name was left over", re.compile(r"\b[\w-]+\.(?:jpe?g|png|webp|txt|heic)\b", re.IGNORECASE)),
    (
        "it talks about the picture as a language model does; say what is in it",
        re.compile(
            r"\b(?:the|this|in this|in the) (?:image|picture|photo(?:graph)?)(?: \w+)? (?:shows?|depicts?|features?|captures?|is of|there)\b"
            r"|\bas an ai\b|\bi (?:cannot|can't|am unable)\b|\bhere is (?:a|the) (?:caption|description)\b|\bcaption:",
            re.IGNORECASE,
        ),
    ),
)


def _word(word: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", flags)


def _finding(text: str, captions: Mapping[str, str], has: Callable[[str, str], bool]) -> Finding:
    return Finding(text, tuple(name for name, caption in captions.items() if has(name, caption)))


def _leaks(captions: Mapping[str, str], project: Project) -> Iterator[Finding]:
    """Traits of the character that nearly every caption repeats."""
    own = {*project.class_noun.casefold().split(), project.instance_token.casefold()}
    traits: dict[str, list[str]] = {}
    for name, caption in captions.items():
        for trait in _traits(caption):
            if not own & set(trait.split()):
                traits.setdefault(trait, []).append(name)
    for trait, names in traits.items():
        if len(names) >= max(LEAK_LEAST, LEAK_SHARE * len(captions)):
            yield Finding(
                f"{trait!r} is said in {len(names)} of {len(captions)} captions: what belongs to the character is left out, so that the"
                " token learns it",
                tuple(names),
            )


def _traits(caption: str) -> set[str]:
    words = re.findall(r"[\w-]+", caption.casefold())
    known = _identity_words()
    found = {word for word in words if word in known["words"]}
    pairs = pairwise(words)
    return found | {f"{before} {noun}" for before, noun in pairs if noun in known["nouns"] and before not in known["not_a_trait"]}


@cache
def _identity_words() -> dict[str, frozenset[str]]:
    described = json.loads((Path(__file__).parent / "data" / "identity_words.json").read_text(encoding="utf-8"))
    return {kind: frozenset(described[kind]) for kind in ("nouns", "words", "not_a_trait")}


def _monotony(captions: Mapping[str, str]) -> Iterator[Finding]:
    for caption, count in Counter(captions.values()).most_common(1):
        if count >= max(LEAK_LEAST, SAME_SHARE * len(captions)):
            same = tuple(name for name, other in captions.items() if other == caption)
            yield Finding(f"{count} captions are word for word the same: angle, expression and place then stick to the token", same)


# --- changing many


def replaced(captions: Mapping[str, str], find: str, by: str, *, whole_words: bool = True, match_case: bool = False) -> tuple[Change, ...]:
    """What finding and replacing plain text would change; nothing is changed yet. Spaces at the ends of a caption are dropped.

    Raises:
        PromptError: there is nothing to find.
    """
    if not find:
        raise PromptError("There is nothing to find. Type the words to replace.")
    edges = (r"(?<!\w)" if whole_words and _is_word(find[0]) else "", r"(?!\w)" if whole_words and _is_word(find[-1]) else "")
    pattern = re.compile(edges[0] + re.escape(find) + edges[1], 0 if match_case else re.IGNORECASE)
    after = {name: pattern.sub(lambda _: by, caption).strip() for name, caption in captions.items()}
    return tuple(Change(name, captions[name], caption) for name, caption in after.items() if caption != captions[name])


def _is_word(character: str) -> bool:
    return bool(re.match(r"\w", character))


def listed(text: str, captions: Mapping[str, str]) -> tuple[Change, ...]:
    """What a list of captions, one "name: caption" per line, would change. A name may lack its suffix; blank lines and # are comments.

    Raises:
        DatasetError: a line has no name or no caption, or a name is none of these images, or comes twice. All at once.
    """
    known = {alias: name for name in captions for alias in (name.casefold(), name.rpartition(".")[0].casefold())}
    wanted: dict[str, str] = {}
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        given, colon, caption = line.partition(":")
        name = known.get(given.strip().casefold())
        if not colon or not caption.strip():
            problems.append(f'line {number} is not "name: caption": {line.strip()!r}')
        elif name is None:
            problems.append(f"line {number}: there is no image {given.strip()!r}")
        elif name in wanted:
            problems.append(f"line {number}: {name} comes twice")
        else:
            wanted[name] = " ".join(caption.split())
    if problems:
        names = ", ".join(list(captions)[:SHOWN])
        raise DatasetError(f"These lines cannot be used (images are called {names}, …):", problems)
    return tuple(Change(name, captions[name], caption) for name, caption in wanted.items() if caption != captions[name])


def written_by_model(answer: str, template: str, project: Project) -> str:
    """A caption around what a captioning model said: `template` with {text} for the answer on one line, without quotes and a full stop.

    Raises:
        PromptError: the template lacks {text} or has other braces than {token} and {noun}, or the model said nothing.
    """
    text = " ".join(answer.split()).strip(" \"'“”.")
    if not text:
        raise PromptError("The captioning model answered with nothing. Try another instruction or another model.")
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise PromptError(f"The braces of {template!r} do not fit together ({error}).") from error
    if "text" not in names or names - ABOUT_THE_CHARACTER - {"text"}:
        raise PromptError(f"The template {template!r} must hold {{text}} for the model's words, and may hold {{token}} and {{noun}}.")
    return template.format(text=text, token=project.instance_token, noun=project.class_noun)


# --- metadata.json and .txt


def text_file(image: Path) -> Path:
    """The caption file of an image, as trainers look for it."""
    return image.with_suffix(".txt")


def changed_in_text_files(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Captions that somebody changed in a .txt file, by image name; `entries` are those of metadata.json.

    Where metadata.json was changed instead, the .txt will follow it (`write_text_files`).

    Raises:
        DatasetError: a caption was changed in both places and differs, or a .txt is empty or no text. All of them at once; nothing is changed.
    """
    changed: dict[str, str] = {}
    problems: list[str] = []
    for name, entry in entries.items():
        path = text_file(folder / name)
        try:
            text = " ".join(path.read_text(encoding="utf-8-sig").split())
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path.name} cannot be read as text ({error})")
            continue
        agreed = entry.get(IN_TEXT_FILE, entry["caption"])
        if text in (entry["caption"], agreed):
            continue
        if not text:
            problems.append(f"{path.name} is empty: write a caption, or delete it to get the one of metadata.json")
        elif entry["caption"] != agreed:
            problems.append(f"{path.name} and metadata.json were both changed and differ: make them equal, or delete {path.name}")
        else:
            changed[name] = text
    if problems:
        raise DatasetError("These captions are not clear; nothing was changed:", problems)
    return changed


def write_text_files(folder: Path, captions: Mapping[str, str]) -> None:
    """Bring the .txt beside each image up to date. Call before metadata.json is written: then a crash between them loses no one's words."""
    for name, caption in captions.items():
        path = text_file(folder / name)
        if not path.is_file() or " ".join(path.read_text(encoding="utf-8-sig").split()) != caption:
            write_whole(path, (caption + "\n").encode())
