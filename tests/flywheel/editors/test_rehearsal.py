import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from comfyui_flenwheel.flywheel.editors import ControlRef
from comfyui_flenwheel.flywheel.editors.rehearsal import Rehearsal
from comfyui_flenwheel.flywheel.editors.rehearsal.person import cut_out, find_face
from comfyui_flenwheel.flywheel.errors import EditorError, ImageError
from comfyui_flenwheel.flywheel.identity import similarity
from comfyui_flenwheel.flywheel.images import content_key, open_image, png_bytes, size_for
from comfyui_flenwheel.flywheel.prompts import PromptSet, presets
from PIL import Image

from ..faces.portraits import engine, portraits
from .portrait import FACE, SHIRT, SIZE, control, portrait, request

pytestmark = pytest.mark.slow  # more than a few seconds together: not in the quick part

PROMPTS = [prompt.text for prompt in PromptSet(presets()["all four"]).expand()]
OTHERS = [
    "Change background to moon base",
    "make it look like a comic book",
    "relight with neon",
    "give her a red hat",
    "改变背景",
    "zoom in",
]


def silent(fraction=0.0, preview=None):
    pass


def made(order, tick=silent, **options):
    with Rehearsal(**{"spoil_rate": 0.0, **options}).session() as edit:
        return edit(order, tick)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean over pixels and channels, 0…255."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.fixture
def source(tmp_path) -> ControlRef:
    return control(tmp_path)


@pytest.mark.parametrize("prompt", [*PROMPTS, *OTHERS])
def test_every_prompt_has_a_visible_effect(prompt, source):
    rendered = made(request(source, prompt=prompt))
    assert rendered.image.size == SIZE and rendered.notes["spoiled"] is None
    assert difference(rendered.image, portrait()) > 5
    assert difference(rendered.image, made(request(source, prompt=prompt, seed=2)).image) > 1.5


def test_no_two_bundled_prompts_look_alike(source):
    images = [made(request(source, prompt=prompt)).image for prompt in PROMPTS]
    assert min(difference(one, other) for index, one in enumerate(images) for other in images[:index]) > 3


def test_notes_tell_what_was_understood(source):
    kinds = {made(request(source, prompt=prompt)).notes["instruction"] for prompt in [*PROMPTS, "give her a red hat"]}
    assert kinds == {"background", "lighting", "style", "camera", "other"}


def test_unknown_places_and_lights_differ_by_their_words(source):
    here, there = (made(request(source, prompt=f"Change background to {place}")).image for place in ("moon base", "wedding"))
    assert difference(here, there) > 5


def test_another_process_makes_the_same_bytes(source):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import conftest; from pathlib import Path;"
        "from comfyui_flenwheel.flywheel.editors import ControlRef, EditRequest; from comfyui_flenwheel.flywheel.editors.rehearsal import *;"
        "from comfyui_flenwheel.flywheel.images import content_key, png_bytes\n"
        "with Rehearsal(1.0).session() as edit:\n"
        "  for prompt in sys.argv[3:]:\n"
        "    order = EditRequest(prompt, (ControlRef(Path(sys.argv[2]), 'x'),), 7, 320, 416)\n"
        "    print(content_key(png_bytes(edit(order, lambda *a: None).image)))"
    )
    prompts = PROMPTS[::3]
    tests = Path(__file__).parents[2]
    other = subprocess.run([sys.executable, "-c", code, str(tests), str(source.path), *prompts], capture_output=True, text=True, check=True)
    here = [content_key(png_bytes(made(request(source, prompt=prompt, seed=7), spoil_rate=1.0).image)) for prompt in prompts]
    assert other.stdout.split() == here


def test_the_stated_share_is_spoilt_in_both_ways(tmp_path):
    small = control(tmp_path, "small.png", portrait().resize((64, 80)))
    orders = [request(small, seed=seed, size=(64, 80), prompt="give her a hat") for seed in range(120)]
    spoilt = [{n for n, order in enumerate(orders) if made(order, spoil_rate=rate).notes["spoiled"]} for rate in (0.1, 0.4)]
    assert spoilt[0] < spoilt[1] and 4 <= len(spoilt[0]) <= 22 and 36 <= len(spoilt[1]) <= 60
    assert {made(order, spoil_rate=1.0).notes["spoiled"] for order in orders[:20]} == {"identity drift", "artefact"}
    assert Rehearsal(spoil_rate=0.1).fingerprint() != Rehearsal(spoil_rate=0.2).fingerprint()


