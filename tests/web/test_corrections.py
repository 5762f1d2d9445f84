"""Needs correction is a first-class verdict: a spot painted over, a file dropped in, another program, and what comes back."""

import base64
import io

import pytest
from comfyui_flenwheel.flywheel import corrections, ledger, repair
from comfyui_flenwheel.flywheel.images import png_bytes
from PIL import Image

from .pages import all_saved, portrait, press, shown, text

pytestmark = [pytest.mark.browser, pytest.mark.comfy]

DROP = """([selector, name, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))
  const data = new DataTransfer()
  data.items.add(new File([bytes], name, { type: "image/png" }))
  document.querySelector(selector).dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }))
}"""


def room(reviewed, new_tab):
    """The repair of the first image, which needs correction because of its hands."""
    tab = shown(new_tab(reviewed.address))
    press(tab, ["2", "r", "2", "r", "ArrowLeft"])
    all_saved(tab)
    press(tab, ["e"])
    tab.wait_for_function("document.querySelector('.repair textarea')?.value.length > 10")
    return tab


def test_a_painted_spot_becomes_an_order_with_its_mask(reviewed, new_tab):
    tab = room(reviewed, new_tab)
    assert "hand" in tab.input_value(".repair textarea").lower()
    tab.wait_for_function("document.querySelector('.paint img').complete")
    box = tab.locator(".paint canvas").bounding_box()
    spot = (box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.25)
    tab.mouse.move(*spot)
    tab.mouse.down()
    tab.mouse.move(spot[0] + box["width"] * 0.2, spot[1], steps=4)
    tab.mouse.up()
    press(tab, ["Control+Enter"])
    tab.wait_for_selector("dialog.wide", state="detached")
    (order,) = repair.orders(reviewed.project)
    assert (order.key, order.start, order.state, len(order.seeds)) == (reviewed.keys[0], "candidate", "waiting", 2)
    mask = Image.open(repair.mask_file(reviewed.project, order.mask)).convert("L")
    assert mask.size == (192, 240) and mask.getpixel((60, 60)) == 255 and mask.getpixel((150, 200)) == 0
    assert 0.01 < sum(mask.histogram()[128:]) / (192 * 240) < 0.1
    press(tab, ["Enter"])
    tab.wait_for_function("document.querySelector('#repairs').textContent.startsWith('1 repair waits')")


def test_what_is_painted_is_seen_and_can_be_erased_and_cleared(reviewed, new_tab):
    tab = room(reviewed, new_tab)
    box = tab.locator(".paint canvas").bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    painted = "[...document.querySelector('.paint canvas').getContext('2d').getImageData(0, 0, 192, 240).data].filter((_, at) => at % 4 === 3).filter(Boolean).length"
    assert tab.evaluate(painted) > 50
    assert float(tab.evaluate("getComputedStyle(document.querySelector('.paint canvas')).opacity")) < 1  # the picture shines through
    tab.get_by_text("Clear", exact=True).click()
    assert tab.evaluate(painted) == 0
    press(tab, ["Control+Enter"])
    tab.wait_for_selector("dialog.wide", state="detached")
    assert repair.orders(reviewed.project)[0].mask is None


def test_a_file_dropped_in_comes_back_bound_to_the_image(reviewed, new_tab):
    tab = room(reviewed, new_tab)
    tab.evaluate(DROP, [".by-hand", "mended.png", base64.b64encode(png_bytes(portrait(300))).decode()])
    tab.wait_for_selector("dialog.wide", state="detached")
    stage = reviewed.project.stage("corrections")
    (made,) = corrections.by_original(stage)[reviewed.keys[0]]
    assert (stage.folder / f"{reviewed.candidates.images[0].stem}-{made.image_key}.png").read_bytes() == png_bytes(portrait(300))
    tab.wait_for_function("document.querySelector('.card .tag')?.textContent === 'repaired'")
    press(tab, ["Enter"])
    tab.wait_for_selector("#corrections img")
    tab.click("#corrections a")  # leads to the room of the corrections, with before and after side by side
    shown(tab)
    press(tab, ["Enter"])
    tab.wait_for_function("document.querySelector('#source').naturalWidth === 192")
    assert text(tab, "#source-word") == "Before"
    press(tab, ["1"])
    all_saved(tab)
    assert ledger.labels(reviewed.project)[made.image_key].label == "good"


def test_a_file_that_is_no_picture_is_told_and_nothing_is_kept(reviewed, new_tab):
    tab = room(reviewed, new_tab)
    tab.evaluate(DROP, [".by-hand", "notes.png", base64.b64encode(b"not a picture").decode()])
    tab.wait_for_function("document.querySelector('.dialog-trouble').textContent.length > 10")
    assert not list(reviewed.project.stage("corrections").folder.glob("*.png"))


def test_what_another_program_saves_comes_back_by_itself(reviewed, new_tab):
    tab = room(reviewed, new_tab)
    tab.get_by_text("Edit in another program").click()
    tab.wait_for_selector(".working-copy:not([hidden])")
    path = corrections.working_copies(reviewed.project.stage("corrections"))[0]
    assert tab.input_value(".working-copy input") == str(path)
    assert path.read_bytes() == png_bytes(portrait(0))
    press(tab, ["Escape"])
    tab.wait_for_selector("dialog.wide", state="detached")
    edited = Image.open(io.BytesIO(path.read_bytes()))
    edited.paste((1, 2, 3), (0, 0, 20, 20))
    edited.save(path)
    tab.evaluate("dispatchEvent(new Event('focus'))")  # the person comes back from the other program
    tab.wait_for_function("document.querySelector('.card .tag')?.textContent === 'repaired'")
    assert "1 correction came back" in text(tab, "#toast")
    (made,) = corrections.by_original(reviewed.project.stage("corrections"))[reviewed.keys[0]]
    assert made.facts["corrects"]["name"] == reviewed.candidates.images[0].name
