"""DPPO: the chain's steps, the clip that grows along it and the policy by hand, and what holds on the loop."""

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

from flows.chain_dppo import DPPO as Algorithm
from flows.chain_dppo import ChainClip
from flows.control.baselines import DPPO
from flows.control.chain import EulerSteps, cosine_steps
from flows.control.recipe import Net
from studio.core.surrogate import Clip
from studio.errors import NeedsError
from studio.recipe import load_recipe
from studio.types import EVERY, Evaluation, Prompts, Rollout

SMALL = Net((16,), "tanh")
KINDS = {
    "flow": DPPO(SMALL, kind="flow", steps=4, last=1.0, truncate=None, scale=2.0),
    "ddpm": DPPO(SMALL, kind="ddpm", steps=5, last=1.0),
    "one step": DPPO(SMALL, kind="flow", steps=1, last=1.0),
}
on_every_kind = pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
OBJECTIVE = Algorithm().objective()


def tensor(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def seen(clip: ChainClip, sigma: Tensor):
    """The surrogate of decisions at these places of their chains."""
    rollout = Rollout(
        Prompts([], [], []), None, None, torch.ones(sigma.shape, dtype=torch.bool), torch.zeros(len(sigma)), Evaluation()
    )
    return clip.seen(Evaluation(sigma=sigma), rollout)


# the objective


def test_the_clip_grows_along_the_chain():
    """0.001 + 0.199·(e^{3p} - 1)/(e³ - 1) at p = 0, ¼, ½, ¾, 1; the advantage fades by 0.99 per step before the last."""
    placed = seen(ChainClip(0.2, 0.001), torch.linspace(1, 0, 5, dtype=torch.float64)[None])
    assert placed.reach[0].tolist() == pytest.approx([0.001, 0.01265, 0.0373, 0.0895, 0.2], abs=5e-5)
    assert placed.share[0].tolist() == pytest.approx([0.99**4, 0.99**3, 0.99**2, 0.99, 1.0], abs=1e-12)
    only = seen(ChainClip(0.2, 0.001), tensor([0.0]))
    assert (only.reach.item(), only.share.item()) == (pytest.approx(0.2), 1.0)


def test_the_surrogate_by_hand():
    """Two steps with ranges 0.1 and 0.2, the first with 0.9 of the advantage; r = 1.5 or 0.5."""
    placed = seen(ChainClip(0.2, 0.1, fade=0.9), tensor([1.0, 0.0]).expand(4, 2))
    log_ratio = torch.stack([tensor(r, r).log() for r in (1.5, 0.5, 1.5, 0.5)]).requires_grad_()
    advantage = tensor([1, 1], [1, 1], [-1, -1], [-1, -1])
    gain = placed(log_ratio, advantage, torch.ones(4, 2, dtype=torch.bool))
    wanted = tensor([0.9 * 1.1, 1.2], [0.45, 0.5], [-1.35, -1.5], [-0.9 * 0.9, -0.8])
    torch.testing.assert_close(gain, wanted)
    (slope,) = torch.autograd.grad(gain.sum(), log_ratio)
    torch.testing.assert_close(slope, tensor([0, 0], [0.45, 0.5], [-1.35, -1.5], [0, 0]))
    above, below = placed.clipped(log_ratio, advantage)
    assert above.tolist() == [[True, True], [False, False], [False, False], [False, False]]
    assert below.tolist() == [[False, False], [False, False], [False, False], [True, True]]


def test_one_range_for_all_steps_is_ppo():
    own = torch.Generator().manual_seed(0)
    log_ratio, advantage = torch.randn(6, 4, generator=own) / 4, torch.randn(6, 4, generator=own)
    mask = torch.ones(6, 4, dtype=torch.bool)
    gain = seen(ChainClip(0.1, 0.1, fade=1.0), torch.linspace(1, 0, 4).expand(6, 4))(log_ratio, advantage, mask)
    torch.testing.assert_close(gain, Clip(0.1, 0.1)(log_ratio, advantage, mask))


# the steps


def test_a_flow_step_by_hand():
    """K = 1: from 0 with u = 0.5 to 0.6, σ = 0.2: -½·0.5² - ln 0.2 - ½·ln 2π. K = 4 goes a quarter of the way; numbers add up."""
    one = EulerSteps(tensor([0.2]))
    mean = one.mean(tensor(0.0), tensor(0.5), 0)
    assert one.logp(tensor(0.6) - mean, one.std[0]).item() == pytest.approx(0.565499, abs=1e-6)
    four = EulerSteps(torch.full((4, 1), 0.2, dtype=torch.float64))
    assert four.mean(tensor(1.0), tensor(0.5), EVERY).tolist() == [1.125]
    assert four.logp(tensor(0.1, -0.1), four.std[0]).item() == pytest.approx(2 * 0.565499, abs=2e-6)


def test_the_cosine_schedule_by_hand():
    """K = 2: ᾱ₁ = cos²(π/2·0.508/1.008)/cos²(π/2·0.008/1.008); the last β would be 1 and is 0.999."""
    steps = cosine_steps(2, 0.1)
    first = math.cos(math.pi / 2 * 0.508 / 1.008) ** 2 / math.cos(math.pi / 2 * 0.008 / 1.008) ** 2
    assert steps.kept.square().flatten().tolist() == pytest.approx([first * 0.001, first], abs=1e-12)
    posterior = math.sqrt(0.999 * (1 - first) / (1 - first * 0.001))
    assert steps.std.flatten().tolist() == pytest.approx([posterior, 0.1], abs=1e-12)  # the last step adds nothing but the floor


@pytest.mark.parametrize("count", [2, 5, 20])
def test_posterior_steps_lead_from_one_noise_level_to_the_next(count):
    """x = √ᾱ·x₀ + √(1-ᾱ)·ε; with the true ε, x' has mean √ᾱ'·x₀ + √(1-ᾱ'-σ²)·ε: q(x'|x₀) is as it should be, and the end is x₀."""
    steps, action, noise = cosine_steps(count, 0.0), tensor(0.3, -0.8), tensor(-0.4, 1.7)
    x = steps.kept * action + steps.hidden * noise
    later = torch.cat([steps.kept[1:].square(), torch.ones(1, 1, dtype=torch.float64)])
    wanted = later.sqrt() * action + (1 - later - steps.std.square()).clamp(min=0).sqrt() * noise
    torch.testing.assert_close(steps.mean(x, noise.expand(count, 2), EVERY), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(wanted[-1], action)


def test_the_guess_of_the_action_is_clipped():
    """A guess beyond ±1 counts as ±1: mean = pull·(1, -1) + stay·x, and the last step ends there."""
    steps = cosine_steps(3, 0.1)
    x = tensor(1.5, -2.0)
    for k in range(3):
        wanted = steps.pull[k] * tensor(1.0, -1.0) + steps.stay[k] * x
        torch.testing.assert_close(steps.mean(x, torch.zeros(2, dtype=torch.float64), k), wanted)
    torch.testing.assert_close(wanted, tensor(1.0, -1.0), rtol=0, atol=1e-9)


def test_a_diffusion_step_averages_bounded_densities():
    """σ = 0.1: -ln 0.1 - ½·ln 2π = 1.383647 at the mean; ten deviations away -48.6, held at -5. σ = 0.01 is held at 2."""
    steps, std = cosine_steps(3, 0.1), tensor(0.1, 0.1)
    assert steps.logp(tensor(0.0, 1.0), std).item() == pytest.approx((1.383647 - 5) / 2, abs=1e-6)
    assert steps.logp(tensor(0.0, 0.1), std).item() == pytest.approx(1.383647 - 0.25, abs=1e-6)
    assert steps.logp(tensor(0.0, 0.0), std / 10).item() == 2


# the policy


def test_actions_of_a_flow_by_hand():
    """u = (4, -8) for a quarter of the way four times, σ = 0.5: x = start + (4, -8) + 0.5·Σε, the action is twice that."""
    policy = constant(built(DPPO(SMALL, steps=4, noise=0.5, scale=2.0)), (4.0, -8.0))
    draw = {"start": torch.tensor([[1.0, 1.0]]), "noise": torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]]])}
    action, record = policy.act(torch.zeros(1, 4), draw)
    assert action.tolist() == [[11.0, -11.0]]
    assert record["chain"][0].tolist() == [[1, 1], [2.5, -1], [4, -3], [4.5, -5], [5.5, -5.5]]
    for mode, wanted in {"stochastic": [11.0, -11.0], "noiseless": [10.0, -14.0], "deterministic": [8.0, -16.0]}.items():
        assert policy.decide(torch.zeros(1, 4), draw, mode).tolist() == [wanted]


