"""What ComfyUI knows of the nodes: all of them there, all of them explained; and what importing the pack costs."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel.editors.qwen_diffusers import QwenOptions
from comfyui_flenwheel.flywheel.editors.rehearsal import Rehearsal

from . import comfy

pytestmark = pytest.mark.comfy
ROOT = Path(__file__).parent.parent.parent
KNOWN = (Path(__file__).parent / "node_ids.txt").read_text().split()


@pytest.fixture(scope="module")
def nodes(server):
    described = comfy.call(server.address, "/object_info")[1]
    return {name: node for name, node in described.items() if name.startswith("FLEN_")}


def test_no_node_id_ever_disappears(nodes):
    """Saved graphs hold them. A new node adds a line to node_ids.txt; a renamed one needs a replacement."""
    assert sorted(nodes) == KNOWN


def test_every_node_and_every_input_and_output_is_explained(nodes):
    dumb = []
    for name, node in nodes.items():
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        dumb += [f"{name}.{field}" for field, (_, options) in inputs.items() if len(options.get("tooltip", "")) < 10]
        dumb += [f"{name} -> {output}" for output, tip in zip(node["output_name"], node["output_tooltips"], strict=True) if not tip]
        if len(node["description"]) < 40 or not node["category"].startswith("FLENwheel/"):
            dumb.append(name)
    assert dumb == []


@pytest.mark.parametrize(("name", "options"), [("FLEN_QwenDiffusers", QwenOptions), ("FLEN_RehearsalEditor", Rehearsal)])
def test_the_widgets_of_an_editor_are_its_engines_options(nodes, name, options):
    """Written once, with their help, bounds and what they are when nobody touches them."""
    shown = {field: told for kind in nodes[name]["input"].values() for field, (_, told) in kind.items()}
    for field in [field for field in dataclasses.fields(options) if field.init]:
        told = shown[field.name]
        assert (told["default"], told["tooltip"]) == (field.default, field.metadata["help"]), field.name
        assert {bound: told.get(bound) for bound in ("min", "max")} == {bound: field.metadata.get(bound) for bound in ("min", "max")}


def test_the_readme_lists_every_node(nodes):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [node["display_name"] for node in nodes.values() if f"| {node['display_name']} |" not in readme] == []


IMPORT = """
import asyncio, sys
for absent in ("dlib", "face_recognition", "face_recognition_models", "cv2", "insightface"):
    sys.modules[absent] = None
sys.path[:0] = [{tests!r}, {comfyui!r}]
sys.argv = ["main.py", "--cpu", "--base-directory", {base!r}]
import comfy.options
comfy.options.enable_args_parsing()
before = set(sys.modules)
import server, nodes
server.PromptServer(asyncio.new_event_loop())
host = set(sys.modules)
import conftest
from comfyui_flenwheel.nodes import extension
asyncio.run(extension.FlenwheelExtension().on_load())
print([node.GET_SCHEMA().node_id for node in extension.NODES])
heavy = ("diffusers", "peft", "bitsandbytes", "torchvision", "sklearn", "cv2", "insightface")
late = {{name.partition(".")[0] for name in set(sys.modules) - host}}
assert not late & set(heavy), late & set(heavy)
assert not any(sys.modules.get(absent) for absent in ("dlib", "face_recognition"))
"""


def test_the_pack_loads_without_any_optional_package_and_pulls_in_nothing_heavy(comfyui, tmp_path):
    code = IMPORT.format(tests=str(ROOT / "tests"), comfyui=str(comfyui), base=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=comfyui, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(json.loads(done.stdout.strip().splitlines()[-1].replace("'", '"'))) == KNOWN
