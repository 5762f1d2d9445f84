"""How fast faces are measured, whether faster means other decisions, and whether ComfyUI's page waits.

    python benchmarks/faces.py [folder of portraits of one person] [folder for the files]      (default: FLEN_PHOTOS, and one that is deleted)

One run, the same files, three ways: the loop everybody writes with `face_recognition`, its command line on two processors, and ours. The files
are made from the pictures of the templates that ComfyUI installs, 1024 px: those in which HOG sees a face, as PNG and as JPEG, where both ways do the
same work; six without any face and those in which only the CNN sees one, where ours goes on looking and the loop has given up; and the first and the six
together, where ours also runs without its CNN, which is the work of the others. Each way runs in a
process of its own, in turn, PNG and the mix twice; the better counts. How often two
ways decide differently is compared with how often the loop differs from itself when three rows and columns of pixels are cut off.
How long decoding alone takes is a row of its own: nobody is spared that. With FLEN_COMFYUI, a real ComfyUI measures the same files while a client asks it for an answer a hundred times a second.
Needs dlib-bin, face_recognition, face_recognition_models and ComfyUI's template package. Prints the tables and writes results/faces.md.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401 - gives the pack its name
from comfyui_flenwheel.flywheel import identity, sifting  # noqa: E402
from comfyui_flenwheel.flywheel.dataset import Dataset, ImageRecord  # noqa: E402
from comfyui_flenwheel.flywheel.faces import Embedder, Face, embedder  # noqa: E402
from comfyui_flenwheel.flywheel.faces.dlib_resnet import HELPERS  # noqa: E402
from comfyui_flenwheel.flywheel.faces.finding import DRAFT_PX  # noqa: E402
from comfyui_flenwheel.flywheel.faces.measure import measure  # noqa: E402
from comfyui_flenwheel.flywheel.images import content_key, open_image  # noqa: E402
from comfyui_flenwheel.flywheel.project import open_project  # noqa: E402
from comfyui_flenwheel.flywheel.references import choose_references  # noqa: E402
from comfyui_flenwheel.nodes.launch import Server  # noqa: E402

from nodes import comfy  # noqa: E402 - tests/nodes

WITH, WITHOUT, HARD = 38, 6, 12
KINDS = {
    "png": "PNG in which HOG sees a face",
    "jpg": "JPEG of the same",
    "mix": "PNG, those with a face and those without one in one folder",
    "hard": "PNG in which HOG sees no face and the CNN does",
    "empty": "PNG without a face, which ours knows after the CNN has looked too",
}
SIZE = 1024
TIMES = 2
SAME, UNSURE = 0.55, 0.05  # distances nearer than this to the threshold are no clear case
EVERY_S = 0.01


def template_pictures() -> list[Path]:
    """Stills of ComfyUI's own templates, by name."""
    packages = [name for name in ("api", "image", "video", "other") if importlib.util.find_spec(f"comfyui_workflow_templates_media_{name}")]
    found: list[Path] = []
    for name in packages:
        spec = importlib.util.find_spec(f"comfyui_workflow_templates_media_{name}")
        found += [
            path for folder in (spec and spec.submodule_search_locations) or () for path in (Path(folder) / "templates").glob("*.webp")
        ]
    return sorted(found, key=lambda path: path.name)


