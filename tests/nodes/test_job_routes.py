"""The routes of trainings: ids only, nothing outside a project, errors in words, no process but our own worker."""

import io
import json
import urllib.error
import urllib.request

import pytest
from comfyui_flenwheel.training import run
from comfyui_flenwheel.training.job import Job, jobs_of
from PIL import Image

from . import comfy
from .test_train import graph, project_in, ran

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def done(server):
    """A finished training: project and job."""
    project = project_in(server, "Routes")
    ran(server, graph("Routes", steps=24))
    (job,) = jobs_of(project)
    assert run.wait(job, 60).state == "done"
    return project, job


def get(server, path, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(server.address + path, headers=headers)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_details_come_whole_and_then_only_what_is_new(server, done):
    _, job = done
    where = f"/flenwheel/jobs/Routes/{job.id}"
    status, told = comfy.call(server.address, where)
    assert status == 200 and told["state"] == "done" and told["losses"][0] == list(range(1, 25)) and told["from"] == 0
    assert (
        told["prompts"] == list(job.spec.sample_prompts) and len(told["samples"]) == 24 and told["registered"].endswith("v001.safetensors")
    )
    assert told["peak_bytes"] > 10 << 20 and told["damaged"] == 0 and told["folder"] == str(job.folder)
    again = comfy.call(server.address, f"{where}?since={told['events']}")[1]
    assert again["losses"] == [[], []] and again["from"] == told["events"]
    assert comfy.call(server.address, f"{where}?since=99999")[1]["from"] == 0, "a shorter file is read from the beginning"


def test_samples_in_any_size(server, done):
    _, job = done
    where = f"/flenwheel/jobs/Routes/{job.id}/sample/3/0"
    assert Image.open(io.BytesIO(get(server, where)[1])).size == (256, 256)
    assert Image.open(io.BytesIO(get(server, f"{where}?size=64")[1])).size == (64, 64)
    assert get(server, f"{where}?size=9999")[0] == 400
    assert get(server, f"/flenwheel/jobs/Routes/{job.id}/sample/4/0")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/flenwheel/jobs/Nobody/{id}",
        "/flenwheel/jobs/Routes/0123456789ab",
        "/flenwheel/jobs/Routes/..",
        "/flenwheel/jobs/Routes/..%2f..%2f..",
        "/flenwheel/jobs/..%2f..%2f/{id}",
        "/flenwheel/jobs/Routes/{id}/sample/x/0",
        "/flenwheel/jobs/Routes/{id}/config/..%2fjob.json",
        "/flenwheel/jobs/Routes/{id}/config/nothing.toml",
        "/flenwheel/web/..%2fnodes/routes.py",
        "/flenwheel/web/jobs/..%2f..%2fREADME.md",
        "/flenwheel/web/locales/main.json",
    ],
)
def test_what_is_not_there_or_outside_is_404(server, done, path):
    assert get(server, path.format(id=done[1].id))[0] in (404, 400)


def test_deeds_want_json_and_sense(server, done):
    _, job = done
    where = f"/flenwheel/jobs/Routes/{job.id}"
    assert get(server, "/flenwheel/jobs", Host="evil.example")[0] == 403
    request = urllib.request.Request(server.address + where + "/stop", b"{}", {"Content-Type": "text/plain"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 415
    refused.value.close()
    assert comfy.call(server.address, f"{where}/start", {})[0] == 409, "it is done"
    assert comfy.call(server.address, f"{where}/hold", {"hold": "yes"})[0] == 400
    assert comfy.call(server.address, f"{where}/stop", {})[1]["state"] == "done", "stopping what is done changes nothing"


def test_only_a_person_at_this_machine_may_open_the_folder(server, done):
    where = f"/flenwheel/jobs/Routes/{done[1].id}"
    by_proxy = json.loads(get(server, where, **{"X-Forwarded-For": "192.0.2.7"})[1])
    assert by_proxy["can_open"] is False
    request = urllib.request.Request(
        server.address + where + "/open", b"{}", {"Content-Type": "application/json", "X-Forwarded-For": "192.0.2.7"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 409 and b"at the machine that ComfyUI runs on" in refused.value.read()
    refused.value.close()


def test_a_folder_changed_by_hand_is_listed_with_what_is_wrong_and_harms_no_other(server, done):
    project, job = done
    for name, text in (("aaaaaaaaaaaa", "{"), ("bbbbbbbbbbbb", '{"spec": {}}'), ("cccccccccccc", (job.folder / "job.json").read_text())):
        (project.root / "jobs" / name).mkdir(exist_ok=True)
        (project.root / "jobs" / name / "job.json").write_text(text)
    broken = Job(project.root / "jobs" / "bbbbbbbbbbbb")
    (broken.folder / "events.jsonl").write_text('nonsense\n{"kind": "started"}\n[]\n')
    listed = {told["id"]: told for told in comfy.call(server.address, "/flenwheel/jobs")[1]["jobs"] if told["project"] == "Routes"}
    assert listed[job.id]["problem"] == "" and listed[job.id]["state"] == "done"
    assert "cannot be read" in listed["aaaaaaaaaaaa"]["problem"] and "cannot be read" in listed["bbbbbbbbbbbb"]["problem"]
    assert "changed by hand" in listed["cccccccccccc"]["problem"]
    status, told = comfy.call(server.address, "/flenwheel/jobs/Routes/bbbbbbbbbbbb")
    assert status == 200 and told["damaged"] == 3
    assert comfy.call(server.address, "/flenwheel/jobs/Routes/cccccccccccc/start", {})[0] == 409
    for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"):
        (project.root / "jobs" / name / "job.json").unlink()


def test_stop_and_go_on_without_the_graph(server):
    project = project_in(server, "Deeds")
    ran(server, graph("Deeds", "seconds_per_step = 0.05", steps=80))
    (job,) = jobs_of(project)
    where = f"/flenwheel/jobs/Deeds/{job.id}"
    assert comfy.call(server.address, f"{where}/start", {})[0] == 409, "it runs already"
    assert comfy.call(server.address, f"{where}/stop", {})[1]["state"] in ("stopping", "stopped")
    assert run.wait(job, 20).state == "stopped"
    assert comfy.call(server.address, f"{where}/start", {"hours": "whenever"})[0] == 409
    assert comfy.call(server.address, f"{where}/try")[0] == 409, "nothing to try yet"
    assert comfy.call(server.address, f"{where}/start", {"hours": ""})[1]["state"] in ("queued", "running")
    assert run.wait(job, 60).state == "done" and job.status().attempts == 2
    scene = comfy.call(server.address, f"{where}/try")[1]
    loader = next(node for node in scene["workflow"]["nodes"] if node["title"] == "This LoRA")
    assert loader["widgets_values"][0] == scene["name"] == "flenwheel/Deeds/Deeds-character-v001.safetensors"
    assert "ohwx_char person" in json.dumps(scene["workflow"])
