"""The server is killed in the middle of a labelling burst: no verdict may be lost, none doubled, and files end where the verdicts want them.

FLEN_KILLS says how often; 20 unless told.
"""

import json
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel import ledger, review
from comfyui_flenwheel.flywheel.candidates import Shelf, adopt
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.nodes.launch import Server
from PIL import Image

from . import comfy

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

VERDICTS = 500
MOST = 5  # verdicts in one request
KILLS = int(os.environ.get("FLEN_KILLS", "20"))
PATIENCE_S = 300


class Mortal:
    """A server that is killed and started again while others use it."""

    def __init__(self, server: Server) -> None:
        self.server, self.kills = server, 0

    def kill_in(self, seconds: float) -> threading.Thread:
        killer = threading.Thread(target=self._kill, args=(seconds,))
        killer.start()
        return killer

    def _kill(self, seconds: float) -> None:
        time.sleep(seconds)
        self.server.kill()
        self.kills += 1
        self.server.start()


def send_until_stored(address: str, path: str, body: dict) -> int:
    """Post as the page does: again and again with the same ids until the answer comes. Answers how often it was sent."""
    deadline, tries = time.monotonic() + PATIENCE_S, 0
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    while time.monotonic() < deadline:
        tries += 1
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                json.load(answer)
                return tries
        except urllib.error.HTTPError as error:
            assert error.code in (404, 405, 503, 507), error.read()  # routes that are not there yet while it starts
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    raise TimeoutError("the server did not come back")


@pytest.mark.timeout(200 * KILLS + 300)
def test_no_verdict_is_lost_or_doubled_when_the_server_is_killed(comfyui, tmp_path):
    draw = random.Random(20)
    with Server(comfyui, Path(sys.executable), tmp_path) as server:
        project = open_project(
            tmp_path / "output" / "flenwheel", "Burst", instance_token="ohwx_char", class_noun="person", medium="photographs"
        )
        images = [Image.new("RGB", (16, 16), (number % 256, number // 256, 7)) for number in range(VERDICTS)]
        candidates = adopt(project.stage("enriched"), images, caption="photo of ohwx_char person")
        wanted = {image.key: draw.choice(ledger.LABELS) for image in candidates.images}
        path = comfy.review_path(project.folder_name) + "/labels"
        pending = list(wanted)
        span = (VERDICTS - 20) // KILLS
        at = {10 + span * number + draw.randrange(span - MOST) for number in range(KILLS)}  # never two in one request
        mortal, killers, sent, again = Mortal(server), [], 0, 0
        while pending:
            batch, pending = pending[: (size := draw.randint(1, MOST))], pending[size:]
            if at & set(range(sent, sent + size)):
                for killer in killers:
                    killer.join()
                killers.append(mortal.kill_in(draw.uniform(0, 0.03)))
            events = [{"id": f"verdict-{key}", "key": key, "label": wanted[key]} for key in batch]
            again += send_until_stored(server.address, path, {"reviewer": "Ada", "events": events}) > 1
            sent += len(batch)
        for killer in killers:
            killer.join()
        state = comfy.review(server.address, project.folder_name)
    print(f"{mortal.kills} kills, {again} requests sent more than once")
    assert mortal.kills == KILLS
    stored = [event for key in wanted for event in ledger.history(project, key)]
    assert len(stored) == VERDICTS and {event.event_id for event in stored} == {f"verdict-{key}" for key in wanted}
    assert {event.origin for event in stored} == {"person"}  # no half-finished move was taken for hand work
    assert {item["key"]: item["label"] for item in state["items"]} == wanted
    shelf = Shelf(project.stage("enriched"))
    lies = {shelf.lineages[key].image_key: shelf.folder_of(file) for key, file in shelf.files.items()}
    assert lies == {key: review.FOLDER_OF[label] for key, label in wanted.items()}
