"""DiffusionNFT, AWM, Flow-DPPO and DDPO by hand: image-flow-rl.md, d3 to d5."""

import math
from dataclasses import replace

import pytest
import torch

from flows.awm import AWM, MatchingRatio
from flows.ddpo import DDPO, PromptHistory
from flows.dppo import DivergenceMask, FlowDPPO
from flows.nft import DiffusionNFT, ForwardProcess
from studio.core import assign_credit, policy_loss
from studio.types import Evaluation, Prompts, Rollout


def rollout_of(old: Evaluation, rewards=None, keys=None, group=None) -> Rollout:
    shape = next(v for v in (old.fit, old.sigma, old.std, old.logp) if v is not None).shape
    keys = keys or ["p"] * shape[0]
    return Rollout(
        Prompts(keys, keys, [{}] * shape[0]),
        None,
        None,
        torch.ones(shape, dtype=torch.bool),
        torch.zeros(shape[0], dtype=torch.int64) if group is None else group,
        old,
        reward=rewards,
    )


def points(now: float, before: float, target: float, sigma: float = 0.5):
    """One row, one decision, two equal dimensions."""
    full = lambda v: torch.full((1, 1, 2), v, dtype=torch.float64)  # noqa: E731
    level = torch.full((1, 1), sigma, dtype=torch.float64)
    velocity = full(now).requires_grad_()
    return Evaluation(velocity=velocity), rollout_of(Evaluation(velocity=full(before), target=full(target), sigma=level)), velocity


def test_nft_by_hand():
    """x0 = 1, e = -1, t = .5: u = -2; q = .8 from A = 3; v+ = -1.54, v- = -1.46; 50·(.8·.23 + .2·.27) = 11.9."""
    new, rollout, _ = points(now=-1.9, before=-1.5, target=-2.0)
    surrogate = ForwardProcess(beta=0.1).seen(new, rollout)
    advantage = torch.full((1, 1), 3.0, dtype=torch.float64)
    assert ForwardProcess().share(advantage).item() == pytest.approx(0.8)
    assert -surrogate(torch.zeros(1, 1), advantage, rollout.mask).item() == pytest.approx(11.9, abs=1e-9)


@pytest.mark.parametrize(("advantage", "unweighted"), [(0.0, 0.0), (3.0, 0.06)])
def test_nft_gradient_at_the_old_policy(advantage, unweighted):
    """Without the weights W the gradient is 2β(2q-1)(v_old - u) per velocity; W multiplies it by c/β·σ²/(σ·|v_old - u|)."""
    new, rollout, velocity = points(now=-1.5, before=-1.5, target=-2.0)
    gain = ForwardProcess(beta=0.1).seen(new, rollout)(
        torch.zeros(1, 1), torch.full((1, 1), advantage, dtype=torch.float64), rollout.mask
    )
    (-gain).sum().backward()
    weight = 5 / 0.1 * 0.5**2 / (0.5 * 0.5)
    assert velocity.grad.sum().item() == pytest.approx(weight * unweighted, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "advantage", "share"),
    [
        ("both", 9.0, 1.0),
        ("both", -2.5, 0.25),
        ("positive", -4.0, 0.5),
        ("negative", 4.0, 0.5),
        ("one", 0.1, 1.0),
        ("one", -0.1, 0.0),
        ("sign", -0.1, 0.0),
        ("sign", 0.0, 0.5),
    ],
)
def test_nft_shares(kind, advantage, share):
    assert ForwardProcess(kind=kind).share(torch.tensor([[advantage]])).item() == pytest.approx(share)


def test_nft_moves_toward_good_samples_and_away_from_bad_ones():
    """Two samples of one prompt: the loss of the batch falls along the direction to the good one's velocity."""
    velocity = torch.zeros(2, 1, 4, requires_grad=True)
    target = torch.stack([torch.ones(1, 4), -torch.ones(1, 4)])
    old = Evaluation(velocity=torch.zeros(2, 1, 4), target=target, sigma=torch.full((2, 1), 0.5))
    rollout = rollout_of(old, rewards=torch.tensor([1.0, 0.0]))
    objective = DiffusionNFT(kl=0.0).objective()
    loss, _ = policy_loss(objective, Evaluation(velocity=velocity), rollout, assign_credit(objective, rollout))
    loss.backward()
    # the good sample pulls towards +1, the bad one pushes away from -1: both gradients are negative
    assert (velocity.grad < 0).all()


def test_awm_ratio_is_the_difference_of_matching_errors():
    sigma = torch.full((1, 2), 0.5)
    rollout = rollout_of(Evaluation(fit=torch.tensor([[0.3, 0.3]]), sigma=sigma))
    new = Evaluation(fit=torch.tensor([[0.2, 0.3]]))
    torch.testing.assert_close(MatchingRatio("none")(new, rollout), torch.tensor([[0.1, 0.0]]))
    bent = MatchingRatio("ghuber", 0.25)(new, rollout)
    expected = 0.5 / 0.25 * (0.3**0.25 - 0.2**0.25)
    assert bent[0, 0].item() == pytest.approx(expected, rel=1e-5) and bent[0, 1] == 0
    torch.testing.assert_close(MatchingRatio("ghuber", 1.0)(new, rollout), torch.tensor([[0.05, 0.0]]))  # σ times the plain one


