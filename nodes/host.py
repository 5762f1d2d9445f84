"""What we ask of ComfyUI: folders, progress and cancelling, broadcasts, pictures as tensors. Everything else takes plain values."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import ui
from PIL import Image
from server import PromptServer

from ..flywheel.errors import FlywheelError, ImageError
from ..flywheel.images import value_key
from ..flywheel.project import STAGES, Project, Stage, StageName, laps, load_project, project_roots
from ..flywheel.render import Progress

log = logging.getLogger("flenwheel")

REPORTS_PER_S = 10  # the Vue renderer chokes on more


def home() -> Path:
    """The folder that holds every project: below ComfyUI's output folder, so that it moves with it."""
    return Path(folder_paths.get_output_directory()) / "flenwheel"


def folder(text: str) -> Path:
    """A folder named in a widget: absolute, or below ComfyUI's input folder.

    Raises:
        FlywheelError: there is none.
    """
    cleaned = text.strip().strip('"')
    path = Path(folder_paths.get_input_directory()) / Path(cleaned).expanduser()
    if not cleaned or not path.is_dir():
        raise FlywheelError(
            f"There is no folder {cleaned!r}. Type the full path of your photos, or the name of a folder inside {folder_paths.get_input_directory()}."
        )
    return path


def stages(name: StageName) -> Iterator[Stage]:
    """This stage of every lap of every project here."""
    for project in readable_projects():
        for lap in laps(project.root, name):
            yield load_project(project.root, lap).stage(name)


def readable_projects() -> list[Project]:
    """Every project that can be opened; the others are named in the log, and by the node that opens them."""
    found: list[Project] = []
    for root in project_roots(home()):
        try:
            found.append(load_project(root))
        except FlywheelError as error:
            log.warning("%s", error)
    return found


def stages_of(project: Project) -> Iterator[Stage]:
    for name in STAGES:
        for lap in laps(project.root, name):
            yield load_project(project.root, lap).stage(name)


def fingerprint(name: StageName, of: Callable[[Stage], Any]) -> str:
    """Changes when `of` changes for that stage of any project: ComfyUI does not tell which project a linked socket will bring.

    Stages for which `of` has nothing to say do not count, so that a stage which a node makes itself does not make that node run again. What is damaged
    in one project makes nobody else's graph run again; the node that opens that project tells of it.
    """
    told = ([stage.project.folder_name, stage.project.version, _or_why_not(of, stage)] for stage in stages(name))
    return value_key([entry for entry in told if entry[2]])


def _or_why_not(of: Callable[[Stage], Any], stage: Stage) -> Any:
    try:
        return of(stage)
    except FlywheelError as error:
        return str(error)


class Reporter:
    """Progress on the node: bar, preview, and a line with pace and time left. Raises when the person cancels."""

    def __init__(self, node_id: str | None, what: str) -> None:
        self.node_id, self.what = node_id, what
        self._bar: comfy.utils.ProgressBar | None = None
        self._last = 0.0
        self._unseen: Image.Image | None = None  # came too soon after the report before it

    def __call__(self, progress: Progress) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        now = time.monotonic()
        self._unseen = progress.preview or self._unseen
        if now - self._last < 1 / REPORTS_PER_S and progress.done < progress.total:
            return
        self._last = now
        self._bar = self._bar or comfy.utils.ProgressBar(progress.total, self.node_id)
        preview = ("JPEG", self._unseen, 512) if self._unseen else None
        self._unseen = None
        self._bar.update_absolute(progress.done, progress.total, preview)
        if self.node_id:
            PromptServer.instance.send_progress_text(self._line(progress), self.node_id)

    def end_with(self, picture: Image.Image) -> None:
        """Send the node's picture as its last preview: ComfyUI goes on showing the last preview where the picture should be."""
        if self._bar:
            self._bar.update_absolute(self._bar.total, preview=("JPEG", picture, None))

    def count(self, done: int, total: int) -> None:
        """For work that is only counted."""
        self(Progress(done, total, done, None))

    def _line(self, progress: Progress) -> str:
        left = f", {duration(progress.eta_s)} left" if progress.eta_s is not None and progress.done < progress.total else ""
        doing = f" ({progress.doing})" if progress.doing else ""
        return f"{self.what}: {int(progress.done)} of {progress.total}{left}{doing}"


def duration(seconds: float) -> str:
    """1 h 5 min, 3 min 20 s, 12 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def counted(number: int, noun: str) -> str:
    """1 control, 3 controls."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def broadcast(event: str, data: dict[str, Any]) -> None:
    """Tell every open tab, also those that did not queue the graph."""
    PromptServer.instance.send_sync(event, data)


def tensor(image: Image.Image) -> torch.Tensor:
    """(1, H, W, 3) float32 in 0..1, ComfyUI's IMAGE."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)[None]


def pictures(images: torch.Tensor) -> list[Image.Image]:
    """The pictures of an IMAGE batch (B, H, W, C) in 0..1; an alpha channel is dropped.

    Raises:
        ImageError: there is none, or it has no pixels.
    """
    if 0 in images.shape:
        count, height, width = images.shape[:3]
        raise ImageError(
            f"{counted(count, 'image')} of {width} x {height} px came in: there is nothing to see. Look at the node before this one."
        )
    return [Image.fromarray((picture[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()) for picture in images]


def shown(text: str, image: torch.Tensor | None = None, cls: Any = None) -> dict[str, list[Any]]:
    """What a node shows of its result: a text, and a picture below it."""
    preview: dict[str, Any] = ui.PreviewImage(image, cls=cls).as_dict() if image is not None else {}
    return {**preview, "text": [text]}
