"""Trainings in the browser: the list in the sidebar, the live monitor on its node and over the graph, stop, go on, and what failed."""

import time

import pytest
from comfyui_flenwheel.flywheel.images import png_bytes, write_whole
from comfyui_flenwheel.flywheel.project import Project, open_project
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training import run, trainset
from comfyui_flenwheel.training.spec import TrainingSpec

from .pages import LOOKS, comfy_page, executed, portrait

pytestmark = [pytest.mark.browser, pytest.mark.comfy]
STATE = "document.querySelector('.monitor')?.dataset.state"
ADD_MONITOR = (
    "() => { const node = LiteGraph.createNode('FLEN_TrainingMonitor'); node.pos = [480, 80]; app.graph.add(node); return node.id }"
)


def trained(server, name: str, *, steps: int, **options) -> tuple[Project, jobs.Job]:
    """A rehearsal in a project of its own on this server's disk, started."""
    project = open_project(
        server.base / "output" / "flenwheel", name, instance_token="ohwx_char", class_noun="person", medium="photographs"
    )
    folder = project.stage("training").folder / "10_ohwx_char person"
    for number in range(3):
        write_whole(folder / f"image_{number}.png", png_bytes(portrait(number)))
        write_whole(folder / f"image_{number}.txt", b"photo of ohwx_char person\n")
    spec = TrainingSpec(
        project=project.folder_name,
        kind="character",
        engine="rehearsal",
        architecture="flux1",
        base_model="flux1-dev.safetensors",
        dataset=project.relative(folder.parent),
        dataset_key=trainset.read(folder.parent).key,
        instance_token="ohwx_char",
        class_noun="person",
        rank=4,
        steps=steps,
        save_every=max(1, steps // 8),
        sample_prompts=("photo of ohwx_char person", "ohwx_char person on a beach", "a person"),
        options=options,
    )
    job = jobs.find_or_create(project.root, spec, jobs.Places(loras=server.base / "models" / "loras"))
    run.start(job)
    return project, job


def until(happened, patience_s=60.0):
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def training(server, request):
    """A slow rehearsal under way, with a few steps behind it."""
    name = request.node.name.removeprefix("test_").replace("[", " ").replace("]", "")[-50:].strip(" _")
    project, job = trained(server, name, steps=4_000, seconds_per_step=0.1)  # longer than any page takes to open
    until(lambda: job.status().step >= 2)
    yield project, job
    run.stop(job)
    assert run.wait(job, 20).state in ("stopped", "done", "failed")


def page_of(server, project, job):
    return f"{server.address}/flenwheel/jobs/page?project={project.folder_name}&job={job.id}"


def test_the_monitor_is_live_stops_and_goes_on(server, training, new_tab):
    project, job = training
    tab = new_tab(page_of(server, project, job))
    tab.wait_for_function(f"{STATE} === 'running' && document.querySelector('.monitor .course')")
    first = tab.evaluate("document.querySelector('.monitor .course').getAttribute('d')")
    tab.wait_for_function("(before) => document.querySelector('.monitor .course').getAttribute('d') !== before", arg=first)
    figures = tab.inner_text(".monitor .figures")
    assert "of 4000" in figures and "steps per s" in figures and "MiB" in figures, figures
    assert tab.locator(f"#jobs .job[aria-current]:has-text('{project.name}')").count() == 1

    tab.get_by_role("button", name="Stop", exact=True).click()
    tab.wait_for_function(f"{STATE} === 'stopped'")
    assert "Stopped as asked" in tab.inner_text(".monitor .say") and job.status().state == "stopped"
    tab.get_by_role("button", name="Go on", exact=True).click()
    tab.wait_for_function(f"{STATE} === 'running'")
    assert job.status().attempts == 2


def test_samples_are_a_matrix_and_open_beside_the_step_before(server, new_tab):
    project, job = trained(server, "Sampled", steps=40, seconds_per_step=0.0)
    assert run.wait(job, 60).state == "done"
    tab = new_tab(page_of(server, project, job))
    tab.wait_for_selector(".matrix tbody tr")
    assert tab.locator(".matrix tbody tr").count() == 8 and tab.locator(".matrix thead th").count() == 4
    tab.wait_for_function("[...document.querySelectorAll('.matrix img')].slice(0, 3).every((image) => image.naturalWidth === 256)")
    tab.locator(".matrix button").first.click()
    captions = tab.locator("dialog figcaption").all_inner_texts()
    assert captions == ["Step 35", "Step 40"]
    tab.keyboard.press("ArrowLeft")
    assert tab.locator("dialog figcaption").all_inner_texts() == ["Step 30", "Step 35"]
    tab.keyboard.press("Escape")
    assert "Sampled-character-v001" in tab.inner_text(".monitor .figures")
    assert tab.locator("#jobs .job.done:has-text('Sampled-character-v001.safetensors')").count() == 1


def test_a_failure_says_what_to_do(server, new_tab):
    project, job = trained(server, "Failing", steps=60, seconds_per_step=0.0, trouble="nan loss")
    run.wait(job, 60)
    tab = new_tab(page_of(server, project, job))
    tab.wait_for_function(f"{STATE} === 'failed'")
    assert "The loss became nan at step 30. Lower the learning rate" in tab.inner_text(".monitor .say")
    assert tab.get_by_role("button", name="Go on", exact=True).is_visible()


@pytest.mark.parametrize(("renderer", "theme"), LOOKS)
def test_sidebar_node_and_room_show_the_same_training(server, training, new_tab, renderer, theme):
    project, job = training
    tab = comfy_page(server, new_tab, renderer, theme)
    tab.evaluate("() => app.graph.clear()")
    tab.evaluate(ADD_MONITOR)
    before = tab.evaluate("() => JSON.stringify(app.graph.serialize().nodes[0].widgets_values)")
    executed(tab, {"text": ["x"], "flen_job": [{"project": project.folder_name, "id": job.id}]})
    tab.wait_for_function(f"{STATE} === 'running' && document.querySelector('.monitor .course')")
    assert tab.evaluate("() => JSON.stringify(app.graph.serialize().nodes[0].widgets_values)") == before, "nothing of it is saved"
    assert tab.evaluate("() => app.graph.nodes[0].size[1]") < 900

    tab.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('flenwheel-jobs')")
    tab.locator(f".flw-side .job:has-text('{project.name}')").click()
    room = tab.wait_for_selector("dialog.flw-room[open] iframe").content_frame()
    room.wait_for_function(f"{STATE} === 'running'")
    room.get_by_role("button", name="Close", exact=True).click()
    tab.wait_for_selector("dialog.flw-room:not([open])", state="attached")


def test_it_says_when_comfyui_is_away_and_goes_on_by_itself(server, training, new_tab):
    project, job = training
    tab = new_tab(page_of(server, project, job))
    tab.wait_for_function(f"{STATE} === 'running'")
    tab.context.route("**/flenwheel/jobs/**", lambda route: route.abort())
    tab.get_by_text("ComfyUI does not answer. The training goes on without it.").wait_for()
    tab.context.unroute("**/flenwheel/jobs/**")
    tab.wait_for_function("!document.querySelector('.monitor .say').textContent.includes('does not answer')")
