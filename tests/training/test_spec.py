"""The spec: all problems at once, equal specs are one job, changed data is another."""

import dataclasses
import json

import pytest
from comfyui_flenwheel.training import engines, trainset
from comfyui_flenwheel.training import spec as specs
from comfyui_flenwheel.training.errors import SpecError, UnsupportedTraining


def test_a_spec_survives_json_and_keeps_its_id(spec):
    again = specs.from_json(json.loads(json.dumps(spec.as_json())))
    assert again == spec and again.id == spec.id and len(spec.id) == 12


def test_every_setting_but_the_place_of_the_data_makes_another_job(spec):
    assert dataclasses.replace(spec, dataset="elsewhere").id == spec.id
    for change in (
        {"rank": 5},
        {"seed": 1},
        {"steps": 61},
        {"dataset_key": "0" * 16},
        {"base_model": "x"},
        {"options": {}},
        {"sample_prompts": ()},
    ):
        assert dataclasses.replace(spec, **change).id != spec.id, change


def test_a_changed_caption_or_picture_is_other_data_and_a_new_name_is_not(spec, folder):
    part = next(folder.iterdir())
    text, picture = part / "image_000.txt", part / "image_000.png"
    text.write_text("photo of ohwx_char person, smiling")
    assert (changed := trainset.read(folder).key) != spec.dataset_key
    for path in (text, picture):
        path.rename(path.with_stem("renamed"))
    assert trainset.read(folder).key == changed
    part.rename(part.with_name("5_ohwx_char person"))
    assert trainset.read(folder).key != changed, "repeats count"


def test_all_problems_are_told_at_once(spec):
    value = {**spec.as_json(), "rank": 0, "steps": 2.5, "learning_rate": float("nan"), "kind": "style", "project": 7, "options": {"a": [1]}}
    with pytest.raises(SpecError) as caught:
        specs.from_json(value)
    told = " ".join(caught.value.problems)
    assert (
        all(name in told for name in ("rank", "steps", "learning_rate", "kind", "project", "options")) and len(caught.value.problems) == 6
    )


@pytest.mark.parametrize(("value", "told"), [([], "not a JSON object"), ({}, "engine is missing"), ({"ranks": 1}, "ranks is no setting")])
def test_what_is_no_spec_is_refused(value, told):
    with pytest.raises(SpecError, match=told):
        specs.from_json(value)


def test_an_engine_that_cannot_is_refused_before_anything_is_loaded_and_names_those_that_can(spec):
    for wrong in (dataclasses.replace(spec, engine="kohya", architecture="qwen_image_edit", kind="edit"),):
        with pytest.raises(UnsupportedTraining, match=r"kohya cannot train edit LoRAs for Qwen-Image-Edit. Engines that can: .*rehearsal"):
            engines.supports(wrong)
    with pytest.raises(UnsupportedTraining, match="no training engine 'koya'"):
        engines.supports(dataclasses.replace(spec, engine="koya"))


def test_unknown_and_wrong_options_of_an_engine_are_refused_all_at_once(spec):
    with pytest.raises(SpecError) as caught:
        engines.options(dataclasses.replace(spec, options={"speed": 1, "seconds_per_step": "fast", "trouble": "always"}))
    assert len(caught.value.problems) == 3 and "trouble is 'always': it must be one of none, nan loss" in str(caught.value)
