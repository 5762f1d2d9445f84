"""The editor as a whole, on the tiny model: batches, LoRAs per prompt, bad pictures, too little memory, cancelling, resuming."""

import dataclasses
import logging
import os
import re
import shutil
import threading
import time
import weakref
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from comfyui_flenwheel.flywheel import lora  # noqa: E402
from comfyui_flenwheel.flywheel.candidates import Shelf  # noqa: E402
from comfyui_flenwheel.flywheel.editors import Choosy, Foresighted, Rendered  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen import cache, encode, latents, load, memory, pulse, quantised  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen.cache import TensorCache, trim  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen.jobs import passes  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen.models import ModelFolder  # noqa: E402
from comfyui_flenwheel.flywheel.editors.qwen_diffusers import QwenDiffusers  # noqa: E402
from comfyui_flenwheel.flywheel.enrich import enrich  # noqa: E402
from comfyui_flenwheel.flywheel.errors import EditorError, EditorUnavailable, FlywheelError, LoraError  # noqa: E402
from comfyui_flenwheel.flywheel.prompts import PromptSet  # noqa: E402
from PIL import Image  # noqa: E402

from .portrait import control, portrait, request  # noqa: E402
from .qwen_tiny import linears, lora_file  # noqa: E402
from .test_qwen_numbers import theirs, words  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SIDE = 64
TURN = "Change camera angle to side view"


class Cancelled(BaseException):
    pass


def silent(fraction=0.0, preview=None, doing=""):
    pass


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=int)


@pytest.fixture
def editor(tiny, tmp_path) -> QwenDiffusers:
    return QwenDiffusers(model=str(tiny.folder), steps=4, guidance=4.0, cache=tmp_path / "cache", device="cpu")


@pytest.fixture
def photo(tmp_path):
    return control(tmp_path, "photo.png", portrait().resize((96, 96)))


@pytest.fixture
def loras(tiny, tmp_path) -> lora.LoraStack:
    """One for every prompt on all layers, timestep layers too; one for camera prompts only."""
    every = lora_file(tmp_path / "style.safetensors", linears(tiny.pipeline.transformer), scale=0.05)
    some = {name: size for name, size in linears(tiny.pipeline.transformer).items() if "attn" in name}
    angle = lora_file(tmp_path / "angle.safetensors", some, seed=2)
    return lora.LoraStack((lora.stacked(every, 0.8), lora.stacked(angle, 1.0, "camera", "wide lens")))


def asked(photo, prompt="Change background to forest", seed=1, size=(SIDE, SIDE)):
    return request(photo, prompt=prompt, seed=seed, size=size)


def make(editor, order, tick=silent) -> Rendered:
    with editor.session() as edit:
        return edit(order, tick)


def hooked(session, hook):
    """Call `hook` before the transformer's first block, in every transformer this session loads."""
    arranged = session.parts._arranged

    def with_hook(made, away):
        made.transformer_blocks[0].register_forward_pre_hook(lambda *_: hook())
        arranged(made, away)

    session.parts._arranged = with_hook


# --- the image --------------------------------------------------------------------------------------------------------------------------


def test_it_makes_the_image_of_the_pipeline_with_the_right_positions(tiny, editor, photo, monkeypatch):
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as upstream

    monkeypatch.setattr(upstream, "VAE_IMAGE_SIZE", SIDE * SIDE)
    picture = Image.open(photo.path).convert("RGB")
    embeds = words(tiny.pipeline, "Change background to forest", picture), words(tiny.pipeline, " ", picture)
    expected = theirs(tiny.pipeline, "", 1, picture, steps=4, embeds=embeds)
    made = make(editor, asked(photo))
    assert np.abs(pixels(made.image) - (expected * 255).round().numpy()).max() <= 1
    assert made.notes["memory"] == "resident" and made.notes["steps"] == 4 and made.notes["control_sizes"] == [[SIDE, SIDE]]


def test_2511_too(tiny_2511, editor, photo):
    made = make(dataclasses.replace(editor, model=str(tiny_2511.folder)), asked(photo))
    assert made.image.size == (SIDE, SIDE)
    assert (pixels(made.image) != pixels(make(editor, asked(photo)).image)).any()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_to_three_controls_and_their_order_matters(editor, tmp_path, count):
    controls = [control(tmp_path, f"{n}.png", portrait().rotate(90 * n).resize((96, 64 + 32 * n))) for n in range(count)]
    made = make(editor, request(*controls, size=(SIDE, SIDE)))
    assert made.image.size == (SIDE, SIDE) and len(made.notes["control_sizes"]) == count
    if count > 1:
        turned = make(editor, request(*reversed(controls), size=(SIDE, SIDE)))
        assert (pixels(made.image) != pixels(turned.image)).any()


def test_four_or_no_controls_are_refused_by_name(editor, photo):
    for controls in ((), (photo,) * 4):
        with pytest.raises(EditorError, match=f"qwen_diffusers takes 1 to 3 control images and got {len(controls)}"):
            make(editor, request(*controls))


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_any_kind_of_picture_is_taken_and_said(editor, tmp_path, mode):
    path = tmp_path / ("odd.tif" if mode == "CMYK" else "odd.png")
    picture = portrait().resize((97, 61)).convert("RGBA" if mode == "RGBA" else mode)
    if mode == "RGBA":
        picture.putalpha(100)
    picture.save(path)
    from comfyui_flenwheel.flywheel.editors import ControlRef

    made = make(editor, request(ControlRef(path, "k" * 16), size=(96, 64)))
    assert made.image.size == (96, 64) and made.notes["control_sizes"] == [[96, 64]]
    assert ("transparency laid on grey" in str(made.notes.get("treated"))) == (mode == "RGBA")


