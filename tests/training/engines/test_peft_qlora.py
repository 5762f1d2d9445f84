"""The built-in trainer on a tiny model of the real classes: it learns, repeats itself, resumes exactly, and says what is wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

for needed in ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extra `diffusers`)")

import torch  # noqa: E402
from comfyui_flenwheel.flywheel import lora  # noqa: E402
from comfyui_flenwheel.flywheel.errors import FlywheelError  # noqa: E402
from comfyui_flenwheel.training import engines, run  # noqa: E402
from comfyui_flenwheel.training.engines import peft_qlora  # noqa: E402
from comfyui_flenwheel.training.engines.peft_qlora import draws  # noqa: E402
from comfyui_flenwheel.training.engines.peft_qlora.loop import Training  # noqa: E402
from comfyui_flenwheel.training.errors import PreflightError, Stopped, TrainingFailed, UnsupportedTraining  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from . import peft_tiny  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
QLORA = {"precision": "nf4", "optimizer": "adamw8bit"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return peft_tiny.model(tmp_path_factory.mktemp("tiny") / "Qwen-Image-Edit-2509")


@pytest.fixture(scope="module")
def model_2511(tmp_path_factory):
    return peft_tiny.model(tmp_path_factory.mktemp("tiny") / "Qwen-Image-Edit-2511", zero_cond_t=True)


@pytest.fixture
def made(project, model, tmp_path):
    """A job on four triplets; `changes` are fields of the spec or options."""

    def make(data=None, base=None, **changes):
        folder = peft_tiny.triplets(project, **(data or {}))
        return peft_tiny.job(project, peft_tiny.spec(project, folder, base or model, **changes), tmp_path / "loras")

    return make


def training(job) -> Training:
    """Ready for its first step."""
    made = Training(job, peft_qlora.options_of(job))
    made.prepare()
    return made


def told(job, kind):
    return [event for event in job.events() if event["kind"] == kind]


def worked(job):
    assert run.work(job) == 0, job.status().cause
    return load_file(job.folder / job.status().result)


def test_four_triplets_are_learnt_by_heart_and_the_lora_loads_everywhere(made, model):
    """In 4 bits with 8-bit AdamW: the QLoRA path as on a card."""
    from diffusers import QwenImageEditPlusPipeline

    job = made(steps=260, save_every=130, rank=16, alpha=16, targets="all", learning_rate=3e-3, sample_steps=2, **QLORA)
    tensors = worked(job)
    losses = [event["loss"] for event in told(job, "validation")]
    assert len(losses) == 3 and losses[-1] < losses[0] / 2, losses
    assert [event["step"] for event in told(job, "sample")] == [0] * 3 + [130] * 3 + [260] * 3
    reference = run.result_of(job)
    assert reference.path.parent.name == job.spec.project and reference.layers == 27

    pipeline = QwenImageEditPlusPipeline.from_pretrained(model, local_files_only=True)
    before = [weight.clone() for weight in pipeline.transformer.state_dict().values()]
    pipeline.load_lora_weights(str(reference.path))
    placed = [name for name, layer in pipeline.transformer.named_modules() if hasattr(layer, "lora_A")]
    assert len(placed) == reference.layers == len(tensors) / 2
    inputs = {
        "hidden_states": torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(1)),
        "encoder_hidden_states": torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(2)),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, 4, 4), (1, 4, 4)]],
        "return_dict": False,
    }
    with torch.no_grad():
        changed = pipeline.transformer(**inputs)[0]
        pipeline.disable_lora()
        assert (changed - pipeline.transformer(**inputs)[0]).abs().mean() > 0.05
    assert all(
        torch.equal(a, b) for a, b in zip(before, [w for n, w in pipeline.transformer.state_dict().items() if "lora" not in n], strict=True)
    )


def test_only_the_lora_moves(made):
    run_ = training(made(**QLORA))
    frozen = {name: weight.detach().clone() for name, weight in run_.family.transformer.named_parameters() if not weight.requires_grad}
    moving = {name: weight.detach().clone() for name, weight in run_.family.transformer.named_parameters() if weight.requires_grad}
    for step in (1, 2, 3):
        run_.step(step)
    after = dict(run_.family.transformer.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in frozen.items())
    assert all("lora_" in name and after[name].dtype == torch.float32 for name in moving)
    # what the last block says to the words is used by nobody, so that it cannot learn
    idle = ("1.attn.to_add_out", "1.txt_mlp", "1.attn.add_q_proj")
    assert all(not torch.equal(after[name], weight) for name, weight in moving.items() if not any(part in name for part in idle))


@pytest.mark.parametrize(
    "settings",
    [
        {"options": 1, "ema": 0.9, "gradient_accumulation": 2, "schedule": "cosine", "warmup": 2, "caption_dropout": 0.5},
        {"options": 2, "batch_size": 2, "schedule": "linear", **QLORA},
    ],
    ids=["averaged", "qlora"],
)
def test_two_halves_equal_one_whole_bit_for_bit(made, project, settings):
    settings = {name: value for name, value in settings.items() if name != "options"}
    job = made(steps=8, save_every=8, **settings)
    whole = worked(job)
    losses = job.losses()
    halved = made(steps=8, save_every=3, **settings)
    interrupted = training(halved)
    interrupted.job.append("started", pid=0, created=0.0, engine="peft_qlora", attempt=1, steps=8)
    interrupt = interrupted.step

    def stop_after_five(step, board=None):
        if step == 5:
            halved.ask_to_stop()
        return interrupt(step, board)

    interrupted.step = stop_after_five
    with pytest.raises(Stopped):
        interrupted.run()
    assert told(halved, "checkpoint")[-1]["step"] == 5
    halved.forget_stop()
    parts = worked(halved)
    assert halved.losses() == losses
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    first, second = (load_file(one.checkpoints / "step-00000008.safetensors") for one in (job, halved))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_share_a_step_as_one_would_do_it_alone(made, monkeypatch):
    """Over gloo on the CPU what nccl does between cards: the same losses, and the same LoRA to the last bit; whether the trainer starts the second
    process itself or torchrun has, which is what `accelerate launch` starts."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone, shared, launched = (
        made(steps=2, caption_dropout=0.3, **changes)
        for changes in ({"gradient_accumulation": 2}, {"gpus": 2}, {"gpus": 2, "device": "cpu"})
    )
    first, second = worked(alone), worked(shared)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", run.PACK, launched.folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    third = load_file(launched.folder / launched.status().result)
    assert alone.losses() == shared.losses() == launched.losses()
    assert all(torch.equal(first[name], second[name]) and torch.equal(first[name], third[name]) for name in first)
    assert told(shared, "launched") and not told(launched, "launched")
    assert all(run.process_of(event) is None for event in told(shared, "launched"))


