"""ai-toolkit: its config, its slip with control slots, its log. A stand-in prints the real lines; AITK_ROOT brings in the real source."""

import dataclasses
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.images import open_image, png_bytes, write_whole
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training import proof, run
from comfyui_flenwheel.training.engines import _ai_toolkit_config, _dataset, _launch, ai_toolkit
from comfyui_flenwheel.training.errors import EngineNotInstalled
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from ..conftest import training_set
from . import bf16_in_fp32
from .conftest import PROMPT, changed, edit_job, inside, lay, own_python, pairs, posix, seen, spec_for, started_by_hand, until
from .test_musubi import spec_of

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
KNOWN = json.loads((HERE / "ai_toolkit_0.12.26_keys.json").read_text())
GOLDEN = HERE / "ai_toolkit_golden"
TRAINS = sorted(ai_toolkit.AiToolkit.trains)
OPTIONS = ({}, {"qtype": "uint3", "offload": 0.3, "low_vram": True}, {"qtype": "none"})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "Zoë's trainers" / "ai-toolkit"
    source = "".join(
        f"class {cls}:\n    def __init__(self, **kwargs):\n{''.join(f'        kwargs.get({key!r}, None){chr(10)}' for key in keys)}"
        for cls, keys in KNOWN.items()
    )
    lay(
        root,
        {
            "toolkit/config_modules.py": source,
            "extensions_built_in/diffusion_models/qwen_image/plus.py": 'arch = "qwen_image_edit_plus"\n',
            "run.py": (HERE / "fake_ai_toolkit.py").read_text(encoding="utf-8"),
            "version.py": 'VERSION = "0.12.26"\n',
            "FAKE": "ok",
        },
    )
    own_python(root, "AITK_PYTHON", monkeypatch)
    monkeypatch.setenv("AITK_ROOT", str(root))
    return root


@pytest.fixture
def job(project, tmp_path):
    made = edit_job(project, "ai_toolkit", tmp_path, tmp_path / "loras", controls=3, sample_prompts=("make it night",))
    yield made
    run.stop(made)
    run.wait(made, 20)


@posix
def test_three_control_folders_and_a_lora_at_the_end(checkout, job):
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    assert [step for step, _ in job.losses()] == list(range(1, 21)) and job.losses()[3] == (4, 0.25)
    assert [event["step"] for event in job.events() if event["kind"] == "checkpoint"] == [5, 10, 15]
    assert [step for step, _, _ in job.sampled()] == [0, 5, 10, 15], "the first is without the LoRA"
    process = seen(checkout)["config"]["process"][0]
    controls = [Path(folder) for folder in process["datasets"][0]["control_path"]]
    assert [folder.name for folder in controls] == ["control_1", "control_2", "control_3"]
    assert all(len(list(folder.iterdir())) == 4 for folder in controls)
    assert process["sample"]["samples"][0]["ctrl_img_3"] == str(controls[2] / "p0001.png")
    assert run.result_of(job).path.name == "Anna-edit-v001.safetensors"


@posix
def test_a_stop_saves_first_and_it_goes_on_by_itself_under_the_same_name(checkout, job):
    (checkout / "FAKE").write_text("slow")
    run.start(job)
    until(lambda: job.status().step >= 12)
    run.stop(job)
    assert run.wait(job, 20).state == "stopped"
    newest = ai_toolkit._numbered(job)[-1]
    saved = int(newest.stem[-9:])
    assert saved >= 12 and saved >= job.status().step - 2, "a stop costs next to nothing"
    cut = newest.with_name(f"{job.id}_000000019.safetensors")
    cut.write_bytes(newest.read_bytes()[:-100])  # killed while it wrote
    (checkout / "FAKE").write_text("ok")
    run.start(job)
    assert run.wait(job, 60).state == "done", job.status()
    last = max(number for number, event in enumerate(job.events()) if event["kind"] == "started")
    assert next(event["step"] for event in job.events()[last:] if event["kind"] == "step") == saved + 1
    told = [event.get("text") for event in job.events()]
    assert f"goes on from {newest.name}" in told and f"{cut.name} was cut off by the end of the run and is not used" in told


