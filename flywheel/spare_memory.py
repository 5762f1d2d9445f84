"""Memory that is free, given back to the system while thousands of pictures go through.

glibc keeps what threads have freed, in a pool for each of them, and what is still in use between two pictures holds the rest of its pool: the process
grows with every picture though nothing leaks. Other C libraries give it back by themselves; there nothing is done.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

EVERY_S = 3.0  # giving back takes 1 to 20 ms, and the next pictures ask for it again


@contextmanager
def giving_back() -> Iterator[Callable[[], None]]:
    """While it lasts, gives back when it is called, but not more often than every few seconds; and once more at the end."""
    last = time.monotonic()

    def now_and_then() -> None:
        nonlocal last
        if time.monotonic() - last > EVERY_S:
            _trim()
            last = time.monotonic()

    try:
        yield now_and_then
    finally:
        _trim()


def _trim() -> None:
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's own; None where there is another C library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
