"""T-PPO, SPO, PRL, BRPO and EAPO by hand: the numbers and limits of the method notes."""

import math
from dataclasses import replace

import pytest
import torch
from toys import TOYS, batch, rollout_of

from studio.algorithms.brpo import BRPO, BudgetRelative, budget_advantage, budget_prior
from studio.algorithms.dapo import DAPO
from studio.algorithms.dr_grpo import DrGRPO
from studio.algorithms.eapo import EAPO, RoundRelative, WholeMultiple, discounted
from studio.algorithms.grpo import GRPO
from studio.algorithms.gspo import GSPO
from studio.algorithms.ppo import PPO
from studio.algorithms.prl import PRL, ProcessRelative, filled_back
from studio.algorithms.spo import SPO, SuccessTracker
from studio.algorithms.t_ppo import TPPO, EndedValueLoss, ExtendedGAE, for_both, policy_share
from studio.core import GAE, GroupRelative, Objective, assign_credit, by_decision, policy_loss, total
from studio.core.draws import row_draws
from studio.core.stats import MEASURED
from studio.errors import ConfigError, ShapeError
from studio.types import Evaluation, Prompts


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


def loss_of(objective, rollout, new):
    return policy_loss(objective, new, rollout, assign_credit(objective, rollout))[0]


def moved(rollout, seed=0):
    """An evaluation somewhat away from old, in every field that old has."""
    noise = torch.Generator().manual_seed(seed)

    def shift(x):
        return x + 0.3 * torch.randn(x.shape, generator=noise)

    old = rollout.old
    return replace(old, logp=shift(old.logp), value=None if old.value is None else shift(old.value))


# T-PPO

VALUE = Evaluation(value=torch.tensor([[0.2, 0.4, 0.5]]), logp=torch.zeros(1, 3))
EGAE = {  # δ of the cut row: [.2, .1, 0]; of the ended ones [.2, .1, r - .5]
    "cut": ([0.0], True, [0.295, 0.1, 0.0]),
    "ended with reward 1": ([1.0], False, [0.74625, 0.575, 0.5]),
    "ended with reward 0": ([0.0], False, [-0.15625, -0.375, -0.5]),
}


@pytest.mark.parametrize(("reward", "cut", "expected"), EGAE.values(), ids=EGAE)
def test_extended_gae_by_hand(reward, cut, expected):
    rollout = batch([[1, 1, 1]], torch.tensor(reward), old=VALUE, cut=torch.tensor([cut]))
    close(ExtendedGAE()(rollout)[0], expected)


def test_a_cut_row_without_surprises_has_no_advantage():
    old = Evaluation(value=torch.full((2, 4), 0.7))
    rollout = batch([[1, 1, 1, 0], [1, 0, 1, 1]], torch.zeros(2), old=old, cut=torch.tensor([True, True]))
    close(ExtendedGAE()(rollout), [[0.0] * 4] * 2)
    assert (ExtendedGAE()(replace(rollout, cut=None)) != 0).any()


def test_extended_gae_skips_dead_decisions_and_takes_what_was_recorded():
    # the last live decision is the third: δ = [.5 - .2, 0] as V goes on from .5
    old = Evaluation(value=torch.tensor([[0.2, math.nan, 0.5, math.nan]]))
    rollout = batch([[1, 0, 1, 0]], torch.zeros(1), old=old, cut=torch.tensor([True]))
    close(ExtendedGAE(lam=0.5)(rollout)[0], [0.3, 0, 0, 0])
    # after: δ = [.9 - .2, .9 - .5] -> .7 + .5·.4
    close(ExtendedGAE(lam=0.5)(replace(rollout, after=torch.full((1, 4), 0.9)))[0], [0.9, 0, 0.4, 0])


def test_targets_are_monte_carlo_returns():
    rollout = batch([[1, 1, 1]], torch.tensor([1.0]), old=VALUE)
    close(ExtendedGAE().target(rollout)[0], [1, 1, 1])
    close(ExtendedGAE(gamma=0.5).target(rollout)[0], [0.25, 0.5, 1])


CUT = torch.tensor([True, False, False])


