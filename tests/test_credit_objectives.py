"""Objectives whose idea is who deserves credit, and a penalty by reward, by hand: text-policy-gradient.md, 3.1, 3.8-3.10, 3.12."""

import math
from dataclasses import replace

import pytest
import torch
from toys import TOYS, batch, learned, rollout_of

from studio.algorithms.adora import ADORA
from studio.algorithms.dcpo import DCPO
from studio.algorithms.gtpo import GTPO, by_prompt_sum, shared_runs
from studio.algorithms.lite_ppo import LitePPO
from studio.algorithms.rapo import RAPO, ForwardKL
from studio.core import Clip, GroupRelative, Objective, assign_credit, by_decision, policy_loss, total
from studio.core.tempered import TEMPERATURES
from studio.errors import ConfigError
from studio.types import Credit, Evaluation

CLOSE = {"atol": 1e-6, "rtol": 0}


def close(got, want):
    torch.testing.assert_close(got.double(), torch.tensor(want).double(), **CLOSE)


# GTPO

IDS = [[7, 8, 1, 2, 9, 0], [7, 8, 3, 9, 0, 0], [7, 5, 1, 9, 0, 0], [6, 8, 1, 4, 4, 9]]
LIVE = [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
SIGN = torch.tensor([1.0, -1.0, 0.0, -1.0]).double()
PROTECTED = [[2, 2, 2, 1, 2, 0], [0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]


def tokens(ids, live=None, reward=None, entropy=0.0, **others):
    ids = torch.tensor(ids)
    level = torch.as_tensor(entropy).reshape(-1, 1).expand(ids.shape).float()
    old = Evaluation(logp=torch.zeros(ids.shape), token=ids, entropy=level)
    live = [[1] * ids.shape[1]] * len(ids) if live is None else live
    return batch(live, None if reward is None else torch.tensor(reward), old=old, **others)


def test_shared_tokens_by_hand():
    credit = GTPO().objective().advantage
    close(credit.factor(tokens(IDS, LIVE), SIGN), PROTECTED)
    first, last = shared_runs(torch.tensor(IDS), torch.tensor(LIVE).bool(), torch.zeros(4).long(), SIGN)
    assert (first | last).sum(1).tolist() == [4, 3, 0, 1]


def test_the_divisor_of_the_release_by_hand():
    credit = GTPO(conflict_norm=True).objective().advantage
    expected = [[x / n for x in row] for row, n in zip(PROTECTED, [4, 3, 1, 1], strict=True)]
    close(credit.factor(tokens(IDS, LIVE), SIGN), expected)


def test_where_a_row_stands_in_its_tensor_does_not_matter():
    # every row one place to the right, with tokens that are dead in between
    ids = [[5, row[0], 99, *row[1:]] for row in IDS]
    live = [[0, row[0], 0, *row[1:]] for row in LIVE]
    got = GTPO().objective().advantage.factor(tokens(ids, live), SIGN)
    close(got[:, [1, 3, 4, 5, 6, 7]], PROTECTED)


def test_a_group_shares_tokens_with_itself_only():
    factor = GTPO().objective().advantage.factor
    ids, sign = [[7, 1], [7, 2], [7, 1], [7, 2]], torch.tensor([1.0, 1, -1, -1]).double()
    close(factor(tokens(ids, group=[0, 1, 0, 1]), sign), [[4, 4], [4, 4], [0, 0], [0, 0]])  # in both runs at once
    close(factor(tokens(ids, group=[5, 5, -3, -3]), sign), [[1, 1]] * 4)


def test_a_match_in_the_middle_is_not_protected_and_one_sign_protects_nothing():
    factor = GTPO().objective().advantage.factor
    middle = tokens([[1, 7, 2, 3], [4, 7, 5, 6]])
    close(factor(middle, torch.tensor([1.0, -1.0])), [[1, 1, 1, 1]] * 2)
    for one in (1.0, -1.0, 0.0):
        close(factor(tokens(IDS, LIVE), torch.full((4,), one)), LIVE)
    early = tokens([[7, 1, 2], [7, 3, 4]])
    close(factor(early, torch.tensor([1.0, -1.0])), [[2, 1, 1], [0, 1, 1]])
    late = tokens([[1, 2, 7], [3, 7, 0]], [[1, 1, 1], [1, 1, 0]])
    close(factor(late, torch.tensor([1.0, -1.0])), [[1, 1, 2], [1, 0, 0]])


def advantage(algorithm, rollout):
    return assign_credit(algorithm.objective(), rollout).advantage


def test_unsure_rows_are_dropped_and_keep_their_weight():
    rollout = tokens([[1, 2], [3, 4]], reward=[1.0, 0.0], entropy=[0.1, 0.9])
    released = GTPO(threshold=0.7, filter="always").objective()
    credit = assign_credit(released, rollout)
    close(credit.advantage, [[0.49, 0.49], [0, 0]])  # 0.5 - 0.1·0.1
    close(credit.weight, [[0.25, 0.25]] * 2)
    close(advantage(GTPO(filter="none"), rollout), [[0.49, 0.49], [-0.59, -0.59]])
    close(advantage(GTPO(), rollout), [[0.49, 0.49], [0, 0]])  # begins at 0.5 < ln 2
    unsure = replace(rollout, old=replace(rollout.old, entropy=rollout.old.entropy + 0.3))
    close(advantage(GTPO(), unsure), [[0.46, 0.46], [-0.62, -0.62]])  # begins at 0.8 > ln 2: none is dropped


def test_whether_rows_are_dropped_is_decided_by_the_first_batch():
    sure = tokens([[1, 2], [3, 4]], reward=[1.0, 0.0], entropy=[0.1, 0.9])
    unsure = replace(sure, old=replace(sure.old, entropy=sure.old.entropy + 0.3))
    objective = GTPO().objective()
    objective.update(unsure)
    objective.update(sure)
    assert objective.state_dict()["advantage"]["initial"] == pytest.approx(0.8, abs=1e-6)
    close(assign_credit(objective, sure).advantage, [[0.49, 0.49], [-0.59, -0.59]])
    again = GTPO().objective()
    assert again.state_dict() == {"advantage": {"initial": None}}
    again.load_state_dict(objective.state_dict())
    close(assign_credit(again, sure).advantage, [[0.49, 0.49], [-0.59, -0.59]])


def test_the_first_batch_counts_live_rows_that_have_a_reward():
    rollout = tokens([[1, 2]] * 3, [[1, 0], [1, 1], [0, 0]], [1.0, 0.0, 0.0], [0.1, 0.9, 5.0])
    objective = GTPO().objective()
    objective.update(replace(rollout, present=torch.tensor([True, False, True])))
    assert objective.advantage.initial == pytest.approx(0.1, abs=1e-6)


def test_where_rewards_agree_the_entropy_is_what_is_left():
    rollout = tokens([[1, 2]] * 3, reward=[0.1] * 3, entropy=[0.2, 0.2, 0.3])
    close(advantage(GTPO(), rollout), [[-0.02, -0.02], [-0.02, -0.02], [-0.03, -0.03]])


def gtpo_loss(algorithm, rollout, new=0.3):
    objective = algorithm.objective()
    logp = torch.full(rollout.mask.shape, new, requires_grad=True)
    loss, stats = policy_loss(objective, Evaluation(logp=logp), rollout, assign_credit(objective, rollout))
    loss.backward()
    assert stats["ratio/largest"] == 0  # always on policy
    return loss.detach(), logp.grad


def test_the_loss_of_the_paper_and_of_the_release_by_hand():
    rollout = tokens([[7, 8, 1], [7, 9, 0]], [[1, 1, 1], [1, 1, 0]], [1.0, 0.0])
    # λ = [2, 1, 1], [0, 1]; -(1/2)·(0.5/3·4 - 0.5/2·1) = -0.208333
    loss, gradient = gtpo_loss(GTPO(gamma=0.0), rollout)
    close(loss, -0.2083333)
    close(gradient, [[-1 / 6, -1 / 12, -1 / 12], [0, 1 / 8, 0]])
    # one shared decision each, so the divisor is 1; summed over the two rows
    loss, gradient = gtpo_loss(GTPO(0.0, 0.7, "always", True, "sum"), rollout)
    close(loss, -0.4166667)
    close(gradient, [[-1 / 3, -1 / 6, -1 / 6], [0, 1 / 4, 0]])


def test_sums_over_the_rows_of_a_prompt_weigh_prompts_the_same():
    rollout = tokens([[1, 2]] * 4, [[1, 1], [1, 0], [1, 1], [0, 0]], group=[3, 3, 8, 5])
    close(by_prompt_sum(rollout), [[0.25, 0.25], [0.5, 0], [0.25, 0.25], [0, 0]])  # two live prompts


def test_without_shared_tokens_entropy_and_filter_it_is_the_centered_reward():
    rollout = tokens([[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]], [1.0, 0.0, 0.5], 0.4)
    objective = GTPO(gamma=0.0, filter="none").objective()
    plain = Objective(GroupRelative(scale=None))
    assert objective.needs == {"logp", "token", "entropy"}
    torch.testing.assert_close(assign_credit(objective, rollout), assign_credit(plain, rollout))
    logp = torch.zeros(3, 3, requires_grad=True)
    policy_loss(plain, Evaluation(logp=logp), rollout, assign_credit(plain, rollout))[0].backward()
    torch.testing.assert_close(gtpo_loss(GTPO(gamma=0.0, filter="none"), rollout)[1], logp.grad)


# ADORA


def lengths(reward, length, **others):
    live = [[1] * n + [0] * (max(length) - n) for n in length]
    return batch(live, torch.tensor(reward), **others)


def weights(algorithm, rollout):
    return assign_credit(algorithm.objective(), rollout).gate[:, 0].tolist()


def test_length_utility_by_hand():
    # longest correct 120 against the wrong ones' mean 250; 400 against 250
    reward = [1.0, 0.0, 1.0, 0.0]
    assert weights(ADORA(), lengths(reward, [100, 300, 120, 200])) == pytest.approx([0.1] * 4)
    assert weights(ADORA(), lengths(reward, [400, 300, 120, 200])) == [1] * 4
    assert weights(ADORA(), lengths(reward, [250, 300, 120, 200])) == pytest.approx([0.1] * 4)  # not longer
    both = lengths(reward * 2, [100, 400, 300, 300, 120, 120, 200, 200], group=[9, 2] * 4)
    both = replace(both, reward=torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 0]))
    assert weights(ADORA(), both) == pytest.approx([0.1, 1] * 4)


