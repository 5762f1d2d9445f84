"""The pack's part of ComfyUI's own page: what nodes show, and what they must not leave behind in the workflow."""

import json

import pytest
from PIL import Image

from .pages import comfy_page, executed, portrait, post, text

pytestmark = [pytest.mark.browser, pytest.mark.comfy]

ADD_GATE = """() => {
  const gate = LiteGraph.createNode("FLEN_ReviewGate")
  gate.pos = [100, 100]
  app.graph.add(gate)
  return gate.id
}"""


def gate_text(tab):
    return tab.evaluate("() => app.graph.nodes[0].widgets.find((widget) => widget.name === 'flenwheel_text')?.element.firstChild.value")


@pytest.fixture(params=["classic", "Nodes 2.0"])
def graph(request, server, new_tab):
    """An empty graph in ComfyUI's page."""
    tab = comfy_page(server, new_tab, request.param)
    tab.evaluate("() => app.graph.clear()")
    return tab


def shows(graph, reviewed, undecided):
    counts = {"total": 12, "undecided": undecided, "good": 12 - undecided, "needs_correction": 0, "reject": 0}
    state = {"project": reviewed.project.folder_name, "stage": "enriched", "version": "v1", "counts": counts}
    executed(graph, {"text": ["x"], "flen_review": [state]})


def test_the_gate_shows_its_counts_and_follows_the_review_page(graph, reviewed):
    graph.evaluate(ADD_GATE)
    shows(graph, reviewed, 12)
    graph.wait_for_function("document.querySelector('.flw.compact .counts')?.textContent === '12 of 12 to decide'")
    graph.get_by_text(f"12 of 12 images of {reviewed.project.folder_name} wait for you").wait_for()
    event = {"key": reviewed.keys[0], "label": "good", "reasons": [], "note": ""}
    server = reviewed.address.partition("?")[0]
    post(f"{server}/{reviewed.project.folder_name}/enriched/v1/labels", {"reviewer": "script", "events": [event]})
    graph.wait_for_function("document.querySelector('.flw.compact .counts').textContent === '11 of 12 to decide'")


def test_the_button_opens_the_review_of_this_gate(graph, reviewed):
    graph.evaluate(ADD_GATE)
    shows(graph, reviewed, 12)
    graph.evaluate("() => app.graph.nodes[0].widgets.find((widget) => widget.type === 'button').callback()")
    frame = graph.wait_for_selector("dialog.flw-room[open] iframe").content_frame()
    frame.wait_for_selector(".card")
    assert text(frame, "#project-name") == reviewed.project.name


def test_a_node_that_showed_previews_ends_with_its_picture(graph, server):
    """ComfyUI shows the last preview in the picture's place; it has to be the picture then."""
    (server.base / "input").mkdir(exist_ok=True)
    portrait(1).save(server.base / "input" / "previewed.png")
    seed = 1 + graph.evaluate("() => Number(window.LiteGraph.vueNodesMode)")  # else the second renderer finds all made
    edit = {
        "images": ["1", 0],
        "editor": ["2", 0],
        "prompt": "Make it look like [oil painting|sketch]",
        "base_seed": seed,
        "megapixels": 0,
    }
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "previewed.png"}},
        "2": {"class_type": "FLEN_RehearsalEditor", "inputs": {"spoil_rate": 0.0, "seconds_per_image": 0.0}},
        "3": {"class_type": "FLEN_ImageToImage", "inputs": edit},
    }
    graph.evaluate("(prompt) => app.loadApiJson(prompt, 'edits')", prompt)
    graph.evaluate("() => app.queuePrompt(0)")
    graph.wait_for_function("app.nodeOutputs['3']?.images")
    (sheet,) = graph.evaluate("() => app.nodeOutputs['3'].images")
    with Image.open(server.base / "temp" / sheet["filename"]) as saved:
        size = saved.size
    assert size[1] > size[0], "two pairs, one below the other"
    graph.wait_for_function(
        "([width, height]) => { const [shown] = app.graph.getNodeById(3).imgs ?? []; return shown?.naturalWidth === width && shown.naturalHeight === height }",
        arg=list(size),
    )


def test_nothing_of_it_is_saved(graph, reviewed):
    graph.evaluate(ADD_GATE)
    before = graph.evaluate("() => JSON.stringify(app.graph.serialize().nodes[0].widgets_values)")
    shows(graph, reviewed, 3)
    after = graph.evaluate("() => JSON.stringify(app.graph.serialize().nodes[0].widgets_values)")
    prompt = graph.evaluate("async () => Object.values((await app.graphToPrompt()).output)[0].inputs")
    assert json.loads(before) == json.loads(after) == ["stop"]
    assert prompt == {"when_pending": "stop"}


def test_a_long_text_does_not_blow_the_node_up(graph, reviewed):
    graph.evaluate(ADD_GATE)
    executed(graph, {"text": ["line\n" * 500]})
    graph.wait_for_timeout(500)
    assert graph.evaluate("() => app.graph.nodes[0].size[1]") < 400


def test_a_strange_message_leaves_the_node_as_it_is(graph):
    graph.evaluate(ADD_GATE)
    for output in ({}, None, {"text": [3]}, {"text": "x"}, {"flen_review": []}, {"flen_review": [{"project": 1}]}):
        executed(graph, output)
    assert gate_text(graph) is None and graph.query_selector(".flw.compact") is None