def three_rows(cut=CUT):
    old = Evaluation(logp=torch.zeros(3, 3), value=torch.zeros(3, 3))
    return batch([[1, 1, 1], [1, 1, 0], [1, 0, 0]], torch.tensor([0.0, 1.0, 0.0]), old=old, cut=cut)


def test_policy_and_critic_are_each_normalized_over_their_own_rows():
    rollout = three_rows()
    objective = TPPO(whiten=False).objective()
    credit = assign_credit(objective, rollout)
    # six decisions for the policy, three for the critic; weights (1/6)/2 and (1/6 + 1/3)/2
    close(credit.weight, [[1 / 12] * 3, [1 / 4, 1 / 4, 0], [1 / 4, 0, 0]])
    close(credit.weight * credit.gate, [[1 / 6] * 3, [1 / 6, 1 / 6, 0], [1 / 6, 0, 0]])
    new = Evaluation(logp=torch.zeros(3, 3), value=torch.full((3, 3), 0.5))
    value = credit.weight * EndedValueLoss()(new, rollout, credit)
    close(value, [[0.0] * 3, [0.125 / 3, 0.125 / 3, 0], [0.125 / 3, 0, 0]])  # ½·(½ - R)² = 1/8 with R = 1 and R = 0


def test_the_critic_does_not_see_how_many_rows_were_cut():
    new = Evaluation(logp=torch.zeros(3, 3), value=torch.tensor([[9.0] * 3, [0.3] * 3, [0.4] * 3]))
    _, stats = policy_loss(TPPO().objective(), new, three_rows(), assign_credit(TPPO().objective(), three_rows()))
    ended = three_rows(None).at(slice(1, 3))
    plain = PPO(gamma=1.0, lam=1.0).objective()
    _, alone = policy_loss(plain, new.at(slice(1, 3)), ended, assign_credit(plain, ended))
    torch.testing.assert_close(stats["loss/value"], alone["loss/value"])
    assert stats["loss/value"] > 0


def test_a_batch_of_cut_rows_only_trains_the_policy_only():
    rollout = three_rows(torch.tensor([True] * 3))
    objective = TPPO(whiten=False).objective()
    credit = assign_credit(objective, rollout)
    close((credit.weight * credit.gate).sum(), 1.0)
    new = Evaluation(logp=torch.zeros(3, 3), value=torch.ones(3, 3))
    assert policy_loss(objective, new, rollout, credit)[1]["loss/value"] == 0


def test_without_cut_rows_t_ppo_is_ppo_with_returns_for_its_critic():
    rollout = rollout_of(TOYS["actions"]())
    rollout = replace(rollout, old=replace(rollout.old, value=torch.linspace(-1, 1, rollout.mask.numel()).view_as(rollout.mask)))
    plain = Objective(GAE(1.0, 0.95, whiten=True), weighting=by_decision)
    ours = replace(TPPO().objective(), critic=None)
    new = moved(rollout)
    assert torch.equal(policy_share(rollout, rollout.old.value), torch.ones(rollout.mask.shape))
    torch.testing.assert_close(for_both(rollout), by_decision(rollout))
    torch.testing.assert_close(loss_of(ours, rollout, new), loss_of(plain, rollout, new))


def test_parts_of_a_batch_with_cut_rows_add_up():
    objective, rollout = TPPO().objective(), three_rows()
    new = Evaluation(logp=torch.full((3, 3), 0.1), value=torch.full((3, 3), 0.5))
    credit = assign_credit(objective, rollout)
    whole, _ = policy_loss(objective, new, rollout, credit)
    parts = [policy_loss(objective, new.at(r), rollout.at(r), credit.at(r))[0] for r in (slice(0, 1), slice(1, 2), slice(2, 3))]
    torch.testing.assert_close(sum(parts), whole)


def test_the_critic_may_begin_alone():
    objective, rollout = TPPO(warmup=1).objective(), three_rows()
    first = assign_credit(objective, rollout)
    assert (first.advantage == 0).all() and (first.target[1, :2] == 1).all()
    objective.update(rollout)
    again = TPPO(warmup=1).objective()
    again.load_state_dict(objective.state_dict())
    assert (assign_credit(again, rollout).advantage != 0).any()


