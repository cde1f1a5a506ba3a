"""COPO, PF-PPO, DR-PO, PDPPO and BGPO by hand: the numbers and limits of the method notes."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from toys import TOYS, batch, rollout_of

from studio.algorithms.bgpo import BGPO, Boundary
from studio.algorithms.copo import COPO, Consistency, TwoSided, entropy_bits
from studio.algorithms.dr_po import DRPO, ScaledRewardGAE
from studio.algorithms.grpo import GRPO
from studio.algorithms.pdppo import PDPPO, PostDecision, TwoValueLoss
from studio.algorithms.pf_ppo import PFPPO, Filtered, RewardFilter, draw_weights
from studio.algorithms.ppo import PPO
from studio.core import GAE, Clip, GroupRelative, Objective, ValueLoss, assign_credit, by_decision, policy_loss
from studio.core.surrogate import Clipped
from studio.errors import ConfigError, ShapeError
from studio.types import Credit, Evaluation


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


def loss_of(objective, rollout, new):
    return policy_loss(objective, new, rollout, assign_credit(objective, rollout))[0]


def away(toy="judged", by=0.5):
    """A rollout of a toy whose critics know nothing yet, and what the policy says of it after a jump in a random direction."""
    policy = TOYS[toy]()
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if name in ("value", "post"):
                p.add_(by * torch.randn(p.shape, generator=noise))
    rollout = rollout_of(policy)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(by * torch.randn(p.shape, generator=noise))
    return rollout, policy.evaluate(rollout)


# COPO


def answered(texts, reward, group=None, **others):
    rollout = batch([[1]] * len(texts), torch.tensor(reward), group, **others)
    return replace(rollout, samples=list(texts))


SIX = answered("aaabbc", [1.0, 1, 1, 0, 0, 0])


def test_answer_entropy_and_blend_by_hand():
    assert entropy_bits([3, 2, 1]) == pytest.approx(1.459148, abs=1e-6) and entropy_bits([6]) == 0
    local, _, share = Consistency(variant="only soft").advantages(SIX)
    close(share, [0.908524] * 6)
    close(local[:1], [0.5 / (math.sqrt(0.3) + 1e-6)])  # unbiased deviation √(6/4/5)
    _, _, share = Consistency(variant="only soft").advantages(answered("aaaa", [1.0, 0, 0, 0]))
    close(share, [0.006693] * 4)


def test_the_global_reward_is_lowered_by_disagreement():
    # the other two prompts agree on .1 and .9: R_g = .264802, .1, .9
    rollout = answered("aaabbc" + "dd" + "ee", [1.0, 1, 1, 0, 0, 0, 0.1, 0.1, 0.9, 0.9], [0] * 6 + [1] * 2 + [2] * 2)
    quality = torch.tensor([0.264802, 0.1, 0.9], dtype=torch.float64)
    expected = (quality - quality.mean()) / quality.std()
    overall = Consistency(scaled=True, eps=0.0).advantages(rollout).overall
    close(overall[[0, 6, 8]], expected.tolist(), atol=3e-6)
    plain = Consistency(eps=0.0).advantages(rollout).overall
    close(plain[[0, 6, 8]], [0, -1, 1])  # means .5, .1, .9


def test_prompts_are_standardized_against_each_other():
    # R_g = .5, 1, 0 whatever the number of samples, and with gaps in the ids
    reward, group = [0.5, 0.5, 0.5, 1, 1, 0], [7, 7, 7, 2, 2, 4]
    overall = Consistency(eps=0.0).advantages(answered("abcdef", reward, group)).overall
    close(overall, [0, 0, 0, 1, 1, -1])
    close(Consistency().advantages(answered("abcdef", reward, group)).overall, [0, 0, 0, 1, 1, -1], atol=3e-6)


def test_all_different_answers_leave_one_part_in_n():
    # λH = 1 - 1/n: factors ¼ and 1 of rewards 1: R_g = ¼, 1 -> ∓1/√2
    rollout = answered("abcd" + "eeee", [1.0] * 8, [0] * 4 + [1] * 4)
    overall = Consistency(scaled=True, eps=0.0).advantages(rollout).overall
    close(overall, [-math.sqrt(0.5)] * 4 + [math.sqrt(0.5)] * 4)
    three = answered("abcd" + "eeee" + "f", [1.0] * 8 + [0.25], [0] * 4 + [1] * 4 + [2])
    first, _, alone = Consistency(scaled=True, eps=0.0).advantages(three).overall[[0, 4, 8]]
    close(first - alone, 0.0)  # ¼·1 and a single answer's own ¼


def test_answers_are_read_from_texts_or_from_rewards():
    texts = ["so #### 12 no #### 3", " #### 3 ", "x 3"]
    rollout = answered(texts, [1.0, 1.0, 1.0])
    bits = [Consistency(answer, variant="only soft").advantages(rollout).share[0] for answer in (r"#### (\d+)", r"\d+", None)]
    expected = [entropy_bits([2, 1]), 0.0, entropy_bits([1, 1, 1])]
    close(torch.stack(bits), [1 / (1 + math.exp(-5 * (h - 1))) for h in expected])
    rollout = batch([[1]] * 4, torch.tensor([0.1, 0.1 + 1e-9, 0.3, 0.3]))
    assert rollout.samples is None
    close(Consistency(variant="only soft").advantages(rollout).share, [0.5] * 4)  # two buckets: one bit
    with pytest.raises(ConfigError, match=r"COPO: expected answer as a regular expression, got '\('"):
        COPO(answer="(")


VARIANTS = {  # u of rewards [.8, .3, 0, .1] in a group with mean .3, H = 1 bit, k = 5, b = 1
    "only soft": [0.5, 0.5, 0.5, 0.5],
    "soft with zero": [0.5, 0.5, 0, 0.5],
    "soft with forced": [0.5, 0, 0.5, 0.5],
    "only zero": [1, 1, 0, 1],
    "only forced": [1, 0, 1, 1],
    "only global": [0, 0, 0, 0],
    "no global": [1, 1, 1, 1],
}


@pytest.mark.parametrize(("variant", "expected"), VARIANTS.items(), ids=VARIANTS)
def test_variants_of_the_blend(variant, expected):
    rollout = answered("abab", [0.8, 0.3, 0.0, 0.1])
    close(Consistency(variant=variant).advantages(rollout).share, expected)


def test_objectives_are_blended_not_advantages():
    # P and N of opposite signs: u·A_loc = .5·1, (1-u)·A_glob = -.5·2; beyond both bounds only the negative part has a gradient
    surrogate = TwoSided(0.2, 0.2, 3.0)
    log_ratio = torch.tensor([[math.log(1.5)]], requires_grad=True)
    up, down = 0.5, 1.0
    gate, balance = up + down, (up - down) / (up + down)
    value = gate * surrogate(log_ratio, torch.tensor([[balance]]), None)
    plain = Clip(0.2, 0.2, 3.0)
    expected = 0.5 * plain(log_ratio, torch.ones(1, 1), None) + 0.5 * plain(log_ratio, torch.full((1, 1), -2.0), None)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(value.item(), 0.5 * 1.2 - 1.5, rtol=0, atol=1e-6)
    value.sum().backward()
    assert log_ratio.grad.item() == pytest.approx(-1.5)


def test_the_whole_blend_is_the_sum_of_two_clipped_objectives():
    rollout, new = away("tokens")
    objective = COPO(variant="only soft").objective()
    credit = assign_credit(objective, rollout)
    local, overall, share = objective.advantage.advantages(rollout)
    mask, ratio, clip = rollout.mask, new.logp - rollout.old.logp, Clip(0.2, 0.2, 3.0)
    each = [u[:, None] * clip(ratio, a[:, None].expand(16, 4).float(), mask) for u, a in ((share, local), (1 - share, overall))]
    expected = -((each[0] + each[1]) / 64).sum()
    loss, _ = policy_loss(objective, new, rollout, credit)
    torch.testing.assert_close(loss.double(), expected.double(), atol=1e-6, rtol=1e-5)


def test_blended_clipping_is_reported():
    far = torch.tensor([[2.0, -2.0, 2.0, -2.0, 2.0, -2.0]])
    said = TwoSided(0.2, 0.2, 3.0).clipped(far, torch.tensor([[1.0, 1.0, -1.0, -1.0, 0.3, 0.3]]))
    assert said.above.tolist() == [[True, False, True, False, True, False]]  # e² is beyond the cap of 3 too
    assert said.below.tolist() == [[False, False, False, True, False, False]]


def test_copo_without_the_global_part_is_grpo():
    rollout, new = away("tokens")
    ours = COPO(variant="no global", cap=None).objective()
    torch.testing.assert_close(loss_of(ours, rollout, new), loss_of(GRPO(kl=0.0, eps=1e-6).objective(), rollout, new))


def test_a_group_that_agrees_has_a_signal_from_the_other_groups():
    rollout = answered("aaaabbbb", [1.0] * 4 + [0.0] * 4, [0] * 4 + [1] * 4)
    objective = COPO().objective()
    assert (GroupRelative()(rollout) == 0).all()
    logp = torch.zeros(8, 1, requires_grad=True)
    policy_loss(objective, Evaluation(logp=logp), rollout, assign_credit(objective, rollout))[0].backward()
    # A_glob = ±1/√2, u(0 bits) = .006693 and 0 where the reward is 0
    close(logp.grad[:, 0], [-0.993307 * math.sqrt(0.5) / 8] * 4 + [math.sqrt(0.5) / 8] * 4)
    none = COPO(variant="no global").objective()
    credit = assign_credit(none, rollout)
    close(credit.weight.sum(), 1.0)  # rows without credit keep their place
    assert (credit.gate < 1e-20).all() and loss_of(none, rollout, Evaluation(logp=torch.full((8, 1), 0.3))).abs() < 1e-20


def test_missing_rewards_are_no_answers():
    present = torch.tensor([True] * 6 + [False])
    rollout = answered("aaabbcz", [1.0, 1, 1, 0, 0, 0, math.nan], present=present)
    close(Consistency(variant="only soft").advantages(rollout).share[:6], [0.908524] * 6)


# PF-PPO

SCORES = [3.0, 1, 2, 0, 5]


def said(seed):
    return Evaluation(logp=-torch.rand(5, 1, generator=torch.Generator().manual_seed(seed)))


def kept(rollout, **settings):
    return RewardFilter(**settings).times(rollout).nonzero()[:, 0].tolist()


def test_filters_by_hand():
    rollout = batch([[1]] * 5, torch.tensor(SCORES))
    assert kept(rollout, keep="BoN") == [4] and kept(rollout, keep="BW") == [3, 4]
    others = Counter()
    for seed in range(400):
        pair = kept(replace(rollout, old=said(seed)), keep="BR")
        assert len(pair) == 2 and 4 in pair
        others.update(set(pair) - {4})
    assert set(others) == {0, 1, 2, 3} and all(abs(count - 100) < 35 for count in others.values())


def test_ties_go_to_the_lowest_index_where_rows_are_equal_in_everything():
    rollout = batch([[1]] * 4, torch.tensor([1.0, 5, 5, 1]))
    assert kept(rollout, keep="BoN") == [1] and kept(rollout, keep="BW") == [0, 1]
    first = Counter(kept(replace(rollout, old=Evaluation(logp=said(seed).logp[:4])), keep="BoN")[0] for seed in range(200))
    assert abs(first[1] - 100) < 35 and first[1] + first[2] == 200  # else by chance, not by place


@pytest.mark.parametrize("keep", ["BoN", "BR", "BW", "pow"])
def test_a_single_row_is_kept_once(keep):
    rollout = batch([[1]] * 2, torch.tensor([0.3, -1.0]), [4, 1])
    assert RewardFilter(keep).times(rollout).tolist() == [1, 1]


def test_filters_work_per_prompt_or_on_the_batch():
    rollout = batch([[1]] * 6, torch.tensor([3.0, 1, 2, 30, 10, 20]), [9, 9, 9, 2, 2, 2])
    assert kept(rollout, keep="BW") == [0, 1, 3, 4] and kept(rollout, keep="BW", over="batch") == [1, 3]
    missing = replace(rollout, present=torch.tensor([True, True, True, False, True, True]), reward=rollout.reward * 1.0)
    assert kept(missing, keep="BW") == [0, 1, 4, 5]
    dead = replace(rollout, mask=torch.tensor([[1], [1], [1], [0], [1], [1]]).bool())
    assert kept(dead, keep="BW") == [0, 1, 4, 5]


def test_weights_of_draws_by_hand():
    score = torch.tensor([3.0, 1, 5, 0, 5])
    close(draw_weights(score, "BW"), [0, 0, 1, 1, 1])
    close(draw_weights(score, "BR"), [0.1, 0.1, 0.4, 0.1, 0.4])
    close(draw_weights(score, "BoN"), [0, 0, 1, 0, 1])
    close(draw_weights(-score, "pow"), [9, 1, 25, 0, 25])
    close(draw_weights(-score, "pow", 1.0), [3, 1, 5, 0, 5])
    close(draw_weights(torch.zeros(3), "pow"), [1, 1, 1])


def test_draws_are_as_many_as_rows_and_follow_the_weights():
    rollout, seen = batch([[1]] * 5, torch.tensor(SCORES)), torch.zeros(5)
    for seed in range(400):
        times = RewardFilter("pow").times(replace(rollout, old=said(seed)))
        assert times.sum() == 5
        seen += times / 5 / 400
    close(seen, [9 / 39, 1 / 39, 4 / 39, 0, 25 / 39], atol=0.03)
    assert RewardFilter("BR", draw=True).times(rollout).sum() == 5


def test_which_rows_are_drawn_does_not_depend_on_their_order():
    rollout = replace(batch([[1]] * 5, torch.tensor([1.0, 1, 1, 1, 0])), old=said(3))
    order = torch.tensor([3, 0, 4, 2, 1])
    for chosen in (RewardFilter("BR"), RewardFilter("BW"), RewardFilter("pow"), RewardFilter("BoN")):
        torch.testing.assert_close(chosen.times(rollout.at(order)), chosen.times(rollout)[order])


def test_drawn_rows_count_as_often_as_they_were_drawn():
    # whatever is drawn, the loss is that of a batch with the drawn rows in it, decisions alike
    old = Evaluation(logp=said(1).logp.expand(5, 3).clone(), value=torch.linspace(-1, 1, 15).reshape(5, 3))
    ref = Evaluation(logp=old.logp - 0.1)
    rollout = batch([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], torch.tensor(SCORES), old=old, ref=ref)
    new = Evaluation(logp=old.logp + 0.1 * torch.linspace(-1, 1, 15).reshape(5, 3), value=old.value + 0.2)
    objective = PFPPO(keep="pow").objective()
    times = objective.gate.times(rollout).long()
    assert times.max() > 1
    rows = torch.repeat_interleave(torch.arange(5), times)
    whole = Objective(GAE(1.0, 0.95, True, 0.01), surrogate=Clip(), weighting=by_decision, critic=ValueLoss(1.0, 0.2))
    expected = loss_of(whole, rollout.at(rows), new.at(rows))
    torch.testing.assert_close(loss_of(objective, rollout, new), expected)


@pytest.mark.parametrize("critic", [True, False])
def test_advantages_are_whitened_over_what_is_kept(critic):
    rollout, _ = away()
    objective = PFPPO(keep="BW", critic=critic).objective()
    credit = assign_credit(objective, rollout)
    live = credit.weight > 0
    assert 8 <= live.any(1).sum() <= 8 and live.sum() == 32  # two rows of each of four prompts
    close(credit.advantage[live].mean(), 0.0) and close(credit.advantage[live].var(correction=0), 1.0, atol=1e-5)
    close(credit.weight.sum(), 1.0)
    assert objective.needs == {"logp", "ref"} | ({"value"} if critic else set())
    assert (objective.critic is None) is not critic and PFPPO(kl=0, critic=False).objective().needs == {"logp"}


def test_without_a_critic_returns_are_whitened():
    rollout = batch([[1, 1]] * 3, torch.tensor([4.0, 1.0, 2.0]))
    advantage = Filtered(RewardFilter("BW"), GAE(1.0, 0.95), critic=False)(rollout)
    close(advantage[:2], [[1, 1], [-1, -1]])
    assert PFPPO(critic=False).objective().compares


# DR-PO


def test_without_roll_in_dr_po_is_ppo_bit_for_bit():
    rollout, new = away()
    rollout = replace(rollout, ref=replace(rollout.ref, logp=rollout.ref.logp - 0.2))
    ours = DRPO(scale_reward=False).objective()
    plain = PPO(gamma=1.0, kl=0.05, value=0.1, value_clip=0.2).objective()
    assert ours == plain and loss_of(ours, rollout, new) == loss_of(plain, rollout, new)
    assert ours.needs == {"logp", "ref", "value"} == DRPO().objective().needs
    assert loss_of(DRPO().objective(), rollout, new) != loss_of(plain, rollout, new)


def test_rewards_are_scaled_and_keep_their_mean():
    # live rewards 0, 3 | 0, 1: mean 1, unbiased variance 2 -> (r - 1)/√2 + 1
    rollout = batch([[1, 1], [1, 1]], torch.tensor([3.0, 1.0]))
    first = 1 - math.sqrt(0.5)
    got = ScaledRewardGAE(GAE(1.0, 1.0))(rollout)
    close(got, [[first + math.sqrt(2) + 1, math.sqrt(2) + 1], [first + 1, 1]], atol=1e-6)
    assert torch.equal(ScaledRewardGAE(GAE(1.0, 1.0)).target(rollout), got)  # the critic was 0


def test_forced_tokens_have_no_gradient():
    rollout, _ = away()
    rollout = replace(rollout, mask=rollout.mask & (torch.arange(4) >= 2))
    new = Evaluation(
        logp=(rollout.old.logp + 0.1).detach().requires_grad_(), value=rollout.old.value.detach().clone().requires_grad_()
    )
    objective = DRPO().objective()
    policy_loss(objective, new, rollout, assign_credit(objective, rollout))[0].backward()
    assert (new.logp.grad[:, :2] == 0).all() and (new.logp.grad[:, 2:] != 0).any() and (new.value.grad[:, :2] == 0).all()


# PDPPO


def judged(value, post, reward, mask=None):
    value, post = torch.tensor(value), torch.tensor(post)
    return batch([[1] * value.shape[1]] * len(value), torch.tensor(reward), old=Evaluation(value=value, post=post))


def test_the_smaller_critic_is_the_baseline():
    # γ = .5: G = [1, 2]; min(V, Vx) = [.2, .1] and max(G - V, G - Vx) the same
    rollout = judged([[0.2, 0.4]], [[0.9, 0.1]], [2.0])
    slot = PostDecision(0.5, normalize="none")
    close(slot.target(rollout)[0], [1, 2])
    close(slot(rollout)[0], [0.8, 1.9])
    torch.testing.assert_close(
        slot(rollout), torch.maximum(1 * (slot.target(rollout) - rollout.old.value), slot.target(rollout) - rollout.old.post)
    )


def test_the_control_variate_is_blended_in():
    # (1-k)(G - V) + k(Vx - V): k = ¼: ¾·[.8, 1.6] + ¼·[.7, -.3]
    rollout = judged([[0.2, 0.4]], [[0.9, 0.1]], [2.0])
    close(PostDecision(0.5, blend=0.25, normalize="none")(rollout)[0], [0.775, 1.125])
    close(PostDecision(0.5, blend=1.0, normalize="none")(rollout)[0], [0.7, -0.3])


def test_returns_are_normalized_over_the_batch():
    # returns 2, 2 | 0, 0: ±1; the critics learn those
    rollout = judged([[0.5, 0.0], [0.5, 0.0]], [[0.25, 3.0], [3.0, -0.5]], [2.0, 0.0])
    slot = PostDecision(1.0)
    close(slot.target(rollout), [[1, 1], [-1, -1]])
    close(slot(rollout), [[0.75, 1.0], [-1.5, -0.5]])
    ends = replace(rollout, ends=torch.tensor([[True, False], [False, False]]), reward=torch.tensor([[3.0, 1], [0, 0]]))
    raw = torch.tensor([3.0, 1, 0, 0], dtype=torch.float64)  # an episode ended between the first two
    close(slot.target(ends).flatten(), ((raw - raw.mean()) / raw.std(correction=0)).tolist())


def test_value_losses_by_hand():
    credit = Credit(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1), torch.tensor([[2.0]]))
    said = [torch.tensor([[x]], requires_grad=True) for x in (1.0, 1.5)]
    new, rollout = Evaluation(value=said[0], post=said[1]), batch([[1]])
    close(TwoValueLoss()(new, rollout, credit)[0], [0.5])
    both = TwoValueLoss(each=True, strength=2.0)(new, rollout, credit)
    close(both[0], [2 * (0.5 + 0.125)])
    TwoValueLoss()(new, rollout, credit).sum().backward()
    assert said[0].grad.item() == -1 and said[1].grad.item() == 0  # only the smaller one learns
    assert PDPPO().objective().critic == TwoValueLoss() and PDPPO(blend=0.5).objective().critic.each
    with pytest.raises(ShapeError, match="PDPPO: post is None"):
        TwoValueLoss()(Evaluation(value=said[0]), rollout, credit)


def test_with_equal_critics_pdppo_is_ppo():
    rollout, new = away()
    rollout = replace(rollout, old=replace(rollout.old, post=rollout.old.value))
    new = replace(new, post=new.value)
    ours = PDPPO(normalize="advantage").objective()
    plain = PPO(lam=1.0, entropy=0.012).objective()
    torch.testing.assert_close(assign_credit(ours, rollout).advantage, assign_credit(plain, rollout).advantage)
    torch.testing.assert_close(loss_of(ours, rollout, new), loss_of(plain, rollout, new))
    assert ours.needs == {"logp", "entropy", "value", "post"}


def test_the_maximum_only_lifts():
    rollout, _ = away()
    lifted = PostDecision(normalize="none")(rollout)
    plain = PostDecision(blend=0.0, normalize="none")(rollout)
    assert (lifted >= plain).all() and (lifted > plain).any()


# BGPO

OPEN = Boundary(low=1.0, high=math.inf, cap=None)
D = torch.tensor([[0.1, -0.3]])


def test_the_bound_by_hand():
    # exp(mean D) = exp(-.1) = .904837
    up, down = (OPEN(D, torch.full((1, 2), sign), None).mean().item() for sign in (1.0, -1.0))
    assert up == pytest.approx(0.9, abs=1e-6) and down == pytest.approx(-0.922995, abs=1e-6)
    assert up <= math.exp(-0.1) == pytest.approx(0.904837, abs=1e-6) and down <= -math.exp(-0.1)


def test_the_bound_holds_everywhere_and_touches_at_ratio_one():
    draws = torch.Generator().manual_seed(0)
    for _ in range(50):
        d = torch.randn(1, 16, generator=draws)
        for sign in (1.0, -1.0):
            assert OPEN(d, torch.full((1, 16), sign), None).mean() <= sign * d.mean().exp() + 1e-6
    close(OPEN(torch.zeros(1, 4), torch.full((1, 4), 2.0), None)[0], [2.0] * 4)


def test_one_plus_d_below_minus_one_is_a_number():
    d = torch.tensor([[-3.0]], requires_grad=True)
    value = Boundary()(d, torch.ones(1, 1), None)
    value.sum().backward()
    assert value.item() == -2 and d.grad.item() == 1


def test_gradient_at_ratio_one_is_the_share_of_the_advantage():
    objective = BGPO().objective()
    rollout = batch([[1] * 4] * 2, torch.tensor([1.0, 0.0]), old=Evaluation(fit=torch.full((2, 4), 0.7)))
    credit = assign_credit(objective, rollout)
    fit = torch.full((2, 4), 0.7, requires_grad=True)
    policy_loss(objective, Evaluation(fit=fit), rollout, credit)[0].backward()
    a = credit.advantage[0, 0].item()
    assert a == pytest.approx(math.sqrt(0.5), abs=1e-5)
    # l = -fit: d loss / d l = -A/M of each of two rows, half the batch each
    close(-fit.grad, [[-a / 4 / 2] * 4, [a / 4 / 2] * 4])


CLIPPED = {  # D, A -> value, gradient
    "rises within": (0.1, 1.0, 1.1, 1.0),
    "rises beyond": (0.3, 1.0, 1.2, 0.0),
    "falls far": (-0.5, 1.0, 0.5, 1.0),
    "fades within": (-0.1, -1.0, -math.exp(-0.1), -math.exp(-0.1)),
    "fades beyond": (-0.3, -1.0, -0.8, 0.0),
    "grows within": (1.0, -1.0, -math.e, -math.e),
    "grows beyond the dual clip": (1.2, -1.0, -3.0, 0.0),
    "nothing at stake": (0.4, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize(("d", "a", "value", "slope"), CLIPPED.values(), ids=CLIPPED)
def test_clips_act_on_each_sample(d, a, value, slope):
    x = torch.tensor([[d]], requires_grad=True)
    got = Boundary()(x, torch.full((1, 1), a), None)
    got.sum().backward()
    assert got.item() == pytest.approx(value, abs=1e-6) and x.grad.item() == pytest.approx(slope, abs=1e-6)
    held = Boundary().clipped(x.detach(), torch.full((1, 1), a))
    assert isinstance(held, Clipped) and bool(held.above | held.below) is (slope == 0 and a != 0)


def test_samples_may_be_replayed_one_by_one():
    policy = TOYS["matching"]()
    rollout = rollout_of(policy)
    with torch.no_grad():
        policy.center.add_(0.05)
    objective = BGPO().objective()
    credit = assign_credit(objective, rollout)
    assert objective.span == "decision"
    whole, _ = policy_loss(objective, policy.evaluate(rollout), rollout, credit)
    whole.backward()
    together = policy.center.grad.clone()
    policy.center.grad = None
    for k in range(4):
        step = slice(k, k + 1)
        part = rollout.at(slice(None), step)
        policy_loss(objective, policy.evaluate(part), part, credit.at(slice(None), step))[0].backward()
    torch.testing.assert_close(policy.center.grad, together)
