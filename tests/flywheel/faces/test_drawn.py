"""Faces drawn from the demo portraits, and what is said of them; and of the portraits, however they are edited."""

import io

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import identity, sifting
from comfyui_flenwheel.flywheel.errors import IdentityError
from comfyui_flenwheel.flywheel.faces import DRAWN_FLATNESS, prominent
from comfyui_flenwheel.flywheel.faces.chip import flatness
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.flywheel.quality import assess, figures
from comfyui_flenwheel.flywheel.references import calibrate, choose_references
from PIL import Image, ImageEnhance, ImageFilter

from .portraits import engine, portraits

pytestmark = pytest.mark.faces
CANVAS = 768
DRAWN = ("obama", "obama2", "obama3")


@pytest.fixture(scope="module")
def people():
    return {path.stem: _fitted(open_image(path, at_least=CANVAS).image) for path in portraits()}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return open_project(tmp_path_factory.mktemp("faces"), "Drawn", instance_token="ohwx_char", class_noun="person", medium="photographs")


def _fitted(image: Image.Image) -> Image.Image:
    scale = CANVAS / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def cel(image: Image.Image) -> Image.Image:
    """Eight colours, by k-means, each in areas without grain: how cartoons are shaded."""
    calm = image.filter(ImageFilter.MedianFilter(7))
    return calm.quantize(8, kmeans=3, dither=Image.Dither.NONE).convert("RGB").filter(ImageFilter.ModeFilter(9))


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_flatness_is_high_for_areas_with_outlines_and_low_for_grain_and_ramps():
    row, column = np.mgrid[0:150, 0:150]
    areas = np.where((row // 15 + column // 15) % 2, 200, 60).astype(np.uint8)
    ramp = (20 + row + column * 0.5).astype(np.uint8)
    grain = np.random.default_rng(0).integers(90, 160, (150, 150)).astype(np.uint8)
    assert flatness(areas) > 2 * DRAWN_FLATNESS
    assert flatness(ramp) < 1.5 and flatness(grain) < 2.5
    assert flatness(np.full((150, 150), 128, np.uint8)) == 0.0
    assert flatness(np.where(areas > 100, 255, 0).astype(np.uint8)) == 0.0, "of black and white nothing is said"


def test_cel_shading_is_noticed_and_no_photograph_is(people):
    for name in DRAWN:
        (face,) = prominent(engine().faces(cel(people[name])))
        assert face.found_by == "hog" and not face.doubt and "flat areas with outlines" in face.drawn_look, name
    for name, image in people.items():
        edits = {
            "none": image,
            "jpeg": _jpeg(image, 50),
            "median": image.filter(ImageFilter.MedianFilter(5)),
            "sharp": image.filter(ImageFilter.UnsharpMask(2, 150, 2)),
            "contrast": ImageEnhance.Contrast(image).enhance(1.6),
            "bright": ImageEnhance.Brightness(image).enhance(1.8),
        }
        looks = {edit: [face.drawn_look for face in engine().faces(edited)] for edit, edited in edits.items()}
        assert not any(any(seen) for seen in looks.values()), (name, looks)


def test_a_face_that_looks_drawn_has_no_number_until_a_person_says_that_it_is_a_photograph(album, people):
    dataset = album(**{name: people[name] for name in DRAWN}, drawing=cel(people["obama"]))
    references = choose_references(dataset, engine(), [f"{name}.png" for name in DRAWN])
    scores = identity.score(dataset, references, engine())
    (key,) = (image.key for image in dataset.images if image.stem == "drawing")
    refused = scores.by_key[key]
    assert refused.state == "unverifiable" and refused.similarity is None and refused.faces == 1
    assert refused.note.startswith("counts as drawn: its edges are") and refused.note.endswith("set drawn_styles of Identity Score")
    kept = sifting.sift(scores, sifting.Sieve(threshold=0.99, keep="best", amount=1))
    assert "drawing" in {image.stem for image in kept.parts.review.images}, "never to the bin"
    assert all(score.state == "measured" for image, score in scores.by_key.items() if image != key)

    told = identity.score(dataset, references, engine(), drawn_too=True).by_key[key]
    assert told.state == "measured" and told.similarity > 0 and told.note.startswith("may be drawn: its edges are")


def test_images_without_a_project_are_held_to_the_same(people):
    drawing, photograph = cel(people["obama"]), people["obama2"]
    (refused,) = identity.compare([drawing], [photograph], engine())
    assert refused.similarity is None and refused.note.endswith("if it is a photograph all the same, set drawn_styles of Compare Faces")
    with pytest.raises(IdentityError, match=r"reference 2: counts as drawn: its edges are .* set drawn_styles of Compare Faces"):
        identity.compare([photograph], [photograph, drawing], engine())
    (told,) = identity.compare([drawing], [photograph], engine(), drawn_too=True)
    assert told.state == "measured" and told.note.startswith("may be drawn: its edges are")
    (back,) = identity.compare([photograph], [drawing], engine(), drawn_too=True)
    assert back.state == "measured"


def test_a_face_that_looks_drawn_is_no_reference_until_a_person_says_that_it_is_a_photograph(album, people):
    dataset = album(**{name: people[name] for name in DRAWN}, drawing=cel(people["obama"]))
    with pytest.raises(IdentityError, match=r"drawing\.png looks drawn: its edges are .* set drawn_styles of Identity References"):
        choose_references(dataset, engine(), ["drawing.png"])
    chosen = choose_references(dataset, engine())
    assert "drawing.png" not in chosen.names and any("drawing.png looks drawn" in note for note in chosen.notes)
    assert "drawing.png" not in calibrate(dataset, chosen, engine()).own
    taken = choose_references(dataset, engine(), ["drawing.png"], drawn_too=True)
    assert taken.names == ("drawing.png",) and any("drawing.png may be drawn: its edges are" in note for note in taken.notes)


def test_curation_says_that_a_source_looks_drawn(people):
    drawing = cel(people["obama"])
    verdict = assess(figures(drawing), engine().faces(drawing))
    assert any(problem.startswith("it looks drawn: its edges are") for problem in verdict.problems)
