"""LoRA files: every spelling is read, everything that does not fit is refused with its reason, and stacks choose per prompt."""

import json
import random
import struct

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import lora
from comfyui_flenwheel.flywheel.errors import EditorError, LoraError
from safetensors.numpy import load_file

from .lora_files import STYLES, modules, save, tensors

MODEL = "Qwen-Image"


@pytest.mark.parametrize("style", STYLES)
def test_every_style_finds_every_layer(tmp_path, style):
    file = lora.inspect(save(tmp_path / "angle.safetensors", tensors(style)))
    fitted = lora.fit(file, modules(), MODEL)
    assert set(fitted.placed) == set(modules()) and str(fitted) == "angle.safetensors: 28 of 28 layers"
    assert file.family == "Qwen-Image" and file.described() == "28 layers, rank 4, for Qwen-Image"
    assert all(layer.kind == "lora" and layer.rank == 4 for layer in file.layers)
    assert ("alpha" in file.layers[0].keys) is STYLES[style][4]


def test_the_answer_uses_the_names_the_model_was_described_with(tmp_path):
    file = lora.inspect(save(tmp_path / "a.safetensors", tensors("PEFT")))
    described = {f"diffusion_model.{name}": size for name, size in modules().items()}
    assert set(lora.fit(file, described, MODEL).placed) == set(described)


def test_lokr_is_known_for_what_it_is(tmp_path):
    named = {f"transformer.{name}.{part}": np.zeros((4, 4)) for name in modules() for part in ("lokr_w1", "lokr_w2")}
    file = lora.inspect(save(tmp_path / "k.safetensors", named))
    assert "LoKr" in file.described() and {layer.kind for layer in file.layers} == {"lokr"}
    assert len(lora.fit(file, modules(), MODEL).placed) == 28


FLUX = {f"lora_unet_double_blocks_{n}_img_attn_qkv.{part}.weight": np.zeros((4, 4)) for n in range(19) for part in ("lora_down", "lora_up")}
SDXL = {
    f"lora_unet_down_blocks_{n}_attentions_0_proj_in.{part}.weight": np.zeros((4, 4)) for n in range(3) for part in ("lora_down", "lora_up")
}
WAN = {f"diffusion_model.blocks.{n}.self_attn.q.{part}.weight": np.zeros((4, 4)) for n in range(30) for part in ("lora_A", "lora_B")}


@pytest.mark.parametrize(("named", "family", "layers"), [(FLUX, "FLUX", 19), (SDXL, "Stable Diffusion", 3), (WAN, "Wan video", 30)])
def test_a_lora_for_another_model_is_refused_by_name(tmp_path, named, family, layers):
    file = lora.inspect(save(tmp_path / "other.safetensors", named))
    with pytest.raises(LoraError, match=rf"does not fit Qwen-Image: 0 of {layers} layers: this is a {family} LoRA\..*Take it out"):
        lora.fit(file, modules(), MODEL)


def test_another_size_of_the_model_is_refused_with_both_widths(tmp_path):
    file = lora.inspect(save(tmp_path / "wide.safetensors", tensors("diffusers", width=128)))
    with pytest.raises(LoraError, match=r"0 of 28 layers.*") as refused:
        lora.fit(file, modules(), MODEL)
    assert "is 128 to 128 wide, the model's 64 to 64" in str(refused.value)


def test_one_layer_too_many_refuses_the_whole_file(tmp_path):
    named = {**tensors("diffusers"), **tensors("diffusers", chosen={"transformer_blocks.2.attn.to_q": (64, 64)})}
    with pytest.raises(LoraError, match=r"28 of 29 layers.*Nothing of it was loaded") as refused:
        lora.fit(lora.inspect(save(tmp_path / "more.safetensors", named)), modules(), MODEL)
    assert refused.value.problems == ("not in the model: transformer_blocks.2.attn.to_q",)


def test_a_tensor_of_an_unknown_kind_refuses_the_file(tmp_path):
    named = {**tensors("diffusers"), "transformer.transformer_blocks.0.attn.to_q.magic": np.zeros((2, 2))}
    with pytest.raises(LoraError, match="holds more than a LoRA"):
        lora.fit(lora.inspect(save(tmp_path / "magic.safetensors", named)), modules(), MODEL)


def test_text_encoder_layers_are_left_out_and_said(tmp_path):
    named = {**tensors("kohya and musubi"), **{f"lora_te1_layer_0.{part}.weight": np.zeros((4, 4)) for part in ("lora_down", "lora_up")}}
    assert str(lora.fit(lora.inspect(save(tmp_path / "te.safetensors", named)), modules(), MODEL)).endswith(
        "1 text encoder layers are left out"
    )


