"""Weight files: folders, ComfyUI's single files with and without fp8 scales, quantised once, refused when they cannot be read truthfully."""

import json
import shutil

import pytest

torch = pytest.importorskip("torch")

from comfyui_flenwheel.flywheel.editors.qwen import load, memory, modulation, quantised  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen.models import GIB, ModelFolder, open_folder  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen.tensors import TensorFiles  # noqa: E402
from comfyui_flenwheel.flywheel.errors import EditorUnavailable, StorageError  # noqa: E402

from .test_qwen_modulation import fresh, predicted, tables_of  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TIME = torch.tensor([0.5])


def loaded(model: ModelFolder, precision="as stored", cache=None, progress=lambda *_: None, zero=False):
    files = TensorFiles(model.files("transformer"))
    tables = modulation.build(files.read, 2, modulation.grid(TIME, torch.float32, zero=zero), torch.float32)
    return load.transformer(model, tables, precision=precision, dtype=torch.float32, device="cpu", cache=cache, progress=progress)[0]


@torch.no_grad()
def output(transformer):
    return predicted(transformer, TIME)


def single_file(tiny, path, change=lambda name, tensor: {name: tensor}, extra=None):
    """The transformer as one file, each tensor changed as wanted."""
    from safetensors.torch import save_file

    state = dict(extra or {})
    for name, tensor in tiny.pipeline.transformer.state_dict().items():
        state |= change(name, tensor)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return ModelFolder(tiny.folder, path)


def to_fp8(marker, scale_name, prefix="", per=1.0):
    """As ComfyUI stores it: linear weights of the blocks divided by a scale, and the scale beside them."""

    def change(name, tensor):
        if not (name.endswith(".weight") and tensor.ndim == 2 and name.startswith("transformer_blocks")):
            return {prefix + name: tensor}
        scale = tensor.abs().max() / 448 * per
        owner = name.removesuffix(".weight")
        made = {prefix + name: (tensor / scale).to(torch.float8_e4m3fn), f"{prefix}{owner}.{scale_name}": scale.reshape(())}
        if marker == "comfy_quant":
            made[f"{prefix}{owner}.comfy_quant"] = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
        return made

    return change


class Cancelled(BaseException):
    pass


# --- what is read -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny_2511"])
def test_streaming_a_folder_gives_the_transformer(request, name):
    tiny = request.getfixturevalue(name)
    counted = []
    transformer = loaded(ModelFolder(tiny.folder), progress=lambda done, total: counted.append((done, total)), zero=name == "tiny_2511")
    assert (output(transformer) - output(fresh(tiny))).abs().max() < 1e-6
    assert counted[-1][0] == counted[-1][1] > 50 and not any(weight.is_meta for weight in transformer.parameters())


def test_the_text_encoder_read_in_pieces_is_the_one_transformers_reads(tiny):
    ours = load.text_encoder(ModelFolder(tiny.folder), precision="as stored", dtype=torch.float32, device="cpu").state_dict()
    theirs = {name: weight for name, weight in tiny.pipeline.text_encoder.state_dict().items() if not name.startswith("lm_head")}
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], weight) for name, weight in theirs.items())


@torch.no_grad()
def test_the_patches_of_a_picture_are_read_by_a_product_that_is_the_convolution(tiny, monkeypatch):
    encoder = load.text_encoder(ModelFolder(tiny.folder), precision="as stored", dtype=torch.float32, device="cpu")
    ours, theirs = encoder.model.visual.patch_embed, tiny.pipeline.text_encoder.model.visual.patch_embed
    patches = torch.randn(100, 3 * 2 * 14 * 14)
    expected = theirs(patches)
    monkeypatch.setattr(torch.nn.functional, "conv3d", None)
    assert torch.allclose(ours(patches), expected, atol=1e-5) and ours(patches).shape == expected.shape


