"""Talking to a running ComfyUI as any script would: standard library, HTTP, nothing of ours."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

WORKFLOWS = Path(__file__).parent.parent.parent / "workflows"
PATIENCE_S = 240


def call(address: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer; POST when there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        text = error.read()
        try:
            return error.code, json.loads(text or b"null")
        except ValueError:
            return error.code, text.decode(errors="replace")


def queue(address: str, prompt: dict[str, Any]) -> str:
    status, answer = call(address, "/prompt", {"prompt": prompt})
    assert status == 200 and not answer["node_errors"], answer
    return answer["prompt_id"]


def wait(address: str, prompt_id: str) -> Outcome:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        _, history = call(address, f"/history/{prompt_id}")
        if prompt_id in history and history[prompt_id]["status"]["completed"] is not None and history[prompt_id]["status"]["messages"]:
            return Outcome(history[prompt_id])
        time.sleep(0.1)
    raise TimeoutError(f"prompt {prompt_id} did not finish in {PATIENCE_S} s")


def run(address: str, prompt: dict[str, Any]) -> Outcome:
    return wait(address, queue(address, prompt))


class Outcome:
    """What became of a prompt."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.status = described["status"]["status_str"]
        self.messages = described["status"]["messages"]
        self.outputs = described["outputs"]

    @property
    def error(self) -> str:
        return next((told["exception_message"] for kind, told in self.messages if kind == "execution_error"), "")

    @property
    def cached(self) -> set[str]:
        return {node for kind, told in self.messages if kind == "execution_cached" for node in told["nodes"]}

    def text(self, node: str) -> str:
        return "\n".join(self.outputs[node]["text"]) if node in self.outputs else ""


def first_lap(**overrides: Any) -> dict[str, Any]:
    return bundled("flywheel1_first_lap", **overrides)


def bundled(name: str, **overrides: Any) -> dict[str, Any]:
    """A bundled API workflow with some inputs changed: `Project__name="Anna"`; spaces of titles as _. Its pictures are said to be photographs."""
    prompt = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        if node["class_type"] == "FLEN_Project":
            node["inputs"]["pictures_are"] = "photographs"
    for selector, value in overrides.items():
        title, _, name = selector.partition("__")
        node = next(node for node in prompt.values() if node["_meta"]["title"].replace(" ", "_").replace("/", "") == title)
        node["inputs"][name] = value
    return prompt


def review_path(project: str, stage: str = "enriched", version: str = "v1") -> str:
    return f"/flenwheel/review/{quote(project)}/{stage}/{version}"


def review(address: str, project: str) -> dict[str, Any]:
    status, answer = call(address, review_path(project))
    assert status == 200, answer
    return answer


def label(address: str, project: str, labels: dict[str, str], reasons: list[str] | None = None) -> Any:
    events = [{"key": key, "label": verdict, "reasons": reasons or [], "note": ""} for key, verdict in labels.items()]
    status, answer = call(address, review_path(project) + "/labels", {"reviewer": "test", "events": events})
    assert status == 200, answer
    return answer
