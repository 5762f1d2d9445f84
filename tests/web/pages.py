"""What the browser tests stand on: candidates on the server's disk, and ComfyUI's page."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from comfyui_flenwheel.flywheel import review
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord
from comfyui_flenwheel.flywheel.images import content_key, png_bytes, value_key, write_whole
from comfyui_flenwheel.flywheel.project import Project, open_project
from comfyui_flenwheel.flywheel.thumbs import IN_A_GRID, thumbnail_path
from comfyui_flenwheel.nodes.launch import Server
from PIL import Image, ImageDraw

WORKFLOW = Path(__file__).parent.parent.parent / "workflows" / "flywheel1_first_lap.json"
LOOKS = (("classic", "dark"), ("Nodes 2.0", "light"))  # renderer and theme
QUIET = {"Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False, "Comfy.Workflow.Persist": False}
READY = "() => window.app?.graph && app.extensionManager && app.canvas && !app.extensionManager.spinner"
NOTHING: Mapping[int, Callable[[bytes], bytes]] = {}
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
    draw.ellipse((20, 150, 172, 330), fill=(30 + number * 7 % 200, 40, 70))
    draw.ellipse((58, 52, 134, 152), fill=(224, 180 - number * 3 % 60, 150))
    image.putpixel((0, 0), (number % 256, number // 256, 7))
    return image


def reviewed_project(home: Path, name: str, count: int, spoil: Mapping[int, Callable[[bytes], bytes]] = NOTHING) -> tuple[Project, Dataset]:
    """A project below `home` with one source and `count` candidates made from it. `spoil` changes the bytes of some."""
    project = open_project(home, name, instance_token="ohwx_char", class_noun="person", medium="photographs")
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
        png = spoil.get(number, bytes)(png_bytes(image))
        path = shelf.add(value_key([name, number]), f"source_001-{number:02}", png, image, facts=facts)
        if number in spoil:  # the page shall meet the file, not a thumbnail of what it was
            for px in IN_A_GRID:
                thumbnail_path(project, content_key(path), px).unlink()
        images.append(ImageRecord(content_key(path), project.relative(path), *image.size, facts["caption"], "edit", (source["key"],), 1))
    dataset = Dataset(project, "enriched", tuple(images))
    review.open_review(dataset, {"prompt": {}, "workflow": None})
    return project, dataset


def await_review(server: Server, name: str, count: int = 12, spoil: Mapping[int, Callable[[bytes], bytes]] = NOTHING) -> Reviewed:
    """A project with undecided candidates on the disk of this server."""
    project, dataset = reviewed_project(server.base / "output" / "flenwheel", name, count, spoil)
    where = urlencode({"project": project.folder_name, "stage": "enriched", "version": "v1"})
    return Reviewed(project, dataset, f"{server.address}/flenwheel/review?{where}")


def post(address: str, body: object) -> bytes:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def comfy_page(server: Server, new_tab: Callable, renderer: str, theme: str = "dark"):
    """ComfyUI's page, with nothing from other hosts."""
    look = {"Comfy.VueNodes.Enabled": renderer == "Nodes 2.0", "Comfy.ColorPalette": theme}
    post(f"{server.address}/api/settings", {**QUIET, **look, "Comfy.Locale": "en"})
    tab = new_tab("about:blank")
    tab.context.route(lambda address: address.startswith("http") and not address.startswith(server.address), lambda route: route.abort())
    tab.goto(server.address)
    tab.wait_for_function(READY, timeout=120_000)
    return tab


def executed(graph, output) -> None:
    """What ComfyUI's server says when the node of the graph has run."""
    graph.evaluate(
        """(output) => {
          const node = String(app.graph.nodes[0].id)
          window.comfyAPI.api.api.dispatchCustomEvent("executed", { node, display_node: node, output, prompt_id: "test" })
        }""",
        output,
    )


DRAWN = "() => new Promise((done) => setTimeout(done, 150))"


def drawn(tab):
    """Wait until the page's head shows what the page knows: it is drawn after a tenth of a second at the latest."""
    tab.evaluate(DRAWN)
    return tab


def shown(tab):
    """Wait until the grid is drawn and has the focus."""
    tab.wait_for_selector(".card")
    tab.wait_for_function("document.activeElement.id === 'grid'")
    return drawn(tab)


def press(tab, keys) -> None:
    for key in keys:
        tab.keyboard.press(key)
    drawn(tab)


def all_saved(tab) -> None:
    tab.wait_for_selector("header .saving[data-state=saved]", timeout=120_000)  # sent one after the other, however busy the machine is
    drawn(tab)


def text(tab, selector: str) -> str:
    return drawn(tab).text_content(selector).strip()


def undisturbed(new_tab, address: str):
    """A tab that does not ask now and then what has become of the files, so that what happens to them meets the page when the test wants it."""
    tab = new_tab("about:blank")
    tab.route("**/pulse*", lambda route: route.abort())
    tab.goto(address)
    return shown(tab)
