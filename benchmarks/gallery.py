"""The review page with 100, 1,000 and 5,000 images: first pictures, scrolling, memory, from key to saved.

    python benchmarks/gallery.py [counts, e.g. 100 1000] [--frames 120] [--verdicts 200]

Needs FLEN_COMFYUI, FLEN_CHROMIUM and playwright. The real ComfyUI serves; headless Chromium draws without a graphics card. The peer, in the same
run, is the naive grid of most node packs: every image in the page at once, as its full file, and a verdict that waits for the server. 20,000 images
are given to the review page alone. Each page is opened twice: the first time no thumbnail exists, as in a folder copied from elsewhere; then all do, as
where the pack has saved the images itself. Writes results/gallery.md after each page.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel import ledger, thumbs  # noqa: E402
from comfyui_flenwheel.flywheel.images import content_key, open_image, png_bytes, write_whole  # noqa: E402
from comfyui_flenwheel.flywheel.project import Stage  # noqa: E402
from comfyui_flenwheel.nodes.launch import Server  # noqa: E402
from review_server import candidates  # noqa: E402
from web.pages import portrait  # noqa: E402

COUNTS = (100, 1_000, 5_000, 20_000)
MOST_NAIVE = 5_000
STEP_PX = 180
PAUSE_MS = 400  # faster than anybody looks at a picture
UNHURRIED = 100  # verdicts with that pause: as many as make a 99th percentile
SETTLED_MS = 3_000  # a page that has been scrolled: a person looks before deciding
log = logging.getLogger("gallery")
SIZE = (1024, 1280)
DRAWN = 96  # different pictures; the files of all differ

NAIVE = """async (listing) => {
  const { items } = await (await fetch(listing)).json()
  document.body.innerHTML = '<div id="grid" style="height:100vh;overflow:auto"><div class="all" style="display:grid;grid-template-columns:repeat(auto-fill,minmax(164px,1fr));gap:14px"></div></div>'
  const all = document.querySelector(".all")
  for (const item of items) {
    const card = document.createElement("div")
    card.className = "card"
    const image = Object.assign(document.createElement("img"), { src: listing.replace("/review/", "/image/").split("?")[0] + "/" + item.key + "?size=full" })
    image.style.cssText = "width:100%;aspect-ratio:4/5;object-fit:contain"
    const badge = document.createElement("b")
    const prompt = Object.assign(document.createElement("p"), { textContent: item.prompt })
    const buttons = ["good", "needs_correction", "reject"].map((label) => Object.assign(document.createElement("button"), { textContent: label }))
    card.append(image, badge, prompt, ...buttons)
    all.append(card)
  }
  window.items = items
}"""
SEEN = """async () => {
  const there = () => [...document.querySelectorAll(".card img")].slice(0, 12)
  while (there().length < 12 || !there().every((image) => image.complete && image.naturalWidth)) await new Promise(requestAnimationFrame)
  return performance.now()
}"""
SCROLL = """async ([frames, step]) => {
  const grid = document.querySelector("#grid")
  const times = []
  let last = performance.now()
  for (let frame = 0; frame < frames; frame += 1) {
    grid.scrollTop += step
    await new Promise(requestAnimationFrame)
    times.push(performance.now() - last)
    last = performance.now()
  }
  grid.scrollTop = 0
  return times.sort((a, b) => a - b)
}"""
# from the key to the mark on the card, and to the server's acknowledgement
LABEL = """async ([listing, verdicts, pause, key]) => {
  const grid = document.querySelector("#grid")
  const saving = document.querySelector("header .saving")
  const saved = () => new Promise((done) => { // told, not asked for again and again, which would be work of its own
    const look = () => saving.dataset.state === "saved" && (told.disconnect(), done())
    const told = new MutationObserver(look)
    told.observe(saving, { attributeFilter: ["data-state"] })
    look()
  })
  grid.focus()
  const times = []
  for (let number = 0; number < verdicts; number += 1) {
    const started = performance.now()
    grid.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }))
    const seen = performance.now() - started
    await saved()
    times.push([seen, performance.now() - started])
    if (pause) await new Promise((done) => setTimeout(done, pause))
  }
  return times
}"""
NAIVE_LABEL = """async ([listing, verdicts, pause]) => {
  const times = []
  const label = pause ? "good" : "reject" // so that each moves its file
  for (let number = 0; number < verdicts; number += 1) {
    const started = performance.now()
    const events = [{ key: window.items[number].key, label, reasons: [], note: "" }]
    await fetch(listing.split("?")[0] + "/labels", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ reviewer: "naive", events }) })
    document.querySelectorAll(".card b")[number].textContent = label
    times.push([performance.now() - started, performance.now() - started])
    if (pause) await new Promise((done) => setTimeout(done, pause))
  }
  return times
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--verdicts", type=int, default=200)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began = time.perf_counter()
    rows: list[list[str]] = []
    drawn = [png_bytes(portrait(number).resize(SIZE)) for number in range(DRAWN)]

    def png(number: int) -> bytes:
        return drawn[number % DRAWN] + number.to_bytes(4, "big")

    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(os.environ["FLEN_COMFYUI"]), Path(sys.executable), Path(folder)) as server,
        sync_playwright() as driver,
    ):
        os.sync()
        disk = disk_ms(Path(folder))
        browser = driver.chromium.launch(executable_path=os.environ.get("FLEN_CHROMIUM"), args=["--no-sandbox", "--disable-gpu"])
        for count in asked.counts:
            for naive in (True, False):
                if not naive or count <= MOST_NAIVE:
                    home = server.base / "output" / "flenwheel"
                    reviewed = candidates(home, count, png, SIZE, name="naive" if naive else "bench")
                    rows.append(
                        [
                            f"{count:,}",
                            "naive grid" if naive else "review page",
                            *measured(browser, server, reviewed, count, asked, naive=naive),
                        ]
                    )
                    write(rows, asked, disk)
                    log.info("%s after %.0f s", " | ".join(rows[-1]), time.perf_counter() - began)
        browser.close()


