"""The review page in a real browser on the real server. What counts is what is on disk afterwards."""

import io
import json
import urllib.request

import pytest
from comfyui_flenwheel.flywheel import ledger, review
from PIL import Image, ImageStat

from .pages import all_saved, await_review, press, shown, text, undisturbed

pytestmark = [pytest.mark.browser, pytest.mark.comfy]

LABEL = {"1": "good", "g": "good", "2": "needs_correction", "c": "needs_correction", "3": "reject", "x": "reject"}


def test_twelve_are_labelled_with_the_keyboard_alone(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    keys = "123gcx321xcg"
    press(tab, keys)
    all_saved(tab)
    assert reviewed.labels() == [LABEL[key] for key in keys]
    assert text(tab, "#decided") == "All 12 decided"
    assert tab.is_enabled("#continue.primary")


def test_arrows_move_and_never_decide(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, ["ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "End", "Home", "ArrowRight"])
    assert tab.get_attribute("#grid", "aria-activedescendant") == f"candidate-{reviewed.keys[1]}"
    assert text(tab, "#decided") == "0 of 12 decided"
    press(tab, "1")
    all_saved(tab)
    assert reviewed.labels()[:3] == [None, "good", None]


def test_the_pointer_finds_buttons_on_the_card_it_is_over(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    for place, label in ((4, "good"), (2, "reject")):
        tab.hover(f".card[data-key='{reviewed.keys[place]}']")
        tab.click(f".card[data-key='{reviewed.keys[place]}'] .quick.{label}")
    all_saved(tab)
    assert [reviewed.labels()[place] for place in (4, 2)] == ["good", "reject"] and reviewed.labels().count(None) == 10
    assert tab.locator(".quicks").count() == 1, "one set for all cards"


def test_nothing_moves_on_the_screen_while_a_verdict_is_saved(reviewed, new_tab):
    """An animation, however small, has the whole page drawn anew when it begins and ends: the verdict then waits for the processor."""
    tab = shown(new_tab(reviewed.address, visitor="moved", reduced_motion="no-preference"))
    held = []
    tab.route("**/labels", lambda route: held.append(route))
    press(tab, "1")
    tab.wait_for_function("document.querySelector('header .saving').dataset.state === 'busy'")
    assert tab.evaluate("document.getAnimations().length") == 0
    tab.wait_for_function("document.querySelector('header .saving').textContent === 'Saving 1'")  # said of what lasts
    held[0].continue_()
    all_saved(tab)


def test_the_rows_around_the_window_come_a_moment_after_it(server, new_tab):
    many = await_review(server, "rows around", 120)
    tab = shown(new_tab(many.address))
    tab.evaluate("document.querySelector('#grid').scrollTop = 1500")
    tab.wait_for_function("document.querySelector('#grid').scrollTop === 1500")
    outside = """() => {
        const window = document.querySelector('#grid').getBoundingClientRect()
        const rows = [...document.querySelectorAll('#grid .row')].map((row) => row.getBoundingClientRect())
        return [rows.filter(({ bottom }) => bottom < window.top).length, rows.filter(({ top }) => top > window.bottom).length]
    }"""
    tab.wait_for_function(f"JSON.stringify(({outside})()) === '[2,2]'")


def test_undo_goes_back_step_by_step_and_is_written_down(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, "13")
    press(tab, ["u", "Control+z", "u"])
    all_saved(tab)
    assert reviewed.labels() == [None] * 12
    assert [(event.label, event.undone) for event in ledger.history(reviewed.project, reviewed.keys[1])] == [("reject", True)]
    assert tab.get_attribute("#grid", "aria-activedescendant") == f"candidate-{reviewed.keys[0]}"
    assert tab.is_disabled("#undo")


def test_reasons_and_a_note_without_the_mouse(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, ["x", "r", "1", "6", "1", "Enter", "ArrowLeft", "t"])
    tab.keyboard.type("the left hand has 3 thumbs")
    press(tab, ["Escape", "Escape"])
    all_saved(tab)
    stored = review.labels(reviewed.project)[reviewed.keys[0]]
    assert (stored.label, stored.reasons, stored.note) == ("reject", ("artefact",), "the left hand has 3 thumbs")
    assert sum(label is not None for label in reviewed.labels()) == 1


def test_the_large_view_labels_and_moves_on(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, ["Space", "1", "2"])
    assert text(tab, "#viewer-place") == "3 of 12"
    tab.wait_for_function(
        "document.querySelector('#picture').naturalWidth === 192 && document.querySelector('#source').naturalWidth === 192"
    )
    press(tab, ["Escape"])
    tab.wait_for_selector("#viewer", state="hidden")
    all_saved(tab)
    assert reviewed.labels()[:3] == ["good", "needs_correction", None]


def test_a_reload_keeps_every_verdict_and_shows_what_is_left(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, "1231")
    all_saved(tab)
    tab.reload()
    shown(tab)
    assert text(tab, "#decided") == "4 of 12 decided"
    assert tab.locator(".card").count() == 8
    assert tab.get_attribute("#grid", "aria-activedescendant") == f"candidate-{reviewed.keys[4]}"


@pytest.mark.parametrize("goes", ["stays", "reloads", "is closed"])
def test_nothing_is_lost_while_the_server_is_away(reviewed, new_tab, goes):
    tab = shown(new_tab(reviewed.address))
    press(tab, "12")
    all_saved(tab)
    tab.context.route("**/labels", lambda route: route.abort())
    press(tab, "3112")
    tab.wait_for_selector("header .saving[data-state=away]")
    assert "does not answer" in text(tab, "#trouble-text")
    press(tab, "33")
    if goes == "reloads":
        tab.on("dialog", lambda dialog: dialog.accept())
        tab.reload()
    elif goes == "is closed":
        tab.close()
        tab = new_tab(reviewed.address)
    tab.wait_for_function("document.querySelector('#decided').textContent === '8 of 12 decided'")
    assert reviewed.labels()[2:] == [None] * 10
    tab.context.unroute("**/labels")
    all_saved(tab)
    assert reviewed.labels() == ["good", "needs_correction", "reject", "good", "good", "needs_correction", "reject", "reject"] + [None] * 4
    assert tab.evaluate("Object.keys(localStorage).filter((name) => name.includes('outbox'))") == []


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_is_killed_in_a_burst(mortal, new_tab):
    server, reviewed = mortal
    tab = shown(new_tab(reviewed.address))
    keys = "1231231231" * 4
    press(tab, keys[:25])
    server.kill()
    press(tab, keys[25:])
    tab.wait_for_selector("header .saving[data-state=away]")
    assert text(tab, "#decided") == "All 40 decided"
    assert tab.is_disabled("#continue")
    server.start()
    all_saved(tab)
    assert reviewed.labels() == [LABEL[key] for key in keys]


def test_an_answer_that_got_lost_loses_no_verdict(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    answers = []

    def swallow_the_first(route):
        answers.append(route.fetch())
        route.abort() if len(answers) == 1 else route.fulfill(response=answers[-1])

    tab.context.route("**/labels", swallow_the_first)
    press(tab, "13")
    tab.wait_for_function("document.querySelector('#decided').textContent === '2 of 12 decided'")
    all_saved(tab)
    assert len(answers) >= 2
    assert reviewed.labels()[:3] == ["good", "reject", None]


def test_two_tabs_and_a_script_see_the_same(reviewed, new_tab):
    one, two = shown(new_tab(reviewed.address)), shown(new_tab(reviewed.address, visitor="two"))
    press(one, "11")
    two.wait_for_function("document.querySelector('#decided').textContent === '2 of 12 decided'")
    press(two, ["End", "3"])
    one.wait_for_function("document.querySelector('#decided').textContent === '3 of 12 decided'")
    event = {"key": reviewed.keys[5], "label": "needs_correction", "reasons": ["hands"], "note": ""}
    post(reviewed, {"reviewer": "script", "events": [event]})
    for tab in (one, two):
        tab.wait_for_function("document.querySelector('#decided').textContent === '4 of 12 decided'")
    assert reviewed.labels() == ["good", "good", None, None, None, "needs_correction", None, None, None, None, None, "reject"]


def post(reviewed, body):
    address = reviewed.address.partition("?")[0] + f"/{reviewed.project.folder_name}/enriched/v1/labels"
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_a_refused_verdict_is_told_and_holds_up_no_other(reviewed, new_tab):
    tab = undisturbed(new_tab, reviewed.address)
    reviewed.candidates.path(reviewed.candidates.images[1]).unlink()
    press(tab, "131")
    all_saved(tab)
    tab.wait_for_selector("#trouble:not([hidden])")
    assert "not accepted" in text(tab, "#trouble-text")
    assert reviewed.labels()[:3] == ["good", None, "good"]


def test_a_phone_has_everything_within_390_pixels(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address, viewport={"width": 390, "height": 844}, has_touch=True))
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.get_attribute("#grid", "aria-colcount") == "2"
    tab.tap(".card >> nth=0")
    tab.tap(".verdict.reject")
    tab.tap(".verdict.good")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.tap("#viewer-close")
    all_saved(tab)
    assert reviewed.labels()[:3] == ["reject", "good", None]


def test_it_follows_the_dark_and_light_of_the_system(reviewed, new_tab):
    def brightness(scheme):
        tab = shown(new_tab(reviewed.address, visitor=scheme, color_scheme=scheme))
        return ImageStat.Stat(Image.open(io.BytesIO(tab.screenshot())).convert("L")).mean[0]

    assert brightness("dark") < 100 < 150 < brightness("light")


def test_filters_count_and_the_view_holds_still_while_deciding(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, "1")
    assert tab.locator(".card").count() == 12
    tab.click("#hide-decided")
    assert tab.locator(".card").count() == 11
    tab.click("#filters [data-filter=good]")
    assert tab.locator(".card").count() == 1
    assert text(tab, "#filters [data-filter=good] span") == "1"


def test_the_keys_stay_with_the_images_after_a_click(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    tab.click("#filters [data-filter=all]")
    tab.select_option("#order", "similarity")
    press(tab, ["1", "Space"])
    tab.wait_for_selector("#viewer:not([hidden])")
    tab.click(".verdict.reject")
    press(tab, ["Enter"])
    tab.wait_for_selector("#viewer", state="hidden")
    all_saved(tab)
    assert reviewed.labels()[:3] == ["good", "reject", None]


def test_the_help_shows_every_key_and_lets_no_verdict_through(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, ["?", "1", "x"])
    assert tab.locator("#help dt kbd").count() >= 15
    press(tab, ["Escape"])
    tab.wait_for_selector("#help", state="hidden")
    press(tab, ["2"])
    all_saved(tab)
    assert reviewed.labels()[:2] == ["needs_correction", None]


def test_the_list_of_projects_leads_to_what_waits(reviewed, new_tab):
    tab = new_tab(reviewed.address.partition("?")[0])
    tab.wait_for_selector(".project")
    assert not tab.is_visible("#room")
    tab.click(f".project:has(h2:text-is('{reviewed.project.name}')) a")
    assert text(shown(tab), "#project-name") == reviewed.project.name


def test_an_unknown_project_is_said_in_words(server, new_tab):
    tab = new_tab(f"{server.address}/flenwheel/review?project=nobody&stage=enriched&version=v1")
    tab.wait_for_selector("#trouble:not([hidden])")
    assert "nobody" in text(tab, "#trouble-text")


def test_continue_says_what_stands_in_its_way(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, "1" * 12)
    all_saved(tab)
    tab.click("#continue")  # this project's candidates came from no graph
    tab.wait_for_selector("#trouble:not([hidden])")
    assert "run the graph" in text(tab, "#trouble-text").lower()


def test_everything_has_a_name_and_the_grid_its_roles(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, ["Enter", "2"])
    nameless = """() => [...document.querySelectorAll("button, input, select, textarea, a[href], [role=slider], iframe")]
      .filter((node) => node.checkVisibility() && !node.closest("[inert]"))
      .filter((node) => !(node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length || node.title))
      .map((node) => node.outerHTML.slice(0, 120))"""
    assert tab.evaluate(nameless) == []
    press(tab, ["Escape", "/"])
    assert tab.evaluate(nameless) == []
    current = "document.getElementById(document.querySelector('#grid').getAttribute('aria-activedescendant'))"
    assert tab.evaluate(f"{current}.matches('[role=grid] [role=row] > [role=gridcell][aria-selected=true][aria-label]')")
    assert tab.evaluate("document.querySelector('#decided').getAttribute('aria-live')") == "polite"


CONTRAST = """() => {
  const probe = document.body.appendChild(document.createElement("i"))
  const light = (name) => {
    probe.style.color = `var(--${name})`
    const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    const [red, green, blue] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
  }
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05)
  const pairs = ["text", "soft", "good", "needs_correction", "reject"].flatMap((name) => ["ground", "raised", "card"].map((ground) => [name, ground]))
  pairs.push(["on-colour", "good"], ["on-colour", "needs_correction"], ["on-colour", "reject"])
  return pairs.map(([a, b]) => [a, b, ratio(a, b)]).filter(([, , found]) => found < 4.5)
}"""


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_every_colour_of_text_stands_out(reviewed, new_tab, scheme):
    assert shown(new_tab(reviewed.address, color_scheme=scheme)).evaluate(CONTRAST) == []


def test_a_swipe_is_a_verdict_and_half_a_swipe_is_none(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address, viewport={"width": 390, "height": 844}, has_touch=True))
    tab.tap(".card >> nth=0")
    tools = tab.context.new_cdp_session(tab)
    box = tab.locator("#stage").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for dx, dy in ((30, 0), (140, 0), (-140, 0), (0, -160)):
        touch = lambda kind, x=0.0, y=0.0: tools.send(  # noqa: E731
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [] if kind == "touchEnd" else [{"x": middle[0] + x, "y": middle[1] + y}]},
        )
        touch("touchStart")
        for part in (0.3, 0.6, 1.0):
            touch("touchMove", dx * part, dy * part)
        touch("touchEnd")
    all_saved(tab)
    assert reviewed.labels()[:4] == ["good", "reject", "needs_correction", None]


def test_an_earlier_visit_is_undone_and_its_place_found(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, "121")
    all_saved(tab)
    tab.close()
    tab = shown(new_tab(reviewed.address, visitor="later"))
    assert "stopped at 3 of 12" in text(tab, "#toast")
    assert tab.get_attribute("#grid", "aria-activedescendant") == f"candidate-{reviewed.keys[3]}"
    press(tab, "uu")
    tab.wait_for_function("document.querySelector('#decided').textContent === '1 of 12 decided'")
    all_saved(tab)
    press(tab, "y")
    tab.wait_for_function("document.querySelector('#decided').textContent === '2 of 12 decided'")
    all_saved(tab)
    assert reviewed.labels()[:3] == ["good", "needs_correction", None]


def test_a_reload_keeps_filter_place_and_large_view(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, ["f", "End", "Enter"])
    tab.wait_for_selector("#viewer:not([hidden])")
    tab.reload()
    tab.wait_for_selector("#viewer:not([hidden])")
    assert text(tab, "#viewer-place") == "12 of 12"
    assert tab.get_attribute("#filters [data-filter=all]", "aria-pressed") == "true"


def test_a_blind_pass_shows_nothing_that_sways(reviewed, new_tab):
    tab = new_tab(reviewed.address + "&blind=1")
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    shown(tab)
    press(tab, ["Enter", "1"])
    all_saved(tab)
    tab.wait_for_timeout(500)
    assert not [address for address in asked if "/evidence/" in address or "/history/" in address]
    assert not tab.is_visible(".similarity") and not tab.is_visible("#history") and not tab.is_visible("#source-figure")
    assert sorted(filter(None, reviewed.labels())) == ["good"]