def test_a_moved_step_by_hand():
    """u moves by (0.04, -0.03), every mean by a quarter: KL 1.5625e-4/(2·0.05²) = 0.03125, log ratio ε·(0.2, -0.15) - KL."""
    policy = constant(built(DPPO(SMALL, steps=4, truncate=None)), (0.0, 0.0))
    flat, _ = rows_apart(OBJECTIVE, acted(policy))
    new = constant(policy, (0.04, -0.03)).evaluate(flat)
    torch.testing.assert_close(new.kl, torch.full((12, 4), 0.03125), rtol=1e-4, atol=0)
    noise = policy.draws(0, 3, 4)["noise"].transpose(0, 1).flatten(0, 1)
    wanted = (noise * torch.tensor([0.2, -0.15])).sum(-1) - 0.03125
    torch.testing.assert_close(OBJECTIVE.ratio(new, flat), wanted, rtol=0, atol=1e-4)


def test_a_diffusion_ends_within_its_bounds_without_noise():
    policy = built(DPPO(SMALL, kind="ddpm", steps=6, last=3.0, scale=2.0))
    draw = {name: value[0] for name, value in policy.draws(0, 1, 200).items()}
    action, ends = policy.act(torch.zeros(200, 4), draw)[0], policy.decide(torch.zeros(200, 4), draw, "noiseless")
    assert 1.9 < ends.abs().max() <= 2 + 1e-5 and action.abs().max() > 2.2  # the action itself is not clipped


