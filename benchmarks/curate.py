"""How long curation takes with all checks, and whether its memory stays flat.

    FLEN_PHOTOS=<folder of demo portraits> python benchmarks/curate.py [photos]

The photos are the demo portraits, each changed at random (crop, scale, light, colour, mirror, slight turn) and saved as JPEG of about one
megapixel; every tenth says where it was taken, every hundredth is a near-duplicate of the one before. Prints a table and writes results/curate.md.
"""

from __future__ import annotations

import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from PIL import Image, ImageEnhance, ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel.curate import Curated, curate  # noqa: E402
from comfyui_flenwheel.flywheel.faces import embedder  # noqa: E402
from comfyui_flenwheel.flywheel.images import open_image  # noqa: E402
from comfyui_flenwheel.flywheel.photo_shelf import photos_in  # noqa: E402
from comfyui_flenwheel.flywheel.project import Project, open_project  # noqa: E402
from comfyui_flenwheel.flywheel.sheets import Tile, contact_sheet  # noqa: E402

GOAL_S = 180.0
PARTS = 5  # the memory is told after each fifth of the photos
LONG_PX = 1152
EXIF_GPS = 0x8825


@dataclass
class Spent:
    """Wall and processor seconds of a piece of work, and the process's memory in MB while it ran, sampled ten times a second."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory: list[float] = field(default_factory=list)


@contextmanager
def measured() -> Iterator[Spent]:
    spent, process, over = Spent(), psutil.Process(), threading.Event()

    def watch() -> None:
        while True:
            spent.memory.append(process.memory_info().rss / 1e6)
            if over.wait(0.1):
                return

    watcher = threading.Thread(target=watch)
    wall, cpu = time.perf_counter(), time.process_time()
    watcher.start()
    yield spent
    over.set()
    watcher.join()
    spent.wall_s, spent.cpu_s = time.perf_counter() - wall, time.process_time() - cpu


def changed(portrait: Image.Image, rng: random.Random) -> Image.Image:
    """Another photo of the same person, as far as software can."""
    width, height = portrait.size
    share = rng.uniform(0.75, 1.0)
    left, top = rng.uniform(0, 1 - share) * width, rng.uniform(0, 1 - share) * height * 0.5
    image = portrait.crop((round(left), round(top), round(left + share * width), round(top + share * height)))
    image = image.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, fillcolor=(120, 120, 120))
    image.thumbnail((LONG_PX, LONG_PX), Image.Resampling.LANCZOS)
    for change, spread in ((ImageEnhance.Brightness, 0.3), (ImageEnhance.Contrast, 0.25), (ImageEnhance.Color, 0.4)):
        image = change(image).enhance(rng.uniform(1 - spread, 1 + spread))
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


@dataclass
class Watched:
    """The memory in MB after so many photos of each half of the work, as `curate` reports it: ours, and that of the helpers."""

    count: int
    taken_in: dict[int, float] = field(default_factory=dict)
    looked_at: dict[int, float] = field(default_factory=dict)
    helpers: dict[int, float] = field(default_factory=dict)

    def report(self, done: int, _: int) -> None:
        half, number = (self.taken_in, done) if done <= self.count else (self.looked_at, done - self.count)
        if not number or number % max(1, self.count // PARTS):
            return
        process = psutil.Process()
        half[number] = process.memory_info().rss / 1e6
        if half is self.looked_at:
            self.helpers[number] = sum(helper.memory_info().rss for helper in process.children()) / 1e6

    def table(self) -> str:
        rows = (("photos taken in", self.taken_in), ("faces looked for", self.looked_at), ("the helpers beside it", self.helpers))
        head = f"| MB after so many | {' | '.join(f'{number:,}' for number in self.taken_in)} |\n|---{'|---' * len(self.taken_in)}|\n"
        return head + "".join(f"| {name} | {' | '.join(f'{value:.0f}' for value in half.values())} |\n" for name, half in rows)


def made(portraits: list[Path], folder: Path, count: int) -> None:
    rng = random.Random(0)
    opened = [open_image(path).image for path in portraits]
    place = Image.Exif()
    place.get_ifd(EXIF_GPS).update({1: "N", 2: (52.0, 31.0, 12.0)})
    image = opened[0]
    for number in range(count):
        quality = 92
        if number % 100 == 99:
            quality = 60
        else:
            image = changed(opened[number % len(opened)], rng)
        image.save(folder / f"photo {number}.jpg", quality=quality, **({"exif": place} if number % 10 == 0 else {}))


def drawn(curated: Curated) -> Image.Image:
    """The contact sheet as the node draws it for so many."""
    project: Project = curated.dataset.project
    tiles = (Tile(open_image(project.path(photo.record.path), at_least=252).image, "", "high") for photo in curated.photos if photo.record)
    return contact_sheet(tiles, cell_px=126)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    portraits = [path for path in sorted(Path(os.environ["FLEN_PHOTOS"]).iterdir()) if path.suffix == ".jpg"]
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        made(portraits, photos, count)
        project = open_project(Path(folder) / "home", "bench", instance_token="ohwx_char", class_noun="person", medium="photographs")
        engine = embedder()
        engine.faces(open_image(portraits[0]).image)  # the models are loaded
        watched = Watched(count)
        with measured() as first:
            curated = curate(project, photos_in(photos).photos, engine, report=watched.report)
        with measured() as second:
            curate(project, photos_in(photos).photos, engine)
        with measured() as sheet:
            drawn(curated)
    report(count, curated, watched, first, second, sheet)


def report(count: int, curated: Curated, watched: Watched, first: Spent, second: Spent, sheet: Spent) -> None:
    looked = sum(bool(photo.quality and photo.quality.faces) for photo in curated.photos)
    odd = sum(photo.odd for photo in curated.photos)
    twins = sum("almost the same picture" in problem for photo in curated.photos for problem in photo.problems)
    placed = sum("place" in treatment for photo in curated.photos for treatment in photo.treatments)
    table = (
        f"# Curation of {count} photos with all checks\n\n"
        f"About one megapixel each, JPEG, made from the demo portraits; {psutil.cpu_count()} cores, Python {platform.python_version()},"
        f" load of the machine during the run {psutil.getloadavg()[1]:.1f}.\n\n"
        "| work | wall s | ms per photo | processor s, without the helpers |\n|---|---|---|---|\n"
    )
    for name, spent in (
        ("first run: read, copy, hash, sharpness, light, faces, angle, framing, near-duplicates, odd one out, captions", first),
        ("second run: nothing has changed", second),
        ("contact sheet", sheet),
    ):
        table += f"| {name} | {spent.wall_s:.1f} | {spent.wall_s / count * 1000:.0f} | {spent.cpu_s:.1f} |\n"
    table += (
        f"\nGoal: the first run under {GOAL_S:g} s for 1,000. Memory (resident, with torch):\n\n{watched.table()}\n"
        f"At most {max(first.memory):.0f} MB ({max(second.memory):.0f} MB in the second run, {max(sheet.memory):.0f} MB with the sheet).\n\n"
        f"Found: a face in {looked}, {odd} odd ones out, {twins} near-duplicates, {placed} places left out.\n"
    )
    print(table)
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    (ROOT / "benchmarks" / "results" / "curate.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