def test_long_wrong_answers_and_missing_rewards_do_not_count():
    rollout = lengths([1.0, 0.0, 1.0, 0.0], [100, 300, 120, 110])
    assert weights(ADORA(), rollout) == pytest.approx([0.1] * 4)  # mean 205
    assert weights(ADORA(limit=300), rollout) == [1] * 4  # mean 110: as long as the limit is too long
    assert weights(ADORA(limit=301), rollout) == pytest.approx([0.1] * 4)
    rollout = replace(rollout, present=torch.tensor([True, False, True, True]))
    assert weights(ADORA(), rollout) == [1, 0, 1, 1]
    missing = lengths([1.0, 0.0, 0.0], [100, 300, 150], present=torch.tensor([True, False, True]))
    assert weights(ADORA(), missing) == pytest.approx([0.1, 0, 0.1])  # a mean of 150, not of 0 and 150


def test_groups_without_correct_or_without_wrong_answers():
    none, all_ = lengths([0.0, 0.4], [3, 5]), lengths([1.0, 2.0], [3, 5])
    assert weights(ADORA(), none) == pytest.approx([0.1] * 2) and weights(ADORA(edges="vision"), none) == [1, 1]
    assert weights(ADORA(), all_) == [1, 1] and weights(ADORA(edges="vision"), all_) == pytest.approx([0.1] * 2)
    assert weights(ADORA(correct=2.0), all_) == pytest.approx([0.1] * 2)  # above, not at
    assert weights(ADORA(correct=1.01), lengths([1.0, 2.0], [5, 3])) == pytest.approx([0.1] * 2)


