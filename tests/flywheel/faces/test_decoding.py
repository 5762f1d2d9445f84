"""One man in every form a file can have, through curation and the real engine: each is he, or is named, and the run goes on."""

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import identity
from comfyui_flenwheel.flywheel.curate import curate
from comfyui_flenwheel.flywheel.images import EXIF_ORIENTATION
from comfyui_flenwheel.flywheel.photo_shelf import photos_in
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.flywheel.references import choose_references
from PIL import Image

from .portraits import engine, portraits

pytestmark = pytest.mark.faces


def lying_down() -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # shown turned by 90 degrees to the right
    return exif


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)


FORMS = {  # how each file is written from the upright picture
    "exif.jpg": lambda image, path: image.rotate(90, expand=True).save(path, exif=lying_down(), quality=95),
    "exif.png": lambda image, path: image.rotate(90, expand=True).save(path, exif=lying_down()),
    "16 bit grey.png": lambda image, path: deep(image).save(path),
    "16 bit grey.tif": lambda image, path: deep(image).save(path),
    "cmyk.jpg": lambda image, path: image.convert("CMYK").save(path, quality=95),
    "alpha.png": lambda image, path: image.convert("RGBA").save(path),
    "palette.png": lambda image, path: image.quantize(256).save(path),
    "animated.gif": lambda image, path: image.save(path, save_all=True, append_images=[Image.new("RGB", image.size)]),
    "6000 px.jpg": lambda image, path: image.resize((image.width * 5, image.height * 5)).save(path, quality=85),
    "really a jpeg.png": lambda image, path: image.save(path, "JPEG", quality=95),
}


def test_every_form_of_a_photo_is_the_same_man_and_what_cannot_be_read_is_named(tmp_path):
    named = {path.stem: path for path in portraits()}
    folder = tmp_path / "photos"
    folder.mkdir()
    for reference in ("obama", "obama3"):
        (folder / f"{reference}.jpg").write_bytes(named[reference].read_bytes())
    with Image.open(named["obama2"]) as opened:
        image = opened.convert("RGB")
    for name, save in FORMS.items():
        save(image, folder / name)
    whole = named["obama2"].read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "zero bytes.png").write_bytes(b"")
    project = open_project(tmp_path / "home", "Forms", instance_token="ohwx_char", class_noun="person", medium="photographs")

    curated = curate(project, photos_in(folder).photos, engine())

    refused = {photo.original: photo.problems[0] for photo in curated.photos if not photo.record}
    assert "truncated.jpg" in refused and "damaged" in refused["truncated.jpg"] and "empty" in refused["zero bytes.png"]
    originals = {photo.record.key: photo.original for photo in curated.photos if photo.record}
    same_pixels = {name for name, problem in refused.items() if "pixel for pixel" in problem}
    assert set(FORMS) | {"obama.jpg", "obama3.jpg"} == set(originals.values()) | same_pixels
    references = [photo.record.name for photo in curated.photos if photo.record and photo.original in ("obama.jpg", "obama3.jpg")]
    scores = identity.score(curated.dataset, choose_references(curated.dataset, engine(), references), engine())
    values = {originals[key]: score.similarity for key, score in scores.by_key.items()}
    assert len(values) == len(originals), "all of them are usable"
    assert all(value is not None and value > identity.MATCH for value in values.values()), values
