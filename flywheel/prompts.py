"""Prompt sets: one template per line, [forest|studio] expanded, named presets. Text in, prompts out; makes no image."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod
from pathlib import Path

from .errors import PromptError

LIMIT = 2_000  # prompts of one set: with ten sources already a week of a 4090
_PART = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One expanded prompt and the template it came from."""

    text: str
    template: str


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Templates with bracketed choices.

    `per_source`: how many prompts each source image gets; 0 means all. `sources`: file name patterns such as source_00*; empty means every one.

    Raises:
        PromptError: brackets do not balance, a choice is empty, or the expansion is larger than LIMIT. All problems at once.
    """

    templates: tuple[str, ...]
    per_source: int = 0
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [problem for number, template in enumerate(self.templates, 1) for problem in _problems(number, template)]
        if not self.templates:
            problems.append("there is no prompt: type one per line or choose a preset")
        if not problems and self.count > LIMIT:
            problems.append(
                f"{len(self.templates)} templates expand to {self.count:,} prompts; the limit is {LIMIT:,}. Shorten a bracket or split the set"
            )
        if problems:
            raise PromptError("These prompts cannot be used:", problems)

    @property
    def count(self) -> int:
        """Number of prompts, computed without expanding them."""
        return sum(prod(part.count("|") + 1 for part in _PART.findall(template)) for template in self.templates)

    def expand(self) -> tuple[Prompt, ...]:
        """All prompts in order, each text once; the leftmost bracket varies slowest."""
        prompts = {text: Prompt(text, template) for template in reversed(self.templates) for text in _expansions(template)}
        return tuple(prompts[text] for text in dict.fromkeys(text for template in self.templates for text in _expansions(template)))


def parse(text: str, *, per_source: int = 0, sources: str = "") -> PromptSet:
    """A prompt set from a text box: one template per line; blank lines and lines starting with # are comments."""
    lines = [line.strip() for line in text.splitlines()]
    patterns = tuple(pattern for pattern in re.split(r"[,\s]+", sources) if pattern)
    return PromptSet(tuple(line for line in lines if line and not line.startswith("#")), per_source, patterns)


@cache
def presets() -> dict[str, tuple[str, ...]]:
    """Bundled templates by name."""
    described = json.loads((Path(__file__).parent / "data" / "prompt_presets.json").read_text(encoding="utf-8"))
    return {name: tuple(templates) for name, templates in described.items()}


def _expansions(template: str) -> Iterator[str]:
    pieces = _PART.split(template)  # text, choices, text, choices, …, text
    choices = [piece.split("|") if index % 2 else [piece] for index, piece in enumerate(pieces)]
    for combination in product(*choices):
        yield " ".join("".join(combination).split())


def _problems(number: int, template: str) -> Iterator[str]:
    depth = 0
    for character in template:
        depth += (character == "[") - (character == "]")
        if depth < 0:
            yield f"prompt {number} has a ] without its [: {_short(template)}"
            return
        if depth > 1:
            yield f"prompt {number} has a [ inside a [ ]; brackets cannot be nested: {_short(template)}"
            return
    if depth:
        yield f"prompt {number} has a [ without its ]: {_short(template)}"
    elif any(not choice.strip() and "|" in part for part in _PART.findall(template) for choice in part.split("|")):
        yield f"prompt {number} has an empty choice between | and |: {_short(template)}"
    elif any(not part.strip() for part in _PART.findall(template)):
        yield f"prompt {number} has empty brackets: {_short(template)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
