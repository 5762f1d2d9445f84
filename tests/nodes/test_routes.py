"""The review's routes against the real server: what they answer, and what they refuse."""

import gzip
import http.client
import io
import json
import os
import sys
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from comfyui_flenwheel.flywheel import review
from comfyui_flenwheel.flywheel.candidates import adopt
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.nodes.launch import Server
from PIL import Image

from . import comfy

pytestmark = pytest.mark.comfy


@pytest.fixture
def candidates(server, request):
    name = f"r {request.node.name[5:40]}"
    project = open_project(
        server.base / "output" / "flenwheel", name, instance_token="ohwx_char", class_noun="person", medium="photographs"
    )
    return adopt(
        project.stage("enriched"),
        [Image.new("RGB", (64, 48), (number, 0, 0)) for number in range(4)],
        caption="photo of ohwx_char person",
        prompt="a",
    )


@pytest.fixture
def send(server, candidates):
    """Ask this project's review: `send("/labels", {…})`."""

    def ask(path, body=None):
        return comfy.call(server.address, comfy.review_path(candidates.project.folder_name) + path, body)

    return ask


def verdicts(candidates, label, *numbers, **facts):
    return {"reviewer": "Ada", **facts, "events": [{"key": candidates.images[number].key, "label": label} for number in numbers]}


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
    first = history["events"][0]
    assert {name: first[name] for name in ("label", "reasons", "note", "reviewer", "origin", "pass", "undone")} == {
        "label": "reject",
        "reasons": ["hands"],
        "note": "n",
        "reviewer": "Ada",
        "origin": "person",
        "pass": "first",
        "undone": False,
    }
    assert first["at"] and first["id"] and first["batch"] != history["events"][1]["batch"]
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
    assert [status for status, _ in answers] == [200, 200]
    first, again = (answer for _, answer in answers)
    assert (first.pop("follows"), again.pop("follows")) == ("0.0", again["revision"]) and first == again
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
    assert raw(server, "GET", f"/flenwheel/image/{name}/enriched/v1/{image.key}?size=1024")[0] == 200
    assert raw(server, "GET", f"/flenwheel/image/{name}/enriched/v1/{image.key}?size=huge")[0] == 400


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


def one_image_to_a_gate(name, stage):
    """A graph in which node 4 is a Review Gate over one image."""
    return {
        "1": {"class_type": "FLEN_Project", "inputs": {"name": name, "instance_token": "ohwx_char", "class_noun": "person", "version": 1, "pictures_are": "photographs"}, "_meta": {"title": "P"}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}, "_meta": {"title": "E"}},
        "3": {"class_type": "FLEN_ImagesToDataset", "inputs": {"project": ["1", 0], "images": ["2", 0], "stage": stage, "caption": "", "prompt": ""}, "_meta": {"title": "I"}},
        "4": {"class_type": "FLEN_ReviewGate", "inputs": {"candidates": ["3", 0], "when_pending": "stop"}, "_meta": {"title": "G"}},
    }  # fmt: skip


def test_continue_queues_the_graph_from_the_gate(server, candidates):
    prompt = one_image_to_a_gate(candidates.project.name, "enriched")
    prompt["5"] = {"class_type": "FLEN_ExportTrainingSet", "inputs": {"good": ["4", 0], "repeats": 1}, "_meta": {"title": "X"}}
    assert "5" not in comfy.run(server.address, prompt).outputs
    key = comfy.review(server.address, candidates.project.folder_name)["items"][0]["key"]
    comfy.label(server.address, candidates.project.folder_name, {key: "good"})
    status, answer = comfy.call(server.address, comfy.review_path(candidates.project.folder_name) + "/continue", {})
    assert status == 200, answer
    assert "1 images with captions" in comfy.wait(server.address, answer["queued"]).text("5")
    prompt["4"]["inputs"]["when_pending"] = "error"
    comfy.label(server.address, candidates.project.folder_name, {key: None})
    assert "1 of 1 images are undecided" in comfy.run(server.address, prompt).error