def test_controls_keep_their_shape_and_the_result_its_grid(editor, tmp_path):
    wide = control(tmp_path, "wide.png", portrait().resize((300, 100)))
    made = make(editor, request(wide, size=(64, 96)))
    (size,) = made.notes["control_sizes"]
    assert abs(size[0] / size[1] - 3) < 0.5 and made.image.size == (64, 96)
    small = make(dataclasses.replace(editor, control_megapixels=0.002), request(wide, size=(64, 96)))
    assert small.notes["control_sizes"][0][0] < size[0]


@pytest.mark.parametrize(("picture", "size", "message"), [((4000, 20), (SIDE, SIDE), "16 to 1"), ((96, 96), (70, 64), "multiples of 16")])
def test_shapes_that_cannot_work_are_refused(editor, tmp_path, picture, size, message):
    with pytest.raises(EditorError, match=message):
        make(editor, request(control(tmp_path, "x.png", Image.new("RGB", picture)), size=size))


def test_an_empty_file_and_a_broken_one_are_refused(editor, tmp_path):
    from comfyui_flenwheel.flywheel.editors import ControlRef

    for name, content in (("empty.png", b""), ("broken.png", b"\x89PNG but no more")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FlywheelError, match=name):
            make(editor, request(ControlRef(tmp_path / name, "k" * 16), size=(SIDE, SIDE)))


def test_pictures_2_and_3_go_with_every_photo(editor, photo, tmp_path):
    outfit = control(tmp_path, "outfit.png", portrait().rotate(90).resize((64, 96)))
    hat = control(tmp_path, "hat.png", portrait().rotate(180).resize((96, 64)))
    dressed = dataclasses.replace(editor, pictures=(outfit, hat))
    alike = make(editor, request(photo, outfit, hat, size=(SIDE, SIDE)))
    made = make(dressed, asked(photo))
    assert made.image.tobytes() == alike.image.tobytes() and len(made.notes["control_sizes"]) == 3
    assert asked(photo).key(dressed.fingerprint()) != asked(photo).key(editor.fingerprint()) and dressed.controls == range(1, 2)
    with pytest.raises(FlywheelError, match="takes 1 to 3 control images and got 4"):
        make(dressed, request(photo, outfit, size=(SIDE, SIDE)))


# --- a batch ----------------------------------------------------------------------------------------------------------------------------


def test_a_batch_is_the_same_as_its_images_one_by_one(editor, photo, loras, tmp_path):
    editor = dataclasses.replace(editor, loras=loras, at_once=4)
    orders = [asked(photo, prompt, seed) for prompt in ("Change background to a very old forest", TURN, "Make it night") for seed in (1, 2)]
    with editor.session() as edit:
        together = dict(edit.many(orders, silent))
        assert [edit.counts.loads.count(part) for part in ("text_encoder", "vae", "transformer")] == [1, 1, 1]
        assert edit.parts.adapters.switches == 2  # camera prompts use both LoRAs, the others one
    alone = dataclasses.replace(editor, at_once=1, cache=tmp_path / "other")
    for order in orders:
        assert np.abs(pixels(together[order].image) - pixels(make(alone, order).image)).max() <= 1
    assert together[orders[2]].notes["loras"] == ["style x 0.8", "angle x 1"]
    assert together[orders[2]].notes["prompt_used"] == "wide lens " + TURN
    assert together[orders[0]].notes["loras"] == ["style x 0.8"]


def test_a_second_run_needs_no_text_encoder(editor, photo):
    first = make(editor, asked(photo))
    with editor.session() as edit:
        again = edit(asked(photo), silent)
        assert edit.counts.loads == ["transformer", "vae"] and edit.counts.encoded == 0
    assert (pixels(first.image) == pixels(again.image)).all()
    for kept in editor.cache.rglob("*.safetensors"):
        kept.write_bytes(kept.read_bytes()[:100])  # a cache that a crash has damaged is made again
    assert (pixels(make(editor, asked(photo)).image) == pixels(first.image)).all()


def test_modulation_tables_are_kept_on_disk_by_model_and_schedule(tiny_2511, editor, photo):
    def built(made_by):
        with made_by.session() as edit:
            edit(asked(photo), silent)
            return edit.counts.loads.count("modulation")

    others = (dataclasses.replace(editor, steps=5), dataclasses.replace(editor, model=str(tiny_2511.folder)))
    assert [built(one) for one in (editor, editor, *others, editor, *others)] == [1, 0, 1, 1, 0, 0, 0]
    assert len(list((editor.cache / "modulation").glob("*.safetensors"))) == 3


def test_the_vision_tower_looks_once_at_a_photo_however_many_prompts_are_about_it(editor, photo, tmp_path):
    other, looks = control(tmp_path, "other.png", portrait().rotate(90).resize((96, 64))), []
    orders = [asked(one, prompt) for one in (photo, other) for prompt in ("Make it night", "Make it day", "Add a very large red hat")]
    with editor.session() as edit:
        edit.parts.start([edit.job(order) for order in orders])
        text_encoder, *_ = edit.parts.text_encoder()
        text_encoder.model.visual.register_forward_hook(lambda *_: looks.append(1))
        edit.prepare(orders, silent)
        assert edit.counts.encoded == 2 * (3 + 1) and len(looks) == 2
        made = edit(orders[-1], silent)
        gone = weakref.ref(text_encoder.model)
        edit.parts._text = text_encoder = None
        assert gone() is None, "it is not kept by what it remembers"
    alone = make(dataclasses.replace(editor, cache=None), orders[-1])
    assert made.image.tobytes() == alone.image.tobytes()


