"""How much the face of an image looks like the character. Knows no pixels; the faces come from an embedder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from PIL import Image

from .dataset import Dataset, ImageRecord
from .errors import IdentityError, ScoreMismatch
from .faces import Embedder, Face, prominent
from .faces.measure import Measured, known, measure, remember
from .images import value_key
from .project import Project
from .store import connect

log = logging.getLogger("flenwheel")

State = Literal["measured", "no_face", "unverifiable", "unreadable"]
Band = Literal["match", "review", "different"]
Rule = Literal["best", "mean"]
Report = Callable[[int, int], None]

THRESHOLD = 0.60  # the similarity at an engine's reach: for dlib a distance of 0.55
MATCH = 0.64  # 1 stranger in 10,000 gets here
REVIEW = 0.55  # below it, 1 true image in 1,000
CHOSEN = 5  # references taken by themselves: 3 halve the error of 1, 5 halve it again; beyond, best-of-N lets strangers in
ODD = 1.09  # times the reach: distance from every other reference at which a named one is pointed out
MEAN_REACH = 0.97  # times the reach: a mean lies nearer to everybody, so two faces count as one person only at less distance
RULES: tuple[Rule, ...] = ("best", "mean")
STRANGERS = {0.55: 0.084, 0.60: 0.008}  # share of strangers that reaches a similarity: best of three references, dlib; see docs/faces.md


@dataclass(frozen=True, slots=True)
class IdentityScore:
    """How much one image looks like one reference set, measured by one embedder.

    `similarity`, 0 … 1, and `distance` are None exactly where state is not "measured": a face that cannot be measured is no bad score.
    `faces` counts those the picture is about. `matched` names the nearest reference. `note` says why there is no similarity.
    """

    image_key: str
    reference: str
    embedder: str
    state: State
    similarity: float | None = None
    distance: float | None = None
    faces: int = 0
    matched: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if (self.similarity is not None) != (self.state == "measured"):
            raise ValueError(f"{self.image_key}: similarity {self.similarity} does not fit state {self.state}")


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """The photographs that define the face: names, image keys and embeddings in one order. `notes` tell how they were chosen.

    `rule`: an image is compared with the nearest reference (best: says which one matched, and a half profile is of use), or with the mean of
    all (mean: a third fewer errors, but one wrong person among the references spoils it). `reach`: see Embedder.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    embeddings: tuple[tuple[float, ...], ...]
    embedder: str
    reach: float
    rule: Rule = "best"
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Names the set in scores: the same photographs in any order, under any names, compared by the same rule."""
        rule = {} if self.rule == "best" else {"rule": self.rule}
        return value_key({"embedder": self.embedder, "keys": sorted(self.keys), **rule})

    def similarity(self, distance: float) -> float:
        """0 … 1 for a distance, so that 0.60 is the distance up to which two faces count as one person."""
        return similarity(distance, self.reach * (MEAN_REACH if self.rule == "mean" else 1.0))

    def nearest(self, embedding: np.ndarray, leave_out: str = "") -> tuple[float, str]:
        """Distance to the references and what was nearest: a name, or "the mean of N". A set of more than one can leave out an image key."""
        used = [index for index, key in enumerate(self.keys) if key != leave_out] or list(range(len(self.keys)))
        against = np.array([self.embeddings[index] for index in used])
        if self.rule == "mean" and len(used) > 1:
            return float(np.linalg.norm(against.mean(axis=0) - embedding)), f"the mean of {len(used)}"
        distances = np.linalg.norm(against - embedding, axis=1)
        return float(distances.min()), self.names[used[int(distances.argmin())]]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of every image of a dataset against one reference set.

    Raises:
        ScoreMismatch: a score belongs to another reference set or embedder.
    """

    dataset: Dataset
    reference: str
    embedder: str
    by_key: Mapping[str, IdentityScore]

    def __post_init__(self) -> None:
        foreign = [key for key, score in self.by_key.items() if (score.reference, score.embedder) != (self.reference, self.embedder)]
        if foreign:
            names = {image.key: image.name for image in self.dataset.images}
            raise ScoreMismatch(
                "Scores against different references or of different face engines cannot be compared. Score these images again:",
                [names.get(key, key) for key in foreign],
            )


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
class Calibration:
    """What the similarities mean for one person: how far this person's photographs agree, and how near everybody else's come.

    `own`: similarity of each photograph of the character to the references without itself, by name. `others`: the same for photographs in
    the dataset that do not belong to the character.
    """

    own: Mapping[str, float]
    others: Mapping[str, float]
    typical: bool

    @property
    def words(self) -> tuple[str, ...]:
        """Sentences for the person."""
        if not self.own:
            return ("A single photo cannot be held against another: nobody can say yet how far photos of this person agree.",)
        lowest = min(self.own, key=lambda name: self.own[name])
        lines = [f"Your photos agree at {self.own[lowest]:.2f} to {max(self.own.values()):.2f} ({lowest} the least)."]
        if self.others:
            nearest = max(self.others, key=lambda name: self.others[name])
            lines.append(f"The others in this dataset reach {self.others[nearest]:.2f} ({nearest}).")
        if self.typical:
            lines.append(
                "Strangers: " + ", ".join(f"1 in {round(1 / share)} reaches {value:.2f}" for value, share in STRANGERS.items()) + "."
            )
            lines.append("(Strangers were counted once over 32 other people, real and generated: see docs/faces.md.)")
        weak = [name for name, value in self.own.items() if value < THRESHOLD]
        if weak:
            lines.append(
                f"Below {THRESHOLD:.2f} lie {', '.join(weak)}: images like these would be held back; one of them among the references helps."
            )
        return tuple(lines)


