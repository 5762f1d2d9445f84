"""Which examples a step shows, at what sizes and noise levels. Needs no model."""

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from comfyui_flenwheel.training.engines.peft_qlora import draws, plan  # noqa: E402
from PIL import Image  # noqa: E402

WIDE, TALL = ((64, 48),), ((48, 64),)


def test_an_epoch_shows_everything_as_often_as_its_repeats_and_mixes_no_sizes():
    order = plan.order([WIDE, TALL, WIDE, WIDE, TALL], [1, 2, 1, 3, 1], batch_size=2, seed=1)
    batches = order.epoch(0)
    assert Counter(number for batch in batches for number in batch) == {0: 1, 1: 2, 2: 1, 3: 3, 4: 1}
    assert all({number in (1, 4) for number in batch} in ({True}, {False}) for batch in batches)
    assert len(batches) == order.per_epoch == 5


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    order = plan.order([WIDE] * 20, [1] * 20, batch_size=1, seed=1)
    run = [order.batch(number) for number in range(60)]
    assert run[20:40] == order.epoch(1) == [order.batch(number) for number in range(20, 40)]
    assert run[:20] != run[20:40]
    assert run[:20] != plan.order([WIDE] * 20, [1] * 20, batch_size=1, seed=2).epoch(0)


def test_a_control_framed_like_its_target_keeps_its_size_and_another_keeps_its_aspect():
    assert plan.sizes((1500, 1000), [(3000, 2001), (500, 1000)], 1024, 1, 0.0) == ((1248, 832), (1248, 832), (720, 1440))
    assert plan.sizes((1500, 1000), [(3000, 2001)], 1024, 1, 0.25)[1] == (608, 416)
    assert plan.target_size((1500, 1000), 1024, 2) == (1280, 832)  # buckets of 64 px


def test_framing_cuts_the_same_share_off_a_target_and_its_control():
    size = (1280, 832)
    target, control = (plan.framed(Image.new("RGB", given), size) for given in ((1500, 1000), (3000, 2000)))
    assert target.size == (1500, 975) and control.size == (3000, 1950)
    assert plan.framed(Image.new("RGB", (640, 416)), size).size == (640, 416)


@pytest.mark.parametrize(
    ("schedule", "at"), [("constant", {1: 1 / 11, 10: 10 / 11, 11: 1, 100: 1}), ("cosine", {11: 1, 56: 0.5}), ("linear", {11: 1, 56: 0.5})]
)
def test_the_rate_warms_up_and_then_follows_its_schedule(schedule, at):
    assert {step: plan.rate(step, 100, 10, schedule) for step in at} == pytest.approx(at)
    assert plan.rate(100, 100, 10, schedule) > 0


def test_times_are_known_before_the_step_and_exact_in_bf16():
    drawn = draws.draw(7, 3, (5, 4, 8), 2.0, 0.5)
    assert torch.equal(drawn.times, draws.step_times(7, 3, 5, 2.0))
    assert torch.equal(drawn.times, drawn.times.to(torch.bfloat16).float())
    again = draws.draw(7, 3, (5, 4, 8), 2.0, 0.5)
    assert torch.equal(drawn.noise, again.noise) and drawn.blank == again.blank
    assert not torch.equal(drawn.noise, draws.draw(7, 4, (5, 4, 8), 2.0, 0.5).noise)


def test_times_are_logit_normal_and_lean_towards_noise_with_the_size():
    scheduler = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}
    shifts = [draws.shift_of(scheduler, side * side) for side in (32, 64, 83)]
    assert shifts == pytest.approx([1.71, 2.00, 2.30], abs=0.02)  # at 512, 1024 and 1328 px, as the pipeline computes them
    many = draws.step_times(0, 0, 20_000, shifts[1])
    # the median of a logit-normal is 1/2, which a shift of s moves to s / (1 + s); a quarter lies below sigmoid(-0.6745)
    quarter = torch.sigmoid(torch.tensor(-0.6745)) * 2
    assert float(many.median()) == pytest.approx(2 / 3, abs=0.01)
    assert float(many.quantile(0.25)) == pytest.approx(float(quarter / (1 + quarter / 2)), abs=0.01)


def test_captions_are_dropped_as_often_as_asked():
    blank = [one for number in range(500) for one in draws.draw(1, number, (2, 1, 1), 2.0, 0.1).blank]
    assert 70 < sum(blank) < 130
    assert not any(draws.draw(1, number, (2, 1, 1), 2.0, 0.0).blank[0] for number in range(100))
