"""Memory that threads have freed goes back to the system."""

import json
import subprocess
import sys

import pytest
from comfyui_flenwheel.flywheel import spare_memory

# in a process of its own: in one that has run for long, a thread may be given a pool with room
FRAGMENTED = """
import importlib.util, json, sys, threading
import psutil

spec = importlib.util.spec_from_file_location("spare_memory", sys.argv[1])
spare_memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(spare_memory)
mb = lambda: psutil.Process().memory_info().rss / 1e6
kept = []

def work():
    freed = []
    for _ in range(400):
        freed.append(bytearray(b"x" * 64_000))  # small enough that glibc takes it from the thread's pool
        kept.append(bytearray(b"x" * 600))  # stays, and holds the pool

before = mb()
worker = threading.Thread(target=work)
worker.start()
worker.join()
held = mb() - before
with spare_memory.giving_back():
    pass
print(json.dumps([held, mb() - before]))
"""


def test_what_threads_have_freed_is_given_back():
    if not spare_memory._malloc_trim():
        pytest.skip("this C library is not glibc, and gives back by itself")
    told = subprocess.run([sys.executable, "-c", FRAGMENTED, spare_memory.__file__], capture_output=True, text=True, check=True)
    held, left = json.loads(told.stdout)
    assert held > 15, "glibc keeps what was freed between pieces in use"
    assert left < held / 3


def test_it_is_given_back_now_and_then_and_when_the_work_is_stopped(monkeypatch):
    given: list[int] = []
    monkeypatch.setattr(spare_memory, "_malloc_trim", lambda: given.append)
    with pytest.raises(KeyboardInterrupt), spare_memory.giving_back() as now_and_then:
        now_and_then()
        assert not given, "not with every picture"
        monkeypatch.setattr(spare_memory, "EVERY_S", -1.0)
        now_and_then()
        now_and_then()
        assert given == [0, 0]
        raise KeyboardInterrupt
    assert given == [0, 0, 0]


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    spare_memory._malloc_trim.cache_clear()
    monkeypatch.setattr(sys, "platform", platform)
    try:
        with spare_memory.giving_back():
            pass
        assert spare_memory._malloc_trim() is None
    finally:
        spare_memory._malloc_trim.cache_clear()
