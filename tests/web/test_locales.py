"""English is complete: every text the pages say stands in locales/en, which translators copy. FLEN_WRITE_LOCALES=1 writes it anew."""

import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MAIN = ROOT / "locales" / "en" / "main.json"
STRING = r'"((?:[^"\\]|\\.)*)"'
SAID = (
    re.compile(r"\b(?:t|mark)\(\s*" + STRING),
    re.compile(r"\bt\([^\"()]*\? " + STRING + r" : " + STRING),
    re.compile(r"\bcount\((?:[^\"()]|\([^()]*\))*?,\s*" + STRING + r",\s*" + STRING),
)
ATTRIBUTE = re.compile(r'\b(aria-label|title|placeholder|alt|data-broken)="([^"]*)"(?=[^>]*\bdata-t-\1\b)')
TEXT = re.compile(r"<[^>]*\bdata-t(?=[ >])[^>]*>([^<]+)<")


def said() -> set[str]:
    texts: set[str] = set()
    for module in (ROOT / "web").glob("*/*.mjs"):
        code = module.read_text(encoding="utf-8")
        for pattern in SAID:
            for found in pattern.finditer(code):
                texts.update(json.loads(f'"{text}"') for text in found.groups())
    for path in (ROOT / "web").glob("*.html"):
        page = path.read_text(encoding="utf-8")
        texts.update(text for _, text in ATTRIBUTE.findall(page))
        texts.update(text.strip() for text in TEXT.findall(page))
    return texts - {""}


def test_every_text_is_there_and_no_other():
    if os.environ.get("FLEN_WRITE_LOCALES"):
        MAIN.write_text(
            json.dumps({"flenwheel": {text: text for text in sorted(said())}}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    written = json.loads(MAIN.read_text(encoding="utf-8"))["flenwheel"]
    assert set(written) == said(), "write it with FLEN_WRITE_LOCALES=1"
    assert all(english == text for english, text in written.items())


def test_the_commands_have_names():
    commands = json.loads((MAIN.parent / "commands.json").read_text(encoding="utf-8"))
    script = (ROOT / "web" / "flenwheel.js").read_text(encoding="utf-8")
    ids = {name.replace(".", "_"): label for name, label in re.findall(r'\{ id: "([^"]+)", label: "([^"]+)"', script)}
    assert ids and {name: told["label"] for name, told in commands.items()} == ids


def test_a_translation_keeps_what_is_put_in():
    for path in (ROOT / "locales").glob("*/main.json"):
        for english, text in json.loads(path.read_text(encoding="utf-8"))["flenwheel"].items():
            assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", text)), f"{path}: {english!r}"
