"""A second critic of what an action makes of a state (PDPPO): what it reads, what is recorded, and a run that trains both."""

from dataclasses import replace

import pytest
import torch
from stretches import PLANE, acted, built, rows_apart
from test_train import fresh

from flows.control.recipe import Gaussian, Net
from studio.algorithms.pdppo import PDPPO
from studio.core import policy_loss
from studio.errors import NeedsError
from studio.recipe import load_recipe
from studio.run import RunView
from studio.train import train

TWO = Gaussian(Net((8,), "tanh"), post=True)


def test_it_judges_the_action_as_the_environment_clips_it():
    """Low and high are ±5: what was drawn beyond leads to the same state, and a wider plane to another."""
    policy = built(TWO)
    record = {"observation": torch.zeros(1, 4), "action": torch.tensor([[5.0, -5.0]])}
    beyond = record | {"action": torch.tensor([[7.5, -60.0]])}
    assert torch.equal(policy.post(record), policy.post(beyond))
    policy.space = replace(PLANE, low=(-9.0, -9.0), high=(9.0, 9.0))
    assert not torch.equal(policy.post(record), policy.post(beyond))
    assert built(Gaussian(Net((8,), "tanh"))).post(record) is None


def test_the_first_critic_and_the_actor_start_as_without_it():
    with_it, without = (dict(built(how).model.named_parameters()) for how in (TWO, replace(TWO, post=False)))
    assert without.keys() < with_it.keys() and all(torch.equal(value, with_it[name]) for name, value in without.items())


def test_what_it_said_is_recorded_and_said_again():
    rollout = acted(built(TWO))
    assert rollout.old.post.shape == rollout.old.value.shape and not torch.equal(rollout.old.post, rollout.old.value)
    rows, _ = rows_apart(PDPPO().objective(), rollout)
    said = built(TWO).evaluate(rows)
    torch.testing.assert_close(said.post, rollout.old.post.reshape(-1, 1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rows.old.post, rollout.old.post.reshape(-1, 1), atol=0, rtol=0)


@pytest.mark.parametrize(("algorithm", "both"), [(PDPPO(), False), (PDPPO(blend=0.5), True)], ids=["smaller", "each"])
def test_which_critic_learns(algorithm, both):
    policy = built(TWO)
    with torch.no_grad():
        policy.model.post[-1].bias.add_(100.0)  # the first one is smaller everywhere
    rows, credit = rows_apart(algorithm.objective(), acted(policy))
    policy_loss(algorithm.objective(), policy.evaluate(rows), rows, credit)[0].backward()
    moved = {name: bool(p.grad is not None and p.grad.abs().sum() > 0) for name, p in policy.model.named_parameters()}
    assert moved["critic.0.weight"] and moved["actor.0.weight"] and moved["post.0.weight"] is both


def test_a_policy_with_one_critic_is_refused():
    with pytest.raises(NeedsError, match="needs entropy, logp, post, value; policy 'gaussian' provides .*that provides post"):
        load_recipe("control/gridworld-pdppo", ["policy.post=false"])[0].check()


def test_the_recipe_trains_both(tmp_path):
    sizes = [
        "acting={environments: 4, steps: 4, rewards: true}",
        "train.steps=2",
        "train.minibatches=2",
        "watch={every: 9, episodes: 4}",
    ]
    recipe = load_recipe("control/gridworld-pdppo", sizes)[0]
    assert recipe.check() == []
    run = fresh(recipe, tmp_path)
    assert train(recipe, run) == "finished"
    assert RunView.open(run.folder).metrics().records[-1]["loss/value"] > 0