def similarity(distance: float, reach: float = 0.55) -> float:
    """0 … 1 for a distance between two faces, so that 0.60 is `reach`, the distance up to which two faces count as one person."""
    return min(1.0, max(0.0, 1.0 - (1.0 - THRESHOLD) * distance / reach))


def band(similarity: float) -> Band:
    """A word for a similarity: strangers stay out of "match", true images out of "different"; "review" is worth a look."""
    return "match" if similarity >= MATCH else "review" if similarity >= REVIEW else "different"


def references(
    dataset: Dataset, embedder: Embedder, names: Sequence[str] = (), *, rule: Rule = "best", report: Report | None = None
) -> ReferenceSet:
    """The reference photographs of a dataset.

    `names`: file names or patterns such as source_00*; each photograph they mean must show exactly one face. Without names, the largest
    group of photographs that agree with each other is the character, and up to five of it that differ most are taken: best-of-N scoring
    gains little beyond five and lets more strangers in.

    Raises:
        IdentityError: a named photograph cannot be a reference, none can, or it is not clear which group is the character.
    """
    wanted = _named(dataset, names) if names else dataset.images
    measured = measure(dataset.project, {image.key: dataset.path(image) for image in wanted}, embedder, report=report)
    usable: list[tuple[ImageRecord, Face]] = []
    problems: list[str] = []
    for image in wanted:
        found = _only_face(image, measured, named=bool(names))
        if isinstance(found, str):
            problems.append(found)
        else:
            usable.append((image, found))
    if names and problems:
        raise IdentityError("These photos cannot be references; name others:", problems)
    if not usable:
        raise IdentityError("No photo shows one clear face that could be the reference:", problems)
    chosen, notes = (usable, _doubts(usable, embedder.reach)) if names else _agreeing(usable, embedder.reach)
    if not names:
        notes += [f"not used as a reference: {problem}" for problem in problems]
    if len(chosen) == 1:
        notes.append(f"{chosen[0][0].name} is the only reference: scores are surer with 3 to 5 photos, one of them a half profile")
    return ReferenceSet(
        tuple(image.name for image, _ in chosen),
        tuple(image.key for image, _ in chosen),
        tuple(tuple(float(number) for number in face.embedding) for _, face in chosen),
        embedder.fingerprint(),
        embedder.reach,
        rule,
        tuple(notes),
    )


