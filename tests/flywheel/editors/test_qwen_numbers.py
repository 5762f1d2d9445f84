"""Our words, latents and denoising against the diffusers pipeline and against what is right where that is wrong."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from comfyui_flenwheel.flywheel import qwen  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen import denoise, encode, guard, latents  # noqa: E402
from comfyui_flenwheel.flywheel.errors import EditorError  # noqa: E402
from PIL import Image  # noqa: E402

from .portrait import portrait  # noqa: E402
from .qwen_tiny import CLASS, SCHEDULER  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PROMPTS = ["Turn the person around, back view", "Make it night"]
SIDE = 64


def photo(size=(96, 96)) -> Image.Image:
    return portrait().resize(size)


@pytest.fixture(scope="module")
def small(tiny):
    """The pipeline with control images of 64 px instead of 1024."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as upstream

    before = upstream.VAE_IMAGE_SIZE
    upstream.VAE_IMAGE_SIZE = SIDE * SIDE
    yield tiny.pipeline
    upstream.VAE_IMAGE_SIZE = before


def words(pipeline, prompt, *pictures):
    return encode.encode(pipeline.text_encoder, pipeline.processor, encode.template_of(CLASS), prompt, pictures)


def cell(pipeline, prompt, seed, *pictures, unwanted=" ", size=(SIDE, SIDE)):
    controls = [latents.encode(pipeline.vae, picture, (SIDE, SIDE)) for picture in pictures]
    return denoise.Cell(
        denoise.noise(seed, size),
        torch.cat([latents.pack(one) for one in controls], dim=1),
        words(pipeline, prompt, *pictures),
        words(pipeline, unwanted, *pictures) if unwanted else None,
        (latents.shape_of(size), *(latents.shape_of((SIDE, SIDE)) for _ in pictures)),
    )


def ours(pipeline, cells, *, steps=6, guidance=4.0, **options):
    levels = denoise.sigmas(SCHEDULER, steps, cells[0].noise.shape[1])
    made = denoise.denoise(pipeline.transformer, cells, levels, guidance=guidance, **options)
    return latents.decode(pipeline.vae, latents.unpack(made, (SIDE, SIDE)))


def theirs(pipeline, prompt, seed, *pictures, steps=6, guidance=4.0, embeds=None):
    """One image of the pipeline, (H, W, 3) in 0…1; with our embeddings, or with its own."""
    own = {"prompt": prompt, "negative_prompt": " "}
    asked = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]} if embeds else own
    made = pipeline(
        image=list(pictures),
        true_cfg_scale=guidance,
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **asked,
    )
    return made.images[0].permute(1, 2, 0)


# --- words ------------------------------------------------------------------------------------------------------------------------------


def last_position(pipeline, prompt, pictures, call):
    """Where the text encoder put the last token."""
    seen = []
    rotary = pipeline.text_encoder.model.language_model.rotary_emb
    hook = rotary.register_forward_pre_hook(lambda _, args, kwargs: seen.append([*args, *kwargs.values()][1]), with_kwargs=True)
    call(pipeline, prompt, pictures)
    hook.remove()
    return int(seen[0].max())


