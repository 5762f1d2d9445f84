"""The live histogram on Identity Filter, in both of ComfyUI's renderers, on a graph that was really run."""

import json
import time

import pytest

from .pages import WORKFLOW, comfy_page

pytestmark = [pytest.mark.browser, pytest.mark.comfy, pytest.mark.faces]

SPREAD = "[data-flenwheel='spread']"
SET = """([name, value]) => {
  const node = app.graph.nodes.find(({ type }) => type === "FLEN_IdentityFilter")
  const widget = node.widgets.find((widget) => widget.name === name)
  widget.value = value
  widget.callback(value)
}"""


@pytest.fixture(params=["classic", "Nodes 2.0"])
def page(request, server, new_tab, photos):
    """The bundled check, run from the page on the demo portraits."""
    tab = comfy_page(server, new_tab, request.param)
    workflow = json.loads((WORKFLOW.parent / "identity_check.json").read_text(encoding="utf-8"))
    values = {node["type"]: node["widgets_values"] for node in workflow["nodes"]}
    values["FLEN_Project"][0], values["FLEN_CurateSource"][0] = f"live {request.param}", str(photos)
    values["FLEN_Project"][-1] = "photographs"
    tab.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    tab.evaluate("() => app.queuePrompt(0)")
    tab.wait_for_selector(f"{SPREAD} div", state="attached", timeout=120_000)
    return tab


def says(tab, words):
    until = time.monotonic() + 15
    while words not in (text := tab.evaluate("(where) => document.querySelector(where)?.textContent ?? ''", SPREAD)):
        assert time.monotonic() < until, text
        tab.wait_for_timeout(50)


def test_the_figures_follow_the_widgets(page):
    says(page, "6 at or above 0.60, 1 below, 0 not measurable, of 7.")
    page.evaluate(SET, ["threshold", 0.3])
    says(page, "7 at or above 0.30, 0 below")
    page.evaluate(SET, ["threshold", 0.6])
    page.evaluate(SET, ["keep", "the best of them, a number"])
    page.evaluate(SET, ["amount", 1])
    says(page, "1 at or above 0.98")
    says(page, "only the best may stay")
    page.evaluate(SET, ["keep", "the best of them, a percentage"])
    page.evaluate(SET, ["amount", 200])
    says(page, "200 per cent cannot be kept")
    page.evaluate(SET, ["amount", 50])
    says(page, "4 at or above")
    heights = page.evaluate(
        f"() => [...document.querySelectorAll(\"{SPREAD} [role='img'] > div > div\")].map((bar) => bar.getBoundingClientRect().height)"
    )
    assert max(heights) > 20, "the bars are drawn"
    saved = page.evaluate("() => app.graph.serialize().nodes.find(({ type }) => type === 'FLEN_IdentityFilter').widgets_values")
    assert saved == [0.6, "pass on", "the best of them, a percentage", 50], "nothing of it is saved"
