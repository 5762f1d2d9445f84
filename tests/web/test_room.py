"""The review in ComfyUI's own page: the gallery on the gate, the room over the graph, and the whole story by keyboard."""

import json
import urllib.request

import pytest
from comfyui_flenwheel.flywheel import ledger, repair
from comfyui_flenwheel.flywheel.project import load_project

from .pages import LOOKS, WORKFLOW, await_review, comfy_page, executed

pytestmark = [pytest.mark.browser, pytest.mark.comfy]

ADD_GATE = """() => {
  const gate = LiteGraph.createNode("FLEN_ReviewGate")
  gate.pos = [100, 100]
  app.graph.add(gate)
}"""


@pytest.fixture(params=LOOKS, ids=[" ".join(look) for look in LOOKS])
def graph(request, server, new_tab):
    tab = comfy_page(server, new_tab, *request.param)
    tab.evaluate("() => app.graph.clear()")
    return tab


def gate_of(graph, reviewed):
    graph.evaluate(ADD_GATE)
    state = {"project": reviewed.project.folder_name, "stage": "enriched", "version": "v1", "counts": {"total": 12, "undecided": 12}}
    executed(graph, {"text": ["x"], "flen_review": [state]})
    graph.wait_for_selector(".flw.compact .card")


def room(graph):
    """The page in the room, once it has the keyboard."""
    graph.wait_for_selector("dialog.flw-room[open]")
    frame = graph.wait_for_selector("dialog.flw-room[open] iframe").content_frame()
    frame.wait_for_selector(".card")
    frame.wait_for_function("document.hasFocus() && ['grid', 'stage'].includes(document.activeElement.id)")
    return frame


def saved(frame):
    frame.wait_for_selector("header .saving[data-state=saved]")


def text(frame, selector):
    return frame.text_content(selector).strip()


def test_the_gallery_on_the_gate_takes_verdicts_and_no_key_reaches_the_graph(graph, reviewed):
    gate_of(graph, reviewed)
    graph.focus(".flw.compact .sink")
    before = graph.evaluate("() => JSON.stringify(app.graph.serialize().nodes.map((node) => [node.pos, node.flags, node.mode]))")
    for key in ["1", "ArrowRight", "3", "2", "u", "Control+z", "y", "r", "p", "h", "w", "m", "Control+v", "Delete"]:
        graph.keyboard.press(key)
    graph.wait_for_function("document.querySelector('.flw.compact .saving-compact').textContent === ''")
    graph.wait_for_function("document.querySelector('.flw.compact .counts').textContent === '10 of 12 to decide'")
    assert reviewed.labels()[:4] == ["good", None, "reject", None]
    after = graph.evaluate("() => JSON.stringify(app.graph.serialize().nodes.map((node) => [node.pos, node.flags, node.mode]))")
    assert before == after and graph.evaluate("() => app.canvas.read_only") is False


def test_the_gallery_is_still_there_after_another_workflow_and_in_a_loaded_one(graph, reviewed):
    gate_of(graph, reviewed)
    graph.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    graph.wait_for_selector(".flw.compact", state="detached")
    graph.evaluate("() => app.extensionManager.command.execute('Workspace.NextOpenedWorkflow')")
    graph.wait_for_selector(".flw.compact .card")
    kept = graph.evaluate("() => app.graph.serialize()")
    assert kept["nodes"][0]["widgets_values"] == ["stop"]
    graph.evaluate("() => app.graph.clear()")
    graph.evaluate("(kept) => app.loadGraphData(kept)", kept)
    graph.wait_for_selector(".flw.compact .card")
    assert graph.evaluate("() => app.graph.nodes[0].size[1]") < 700


