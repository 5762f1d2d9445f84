"""A Qwen model in GGUF, read by ComfyUI-GGUF's own loader in the real server, edited by our node with two stacked LoRAs.

FLEN_GGUF names a checkout of ComfyUI-GGUF; its package `gguf` must be there too. Where they are not, ComfyUI's own files of 8 bits stand in
(test_qwen_comfy): weights that are no plain numbers either, under the same nodes.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.nodes.launch import PACK, Server

from . import comfy
from .test_qwen_graph import COMFY, EDITOR, lap, refused, stage

PACK_OF_GGUF = os.environ.get("FLEN_GGUF", "")
pytestmark = [
    pytest.mark.comfy,
    pytest.mark.slow,
    pytest.mark.skipif(not PACK_OF_GGUF, reason="FLEN_GGUF names no checkout of ComfyUI-GGUF; ComfyUI's own 8-bit files stood in"),
]
CAMERA = "Change camera angle to slightly left"
PROMPTS = f"Change background to forest\n{CAMERA}"


@pytest.fixture(scope="module")
def packed(tiny):
    """A server like `tiny`, with ComfyUI-GGUF and the 2511 model's file of 8 bits in blocks of 32."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (python -m pip install gguf)")
    base = tiny.base.with_name("gguf")
    shutil.copytree(tiny.base / "models", base / "models")
    for name, pack in (("tiny_qwen", tiny.base / "custom_nodes" / "tiny_qwen"), ("ComfyUI-GGUF", Path(PACK_OF_GGUF))):
        shutil.copytree(pack, base / "custom_nodes" / name, ignore=shutil.ignore_patterns("__pycache__", ".git"))
    whole = next(base.rglob("tiny_2511.safetensors"))
    counts = write(gguf, whole, whole.with_suffix(".gguf"))
    assert counts["Q8_0"] >= 2 * 14, "the layers of both blocks"
    args = ["--whitelist-custom-nodes", PACK, "tiny_qwen", "ComfyUI-GGUF"]
    with Server(tiny.comfyui, Path(sys.executable), base, extra_args=args) as server:
        yield server


def write(gguf, source, target):
    """A safetensors file as GGUF: matrices in Q8_0, all else in fp32; how many of each."""
    from safetensors.numpy import load_file

    writer, counts = gguf.GGUFWriter(str(target), arch="qwen_image"), {"Q8_0": 0, "F32": 0}
    for name, weight in load_file(source).items():
        if not weight.size:  # a mark, which GGUF cannot hold
            continue
        kind = "Q8_0" if weight.ndim == 2 and weight.shape[1] % 32 == 0 else "F32"
        counts[kind] += 1
        stored = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(weight.astype(np.float32), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return counts


def graph(name, photos, *, packed, loras=True, **widgets):
    made = lap(COMFY, name, photos, Prompt_Set__sources="source_001*", Prompt_Set__prompts=PROMPTS, Preview_Four__go_on=True)
    made[EDITOR]["inputs"] |= widgets
    if packed:
        made["3"] = {"class_type": "UnetLoaderGGUF", "inputs": {"unet_name": "tiny_2511.gguf"}}
    if not loras:
        del made[EDITOR]["inputs"]["loras"]
    return made


def edited(server, name, photos, **how):
    """Prompt to pixels of what comes out, and the editor's report."""
    done = comfy.run(server.address, graph(name, photos, **how))
    assert done.status == "success", done.error
    shelf = Shelf(stage(server, name))
    made = {shelf.lineages[key].facts["prompt"]: np.asarray(open_image(path).image, dtype=int) for key, path in shelf.files.items()}
    assert set(made) == set(PROMPTS.split("\n"))
    return made, done.text(EDITOR)


def apart(one, other):
    return float(np.abs(one - other).mean())


def test_a_gguf_model_is_edited_with_its_two_stacked_loras_as_the_full_model_is(packed, few):
    full, _ = edited(packed, "full", few, packed=False)
    full_bare, _ = edited(packed, "full bare", few, packed=False, loras=False)
    made, report = edited(packed, "packed", few, packed=True)
    bare, _ = edited(packed, "packed bare", few, packed=True, loras=False)
    assert "mine.safetensors: 28 of 28 layers" in report and "angles.safetensors: 28 of 28 layers" in report
    for prompt in full:
        effect = apart(full[prompt], full_bare[prompt])
        assert effect > 5 and apart(made[prompt], bare[prompt]) > 5, "the LoRAs count"
        assert 0 < apart(full_bare[prompt], bare[prompt]) < 2, "8 bits: nearly the same image, and not the same file"
        assert apart(full[prompt], made[prompt]) < effect / 5, "with LoRAs too"


def test_a_gguf_model_through_modulation_tables_is_the_same_and_a_lora_on_those_layers_refused(packed, few):
    bare, _ = edited(packed, "bare", few, packed=True, loras=False)
    tabled, _ = edited(packed, "tabled", few, packed=True, loras=False, modulation_tables=True)
    assert all(np.abs(bare[prompt] - tabled[prompt]).max() <= 1 for prompt in bare)
    refused(packed, graph("tabled loras", few, packed=True, modulation_tables=True), "whose loader does its own arithmetic", "tables off")


def test_the_words_of_a_text_encoder_that_the_gguf_loader_brings_are_kept_on_disk(packed, few):
    """That loader takes a full file too, and leaves no note of it either; the graph tells."""
    made = graph("words", few, packed=True)
    made["4"] = {"class_type": "CLIPLoaderGGUF", "inputs": {"clip_name": "tiny_text_encoder.safetensors", "type": "qwen_image"}}
    assert comfy.run(packed.address, made).status == "success"
    words = packed.base / "output" / "flenwheel" / ".cache" / "comfyui" / "words"
    kept = sorted(path.name for path in words.iterdir())
    assert len(kept) >= 2 + 1, "two prompts and a negative, beside what other tests kept"
    log = packed.log.read_text(errors="replace")
    assert "The words are not kept" not in log
    assert (
        comfy.run(packed.address, {**made, EDITOR: {**made[EDITOR], "inputs": {**made[EDITOR]["inputs"], "steps": 3}}}).status == "success"
    )
    assert sorted(path.name for path in words.iterdir()) == kept, "nothing was encoded again"