def test_what_was_not_used_for_longest_leaves_the_cache_when_that_is_full(tmp_path):
    words, rows = TensorCache(tmp_path / "words"), TensorCache(tmp_path / "rows")
    for age, (kept, name) in enumerate(((words, "old"), (rows, "older"), (words, "oldest")), 1):
        kept.put(name, {"x": torch.zeros(1000)})
        os.utime(kept.folder / f"{name}.safetensors", ns=(10**18 - age, 10**18 - age))
    TensorCache(tmp_path / "words").get("oldest", dict)
    size = (tmp_path / "words" / "old.safetensors").stat().st_size
    trim([words, rows, TensorCache(None)], 2 * size)
    assert {path.stem for path in tmp_path.rglob("*.safetensors")} == {"oldest", "old"}
    assert TensorCache(tmp_path / "rows").get("older", lambda: {"x": torch.ones(1)})["x"].item() == 1


def test_a_session_leaves_no_more_on_disk_than_there_is_room_for(editor, photo, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 0)
    make(editor, asked(photo))
    assert not [*editor.cache.rglob("*.safetensors")]


def test_one_bad_request_does_not_stop_the_others(editor, photo, tmp_path):
    bad = request(photo, prompt="word " * 5000, size=(SIDE, SIDE))
    with editor.session() as edit:
        outcomes = dict(edit.many([asked(photo), bad, asked(photo, seed=2)], silent))
    assert isinstance(outcomes[bad], EditorError) and "5,000 words" in str(outcomes[bad])
    assert sum(isinstance(one, Rendered) for one in outcomes.values()) == 2


def test_expected_requests_are_prepared_first_and_share_batches(editor, photo):
    orders = [asked(photo, prompt, seed) for seed in (1, 2) for prompt in ("Make it night", "Make it day and sunny")]
    editor = dataclasses.replace(editor, at_once=4)
    forwards = []
    with editor.session() as edit:
        assert isinstance(edit, Foresighted) and isinstance(editor, Choosy)
        hooked(edit, lambda: forwards.append(edit.counts.encoded))
        edit.expect(orders)
        made = [edit(order, silent) for order in orders]
    assert len(forwards) == editor.steps  # one batch of four, guidance included
    assert set(forwards) == {3}  # two prompts and the negative one, all before the first step
    assert len({png.image.tobytes() for png in made}) == 4


def test_a_plan_with_two_stacked_loras_is_made_interrupted_and_resumed(editor, loras, sources):
    editor = dataclasses.replace(editor, loras=loras)
    prompts = PromptSet(("Change background to [forest|beach]", TURN))
    seen = []

    def cancel_after_four(progress):
        seen.append(progress.done)
        if progress.made >= 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        enrich(sources, prompts, editor, megapixels=0.004, report=cancel_after_four)
    shelf = Shelf(sources.project.stage("enriched"))
    before = {key: path.stat().st_mtime_ns for key, path in shelf.files.items()}
    assert 3 <= len(before) <= 5
    done = enrich(sources, prompts, editor, megapixels=0.004)
    assert len(done.dataset.images) == 9 and done.run.made == 9 - len(before)
    shelf = Shelf(sources.project.stage("enriched"))
    assert all(shelf.files[key].stat().st_mtime_ns == stamp for key, stamp in before.items())
    used = {tuple(lineage.facts["notes"]["loras"]) for lineage in shelf.lineages.values()}
    assert used == {("style x 0.8",), ("style x 0.8", "angle x 1")}


# --- decoding beside the next image -----------------------------------------------------------------------------------------------------


def watched_decoder(monkeypatch, hook):
    """Call `hook` with the number of the image, from 0, before it is decoded, in whichever thread does so."""
    decode, count = latents.decode, iter(range(1000))

    def watched(vae, frame):
        hook(next(count))
        return decode(vae, frame)

    monkeypatch.setattr(latents, "decode", watched)


def in_every_session(monkeypatch, editor, act):
    """Call `act` with each engine of this kind of editor, once it is there."""
    session = type(editor).session

    @contextmanager
    def acting(self):
        with session(self) as edit:
            act(edit)
            yield edit

    monkeypatch.setattr(type(editor), "session", acting)


def night(sources, editor, *prompts, **options):
    return enrich(sources, PromptSet(prompts or ("Make it [night|day]",)), editor, megapixels=0.004, **options)


def on_disk(sources):
    """Name to bytes of every finished image; an image's name holds what it was made from."""
    return {path.name: path.read_bytes() for path in Shelf(sources.project.stage("enriched")).files.values()}


def emptied(sources):
    """What is on disk, which is then thrown away."""
    kept = on_disk(sources)
    shutil.rmtree(sources.project.stage("enriched").folder)
    return kept


def test_an_enrichment_decodes_one_image_while_the_next_is_denoised(editor, sources, monkeypatch):
    """Each decoding waits for a step of the next image; were one after the other, it would wait for ever."""
    expected = len(night(sources, editor).dataset.images), emptied(sources)
    steps, threads, next_step = [], [], threading.Event()

    def hook(number):
        threads.append(threading.get_ident())
        if number < expected[0] - 1:
            next_step.clear()
            assert next_step.wait(30), "the next image was not begun"

    def step():
        steps.append(threading.get_ident())
        next_step.set()

    watched_decoder(monkeypatch, hook)
    in_every_session(monkeypatch, editor, lambda edit: hooked(edit, step))
    assert night(sources, editor).run.made == expected[0] == 6
    assert set(steps) == {threading.get_ident()} and threading.get_ident() not in threads and len(threads) == 6
    assert on_disk(sources) == expected[1]