def calibrate(dataset: Dataset, references: ReferenceSet, embedder: Embedder, *, report: Report | None = None) -> Calibration:
    """How far the photographs of this person agree (each against the references without itself), and how near the others come.

    A photograph belongs to the character if it is a reference or looks like one; one face in it decides, and it must be measurable.

    Raises:
        ScoreMismatch: the references were measured by another embedder.
    """
    _agreed(references, embedder)
    measured = measure(dataset.project, {image.key: dataset.path(image) for image in dataset.images}, embedder, report=report)
    own: dict[str, float] = {}
    others: dict[str, float] = {}
    for image in dataset.images:
        face = _only_face(image, measured, named=False)
        if isinstance(face, str) or references.keys == (image.key,):
            continue
        value = references.similarity(references.nearest(face.embedding, image.key)[0])
        mine = image.key in references.keys or value >= THRESHOLD
        (own if mine else others)[image.name] = value
    return Calibration(own, others, embedder.name == "dlib" and references.rule == "best")


def score(dataset: Dataset, references: ReferenceSet, embedder: Embedder, *, report: Report | None = None) -> Scores:
    """Similarity of every image to its nearest reference; faces that were measured before are not measured again.

    A photograph that is a reference itself is compared with the other references, so that it does not vouch for itself. Where it is the
    only one it gets 1.0: it defines the character. `report(done, total)` is called on this thread; it may raise to stop, and what is
    measured by then is kept.

    Raises:
        ScoreMismatch: the references were measured by another embedder.
    """
    fingerprint = _agreed(references, embedder)
    files = {image.key: dataset.path(image) for image in dataset.images}
    measured = measure(dataset.project, files, embedder, report=report)
    for problem in measured.problems.values():
        log.warning("no identity score: %s", problem)
    by_key = {
        key: _unreadable(key, references, measured.problems[key])
        if key in measured.problems
        else _scored(key, measured.faces[key], references)
        for key in files
    }
    _store(dataset.project, by_key.values())
    return Scores(dataset, references.fingerprint, fingerprint, by_key)


def score_image(image: Image.Image, key: str, project: Project, references: ReferenceSet, embedder: Embedder) -> IdentityScore:
    """The score of one upright RGB image that is already in memory; `key` is the content key of its file.

    Raises:
        ScoreMismatch: the references were measured by another embedder.
        IdentityError: the engine failed on this image.
    """
    fingerprint = _agreed(references, embedder)
    faces = known(project, [key], fingerprint).get(key)
    if faces is None:
        faces = embedder.faces(image)
        remember(project, fingerprint, {key: faces})
    scored = _scored(key, faces, references)
    _store(project, [scored])
    return scored


def split(scores: Scores, threshold: float = THRESHOLD) -> Split:
    """Part a dataset by similarity: at or above the threshold, below it, and not measurable, which is no verdict."""
    measured = {key: score.similarity for key, score in scores.by_key.items() if score.similarity is not None}
    passed = {key for key, value in measured.items() if value >= threshold}
    unmeasurable = [image.key for image in scores.dataset.images if image.key not in measured]
    return Split(scores.dataset.keeping(passed), scores.dataset.keeping(measured.keys() - passed), scores.dataset.keeping(unmeasurable))


def compare(images: Sequence[Image.Image], references: Sequence[Image.Image], embedder: Embedder) -> list[IdentityScore]:
    """The score of each upright RGB image against reference images, all of them in memory; nothing is remembered.

    Images are called "image 1" and "reference 1", in their order.

    Raises:
        IdentityError: a reference does not show exactly one face, or the engine failed.
    """
    chosen: list[Face] = []
    problems: list[str] = []
    for number, image in enumerate(references, 1):
        seen = prominent(embedder.faces(image))
        if len(seen) == 1:
            chosen.append(seen[0])
        else:
            problems.append(f"reference {number}: {f'{len(seen)} faces; crop it to one' if seen else 'no face was found'}")
    if problems or not chosen:
        raise IdentityError("These images cannot be compared with; each must show one face:", problems or ["there are no images"])
    names = tuple(f"reference {number}" for number in range(1, len(chosen) + 1))
    rows = tuple(tuple(float(number) for number in face.embedding) for face in chosen)
    known_faces = ReferenceSet(names, names, rows, embedder.fingerprint(), embedder.reach)
    return [_scored(f"image {number}", embedder.faces(image), known_faces) for number, image in enumerate(images, 1)]


