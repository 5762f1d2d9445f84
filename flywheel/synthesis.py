"""Step 1.5: prompts times a generator that knows the character, by its LoRA, to synthetic images. What `enrich` is for photographs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .candidates import Shelf, record_of
from .dataset import Dataset
from .editors import Editor, EditRequest, key_of
from .enrich import flag_samples, left_alone, seed_from, thrown_away, write_metadata
from .errors import EditorError, PromptError
from .lora import split_tags
from .project import Project
from .prompts import Prompt, PromptSet
from .render import Order, Report, made_some, render, silent, summary

PROMPTS = """photo of {token} {noun}, [front view|half-left view|half-right view|profile view]
photo of {token} {noun}, [neutral|smiling|angry|sad] expression
photo of {token} {noun} [in a spaceship|in a forest|on a beach|in a cafe|on a city street at night]
full body photo of {token} {noun}, [standing|sitting on a chair|walking]
"""
WANTED = 50  # success criterion of step 1.5
_BRACED = re.compile(r"\{[^{}]*\}|[{}]")


@dataclass(frozen=True, slots=True)
class Synthesised:
    """The images of one plan and what happened, in sentences."""

    dataset: Dataset
    notes: tuple[str, ...]


def plan(project: Project, prompts: PromptSet, *, each: int, seed: int, width: int, height: int) -> list[Order]:
    """`each` orders per prompt, all prompts once before any a second time. {token} and {noun} are filled in. Pure: reads nothing, writes nothing.

    A seed depends on the prompt and its number alone: one more prompt changes nothing for the others.

    Raises:
        PromptError: a prompt without the instance token, which would show anybody, or with braces that mean nothing; all of them at once.
    """
    filled = [Prompt(_filled(prompt.text, project), prompt.template) for prompt in prompts.expand()]
    token = re.compile(rf"\b{re.escape(project.instance_token)}\b")
    problems = [
        f"{found} means nothing in {prompt.text!r}; there are {{token}} and {{noun}}"
        for prompt in filled
        for found in _BRACED.findall(prompt.text)
    ]
    problems += [f"{prompt.text!r} lacks {{token}}, so it would show anybody" for prompt in filled if not token.search(prompt.text)]
    if problems:
        raise PromptError("These prompts cannot be used:", problems)
    return [_order(project, prompt, number, seed, (width, height)) for number in range(each) for prompt in filled]


def synthesise(
    project: Project,
    prompts: PromptSet,
    generator: Editor,
    *,
    each: int = 4,
    seed: int = 0,
    width: int = 1024,
    height: int = 1024,
    sample_every: int = 10,
    limit: int = 0,
    report: Report = silent,
) -> Synthesised:
    """Make the images of a plan into data/synthetic/<version>/ and describe them in its metadata file.

    Finished images are kept and not made again, wherever a filter or a verdict has put them. `sample_every`, `limit`: as in `enrich`.

    Raises:
        PromptError, EditorError, StorageError: see `plan` and `render`.
        EditorError: the generator needs a photograph, or not one image could be made.
    """
    if 0 not in generator.controls:
        raise EditorError(
            f"{generator.name} edits photos and makes no image of words alone. Connect a generator, such as Generator (ComfyUI models)."
        )
    shelf = Shelf(project.stage("synthetic"))
    orders = plan(project, prompts, each=each, seed=seed, width=width, height=height)
    wanted = [order for order in orders if not thrown_away(shelf, key_of(generator, order.request))]
    run = made_some(render(wanted, generator, shelf, report=report, limit=limit))
    shelf = Shelf(shelf.stage)  # a person may have sorted files while we were rendering
    keys = list(dict.fromkeys(finished.request_key for finished in run.finished))
    flag_samples(shelf, keys, sample_every)
    write_metadata(shelf)
    notes = (*summary(run), *left_alone(len(orders) - len(wanted)), *_too_few(len(keys)))
    return Synthesised(Dataset(project, "synthetic", tuple(record_of(shelf, key) for key in keys)), notes)


def _too_few(count: int) -> list[str]:
    return [f"{count} of the {WANTED} that step 1.5 asks for: add prompts, or more images of each."] if count < WANTED else []


def _filled(text: str, project: Project) -> str:
    return text.replace("{token}", project.instance_token).replace("{noun}", project.class_noun)


def _order(project: Project, prompt: Prompt, number: int, seed: int, size: tuple[int, int]) -> Order:
    words, tags = split_tags(prompt.text)  # a tag chooses LoRAs; it is no word of the prompt and changes no seed
    own_seed = seed_from(seed, words, number)
    facts = {
        "origin": "synthetic",
        "prompt": words,
        "template": prompt.template,
        "seed": own_seed,
        "attempt": 0,
        "caption": words,
        "source": None,
        "parents": [],
        "depth": 1,
    }
    return Order(EditRequest(words, (), own_seed, *size, prompt.template, tags), _slug(words, project), facts)


def _slug(words: str, project: Project) -> str:
    """What is said besides the character, for the start of a file's name."""
    told = words.replace(project.instance_token, " ").replace(project.class_noun, " ")
    return "_".join(re.findall(r"\w+", told))[:40].rstrip("_").lower() or "image"
