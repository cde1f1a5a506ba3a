"""Prompt sources that say how rows are sampled: by priority, in windows, at budgets of thinking; and what policies make of it."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_prompts import some
from tiny_lm import DIGITS, tiny_policy
from toys import batch

from studio.algorithms.brpo import BRPO, BudgetRelative, at_cuts, budget_advantage, budget_prior
from studio.algorithms.spo import SuccessTracker
from studio.algorithms.t_ppo import TPPO, ExtendedGAE
from studio.config import component
from studio.core import GAE, assign_credit, policy_loss
from studio.errors import ConfigError, NeedsError, ShapeError
from studio.prompts.budgets import Budgeted, BudgetPrompts
from studio.prompts.order import Shuffled
from studio.prompts.priority import Prioritized, weighted_draws
from studio.prompts.windows import Unfinished
from studio.recipe import load_recipe
from studio.text.budgets import thoughts_and_answers
from studio.text.generate import Generated
from studio.types import Evaluation, Prompts


def close(got, expected, atol=1e-6):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


# by priority


def test_draws_without_replacement_are_sequential_draws_by_weight():
    """Weights 1, 2, 3: first 1/6, 2/6, 3/6; 3 then 1: 3/6 · 1/3; the last one never comes before."""
    draws, count = random.Random(0), 12_000
    pairs = Counter(tuple(weighted_draws([1.0, 2.0, 3.0], 2, draws)) for _ in range(count))
    expected = {(i, j): w / 6 * v / (6 - w) for i, w in enumerate((1, 2, 3)) for j, v in enumerate((1, 2, 3)) if i != j}
    assert pairs.keys() == expected.keys()
    for pair, share in expected.items():
        assert abs(pairs[pair] / count - share) <= 4 * math.sqrt(share * (1 - share) / count), pair
    assert sorted(weighted_draws([1.0, 9.0], 2, draws)) == [0, 1] and len(weighted_draws([1.0, 9.0], 5, draws)) == 5


class Objective:
    def __init__(self, tracker):
        self.advantage = tracker


def test_prompts_are_drawn_by_what_the_tracker_knows_at_the_moment():
    tracker, source = SuccessTracker(), Prioritized(some(2), 3, 8)
    source.follow(Objective(tracker))
    tracker.counts = {"key 0": (1e9, 1e-9), "key 1": (4.0, 4.0)}  # weights .05 and .55
    found = Counter(source.next(1).key[0] for _ in range(3000))
    assert abs(found["key 0"] / 3000 - 1 / 12) <= 4 * math.sqrt(11 / 144 / 3000)
    tracker.counts = {"key 0": (4.0, 4.0), "key 1": (1e-9, 1e9)}
    assert Counter(source.next(1).key[0] for _ in range(300))["key 0"] > 250
    again = Prioritized(some(2), 3, 8)
    again.follow(Objective(tracker))
    again.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert [again.next(2).key for _ in range(20)] == [source.next(2).key for _ in range(20)]


def test_first_estimates_by_hand():
    """n₀ = 8, s = 6: a 5.777778, p .722222, weight .497903; rewards on another scale are put on the range they show."""
    tracker = SuccessTracker()
    tracker.estimate({"a": [1.0] * 6 + [0.0] * 2, "b": [0.5, 1.0]})
    assert tracker.counts["a"] == pytest.approx((5.777778, 2.222222), abs=1e-6)
    assert tracker.priorities(["a"])[0] == pytest.approx(0.497903, abs=1e-6)
    assert tracker.counts["b"] == pytest.approx((8 * 2.0 / 3, 8 * 1.0 / 3)) and tracker.seen == (0.0, 1.0)
    tracker.estimate({"c": [-1.0, 3.0]})  # 0 and 1 of [-1, 3]
    assert tracker.success("c") == pytest.approx(0.5) and tracker.seen == (-1.0, 3.0)


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("spo", "algorithm=grpo", NeedsError, "tracks success rates for prompts 'priority', got 'grpo'"),
        ("spo", "prompts={name: priority, of: tasks}", ConfigError, "a list of prompts and no weights of its own, got 'tasks'"),
        ("t-ppo", "algorithm={name: ppo}", ConfigError, "expected algorithm t_ppo and policy text"),
        ("t-ppo", "train.group_size=2", ConfigError, "expected 1 for prompts 'windows'"),
        ("t-ppo", "policy.sampling.stop=[x]", ConfigError, "ends itself for prompts 'windows', got tools, roll_in, pairs or stop"),
        (
            "t-ppo",
            "prompts.of={name: windows, of: tasks}",
            ConfigError,
            "inside 'windows', got WindowPrompts, which wraps one itself",
        ),
        ("brpo", "algorithm=grpo", ConfigError, "expected algorithm brpo and policy text"),
        ("brpo", "train.group_size=8", ConfigError, "a multiple of 9 rows, in every part of every process too, got groups of 8"),
        (
            "brpo",
            "policy.sampling.limit=30",
            ConfigError,
            "room for thinking \\+ mark \\+ longest = 24 \\+ 1 \\+ 12 tokens, got 30",
        ),
        ("brpo", "prompts.thinking=25", ConfigError, "expected a multiple of cuts = 4, got 25"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_before_a_model_is_loaded(name, change, error, words):
    with pytest.raises(error, match=words):
        load_recipe(f"text/arithmetic-{name}", [change])[0].check()


# in windows


def cut_rows(prompts, tokens, cut):
    said = torch.arange(tokens.numel()).view(tokens.shape) / 7
    rollout = batch([[1] * tokens.shape[1]] * len(tokens), old=Evaluation(logp=said, value=said + 0.1, token=tokens))
    return replace(rollout, prompts=prompts, cut=torch.tensor(cut))


def test_unfinished_rows_keep_their_places_and_new_prompts_take_the_others():
    source = Unfinished(Shuffled(some(5), 0), 2)
    first = source.next(3)
    assert [info["window"]["token"] for info in first.info] == [[]] * 3
    tokens = torch.tensor([[5, 6, 0, 0], [7, 0, 0, 0], [8, 9, 0, 0]])
    source.update(cut_rows(first, tokens, [True, False, True]))
    state = json.loads(json.dumps(source.state_dict()))
    second = source.next(3)
    assert second.key[:2] == [first.key[0], first.key[2]] and second.key[2] not in first.key
    assert second.info[1]["i"] == first.info[2]["i"] and [info["window"]["token"] for info in second.info] == [[5, 6], [8, 9], []]
    torch.testing.assert_close(torch.tensor(second.info[1]["window"]["logp"]), torch.tensor([8.0, 9.0]) / 7, rtol=0, atol=0)
    again = Unfinished(Shuffled(some(5), 0), 2)
    again.load_state_dict(state)
    assert again.next(3) == second
    source.update(cut_rows(second, torch.tensor([[5, 6, 1, 2], [8, 9, 3, 0], [4, 4, 0, 0]]), [True, False, True]))
    third = source.next(3)
    assert [info["window"]["token"] for info in third.info] == [[5, 6, 1, 2], [4, 4], []]
    assert third.key[:2] == [second.key[0], second.key[2]]


def in_windows(policy, size, limit, rows=6):
    """Every iteration's rollout of a source in windows until all its first rows have ended."""
    source = Unfinished(Shuffled(Prompts(["1+1="] * rows, list("abcdef"), [{}] * rows), 0), size)
    found = []
    for step in range(math.ceil(limit / size)):
        prompts = source.next(rows)
        found.append(policy.sample(prompts, group=torch.arange(rows), seeds=range(100 * step, 100 * step + rows), step=step))
        source.update(found[-1])
    return found