@pytest.mark.parametrize("precision", ["as stored", "int8"])
def test_reading_the_text_encoder_is_cancelled_between_two_weights_and_leaves_nothing_half(tiny, tmp_path, monkeypatch, precision):
    read, whole = [], TensorFiles.raw
    monkeypatch.setattr(TensorFiles, "raw", lambda files, name: (read.append(name), whole(files, name))[1])
    how = {"precision": precision, "dtype": torch.float32, "device": "cpu", "cache": tmp_path}

    def cancel(done, total):
        if read:
            raise Cancelled

    with pytest.raises(Cancelled):
        load.text_encoder(ModelFolder(tiny.folder), **how, progress=cancel)
    assert len(set(read)) == 1 and not list(tmp_path.iterdir())
    shares = []
    load.text_encoder(ModelFolder(tiny.folder), **how, progress=lambda done, total: shares.append(done / total))
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares) and len(shares) > 50


@pytest.fixture(scope="module", params=["nf4", "int8"])
def fewer_bits(request, tiny, tmp_path_factory):
    """The tiny model with its text encoder stored in fewer bits, as people publish them, and what transformers reads of it."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig, Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp(request.param) / "tiny"
    shutil.copytree(tiny.folder, folder)
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    how = BitsAndBytesConfig(**(nf4 if request.param == "nf4" else {"load_in_8bit": True}), llm_int8_skip_modules=["visual", "lm_head"])
    encoder = folder / "text_encoder"
    made = Qwen2_5_VLForConditionalGeneration.from_pretrained(encoder, quantization_config=how, dtype=torch.float32)
    shutil.rmtree(encoder)
    made.save_pretrained(encoder)
    return ModelFolder(folder), Qwen2_5_VLForConditionalGeneration.from_pretrained(encoder, dtype=torch.float32)


@pytest.mark.parametrize("precision", ["as stored", "fp8", "nf4"])
@torch.no_grad()
def test_a_text_encoder_stored_in_fewer_bits_is_taken_as_it_is_stored_whatever_is_asked_for(fewer_bits, tmp_path, precision):
    model, theirs = fewer_bits
    words = torch.arange(10)[None]
    expected = theirs.model.language_model(input_ids=words).last_hidden_state
    for _ in range(2):
        ours = load.text_encoder(model, precision=precision, dtype=torch.float32, device="cpu", cache=tmp_path)
        assert torch.equal(ours.model.language_model(input_ids=words).last_hidden_state, expected)


def test_reading_a_text_encoder_stored_in_fewer_bits_is_cancelled_between_two_weights(fewer_bits, monkeypatch):
    """And the next run reads it whole."""
    model, theirs = fewer_bits
    read, whole = [], TensorFiles.raw
    monkeypatch.setattr(TensorFiles, "raw", lambda files, name: (read.append(name), whole(files, name))[1])

    def cancel(done, total):
        if len(read) == 3:
            raise Cancelled

    how = {"precision": "as stored", "dtype": torch.float32, "device": "cpu"}
    with pytest.raises(Cancelled):
        load.text_encoder(model, **how, progress=cancel)
    assert len(read) == 3
    assert load.text_encoder(model, **how).state_dict().keys() == {name for name in theirs.state_dict() if not name.startswith("lm_head")}


def test_the_memory_plan_counts_a_text_encoder_stored_in_fewer_bits_as_it_is_stored(fewer_bits):
    model, _ = fewer_bits
    how = {"device": torch.device("cpu"), "dtype": torch.float32, "precision": "auto", "rung": "auto", "tokens": 64, "pixels": 128**2}
    plan = memory.plan(model, **how, steps=2, batch=1)
    stored = sum(path.stat().st_size for path in model.files("text_encoder"))
    assert plan.text_precision == "as stored" and plan.text_encoder * GIB == pytest.approx(stored, rel=0.1)


@pytest.mark.parametrize(
    ("part", "lost"),
    [("transformer", "transformer_blocks.1.attn.to_q.weight"), ("text_encoder", "layers.1.mlp"), ("vae", "decoder.mid_block")],
)
def test_a_valid_file_that_lacks_layers_is_refused_with_their_names(tiny, tmp_path, part, lost):
    """The libraries would only warn, and compute with noise."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "tiny"
    shutil.copytree(tiny.folder, folder)
    (path,) = (folder / part).glob("*.safetensors")
    state = {name: weight for name, weight in load_file(path).items() if lost not in name}
    save_file(state, path, metadata={"format": "pt"})
    read = {
        "transformer": loaded,
        "text_encoder": lambda model: load.text_encoder(model, precision="as stored", dtype=torch.float32, device="cpu"),
        "vae": lambda model: load.vae(model, dtype=torch.float32, device="cpu"),
    }
    with pytest.raises(EditorUnavailable, match=rf"{part} lacks \d+ .*{lost}.*download is not whole"):
        read[part](ModelFolder(folder))


