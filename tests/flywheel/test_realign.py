"""Edits that slid against their photo: a copy in the photo's frame, beside them and never in their place."""

import json
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import enrich, registration
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord
from comfyui_flenwheel.flywheel.editors import Rendered
from comfyui_flenwheel.flywheel.images import content_key, open_image, png_bytes, write_whole
from comfyui_flenwheel.flywheel.prompts import parse
from comfyui_flenwheel.flywheel.realign import realigned
from PIL import Image

SIZE = (512, 384)


def scene(seed=0, size=SIZE):
    """Something to hold on to at every scale, as a photograph has."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (size[1] // step, size[0] // step, 3), dtype=np.uint8)).resize(size), dtype=np.float32
        )
        for step in (4, 16, 64)
    ]
    return Image.fromarray((sum(layers) / 3).astype(np.uint8))


def slid(image, right, down, zoom=1.0):
    """What an edit model does: the same picture, moved and grown about its middle, with a new patch in it."""
    width, height = image.size
    left, top = width / 2 - (width / 2 + right) / zoom, height / 2 - (height / 2 + down) / zoom
    moved = image.transform(image.size, Image.Transform.AFFINE, (1 / zoom, 0, left, 0, 1 / zoom, top), Image.Resampling.BICUBIC)
    moved.paste((200, 30, 30), (0, 0, width // 4, height // 3))
    return moved


@pytest.mark.parametrize(("right", "down", "zoom"), [(7.0, -5.0, 1.0), (-6.5, 3.0, 1.012), (4.0, 4.0, 0.985)])
def test_a_slid_edit_comes_back_to_a_fraction_of_a_pixel(right, down, zoom):
    photo = scene()
    copy = realigned(photo, slid(photo, right, down, zoom))
    assert (
        copy.image.size == SIZE and copy.undone_px == pytest.approx((right, down), abs=0.3) and copy.zoom == pytest.approx(zoom, abs=0.002)
    )
    left = registration.register(photo, copy.image)
    assert left.shift < 0.3 and abs(left.zoom) < 0.002


def test_strips_the_edit_has_no_pixels_for_are_mirrored_and_told():
    photo = scene()
    copy = realigned(photo, slid(photo, 9.0, 0.0))
    left, top, right, bottom = copy.mirrored_px
    assert 8 <= right <= 10 and max(left, top, bottom) <= 1
    pixels = np.asarray(copy.image)
    assert (pixels[:, -right:] == pixels[:, -2 * right : -right][:, ::-1]).all()


def test_pictures_that_share_nothing_are_left_alone():
    assert realigned(scene(1), scene(2)) is None


@dataclass(frozen=True)
class Sliding:
    """An editor that moves every picture."""

    right: float = 8.0
    name = "sliding"
    controls = range(1, 2)

    def fingerprint(self):
        return {"editor": self.name, "right": f"{self.right:g}"}

    @contextmanager
    def session(self):
        def edit(request, tick):
            photo = open_image(request.controls[0].path).image
            image = slid(photo.resize((request.width, request.height)), self.right, 0.0)
            return Rendered(image, registration.noted(photo, image))

        yield edit


@pytest.fixture
def scenes(project):
    images = []
    for number in (1, 2):
        path = project.stage("source").folder / f"source_{number:03}.png"
        write_whole(path, png_bytes(scene(number, (1024, 768))))
        images.append(ImageRecord(content_key(path), project.relative(path), 1024, 768, "photo of ohwx_char person, front view"))
    return Dataset(project, "source", tuple(images))


def test_a_shifted_edit_is_flagged_and_only_on_request_gets_a_copy_with_its_lineage(scenes):
    plain = enrich.enrich(scenes, parse("make it red"), Sliding(), megapixels=0.2)
    assert len(plain.dataset.images) == 2 and any("shifted or zoomed" in note for note in plain.notes)

    done = enrich.enrich(scenes, parse("make it red"), Sliding(), megapixels=0.2, realign=True)
    assert done.run.made == 0 and len(done.dataset.images) == 4
    assert "2 re-aligned copies lie beside them for your review." in done.notes
    shelf = Shelf(scenes.project.stage("enriched"))
    copies = {key: made for key, made in shelf.lineages.items() if "realigned_from" in made.facts["notes"]}
    for key, made in copies.items():
        edit = shelf.lineages[made.facts["notes"]["realigned_from"]]
        assert made.facts["parents"] == [edit.image_key] and made.facts["source"] == edit.facts["source"]
        assert made.facts["notes"]["undone_px"][0] == pytest.approx(8.0, abs=0.4) and "shifted" not in made.facts["notes"]
        assert shelf.files[key].name.endswith(f"-realigned-{key}.png")
    described = json.loads(scenes.project.stage("enriched").metadata.read_text())["images"]
    assert len(described) == 4


def test_copies_are_made_once(scenes):
    first = enrich.enrich(scenes, parse("make it red"), Sliding(), megapixels=0.2, realign=True)
    shelf = Shelf(scenes.project.stage("enriched"))
    stamps = {key: path.stat().st_mtime_ns for key, path in shelf.files.items()}
    again = enrich.enrich(scenes, parse("make it red"), Sliding(), megapixels=0.2, realign=True)
    assert again.dataset == first.dataset
    assert {key: path.stat().st_mtime_ns for key, path in Shelf(shelf.stage).files.items()} == stamps


def test_an_edit_that_stayed_in_place_gets_none(scenes):
    done = enrich.enrich(scenes, parse("make it red"), Sliding(right=0.0), megapixels=0.2, realign=True)
    assert len(done.dataset.images) == 2 and not any("re-aligned" in note for note in done.notes)
