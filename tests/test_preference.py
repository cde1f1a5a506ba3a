"""DPO, IPO, SLiC and HyPO, and the early warning, by hand: the numbers and limits of the method notes."""

import math
from dataclasses import replace

import pytest
import torch
from toys import TOYS, batch, rollout_of

from studio.algorithms.dpo import DPO
from studio.algorithms.hypo import HyPO, OnlineKL, half_and_half
from studio.algorithms.ipo import IPO
from studio.algorithms.slic import SLiC
from studio.core import assign_credit, by_sample, check_fit, policy_loss
from studio.core.overoptimization import EarlyWarning, top_k_mass_and_entropy
from studio.core.preference import ChosenLikelihood, PairLoss, by_pair, pairs, row_margin
from studio.errors import ConfigError, NeedsError, ShapeError
from studio.types import Evaluation


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


def compared(mask=((1, 1), (1, 1)), group=None, **others):
    """Pairs whose reference and old likelihoods are 0."""
    zero = Evaluation(logp=torch.zeros(len(mask), len(mask[0])))
    others.setdefault("old", zero)
    return batch([list(row) for row in mask], None, group, ref=others.pop("ref", zero), **others)


def loss_of(algorithm, rollout, logp):
    objective = algorithm.objective()
    return policy_loss(objective, Evaluation(logp=logp), rollout, assign_credit(objective, rollout))[0]


TWO = torch.tensor([[1.0, 0.5], [-0.25, -0.25]])  # D = 1.5 + .5 = 2
BY_HAND = {
    "sigmoid": (DPO(), 0.598139),  # log(1 + exp(-.2))
    "hinge": (SLiC(), 0.8),
    "hinge beyond the margin": (SLiC(beta=0.6), 0.0),
    "ipo": (IPO(), 9.0),  # (2 - 5)²
    "ipo per decision": (IPO(per_decision=True), 16.0),  # (.75 + .25 - 5)²
}


