"""The first lap in the real ComfyUI on real photographs: run, label, go on; and the same with the power cut in the middle."""

import json
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel import identity, review
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.project import load_project
from comfyui_flenwheel.nodes.launch import Server

from . import comfy

pytestmark = [pytest.mark.comfy, pytest.mark.faces]
GATE, EXPORT, ENRICH = "12", "14", "8"
UPSTREAM = {str(number) for number in range(1, 12)}


def project_of(server, name):
    return load_project(server.base / "output" / "flenwheel" / name)


def small_lap(name, photos, **overrides):
    return comfy.first_lap(
        Project__name=name, Curate_Source__folder=str(photos), Prompt_Set__per_source=4, **{"Enrich_Dataset__megapixels": 0.3, **overrides}
    )


def test_run_label_half_go_on_label_the_rest_export(server, photos):
    prompt = small_lap("half", photos)
    first = comfy.run(server.address, prompt)
    assert first.status == "success", first.error
    items = comfy.review(server.address, "half")["items"]
    assert len(items) >= 20 and EXPORT not in first.outputs
    half = [item["key"] for item in items[::2]]
    comfy.label(server.address, "half", dict.fromkeys(half, "good"))

    second = comfy.run(server.address, prompt)
    assert second.status == "success" and EXPORT not in second.outputs, "the gate still blocks"
    assert second.cached >= UPSTREAM, "nothing upstream runs again"
    assert f"{len(items) - len(half)} of {len(items)} images are waiting" in second.text(GATE)

    rest = [item["key"] for item in items[1::2]]
    comfy.label(server.address, "half", dict.fromkeys(rest, "reject"), reasons=["background"])
    third = comfy.run(server.address, prompt)
    assert third.status == "success" and third.cached >= UPSTREAM, third.error
    folder = project_of(server, "half").stage("training").folder
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    edits = [row for row in rows if row["depth"]]
    assert {row["key"] for row in edits} == set(half), "exactly the good images"
    for row in rows:
        caption = (folder / row["file_name"]).with_suffix(".txt").read_text().strip()
        assert caption == row["text"] and "ohwx_char" in caption and open_image(folder / row["file_name"])
    photographs = len(rows) - len(edits)
    assert photographs == len({item["source"]["key"] for item in items})
    assert "✔ all images reviewed" in third.text(EXPORT) and "✔ rejection reasons documented" in third.text(EXPORT)

    fourth = comfy.run(server.address, prompt)
    assert fourth.cached >= {*UPSTREAM, GATE, EXPORT}, "nothing has changed, nothing runs"


def test_the_other_man_is_thrown_out_and_every_picture_of_the_reference_man_scores_above_his(server, photos):
    prompt = small_lap("two men", photos)
    outcome = comfy.run(server.address, prompt)
    assert outcome.status == "success", outcome.error
    sources = json.loads((project_of(server, "two_men").stage("source").metadata).read_text())["images"]
    scores = identity.comparable_scores(project_of(server, "two_men"), [image["key"] for image in sources])
    theirs = {image["original"]: scores[image["key"]].similarity for image in sources if image["key"] in scores}
    other = theirs.pop("biden.jpg")
    measured = {name: score for name, score in theirs.items() if score is not None}
    assert len(measured) >= 4 and min(measured.values()) > identity.THRESHOLD > other
    assert "biden.jpg" not in {item["source"]["name"] for item in comfy.review(server.address, "two_men")["items"]}
    named = next(image["filename"] for image in sources if image["original"] == "biden.jpg")
    assert named in outcome.text("5")


@pytest.fixture
def mortal(comfyui, tmp_path):
    """A server of the test's own, to be killed and started again on the same files."""
    server = Server(comfyui, Path(sys.executable), tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_sigkill_in_the_middle_of_enrichment_loses_no_finished_image(mortal, photos):
    prompt = small_lap("killed", photos, Enrich_Dataset__megapixels=0.5)
    comfy.queue(mortal.address, prompt)
    stage = _stage_with(mortal, "killed", at_least=6)
    mortal.kill()
    assert mortal.process.returncode == -signal.SIGKILL
    whole = {path: path.stat().st_mtime_ns for path in Shelf(stage).files.values()}
    assert len(whole) >= 6 and all(open_image(path) for path in whole)

    mortal.start()
    outcome = comfy.run(mortal.address, prompt)
    assert outcome.status == "success", outcome.error
    after = {path.name: path.stat().st_mtime_ns for path in Shelf(stage).files.values()}
    assert all(after[path.name] == made for path, made in whole.items()), "no finished image was made again"
    assert f"{len(whole)} were there already" in outcome.text(ENRICH)
    assert not list(stage.folder.rglob("*.part"))


@pytest.mark.slow
def test_sigkill_in_a_burst_of_labels_loses_no_verdict_and_doubles_none(mortal, photos):
    prompt = small_lap("burst", photos)
    assert comfy.run(mortal.address, prompt).status == "success"
    keys = [item["key"] for item in comfy.review(mortal.address, "burst")["items"]]
    answered: list[str] = []
    dead = threading.Event()

    def click():
        for key in keys:
            if key == keys[-1]:
                dead.wait()  # the person is still at it when the power goes
            try:
                comfy.label(mortal.address, "burst", {key: "good"})
            except OSError:
                return
            answered.append(key)

    person = threading.Thread(target=click)
    person.start()
    while len(answered) < len(keys) // 3:
        time.sleep(0.005)
    mortal.kill()
    dead.set()
    person.join()

    project = project_of(mortal, "burst")
    stored = {key: review.history(project, key) for key in keys}
    assert all(len(stored[key]) == 1 for key in answered) and sum(map(len, stored.values())) - len(answered) in (0, 1)

    mortal.start()
    waiting = comfy.run(mortal.address, prompt)
    assert waiting.status == "success" and EXPORT not in waiting.outputs
    assert "0 images made" in waiting.text(ENRICH)
    state = comfy.review(mortal.address, "burst")
    assert {item["key"] for item in state["items"] if item["label"] == "good"} >= set(answered)
    comfy.label(mortal.address, "burst", {item["key"]: "good" for item in state["items"] if not item["label"]})
    done = comfy.run(mortal.address, prompt)
    assert "✔ all images reviewed" in done.text(EXPORT)
    good = project.stage("enriched").folder / "good"
    assert len([path for path in good.iterdir() if path.suffix == ".png"]) == len(keys)


def test_interrupting_keeps_the_images_and_the_queue_is_free(server, photos):
    prompt_id = comfy.queue(server.address, small_lap("interrupted", photos, Rehearsal_Editor__seconds_per_image=2))
    stage = _stage_with(server, "interrupted", at_least=3)
    comfy.call(server.address, "/interrupt", {"prompt_id": prompt_id})
    assert comfy.wait(server.address, prompt_id).status == "error"
    kept = len(Shelf(stage).files)
    again = comfy.run(server.address, small_lap("interrupted", photos))
    assert again.status == "success" and f"{kept} were there already" in again.text(ENRICH)
    assert 3 <= kept < len(Shelf(stage).files)


def _stage_with(server, name, *, at_least):
    until = time.monotonic() + comfy.PATIENCE_S
    while time.monotonic() < until:
        if (server.base / "output" / "flenwheel" / name / "project.json").is_file():
            stage = project_of(server, name).stage("enriched")
            if stage.folder.is_dir() and len([path for path in stage.folder.iterdir() if path.suffix == ".png"]) >= at_least:
                return stage
        time.sleep(0.02)
    raise TimeoutError(f"{name} did not get {at_least} images")
