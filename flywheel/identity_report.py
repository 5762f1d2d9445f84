"""What became of a scoring, for people: one picture and one HTML file with the spread, the worst and best faces, and who made them.

Both are made from scores and the faces that are remembered; no face is measured again. The HTML holds everything in itself, so that it can be
sent or kept; it loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, ImageDraw

from .candidates import Shelf
from .dataset import Dataset, ImageRecord
from .errors import ImageError, ScoreMismatch
from .faces import Face, prominent
from .faces.measure import known
from .identity import IdentityScore, ReferenceSet, Scores, band
from .images import open_image, write_whole
from .sheets import Tile, contact_sheet, histogram, stacked

SHOWN = 8  # faces at each end
CROP_PX = 224
PAIR_PX = 290  # width of reference and image on the picture; three in a row are as wide as the histogram
AROUND = 0.45  # of the face's width: how much is shown around it
FILE = "identity_report.html"
SAID = (
    "Photographs, as the project says; of drawn ones among them those are noticed whose prompt says it or whose face is flat with outlines."
)


@dataclass(frozen=True, slots=True)
class Row:
    """How the images of one group did. `similarity` is their median, None where none could be measured."""

    name: str
    images: int
    similarity: float | None
    passed: int
    unmeasurable: int


@dataclass(frozen=True, slots=True)
class Report:
    """`groups`: a title and its rows, worst first. `html` is a whole page."""

    picture: Image.Image
    html: str
    groups: tuple[tuple[str, tuple[Row, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Crop:
    name: str
    score: IdentityScore
    mark: str
    face: Image.Image
    reference: Image.Image | None


def build(scores: Scores, references: ReferenceSet, threshold: float, shown: int = SHOWN) -> Report:
    """The report of a scoring.

    Raises:
        ScoreMismatch: these references did not make these scores.
    """
    if scores.reference != references.fingerprint:
        raise ScoreMismatch("These scores were made with other references. Connect the references that Identity Score had.")
    values = [score.similarity for score in scores.by_key.values()]
    groups = _groups(scores, threshold)
    ranked = sorted(
        (image for image in scores.dataset.images if _value(scores, image) is not None), key=lambda image: _value(scores, image) or 0
    )
    low = min(shown, (len(ranked) + 1) // 2)
    worst, best = ranked[:low], ranked[low:][-shown:][::-1]
    crops = _Crops(scores, references)
    ends = [
        (title, [crops.of(image, threshold) for image in images])
        for title, images in (("Least alike", worst), ("Most alike", best))
        if images
    ]
    unmeasured = [
        (image.name, scores.by_key[image.key].note or scores.by_key[image.key].state)
        for image in scores.dataset.images
        if _value(scores, image) is None
    ]
    title = f"{scores.dataset.project.name} · {scores.dataset.stage_name} {scores.dataset.project.version}"
    spread = histogram(values, threshold, title=title)
    sheets = [
        contact_sheet(
            map(_tile, row),
            columns=3,
            cell_px=PAIR_PX,
            tall=0.5,
            title=f"{name} (left the reference, right the image; similarity · distance)",
        )
        for name, row in ends
    ]
    picture = stacked([spread, *sheets, *(_table(name, rows) for name, rows in groups)])
    return Report(picture, _page(title, scores, references, threshold, spread, ends, groups, unmeasured), groups)


def write(report: Report, dataset: Dataset) -> Path:
    """Put the page beside the images it is about."""
    path = dataset.stage.folder / FILE
    write_whole(path, report.html.encode())
    return path


def _value(scores: Scores, image: ImageRecord) -> float | None:
    return scores.by_key[image.key].similarity


# --- who made them


def _groups(scores: Scores, threshold: float) -> tuple[tuple[str, tuple[Row, ...]], ...]:
    facts = {lineage.image_key: lineage.facts for lineage in Shelf(scores.dataset.stage).lineages.values()}
    ways: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("By prompt", lambda fact: str(fact.get("template") or fact.get("prompt") or "")),
        ("By editor and LoRA", _maker),
        ("By source photo", lambda fact: str((fact.get("source") or {}).get("name") or "")),
    ]
    titled = ((title, _rows(scores, facts, name_of, threshold)) for title, name_of in ways)
    return tuple((title, rows) for title, rows in titled if rows)


def _maker(facts: Mapping[str, Any]) -> str:
    """The editor's name and whatever its fingerprint says of models and LoRAs."""
    made_by: Mapping[str, Any] = facts.get("editor") or {}
    told = [f"{name} {value}" for name, value in made_by.items() if "lora" in name.casefold() and value]
    return " · ".join(part for part in (str(made_by.get("editor") or ""), *told) if part)


