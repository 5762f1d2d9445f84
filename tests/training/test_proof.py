"""Done means it loads: the proof, the mark, the register; and the tables of layers against the real classes."""

import numpy as np
import pytest
from comfyui_flenwheel.flywheel import lora
from comfyui_flenwheel.training import proof
from comfyui_flenwheel.training.errors import TrainingFailed
from safetensors.numpy import load_file, save_file


def written(path, architecture="flux1", rank=2, fill=0.5, names=None, prefix="transformer."):
    tensors = {}
    for name in names or ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_k"):
        out, into = proof.modules(architecture)[name] or (0, 0)
        tensors |= {
            f"{prefix}{name}.lora_A.weight": np.full((rank, into), fill, np.float32),
            f"{prefix}{name}.lora_B.weight": np.full((out, rank), fill, np.float32),
        }
    save_file(tensors, path, {"format": "pt"})
    return path


def test_a_good_file_is_proved_and_its_style_does_not_matter(tmp_path):
    assert len(proof.prove(written(tmp_path / "a.safetensors"), "flux1").placed) == 2
    kohya = {}
    for name in ("double_blocks_0_img_attn_qkv", "single_blocks_37_linear2"):
        out, into = proof.modules("flux1")[
            name.replace("blocks_", "blocks.").replace("_img", ".img").replace("attn_", "attn.").replace("7_", "7.")
        ]
        kohya |= {
            f"lora_unet_{name}.lora_down.weight": np.ones((4, into), np.float16),
            f"lora_unet_{name}.lora_up.weight": np.ones((out, 4), np.float16),
        }
        kohya[f"lora_unet_{name}.alpha"] = np.array(4.0, np.float32)
    save_file(kohya, tmp_path / "kohya.safetensors")
    assert len(proof.prove(tmp_path / "kohya.safetensors", "flux1").placed) == 2


def test_alpha_is_what_loaders_will_apply(tmp_path):
    path = written(tmp_path / "a.safetensors")
    assert proof.alpha(proof.prove(path, "flux1"), 2) == 2.0, "none in the file: the rank"
    save_file({**load_file(path), "transformer.transformer_blocks.0.attn.to_q.alpha": np.array(8.0, np.float16)}, path)
    assert proof.alpha(proof.prove(path, "flux1"), 2) == 8.0


@pytest.mark.parametrize(
    ("make", "code", "told"),
    [
        (lambda path: path.write_bytes(b"<html>"), "garbage", "not a safetensors file"),
        (lambda path: path.write_bytes(written(path).read_bytes()[:5000]), "garbage", "cut off"),
        (lambda path: written(path, "qwen_image_edit", names=["transformer_blocks.59.attn.to_q"]), "garbage", "0 of 1 layers"),
        (lambda path: written(path, fill=float("nan")), "nan", "no numbers"),
        (lambda path: written(path, fill=0.0), "garbage", "learnt nothing"),
        (lambda path: save_file({"weight": np.ones(3)}, path), "garbage", "holds no LoRA"),
    ],
)
def test_everything_else_is_refused_in_words(tmp_path, make, code, told):
    path = tmp_path / "bad.safetensors"
    make(path)
    with pytest.raises(TrainingFailed, match=told) as caught:
        proof.prove(path, "flux1")
    assert caught.value.code == code and caught.value.advice


def test_bfloat16_is_looked_at_too(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    for value, good in ((0.5, True), (float("inf"), False)):
        tensors = {
            f"transformer_blocks.0.attn.to_q.lora_{part}.weight": torch.full(shape, value, dtype=torch.bfloat16)
            for part, shape in (("A", (2, 3072)), ("B", (3072, 2)))
        }
        save_torch(tensors, tmp_path / "b.safetensors")
        if good:
            proof.prove(tmp_path / "b.safetensors", "qwen_image_edit")
        else:
            with pytest.raises(TrainingFailed, match="no numbers"):
                proof.prove(tmp_path / "b.safetensors", "qwen_image_edit")


def test_the_mark_leaves_every_tensor_as_it_is(tmp_path):
    path = written(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(proof.marked(path, {"instance_token": "ohwx_Zoë"}))
    before, after = load_file(path), load_file(tmp_path / "b.safetensors")
    assert before.keys() == after.keys() and all((before[key] == after[key]).all() for key in before)
    assert lora.inspect(tmp_path / "b.safetensors").metadata == {"format": "pt", "flenwheel.instance_token": "ohwx_Zoë"}


def test_the_register_counts_up_and_knows_the_same_file(tmp_path):
    one, two = written(tmp_path / "1.safetensors"), written(tmp_path / "2.safetensors", fill=0.25)
    names = [proof.register(path, tmp_path / "loras", "Anna", "character", "abc").name for path in (one, two, one)]
    assert names == ["Anna-character-v001.safetensors", "Anna-character-v002.safetensors", "Anna-character-v001.safetensors"]
    assert proof.register(one, tmp_path / "loras", "Anna", "edit", "abc").name == "Anna-edit-v001.safetensors"
    assert not list((tmp_path / "loras").rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "cls", "options"),
    [
        ("flux1", "FluxTransformer2DModel", {"guidance_embeds": True}),
        ("qwen_image_edit", "QwenImageTransformer2DModel", {}),
        ("flux2_dev", "Flux2Transformer2DModel", {}),
        (
            "flux2_klein_4b",
            "Flux2Transformer2DModel",
            {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680, "guidance_embeds": False},
        ),
    ],
)
def test_the_tables_are_what_diffusers_builds(architecture, cls, options):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    with torch.device("meta"):
        model = getattr(diffusers, cls)(**options)
    real = {
        name: (module.out_features, module.in_features) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    }
    table = proof.modules(architecture)
    assert {name: table.get(name) for name in real} == real
    if architecture == "qwen_image_edit":
        assert table == real and len([name for name in table if ".attn." in name or "_mlp" in name or "_mod" in name]) == 840


def test_flux_has_the_304_layers_that_sd_scripts_trains():
    blocks = [name for name in proof.modules("flux1") if name.startswith(("double_blocks", "single_blocks"))]
    assert len(blocks) == 304