def test_a_valid_single_file_that_lacks_a_block_is_refused_with_its_names(tiny, tmp_path):
    model = single_file(tiny, tmp_path / "lacks.safetensors", lambda name, tensor: {} if "blocks.1." in name else {name: tensor})
    with pytest.raises(EditorUnavailable, match=r"lacks.safetensors lacks \d+ of .*transformer_blocks\.1\..* and \d+ more"):
        load.refuse_lost_weights(model)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_single_file_is_read_under_any_prefix(tiny, tmp_path, prefix):
    model = single_file(tiny, tmp_path / "one.safetensors", lambda name, tensor: {prefix + name: tensor})
    assert (output(loaded(model)) - output(fresh(tiny))).abs().max() < 1e-6


@pytest.mark.parametrize(("marker", "scale"), [("scaled_fp8", "scale_weight"), ("comfy_quant", "weight_scale")])
@pytest.mark.parametrize("precision", ["as stored", "fp8", "int8"])
def test_a_scaled_fp8_file_is_read_with_its_scales(tiny, tmp_path, marker, scale, precision):
    """diffusers 0.42 loads such a file without a word and with weights that are wrong by the scale."""
    extra = {"model.diffusion_model.scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)} if marker == "scaled_fp8" else None
    model = single_file(tiny, tmp_path / "scaled.safetensors", to_fp8(marker, scale, "model.diffusion_model."), extra)
    transformer, expected = loaded(model, precision), output(fresh(tiny))
    assert (output(transformer) - expected).norm() / expected.norm() < 0.06
    assert quantised.kinds(transformer) == {"int8" if precision == "int8" else "fp8"}
    if precision != "int8":  # the very bits of the file
        stored = TensorFiles([model.transformer_file]).raw("transformer_blocks.0.attn.to_q.weight")
        assert torch.equal(transformer.transformer_blocks[0].attn.to_q.weight, stored.view(torch.uint8))


def test_a_plain_fp8_file_is_read_without_scales(tiny, tmp_path):
    model = single_file(
        tiny, tmp_path / "plain.safetensors", lambda name, tensor: {name: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 else tensor}
    )
    expected = output(fresh(tiny))
    assert (output(loaded(model)) - expected).norm() / expected.norm() < 0.1


def test_formats_that_are_not_known_are_refused_by_name(tiny, tmp_path):
    marked = torch.tensor(list(json.dumps({"format": "nvfp4"}).encode()), dtype=torch.uint8)
    model = single_file(tiny, tmp_path / "new.safetensors", extra={"transformer_blocks.0.attn.to_q.comfy_quant": marked})
    with pytest.raises(EditorUnavailable, match=r"new\.safetensors.*nvfp4.*ComfyUI models editor"):
        loaded(model)
    packed = single_file(
        tiny, tmp_path / "packed.safetensors", lambda name, tensor: {name: tensor.to(torch.int8) if "to_q" in name else tensor}
    )
    with pytest.raises(EditorUnavailable, match="packed weights"):
        loaded(packed)


def test_another_models_file_is_refused(tiny, tmp_path):
    lacking = single_file(tiny, tmp_path / "lacking.safetensors", lambda name, tensor: {} if "to_k" in name else {name: tensor})
    with pytest.raises(EditorUnavailable, match=r"lacking\.safetensors lacks 4 of \d+ weights.*another model"):
        loaded(lacking)
    strange = single_file(tiny, tmp_path / "strange.safetensors", extra={"double_blocks.0.weight": torch.ones(2, 2)})
    with pytest.raises(EditorUnavailable, match=r"double_blocks\.0\.weight.*another model"):
        loaded(strange)


def test_a_comfyui_file_of_2511_is_known_by_its_mark_and_refused_over_another_folder(tiny, tiny_2511, tmp_path):
    """An empty tensor says there that controls are modulated at time zero; the weights alone fit either model."""
    mark = {"__index_timestep_zero__": torch.tensor([])}
    model = single_file(tiny_2511, tmp_path / "qwen_2511.safetensors", to_fp8("comfy_quant", "weight_scale"), mark)
    assert open_folder(str(tiny_2511.folder), str(model.transformer_file)) == model
    expected = output(fresh(tiny_2511))
    assert (output(loaded(model, zero=True)) - expected).norm() / expected.norm() < 0.06
    with pytest.raises(EditorUnavailable, match=r"qwen_2511\.safetensors belongs to Qwen-Image-Edit-2511.*give that model's folder"):
        open_folder(str(tiny.folder), str(model.transformer_file))


def test_the_first_qwen_image_edit_with_its_other_words_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "first")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("QwenImageEditPlusPipeline", "QwenImageEditPipeline"))
    with pytest.raises(EditorUnavailable, match=r"model_index\.json says QwenImageEditPipeline.*Qwen-Image-Edit-2511, 54 GiB"):
        open_folder(str(folder))