# SPO


def stream(reward, keys, steps=1, **others):
    rollout = batch([[1] * steps] * len(reward), torch.tensor(reward), list(range(len(reward))), **others)
    return replace(rollout, prompts=Prompts(keys, keys, [{}] * len(keys)))


def tracker(count=(4.0, 4.0), **settings):
    made = SuccessTracker(**settings)
    made.counts["a"] = count
    return made


VISITS = {  # drift -> f, (a, b) after a reward of 1 from (4, 4)
    "far": (0.06, 0.875, (4.5, 3.5), 0.5625),
    "not at all": (0.0, 0.96, (4.84, 3.84), 0.557604),
}


@pytest.mark.parametrize(("drift", "factor", "counts", "rate"), VISITS.values(), ids=VISITS)
def test_tracker_by_hand(drift, factor, counts, rate):
    made = tracker(forget="drift")
    made.visited["a"], made.moved = 0.0, drift
    made.update(stream([1.0], ["a"]))
    assert made.factor(drift) == pytest.approx(factor, abs=1e-9)
    assert made.counts["a"] == pytest.approx(counts) and made.success("a") == pytest.approx(rate, abs=1e-6)


def test_forgetting_between_its_bounds():
    assert SuccessTracker("drift").factor(0.005) == pytest.approx(0.943874, abs=1e-6)
    assert SuccessTracker("drift").factor(1e9) == 0.875
    made = tracker()
    made.moved = 0.0
    made.update(stream([1.0], ["a"]))
    assert made.counts["a"] == (4.5, 3.5)  # constant: whatever the drift


def test_tracker_before_training():
    made = SuccessTracker()
    assert made.success("new") == 0.5 and made.priorities(["new"]) == [0.55]
    made.begin("a", 6, 8)
    assert made.counts["a"] == pytest.approx((5.777778, 2.222222), abs=1e-6)
    assert made.success("a") == pytest.approx(0.722222, abs=1e-6)
    assert made.priorities(["a"])[0] == pytest.approx(0.497903, abs=1e-6)


@pytest.mark.parametrize(("settings", "steady"), [({}, 8), ({"forget": "drift"}, 25)], ids=["constant", "drift"])
def test_counts_settle_where_forgetting_and_evidence_meet(settings, steady):
    made = SuccessTracker(**settings)
    for visit in range(400):
        made.update(stream([float(visit % 4 == 0)], ["a"]))
    assert sum(made.counts["a"]) == pytest.approx(steady, abs=1e-3)


def test_advantages_come_before_the_update_and_are_standardized_over_the_batch():
    # p = .5, .5, .75: surprises .5, -.5, .25; mean 1/12, unbiased deviation √(.2708333)
    made = tracker((6.0, 2.0))
    rollout = stream([1.0, 0.0, 1.0], ["b", "c", "a"], steps=2)
    off = torch.tensor([0.5, -0.5, 0.25], dtype=torch.float64)
    expected = (off - off.mean()) / off.std()
    got = made(rollout)
    close(got[:, 0], expected.tolist())
    assert torch.equal(got[:, 0], got[:, 1]) and torch.equal(made(rollout), got)
    made.update(rollout)
    assert not torch.equal(made(rollout), got)


def test_a_prompt_alone_has_a_signal_although_its_group_has_none():
    made = tracker((6.0, 2.0))
    rollout = stream([1.0, 1.0, 1.0], ["a", "b", "c"])
    assert (made(rollout) != 0).all() and (GroupRelative()(rollout) == 0).all()
    assert not SPO().objective().compares and DAPO().objective().compares and not PPO().objective().compares
    assert SuccessTracker()(stream([1.0], ["a"])).item() == 0  # a batch of one


def test_missing_rewards_are_neither_counted_nor_compared():
    made = SuccessTracker()
    rollout = stream([1.0, math.nan, 0.0], ["a", "b", "c"], present=torch.tensor([True, False, True]))
    close(made(rollout)[:, 0], [math.sqrt(0.5), 0.0, -math.sqrt(0.5)])
    made.update(rollout)
    assert made.counts.keys() == {"a", "c"}