def _rows(
    scores: Scores, facts: Mapping[str, Mapping[str, Any]], name_of: Callable[[Mapping[str, Any]], str], threshold: float
) -> tuple[Row, ...]:
    grouped: dict[str, list[float | None]] = {}
    for image in scores.dataset.images:
        if name := name_of(facts.get(image.key, {})):
            grouped.setdefault(name, []).append(_value(scores, image))
    rows: list[Row] = []
    for name, values in grouped.items():
        measured = [value for value in values if value is not None]
        passed = sum(value >= threshold for value in measured)
        rows.append(Row(name, len(values), median(measured) if measured else None, passed, len(values) - len(measured)))
    return tuple(sorted(rows, key=lambda row: -1 if row.similarity is None else row.similarity))


# --- faces


class _Crops:
    """Faces cut out of the images they were measured in."""

    def __init__(self, scores: Scores, references: ReferenceSet) -> None:
        self._scores, self._references = scores, references
        keys = [*references.keys, *(image.key for image in scores.dataset.images)]
        self._faces = known(scores.dataset.project, keys, references.embedder)
        self._shown = {name: self._of_reference(name, key) for name, key in zip(references.names, references.keys, strict=True)}

    def of(self, image: ImageRecord, threshold: float) -> _Crop:
        score = self._scores.by_key[image.key]
        seen = prominent(self._faces.get(image.key, ()))
        face = min(seen, key=lambda face: self._references.nearest(face.embedding, image.key)[0], default=None)
        value = score.similarity or 0.0
        reference = self._shown.get(score.matched or "") or next(iter(self._shown.values()), None)
        mark = "passed" if value >= threshold else "failed"
        return _Crop(image.name, score, mark, _cut_out(self._scores.dataset.path(image), face), reference)

    def _of_reference(self, name: str, key: str) -> Image.Image | None:
        path = self._scores.dataset.project.stage("source").folder / name
        if key not in self._faces or not path.is_file():
            return None
        return _cut_out(path, next(iter(prominent(self._faces[key])), None))


def _cut_out(path: Path, face: Face | None) -> Image.Image:
    """A square around a face, or a grey one where the file is gone."""
    try:
        image = open_image(path).image
    except ImageError:
        return Image.new("RGB", (CROP_PX, CROP_PX), "grey")
    if face is None:
        image.thumbnail((CROP_PX, CROP_PX))
        return image
    left, top, right, bottom = face.box
    rim = round((right - left) * AROUND)
    return image.crop((left - rim, top - rim, right + rim, bottom + rim)).resize((CROP_PX, CROP_PX), Image.Resampling.LANCZOS)


def _tile(crop: _Crop) -> Tile:
    pair = Image.new("RGB", (2 * CROP_PX, CROP_PX), "black")
    if crop.reference:
        pair.paste(crop.reference, (0, 0))
    pair.paste(crop.face, (CROP_PX, 0))
    similarity, distance = crop.score.similarity or 0.0, crop.score.distance or 0.0
    return Tile(pair, f"{similarity:.2f} · {distance:.2f} {band(similarity)} {crop.name}", crop.mark)


def _table(title: str, rows: Sequence[Row]) -> Image.Image:
    """A breakdown as a picture: median bar, counts, name; the worst twelve."""
    listed = rows[:12]
    image = Image.new("RGB", (900, 56 + 30 * len(listed)), (32, 32, 32))
    pen = ImageDraw.Draw(image)
    left_out = f" (worst {len(listed)} of {len(rows)})" if len(rows) > len(listed) else ""
    pen.text((20, 14), f"{title}: median similarity, passed of images{left_out}", (232, 232, 232), font_size=18)
    for number, row in enumerate(listed):
        y = 48 + 30 * number
        pen.rectangle([20, y + 4, 20 + 160 * (row.similarity or 0.0), y + 20], (84, 140, 190))
        value = "–" if row.similarity is None else f"{row.similarity:.2f}"
        name = row.name if len(row.name) <= 70 else row.name[:69] + "…"
        pen.text(
            (190, y + 2),
            f"{value}   {row.passed}/{row.images}   {name}".encode("latin-1", "replace").decode("latin-1"),
            (232, 232, 232),
            font_size=16,
        )
    return image