def test_a_training_that_does_not_save_is_ended_all_the_same(job, monkeypatch):
    control = ai_toolkit._Control(job.folder / "aitk.db", job)
    control.create()
    assert control.saved(), "nothing was learnt yet"
    job.append("started", pid=1, created=0.0, steps=20)
    job.append("step", step=3, loss=0.5)
    assert not control.saved()
    monkeypatch.setattr(ai_toolkit, "SAVE_S", 0.0)
    assert control.saved()


@posix
@pytest.mark.parametrize(
    ("plan", "code", "told"),
    [
        ("interrupted", "garbage", "did not finish its LoRA"),
        ("memory", "memory", "The memory was not enough"),
        ("unread", "data", "could not read a picture"),
        ("garbage", "garbage", "is no LoRA"),
    ],
)
def test_bad_ends_have_a_cause(checkout, job, plan, code, told):
    (checkout / "FAKE").write_text(plan)
    run.start(job)
    status = run.wait(job, 60)
    failed = [event for event in job.events() if event["kind"] == "failed"][-1]
    assert failed["code"] == code and told in status.cause, failed


@posix
def test_steps_it_skipped_are_noted(checkout, job):
    (checkout / "FAKE").write_text("skips")
    run.start(job)
    assert run.wait(job, 60).state == "done"
    assert any("a step was skipped" in event.get("text", "") for event in job.events())


def test_a_control_that_goes_missing_never_lets_the_others_slip(job):
    """ai-toolkit would make Picture 3 into Picture 2: the folders are read back, and a missing picture is made again."""
    folder, _ = _dataset.lay_out(job, ai_toolkit.LAYOUT)
    (folder / "control_2" / "p0002.png").unlink()
    _, again = _dataset.lay_out(job, ai_toolkit.LAYOUT)
    assert (folder / "control_2" / "p0002.png").is_file()
    assert [[control.path.parent.name for control in pair.controls] for pair in again.pairs] == [
        ["control_1", "control_2", "control_3"]
    ] * 4
    (folder / "control_2" / "p0009.png").write_bytes((folder / "control_2" / "p0001.png").read_bytes())
    with pytest.raises(ai_toolkit._dataset.DatasetError, match="p0009"):
        _dataset.lay_out(job, ai_toolkit.LAYOUT)


def test_keys_and_models_that_this_one_does_not_know(checkout, job, project, tmp_path):
    path = checkout / "toolkit" / "config_modules.py"
    path.write_text(path.read_text().replace("'cache_text_embeddings'", "'other'"))
    (checkout / "extensions_built_in/diffusion_models/qwen_image/plus.py").write_text("")
    with pytest.raises(EngineNotInstalled) as caught:
        ai_toolkit.AiToolkit().check(job)
    told = "\n".join(caught.value.problems)
    assert "does not know train.cache_text_embeddings" in told and "does not know the model qwen_image_edit_plus" in told
    strange = edit_job(
        project, "ai_toolkit", tmp_path, tmp_path, options={"model": "no/such/model"}, sample_prompts=("a ${HOME} of [name]",)
    )
    with pytest.raises(EngineNotInstalled) as caught:
        ai_toolkit.AiToolkit().check(strange)
    told = "\n".join(caught.value.problems)
    assert (
        "neither a folder that is there nor a name on Hugging Face" in told
        and "a sample prompt holds ${" in told
        and "holds [name]" in told
    )


@pytest.mark.parametrize(
    ("base", "options", "arch", "model", "qtype"),
    [
        ("a_2509.safetensors", {}, "qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509", "qfloat8"),
        (
            "a_2511.gguf",
            {"qtype": "uint3"},
            "qwen_image_edit_plus:2511",
            "Qwen/Qwen-Image-Edit-2511",
            "uint3|ostris/accuracy_recovery_adapters/qwen_image_edit_2511_torchao_uint3.safetensors",
        ),
        ("a", {"version": "edit", "qtype": "uint3", "recovery_adapter": ""}, "qwen_image_edit", "Qwen/Qwen-Image-Edit", "uint3"),
        ("a", {"model": "me/Edit-2509", "qtype": "uint4", "recovery_adapter": "/x"}, "qwen_image_edit_plus", "me/Edit-2509", "uint4|/x"),
    ],
)
def test_the_generations_of_qwen_image_edit(project, tmp_path, base, options, arch, model, qtype):
    job = edit_job(project, "ai_toolkit", tmp_path, tmp_path, base_model=base, options=options)
    name, problems = ai_toolkit._model(job)
    told = ai_toolkit.config(job.spec, name, Path("/job"), Path("/data"), None)["config"]["process"][0]["model"]
    assert problems == [] and (told["arch"], told["name_or_path"], told["qtype"]) == (arch, model, qtype)