def test_rewards_on_another_scale_are_put_on_the_range_that_was_seen():
    made = SuccessTracker()
    made.update(stream([0.5], ["a"]))
    assert made.seen == (0.0, 1.0) and made.counts["a"] == (0.9375, 0.9375)  # as it is within [0, 1]
    made.update(stream([-3.0, 1.0], ["b", "c"]))
    assert made.seen == (-3.0, 1.0)
    made.update(stream([-1.0], ["d"]))
    assert made.counts["d"] == (0.9375, 0.9375)  # halfway


def test_rows_of_one_prompt_are_one_visit():
    made = tracker()
    made.update(stream([1.0, 1.0, 0.0], ["a", "a", "a"]))
    assert made.counts["a"] == (5.5, 4.5)  # .875·4 + 2, .875·4 + 1


def test_drift_is_measured_in_parts_and_adds_up_over_iterations():
    objective = SPO(forget="drift").objective()
    rollout = stream([1.0, 0.0], ["a", "b"], steps=2)
    credit = assign_credit(objective, rollout)
    for step in (0.01, 0.03):  # the last optimizer step of the iteration counts
        new = Evaluation(logp=torch.tensor([[step, -step], [step, 3 * step]]))
        parts = [policy_loss(objective, new.at(r), rollout.at(r), credit.at(r))[1] for r in (slice(0, 1), slice(1, 2))]
        objective.learn({k: v for k, v in total(parts).items() if k.startswith(MEASURED)})
    made = objective.advantage
    assert made.moved == pytest.approx(0.045)  # mean of .03, .03, .03, .09
    objective.update(rollout)
    assert made.counts["a"][0] == pytest.approx(0.96 * 0.5 + 1)  # D = 0 at the first visit
    assert made.path == pytest.approx(0.045) and made.visited == {"a": 0.0, "b": 0.0}
    told = objective.learn({f"{MEASURED}advantage": torch.tensor([0.0, 1.0])})
    assert told == {"reward/tracked": pytest.approx((made.success("a") + made.success("b")) / 2)}


def test_small_drifts_of_several_iterations_add_up():
    made = tracker(forget="drift")
    made.path = 7.0
    for drift, key in ((0.001, "a"), (0.002, "b"), (0.0015, "b")):  # a's rows were sampled before the first of them
        made.moved = drift
        made.update(stream([1.0], [key]))
    before = dict(made.counts)
    made.moved = 0.0005
    made.update(stream([0.0, 0.0], ["a", "b"]))
    assert made.counts["a"][0] == pytest.approx(0.943874 * before["a"][0], abs=1e-5)  # D = .005
    assert made.counts["b"][0] == pytest.approx(0.96 * before["b"][0])  # D = .002 since its second visit: the bound


def test_a_tracker_survives_a_checkpoint_and_a_new_objective_is_new():
    one = SPO(forget="drift").objective()
    one.advantage.moved = 0.01
    one.update(stream([1.0, -2.0], ["a", "b"]))
    two = SPO(forget="drift").objective()
    two.load_state_dict(one.state_dict())
    assert two.advantage == one.advantage and SPO().objective().advantage.counts == {}


# PRL

DRIFT = torch.tensor([[0.1, 0.2, -0.1, 0.3]])


def drifted(drift, reward, mask=None, **others):
    mask = [[1] * drift.shape[1]] * len(drift) if mask is None else mask
    return batch(mask, reward, old=Evaluation(logp=drift), ref=Evaluation(logp=torch.zeros(drift.shape)), **others)


def test_process_advantages_by_hand():
    # two samples with rewards 2 and 0, only centered: A = ±1; suffix sums of the first [.5, .4, .2, .3]
    rollout = drifted(DRIFT.repeat(2, 1), torch.tensor([2.0, 0.0]))
    got = ProcessRelative(eta=10.0, step=2, scale=False)(rollout)
    close(got, [[0.96, 0.96, 0.97, 0.97], [-1.04, -1.04, -1.03, -1.03]])
    each = ProcessRelative(eta=10.0, step=1, scale=False)(rollout)
    close(each[0], [0.95, 0.96, 0.98, 0.97])
    raw = ProcessRelative(eta=10.0, step=2, raw=True)(rollout)
    close(raw[0], [1.95, 1.96, 1.98, 1.97])