def test_spoiling_stays_around_the_face(source):
    kinds = set()
    for seed in range(12):
        order = request(source, seed=seed, prompt="Change lighting to sunset")
        clean, spoilt = made(order), made(order, spoil_rate=1.0)
        changed = np.abs(np.asarray(clean.image, dtype=int) - np.asarray(spoilt.image, dtype=int)).max(axis=-1) > 20
        x, y, width = FACE
        assert changed[y - width : y + width, x - width : x + width].sum() > 0.8 * changed.sum() > 200
        kinds.add(spoilt.notes["spoiled"])
    assert len(kinds) == 2


def test_waiting_ticks_and_changes_no_pixel(source):
    ticks: list[float] = []
    started = time.monotonic()
    slow = made(request(source), lambda fraction=0.0, preview=None: ticks.append(time.monotonic()), seconds_per_image=0.6)
    assert time.monotonic() - started >= 0.6
    assert len(ticks) >= 8
    assert png_bytes(slow.image) == png_bytes(made(request(source)).image)
    assert Rehearsal(seconds_per_image=3).fingerprint() == Rehearsal().fingerprint()


def test_previews_are_small(source):
    previews = []
    made(request(source), lambda fraction=0.0, preview=None: previews.append(preview))
    assert all(max(preview.size) <= 256 for preview in previews if preview) and any(previews)


def test_what_is_not_used_is_said(source, tmp_path):
    assert made(request(source, control(tmp_path, "b.png"))).notes["unused_controls"] == 1
    assert "unused_controls" not in made(request(source)).notes


@pytest.mark.parametrize("options", [{"spoil_rate": 1.5}, {"spoil_rate": -0.1}, {"spoil_rate": float("nan")}, {"seconds_per_image": -1.0}])
def test_impossible_options_are_refused_by_name(options):
    with pytest.raises(EditorError, match=next(iter(options))):
        Rehearsal(**options)


def test_a_damaged_control_is_named(tmp_path):
    (tmp_path / "half.png").write_bytes(png_bytes(portrait())[:900])
    with pytest.raises(ImageError, match=r"half\.png"):
        made(request(ControlRef(tmp_path / "half.png", "x")))


@pytest.mark.parametrize("size", [(16, 16), (16, 512), (512, 16), (64, 48)])
@pytest.mark.parametrize("look", ["portrait", "black", "white", "noise"])
def test_any_picture_and_any_size_will_do(size, look, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    image = {
        "portrait": portrait(),
        "black": Image.new("RGB", (9, 7)),
        "white": Image.new("RGB", (300, 40), "white"),
        "noise": Image.fromarray(noise),
    }
    picture = control(tmp_path, "any.png", image[look])
    for seed, prompt in enumerate([*PROMPTS[::2], *OTHERS]):
        assert made(request(picture, prompt=prompt, seed=seed, size=size), spoil_rate=1.0).image.size == size


def test_a_face_is_found_and_the_person_cut_out():
    image = portrait()
    face = find_face(image)
    x, y, width = FACE
    assert np.hypot(face.x - x, face.y - y) < 0.25 * width and 0.75 < face.width / width < 1.35
    mask = cut_out(image, face)
    assert mask.shape == (SIZE[1], SIZE[0]) and mask.min() >= 0 and mask.max() <= 1
    assert mask[y, x] > 0.95 and mask[-20, x] > 0.95
    assert mask[:40, :40].max() < 0.05 and mask[:40, -40:].max() < 0.05
    pixels = np.asarray(image)
    shirt = (np.abs(pixels.astype(int) - SHIRT).sum(axis=-1) < 20) & (np.arange(SIZE[1]) > y + 110)[:, None]
    assert mask[shirt].mean() > 0.85


@pytest.mark.faces
def test_real_people_stay_themselves_unless_spoilt():
    embedder = engine()
    names = ("obama.jpg", "obama2.jpg", "biden.jpg")
    kept, lost = [], []
    for photo in (path for path in portraits() if path.name in names):
        original = open_image(photo).image
        size = size_for(*original.size, megapixels=0.4)
        (own,) = embedder.faces(original.resize(size))
        picture = ControlRef(photo, content_key(photo))

        def alike(image: Image.Image, own=own) -> float:
            distances = [float(np.linalg.norm(face.embedding - own.embedding)) for face in embedder.faces(image)]
            return similarity(min(distances)) if distances else 0.0

        plain = [prompt for prompt in PROMPTS if "look like" not in prompt]
        kept += [alike(made(request(picture, prompt=prompt, seed=seed, size=size)).image) for seed, prompt in enumerate(plain[::2])]
        spoilt = [made(request(picture, prompt=plain[seed % len(plain)], seed=seed, size=size), spoil_rate=1.0) for seed in range(8)]
        lost += [alike(edit.image) for edit in spoilt if edit.notes["spoiled"] == "identity drift"]
    assert np.mean(np.array(kept) >= 0.60) >= 0.85, json.dumps(kept)
    assert np.mean(np.array(lost) < 0.60) >= 0.60, json.dumps(lost)