def test_a_row_goes_on_where_its_window_cut_it():
    policy = tiny_policy(critic=True, limit=8)
    rollouts = in_windows(policy, 3, 8)
    assert rollouts[0].cut.any() and not rollouts[2].cut[rollouts[2].mask.sum(1) == 8].any()
    for before, rollout in zip([None, *rollouts[:-1]], rollouts, strict=True):
        told = [info["window"] for info in rollout.prompts.info]
        for row, one in enumerate(told):
            count, length = len(one["token"]), int(rollout.mask[row].sum())
            ended = not rollout.cut[row]
            assert rollout.trace.token[row, :count].tolist() == one["token"]
            assert rollout.mask[row, :count].all() if ended else not rollout.mask[row, :count].any()  # for the critic only
            assert length <= (count + 3 if ended else 3) and bool(rollout.cut[row]) == (
                length == 3 and count + 3 < 8 and not ends(rollout, row)
            )
        if before is not None:  # what was said of a token when it was drawn stays with it
            went_on = before.cut.nonzero()[:, 0].tolist()
            assert torch.equal(rollout.old.logp[: len(went_on), :3], before.old.logp[went_on, :3])
            assert torch.equal(rollout.old.value[: len(went_on), :3], before.old.value[went_on, :3])
        again = policy.evaluate(rollout)  # the weights did not change between the windows
        torch.testing.assert_close(again.logp, torch.where(rollout.mask, rollout.old.logp, 0.0), atol=5e-6, rtol=1e-5)
        torch.testing.assert_close(again.value, torch.where(rollout.mask, rollout.old.value, 0.0), atol=5e-6, rtol=1e-5)