def test_noise_is_cut_at_three_deviations():
    draws, free = (built(DPPO(steps=4, truncate=truncate)).draws(0, 10, 400) for truncate in (3.0, None))
    assert draws["noise"].abs().max() == 3 and free["noise"].abs().max() > 3.2
    torch.testing.assert_close(draws["noise"], free["noise"].clamp(-3, 3))
    assert torch.equal(draws["start"], free["start"]) and draws["start"].abs().max() > 3.2


def test_parts_say_where_they_stand():
    for how, places in ((KINDS["flow"], [1, 2 / 3, 1 / 3, 0]), (KINDS["ddpm"], [1, 0.75, 0.5, 0.25, 0]), (KINDS["one step"], [0])):
        policy = built(how)
        flat, credit = rows_apart(OBJECTIVE, acted(policy))
        new = policy.evaluate(flat)
        for row in new.sigma:
            assert row.tolist() == pytest.approx(places)
        torch.testing.assert_close(credit.weight, torch.full((12, len(places)), 1 / 12 / len(places)))


@on_every_kind
def test_the_first_replay_has_ratio_one(how):
    assert_first_replay(built(how), OBJECTIVE)


@on_every_kind
def test_replay_does_not_depend_on_the_cut(how):
    assert_any_rows(built(how), OBJECTIVE, 1e-4)  # σ = 0.05 makes much of the rounding of a velocity


@on_every_kind
def test_good_actions_become_likelier_and_bad_ones_less(how):
    assert_pulls(built(how), OBJECTIVE)


@on_every_kind
def test_processes_share_the_draws(how):
    assert_shares(how)


@pytest.mark.parametrize("name", ["dppo", "dppo-ddpm"])
def test_the_recipe_trains(name, tmp_path):
    assert_trains(name, tmp_path)


def test_plain_ppo_trains_a_chain_as_well(tmp_path):
    assert_trains("dppo", tmp_path, "algorithm=ppo")


@pytest.mark.parametrize(
    ("recipe", "algorithm", "missing"),
    [("dppo", "fpo", "fit"), ("reinflow", "dppo", "sigma"), ("fpo", "ppo", "logp"), ("policyflow", "fpo++", "fit")],
)
def test_what_a_policy_cannot_say_is_refused(recipe, algorithm, missing):
    with pytest.raises(NeedsError, match=f"algorithm '{algorithm.replace('+', '.')}' needs .*that provides {missing}"):
        load_recipe(f"control/multigoal-{recipe}", [f"algorithm={algorithm}"])[0].check()
