import json

import pytest
from comfyui_flenwheel.flywheel import captions, review
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.curate import curate
from comfyui_flenwheel.flywheel.dataset import Dataset
from comfyui_flenwheel.flywheel.errors import DatasetError, PromptError
from comfyui_flenwheel.flywheel.photo_shelf import photos_in
from comfyui_flenwheel.flywheel.recaption import describe, rewrite, untouched

from .faces.painted import Painted, painted_png

TEMPLATE = "photo of {token} {noun}, {text}"


class Cancelled(BaseException):
    """What ComfyUI raises out of a progress report."""


@pytest.fixture
def photographs(project, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.png").write_bytes(painted_png((10,), seed=number))
    return lambda: curate(project, photos_in(folder).photos, Painted()).dataset


def described(dataset):
    """Captions by name in metadata.json, which must be those of the .txt files."""
    document = json.loads(dataset.stage.metadata.read_text(encoding="utf-8"))
    texts = {path.stem: path.read_text(encoding="utf-8").strip() for path in dataset.stage.folder.glob("*.txt")}
    said = {entry["filename"]: entry["caption"] for entry in document["images"]}
    assert texts == {name.partition(".")[0]: caption for name, caption in said.items()}
    return said


def test_captions_of_photos_change_for_good_in_both_places(photographs):
    dataset = photographs()
    changes = captions.replaced({image.name: image.caption for image in dataset.images}, "photo", "portrait")
    rewritten = rewrite(dataset, {change.name: change.after for change in changes[:2]})
    assert [image.caption[:8] for image in rewritten.images[:3]] == ["portrait", "portrait", "photo of"]
    assert rewritten.images == photographs().images and rewritten.fingerprint != dataset.fingerprint
    assert described(dataset)["source_001.png"].startswith("portrait of ohwx_char")
    assert len(untouched(rewritten)) == 10 and "source_001.png" not in untouched(rewritten)


def test_captions_of_candidates_change_in_their_lineage(candidates):
    names = [image.name for image in candidates.images]
    rewritten = rewrite(candidates, {names[0]: "ohwx_char person asleep"})
    stored = {image.name: image.caption for image in review.under_review(candidates.stage).images}
    assert stored == {image.name: image.caption for image in rewritten.images} and stored[names[0]] == "ohwx_char person asleep"
    listed = json.loads(candidates.stage.metadata.read_text(encoding="utf-8"))["images"]
    assert [entry["caption"] for entry in listed].count("ohwx_char person asleep") == 1
    assert untouched(rewritten) == tuple(names[1:])


def test_what_cannot_be_set_changes_nothing(photographs, candidates):
    dataset = photographs()
    for given in (dataset, candidates):
        name = given.images[0].name
        with pytest.raises(DatasetError) as caught:
            rewrite(given, {name: "fine", given.images[1].name: "", "nobody.png": "x"})
        assert len(caught.value.problems) == 2 and name in untouched(given)
    with pytest.raises(DatasetError, match=r"\.txt files"):
        rewrite(Dataset(dataset.project, "training", dataset.images[:1]), {dataset.images[0].name: "x"})


def test_a_model_describes_only_what_nobody_has_touched_and_goes_on_where_it_was_stopped(photographs):
    dataset = rewrite(photographs(), {"source_002.png": "ohwx_char person, my own words"})
    shown: list[tuple[int, int]] = []

    def model(picture):
        shown.append(picture.size)
        return f'"in a park number {len(shown)}."'

    def report(done: int, total: int) -> None:
        assert total == 11
        if done == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        describe(dataset, model, template=TEMPLATE, report=report)
    said = described(dataset)
    assert len(shown) == 5 and said["source_001.png"] == "photo of ohwx_char person, in a park number 1"
    assert said["source_006.png"].endswith("number 5") and said["source_002.png"] == "ohwx_char person, my own words"
    again, count = describe(photographs(), model, template=TEMPLATE)
    assert count == 6 and len(shown) == 11 and again.images == photographs().images
    assert describe(again, model, template=TEMPLATE)[1] == 0
    assert describe(again, model, template=TEMPLATE, again=True)[1] == 12
    assert described(again)["source_002.png"].startswith("photo of ohwx_char person, in a park")


def test_a_model_describes_candidates_too(candidates):
    described, count = describe(candidates, lambda _: "in the rain", template=TEMPLATE)
    assert count == 6 and {image.caption for image in described.images} == {"photo of ohwx_char person, in the rain"}
    assert all(lineage.facts["caption"].endswith("in the rain") for lineage in Shelf(candidates.stage).lineages.values())


def test_a_wrong_template_is_found_before_the_model_works(photographs):
    def model(_):
        raise AssertionError

    with pytest.raises(PromptError):
        describe(photographs(), model, template="no place for words")