def test_the_strict_pass_fills_the_pristine_set_of_the_graph(server, candidates):
    prompt = one_image_to_a_gate(candidates.project.name, "synthetic")
    prompt["5"] = {"class_type": "FLEN_PristineSet", "inputs": {"reviewed": ["4", 0]}, "_meta": {"title": "S"}}
    linked = {"good": ["4", 0], "pristine": ["5", 0], "repeats": 1}
    prompt["6"] = {"class_type": "FLEN_ExportTrainingSet", "inputs": linked, "_meta": {"title": "X"}}
    comfy.run(server.address, prompt)
    where = comfy.review_path(candidates.project.folder_name, "synthetic")
    key = comfy.call(server.address, where)[1]["items"][0]["key"]
    comfy.call(server.address, where + "/labels", {"reviewer": "Ada", "events": [{"key": key, "label": "good"}]})
    waiting = comfy.run(server.address, prompt)
    assert "pass=strict" in waiting.text("5") and "6" not in waiting.outputs
    answers = {"character": True, "anatomy": True, "artefacts": True, "gap": True}
    event = {"key": key, "label": "good", "answers": answers}
    comfy.call(server.address, where + "/labels", {"reviewer": "Ada", "pass": "strict", "events": [event]})
    done = comfy.run(server.address, prompt)
    assert "1 pristine images" in done.text("5") and "1 images with captions" in done.text("6")
    assert [path.suffix for path in candidates.project.stage("pristine").folder.glob("*.png")] == [".png"]


def test_the_pulse_tells_of_files_that_others_move_and_of_nothing_else(send, candidates):
    before = send("/pulse")[1]
    send("/labels", verdicts(candidates, "good", 0))
    after = send("/pulse")[1]
    assert after["disk"] == before["disk"] and after["revision"] != before["revision"]
    assert send("")[1]["disk"] == after["disk"]
    candidates.path(candidates.images[1]).unlink()
    assert send("/pulse")[1]["disk"] != after["disk"]


def test_a_working_copy_is_lent_and_what_is_saved_there_is_found(send, candidates):
    key = candidates.images[0].key
    status, lent = send(f"/editing/{key}", {})
    before = send("/pulse")[1]["disk"]
    assert status == 200 and Path(lent["path"]).read_bytes() == candidates.path(candidates.images[0]).read_bytes()
    assert send(f"/editing/{key}", {})[1] == lent and send("/editing/0123456789abcdef", {})[0] == 404
    Image.new("RGB", (64, 48), (9, 8, 7)).save(lent["path"])
    assert send("/pulse")[1]["disk"] != before
    item = next(item for item in send("")[1]["items"] if item["key"] == key)
    assert [made["label"] for made in item["corrections"]] == [None]


def test_a_request_is_one_step_that_undo_takes_back_and_redo_brings_again(send, candidates):
    _, answer = send("/labels", verdicts(candidates, "good", 0, 1, 2))
    assert answer["counts"]["good"] == 3 and answer["undo"]["text"] == "good on 3 images" and answer["redo"] is None
    assert {item["key"] for item in answer["changed"]} == {candidates.images[number].key for number in range(3)}
    status, undone = send("/undo", {"reviewer": "Ada", "batch": answer["undo"]["batch"]})
    assert status == 200 and undone["undone"]["count"] == 3 and undone["counts"]["undecided"] == 4 and undone["undo"] is None
    assert send("/undo", {"reviewer": "Ada", "batch": answer["undo"]["batch"]})[0] == 200  # sent again after a lost answer
    _, redone = send("/redo", {"reviewer": "Ada"})
    assert redone["counts"]["good"] == 3 and redone["redone"]["batch"] == answer["undo"]["batch"]
    assert send("/undo", {"reviewer": "Ben"})[0] == 409
    _, state = send("?reviewer=Ada")
    assert state["undo"]["text"] == "good on 3 images"
    key = candidates.images[0].key
    send("/undo", {"reviewer": "Ada"})
    assert [event["undone"] for event in send(f"/history/{key}")[1]["events"]] == [True]


def test_a_request_may_carry_several_steps(send, candidates):
    labels = ("good", "reject", "good")
    told = [{"key": candidates.images[number].key, "label": label, "batch": f"step {number}"} for number, label in enumerate(labels)]
    _, answer = send("/labels", {"reviewer": "Ada", "events": told})
    assert answer["counts"]["good"] == 2 and answer["undo"]["batch"] == "step 2" and answer["undo"]["count"] == 1
    _, undone = send("/undo", {"reviewer": "Ada", "batch": "step 2"})
    assert undone["counts"]["good"] == 1 and undone["undo"]["batch"] == "step 1"
    status, answer = send("/labels", {"reviewer": "Ada", "events": [{**told[0], "batch": 7}]})
    assert status == 400 and "batch must be a text" in answer["error"]


