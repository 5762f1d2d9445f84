"""Which images of a review a report shows, and in what order. Works on the items that `evidence.described` makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import DatasetError
from .identity import REVIEW, THRESHOLD

Sorting = Literal["file", "uncertain", "score"]
CHOICES = ("label", "reason", "editor", "lora", "band", "angle", "expression")
TEXTS = ("prompt", "source", "q")
_OTHERS = ("generation", "disagreement", "order", "title", "pass", "blind", "reviewer", "token", "view")


@dataclass(frozen=True, slots=True)
class Filter:
    """`choices`: any of the values will do; `texts`: parts of the text, whatever the case. Everything given must hold."""

    choices: Mapping[str, frozenset[str]]
    texts: Mapping[str, str]
    generation: int | None = None
    disagreement: bool = False
    order: Sorting = "file"

    def holds(self, item: Mapping[str, Any]) -> bool:
        chosen = all(values & _values(item, name) for name, values in self.choices.items())
        worded = all(text.casefold() in _text(item, name).casefold() for name, text in self.texts.items())
        aged = self.generation is None or item.get("generation") == self.generation
        return chosen and worded and aged and (not self.disagreement or bool(item.get("disagreement")))

    def apply(self, items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(filter(self.holds, items), key=_SORTINGS[self.order])

    def words(self) -> str:
        """The filter for a heading; empty when it lets everything through."""
        parts = [f"{name} {' or '.join(sorted(values))}" for name, values in self.choices.items()]
        parts += [f"{'text' if name == 'q' else name} contains {text!r}" for name, text in self.texts.items()]
        parts += [f"generation {self.generation}"] if self.generation is not None else []
        return ", ".join([*parts, *(["human and score disagree"] if self.disagreement else [])])


def parse_filter(query: Mapping[str, str]) -> Filter:
    """A filter from the words of an address.

    Raises:
        DatasetError: a word is unknown or has no such value; all of them at once.
    """
    problems = [f"{name!r} is no filter: use {', '.join((*CHOICES, *TEXTS, *_OTHERS[:4]))}" for name in query if name not in _KNOWN]
    generation, order = query.get("generation", ""), query.get("order", "file")
    if generation and not generation.isdigit():
        problems.append(f"generation is a number, not {generation!r}")
    if order not in _SORTINGS:
        problems.append(f"{order!r} is no order: use {', '.join(_SORTINGS)}")
    if problems:
        raise DatasetError("This filter does not work:", problems)
    return Filter(
        {name: frozenset(part.strip() for part in query[name].split(",")) for name in CHOICES if query.get(name)},
        {name: query[name] for name in TEXTS if query.get(name)},
        int(generation) if generation else None,
        query.get("disagreement", "") not in ("", "0"),
        order,  # type: ignore[arg-type]
    )


def _values(item: Mapping[str, Any], name: str) -> frozenset[str]:
    if name == "label":
        return frozenset({item.get("label") or "undecided"})
    if name == "band":
        return frozenset({item.get("band") or "unmeasured"})
    if name == "reason":
        return frozenset(item.get("reasons", ()))
    if name == "lora":
        return frozenset(lora["name"] for lora in item.get("loras", ()))
    return frozenset({str(item.get(name) or "unknown")})


def _text(item: Mapping[str, Any], name: str) -> str:
    source = (item.get("source") or {}).get("name", "")
    if name == "source":
        return source
    if name == "prompt":
        return item.get("prompt") or ""
    return " ".join(str(item.get(part) or "") for part in ("name", "prompt", "caption", "note", "editor")) + " " + source


def _uncertain(item: Mapping[str, Any]) -> tuple[bool, float]:
    """Undecided first; among them what lies nearest to the doubtful band, and what cannot be measured last."""
    similarity = item.get("similarity")
    return item.get("label") is not None, abs(similarity - (REVIEW + THRESHOLD) / 2) if similarity is not None else 2.0


def _as_given(_: Mapping[str, Any]) -> int:
    return 0


def _score(item: Mapping[str, Any]) -> float:
    similarity = item.get("similarity")
    return similarity if similarity is not None else 2.0


_SORTINGS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {"file": _as_given, "uncertain": _uncertain, "score": _score}
_KNOWN = frozenset({*CHOICES, *TEXTS, *_OTHERS})