# --- made once --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
def test_quantised_weights_are_made_once_and_are_the_same_again(tiny, tmp_path, kind, monkeypatch):
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    model = ModelFolder(tiny.folder)
    first = loaded(model, kind, tmp_path)
    (kept,) = (tmp_path / "quantised").glob("*.safetensors")
    (stored,) = (tiny.folder / "transformer").glob("*.safetensors")
    assert kept.name.startswith(f"tiny-{kind}-") and kept.stat().st_size < 0.5 * stored.stat().st_size
    monkeypatch.setattr(quantised, "linear", None)  # nothing may be quantised a second time
    again = loaded(model, kind, tmp_path)
    assert torch.equal(output(first), output(again))


def test_a_model_of_the_same_shapes_is_another_model(tiny, tmp_path):
    """As 2509 and its fine-tunes are: names, sizes and headers are equal, and the numbers are not."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "tuned"
    shutil.copytree(tiny.folder, folder)
    (path,) = (folder / "transformer").glob("*.safetensors")
    weights = load_file(path)
    first, tuned = loaded(ModelFolder(tiny.folder), "int8", tmp_path), ModelFolder(folder)
    assert tuned.key("transformer") == ModelFolder(tiny.folder).key("transformer"), "a copy is the same model"
    for name in ("proj_out.weight", "transformer_blocks.0.attn.to_q.bias"):  # one of them alone is enough
        save_file(weights | {name: weights[name] + 0.5}, path, {"format": "pt"})
        assert tuned.key("transformer") != ModelFolder(tiny.folder).key("transformer")
        assert {part: tuned.key(part) for part in ("text_encoder", "vae")} == {
            part: ModelFolder(tiny.folder).key(part) for part in ("text_encoder", "vae")
        }
    save_file(weights | {"proj_out.weight": -weights["proj_out.weight"]}, path, {"format": "pt"})
    assert not torch.allclose(output(loaded(tuned, "int8", tmp_path)), output(first), atol=0.1)
    assert len(list((tmp_path / "quantised").glob("*.safetensors"))) == 2


@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float32), (300, torch.float32), (2050, torch.float32), (300, torch.bfloat16)])
def test_integer_products_are_the_rounded_numbers_product(rows, dtype):
    """w8a8 against the same rounding done in full precision: nothing else may be lost."""
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(192, 128, generator=generator), torch.randn(rows, 128, generator=generator).to(dtype)
    layer = quantised.linear(weight, torch.ones(192), "w8a8", dtype=dtype, device="cpu")
    per_row = x.float().abs().amax(dim=1, keepdim=True) / 127
    expected = ((x.float() / per_row).round() * per_row) @ layer.full(torch.float32).T + 1
    made = layer(x[None])[0]
    assert made.dtype == dtype and made.shape == (rows, 192)
    assert (made.float() - expected).abs().max() < (2e-5 if dtype == torch.float32 else 0.02) * expected.abs().max()
    assert (expected - (x.float() @ weight.T + 1)).norm() / expected.norm() < 0.02


def test_w8a8_takes_the_weights_that_were_kept_for_int8_and_refuses_a_device_without_integers(tiny, tmp_path, monkeypatch):
    model = ModelFolder(tiny.folder)
    exact = output(loaded(model, "int8", tmp_path))
    monkeypatch.setattr(quantised, "linear", None)  # nothing may be quantised a second time
    transformer = loaded(model, "w8a8", tmp_path)
    assert quantised.kinds(transformer) == {"w8a8"}
    assert 0 < (output(transformer) - exact).norm() / exact.norm() < 0.03
    with pytest.raises(EditorUnavailable, match=r"meta does not offer.*int8 or fp8"):
        quantised.refuse_without_integer_products("meta")


def test_a_full_disk_is_told_and_leaves_nothing_half(tiny, tmp_path, monkeypatch):
    import safetensors.torch

    def full(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(StorageError, match=r"No space left on device.*Free some space"):
        loaded(ModelFolder(tiny.folder), "int8", tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_an_interrupted_quantisation_leaves_nothing_half(tiny, tmp_path):
    class Cancelled(BaseException):
        pass

    def cancel(done, total):
        if done > total / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        loaded(ModelFolder(tiny.folder), "int8", tmp_path, cancel)
    assert not list(tmp_path.rglob("*.*"))


# --- what is missing --------------------------------------------------------------------------------------------------------------------


def test_no_folder_says_what_to_get_and_from_where(tmp_path):
    for text in ("", str(tmp_path / "nowhere")):
        with pytest.raises(EditorUnavailable, match=r"no Qwen-Image-Edit model folder.*54 GiB.*huggingface\.co/Qwen/.*models/diffusers"):
            open_folder(text)


def test_every_missing_or_damaged_part_is_named(tiny, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(tiny.folder, folder)
    shutil.rmtree(folder / "vae")
    (folder / "model_index.json").unlink()
    with pytest.raises(EditorUnavailable, match=r"model_index\.json is missing.*vae is missing"):
        open_folder(str(folder))
    shutil.rmtree(folder)
    shutil.copytree(tiny.folder, folder)
    (weights,) = (folder / "transformer").glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    with pytest.raises(EditorUnavailable, match=r"cut off: .* bytes; download it again"):
        open_folder(str(folder))
    weights.write_bytes(b"<html>not found</html>")
    with pytest.raises(EditorUnavailable, match=r"not a readable \.safetensors"):
        open_folder(str(folder))
    for content in (b"\x02\0\0\0\0\0\0\0[]", b"\x0a\0\0\0\0\0\0\0" + b'{"a":null}', whole + b"junk"):
        weights.write_bytes(content)
        with pytest.raises(EditorUnavailable, match=r"transformer: .* is not a readable \.safetensors"):
            open_folder(str(folder))
    weights.unlink()
    with pytest.raises(EditorUnavailable, match=r"transformer/ holds no \.safetensors"):
        open_folder(str(folder))
    weights.write_bytes(whole)
    (folder / "transformer" / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone-00002.safetensors"}}))
    with pytest.raises(EditorUnavailable, match=r"gone-00002\.safetensors is missing \(an unfinished download"):
        open_folder(str(folder))


def test_a_gguf_file_is_sent_to_the_other_editor(tiny, tmp_path):
    (tmp_path / "qwen.gguf").write_bytes(b"GGUF")
    with pytest.raises(EditorUnavailable, match=r"qwen\.gguf is a GGUF file.*ComfyUI models editor"):
        open_folder(str(tiny.folder), str(tmp_path / "qwen.gguf"))


def test_its_layers_are_known_without_loading(tiny):
    from .qwen_tiny import linears

    assert open_folder(str(tiny.folder)).linears() == linears(tiny.pipeline.transformer)
    assert tables_of(fresh(tiny)).image.shape[0] == 2
