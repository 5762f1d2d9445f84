"""The review in ComfyUI's own page: the gallery on the gate, the room over the graph, and the whole story by keyboard."""

import json

import pytest
from comfyui_flenwheel.flywheel import ledger, repair
from comfyui_flenwheel.flywheel.project import load_project

from .pages import LOOKS, WORKFLOW, all_saved, comfy_page, executed, text

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


AT_REST = """() => { // timers wait until go(), so that nothing here depends on how fast the machine is
    const [start, waiting] = [window.setTimeout, []]
    window.setTimeout = (...timer) => (waiting.push(timer), -1)
    window.go = () => {
        window.setTimeout = start
        for (const timer of waiting) start(...timer)
    }
}"""


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


def test_the_gallery_on_the_gate_takes_verdicts_and_no_key_reaches_the_graph(graph, reviewed):
    gate_of(graph, reviewed)
    graph.focus(".flw.compact .sink")
    before = graph.evaluate("() => JSON.stringify(app.graph.serialize().nodes.map((node) => [node.pos, node.flags, node.mode]))")
    for key in ["1", "ArrowRight", "3", "2", "u", "Control+z", "y", "r", "p", "h", "w", "m", "Control+v", "Delete"]:
        graph.keyboard.press(key)
    graph.wait_for_function("document.querySelector('.flw.compact .saving-compact').dataset.state === 'saved'")
    graph.wait_for_function("document.querySelector('.flw.compact .counts').textContent === '10 of 12 to decide'")
    assert reviewed.labels()[:4] == ["good", None, "reject", None]
    after = graph.evaluate("() => JSON.stringify(app.graph.serialize().nodes.map((node) => [node.pos, node.flags, node.mode]))")
    assert before == after and graph.evaluate("() => app.canvas.read_only") is False


def test_the_gallery_says_saving_of_what_lasts_and_does_not_flicker(graph, reviewed):
    gate_of(graph, reviewed)
    held = []
    graph.route("**/labels", lambda route: held.append(route))
    graph.evaluate(AT_REST)
    graph.focus(".flw.compact .sink")
    graph.keyboard.press("1")
    graph.wait_for_function("document.querySelector('.flw.compact .saving-compact').dataset.state === 'busy'")
    assert graph.evaluate("document.querySelector('.flw.compact .saving-compact').textContent") == ""
    graph.evaluate("go()")
    graph.wait_for_function("document.querySelector('.flw.compact .saving-compact').textContent === 'Saving 1'")
    held[0].continue_()
    graph.wait_for_function("document.querySelector('.flw.compact .saving-compact').textContent === ''")
    assert reviewed.labels()[0] == "good"


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
    all_saved(frame)
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
@pytest.mark.parametrize("renderer, theme", LOOKS, ids=[" ".join(look) for look in LOOKS])
def test_the_whole_story_by_keyboard(server, new_tab, photos, tmp_path, renderer, theme):
    """The bundled graph: run, label sixty, undo, bulk, filter, compare, repair, strict pass, continue, export. No mouse."""
    graph = comfy_page(server, new_tab, renderer, theme)
    load_workflow(graph, f"by keyboard {theme}", photos, per_source=11)
    press = graph.keyboard.press
    press("Control+Enter")  # Run
    ended(graph)
    press("Alt+Shift+R")
    frame = room(graph)
    assert frame.evaluate("document.documentElement.dataset.theme") == theme
    project = load_project(server.base / "output" / "flenwheel" / frame.evaluate("new URLSearchParams(location.search).get('project')"))
    total = int(text(frame, "#filters [data-filter=all] span"))
    assert total >= 60

    for number in range(total - 4):  # first pass
        press("2" if number % 10 == 9 else "3" if number % 10 == 5 else "1")
    all_saved(frame)
    assert len(ledger.labels(project)) == total - 4
    press("u")
    all_saved(frame)
    assert len(ledger.labels(project)) == total - 5
    bulk(graph, frame, project, total)
    find_and_compare(graph, frame, total)
    repair_one(graph, frame, project)
    strict_pass(graph, project)
    frame = export_report(graph, tmp_path)

    graph.evaluate("window.ended = ''")
    press("Control+Enter")  # Continue
    ended(graph)
    listed = (project.stage("training").folder / "metadata.jsonl").read_text().splitlines()
    verdicts = ledger.labels(project)
    good = [key for key, event in verdicts.items() if event.label == "good"]
    assert len(verdicts) == total and len([line for line in listed if json.loads(line)["key"] in good]) == len(good)


