"""Editing with ComfyUI's own models: the real Qwen classes, loaders, sampler and server at toy size (see tiny_qwen), on real photographs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import lora_files

pytestmark = [pytest.mark.comfy]
HERE = Path(__file__).parent
NOTHING = [0, 0.0]


@pytest.fixture(scope="module")
def told(comfyui, photos, tmp_path_factory):
    """What qwen_inside.py found, by check."""
    base = tmp_path_factory.mktemp("inside")
    command = [sys.executable, "-W", "ignore", str(HERE / "qwen_inside.py"), str(comfyui), str(base), str(photos / "obama.jpg")]
    done = subprocess.run(command, cwd=comfyui, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "memory leak" not in done.stderr, "a session must not keep the model it patched"
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_an_edit_with_one_to_three_pictures_is_exactly_what_the_stock_nodes_make_of_the_same_size(told):
    assert told["every_row_and_count"] == {f"{version} {count}": NOTHING for version in (2511, 2509) for count in (1, 2, 3)}


def test_a_later_model_is_one_more_row_of_data(told):
    later = told["later_model"]
    assert later["as stock"] == NOTHING and later["another schedule"] > 0 < later["other words"]
    assert later["steps"] == "12" and later["four"] == [160, 128, 3]


def test_every_style_of_lora_is_the_same_lora(told):
    assert set(told["styles"]["apart"]) == set(lora_files.STYLES)
    assert all(difference == NOTHING for difference in told["styles"]["apart"].values())
    assert told["styles"]["effect"][1] > 5


def test_lokr_is_the_change_it_stands_for(told):
    assert told["lokr"]["apart"][0] <= 1 and told["lokr"]["effect"][1] > 5


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise"])
def test_a_model_of_8_bits_is_edited_with_its_loras_whole_and_through_tables(told, kind):
    made = told["quantised"][kind]
    assert made["base"][1] < 1 and made["base"][0] > 0, "nearly the image of the full model"
    assert made["effect"] > 20 and made["lora"] < 4, "ComfyUI rounds the changed weights to 8 bits again"
    assert made["tables"][0] <= 1 and made["lora in tables"] < 4, "also on the layers that are tabulated"
    assert "0 of 28 layers" in made["wide"] and "128 to 128 wide, the model's 64 to 64" in made["wide"]


def test_what_other_nodes_did_to_the_model_stays(told):
    assert told["patched_elsewhere"] == [NOTHING, NOTHING]


def test_stacks_add_up_and_weight_0_is_the_base_to_the_bit(told):
    stacks = told["stacks"]
    assert stacks["weight 0"] == NOTHING == stacks["base afterwards"] and stacks["same fingerprint"]
    assert stacks["one"][1] > 5 and stacks["both"][1] > 5, "each has an effect"
    assert stacks["other order"][0] <= 1 and stacks["negative undoes"][0] <= 1, "changes of weights are sums"


def test_a_lora_for_camera_prompts_leaves_the_others_and_their_keys_alone(told):
    chosen = told["per_prompt"]
    assert chosen["background"] == NOTHING and chosen["same key"] and chosen["camera"][1] > 5
    assert chosen["tag"] == NOTHING and all(chosen["groups"]) and chosen["notes"] == ["angle x 1"]


def test_a_lightning_lora_brings_its_own_steps(told):
    assert told["lightning_sets_the_steps"] == [4, 1.0, "40"]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (
            "flux",
            ["LoraError", "flux.safetensors does not fit Qwen-Image-Edit-2511", "0 of 19 layers", "this is a FLUX LoRA", "Take it out"],
        ),
        ("size", ["LoraError", "0 of 28 layers", "another size", "128 to 128 wide, the model's 64 to 64"]),
        (
            "no parts",
            [
                "clip is empty",
                "type qwen_image",
                "vae is empty",
                "qwen_image_vae.safetensors (0.3 GB) into models/vae: https://huggingface.co/",
            ],
        ),
        ("no vae at all", ["vae is empty: what is connected holds none"]),
        ("empty", ["ImageError", "empty.png", "0 bytes"]),
        ("nan", ["EditorError", "NaN", "SageAttention"]),
        ("black", ["EditorError", "is black and was not kept", "SageAttention", "VAE"]),
        ("2509", ["EditorError", "model is Qwen-Image-Edit-2511, but Qwen-Image-Edit-2509 is chosen"]),
        ("kontext", ["EditorError", "model is a QwenImage, but FLUX.1 Kontext is chosen"]),
        ("words", ["EditorError", "is 5,000 words long", "Shorten it"]),
        ("four", ["EditorError", "takes 1 to 3 control images", "some requests have 4"]),
        ("tag", ["EditorError", "@angle names no LoRA", "LoRA Stack"]),
        ("memory", ["EditorError", "Out of memory at 128 x 160 px", "Lower megapixels"]),
    ],
)
def test_what_cannot_work_is_refused_in_words(told, case, says):
    assert [words for words in says if words not in told["refusals"][case]] == []


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("layer", "model is not whole: lacks_transformer_blocks.1.attn.to_q.safetensors lacks transformer_blocks.1.attn.to_q.bias"),
        ("gap", "model is not whole: lacks_nothing.safetensors lacks transformer_blocks.1"),
        ("outside", "lacks norm_out.linear.bias, norm_out.linear.weight"),
        ("clip", "clip is not whole: lacks_model.layers.1.mlp.safetensors lacks"),
        ("vae", "vae is not whole: lacks_decoder.upsamples.1.safetensors lacks"),
    ],
)
def test_a_valid_file_that_lacks_layers_is_refused_with_their_names(told, what, says):
    """ComfyUI only logs them."""
    assert says in told["not_whole"][what] and "Download the file again" in told["not_whole"][what]


def test_a_model_of_full_width_whose_file_may_lack_its_end_is_told_apart(told):
    end = told["without_an_end"]
    assert end["60"] == end["toy"] == "" and "59 of 60 transformer_blocks" in end["59"] and "download it again" in end["59"]


def test_running_out_of_memory_once_is_survived_and_nothing_sticks(told):
    assert told["refusals"]["memory once"] is True
    assert told["refusals"]["after all that"] == NOTHING


@pytest.mark.parametrize("where", ["text encoder", "photo", "decoding"])
def test_memory_that_runs_out_beside_the_model_is_survived_once_and_explained_when_it_does_not_end(told, where):
    same, noted, refused = told["memory_elsewhere"][where]
    assert same == NOTHING and noted is True
    assert "Out of memory at 128 x 160 px" in refused and "Lower megapixels" in refused


def test_one_to_three_pictures_of_any_size_and_results_of_any_shape(told):
    pictures = told["controls"]
    assert all(difference > 0 for difference in pictures["apart"]), "every picture counts"
    assert pictures["2509"] > 0 < pictures["extra"] and pictures["smaller control"] > 0
    assert pictures["ranges"] == [[1, 2, 3], [1]]
    assert pictures["sizes"] == [[64, 64], [96, 256], [272, 80]]


def test_progress_previews_and_cancelling_between_two_blocks(told):
    progress = told["progress"]
    assert progress["grows"] and progress["last"] == 1.0
    assert progress["ticks"] > 4 * 2, "oftener than once per step"
    assert progress["previews"] == [[16, 20]] * 4 + [[128, 160]], "one per step, then the image"
    assert progress["cancelled after s"] < 1


def test_a_preview_that_comes_too_soon_is_shown_with_the_next_report(told):
    assert told["reports"] == [[0.1, None], [0.4, 32], [0.6, 48], [0.7, 64]]


def test_prompts_are_encoded_before_the_first_image_and_the_images_are_the_same(told):
    ahead = told["ahead"]
    assert ahead["is"] and ahead["encoded before image"] == [0, 0, 0, 0], "three prompts and one negative"
    assert all(difference == NOTHING for difference in ahead["apart"])


def test_no_prompt_is_encoded_twice_however_many_photos_there_are(told):
    assert told["many_photos"] == [2.0, 0], "prompt and negative of each photo, all before the first image"


def test_another_try_of_an_image_costs_no_other_prompt_its_place(told):
    assert told["another_try"] == [0, 0, 0, 0, 2], "three prompts and the negative, then the one that nobody foresaw"


def test_comfyui_still_takes_the_model_from_under_a_sampler_when_another_thread_makes_room(told):
    """The reason for decoding with a copy that asks nobody for room. The day this fails, VAE.decode would do."""
    beside = told["making_room_beside"]
    assert beside["taken"] == [True] and beside["apart"][1] > 5 and beside["afterwards"] == NOTHING


def test_an_image_is_decoded_while_the_next_is_made_with_the_same_pixels_and_by_one_copy_of_the_decoder(told):
    beside = told["decoding_beside"]
    assert beside["waited"] == [True] * 3, "for a block of the next image to run, and it ran"
    assert beside["apart"] == [NOTHING] * 3
    assert beside["decoders"] == 1 and beside["shared weights"] == 0 and beside["let go"], "whatever ComfyUI does with its own"
    assert beside["account"][0].startswith("3 images in")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("another pack's", "the VAE is another pack's"),
        ("patched", "the VAE is patched"),
        ("dynamic", "dynamic VRAM"),
        ("no room", "the card has no room for both"),
        ("ran out", "memory ran out for both"),
        ("no second decoder", "there was no memory for another decoder"),
    ],
)
def test_where_it_is_not_safe_or_there_is_no_room_one_image_follows_the_other_and_that_is_said_once(told, how, why):
    order = told["decoding_in_order"][how]
    assert order["apart"] == [NOTHING] * 3 and order["threads"] == ["MainThread"] * 3
    (said,) = order["said"]
    assert why in said


def test_a_cancel_gives_up_the_image_that_is_being_decoded_and_the_next_run_makes_it(told):
    assert told["cancelled_beside"] == {"ended": "cancelled", "layers": [True], "kept": 0, "again": 3, "in all": 3}


@pytest.mark.parametrize("part", ["text encoder", "encoding a photo", "decoding"])
def test_a_cancel_is_heard_between_two_layers_of_every_part_and_leaves_no_hook_behind(told, part):
    assert told["cancelling_in_other_parts"][part] == [3, 0] and told["cancelling_in_other_parts"]["afterwards"] == NOTHING


def test_all_prompts_and_photos_are_encoded_first_and_kept_so_that_a_second_run_loads_no_text_encoder(told):
    kept = told["kept_on_disk"]
    assert kept["first"] == {"kinds": "w" * 42 + "p" * 2, "before image": 0, "loaded": 42, "kept": True}, "40 prompts, a negative per photo"
    assert kept["files"] == [42, 2]
    assert kept["again"] == {"kinds": "", "before image": 0, "loaded": 0, "kept": True}
    assert all(difference == NOTHING for difference in kept["apart"])


@pytest.mark.parametrize("how", ["with picture 2", "another layer", "another file", "the file replaced"])
def test_what_another_text_encoder_or_other_pictures_made_is_not_taken(told, how):
    assert told["kept_on_disk"][how]["kinds"].startswith("w" * 42) and told["kept_on_disk"][how]["kept"]


def test_the_graph_tells_the_file_of_a_gguf_text_encoder_whose_loader_leaves_no_note(told):
    kept = told["kept_on_disk"]
    assert kept["told by the graph"]["kinds"] == "w" * 42 and kept["told by the graph"]["kept"]
    assert kept["told by the graph again"]["kinds"] == ""
    assert kept["not told by the graph"] == [None] * 3, "another loader, a file that another node chooses, a node between them"


@pytest.mark.parametrize("how", ["patched", "unknown loader", "told by the graph and patched"])
def test_nothing_is_kept_of_a_text_encoder_that_cannot_be_told_from_others(told, how):
    made = told["kept_on_disk"][how]
    assert not made["kept"] and made["loaded"] > 0 and set(made["kinds"]) == {"w"}, "the photos are kept: the VAE is known"


def test_the_memory_plan_is_told_before_and_the_truth_after(told):
    plans = told["plans"]
    assert plans["before"] == [] and plans["stored"] and plans["more"]
    assert re.fullmatch(
        r"2 images in [\d.]+ s, [\d.]+ s each; 1 LoRA switches; memory at most [\d.]+ GiB \(expected [\d.]+\)\.", plans["after"][0]
    )
    rungs = {"large": "everything stays on the card", "middle": "one after the other", "small": "one by one, which is slow"}
    assert {name: words in plans["rungs"][name] for name, words in rungs.items()} == dict.fromkeys(rungs, True), plans["rungs"]


@pytest.mark.parametrize(("row", "controls"), [("FLUX.1 Kontext", [1]), ("FLUX.2 klein", [1, 2, 3]), ("FLUX.2 klein base", [1, 2, 3])])
def test_kontext_and_klein_are_rows_of_data_and_equal_to_the_stock_nodes(told, row, controls):
    flux = told["flux"][row]
    assert flux["as stock"] == NOTHING and flux["controls"] == controls
    assert flux["with lora"] > 1
    assert "for qwen.safetensors does not fit" in flux["wrong lora"] and "made for another model" in flux["wrong lora"]
    assert "The connected models do not belong together" in flux["wrong clip"]


def test_modulation_tables_keep_a_third_of_the_weights_off_the_card_and_make_the_same_images(told):
    tables = told["tables"]
    assert all(tables[name][0] <= 1 for name in ("plain", "lora", "2509")), "to one step of 255; the rows are computed together"
    assert tables["share"] < 0.67 and tables["loaded"] == [tables["share"]] * 3, (
        "what ComfyUI's manager counts as loaded, LoRA changes included"
    )
    assert tables["plan"] == [1.0, tables["share"], True]
    assert tables["afterwards"] == NOTHING == tables["after a failure"]
    assert "between those of its schedule" in tables["between"] and "Choose euler" in tables["between"]


def test_dynamic_vram_as_far_as_it_goes_without_a_card_makes_the_same_images_in_order_and_through_tables(told):
    """ComfyUI's own class and library, without the card's pages; a LoRA that it left on a layer is not counted twice."""
    dynamic = told["dynamic"]
    if dynamic is None:
        pytest.skip("comfy-aimdo has no library for this system")
    assert dynamic["kinds"] == [True] * 3 and dynamic["from the file"] and dynamic["batch"] == [3, 0]
    assert dynamic["same"] == dynamic["back"] == NOTHING and dynamic["tables"][0] <= 1
    assert dynamic["left"] == "LowVramPatch" and dynamic["lora in tables"][0] <= 1 and dynamic["effect"] > 1
    assert dynamic["page"] == "a page" and dynamic["afterwards"][0][0] <= 1 and dynamic["afterwards"][1] == NOTHING