# --- the page

STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #8884}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}ul.faces{list-style:none;padding:0;display:grid;gap:1rem;
grid-template-columns:repeat(auto-fill,minmax(240px,1fr))}ul.faces img{width:50%;display:inline-block;vertical-align:top}
ul.faces span{display:block;overflow-wrap:anywhere;font-size:.85rem}.failed{color:#d33}.passed{color:#2a8f4f}img.wide{max-width:100%}
"""


def _page(
    title: str,
    scores: Scores,
    references: ReferenceSet,
    threshold: float,
    spread: Image.Image,
    ends: Sequence[tuple[str, Sequence[_Crop]]],
    groups: Sequence[tuple[str, Sequence[Row]]],
    unmeasured: Sequence[tuple[str, str]],
) -> str:
    values = [score.similarity for score in scores.by_key.values() if score.similarity is not None]
    passed = sum(value >= threshold for value in values)
    several = sum(score.faces > 1 for score in scores.by_key.values())
    rule = "the nearest of" if references.rule == "best" else "the mean of"
    names = f"Compared with {rule} {len(references.names)}: {', '.join(references.names)}. {SAID}"
    compared = f"Compared with nothing, because the character counts as drawn: {references.drawn}." if references.drawn else names
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{passed} of {len(scores.by_key)} images at or above {threshold:.2f}, {len(values) - passed} below, {len(unmeasured)} not measurable;"
        f" {several} with more than one face. {escape(compared)}"
        f" Engine: {escape(references.embedder)}.</p>",
        f'<img class="wide" alt="How the similarities are spread" src="{_inline(spread)}">',
    ]
    for name, crops in ends:
        body.append(
            f"<h2>{escape(name)}</h2><p>Left the reference, right the image.</p><ul class='faces'>{''.join(map(_item, crops))}</ul>"
        )
    for name, rows in groups:
        body.append(f"<h2>{escape(name)}</h2>{_html_table(rows)}")
    if unmeasured:
        listed = "".join(f"<li>{escape(name)}: {escape(note)}</li>" for name, note in unmeasured)
        body.append(f"<h2>Not measurable</h2><p>No number is no verdict: look at these.</p><ul>{listed}</ul>")
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _item(crop: _Crop) -> str:
    reference = f'<img alt="reference" src="{_inline(crop.reference)}">' if crop.reference else ""
    face = f'<img alt="{escape(crop.name)}" src="{_inline(crop.face)}">'
    similarity, distance = crop.score.similarity or 0.0, crop.score.distance or 0.0
    doubt = f"; {crop.score.note}" if crop.score.note else ""
    words = escape(f"{similarity:.2f} (distance {distance:.2f}, {band(similarity)}){doubt}")
    return f"<li>{reference}{face}<span class='{crop.mark}'>{words}</span><span>{escape(crop.name)}</span></li>"


def _html_table(rows: Sequence[Row]) -> str:
    head = "<tr><th>group</th><th class='n'>median</th><th class='n'>passed</th><th class='n'>images</th><th class='n'>not measurable</th></tr>"
    cells = (
        f"<tr><td>{escape(row.name)}</td><td class='n'>{'–' if row.similarity is None else f'{row.similarity:.2f}'}</td>"
        f"<td class='n'>{row.passed}</td><td class='n'>{row.images}</td><td class='n'>{row.unmeasurable}</td></tr>"
        for row in rows
    )
    return f"<table>{head}{''.join(cells)}</table>"


def _inline(image: Image.Image) -> str:
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"


def summary(scores: Sequence[IdentityScore]) -> str:
    """Counts of the outcomes, in one line."""
    counts: dict[str, int] = {}
    for score in scores:
        name = score.state.replace("_", " ") if score.similarity is None else band(score.similarity)
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())