def test_where_there_is_no_room_for_both_an_image_is_decoded_before_the_next_is_begun(editor, sources, monkeypatch, caplog):
    night(sources, editor)
    expected, threads = emptied(sources), []
    with editor.session() as edit:
        edit.parts.start([edit.job(asked(control(sources.project.root, "x.png", portrait().resize((SIDE, SIDE)))))])
        plan = edit.parts.plan
        assert plan.beside and "for decoding beside the next image" in str(plan)
    free = dataclasses.replace(plan, decoding=0.0).peak + plan.decoding / 2
    monkeypatch.setattr(memory, "free_gib", lambda device: free)
    watched_decoder(monkeypatch, lambda number: threads.append(threading.get_ident()))
    caplog.clear()
    assert night(sources, editor).run.made == 6
    assert set(threads) == {threading.get_ident()} and "follows the other" not in caplog.text, "planned, not found out"
    assert on_disk(sources) == expected


def test_a_black_picture_of_an_enrichment_is_told_and_the_others_are_made(editor, sources, monkeypatch):
    decode, number = latents.decode, iter(range(100))
    monkeypatch.setattr(latents, "decode", lambda vae, frame: decode(vae, frame) * (next(number) != 1))
    done = night(sources, editor)
    assert len(done.run.failed) == 1 and "came out black" in done.run.failed[0][1] and len(done.dataset.images) == 5
    assert night(sources, editor).run.made == 1, "it is tried again by the next run"


def test_numbers_that_are_none_in_an_enrichment_are_told_and_the_others_are_made(editor, sources, monkeypatch):
    decode, number = latents.decode, iter(range(100))
    monkeypatch.setattr(latents, "decode", lambda vae, frame: decode(vae, frame) * (float("nan") if next(number) == 1 else 1))
    done = night(sources, editor)
    assert len(done.run.failed) == 1 and "not numbers" in done.run.failed[0][1] and len(done.dataset.images) == 5


def test_memory_that_runs_out_in_the_decoder_beside_us_costs_no_image(editor, sources, monkeypatch, caplog):
    """The image is decoded again while nothing else is made, with the transformer where it is; the next ones too. If that is not enough either, the
    engine steps down."""
    night(sources, editor)
    expected = emptied(sources)
    for failures, rung in ((1, "resident"), (2, "in turns")):
        caplog.clear()
        threads = []

        def hook(number, failures=failures, threads=threads):
            threads.append(threading.get_ident() == threading.main_thread().ident)
            if number < failures:
                raise torch.OutOfMemoryError("CUDA out of memory")

        with monkeypatch.context() as patched:
            watched_decoder(patched, hook)
            assert night(sources, editor).run.made == 6
        assert caplog.text.count("from here on one follows the other") == 1 and threads[0] is False and all(threads[-3:])
        assert on_disk(sources) == expected
        last = max(Shelf(sources.project.stage("enriched")).lineages.values(), key=lambda made: made.facts["notes"]["memory"] != "resident")
        assert last.facts["notes"]["memory"] == rung
        emptied(sources)


def test_memory_that_runs_out_in_the_transformer_waits_for_the_decoder_before_it_steps_down(editor, sources, monkeypatch, caplog):
    night(sources, editor)
    expected = emptied(sources)
    decoding, failed, engines = threading.Event(), threading.Event(), []

    def decode(number):
        decoding.set()
        assert failed.wait(30)

    def full():
        if decoding.is_set() and not failed.is_set():
            failed.set()
            raise torch.OutOfMemoryError("CUDA out of memory")

    watched_decoder(monkeypatch, decode)
    in_every_session(monkeypatch, editor, lambda edit: (hooked(edit, full), engines.append(edit)))
    assert night(sources, editor).run.made == 6
    assert engines[0].parts.rung == "resident" and not engines[0].parts.beside
    assert failed.is_set() and caplog.text.count("from here on one follows the other") == 1
    assert on_disk(sources) == expected


def test_cancelling_ends_a_decoding_that_is_under_way(editor, sources, monkeypatch):
    """Between two layers of the VAE: the first never returns before somebody has cancelled, and the second is not reached."""
    layers, cancelled, parts = [], threading.Event(), []

    def slow(*_):
        layers.append(1)
        assert cancelled.wait(30)
        time.sleep(0.6)  # longer than the loop waits for it

    def hook(number):
        vae = parts[-1]._vae
        for layer in [layer for layer in vae.modules() if isinstance(layer, torch.nn.Conv3d)]:
            layer.register_forward_hook(slow)

    def cancel(progress):
        if layers:
            cancelled.set()
            raise Cancelled

    watched_decoder(monkeypatch, hook)
    in_every_session(monkeypatch, editor, lambda edit: parts.append(edit.parts))
    with pytest.raises(Cancelled):
        night(sources, editor, report=cancel)
    assert layers == [1] and on_disk(sources) == {}
    monkeypatch.undo()
    assert night(sources, editor).run.made == 6


def test_a_photo_is_not_encoded_while_an_image_is_decoded(editor, photo, tmp_path, monkeypatch):
    """The VAE remembers where it is: both at once would mix them up."""
    other = control(tmp_path, "other.png", portrait().rotate(90).resize((96, 96)))
    apart = make(dataclasses.replace(editor, cache=None), asked(other))
    encoding, encode_photo = threading.Event(), latents.encode
    monkeypatch.setattr(latents, "encode", lambda *given: (encoding.set(), encode_photo(*given))[1])
    with editor.session() as edit:
        exposed, rendered = edit.expose(asked(photo), silent), []
        encoding.clear()
        watched_decoder(monkeypatch, lambda number: number == 0 and encoding.wait(0.5) and rendered.append("beside"))
        thread = threading.Thread(target=lambda: rendered.append(exposed.develop()))
        thread.start()
        made = edit(asked(other), silent)
        thread.join()
    assert "beside" not in rendered and isinstance(rendered[0], Rendered)
    assert (pixels(made.image) == pixels(apart.image)).all()


