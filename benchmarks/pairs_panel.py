"""The panel of paired datasets with 2,000 pairs: first pictures, scrolling, memory, a caption from Enter to saved.

    python benchmarks/pairs_panel.py [pairs] [--frames 120] [--captions 40]

Needs FLEN_COMFYUI, FLEN_CHROMIUM and playwright. The real ComfyUI serves; headless Chromium draws without a graphics card. The peer, in the same
run on the same set: every pair in the page at once, each picture as its full file, and a caption that waits until the whole set was asked for again.
Pictures are 768 x 960 px JPEG of photograph-like noise, two controls a pair. Each page is opened twice; the first time the thumbnails do not exist
yet. Writes results/pairs_panel.md.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel.pair_sets import SLOTS, PairSets  # noqa: E402
from comfyui_flenwheel.nodes.launch import Server  # noqa: E402
from gallery import metrics, quantile, renderer_mb  # noqa: E402
from pairs import photograph_like  # noqa: E402

STEP_PX = 180
FIRST = 9  # pictures: three pairs
DRAWN = 24  # different pictures; the files of all differ

NAIVE = """async (address) => {
  const set = await (await fetch(address)).json()
  document.body.innerHTML = '<div id="scroller" style="height:100vh;overflow:auto"></div>'
  const all = document.querySelector("#scroller")
  for (const row of set.rows) {
    const line = Object.assign(document.createElement("div"), { className: "pair" })
    line.style.cssText = "display:flex;gap:10px;height:148px"
    row.files.forEach((file, number) => {
      const image = Object.assign(document.createElement("img"), { src: `${address}/picture/${set.slots[number].slot}/${file.name}` })
      image.style.cssText = "width:132px;height:130px;object-fit:contain"
      line.append(image)
    })
    const words = Object.assign(document.createElement("textarea"), { value: row.caption })
    words.dataset.key = row.key
    line.append(words)
    all.append(line)
  }
}"""
SEEN = """async (first) => {
  const there = () => [...document.querySelectorAll(".pair img")].slice(0, first)
  while (there().length < first || !there().every((image) => image.complete && image.naturalWidth)) await new Promise(requestAnimationFrame)
  return performance.now()
}"""
SCROLL = """async ([frames, step]) => {
  const list = document.querySelector("#scroller")
  const times = []
  let last = performance.now()
  for (let frame = 0; frame < frames; frame += 1) {
    list.scrollTop += step
    await new Promise(requestAnimationFrame)
    times.push(performance.now() - last)
    last = performance.now()
  }
  list.scrollTop = 0
  return times.sort((a, b) => a - b)
}"""
# from Enter to the next caption under the fingers, and to the server's answer
CAPTIONS = """async (captions) => {
  const times = []
  const real = window.fetch
  let answered = () => {}
  window.fetch = async (...told) => {
    const answer = await real(...told)
    if (String(told[0]).endsWith("/captions")) answered()
    return answer
  }
  document.querySelector(".pair textarea").focus()
  for (let number = 0; number < captions; number += 1) {
    const area = document.activeElement
    area.value = `words number ${number} ${performance.now()}`
    const saved = new Promise((resolve) => { answered = resolve })
    const started = performance.now()
    area.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }))
    const next = performance.now() - started
    await saved
    times.push([next, performance.now() - started])
  }
  window.fetch = real
  return times
}"""
NAIVE_CAPTIONS = """async ([address, captions]) => {
  const times = []
  for (let number = 0; number < captions; number += 1) {
    const [area, following] = [...document.querySelectorAll(".pair textarea")].slice(number)
    const started = performance.now()
    const body = JSON.stringify({ captions: { [area.dataset.key]: `words number ${number} ${started}` } })
    const answer = await fetch(address + "/captions", { method: "POST", headers: { "Content-Type": "application/json" }, body })
    const set = await answer.json()
    for (const row of set.rows) document.querySelector(`textarea[data-key="${row.key}"]`).value = row.caption
    following.focus()
    times.push([performance.now() - started, performance.now() - started])
  }
  return times
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=int, nargs="?", default=2_000)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--captions", type=int, default=40)
    asked = parser.parse_args()
    rows: list[list[str]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(os.environ["FLEN_COMFYUI"]), Path(sys.executable), Path(folder)) as server,
        sync_playwright() as driver,
    ):
        make_set(server.base / "output" / "flenwheel" / "_pairs" / "sets", asked.pairs)
        browser = driver.chromium.launch(executable_path=os.environ.get("FLEN_CHROMIUM"), args=["--no-sandbox", "--disable-gpu"])
        for naive in (True, False):
            rows.append(["everything at once" if naive else "the panel", *measured(browser, server.address, asked, naive=naive)])
            print(" | ".join(rows[-1]), flush=True)
        browser.close()
    write(rows, asked)


