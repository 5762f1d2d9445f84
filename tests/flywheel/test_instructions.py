import pytest
from comfyui_flenwheel.flywheel import prompts
from comfyui_flenwheel.flywheel.coverage import card
from comfyui_flenwheel.flywheel.instructions import Instruction, drawing_asked_for, edited_caption, parse, photograph_asked_for, seen_from
from hypothesis import given
from hypothesis import strategies as st

FACE = "photo of ohwx_char person, smiling"
CAPTION = f"{FACE}, front view"


@pytest.mark.parametrize(
    ("prompt", "kind", "value"),
    [
        ("Change background to forest, keep person identical", "background", "forest"),
        ("Change lighting to nighttime, keep person identical", "lighting", "nighttime"),
        ("Keep the person identical, but make it look like oil painting", "style", "oil painting"),
        ("Change camera angle to slightly left, maintain appearance", "camera", "slightly left"),
        ("CHANGE BACKGROUND TO BEACH, KEEP PERSON IDENTICAL", "background", "BEACH"),
        ("replace the background with a dense, dark forest while keeping the face", "background", "dense, dark forest"),
        ("Change   background\tto urban", "background", "urban"),
        ("Change background to forest and lighting to sunset", "background", "forest"),
        ("Put him in a busy street", "background", "busy street"),
        ("blur the background", "background", "blurred"),
        ("remove the background, don't touch the hair", "background", "plain"),
        ("with a studio background", "background", "studio"),
        ("relight with warm golden hour light, keep the face", "lighting", "warm golden hour"),
        ("Relight the scene as sunset", "lighting", "sunset"),
        ("make it night", "lighting", "night"),
        ("studio lighting", "lighting", "studio"),
        ("in the style of Van Gogh", "style", "Van Gogh"),
        ("Turn the photo into a pencil sketch.", "style", "pencil sketch"),
        ("Render this in a comic book style", "style", "comic book"),
        ("move the camera to the left", "camera", "left"),
        ("seen from a low angle", "camera", "low"),
        ("zoom in", "camera", "zoom in"),
        (
            "<sks> front-left quarter view high-angle shot wide shot, keep the person identical",
            "camera",
            "front-left quarter view high-angle shot wide shot",
        ),
        ("give her a red hat", "other", "give her a red hat"),
        ("add a light smile", "other", "add a light smile"),
        ("Change background to , keep person identical", "other", "Change background to , keep person identical"),
        ("换成森林背景", "other", "换成森林背景"),
        ("", "other", ""),
    ],
)
def test_a_prompt_is_understood(prompt: str, kind: str, value: str) -> None:
    assert parse(prompt) == Instruction(kind, value)


def test_every_bundled_prompt_is_understood() -> None:
    kinds = {"background": "background", "lighting": "lighting", "style": "style", "camera angle": "camera"}
    for name, kind in kinds.items():
        for prompt in prompts.PromptSet(prompts.presets()[name]).expand():
            assert parse(prompt.text).kind == kind, prompt.text


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("Change background to forest, keep person identical", f"{CAPTION}, forest background"),
        ("Change lighting to sunset, keep person identical", f"{CAPTION}, sunset lighting"),
        ("Keep the person identical, but make it look like oil painting", "oil painting of ohwx_char person, smiling, front view"),
        ("in the style of Van Gogh", "Van Gogh style picture of ohwx_char person, smiling, front view"),
        ("Change camera angle to slightly left, maintain appearance", f"{FACE}, seen slightly from the left"),
        ("Change camera angle to higher, maintain appearance", f"{CAPTION}, seen slightly from above"),
        ("<sks> back view low-angle shot close-up", f"{FACE}, seen from below and from behind and from close up"),
        ("give her a red hat", CAPTION),
    ],
)
def test_the_caption_of_an_edit_is_true_of_it(prompt: str, caption: str) -> None:
    assert edited_caption(CAPTION, prompt) == caption


def test_what_the_caption_said_before_is_replaced() -> None:
    caption = "photo of ohwx_char person, clean background, studio lighting"
    assert edited_caption(caption, "Change background to beach") == "photo of ohwx_char person, studio lighting, beach background"
    assert edited_caption(caption, "Change lighting to sunset") == "photo of ohwx_char person, clean background, sunset lighting"
    turned = edited_caption(caption, "Change camera angle to left")
    assert edited_caption(turned, "Change camera angle to right").endswith(", seen from the right")
    assert "left" not in edited_caption(turned, "Change camera angle to right")
    posed = edited_caption(caption, "<sks> front-left quarter view high-angle shot wide shot")
    assert edited_caption(posed, "Change camera angle to right") == edited_caption(caption, "Change camera angle to right")