def ends(rollout, row):
    return DIGITS["<end>"] in rollout.trace.token[row, rollout.mask[row]].tolist()


def test_one_window_of_the_whole_limit_is_no_window():
    prompts = Prompts(["1+1=", "2*3="], ["a", "b"], [{}] * 2)
    one = tiny_policy(critic=True, limit=6).sample(prompts, group=torch.arange(2), seeds=[1, 2], step=0)
    rows = Unfinished(Shuffled(prompts, 0), 6).next(2)
    rows = rows.take([rows.key.index("a"), rows.key.index("b")])
    same = tiny_policy(critic=True, limit=6).sample(rows, group=torch.arange(2), seeds=[1, 2], step=0)
    assert torch.equal(same.trace.token, one.trace.token) and torch.equal(same.mask, one.mask) and not same.cut.any()
    assert torch.equal(same.old.logp, one.old.logp) and torch.equal(same.old.value, one.old.value)


def window(*counts):
    info = [{"window": {"token": [0] * count}} for count in counts]
    return Prompts([""] * len(counts), [""] * len(counts), info)


def test_the_policy_learns_from_this_window_and_the_critic_from_rows_that_ended():
    """Row 0 goes on in its second window, its first tokens are dead; row 1 has ended in its second, row 2 in its first."""
    value = torch.tensor([[9.0, 0.2, 0.4, 0.5], [0.3, 0.2, 0.4, 0.5], [0.1, 0, 0, 0]])
    rollout = batch([[0, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]], torch.tensor([5.0, 1.0, 0.0]))
    rollout = replace(rollout, old=Evaluation(logp=torch.zeros(3, 4), value=value), prompts=window(1, 1, 0))
    rollout = replace(rollout, cut=torch.tensor([True, False, False]))
    advantage = ExtendedGAE()(rollout)
    close(
        advantage, [[0, 0.295, 0.1, 0.0], [0, 0.74625, 0.575, 0.5], [-0.1, 0, 0, 0]]
    )  # the numbers of one window; no reward of a cut row
    objective = TPPO(whiten=False).objective()
    credit = assign_credit(objective, rollout)
    close(credit.weight.sum(), 1.0)
    close(credit.weight * credit.gate, [[0, 1 / 7, 1 / 7, 1 / 7], [0, 1 / 7, 1 / 7, 1 / 7], [1 / 7, 0, 0, 0]])  # 7 decisions of now
    close(credit.weight * (2 - credit.gate), [[0] * 4, [0.2] * 4, [0.2, 0, 0, 0]])  # 5 decisions of rows that ended
    close(credit.target[1:], [[1, 1, 1, 1], [0, 0, 0, 0]])
    new = Evaluation(logp=torch.zeros(3, 4, requires_grad=True), value=torch.full((3, 4), 0.5, requires_grad=True))
    loss, stats = policy_loss(objective, new, rollout, credit)
    loss.backward()
    close(stats["loss/value"], 0.125)  # ½·(½ - R)² with R = 1 and R = 0
    close(new.logp.grad, (-advantage / 7).tolist())
    close(new.value.grad, [[0] * 4, [-0.1] * 4, [0.1, 0, 0, 0]])


def test_whitening_knows_this_window_only():
    rollout = batch([[1, 1, 1]] * 2, torch.tensor([1.0, 0.0]), old=Evaluation(value=torch.zeros(2, 3), logp=torch.zeros(2, 3)))
    ended = replace(rollout, prompts=window(1, 1))
    alone = GAE(1.0, 0.95, whiten=True)(replace(rollout, mask=rollout.mask & (torch.arange(3) > 0)))
    torch.testing.assert_close(ExtendedGAE(whiten=True)(ended), alone)


# at budgets


def budgeted(count, **settings):
    told = {"thinking": 8, "cuts": 4, "answers": 1, "longest": 2, "mark": "="} | settings
    return Prompts(["1+1="] * count, ["a"] * count, [{"budgets": told}] * count)


J = [[0.0, 1, 1, 1], [0, 0, 0, 1]]
BUDGETS = {
    "uniform": [[0.25, 0.375, 0.1458333, 0.0267857], [-0.25, -0.125, 0.0625, 0.1875]],
    "linear": [[0.25, 0.4125, 0.1916667, 0.0428571], [-0.25, -0.0875, 0.125, 0.3]],
}


