"""What every editor promises, whatever it is made of. An editor that cannot work here (no key, no model) is skipped by name."""

import dataclasses
import inspect
import json

import pytest
from comfyui_flenwheel.flywheel.editors import EDITORS, Editor, Rendered
from comfyui_flenwheel.flywheel.errors import EditorError, EditorUnavailable
from comfyui_flenwheel.flywheel.images import png_bytes

from .portrait import control, request


class Cancelled(BaseException):
    pass


def silent(fraction=0.0, preview=None):
    pass


@pytest.fixture(params=sorted(EDITORS))
def editor(request) -> Editor:
    return EDITORS[request.param]()


@pytest.fixture
def controls(editor, tmp_path):
    return tuple(control(tmp_path, f"{number}.png") for number in range(max(editor.controls.start, min(1, editor.controls[-1]))))


def made(editor: Editor, order, tick=silent) -> Rendered:
    try:
        with editor.session() as edit:
            return edit(order, tick)
    except EditorUnavailable as error:
        pytest.skip(str(error))


def test_it_is_a_light_value_that_knows_its_name(editor):
    assert EDITORS[editor.name] is type(editor)
    assert dataclasses.is_dataclass(editor) and hash(editor) == hash(type(editor)())
    assert inspect.getdoc(type(editor)) and editor.controls.step == 1


def test_every_option_explains_itself_and_its_default_is_allowed(editor):
    for option in dataclasses.fields(editor):
        assert option.metadata["help"].endswith(".") and option.default is not dataclasses.MISSING
        if option.type in ("int", "float", int, float):
            assert option.metadata["min"] <= option.default <= option.metadata["max"]


def test_its_fingerprint_is_plain_text_and_always_the_same(editor):
    fingerprint = editor.fingerprint()
    assert fingerprint == type(editor)().fingerprint() == json.loads(json.dumps(fingerprint))
    assert all(isinstance(value, str) for value in fingerprint.values())


@pytest.mark.parametrize("size", [(320, 416), (256, 256), (416, 160)])
def test_it_honours_the_size_and_its_notes_can_be_kept(editor, controls, size):
    rendered = made(editor, request(*controls, size=size))
    assert rendered.image.size == size and rendered.image.mode == "RGB"
    json.dumps(dict(rendered.notes))


def test_one_session_makes_many_images_and_another_makes_the_same(editor, controls):
    orders = [request(*controls, seed=seed) for seed in (1, 2)]
    try:
        with editor.session() as edit:
            first, second = (png_bytes(edit(order, silent).image) for order in orders)
    except EditorUnavailable as error:
        pytest.skip(str(error))
    assert first != second
    assert png_bytes(made(editor, orders[0]).image) == first


def test_a_person_can_cancel(editor, controls):
    def cancel(fraction=0.0, preview=None):
        raise Cancelled

    with pytest.raises(Cancelled):
        made(editor, request(*controls), cancel)


def test_it_reports_its_progress(editor, controls):
    seen: list[float] = []
    made(editor, request(*controls), lambda fraction=0.0, preview=None: seen.append(fraction))
    assert len(seen) >= 2 and seen == sorted(seen) and seen[0] >= 0 and seen[-1] <= 1


def test_it_refuses_a_wrong_number_of_control_images(editor, controls, tmp_path):
    too_many = tuple(control(tmp_path, f"more_{number}.png") for number in range(editor.controls[-1] + 1))
    wrong = [too_many] + ([()] if editor.controls.start > 0 else [])
    for some in wrong:
        with pytest.raises(EditorError, match=editor.name):
            made(editor, request(*some))
