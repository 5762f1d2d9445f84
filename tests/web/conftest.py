"""A headless browser on the real server, and candidates for it to look at."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
from comfyui_flenwheel.flywheel import review
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord
from comfyui_flenwheel.flywheel.images import content_key, png_bytes, value_key, write_whole
from comfyui_flenwheel.flywheel.project import Project, open_project
from comfyui_flenwheel.nodes.launch import Server
from PIL import Image, ImageDraw

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PROMPTS = ("Change background to a forest, keep person identical", "Change lighting to sunset, keep person identical")


@dataclass(frozen=True)
class Reviewed:
    """A project on the server's disk that awaits its review."""

    project: Project
    candidates: Dataset
    address: str

    @property
    def keys(self) -> list[str]:
        return [image.key for image in self.candidates.images]

    def labels(self) -> list[str | None]:
        """What is stored, in the order of the page."""
        stored = review.labels(self.project)
        return [stored[key].label if key in stored else None for key in self.keys]


def portrait(number: int) -> Image.Image:
    """A head and shoulders that no other number has."""
    image = Image.new("RGB", (192, 240), (40 + number * 15 % 160, 90 + number * 37 % 120, 200 - number * 23 % 150))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 150, 172, 330), fill=(30 + number * 7, 40, 70))
    draw.ellipse((58, 52, 134, 152), fill=(224, 180 - number * 3, 150))
    return image


def reviewed_project(home: Path, name: str, count: int) -> tuple[Project, Dataset]:
    """A project below `home` with one source and `count` candidates made from it."""
    project = open_project(home, name, instance_token="ohwx_char", class_noun="person")
    photo = project.stage("source").folder / "source_001.png"
    write_whole(photo, png_bytes(portrait(200)))
    source = {"key": content_key(photo), "name": photo.name}
    shelf = Shelf(project.stage("enriched"))
    images = []
    for number in range(count):
        facts = {
            "origin": "edit",
            "prompt": PROMPTS[number % 2],
            "caption": "photo of ohwx_char person",
            "seed": number,
            "source": source,
            "parents": [source["key"]],
            "depth": 1,
            "editor": {"editor": "rehearsal"},
            "notes": {},
        }
        image = portrait(number)
        path = shelf.add(value_key([name, number]), f"source_001-{number:02}", png_bytes(image), size=image.size, facts=facts)
        images.append(ImageRecord(content_key(path), project.relative(path), *image.size, facts["caption"], "edit", (source["key"],), 1))
    dataset = Dataset(project, "enriched", tuple(images))
    review.open_review(dataset, {"prompt": {}, "workflow": None})
    return project, dataset


def await_review(server: Server, name: str, count: int = 12) -> Reviewed:
    """A project with undecided candidates on the disk of this server."""
    project, dataset = reviewed_project(server.base / "output" / "flenwheel", name, count)
    where = urlencode({"project": project.folder_name, "stage": "enriched", "version": "v1"})
    return Reviewed(project, dataset, f"{server.address}/flenwheel/review?{where}")


@pytest.fixture
def reviewed(server, request) -> Reviewed:
    """Twelve undecided candidates in a project of the test's own."""
    return await_review(server, request.node.name.removeprefix("test_").replace("[", " ").replace("]", "")[:60])


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
        tab = visitors[visitor].new_page()
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(address)
        return tab

    yield open_tab
    for visitor in visitors.values():
        visitor.close()
    assert not faults
