"""FPO and FPO++: matching errors, surrogates and the policy by hand, and what holds on the loop."""

import math

import pytest
import torch
from stretches import (
    acted,
    assert_any_rows,
    assert_first_replay,
    assert_pulls,
    assert_shares,
    assert_trains,
    built,
    constant,
    rows_apart,
)
from torch import Tensor

from flows.control.baselines import FPO
from flows.control.fpo import matching_error, times_of
from flows.control.recipe import Net
from flows.fpo import FPO as Algorithm
from flows.fpo import AsymmetricClip, BoundedFit, FPOPlus
from studio.core import fit_ratio
from studio.types import Evaluation, Prompts, Rollout

SMALL = Net((16,), "tanh")
KINDS = {
    "means of pairs": (FPO(SMALL, pairs=3, last=1.0), Algorithm()),
    "pairs apart": (FPO(SMALL, pairs=3, last=1.0, separate=True, reduce="sqrt", error="velocity", times="beta"), FPOPlus()),
    "one pair apart": (FPO(SMALL, pairs=1, last=1.0, separate=True, times="uniform", squash="none", scale=2), Algorithm(bound=3)),
}
on_every_kind = pytest.mark.parametrize(("how", "algorithm"), KINDS.values(), ids=KINDS)


def tensor(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ratio_of(old: float, new: Tensor, ratio=fit_ratio) -> Tensor:
    said = Evaluation(fit=tensor([old]))
    rollout = Rollout(Prompts([], [], []), None, None, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1), said)
    return ratio(Evaluation(fit=new), rollout)


def test_the_ratio_is_the_fall_of_the_matching_error():
    """a = 0.4, ε = 1: the velocity a - ε is -0.6; u from -0.2 to -0.5: 0.4² = 0.16 to 0.1² = 0.01, ρ = e^0.15."""
    action, noise = tensor(0.4), tensor(1.0)
    old, new = (matching_error(tensor(u), action - noise, tensor(0.3)[0], "velocity") for u in (-0.2, -0.5))
    assert old.item() == pytest.approx(0.16, abs=1e-12) and new.item() == pytest.approx(0.01, abs=1e-12)
    assert ratio_of(old.item(), new[None, None]).exp().item() == pytest.approx(1.161834, abs=1e-6)


def test_the_error_of_noise_is_that_of_the_velocity_weighted():
    """In FPO's own time t = 1 - τ: x = tε + (1-t)a, ε̂ = x + (1-t)u', u' = -u, and (ε - ε̂)² = (1-t)²·(u' - (ε - a))²."""
    own = torch.Generator().manual_seed(0)
    action, noise, velocity = (torch.randn(50, 3, generator=own, dtype=torch.float64) for _ in range(3))
    t = torch.rand(50, generator=own, dtype=torch.float64)
    x = t[:, None] * noise + (1 - t)[:, None] * action
    guess = x - (1 - t)[:, None] * velocity
    wanted = (noise - guess).square().mean(-1)
    found = matching_error(velocity, action - noise, 1 - t, "noise")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    plain = matching_error(velocity, action - noise, 1 - t, "velocity")
    torch.testing.assert_close(found, (1 - t).square() * plain, rtol=0, atol=1e-12)


def test_dimensions_are_averaged_or_summed_over_their_root():
    """Squares 1, 4, 9, 16: mean 7.5, sum/√4 = 15."""
    target = tensor(1.0, -2.0, 3.0, -4.0)
    assert matching_error(torch.zeros(4), target, tensor(0.5)[0], "velocity").item() == 7.5
    assert matching_error(torch.zeros(4), target, tensor(0.5)[0], "velocity", "sqrt").item() == 15