def test_bad_files_say_what_they_are(tmp_path):
    whole = save(tmp_path / "whole.safetensors", tensors("diffusers")).read_bytes()
    cases = {
        "cut.safetensors": (whole[:-1000], "cut off"),
        "page.safetensors": (b"<!doctype html><html>not found</html>", "not a safetensors file"),
        "empty.safetensors": (b"", "not a safetensors file"),
        "pickle.safetensors": (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
        "list.safetensors": (b"\x02\0\0\0\0\0\0\0[]", "not a safetensors file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LoraError, match=f"{name}.*{message}"):
            lora.inspect(tmp_path / name)
    with pytest.raises(LoraError, match=r"gone.safetensors cannot be read"):
        lora.inspect(tmp_path / "gone.safetensors")
    with pytest.raises(LoraError, match="holds no LoRA"):
        lora.inspect(save(tmp_path / "base.safetensors", {"transformer_blocks.0.attn.to_q.weight": np.zeros((2, 2))}))
    half = {key: array for key, array in tensors("diffusers").items() if "0.attn.to_q.lora_B" not in key}
    with pytest.raises(LoraError, match=r"is not whole: transformer_blocks.0.attn.to_q has no lora_B"):
        lora.inspect(save(tmp_path / "half.safetensors", half))


def damaged(whole):
    """A LoRA file with something wrong in its header, many times: single bytes, entries of all sorts, more or less than it says."""
    length = struct.unpack("<Q", whole[:8])[0]
    header, numbers, rng = json.loads(whole[8 : 8 + length]), whole[8 + length :], random.Random(0)
    first, offsets = next(iter(header)), {"data_offsets": [0, 256]}

    def written(told):
        text = json.dumps(told).encode()
        return struct.pack("<Q", len(text)) + text + numbers

    for _ in range(200):
        changed = bytearray(whole)
        changed[rng.randrange(8, 8 + length)] = rng.choice(b'0123456789[]{}",:x\xff ')
        yield bytes(changed)
    for entry in (None, 1, "x", [], {}, offsets, {**offsets, "shape": "ab"}, {**offsets, "dtype": "Q9", "shape": [4, 16]}):
        yield written({**header, first: entry})
    for told in ([1], 5, None, {}, {**header, "__metadata__": [1]}, {**header, "__metadata__": None}):
        yield written(told)
    yield whole + b"junk"


def test_a_damaged_header_is_refused_in_words_wherever_the_damage_is(tmp_path):
    """What still counts as a LoRA is one that can be read to its last number."""
    whole = save(tmp_path / "whole.safetensors", tensors("kohya and musubi", blocks=1, width=16)).read_bytes()
    refused = 0
    for number, content in enumerate(damaged(whole)):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        try:
            lora.fit(lora.inspect(path), modules(1, 16), MODEL)
            load_file(path)
        except LoraError as error:
            refused += path.name in str(error)
    assert refused > 200


def test_a_lora_of_rank_0_is_not_whole(tmp_path):
    path = save(tmp_path / "nothing.safetensors", tensors("Lightning", rank=0))
    with pytest.raises(LoraError, match=r"is not whole: transformer_blocks\.0\.attn\.to_q holds no numbers"):
        lora.inspect(path)


def test_a_file_that_changes_is_read_again(tmp_path):
    path = save(tmp_path / "a.safetensors", tensors("diffusers"))
    first = lora.stacked(path, 1.0)
    assert len(lora.inspect(path).layers) == 28
    save(path, tensors("diffusers", blocks=3))
    assert len(lora.inspect(path).layers) == 42 and lora.stacked(path, 1.0).key != first.key


@pytest.fixture
def stack(tmp_path):
    def one(name, *rest):
        return lora.stacked(save(tmp_path / f"{name}.safetensors", tensors("diffusers", seed=len(name))), *rest)

    every, camera, tagged = one("lightning", 1.0), one("angles", 0.9, "camera", "<sks>"), one("mine", 0.5, "@mine")
    return lora.LoraStack().plus(every).plus(camera).plus(tagged)


def names(loras):
    return [entry.name for entry in loras]


def test_a_prompt_gets_the_loras_of_its_kind_and_tags_in_order(stack):
    assert names(stack.for_prompt("Change background to forest", ())) == ["lightning"]
    assert names(stack.for_prompt("Change camera angle to slightly left", ())) == ["lightning", "angles"]
    assert names(stack.for_prompt("Change camera angle to slightly left", ("@mine",))) == ["lightning", "angles", "mine"]
    assert stack.described() == "lightning x 1, angles x 0.9 (camera), mine x 0.5 (@mine)"


def test_a_tag_nobody_has_is_an_error(stack):
    with pytest.raises(EditorError, match=r"@angle names no LoRA of the stack \(it has @mine\)"):
        stack.for_prompt("Turn left", ("@angle",))


def test_weight_0_is_as_if_it_were_not_there(stack, tmp_path):
    nothing = lora.stacked(save(tmp_path / "off.safetensors", tensors("diffusers")), 0.0)
    assert stack.plus(nothing) == stack


def test_when_must_be_understood(tmp_path):
    with pytest.raises(LoraError, match="says for no prompt when to use it"):
        lora.stacked(save(tmp_path / "a.safetensors", tensors("diffusers")), 1.0, "angles")


def test_tags_and_triggers_go_off_and_on_the_prompt(stack):
    assert lora.split_tags("@angle @mine Turn left") == ("Turn left", ("@angle", "@mine"))
    assert lora.split_tags("Write to me@home") == ("Write to me@home", ()) == (*lora.split_tags("Write to me@home"),)
    used = stack.for_prompt("Change camera angle to left", ())
    assert lora.with_triggers("Turn left", used) == "<sks> Turn left"
    assert lora.with_triggers("<sks> left", used) == "<sks> left"
    assert "<sks>" in lora.fingerprint(used) and lora.fingerprint(used) != lora.fingerprint(reversed(used))
