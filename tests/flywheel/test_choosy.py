"""Editors that do not treat all requests alike, tags in prompts, and the preview of a plan."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from comfyui_flenwheel.flywheel import enrich
from comfyui_flenwheel.flywheel.candidates import Shelf
from comfyui_flenwheel.flywheel.errors import EditorError
from comfyui_flenwheel.flywheel.instructions import parse as kind_of
from comfyui_flenwheel.flywheel.prompts import parse

from .stamp import Stamp

PROMPTS = parse("Change background to forest\nChange camera angle to left\nChange lighting to sunset\n@mine Change lighting to studio")


@dataclass(frozen=True)
class Choosing(Stamp):
    """Uses an angle LoRA, of that weight, for camera prompts only."""

    weight: float = 1.0
    made: list[str] = field(default_factory=list)
    expected: list[list[str]] = field(default_factory=list)

    def fingerprint_for(self, request):
        return {**self.fingerprint(), "loras": self.group(request)}

    def group(self, request):
        return f"angles x {self.weight:g}" if kind_of(request.prompt).kind == "camera" else ""

    @contextmanager
    def session(self):
        chosen = self

        class Edit:
            def expect(self, requests):
                chosen.expected.append([request.prompt for request in requests])

            def __call__(self, request, tick):
                chosen.made.append(request.prompt)
                return chosen._edit(request, tick)

        yield Edit()


def kinds(prompts):
    return [kind_of(prompt).kind for prompt in prompts]


def test_requests_of_one_group_are_made_together_in_the_order_that_was_expected(sources):
    editor = Choosing()
    enrich.enrich(sources, PROMPTS, editor, megapixels=0.01)
    assert kinds(editor.made) == ["background", "lighting", "lighting"] * 3 + ["camera"] * 3
    assert editor.expected == [editor.made]


def test_only_what_is_missing_and_within_the_limit_is_expected(sources):
    editor = Choosing()
    enrich.enrich(sources, PROMPTS, editor, megapixels=0.01, limit=2)
    enrich.enrich(sources, PROMPTS, editor, megapixels=0.01, limit=3)
    assert [len(some) for some in editor.expected] == [2, 3] and [*editor.expected[0], *editor.expected[1]] == editor.made


def test_an_option_that_some_requests_do_not_use_makes_no_other_file_of_them(sources):
    enrich.enrich(sources, PROMPTS, Choosing(), megapixels=0.01)
    again = enrich.enrich(sources, PROMPTS, Choosing(weight=0.5), megapixels=0.01)
    assert again.run.made == 3, "the camera prompts"
    shelf = Shelf(sources.project.stage("enriched"))
    assert {lineage.facts["editor"]["loras"] for lineage in shelf.lineages.values()} == {"", "angles x 1", "angles x 0.5"}


def test_a_tag_is_no_word_of_the_prompt_and_changes_no_seed(sources):
    plain, tagged = (enrich.plan(sources, parse(text), seed=0)[0] for text in ("Turn left", "@angle @mine Turn left"))
    assert tagged.request.tags == ("@angle", "@mine") and plain.request.tags == ()
    assert tagged.request.prompt == "Turn left" == tagged.facts["prompt"] and tagged.request.seed == plain.request.seed
    assert tagged.name == plain.name and tagged.request.key({}) == plain.request.key({})


def test_a_preview_is_spread_over_prompts_and_photographs_and_is_part_of_the_batch(sources):
    made = enrich.preview(sources, PROMPTS, Stamp(), megapixels=0.01)
    shelf = Shelf(sources.project.stage("enriched"))
    facts = [lineage.facts for lineage in shelf.lineages.values()]
    assert (
        len(made.dataset.images) == 4 == len({fact["template"] for fact in facts}) and len({fact["source"]["key"] for fact in facts}) == 3
    )
    assert made.left == 8 and made.seconds_each is not None and made.seconds_each >= 0
    assert enrich.preview(sources, PROMPTS, Stamp(), megapixels=0.01).dataset == made.dataset
    assert enrich.enrich(sources, PROMPTS, Stamp(), megapixels=0.01).run.made == 8
    assert enrich.preview(sources, PROMPTS, Stamp(), megapixels=0.01).left == 0


def test_a_preview_of_which_nothing_can_be_made_says_why(sources):
    def fail(request):
        raise EditorError("no memory")

    with pytest.raises(EditorError, match=r"Not one of 4 images could be made.*no memory"):
        enrich.preview(sources, PROMPTS, Stamp(before=fail), megapixels=0.01)