@pytest.mark.parametrize(("algorithm", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_pair_losses_by_hand(algorithm, expected):
    close(loss_of(algorithm, compared(), TWO), expected)
    # more of the same pairs, other lengths and order of groups: the mean over pairs
    rollout = compared([(1, 1), (1, 0), (1, 1), (1, 0)], [3, 1, 3, 1])
    lengths = torch.tensor([[1.0, 0.5], [7.0, 99.0], [-0.25, -0.25], [7.0, 99.0]])
    other = loss_of(algorithm, rollout.at(torch.tensor([1, 3])), lengths[[1, 3]])
    close(loss_of(algorithm, rollout, lengths), (expected + other.item()) / 2, atol=1e-5)


def test_the_reference_is_taken_off():
    ref = Evaluation(logp=torch.tensor([[1.0, 0.5], [-0.25, -0.25]]))
    close(loss_of(DPO(), compared(ref=ref), TWO), math.log(2))
    found = pairs(compared())
    close(row_margin(Evaluation(logp=TWO), compared(), found), [2, 2])
    assert found.partner.tolist() == [1, 0] and found.chosen.tolist() == [True, False] and found.paired.all()


GRADIENTS = {  # d loss / d logp of the chosen row's decisions; the rejected row's are the opposite
    "sigmoid": (DPO(), -0.1 / (1 + math.exp(0.2))),
    "hinge": (SLiC(), -0.1),
    "ipo": (IPO(), -6.0),
}


@pytest.mark.parametrize(("algorithm", "slope"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_by_hand(algorithm, slope):
    logp = TWO.clone().requires_grad_()
    loss_of(algorithm, compared(), logp).backward()
    close(logp.grad, [[slope] * 2, [-slope] * 2])


def test_likelihood_of_chosen_rows_by_hand():
    # -1.5 in nats for the sum of the chosen row, -.75 for its mean; two pairs of which one is worth twice as much
    rollout = compared([(1, 1)] * 4, [0, 0, 1, 1])
    logp = torch.cat([TWO, 2 * TWO])
    plain = loss_of(DPO(), rollout, logp)
    close(loss_of(DPO(nll=0.5), rollout, logp) - plain, 0.5 * (-1.5 - 3.0) / 2)
    zero = torch.zeros(4, 2)
    each = by_pair(rollout) * ChosenLikelihood(per_decision=True)(Evaluation(logp=logp), rollout, zero)
    close(each.sum(), (-0.75 - 1.5) / 2)
    assert len(IPO(nll=0.1).objective().regularizers) == len(SLiC(nll=0.1).objective().regularizers) == 2


def test_pair_weights_are_those_of_samples_where_all_rows_are_in_pairs():
    rollout = compared([(1, 1, 1), (1, 0, 0), (1, 1, 0), (1, 1, 1)], [0, 0, 1, 1])
    torch.testing.assert_close(by_pair(rollout), by_sample(rollout))
    close(by_pair(rollout)[:2], [[1 / 12] * 3, [1 / 4, 0, 0]])


def test_half_a_pair_does_not_count():
    rollout = compared([(1, 1), (0, 0), (1, 1), (1, 1)], [0, 0, 1, 1])
    close(by_pair(rollout), [[0, 0], [0, 0], [0.25, 0.25], [0.25, 0.25]])
    logp = torch.cat([torch.full((2, 2), 9.0), TWO]).requires_grad_()
    loss = loss_of(DPO(), rollout, logp)
    loss.backward()
    close(loss, 0.598139)
    assert (logp.grad[:2] == 0).all()


def test_sampled_rows_are_no_pairs_and_several_pairs_may_share_a_group():
    given = torch.tensor([False, True, True, True, True])
    rollout = compared([(1, 1)] * 5, given=given)
    logp = torch.cat([torch.full((1, 2), 9.0), TWO, TWO])
    found = pairs(rollout)
    assert found.partner.tolist() == [0, 2, 1, 4, 3] and found.chosen.tolist() == [False, True, False, True, False]
    close(loss_of(DPO(), rollout, logp), 0.598139)
    assert (PairLoss()(Evaluation(logp=logp), rollout, logp)[0] == 0).all()


def test_what_is_not_in_pairs_is_refused():
    with pytest.raises(ShapeError, match="chosen before rejected, got a group of 3. Give both rows"):
        pairs(compared([(1, 1)] * 3))
    with pytest.raises(ConfigError, match="PairLoss: expected a strength > 0, got 0. Use 0.1"):
        PairLoss(strength=0.0)
    with pytest.raises(NeedsError, match="algorithm 'dpo' needs given, logp, ref; .* provides given"):
        check_fit("dpo", DPO().objective(), TOYS["tokens"].provides, "tokens")


@pytest.mark.parametrize("algorithm", [DPO, IPO, SLiC, HyPO])
def test_preferences_need_no_reward_and_whole_groups(algorithm):
    assert algorithm.scored is False
    objective = algorithm().objective()
    assert objective.span == "group" and objective.compares and objective.needs == {"logp", "ref", "given"}
    rollout = replace(rollout_of(TOYS["paired"]()), reward=None)
    assert torch.isfinite(loss_of(algorithm(), rollout, rollout.old.logp))


# HyPO


def hybrid(kappa, given=(True, True), rows=2):
    """A pair, then as many samples as there are numbers, whose log ratio to the reference adds up to these."""
    count = len(given) + len(kappa)
    old = torch.zeros(count, rows)
    old[len(given) :] = torch.tensor(kappa)[:, None] / rows
    mask = torch.tensor([*given, *(False for _ in kappa)])
    return compared([(1,) * rows] * count, old=Evaluation(logp=old), given=mask)


def test_online_kl_by_hand():
    close(OnlineKL()(hybrid([1.0, 3.0]))[:, 0], [0, 0, 2, -2])
    close(OnlineKL(0.1)(hybrid([1.0, 3.0, 5.0]))[:, 0], [0, 0, 0.3, 0.0, -0.3])  # against the mean of the others: 4, 3, 2
    assert (OnlineKL()(hybrid([4.0])) == 0).all()  # a single sample
    assert (OnlineKL()(hybrid([0.0, 0.0])) == 0).all()  # the policy is the reference


def test_the_kl_term_is_reinforce_on_whole_rows():
    # λ/k·Σ_i A_i·Σ_t log π: d loss / d logp = -λ/2·[2, -2]
    rollout, kl = hybrid([1.0, 3.0]), 0.01
    logp = rollout.old.logp.clone().requires_grad_()
    loss_of(HyPO(kl=kl), rollout, logp).backward()
    close(logp.grad[2:], [[-kl] * 2, [kl] * 2])
    pair = rollout.old.logp[:2].clone().requires_grad_()
    loss_of(DPO(), rollout.at(slice(0, 2)), pair).backward()
    torch.testing.assert_close(logp.grad[:2], pair.grad)


def test_without_kl_hypo_is_dpo():
    policy = TOYS["paired"]()
    rollout = rollout_of(policy)
    with torch.no_grad():
        policy.logits.add_(torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(2)))
    logp = policy.evaluate(rollout).logp
    assert loss_of(HyPO(kl=0.0), rollout, logp) == loss_of(DPO(), rollout, logp)
    strayed = replace(rollout, old=Evaluation(logp=1.5 * logp.detach()))
    assert abs(loss_of(HyPO(kl=0.5), strayed, logp) - loss_of(DPO(), strayed, logp)) > 0.1


def test_at_the_reference_the_kl_term_has_no_gradient():
    rollout = hybrid([0.0, 0.0, 0.0])
    logp = torch.zeros(5, 2, requires_grad=True)
    loss_of(HyPO(kl=1.0), rollout, logp).backward()
    assert (logp.grad[2:] == 0).all() and (logp.grad[:2] != 0).all()


def test_the_expected_gradient_of_the_kl_term_is_that_of_the_kl():
    # one decision of three options: Σ_x p(x)·∇log p(x)·log(p(x)/q(x)) by enumeration of all pairs of samples
    logits = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    logp = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits, retain_graph=True)
    expected, p = torch.zeros(3, dtype=torch.float64), logp.detach()
    for a in range(3):
        for b in range(3):
            own = torch.stack([logp[a], logp[b]])[:, None]
            rollout = compared([(1,), (1,)], old=Evaluation(logp=own.detach()), given=torch.zeros(2, dtype=torch.bool))
            rollout = replace(rollout, ref=Evaluation(logp=ref[[a, b]][:, None]))
            objective = HyPO(kl=1.0).objective()
            loss, _ = policy_loss(objective, Evaluation(logp=own), rollout, assign_credit(objective, rollout))
            (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
            expected += (p[a] + p[b]).exp() * slope
    torch.testing.assert_close(expected, exact, atol=1e-6, rtol=0)


def test_pairs_and_samples_share_the_weight():
    weight = half_and_half(hybrid([1.0, 3.0]))
    close(weight.sum(1), [0.25] * 4)
    close(half_and_half(compared()).sum(), 0.5)  # nothing sampled


# early warning


def test_top_k_of_known_distributions():
    mass, entropy = top_k_mass_and_entropy(torch.zeros(2, 40), 10)
    close(mass, [0.25] * 2) and close(entropy, [math.log(10)] * 2)
    close(entropy, [math.log(10)] * 2)
    sure = torch.full((40,), -math.inf)
    sure[7] = 3.0
    mass, entropy = top_k_mass_and_entropy(sure, 10)
    assert mass == 1 and entropy == 0
    p = torch.tensor([0.5, 0.25, 0.15, 0.1])
    mass, entropy = top_k_mass_and_entropy(p.log() + 3, 2)  # q = 2/3, 1/3
    close(mass, 0.75) and close(entropy, math.log(3) - 2 / 3 * math.log(2))
    close(entropy, math.log(3) - 2 / 3 * math.log(2))
    close(top_k_mass_and_entropy(p.log(), 2, raw=True).entropy, 0.5 * math.log(2) + 0.25 * math.log(4))
    close(top_k_mass_and_entropy(p.log(), 9).mass, 1.0)  # fewer than k


def test_the_warning_waits_until_both_fall():
    warning = EarlyWarning(patience=3)
    rising = [warning.update(0.5 + 0.1 * i, 1.0 + i) for i in range(3)]
    only_mass = [warning.update(0.1, 9.0) for _ in range(5)]
    assert not any(rising + only_mass)
    assert [warning.update(0.05, 0.5) for _ in range(4)] == [False, False, True, True]


def test_a_rise_between_starts_the_count_again():
    warning = EarlyWarning(patience=2, memory=0.0)
    told = [warning.update(x, x) for x in (0.5, 0.4, 0.45, 0.4, 0.3)]
    assert told == [False, False, False, False, True]


def test_averages_are_exponential_and_survive_a_checkpoint():
    one = EarlyWarning()
    for x in (1.0, 0.0, 1.0):
        one.update(x, 2 * x)
    assert one.smooth == pytest.approx({"mass": 0.91, "entropy": 1.82})  # .9·.9 + .1
    two = EarlyWarning()
    two.load_state_dict(one.state_dict())
    assert two == one
