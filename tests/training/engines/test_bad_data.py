"""Bad data before every engine: named in preflight with all the rest, whichever is chosen and although it is not there."""

import json
from importlib.util import find_spec

import pytest
from comfyui_flenwheel.training import engines, preflight
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training.errors import PreflightError

from ..conftest import training_set
from .conftest import pairs, spec_for

CASES = [(name, *sorted(engines.engine(name).trains)[-1]) for name in engines.ENGINES]


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """No engine is to be found."""
    for name in ("SD_SCRIPTS_ROOT", "MUSUBI_ROOT", "AITK_ROOT", "DIFFUSERS_ROOT", "FAL_KEY", "REPLICATE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MFLUX_TRAIN", "/nowhere/mflux-train")


def refused(project, folder, engine, kind, architecture):
    spec = spec_for(project, folder, engine, kind=kind, architecture=architecture, options={})
    with pytest.raises(PreflightError) as caught:
        preflight.check(jobs.find_or_create(project.root, spec))
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(("engine", "kind", "architecture"), CASES)
def test_a_damaged_picture_an_unreadable_text_and_the_engine_that_is_absent_are_named(project, engine, kind, architecture):
    if kind == "edit":
        folder = pairs(project)
        picture = project.root / "data/source/v1/start_2_1.png"
    else:
        folder = training_set(project, 4)
        picture = next(folder.rglob("image_002.png"))
        next(folder.rglob("image_001.txt")).write_bytes(b"\xff\xfe\x00caption")
    picture.write_bytes(picture.read_bytes()[:60])
    told = refused(project, folder, engine, kind, architecture)
    assert picture.name in told and (kind == "edit" or "image_001.txt is not readable text" in told)
    qlora = "model" if find_spec("bitsandbytes") else "install with"  # the quick part of the tests has no trainer's packages
    absent = {"rehearsal": "", "peft_qlora": qlora, "fal": "FAL_KEY is not set", "replicate": "REPLICATE_API_TOKEN is not set"}
    assert absent.get(engine, "was not found") in told


@pytest.mark.parametrize(("engine", "kind", "architecture"), [case for case in CASES if case[1] == "edit"])
def test_a_missing_control_is_named(project, engine, kind, architecture):
    folder = pairs(project)
    (project.root / "data/source/v1/start_2_1.png").unlink()
    assert "t2: start_2_1.png is not where it was" in refused(project, folder, engine, kind, architecture)


@pytest.mark.parametrize(("engine", "kind", "architecture"), CASES)
def test_an_empty_set_and_one_picture_are_refused(project, engine, kind, architecture):
    folder = pairs(project, count=1) if kind == "edit" else training_set(project, 1)
    assert "is the only image" in refused(project, folder, engine, kind, architecture)
    if kind == "edit":
        (folder / "triplets.json").write_text(json.dumps([]))
    else:
        for path in next(folder.iterdir()).iterdir():
            path.unlink()
    assert "holds no images" in refused(project, folder, engine, kind, architecture)


def test_every_edit_engine_is_among_them():
    assert {engine for engine, kind, _ in CASES if kind == "edit"} == {
        name for name in engines.ENGINES if any(kind == "edit" for kind, _ in engines.engine(name).trains)
    }
