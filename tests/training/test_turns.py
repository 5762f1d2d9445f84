"""Turns at the GPU: one at a time, in order, never held by the dead; and the hours of the night."""

import contextlib
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from comfyui_flenwheel.training import turns
from comfyui_flenwheel.training.errors import SpecError


def test_turns_come_one_at_a_time_in_the_order_of_asking(tmp_path):
    order, inside = [], []

    def take(number):
        with turns.turn(tmp_path, turns.Window(), lambda reason: None):
            inside.append(number)
            assert len(inside) == 1
            order.append(number)
            time.sleep(0.1)
            inside.remove(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(20)
    assert order == [0, 1, 2] and not list(tmp_path.glob("*.ticket"))


def test_the_dead_are_passed_over(tmp_path):
    (tmp_path / "00000000000000000001-999999-1.00.ticket").touch()
    with turns.turn(tmp_path, turns.Window(), lambda reason: pytest.fail(reason)):
        pass


def test_a_ticket_that_windows_does_not_let_go_of_ends_no_training(tmp_path, monkeypatch):
    """There a file that somebody reads cannot be removed, and who waits reads every ticket twice a second."""
    (tmp_path / "00000000000000000001-999999-1.00.ticket").touch()

    def held(path, missing_ok=False):
        raise PermissionError(13, "The process cannot access the file", str(path))

    monkeypatch.setattr(Path, "unlink", held)
    with turns.turn(tmp_path, turns.Window(), lambda reason: pytest.fail(reason)):
        pass
    assert len(list(tmp_path.glob("*.ticket"))) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="locks are not inherited there")
def test_a_trainer_that_outlives_its_worker_keeps_the_gpu(tmp_path):
    with turns.turn(tmp_path, turns.Window(), lambda reason: None):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    try:
        with turns.lock(tmp_path / "lock") as held:
            assert held is None
    finally:
        child.kill()
        child.wait()
    with turns.lock(tmp_path / "lock") as held:
        assert held is not None


def test_who_waits_for_the_night_does_not_hold_up_the_day(tmp_path):
    closed = threading.Event()

    class Enough(Exception):
        pass

    def told(reason):
        closed.set()
        if done.is_set():
            raise Enough

    def night():
        with contextlib.suppress(Enough), turns.turn(tmp_path, turns.window("00:00-00:00"), told):
            pytest.fail("these hours never open")

    done = threading.Event()
    first = threading.Thread(target=night)
    first.start()
    assert closed.wait(10)
    with turns.turn(tmp_path, turns.Window(), lambda reason: pytest.fail(reason)):
        assert len(turns.waiting(tmp_path)) == 2
    done.set()
    first.join(10)
    assert not first.is_alive()


def test_waiting_can_be_given_up(tmp_path):
    class Enough(Exception):
        pass

    def refuse(reason):
        assert reason == "waiting for 00:00-00:00"
        raise Enough

    with pytest.raises(Enough), turns.turn(tmp_path, turns.window("00:00-00:00"), refuse):
        pass
    assert not list(tmp_path.glob("*.ticket"))


@pytest.mark.parametrize(
    ("hours", "at", "is_open"),
    [
        ("22:00-07:00", "23:30", True),
        ("22:00-07:00", "06:59", True),
        ("22:00-07:00", "12:00", False),
        ("9:00-17:00", "12:00", True),
        ("", "12:00", True),
    ],
)
def test_the_window(hours, at, is_open):
    assert turns.window(hours).is_open(datetime.strptime(at, "%H:%M")) is is_open


def test_what_is_no_window_is_refused():
    for text in ("tonight", "22-7", "25:00-01:00"):
        with pytest.raises(SpecError, match="no time window"):
            turns.window(text)
