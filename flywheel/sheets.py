"""Pictures for people: contact sheets, before and after, the histogram of similarities. Takes images and numbers; reads no file."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

GROUND: Colour = (32, 32, 32)  # ComfyUI's own dark grey
CELL: Colour = (43, 43, 43)
LINE: Colour = (74, 74, 74)
TEXT: Colour = (232, 232, 232)
SOFT: Colour = (168, 168, 168)
GREEN: Colour = (84, 190, 118)
AMBER: Colour = (232, 178, 72)
RED: Colour = (232, 104, 96)
GREY: Colour = (140, 140, 150)

TEXT_PX = 15
LINE_PX = 20
GAP = 10
MAX_SHEET_PX = 16_000  # longer side: most viewers and every JPEG can still take it

_MARKS: tuple[tuple[tuple[str, ...], Colour], ...] = (  # what a mark begins with
    (("good", "high", "passed", "usable"), GREEN),
    (("needs", "medium", "warning"), AMBER),
    (("reject", "low", "failed", "unusable"), RED),
)


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a contact sheet. `mark` is a verdict such as good, needs_correction, reject or not measurable: a frame and a word."""

    image: Image.Image
    caption: str = ""
    mark: str = ""


def contact_sheet(tiles: Iterable[Tile], *, columns: int = 0, cell_px: int = 256, tall: float = 1.0, title: str = "") -> Image.Image:
    """Tiles in rows, each picture whole inside a cell of `cell_px`, which is a square or `tall` times as high as wide.

    `columns`: 0 chooses about 3 rows for every 4 columns. Tiles are shrunk as they come, so an iterator that opens one picture at a time
    never holds more than two. A sheet longer than 16,000 px is made with smaller cells.
    """
    small = [_shrunk(tile, cell_px, tall) for tile in tiles]
    if not columns:
        columns = max(1, min(len(small), round((max(1, len(small)) * 4 / 3) ** 0.5)))
    rows = max(1, ceil(len(small) / columns))
    lines = max((len(_wrapped(tile.caption, TEXT_PX, cell_px - 16, lines=2)) for tile in small), default=0)
    marked = any(tile.mark for tile in small)
    under = LINE_PX * (lines + marked) + (6 if lines or marked else 0)
    largest = min((MAX_SHEET_PX - GAP) // columns - GAP, int(((MAX_SHEET_PX - 60) // rows - GAP - under) / tall))
    if largest < cell_px:
        cell_px = max(16, largest)
        small = [_shrunk(tile, cell_px, tall) for tile in small]
    top, high = 54 if title else GAP, round(cell_px * tall)
    sheet = Image.new("RGB", (GAP + columns * (cell_px + GAP), top + rows * (high + under + GAP)), GROUND)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((GAP + 2, 14), _cut(title, 22, sheet.width - 2 * GAP - 4), TEXT, _font(22))
    for number, tile in enumerate(small):
        corner = (GAP + number % columns * (cell_px + GAP), top + number // columns * (high + under + GAP))
        _draw_tile(sheet, tile, corner, (cell_px, high), under, marked=marked)
    return sheet


def before_after(before: Image.Image, after: Image.Image, caption: str = "") -> Image.Image:
    """Two pictures of one height with an arrow between them, labelled; the caption wraps underneath."""
    height = min(max(before.height, after.height), 1024)
    left, right = (
        image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS) for image in (before, after)
    )
    px = max(17, height // 40)
    arrow, head, line = 64, px + 18, round(px * 1.4)
    width = left.width + right.width + arrow + 2 * GAP
    lines = _wrapped(caption, px, width - 2 * GAP)
    sheet = Image.new("RGB", (width, head + height + GAP + (line * len(lines) + 6 if lines else 0)), GROUND)
    pen = ImageDraw.Draw(sheet)
    second = GAP + left.width + arrow
    for x, word, image in ((GAP, "before", left), (second, "after", right)):
        sheet.paste(image, (x, head))
        pen.text((x, 8), word, SOFT, _font(px))
    middle, start, end = head + height // 2, GAP + left.width + 12, second - 12
    pen.line([start, middle, end - 12, middle], TEXT, 4)
    pen.polygon([(end, middle), (end - 16, middle - 11), (end - 16, middle + 11)], TEXT)
    for number, words in enumerate(lines):
        pen.text((GAP, head + height + GAP + line * number), words, TEXT, _font(px))
    return sheet


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other, as wide as the widest."""
    height = sum(picture.height for picture in pictures) + GAP * max(0, len(pictures) - 1)
    sheet = Image.new("RGB", (max((picture.width for picture in pictures), default=GAP), max(height, GAP)), GROUND)
    y = 0
    for picture in pictures:
        sheet.paste(picture, (0, y))
        y += picture.height + GAP
    return sheet


@dataclass(frozen=True, slots=True)
class Bars:
    """Similarities of one group of images; None where a face could not be measured."""

    name: str
    similarities: tuple[float | None, ...]


def histogram(
    similarities: Sequence[float | None], threshold: float | None = None, *, title: str = "", others: Sequence[Bars] = (), bins: int = 40
) -> Image.Image:
    """How similarities from 0 to 1 are spread: green from `threshold` up, red below, the count of what is not measurable in words.

    `others`: further groups drawn below on the same axis, for example another person's photographs.
    """
    groups = [Bars("", tuple(similarities)), *others]
    panels = [_panel(group, threshold, bins, legend=number == 0) for number, group in enumerate(groups)]
    if not title:
        return stacked(panels)
    head = Image.new("RGB", (panels[0].width, 48), GROUND)
    ImageDraw.Draw(head).text((64, 16), _cut(title, 22, head.width - 80), TEXT, _font(22))
    return stacked([head, *panels])


def _panel(group: Bars, threshold: float | None, bins: int, *, legend: bool) -> Image.Image:
    measured = [min(max(value, 0.0), 1.0) for value in group.similarities if value is not None]
    counts = _counted(measured, threshold, bins)
    panel = Image.new("RGB", (900, 440), GROUND)
    pen = ImageDraw.Draw(panel)
    left, top, right, bottom = 64, 88, 876, 372
    pen.rectangle([left, top, right, bottom], CELL)
    step = _tick_step(max((passed + failed for passed, failed in counts), default=0))
    highest = step * max(1, ceil(max((passed + failed for passed, failed in counts), default=1) / step))
    for tick in range(0, highest + 1, step):
        y = bottom - (bottom - top) * tick / highest
        pen.line([left, y, right, y], LINE, 1)
        pen.text((left - 10, y), str(tick), SOFT, _font(TEXT_PX), anchor="rm")
    for tenth in range(0, 11, 2):
        x = left + (right - left) * tenth / 10
        pen.line([x, bottom, x, bottom + 6], SOFT, 1)
        pen.text((x, bottom + 10), f"{tenth / 10:.1f}", SOFT, _font(TEXT_PX), anchor="mt")
    pen.text(((left + right) / 2, bottom + 36), "similarity to the reference photos (higher is closer)", SOFT, _font(16), anchor="mt")
    pen.text((left, top - 12), "images", SOFT, _font(TEXT_PX), anchor="ls")
    width = (right - left) / bins
    for number, (passed, failed) in enumerate(counts):
        x, y = left + number * width, float(bottom)
        for count, colour in ((failed, RED), (passed, GREEN)):
            if count:
                high = (bottom - top) * count / highest
                pen.rectangle([x + 1.5, y - high, x + width - 1.5, y], colour)
                y -= high
    if threshold is not None:
        _draw_threshold(pen, left + (right - left) * min(max(threshold, 0.0), 1.0), threshold, (top, bottom))
    if not measured:
        words, middle = "no face could be measured", ((left + right) / 2, (top + bottom) / 2)
        pen.text(middle, words, TEXT, _font(20), anchor="mm", stroke_width=10, stroke_fill=CELL)
    _draw_legend(pen, group, measured, threshold, (left, 20), named=legend or bool(group.name))
    return panel


def _counted(measured: Sequence[float], threshold: float | None, bins: int) -> list[tuple[int, int]]:
    """Passed and failed per bin; without a threshold everything has passed."""
    passed, failed = [0] * bins, [0] * bins
    for value in measured:
        side = passed if threshold is None or value >= threshold else failed
        side[min(int(value * bins), bins - 1)] += 1
    return list(zip(passed, failed, strict=True))


def _tick_step(highest: int) -> int:
    """1, 2 or 5 times a power of ten, for at most five steps."""
    unit = 1
    while True:
        for factor in (1, 2, 5):
            if factor * unit * 5 >= highest:
                return factor * unit
        unit *= 10


def _draw_threshold(pen: ImageDraw.ImageDraw, x: float, threshold: float, span: tuple[int, int]) -> None:
    for y in range(span[0], span[1], 12):
        pen.line([x, y, x, min(y + 7, span[1])], TEXT, 2)
    words = f"threshold {threshold:.2f}"
    half = _font(16).getlength(words) / 2
    pen.text((min(max(x, 70 + half), 870 - half), span[0] - 6), words, TEXT, _font(16), anchor="ms")


def _draw_legend(
    pen: ImageDraw.ImageDraw, group: Bars, measured: Sequence[float], threshold: float | None, at: tuple[int, int], *, named: bool
) -> None:
    passed = sum(threshold is None or value >= threshold for value in measured)
    entries = [(GREEN, f"{passed} measured" if threshold is None else f"{passed} passed")]
    if threshold is not None:
        entries.append((RED, f"{len(measured) - passed} failed"))
    entries.append((GREY, f"{len(group.similarities) - len(measured)} not measurable"))
    x, y = float(at[0]), at[1]
    if group.name and named:
        name = _cut(group.name, 18, 320)
        pen.text((x, y), name, TEXT, _font(18))
        x += _font(18).getlength(name) + 28
    for colour, words in entries:
        pen.rectangle([x, y + 2, x + 16, y + 18], colour)
        pen.text((x + 24, y), words, TEXT, _font(17))
        x += 24 + _font(17).getlength(words) + 30


def _shrunk(tile: Tile, cell_px: int, tall: float = 1.0) -> Tile:
    image = tile.image.convert("RGB") if tile.image.mode != "RGB" else tile.image
    scale = cell_px / max(image.width, image.height / tall)
    if scale != 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return Tile(image, tile.caption, tile.mark)


def _draw_tile(sheet: Image.Image, tile: Tile, corner: tuple[int, int], cell: tuple[int, int], under: int, *, marked: bool) -> None:
    pen, font = ImageDraw.Draw(sheet), _font(TEXT_PX)
    (x, y), (cell_px, high) = corner, cell
    colour = _colour_of(tile.mark)
    pen.rectangle([x, y, x + cell_px - 1, y + high + under - 1], CELL)
    sheet.paste(tile.image, (x + (cell_px - tile.image.width) // 2, y + (high - tile.image.height) // 2))
    line = y + high + 2
    if tile.mark:
        pen.rectangle([x - 1, y - 1, x + cell_px, y + high + under], outline=colour, width=4)
        pen.rectangle([x + 8, line + 4, x + 18, line + 14], colour)
        pen.text((x + 24, line), _cut(tile.mark.replace("_", " "), TEXT_PX, cell_px - 30), colour, font)
    for number, words in enumerate(_wrapped(tile.caption, TEXT_PX, cell_px - 16, lines=2), start=marked):
        pen.text((x + 8, line + LINE_PX * number), words, TEXT, font)


def _colour_of(mark: str) -> Colour:
    return next((colour for starts, colour in _MARKS if mark.casefold().startswith(starts)), GREY)


@cache
def _font(px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(px)


def _cut(text: str, px: int, width: float) -> str:
    """As much of a line as fits, ending with … if it does not."""
    font, text = _font(px), _plain(text)
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:  # the longest beginning that fits together with its ellipsis
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle].rstrip() + "…") <= width else (low, middle - 1)
    return text[:low].rstrip() + "…"


def _plain(text: str) -> str:
    """Spaces collapsed, letters without their accents: Pillow's own font has none. Other scripts come out as boxes."""
    letters = (letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))
    return " ".join("".join(letters).split())


def _wrapped(text: str, px: int, width: float, *, lines: int = 3) -> list[str]:
    """Text in at most `lines` lines; what is left over is cut with …."""
    font, words, wrapped = _font(px), _plain(text).split(), list[str]()
    while words and len(wrapped) < lines:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        if len(wrapped) == lines - 1:
            count = len(words)
        wrapped.append(_cut(" ".join(words[:count]), px, width))
        words = words[count:]
    return wrapped


@dataclass(frozen=True, slots=True)
class MapCell:
    """One cell of a map: the best picture that fills it, how many do, and a word below. Without pictures it is shown as missing."""

    count: int
    image: Image.Image | None = None
    words: str = ""


def coverage_map(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[MapCell]]], *, title: str = "", cell_px: int = 160
) -> Image.Image:
    """A table of cells under column names, row names at the left; green frames are covered, red broken ones are missing. A row may be shorter."""
    margin, under, top = 150, LINE_PX * 2 + 8, 54 if title else GAP
    head = LINE_PX + 8 if any(columns) else 0
    width = max([len(columns), *(len(cells) for _, cells in rows)])
    sheet = Image.new("RGB", (margin + width * (cell_px + GAP), top + head + len(rows) * (cell_px + under + GAP)), GROUND)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((GAP + 2, 14), _cut(title, 22, sheet.width - 2 * GAP - 4), TEXT, _font(22))
    for number, name in enumerate(columns):
        pen.text((margin + number * (cell_px + GAP) + cell_px / 2, top + 4), _cut(name, 17, cell_px), TEXT, _font(17), anchor="mt")
    for row, (name, cells) in enumerate(rows):
        y = top + head + row * (cell_px + under + GAP)
        for number, line in enumerate(_wrapped(name, 17, margin - 2 * GAP)):
            pen.text((GAP, y + cell_px / 2 - LINE_PX + LINE_PX * number), line, TEXT, _font(17))
        for column, cell in enumerate(cells):
            _draw_cell(sheet, pen, cell, (margin + column * (cell_px + GAP), y), cell_px, under)
    return sheet