# --- people and their machines ----------------------------------------------------------------------------------------------------------


def test_cancelling_works_within_a_step_and_the_session_goes_on(editor, photo, monkeypatch):
    """Between two blocks of one step, not only between steps: the model has more than one, so the second is never reached."""
    monkeypatch.setattr(pulse, "TICK_S", 0.0)
    with editor.session() as edit:
        whole = edit(asked(photo), silent)
        reached, steps = [], []
        blocks = edit.parts._transformer.transformer_blocks
        for number, block in enumerate(blocks):
            block.register_forward_hook(lambda *_, number=number: reached.append(number))

        def cancel(fraction=0.0, preview=None, doing=""):
            steps.append(fraction)
            if reached:
                raise Cancelled

        with pytest.raises(Cancelled):
            edit(asked(photo, seed=2), cancel)
        assert reached == [0] and len(blocks) > 1 and set(steps) == {0.0}
        assert (pixels(edit(asked(photo), silent).image) == pixels(whole.image)).all()


def test_cancelling_is_heard_while_the_text_encoder_is_read_and_while_it_encodes(editor, photo, monkeypatch):
    monkeypatch.setattr(pulse, "TICK_S", 0.0)
    layers = []
    with editor.session() as edit:
        for moment, reached in (("reading", lambda doing: "loading the text encoder: 1%" in doing), ("encoding", lambda _: layers)):

            def cancel(fraction=0.0, preview=None, doing="", reached=reached):
                if reached(doing):
                    raise Cancelled

            with pytest.raises(Cancelled):
                edit(asked(photo), cancel)
            assert (edit.parts._text is None) == (moment == "reading") and not edit.counts.images
            if moment == "reading":
                edit.pulse.begin(silent)
                text_encoder, _, _ = edit.parts.text_encoder()
                text_encoder.model.language_model.layers[0].register_forward_hook(lambda *_: layers.append(1))
        assert layers == [1], "the second layer was not reached"
        made = edit(asked(photo), silent)
    assert made.image.tobytes() == make(dataclasses.replace(editor, cache=None), asked(photo)).image.tobytes()


def test_the_tick_comes_four_times_a_second_not_with_every_block(monkeypatch):
    clock, ticks = [1000.0], []
    monkeypatch.setattr(pulse, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    beats = pulse.Pulse(torch.device("cpu"))
    beats.begin(lambda *_, **__: ticks.append(clock[0]), 4)
    for _ in range(100):
        clock[0] += 0.02
        beats.block()
    assert 6 <= len(ticks) <= 8  # of two seconds


def test_previews_come_with_every_step_and_grow_clearer(editor, photo):
    shown = []
    made = make(editor, asked(photo), lambda fraction=0.0, preview=None, doing="": preview and shown.append((fraction, preview)))
    assert [fraction for fraction, _ in shown] == pytest.approx([0.2375, 0.475, 0.7125, 0.95])
    assert {preview.size for _, preview in shown} == {(8, 8)} and made.image.size == (SIDE, SIDE)


def out_of_memory(times):
    """Raises as torch does when a card is full, so many times."""
    left = [times]

    def full():
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return full


def test_out_of_memory_steps_down_says_so_and_makes_the_same_image(editor, photo, caplog):
    expected = make(editor, asked(photo))
    for failures, rung in ((1, "in turns"), (2, "streamed")):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "flenwheel"), editor.session() as edit:
            hooked(edit, out_of_memory(failures))
            made = edit(asked(photo), silent)
            after = edit(asked(photo, seed=2), silent)  # the batch goes on, where it is
        assert made.notes["memory"] == after.notes["memory"] == rung
        assert (pixels(made.image) == pixels(expected.image)).all()
        assert caplog.text.count("Memory ran out") == failures and "made again" in caplog.text


@pytest.mark.parametrize(("where", "what"), [(encode, "encode"), (latents, "encode"), (latents, "decode")])
def test_memory_that_runs_out_beside_the_transformer_is_survived_too(editor, photo, caplog, monkeypatch, where, what):
    """While words or a photo are encoded or an image is decoded; by an allocation that this machine refuses in its own words."""
    expected, whole, left = make(dataclasses.replace(editor, cache=None), asked(photo)), getattr(where, what), [2**59]

    def full(*given, **named):
        if left:
            torch.empty(left.pop(), dtype=torch.uint8)
        return whole(*given, **named)

    monkeypatch.setattr(where, what, full)
    made = make(editor, asked(photo))
    assert "Memory ran out" in caplog.text and not left
    assert (pixels(made.image) == pixels(expected.image)).all()


def test_in_turns_text_encoder_and_transformer_are_never_there_together(editor, photo, monkeypatch):
    there = []
    with editor.session() as edit:
        for part in ("text_encoder", "transformer"):
            make_part = getattr(load, part)

            def watched(*args, part=part, make_part=make_part, **options):
                there.append((part, edit.parts._text is not None, edit.parts._transformer is not None))
                return make_part(*args, **options)

            monkeypatch.setattr(load, part, watched)
        hooked(edit, out_of_memory(1))
        assert edit(asked(photo), silent).notes["memory"] == "in turns"
        assert edit.parts._text is None
        edit(asked(photo, "Make it night"), silent)  # other words: the text encoder comes back, and the transformer goes for it
    assert there == [
        ("text_encoder", False, False),
        ("transformer", True, False),  # resident, until memory ran out
        ("transformer", False, False),
        ("text_encoder", False, False),
        ("transformer", False, False),
    ]