def test_difficulty_utility_by_hand():
    rollout = lengths([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0], [2] * 8, group=[0] * 4 + [1] * 4)
    assert weights(ADORA(criterion="difficulty"), rollout) == pytest.approx([1] * 4 + [0.1] * 4)  # 1/4 and 1/2 succeed
    amplified = ADORA(criterion="difficulty", share=0.51, hit=2.0, miss=1.0)
    assert weights(amplified, rollout) == [2] * 8
    missing = replace(rollout, present=torch.tensor([False] + [True] * 6 + [False]))
    assert weights(replace(amplified, share=0.6), missing) == [0, 2, 2, 2, 1, 1, 1, 0]  # none of 3 and 2 of 3 succeed


def moved_tokens(by=0.3):
    toy = TOYS["tokens"]()
    rollout = rollout_of(toy)
    with torch.no_grad():
        toy.logits.add_(by * torch.randn(toy.logits.shape, generator=torch.Generator().manual_seed(1)))
    return toy, replace(rollout, ref=rollout.old)


def gradient_of_logp(objective, toy, rollout, credit=None):
    new = Evaluation(**{name: getattr(toy.evaluate(rollout), name).detach() for name in ("logp", "entropy", "token", "tempered")})
    new.logp.requires_grad_()
    credit = assign_credit(objective, rollout) if credit is None else credit
    loss, stats = policy_loss(objective, new, rollout, credit)
    loss.backward()
    return new.logp.grad, stats


