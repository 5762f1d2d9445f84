"""A project with photographs and candidates, made of real files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.candidates import adopt
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord
from comfyui_flenwheel.flywheel.images import content_key, png_bytes, write_whole
from comfyui_flenwheel.flywheel.project import Project, open_project
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture that no other seed has."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return open_project(tmp_path / "flenwheel", "Anna", instance_token="ohwx_char", class_noun="person", medium="photographs")


@pytest.fixture
def sources(project: Project) -> Dataset:
    return photographs(project, 3)


@pytest.fixture
def candidates(project: Project) -> Dataset:
    return adopt(project.stage("enriched"), [picture(100 + number) for number in range(6)], caption="photo of ohwx_char person")


@pytest.fixture
def album(project: Project) -> Callable[..., Dataset]:
    """Makes a dataset of named pictures."""

    def make(**pictures: Image.Image) -> Dataset:
        records = []
        for name, image in pictures.items():
            path = project.stage("source").folder / f"{name}.png"
            write_whole(path, png_bytes(image))
            records.append(ImageRecord(content_key(path), project.relative(path), *image.size, ""))
        return Dataset(project, "source", tuple(records))

    return make


def photographs(project: Project, count: int) -> Dataset:
    images = []
    for number in range(1, count + 1):
        path = project.stage("source").folder / f"source_{number:03}.png"
        write_whole(path, png_bytes(picture(number)))
        images.append(ImageRecord(content_key(path), project.relative(path), 64, 48, "photo of ohwx_char person, front view"))
    return Dataset(project, "source", tuple(images))
