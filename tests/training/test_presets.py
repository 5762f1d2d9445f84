"""Presets: a complete spec from few words, every value with its reason, and the way down when memory is short."""

import dataclasses

import pytest
from comfyui_flenwheel.training import engines, presets


@pytest.mark.parametrize("quality", presets.qualities())
@pytest.mark.parametrize("memory", presets.memories())
@pytest.mark.parametrize("engine", list(engines.ENGINES))
def test_every_combination_is_a_spec_that_the_engine_takes(spec, quality, memory, engine):
    chosen = presets.chosen(quality, memory, 30)
    made = dataclasses.replace(spec, engine=engine, options=presets.options_for(engine, memory, {}), **chosen)
    engines.options(made)
    assert made.alpha == made.rank and 7 <= made.steps / made.save_every <= 9
    assert all(": " in reason and "your choice" not in reason for reason in presets.reasons(made, quality, memory, 30))


def test_what_a_person_chose_is_said_to_be_theirs(spec):
    made = dataclasses.replace(spec, **presets.chosen("balanced", "24 GB", 30, rank=5, steps=77))
    assert (made.rank, made.steps) == (5, 77)
    assert {"rank 5: your choice", "steps 77: your choice"} <= set(presets.reasons(made, "balanced", "24 GB", 30))


def test_steps_follow_the_number_of_images_within_limits():
    assert [presets.steps_for("balanced", images) for images in (1, 20, 500)] == [500, 1200, 4000]


def test_lighter_steps_down_through_the_profiles_says_what_it_changes_and_ends(spec):
    made = dataclasses.replace(spec, engine="kohya", options={}, resolution=1024)
    told = []
    while (step := presets.lighter(made)) is not None:
        made, words = step
        told.append(words)
    assert told == [
        "profile 16 GB: resolution 1024 to 768, blocks_to_swap 0 to 10",
        "profile 12 GB: resolution 768 to 512, blocks_to_swap 10 to 18",
    ]


def test_edits_have_presets_of_their_own(spec):
    made = dataclasses.replace(spec, **presets.chosen("balanced", "24 GB", 50, kind="edit", architecture="qwen_image_edit"))
    assert (made.kind, made.architecture, made.steps, made.resolution) == ("edit", "qwen_image_edit", 1500, 1024)
    assert any("field's rule" in reason for reason in presets.reasons(made, "balanced", "24 GB", 50))


def test_what_a_person_chose_is_never_made_heavier(spec):
    made = dataclasses.replace(spec, engine="kohya", options={"blocks_to_swap": 15}, resolution=640)
    smaller, words = presets.lighter(made)
    assert smaller.options["blocks_to_swap"] == 18 and smaller.resolution == 512 and words.startswith("profile 12 GB")