@pytest.mark.parametrize(
    ("prompt", "style"),
    [
        ("Keep the person identical, but make it look like oil painting", "oil painting"),
        ("in anime style, keep the face", "anime"),
        ("Turn the person into a 3D Pixar character", "3D Pixar character"),
        ("in a film noir style", ""),
        ("portrait, cel-shaded cartoon style", "cel-shaded cartoon"),
        ("A watercolor painting of ohwx_char person", "watercolor painting"),
        ("photo of ohwx_char person, hair in the style of the forties", ""),
        ("a photo of ohwx_char person beside a painting of a dog", ""),
        ("Add a painting of a dog to the wall", ""),
        ("keep the cartoon of a cat on the shirt", ""),
        ("wearing a shirt with a cartoon on it", ""),
        ("change the background to a painted wall", ""),
        ("", ""),
    ],
)
def test_a_drawing_is_asked_for_by_its_style_only(prompt: str, style: str) -> None:
    assert drawing_asked_for(prompt) == style


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("make it look like a real photograph", True),
        ("Turn this picture back into a natural photograph, keep the face", True),
        ("in a photorealistic style", True),
        ("in anime style", False),
        ("take the photo into a forest", False),
        ("photo of ohwx_char person", False),
    ],
)
def test_a_photograph_is_asked_for_by_its_style_only(prompt: str, asked: bool) -> None:
    assert photograph_asked_for(prompt) == asked


@pytest.mark.parametrize(
    ("caption", "edited"),
    [
        ("a photo of ohwx_char woman", "an oil painting of ohwx_char woman"),
        ("A photograph of ohwx_char woman", "An oil painting of ohwx_char woman"),
        ("close-up photo of ohwx_char dog", "close-up oil painting of ohwx_char dog"),
        ("portrait of ohwx_char person", "oil painting portrait of ohwx_char person"),
        ("ohwx_char person", "oil painting of ohwx_char person"),
    ],
)
def test_a_style_rewrites_the_medium(caption: str, edited: str) -> None:
    assert edited_caption(caption, "make it look like an oil painting") == edited


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("lower", "seen slightly from below"),
        ("upper left", "seen from the left and from above"),
        ("wider", "seen slightly from further away"),
        ("dutch", "dutch camera angle"),
    ],
)
def test_directions_have_words(value: str, words: str) -> None:
    assert seen_from(value) == words


@given(st.text(max_size=80), st.sampled_from(["Change background to {}", "Change lighting to {}", "make it look like {}", "{}"]))
def test_token_and_class_noun_survive_any_prompt(words: str, template: str) -> None:
    assert "ohwx_char person" in edited_caption(CAPTION, template.format(words))


@pytest.mark.parametrize(
    ("caption", "slot", "expected"),
    [
        (
            "photo of ohwx_char person, neutral expression, front view",
            "half-left-angry",
            "photo of ohwx_char person, angry expression, half-left view",
        ),
        (
            "photo of ohwx_char person, half-left view, in a kitchen",
            "front-sad",
            "photo of ohwx_char person, sad expression, front view, in a kitchen",
        ),
        (
            "photo of ohwx_char person, smiling, profile view, forest background",
            "t-pose",
            "photo of ohwx_char person, full body in T-pose with arms stretched out to the sides, front view, plain background",
        ),
        ("photo of ohwx_char person", "sitting", "photo of ohwx_char person, full body sitting on a chair, side view, plain background"),
    ],
)
def test_the_model_cards_prompts_leave_no_word_that_is_no_longer_true(caption, slot, expected):
    assert edited_caption(caption, next(other.edit for other in card() if other.id == slot)) == expected


def test_every_prompt_of_the_model_card_changes_the_caption():
    caption = "photo of ohwx_char person, neutral expression, front view"
    changed = [edited_caption(caption, slot.edit) for slot in card()]
    assert len(set(changed)) == 23 and all(words.startswith("photo of ohwx_char person, ") for words in changed)
    assert sum("neutral" in words for words in changed) == 5 == sum("angry" in words for words in changed)