@pytest.mark.parametrize(
    ("architecture", "options", "names"),
    [
        ("flux1_kontext", {}, ["ctrl_img"]),
        ("qwen_image_edit", {"version": "edit"}, ["ctrl_img"]),
        ("qwen_image_edit", {}, ["ctrl_img_1"]),
        ("flux2_klein_9b", {}, ["ctrl_img_1"]),
    ],
)
def test_samples_name_their_control_as_the_model_asks_for_it(project, tmp_path, architecture, options, names):
    changes = {"architecture": architecture, "options": options, "sample_prompts": ("make it night",)}
    job = edit_job(project, "ai_toolkit", tmp_path, tmp_path, **changes)
    folder, dataset = _dataset.lay_out(job, ai_toolkit.LAYOUT)
    (sample,) = ai_toolkit.config(job.spec, "m", job.folder, folder, dataset)["config"]["process"][0]["sample"]["samples"]
    assert list(sample) == ["prompt", *names]


def refused(job):
    with pytest.raises(EngineNotInstalled) as caught:
        ai_toolkit.AiToolkit().check(job)
    return caught.value.problems


def test_controls_that_its_models_cannot_take_are_refused(checkout, project, tmp_path):
    first = edit_job(project, "ai_toolkit", tmp_path, tmp_path, controls=2, options={"version": "edit"})
    assert any("the first Qwen-Image-Edit takes one picture to start from, and the data has 2" in told for told in refused(first))
    folder = pairs(project, controls=2)
    write_whole(project.root / "data/source/v1/start_3_2.png", png_bytes(Image.new("RGB", (64, 96))))
    sizes = spec_for(project, folder, "ai_toolkit", batch_size=2, gradient_accumulation=3)
    (told,) = refused(jobs.find_or_create(project.root, sizes))
    assert told.startswith("the pictures of control 2 have 2 sizes") and "gradient_accumulation to 6" in told
    ai_toolkit.AiToolkit().check(jobs.find_or_create(project.root, dataclasses.replace(sizes, batch_size=1)))


def test_an_alpha_that_it_would_not_use_is_refused(checkout, project, tmp_path):
    (told,) = refused(edit_job(project, "ai_toolkit", tmp_path, tmp_path, alpha=2))
    assert "alpha must be the rank" in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            {"_class_name": "FluxTransformer2DModel"},
            "folder holds a FluxTransformer2DModel, and Qwen-Image-Edit is a QwenImageTransformer2DModel",
        ),
        ({}, "folder is no model folder in diffusers' layout"),
    ],
)
def test_a_folder_of_another_model_is_refused(checkout, project, tmp_path, content, told):
    lay(tmp_path, {"folder/transformer/config.json": json.dumps(content)})
    job = edit_job(project, "ai_toolkit", tmp_path, tmp_path, options={"model": "folder", "version": "edit-2509"})
    assert refused(job)[0].startswith(told)
    lay(tmp_path, {"folder/transformer/config.json": json.dumps({"_class_name": "QwenImageTransformer2DModel"})})
    assert ai_toolkit.AiToolkit().check(job)


