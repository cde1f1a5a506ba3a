"""House style, section 12, check 1, and the bounds where float32 ratios run out of digits."""

import math

import pytest
import torch

from studio.core.surrogate import Clip, KeepGradientClip, StopClip, plain_ratio
from studio.errors import ConfigError

LOG_RATIO = [0.0, math.log(1.5), math.log(0.5), math.log(1.5), math.log(0.5)]
ADVANTAGE = [1.0, 1.0, 1.0, -1.0, -1.0]

# value and gradient with respect to the log ratio
TABLE = {
    "plain ratio": (plain_ratio, [1, 1.5, 0.5, -1.5, -0.5], [1, 1.5, 0.5, -1.5, -0.5]),
    "clip": (Clip(0.2, 0.2), [1, 1.2, 0.5, -1.5, -0.8], [1, 0, 0.5, -1.5, 0]),
    "clip that keeps gradients": (KeepGradientClip(0.2, 0.2), [1, 1.2, 0.5, -1.5, -0.8], [1, 1.2, 0.5, -1.5, -0.8]),
    # sg(min(r, 1.2))·A·ℓ: 1.2·ln 1.5 = 0.48656, 0.5·ln 0.5 = -0.34657
    "clipped weight": (StopClip(1.2), [0, 0.486558, -0.346574, -0.486558, 0.346574], [1, 1.2, 0.5, -1.2, -0.5]),
}


def value_and_gradient(surrogate, log_ratio, advantage):
    x = torch.tensor([log_ratio], requires_grad=True)
    value = surrogate(x, torch.tensor([advantage]), torch.ones(1, len(advantage), dtype=torch.bool))
    value.sum().backward()
    return value.detach()[0], x.grad[0]


@pytest.mark.parametrize(("surrogate", "value", "slope"), TABLE.values(), ids=TABLE)
def test_values_and_gradients_by_hand(surrogate, value, slope):
    got = value_and_gradient(surrogate, LOG_RATIO, ADVANTAGE)
    torch.testing.assert_close(got[0], torch.tensor(value, dtype=torch.float32), atol=1e-6, rtol=0)
    torch.testing.assert_close(got[1], torch.tensor(slope, dtype=torch.float32), atol=1e-6, rtol=0)


# text-policy-gradient.md, section 5: rho, A -> gradient of the loss; ours is the objective, so the sign is turned
CROSS = {
    "ppo": (Clip(0.2, 0.28), [-0.5, 0, -1, 1, -1.2, 0, 1.5, 0, 4]),
    "dual clip": (Clip(0.2, 0.28, cap=3.0), [-0.5, 0, -1, 1, -1.2, 0, 1.5, 0, 0]),
    "gppo": (KeepGradientClip(0.2, 0.28), [-0.5, 0.8, -1, 1, -1.2, -1.28, 1.5, -1.28, 4]),
    "cispo as in verl": (StopClip(1.28, 0.8), [-0.8, 0.8, -1, 1, -1.2, -1.28, 1.28, -1.28, 1.28]),
    "cispo as in TRL": (StopClip(5.0), [-0.5, 0.5, -1, 1, -1.2, -1.5, 1.5, -4, 4]),
}


@pytest.mark.parametrize(("surrogate", "slope"), CROSS.values(), ids=CROSS)
def test_gradients_agree_with_the_cross_method_table(surrogate, slope):
    ratios, signs = [0.5, 0.5, 1, 1, 1.2, 1.5, 1.5, 4, 4], [1.0, -1, 1, -1, 1, 1, -1, 1, -1]
    _, got = value_and_gradient(surrogate, [math.log(r) for r in ratios], signs)
    torch.testing.assert_close(-got, torch.tensor(slope, dtype=torch.float32), atol=1e-5, rtol=0)


def test_clip_without_bounds_is_the_plain_ratio():
    got = value_and_gradient(Clip(1.0, math.inf), LOG_RATIO, ADVANTAGE)
    torch.testing.assert_close(got, value_and_gradient(plain_ratio, LOG_RATIO, ADVANTAGE))


@pytest.mark.parametrize("clip", [2e-6, 1e-7], ids=["clip 2e-6", "clip 1e-7"])
def test_tiny_clips_are_decided_in_the_log_domain(clip):
    # float32 has no ratio between 1 and 1 + 1.19e-7: exp(1.01e-7) and exp(0.99e-7) are the same number
    edge = math.log1p(clip)
    surrogate = Clip(clip, clip)
    _, slope = value_and_gradient(surrogate, [0.99 * edge, 1.01 * edge, -0.99 * edge, -1.01 * edge], [1.0, 1, -1, -1])
    assert slope[1] == 0 and slope[3] == 0
    torch.testing.assert_close(slope[[0, 2]], torch.tensor([1.0, -1.0]), atol=1e-5, rtol=0)


def test_clipped_compares_the_log_ratio_and_the_sign_of_the_advantage():
    x, a = torch.tensor([LOG_RATIO]), torch.tensor([ADVANTAGE])
    above, below = Clip(0.2, 0.2).clipped(x, a)
    assert above.tolist() == [[False, True, False, False, False]]
    assert below.tolist() == [[False, False, False, False, True]]
    assert Clip(0.2, 0.2, cap=1.4).clipped(x, a).above.tolist() == [[False, True, False, True, False]]
    above, below = StopClip(1.2, 0.8).clipped(x, a)  # a clipped weight does not look at the sign
    assert above.tolist() == [[False, True, False, True, False]]
    assert below.tolist() == [[False, False, True, False, True]]


def test_impossible_bounds_are_refused():
    with pytest.raises(ConfigError, match="low=-0.1"):
        Clip(-0.1, 0.2)
    with pytest.raises(ConfigError, match="cap > 1"):
        Clip(0.2, 0.2, cap=0.5)