def measured(browser: Browser, server: Server, stage: Stage, count: int, asked: argparse.Namespace, *, naive: bool) -> list[str]:
    """The figures of one page, as cells of the table."""
    where = f"{server.address}/flenwheel/review/{stage.project.folder_name}/enriched/v1"
    cold = opened(browser, server, stage, where, naive=naive)[1]
    make_thumbnails(stage)
    page, warm = opened(browser, server, stage, where, naive=naive)
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable")
    before = metrics(tools)
    frames = page.evaluate(SCROLL, [asked.frames, STEP_PX])
    after = metrics(tools)
    script = 1_000 * (after["ScriptDuration"] - before["ScriptDuration"]) / asked.frames
    layout = 1_000 * sum(after[name] - before[name] for name in ("LayoutDuration", "RecalcStyleDuration")) / asked.frames
    page.wait_for_timeout(500)
    memory = renderer_mb()
    page.wait_for_timeout(SETTLED_MS)
    unhurried = labelled(page, where, min(UNHURRIED, count), PAUSE_MS, naive=naive)[1]
    known = len(ledger.labels(stage.project))
    if known != len(unhurried):
        raise SystemExit(
            f"{len(unhurried)} verdicts were given at a person's pace, and {known} are on disk: these times are of something else."
        )
    number = min(asked.verdicts, count // 2)
    if not naive and count < known + number:
        labelled(page, where, known, 0, naive=False, key="u")
    seen, saved = labelled(page, where, number, 0, naive=naive)
    page.context.close()
    return [
        f"{cold / 1_000:.2f} / {warm / 1_000:.2f}",
        f"{script:.2f}",
        f"{layout:.2f}",
        f"{quantile(frames, 0.5):.0f} / {quantile(frames, 0.95):.0f}",
        f"{int(after['Nodes']):,}",
        f"{memory:.0f}",
        f"{quantile(seen, 0.5):.1f} / {quantile(seen, 0.99):.1f}",
        f"{quantile(saved, 0.5):.0f} / {quantile(saved, 0.99):.0f}",
        f"{quantile(unhurried, 0.5):.0f} / {quantile(unhurried, 0.99):.0f} / {unhurried[-1]:.0f}",
    ]


def make_thumbnails(stage: Stage) -> None:
    """What saving each image makes; those of the same drawing are copies."""
    made: dict[int, list[bytes]] = {}
    for number, path in enumerate(sorted(stage.folder.glob("*.png"))):
        content = path.read_bytes()
        key = content_key(content)
        targets = [thumbs.thumbnail_path(stage.project, key, px) for px in thumbs.IN_A_GRID]
        if number < DRAWN:
            thumbs.make_ready(stage.project, key, open_image(path, content=content).image)
            made[number] = [target.read_bytes() for target in targets]
        for target, copy in zip(targets, made[number % DRAWN], strict=True):
            write_whole(target, copy, durable=False)
    os.sync()  # thousands of files that were written this minute would delay the first verdicts' way to the disk


def labelled(page: Page, where: str, verdicts: int, pause_ms: int, *, naive: bool, key: str = "1") -> tuple[list[float], list[float]]:
    """Milliseconds from each key to its mark, and to the server's acknowledgement; both sorted."""
    times = page.evaluate(NAIVE_LABEL if naive else LABEL, [where, verdicts, pause_ms, key])
    return sorted(time[0] for time in times), sorted(time[1] for time in times)


def opened(browser: Browser, server: Server, stage: Stage, where: str, *, naive: bool) -> tuple[Page, float]:
    """A page in a browser context of its own, and the milliseconds until twelve pictures were there."""
    for context in browser.contexts:
        context.close()
    page = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce").new_page()
    address = f"{server.address}/flenwheel/review"
    page.goto(address if naive else f"{address}?project={quote(stage.project.folder_name)}&stage=enriched&version=v1", wait_until="commit")
    if naive:
        page.evaluate(NAIVE, where)
    return page, page.evaluate(SEEN)


def metrics(tools: CDPSession) -> dict[str, Any]:
    return {metric["name"]: metric["value"] for metric in tools.send("Performance.getMetrics")["metrics"]}


def renderer_mb() -> float:
    """Resident memory of the busiest renderer of this run."""
    children = psutil.Process().children(recursive=True)
    return max(child.memory_info().rss for child in children if "--type=renderer" in child.cmdline()) / 2**20


def quantile(values: list[float], part: float) -> float:
    """The least of the sorted values that so large a part of them does not exceed."""
    return values[math.ceil(part * len(values)) - 1]


def disk_ms(folder: Path) -> list[float]:
    """What the disk alone takes until 4 kB are on it, as every verdict waits for once; sorted."""
    times: list[float] = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(1_000 * (time.perf_counter() - began))
            time.sleep(0.02)
    return sorted(times)


def write(rows: list[list[str]], asked: argparse.Namespace, disk: list[float]) -> None:
    head = "| images | page | 12 pictures seen, s (thumbnails new / there) | script per frame, ms | layout + style per frame, ms | frame, ms (p50 / p95) | DOM nodes | renderer, MB | in a burst: key to mark, ms (p50 / p99) | key to saved, ms (p50 / p99) | at a person's pace: key to saved, ms (p50 / p99 / slowest) |"
    table = [head, "|---" * 11 + "|", *("| " + " | ".join(row) + " |" for row in rows)]
    text = f"""# The review page, and a naive grid

ComfyUI serves, headless Chromium draws in software at 1280 x 800; {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f} (this benchmark makes about 2), Python {platform.python_version()}. {asked.frames} frames of
{STEP_PX} px scrolling. Then {UNHURRIED} verdicts with {PAUSE_MS} ms between them, the pace of a fast person; then a burst of {asked.verdicts} (at most half of the images), each in the moment the one before it is saved, which no
person can do. Every image is {SIZE[0]} x {SIZE[1]} px, a drawing of a
few kB, which flatters the naive grid: real candidates are a hundred times as large on disk. The naive grid holds every image in the page at once, as
its full file, and marks a card when the server has answered. Every verdict waits until it is on disk: 4 kB alone take this disk {quantile(disk, 0.5):.0f} ms (p50), {quantile(disk, 0.99):.0f} ms (p99).

{chr(10).join(table)}

Goals: under 8 ms of script per frame, first pictures under 1 s once thumbnails exist, a verdict of a person saved in under 50 ms in 99 of 100 cases.
"""
    (ROOT / "benchmarks" / "results" / "gallery.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