def prepare(folder: Path, engine: Embedder) -> None:
    """The files: `png` and `jpg` hold the same pictures, `hard` those in which HOG sees nothing and the CNN does, `empty` those without a face,
    `mix` all of `png` and `empty`."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
    _choose(folder, engine)
    for path in [*(folder / "png").iterdir(), *(folder / "empty").iterdir()]:
        shutil.copy(path, folder / "mix")


def _choose(folder: Path, engine: Embedder) -> None:
    for path in template_pictures():
        if len(list((folder / "png").iterdir())) == WITH:
            return
        with Image.open(path) as opened:
            if getattr(opened, "n_frames", 1) > 1 or min(opened.size) < 400:
                continue
            image = opened.convert("RGB")
        image = image.resize([round(side * SIZE / max(image.size)) for side in image.size], Image.Resampling.LANCZOS)
        faces = engine.faces(image)
        if faces and not 0.1 <= faces[0].width / SIZE <= 0.45:
            continue
        if not faces or faces[0].found_by == "cnn":
            other, wanted = ("hard", HARD) if faces else ("empty", WITHOUT)
            if len(list((folder / other).iterdir())) < wanted:
                image.save(folder / other / f"{path.stem}.png")
            continue
        image.save(folder / "png" / f"{path.stem}.png")
        image.save(folder / "jpg" / f"{path.stem}.jpg", quality=92)


def naive(folder: Path, cut_px: int = 0) -> dict[str, Any]:
    """What most scripts do. In a process of its own: importing face_recognition changes Pillow."""
    import face_recognition

    files = sorted(folder.iterdir())
    face_recognition.face_encodings(np.zeros((64, 64, 3), dtype=np.uint8))  # models are loaded by the import
    began, spent = time.perf_counter(), time.process_time()
    found = {
        path.name: [face.tolist() for face in face_recognition.face_encodings(_cut(face_recognition.load_image_file(path), cut_px))]
        for path in files
    }
    return {"wall": time.perf_counter() - began, "cpu": time.process_time() - spent, "faces": found, "memory": [_memory()]}


def decoding(folder: Path) -> dict[str, Any]:
    """Processor seconds of nothing but making pixels of the files: by Pillow, as the others do, and by us."""
    spent: dict[str, float] = {}
    ways: dict[str, Callable[[Path], Any]] = {
        "pillow": lambda path: Image.open(path).convert("RGB"),
        "ours": lambda path: open_image(path, at_least=DRAFT_PX),
    }
    for name, decode in ways.items():
        files = sorted(folder.iterdir())
        decode(files[0])
        began = time.process_time()
        for path in files:
            decode(path)
        spent[name] = time.process_time() - began
    return spent


def _cut(pixels: np.ndarray, px: int) -> np.ndarray:
    return np.ascontiguousarray(pixels[px:, px:]) if px else pixels


def ours(folder: Path) -> dict[str, Any]:
    """Ours as in ComfyUI: an event loop that wants its turn every 5 ms, and the measuring beside it."""
    return asyncio.run(_ours(folder))


def without_cnn(folder: Path) -> dict[str, Any]:
    """Ours, asking HOG alone."""
    embedder().nets.faces = lambda *_: []
    return ours(folder)


async def _ours(folder: Path) -> dict[str, Any]:
    files = sorted(folder.iterdir())
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(1) as executor:
        project = open_project(Path(home), "bench", instance_token="ohwx_char", class_noun="person", medium="photographs")
        project.stage("source").folder.mkdir(parents=True, exist_ok=True)
        files = [Path(shutil.copy(path, project.stage("source").folder)) for path in files]
        records = tuple(ImageRecord(content_key(path), project.relative(path), SIZE, SIZE, "") for path in files)
        dataset = Dataset(project, "source", records)
        paths = {record.key: path for record, path in zip(records, files, strict=True)}
        memory: list[float] = []

        async def beside(work: Callable[[], Any]) -> tuple[Any, float, float, float]:
            """Result, wall and processor seconds, and the longest the loop had to wait (ms)."""
            waits, done, last = [0.0], asyncio.get_running_loop().run_in_executor(executor, work), time.perf_counter()
            began, spent = time.perf_counter(), _processor_s()
            while not done.done():
                await asyncio.sleep(0.005)
                now = time.perf_counter()
                waits.append(now - last - 0.005)
                last = now
            return await done, time.perf_counter() - began, _processor_s() - spent, max(waits) * 1000

        _, _, _, idle_ms = await beside(lambda: time.sleep(2))
        blank = Image.new("RGB", (64, 64))

        importlib.import_module("torch.nn.functional")  # ComfyUI has done this long before

        def load() -> Embedder:
            engine = embedder()
            engine.fingerprint()
            with ThreadPoolExecutor(HELPERS) as pool:
                list(pool.map(engine.faces, [blank] * HELPERS))
            return engine

        engine, load_s, _, load_ms = await beside(load)

        def report(done: int, total: int) -> None:
            if done in (total // 5, total):  # looking at the processes takes a fiftieth of the time of an image
                memory.append(_memory())

        measured, wall, cpu, busy_ms = await beside(lambda: measure(project, paths, engine, report=report))
        refilter_ms, again_ms = refiltered(dataset, measured.faces, engine)
    names = {key: path.name for key, path in paths.items()}
    return {
        "wall": wall,
        "cpu": cpu,
        "faces": {names[key]: [face.embedding.tolist() for face in faces] for key, faces in measured.faces.items()},
        "memory": memory,
        "idle_ms": idle_ms,
        "busy_ms": busy_ms,
        "load_s": load_s,
        "load_ms": load_ms,
        "refilter_ms": refilter_ms,
        "again_ms": again_ms,
        "nets": engine.nets.name,
    }


def refiltered(dataset: Dataset, faces: Mapping[str, tuple[Face, ...]], engine: Embedder) -> tuple[float, float]:
    """Milliseconds of another threshold, and of scoring again what is known, against the first picture with one face; 0 where none has one."""
    one = next((key for key, seen in faces.items() if len(seen) == 1 and (seen[0].found_by == "cnn" or not seen[0].doubt)), None)
    if one is None:
        return 0.0, 0.0
    references = choose_references(dataset.keeping({one}), engine, [dataset.keeping({one}).images[0].name])
    scores = identity.score(dataset, references, engine)
    began = time.perf_counter()
    for threshold in np.linspace(0, 1, 100):
        sifting.split(scores, sifting.floor(scores, float(threshold), best=30))
    refilter_ms = (time.perf_counter() - began) * 10
    began = time.perf_counter()
    identity.score(dataset, references, engine)
    return refilter_ms, (time.perf_counter() - began) * 1000


def command_line(known: Path, folder: Path) -> float:
    """Seconds of `face_recognition --cpus 2`, without its start."""
    program = Path(sys.executable).parent / "face_recognition"
    with tempfile.TemporaryDirectory() as alone:
        shutil.copy(min(folder.iterdir()), alone)
        seconds = []
        for unknown in (Path(alone), folder):
            began = time.perf_counter()
            subprocess.run([program, "--cpus", "2", known, unknown], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
        count = len(list(folder.iterdir()))
        return (seconds[1] - seconds[0]) * count / (count - 1)


def _all_of_us() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children()]


def _memory() -> float:
    """MB of this process and its helpers."""
    return sum(process.memory_info().rss for process in _all_of_us()) / 1e6


def _processor_s() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _all_of_us())


def in_comfyui(folder: Path) -> dict[str, float]:
    """How long (ms) a real ComfyUI takes to answer: with nothing to do; while it loads the engine, curates and measures the files for the first
    time; and when it collects garbage, which it does after any graph, with or without us."""
    # fmt: off
    plain = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    curated = {
        "1": {"class_type": "FLEN_Project", "inputs": {"name": "bench", "instance_token": "ohwx_char", "class_noun": "person", "version": 1, "pictures_are": "photographs"}},
        "2": {"class_type": "FLEN_CurateSource", "inputs": {
            "project": ["1", 0], "folder": str(folder), "caption_template": "photo of {token} {noun}", "strict": False,
        }},
    }
    # fmt: on
    with tempfile.TemporaryDirectory() as base, Server(Path(os.environ["FLEN_COMFYUI"]), Path(sys.executable), Path(base)) as server:
        idle, _ = _answers(server.port, lambda: time.sleep(3))
        others, _ = _answers(server.port, lambda: (comfy.run(server.address, plain), time.sleep(2)))
        busy, outcome = _answers(server.port, lambda: comfy.run(server.address, curated))
    over = next(told["timestamp"] / 1000 for kind, told in outcome.messages if kind == "execution_success")
    during = sorted(ms for at, ms in busy if at + ms / 1000 < over)
    return {
        "after": max((ms for at, ms in busy if at + ms / 1000 >= over), default=0.0),
        "idle": max(ms for _, ms in idle),
        "plain": max(ms for _, ms in others),
        "slowest": during[-1],
        "most": during[int(len(during) * 0.99)],
    }


def _answers(port: int, work: Callable[[], Any]) -> tuple[list[tuple[float, float]], Any]:
    """When it was asked (s since 1970) and how long (ms) each answer took beside some work; and what came of the work."""
    waits: list[tuple[float, float]] = []
    with ThreadPoolExecutor(1) as executor, closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        done = executor.submit(work)
        while not done.done():
            at, began = time.time(), time.perf_counter()
            client.request("GET", "/api/prompt")
            client.getresponse().read()
            waits.append((at, (time.perf_counter() - began) * 1000))
            time.sleep(EVERY_S)
        return waits, done.result()


def _load() -> str:
    """How busy the machine was, so that nobody trusts seconds that were shared with others."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _apart(way: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, f"--{way}", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def pairs(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> dict[tuple[str, str], tuple[float, float]]:
    """The distance of every two pictures by both ways; any face may be the one."""
    shared = [name for name in one if one[name] and other[name]]

    def near(way: dict[str, list[Any]], a: str, b: str) -> float:
        return float(min(np.linalg.norm(np.array(x) - np.array(y)) for x in way[a] for y in way[b]))

    return {(a, b): (near(one, a, b), near(other, a, b)) for number, a in enumerate(shared) for b in shared[:number]}


