"""A step of the built-in trainer against a plain diffusers/PEFT loop and against the flow of a public Qwen-edit trainer, on equal data.

    python benchmarks/train_qwen.py            on the CPU under Linux, some minutes; writes benchmarks/results/train_qwen.md

Each way runs in processes of its own, one of them for memory: there the C library is told to give back what is freed, since what it keeps otherwise
hangs on the order of what came before. Time and memory: a model of the real classes, 8 blocks, 512 wide, at 256 px with one control; the steps of each
way alternate with those of the plain loop in the same process, so that a busy machine slows both. Learning: the tiny model of the tests, four
triplets; afterwards every LoRA is measured alike, as it will be used: on the full-precision model, right words, fixed noise, the model's own
distribution of noise levels. The public flow is written anew from what `train_qwen_edit_lora.py` of FlyMyAI/flymyai-lora-trainer does: a LoRA in the
model's bf16 on to_q, to_k, to_v and to_out of the picture, latents drawn from the VAE's distribution once, noise levels uniform and unshifted.

For a card, `card_step(model, place, controls=…, megapixels=…)` measures seconds and peak GiB of a step on a model folder; see there.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "training" / "engines")]
import bf16_in_fp32  # noqa: E402
import conftest  # noqa: E402, F401 - gives the pack its name
import peft_tiny  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen import latents, load, memory  # noqa: E402
from comfyui_flenwheel.flywheel.project import open_project  # noqa: E402
from comfyui_flenwheel.training.engines import peft_qlora  # noqa: E402
from comfyui_flenwheel.training.engines.peft_qlora import draws, families  # noqa: E402
from comfyui_flenwheel.training.engines.peft_qlora.loop import Training  # noqa: E402
from comfyui_flenwheel.training.engines.peft_qlora.qwen import ATTENTION, MLP, QwenEdit  # noqa: E402

RESULT = Path(__file__).parent / "results" / "train_qwen.md"
PLAIN, KEPT = "plain diffusers and PEFT", "ours, full precision, nothing computed twice"
WAYS = ("ours, nf4", "ours, int8", "ours, full precision", KEPT, PLAIN, "plain, with checkpointing", "public trainer's flow")
ALIKE = {KEPT: "ours, full precision", "plain, with checkpointing": PLAIN}  # learn the same, since only what is kept in memory differs
ROUNDED = (
    "This processor has no instructions for bf16, and PyTorch would take a hundred times longer there for some of its products: in every way alike they",
    "are computed in fp32 and rounded ([bf16_in_fp32.py](../../tests/training/engines/bf16_in_fp32.py)).",
    "",
)
LEARNING_STEPS, RATE = 300, 2e-3
TIMED_STEPS, REMEMBERED_STEPS = 5, 2  # the second knows what the optimizer keeps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help="measure this way only and print it as JSON")
    parser.add_argument("--what", choices=tuple(MEASURES), default="time")
    parser.add_argument("--large", type=Path, help="a folder for the larger model, which is made where it is not there yet")
    parser.add_argument("--results", type=Path, default=RESULT, help="the page to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bf16_in_fp32.begin()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        large = options.large or place / "large"
        if not large.is_dir():
            _make_large(large)
        if options.one:
            print(json.dumps(MEASURES[options.what](options.one, place, large)))
            return
        text = _report(_every_way(large))
    options.results.write_text(text, encoding="utf-8")
    print(text)


def _every_way(large: Path) -> dict[str, dict[str, Mapping[str, float]]]:
    rows: dict[str, dict[str, Mapping[str, float]]] = {way: {} for way in WAYS}
    begun = time.monotonic()
    wanted = [(what, way) for what, way in itertools.product(MEASURES, WAYS) if what != "learning" or way not in ALIKE]
    for number, (what, way) in enumerate(wanted, 1):
        print(f"{time.monotonic() - begun:5.0f} s  {number} of {len(wanted)}: {what} of {way}", file=sys.stderr, flush=True)
        rows[way][what] = _apart(way, what, large)
    for way, twin in ALIKE.items():
        rows[way]["learning"] = rows[twin]["learning"]
    return rows


def _apart(way: str, what: str, large: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", way, "--what", what, "--large", str(large)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **({"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "memory" else {})}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if answer.returncode:
        raise SystemExit(f"{way}, {what}: {answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


# --- the ways ---------------------------------------------------------------------------------------------------------------------------


def _training(place: Path, way: str, model: Path, *, side: int, rate: float, steps: int) -> Training:
    """Ours on four triplets, encoded and loaded; the peers take their data from it."""
    project = open_project(place / "home", "Anna", instance_token="ohwx_char", class_noun="person", medium="photographs")
    folder = peft_tiny.triplets(project, 4, size=(side, side))
    kind = {"ours, nf4": "nf4", "ours, int8": "int8"}.get(way, "as stored")
    spec = peft_tiny.spec(
        project,
        folder,
        model,
        precision=kind,
        optimizer="adamw8bit" if kind == "nf4" else "adamw",
        checkpointing="off" if way == KEPT else "full",
        resolution=side,
        rank=16,
        alpha=16,
        learning_rate=rate,
        steps=steps,
        save_every=steps,
    )
    job = peft_tiny.job(project, spec)
    return Training(job, peft_qlora.options_of(job))


def _make_large(folder: Path) -> None:
    tiny = peft_tiny.helper("qwen_tiny")
    small, tiny.HEADS = tiny.HEADS, 16
    tiny.build(folder, layers=8)
    tiny.HEADS = small


class Peer:
    """A transformer of the plain class with its timestep layers, a LoRA as PEFT makes it, AdamW."""

    def __init__(self, ours: Training, *, public: bool, checkpointing: bool) -> None:
        from diffusers import QwenImageTransformer2DModel
        from peft import LoraConfig

        self.public, self.seed = public, ours.spec.seed
        dtype = torch.bfloat16 if public else torch.float32
        root = ours.family.model.root
        self.transformer: Any = QwenImageTransformer2DModel.from_pretrained(root, subfolder="transformer", torch_dtype=dtype)
        self.transformer.requires_grad_(False)
        pattern = r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)" if public else f"({ATTENTION}|{MLP})"
        torch.manual_seed(self.seed)
        self.transformer.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=pattern), adapter_name="lora")
        if public or checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.parameters = [one for one in self.transformer.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=ours.spec.learning_rate, weight_decay=0.01)
        self.examples = [self._example(ours, shown) for shown in ours.shown]

    def _example(self, ours: Training, shown: Any) -> tuple[Any, ...]:
        encoded = ours.family.encoded(shown, shown.example.caption)
        target, controls = encoded.target, encoded.controls
        if self.public:
            target, controls = (_drawn(ours.family, path, size) for path, size in zip(_files(shown), shown.sizes, strict=True))
        return target, controls, encoded.words["words"], [latents.shape_of(size) for size in shown.sizes]

    def step(self, number: int) -> float:
        chance = draws.generator("peer", self.seed, number)
        target, controls, words, shapes = self.examples[number % len(self.examples)]
        level = torch.rand(1, generator=chance)
        noise = torch.randn(target.shape, generator=chance)
        dtype = self.transformer.dtype
        self.optimizer.zero_grad(set_to_none=True)
        out = self.transformer(
            hidden_states=torch.cat([draws.noised(target, noise, level), controls], dim=1).to(dtype),
            encoder_hidden_states=words.to(dtype),
            timestep=level.to(dtype),
            img_shapes=[shapes],
            return_dict=False,
        )[0][:, : target.shape[1]]
        loss = torch.nn.functional.mse_loss(out.float(), noise - target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def matrices(self) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        return {
            name: (layer.lora_A["lora"].weight, layer.lora_B["lora"].weight)
            for name, layer in self.transformer.named_modules()
            if "lora" in getattr(layer, "lora_A", {})
        }


def _files(shown: Any) -> Sequence[Path]:
    return shown.example.image, *shown.example.controls


@torch.no_grad()
def _drawn(family: QwenEdit, path: Path, size: tuple[int, int]) -> torch.Tensor:
    """Latents drawn from the VAE's distribution, as the public trainer caches them."""
    vae = load.vae(family.model, dtype=torch.float32, device="cpu")
    return latents.pack(latents.encode(_Sampling(vae), families.read(path, size), size))


