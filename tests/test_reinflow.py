"""ReinFlow: the chain's density, its learned noise and the policy by hand, and what holds on the loop."""

import math

import pytest
import torch
from stretches import acted, assert_any_rows, assert_first_replay, assert_pulls, assert_shares, assert_trains, built, rows_apart
from torch import Tensor

from flows.control.baselines import ReinFlow
from flows.control.recipe import Net
from flows.control.reinflow import chain_entropy, chain_logp, highest, noise_std
from flows.reinflow import ReinFlow as Algorithm
from studio.core import policy_loss
from studio.errors import ConfigError
from studio.recipe import load_recipe

SMALL = ReinFlow(Net((16,), "tanh"), last=1.0)
KINDS = {"published": SMALL, "one step without clip": ReinFlow(Net((16,), "tanh"), last=1.0, steps=1, clip=None, scale=2.0)}
on_every_kind = pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
OBJECTIVE = Algorithm().objective()
HALF_LOG = 0.918939  # ½·ln 2π


def tensor(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_density_of_a_chain_by_hand():
    """x_0 = 0, one step with u = 0.5, σ = 0.2 to 0.6: -0.918939 + 0.565499, over 2 normals. Two numbers, two steps: over 6."""
    one = chain_logp(tensor(0.0), tensor([0.1]), tensor([0.2]))
    assert 2 * one.item() + HALF_LOG == pytest.approx(0.565499, abs=1e-6)
    start, away = tensor(1.0, 2.0), tensor([0.1, 0.1], [-0.1, 0.0])
    wanted = -2.5 - 2 * HALF_LOG + 3 * 0.565499 + (0.565499 + 0.125)
    assert chain_logp(start, away, torch.full((2, 2), 0.2, dtype=torch.float64)).item() == pytest.approx(wanted / 6, abs=1e-6)


def test_the_entropy_of_a_chain_by_hand():
    """½·ln(2πe) = 1.418939 for the start, ln 0.2 = -1.609438 more for the step: (1.418939 - 0.190500)/2."""
    assert chain_entropy(tensor([0.2])).item() == pytest.approx(0.614220, abs=1e-6)
    # two numbers, three steps: the start and the steps, per number of the chain
    assert chain_entropy(torch.ones(3, 2, dtype=torch.float64)).item() == pytest.approx(1.418939, abs=1e-6)


def test_noise_lies_between_its_bounds():
    """The logarithm of the variance is interpolated: a quarter of the way from 0.1 to 0.4 is 0.1·4^¼."""
    found = noise_std(tensor(0.0, 0.25, 1.0), 0.1, tensor(0.4)[0])
    assert found.tolist() == pytest.approx([0.1, 0.1 * math.sqrt(2), 0.4], abs=1e-12)


def test_the_largest_noise_is_held_and_then_falls():
    """From 0.24 to 0.3·0.1 + 0.7·0.24 = 0.198 by half a cosine."""
    at = {step: highest(step, 0.1, 0.24, hold=35, decay=65) for step in (0, 35, 67.5, 100, 400)}
    assert at == pytest.approx({0: 0.24, 35: 0.24, 67.5: 0.219, 100: 0.198, 400: 0.198})
    assert highest(10**6, 0.1, 0.24, hold=0, decay=0) == 0.24


def test_an_iteration_sets_the_largest_noise_and_the_weights_keep_it(tmp_path):
    policy = built(ReinFlow(Net((16,)), hold=1, decay=2))
    layer = policy.actor.noise[-1]
    with torch.no_grad():
        layer.bias.fill_(50.0)  # as much noise as there may be
    for step, wanted in ((0, 0.24), (2, 0.219), (3, 0.198)):
        policy.begin(step)
        torch.testing.assert_close(policy.std(torch.zeros(1, 4)), torch.full((1, 4, 2), wanted))
    policy.save(tmp_path)
    other = built(ReinFlow(Net((16,)), hold=1, decay=2), seed=1)
    other.load(tmp_path)
    torch.testing.assert_close(other.std(torch.zeros(1, 4)), torch.full((1, 4, 2), 0.198))


def constant(policy, velocity: tuple[float, float], share: float):
    """The networks say this everywhere."""
    with torch.no_grad():
        for layer, value in ((policy.actor.velocity.trunk[-1], velocity), (policy.actor.noise[-1], (share, share))):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(value))
    return policy


def test_actions_by_hand():
    """u/K = (0.5, -0.25), means within ±1, σ the geometric mean of 0.1 and 0.4: 0.2; the action is 5·x within ±5."""
    policy = constant(built(ReinFlow(Net((16,)), steps=2, noise=(0.1, 0.4), scale=5.0)), (1.0, -0.5), 0.0)
    draw = {"start": torch.tensor([[0.25, 2.0]]), "noise": torch.tensor([[[1.0, 1.0], [2.0, -2.0]]])}
    action, record = policy.act(torch.zeros(1, 4), draw)
    torch.testing.assert_close(record["mean"][0], torch.tensor([[0.75, 1.0], [1.0, 0.95]]))
    torch.testing.assert_close(record["chain"][0], torch.tensor([[0.25, 2.0], [0.95, 1.2], [1.4, 0.55]]))
    torch.testing.assert_close(action, torch.tensor([[5.0, 2.75]]))
    for mode, wanted in {"stochastic": [5.0, 2.75], "noiseless": [5.0, 3.75], "deterministic": [5.0, -2.5]}.items():
        torch.testing.assert_close(policy.decide(torch.zeros(1, 4), draw, mode), torch.tensor([wanted]))


