"""A node of ours that failed says why on itself, in ComfyUI's page, until the next run."""

import json

import pytest

from .pages import WORKFLOW, comfy_page

pytestmark = [pytest.mark.browser, pytest.mark.comfy]

BOX = "[role=alert]"
PROJECT = "app.graph.nodes.find(({ type }) => type === 'FLEN_Project')"


@pytest.fixture(params=["classic", "Nodes 2.0"])
def graph(request, server, new_tab):
    """The bundled lap of a character that is new, with a folder of photos that is not there."""
    tab = comfy_page(server, new_tab, request.param)
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    values = {node["type"]: node["widgets_values"] for node in workflow["nodes"]}
    values["FLEN_Project"][0] = f"new here {request.param}"
    values["FLEN_CurateSource"][0] = "no such folder"
    tab.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    return tab


def test_why_a_node_failed_is_said_on_it_until_the_next_run(graph):
    saved = graph.evaluate(f"() => JSON.stringify({PROJECT}.serialize().widgets_values)")
    height = graph.evaluate(f"() => {PROJECT}.size[1]")
    graph.evaluate("() => app.queuePrompt(0)")
    box = graph.wait_for_selector(BOX, state="attached", timeout=60_000)
    words = box.evaluate("(box) => box.textContent")
    assert words.startswith("This project cannot be opened:") and "choose it under pictures_are" in words and "Traceback" not in words
    assert graph.evaluate(f"() => {PROJECT}.widgets.at(-1).name") == "flenwheel_problem", "on the node that failed"
    assert graph.evaluate(f"() => JSON.stringify({PROJECT}.serialize().widgets_values)") == saved, "nothing of it is saved"
    assert graph.evaluate(f"() => {PROJECT}.size[1]") >= height

    graph.evaluate(f"() => {{ {PROJECT}.widgets.find(({{ name }}) => name === 'pictures_are').value = 'photographs' }}")
    graph.evaluate("() => app.queuePrompt(0)")
    graph.wait_for_function("(box) => document.querySelector(box)?.textContent.includes('no such folder')", arg=BOX, timeout=60_000)
    assert len(graph.query_selector_all(BOX)) == 1, "the first one is gone"
    assert graph.evaluate(f"() => {PROJECT}.widgets.some(({{ name }}) => name === 'flenwheel_problem')") is False
    assert graph.evaluate(f"() => {PROJECT}.size[1]") == height


def test_what_is_not_ours_or_not_there_is_left_alone(graph):
    tell = "(told) => window.comfyAPI.api.api.dispatchCustomEvent('execution_error', told)"
    identity = graph.evaluate(f"() => {PROJECT}.id")
    for told in (
        None,
        {"node_id": str(identity), "node_type": "KSampler", "exception_message": "x"},
        {"node_id": str(identity), "node_type": "FLEN_Project", "exception_message": 3},
        {"node_id": "99:1", "node_type": "FLEN_Project", "exception_message": "x"},
    ):
        graph.evaluate(tell, told)
    assert graph.query_selector(BOX) is None
    graph.evaluate(tell, {"node_id": str(identity), "node_type": "FLEN_Project", "exception_message": "<b>line</b>\n- " + "word " * 900})
    box = graph.wait_for_selector(BOX, state="attached")
    assert box.evaluate("(box) => box.children.length") == 0, "words, not markup"
    graph.wait_for_timeout(500)
    assert graph.evaluate(f"() => {PROJECT}.size[1]") < 500, "a long one is scrolled"
