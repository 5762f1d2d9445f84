"""For everyone: what axe finds, other languages, a phone. axe-core (MPL-2.0) comes with axe-playwright-python and is only run, not kept."""

import importlib.resources
import json
from pathlib import Path

import pytest

from .pages import comfy_page, executed, press, shown, text

pytestmark = [pytest.mark.browser, pytest.mark.comfy]

BAD = ("serious", "critical")
AXE = "async (where) => (await axe.run(where ?? document)).violations.map(({ id, impact, nodes }) => [impact, id, nodes.slice(0, 3).map(({ html }) => html.slice(0, 160))])"


@pytest.fixture(scope="module")
def axe():
    package = pytest.importorskip("axe_playwright_python", reason="axe-core is missing: install axe-playwright-python")
    return (importlib.resources.files(package.__name__) / "axe.min.js").read_text(encoding="utf-8")


def violations(frame, axe, where=None):
    frame.evaluate(axe)
    return [found for found in frame.evaluate(AXE, where) if found[0] in BAD]


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_nothing_serious_in_the_room(reviewed, new_tab, axe, scheme):
    tab = shown(new_tab(reviewed.address, color_scheme=scheme))
    press(tab, ["2"])
    found = {"grid": violations(tab, axe)}
    for name, keys, ready in (
        ("viewer", ["Enter"], "#viewer:not([hidden])"),
        ("repair", ["e"], "dialog.wide"),
        ("find", ["Escape", "Escape", "/"], "#finder:not([hidden])"),
        ("bulk", ["Escape", "Escape", "Control+a", "3"], "dialog.bulk"),
        ("report", ["Escape", "m"], "dialog .report"),
        ("help", ["Escape", "?"], "#help[open]"),
    ):
        press(tab, keys)
        tab.wait_for_selector(ready)
        tab.wait_for_timeout(300)  # fading in, colours are not yet what they will be
        found[name] = violations(tab, axe)
    tab.goto(reviewed.address.partition("?")[0])
    tab.wait_for_selector(".project")
    found["projects"] = violations(tab, axe)
    assert not any(found.values()), json.dumps(found, indent=1)


def test_axe_finds_nothing_serious_in_what_we_add_to_the_graph(server, reviewed, new_tab, axe):
    graph = comfy_page(server, new_tab, "classic")
    graph.evaluate("() => { app.graph.clear(); app.graph.add(LiteGraph.createNode('FLEN_ReviewGate')) }")
    state = {"project": reviewed.project.folder_name, "stage": "enriched", "version": "v1", "counts": {"total": 12, "undecided": 12}}
    executed(graph, {"text": ["x"], "flen_review": [state]})
    graph.wait_for_selector(".flw.compact .card")
    graph.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('flenwheel')")
    graph.wait_for_selector(".flw-side h3")
    found = violations(graph, axe, ".flw.compact") + violations(graph, axe, ".flw-side")
    assert not found, json.dumps(found, indent=1)


def test_another_language_is_one_file_away(reviewed, new_tab):
    english = json.loads((Path(__file__).parent.parent.parent / "locales" / "en" / "main.json").read_text(encoding="utf-8"))["flenwheel"]
    made_up = {said: f"⟦{said}⟧" for said in english if said != "Undo"}  # one text is not translated yet
    tab = new_tab("about:blank")
    tab.context.route("**/i18n", lambda route: route.fulfill(json={"en": {}, "xx": {"flenwheel": made_up}}))
    tab.context.route("**/settings", lambda route: route.fulfill(json={"Comfy.Locale": "xx"}))
    tab.goto(reviewed.address)
    shown(tab)
    assert tab.evaluate("document.documentElement.lang") == "xx"
    assert text(tab, "#decided") == "⟦0 of 12 decided⟧" and text(tab, "#undo-what") == "Undo"
    assert tab.get_attribute("#grid", "aria-label") == "⟦Candidates⟧"
    press(tab, ["2", "Enter"])
    bare = """() => [...document.querySelectorAll("button, label, h2, h3, dt, figcaption b, option, .tag, .mark span")]
      .filter((node) => node.checkVisibility() && !node.closest("[inert]") && node.textContent.trim())
      .map((node) => node.textContent.trim()).filter((said) => /[a-z]{4}/i.test(said) && !said.includes("⟦"))"""
    left = [said for said in tab.evaluate(bare) if not said.startswith("Undo")]
    assert left == []