def test_a_weight_scales_the_gradient_of_its_group_alone():
    toy, rollout = moved_tokens()
    grpo = Objective(GroupRelative(ddof=1, eps=1e-6), surrogate=Clip(0.2, 0.2), weighting=by_decision)
    plain, _ = gradient_of_logp(grpo, toy, rollout)
    same, _ = gradient_of_logp(ADORA(hit=1.0, miss=1.0, kl=0.0).objective(), toy, rollout)
    torch.testing.assert_close(same, plain)
    # an answer with a position right counts as correct: 2, 4, 3 and 3 of 4 are
    algorithm = ADORA(criterion="difficulty", correct=0.2, share=0.6, kl=0.0)
    weight = assign_credit(algorithm.objective(), rollout).gate
    assert weight.unique().tolist() == pytest.approx([0.1, 1.0])
    torch.testing.assert_close(gradient_of_logp(algorithm.objective(), toy, rollout)[0], weight * plain)


# DCPO

LOGITS = torch.tensor([2.0, 1.0, 0.0])
WARM = [0.925925, 1.093851, 1.292232]  # at 1.2
COLD = [1.098368, 0.855410, 0.666194]  # at 0.8: e^2.5 = 12.182494 of 16.672837 against e² = 7.389056 of 11.107338


def distribution(reward, entropy, **others):
    """Rows of three decisions that take the tokens 0, 1, 2, and the objective at a measured entropy."""
    rows = len(reward)
    logp = LOGITS.log_softmax(0).expand(rows, 3)
    tempered = torch.stack([(LOGITS / t).log_softmax(0) for t in TEMPERATURES], -1).expand(rows, 3, len(TEMPERATURES))
    old = Evaluation(logp=logp, tempered=tempered)
    objective = DCPO(eps=1.694e-5).objective()  # so that rewards 1, 0, 0, 1 give ±0.8660
    objective.advantage.entropy = entropy
    return objective, batch([[1, 1, 1]] * rows, torch.tensor(reward), old=old, **others)


def test_likelier_at_another_temperature_by_hand():
    for entropy, expected in ((0.3, WARM), (0.5, WARM), (0.7, COLD)):
        objective, rollout = distribution([1.0], entropy)
        close(objective.advantage.likelier(rollout), [expected])