def test_the_state_names_everything_a_page_needs(send, candidates):
    send("/labels", verdicts(candidates, "good", 0))
    _, state = send("?reviewer=Ada")
    item = state["items"][0]
    assert {
        "caption",
        "template",
        "loras",
        "generation",
        "suggestion",
        "disagreement",
        "labels",
        "in_force",
        "corrections",
        "repairs",
    } <= set(item)
    assert state["passes"]["strict"] == {"total": 1, "undecided": 1, "good": 0, "needs_correction": 0, "reject": 0}
    assert state["undecided_total"] >= 3 and state["questions"] == ["character", "anatomy", "artefacts", "gap"] and state["missing"] == []
    revision = state["revision"]
    send("/labels", verdicts(candidates, "reject", 1))
    _, news = send(f"?since={revision}")
    assert news["partial"] and [item["key"] for item in news["items"]] == [candidates.images[1].key]


def test_a_long_list_begins_with_a_screenful_from_where_one_stopped(server, send, candidates):
    more = [Image.new("RGB", (8, 8), (number, 200, 0)) for number in range(56)]
    adopt(candidates.project.stage("enriched"), more, caption="photo of ohwx_char person", prompt="a")
    keys = [item["key"] for item in send("")[1]["items"]]
    send("/labels", {"reviewer": "Ada", "events": [{"key": keys[number], "label": "good"} for number in (0, 31)]})
    send("/session", {"reviewer": "Ada", "key": keys[30]})
    state = send("?head=3&reviewer=Ada")[1]
    assert [item["key"] for item in state["items"]] == [keys[30], keys[32], keys[33]] and state["more"] == 57
    assert state["counts"]["undecided"] == 58 and state["counts"]["total"] == 60
    assert [item["key"] for item in send("?head=3&reviewer=Grace")[1]["items"]] == keys[1:4]
    whole = send("?head=6&reviewer=Ada")[1]  # too few to be worth two answers
    assert len(whole["items"]) == 60 and "more" not in whole

    address = server.address + comfy.review_path(candidates.project.folder_name)
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Accept-Encoding": "gzip, deflate"})) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        packed = answer.read()
    assert len(packed) < 10_000 and [item["key"] for item in json.loads(gzip.decompress(packed))["items"]] == keys


def test_the_strict_pass_sees_what_was_good_and_wants_reasons(send, candidates):
    send("/labels", verdicts(candidates, "good", 0, 1))
    _, strict = send("?pass=strict")
    assert [item["label"] for item in strict["items"]] == [None, None] and strict["items"][0]["labels"]["first"]["label"] == "good"
    refused = send("/labels", verdicts(candidates, "reject", 0, **{"pass": "strict"}))
    assert refused[0] == 400 and "reason" in refused[1]["error"]
    key = candidates.images[0].key
    event = {"key": key, "label": "reject", "reasons": ["hands"], "answers": {"anatomy": False, "character": True}}
    _, answer = send("/labels", {"reviewer": "Ada", "pass": "strict", "events": [event]})
    assert answer["counts"]["reject"] == 1
    _, first = send("")
    assert first["passes"]["first"]["good"] == 2
    item = next(item for item in first["items"] if item["key"] == key)
    assert (item["label"], item["in_force"]) == ("good", "reject") and item["labels"]["strict"]["answers"]["anatomy"] is False
    _, told = send("/agreement?reviewer=Ada")
    assert told["first_strict"] == {"both": 1, "same": 0, "share": 0.0} and told["changed"][0]["then"] == "reject"


def test_a_blind_review_shows_nothing_that_could_sway(send, candidates):
    send("/labels", verdicts(candidates, "good", 0))
    _, blind = send("?pass=strict&blind=1")
    assert blind["items"] and not {"name", "labels", "in_force", "similarity", "editor", "seed", "source", "suggestion"} & set(
        blind["items"][0]
    )
    _, repeat = send("?pass=repeat")
    assert repeat["blind"] and len(repeat["items"]) == 1


def test_a_bulk_verdict_can_be_looked_at_first(send, candidates):
    send("/labels", verdicts(candidates, "good", 0))
    _, told = send("/labels", verdicts(candidates, "reject", 0, 1, 2, preview=True, origin="policy"))
    assert told["left_alone"] == [candidates.images[0].key] and [change["from"] for change in told["would"]] == [None, None]
    assert send("")[1]["counts"]["reject"] == 0
    _, done = send("/labels", verdicts(candidates, "reject", 0, 1, 2, origin="policy"))
    assert done["left_alone"] == told["left_alone"] and done["counts"]["reject"] == 2 and done["counts"]["good"] == 1


