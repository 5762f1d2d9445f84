"""Which photographs define the character's face, and what similarities mean for this person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from .dataset import Dataset, ImageRecord
from .drawings import SAY_SO, doubt, drawings
from .errors import IdentityError
from .faces import Embedder, Face, prominent
from .faces.measure import Measured, Report, measure
from .faces.unseeing import Unseeing
from .identity import THRESHOLD, Odd, ReferenceSet, Rule, agreed
from .quality import FRONT_DEGREES

SAID_SO = (
    "The face engines here learned from photographs, and their numbers for drawings mean nothing. No image gets one: all go to the review, where"
    " you judge by eye. Compare Pictures says how alike whole pictures look."
)
WORDS = "; if its words mean something else, set drawn_styles of Identity References"
PHOTOGRAPH = "; if it is a photograph all the same, set drawn_styles of Identity References"
FEW = 3
CHOSEN = 5  # references taken by themselves: 3 halve the error of 1, 5 halve it again; beyond, best-of-N lets strangers in
ODD = 1.09  # times the reach: distance from every other reference at which a named one is pointed out
STRANGERS = {0.55: 0.084, 0.60: 0.008}  # share of strangers that reaches a similarity: best of three references, dlib; see docs/faces.md


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


def choose_references(
    dataset: Dataset,
    embedder: Embedder,
    names: Sequence[str] = (),
    *,
    rule: Rule = "best",
    drawn_too: bool = False,
    report: Report | None = None,
) -> ReferenceSet:
    """The reference photographs of a dataset.

    `names`: file names or patterns such as source_00*; each photograph they mean must show exactly one face. Without names, the largest
    group of photographs that agree with each other is the character, and up to five of it that differ most are taken: best-of-N scoring
    gains little beyond five and lets more strangers in.

    A picture that counts as drawn (see `drawings`), or whose face looks it, is none, unless with `drawn_too` somebody says that it is a photograph: then
    a note tells it. Where the character itself may be drawn, a note or the error asks.

    Raises:
        IdentityError: a named photograph cannot be a reference, none can, or it is not clear which group is the character.
    """
    wanted = _named(dataset, names) if names else dataset.images
    drawn = drawings(dataset.project)
    measured = measure(dataset.project, {image.key: dataset.path(image) for image in wanted}, embedder, report=report)
    usable: list[tuple[ImageRecord, Face]] = []
    problems: list[str] = []
    for image in wanted:
        why = "" if drawn_too else drawn.get(image.key)
        found = f"{image.name} is drawn: {why}{WORDS}" if why else _only_face(image, measured, named=bool(names), drawn_too=drawn_too)
        if isinstance(found, str):
            problems.append(found)
        else:
            usable.append((image, found))
    asked = doubt(list(measured.faces.values()), [image.caption for image in dataset.images])
    if names and problems:
        raise IdentityError("These photos cannot be references; name others:", [*problems, *([asked] if asked else [])])
    if not usable:
        raise IdentityError("No photo shows one clear face that could be the reference:", [*problems, asked or SAY_SO])
    chosen, odd = (usable, ()) if names else _agreeing(usable, embedder.reach)
    notes = _doubts(usable, embedder.reach) if names else [*map(str, odd), *(f"not used as a reference: {problem}" for problem in problems)]
    told = {image.name: drawn.get(image.key) or face.drawn_look for image, face in chosen}
    notes += [f"{name} may be drawn: {why}; taken because somebody said so" for name, why in told.items() if why]
    notes += [*_advice(chosen), *([asked] if asked else [])]
    return ReferenceSet(
        tuple(image.name for image, _ in chosen),
        tuple(image.key for image, _ in chosen),
        tuple(tuple(float(number) for number in face.embedding) for _, face in chosen),
        embedder.fingerprint(),
        embedder.reach,
        rule,
        tuple(notes),
        odd,
    )


def no_references(drawn: str) -> ReferenceSet:
    """The set of a character that is drawn, for the reason given: against it every image is unverifiable, and no face engine is needed."""
    nobody = Unseeing()
    return ReferenceSet((), (), (), nobody.fingerprint(), nobody.reach, notes=(SAID_SO,), drawn=drawn)


def calibrate(
    dataset: Dataset, references: ReferenceSet, embedder: Embedder, *, drawn_too: bool = False, report: Report | None = None
) -> Calibration:
    """How far the photographs of this person agree (each against the references without itself), and how near the others come.

    A photograph belongs to the character if it is a reference or looks like one; one face in it decides, and it must be measurable. `drawn_too`: see
    `choose_references`.

    Raises:
        ScoreMismatch: the references were measured by another embedder.
    """
    agreed(references, embedder)
    measured = measure(dataset.project, {image.key: dataset.path(image) for image in dataset.images}, embedder, report=report)
    own: dict[str, float] = {}
    others: dict[str, float] = {}
    drawn = {} if drawn_too else drawings(dataset.project)
    for image in dataset.images:
        face = _only_face(image, measured, named=False, drawn_too=drawn_too)
        if isinstance(face, str) or image.key in drawn or references.keys == (image.key,):
            continue
        value = references.similarity(references.nearest(face.embedding, image.key)[0])
        mine = image.key in references.keys or value >= THRESHOLD
        (own if mine else others)[image.name] = value
    return Calibration(own, others, embedder.name == "dlib" and references.rule == "best")


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


def _only_face(image: ImageRecord, measured: Measured, *, named: bool, drawn_too: bool) -> Face | str:
    """The face of a reference photograph, or why it cannot be one. A profile that only the CNN sees may be one if a person named it. `drawn_too`: one
    that looks drawn may be one."""
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
    if main.drawn_look and not drawn_too:
        return f"{image.name} looks drawn: {main.drawn_look}{PHOTOGRAPH}"
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


def _advice(chosen: list[tuple[ImageRecord, Face]]) -> Iterator[str]:
    """Why other references would be better, where they would."""
    if len(chosen) < FEW:
        named = f"{chosen[0][0].name} is the only reference" if len(chosen) == 1 else f"there are only {len(chosen)} references"
        yield f"{named}: take 3 to 5 photos, one of them a half profile. From one to three the errors halve"
    degrees = {image.name: 90.0 if face.yaw is None else abs(face.yaw) * 90 for image, face in chosen}
    furthest = max(degrees, key=lambda name: degrees[name])
    if degrees[furthest] < FRONT_DEGREES:
        yield (
            f"no reference is a half profile ({furthest} is turned furthest, by {degrees[furthest]:.0f} degrees; half from {FRONT_DEGREES}): images of"
            " the character turned to the side will score low and be held back. Add such a photo"
        )


def _agreeing(usable: list[tuple[ImageRecord, Face]], reach: float) -> tuple[list[tuple[ImageRecord, Face]], tuple[Odd, ...]]:
    """The largest group of photographs that agree, thinned to CHOSEN (its centre first, then always the one least like those taken), and the others.

    Raises:
        IdentityError: two groups are equally large, or no two photographs agree.
    """
    usable = sorted(usable, key=lambda photo: photo[0].name)
    distances = _distances([face for _, face in usable])
    groups = sorted(_groups(distances, reach), key=len, reverse=True)
    if len(groups) > 1 and len(groups[0]) == len(groups[1]):
        listed = ["; ".join(usable[index][0].name for index in group) for group in groups if len(group) == len(groups[0])]
        raise IdentityError(
            "It is not clear which of these people is the character. Name 3 to 5 photos of the right one:", [*listed, SAY_SO]
        )
    group = groups[0]
    odd = tuple(Odd(usable[index][0].name, float(distances[index, group].min())) for other in groups[1:] for index in other)
    centre = min(group, key=lambda index: float(distances[index, group].sum()))
    near = [index for index in group if distances[index, centre] <= reach]
    chosen = [centre]
    while len(chosen) < min(CHOSEN, len(near)):
        chosen.append(max((index for index in near if index not in chosen), key=lambda index: float(distances[index, chosen].min())))
    return [usable[index] for index in sorted(chosen)], odd


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