def decisions(loop: dict[str, list[Any]], cut: dict[str, list[Any]], mine: dict[str, list[Any]]) -> str:
    """How often ours and the loop would call two pictures one person differently, and how often the loop contradicts itself."""
    itself = pairs(loop, cut)
    clear = {
        pair
        for pair, told in itself.items()
        if all(value <= SAME - UNSURE for value in told) or all(value > SAME + UNSURE for value in told)
    }
    rows: list[str] = []
    for name, found in (("the loop, 3 px cut off", itself), ("ours", pairs(loop, mine))):
        flips = [pair for pair, (a, b) in found.items() if (a <= SAME) != (b <= SAME)]
        change = [abs(a - b) for a, b in found.values()]
        wrong = len(clear & set(flips))
        rows.append(
            f"| {name} | {len(flips)} of {len(found)} ({len(flips) / len(found):.2%}) | {wrong} of {len(clear)} | {np.mean(change):.3f} |"
            f" {np.percentile(change, 95):.3f} |"
        )
    lost = [name for name in loop if loop[name] and not mine[name]]
    extra = [name for name in loop if mine[name] and not loop[name]]
    return (
        f"A face is found in {sum(map(bool, loop.values()))} pictures by the loop, in {sum(map(bool, mine.values()))} by ours"
        f" ({len(lost)} lost, {len(extra)} more).\n\n"
        f"| against the loop | pairs of pictures decided differently at {SAME} | of those, clear cases | distances move, mean | 95 % below |\n"
        "|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        f"A clear case is a pair that the loop puts more than {UNSURE} from the threshold both times. The other flips are dlib's own: its windows fall"
        " on other pixels and the picture is the same."
    )


