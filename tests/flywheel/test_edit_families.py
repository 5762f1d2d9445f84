import pytest
from comfyui_flenwheel.flywheel.edit_families import families, refuse_unsuitable
from comfyui_flenwheel.flywheel.errors import DatasetError
from comfyui_flenwheel.flywheel.layouts import LAYOUTS
from comfyui_flenwheel.flywheel.pair_sheet import pair_sheet
from comfyui_flenwheel.flywheel.pairs import load_captioned, load_pairs

from .conftest import picture


@pytest.fixture
def folders(tmp_path):
    for folder in ("t", "a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            picture(number).save(tmp_path / folder / f"{number}.png")
    return tmp_path / "t", [tmp_path / "a", tmp_path / "b"]


def test_the_data_names_layouts_that_exist():
    assert all(set(family.layouts) <= set(LAYOUTS) and (family.edits or family.why) for family in families())
    assert all(1 <= family.controls <= 3 for family in families() if family.edits)


def test_what_a_model_cannot_learn_is_refused_and_the_way_out_named(folders):
    target, controls = folders
    one, two = (load_pairs(target, controls[:count], instruction="x") for count in (1, 2))
    for suits in ("Qwen-Image-Edit-2509", "flux2-klein-4b", "FLUX.2 [dev]"):
        refuse_unsuitable(two, suits)
    refuse_unsuitable(one, "flux1-kontext", "ai-toolkit")
    refuse_unsuitable(load_captioned(target, instruction="x"), "flux1-dev", "kohya sd-scripts")
    with pytest.raises(DatasetError, match=r"Kontext \[dev\] takes at most 1 control image; the dataset has 2"):
        refuse_unsuitable(two, "flux1-kontext")
    with pytest.raises(DatasetError, match=r"cannot be trained on pairs: it makes pictures from text[^$]*") as caught:
        refuse_unsuitable(one, "flux1-dev")
    assert "Qwen-Image-Edit-2509" in str(caught.value)
    with pytest.raises(DatasetError, match="no control images"):
        refuse_unsuitable(load_captioned(target, instruction="x"), "qwen-image-edit-2511")
    with pytest.raises(DatasetError, match=r"does not train FLUX\.1 Kontext"):
        refuse_unsuitable(one, "flux1-kontext", "kohya sd-scripts")
    with pytest.raises(DatasetError, match="no model family"):
        refuse_unsuitable(one, "sd15")


def test_a_sheet_has_a_row_per_pair(folders):
    target, controls = folders
    dataset = load_pairs(target, controls, labels=("shirts", "logos"), instruction="put the logo on the shirt")
    sheet = pair_sheet(dataset, problems={"1": ["shift"]}, cell_px=96)
    assert sheet.width == 10 + 3 * 106 and sheet.height > 3 * 96