class _Sampling:
    """A VAE whose mode is a draw."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.config, self.device, self.dtype = vae, vae.config, vae.device, vae.dtype

    def encode(self, frame: torch.Tensor) -> Any:
        torch.manual_seed(0)
        drawn = self.vae.encode(frame).latent_dist.sample()
        answer = type("Answer", (), {})()
        answer.latent_dist = type("Drawn", (), {"mode": staticmethod(lambda: drawn)})()
        return answer


# --- measuring --------------------------------------------------------------------------------------------------------------------------


def timed(way: str, place: Path, large: Path) -> dict[str, float]:
    """CPU seconds of a step, and what share that is of a step of the plain loop."""
    ours = _encoded(place, way, large)
    step = _prepared(ours, way)
    plain = Peer(ours, public=False, checkpointing=False).step
    step(1)  # not counted: the optimizers make their state
    plain(1)
    pairs = [(_lap(step, number), _lap(plain, number)) for number in range(2, 2 + TIMED_STEPS)]
    return {"seconds": statistics.median(own for own, _ in pairs), "share": statistics.median(own / other for own, other in pairs)}


def remembered(way: str, place: Path, large: Path) -> dict[str, float]:
    """MiB the process grew by at most: until it is loaded, and in its steps."""
    ours = _encoded(place, way, large)
    gc.collect()
    before = _rss()
    _forget_peak()
    step = _prepared(ours, way)
    loading = _peak() - before
    gc.collect()
    _forget_peak()
    for number in range(1, 1 + REMEMBERED_STEPS):
        step(number)
    return {"loading": loading / 2**20, "peak": (_peak() - before) / 2**20}


def _encoded(place: Path, way: str, large: Path) -> Training:
    """On the larger model; words and pictures are encoded, and the encoders gone."""
    ours = _training(place, way, large, side=256, rate=1e-4, steps=TIMED_STEPS + 1)
    ours.family.encode(ours.shown, [one.example.caption for one in ours.shown], lambda _: None)
    ours.family.vae = None
    return ours


def _prepared(ours: Training, way: str) -> Callable[[int], float]:
    if way.startswith("ours"):
        ours.prepare()
        return ours.step
    return Peer(ours, public="public" in way, checkpointing="with checkpointing" in way).step


def _lap(step: Callable[[int], float], number: int) -> float:
    began = time.process_time()
    step(number)
    return time.process_time() - began


def _rss() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # Linux


def _peak() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def learnt(way: str, place: Path, _: Path) -> dict[str, float]:
    """The fixed-noise loss before and after, with the LoRA on the full-precision model."""
    tiny = peft_tiny.model(place / "tiny")
    judge = _training(place / "judge", "ours, full precision", tiny, side=64, rate=RATE, steps=LEARNING_STEPS)
    judge.prepare()
    before = judge.validation_loss() or 0.0
    ours = _training(place / "own", way, tiny, side=64, rate=RATE, steps=LEARNING_STEPS)
    ours.prepare()
    peer = None if way.startswith("ours") else Peer(ours, public="public" in way, checkpointing="with checkpointing" in way)
    for number in range(1, LEARNING_STEPS + 1):
        (peer or ours).step(number)
    made: Mapping[str, Any] = peer.matrices() if peer else ours.network.matrices
    for name, pair in judge.network.matrices.items():
        for matrix, theirs in zip(pair, made.get(name, (None, None)), strict=True):
            matrix.data.zero_() if theirs is None else matrix.data.copy_(theirs.float())
    return {"before": before, "after": judge.validation_loss() or 0.0}


MEASURES: Mapping[str, Callable[[str, Path, Path], dict[str, float]]] = {"time": timed, "memory": remembered, "learning": learnt}


def _report(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    plain = rows[PLAIN]["memory"]
    lines = [
        "# A training step of Qwen-Image-Edit, ours against others",
        "",
        f"CPU, one thread, torch {torch.__version__}; made with `python benchmarks/train_qwen.py`. Each way in a process of its own.",
        "",
        "Time and memory: real classes, 8 blocks, 512 wide, one image of 256 px with one control of 256 px, LoRA of rank 16, median of",
        f"{TIMED_STEPS} steps that alternated with plain ones in the same process, of which the share is made. Memory: the most the process grew by from",
        f"before the transformer was loaded, in a run of its own of {REMEMBERED_STEPS} steps with `MALLOC_MMAP_THRESHOLD_=65536`, so that memory which was",
        "freed does not count. Stored weights count once they are read: in nf4 and int8 while it loads, which lets go of their file, in full",
        "precision in the steps. A first run is measured: later ones find what was quantised and load less.",
        "",
        f"Learning: 2 blocks, 64 wide, four triplets of 64 px, {LEARNING_STEPS} steps at {RATE:g}; mean squared error on those triplets at fixed noise,",
        "measured alike for all, at the noise levels the model is used at. Ways that differ only in what is computed twice learn the same (for ours a",
        "test holds that) and are measured once.",
        "",
        *(ROUNDED if bf16_in_fp32.is_needed() else ()),
        "Checkpointing computes each block's forward pass twice: compare ways that do so alike. On a CPU ours computes in fp32, on a card in bf16; the",
        "public flow holds everything in bf16, which is why it takes less memory here, and its LoRA too, which is part of why it learns less.",
        "",
        "| | CPU s per step | of plain | MiB, loading | MiB, steps | of plain | loss before | after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, row in rows.items():
        one, grown, two = row["time"], row["memory"], row["learning"]
        lines.append(
            f"| {way} | {one['seconds']:.2f} | {one['share']:.0%} | {grown['loading']:.0f} | {grown['peak']:.0f}"
            f" | {grown['peak'] / plain['peak']:.0%} | {two['before']:.4f} | {two['after']:.4f} |"
        )
    return "\n".join([*lines, ""])


# --- on a card --------------------------------------------------------------------------------------------------------------------------


class _Unencoded(QwenEdit):
    """A model whose encoders are not needed: words and pictures are random, of the shapes the real ones have."""

    def encode(self, *_: Any) -> None:
        pass

    def encoded(self, shown: Any, prompt: str) -> families.Encoded:  # noqa: ARG002 - all words are alike here
        counts = [self.tokens(size)[0] for size in shown.sizes]
        channels, width = self.tokens(shown.sizes[0])[1], self.model.config("transformer")["joint_attention_dim"]
        chance = draws.generator("unencoded", counts)
        target, controls = (
            torch.randn(1, counts[0], channels, generator=chance),
            torch.randn(1, sum(counts[1:]), channels, generator=chance),
        )
        words = {"words": torch.randn(1, 24 + 196 * (len(counts) - 1), width, generator=chance)}
        return families.Encoded(target, controls, words, words)


def card_step(
    model: Path,
    place: Path,
    *,
    controls: int,
    megapixels: float,
    steps: int = 5,
    precision: str = "nf4",
    checkpointing: str = "full",
    device: str = "cuda",
    randomise: Callable[[Any], None] = lambda _: None,
) -> dict[str, float]:
    """Seconds per training step (median) and peak GiB, for one image of `megapixels` with so many controls of the same size, rank 16.

    `model`: a Qwen-Image-Edit folder; its encoders are not loaded. `place`: an empty folder; what is quantised is kept in it, so give the same
    `place` again. `randomise`: called with the transformer once it is loaded, for weights that are holes in a file.
    """
    side = round((megapixels * 1e6) ** 0.5 / 16) * 16
    project = open_project(place / "home", "Anna", instance_token="ohwx_char", class_noun="person", medium="photographs")
    folder = peft_tiny.triplets(project, 2, controls=controls, size=(side, side))
    spec = peft_tiny.spec(
        project,
        folder,
        model,
        precision=precision,
        optimizer="adamw8bit",
        checkpointing=checkpointing,
        device=device,
        validate=0,
        resolution=side,
        rank=16,
        alpha=16,
        learning_rate=1e-5,
        steps=steps + 1,
    )
    job = peft_tiny.job(project, spec)
    options = peft_qlora.options_of(job)
    family = _Unencoded(model, options, project.cache / "training", torch.device(device))
    training = Training(job, options, family)
    memory.start_measuring(family.device)
    training.prepare()
    randomise(family.transformer)
    laps: list[float] = []
    for number in range(1, steps + 2):
        began = time.perf_counter()
        training.step(number)
        laps.append(time.perf_counter() - began)
    return {"seconds": sorted(laps[1:])[len(laps[1:]) // 2], "peak_gib": memory.measured_peak(family.device)}


if __name__ == "__main__":
    main()
