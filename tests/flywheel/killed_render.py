"""Renders N images in a process of its own, printing each file once it is reported; kills itself after K. With a fourth argument the pixels come
later. Run by test_render."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import conftest  # noqa: F401 - gives the pack its name

sys.path.insert(0, str(Path(__file__).parent))
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.editors import ControlRef, EditRequest
from comfyui_flenwheel.flywheel.images import content_key, png_bytes, write_whole
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.flywheel.render import Order, render
from PIL import Image
from stamp import Darkroom, Stamp

home, count, kill_after = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
stage = open_project(home, "Anna", instance_token="ohwx_char", class_noun="person", medium="photographs").stage("enriched")
control = home / "control.png"
if not control.exists():
    write_whole(control, png_bytes(Image.effect_noise((256, 256), 60).convert("RGB")))
facts = {"origin": "edit", "caption": "photo of ohwx_char person", "parents": ["x"], "depth": 1}
orders = [Order(EditRequest("a", (ControlRef(control, content_key(control)),), seed, 256, 256), f"n{seed}", facts) for seed in range(count)]
shelf = Shelf(stage)


def report(progress):
    if progress.name:
        print(next(path for path in shelf.files.values() if path.name.startswith(progress.name + "-")), flush=True)
    if kill_after and progress.done >= kill_after:
        os.kill(os.getpid(), signal.SIGKILL)


run = render(orders, (Darkroom if sys.argv[4:] else Stamp)(), shelf, report=report)
print(f"made {run.made}", file=sys.stderr)
