"""A headless browser on the real server, and candidates for it to look at."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from comfyui_flenwheel.nodes.launch import Server

from .pages import Reviewed, await_review

PATIENCE_MS = 120_000  # what is waited for comes in a second, on a machine that has nothing else to do
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture
def reviewed(server, request) -> Reviewed:
    """Twelve undecided candidates in a project of the test's own."""
    return await_review(server, request.node.name.removeprefix("test_").replace("[", " ").replace("]", "")[-60:].strip(" _"))


@pytest.fixture
def mortal(comfyui, tmp_path) -> Iterator[tuple[Server, Reviewed]]:
    """A server of the test's own, to be killed, with forty candidates."""
    with Server(comfyui, Path(sys.executable), tmp_path) as running:
        yield running, await_review(running, "mortal", 40)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("FLEN_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not chromium:
        pytest.skip("no Chromium found: install one, or name it in FLEN_CHROMIUM")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def new_tab(browser) -> Iterator[Callable]:
    """Opens an address in a tab; tabs of one `visitor` share what the browser keeps. A fault in the page fails the test."""
    visitors, faults = {}, []

    def open_tab(address: str, *, visitor: str = "one", **options):
        if visitor not in visitors:
            visitors[visitor] = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options})
            visitors[visitor].set_default_timeout(PATIENCE_MS)
        tab = visitors[visitor].new_page()
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(address)
        return tab

    yield open_tab
    for visitor in visitors.values():
        visitor.close()
    assert not faults
