"""What every engine owes, whichever it is."""

import dataclasses

import pytest
from comfyui_flenwheel.training import engines, presets
from comfyui_flenwheel.training.spec import ARCHITECTURES

from .test_musubi import spec_of


@pytest.mark.parametrize("name", list(engines.ENGINES))
def test_an_engine_says_what_it_can_and_every_memory_profile_suits_it(name):
    engine = engines.engine(name)
    assert engine.name == name and engine.trains and 0 <= engine.most_controls <= 3
    assert all(entry.metadata["help"].strip() for entry in dataclasses.fields(engine.options))
    for kind, architecture in engine.trains:
        assert architecture in ARCHITECTURES
        assert kind == "character" or engine.most_controls >= 1
        for memory in presets.memories(architecture):
            chosen = presets.options_for(name, memory, {}, architecture)
            engines.options(spec_of(architecture, engine=name, kind=kind, options=chosen))


def test_every_architecture_can_be_trained_by_somebody_who_is_not_rehearsing():
    able = {pair for name in engines.ENGINES if name != "rehearsal" for pair in engines.engine(name).trains}
    assert {architecture for _, architecture in able} == set(ARCHITECTURES)
