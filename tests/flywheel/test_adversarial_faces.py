"""What a hard set of real pictures comes to, made from the demo portraits: each trap has one stated outcome."""

import pytest
from comfyui_flenwheel.flywheel import identity, sifting
from comfyui_flenwheel.flywheel.dataset import Dataset
from comfyui_flenwheel.flywheel.errors import IdentityError
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.flywheel.quality import UNKNOWN, figures, near_duplicates, view
from comfyui_flenwheel.flywheel.references import calibrate, choose_references
from PIL import Image, ImageFilter, ImageOps

from .faces.portraits import engine, portraits

pytestmark = pytest.mark.faces
CANVAS = 768


@pytest.fixture(scope="module")
def people():
    return {path.stem: _fitted(open_image(path, at_least=CANVAS).image, CANVAS) for path in portraits()}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return open_project(tmp_path_factory.mktemp("faces"), "Hard", instance_token="ohwx_char", class_noun="person", medium="photographs")


def _fitted(image: Image.Image, px: int) -> Image.Image:
    scale = px / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _beside(one: Image.Image, other: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (one.width + other.width, max(one.height, other.height)), "grey")
    sheet.paste(one, (0, 0))
    sheet.paste(other, (one.width, 0))
    return sheet


def _with_face_of(image: Image.Image, px: int) -> Image.Image:
    """The person small in a large empty picture: the face `px` wide."""
    face = engine().faces(image)[0]
    small = image.resize((round(image.width * px / face.width), round(image.height * px / face.width)), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (CANVAS, CANVAS), (120, 130, 125))
    sheet.paste(small, (200, 200))
    return sheet


def _scores(dataset: Dataset, names: list[str]) -> dict[str, identity.IdentityScore]:
    scores = identity.score(dataset, choose_references(dataset, engine(), names), engine())
    return {image.stem: scores.by_key[image.key] for image in dataset.images}


REFERENCES = ("obama", "obama2", "obama3")


def test_a_wrong_person_among_three_references_is_pointed_at(album, people):
    dataset = album(**{name: people[name] for name in ("obama", "obama2", "biden", "obama3")})
    references = choose_references(dataset, engine(), ["obama.png", "obama2.png", "biden.png"])
    assert any(note.startswith("biden.png looks like none of the other references") for note in references.notes)
    chosen = choose_references(dataset, engine())
    assert "biden.png" not in chosen.names and any(note.startswith("biden.png does not look like the other") for note in chosen.notes)
    meaning = calibrate(dataset, chosen, engine())
    assert set(meaning.own) == {f"{name}.png" for name in REFERENCES} and set(meaning.others) == {"biden.png"}
    assert min(meaning.own.values()) > identity.THRESHOLD > meaning.others["biden.png"]


def test_two_people_in_every_picture(album, people):
    pairs = {f"pair_{name}": _beside(people[name], people["biden"]) for name in ("obama", "obama2")}
    dataset = album(**{name: people[name] for name in REFERENCES}, **pairs, alone=people["biden"])
    scored = _scores(dataset, [f"{name}.png" for name in REFERENCES])
    for name in pairs:
        assert scored[name].faces == 2, "a second person is counted"
        assert scored[name].similarity > identity.MATCH, "any face may be the one"
    assert scored["alone"].similarity < identity.REVIEW
    with pytest.raises(IdentityError, match="2 faces"):
        choose_references(dataset, engine(), ["pair_obama.png"])


def test_small_faces_are_identified_down_to_40_px_and_refused_below(album, people):
    sizes = (20, 28, 40, 50, 60)
    dataset = album(**{name: people[name] for name in REFERENCES}, **{f"px{px}": _with_face_of(people["obama2"], px) for px in sizes})
    scored = _scores(dataset, ["obama.png", "obama3.png"])
    assert scored["px20"].state == scored["px28"].state == "no_face"
    assert scored["px40"].state != "measured" or scored["px40"].similarity > identity.REVIEW, "at the bound: no number, or a true one"
    for px in (50, 60):
        assert scored[f"px{px}"].similarity > identity.MATCH, "small is no reason to call him another man"


def test_a_restyled_face_is_never_called_a_match_for_a_stranger(album, people):
    def restyled(image: Image.Image) -> dict[str, Image.Image]:
        return {
            "poster": ImageOps.posterize(image, 2),
            "paint": image.filter(ImageFilter.ModeFilter(11)),
            "blur": image.filter(ImageFilter.GaussianBlur(10)),
            "sketch": ImageOps.grayscale(image).filter(ImageFilter.FIND_EDGES).convert("RGB"),
        }

    made = {f"{who}_{way}": image for who in ("obama2", "biden") for way, image in restyled(people[who]).items()}
    dataset = album(**{name: people[name] for name in REFERENCES}, **made)
    scored = _scores(dataset, ["obama.png", "obama3.png"])
    outcomes = {
        name: identity.band(score.similarity) if score.similarity else score.state for name, score in scored.items() if name in made
    }
    assert outcomes == {
        "obama2_poster": "match",
        "obama2_paint": "review",
        "obama2_blur": "unverifiable",
        "obama2_sketch": "no_face",
        "biden_poster": "different",
        "biden_paint": "different",
        "biden_blur": "no_face",
        "biden_sketch": "no_face",
    }
    kept = sifting.parts(identity.score(dataset, choose_references(dataset, engine(), ["obama.png", "obama3.png"]), engine()))
    assert not {image.stem for image in kept.rejected.images} & {name for name, score in scored.items() if score.similarity is None}


def test_a_face_that_only_the_second_detector_sees_goes_to_the_review_and_never_to_the_bin(album, people):
    lying = people["obama2"].rotate(90, expand=True)
    dataset = album(**{name: people[name] for name in REFERENCES}, lying=lying, stranger=people["biden"])
    references = choose_references(dataset, engine(), ["obama.png", "obama3.png"])
    scores = identity.score(dataset, references, engine())
    scored = {image.stem: scores.by_key[image.key] for image in dataset.images}
    assert scored["lying"].state == "unverifiable" and "turned away, covered or in hard light" in scored["lying"].note
    assert view(engine().faces(lying), lying.size).angle == UNKNOWN, "its landmarks often point the wrong way"
    kept = sifting.sift(scores, sifting.Sieve(threshold=0.9, keep="best", amount=1))
    assert "lying" in {image.stem for image in kept.parts.review.images} & {image.stem for image in kept.split.unmeasurable.images}
    assert "stranger" in {image.stem for image in kept.parts.rejected.images}


def test_a_photo_under_a_heavy_filter_is_pointed_at_before_anything_is_made(album, people):
    dataset = album(**{name: people[name] for name in REFERENCES}, filtered=people["obama2"].filter(ImageFilter.ModeFilter(23)))
    chosen = choose_references(dataset, engine())
    assert [odd.name for odd in chosen.odd] == ["filtered.png"] and "filtered.png" not in chosen.names


def test_a_mirrored_duplicate_matches_and_is_another_image(album, people):
    dataset = album(**{name: people[name] for name in REFERENCES}, mirrored=ImageOps.mirror(people["obama2"]))
    scored = _scores(dataset, [f"{name}.png" for name in REFERENCES])
    assert scored["mirrored"].similarity > identity.MATCH and scored["mirrored"].matched == "obama2.png"
    twins = near_duplicates({image.name: figures(open_image(dataset.path(image)).image) for image in dataset.images})
    assert set(twins) <= {"obama2.png", "mirrored.png"} and [twin.mirrored for twin in twins.values()] == [True], "and curation names it"
