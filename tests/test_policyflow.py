"""PolicyFlow by hand: the path, the ratio, the regularizer, the solver, and what holds whatever the weights are."""

import math

import pytest
import torch
from torch import Tensor, nn

from flows.control.environment import Space
from flows.control.likelihood import Times, draw_times, estimate
from flows.control.recipe import Likelihood, Net, PolicyFlow
from flows.control.solver import brownian_residual, euler, gaussian_kl, midpoint, noise_entropy, on_path, shifted_logp
from flows.policyflow import PolicyFlow as Algorithm
from studio.core import ValueLoss
from studio.core.advantage import generalized_advantage
from studio.core.surrogate import Clip
from studio.optim import adapted
from studio.types import Credit, Evaluation, Prompts, Rollout

D = torch.float64


def tensor(*values) -> Tensor:
    return torch.tensor(values, dtype=D)


def log_ratio(xi: Tensor, shift: Tensor, std: Tensor, old: Tensor) -> Tensor:
    return shifted_logp(xi, shift, std) - shifted_logp(xi, torch.zeros_like(xi), old)


# section 5 of the reference, group by group


def test_only_the_deviation_changed():
    """log ρ = -Σ log(σ/σ̄) + Σ ξ²(1/σ̄² - 1/σ²)/2."""
    xi, std, old = tensor(0.5, -0.2), tensor(0.6, 0.3), tensor(0.5, 0.4)
    wanted = (-(std / old).log() + xi**2 * (1 / old**2 - 1 / std**2) / 2).sum()
    assert log_ratio(xi, torch.zeros(2, dtype=D), std, old).item() == pytest.approx(wanted.item(), abs=1e-12)
    assert log_ratio(xi, torch.zeros(2, dtype=D), old, old).item() == 0


def test_the_ratio_by_hand():
    xi, old = tensor(0.5, -0.2), tensor(0.5, 0.4)
    shift, log_std = tensor(0.1, 0.05).requires_grad_(), old.log().requires_grad_()
    value = log_ratio(xi, shift, log_std.exp(), old)
    assert value.item() == pytest.approx(0.1096875, abs=1e-9) and math.exp(value.item()) == pytest.approx(1.1159293, abs=1e-6)
    by_shift, by_log_std = torch.autograd.grad(value, (shift, log_std))
    assert by_shift.tolist() == pytest.approx([1.6, -1.5625], abs=1e-9)
    assert by_log_std.tolist() == pytest.approx([-0.36, -0.609375], abs=1e-9)
    wider = tensor(0.6, 0.4)
    assert log_ratio(xi, shift.detach(), wider, old).item() == pytest.approx(0.0251437, abs=1e-6)
    # the ports add 1e-5 inside the logarithm, 0.0512635; without it the KL of equal policies is 0
    assert gaussian_kl(shift.detach(), wider, old).item() == pytest.approx(0.0512635 - 1e-5 * (1 / 1.2 + 1), abs=1e-7)


