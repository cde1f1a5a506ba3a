"""Which steps are noisy and trained: image-flow-rl.md, b5 and d2."""

import pytest

from flows.sampler import Sampler, Window
from studio.errors import ConfigError


def test_the_default_is_every_step_but_the_last():
    assert Window().steps(10, iteration=0, seed=0) == list(range(9))
    assert Sampler().window == Window()


def test_a_fixed_window_stays():
    window = Window(size=3, low=2)
    assert [window.steps(10, i, seed=0) for i in (0, 1, 1000)] == [[2, 3, 4]] * 3


def test_a_random_window_visits_every_start_and_agrees_across_ranks():
    window = Window(size=3, low=1, high=7, move="random")
    drawn = [window.steps(10, i, seed=4) for i in range(200)]
    assert {steps[0] for steps in drawn} == {1, 2, 3, 4}  # randint over [low, high - size]
    assert all(steps == list(range(steps[0], steps[0] + 3)) for steps in drawn)
    assert drawn == [window.steps(10, i, seed=4) for i in range(200)]
    assert drawn != [window.steps(10, i, seed=5) for i in range(200)]


def test_a_sliding_window_by_hand():
    window = Window(size=4, move="slide", every=2)
    assert [window.steps(25, i, seed=0)[0] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert window.steps(25, iteration=6, seed=0) == [3, 4, 5, 6]


def test_past_the_end_a_window_rolls_back_or_stays():
    # 8 steps: the window [0, 7) of size 4 has starts 0, 1, 2, 3
    rolls, stays = (Window(size=4, move="slide", every=1, past_end=end) for end in ("roll_back", "stay"))
    assert [rolls.steps(8, i, seed=0)[0] for i in range(7)] == [0, 1, 2, 3, 0, 1, 2]
    assert [stays.steps(8, i, seed=0)[0] for i in range(7)] == [0, 1, 2, 3, 3, 3, 3]
    low = Window(size=4, low=2, move="slide", every=1)
    assert [low.steps(8, i, seed=0)[0] for i in range(4)] == [2, 3, 2, 3]


def test_a_falling_tempo_by_hand():
    """MixGRPO: linear from 10 to 1 over the places; exponential ceil(τ·exp(-.1·max(0, l - 13)))."""
    linear = Window(size=4, move="slide", every=10, tempo="linear")
    assert [linear.dwell(start, 9) for start in range(10)] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    starts = [linear.steps(14, i, seed=0)[0] for i in range(56)]
    assert [starts.count(s) for s in range(10)] == [11, 9, 8, 7, 6, 5, 4, 3, 2, 1] and starts[-1] == 0  # rolled back after 55
    exponential = Window(size=4, move="slide", every=20, tempo="exponential")
    assert [exponential.dwell(start, 20) for start in (0, 13, 14, 20)] == [20, 20, 19, 10]
    assert exponential.steps(25, 14 * 20, seed=0)[0] == 14


def test_a_window_with_strides_rolls_back_to_its_first_place():
    # 11 steps: starts 0 ... 6; strides of 4 reach 0 and 4, and 8 is past the end
    rolls, stays = (Window(size=4, move="slide", every=1, stride=4, past_end=end) for end in ("roll_back", "stay"))
    assert [rolls.steps(11, i, seed=0)[0] for i in range(5)] == [0, 4, 0, 4, 0]
    assert [stays.steps(11, i, seed=0)[0] for i in range(4)] == [0, 4, 6, 6]


@pytest.mark.parametrize(
    ("window", "total"),
    [(Window(size=8), 8), (Window(size=3, low=5), 8), (Window(size=4, high=3), 8), (Window(low=7), 8)],
    ids=["longer than the steps", "beyond the last step", "longer than its range", "nothing left"],
)
def test_a_window_that_does_not_fit_is_a_config_error(window, total):
    with pytest.raises(ConfigError, match="recipe.sampler.window: .* do not fit below step .* of 8"):
        window.steps(total, 0, 0)
