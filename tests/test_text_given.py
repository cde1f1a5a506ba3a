"""Answers that are read instead of drawn: preference pairs, and beginnings of reference answers."""

import json
from collections import Counter

import pytest
import torch
from test_train import fresh
from text_runs import prepared, text_recipe
from tiny_lm import tiny_policy, tiny_tokenizer

from studio.errors import ConfigError
from studio.run import RunView
from studio.state import load_trained
from studio.text.given import answer_tokens, beginnings, pair_answers
from studio.train import train
from studio.types import Prompts


def pairs(*answers):
    return Prompts(["1+1="] * len(answers), ["a"] * len(answers), [{"chosen": c, "rejected": r} for c, r in answers])


def test_the_first_two_rows_of_a_group_are_its_answers():
    rows = pairs(("2", "3"), ("2", "3"), ("2", "3"), ("9", "8"), ("9", "8"))
    assert pair_answers(rows, torch.tensor([4, 4, 4, 7, 7])) == ["2", "3", None, "9", "8"]


@pytest.mark.parametrize("micro", [None, 2, 1])
def test_given_rows_carry_the_likelihood_of_their_answer(micro):
    policy = tiny_policy(pairs=True, limit=6, critic=True)
    rows = pairs(*[("12", "305")] * 4)
    rollout = policy.sample(rows, group=torch.zeros(4, dtype=torch.long), seeds=[1, 2, 3, 4], step=0, micro=micro)
    assert rollout.samples[:2] == ["12", "305"] and rollout.given.tolist() == [True, True, False, False]
    assert rollout.mask[0].sum() == 3 and rollout.mask[1].sum() == 4  # with the end
    again = policy.evaluate(rollout)
    torch.testing.assert_close(again.logp, rollout.old.logp, atol=5e-6, rtol=1e-5)
    whole = torch.cat([policy.tokenizer("1+1=", return_tensors="pt")["input_ids"][0], answer_tokens(policy.tokenizer, "12", 6)])
    expected = policy.model.lm(whole[None]).logits[0, 3:-1].log_softmax(-1).gather(1, whole[4:, None])[:, 0]
    torch.testing.assert_close(rollout.old.logp[0, :3], expected, atol=5e-6, rtol=1e-5)
    drawn = tiny_policy(limit=6, critic=True).sample(rows, group=torch.zeros(4, dtype=torch.long), seeds=[1, 2, 3, 4], step=0)
    assert rollout.samples[2:] == drawn.samples[2:]  # a row's draws are its own


def test_an_answer_longer_than_the_limit_is_refused():
    with pytest.raises(ConfigError, match="at most sampling.limit = 3 tokens with its end, got 4"):
        answer_tokens(tiny_tokenizer(), "123", 3)


def test_beginnings_are_proper_parts_of_the_reference_of_every_length():
    """Five tokens: one to four of them, each as often."""
    rows = Prompts(["x"] * 4000, ["x"] * 4000, [{"solution": "12345"}] * 4000)
    found = Counter(len(tokens) for tokens in beginnings(tiny_tokenizer(), rows, range(4000), 1.0, "solution"))
    assert found.keys() == {1, 2, 3, 4} and all(abs(n - 1000) <= 4 * (4000 * 0.25 * 0.75) ** 0.5 for n in found.values())
    some = beginnings(tiny_tokenizer(), rows, range(4000), 0.25, "solution")
    assert abs(sum(len(tokens) > 0 for tokens in some) - 1000) <= 110
    single = Prompts(["x"], ["x"], [{"solution": "7"}])
    assert len(beginnings(tiny_tokenizer(), single, [0], 1.0, "solution")[0]) == 0


def test_rolled_in_tokens_are_written_and_do_not_train():
    policy = tiny_policy(roll_in=1.0, limit=8)
    rows = Prompts(["1+1="] * 6, ["a"] * 6, [{"solution": "98765"}] * 6)
    rollout = policy.sample(rows, group=torch.zeros(6, dtype=torch.long), seeds=range(6), step=0)
    for row, text in enumerate(rollout.samples):
        forced = 8 - int(rollout.mask[row].flip(0).int().argmax()) - int(rollout.mask[row].sum())
        assert 1 <= forced <= 4 and text.startswith("98765"[:forced])
        assert not rollout.mask[row, :forced].any() and rollout.mask[row, forced]
    rollout.old.logp.masked_fill_(~rollout.mask, 0.0)
    torch.testing.assert_close(policy.evaluate(rollout).logp, rollout.old.logp, atol=5e-6, rtol=1e-5)


def test_a_record_without_its_answers_is_refused_before_sampling(tmp_path):
    recipe = text_recipe(tmp_path, "policy.sampling.pairs=true")
    with pytest.raises(ConfigError, match="expected texts 'chosen' and 'rejected' beside it, got no chosen and no rejected"):
        train(recipe, fresh(recipe, tmp_path))


@pytest.mark.parametrize(("algorithm", "rows"), [("dpo", 2), ("ipo", 2), ("slic", 2), ("hypo", 4)])
def test_a_run_on_pairs_learns_to_prefer_the_chosen_answers(algorithm, rows, tmp_path):
    """Without rewards, in the same loop: log π(chosen) - log π(rejected) rises over the base's for nearly every pair."""
    root = prepared(tmp_path)
    pairs = [{"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 1)} for a in range(4) for b in range(2)]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    recipe = text_recipe(
        root,
        f"algorithm={algorithm}",
        f"prompts={{name: file, train: {root}/pairs.jsonl, test: {root}/pairs.jsonl}}",
        "policy.sampling.pairs=true",
        f"train.group_size={rows}",
        "train.steps=12",
        "train.groups_per_step=8",
        "train.learning_rate=0.003",
        "watch.every=100",
        "rewards={}",
    )
    assert train(recipe, fresh(recipe, root)) == "finished"
    last = [record for record in RunView.open(root / "run").metrics().records if "sample/margin" in record]
    assert len(last) == 3 and last[-1]["sample/margin"] > last[0]["sample/margin"]
    policy, shown = recipe.policy.options.build(0), recipe.prompts.options.held_out(8).take([i for i in range(8) for _ in range(2)])
    group = torch.arange(8).repeat_interleave(2)

    def margin():
        logp = policy.sample(shown, group=group, seeds=range(16), step=0).old.logp.sum(1)
        return logp[0::2] - logp[1::2]

    before = margin()
    load_trained(RunView.open(root / "run").checkpoint(), policy)
    assert (margin() > before).float().mean() >= 7 / 8