def test_the_room_opens_by_key_keeps_its_keys_and_closes(graph, reviewed):
    gate_of(graph, reviewed)
    graph.focus(".flw.compact .sink")
    graph.keyboard.press("Enter")
    frame = room(graph)
    for key in ["1", "3", "Control+z", "Delete"]:
        graph.keyboard.press(key)
    saved(frame)
    assert reviewed.labels()[:2] == ["good", None] and graph.evaluate("() => app.graph.nodes.length") == 1
    graph.keyboard.press("Escape")
    graph.wait_for_selector("dialog.flw-room[open]", state="detached")
    graph.wait_for_function("document.querySelector('.flw.compact .counts').textContent === '11 of 12 to decide'")
    graph.keyboard.press("Alt+Shift+R")
    assert text(room(graph), "#decided") == "1 of 12 decided"


def test_the_sidebar_counts_what_waits_and_leads_there(graph, reviewed):
    graph.wait_for_function("app.extensionManager.sidebarTab.sidebarTabs.find(({ id }) => id === 'flenwheel')?.iconBadge() > 0")
    graph.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('flenwheel')")
    heading = graph.locator(".flw-side h3", has_text=reviewed.project.name)
    heading.wait_for()
    heading.locator("xpath=following-sibling::button[1]").press("Enter")
    assert text(room(graph), "#project-name") == reviewed.project.name


@pytest.mark.slow
@pytest.mark.faces
def test_the_bundled_graph_by_keyboard(server, new_tab, photos):
    """Run, label, continue, and the training set is there: no mouse."""
    graph = comfy_page(server, new_tab, *LOOKS[0])
    load_workflow(graph, "by keyboard", photos, per_source=3)
    press = graph.keyboard.press
    press("Control+Enter")  # Run
    graph.wait_for_function("window.ended", timeout=300_000)
    assert graph.evaluate("window.ended") == "execution_success"
    press("Alt+Shift+R")
    frame = room(graph)
    total = int(text(frame, "#filters [data-filter=all] span"))
    assert total >= 9
    for number in range(total):
        press("3" if number % 5 == 4 else "1")
    saved(frame)
    frame.wait_for_selector("#continue.primary")
    graph.evaluate("window.ended = ''")
    press("Control+Enter")  # Continue
    graph.wait_for_function("window.ended", timeout=300_000)
    assert graph.evaluate("window.ended") == "execution_success"
    folder = frame.evaluate("new URLSearchParams(location.search).get('project')")
    project = load_project(server.base / "output" / "flenwheel" / folder)
    assert (project.stage("training").folder / "metadata.jsonl").is_file()


@pytest.mark.slow
def test_the_story_of_sixty_images_by_keyboard(graph, server, new_tab, tmp_path, request):
    reviewed = await_review(server, f"sixty {request.node.callspec.id}", 60)
    project, total = reviewed.project, 60
    gate_of(graph, reviewed)
    graph.focus(".flw.compact .sink")
    press = graph.keyboard.press
    press("Enter")
    frame = room(graph)

    for number in range(total - 4):  # first pass
        press("2" if number % 10 == 9 else "3" if number % 10 == 5 else "1")
    saved(frame)
    assert len(ledger.labels(project)) == total - 4
    press("u")
    saved(frame)
    assert len(ledger.labels(project)) == total - 5

    press("f")  # all
    press("End")
    for _ in range(4):
        press("Shift+ArrowLeft")
    press("x")  # bulk: the last five, shown first
    frame.wait_for_selector("dialog.bulk .change")
    press("Enter")
    saved(frame)
    assert text(frame, "#decided") == f"All {total} decided" and "on 5 images" in text(frame, "#undo-what")
    press("u")
    saved(frame)
    assert len(ledger.labels(project)) == total - 5
    press("y")
    saved(frame)

    press("/")  # find
    graph.keyboard.type("forest")
    frame.wait_for_function(f"document.querySelectorAll('.card').length < {total}")
    assert all("forest" in prompt for prompt in frame.locator(".card .prompt").all_text_contents())
    press("Escape")
    press("Escape")
    frame.wait_for_selector("#finder", state="hidden")

    press("Enter")  # compare
    press("s")
    frame.wait_for_selector("#divider")
    press(",")
    press("s")
    press("Space")
    frame.wait_for_selector("#stage[data-zoomed=true]")
    press("Space")
    graph.keyboard.down("a")
    frame.wait_for_selector("#stage[data-over=true]")
    graph.keyboard.up("a")
    frame.wait_for_selector("#stage[data-over=false]")
    press("Escape")

    press("2")  # repair
    press("r")
    press("4")
    press("Escape")
    saved(frame)
    key = next(key for key, event in ledger.labels(project).items() if event.reasons == ("background",))
    frame.evaluate("(key) => document.querySelector('#grid').focus()", key)
    if frame.get_attribute("#grid", "aria-activedescendant") != f"candidate-{key}":
        press("ArrowLeft")
    press("e")
    frame.wait_for_function("document.querySelector('.repair textarea')?.value.length > 10")
    press("Control+Enter")
    frame.wait_for_selector("dialog.wide", state="detached")
    assert [order.key for order in repair.orders(project)] == [key]

    frame.focus("#pass")  # strict pass
    graph.keyboard.type("Str")
    frame = room_with(graph, "pass=strict")
    press("1")
    press("x")
    frame.wait_for_selector("#reason-bar.choosing")
    assert text(frame, ".question span").startswith("needed")
    press("1")
    press("Enter")
    saved(frame)
    strict = [passes["strict"] for passes in ledger.standing(project).values() if "strict" in passes]
    assert sorted((event.label, event.reasons) for event in strict) == [("good", ()), ("reject", ("identity",))]

    with graph.expect_download() as download:  # export
        press("p")
        press("Enter")
    report = tmp_path / "report.html"
    download.value.save_as(report)
    assert "data:image" in report.read_text()


