"""Memory that threads have freed goes back to the system."""

import gc
import sys
import threading

import psutil
import pytest
from comfyui_flenwheel.flywheel import spare_memory

BLOCKS, BLOCK = 400, 64_000  # small enough that glibc takes them from a thread's pool


def _mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def _fragmented() -> list[bytearray]:
    """What is still in use after a thread has freed everything between."""
    kept: list[bytearray] = []

    def work() -> None:
        freed = []
        for _ in range(BLOCKS):
            freed.append(bytearray(b"x" * BLOCK))
            kept.append(bytearray(b"x" * 600))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    gc.collect()
    return kept


def test_what_threads_have_freed_is_given_back():
    if not spare_memory._malloc_trim():
        pytest.skip("this C library is not glibc, and gives back by itself")
    before = _mb()
    kept = _fragmented()
    held = _mb() - before
    with spare_memory.giving_back():
        pass
    left = _mb() - before
    assert len(kept) == BLOCKS and held > 15, "glibc keeps what was freed between pieces in use"
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
