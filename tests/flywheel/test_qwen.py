"""The rows of models and LoRAs, and the sizes at which pictures are shown to a model."""

import pytest
from comfyui_flenwheel.flywheel import instructions, lora, prompts, qwen
from comfyui_flenwheel.flywheel.editors.qwen.models import open_folder
from comfyui_flenwheel.flywheel.errors import EditorUnavailable

from .lora_files import save, tensors


def test_every_row_says_what_a_person_has_to_download():
    for row in qwen.models().values():
        assert row.steps > 0 and row.cfg >= 1 and 1 <= row.controls <= 3 and row.license
        for folder, name, size, address in row.files:
            assert folder in ("diffusion_models", "text_encoders", "vae") and ".safetensors" in name
            assert size.endswith(" GB") and address.startswith("https://huggingface.co/") and address.endswith(name)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("Qwen-Edit-2509-Multiple-angles", "Multiple angles (dx8152)"),
        ("镜头转换", "Multiple angles (dx8152)"),
        ("qwen-image-edit-2511-multiple-angles-lora", "Multiple angles, 96 poses (fal)"),
        ("Qwen-Image-Edit-2509-Relight", "Relight (dx8152)"),
        ("Qwen-Edit-Relight", "Relight (dx8152)"),
        ("参考色调", "Light migration (dx8152)"),
        ("Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16", "Lightning, 4 steps (lightx2v)"),
        ("Qwen-Image-Edit-2509-Lightning-8steps-V1.0-bf16", "Lightning, 8 steps (lightx2v)"),
        ("my character v3", None),
    ],
)
def test_published_loras_are_known_by_their_names(name, title):
    row = qwen.known(name)
    assert (row and row.title) == title


def test_the_presets_that_the_rows_name_exist_and_ask_for_what_they_are_for():
    camera = prompts.PromptSet(prompts.presets()["camera commands (2509 angle LoRA)"])
    assert {instructions.parse(prompt.text).kind for prompt in camera.expand()} == {"camera"}
    poses = prompts.PromptSet(prompts.presets()["96 poses (2511 angle LoRA)"])
    split = [lora.split_tags(prompt.text) for prompt in poses.expand()]
    assert len(split) == 96 and {tags for _, tags in split} == {("@angle",)}
    assert {instructions.parse(words).kind for words, _ in split} == {"camera"}, "no such edit is held against its photo's frame"
    for row in qwen.known_loras():
        assert all(name in prompts.presets() for name in row.words.split('"')[1::2])


@pytest.fixture
def later(monkeypatch):
    """One more row, as somebody adds it when a new version comes out."""
    told = qwen._data()
    row = told["models"]["Qwen-Image-Edit-2511"]
    folder = {**row["folder"], "repository": "Qwen/Qwen-Image-Edit-2601"}
    told["models"]["Qwen-Image-Edit-2601"] = {**row, "steps": 12, "folder": folder}
    monkeypatch.setattr(qwen, "_data", lambda: told)
    qwen.models.cache_clear()
    yield
    monkeypatch.undo()
    qwen.models.cache_clear()


@pytest.mark.parametrize(
    ("folder", "zero_cond_t", "name"),
    [
        ("Qwen-Image-Edit-2601", True, "Qwen-Image-Edit-2601"),
        ("qwen-image-edit-2601-nf4", True, "Qwen-Image-Edit-2601"),
        ("my model", True, "Qwen-Image-Edit-2511"),
        ("my model", False, "Qwen-Image-Edit-2509"),
        ("Qwen-Image-Edit-2511", False, "Qwen-Image-Edit-2509"),
    ],
)
def test_a_folder_is_known_by_its_name_among_those_that_are_built_like_it(later, folder, zero_cond_t, name):
    assert qwen.of_folder(folder, zero_cond_t).name == name


def test_a_later_model_is_one_more_row_of_data(later, tmp_path):
    assert qwen.steps_and_cfg(qwen.of_folder("Qwen-Image-Edit-2601", True), (), 0, 0) == (12, 4.0)
    with pytest.raises(EditorUnavailable, match=r"https://huggingface\.co/Qwen/Qwen-Image-Edit-2601"):
        open_folder(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("name", "width", "blocks", "says"),
    [
        ("Qwen-Image-Edit-2511", 3072, {"transformer_blocks": 60}, ""),
        ("Qwen-Image-Edit-2511", 3072, {"transformer_blocks": 59}, "59 of 60 transformer_blocks of Qwen-Image-Edit-2511"),
        ("Qwen-Image-Edit-2511", 64, {"transformer_blocks": 2}, ""),
        ("FLUX.1 Kontext", 3072, {"double_blocks": 19, "single_blocks": 30}, "30 of 38 single_blocks"),
        ("FLUX.2 klein", 3072, {"double_blocks": 5, "single_blocks": 20}, ""),
        ("FLUX.2 klein", 4096, {"double_blocks": 5, "single_blocks": 20}, "5 of 8 double_blocks and 20 of 24 single_blocks"),
    ],
)
def test_blocks_that_a_model_of_full_width_does_not_have_are_told(name, width, blocks, says):
    told = qwen.fewer_blocks(qwen.models()[name], width, blocks)
    assert says in told and bool(told) == bool(says)


def test_zero_stands_for_what_suits_model_and_loras(tmp_path):
    model = qwen.models()["Qwen-Image-Edit-2511"]
    fast = lora.stacked(save(tmp_path / "lightning-8steps.safetensors", tensors("Lightning")), 1.0)
    assert qwen.steps_and_cfg(model, (), 0, 0) == (40, 4.0)
    assert qwen.steps_and_cfg(model, (fast,), 0, 0) == (8, 1.0)
    assert qwen.steps_and_cfg(model, (fast,), 12, 0) == (12, 1.0)


@pytest.mark.parametrize(("source", "result"), [((910, 1137), (896, 1120)), ((3000, 2000), (1232, 816)), ((101, 99), (1008, 992))])
def test_a_control_of_the_results_shape_gets_the_results_size(source, result):
    assert qwen.control_size(*source, result, 0.0) == result


def test_another_shape_or_area_keeps_its_own_aspect_in_multiples_of_16():
    wide = qwen.control_size(2000, 1000, (896, 1120), 0.0)
    small = qwen.control_size(910, 1137, (896, 1120), 0.25)
    assert wide[0] == pytest.approx(2 * wide[1], rel=0.03) and wide[0] * wide[1] == pytest.approx(896 * 1120, rel=0.05)
    assert small[0] * small[1] == pytest.approx(250_000, rel=0.06) and small[0] / small[1] == pytest.approx(0.8, rel=0.05)
    assert all(side % 16 == 0 for side in wide + small)


def test_the_text_encoder_sees_the_area_it_was_trained_with():
    width, height = qwen.vision_size(4000, 3000)
    assert width * height == pytest.approx(384 * 384, rel=0.01) and width / height == pytest.approx(4 / 3, rel=0.01)
    assert min(qwen.vision_size(5000, 20)) >= 28
