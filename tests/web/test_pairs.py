"""The panel of paired datasets in a real browser on the real ComfyUI: built by dropping real folders, mended, worded, exported."""

import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel.layouts import import_dataset
from comfyui_flenwheel.flywheel.pair_examples import LOGO_ON_SHIRT, make_example
from PIL import Image

from .pages import LOOKS, comfy_page

pytestmark = [pytest.mark.comfy, pytest.mark.browser]
PAIRS = 12


@pytest.fixture(scope="module")
def shirts(photos, tmp_path_factory) -> Path:
    """Logo on shirt, 12 pairs, without captions; the folders are called results, shirts and logos."""
    home = make_example(LOGO_ON_SHIRT, photos, tmp_path_factory.mktemp("example"), pairs=PAIRS)
    for path in home.rglob("*.txt"):
        path.unlink()
    return home


def drop(tab, selector, *paths, inside=None):
    """Drop files and folders from the disk on an element, as the operating system would."""
    box = (inside or tab).locator(selector).first.bounding_box()
    session = tab.context.new_cdp_session(tab)
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    told = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": told})
    session.detach()


def wait_for_text(where, selector, text):
    where.locator(selector, has_text=text).first.wait_for(timeout=20_000)


def page_of(server, new_tab, name):
    tab = new_tab("about:blank")
    tab.goto(f"{server.address}/flenwheel/pairs?set={name}")
    tab.locator("#tabs").wait_for()
    return tab


def call(address):
    """Status and JSON of an answer."""
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None


def set_of(server, name):
    return call(f"{server.address}/flenwheel/pairs/sets/{name}")


def test_looking_at_a_name_makes_nothing(server, new_tab):
    tab = page_of(server, new_tab, "only looked at")
    assert tab.locator("#empty").is_visible() and set_of(server, "only_looked_at")[0] == 404
    assert tab.locator("[role=tab]").count() == 2 and tab.locator(".badge.target").inner_text() == "Target"
    assert tab.locator(".tab .take").count() == 0, "target and last control cannot be removed"


def test_logo_on_shirt_is_built_by_drag_and_drop(server, new_tab, shirts, tmp_path):
    """Drop folders, see the mismatch alert, mend it in place, write captions by keyboard, replace words, take out and bring back, export."""
    tab = page_of(server, new_tab, "logo on shirt")
    tab.click("#pairing-close")
    drop(tab, "#empty h2", shirts / "results")
    wait_for_text(tab, "#summary", "12")
    tab.locator("[role=tab]").nth(1).click()
    tab.fill("#label", "shirts")
    tab.press("#label", "Tab")
    some = [path for path in sorted((shirts / "shirts").iterdir()) if path.name not in ("03.png", "07.png")]
    drop(tab, "#about", *some)
    wait_for_text(tab, "#mismatch", "Target 12, shirts 10")
    tab.click("#add-control")
    tab.locator("[role=tab]").nth(2).wait_for()
    tab.fill("#label", "logos")
    tab.press("#label", "Tab")
    wait_for_text(tab, "[role=tab]", "logos")
    drop(tab, "#about", shirts / "logos")  # a folder called like the label
    wait_for_text(tab, "#mismatch", "Target 12, shirts 10, logos 12")
    tab.click("#show-problems")
    assert tab.locator(".pair").count() == 2
    wait_for_text(tab, ".wrongs", "would have slipped into its place")
    tab.screenshot(path=tmp_path / "mismatch.png")
    other = tmp_path / "IMG_0815.png"
    shutil.copy(shirts / "shirts" / "03.png", other)
    drop(tab, ".pair[data-key='03'] .cell.missing", other)  # gets the pair's name
    wait_for_text(tab, "#mismatch", "shirts 11")
    drop(tab, ".pair[data-key='07'] .cell.missing", shirts / "shirts" / "07.png")
    tab.locator("#only-problems[aria-pressed=true]").wait_for()
    tab.click("#only-problems")
    tab.locator("#mismatch").wait_for(state="hidden")
    wait_for_text(tab, "#summary", "need words")
    tab.fill("#instruction", "put the logo on the shirt")
    tab.press("#instruction", "Tab")
    wait_for_text(tab, "#summary", "12 pairs, all complete")

    first = tab.locator(".pair textarea").first
    first.fill("put the blue badge on the shirt")
    first.press("Enter")
    tab.keyboard.press("Control+A")
    tab.keyboard.type("put the red badge on the shirt")
    tab.keyboard.press("Enter")
    tab.keyboard.press("Escape")
    tab.wait_for_function("() => document.querySelectorAll('textarea.caption:not(.general)').length === 2")
    tab.click("#replace")
    tab.fill("#find-words", "badge")
    tab.fill("#put-words", "logo")
    wait_for_text(tab, "#replace-go", "Replace in 2 captions")
    tab.click("#replace-go")
    tab.wait_for_function("() => document.querySelector('textarea.caption').value === 'put the blue logo on the shirt'")

    tab.locator(".pair[data-key='05'] .cell").nth(2).hover()
    tab.locator(".pair[data-key='05'] .cell").nth(2).locator(".take").click()
    tab.locator("#mismatch").wait_for()
    tab.click("#toast button")
    tab.locator("#mismatch").wait_for(state="hidden")

    tab.click("#examine")
    wait_for_text(tab, "#progress-text", "12 of 12 pairs are well")
    tab.screenshot(path=tmp_path / "complete.png")
    tab.click("#export")
    tab.click("#export-go")
    wait_for_text(tab, ".told", "12 examples")
    folder = Path(tab.locator(".told").inner_text().splitlines()[0].partition(" files in ")[2])
    dataset = import_dataset(folder)
    assert [pair.stem for pair in dataset.pairs] == [f"{n:02}" for n in range(1, 13)] and dataset.slots == ("shirts", "logos")
    assert [pair.caption for pair in dataset.pairs[:3]] == [
        "put the blue logo on the shirt",
        "put the red logo on the shirt",
        "put the logo on the shirt",
    ]
    for pair in dataset.pairs:
        for picture, origin in zip((pair.target, *pair.controls), LOGO_ON_SHIRT.folders, strict=True):
            assert picture.path.read_bytes() == (shirts / origin / f"{pair.stem}.png").read_bytes()


