import weakref
from collections.abc import Iterator

import pytest
from comfyui_flenwheel.flywheel.sheets import (
    AMBER,
    GREEN,
    GREY,
    RED,
    Bars,
    MapCell,
    Tile,
    before_after,
    contact_sheet,
    coverage_map,
    histogram,
    stacked,
)
from PIL import Image


def plain(colour: str = "navy", size: tuple[int, int] = (300, 200)) -> Image.Image:
    return Image.new("RGB", size, colour)


def colours(image: Image.Image) -> dict[tuple[int, int, int], int]:
    return {colour: count for count, colour in image.getcolors(image.width * image.height) or []}


@pytest.mark.parametrize(
    ("mark", "colour"), [("good", GREEN), ("needs_correction", AMBER), ("reject", RED), ("not measurable", GREY), ("something else", GREY)]
)
def test_a_verdict_is_a_frame_and_a_word(mark, colour):
    marked, bare = contact_sheet([Tile(plain(), mark=mark)]), contact_sheet([Tile(plain())])
    assert colours(marked)[colour] > 4 * 256 and colour not in colours(bare)
    assert marked.height > bare.height  # the word has its own line


def test_every_tile_of_many_is_on_the_sheet():
    sheet = contact_sheet([Tile(plain((number, 60, 200)), f"image {number}") for number in range(200)], cell_px=64)
    assert all((number, 60, 200) in colours(sheet) for number in range(200))


def test_tiles_may_come_one_by_one_and_are_let_go():
    given: list[weakref.ref[Image.Image]] = []
    most = 0

    def tiles() -> Iterator[Tile]:
        nonlocal most
        for _ in range(30):
            picture = plain(size=(1000, 800))
            given.append(weakref.ref(picture))
            most = max(most, sum(alive() is not None for alive in given))
            yield Tile(picture)

    assert contact_sheet(tiles(), cell_px=64, columns=10).size == (10 + 10 * 74, 10 + 3 * 74)
    assert len(given) == 30 and most <= 2


def test_a_sheet_never_outgrows_what_viewers_open():
    sheet = contact_sheet([Tile(plain(size=(8, 8)), "x", "good") for _ in range(300)], columns=2, cell_px=256, title="long")
    assert max(sheet.size) <= 16_000


def test_pictures_keep_their_aspect_and_mode():
    for picture in (plain(size=(10, 900)), Image.new("L", (40, 40)), Image.new("RGBA", (900, 10)), Image.new("P", (5, 5))):
        assert contact_sheet([Tile(picture, "caption")]).mode == "RGB"
    sheet = contact_sheet([Tile(plain("red", (400, 100)))], cell_px=200)
    assert colours(sheet)[(255, 0, 0)] == 200 * 50


def test_no_tiles_are_an_empty_sheet():
    assert contact_sheet([]).size > (0, 0)
    assert stacked([]).size > (0, 0)


def test_long_and_foreign_captions_are_cut_not_spilled():
    short = contact_sheet([Tile(plain(), "a b")], cell_px=128)
    assert contact_sheet([Tile(plain(), "Zoë " * 90)], cell_px=128).width == short.width
    assert contact_sheet([Tile(plain(), "W" * 900)], cell_px=128).size == short.size


def test_before_and_after_share_one_height():
    pair = before_after(plain("red", (200, 400)), plain("blue", (300, 300)), "Change background to forest")
    assert pair.mode == "RGB" and pair.height > 400
    assert colours(pair)[(255, 0, 0)] == 200 * 400 and colours(pair)[(0, 0, 255)] == 400 * 400
    assert max(before_after(plain(size=(4000, 3000)), plain(size=(4000, 3000))).size) < 4000


def test_stacked_pictures_are_all_there():
    pile = stacked([plain("red", (30, 20)), plain("blue", (50, 10))])
    assert pile.size == (50, 40) and colours(pile)[(255, 0, 0)] == 600 and colours(pile)[(0, 0, 255)] == 500


def test_histogram_colours_follow_the_threshold():
    spread = [0.9, 0.91, 0.61, 0.3, None]
    green, red = (colours(histogram(spread, at)).get(GREEN, 0) for at in (0.6, 0.95))
    assert green > red > 0  # the legend's square remains
    assert colours(histogram(spread, 0.6)).get(RED, 0) > colours(histogram([0.9], 0.6)).get(RED, 0)
    assert RED not in colours(histogram(spread))


@pytest.mark.parametrize("similarities", [[], [None, None], [0.0, 1.0], [-0.2, 1.3], [0.5] * 3000])
def test_histogram_takes_any_numbers(similarities):
    assert histogram(similarities, 0.6, title="Anna").width == histogram([0.5]).width


def test_histogram_shows_further_groups_below():
    one, two = histogram([0.8], 0.6), histogram([0.8], 0.6, others=[Bars("another man", (0.3, None))])
    assert two.width == one.width and two.height > 2 * one.height


def test_a_map_shows_what_is_covered_and_what_is_missing():
    columns, full, empty = ("front", "half-left"), MapCell(3, plain("navy", (90, 160)), "3 bust"), MapCell(0)
    covered = colours(coverage_map(columns, [("neutral", [full, full])], title="Anna"))
    assert covered[GREEN] > 2 * 600 and RED not in covered and covered[(0, 0, 128)] > 2 * 80 * 150
    missing = colours(coverage_map(columns, [("neutral", [full, empty])]))
    assert missing[RED] > 400 and missing[(0, 0, 128)] < covered[(0, 0, 128)]
    short = coverage_map(("",) * 5, [("smiling", [full] * 5), ("full body", [empty] * 3)])
    assert short.width == coverage_map((), [("smiling", [full] * 5)]).width
