import pytest
from comfyui_flenwheel.flywheel.errors import PromptError
from comfyui_flenwheel.flywheel.prompts import LIMIT, PromptSet, parse, presets
from hypothesis import given
from hypothesis import strategies as st

WORD = st.text("abcdefgh", min_size=1, max_size=6)


def test_the_leftmost_bracket_varies_slowest():
    texts = [prompt.text for prompt in parse("a [red|blue] [cat|dog]").expand()]
    assert texts == ["a red cat", "a red dog", "a blue cat", "a blue dog"]


def test_a_prompt_written_twice_is_made_once():
    assert [prompt.text for prompt in parse("a cat\n[a cat|a dog]").expand()] == ["a cat", "a dog"]


def test_blank_lines_and_notes_are_no_prompts():
    assert parse("\n# evening\n  a cat  \n").templates == ("a cat",)


def test_all_faults_are_told_at_once():
    with pytest.raises(PromptError) as told:
        parse("a [b\nc] d\n[[x]]\n[a||b]\n[ ]")
    assert len(told.value.problems) == 5
    assert "prompt 1" in told.value.problems[0] and "prompt 5" in told.value.problems[4]


def test_a_hundred_thousand_expansions_are_refused_by_number_without_being_made():
    with pytest.raises(PromptError, match="100,000") as told:
        parse("[0|1|2|3|4|5|6|7|8|9] " * 5)
    assert f"{LIMIT:,}" in str(told.value)


def test_no_prompt_at_all_says_what_to_do():
    with pytest.raises(PromptError, match="type one per line or choose a preset"):
        parse("  \n# only a note")


def test_the_documents_templates_are_bundled():
    assert parse("\n".join(presets()["all four"])).count == 4 + 4 + 3 + 4


@given(
    st.lists(st.one_of(WORD, st.lists(WORD, min_size=1, max_size=4).map(lambda choices: f"[{'|'.join(choices)}]")), min_size=1, max_size=5)
)
def test_count_is_the_number_of_expansions_before_twins_are_dropped(parts):
    prompts = PromptSet((" ".join(parts),))
    assert len(prompts.expand()) <= prompts.count
    choices = [set(part[1:-1].split("|")) if part.startswith("[") else {part} for part in parts]
    if all(len(part[1:-1].split("|")) == len(some) for part, some in zip(parts, choices, strict=True) if part.startswith("[")):
        assert prompts.count == len({tuple(prompt.text.split()) for prompt in prompts.expand()})


@given(st.text("ab[]|", max_size=12))
def test_any_text_expands_or_is_refused(text):
    try:
        prompts = parse(text)
    except PromptError:
        return
    assert all("[" not in prompt.text and "]" not in prompt.text for prompt in prompts.expand())