@pytest.mark.parametrize("size", ["4b", "9b"])
def test_klein_is_read_from_its_makers_own_file(checkout, project, tmp_path, size):
    (checkout / "extensions_built_in/diffusion_models/qwen_image/plus.py").write_text(f'arch = "flux2_klein_{size}"\n')
    file = f"flux-2-klein-base-{size}.safetensors"
    lay(tmp_path, {"folder/transformer/config.json": "{}", "folder/other.safetensors": "x", "whole/ae.safetensors": "x"})
    layer = {"double_blocks.0.img_attn.qkv.weight": np.zeros(1, np.float16)}
    for name, tensors in ((file, layer), (f"whole/{file}", layer), ("scaled", {**layer, "scaled_fp8": layer[next(iter(layer))]})):
        save_file(tensors, tmp_path / name)

    def job(model):
        return edit_job(project, "ai_toolkit", tmp_path, tmp_path, architecture=f"flux2_klein_{size}", options={"model": model})

    (told,) = refused(job("folder"))
    assert told.startswith(f"folder holds no {file}")
    (told,) = refused(job("scaled"))
    assert "quantised in a way ai-toolkit cannot read" in told
    for model in (file, "whole"):
        facts = ai_toolkit.AiToolkit().check(job(model))
        (downloads,) = [fact for fact in facts if "from Hugging Face" in fact]
        assert "Qwen/Qwen3-" in downloads and ("flux2_vae" in downloads) is (model == file), "its folder holds the autoencoder"


def test_a_generation_that_nothing_tells_is_asked_for(project, tmp_path):
    assert "set the option version" in ai_toolkit._model(edit_job(project, "ai_toolkit", tmp_path, tmp_path, base_model="mine"))[1][0]


@pytest.mark.parametrize(("kind", "architecture"), TRAINS)
def test_the_files_are_the_golden_ones(kind, architecture):
    """Golden files are read by people: look at the difference before you replace them."""
    spec = spec_of(architecture, engine="ai_toolkit", kind=kind, steps=1500)
    config = ai_toolkit.config(spec, ai_toolkit.MODELS[architecture].hub, Path("/job"), Path("/data"), None)
    config["config"]["name"] = "id"
    told = json.dumps(config, indent=1) + "\n"
    golden = GOLDEN / f"{kind}_{architecture}.json"
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(told, encoding="utf-8")
    assert told == golden.read_text(encoding="utf-8")


def test_every_key_is_asked_for_by_the_real_source():
    root = os.environ.get("AITK_ROOT")
    if not root:
        pytest.skip("AITK_ROOT names no checkout of ai-toolkit; the list of its keys kept here was used instead")
    real = _ai_toolkit_config.keys_of(Path(root) / ai_toolkit.MARKER)
    assert all(set(keys) <= real[cls] for cls, keys in KNOWN.items())
    for kind, architecture in TRAINS:
        for options in OPTIONS:
            spec = spec_of(architecture, engine="ai_toolkit", kind=kind, options=options)
            assert ai_toolkit.block_problems(ai_toolkit.config(spec, "m", Path("/job"), Path("/data"), None), Path(root)) == []


KINDS = [
    *(("character", name, {}, 0) for name in ("flux1", "flux2_klein_4b", "flux2_klein_9b")),
    ("edit", "flux1_kontext", {}, 1),
    ("edit", "qwen_image_edit", {"version": "edit"}, 1),
    *(("edit", "qwen_image_edit", {"version": version}, count) for version in ("edit-2509", "edit-2511") for count in (1, 2, 3)),
    *(("edit", name, {}, count) for name in ("flux2_klein_4b", "flux2_klein_9b") for count in (1, 2, 3)),
]
ONLY = {"flux1_kontext": "FluxKontextModel", "qwen_image_edit": "QwenImageEditModel"}  # what takes one control, as it calls them


@pytest.fixture
def in_ai_toolkit():
    """Its own reader and data loader, asked about the config of each job: what they made of it, in the order of the jobs."""
    root = os.environ.get("AITK_ROOT")
    if not root or not any((Path(root) / name).is_dir() for name in ("venv", ".venv")):
        pytest.skip("AITK_ROOT names no checkout of ai-toolkit with a Python of its own; golden files were used instead")

    def ask(*laid_out):
        paths = []
        for job, folder, dataset in laid_out:
            paths.append(job.folder / f"{job.id}.json")
            paths[-1].write_text(json.dumps(ai_toolkit.config(job.spec, "m", job.folder, folder, dataset)))
        python = _launch.interpreter(Path(root), ai_toolkit.PYTHON)
        said = inside(root, python, _launch.environment({}), HERE / "in_ai_toolkit.py", *paths)
        return json.loads(said.rpartition("READ")[2])

    return ask