@pytest.mark.parametrize("prior", BUDGETS)
def test_scores_of_answers_credit_the_thoughts_that_led_to_them(prior):
    """The published numbers, from rewards of rows: two thoughts of eight tokens, one answer at each of four cuts."""
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[[0, 5], :8] = True
    for row in (1, 2, 3, 4, 6, 7, 8, 9):
        mask[row, 2 * (row % 5) : 2 * (row % 5) + 2] = True
    reward = torch.tensor([7.0, *J[0], 7.0, *J[1]])  # what a thought itself is given counts nowhere
    rollout = replace(batch(mask.tolist(), reward, [4] * 10), prompts=budgeted(10))
    got = BudgetRelative(prior)(rollout)
    close(got[[0, 5], :8:2], BUDGETS[prior])
    assert torch.equal(got[[0, 5], :8:2], got[[0, 5], 1:8:2]) and (got[[1, 2, 3, 4, 6, 7, 8, 9]] == 0).all()  # one answer a cut
    assert torch.equal(assign_credit(BRPO(prior=prior).objective(), rollout).advantage, got)


def test_answers_are_compared_with_those_of_the_same_cut():
    """Two cuts, two answers each; the second thought ended in the first segment, so that its four answers are of one cut."""
    mask = torch.zeros(10, 6, dtype=torch.bool)
    mask[0, :4], mask[5, :1] = True, True
    mask[1:5, 4], mask[6:, 2] = True, True
    reward = torch.tensor([0.0, 1, 0, 1, 1, 0.0, 1, 0, 0, 0])
    rollout = replace(batch(mask.tolist(), reward), prompts=budgeted(10, thinking=4, cuts=2, answers=2))
    told = at_cuts(rollout, rollout.prompts.info[0]["budgets"])
    assert told.group[1] == told.group[2] != told.group[3] == told.group[4] and len(set(told.group[6:].tolist())) == 1
    got = BudgetRelative("uniform")(rollout)
    close(got[1:5, 4], [0.5, -0.5, 0, 0])
    close(got[6:, 2], [0.75, -0.25, -0.25, -0.25])
    score = torch.tensor([[[0.5, 1.0], [0.25, 0.25]]], dtype=torch.float64)  # an ended thought keeps its score
    expected = budget_advantage(score, budget_prior("uniform", 2))[0]
    close(got[0, [0, 2]], expected[0].tolist())
    close(got[5, 0], expected[1, 0].item())


def test_missing_scores_leave_their_cut_and_a_thought_without_any_leaves_the_group():
    mask = torch.ones(10, 4, dtype=torch.bool)
    present = torch.tensor([True, False, True, True, True, True, False, False, True, True])
    reward = torch.tensor([0.0, 9, 0, 1, 1, 0, 9, 9, 0, 0])
    rollout = replace(batch(mask.tolist(), reward, present=present), prompts=budgeted(10, thinking=4, cuts=2, answers=2))
    credit = assign_credit(BRPO(prior="uniform").objective(), rollout)
    # J of the first thought is 0, 1, alone in its group: ret ½, ½ less itself, then ½ - (0·½ + ½)/2
    close(credit.advantage[0], [0.0, 0.0, 0.25, 0.25])
    assert (credit.advantage[5] == 0).all() and (credit.weight[[1, 6, 7]] == 0).all()
    with pytest.raises(ShapeError, match="blocks of 5 rows, a thought with its answers, got 9"):
        BudgetRelative()(rollout.at(slice(0, 9)))


def test_budgets_that_no_thought_reached_count_all_the_same():
    """Linear prior over four budgets, .1 .2 .3 .4, and thoughts that ended within the second: ret = .1·J_0 + .9·J_1, .9·J_1."""
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[:, :3] = True
    rollout = replace(batch(mask.tolist(), torch.tensor([0.0, 0, 1, 1, 1, 0, 1, 0, 0, 0])), prompts=budgeted(10))
    close(BudgetRelative(baseline="none")(rollout)[[0, 5], :3], [[0.9, 0.9, 0.9], [0.1, 0.1, 0.0]])


def test_one_budget_without_thoughts_that_differ_gives_the_thoughts_dr_grpo():
    """S = 1: return less the group's mean, whatever the prior."""
    mask = torch.ones(4, 3, dtype=torch.bool)
    rollout = replace(batch(mask.tolist(), torch.tensor([0.0, 1, 0, 0])), prompts=budgeted(4, thinking=3, cuts=1))
    close(BudgetRelative()(rollout)[[0, 2]], [[0.5] * 3, [-0.5] * 3])


