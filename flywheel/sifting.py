"""Parting scored images: by a threshold, by how many may stay, and into take, look at and leave. Costs nothing: no face is measured again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import nextafter
from typing import Literal

from .dataset import Dataset
from .identity import MATCH, REVIEW, THRESHOLD, Scores

Keep = Literal["all", "best", "percent"]


@dataclass(frozen=True, slots=True)
class Sieve:
    """What stays: images from `threshold` up, and of those all, the best `amount`, or the best `amount` per cent of those measured."""

    threshold: float = THRESHOLD
    keep: Keep = "all"
    amount: int = 50


@dataclass(frozen=True, slots=True)
class Split:
    """Three datasets that together are the one that was scored."""

    passed: Dataset
    failed: Dataset
    unmeasurable: Dataset


@dataclass(frozen=True, slots=True)
class Parts:
    """Three datasets for three decisions: take, look at, leave. Together they are the one that was scored."""

    accepted: Dataset
    review: Dataset
    rejected: Dataset


@dataclass(frozen=True, slots=True)
class Sifted:
    """What a sieve makes of scores. `kept_from`: the similarity from which images stay; above 1 where none does."""

    sieve: Sieve
    kept_from: float
    split: Split
    parts: Parts

    @property
    def words(self) -> str:
        """The counts, in one line."""
        split, sieve = self.split, self.sieve
        thinned = f" (only the best may stay: from {self.kept_from:.2f})" if self.kept_from > sieve.threshold else ""
        total = sum(len(part.images) for part in (split.passed, split.failed, split.unmeasurable))
        return (
            f"{len(split.passed.images)} at or above {max(sieve.threshold, self.kept_from):.2f}{thinned}, {len(split.failed.images)} below,"
            f" {len(split.unmeasurable.images)} not measurable, of {total}."
        )


@dataclass(frozen=True, slots=True)
class Bar:
    """Of the histogram: similarities from `start` on, how many of them stay, how many do not."""

    start: float
    kept: int
    left_out: int


def sift(scores: Scores, sieve: Sieve) -> Sifted:
    """Part a dataset in both ways."""
    kept_from = floor(
        scores,
        sieve.threshold,
        best=sieve.amount if sieve.keep == "best" else None,
        percent=sieve.amount if sieve.keep == "percent" else None,
    )
    return Sifted(sieve, kept_from, split(scores, kept_from), parts(scores, sieve.threshold, kept_from))


def spread(scores: Scores, kept_from: float, bins: int) -> Iterator[Bar]:
    """The histogram of similarities from 0 to 1."""
    values = [score.similarity for score in scores.by_key.values() if score.similarity is not None]
    at = [min(bins - 1, int(value * bins)) for value in values]
    for number in range(bins):
        inside = [value >= kept_from for value, place in zip(values, at, strict=True) if place == number]
        yield Bar(number / bins, sum(inside), len(inside) - sum(inside))


def split(scores: Scores, threshold: float = THRESHOLD) -> Split:
    """Part a dataset by similarity: at or above the threshold, below it, and not measurable, which is no verdict."""
    measured = {key: score.similarity for key, score in scores.by_key.items() if score.similarity is not None}
    passed = {key for key, value in measured.items() if value >= threshold}
    unmeasurable = [image.key for image in scores.dataset.images if image.key not in measured]
    return Split(scores.dataset.keeping(passed), scores.dataset.keeping(measured.keys() - passed), scores.dataset.keeping(unmeasurable))


def floor(scores: Scores, threshold: float = THRESHOLD, *, best: int | None = None, percent: float | None = None) -> float:
    """The similarity from which images are kept: `threshold`, or more where only the `best` so many, or `percent` of those measured, may stay.

    Images that score alike stay or go together. Costs nothing: no face is measured again.
    """
    values = sorted((score.similarity for score in scores.by_key.values() if score.similarity is not None), reverse=True)
    if percent is not None:
        best = min(best or len(values), round(len(values) * percent / 100))
    if best is None or best >= len(values):
        return threshold
    return max(threshold, values[best - 1] if best else nextafter(1.0, 2.0))


def parts(scores: Scores, threshold: float = THRESHOLD, kept_from: float = 0.0) -> Parts:
    """Three ways to go on: accepted is sure, rejected is sure, and a person looks at the rest.

    Sure means as far from the threshold as "match" and "different" are from 0.60. What cannot be measured is looked at, never rejected.
    `kept_from`: what `floor` says; images below it are rejected where it lies above the threshold.
    """
    sure = max(threshold + MATCH - THRESHOLD, kept_from)
    out = kept_from if kept_from > threshold else threshold + REVIEW - THRESHOLD
    measured = {key: score.similarity for key, score in scores.by_key.items() if score.similarity is not None}
    accepted = {key for key, value in measured.items() if value >= min(sure, 1.0)}
    rejected = {key for key, value in measured.items() if value < out}
    rest = [image.key for image in scores.dataset.images if image.key not in accepted | rejected]
    return Parts(scores.dataset.keeping(accepted), scores.dataset.keeping(rest), scores.dataset.keeping(rejected))