def test_steps_may_end_where_segments_do():
    segment = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])
    rollout = drifted(DRIFT.repeat(2, 1), torch.tensor([2.0, 0.0]), segment=segment)
    got = ProcessRelative(eta=10.0, step=None, scale=False)(rollout)
    close(got, [[0.95, 0.97, 0.97, 0.97], [-1.02, -1.02, -1.02, -1.03]])
    assert PRL(steps="segment").objective().advantage.step is None and PRL().objective().advantage.step == 256


def test_dead_decisions_are_no_steps():
    # live decisions 1, 3, 4: steps of two end at the third and the last; suffix sums [.3, -, .2, .3]
    drift = torch.tensor([[0.1, math.nan, -0.1, 0.3]]).repeat(2, 1)
    rollout = drifted(drift, torch.tensor([2.0, 0.0]), [[1, 0, 1, 1]] * 2)
    close(ProcessRelative(eta=10.0, step=2, scale=False)(rollout)[0, [0, 2, 3]], [0.98, 0.98, 0.97])
    rollout = replace(rollout, segment=torch.tensor([[1, 5, 1, 2]]).repeat(2, 1))
    close(ProcessRelative(eta=10.0, step=None, scale=False)(rollout)[0, [0, 2, 3]], [0.98, 0.98, 0.97])


def test_filling_back_goes_by_position_not_by_value():
    ends = torch.tensor([[False, True, False, True]])
    close(filled_back(torch.tensor([[9.0, 0.0, 9.0, 2.0]]), ends)[0], [0, 0, 2, 2])  # an end whose value is exactly 0


@pytest.mark.parametrize("settings", [{"eta": math.inf}, {"step": 2}], ids=["eta infinite", "old is the reference"])
def test_prl_without_a_penalty_is_grpo(settings):
    rollout = rollout_of(TOYS["tokens"]())
    drift = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)) if "eta" in settings else torch.zeros(16, 4)
    rollout = replace(rollout, ref=Evaluation(logp=rollout.old.logp - drift))
    ours = replace(GRPO(kl=0.0, eps=1e-6).objective(), weighting=by_decision)
    torch.testing.assert_close(PRL(**settings).objective().advantage(rollout), ours.advantage(rollout))
    new = moved(rollout)
    torch.testing.assert_close(loss_of(PRL(**settings).objective(), rollout, new), loss_of(ours, rollout, new))
    assert PRL().objective().needs == {"logp", "ref"}


# BRPO

J = torch.tensor([[[0.0, 1, 1, 1], [0, 0, 0, 1]]], dtype=torch.float64)
BUDGETS = {
    "uniform": [[0.25, 0.375, 0.1458333, 0.0267857], [-0.25, -0.125, 0.0625, 0.1875]],
    "linear": [[0.25, 0.4125, 0.1916667, 0.0428571], [-0.25, -0.0875, 0.125, 0.3]],
}


@pytest.mark.parametrize("prior", BUDGETS)
def test_budget_advantages_by_hand(prior):
    close(budget_advantage(J, budget_prior(prior, 4))[0], BUDGETS[prior])