def test_the_rung_of_4_bits_loads_4_bits(editor, photo):
    pytest.importorskip("bitsandbytes")
    with editor.session() as edit:
        edit.load([asked(photo)], silent)
        assert quantised.kinds(edit.parts._transformer) == set()
        edit.parts.ladder = memory.Ladder("resident", has_nf4=True)  # as on a card; the CPU's ladder has no such rung
        edit.parts.drop_transformer()
        hooked(edit, out_of_memory(2))
        made = edit(asked(photo), silent)
        assert made.notes["memory"] == "nf4" and made.notes["precision"] == "nf4"
        assert quantised.kinds(edit.parts._transformer) == {"nf4"}
    assert list((editor.cache / "quantised").glob("tiny-nf4-*"))  # made once


def test_streamed_blocks_are_on_the_card_for_their_turn_only(editor, photo, monkeypatch):
    moves = []
    with dataclasses.replace(editor, memory="streamed").session() as edit:
        edit.load([asked(photo)], silent)
        for number, block in enumerate(edit.parts._transformer.transformer_blocks):
            to = block.to
            monkeypatch.setattr(block, "to", lambda where, number=number, to=to: moves.append((number, str(where))) or to(where))
        edit(asked(photo), silent)
    one_pass = [(0, "cpu"), (0, "cpu"), (1, "cpu"), (1, "cpu")]  # to the device, which is the CPU here, and back
    assert moves == one_pass * editor.steps


def test_without_bitsandbytes_the_rung_of_4_bits_is_left_out(monkeypatch):
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: None)
    assert not memory.has_nf4(torch.device("cuda"))
    assert memory.Ladder("resident", has_nf4=False).rungs == ("resident", "in turns", "streamed")


def test_what_is_loaded_and_quantised_is_told_and_kept(editor, photo, monkeypatch):
    editor, told = dataclasses.replace(editor, precision="int8"), []
    first = make(editor, asked(photo), lambda fraction=0.0, preview=None, doing="": doing and told.append(doing))
    for what in ("loading the text encoder", "making modulation tables", "loading the transformer (int8)"):
        shares = [int(line.rpartition(" ")[2].rstrip("%")) for line in told if line.startswith(what)]
        assert shares[0] == 0 and shares == sorted(shares), what
        assert shares[-1] == 100 or what == "making modulation tables"
    shutil.rmtree(editor.cache / "words")
    monkeypatch.setattr(quantised, "linear", None)  # nothing may be quantised a second time, nor the text encoder
    again = make(editor, asked(photo))
    assert (pixels(first.image) == pixels(again.image)).all()


def test_a_person_who_watches_an_enrichment_sees_what_is_loaded(editor, sources):
    seen = []
    enrich(sources, PromptSet(("Make it night",)), editor, megapixels=0.004, limit=1, report=lambda progress: seen.append(progress.doing))
    assert any(doing.startswith("loading the transformer") for doing in seen) and seen[-1] == ""


def test_at_the_bottom_of_the_ladder_only_this_image_fails(editor, photo):
    with editor.session() as edit:
        hooked(edit, out_of_memory(3))
        with pytest.raises(EditorError, match="fewer megapixels"):
            edit(asked(photo), silent)
        assert isinstance(edit(asked(photo, seed=2), silent), Rendered)


def test_a_batch_that_is_too_large_is_halved_before_anything_is_given_up(editor, photo, caplog):
    orders = [asked(photo, seed=seed) for seed in range(4)]
    editor = dataclasses.replace(editor, at_once=4)
    with caplog.at_level(logging.WARNING, "flenwheel"), editor.session() as edit:
        hooked(edit, out_of_memory(1))
        outcomes = dict(edit.many(orders, silent))
    assert "two batches" in caplog.text
    assert {one.notes["memory"] for one in outcomes.values()} == {"resident"}


def test_a_lora_that_blows_up_is_an_error_not_a_picture(tiny, editor, photo, tmp_path):
    path = lora_file(tmp_path / "loud.safetensors", {"proj_out": (64, 64)}, scale=1e20)
    loud = dataclasses.replace(editor, loras=lora.LoraStack((lora.stacked(path, 1.0, "camera"),)))
    with loud.session() as edit:
        outcomes = dict(edit.many([asked(photo, TURN), asked(photo)], silent))
    assert "not numbers" in str(outcomes[asked(photo, TURN)]) and isinstance(outcomes[asked(photo)], Rendered)


def test_a_black_picture_is_an_error_with_its_causes_and_the_batch_goes_on(editor, photo, monkeypatch):
    decode, black = latents.decode, [True]
    monkeypatch.setattr(latents, "decode", lambda vae, frame: decode(vae, frame) * (0 if black and black.pop() else 1))
    with editor.session() as edit:
        outcomes = [outcome for _, outcome in edit.many([asked(photo), asked(photo, seed=2)], silent)]
    assert "came out black" in str(outcomes[0]) and "SageAttention" in str(outcomes[0])
    assert isinstance(outcomes[1], Rendered)


def test_an_edit_that_slid_is_flagged_and_one_that_moves_the_camera_is_not(editor, tmp_path, monkeypatch):
    """Random weights paint nothing that could be compared, so the decoder is made to answer with the photo, 9 px to the right."""
    picture = portrait().resize((320, 320))
    slid = torch.from_numpy(np.roll(np.asarray(picture.convert("RGB")), 9, axis=1).copy())[None] / 255
    monkeypatch.setattr(latents, "decode", lambda vae, frame: slid)
    orders = [asked(control(tmp_path, "large.png", picture), prompt, size=picture.size) for prompt in ("Make it night", TURN)]
    with dataclasses.replace(editor, steps=1, guidance=1.0).session() as edit:
        night, turned = (outcome.notes for _, outcome in edit.many(orders, silent))
    assert night["shifted"] and night["moved_px"] == pytest.approx([9, 0], abs=1)
    assert not {"shifted", "moved_px", "zoom"} & set(turned)


