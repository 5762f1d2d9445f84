import errno
import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel import images
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.editors import ControlRef, EditRequest
from comfyui_flenwheel.flywheel.errors import EditorError, EditorUnavailable, OutOfRoom, StorageError
from comfyui_flenwheel.flywheel.render import Order, render

from .stamp import Darkroom, Stamp


@pytest.fixture
def shelf(project):
    return Shelf(project.stage("enriched"))


@pytest.fixture
def orders(sources):
    control = sources.images[0]
    facts = {"origin": "edit", "caption": "photo of ohwx_char person", "parents": [control.key], "depth": 1}
    return [
        Order(EditRequest("a", (ControlRef(sources.path(control), control.key),), seed, 64, 48), f"n{seed}", facts) for seed in range(6)
    ]


class Cancelled(BaseException):
    """What ComfyUI raises out of a progress report."""


def test_running_again_makes_nothing_and_opens_no_session(orders, shelf):
    editor = Stamp()
    assert render(orders, editor, shelf).made == 6
    first = {path: path.stat().st_mtime_ns for path in shelf.files.values()}
    again = render(orders, editor, Shelf(shelf.stage))
    assert again.made == 0 and len(again.finished) == 6
    assert editor.sessions == ["opened", "closed"]
    assert first == {path: path.stat().st_mtime_ns for path in Shelf(shelf.stage).files.values()}


def test_two_images_tell_how_long_the_rest_will_take(orders, shelf, caplog):
    with caplog.at_level(logging.INFO, "flenwheel"):
        render(orders, Stamp(), shelf)
    (told,) = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(r"stamp: [\d.]+ s per image \(the first two\); about \d+ s for the other 4\.", told)


@pytest.mark.parametrize(
    "error", [EditorError("too dark"), OutOfRoom("full"), StorageError("no space"), EditorUnavailable("gone")], ids=repr
)
def test_a_session_is_gone_with_its_run_whatever_became_of_an_image(orders, shelf, error):
    """It holds a model: kept by a circle of an error and its frames, that would stay in memory until garbage is collected."""
    sessions = []

    class Watched(Darkroom):
        @contextmanager
        def session(self):
            with super().session() as edit:
                sessions.append(weakref.ref(edit))
                yield edit

    def develop(request, beside):
        if request.seed == 1 and (beside or not isinstance(error, OutOfRoom)):
            raise type(error)(str(error))

    gc.collect()
    gc.disable()
    try:
        with suppress(StorageError, EditorUnavailable):
            render(orders, Watched(develops=develop), shelf)
        assert [session() for session in sessions] == [None]
    finally:
        gc.enable()


def test_cancelling_keeps_what_was_made_and_the_next_run_makes_the_rest(orders, shelf):
    def cancel_after_three(progress):
        if progress.done >= 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        render(orders, Stamp(), shelf, report=cancel_after_three)
    kept = len(Shelf(shelf.stage).files)
    assert 3 <= kept <= 5 and not list(shelf.stage.folder.rglob("*.part"))
    assert render(orders, Stamp(), Shelf(shelf.stage)).made == 6 - kept


def test_another_option_makes_other_files_and_touches_none(orders, shelf):
    render(orders, Stamp(), shelf)
    before = set(Shelf(shelf.stage).files.values())
    assert render(orders, Stamp(strength=0.7), Shelf(shelf.stage)).made == 6
    assert before < set(Shelf(shelf.stage).files.values())


def test_a_renamed_image_is_known_and_a_deleted_or_damaged_one_is_made_again(orders, shelf):
    render(orders, Stamp(), shelf)
    first, second, third, *_ = shelf.files.values()
    first.rename(first.with_name("my favourite.png"))
    second.unlink()
    third.write_bytes(third.read_bytes()[:100])
    assert render(orders, Stamp(), Shelf(shelf.stage)).made == 2


def test_the_limit_counts_new_images(orders, shelf):
    run = render(orders, Stamp(), shelf, limit=2)
    assert (run.made, run.left) == (2, 4)
    run = render(orders, Stamp(), Shelf(shelf.stage), limit=3)
    assert (run.made, run.left, len(run.finished)) == (3, 1, 5)