def test_evidence_tells_lineage_siblings_and_quality(send, candidates):
    status, told = send(f"/evidence/{candidates.images[0].key}")
    assert status == 200, told
    assert told["lineage"][0]["key"] == candidates.images[0].key and len(told["siblings"]["prompt"]) == 3
    assert told["quality"]["verdict"] == "low" and any("small" in problem for problem in told["quality"]["problems"])
    assert send("/evidence/feedfeedfeedfeed")[0] == 404


def test_a_changed_a_deleted_and_a_broken_file_are_told_apart(server, send, candidates):
    name = quote(candidates.project.folder_name)
    paths = [candidates.path(image) for image in candidates.images]
    send("/labels", verdicts(candidates, "good", 0))
    _, state = send("")
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-20] + bytes(20))  # the same size, other bytes
    paths[2].unlink()
    at = [f"/flenwheel/image/{name}/enriched/v1/{image.key}?size=256" for image in candidates.images]
    assert [raw(server, "GET", path)[0] for path in at] == [200, 410, 404, 200]
    paths[1].write_bytes(content + b"longer")
    _, later = send("")
    assert {missing["key"] for missing in later["missing"]} == {candidates.images[1].key, candidates.images[2].key}
    assert later["counts"]["total"] == 2 and state["counts"]["total"] == 4
    assert raw(server, "GET", f"/flenwheel/review/{name}/enriched/v1/report.html")[0] == 200


def test_a_repair_is_ordered_shown_and_taken_back(server, send, candidates):
    key = candidates.images[0].key
    send("/labels", {"reviewer": "Ada", "events": [{"key": key, "label": "needs_correction", "reasons": ["hands"], "note": "six fingers"}]})
    _, proposed = send(f"/repair/prompt/{key}")
    assert proposed["from"] == "candidate" and "five natural fingers" in proposed["prompt"] and "six fingers" in proposed["prompt"]
    image = candidates.images[0]
    buffer = io.BytesIO()
    Image.new("L", (image.width, image.height), 255).save(buffer, "PNG")
    path = comfy.review_path(candidates.project.folder_name)
    status, body, _ = raw(server, "PUT", f"{path}/mask/{key}", buffer.getvalue(), {"Content-Type": "image/png"})
    mask = json.loads(body)["mask"]
    assert status == 200 and raw(server, "GET", f"{path}/mask/{key}/{mask}")[0] == 200
    status, answer = send("/repair", {"reviewer": "Ada", "key": key, **proposed, "count": 2, "mask": mask})
    assert status == 200 and answer["order"]["state"] == "waiting" and len(answer["order"]["seeds"]) == 2, answer
    assert next(item for item in send("")[1]["items"] if item["key"] == key)["repairs"] == 1
    assert raw(server, "DELETE", f"{path}/repair/{answer['order']['id']}")[0] == 200
    assert send("/repair")[1]["orders"][0]["state"] == "withdrawn"
    assert send("/repair", {"key": key, "prompt": "", "count": 99})[0] == 400


def test_a_hand_corrected_image_comes_back_bound_to_its_original(server, send, candidates):
    key = candidates.images[0].key
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 9, 9)).save(buffer, "JPEG")
    path = comfy.review_path(candidates.project.folder_name)
    status, body, _ = raw(server, "PUT", f"{path}/corrected/{key}?reviewer=Ada", buffer.getvalue(), {"Content-Type": "image/jpeg"})
    made = json.loads(body)["corrected"]
    assert status == 200 and made["stage"] == "corrections"
    item = next(item for item in send("")[1]["items"] if item["key"] == key)
    assert [(made["stage"], made["key"]) for made in item["corrections"]] == [("corrections", made["key"])]
    own = comfy.review_path(candidates.project.folder_name, "corrections")
    _, review_of_corrections = comfy.call(server.address, own)
    assert review_of_corrections["items"][0]["corrects"]["key"] == key
    saved = candidates.project.stage("corrections").folder / f"{candidates.images[1].stem}.png"  # as another program saves it
    Image.new("RGB", (64, 48), (8, 8, 8)).save(saved)
    assert [bool(item["corrections"]) for item in send("")[1]["items"]].count(True) == 2
    assert raw(server, "PUT", f"{path}/corrected/{key}", b"no picture", {"Content-Type": "image/png"})[0] == 422
    assert raw(server, "PUT", f"{path}/corrected/feedfeedfeedfeed", buffer.getvalue())[0] == 404


