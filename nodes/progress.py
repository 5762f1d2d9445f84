"""Progress for people in a terminal or a log. Standard library only: the set-up and the lap's client share it."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TextIO

BAR = 20
TITLE = 40
REDRAW_S = 0.1
HEARTBEAT_S = 10.0  # in a log, where nothing can be redrawn, a line this often
WINDOW_S = 30.0  # the rate is of the last half minute: finished images that are only found again would spoil it


class Meter:
    """One line of progress: the title, a bar, the rate and the time left; at the end the seconds it took. A context manager."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self.title = title
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.begun = self.drawn = time.monotonic()
        self.done, self.total = 0.0, 0.0
        self._seen: deque[tuple[float, float]] = deque()

    def __enter__(self) -> Meter:
        self.begun = self.drawn = time.monotonic()
        if self.live:
            self._write(f"\r{self.title:<{TITLE}}\x1b[K")
        return self

    def show(self, done: float, total: float) -> None:
        """`done` of `total`; 0 of 0 while nothing is known. A total of 1 means a share, so only the percentage is written."""
        self.done, self.total = done, total
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        if now - self.drawn >= (REDRAW_S if self.live else HEARTBEAT_S):
            self.drawn = now
            line = f"{self.title:<{TITLE}} {self.state()}"
            self._write(f"\r{line}\x1b[K" if self.live else f"{line}\n")

    def state(self) -> str:
        """The bar with its numbers, or the seconds spent while the amount of work is unknown."""
        if self.total <= 0:
            return f"{time.monotonic() - self.begun:.0f} s"
        share = min(self.done / self.total, 1.0)
        count = "" if self.total == 1 else f"  {int(self.done)}/{int(self.total)}"
        return f"[{'#' * round(share * BAR):<{BAR}}] {share:4.0%}{count}{self._pace()}"

    def _pace(self) -> str:
        (begun, first), (now, last) = self._seen[0], self._seen[-1]
        if last <= first or now <= begun:
            return ""
        rate = (last - first) / (now - begun)
        speed = "" if self.total == 1 else f"  {rate:.1f}/s" if rate >= 1 else f"  {1 / rate:.1f} s each"
        return f"{speed}  {duration((self.total - self.done) / rate)} left"

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        count = f"{int(self.done)}/{int(self.total)}  " if self.total > 1 else ""
        end = "" if kind is None else "  failed" if issubclass(kind, Exception) else "  stopped"  # cancelled, Ctrl+C
        clear = "\r\x1b[K" if self.live else ""
        self._write(f"{clear}{self.title:<{TITLE}} {count}{time.monotonic() - self.begun:.1f} s{end}\n")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def duration(seconds: float) -> str:
    """Such as 42 s, 3:05 min or 2:10 h."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 100 * 60:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"
