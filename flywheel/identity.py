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
Report = Callable[[int, int], None]

DISTANCE = 0.55  # dlib's 0.6 lets 3 % of strangers in, 4 % of generated ones; 0.55 lets 0.8 % in and keeps 99 % (best of 3 references)
THRESHOLD = 0.60  # the similarity of DISTANCE
MATCH = 0.64  # 1 stranger in 10,000 gets here
REVIEW = 0.55  # below it, 1 true image in 1,000
CHOSEN = 5  # references taken by themselves: 3 halve the error of 1, 5 halve it again; beyond, best-of-N lets strangers in
ODD = 0.60  # distance from every other reference at which a named one is pointed out


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
    """The photographs that define the face: names, image keys and embeddings in one order. `notes` tell how they were chosen."""

    names: tuple[str, ...]
    keys: tuple[str, ...]
    embeddings: tuple[tuple[float, ...], ...]
    embedder: str
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Names the set in scores: the same photographs in any order, under any names."""
        return value_key({"embedder": self.embedder, "keys": sorted(self.keys)})


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


def similarity(distance: float) -> float:
    """0 … 1 for a distance between two faces, so that 0.60 is the distance up to which two faces count as one person."""
    return min(1.0, max(0.0, 1.0 - (1.0 - THRESHOLD) * distance / DISTANCE))


def band(similarity: float) -> Band:
    """A word for a similarity: strangers stay out of "match", true images out of "different"; "review" is worth a look."""
    return "match" if similarity >= MATCH else "review" if similarity >= REVIEW else "different"


def references(dataset: Dataset, embedder: Embedder, names: Sequence[str] = (), *, report: Report | None = None) -> ReferenceSet:
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
    chosen, notes = (usable, _doubts(usable)) if names else _agreeing(usable)
    if not names:
        notes += [f"not used as a reference: {problem}" for problem in problems]
    if len(chosen) == 1:
        notes.append(f"{chosen[0][0].name} is the only reference: scores are surer with 3 to 5 photos, one of them a half profile")
    return ReferenceSet(
        tuple(image.name for image, _ in chosen),
        tuple(image.key for image, _ in chosen),
        tuple(tuple(float(number) for number in face.embedding) for _, face in chosen),
        embedder.fingerprint(),
        tuple(notes),
    )


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
        remember(project, key, fingerprint, faces)
    scored = _scored(key, faces, references)
    _store(project, [scored])
    return scored


def split(scores: Scores, threshold: float = THRESHOLD) -> Split:
    """Part a dataset by similarity: at or above the threshold, below it, and not measurable, which is no verdict."""
    measured = {key: score.similarity for key, score in scores.by_key.items() if score.similarity is not None}
    passed = {key for key, value in measured.items() if value >= threshold}
    unmeasurable = [image.key for image in scores.dataset.images if image.key not in measured]
    return Split(scores.dataset.keeping(passed), scores.dataset.keeping(measured.keys() - passed), scores.dataset.keeping(unmeasurable))


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
    others = [index for index, other in enumerate(references.keys) if other != key] or list(range(len(references.keys)))
    against = np.array([references.embeddings[index] for index in others])
    distances = np.linalg.norm(np.stack([face.embedding for face in seen])[:, None] - against[None], axis=2)  # (faces, references)
    face, nearest = np.unravel_index(int(distances.argmin()), distances.shape)
    if doubt := seen[int(face)].doubt:
        return IdentityScore(key, references.fingerprint, references.embedder, "unverifiable", faces=len(seen), note=doubt)
    distance = float(distances[face, nearest])
    return IdentityScore(
        key,
        references.fingerprint,
        references.embedder,
        "measured",
        similarity(distance),
        distance,
        len(seen),
        references.names[others[int(nearest)]],
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


def _doubts(named: list[tuple[ImageRecord, Face]]) -> list[str]:
    """What a person who named the references should know. The choice stays theirs."""
    distances = _distances([face for _, face in named])
    notes = [f"{image.name} is a weak reference: {face.doubt}" for image, face in named if face.doubt]
    for index, (image, _) in enumerate(named):
        nearest = min((float(distance) for other, distance in enumerate(distances[index]) if other != index), default=0.0)
        if nearest > ODD:
            notes.append(
                f"{image.name} looks like none of the other references (nearest at distance {nearest:.2f}): is it the same person?"
            )
    if len(named) > CHOSEN:
        notes.append(f"{len(named)} references are more than {CHOSEN}: each one more also lets more strangers in")
    return notes


def _agreeing(usable: list[tuple[ImageRecord, Face]]) -> tuple[list[tuple[ImageRecord, Face]], list[str]]:
    """The largest group of photographs that agree, thinned to CHOSEN: its centre first, then always the one least like those taken.

    Raises:
        IdentityError: two groups are equally large, or no two photographs agree.
    """
    usable = sorted(usable, key=lambda photo: photo[0].name)
    distances = _distances([face for _, face in usable])
    groups = sorted(_groups(distances), key=len, reverse=True)
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
    near = [index for index in group if distances[index, centre] <= DISTANCE]
    chosen = [centre]
    while len(chosen) < min(CHOSEN, len(near)):
        chosen.append(max((index for index in near if index not in chosen), key=lambda index: float(distances[index, chosen].min())))
    return [usable[index] for index in sorted(chosen)], notes


def _groups(distances: np.ndarray) -> Iterator[list[int]]:
    """Indices of photographs linked by a distance of at most DISTANCE, directly or through others; ascending."""
    left = list(range(len(distances)))
    while left:
        group = [left.pop(0)]
        for index in group:  # grows while it is walked
            linked = [other for other in left if distances[index, other] <= DISTANCE]
            group += linked
            left = [other for other in left if other not in linked]
        yield sorted(group)


def _distances(faces: Sequence[Face]) -> np.ndarray:
    """(n, n) Euclidean distances between faces."""
    embeddings = np.stack([face.embedding for face in faces]).astype(np.float64)
    return np.linalg.norm(embeddings[:, None] - embeddings[None], axis=2)