def test_mixed_credit_by_hand():
    # min(0.2, 0.1)/0.5 = 0.2, a = 1/6; wrong rows keep 5/6 of their advantage
    objective, rollout = distribution([1.0, 0.0, 0.0, 1.0], 0.3)
    got = assign_credit(objective, rollout).advantage
    close(got[[0, 3]], [[0.875987, 0.903975, 0.937039]] * 2)
    close(got[[1, 2]], [[-0.721667] * 3] * 2)
    # |H₀ - H| = 0.05 of the reach: a = 0.1/1.1
    objective, _ = distribution([1.0], 0.45)
    assert objective.advantage.mix(0.5) == pytest.approx(1 / 11, abs=1e-9)


def test_all_correct_groups_still_learn_and_without_correct_rows_nothing_is_mixed():
    objective, rollout = distribution([1.0, 1.0], 0.3)  # a₀ = 0.1, a = 1/11
    close(assign_credit(objective, rollout).advantage, [[q / 11 for q in WARM]] * 2)
    for wrong in ([0.0, 0.0], [0.05, 0.05]):  # correct is above 0.05
        objective, rollout = distribution(wrong, 0.3)
        close(assign_credit(objective, rollout).advantage, [[0.0] * 3] * 2)
    objective, rollout = distribution([1.0, 1.0], 0.3, present=torch.tensor([True, False]))
    close(assign_credit(objective, rollout).advantage, [[q / 11 for q in WARM], [0.0] * 3])


def test_at_the_wanted_entropy_it_is_grpo():
    objective, rollout = distribution([1.0, 0.0, 0.0, 1.0], 0.5)
    grpo = Objective(GroupRelative(ddof=1, eps=1.694e-5), surrogate=Clip(0.2, 0.2, 3.0), weighting=by_decision)
    torch.testing.assert_close(assign_credit(objective, rollout), assign_credit(grpo, rollout), atol=0, rtol=0)
    assert objective.surrogate == grpo.surrogate and objective.needs == {"logp", "tempered"}


def test_the_entropy_is_that_of_the_last_iterations_optimizer_steps():
    toy, rollout = moved_tokens()
    mask = rollout.mask.clone()
    mask[2], mask[7, 1:] = False, False
    old = replace(rollout.old, logp=rollout.old.logp + torch.linspace(-1, 1, 16)[:, None])
    rollout = replace(rollout, mask=mask, present=torch.arange(16) != 4, old=old)
    live = mask & (torch.arange(16) != 4)[:, None]
    objective = DCPO().objective()
    credit = assign_credit(objective, rollout)
    for rows in (slice(0, 6), slice(6, 16)):  # two optimizer steps of an iteration, the second in two parts
        cuts = [rows] if rows.start == 0 else [slice(6, 8), slice(8, 16)]
        parts = [policy_loss(objective, toy.evaluate(rollout.at(cut)), rollout.at(cut), credit.at(cut))[1] for cut in cuts]
        assert objective.learn(total(parts)) == {"sample/entropy_gauge": 0.0}
    between = objective.state_dict()
    objective.update(rollout)
    expected = -toy.evaluate(rollout).logp[live].mean().item()
    assert objective.advantage.entropy == pytest.approx(expected, abs=1e-6)
    assert abs(expected + rollout.old.logp[live].mean().item()) > 1e-2
    again = DCPO().objective()
    assert again.advantage.entropy == 0
    again.load_state_dict(between)
    again.update(rollout)
    assert again.state_dict() == objective.state_dict()
    objective.update(rollout)  # an iteration without a step
    assert objective.advantage.entropy == pytest.approx(-rollout.old.logp[live].mean().item(), abs=1e-6)


def test_temperatures_that_nobody_records_are_refused():
    for algorithm in (DCPO(hot=1.1), DCPO(cold=0.5), RAPO(soft=3.0)):
        with pytest.raises(ConfigError, match="expected a temperature of 0.8, 1.2, 2.0 or 1, got"):
            algorithm.objective()


