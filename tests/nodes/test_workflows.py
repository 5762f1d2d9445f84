"""The bundled graphs: the form people open and the form scripts queue say the same, and ComfyUI accepts both."""

import json
import urllib.request

import pytest
from PIL import Image

from . import comfy

pytestmark = pytest.mark.comfy
BUNDLED = sorted(path.stem for path in comfy.WORKFLOWS.glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def _companions(told):
    """Widgets of the canvas that are no input: what happens to a seed after a run, the button that uploads a picture."""
    return [""] if told and (told[0].get("control_after_generate") or told[0].get("image_upload")) else []


def as_api(workflow, nodes):
    """The API form of a graph as the canvas saves it."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        declared = {**nodes[node["type"]]["input"].get("required", {}), **nodes[node["type"]]["input"].get("optional", {})}
        names = [
            name
            for name, (kind, *told) in declared.items()
            if (isinstance(kind, list) or kind in WIDGETS) and not (told and told[0].get("forceInput"))
        ]
        names = [part for name in names for part in (name, *_companions(declared[name][1:]))]
        values = {name: value for name, value in zip(names, node["widgets_values"], strict=True) if name}
        values |= {socket["name"]: links[socket["link"]] for socket in node["inputs"] if socket["link"]}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values, "_meta": {"title": node["title"]}}
    return prompt


@pytest.fixture(scope="module")
def nodes(server):
    return comfy.call(server.address, "/object_info")[1]


@pytest.mark.parametrize("name", BUNDLED)
def test_both_forms_of_a_graph_are_one(name, nodes):
    workflow = json.loads((comfy.WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    assert as_api(workflow, nodes) == json.loads((comfy.WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", BUNDLED)
def test_nodes_do_not_overlap_and_lie_inside_a_group(name):
    workflow = json.loads((comfy.WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    boxes = {node["id"]: (*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in workflow["nodes"]}
    overlaps = [
        (one, other)
        for one, a in boxes.items()
        for other, b in boxes.items()
        if one < other and a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]
    groups = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in workflow["groups"])]
    outside = [
        node["id"]
        for node in workflow["nodes"]
        if node["type"] != "MarkdownNote"
        and not any(
            g[0] <= boxes[node["id"]][0] and g[1] <= boxes[node["id"]][1] and boxes[node["id"]][2] <= g[2] and boxes[node["id"]][3] <= g[3]
            for g in groups
        )
    ]
    assert overlaps == [] and outside == []


@pytest.mark.parametrize("name", BUNDLED)
def test_the_template_browser_offers_the_graph_with_a_picture(name, server):
    offered = comfy.call(server.address, "/workflow_templates")[1]
    assert name in offered["ComfyUI-FLENwheel"]
    status, served = comfy.call(server.address, f"/api/workflow_templates/ComfyUI-FLENwheel/{name}.json")
    assert status == 200 and served["nodes"]
    with urllib.request.urlopen(f"{server.address}/api/workflow_templates/ComfyUI-FLENwheel/{name}.jpg") as picture:
        assert Image.open(picture).width >= 400


def test_every_api_graph_has_a_form_that_people_can_open():
    assert sorted(path.stem for path in (comfy.WORKFLOWS / "api").glob("*.json")) == BUNDLED
