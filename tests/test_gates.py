"""Hard-concrete gates: expectations and probabilities against draws, where gradients vanish, and the straight-through gate."""

import math

import pytest
import torch

from pruning.gates import HardConcrete, binarization_gap, straight_through
from studio.errors import ConfigError

DELTAS = (1e-8, 0.1, 0.5, 1.0)
# λ, E[m] at δ = 1e-8, 0.1, 0.5, 1, then P(m = 0) and P(m = 1) at δ = 1e-8; from 2e6 draws of an independent program
TABLE = [
    (-4.0, (0.0271, 0.0010, 0.0000, 0.0000), 0.8818, 0.0025),
    (-2.0, (0.1546, 0.1004, 0.0404, 0.0229), 0.5024, 0.0182),
    (0.0, (0.4998, 0.4998, 0.4999, 0.4999), 0.1202, 0.1202),
    (1.0, (0.6962, 0.7336, 0.7947, 0.8108), 0.0479, 0.2709),
    (2.0, (0.8450, 0.8994, 0.9596, 0.9771), 0.0182, 0.5024),
    (3.0, (0.9318, 0.9782, 0.9998, 1.0000), 0.0068, 0.7330),
    (4.0, (0.9728, 0.9990, 1.0000, 1.0000), 0.0025, 0.8818),
]


@pytest.fixture(scope="module")
def uniform():
    return torch.rand(1_000_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("row", TABLE, ids=[f"logit {row[0]:g}" for row in TABLE])
def test_the_mean_gate(uniform, row):
    for noise, expected in zip(DELTAS, row[1], strict=True):
        drawn = HardConcrete(noise=noise).sample(torch.tensor(row[0]), uniform)
        assert drawn.mean().item() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("row", TABLE, ids=[f"logit {row[0]:g}" for row in TABLE])
def test_probabilities_of_the_table(row):
    gate, logit = HardConcrete(noise=1e-8), torch.tensor(row[0])
    assert 1 - gate.open(logit).item() == pytest.approx(row[2], abs=1e-4)
    assert gate.full(logit).item() == pytest.approx(row[3], abs=1e-4)


@pytest.mark.parametrize("noise", [*DELTAS, 0.03, 4.0])
@pytest.mark.parametrize("logit", [-2.3, -1.0, 0.0, 0.7, 2.0, 3.5])
def test_probabilities_equal_the_share_of_draws(uniform, noise, logit):
    gate, value = HardConcrete(noise=noise), torch.tensor(logit)
    drawn = gate.sample(value, uniform)
    assert (drawn > 0).float().mean().item() == pytest.approx(gate.open(value).item(), abs=2e-3)
    assert (drawn == 1).float().mean().item() == pytest.approx(gate.full(value).item(), abs=2e-3)


def test_without_flattening_probabilities_are_sigmoids():
    gate, logits = HardConcrete(noise=1e-12), torch.linspace(-6, 6, 25, dtype=torch.float64)
    bound = 0.83 * math.log(11)  # 1.990253
    torch.testing.assert_close(gate.open(logits), torch.sigmoid(logits + bound), rtol=0, atol=1e-9)
    torch.testing.assert_close(gate.full(logits), torch.sigmoid(logits - bound), rtol=0, atol=1e-9)


def test_every_gate_is_in_reach_of_a_budget():
    """Flattened noise cannot close a gate of 2, so its exact probability has no slope there; the sharp one has."""
    value = torch.tensor(2.0, requires_grad=True)
    gate = HardConcrete(noise=0.1)
    assert torch.autograd.grad(gate.open(value), value)[0] == 0
    p = torch.sigmoid(torch.tensor(2 + 1.990253)).item()
    assert gate.open_sharp(value).item() == pytest.approx(p, abs=1e-6)
    assert torch.autograd.grad(gate.open_sharp(value), value)[0].item() == pytest.approx(p * (1 - p), rel=1e-4)


def test_the_gate_without_noise():
    # σ(1/0.83)·1.2 - 0.1 = 0.76936·1.2 - 0.1; at 0 one half; clipped at both ends
    found = HardConcrete().median(torch.tensor([-2.0, 0.0, 1.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 0.8233, 1.0]), rtol=0, atol=5e-5)
    half = HardConcrete(noise=0.5).sample(torch.tensor([1.0]), torch.tensor([0.5]))
    torch.testing.assert_close(half, found[2:3])


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_probabilities_do_not_overflow(logit):
    value = torch.tensor(logit, requires_grad=True)
    for noise in DELTAS:
        found = torch.stack([HardConcrete(noise=noise).open(value), HardConcrete(noise=noise).full(value)])
        assert torch.equal(found.detach(), torch.full((2,), float(logit > 0)))
        assert torch.autograd.grad(found.sum(), value)[0] == 0


@pytest.mark.parametrize(("noise", "bound"), [(0.1, 4.3881), (0.5, 3.0889), (1.0, 2.6834)])
def test_above_saturation_every_draw_is_one(noise, bound):
    gate = HardConcrete(noise=noise)
    assert gate.saturation() == pytest.approx(bound, abs=5e-5)
    worst = torch.tensor([0.0])  # the draw that closes most
    assert gate.sample(torch.tensor([bound + 1e-3]), worst) == 1 > gate.sample(torch.tensor([bound - 1e-3]), worst)
    assert gate.full(torch.tensor(bound + 1e-3)) == 1 > gate.full(torch.tensor(bound - 1e-2))


def test_a_saturated_gate_has_no_gradient_and_another_has(uniform):
    gate = HardConcrete(noise=1.0)

    def slope(logit: float) -> float:
        value = torch.tensor(logit, requires_grad=True)
        return torch.autograd.grad(gate.sample(value, uniform).mean(), value)[0].item()

    assert slope(4.0) == 0.0
    # dE[m]/dλ from the same draws on either side
    apart = [gate.sample(torch.tensor(logit), uniform).double().mean().item() for logit in (1.99, 2.01)]
    assert slope(2.0) == pytest.approx((apart[1] - apart[0]) / 0.02, rel=2e-2) and slope(2.0) > 0.05


def test_a_start_above_saturation_is_refused():
    HardConcrete(noise=0.1).check_start(4.38)
    with pytest.raises(ConfigError) as problem:
        HardConcrete(noise=1.0).check_start(4.0)
    assert str(problem.value) == (
        "recipe.criterion.start: expected a logit below 2.6834, above which a gate with noise 1 is always 1 and has no gradient, "
        "got 4. Lower start or noise."
    )


def test_the_straight_through_gate_has_a_hard_value_and_a_soft_gradient():
    many = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(straight_through(torch.ones(1000), many), torch.ones(1000))  # 1 + s - s may be 0.99999994
    logits = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    hard, factor = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 10.0, 100.0])
    gate = straight_through(hard, torch.sigmoid(logits))
    assert torch.equal(gate.detach(), hard)
    # σ(1 - σ) at -1, 0, 2: 0.196612, 0.25, 0.104994
    (slope,) = torch.autograd.grad((gate * factor).sum(), logits)
    torch.testing.assert_close(slope, torch.tensor([0.196612, 2.5, 10.4994]), rtol=1e-4, atol=0)


def test_the_gap_between_trained_and_deployed_masks():
    # (|0.9 - 1| + |0.4 - 0| + |0.5 - 1|)/3 = 1/3
    assert binarization_gap(torch.tensor([0.9, 0.4, 0.5]), torch.tensor([1.0, 0, 1])).item() == pytest.approx(1 / 3)