# RAPO


def forward_kl(log_w, gradient="exact", log_ratio=0.0):
    """k and its gradient with respect to log π, where the reference is likelier by log_w."""
    logp = torch.full((1, 1), -1.0, requires_grad=True)
    ref = Evaluation(logp=torch.tensor([[log_w - 1.0]]), tempered=torch.full((1, 1, 3), math.nan))
    rollout = batch([[1]], torch.ones(1), ref=ref)
    k = ForwardKL(2.0, 0.5, gradient)(Evaluation(logp=logp), rollout, torch.full((1, 1), log_ratio) + logp - logp.detach())
    k.sum().backward()
    return k.item(), logp.grad.item()


@pytest.mark.parametrize(
    ("w", "k", "through", "exact"), [(0.5, 0.153426, 0.346574, 0.5), (1, 0, 0, 0), (2, 0.386294, -1.386294, -1)]
)
def test_forward_kl_by_hand(w, k, through, exact):
    assert forward_kl(math.log(w), "through_k") == pytest.approx((k, through), abs=1e-6)
    assert forward_kl(math.log(w)) == pytest.approx((k, exact), abs=1e-6)
    # decisions of another policy count by their ratio, which has no gradient of its own
    assert forward_kl(math.log(w), "through_k", math.log(3)) == pytest.approx((3 * k, 3 * through), abs=1e-5)
    assert forward_kl(math.log(w), "exact", math.log(3)) == pytest.approx((3 * k, 3 * exact), abs=1e-5)


def test_forward_kl_stays_finite_where_the_policies_do_not_overlap():
    # log w is held at 10: e¹⁰·10 - e¹⁰ + 1
    assert forward_kl(50.0) == pytest.approx((9 * math.exp(10) + 1, 1 - math.exp(10)), rel=1e-6)
    assert forward_kl(-50.0) == pytest.approx((1 - 11 * math.exp(-10), 1 - math.exp(-10)), rel=1e-6)


def enumerated(logits, target, reward=1.0, soft=None, gradient="exact"):
    """The penalty over every token, weighted by its probability: what samples give on average."""
    logp = logits.log_softmax(0)[None]
    tempered = torch.full((1, 3, 3), math.nan)
    if soft is not None:
        tempered[..., TEMPERATURES.index(2.0)] = soft
    rollout = batch([[1, 1, 1]], torch.tensor([reward]), ref=Evaluation(logp=target[None], tempered=tempered))
    k = ForwardKL(2.0, 0.5, gradient)(Evaluation(logp=logp), rollout, torch.zeros(1, 3))
    return (logp.detach().exp() * k).sum()


def test_the_exact_gradient_is_that_of_cross_entropy_to_the_reference():
    pi, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    logits = pi.log().requires_grad_()
    value = enumerated(logits, reference.log())
    value.backward()
    close(logits.grad, [0.3, 0.0, -0.3])
    # and the value is the KL: 0.2·ln 0.4 + 0.3·ln 1 + 0.5·ln 2.5
    assert value.item() == pytest.approx(0.2 * math.log(0.4) + 0.5 * math.log(2.5), abs=1e-6)
    logits = pi.log().requires_grad_()
    enumerated(logits, reference.log(), gradient="through_k").backward()
    assert not torch.allclose(logits.grad, torch.tensor([0.3, 0.0, -0.3]), atol=0.05)


def test_failed_rows_are_drawn_to_the_softened_reference():
    pi, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.64, 0.32, 0.04])
    soft = reference.sqrt() / reference.sqrt().sum()  # φ = 1/2
    for reward, target in ((0.0, soft), (0.5, soft), (0.6, reference), (1.0, reference)):
        logits = pi.log().requires_grad_()
        enumerated(logits, reference.log(), reward, soft.log()).backward()
        close(logits.grad, (pi - target).tolist())