def room_with(graph, part):
    graph.wait_for_function(f"document.querySelector('dialog[open] iframe').contentWindow.location.search.includes('{part}')")
    frame = graph.query_selector("dialog.flw-room[open] iframe").content_frame()
    frame.wait_for_selector(".card")
    frame.wait_for_function("document.activeElement.id === 'grid'")
    return frame


def load_workflow(graph, name, photos, *, per_source):
    """The bundled graph as a person opens it, with a name and photos of this test's own."""
    graph.evaluate("(workflow) => app.loadGraphData(workflow)", json.loads(WORKFLOW.read_text()))
    chosen = {
        "FLEN_Project": {"name": name},
        "FLEN_CurateSource": {"folder": str(photos)},
        "FLEN_PromptSet": {"per_source": per_source},
        "FLEN_EnrichDataset": {"megapixels": 0.3},
    }
    graph.evaluate(
        """(chosen) => {
          for (const node of app.graph.nodes) for (const widget of node.widgets ?? []) {
            const value = chosen[node.comfyClass]?.[widget.name]
            if (value !== undefined) widget.value = value
          }
          const { api } = window.comfyAPI.api
          window.ended = ""
          for (const kind of ["execution_success", "execution_error", "execution_interrupted"]) api.addEventListener(kind, () => { window.ended = kind })
        }""",
        chosen,
    )


def test_a_hundred_images_in_five_minutes_with_human_pauses(server, new_tab):
    """Method: a verdict every 2.2 s (a glance and a key) is 3 min 40 s; here the pauses are left out and what the page itself takes is added up."""
    reviewed = await_review(server, "a hundred", 100)
    tab = new_tab(reviewed.address)
    tab.wait_for_selector(".card")
    tab.wait_for_function("document.activeElement.id === 'grid'")
    took = tab.evaluate(
        """async () => {
          const grid = document.querySelector("#grid")
          const started = performance.now()
          for (let number = 0; number < 100; number += 1) {
            grid.dispatchEvent(new KeyboardEvent("keydown", { key: "1232"[number % 4], bubbles: true, cancelable: true }))
            await new Promise((done) => requestAnimationFrame(() => setTimeout(done)))
          }
          return performance.now() - started
        }"""
    )
    tab.wait_for_selector("header .saving[data-state=saved]")
    assert None not in reviewed.labels()
    assert 100 * 2_200 + took < 300_000
    with urllib.request.urlopen(reviewed.address.replace("?project=", "/").replace("&stage=", "/").replace("&version=", "/")) as answer:
        assert json.load(answer)["counts"]["undecided"] == 0
