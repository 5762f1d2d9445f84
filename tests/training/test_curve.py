"""The loss curve: smoothing that does not lean, round ticks, pictures for the odd cases."""

import pytest
from comfyui_flenwheel.training import curve


def test_smoothing_of_a_constant_is_the_constant_and_nothing_is_shifted():
    assert curve.smoothed([3.0] * 5, 0.9) == pytest.approx([3.0] * 5)
    assert curve.smoothed([1.0, 2.0, 3.0], 0.0) == [1.0, 2.0, 3.0]
    assert curve.smoothed([], 0.9) == []


@pytest.mark.parametrize(("low", "high"), [(0, 1500), (0, 60), (0.02, 0.431), (1e-5, 3e-5), (-0.1, 0.1), (0, 1)])
def test_ticks_are_round_and_few(low, high):
    ticks = curve._ticks(low, high)
    assert 3 <= len(ticks) <= 8 and all(low <= tick <= high for tick in ticks)
    assert {float(f"{tick:.2g}") for tick in ticks} == set(ticks) or high > 1000


@pytest.mark.parametrize(
    "losses", [[], [(1, 0.5)], [(1, 0.5), (2, 0.5)], [(step, 1 / step) for step in range(1, 400)], [(1, 0.0), (2, 0.0)]]
)
def test_every_course_can_be_drawn(losses):
    picture = curve.loss_curve(losses, steps=500, checkpoints=[1, 2], title="Anna")
    assert picture.size == curve.SIZE and len(picture.getcolors(1 << 20)) > 3


def test_the_line_is_drawn_where_the_values_are():
    picture = curve.loss_curve([(step, 1.0 if step <= 50 else 0.0) for step in range(1, 101)], steps=100, weight=0.0)
    green = [
        (x, y) for x in range(curve.LEFT, curve.RIGHT) for y in range(curve.TOP, curve.BOTTOM) if picture.getpixel((x, y)) == curve.GREEN
    ]
    middle = (curve.LEFT + curve.RIGHT) / 2
    left, right = [y for x, y in green if x < middle - 10], [y for x, y in green if x > middle + 10]
    assert max(left) < curve.TOP + 40 and min(right) > curve.BOTTOM - 60
