"""`python benchmarks/gpu` where there is no card: it says so, measures the tiny model instead when asked, goes on where it was, and is ready for one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for library in ("diffusers", "peft", "accelerate"):
    pytest.importorskip(library, reason=f"{library} is not installed (extra `diffusers`)")

from comfyui_flenwheel.flywheel.editors.qwen import memory, quantised  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen.models import open_folder  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
GPU = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu"


def run(*arguments, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(GPU), *arguments], capture_output=True, text=True, timeout=900, check=False, **options)


@pytest.fixture
def modules(monkeypatch):
    """The benchmark's modules, importable as they are to itself."""
    monkeypatch.syspath_prepend(str(GPU))
    yield
    for name in ("bench", "rows", "report", "ceiling"):
        sys.modules.pop(name, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_nothing_is_measured_and_that_is_said(tmp_path):
    ran = run("--results", str(tmp_path))
    assert ran.returncode == 2 and "no CUDA card" in ran.stderr and "--tiny --device cpu" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_a_tiny_row_runs_in_a_process_of_its_own_and_is_not_run_again(tmp_path):
    where = ("--tiny", "--device", "cpu", "--place", str(tmp_path / "place"), "--results", str(tmp_path))
    store = tmp_path / "gpu-a-cpu-tiny-model.json"
    store.write_text(json.dumps({"train/1-controls/0.004096-megapixels": {"error": "cut off", "again": True}}))
    ran = run(*where, "--rows", "ours/*")
    made = json.loads(store.read_text())["ours/2-controls/2-steps"]
    assert ran.returncode == 0, ran.stderr
    assert made["seconds"] > 0 and made["how"] == "resident, as stored" and made["loads"].count("transformer") == 1
    assert "not run yet" in store.with_suffix(".md").read_text()
    marked = json.loads(store.read_text())
    marked["ours/2-controls/2-steps"]["how"] = "what was there"
    store.write_text(json.dumps(marked))
    again = run(*where, "--rows", "ours/*")
    assert again.returncode == 0 and "ours/2-controls" not in again.stdout
    assert json.loads(store.read_text()) == marked


@pytest.mark.comfy
@pytest.mark.parametrize("rows", ["diffusers-model-offload/*", "comfyui-st[ao]*", "inside*", "train/*"])
def test_peers_trainer_and_our_other_engine_run_in_the_same_command(rows, comfyui, tmp_path):
    where = ("--tiny", "--device", "cpu", "--place", str(tmp_path / "place"), "--results", str(tmp_path), "--comfyui", str(comfyui))
    ran = run(*where, "--rows", rows)
    results, page = json.loads((tmp_path / "gpu-a-cpu-tiny-model.json").read_text()), (tmp_path / "gpu-a-cpu-tiny-model.md").read_text()
    assert ran.returncode == 0 and len(results) == {"comfyui-st[ao]*": 2, "inside*": 4}.get(rows, 1), (results, ran.stderr)
    for made in results.values():
        assert made["seconds"] > 0 < made["peak"] and f"| {made['seconds']:.2f} |" in page
    if rows == "inside*":
        assert "6 of 6 images are those made one after the other" in results["inside-beside/2-controls/2-steps"]["how"]


def test_musubi_tuner_takes_a_tiny_step_in_the_same_command(tmp_path):
    """Where MUSUBI_ROOT names it; where nothing does, its row says so."""
    where = ("--tiny", "--device", "cpu", "--place", str(tmp_path / "place"), "--results", str(tmp_path))
    ran = run(*where, "--rows", "musubi/*")
    (made,) = json.loads((tmp_path / "gpu-a-cpu-tiny-model.json").read_text()).values()
    assert ran.returncode == 0, ran.stderr
    if not os.environ.get("MUSUBI_ROOT"):
        assert "MUSUBI_ROOT names no checkout" in made["error"]
        pytest.skip("MUSUBI_ROOT names no checkout of musubi-tuner; its row says so")
    assert made["seconds"] > 0 < made["peak"] and "one block, as stored" in (tmp_path / "gpu-a-cpu-tiny-model.md").read_text(), made


def test_the_model_of_full_size_takes_no_disk_and_is_planned_to_stay_on_24_gib(modules, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    from bench import Bench

    folder = Bench(torch.device("cpu"), False, 0.0, tmp_path).model()
    stored = list((folder / "transformer").glob("*.safetensors")) + list((folder / "text_encoder").glob("*.safetensors"))
    assert sum(file.stat().st_size for file in stored) > 53 * 2**30
    if sys.platform != "win32":
        assert sum(file.stat().st_blocks * 512 for file in stored) < 2**22
    monkeypatch.setattr(memory, "free_gib", lambda _: 23.5)
    plan = memory.plan(
        open_folder(str(folder)),
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        precision="auto",
        rung="auto",
        tokens=4 * 4096,
        pixels=2**20,
        steps=40,
        batch=1,
    )
    assert (plan.rung, plan.precision) == ("resident", "fp8") and plan.fits


def test_the_page_says_how_far_the_goals_are_met(modules):
    import report
    import rows

    every = rows.rows(tiny=False)
    assert len({row.name for row in every}) == len(every) > 70
    assert all(rows.Row("ours", controls, steps) in every for controls in (1, 2, 3) for steps in (4, 8, 40))
    assert sum(row.way.startswith("inside") for row in every) == 3 * 3 + 1
    results = {
        "ceiling": {"flops": 100e12, "torch": "2"},
        "ours/1-controls/4-steps": {"seconds": 10.0, "peak": 20.0, "how": "resident, fp8"},
        "ours/2-controls/4-steps": {"seconds": 10.0, "peak": 23.0, "how": "in turns, fp8"},
        "comfyui-stock/1-controls/4-steps": {"seconds": 16.0, "peak": 22.0},
        "diffusers-model-offload/1-controls/4-steps": {"error": "out of memory with 24 GiB"},
        "diffusers-nf4/2-controls/4-steps": {"seconds": 12.0, "peak": 20.0},
        "train/1-controls/1-megapixels": {"seconds": 10.0, "peak": 15.0},
        "train/3-controls/1-megapixels": {"seconds": 40.0, "peak": 21.5},
        "musubi/1-controls/1-megapixels": {"seconds": 18.0, "peak": 22.0, "how": "fp8, 24 blocks swapped"},
    }
    page = report.page(results, every, card="Card", cap=24.0, side=1024, tiny=False)
    assert "| ours, planned for the memory there is | 1 | 10.00 | 1.60 x as fast | 20.0 | 67% | resident, fp8 |" in page
    assert "| diffusers, bf16, model offload | 1 | | | | | out of memory with 24 GiB |" in page
    assert "stays on a card of 24 GiB: 1 of 2 rows" in page
    assert "as the best peer: 1 of 2 rows (1.20 to 1.60)" in page
    assert "with one control: 1 of 1 rows" in page
    assert "| our QLoRA trainer | 1 | 1 | 10.00 | 1.80 x as fast | 15.0 | 53% |  |" in page
    assert "| musubi-tuner, fp8 and blocks swapped | 1 | 1 | 18.00 |  | 22.0 | 29% | fp8, 24 blocks swapped |" in page
    assert "no block swapped: 1 of 2 rows" in page and "as fast as musubi-tuner: 1 of 1 rows" in page
    assert "uses at least 45% of the ceiling: 1 of 2 rows" in page


@pytest.mark.parametrize("kind", ["fp8", "int8", "w8a8", "fp8 of ComfyUI", "full"])
def test_weights_are_made_random_and_are_all_numbers(modules, kind):
    from bench import randomise

    layer = torch.nn.Linear(256, 128)
    with torch.no_grad():
        layer.weight.zero_()
        if kind == "fp8 of ComfyUI":
            layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
        elif kind != "full":
            layer = quantised.linear(layer.weight, layer.bias, kind, dtype=torch.float32, device="cpu")
    randomise(torch.nn.Sequential(layer))
    numbers = layer.full(torch.float32) if isinstance(layer, quantised.ScaledLinear) else layer.weight.float()
    assert torch.isfinite(numbers).all() and 0.003 < numbers.std() < 0.3 and abs(numbers.mean()) < 0.2 * numbers.std()
