"""How long people who see the review page for the first time take for 100 images each, on the real server in real browsers.

    FLEN_COMFYUI=<ComfyUI> FLEN_CHROMIUM=<Chromium> python benchmarks/new_reviewer.py [seed …]

Every pause is really slept. The script stands for a person: it reads the page and its help before the first key, uses only keys that the page
shows all the time (1 2 3, R and the digits of the reasons, Space, U), looks at each image for a time drawn anew, looks twice at some, gives
reasons for half of what is not good, and now and then takes a slip back. How long people look is taken from guides for photographers who cull
with instant previews, 1 to 3 seconds an image. One person after the other, each with a browser and a project of their own. It shows that the page keeps
up with people and needs no more keys than it says; it is no study with people. Prints a table and writes results/new_reviewer.md.
"""

from __future__ import annotations

import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.nodes.launch import Server  # noqa: E402
from web.pages import Reviewed, all_saved, await_review, shown  # noqa: E402

IMAGES, GOAL_S = 100, 300
READS_PAGE_S, READS_HELP_S = 12.0, 15.0
GLANCE_S, SPREAD, SHORTEST_S = 1.5, 0.45, 0.5  # median and sigma of a log-normal distribution
LOOKS_TWICE, SECOND_LOOK_S = 0.15, 1.5
GIVES_REASON, REASON_S = 0.5, 1.0
SLIPS, NOTICES_S = 0.04, 1.2
VERDICTS = ("1",) * 7 + ("2",) * 2 + ("3",)


class Person:
    """Presses keys as somebody who thinks in between."""

    def __init__(self, page: Page, seed: int) -> None:
        self.page, self.draw = page, random.Random(seed)
        self.paused, self.keys = 0.0, 0

    def pause(self, median: float) -> None:
        wait = max(SHORTEST_S, self.draw.lognormvariate(0, SPREAD) * median)
        self.paused += wait
        self.page.wait_for_timeout(wait * 1_000)

    def press(self, key: str) -> None:
        self.keys += 1
        self.page.keyboard.press(key)

    def read(self) -> None:
        self.pause(READS_PAGE_S)
        self.press("?")
        self.pause(READS_HELP_S)
        self.press("Escape")

    def decide(self) -> None:
        self.pause(GLANCE_S)
        large = self.draw.random() < LOOKS_TWICE
        if large:
            self.press("Space")
            self.pause(SECOND_LOOK_S)
        verdict = self.draw.choice(VERDICTS)
        self.press(verdict)
        if self.draw.random() < SLIPS:
            self.pause(NOTICES_S)
            self.press("u")
            self.pause(NOTICES_S)
            verdict = "1"
            self.press(verdict)
        if verdict != "1" and self.draw.random() < GIVES_REASON:
            self.pause(REASON_S)
            self.press("r")
            self.press(str(self.draw.randint(1, 9)))
            self.press("r")
        if large:
            self.press("Escape")


def visit(reviewed: Reviewed, seed: int) -> list[str]:
    """One person in a browser of their own."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ.get("FLEN_CHROMIUM"), args=["--no-sandbox", "--disable-gpu"])
        row = review(browser.new_context(viewport={"width": 1280, "height": 800}).new_page(), reviewed.address, seed)
        browser.close()
    assert None not in reviewed.labels()
    print(row, flush=True)
    return row


def review(page: Page, address: str, seed: int) -> list[str]:
    """One person's review, as cells of the table."""
    began = time.monotonic()
    page.goto(address)
    shown(page)
    person = Person(page, seed)
    person.read()
    while int(page.get_attribute("#progress", "aria-valuenow") or 0) < IMAGES:
        person.decide()
    all_saved(page)
    took = time.monotonic() - began
    return [
        str(seed),
        f"{took:.0f}",
        f"{person.paused:.0f}",
        f"{took - person.paused:.1f}",
        str(person.keys),
        "yes" if took < GOAL_S else "no",
    ]


def main() -> None:
    seeds = [int(word) for word in sys.argv[1:]] or [1, 2, 3]
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(os.environ["FLEN_COMFYUI"]), Path(sys.executable), Path(folder)) as server,
    ):
        rows = [visit(await_review(server, f"newcomer {seed}", IMAGES), seed) for seed in seeds]
    table = ["| person | seconds | of these paused | of these the page and the keys | keys | under 5 minutes |", "|---" * 6 + "|"]
    table += ["| " + " | ".join(row) + " |" for row in rows]
    method = " ".join((__doc__ or "").split("\n\n")[2].replace(" Prints a table and writes results/new_reviewer.md.", "").split())
    written = f"# A newcomer reviews {IMAGES} images\n\n{method}\n\nMedians: a glance {GLANCE_S} s, a second look {SECOND_LOOK_S} s at {LOOKS_TWICE:.0%}, a reason"
    written += (
        f" {REASON_S} s, a slip in {SLIPS:.0%}; the page {READS_PAGE_S:.0f} s and its help {READS_HELP_S:.0f} s at first.\n\n"
        + "\n".join(table)
    )
    load = f"load {os.getloadavg()[0]:.1f}, " if hasattr(os, "getloadavg") else ""
    written += f"\n\n{os.cpu_count()} cores, {load}Python {platform.python_version()}, headless Chromium in software.\n"
    (ROOT / "benchmarks" / "results" / "new_reviewer.md").write_text(written, encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
