"""LoRAs by name: which file a name stands for, what it brings, and what is said when it is missing."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel import lora, lora_registry, qwen
from comfyui_flenwheel.flywheel.errors import LoraError

from .lora_files import save, tensors

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
LIGHTNING = "Lightning, 4 steps (lightx2v) · Qwen-Image-Edit-2511"
ANGLES = "Multiple angles (dx8152) · Qwen-Image-Edit-2509"
RELIGHT = "Relight (dx8152) · Qwen-Image-Edit-2509"


def test_what_was_trained_here_comes_first_and_every_published_one_follows():
    choices = [entry.choice for entry in lora_registry.entries(["a.safetensors", "flenwheel/anna/anna-edit-v002.safetensors"])]
    assert choices[0] == "anna · anna-edit-v002"
    assert choices[1:] == [f"{row.title} · {row.model}" for row in qwen.known_loras() if row.file] and len(set(choices)) == len(choices)


@pytest.mark.parametrize("name", ["Qwen-Edit-2509-Multiple-angles.safetensors", "qwen/镜头转换.safetensors"])
def test_a_published_lora_is_found_under_the_names_it_has_in_the_wild(name, tmp_path):
    entry = lora_registry.find(ANGLES, ["other.safetensors", name], tmp_path)
    assert entry.name == name and entry.when == "camera" and entry.weight == 1.0


def test_a_lightning_lora_of_another_model_is_not_taken_for_it(tmp_path):
    names = ["Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors", "Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16.safetensors"]
    with pytest.raises(LoraError, match="not on this computer"):
        lora_registry.find(LIGHTNING, names, tmp_path)


def test_a_missing_one_is_told_with_name_size_address_and_folder(tmp_path):
    with pytest.raises(LoraError) as told:
        lora_registry.find(RELIGHT, [], tmp_path)
    wanted = ["Qwen-Image-Edit-2509-Relight.safetensors", "236 MB", "https://huggingface.co/Comfy-Org/", str(tmp_path), "never downloads"]
    assert [words for words in wanted if words not in str(told.value)] == []
    with pytest.raises(LoraError, match="no trained LoRA 'anna"):
        lora_registry.find("anna · v001", [], tmp_path)


@pytest.mark.parametrize(
    ("facts", "trigger"),
    [
        ({"kind": "character", "instance_token": "ohwx_anna", "project": "anna", "base_model": "flux1-dev"}, "ohwx_anna"),
        ({"kind": "edit", "instance_token": "ohwx_anna", "project": "anna", "base_model": "qwen"}, ""),
    ],
)
def test_the_token_of_a_character_is_its_trigger_word_and_an_edit_has_none(facts, trigger, tmp_path):
    path = save(tmp_path / "own.safetensors", tensors("diffusers"), {f"flenwheel.{name}": text for name, text in facts.items()})
    entry, file = lora_registry.Entry("own", "flenwheel/anna/own.safetensors", None), lora.inspect(path)
    assert lora_registry.trigger_of(entry, file) == trigger
    assert "Trained here for project anna" in lora_registry.described(entry, file) and facts["base_model"] in lora_registry.described(
        entry, file
    )


def test_a_published_lora_brings_its_trigger_words(tmp_path):
    path = save(tmp_path / "Qwen-Image-Edit-2509-Relight.safetensors", tensors("diffusers"))
    entry = lora_registry.find(RELIGHT, [path.name], tmp_path)
    assert lora_registry.trigger_of(entry, lora.inspect(path)) == "重新照明,"


@pytest.mark.skipif(not find_spec("comfyui_workflow_templates_json"), reason="ComfyUI's templates are not installed")
def test_every_address_is_one_that_comfyui_s_own_templates_download_from():
    """Addresses rot and are easily misremembered; ComfyUI keeps its own in order. Those it lacks are listed here."""
    spec = find_spec("comfyui_workflow_templates_json")
    templates = Path(next(iter(spec.submodule_search_locations))) / "templates"
    known = set()
    for path in templates.glob("*.json"):
        for node in _nodes(json.loads(path.read_text(encoding="utf-8"))):
            known |= {model["url"].split("?")[0] for model in (node.get("properties") or {}).get("models", ())}
    ours = {address for row in qwen.models().values() for _, _, _, address in row.files}
    ours |= {row.address for row in qwen.known_loras() if row.file}
    ours |= {model["url"] for _, model in named_in_workflows()}
    lightx2v = {row.address for row in qwen.known_loras() if "2511-Lightning-8steps" in row.file}
    assert ours - known == lightx2v, "beside its 4-step twin, in the same repository"


def named_in_workflows():
    """(workflow, model) of every download that a bundled graph names: what ComfyUI offers when a file is missing."""
    for path in sorted(WORKFLOWS.glob("*.json")):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            yield from ((path.stem, model) for model in node["properties"].get("models", ()))


def test_bundled_graphs_say_where_each_file_they_load_comes_from():
    """Files that a training makes or that its settings name are not ComfyUI's to fetch."""
    wanted = {
        (path.stem, text)
        for path in WORKFLOWS.glob("*.json")
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]
        for text in node.get("widgets_values") or ()
        if isinstance(text, str) and text.endswith(".safetensors") and not text.startswith("flenwheel/") and "Settings" not in node["type"]
    }
    told = {(workflow, model["name"]): (model["url"], model["directory"]) for workflow, model in named_in_workflows()}
    assert set(told) == wanted and len(wanted) > 10
    known = [*qwen.models().values(), *qwen.generators().values()]
    rows = {name: (address, folder) for row in known for folder, name, _, address in row.files}
    rows |= {row.file: (row.address, "loras") for row in qwen.known_loras() if row.file}
    assert {name: place for (_, name), place in told.items() if name in rows and place != rows[name]} == {}


def test_the_docs_list_every_file_with_its_size_and_address():
    page = (WORKFLOWS.parent / "docs" / "qwen.md").read_text(encoding="utf-8")
    rows = [file for row in qwen.models().values() for file in row.files]
    rows += [("loras", row.file, row.size, row.address) for row in qwen.known_loras() if row.file]
    assert _not_told(page, rows) == []
    page = (WORKFLOWS.parent / "docs" / "synthetic.md").read_text(encoding="utf-8")
    assert _not_told(page, [file for name, row in qwen.generators().items() if name not in qwen.models() for file in row.files]) == []


def _not_told(page, rows):
    return [name for folder, name, size, address in rows if f"| {folder} | [{name}]({address}) | {size} |" not in page]


def _nodes(template):
    graphs = [template, *template.get("definitions", {}).get("subgraphs", ())] if isinstance(template, dict) else []
    return [node for graph in graphs for node in graph.get("nodes", ()) if isinstance(node, dict)]