def test_another_number_of_processes_than_was_asked_for_is_refused(made, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert "2 processes were launched, and gpus is 1" in failure(made())["message"]


def test_one_seed_is_one_run_and_another_seed_another(made):
    first, second, third = made(), made(save_every=2), made(seed=43)
    results = [worked(job) for job in (first, second, third)]
    assert first.losses() == second.losses() != third.losses()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(made):
    job = made(steps=6, save_every=2)
    whole = worked(job)
    (job.folder / job.status().result).unlink()
    last = sorted(job.checkpoints.glob("*"))[-1]
    last.write_bytes(last.read_bytes()[:-100])
    again = worked(job)
    assert any("damaged" in event["text"] for event in told(job, "note"))
    assert any(event["text"] == "goes on from step 4" for event in told(job, "note"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_killed_worker_goes_on_from_its_last_checkpoint(made, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = made(steps=400, save_every=5)
    run.start(job)
    until = time.monotonic() + 120
    while len(told(job, "checkpoint")) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(told(job, "started")[-1]["pid"], signal.SIGKILL)
    assert run.wait(job, 10).state == "lost"
    reached = job.status().checkpoint
    job.forget_stop()
    run.start(job)
    while not any("goes on from" in event["text"] for event in told(job, "note")) and time.monotonic() < until:
        time.sleep(0.05)
    run.stop(job)
    assert run.wait(job, 60).state == "stopped"
    assert any(event["text"] == f"goes on from step {reached}" for event in told(job, "note"))
    steps = [event["step"] for event in told(job, "step")]
    lost = [step for step in steps if steps.count(step) > 1]
    assert len(set(lost)) <= 5


# --- the method


def test_the_velocity_is_that_of_the_plain_model_with_its_timestep_layers(made, model, model_2511):
    """Tables, packing, order of controls and text are right: the untouched diffusers class answers the same."""
    import diffusers

    for base in (model, model_2511):
        trained = training(made(base=base, data={"controls": 3}))
        shown = trained.shown[0]
        encoded = trained.family.encoded(shown, shown.example.caption)
        drawn = draws.draw(1, 0, encoded.target.shape, 2.0, 0.0)
        x = draws.noised(encoded.target, drawn.noise, drawn.times)
        known = trained.family.tables.times
        level = known[len(known) // 2][None]
        ours = trained.family.velocity([encoded], [shown], [False], x, level)
        plain = diffusers.QwenImageTransformer2DModel.from_pretrained(base, subfolder="transformer", local_files_only=True)
        theirs = plain(
            hidden_states=torch.cat([x, encoded.controls], dim=1),
            encoder_hidden_states=encoded.words["words"],
            timestep=level,
            img_shapes=[[(1, height // 16, width // 16) for width, height in shown.sizes]],
            return_dict=False,
        )[0][:, : x.shape[1]]
        assert len(shown.sizes) == 4
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_controls_are_the_mode_of_the_vae_as_the_pipeline_encodes_them(made, model):
    from diffusers import QwenImageEditPlusPipeline
    from PIL import Image

    trained = training(made(resolution=88))
    shown = trained.shown[0]
    pipeline = QwenImageEditPlusPipeline.from_pretrained(model, local_files_only=True)
    size = shown.sizes[1]
    with Image.open(shown.example.controls[0]) as opened:
        image = pipeline.image_processor.preprocess(opened.convert("RGB"), size[1], size[0]).unsqueeze(2)
    theirs = pipeline.prepare_latents([image], 1, 16, size[1], size[0], torch.float32, torch.device("cpu"), torch.Generator(), None)[1]
    ours = trained.family.encoded(shown, shown.example.caption).controls
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_words_are_where_the_editor_puts_them_and_not_where_diffusers_would(made, model):
    """Right by test_qwen_numbers, which also tells when diffusers is."""
    from comfyui_flenwheel.flywheel.editors.qwen import encode
    from comfyui_flenwheel.training.engines.peft_qlora.families import read
    from diffusers import QwenImageEditPlusPipeline

    trained = training(made(data={"controls": 2}))
    shown, pipeline = trained.shown[0], QwenImageEditPlusPipeline.from_pretrained(model, local_files_only=True)
    pictures = [read(path, size) for path, size in zip(shown.example.controls, shown.sizes[1:], strict=True)]
    ours = trained.family.encoded(shown, shown.example.caption).words["words"]
    template = encode.template_of("QwenImageEditPlusPipeline")
    right = encode.encode(pipeline.text_encoder, pipeline.processor, template, shown.example.caption, pictures)
    with torch.no_grad():
        seen = [one.resize(encode.seen_size(one)) for one in pictures]
        wrong = pipeline.encode_prompt(prompt=shown.example.caption, image=seen, device="cpu")[0]
    assert torch.allclose(ours, right, atol=1e-5) and ours.shape == wrong.shape
    assert (ours - wrong).abs().max() > 1e-3


def test_a_batch_is_as_good_as_its_examples_one_by_one(made):
    trained = training(made(batch_size=2, caption_dropout=0.5))
    chosen = trained.shown[:2]
    encoded = [trained.family.encoded(one, one.example.caption) for one in chosen]
    assert encoded[0].words["words"].shape[1] != encoded[1].words["words"].shape[1]
    known = trained.family.tables.times[[3, 1]]
    noise = torch.randn(2, *encoded[0].target.shape[1:])
    together = float(trained._error(encoded, chosen, draws.Draw(known, noise, (False, True))))
    alone = [
        float(trained._error([one], [shown], draws.Draw(known[[n]], noise[[n]], (n == 1,))))
        for n, (one, shown) in enumerate(zip(encoded, chosen, strict=True))
    ]
    assert together == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_pairs_of_other_shapes_never_share_a_batch(made):
    job = made(data={"train": 5, "odd": (1, 3)}, batch_size=2, resolution=128)
    trained = training(job)
    for batch in trained.order.epoch(0):
        assert len({trained.shown[number].sizes for number in batch}) == 1
    for step in range(1, 4):
        trained.step(step)
    assert len(job.losses()) == 3


@pytest.mark.parametrize("kept", ["keep attention", "off"])
def test_what_is_computed_twice_changes_no_gradient(made, kept):
    gradients = []
    for checkpointing in ("full", kept):
        trained = training(made(checkpointing=checkpointing))
        for number in (0, 1):
            trained._loss(number).backward()
        gradients.append([matrix.grad.clone() for matrix in trained.network.parameters if matrix.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("precision", ["nf4", "int8", "fp8"])
def test_the_base_may_be_small(made, precision):
    trained = training(made(precision=precision))
    full = training(made())
    assert float(trained._loss(0)) == pytest.approx(float(full._loss(0)), rel=0.1)
    trained._loss(0).backward()
    assert sum(float(matrix.grad.abs().sum()) for matrix in trained.network.parameters if matrix.grad is not None) > 0


def test_held_out_triplets_are_never_trained_and_always_measured_alike(made):
    job = made(data={"train": 4, "held_out": 2}, steps=4, save_every=2)
    trained = training(job)
    assert {one.example.image for one in trained.validated}.isdisjoint(one.example.image for one in trained.shown)
    first = trained.validation_loss()
    assert first == trained.validation_loss()
    worked(job)
    assert [event["step"] for event in told(job, "validation")] == [0, 2, 4]
    assert told(job, "validation")[0]["loss"] == pytest.approx(first, abs=1e-6)


def test_the_average_is_what_is_measured_and_saved(made):
    plain, averaged = made(steps=6, save_every=6), made(steps=6, save_every=6, ema=0.5)
    last, mean = worked(plain), worked(averaged)
    state = load_file(averaged.checkpoints / "step-00000006.safetensors")
    name = next(iter(mean))
    key = name.removeprefix("transformer.").removesuffix(".lora_A.weight")
    assert torch.equal(mean[name], state[f"ema.{key}.A"].to(torch.bfloat16))
    assert torch.equal(last[name], state[f"lora.{key}.A"].to(torch.bfloat16))
    assert not torch.equal(last[name], mean[name])


def test_a_second_run_on_the_same_data_encodes_nothing_again(made):
    worked(made())
    job = made(seed=7)
    worked(job)
    assert not any("encoding" in event["name"] or "text encoder" in event["name"] for event in told(job, "phase"))


def test_tensorboard_finds_the_curves(made):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed; nothing else needs it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = made()
    worked(job)
    read = EventAccumulator(str(job.folder / "tensorboard")).Reload()
    assert [(one.step, pytest.approx(one.value, abs=1e-4)) for one in read.Scalars("loss")] == job.losses()
    assert [one.step for one in read.Scalars("validation_loss")] == [0, 3, 6]


# --- what goes wrong


def failure(job) -> dict:
    assert run.work(job) == 1
    return told(job, "failed")[-1]


def test_a_loss_that_is_no_number_ends_the_run_in_words(made, project):
    job = made()
    training(job)
    for path in (project.cache / "training" / "latents").glob("*.safetensors"):
        save_file({"latents": load_file(path)["latents"] * float("nan")}, path)
    failed = failure(job)
    assert failed["code"] == "nan" and "step 1" in failed["message"] and "learning rate" in failed["message"]


def test_a_full_disk_ends_the_run_in_words_and_keeps_what_was_finished(made, tmp_path):
    import resource

    job = made(steps=4, save_every=2, rank=64, alpha=64)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    training(job)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))  # no file may grow beyond that: as if the disk were full
    try:
        failed = failure(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not be written" in failed["message"] and failed["step"] == 2
    worked(job)


def test_a_base_that_the_disk_has_no_room_for_is_refused_before_anything_runs(made, model, tmp_path):
    """A file that is all hole, of more weights than the disk could hold."""
    import os
    import shutil
    import struct

    huge = tmp_path / "huge"
    shutil.copytree(model, huge)
    (stored,) = (huge / "transformer").glob("*.safetensors")
    elements = 4 * shutil.disk_usage(tmp_path).free  # half a byte each, and something
    header = json.dumps(
        {"transformer_blocks.0.attn.to_q.weight": {"dtype": "BF16", "shape": [elements, 1], "data_offsets": [0, 2 * elements]}}
    ).encode()
    stored.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(stored, 8 + len(header) + 2 * elements)
    assert "free some space" in failure(made(base=huge, precision="nf4"))["message"]


def test_a_model_that_is_not_there_is_refused_before_anything_runs(made, tmp_path):
    failed = failure(made(base_model="Qwen-Image-Edit-9999"))
    assert "There is no model 'Qwen-Image-Edit-9999'" in failed["message"]


def test_a_wrong_base_model_is_refused_before_anything_runs(made, model, tmp_path):
    wrong = tmp_path / "FLUX"
    for part in model.iterdir():
        (wrong / part.name).parent.mkdir(exist_ok=True)
        (wrong / part.name).symlink_to(part)
    (wrong / "model_index.json").unlink()
    (wrong / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert "FluxPipeline" in failure(made(base_model=str(wrong)))["message"]
    bare = tmp_path / "bare"
    bare.mkdir()
    told_ = failure(made(base_model=str(bare)))["message"]
    assert "transformer is missing" in told_ and "vae is missing" in told_


def test_an_empty_set_one_picture_and_sets_without_controls_are_refused(made, project):
    job = made(data={"train": 1})
    assert "only image" in failure(job)["message"]
    folder = peft_tiny.triplets(project, 0)
    with pytest.raises(FlywheelError):
        run.preflight.check(peft_tiny.job(project, peft_tiny.spec(project, folder, "x")))
    bare = project.stage("training").folder
    for number, picture in enumerate(sorted((peft_tiny.triplets(project, 3) / "images").glob("*target*"))):
        (bare / "1_a").mkdir(parents=True, exist_ok=True)
        (bare / "1_a" / f"{number}.png").write_bytes(picture.read_bytes())
        (bare / "1_a" / f"{number}.txt").write_text("a")
    job = peft_tiny.job(project, peft_tiny.spec(project, bare, job.spec.base_model))
    with pytest.raises(PreflightError, match="0 controls per example"):
        run.preflight.check(job)


def test_a_missing_control_is_named(made, project):
    job = made()
    (project.stage("qwen_training").folder / "images" / "2_source_0.png").unlink()
    assert "2_source_0.png" in failure(job)["message"]


def test_what_it_cannot_train_names_the_engines_that_can(made):
    with pytest.raises(UnsupportedTraining, match="Engines that can: "):
        engines.supports(dataclasses.replace(made().spec, kind="character", architecture="qwen_image_edit"))


def test_memory_that_does_not_suffice_is_told_as_such(made, monkeypatch):
    def greedy(*_):
        torch.empty(2**46)

    monkeypatch.setattr(Training, "prepare", greedy)
    with pytest.raises(TrainingFailed) as failed:
        peft_qlora.PeftQlora().train(made())
    assert failed.value.code == "memory"


def test_the_file_says_what_it_is_and_names_no_path(made, tmp_path):
    job = made()
    worked(job)
    marks = lora.inspect(run.result_of(job).path).metadata
    assert marks["flenwheel.model"] == "Qwen-Image-Edit-2509" and marks["flenwheel.control_megapixels"] == "0"
    assert str(tmp_path) not in json.dumps(dict(marks))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells which files are mapped")
@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_quantised_base_lets_go_of_the_file_it_was_made_from(made, model, precision):
    """Else every page that was read to quantise it counts as memory of the training."""
    ready = training(made(precision=precision))
    mapped = Path("/proc/self/maps").read_text()
    assert str(model / "transformer") not in mapped and ready.step(1) > 0