def uneven(project):
    """Three pictures that count four times beside two that count twice: the smallest proportion is 2 to 1."""
    folder = training_set(project, 5)
    often, seldom = folder / "4_ohwx_char person", folder / "2_ohwx_char person"
    next(folder.iterdir()).rename(often)
    seldom.mkdir()
    for number in (3, 4):
        for suffix in (".png", ".txt"):
            (often / f"image_{number:03}{suffix}").rename(seldom / f"image_{number:03}{suffix}")
    return folder


def test_its_reader_and_loader_see_every_setting_picture_repeat_and_control_of_every_kind(project, tmp_path, in_ai_toolkit):
    laid_out = []
    characters = uneven(project)
    for kind, architecture, options, count in KINDS:
        changes = {"kind": kind, "architecture": architecture, "options": options, "sample_prompts": ("make it night",)}
        if kind == "edit":
            job = edit_job(project, "ai_toolkit", tmp_path, tmp_path, controls=count, **changes)
        else:
            job = jobs.find_or_create(project.root, spec_for(project, characters, "ai_toolkit", **changes))
        laid_out.append((job, *_dataset.lay_out(job, ai_toolkit.LAYOUT)))
    for (kind, architecture, options, count), (_, folder, _), told in zip(KINDS, laid_out, in_ai_toolkit(*laid_out), strict=True):
        case = f"{kind} {architecture} {options} {count}"
        assert told["error"] == "" and told["resolutions"] == [128], case
        items = [item for batch in told["batches"] for item in batch]
        if kind == "character":
            assert sorted(Path(item["path"]).name for item in items) == [f"p{number:04}.png" for number in range(1, 9)], case
            shown = Counter(Path(item["path"]).read_bytes() for item in items)
            assert sorted(shown.values()) == [1, 1, 2, 2, 2], case
            assert {item["caption"].strip() for item in items} == {"photo of ohwx_char person, front view"}, case
        else:
            assert sorted(Path(item["path"]).name for item in items) == [f"p000{number}.png" for number in (1, 2, 3, 4)], case
            assert {item["caption"].strip() for item in items} == {PROMPT}, case
        for item in items:
            name = Path(item["path"]).name
            assert item["controls"] == [str(folder / f"control_{slot}" / name) for slot in range(1, count + 1)], case
            assert item["greys"] == [40 * slot for slot in range(1, count + 1)], case
        single = told["model"] in ONLY.values()
        assert kind == "character" or told["several"] is not single, case
        (sample,) = told["samples"]
        where = [str(folder / f"control_{slot}" / "p0001.png") for slot in range(1, count + 1)] + [None] * (3 - count)
        assert [sample[f"ctrl_img_{slot}"] for slot in (1, 2, 3)] == where, case
        assert sample["ctrl_img"] == (where[0] if single else None), f"{case}: one that takes one control asks for it by another name"
        assert told["settings"] == {
            "lr": 1e-4, "steps": 20, "rank": 4, "every": 5, "dtype": "bf16", "scheduler": "flowmatch", "qtype": "qfloat8"
        }, case  # fmt: skip


def test_the_slips_that_are_guarded_against_are_really_there(project, tmp_path, in_ai_toolkit):
    """A control that is missing moves the next one up a slot, and a batch of controls of two sizes breaks off: in every model that takes several."""
    laid_out = []
    for architecture in ("qwen_image_edit", "flux2_klein_4b"):
        gap = edit_job(project, "ai_toolkit", tmp_path, tmp_path, architecture=architecture, controls=3)
        laid_out.append((gap, *_dataset.lay_out(gap, ai_toolkit.LAYOUT)))
        (laid_out[-1][1] / "control_2" / "p0002.png").unlink()
        sizes = edit_job(project, "ai_toolkit", tmp_path, tmp_path, architecture=architecture, batch_size=4)
        laid_out.append((sizes, *_dataset.lay_out(sizes, ai_toolkit.LAYOUT)))
        write_whole(laid_out[-1][1] / "control_1" / "p0003.png", png_bytes(Image.new("RGB", (64, 96))))
    told = in_ai_toolkit(*laid_out)
    for gap, sizes in zip(told[::2], told[1::2], strict=True):
        slipped = next(item for batch in gap["batches"] for item in batch if item["path"].endswith("p0002.png"))
        assert slipped["greys"] == [40, 120], "Picture 3 has become Picture 2"
        assert "Sizes of tensors must match" in sizes["error"]