def test_the_log_tells_the_plan_before_and_the_truth_after(editor, photo, caplog):
    with caplog.at_level(logging.INFO, "flenwheel"), editor.session() as edit:
        list(edit.many([asked(photo, seed=seed) for seed in range(3)], silent))
    plan, truth = (record.getMessage() for record in caplog.records)
    assert plan.startswith(
        "Qwen-Image-Edit tiny on cpu: everything stays on the card. Transformer 0.00 GiB (as stored) + modulation tables"
    )
    assert "peak about" in plan
    assert re.search(r"3 images in [\d.]+ s, [\d.]+ s each; 0 LoRA switches; memory at most [\d.]+ GiB \(expected [\d.]+\)", truth)


def test_a_lora_of_another_model_stops_everything_before_it_is_loaded(editor, photo, tmp_path):
    path = lora_file(tmp_path / "flux.safetensors", {"single_transformer_blocks.0.attn.to_q": (64, 64)})
    wrong = dataclasses.replace(editor, loras=lora.LoraStack((lora.stacked(path, 1.0),)))
    with pytest.raises(LoraError, match="0 of 1 layers"):
        make(wrong, asked(photo))


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "int8"},
        {"precision": "w8a8"},
        {"precision": "fp8"},
        {"memory": "streamed"},
        {"memory": "in turns"},
        {"block_cache": 0.3},
    ],
)
def test_every_way_of_saving_makes_nearly_the_same_image(editor, photo, options):
    exact, saved = make(editor, asked(photo)), make(dataclasses.replace(editor, **options), asked(photo))
    difference = np.abs(pixels(exact.image) - pixels(saved.image))
    assert difference.mean() < (0.01 if "memory" in options else 4)
    if "precision" in options:
        assert difference.max() > 0 and saved.notes["precision"] == options["precision"]


def test_the_block_cache_skips_blocks_and_remembers_nothing_of_the_image_before(editor, photo):
    ran = []
    with dataclasses.replace(editor, steps=12, block_cache=0.6).session() as edit:
        edit.load([asked(photo)], silent)
        for block in edit.parts._transformer.transformer_blocks:
            block.attn.register_forward_pre_hook(lambda *_: ran.append(1))
        first = edit(asked(photo), silent)
        assert 12 < len(ran) < 2 * 12  # the first block always, the second only sometimes
        edit(asked(photo, "Make it night", seed=2), silent)
        again = edit(asked(photo), silent)
    exact = make(dataclasses.replace(editor, steps=12), asked(photo))
    assert (pixels(first.image) == pixels(again.image)).all()
    assert 0 < np.abs(pixels(exact.image) - pixels(first.image)).mean() < 4


def test_less_guidance_and_smaller_controls_save_what_they_say(editor, photo):
    rows = []
    for options, expected in (({}, [2] * 4), ({"guided_share": 0.5}, [2, 2, 1, 1]), ({"guidance": 1.0}, [1] * 4)):
        rows.clear()
        with dataclasses.replace(editor, **options).session() as edit:
            edit.load([asked(photo)], silent)
            edit.parts._transformer.register_forward_pre_hook(
                lambda _, __, given: rows.append(given["hidden_states"].shape[:2]), with_kwargs=True
            )
            edit(asked(photo), silent)
        assert [batch for batch, _ in rows] == expected
        assert {tokens for _, tokens in rows} == {32}  # the image's 16 and the control's
    with dataclasses.replace(editor, control_megapixels=0.001024).session() as edit:  # a quarter
        assert edit.job(asked(photo)).tokens == 16 + 4


def test_compiled_blocks_make_the_same_image_and_can_still_be_cancelled(editor, photo, loras, monkeypatch):
    """Traced as a whole, blocks and LoRAs, and run without the C++ compiler, which would take a minute."""
    monkeypatch.setattr(pulse, "TICK_S", 0.0)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    editor = dataclasses.replace(editor, loras=loras, steps=2)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    exact = make(editor, asked(photo))
    with dataclasses.replace(editor, compile=True).session() as edit:
        made = edit(asked(photo), silent)
        reached = []
        edit.parts._transformer.transformer_blocks[0].register_forward_hook(lambda *_: reached.append(0))

        def cancel(fraction=0.0, preview=None, doing=""):
            if reached:
                raise Cancelled

        with pytest.raises(Cancelled):
            edit(asked(photo, seed=2), cancel)
    assert np.abs(pixels(exact.image) - pixels(made.image)).max() <= 1
    counted = torch._dynamo.utils.counters
    assert 1 <= counted["stats"]["unique_graphs"] <= 4 and not counted["graph_break"], counted


def test_options_that_can_change_a_pixel_are_in_the_fingerprint(editor, loras, photo):
    base = editor.fingerprint()
    assert {"model", "steps", "guidance", "precision", "loras"} <= set(base)
    for options in (
        {"steps": 5},
        {"guidance": 2.0},
        {"precision": "fp8"},
        {"memory": "nf4"},
        {"loras": loras},
        {"control_megapixels": 0.5},
    ):
        assert dataclasses.replace(editor, **options).fingerprint() != base
    for options in ({"cache": None}, {"device": ""}, {"at_once": 4}, {"memory": "in turns"}):
        assert dataclasses.replace(editor, **options).fingerprint() == base
    stacked = dataclasses.replace(editor, loras=loras)
    camera, other = (stacked.fingerprint_for(asked(photo, prompt)) for prompt in (TURN, "Make it night"))
    assert camera["loras"] != other["loras"]