def test_awm_clips_beyond_its_bound():
    old = Evaluation(fit=torch.full((2, 1), 0.5), sigma=torch.ones(2, 1), velocity=torch.zeros(2, 1, 3))
    rollout = rollout_of(old, rewards=torch.tensor([1.0, 0.0]))
    fit = torch.tensor([[0.4], [0.5]], requires_grad=True)  # the good sample fits better already, by more than the clip
    objective = AWM(weight="none", clip=0.05).objective()
    loss, _ = policy_loss(objective, Evaluation(fit=fit), rollout, assign_credit(objective, rollout))
    loss.backward()
    assert fit.grad[0] == 0 and fit.grad[1] < 0  # a worse fit of the bad sample still lowers the loss


def steps(mean: float, log_ratio: float, std: float = 0.5):
    old = Evaluation(mean=torch.zeros(1, 1, 4), std=torch.full((1, 1), std), logp=torch.zeros(1, 1))
    logp = torch.full((1, 1), log_ratio, requires_grad=True)
    return Evaluation(mean=torch.full((1, 1, 4), mean), std=old.std, logp=logp), rollout_of(old), logp


@pytest.mark.parametrize(
    ("moved", "log_ratio", "advantage", "trains"),
    [
        (0.1, 1e-3, 1.0, False),  # KL = .01/(2·.25) = .02: far, and further away
        (0.1, -1e-3, 1.0, True),  # far, but coming back
        (0.1, -1e-3, -1.0, False),
        (0.1, 1e-3, -1.0, True),
        (1e-4, 1e-3, 1.0, True),  # KL = 2e-8: near
    ],
)
def test_dppo_holds_back_what_is_far_and_moves_on(moved, log_ratio, advantage, trains):
    new, rollout, logp = steps(moved, log_ratio)
    surrogate = DivergenceMask(1e-5).seen(new, rollout)
    value = surrogate(logp, torch.full((1, 1), advantage), rollout.mask)
    assert value.item() == pytest.approx(advantage * math.exp(log_ratio), rel=1e-6)
    value.sum().backward()
    assert (logp.grad != 0).item() is trains
    clipped = surrogate.clipped(logp.detach(), torch.full((1, 1), advantage))
    assert (clipped.above | clipped.below).item() is not trains


def test_dppo_limit_is_of_the_kl():
    """mean² / 2s² with mean .001 and s .5 is 2e-6: beyond 1e-6, within 1e-5."""
    new, rollout, _ = steps(1e-3, 1e-3)
    far = [DivergenceMask(limit).seen(new, rollout).far.item() for limit in (1e-6, 1e-5)]
    assert far == [True, False]
    assert FlowDPPO().objective().needs == {"logp", "mean", "std"}


def scored(rewards, keys) -> Rollout:
    count = len(rewards)
    return rollout_of(Evaluation(logp=torch.zeros(count, 2)), torch.tensor(rewards), keys)


def test_a_new_prompt_is_compared_with_the_batch():
    advantage = PromptHistory(least=4)(scored([1.0, 3.0], ["a", "b"]))
    torch.testing.assert_close(advantage, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), atol=1e-5, rtol=0)


def test_a_known_prompt_is_compared_with_its_own_past():
    history = PromptHistory(size=4, least=4)
    history.update(scored([0.0, 0.0, 10.0, 10.0], ["a", "a", "b", "b"]))
    after = history(scored([0.0, 2.0, 10.0, 12.0], ["a", "a", "b", "b"]))
    # a: 0 0 0 2, mean .5, std √.75; b the same, ten higher
    low, high = -0.5 / math.sqrt(0.75), 1.5 / math.sqrt(0.75)
    torch.testing.assert_close(after[:, 0], torch.tensor([low, high, low, high]), atol=1e-5, rtol=0)


def test_a_memory_that_can_never_hold_enough_is_refused():
    with pytest.raises(ValueError, match="least: expected at most history = 8, got 16"):
        DDPO(history=8)


def test_only_the_last_rewards_count_and_a_missing_one_never():
    history = PromptHistory(size=2, least=2)
    history.update(scored([100.0, 1.0, 3.0], ["a"] * 3))
    assert list(history.past["a"]) == [1.0, 3.0]
    rollout = scored([5.0, 7.0], ["a", "a"])
    history.update(replace(rollout, present=torch.tensor([True, False])))
    assert list(history.past["a"]) == [3.0, 5.0]


def test_history_survives_a_checkpoint():
    one = DDPO(history=3, least=2).objective()
    one.update(scored([1.0, 2.0], ["a", "a"]))
    two = DDPO(history=3, least=2).objective()
    two.load_state_dict(one.state_dict())
    batch = scored([4.0, 0.0], ["a", "c"])
    assert torch.equal(one.advantage(batch), two.advantage(batch))
    assert not torch.equal(two.advantage(batch), DDPO(history=3, least=2).objective().advantage(batch))