def floor(scores: Scores, threshold: float = THRESHOLD, *, best: int | None = None, percent: float | None = None) -> float:
    """The similarity from which images are kept: `threshold`, or more where only the `best` so many, or `percent` of those measured, may stay.

    Images that score alike stay or go together. Costs nothing: no face is measured again.
    """
    values = sorted((score.similarity for score in scores.by_key.values() if score.similarity is not None), reverse=True)
    if percent is not None:
        best = min(best or len(values), round(len(values) * percent / 100))
    if best is None or best >= len(values):
        return threshold
    return max(threshold, values[best - 1] if best else np.nextafter(1.0, 2.0))


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


def latest_scores(project: Project, keys: Iterable[str]) -> dict[str, IdentityScore]:
    """The newest score of each image, by key; each may be against another reference set, so show them and do not compare them."""
    with connect(project.database) as db:
        rows = db.execute(  # a score that is written again gets a new rowid
            "SELECT * FROM identity_scores WHERE rowid IN (SELECT MAX(rowid) FROM identity_scores"
            " WHERE image_key IN (SELECT value FROM json_each(?)) GROUP BY image_key)",
            (json.dumps(list(keys)),),
        ).fetchall()
    return {row["image_key"]: IdentityScore(**dict(row)) for row in rows}


def _agreed(references: ReferenceSet, embedder: Embedder) -> str:
    fingerprint = embedder.fingerprint()
    if references.embedder != fingerprint:
        raise ScoreMismatch(
            f"The references were measured by another face engine ({references.embedder}) than this one ({fingerprint}). Choose them again."
        )
    return fingerprint


def _scored(key: str, faces: tuple[Face, ...], references: ReferenceSet) -> IdentityScore:
    """The prominent face nearest to a reference decides; if that one cannot prove who it is, the image is unverifiable."""
    seen = prominent(faces)
    if not seen:
        return IdentityScore(key, references.fingerprint, references.embedder, "no_face", note="no face was found")
    near = [references.nearest(face.embedding, key) for face in seen]
    index = min(range(len(seen)), key=lambda index: near[index][0])
    if doubt := seen[index].doubt:
        return IdentityScore(key, references.fingerprint, references.embedder, "unverifiable", faces=len(seen), note=doubt)
    distance, matched = near[index]
    return IdentityScore(
        key,
        references.fingerprint,
        references.embedder,
        "measured",
        references.similarity(distance),
        distance,
        len(seen),
        matched,
    )


def _unreadable(key: str, references: ReferenceSet, problem: str) -> IdentityScore:
    return IdentityScore(key, references.fingerprint, references.embedder, "unreadable", note=problem)


