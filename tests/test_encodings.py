"""Text is read and written in an encoding that is named: Windows would take its own, in which half of our names do not exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACK = Path(__file__).parent.parent
OURS = [
    PACK / "__init__.py",
    PACK / "flen.py",
    *(path for part in ("flywheel", "training", "nodes") for path in (PACK / part).rglob("*.py")),
]
PIPES = ("run", "Popen", "check_output")


def unnamed(code: str) -> list[str]:
    """Calls in this code that read or write text and name no encoding."""
    return [ast.unparse(call) for call in _calls(ast.parse(code)) if not _is_named(call)]


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _is_named(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""
    given = {word.arg for word in call.keywords}
    if "encoding" in given:
        return True
    if name in ("read_text", "write_text"):
        return len(call.args) > (name == "write_text")
    if name == "open":
        return _opens_bytes(call)
    return name not in PIPES or not {"text", "universal_newlines"} & given


def _opens_bytes(call: ast.Call) -> bool:
    """Whether open() or Path.open() opens no text; what else is called open takes no mode first."""
    place = int(isinstance(call.func, ast.Name))
    modes = [*call.args[place : place + 1], *(word.value for word in call.keywords if word.arg == "mode")]
    if not modes:
        return not isinstance(call.func, ast.Name) and bool(call.args)
    mode = modes[0].value if isinstance(modes[0], ast.Constant) else ""
    return not isinstance(mode, str) or not re.fullmatch(r"[rwaxt+]+", mode)


@pytest.mark.parametrize(
    "code",
    [
        "path.read_text()",
        "path.write_text(words)",
        "open(path)",
        'open(path, "w")',
        "path.open()",
        'path.open("a+")',
        'path.open(mode="r")',
        "run(words, text=True)",
    ],
)
def test_what_is_found(code):
    assert unnamed(code) == [ast.unparse(ast.parse(code))]


def test_what_is_passed_over():
    for code in (
        'path.read_text("utf-8")',
        'path.open("rb")',
        'open(path, "wb")',
        "Image.open(path)",
        'run(words, text=True, encoding="utf-8")',
    ):
        assert unnamed(code) == []


def test_every_text_is_read_and_written_in_a_named_encoding():
    told = {path.relative_to(PACK).as_posix(): unnamed(path.read_text(encoding="utf-8")) for path in OURS}
    assert {name: calls for name, calls in told.items() if calls} == {}