def right_last_position(pipeline, prompt, pictures):
    """By the rule of the model: a picture of h x w merged patches takes max(h, w) positions, every other token one."""
    text = encode.template_of(CLASS).text.format("".join(encode.PICTURE.format(n + 1) for n in range(len(pictures))) + prompt)
    tokens = pipeline.processor(text=[text], images=[one.resize(encode.seen_size(one)) for one in pictures], return_tensors="pt")
    image_tokens = int((tokens["input_ids"] == pipeline.text_encoder.config.image_token_id).sum())
    places = sum(int(max(rows, columns)) // 2 for _, rows, columns in tokens["image_grid_thw"].tolist())
    return tokens["input_ids"].shape[1] - image_tokens + places - 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_token_is_where_the_model_was_trained_to_find_it(tiny, count):
    pictures = [photo((96, 64 + 32 * number)) for number in range(count)]
    found = last_position(tiny.pipeline, PROMPTS[0], pictures, lambda pipe, prompt, some: words(pipe, prompt, *some))
    assert found == right_last_position(tiny.pipeline, PROMPTS[0], pictures)


def test_upstream_still_puts_them_elsewhere(tiny):
    """When this fails, diffusers passes the token types on: then our own encoding is still right, and the note in encode.py is history."""

    def upstream(pipe, prompt, pictures):
        with torch.no_grad():
            pipe.encode_prompt(prompt=prompt, image=[one.resize(encode.seen_size(one)) for one in pictures], device="cpu")

    pictures = [photo()]
    wrong = last_position(tiny.pipeline, PROMPTS[0], pictures, upstream)
    assert wrong > right_last_position(tiny.pipeline, PROMPTS[0], pictures) + 100


def test_the_words_in_the_rows_of_models_are_those_of_their_pipeline():
    """The editor of ComfyUI's models takes them from the row, this one from the installed diffusers."""
    rows = [row for row in qwen.models().values() if row.folder]
    assert len(rows) >= 2
    for row in rows:
        assert (row.template.words, row.template.picture) == (encode.template_of(CLASS).text, encode.PICTURE), row.name


def test_a_prompt_that_is_too_long_is_refused(tiny):
    with pytest.raises(EditorError, match=r"5,000 words.*takes 1024"):
        words(tiny.pipeline, "word " * 5000, photo())


def test_what_the_encoder_sees_keeps_its_shape():
    assert encode.seen_size(Image.new("RGB", (1024, 1024))) == (384, 384)
    assert encode.seen_size(Image.new("RGB", (910, 1137))) == (352, 416)
    assert encode.seen_size(Image.new("RGB", (3000, 30))) == (3840, 32)


# --- denoising --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guidance", "count"), [(4.0, 1), (1.0, 1), (4.0, 2), (4.0, 3)])
def test_our_loop_makes_the_pipelines_image(small, guidance, count):
    pictures = [photo(), photo().rotate(90), photo().rotate(180)][:count]
    one = cell(small, PROMPTS[0], 3, *pictures)
    expected = theirs(small, "", 3, *pictures, guidance=guidance, embeds=(one.words, one.unwanted))
    assert (ours(small, [one], guidance=guidance)[0] - expected).abs().max() < 1e-6


def test_different_prompts_share_a_batch_without_touching_each_other(small):
    cells = [cell(small, prompt, seed, photo()) for seed, prompt in enumerate([*PROMPTS, "x"])]
    assert len({one.words.shape[1] for one in cells}) > 1  # they are padded, so this says something
    together = ours(small, cells)
    for place, one in enumerate(cells):
        assert (together[place] - theirs(small, "", place, photo(), embeds=(one.words, one.unwanted))).abs().max() < 2e-6


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_guidance_in_two_passes_without_a_mask_is_the_same_guidance(small, share):
    cells = [cell(small, prompt, seed, photo()) for seed, prompt in enumerate(PROMPTS)]
    masks = []
    hook = small.transformer.register_forward_pre_hook(
        lambda _, __, given: masks.append(given["encoder_hidden_states_mask"] is not None), with_kwargs=True
    )
    alone, apart = (ours(small, cells[:1], guided_share=share, together=together) for together in (True, False))
    hook.remove()
    assert (alone - apart).abs().max() < 1e-6
    guided = round(share * 6)
    assert masks == [True] * guided + [False] * (6 - guided) + [False] * (6 + guided)
    several = ours(small, cells, guided_share=share, together=False)
    assert (several - ours(small, cells, guided_share=share)).abs().max() < 2e-6


def test_guidance_without_a_negative_prompt_is_no_guidance_but_an_error(small):
    with pytest.raises(ValueError, match="negative prompt"):
        ours(small, [cell(small, PROMPTS[0], 1, photo(), unwanted="")])


def test_guidance_may_end_early(small):
    one = cell(small, PROMPTS[0], 3, photo())
    full, half, none = (ours(small, [one], guided_share=share) for share in (1.0, 0.5, 0.0))
    assert not torch.equal(full, half)
    assert torch.equal(none, ours(small, [one], guidance=1.0))


def test_a_seed_means_the_same_noise_in_every_precision(small):
    pipeline_noise = torch.randn(1, 1, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    theirs = small._pack_latents(pipeline_noise, 1, 16, 8, 8)
    assert torch.equal(denoise.noise(5, (SIDE, SIDE)), theirs) and theirs.dtype == torch.float32


def test_the_image_is_kept_in_full_precision_while_the_model_computes_in_bf16(small):
    one = cell(small, PROMPTS[0], 3, photo())
    seen = []
    levels = denoise.sigmas(SCHEDULER, 4, one.noise.shape[1])
    transformer = copy.deepcopy(small.transformer).to(torch.bfloat16)  # the other tests' model must not be rounded
    made = denoise.denoise(transformer, [one], levels, guidance=4.0, dtype=torch.bfloat16, on_step=lambda _, x: seen.append(x.dtype))
    assert made.dtype == torch.float32 and set(seen) == {torch.float32}


def test_one_step_goes_from_noise_to_the_picture():
    assert denoise.sigmas(SCHEDULER, 1, 4096).tolist() == [1, 0]


def test_the_lightning_schedule_is_the_one_it_was_distilled_with():
    levels = denoise.sigmas(SCHEDULER, 4, 4096, shift=3.0)
    assert np.allclose(levels.numpy(), [1, 0.9, 0.75, 0.5, 0], atol=1e-6)


# --- latents ----------------------------------------------------------------------------------------------------------------------------


def test_a_single_frame_in_two_dimensions_is_the_same_frame(tiny):
    import diffusers

    plain, fast = (diffusers.AutoencoderKLQwenImage.from_pretrained(tiny.folder / "vae").eval() for _ in range(2))
    assert latents.single_frame(fast) > 20
    before, after = (latents.encode(vae, photo(), (96, 96)) for vae in (plain, fast))
    assert (before - after).abs().max() < 1e-5
    assert (latents.decode(plain, before) - latents.decode(fast, before)).abs().max() < 1e-6
    video = torch.randn(1, 3, 5, 32, 32)
    with torch.no_grad():
        assert (plain.encode(video).latent_dist.mode() - fast.encode(video).latent_dist.mode()).abs().max() < 1e-5


def test_control_latents_are_the_pipelines(small):
    pixels = small.image_processor.preprocess(photo(), SIDE, SIDE).unsqueeze(2)
    with torch.no_grad():
        _, expected = small.prepare_latents([pixels], 1, 16, SIDE, SIDE, torch.float32, "cpu", torch.Generator().manual_seed(0))
    assert (latents.pack(latents.encode(small.vae, photo(), (SIDE, SIDE))) - expected).abs().max() < 1e-6


def test_packing_is_undone_by_unpacking():
    frame = torch.randn(2, 16, 1, 6, 10)
    assert torch.equal(latents.unpack(latents.pack(frame), (80, 48)), frame)


def test_a_preview_of_known_latents_looks_like_the_picture(tiny):
    picture = photo()
    known = latents.encode(tiny.pipeline.vae, picture, (96, 96))
    shown = latents.Preview(known, picture)(known)
    small_picture = np.asarray(picture.resize(shown.size, Image.Resampling.BOX), dtype=float)
    assert np.abs(np.asarray(shown, dtype=float) - small_picture).mean() < 25
    assert latents.Preview(known, picture)(known * float("nan")).size == shown.size


# --- the guard --------------------------------------------------------------------------------------------------------------------------


def test_what_is_no_image_is_an_error_with_its_causes():
    fine, black = torch.rand(8, 8, 3), torch.zeros(8, 8, 3)
    guard.refuse_broken(torch.ones(1), fine)
    for tokens, pixels, message in [
        (torch.tensor([1.0, float("nan")]), fine, "not numbers"),
        (torch.ones(1), fine * float("inf"), "not numbers"),
        (torch.ones(1), black, "black"),
    ]:
        with pytest.raises(EditorError, match=f"{message}.*SageAttention"):
            guard.refuse_broken(tokens, pixels)