def _store(project: Project, scores: Iterable[IdentityScore]) -> None:
    rows = [
        (
            score.image_key,
            score.reference,
            score.embedder,
            score.state,
            score.similarity,
            score.distance,
            score.faces,
            score.matched,
            score.note,
        )
        for score in scores
    ]
    with connect(project.database) as db:
        db.executemany("INSERT OR REPLACE INTO identity_scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _named(dataset: Dataset, names: Sequence[str]) -> list[ImageRecord]:
    chosen: dict[str, ImageRecord] = {}
    problems: list[str] = []
    for name in names:
        found = [image for image in dataset.images if fnmatchcase(image.name.casefold(), name.casefold())]
        if not found:
            problems.append(f"{name} is none of the {len(dataset.images)} files of this dataset")
        chosen.update((image.key, image) for image in found)
    if problems:
        known_names = ", ".join(image.name for image in dataset.images[:3])
        raise IdentityError(f"These reference photos are not there (files are called {known_names}, …):", problems)
    return list(chosen.values())


def _only_face(image: ImageRecord, measured: Measured, *, named: bool) -> Face | str:
    """The face of a reference photograph, or why it cannot be one. A profile that only the CNN sees may be one if a person named it."""
    if image.key in measured.problems:
        return measured.problems[image.key]
    seen = prominent(measured.faces[image.key])
    if not seen:
        return f"{image.name}: no face was found"
    main, *others = seen
    if others:
        return f"{image.name}: {len(seen)} faces, so it is not clear which one is meant; crop it"
    if main.doubt and not (named and main.found_by == "cnn"):
        return f"{image.name}: {main.doubt}"
    return main


def _doubts(named: list[tuple[ImageRecord, Face]], reach: float) -> list[str]:
    """What a person who named the references should know. The choice stays theirs."""
    distances = _distances([face for _, face in named])
    notes = [f"{image.name} is a weak reference: {face.doubt}" for image, face in named if face.doubt]
    for index, (image, _) in enumerate(named):
        nearest = min((float(distance) for other, distance in enumerate(distances[index]) if other != index), default=0.0)
        if nearest > ODD * reach:
            notes.append(
                f"{image.name} looks like none of the other references (nearest at distance {nearest:.2f}): is it the same person?"
            )
    if len(named) > CHOSEN:
        notes.append(f"{len(named)} references are more than {CHOSEN}: each one more also lets more strangers in")
    return notes


def _agreeing(usable: list[tuple[ImageRecord, Face]], reach: float) -> tuple[list[tuple[ImageRecord, Face]], list[str]]:
    """The largest group of photographs that agree, thinned to CHOSEN: its centre first, then always the one least like those taken.

    Raises:
        IdentityError: two groups are equally large, or no two photographs agree.
    """
    usable = sorted(usable, key=lambda photo: photo[0].name)
    distances = _distances([face for _, face in usable])
    groups = sorted(_groups(distances, reach), key=len, reverse=True)
    if len(groups) > 1 and len(groups[0]) == len(groups[1]):
        listed = ["; ".join(usable[index][0].name for index in group) for group in groups if len(group) == len(groups[0])]
        raise IdentityError("It is not clear which of these people is the character. Name 3 to 5 photos of the right one:", listed)
    group = groups[0]
    notes = [
        f"{usable[index][0].name} does not look like the other photos (nearest at distance {distances[index, group].min():.2f}):"
        " another person, or a hard picture of the same one"
        for other in groups[1:]
        for index in other
    ]
    centre = min(group, key=lambda index: float(distances[index, group].sum()))
    near = [index for index in group if distances[index, centre] <= reach]
    chosen = [centre]
    while len(chosen) < min(CHOSEN, len(near)):
        chosen.append(max((index for index in near if index not in chosen), key=lambda index: float(distances[index, chosen].min())))
    return [usable[index] for index in sorted(chosen)], notes


def _groups(distances: np.ndarray, reach: float) -> Iterator[list[int]]:
    """Indices of photographs linked by a distance of at most `reach`, directly or through others; ascending."""
    left = list(range(len(distances)))
    while left:
        group = [left.pop(0)]
        for index in group:  # grows while it is walked
            linked = [other for other in left if distances[index, other] <= reach]
            group += linked
            left = [other for other in left if other not in linked]
        yield sorted(group)


def _distances(faces: Sequence[Face]) -> np.ndarray:
    """(n, n) Euclidean distances between faces."""
    embeddings = np.stack([face.embedding for face in faces]).astype(np.float64)
    squares = (embeddings**2).sum(axis=1)  # not all differences at once: that is a gigabyte for a thousand faces
    return np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * embeddings @ embeddings.T, 0.0))
