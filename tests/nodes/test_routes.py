"""The review's routes against the real server: what they answer, and what they refuse."""

import http.client
import json
from contextlib import closing
from urllib.parse import quote

import pytest
from comfyui_flenwheel.flywheel import review
from comfyui_flenwheel.flywheel.candidates import adopt
from comfyui_flenwheel.flywheel.project import open_project
from PIL import Image

from . import comfy

pytestmark = pytest.mark.comfy


@pytest.fixture
def candidates(server, request):
    name = f"r {request.node.name[5:40]}"
    project = open_project(server.base / "output" / "flenwheel", name, instance_token="ohwx_char", class_noun="person")
    return adopt(
        project.stage("enriched"),
        [Image.new("RGB", (64, 48), (number, 0, 0)) for number in range(4)],
        caption="photo of ohwx_char person",
        prompt="a",
    )


def raw(server, method, path, body=b"", headers=None):
    """A request as written: no tidying of the path."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.putrequest(method, path, skip_host=bool(headers and "Host" in headers))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def test_label_change_withdraw_and_history(server, candidates):
    name, key = candidates.project.folder_name, candidates.images[0].key
    for verdict, reasons in (("reject", ["hands"]), ("good", []), (None, [])):
        events = [{"key": key, "label": verdict, "reasons": reasons, "note": "n"}]
        status, answer = comfy.call(server.address, comfy.review_path(name) + "/labels", {"reviewer": "Ada", "events": events})
        assert status == 200 and answer["revision"]
    _, history = comfy.call(server.address, f"{comfy.review_path(name)}/history/{key}")
    assert [event["label"] for event in history["events"]] == ["reject", "good", None]
    assert history["events"][0] | {"at": ""} == {
        "label": "reject",
        "reasons": ["hands"],
        "note": "n",
        "at": "",
        "reviewer": "Ada",
        "origin": "person",
    }
    assert comfy.review(server.address, name)["counts"] == {"total": 4, "undecided": 4, "good": 0, "needs_correction": 0, "reject": 0}


def test_one_wrong_verdict_stores_none_and_names_it(server, candidates):
    name = candidates.project.folder_name
    events = [
        {"key": candidates.images[0].key, "label": "good"},
        {"key": "feedfeedfeedfeed", "label": "good"},
        {"key": candidates.images[1].key, "label": "fine"},
    ]
    status, answer = comfy.call(server.address, comfy.review_path(name) + "/labels", {"events": events})
    assert status == 400 and "feedfeedfeedfeed" in answer["error"] and "'fine'" in answer["error"]
    assert review.labels(candidates.project) == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"events": 1}',
        b'{"events": [1]}',
        b'{"events": [{"key": "x", "reasons": 3}]}',
        b'{"events": [], "origin": "folder"}',
    ],
)
def test_a_body_of_another_shape_is_refused(server, candidates, body):
    path = comfy.review_path(candidates.project.folder_name) + "/labels"
    status, answer, _ = raw(server, "POST", path, body, {"Content-Type": "application/json"})
    assert status == 400 and json.loads(answer)["error"]


def test_a_verdict_sent_again_is_recorded_once(server, candidates):
    key = candidates.images[0].key
    body = {"events": [{"id": "lost-answer", "key": key, "label": "good"}]}
    answers = [comfy.call(server.address, comfy.review_path(candidates.project.folder_name) + "/labels", body) for _ in range(2)]
    assert answers[0] == answers[1] and answers[0][0] == 200
    assert len(review.history(candidates.project, key)) == 1


def test_a_note_is_never_cut(server, candidates):
    body = {"events": [{"key": candidates.images[0].key, "label": "good", "note": "x" * 2001}]}
    status, answer = comfy.call(server.address, comfy.review_path(candidates.project.folder_name) + "/labels", body)
    assert status == 400 and "2000 characters" in answer["error"] and not review.labels(candidates.project)


def test_another_content_type_is_refused(server, candidates):
    path = comfy.review_path(candidates.project.folder_name) + "/labels"
    status, answer, _ = raw(server, "POST", path, b'{"events": []}', {"Content-Type": "text/plain"})
    assert status == 415 and b"application/json" in answer


def test_a_foreign_name_for_this_machine_is_refused(server, candidates):
    path = comfy.review_path(candidates.project.folder_name)
    assert raw(server, "GET", path, headers={"Host": "evil.example"})[0] == 403
    assert raw(server, "GET", path, headers={"Host": f"localhost:{server.port}"})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/flenwheel/review/../enriched/v1", "/flenwheel/review/%2e%2e/enriched/v1", "/flenwheel/review/..%2f..%2fx/enriched/v1",
        "/flenwheel/review/{name}/cache/v1", "/flenwheel/review/{name}/enriched/v0", "/flenwheel/review/{name}/enriched/v1%2f..",
        "/flenwheel/review/nobody/enriched/v1", "/flenwheel/image/{name}/enriched/v1/..%2f..%2f..%2fproject.json",
        "/flenwheel/image/{name}/enriched/v1/0000000000000000", "/flenwheel/review/files/..%2freview.html", "/flenwheel/review/files/%2e%2e",
    ],
)  # fmt: skip
def test_addresses_that_leave_the_project_lead_nowhere(server, candidates, path):
    status, answer, _ = raw(server, "GET", path.format(name=quote(candidates.project.folder_name)))
    assert status in (400, 404) and b"instance_token" not in answer


def test_images_come_whole_or_small_and_may_be_kept(server, candidates):
    name, image = quote(candidates.project.folder_name), candidates.images[0]
    status, body, headers = raw(server, "GET", f"/flenwheel/image/{name}/enriched/v1/{image.key}")
    assert status == 200 and body == candidates.path(image).read_bytes() and "immutable" in headers["Cache-Control"]
    status, body, headers = raw(server, "GET", f"/flenwheel/image/{name}/enriched/v1/{image.key}?size=thumb")
    assert status == 200 and body[8:12] == b"WEBP" and headers["Content-Type"] == "image/webp"


def test_a_review_without_a_graph_says_what_to_do(server, candidates):
    status, answer = comfy.call(server.address, comfy.review_path(candidates.project.folder_name) + "/continue", {})
    assert status == 409 and "Review Gate" in answer["error"]


def test_projects_are_listed_with_what_waits(server, candidates):
    _, answer = comfy.call(server.address, "/flenwheel/projects")
    mine = next(project for project in answer["projects"] if project["folder"] == candidates.project.folder_name)
    assert mine["stages"] == [{"stage": "enriched", "version": "v1", "total": 4, "undecided": 4}]


def test_a_broken_project_does_not_hide_the_others(server, candidates):
    broken = server.base / "output" / "flenwheel" / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "project.json").write_text("{half")
    try:
        _, answer = comfy.call(server.address, "/flenwheel/projects")
        assert candidates.project.folder_name in {project["folder"] for project in answer["projects"]}
    finally:
        (broken / "project.json").unlink()


def test_files_sorted_by_hand_show_up(server, candidates):
    file = candidates.path(candidates.images[0])
    (file.parent / "good").mkdir()
    file.rename(file.parent / "good" / file.name)
    state = comfy.review(server.address, candidates.project.folder_name)
    assert state["counts"]["good"] == 1 and next(item for item in state["items"] if item["label"])["origin"] == "folder"


def test_continue_queues_the_graph_from_the_gate(server, candidates):
    name = candidates.project.name
    prompt = {
        "1": {"class_type": "FLEN_Project", "inputs": {"name": name, "instance_token": "ohwx_char", "class_noun": "person", "version": 1}, "_meta": {"title": "P"}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}, "_meta": {"title": "E"}},
        "3": {"class_type": "FLEN_ImagesToDataset", "inputs": {"project": ["1", 0], "images": ["2", 0], "stage": "enriched", "caption": "", "prompt": ""}, "_meta": {"title": "I"}},
        "4": {"class_type": "FLEN_ReviewGate", "inputs": {"candidates": ["3", 0], "when_pending": "stop"}, "_meta": {"title": "G"}},
        "5": {"class_type": "FLEN_ExportTrainingSet", "inputs": {"good": ["4", 0], "repeats": 1}, "_meta": {"title": "X"}},
    }  # fmt: skip
    assert "5" not in comfy.run(server.address, prompt).outputs
    key = comfy.review(server.address, candidates.project.folder_name)["items"][0]["key"]
    comfy.label(server.address, candidates.project.folder_name, {key: "good"})
    status, answer = comfy.call(server.address, comfy.review_path(candidates.project.folder_name) + "/continue", {})
    assert status == 200, answer
    assert "1 images with captions" in comfy.wait(server.address, answer["queued"]).text("5")
    prompt["4"]["inputs"]["when_pending"] = "error"
    comfy.label(server.address, candidates.project.folder_name, {key: None})
    assert "1 of 1 images are undecided" in comfy.run(server.address, prompt).error