class Moves(nn.Module):
    """A velocity that a function of x says; time and state do not count."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.time = lambda tau: tau[..., None] * torch.zeros(1, dtype=D)
        self.observe = lambda s: torch.zeros(*s.shape[:-1], 1, dtype=D)

    def forward(self, x: Tensor, time: Tensor, view: Tensor) -> Tensor:
        return self.function(x)


def drawn(rows: int = 7) -> dict[str, Tensor]:
    own = torch.Generator().manual_seed(0)
    make = {name: torch.randn(rows, 2, generator=own, dtype=D) for name in ("z", "end", "xi")}
    return make | {"observation": torch.zeros(rows, 3, dtype=D)}


@pytest.mark.parametrize("kind", ["one_time", "grid_mean"])
@pytest.mark.parametrize("steps", [1, 10])
def test_a_flow_that_only_translates_is_gaussian_ppo(kind, steps):
    """u = m: Φ(z) = z + m, the true shift is the estimate at every time, and the ratio is that of N(m, σ²) over N(m̄, σ̄²)."""
    mean, old_mean, std, old = tensor(0.3, -1.0), tensor(0.1, -0.8), tensor(0.5, 0.7), tensor(0.6, 0.7)
    new, before = Moves(lambda x: mean.expand_as(x)), Moves(lambda x: old_mean.expand_as(x))
    record = drawn()
    assert torch.allclose(midpoint(lambda x, _: mean.expand_as(x), record["z"], steps), record["z"] + mean)
    times = draw_times(Likelihood(kind), steps, 7, 2, seed=1)
    shift = estimate(new, before, record, times, "rectified").shift
    assert torch.allclose(shift, (mean - old_mean).expand_as(shift), atol=1e-12)
    action = record["z"] + old_mean + record["xi"]
    gaussian = torch.distributions.Normal(record["z"] + mean, std).log_prob(action).sum(-1)
    gaussian = gaussian - torch.distributions.Normal(record["z"] + old_mean, old).log_prob(action).sum(-1)
    assert torch.allclose(log_ratio(record["xi"], shift, std, old), gaussian, atol=1e-12)


@pytest.mark.parametrize(("c", "gain"), [(1.0, 1.718282), (-1.0, 0.632121), (2.0, 3.194528), (-2.0, 0.432332)])
def test_a_flow_that_stretches_moves_its_end_by_more_than_the_estimate(c, gain):
    """ū = cx + b, u = ū + δ₀: the true shift is δ₀(e^c - 1)/c, the estimate δ₀."""
    bias, push = tensor(0.2, -0.1), tensor(0.05, 0.1)

    def old(x, _=0.0):
        return c * x + bias

    def new(x, _=0.0):
        return old(x) + push

    record = drawn()
    true = midpoint(new, record["z"], 10) - midpoint(old, record["z"], 10)
    fine = midpoint(new, record["z"], 1000) - midpoint(old, record["z"], 1000)
    assert torch.allclose(fine, (gain * push).expand_as(fine), rtol=1e-4)
    assert torch.allclose(true, fine, rtol=3e-3 if abs(c) == 1 else 3e-2)
    times = draw_times(Likelihood(), 10, 7, 2, seed=3)
    assert torch.allclose(estimate(Moves(new), Moves(old), record, times, "rectified").shift, push.expand(7, 2), atol=1e-12)


def test_the_brownian_residual_by_hand():
    tau, z, end = tensor(0.25), tensor(1.0, -2.0), tensor(3.0, 0.0)
    new, old = tensor(1.0, 1.0).requires_grad_(), tensor(2.0, 2.0)
    x = on_path(z, end, tau, "rectified")
    assert x.tolist() == [1.5, -1.5]
    eta = brownian_residual(new, old, x, tau, "rectified")
    assert eta.tolist() == [-0.25, 2.75] and eta.square().mean().item() == 3.8125 and eta.square().sum().item() == 7.625
    (slope,) = torch.autograd.grad(eta.square().mean(), new)
    assert slope.tolist() == pytest.approx([-0.1875, 2.0625])
    for t in (0.0, 0.3, 0.9, 1.0):
        assert brownian_residual(x, x, x, tensor(t), "rectified").abs().max() <= 1e-15  # u = ū = x, whose flow is e·z


def test_other_paths_by_hand():
    z, end, half = tensor(1.0, 0.0), tensor(0.0, 2.0), tensor(0.5)
    root = math.sqrt(0.5)
    assert on_path(z, end, half, "trigflow").tolist() == pytest.approx([root, 2 * root])
    assert on_path(z, end, half, "interpolant", tensor(1.0, -1.0)).tolist() == pytest.approx([0.5 + root, 1 - root])
    for path in ("rectified", "trigflow", "interpolant"):
        extra = tensor(5.0, 5.0)
        assert torch.allclose(on_path(z, end, tensor(0.0), path, extra), z) and torch.allclose(
            on_path(z, end, tensor(1.0), path, extra), end
        )
    u, old, x = tensor(1.0, 2.0), tensor(3.0, -1.0), tensor(0.5, 0.5)
    assert brownian_residual(u, old, x, half, "interpolant").tolist() == pytest.approx([0.5 - 0.5 + 1.5, 1 - 0.5 - 0.5])
    assert brownian_residual(u, old, x, half, "trigflow").tolist() == pytest.approx([root * (1 - 0.5 + 3), root * (2 - 0.5 - 1)])


@pytest.mark.parametrize(("steps", "value"), [(1, 2.5), (4, 2.694856), (10, 2.714081), (12, 2.715327)])
def test_the_midpoint_rule_on_growth(steps, value):
    assert midpoint(lambda x, _: x, tensor(1.0), steps).item() == pytest.approx(value, abs=1e-6)
    assert euler(lambda x, _: x, tensor(1.0), steps).item() == pytest.approx((1 + 1 / steps) ** steps)


def test_the_midpoint_rule_asks_at_the_right_times():
    """dx/dτ = 3τ²: exact would be 1; the rule sums 3(k + ½)²h³."""
    assert midpoint(lambda x, tau: torch.full_like(x, 3 * tau**2), tensor(0.0), 2).item() == pytest.approx(
        3 * (0.25**2 + 0.75**2) / 2
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"), [(1.3, 1, 1.2, 0), (1.3, -1, -1.3, -1), (0.7, 1, 0.7, 1), (0.7, -1, -0.8, 0)]
)
def test_the_clip(ratio, advantage, value, slope):
    r = tensor(ratio).requires_grad_()
    got = Clip(0.2, 0.2)(r.log()[None], tensor(advantage)[None], torch.ones(1, 1, dtype=torch.bool))
    assert got.item() == pytest.approx(value) and torch.autograd.grad(got.sum(), r)[0].item() == pytest.approx(slope)


def test_advantages_of_episodes_inside_a_stretch():
    """γ = 0.9, λ = 0.8, r = 1, V = 0.5, the state after the stretch is worth 0.5; then with an end after the first action."""
    one, half, mask = torch.ones(1, 2, dtype=D), torch.full((1, 2), 0.5, dtype=D), torch.ones(1, 2, dtype=torch.bool)
    after, ends = half.clone(), torch.zeros(1, 2, dtype=torch.bool)
    assert generalized_advantage(one, half, mask, 0.9, 0.8, after, ends)[0].tolist() == pytest.approx([1.634, 0.95])
    ended = torch.tensor([[True, False]])
    assert generalized_advantage(one, half, mask, 0.9, 0.8, after * ~ended, ended)[0].tolist() == pytest.approx([0.5, 0.95])
    # cut by a time limit in a state worth 0.7: it counts, but the trace of the next episode does not
    worth = torch.tensor([[0.7, 0.5]], dtype=D)
    assert generalized_advantage(one, half, mask, 0.9, 0.8, worth, ended)[0].tolist() == pytest.approx([0.5 + 0.63, 0.95])


def test_the_learning_rate_follows_the_kl():
    assert adapted(3e-4, 0.021, 0.01) == pytest.approx(2e-4) and adapted(3e-4, 0.004, 0.01) == pytest.approx(4.5e-4)
    assert adapted(3e-4, 0.01, 0.01) == 3e-4 and adapted(1.2e-6, 1.0, 0.01) == 1e-6 and adapted(9e-3, 0.0, 0.01) == 1e-2


def test_a_clipped_value_keeps_its_gradient():
    """Old value 0, target 1, band ±0.2: beyond the band on the far side of the target the plain error counts, with its slope."""
    rollout = Rollout(
        Prompts([], [], []), None, None, torch.ones(2, 1, dtype=torch.bool), torch.arange(2), Evaluation(value=torch.zeros(2, 1))
    )
    credit = Credit(*torch.zeros(3, 2, 1), target=torch.ones(2, 1))
    value = torch.tensor([[-0.5], [0.5]], requires_grad=True)
    loss = ValueLoss(2.0, 0.2)(Evaluation(value=value), rollout, credit)
    assert loss.flatten().tolist() == pytest.approx([2.25, 0.64])  # (−0.5 − 1)², (0.2 − 1)²
    (slope,) = torch.autograd.grad(loss.sum(), value)
    assert slope.flatten().tolist() == pytest.approx([-3.0, 0.0])


def build(seed: int = 0, **options):
    torch.manual_seed(seed)
    return PolicyFlow(net=Net((32, 32)), embedding=16, steps=5, **options).build(seed, Space(4, 2, (-5.0, -5.0), (5.0, 5.0)))


def acted(policy, rows: int = 64, steps: int = 3):
    """A stretch of random states, as the arena records it."""
    own = torch.Generator().manual_seed(5)
    policy.begin(0)
    draws, records = policy.draws(0, steps, rows), []
    for t in range(steps):
        observation = torch.randn(rows, 4, generator=own)
        with torch.no_grad():
            records.append(policy.act(observation, {k: v[t] for k, v in draws.items()})[1] | {"observation": observation})
    record = {name: torch.stack([each[name] for each in records], 1) for name in records[0]}
    index = torch.arange(rows)[:, None] * steps + torch.arange(steps)
    trace = policy.trace(record | {"index": index})
    mask = torch.ones(rows, steps, dtype=torch.bool)
    return Rollout(Prompts([], [], []), None, trace, mask, torch.arange(rows), trace.said)


@pytest.mark.parametrize("z", [1.0, 0.3, 0.0])
def test_at_the_start_the_policy_is_its_noise(z):
    """Zero last layer: Φ(z) = z exactly, η = -x, and L_B/w_b = E|z|²/d = ζ²; an action has the variance ζ² + σ²."""
    policy = build(z=z)
    rollout = acted(policy, 4000, 1)
    record = rollout.trace.record
    assert torch.equal(record["end"], record["z"])
    policy.visit(0, 0)
    said = policy.evaluate(rollout)
    assert torch.allclose(said.residual, -record["z"], atol=1e-6)
    assert said.residual.square().mean().item() == pytest.approx(z**2, abs=0.05 * z**2)
    assert (record["end"] + record["xi"]).var().item() == pytest.approx(z**2 + 1, rel=0.05)
    assert said.entropy.unique().item() == pytest.approx(2 * 0.5 * math.log(2 * math.pi * math.e), rel=1e-6)
    assert noise_entropy(torch.full((2,), 2.0)).item() == pytest.approx(said.entropy[0, 0].item() + 2 * math.log(2), rel=1e-6)


def shaken(policy, size: float = 0.3):
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(size * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return policy


@pytest.mark.parametrize("kind", ["one_time", "grid_mean", "exact"])
@pytest.mark.parametrize("path", ["rectified", "trigflow", "interpolant"])
def test_the_first_visit_has_ratio_one(kind, path):
    policy = shaken(build(likelihood=Likelihood(kind, path)))
    rollout = acted(policy)
    for epoch in range(2):
        policy.visit(0, epoch)
        said = policy.evaluate(rollout)
        assert torch.equal(said.logp, rollout.old.logp) and said.kl.abs().max() <= 1e-6 and not said.mean.any()
    before = said.residual
    shaken(policy, 0.02)
    moved = policy.evaluate(rollout)
    assert (moved.logp - rollout.old.logp).abs().max() > 1e-3 and moved.kl.mean() > 0
    assert before.shape[-1] == (8 if kind == "grid_mean" else 2)


def test_replay_does_not_depend_on_the_cut():
    """Times belong to an action and a visit, so any rows in any order give what all of them give; another pass has others."""
    policy = shaken(build())
    rollout = acted(policy)
    shaken(policy, 0.02)
    policy.visit(3, 1)
    whole, rows = policy.evaluate(rollout), torch.tensor([7, 3, 60])
    part = policy.evaluate(rollout.at(rows, slice(1, 2)))
    torch.testing.assert_close(part.logp, whole.logp[rows][:, 1:2], atol=1e-5, rtol=1e-5)
    policy.visit(3, 2)
    assert (policy.evaluate(rollout).logp - whole.logp).abs().max() > 1e-3


def test_the_exact_likelihood_is_the_change_of_the_endpoint():
    policy = shaken(build(likelihood=Likelihood("exact", exact_steps=5)))
    rollout = acted(policy)
    shaken(policy, 0.05)
    policy.visit(0, 0)
    record = rollout.trace.record
    with torch.no_grad():
        wanted = policy.endpoint(record["observation"], record["z"]) - record["end"]
    assert torch.allclose(policy.evaluate(rollout).mean, wanted, atol=1e-5) and wanted.abs().max() > 1e-2


def test_times_of_the_grid_are_evenly_likely_and_stratified():
    times = draw_times(Likelihood("grid_mean", draws=3), 4, 9000, 2, seed=0).tau
    assert set((times * 8).round().unique().tolist()) == set(range(9))
    share = torch.bincount((times * 8).round().long().flatten(), minlength=9) / times.numel()
    assert (share - 1 / 9).abs().max() < 0.01
    assert (times[:, 0] <= 3 / 8).all() and (times[:, 2] >= 5 / 8).all()
    even = draw_times(Likelihood(grid=False), 4, 9000, 2, seed=0).tau
    assert len(even.unique()) > 8000 and even.mean().item() == pytest.approx(0.5, abs=0.02)


def test_features_of_the_grid_are_those_of_its_times():
    policy = build()
    time = policy.model.actor.time
    tau = torch.tensor([[0.0], [0.3], [1.0]])
    assert torch.allclose(Times(tau, None, 10).features(time, 0), time(tau[:, 0]), atol=1e-6)


def test_the_objective_adds_the_regularizer_with_its_weight():
    objective = Algorithm(brownian=0.25, entropy=0.1).objective()
    names = [getattr(term, "__name__", "") for _, term in objective.regularizers]
    assert names == ["entropy", "brownian"] and [c for c, _ in objective.regularizers] == [-0.1, 0.25]
    assert "residual" not in Algorithm(brownian=0.0).objective().needs
    fading = Algorithm(entropy=0.0, brownian_fade=100).objective().regularizers
    assert [(c, term.__name__, term.steps) for c, term in fading] == [(0.25, "brownian", 100)]
    rollout = Rollout(Prompts([], [], []), None, None, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1), Evaluation())
    eta = torch.tensor([[[-0.25, 2.75]]])
    assert objective.regularizers[1][1](Evaluation(residual=eta), rollout, torch.zeros(1, 1)).item() == pytest.approx(3.8125)