def test_files_and_folders_can_be_chosen_and_what_does_not_fit_taken_out(server, new_tab, shirts, tmp_path):
    """As on a phone, where nothing can be dropped; the words of a pair are there to be written, whatever the width."""
    tab = new_tab("about:blank", visitor="phone", viewport={"width": 390, "height": 844})
    tab.goto(f"{server.address}/flenwheel/pairs?set=chosen")
    tab.locator("#empty").wait_for()
    assert tab.locator("#summary").inner_text() == "No images yet."
    tab.click("#pairing-close")
    mine = tmp_path / "mine" / "sources"
    shutil.copytree(shirts / "shirts", mine)
    (mine / "05.png").unlink()
    tab.set_input_files("#picker", sorted((shirts / "results").iterdir()))
    wait_for_text(tab, "#summary", "12")
    tab.set_input_files("#folder-picker", mine)  # its name means control 1
    wait_for_text(tab, "#mismatch", "Target 12, Control 1 11")
    tab.click("#drop-problems")
    tab.locator("#mismatch").wait_for(state="hidden")
    assert [slot["count"] for slot in set_of(server, "chosen")[1]["slots"]] == [11, 11]
    tab.click("#toast button")
    wait_for_text(tab, "#mismatch", "Target 12, Control 1 11")
    tab.click("#drop-problems")
    tab.locator("#mismatch").wait_for(state="hidden")
    tab.fill("#trigger_word", "ohwx")
    tab.press("#trigger_word", "Tab")
    first = tab.locator(".pair").first
    first.scroll_into_view_if_needed()
    words, picture = first.locator("textarea").bounding_box(), first.locator(".cell").first.bounding_box()
    assert words["y"] >= picture["y"] + picture["height"] and words["width"] > 300, "the words stand below the pictures"
    first.locator("textarea").fill("put the logo on the shirt")
    with tab.expect_response("**/captions") as saved:
        first.locator("textarea").press("Enter")
    assert saved.value.json() == {"words": {"01": ["put the logo on the shirt", True]}}, "the answer does not grow with the set"
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    told = set_of(server, "chosen")[1]
    assert told["trigger_word"] == "ohwx" and told["rows"][0]["own"] and told["rows"][1]["caption"] == ""


def test_the_pair_doctor_shows_what_it_found_and_mends_it(server, new_tab, shirts, tmp_path):
    """A target that slid: told in its row, drawn on demand, aligned, and gone."""
    folder = tmp_path / "slid"
    for called, origin in zip(("target", "control 1"), LOGO_ON_SHIRT.folders, strict=False):
        (folder / called).mkdir(parents=True)
        for stem in ("01", "02"):
            shutil.copy(shirts / origin / f"{stem}.png", folder / called)
    with Image.open(folder / "target" / "02.png") as whole:
        slid = whole.transform(whole.size, Image.Transform.AFFINE, (1, 0, -5, 0, 1, 3), Image.Resampling.BICUBIC)
    slid.save(folder / "target" / "02.png")
    tab = page_of(server, new_tab, "slid")
    tab.fill("#instruction", "put the logo on the shirt")
    tab.press("#instruction", "Tab")
    drop(tab, "#empty h2", folder / "target", folder / "control 1")
    wait_for_text(tab, "#summary", "2 pairs, all complete")
    tab.click("#examine")
    wait_for_text(tab, ".pair[data-key='02'] .wrongs", "slid by +5")
    assert tab.locator(".look").count() == 1 and "1 pair fits, 1 has a problem" in tab.locator("#summary").inner_text()
    tab.click(".look")
    tab.wait_for_function("() => document.querySelector('dialog .drawn')?.naturalWidth > 600")
    tab.screenshot(path=tmp_path / "look.png")
    tab.locator("dialog button.primary").click()
    tab.click(".pair[data-key='02'] .mend")
    wait_for_text(tab, "#toast", "1 pairs aligned: 02")
    wait_for_text(tab, "#summary", "2 pairs, all complete")
    tab.click("#examine")
    wait_for_text(tab, "#progress-text", "2 of 2 pairs are well")
    gone = call(f"{server.address}/flenwheel/pairs/sets/slid/drawn/02?kind=shift&slot=control_1")
    assert gone[0] == 404, "what was mended has no picture any more"