def test_times():
    """grid: each of the solver's times from the same share of draws; beta: 0.005 + 0.99·√(1 - 0.75) = 0.5 for β = 2."""
    share = (torch.arange(20) + 0.5) / 20
    assert times_of(share, "grid", 10, 1.0).tolist() == pytest.approx([k // 2 / 10 for k in range(20)])
    assert times_of(tensor(0.0, 0.25, 1.0), "beta", 10, 1.0).tolist() == pytest.approx([0.995, 0.7475, 0.005], abs=1e-12)
    assert times_of(tensor(0.75), "beta", 10, 2.0).item() == pytest.approx(0.5, abs=1e-12)
    draws = built(FPO(pairs=4, steps=5)).draws(0, 20, 10)
    assert draws["tau"].unique().tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert built(FPO(pairs=4, times="uniform")).draws(0, 20, 10)["tau"].unique().numel() > 700


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [(0.9, -1, -1.0, 1.0), (1.0, -1, -1.0, -1.0), (1.5, -1, -4.0, -11.0), (0.95, -1, -0.975, 0.0)]
    + [(1.04, 1, 1.04, 1.0), (1.2, 1, 1.05, 0.0), (0.5, 1, 0.5, 1.0), (1.5, -2, -8.0, -22.0), (1.5, 0, 0.0, 0.0)],
)
def test_the_asymmetric_surrogate(ratio, advantage, value, slope):
    """clip 0.05; A = -1: -ρ - 10·(ρ-1)², slope -1 - 20·(ρ-1): 0 at 0.95; A ≥ 0 as PPO."""
    log_ratio = tensor([math.log(ratio)]).requires_grad_()
    gain = AsymmetricClip(0.05)(log_ratio, tensor([advantage]), torch.ones(1, 1, dtype=torch.bool))
    assert gain.item() == pytest.approx(value, abs=1e-9)
    (by_log,) = torch.autograd.grad(gain, log_ratio)
    assert by_log.item() / ratio == pytest.approx(slope, abs=1e-9)


def test_what_the_asymmetric_surrogate_holds_back():
    log_ratio, advantage = tensor([0.04, 0.06, 0.06, -0.06, -0.06, -0.05]), tensor([1.0, 1.0, -1.0, 1.0, -1.0, -1.0])
    above, below = AsymmetricClip(0.05).clipped(log_ratio, advantage)
    assert above.tolist() == [[False, True, False, False, False, False]]
    assert below.tolist() == [[False, False, False, False, True, False]]


@pytest.mark.parametrize(("ratio", "value", "slope"), [(FPOPlus(bound=10), 10.0, -1.0), (Algorithm(bound=3), 3.0, 0.0)])
def test_bounds_of_the_log_ratio(ratio, value, slope):
    """From an error of 15.5 to 0.5: ℓ = 15, held at the bound; FPO++ keeps the gradient."""
    new = tensor([0.5]).requires_grad_()
    found = ratio_of(15.5, new, ratio.objective().ratio)
    found.sum().backward()
    assert found.item() == value and new.grad.item() == slope
    assert ratio_of(0.5, tensor([15.5]), BoundedFit(-3, 3)).item() == -3
    assert ratio_of(0.5, tensor([15.5]), FPOPlus().objective().ratio).item() == -15


def test_actions_by_hand():
    """A network that says (4, -8), of which a quarter counts: x = ε + (1, -2) + 0.5·noise, bounded by 2, then 3·x or 3·tanh(x)."""
    start, noise = torch.tensor([[0.5, 0.5], [1.5, -1.0]]), torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    points, tau = torch.tensor([[[0.5, 0.0]]]).repeat(2, 1, 1), torch.zeros(2, 1)
    draw = {"start": start, "noise": noise, "points": points, "tau": tau}
    plain = constant(built(FPO(SMALL, pairs=1, noise=0.5, action_clip=2.0, squash="none", scale=3.0)), (4.0, -8.0))
    action, record = plain.act(torch.zeros(2, 4), draw)
    torch.testing.assert_close(record["x"], torch.tensor([[2.0, -2.0], [2.0, -2.0]]))
    torch.testing.assert_close(action, 3 * record["x"])
    # matched is the bounded action: a - ε = (1.5, -2), u = (1, -2): (0.25 + 0)/2, and τ = 0 leaves nothing of the error of noise
    torch.testing.assert_close(record["fit"], torch.zeros(2, 1))
    record["tau"] = torch.full((2, 1), 0.5)
    torch.testing.assert_close(plain.errors(record | {"observation": torch.zeros(2, 4)}), torch.full((2, 1), 0.125 / 4))
    free = constant(built(FPO(SMALL, pairs=1, noise=0.5, scale=3.0)), (4.0, -8.0))
    ends = {
        "stochastic": [[2.0, -2.0], [2.5, -2.0]],
        "noiseless": [[1.5, -1.5], [2.5, -3.0]],
        "deterministic": [[1.0, -2.0], [1.0, -2.0]],
    }
    for mode, x in ends.items():
        torch.testing.assert_close(free.decide(torch.zeros(2, 4), draw, mode), 3 * torch.tensor(x).tanh())


def test_errors_are_bounded():
    policy = built(FPO(SMALL, pairs=1, error="velocity", largest=20.0, last=1.0))
    record = {"observation": torch.zeros(2, 4), "points": torch.zeros(2, 1, 2), "tau": torch.full((2, 1), 0.5)}
    far, near = (policy.errors(record | {"x": torch.full((2, 2), x)}) for x in (90.0, 0.5))
    assert (far == 20).all() and (near < 20).all()
    assert not any(
        g.any() for g in torch.autograd.grad(far.sum(), list(policy.model.actor.parameters()), allow_unused=True) if g is not None
    )


def test_pairs_apart_are_what_is_averaged_together():
    together, each = (acted(built(FPO(SMALL, pairs=3, last=1.0, separate=apart))) for apart in (False, True))
    assert (each.trace.parts, together.trace.parts) == (3, 1)
    torch.testing.assert_close(each.trace.said.fit.mean(-1), together.trace.said.fit)
    flat, credit = rows_apart(FPOPlus().objective(), each)
    assert flat.old.fit.std(1).min() > 0
    assert torch.equal(flat.old.fit, each.trace.said.fit.flatten(0, 1))
    torch.testing.assert_close(credit.weight, torch.full((12, 3), 1 / 36))


@on_every_kind
def test_the_first_replay_has_ratio_one(how, algorithm):
    assert_first_replay(built(how), algorithm.objective())


@on_every_kind
def test_other_points_have_another_ratio(how, algorithm):
    policy, objective = built(how), algorithm.objective()
    flat, _ = rows_apart(objective, acted(policy))
    record = flat.trace.record
    record["points"].copy_(torch.randn(record["points"].shape, generator=torch.Generator().manual_seed(1)))
    assert objective.ratio(policy.evaluate(flat), flat).abs().min() > 1e-5


@on_every_kind
def test_replay_does_not_depend_on_the_cut(how, algorithm):
    assert_any_rows(built(how), algorithm.objective())


@on_every_kind
def test_good_actions_are_matched_better_and_bad_ones_worse(how, algorithm):
    assert_pulls(built(how), algorithm.objective())


@on_every_kind
def test_processes_share_the_draws(how, algorithm):
    assert_shares(how)


@pytest.mark.parametrize("name", ["fpo", "fpo++"])
def test_the_recipe_trains(name, tmp_path):
    assert_trains(name, tmp_path)