def test_the_kept_keys_cover_what_is_written():
    for kind, architecture in TRAINS:
        for options in OPTIONS:
            spec = spec_of(architecture, engine="ai_toolkit", kind=kind, options=options)
            process = ai_toolkit.config(spec, "m", Path("/job"), Path("/data"), None)["config"]["process"][0]
            for block, cls in _ai_toolkit_config.CLASSES.items():
                rows = process[block] if isinstance(process[block], list) else [process[block]]
                assert {key for row in rows for key in row} <= set(KNOWN[cls])


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ("mira:  12%|█▎        | 250/2000 [10:00<1:10:00,  2.40s/it, lr: 1.0e-04 loss: 4.123e-01]", _launch.Progress(250, 2000, 0.4123)),
        ("Caching latents:  50%|█████     | 6/12 [00:03<00:03,  2.00it/s]", None),
        ("mira:   0%|          | 0/2000 [00:00<?, ?it/s]", None),
    ],
)
def test_only_the_bar_of_the_training_counts(line, progress):
    assert ai_toolkit.read(line) == progress


@pytest.fixture
def without_a_card(tmp_path, monkeypatch):
    """ai-toolkit itself, told two things about a card that is not there, since one of its other models asks for them while it is imported;
    and bf16_in_fp32 beside it, for a processor without bf16 instructions."""
    root = os.environ.get("AITK_ROOT")
    if not root:
        pytest.skip("AITK_ROOT names no checkout of ai-toolkit with a Python of its own; stand-ins drew the samples")
    copy = tmp_path / "Zoë's trainers" / "ai-toolkit"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("venv", ".git", "ui", "output", "assets"))
    script = copy / "run.py"
    told = (
        "import torch, types\n"
        "torch.cuda.current_device = lambda: 0\n"
        "torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(warp_size=32)\n"
    )
    script.write_text(told + script.read_text(encoding="utf-8"), encoding="utf-8")
    python = _launch.interpreter(Path(root), ai_toolkit.PYTHON)
    monkeypatch.setenv("AITK_PYTHON", str(python))
    monkeypatch.setenv("AITK_ROOT", str(copy))
    with bf16_in_fp32.put_into(python):
        yield


def test_it_draws_samples_before_the_first_step_and_while_it_trains(project, tmp_path, without_a_card, monkeypatch):
    """A whole run with the smallest Qwen-Image-Edit, and what our job sees of the samples and of the LoRA; then one step more, by hand."""
    from . import peft_tiny

    monkeypatch.setattr(_ai_toolkit_config, "SAMPLE_STEPS", 2)
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    model = peft_tiny.model(tmp_path / "models" / "Qwen-Image-Edit-2509")
    layers = diffusers.QwenImageTransformer2DModel.from_pretrained(model / "transformer").named_modules()
    sizes = {name: (one.out_features, one.in_features) for name, one in layers if isinstance(one, torch.nn.Linear) and "_blocks." in name}
    monkeypatch.setattr(proof, "modules", lambda _: sizes)  # those of this model, which is smaller than the one the table is of
    told = {"model": str(model), "qtype": "none", "optimizer": "adamw"}
    job = edit_job(
        project, "ai_toolkit", tmp_path, tmp_path / "loras", steps=2, save_every=1, sample_prompts=("make it night",), options=told
    )
    assert run.work(job) == 0, (job.status(), job.log.read_text(encoding="utf-8")[-3000:])
    assert [step for step, _, _ in job.sampled()] == [0, 1, 2]
    kinds = [(event["kind"], event["step"]) for event in job.events() if event["kind"] in ("step", "sample", "checkpoint")]
    assert kinds.index(("sample", 0)) < kinds.index(("checkpoint", 1)), "the first is seen before the first checkpoint"
    first, *_, last = [open_image(path).image for _, _, path in job.sampled()]
    assert first.size == last.size == (128, 128)
    assert run.result_of(job).layers == len(sizes) == 28

    changed(job.folder / "config" / f"{job.id}.json", '"steps": 2', '"steps": 3')
    started_by_hand(job, "run-run.sh")
    with safe_open(job.folder / "out" / job.id / f"{job.id}.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["training_info"])["step"] == 3