def test_files_that_are_no_pictures_or_whose_place_is_taken_are_told(server, new_tab, shirts, tmp_path):
    tab = page_of(server, new_tab, "refusals")
    whole = (shirts / "results" / "01.png").read_bytes()
    (tmp_path / "01.png").write_bytes(whole)
    (tmp_path / "02.png").write_bytes(whole[:5000])
    (tmp_path / "03.exe").write_bytes(b"MZ")
    drop(tab, "#empty h2", tmp_path / "01.png", tmp_path / "02.png", tmp_path / "03.exe")
    wait_for_text(tab, ".told", "02.png")
    assert "03.exe" in tab.locator(".told").inner_text()
    tab.locator("dialog button").click()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "01.png")
    drop(tab, "#about", tmp_path / "01.png")
    tab.locator("#replace-taken").click()
    tab.wait_for_function("() => document.querySelector('.cell figcaption')?.title.includes('40 × 40')")
    assert set_of(server, "refusals")[1]["slots"][0]["count"] == 1


def test_folders_whose_names_say_nothing_get_a_place_each(server, new_tab, shirts, tmp_path):
    """Guessed in the order target, control 1, 2, 3, and asked, as when two names mean one place; one may be left out, and nothing meets another's names."""
    for called, origin in zip(("alpha", "inputs", "sources", "delta"), (*LOGO_ON_SHIRT.folders, "shirts"), strict=True):
        (tmp_path / "mine" / called).mkdir(parents=True)
        for stem in ("01", "02"):
            shutil.copy(shirts / origin / f"{stem}.png", tmp_path / "mine" / called)
    tab = page_of(server, new_tab, "unnamed folders")
    drop(tab, "#empty h2", *(tmp_path / "mine" / called for called in ("alpha", "inputs", "sources", "delta")))
    tab.locator("#places-go").wait_for()
    tab.screenshot(path=tmp_path / "asked.png")
    asked = {select.get_attribute("data-folder"): select for select in tab.locator("dialog select").all()}
    assert {folder: select.input_value() for folder, select in asked.items()} == {
        "alpha": "target",
        "inputs": "control_1",
        "sources": "control_2",
        "delta": "control_3",
    }
    asked["inputs"].select_option("control_2")
    asked["sources"].select_option("control_1")
    asked["delta"].select_option("")
    tab.click("#places-go")
    wait_for_text(tab, "#summary", "2 pairs")
    assert [slot["count"] for slot in set_of(server, "unnamed_folders")[1]["slots"]] == [2, 2, 2]
    assert tab.locator("dialog").count() == 0, "no name was taken"
    titles = tab.locator(".pair[data-key='01'] .cell figcaption")
    assert ["256 × 256" in titles.nth(number).get_attribute("title") for number in range(3)] == [False, True, False]


@pytest.mark.parametrize(("renderer", "theme"), LOOKS)
def test_the_node_holds_the_panel_and_takes_dropped_files(server, new_tab, shirts, renderer, theme):
    name = f"in the node {theme}"
    graph = comfy_page(server, new_tab, renderer, theme)
    graph.evaluate(
        """(name) => {
          app.graph.clear()
          const node = LiteGraph.createNode("FLEN_LoadPairedDataset")
          const exported = LiteGraph.createNode("FLEN_ExportDataset")
          node.pos = [60, 60]; exported.pos = [900, 60]
          app.graph.add(node); app.graph.add(exported)
          node.connect(0, exported, 0)
          const named = node.widgets.find((one) => one.name === "name")
          named.value = name; named.callback?.(name)
          const words = node.widgets.find((one) => one.name === "instruction")
          words.value = "put the logo on the shirt"
          app.canvas.ds.scale = 0.75; app.canvas.ds.offset = [40, 20]; app.canvas.setDirty(true, true)
        }""",
        name,
    )
    frame = graph.frame_locator("iframe[title='FLENwheel pairs']")
    frame.locator("#empty").wait_for(timeout=20_000)
    before = graph.evaluate("() => app.graph.nodes.length")
    drop(graph, "iframe[title='FLENwheel pairs']", shirts / "results")
    frame.locator("#summary", has_text="12").wait_for(timeout=20_000)
    assert graph.evaluate("() => app.graph.nodes.length") == before, "ComfyUI made no nodes of the files"
    assert set_of(server, name.replace(" ", "_"))[1]["slots"][0]["count"] == PAIRS