def test_the_noise_network_does_not_act_without_noise():
    policy = built(SMALL)
    draw = {name: value[0] for name, value in policy.draws(0, 1, 6).items()}
    before = {mode: policy.decide(torch.ones(6, 4), draw, mode) for mode in ("stochastic", "noiseless")}
    with torch.no_grad():
        policy.actor.noise[-1].bias.add_(1.0)
    assert torch.equal(policy.decide(torch.ones(6, 4), draw, "noiseless"), before["noiseless"])
    assert not torch.equal(policy.decide(torch.ones(6, 4), draw, "stochastic"), before["stochastic"])


def test_times_are_the_same_while_sampling_and_in_the_replay():
    """The velocity is asked at k/K, and the noise as well."""
    policy, asked = built(SMALL), []
    policy.actor.velocity.time.register_forward_hook(lambda module, given, result: asked.append(given[0].flatten().tolist()))
    rollout = acted(policy)
    policy.evaluate(rollout)
    assert len(asked) >= 4 and all(times == [0, 0.25, 0.5, 0.75] for times in asked)


def test_time_features_learn_from_the_velocity_alone():
    policy = built(SMALL)
    policy.std(torch.ones(3, 4)).sum().backward()
    assert all(p.grad is None for p in policy.actor.velocity.parameters())
    assert all(p.grad.any() for p in policy.actor.noise.parameters())


def test_a_density_out_of_bounds_has_no_gradient():
    policy = built(SMALL)
    rollout = acted(policy)
    rollout.trace.record["chain"][0, 0] += 9.0
    said = policy.evaluate(rollout).logp
    assert said[0, 0] == -1 and said[1:].abs().max() < 1
    parameters = list(policy.model.actor.parameters())
    assert not any(
        g.any() for g in torch.autograd.grad(said[0, 0], parameters, retain_graph=True, allow_unused=True) if g is not None
    )
    assert any(g.any() for g in torch.autograd.grad(said[1, 0], parameters, allow_unused=True) if g is not None)


def test_a_moved_chain_by_hand():
    """Two steps of σ = 0.2 whose means move by (0.02, -0.01): KL 2·5e-4/(2·0.04), and ℓ = [Σ_k ε·(0.1, -0.05) - KL]/6."""
    policy = constant(built(ReinFlow(Net((16,)), steps=2, noise=(0.1, 0.4), clip=None)), (0.0, 0.0), 0.0)
    flat, _ = rows_apart(OBJECTIVE, acted(policy))
    new = constant(policy, (0.04, -0.02), 0.0).evaluate(flat)
    torch.testing.assert_close(new.kl, torch.full((12, 1), 0.0125), rtol=1e-3, atol=0)
    noise = policy.draws(0, 3, 4)["noise"].transpose(0, 1).flatten(0, 1)
    wanted = ((noise * torch.tensor([0.1, -0.05])).sum((-2, -1)) - 0.0125) / 6
    torch.testing.assert_close(OBJECTIVE.ratio(new, flat)[:, 0], wanted, rtol=0, atol=1e-5)


def test_the_bonus_raises_the_noise():
    policy = built(SMALL)
    flat, credit = rows_apart(OBJECTIVE, acted(policy))
    credit.advantage.zero_()
    before = policy.std(flat.trace.record["observation"]).mean()
    loss, _ = policy_loss(OBJECTIVE, policy.evaluate(flat), flat, credit)
    loss.backward()
    with torch.no_grad():
        for p in policy.actor.noise.parameters():
            p.sub_(p.grad)
    assert policy.std(flat.trace.record["observation"]).mean() > before + 1e-5


def test_bounds_of_the_noise_are_in_order():
    with pytest.raises(ConfigError, match="expected σ_min below σ_max"):
        load_recipe("control/multigoal-reinflow", ["policy.noise=[0.3, 0.2]"])


@on_every_kind
def test_the_first_replay_has_ratio_one(how):
    assert_first_replay(built(how), OBJECTIVE)


@on_every_kind
def test_replay_does_not_depend_on_the_cut(how):
    assert_any_rows(built(how), OBJECTIVE)


@on_every_kind
def test_good_actions_become_likelier_and_bad_ones_less(how):
    assert_pulls(built(how), OBJECTIVE)


@on_every_kind
def test_processes_share_the_draws(how):
    assert_shares(how)


def test_the_recipe_trains(tmp_path):
    assert_trains("reinflow", tmp_path)
