"""How much the face of an image looks like the character. Knows no pixels; the faces come from an embedder, the character from `references`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from .dataset import Dataset
from .drawings import drawings, drawn_character
from .errors import IdentityError, ScoreMismatch
from .faces import Embedder, Face, prominent
from .faces.measure import known, measure, remember
from .faces.unseeing import Unseeing
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
MEAN_REACH = 0.97  # times the reach: a mean lies nearer to everybody, so two faces count as one person only at less distance
RULES: tuple[Rule, ...] = ("best", "mean")
WORDS = "; if its words mean something else, set drawn_styles of Identity Score"
PHOTOGRAPH = "; if it is a photograph all the same, set drawn_styles of {node}"


@dataclass(frozen=True, slots=True)
class IdentityScore:
    """How much one image looks like one reference set, measured by one embedder.

    `similarity`, 0 … 1, and `distance` are None exactly where state is not "measured": a face that cannot be measured is no bad score.
    `faces` counts those the picture is about. `matched` names the nearest reference. `note` says why there is no similarity, or why to doubt it.
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
class Odd:
    """A photograph whose face is unlike those of the others: `distance` is that to the nearest of them."""

    name: str
    distance: float

    @property
    def words(self) -> str:
        """A sentence without its subject."""
        near = f"(nearest at distance {self.distance:.2f})"
        return f"does not look like the other photos {near}: another person, or a hard picture of the same one"

    def __str__(self) -> str:
        return f"{self.name} {self.words}"


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """The photographs that define the face: names, image keys and embeddings in one order. `notes` tell how they were chosen, `odd` which
    photographs look unlike the others and are no references.

    `rule`: an image is compared with the nearest reference (best: says which one matched, and a half profile is of use), or with the mean of
    all (mean: a third fewer errors, but one wrong person among the references spoils it). `reach`: see Embedder. `drawn`: why the character
    counts as drawn, where it does; there are no references then, and nothing is scored.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    embeddings: tuple[tuple[float, ...], ...]
    embedder: str
    reach: float
    rule: Rule = "best"
    notes: tuple[str, ...] = ()
    odd: tuple[Odd, ...] = ()
    drawn: str = ""

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


def similarity(distance: float, reach: float = 0.55) -> float:
    """0 … 1 for a distance between two faces, so that 0.60 is `reach`, the distance up to which two faces count as one person."""
    return min(1.0, max(0.0, 1.0 - (1.0 - THRESHOLD) * distance / reach))


def band(similarity: float) -> Band:
    """A word for a similarity: strangers stay out of "match", true images out of "different"; "review" is worth a look."""
    return "match" if similarity >= MATCH else "review" if similarity >= REVIEW else "different"


def score(
    dataset: Dataset, references: ReferenceSet, embedder: Embedder, *, drawn_too: bool = False, report: Report | None = None
) -> Scores:
    """Similarity of every image to its nearest reference; faces that were measured before are not measured again.

    An image that counts as drawn (see `drawings`), or whose face looks it, is unverifiable, unless with `drawn_too` somebody says that it is none:
    then it gets its number and a note. Of a drawn character nothing is measured.

    A photograph that is a reference itself is compared with the other references, so that it does not vouch for itself. Where it is the
    only one it gets 1.0: it defines the character. `report(done, total)` is called on this thread; it may raise to stop, and what is
    measured by then is kept.

    Raises:
        ScoreMismatch: the references were measured by another embedder.
    """
    fingerprint = agreed(references, embedder)
    files = {image.key: dataset.path(image) for image in dataset.images}
    if why := references.drawn or drawn_character(dataset.project):
        by_key = {key: _refused(key, references, _drawn(why)) for key in files}
        _store(dataset.project, by_key.values())
        return Scores(dataset, references.fingerprint, fingerprint, by_key)
    measured = measure(dataset.project, files, embedder, report=report)
    for problem in measured.problems.values():
        log.warning("no identity score: %s", problem)
    by_key = {
        key: _unreadable(key, references, measured.problems[key])
        if key in measured.problems
        else _scored(key, measured.faces[key], references, drawn_too=drawn_too)
        for key in files
    }
    drawn = {key: why for key, why in drawings(dataset.project).items() if key in by_key and by_key[key].state == "measured"}
    by_key |= {
        key: _doubted(by_key[key], why) if drawn_too else _refused(key, references, _drawn(why) + WORDS, by_key[key].faces)
        for key, why in drawn.items()
    }
    _store(dataset.project, by_key.values())
    return Scores(dataset, references.fingerprint, fingerprint, by_key)


def score_image(image: Image.Image, key: str, project: Project, references: ReferenceSet, embedder: Embedder) -> IdentityScore:
    """The score of one upright RGB image that is already in memory; `key` is the content key of its file. As in `score`, what is drawn gets none.

    Raises:
        ScoreMismatch: the references were measured by another embedder.
        IdentityError: the engine failed on this image.
    """
    fingerprint = agreed(references, embedder)
    if why := references.drawn or drawn_character(project):
        scored = _refused(key, references, _drawn(why))
    elif why := drawings(project).get(key):
        scored = _refused(key, references, _drawn(why) + WORDS)
    else:
        faces = known(project, [key], fingerprint).get(key)
        if faces is None:
            faces = embedder.faces(image)
            remember(project, fingerprint, {key: faces})
        scored = _scored(key, faces, references)
    _store(project, [scored])
    return scored


def compare(
    images: Sequence[Image.Image], references: Sequence[Image.Image], embedder: Embedder, *, drawn_too: bool = False
) -> list[IdentityScore]:
    """The score of each upright RGB image against reference images, all of them in memory; nothing is remembered.

    Images are called "image 1" and "reference 1", in their order. Somebody says that they are photographs. A face that looks drawn has no number
    all the same, and is no reference, unless with `drawn_too` somebody says that it is none; then there is a note.

    Raises:
        IdentityError: a reference does not show exactly one photographed face, or the engine failed.
    """
    node = "Compare Faces"
    chosen: list[Face] = []
    problems: list[str] = []
    for number, image in enumerate(references, 1):
        seen = prominent(embedder.faces(image))
        if len(seen) != 1:
            problems.append(f"reference {number}: {f'{len(seen)} faces; crop it to one' if seen else 'no face was found'}")
        elif (look := seen[0].drawn_look) and not drawn_too:
            problems.append(f"reference {number}: {_drawn(look)}{PHOTOGRAPH.format(node=node)}")
        else:
            chosen.append(seen[0])
    if problems or not chosen:
        raise IdentityError("These images cannot be compared with; each must show one face:", problems or ["there are no images"])
    names = tuple(f"reference {number}" for number in range(1, len(chosen) + 1))
    rows = tuple(tuple(float(number) for number in face.embedding) for face in chosen)
    known_faces = ReferenceSet(names, names, rows, embedder.fingerprint(), embedder.reach)
    return [
        _scored(f"image {number}", embedder.faces(image), known_faces, drawn_too=drawn_too, node=node)
        for number, image in enumerate(images, 1)
    ]


def not_compared(count: int, drawn: str) -> list[IdentityScore]:
    """What `compare` gives for so many images of a drawn character, for the reason given: no number. No face engine is needed."""
    return [IdentityScore(f"image {number}", "", Unseeing.name, "unverifiable", note=_drawn(drawn)) for number in range(1, count + 1)]


def comparable_scores(project: Project, keys: Iterable[str], among: Iterable[str] | None = None) -> dict[str, IdentityScore]:
    """Scores of these images, by key, all by one engine against one reference set: the one that scored most of the images, and of several the
    newest. `among`: the images shown together, where `keys` are only some of them. An image that was scored only otherwise is left out.

    Of a drawn character no image has a number, also where one was measured before it was said.
    """
    wanted = json.dumps(list(keys))
    with connect(project.database) as db:
        if why := drawn_character(project):
            rows = db.execute(
                "SELECT DISTINCT image_key FROM identity_scores WHERE image_key IN (SELECT value FROM json_each(?))", (wanted,)
            ).fetchall()
            return {key: IdentityScore(key, "", Unseeing.name, "unverifiable", note=_drawn(why)) for (key,) in rows}
        rows = db.execute(  # a score that is written again gets a new rowid
            "SELECT s.* FROM identity_scores s JOIN (SELECT reference, embedder FROM identity_scores WHERE image_key IN"
            " (SELECT value FROM json_each(?)) GROUP BY reference, embedder ORDER BY COUNT(*) DESC, MAX(rowid) DESC LIMIT 1)"
            " USING (reference, embedder) WHERE s.image_key IN (SELECT value FROM json_each(?))",
            (wanted if among is None else json.dumps(list(among)), wanted),
        ).fetchall()
    return {row["image_key"]: IdentityScore(**dict(row)) for row in rows}


def agreed(references: ReferenceSet, embedder: Embedder) -> str:
    """The fingerprint of both.

    Raises:
        ScoreMismatch: the references were measured by another embedder.
    """
    fingerprint = embedder.fingerprint()
    if references.embedder != fingerprint:
        raise ScoreMismatch(
            f"The references were measured by another face engine ({references.embedder}) than this one ({fingerprint}). Choose them again."
        )
    return fingerprint


def _scored(
    key: str, faces: tuple[Face, ...], references: ReferenceSet, *, drawn_too: bool = False, node: str = "Identity Score"
) -> IdentityScore:
    """The prominent face nearest to a reference decides; if that one cannot prove who it is or looks drawn, the image is unverifiable."""
    seen = prominent(faces)
    if not seen:
        return IdentityScore(key, references.fingerprint, references.embedder, "no_face", note="no face was found")
    near = [references.nearest(face.embedding, key) for face in seen]
    index = min(range(len(seen)), key=lambda index: near[index][0])
    if doubt := seen[index].doubt:
        return IdentityScore(key, references.fingerprint, references.embedder, "unverifiable", faces=len(seen), note=doubt)
    look = seen[index].drawn_look
    if look and not drawn_too:
        return _refused(key, references, _drawn(look) + PHOTOGRAPH.format(node=node), len(seen))
    distance, matched = near[index]
    scored = IdentityScore(
        key,
        references.fingerprint,
        references.embedder,
        "measured",
        references.similarity(distance),
        distance,
        len(seen),
        matched,
    )
    return _doubted(scored, look) if look else scored


def _refused(key: str, references: ReferenceSet, note: str, faces: int = 0) -> IdentityScore:
    """Drawn, so there is no number."""
    return IdentityScore(key, references.fingerprint, references.embedder, "unverifiable", faces=faces, note=note)


def _drawn(why: str) -> str:
    return f"counts as drawn: {why}, and the number of a drawn face means nothing"


def _doubted(score: IdentityScore, why: str) -> IdentityScore:
    return replace(score, note=f"may be drawn: {why}; scored because somebody said so")


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