def _draw_cell(sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: MapCell, corner: tuple[int, int], cell_px: int, under: int) -> None:
    x, y = corner
    pen.rectangle([x, y, x + cell_px - 1, y + cell_px + under - 1], CELL)
    if cell.image:
        small = _shrunk(Tile(cell.image), cell_px).image
        sheet.paste(small, (x + (cell_px - small.width) // 2, y + (cell_px - small.height) // 2))
    colour, line = (GREEN if cell.count else RED), y + cell_px + 4
    if cell.count:
        pen.rectangle([x - 1, y - 1, x + cell_px, y + cell_px + under], outline=colour, width=3)
    else:
        _draw_broken_frame(pen, (x, y, x + cell_px - 1, y + cell_px + under - 1), colour)
        pen.text((x + cell_px / 2, y + cell_px / 2), "missing", colour, _font(18), anchor="mm")
    counted = f"{cell.count} picture{'' if cell.count == 1 else 's'}" if cell.count else ""
    for number, words in enumerate((counted, cell.words)):
        pen.text((x + 8, line + LINE_PX * number), _cut(words, TEXT_PX, cell_px - 16), colour if number == 0 else SOFT, _font(TEXT_PX))


def _draw_broken_frame(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Colour) -> None:
    left, top, right, bottom = box
    for x in range(left, right, 14):
        for y in (top, bottom):
            pen.line([x, y, min(x + 8, right), y], colour, 2)
    for y in range(top, bottom, 14):
        for x in (left, right):
            pen.line([x, y, x, min(y + 8, bottom)], colour, 2)