def test_with_the_plain_reference_the_minimum_is_the_reference():
    logits, reference = torch.zeros(3, requires_grad=True), torch.tensor([0.7, 0.2, 0.1])
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(150):
        optimizer.zero_grad()
        enumerated(logits, reference.log()).backward()
        optimizer.step()
    torch.testing.assert_close(logits.softmax(0).detach(), reference, atol=1e-4, rtol=0)


def test_a_temperature_of_one_makes_the_reference_plain_for_every_row():
    rollout = batch([[1], [1]], torch.tensor([0.0, 1.0]), ref=Evaluation(logp=torch.tensor([[-1.0], [-2.0]])))
    close(ForwardKL(1.0, 0.5).target(rollout), [[-1.0], [-2.0]])


def test_rapo_is_made_of():
    objective = RAPO(kl=0.2, entropy=0.1).objective()
    assert objective.needs == {"logp", "entropy", "ref", "tempered"} and objective.surrogate == Clip(0.2, 0.2)
    assert RAPO(kl=0.0, entropy=0.0).objective().regularizers == ()
    rollout = batch([[1]], torch.ones(1), ref=Evaluation(logp=torch.full((1, 1), math.log(2)), tempered=torch.zeros(1, 1, 3)))
    new = Evaluation(logp=torch.zeros(1, 1), entropy=torch.full((1, 1), 0.7))
    loss, stats = policy_loss(objective, new, rollout, Credit(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)))
    close(loss, 0.2 * 0.386294 - 0.1 * 0.7)  # w = 2, and a bonus for entropy
    close(stats["loss/forward_kl"], 0.386294)


# Lite PPO


def test_group_mean_and_batch_deviation_by_hand():
    def lite(reward):
        return advantage(LitePPO(), batch([[1]] * 8, torch.tensor(reward), [0] * 4 + [1] * 4))[:, 0]

    close(lite([1.0, 0, 0, 0, 1, 1, 1, 0]), [1.403119, *[-0.467706] * 3, *[0.467706] * 3, -1.403119])
    close(lite([1.0, 0, 0, 0, 1, 1, 1, 1]), [1.449135, *[-0.483045] * 3, *[0.0] * 4])


def test_lite_ppo_is_made_of():
    objective = LitePPO().objective()
    assert objective.surrogate == Clip(0.2, 0.2) and objective.weighting is by_decision and objective.regularizers == ()


# what the table of conformance does not reach: choices other than the defaults

CHOICES = {
    "gtpo as released": GTPO(0.1, 0.7, "always", True, "sum"),
    "gtpo without entropy": GTPO(gamma=0.0, filter="none"),
    "adora by difficulty": ADORA(criterion="difficulty", correct=0.3),
    "adora for vision": ADORA(edges="vision", correct=0.3, limit=10),
    "rapo through k": RAPO(fkl_grad="through_k"),
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_other_choices_ignore_the_dead_and_add_up_over_parts(choice):
    toy, rollout = moved_tokens()
    mask = rollout.mask.clone()
    mask[3], mask[0, 1] = False, False
    found = []
    for value in (1, 2**62):
        token = torch.where(mask, rollout.old.token, value)
        old = replace(rollout.old, token=token, entropy=torch.where(mask, rollout.old.entropy, value * math.nan))
        objective, spoiled = choice.objective(), replace(rollout, mask=mask, old=old)
        found.append(gradient_of_logp(objective, toy, spoiled)[0])
    assert torch.isfinite(found[0]).all() and (found[0][~mask] == 0).all() and torch.equal(found[0], found[1])
    credit = assign_credit(objective, spoiled)
    parts = [gradient_of_logp(objective, toy, spoiled.at(rows), credit.at(rows))[0] for rows in (slice(0, 5), slice(5, 16))]
    torch.testing.assert_close(torch.cat(parts), found[0])


@pytest.mark.parametrize("name", CHOICES)
def test_other_choices_learn_unless_they_drop_unsure_rows(name):
    way = learned(TOYS["tokens"](), CHOICES[name].objective())
    assert way == 0 if name == "gtpo as released" else way > 0.5  # it begins at ln 5, above every threshold