def make_set(home: Path, pairs: int) -> None:
    built = PairSets(lambda: home).create("many")
    built.add_control()
    built.describe(instruction="put the logo on the shirt")
    contents = []
    for seed in range(DRAWN):
        buffer = io.BytesIO()
        photograph_like(seed, 960).crop((0, 0, 768, 960)).save(buffer, "JPEG", quality=90)
        contents.append(buffer.getvalue())
    for number, slot in enumerate(SLOTS[:3]):
        (built.root / slot).mkdir(exist_ok=True)
        for pair in range(pairs):
            # bytes after the end of a JPEG are ignored: every file has a content of its own
            (built.root / slot / f"photo_{pair:05}.jpg").write_bytes(contents[(pair + 8 * number) % DRAWN] + f"{slot}{pair}".encode())


def measured(browser: Browser, server: str, asked: argparse.Namespace, *, naive: bool) -> list[str]:
    """The figures of one page, as cells of the table."""
    where = f"{server}/flenwheel/pairs/sets/many"
    cold = opened(browser, server, where, naive=naive)[1]
    page, warm = opened(browser, server, where, naive=naive)
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable")
    before = metrics(tools)
    frames = page.evaluate(SCROLL, [asked.frames, STEP_PX])
    after = metrics(tools)
    work = [
        1_000 * sum(after[name] - before[name] for name in names) / asked.frames
        for names in (("ScriptDuration",), ("LayoutDuration", "RecalcStyleDuration"))
    ]
    memory = renderer_mb()
    times = page.evaluate(NAIVE_CAPTIONS, [where, asked.captions]) if naive else page.evaluate(CAPTIONS, asked.captions)
    following, saved = (sorted(time[part] for time in times) for part in (0, 1))
    page.context.close()
    return [
        f"{cold / 1_000:.2f} / {warm / 1_000:.2f}",
        f"{work[0]:.2f} + {work[1]:.2f}",
        f"{quantile(frames, 0.5):.0f} / {quantile(frames, 0.95):.0f}",
        f"{int(after['Nodes']):,}",
        f"{memory:.0f}",
        f"{quantile(following, 0.5):.1f} / {quantile(following, 0.95):.1f}",
        f"{quantile(saved, 0.5):.0f} / {quantile(saved, 0.95):.0f}",
    ]


def opened(browser: Browser, server: str, where: str, *, naive: bool) -> tuple[Page, float]:
    """A page in a browser context of its own, and the milliseconds until the first pictures were there."""
    for context in browser.contexts:
        context.close()
    page = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce").new_page()
    page.goto(f"{server}/flenwheel/pairs" + ("" if naive else "?set=many"), wait_until="commit")
    if naive:
        page.evaluate(NAIVE, where)
    return page, page.evaluate(SEEN, FIRST)


def write(rows: list[list[str]], asked: argparse.Namespace) -> None:
    head = (
        "| page | 9 pictures seen, s (thumbnails new / there) | script + layout per frame, ms | frame, ms (p50 / p95) | DOM nodes"
        " | renderer, MB | Enter to next caption, ms (p50 / p95) | Enter to saved, ms (p50 / p95) |"
    )
    table = [head, "|---" * 8 + "|", *("| " + " | ".join(row) + " |" for row in rows)]
    text = f"""# The panel with {asked.pairs:,} pairs, and everything at once

{asked.pairs:,} pairs with two controls ({3 * asked.pairs:,} files of 768 x 960 px). ComfyUI serves, headless Chromium draws in software at 1280 x 800;
{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f} (this benchmark makes about 2), Python {platform.python_version()}. {asked.frames} frames of {STEP_PX} px scrolling; {asked.captions} captions one after the other.
The peer puts every pair into the page with its full files, and shows a saved caption when the whole set has come back.

{chr(10).join(table)}

Goal: smooth, which is taken as 95 of 100 frames in under 50 ms without a graphics card, and the next caption under the fingers in under 50 ms.
"""
    (ROOT / "benchmarks" / "results" / "pairs_panel.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
