"""Signs of over-optimization, measured on the rollouts of every text run."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_lm import tiny_policy

from studio.text import monitor
from studio.text.monitor import Monitor, means
from studio.types import Prompts


def rollout_of(policy, rows=5):
    texts = ["1+1="] * rows
    prompts = Prompts(texts, texts, [{}] * rows)
    return policy.sample(prompts, group=torch.zeros(rows, dtype=torch.long), seeds=range(rows), step=0)


@pytest.mark.parametrize("budget", [monitor.BUDGET, 400], ids=["at once", "row by row"])
def test_mass_and_entropy_are_those_of_the_plain_model(budget, monkeypatch):
    monkeypatch.setattr(monitor, "BUDGET", budget)
    policy = tiny_policy(temperature=0.5)
    rollout = rollout_of(policy)
    found, count = torch.zeros(2), 0
    prompt = policy.tokenizer("1+1=", return_tensors="pt")["input_ids"][0]
    for row in range(5):
        length = int(rollout.mask[row].sum())
        logits = policy.model.lm(torch.cat([prompt, rollout.trace.token[row, :length]])[None]).logits[0, len(prompt) - 1 : -1]
        top = logits.softmax(-1).topk(10).values  # at temperature 1, whatever was sampled at
        mass = top.sum(-1, keepdim=True)
        found += torch.stack([mass.sum(), -(top / mass * (top / mass).log()).sum()]).detach()
        count += length
    assert means(policy, rollout) == pytest.approx((found / count).tolist(), abs=1e-5)


def test_dead_rows_cost_a_forward_and_change_nothing(monkeypatch):
    """Processes that share their weights must make equally many."""
    monkeypatch.setattr(monitor, "BUDGET", 400)
    policy, calls = tiny_policy(), []
    whole = rollout_of(policy)
    policy.model.register_forward_hook(lambda *given: calls.append(1))
    alone = means(policy, whole.at(slice(0, 2)))
    assert len(calls) == 2
    dead = replace(whole, mask=whole.mask & (torch.arange(5) < 2)[:, None])
    assert means(policy, dead) == pytest.approx(alone, abs=1e-6) and len(calls) == 2 + 5
    assert means(policy, replace(whole, mask=torch.zeros_like(whole.mask))) == (0, 0)


def test_a_policy_that_only_flattens_is_not_warned_of_and_the_memory_survives():
    policy, watch = tiny_policy(), Monitor(every=1)
    told = []
    for step in range(8):
        with torch.no_grad():
            policy.model.lm.model.norm.weight.mul_(0.6)  # logits shrink: mass and entropy go opposite ways
        told.append(watch(policy, rollout_of(policy), step))
    assert told[-1]["sample/warning"] == 0 and told[-1]["sample/top_entropy"] <= math.log(10) + 1e-6
    again = Monitor(every=1)
    again.load_state_dict(watch.state_dict())
    assert again.warning == watch.warning
    assert Monitor(every=3)(policy, rollout_of(policy), 4) == {} and Monitor(every=0)(policy, rollout_of(policy), 0) == {}