@pytest.mark.parametrize("prior", BUDGETS)
def test_the_slot_reads_scores_at_the_ends_of_segments(prior):
    reward = torch.zeros(2, 8)
    reward[:, 1::2] = J[0].float()
    segment = (torch.arange(8) // 2).repeat(2, 1)
    rollout = batch([[1] * 8] * 2, reward, segment=segment)
    got = BudgetRelative(prior)(rollout)
    close(got[:, ::2], BUDGETS[prior])
    assert torch.equal(got[:, ::2], got[:, 1::2]) and got.dtype == torch.float32


def test_a_thought_that_ended_early_keeps_its_last_score():
    # the second thought ends in segment 1 with score 1: J = [0, 1, 1, 1] as the first, so that v2 is the return of both
    # uniform prior: segment 0 ¾ - ¾, segment 1 ¾ - (1·0 + 3·¾)/4
    reward = torch.tensor([[0.0, 1, 1, 1], [0, 1, 7, 7]])
    rollout = batch([[1, 1, 1, 1], [1, 1, 0, 0]], reward, segment=torch.arange(4).repeat(2, 1))
    got = BudgetRelative("uniform")(rollout)
    close(got[:, :2], [[0, 0.1875], [0, 0.1875]])
    close(got[0], budget_advantage(J[:, [0, 0]], budget_prior("uniform", 4))[0, 0].tolist())
    assert (got[1, 2:] == 0).all()


def test_baselines_of_the_ablations():
    prior = budget_prior("base", 2)
    assert prior.tolist() == [0, 1]
    score = torch.tensor([[[0.2, 1.0], [0.4, 0.0]]], dtype=torch.float64)
    # only the last budget counts: ret = J_1 in both segments, mean ½; the thought's own score before segment 1: .2, .4
    close(budget_advantage(score, prior, "none")[0], [[1, 1], [0, 0]])
    close(budget_advantage(score, prior, "group")[0], [[0.5, 0.5], [-0.5, -0.5]])
    close(budget_advantage(score, prior, "earlier")[0], [[1, 0.8], [0, -0.4]])
    close(budget_advantage(score, prior)[0], [[0.5, 1 - (0.2 + 0.5) / 2], [-0.5, -(0.4 + 0.5) / 2]])


def test_one_budget_is_dr_grpo():
    rollout = rollout_of(TOYS["tokens"]())
    new = moved(rollout)
    for length in (None, 16):
        torch.testing.assert_close(
            loss_of(BRPO(length=length).objective(), rollout, new), loss_of(DrGRPO(length=length).objective(), rollout, new)
        )
    flat = replace(rollout, reward=torch.full_like(rollout.reward, 0.3))
    close(BudgetRelative()(flat), [[0.0] * 4] * 16)


def test_answers_are_compared_at_their_own_cut_beside_thoughts():
    # two thoughts of group 0 with two budgets, and four answers in two groups, one segment each
    reward = torch.tensor([[1.0, 1], [0, 0], [0, 1], [0, 0], [0, 1], [0, 1]])
    segment = torch.tensor([[0, 1], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0]])
    got = BudgetRelative("uniform")(batch([[1, 1]] * 6, reward, [0, 0, 1, 1, 2, 2], segment=segment))
    close(got[2:], [[0.5, 0.5], [-0.5, -0.5], [0, 0], [0, 0]])
    close(got[:2, 0], [0.5, -0.5])


def test_rows_of_missing_scores_leave_the_group():
    rollout = batch([[1]] * 3, torch.tensor([1.0, 0.0, math.nan]), present=torch.tensor([True, True, False]))
    credit = assign_credit(BRPO().objective(), rollout)
    close(credit.advantage[:, 0], [0.5, -0.5, 0])


# EAPO


def rounds(reward, told, group=None):
    rollout = batch([[1, 1]] * len(reward), torch.tensor(reward), group)
    info = [{"round": t, "rounds": count} for t, count in told]
    return replace(rollout, prompts=Prompts([""] * len(info), [""] * len(info), info))


def test_rewards_are_discounted_by_the_rounds_that_follow():
    left = torch.arange(4, -1, -1)
    close(discounted(torch.ones(5, dtype=torch.float64), left, 0.9), [0.6561, 0.729, 0.81, 0.9, 1])
    assert (discounted(torch.zeros(5), left, 0.9) == 0).all()


@pytest.mark.parametrize("form", ["rows", "segments"])
def test_a_shorter_way_to_success_is_preferred(form):
    # successes of 2 and of 5 rounds: first rounds .9 > .6561; the pool is all seven rounds
    each = torch.tensor([0.9, 1, 0.6561, 0.729, 0.81, 0.9, 1], dtype=torch.float64)
    expected = ((each - each.mean()) / each.std()).tolist()
    if form == "rows":
        told = [(1, 2), (2, 2), *((t, 5) for t in range(1, 6))]
        got = RoundRelative(0.9, eps=0.0)(rounds([1.0] * 7, told))[:, 0]
    else:
        segment = torch.tensor([[0, 1, 0, 0, 0], [0, 1, 2, 3, 4]])
        rollout = batch([[1, 1, 0, 0, 0], [1] * 5], torch.ones(2), segment=segment)
        got = RoundRelative(0.9, eps=0.0)(rollout)[torch.tensor([[1, 1, 0, 0, 0], [1] * 5]).bool()]
    close(got, expected)
    assert got[0] > got[2]