def ids(text):
    return torch.tensor([DIGITS[c] if c != "." else DIGITS["<end>"] for c in text], dtype=torch.int64)


def test_answers_are_asked_for_behind_what_was_thought_at_each_cut():
    """One thought runs through both budgets, one writes the mark in the first, one ends the text there."""
    policy, asked = tiny_policy(), []

    def write(prompts, seeds, limit, stop):
        asked.append((["".join(policy.tokenizer.decode(p.tolist())) for p in prompts], list(seeds), limit, tuple(stop)))
        said = ["1234", "5=", "6."] if stop else [f"{n}." for n in "123456"]
        token = torch.zeros(len(said), limit, dtype=torch.int64)
        for row, text in enumerate(said):
            token[row, : len(text)] = ids(text)
        length = torch.tensor([len(text) for text in said])
        flat = torch.ones(len(said), limit)
        sampled = torch.arange(limit) < length[:, None]
        return Generated(token, flat, flat, None, flat, length, length == 4, sampled)

    rows = budgeted(9, thinking=4, cuts=2, longest=2)
    prompts = [ids("7+8=")] * 9
    done = thoughts_and_answers(write, policy.tokenizer, rows, prompts, range(9), 8)
    assert asked[0] == (["7+8="] * 3, [0, 3, 6], 4, ("=",))
    behind = ["12=", "1234=", "5=", "5=", "6=", "6="]
    assert asked[1] == (["7+8=" + text for text in behind], [1, 2, 4, 5, 7, 8], 2, ())
    expected = ["1234", "12=1.", "1234=2.", "5=", "5=3.", "5=4.", "6.", "6=5.", "6=6."]
    assert [row[:n].tolist() for row, n in zip(done.token, done.length, strict=True)] == [ids(text).tolist() for text in expected]
    sampled = ["1111", "00011", "0000011", "11", "0011", "0011", "11", "0011", "0011"]
    assert ["".join(str(int(x)) for x in row[:n]) for row, n in zip(done.sampled, done.length, strict=True)] == sampled
    assert done.cut.tolist() == [True] + [False] * 8 and done.token.shape == (9, 8)
    with pytest.raises(ConfigError, match="blocks of 3, a thought with its answers, got 8"):
        thoughts_and_answers(write, policy.tokenizer, rows.take(range(8)), prompts[:8], range(8), 8)


def test_a_policy_writes_thoughts_and_answers_that_replay_as_they_were_drawn():
    policy, plain = tiny_policy(limit=12), Prompts(["1+1="], ["a"], [{}])
    mark = policy.sample(plain, group=torch.zeros(1), seeds=[0], step=0).samples[0][1]  # so that one thought is over before its cut
    told = budgeted(1, thinking=4, cuts=2, answers=2, longest=3, mark=mark).info[0]["budgets"]
    rows = Budgeted(Shuffled(plain, 0), told).next(2).take([0] * 5 + [1] * 5)
    rollout = policy.sample(rows, group=torch.arange(10) // 5, seeds=range(10), step=0, micro=5)
    assert rollout.samples[0].index(mark) == len(rollout.samples[0]) - 1 <= 1 and not rollout.cut[0]
    for row in range(10):
        first, count = int(rollout.mask[row].int().argmax()), int(rollout.mask[row].sum())
        if row % 5 == 0:
            assert first == 0 and count <= 4
        else:
            thought = rollout.samples[row - row % 5][: 2 * ((row % 5 - 1) // 2 + 1)]
            start = thought if mark in thought else thought + mark
            assert rollout.samples[row].startswith(start) and first == len(start) and count <= 3
    old = torch.where(rollout.mask, rollout.old.logp, 0.0)
    torch.testing.assert_close(policy.evaluate(rollout).logp, old, atol=5e-6, rtol=1e-5)


def test_the_source_tells_rows_and_evaluates_without_budgets():
    options = BudgetPrompts(component("prompts", "tasks"), thinking=8)
    assert options.rows == 9 and "budgets" not in options.held_out(3).info[0]
    source = options.build(0)
    first = source.next(2)
    assert first.info[0]["budgets"]["thinking"] == 8 and first.info[0]["task"]
    again = options.build(0)
    again.load_state_dict(source.state_dict())
    assert again.next(2) == source.next(2) != first