def test_one_image_that_cannot_be_made_does_not_stop_the_night(orders, shelf):
    def fail_once(request):
        if request.seed == 2:
            raise EditorError("no")

    run = render(orders, Stamp(before=fail_once), shelf)
    assert run.made == 5 and [(order.name, reason) for order, reason in run.failed] == [("n2", "no")]


def test_an_editor_that_keeps_failing_is_stopped(orders, shelf):
    def fail(request):
        raise EditorError("no weights")

    with pytest.raises(EditorError, match=r"5 times in a row.*no weights"):
        render(orders, Stamp(before=fail), shelf)


def test_an_editor_that_is_not_there_stops_at_once(orders, shelf):
    def gone(request):
        raise EditorUnavailable("no key")

    with pytest.raises(EditorUnavailable):
        render(orders, Stamp(before=gone), shelf)


def test_requests_are_checked_before_anything_is_loaded(orders, shelf):
    editor = Stamp(controls=range(2, 4))
    with pytest.raises(EditorError, match="takes 2 to 3 control images"):
        render(orders, editor, shelf)
    assert editor.sessions == []


def test_a_full_disk_is_said_so_and_leaves_no_half_image(orders, shelf, monkeypatch):
    real, calls = os.replace, []

    def full(source, target):
        if str(target).endswith(".png"):
            calls.append(target)
            if len(calls) > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(images.os, "replace", full)
    with pytest.raises(StorageError, match="disk is full"):
        render(orders, Stamp(), shelf)
    monkeypatch.undo()
    assert not list(shelf.stage.folder.rglob("*.part"))
    assert len(Shelf(shelf.stage).files) == 2
    assert render(orders, Stamp(), Shelf(shelf.stage)).made == 4