def test_failures_have_nothing_to_discount():
    got = RoundRelative(0.9)(rounds([0.0] * 4, [(1, 2), (2, 2), (1, 2), (2, 2)]))
    assert (got == 0).all()


def test_rounds_of_other_prompts_do_not_count():
    got = RoundRelative(0.5, eps=0.0)(rounds([1.0, 1, 8, 8], [(1, 2), (2, 2), (1, 2), (2, 2)], [3, 3, 1, 1]))[:, 0]
    close(got, [-math.sqrt(0.5), math.sqrt(0.5)] * 2)


def test_what_is_not_a_round_is_refused():
    with pytest.raises(ConfigError, match="info of row 1, got 3 of 2. Give every row both"):
        RoundRelative()(rounds([0.0, 0], [(1, 2), (3, 2)]))


def test_single_rounds_are_gspo():
    rollout = replace(rollout_of(TOYS["tokens"]()), segment=None)
    new = moved(rollout)
    torch.testing.assert_close(loss_of(EAPO().objective(), rollout, new), loss_of(GSPO().objective(), rollout, new))


def one_token(count, seed=0):
    old = Evaluation(logp=-torch.rand(count, 1, generator=torch.Generator().manual_seed(seed)))
    return batch([[1]] * count, torch.zeros(count), old=old)


def test_rows_are_cut_to_a_multiple():
    rollout = one_token(103)
    gate = WholeMultiple(8)(rollout, torch.zeros(103, 1))
    assert gate.sum() == 96 and set(gate.flatten().tolist()) == {0.0, 1.0}
    assert WholeMultiple(200)(rollout, torch.zeros(103, 1)).sum() == 103  # rather than nothing
    dead = replace(rollout, mask=rollout.mask & (torch.arange(103) >= 6)[:, None])
    gate = WholeMultiple(8)(dead, torch.zeros(103, 1))
    assert gate.sum() == 96 and (gate[:6] == 0).all()
    assert EAPO().objective().gate is None and EAPO(multiple=8).objective().gate == WholeMultiple(8)


def test_which_rows_go_depends_on_the_rows_not_on_their_order():
    rollout, none = one_token(21), torch.zeros(21, 1)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(1))
    gate = WholeMultiple(8)(rollout, none)
    assert torch.equal(WholeMultiple(8)(rollout.at(order), none), gate[order])
    assert not torch.equal(WholeMultiple(8, seed=1)(rollout, none), gate)
    assert not torch.equal(WholeMultiple(8)(one_token(21, seed=1), none), gate)


def test_draws_are_uniform_and_read_live_decisions_only():
    draws = row_draws(one_token(2000), "s")
    assert draws.min() >= 0 and draws.max() < 1 and abs(draws.mean() - 0.5) < 0.03 and abs(draws.std() - 0.2887) < 0.02
    rollout = replace(one_token(3), samples=["x", "y", "y"], old=Evaluation(logp=torch.zeros(3, 1)))
    same = row_draws(rollout, "s")
    assert same[1] == same[2] != same[0]
    spoiled = replace(batch([[1, 0]]), old=Evaluation(logp=torch.tensor([[0.5, math.nan]])))
    assert row_draws(spoiled, "s") == row_draws(batch([[1]], old=Evaluation(logp=torch.tensor([[0.5]]))), "s")


def test_segments_must_fit():
    with pytest.raises(ShapeError, match=r"segment has shape \[1, 3\], expected \[B, T\] = \[1, 2\]"):
        RoundRelative()(batch([[1, 1]], torch.zeros(1), segment=torch.zeros(1, 3, dtype=torch.int64)))
