"""A review on paper: one HTML file that needs nothing else, and contact sheets. Shows what it is given; decides nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from PIL import Image

from .errors import FlywheelError
from .sheets import Tile, contact_sheet

THUMB_PX, SHEET_PX = 256, 256
MAX_IMAGES = 2_000  # a page beyond this has 30 MB and more

Thumb = Callable[[str], bytes]  # WebP bytes by image key; raises a FlywheelError where there is none

_WORDS = {"good": "good", "needs_correction": "needs correction", "reject": "rejected", None: "undecided"}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing a note or a name holds can run or call out
_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--text:#1a1a1a;--soft:#5c5c5c;--line:#d6d6d6;--good:#1b7a3d;--needs_correction:#8a5a00;--reject:#b3261e;--undecided:#5c5c5c}
@media(prefers-color-scheme:dark){:root{--ground:#202020;--text:#e8e8e8;--soft:#a8a8a8;--line:#4a4a4a;--good:#6fd08c;--needs_correction:#f0be5a;--reject:#f2857c;--undecided:#a8a8a8}}
body{margin:0;background:var(--ground);color:var(--text);font:15px/1.45 system-ui,sans-serif}
header,main{max-width:1500px;margin:0 auto;padding:20px}h1{font-size:24px;margin:0 0 4px}header p{margin:2px 0;color:var(--soft)}
table{border-collapse:collapse;margin:14px 0 0}td,th{padding:3px 18px 3px 0;text-align:left;font-weight:400}th{color:var(--soft)}td{font-variant-numeric:tabular-nums}
ol{list-style:none;margin:0;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(256px,1fr));gap:16px}
li{border:1px solid var(--line);border-top:4px solid var(--mark);border-radius:4px;overflow:hidden;break-inside:avoid}
li img,li .none{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:#0001}li .none{display:grid;place-items:center;color:var(--soft)}
li div.facts{padding:8px 10px 10px}li strong{color:var(--mark)}li p{margin:3px 0;overflow-wrap:anywhere}li p.soft{color:var(--soft);font-size:13px}
.good{--mark:var(--good)}.needs_correction{--mark:var(--needs_correction)}.reject{--mark:var(--reject)}.undecided{--mark:var(--undecided)}
@media print{ol{grid-template-columns:repeat(4,1fr)}}
"""


def html_report(
    items: Sequence[Mapping[str, Any]], counts: Mapping[str, int], thumb: Thumb, *, title: str, words: str, now: datetime
) -> str:
    """The whole page. `words` says what the filter shows; `now` is printed. A picture that cannot be read is said so in its place.

    Raises:
        FlywheelError: there are more than 2,000 images.
    """
    _refuse_many(items)
    rows = "".join(f"<tr><th>{_WORDS[label]}</th><td>{counts[label or 'undecided']}</td></tr>" for label in _WORDS)
    shown = f"{len(items)} of {counts['total']} images" + (f": {words}" if words else "")
    cells = "\n".join(_cell(item, thumb) for item in items)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape(shown)}</p>\n<p>{now:%Y-%m-%d %H:%M}</p>\n<table>{rows}</table>\n</header>\n"
        f"<main>\n<ol>\n{cells}\n</ol>\n</main>\n</html>\n"
    )


def sheet_png(items: Sequence[Mapping[str, Any]], thumb: Thumb, *, title: str) -> bytes:
    """A contact sheet as PNG: verdict, likeness and name under each picture.

    Raises:
        FlywheelError: there are more than 2,000 images.
    """
    _refuse_many(items)
    sheet = contact_sheet(_tiles(items, thumb), cell_px=SHEET_PX, title=title)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def _tiles(items: Sequence[Mapping[str, Any]], thumb: Thumb) -> Iterator[Tile]:
    for item in items:
        try:
            image = Image.open(io.BytesIO(thumb(item["key"]))).convert("RGB")
        except FlywheelError:
            image = Image.new("RGB", (SHEET_PX, SHEET_PX), (60, 60, 60))
        yield Tile(image, f"{_likeness(item)} {item.get('name') or item['key']}".strip(), _WORDS[item["label"]])


def _cell(item: Mapping[str, Any], thumb: Thumb) -> str:
    label = item["label"]
    name = str(item.get("name") or item["key"])
    told = [", ".join(item["reasons"]), item["note"]]
    how = [
        item.get("editor"),
        f"seed {item['seed']}" if item.get("seed") is not None else "",
        *(lora["name"] for lora in item.get("loras", ())),
    ]
    source = (item.get("source") or {}).get("name")
    lines = [
        f"<p><strong>{_WORDS[label]}</strong> {escape(_likeness(item))}</p>",
        *(f"<p>{escape(text)}</p>" for text in told if text),
        f'<p class="soft">{escape(str(item.get("prompt") or ""))}</p>',
        f'<p class="soft">{escape(name)}{escape(f" from {source}") if source else ""}</p>',
        f'<p class="soft">{escape(", ".join(str(part) for part in how if part))}</p>',
        *(f'<p class="soft">{escape(item["disagreement"])}</p>' for _ in [0] if item.get("disagreement")),
    ]
    return f'<li class="{label or "undecided"}">{_picture(item["key"], name, thumb)}<div class="facts">{"".join(lines)}</div></li>'


def _picture(key: str, name: str, thumb: Thumb) -> str:
    try:
        content = base64.b64encode(thumb(key)).decode()
    except FlywheelError as error:
        return f'<div class="none">{escape(str(error))}</div>'
    return f'<img alt="{escape(name, quote=True)}" src="data:image/webp;base64,{content}">'


def _likeness(item: Mapping[str, Any]) -> str:
    similarity = item.get("similarity")
    if similarity is not None:
        return f"{similarity:.2f} {item['band']}"
    return {"no_face": "no face", "unverifiable": "not measurable", "unreadable": "unreadable"}.get(item.get("state") or "", "")


def _refuse_many(items: Sequence[Mapping[str, Any]]) -> None:
    if len(items) > MAX_IMAGES:
        raise FlywheelError(f"{len(items)} images are too many for one report; narrow the filter to at most {MAX_IMAGES}.")