@contextmanager
def mounted(folder, options):
    """A small file system of its own, where this process may mount one."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root; test_a_full_disk_is_said_so stands in")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk(orders, project, tmp_path):
    with mounted(tmp_path / "small", "size=200k"):
        stage = replace(project, root=tmp_path / "small").stage("enriched")
        large = [Order(replace(order.request, width=256, height=256), order.name, order.facts) for order in orders]
        with pytest.raises(StorageError, match="disk is full"):
            render(large, Stamp(strength=0.1), Shelf(stage))
        assert all(images.open_image(path) for path in Shelf(stage).files.values())
        assert not list((tmp_path / "small").rglob("*.part"))


def test_a_real_read_only_disk(orders, project, tmp_path):
    with mounted(tmp_path / "fixed", "ro"), pytest.raises(StorageError, match=r"no permission.*writable"):
        render(orders, Stamp(), Shelf(replace(project, root=tmp_path / "fixed").stage("enriched")))


def test_progress_counts_saved_images_and_gives_a_time(orders, shelf):
    seen = []
    render(orders, Stamp(), shelf, report=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done) and done[-1] == 6 and seen[-1].total == 6 and seen[-1].eta_s == 0
    assert any(progress.preview is not None for progress in seen)


def test_one_more_order_may_follow_each(orders, shelf):
    def retry(finished):
        facts = finished.order.facts
        if "retry" in facts:
            return None
        request = finished.order.request
        return Order(EditRequest("a", request.controls, request.seed + 100, 64, 48), "again", {**facts, "retry": True})

    assert render(orders, Stamp(), shelf, follow_up=retry).made == 12
    assert render(orders, Stamp(), Shelf(shelf.stage), follow_up=retry).made == 0


def test_lineage_says_how_an_image_was_made(orders, shelf):
    render(orders[:1], Stamp(), shelf)
    told = json.loads(next(shelf.stage.lineage.iterdir()).read_text())
    assert told["editor"] == {"editor": "stamp", "strength": "0.5"} and told["notes"] == {"stamped": True}
    assert told["parents"] == list(orders[0].facts["parents"]) and told["image_key"] and told["seconds"] >= 0


@pytest.mark.parametrize("how", [[], ["pixels later"]])
def test_sigkill_in_the_middle_loses_no_finished_image(tmp_path, how):
    """A real process, killed without warning; every image it had reported is whole, and only the others are made."""
    script = Path(__file__).parent / "killed_render.py"
    home, said = tmp_path / "home", tmp_path / "said"
    with said.open("w") as out:
        process = subprocess.Popen([sys.executable, str(script), str(home), "40", "7", *how], stdout=out)
        process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    finished = {Path(line).name for line in said.read_text().split()}
    assert len(finished) >= 7
    kept = {path.name for path in home.rglob("*.png") if path.parent.name == "v1" and "enriched" in path.parts and images.open_image(path)}
    assert finished <= kept
    rest = subprocess.run([sys.executable, str(script), str(home), "40", "0", *how], capture_output=True, text=True, check=True, timeout=60)
    made = int(rest.stderr.split("made ")[1])
    assert made == 40 - len(kept)


# --- editors whose pixels come later ----------------------------------------------------------------------------------------------------


def files(shelf):
    """Name to bytes of what is on the shelf."""
    return {path.name: path.read_bytes() for path in Shelf(shelf.stage).files.values()}


def test_an_image_is_developed_while_the_next_is_made_and_all_are_the_same(orders, shelf, project):
    begun = {order.request.seed: threading.Event() for order in orders}
    threads = []

    def wait_for_the_next(request, beside):
        threads.append(threading.get_ident())
        if request.seed < 5:
            assert begun[request.seed + 1].wait(30), "the next image did not begin"

    run = render(orders, Darkroom(before=lambda request: begun[request.seed].set(), develops=wait_for_the_next), shelf)
    assert [finished.order.name for finished in run.finished] == [order.name for order in orders]
    assert len(threads) == 6 and threading.get_ident() not in threads
    other = Shelf(project.stage("synthetic"))
    render(orders, Stamp(), other)
    assert files(shelf) == files(other)


def test_images_that_fail_when_developed_are_told_in_order_and_the_night_goes_on(orders, shelf):
    def fail(seeds):
        def act(request, *_):
            if request.seed in seeds:
                raise EditorError(f"black {request.seed}")

        return act

    run = render(orders, Darkroom(before=fail([3]), develops=fail([1, 2, 4])), shelf)
    assert [reason for _, reason in run.failed] == ["black 1", "black 2", "black 3", "black 4"]
    assert [finished.order.name for finished in run.finished] == ["n0", "n5"] and len(files(shelf)) == 2


def test_an_editor_whose_images_all_fail_when_developed_is_stopped(orders, shelf):
    def fail(request, beside):
        raise EditorError("black")

    with pytest.raises(EditorError, match=r"5 times in a row.*black"):
        render(orders, Darkroom(develops=fail), shelf)


def test_an_image_that_fails_late_does_not_count_for_the_limit(orders, shelf):
    def fail(request, beside):
        if request.seed == 1:
            raise EditorError("black")

    run = render(orders, Darkroom(develops=fail), shelf, limit=2)
    assert (run.made, run.left, len(run.failed)) == (2, 3, 1)


def test_what_has_no_room_beside_the_next_image_is_developed_alone(orders, shelf, project):
    alone = []

    def refuse(request, beside):
        if not beside:
            alone.append((request.seed, threading.get_ident()))
        elif request.seed in (1, 5):
            raise OutOfRoom("no room")

    assert render(orders, Darkroom(develops=refuse), shelf).made == 6
    assert alone == [(1, threading.get_ident()), (5, threading.get_ident())]
    other = Shelf(project.stage("synthetic"))
    render(orders, Stamp(), other)
    assert files(shelf) == files(other)


def test_cancelling_does_not_wait_for_pixels_and_loses_nothing_that_has_them(orders, shelf):
    """The third image would take for ever to develop; a person cancels while the fourth is made, or while the loop waits for the third."""
    for last in (None, 3):
        editor, stuck = Darkroom(strength=0.1 * (last or 1)), threading.Event()

        def slowly(request, beside, editor=editor, stuck=stuck):
            if request.seed == 2:
                stuck.set()
                assert editor.given_up.wait(30), "nobody gave it up"
                raise EditorError("given up")

        def cancel(progress, stuck=stuck):
            if stuck.is_set():
                raise Cancelled

        with pytest.raises(Cancelled):
            render(orders[:last], replace(editor, develops=slowly), shelf, report=cancel)
        assert editor.given_up.is_set(), "its pixels were waited for"
        kept = files(shelf)
        assert {name.partition("-")[0] for name in kept} >= {"n0", "n1"} and not list(shelf.stage.folder.rglob("*.part"))
        assert editor.sessions[-1] == "closed" and editor.sessions.count("developed") >= 2, "not before what needed it was through"