def row(name: str, count: int, ran: dict[str, float], loop: dict[str, float]) -> str:
    cpu = f"{ran['cpu'] / count * 1000:.0f} | {loop['cpu'] / ran['cpu']:.1f}" if "cpu" in ran else "|"
    return f"| {name} | {count / ran['wall']:.1f} | {loop['wall'] / ran['wall']:.1f} | {cpu} |"


def best(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {name: min(run[name] for run in runs) for name in ("wall", "cpu")}


def main() -> None:
    ways = {
        "--naive": naive,
        "--shifted": lambda folder: naive(folder, 3),
        "--ours": ours,
        "--without": without_cnn,
        "--decoding": decoding,
    }
    if len(sys.argv) > 2 and sys.argv[1] in ways:
        print(json.dumps(ways[sys.argv[1]](Path(sys.argv[2]))))
        return
    portraits = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["FLEN_PHOTOS"])
    with tempfile.TemporaryDirectory() as made:
        folder, known = Path(sys.argv[2] if len(sys.argv) > 2 else made), Path(made) / "known"
        known.mkdir()
        shutil.copy(portraits / "obama.jpg", known)
        if not (folder / "png").is_dir():
            prepare(folder, embedder())
        counts = {kind: len(list((folder / kind).iterdir())) for kind in KINDS}
        loops: dict[str, list[dict[str, Any]]] = {kind: [] for kind in counts}
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in counts}
        lines: dict[str, list[float]] = {"png": [], "jpg": [], "mix": []}
        hog_alone: list[dict[str, Any]] = []
        for kind in ("png", "mix", "jpg", "png", "mix", "hard", "empty"):
            loops[kind].append(_apart("naive", folder / kind))
            runs[kind].append(_apart("ours", folder / kind))
            if kind in lines:
                lines[kind].append(command_line(known, folder / kind))
                runs[kind].append(_apart("ours", folder / kind))
            if kind == "mix":
                hog_alone.append(_apart("without", folder / kind))
        decoded = {kind: _apart("decoding", folder / kind) for kind in counts}
        cut = _apart("shifted", folder / "png")
        waits = in_comfyui(folder / "png") if "FLEN_COMFYUI" in os.environ else None
    tables = ""
    for kind, title in KINDS.items():
        loop, mine = best(loops[kind]), best(runs[kind])
        tables += f"\n{counts[kind]} {title}\n\n| way | images a second | ratio | processor ms an image | ratio |\n|---|---|---|---|---|\n"
        tables += row("loop with `face_recognition`", counts[kind], loop, loop) + "\n"
        if kind in lines:
            tables += row("`face_recognition --cpus 2`", counts[kind], {"wall": min(lines[kind])}, loop) + "\n"
        tables += row(f"ours, {HELPERS} helpers", counts[kind], mine, loop) + "\n"
        if kind == "mix":
            tables += row("ours without the CNN, which is the work of the others", counts[kind], best(hog_alone), loop) + "\n"
        for name, spent in (("Pillow, as the others decode", decoded[kind]["pillow"]), ("ours", decoded[kind]["ours"])):
            tables += f"| decoding alone, {name} | | | {spent / counts[kind] * 1000:.0f} | {loop['cpu'] / spent:.1f} |\n"
        if kind in lines:
            tables += (
                f"\nOurs is {loop['wall'] / mine['wall']:.1f} times the loop (goal: 8) and {min(lines[kind]) / mine['wall']:.1f} times the command line"
                " (goal: 6).\n"
            )
    told = runs["png"][-1]
    table = f"""# Measuring faces

1024 px on the longer side; {os.cpu_count()} cores, load {_load()}, Python {platform.python_version()}; the best of one to {2 * TIMES} runs \
each, in turn. Networks of ours: {told["nets"]}. Start-up is not counted in any of them; the processor time of ours includes its helpers.
{tables}
## The same decisions?

{decisions(loops["png"][0]["faces"], cut["faces"], told["faces"])}

## Everything else

{_waits(waits, runs["png"])}
- Loading takes {told["load_s"]:.1f} s, once per start.
- Memory with the helpers: after a fifth of the images {told["memory"][0]:.0f} MB, at the end {told["memory"][-1]:.0f} MB.
- Another threshold or number to keep: {told["refilter_ms"]:.2f} ms. Scoring again what is known: {told["again_ms"]:.0f} ms for {counts["png"]} images.
"""
    print(table)
    (ROOT / "benchmarks" / "results" / "faces.md").write_text(table, encoding="utf-8")


def _waits(comfyui: dict[str, float] | None, runs: list[dict[str, Any]]) -> str:
    loaded, busy, idle = (min(run[name] for run in runs) for name in ("load_ms", "busy_ms", "idle_ms"))
    text = (
        f"- An event loop in the process that measures waits at most {loaded:.0f} ms while the engine loads and {busy:.0f} ms while faces are"
        f" measured (goal: 50; with nothing to do {idle:.0f} ms)."
    )
    if comfyui:
        text += (
            f"\n- A real ComfyUI, asked a hundred times a second while it loads the engine, curates and measures the PNG: the slowest answer takes"
            f" {comfyui['slowest']:.0f} ms (goal: 50), 99 % take less than {comfyui['most']:.0f} ms (with nothing to do, the slowest"
            f" {comfyui['idle']:.0f} ms). When a graph is done ComfyUI collects garbage: the slowest answer then takes {comfyui['after']:.0f} ms after this"
            f" graph, and {comfyui['plain']:.0f} ms after one of its own nodes alone, before any of ours has run."
        )
    return text


if __name__ == "__main__":
    main()