def ended(graph):
    graph.wait_for_function("window.ended", timeout=1_200_000)  # seventy edits and their faces; a minute where nothing else runs
    assert graph.evaluate("window.ended") == "execution_success"


def bulk(graph, frame, project, total):
    press = graph.keyboard.press
    press("f")  # all
    press("End")
    for _ in range(4):
        press("Shift+ArrowLeft")
    press("x")  # the last five, shown first
    frame.wait_for_selector("dialog.bulk .change")
    press("Enter")
    all_saved(frame)
    assert text(frame, "#decided") == f"All {total} decided" and "on 5 images" in text(frame, "#undo-what")
    press("u")
    all_saved(frame)
    assert len(ledger.labels(project)) == total - 5
    press("y")
    all_saved(frame)
    assert len(ledger.labels(project)) == total


def find_and_compare(graph, frame, total):
    press = graph.keyboard.press
    press("/")
    graph.keyboard.type("background")
    frame.wait_for_function(
        f"document.querySelector('#find-count').textContent === '1' && document.querySelectorAll('.card').length < {total}"
    )
    assert all("background" in prompt.lower() for prompt in frame.locator(".card .prompt").all_text_contents())
    press("Escape")
    press("Escape")
    frame.wait_for_selector("#finder", state="hidden")
    press("Enter")  # compare
    frame.wait_for_function("document.querySelector('#picture').naturalWidth && document.querySelector('#source').naturalWidth")
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


def repair_one(graph, frame, project):
    press = graph.keyboard.press
    key = frame.get_attribute("#grid", "aria-activedescendant").removeprefix("candidate-")
    press("2")
    press("r")
    press("4")
    press("Escape")
    all_saved(frame)
    assert ledger.labels(project)[key].reasons == ("background",)
    while frame.get_attribute("#grid", "aria-activedescendant") != f"candidate-{key}":
        press("ArrowLeft")
    press("e")
    frame.wait_for_function("document.querySelector('.repair textarea')?.value.length > 10")
    press("Control+Enter")
    frame.wait_for_selector("dialog.wide", state="detached")
    assert [order.key for order in repair.orders(project)] == [key]


def strict_pass(graph, project):
    """Every image that passed, one of them with a reason it has to have."""
    frame = in_pass(graph, "Str", "pass=strict")
    press = graph.keyboard.press
    press("x")
    frame.wait_for_selector("#reason-bar.choosing")
    assert text(frame, ".question span").startswith("needed")
    press("1")
    press("Enter")
    for _ in range(int(text(frame, "#filters [data-filter=undecided] span"))):
        press("1")
    all_saved(frame)
    strict = [passes["strict"] for passes in ledger.standing(project).values() if "strict" in passes]
    fallen = [(event.label, event.reasons) for event in strict if event.label != "good"]
    assert fallen == [("reject", ("identity",))] and len(strict) > 30
    press("m")
    frame.wait_for_selector("dialog[open] .report")
    press("Escape")


def export_report(graph, tmp_path):
    frame = in_pass(graph, "Fir", "stage=enriched")
    with graph.expect_download() as download:
        graph.keyboard.press("p")
        graph.keyboard.press("Enter")
    report = tmp_path / "report.html"
    download.value.save_as(report)
    assert "data:image" in report.read_text()
    frame.wait_for_selector("dialog[open]", state="detached")
    return frame


def in_pass(graph, typed, part):
    """Choose another pass as the keyboard does."""
    frame = graph.query_selector("dialog.flw-room[open] iframe").content_frame()
    before = frame.evaluate("performance.timeOrigin")
    frame.focus("#pass")
    graph.keyboard.type(typed)
    graph.wait_for_function(
        f"""(before) => {{
          const {{ contentWindow: page }} = document.querySelector('dialog[open] iframe')
          return page.performance.timeOrigin !== before && page.location.search.includes('{part}') && page.document.activeElement?.id === 'grid'
        }}""",
        arg=before,
    )
    return graph.query_selector("dialog.flw-room[open] iframe").content_frame()


def load_workflow(graph, name, photos, *, per_source):
    """The bundled graph as a person opens it, with a name and photos of this test's own."""
    graph.evaluate("(workflow) => app.loadGraphData(workflow)", json.loads(WORKFLOW.read_text()))
    chosen = {
        "FLEN_Project": {"name": name, "pictures_are": "photographs"},
        "FLEN_CurateSource": {"folder": str(photos)},
        "FLEN_PromptSet": {"per_source": per_source},
        "FLEN_EnrichDataset": {"megapixels": 0.1},
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