def test_repairs_run_as_a_graph(server, send, candidates):
    key = candidates.images[0].key
    send("/repair", {"key": key, "prompt": "Change background to forest", "seeds": [5], "from": "candidate"})
    prompt = {
        "1": {"class_type": "FLEN_Project", "inputs": {"name": candidates.project.name, "instance_token": "ohwx_char", "class_noun": "person", "version": 1, "pictures_are": "photographs"}, "_meta": {"title": "P"}},
        "2": {"class_type": "FLEN_RehearsalEditor", "inputs": {}, "_meta": {"title": "E"}},
        "3": {"class_type": "FLEN_RepairCandidates", "inputs": {"project": ["1", 0], "editor": ["2", 0], "limit": 0, "tries_each": 0}, "_meta": {"title": "R"}},
    }  # fmt: skip
    _, described = comfy.call(server.address, "/object_info/FLEN_RehearsalEditor")
    required = described["FLEN_RehearsalEditor"]["input"]["required"]
    prompt["2"]["inputs"] = {name: spec[1]["default"] for name, spec in required.items()}
    outcome = comfy.run(server.address, prompt)
    assert "1 corrections" in outcome.text("3"), outcome.messages
    assert send("/repair")[1]["orders"][0]["state"] == "done"
    send("/repair", {"key": key, "prompt": "Change background to beach", "seeds": [6], "from": "candidate"})
    assert "2 corrections" in comfy.run(server.address, prompt).text("3")  # a new order makes the node run again


def test_views_and_where_one_stopped_are_kept(server, send, candidates):
    views = f"/flenwheel/views/{quote(candidates.project.folder_name)}"
    comfy.call(server.address, views, {"name": "doubtful", "filter": {"band": ["review"]}})
    assert comfy.call(server.address, views)[1]["views"] == [{"name": "doubtful", "filter": {"band": ["review"]}}]
    assert comfy.call(server.address, views, {"name": "doubtful", "filter": None})[1]["views"] == []
    send("/session", {"reviewer": "Ada", "key": candidates.images[2].key, "place": 2, "filter": {}})
    assert send("?reviewer=Ada")[1]["session"]["place"] == 2 and send("?reviewer=Ben")[1]["session"] is None


def test_a_report_needs_nothing_else_and_shows_its_filter(server, send, candidates):
    send(
        "/labels", {"reviewer": "Ada", "events": [{"key": candidates.images[0].key, "label": "good", "note": "<script>alert(1)</script>"}]}
    )
    path = comfy.review_path(candidates.project.folder_name)
    status, page, _ = raw(server, "GET", f"{path}/report.html?label=good")
    text = page.decode()
    assert status == 200 and text.count("<li") == 1 and "data:image/webp;base64," in text and "1 of 4 images: label good" in text
    assert "<script" not in text and "http://" not in text and "https://" not in text and "default-src 'none'" in text
    status, sheet, _ = raw(server, "GET", f"{path}/sheet.png?label=undecided")
    assert status == 200 and Image.open(io.BytesIO(sheet)).width > 256
    body = json.dumps({"keys": [candidates.images[3].key], "format": "html"}).encode()
    status, page, _ = raw(server, "POST", f"{path}/export", body, {"Content-Type": "application/json"})
    assert status == 200 and page.count(b"<li") == 1
    assert raw(server, "GET", f"{path}/report.html?colour=red")[0] == 400


def test_coverage_counts_cells(send, candidates):
    send("/labels", verdicts(candidates, "good", 0))
    _, table = send("/coverage")
    assert table["picked"] == 0 and table["angle"] == [{"value": "unknown", "sources": 0, "good": 1, "picked": 0}]


@pytest.mark.slow
def test_on_the_network_a_token_is_asked_for(comfyui, tmp_path):
    env = {**os.environ, "FLENWHEEL_TOKEN": "a-long-enough-token"}
    with Server(comfyui, Path(sys.executable), tmp_path, extra_args=("--listen", "0.0.0.0"), env=env) as listening:
        elsewhere = {"X-Forwarded-For": "192.168.1.9"}  # as through a proxy; a test has no second machine
        assert raw(listening, "GET", "/flenwheel/projects")[0] == 200
        assert raw(listening, "GET", "/flenwheel/projects", headers=elsewhere)[0] == 401
        assert raw(listening, "GET", "/flenwheel/projects?token=wrong-but-long-enough", headers=elsewhere)[0] == 401
        status, _, headers = raw(listening, "GET", "/flenwheel/projects?token=a-long-enough-token", headers=elsewhere)
        assert status == 200 and "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
        cookie = {**elsewhere, "Cookie": headers["Set-Cookie"].split(";")[0]}
        assert raw(listening, "GET", "/flenwheel/projects", headers=cookie)[0] == 200
        assert "token" in listening.log.read_text(errors="replace") and "a-long-enough-token" not in listening.log.read_text(
            errors="replace"
        )
