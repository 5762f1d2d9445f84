"""Two versions of a LoRA side by side."""

import dataclasses

import pytest
from comfyui_flenwheel.flywheel.images import png_bytes, write_whole
from comfyui_flenwheel.training import versions
from comfyui_flenwheel.training.errors import TrainingError
from PIL import Image

from .conftest import made

PROMPTS = ("photo of ohwx_char person", "ohwx_char person in a forest")


@pytest.fixture
def trained(spec, project):
    """Makes a finished job with samples at two steps."""

    def make(version, prompts=PROMPTS, kind="character"):
        job = made(project, dataclasses.replace(spec, seed=version, sample_prompts=prompts, kind=kind))
        for step in (5, 10):
            for number in range(len(prompts)):
                name = f"samples/{step}-{number}.png"
                write_whole(job.folder / name, png_bytes(Image.new("RGB", (8, 8), (version, step, number))))
                job.append("sample", step=step, prompt=number, file=name)
        write_whole(job.folder / "result" / "x.safetensors", b"12345")
        job.append("done", result="result/x.safetensors", bytes=5, registered=f"flenwheel/Anna/Anna-{kind}-v{version:03}.safetensors")
        return job

    return make


def test_the_newest_is_compared_with_the_one_before_on_the_prompts_they_share(trained, project):
    first, second, third = trained(1), trained(2), trained(3, (PROMPTS[1], "something new"))
    assert versions.registered(project, "character") == {1: first, 2: second, 3: third}
    assert versions.pair(project, "character") == (2, 3) and versions.pair(project, "character", after=2) == (1, 2)
    rows = versions.side_by_side(second, third)
    assert [row.prompt for row in rows] == [PROMPTS[1], "something new", PROMPTS[0]]
    assert rows[0].before.name == "10-1.png" and rows[0].after.name == "10-0.png", "the last samples"
    assert rows[1].before is None and rows[2].after is None


def test_what_is_not_there_is_said_with_what_is(trained, project):
    trained(1)
    with pytest.raises(TrainingError, match=r"not two finished character LoRAs of Anna .*v001"):
        versions.pair(project, "character")
    trained(2)
    with pytest.raises(TrainingError, match="no character LoRA v007"):
        versions.pair(project, "character", after=7)
    with pytest.raises(TrainingError, match="not two finished edit"):
        versions.pair(project, "edit")