def test_a_lora_that_is_renamed_to_what_it_is_makes_other_images(editor, photo, loras, tmp_path):
    """Lightning is known by its name: under another one it is used with the steps and guidance of every other LoRA."""
    named = shutil.copy(loras.loras[0].path, tmp_path / "lightning-4steps.safetensors")
    before, after = (
        dataclasses.replace(editor, steps=0, guidance=0.0, loras=lora.LoraStack((lora.stacked(path, 1.0),)))
        for path in (loras.loras[0].path, named)
    )
    assert before.loras.loras[0].key == after.loras.loras[0].key
    assert asked(photo).key(before.fingerprint()) != asked(photo).key(after.fingerprint())
    assert make(after, asked(photo)).notes["steps"] == 4


def test_what_trades_something_for_speed_is_off_until_it_is_asked_for():
    plain = QwenDiffusers()
    off = {"guided_share": 1.0, "block_cache": 0.0, "control_megapixels": 0.0, "compile": False, "precision": "auto", "at_once": 1}
    assert {name: getattr(plain, name) for name in off} == off
    chosen = {kind for device in ("cpu", "cuda") for kind, _ in memory._precisions("auto", torch.device(device))}
    assert "w8a8" not in chosen and "int8" not in chosen


def test_wrong_options_are_told_all_at_once():
    with pytest.raises(EditorError, match=r"steps is -1.*guided_share is 2"):
        QwenDiffusers(steps=-1, guided_share=2.0)


def test_without_a_model_nothing_is_downloaded_and_the_message_says_what_to_do(photo):
    assert QwenDiffusers().fingerprint()["model"] == "missing"
    with pytest.raises(EditorUnavailable, match="never downloads"):
        make(QwenDiffusers(), asked(photo))


# --- the plan ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size(tiny, tmp_path_factory) -> ModelFolder:
    """A folder with the headers of the real model's weights, and none of the weights."""
    import json
    import struct

    import diffusers
    from accelerate import init_empty_weights

    root = tmp_path_factory.mktemp("full")
    with init_empty_weights():
        parts = {"transformer": diffusers.QwenImageTransformer2DModel(), "vae": diffusers.AutoencoderKLQwenImage()}
    shapes = {part: {name: list(weight.shape) for name, weight in made.named_parameters()} for part, made in parts.items()}
    shapes["text_encoder"] = {  # Qwen2.5-VL-7B by its sizes: vision .677, words .545, head .545, layers 6.53 billion
        "visual.blocks.weight": [676_550, 1000],
        "model.embed_tokens.weight": [152_064, 3584],
        "lm_head.weight": [152_064, 3584],
        "model.layers.weight": [6_525_600, 1000],
    }
    for part, named in shapes.items():
        (root / part).mkdir()
        header = json.dumps({name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in named.items()}).encode()
        (root / part / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (root / "transformer" / "config.json").write_text(json.dumps({"num_layers": 60, "num_attention_heads": 24, "attention_head_dim": 128}))
    (root / "text_encoder" / "config.json").write_text("{}")
    return ModelFolder(root)


@pytest.mark.parametrize(
    ("card", "rung", "precision"),
    [
        (80, "resident", "as stored"),
        (48, "resident", "as stored"),
        (24, "resident", "fp8"),
        (16, "resident", "nf4"),
        (12, "in turns", "nf4"),
    ],
)
def test_the_plan_fits_the_card_and_matches_what_was_counted(full_size, monkeypatch, card, rung, precision):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(memory, "free_gib", lambda device: card * 0.97)
    plan = memory.plan(
        full_size,
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        precision="auto",
        rung="auto",
        tokens=2 * 4096 + 220,
        pixels=1024 * 1024,
        steps=40,
        batch=2,
    )
    assert (plan.rung, plan.precision) == (rung, precision) and plan.fits
    assert plan.beside == (card != 16), "there all parts stay and decoding waits its turn"
    assert f"peak about {plan.peak:.1f} GiB of {card * 0.97:.1f} GiB free" in str(plan)
    expected = {"as stored": 25.4, "fp8": 12.7, "nf4": 6.6}[precision]
    assert abs(plan.transformer - expected) < 0.2 and abs(plan.tables - 0.165) < 0.02


def test_in_8_bits_all_parts_stay_on_24_gb_beside_a_text_encoder_of_4(full_size, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(memory, "free_gib", lambda device: 24 * 0.97)
    how = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "rung": "auto", "tokens": 2 * 4096 + 220, "pixels": 2**20, "steps": 40}
    for precision in ("fp8", "int8", "w8a8"):
        plan = memory.plan(full_size, **how, precision=precision, batch=2)
        assert (plan.rung, plan.precision, plan.text_precision) == ("resident", precision, "nf4") and plan.fits
        assert plan.transformer == pytest.approx(12.7, abs=0.1) and plan.text_encoder < 6


def test_what_comfyui_will_let_go_counts_as_free(full_size, monkeypatch):
    """A card full of another graph's models: planned without them, as the run will find it."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(memory, "free_gib", lambda device: 3.0)
    how = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "precision": "auto", "rung": "auto", "tokens": 8412, "pixels": 2**20}
    full, freed = (memory.plan(full_size, **how, steps=40, batch=1, held=held) for held in (0.0, 20.5))
    assert not full.fits and freed.fits and (freed.rung, freed.precision, freed.free) == ("resident", "fp8", 23.5)


@pytest.mark.parametrize(
    ("guidance", "tokens", "device", "at_once"),
    [(4.0, 8412, "cuda", 1), (4.0, 2000, "cuda", 2), (4.0, 8412, "cpu", 2), (1.0, 2000, "cuda", 1)],
)
def test_guidance_shares_a_pass_only_where_that_is_faster(guidance, tokens, device, at_once):
    assert passes(guidance, tokens, torch.device(device)) == at_once
