"""The built-in trainer on a tiny FLUX.1 of the real classes: characters, with the same loop."""

import os

import numpy as np
import pytest

for needed in ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extra `diffusers`)")

import torch  # noqa: E402
from comfyui_flenwheel.flywheel.images import open_image  # noqa: E402
from comfyui_flenwheel.training import run  # noqa: E402
from comfyui_flenwheel.training.engines import peft_qlora  # noqa: E402
from comfyui_flenwheel.training.engines.peft_qlora import draws  # noqa: E402
from comfyui_flenwheel.training.engines.peft_qlora.loop import Training  # noqa: E402
from PIL import Image  # noqa: E402

from . import flux_tiny, peft_tiny  # noqa: E402
from .in_comfyui import patched  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CAPTION = "photo of ohwx_char person, front view"


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux") / "FLUX.1-dev"
    return folder, flux_tiny.build(folder)


@pytest.fixture
def made(project, flux, tmp_path):
    def make(**changes):
        folder = project.stage("training").folder / "2_ohwx_char person"
        folder.mkdir(parents=True, exist_ok=True)
        photo = np.asarray(peft_tiny.helper("portrait").portrait())
        for number in range(4):
            Image.fromarray(np.roll(photo, 37 * number, axis=1)).resize((96, 80)).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(CAPTION)
        told = {"kind": "character", "architecture": "flux1", "resolution": 88, "sample_prompts": ("photo of a person",)}
        spec = peft_tiny.spec(project, folder.parent, flux[0], **{**told, **changes})
        return peft_tiny.job(project, spec, tmp_path / "loras")

    return make


def test_a_character_is_learnt_by_heart_in_4_bits_and_the_lora_loads(made, flux):
    from diffusers import FluxPipeline

    job = made(
        steps=240,
        save_every=120,
        rank=16,
        alpha=16,
        targets="all",
        learning_rate=3e-3,
        precision="nf4",
        optimizer="adamw8bit",
        sample_steps=2,
    )
    assert run.work(job) == 0, job.status().cause
    losses = [event["loss"] for event in job.events() if event["kind"] == "validation"]
    assert losses[-1] < losses[0] / 2, losses
    samples = [open_image(path).image for _, _, path in job.sampled()]
    assert len(samples) == 3 and {sample.size for sample in samples} == {(96, 80)}
    assert np.abs(np.asarray(samples[0], int) - np.asarray(samples[-1], int)).mean() > 1
    made_ = run.result_of(job)
    pipeline = FluxPipeline.from_pretrained(flux[0], local_files_only=True)
    pipeline.load_lora_weights(str(made_.path))
    placed = [name for name, layer in pipeline.transformer.named_modules() if hasattr(layer, "lora_A")]
    assert len(placed) == made_.layers == 20
    if comfyui := os.environ.get("FLEN_COMFYUI"):
        (base,) = (flux[0] / "transformer").glob("*.safetensors")
        assert patched(comfyui, base, made_.path) == {"keys": 13, "layers": 20, "changed": True}


def test_words_pictures_and_places_are_those_of_the_pipeline(made, flux):
    """The untouched pipeline's embeddings, latents and position ids give the same velocity."""
    trained = Training(job := made(), peft_qlora.options_of(job))
    trained.prepare()
    pipeline, shown = flux[1], trained.shown[0]
    ours = trained.family.encoded(shown, CAPTION)
    with torch.no_grad():
        words, pooled, txt_ids = pipeline.encode_prompt(CAPTION, None, max_sequence_length=512)
        with Image.open(shown.example.image) as opened:
            pixels = pipeline.image_processor.preprocess(opened.convert("RGB"), 80, 96)
        config = pipeline.vae.config
        latent = (pipeline.vae.encode(pixels).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    assert torch.allclose(ours.words["words"], words, atol=1e-5) and torch.allclose(ours.words["pooled"], pooled, atol=1e-5)
    assert torch.allclose(ours.target, pipeline._pack_latents(latent, 1, 16, 10, 12), atol=1e-4)
    drawn = draws.draw(1, 0, ours.target.shape, 2.0, 0.0)
    x = draws.noised(ours.target, drawn.noise, drawn.times)
    with torch.no_grad():
        velocity = trained.family.velocity([ours], [shown], [False], x, drawn.times)
        theirs = pipeline.transformer(
            hidden_states=x,
            encoder_hidden_states=words,
            pooled_projections=pooled,
            timestep=drawn.times,
            guidance=torch.ones(1),
            txt_ids=txt_ids,
            img_ids=pipeline._prepare_latent_image_ids(1, 5, 6, "cpu", torch.float32),
            return_dict=False,
        )[0]
    assert torch.allclose(velocity, theirs, atol=1e-5)


def test_a_sample_is_what_the_pipeline_makes_of_the_same_noise(made, flux):
    trained = Training(job := made(sample_steps=3), peft_qlora.options_of(job))
    trained.prepare()
    shown, prompt = trained.samples[0]
    ours = trained.family.sample(trained.family.encoded(shown, prompt), shown, 5)
    from comfyui_flenwheel.flywheel.editors.qwen import denoise

    theirs = flux[1](prompt, height=80, width=96, num_inference_steps=3, guidance_scale=4.0, latents=denoise.noise(5, (96, 80))).images[0]
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_a_run_repeats_itself_and_a_folder_of_something_else_is_refused(made, tmp_path):
    first, second = made(steps=4, save_every=2), made(steps=4, save_every=4, caption_dropout=0.0)
    assert run.work(first) == run.work(second) == 0
    assert first.losses() == second.losses()
    refused = made(base_model=str(peft_tiny.model(tmp_path / "Qwen-Image-Edit")))
    assert run.work(refused) == 1 and "not FluxPipeline" in refused.status().cause
    single = tmp_path / "flux1-dev.safetensors"
    single.write_bytes(b"")
    refused = made(base_model=str(single))
    assert run.work(refused) == 1 and "is not a folder" in refused.status().cause and "kohya" in refused.status().cause
