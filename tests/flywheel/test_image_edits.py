from collections import Counter
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel import image_edits
from comfyui_flenwheel.flywheel.errors import EditorError
from comfyui_flenwheel.flywheel.images import open_image
from comfyui_flenwheel.flywheel.prompts import parse

from .conftest import picture
from .stamp import Stamp

PICTURES = [picture(1), picture(2, (96, 40))]
TWO = parse("Change background to [forest|beach]")


def test_every_prompt_on_every_picture_in_its_own_shape(tmp_path):
    edited = image_edits.edit(PICTURES, TWO, Stamp(), tmp_path)
    assert [number for number, _, _ in edited.pairs] == [0, 0, 1, 1] and edited.run.made == 4
    assert [open_image(path).image.size for _, _, path in edited.pairs] == [(64, 48)] * 2 + [(96, 48 - 16)] * 2  # multiples of 16
    assert all((tmp_path / "lineage" / f"{path.stem.rpartition('-')[2]}.json").is_file() for _, _, path in edited.pairs)


def test_what_is_there_is_not_made_again_and_what_was_deleted_is(tmp_path):
    first = image_edits.edit(PICTURES, TWO, Stamp(), tmp_path)
    editor = Stamp()
    again = image_edits.edit(PICTURES, TWO, editor, tmp_path)
    assert again.pairs == first.pairs and again.run.made == 0 and editor.sessions == []
    first.pairs[2][2].unlink()
    assert image_edits.edit(PICTURES, TWO, Stamp(), tmp_path).run.made == 1


def test_a_stopped_batch_goes_on_and_one_more_picture_changes_no_other(tmp_path):
    def stop(progress):
        if progress.made == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image_edits.edit(PICTURES, TWO, Stamp(), tmp_path, report=stop)
    kept = len(image_edits.Tray(tmp_path).files)
    assert kept >= 2
    more = image_edits.edit([picture(3), *PICTURES], TWO, Stamp(), tmp_path)
    assert more.run.made == 6 - kept and len(more.pairs) == 6


def test_another_seed_size_or_editor_makes_other_files(tmp_path):
    ways = ({}, {"seed": 1}, {"megapixels": 0.02}, {"editor": Stamp(0.7)})
    made: list[Path] = []
    for way in ways:
        made += [path for _, _, path in image_edits.edit(PICTURES, TWO, **{"editor": Stamp(), "folder": tmp_path, **way}).pairs]
    assert max(Counter(made).values()) == 1 and len(made) == 16


def test_one_picture_that_fails_does_not_take_the_others_along(tmp_path):
    def fail(request):
        if "beach" in request.prompt:
            raise EditorError("no sand")

    edited = image_edits.edit(PICTURES, TWO, Stamp(before=fail), tmp_path)
    assert [number for number, _, _ in edited.pairs] == [0, 1] and [reason for _, reason in edited.run.failed] == ["no sand"] * 2
    with pytest.raises(EditorError, match=r"Not one of 2 images.*no sand"):
        image_edits.edit(PICTURES, parse("a beach"), Stamp(before=fail), tmp_path)
