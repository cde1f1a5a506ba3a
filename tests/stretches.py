"""What holds for every control policy on the loop: stretches, first replays, cuts, shares of processes, one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from test_train import fresh
from torch import Tensor

from flows.control.arena import Arena
from flows.control.environment import Space
from flows.control.multigoal import MultiGoal
from studio.core import Objective, assign_credit, policy_loss
from studio.recipe import load_recipe
from studio.replay import apart
from studio.run import RunView
from studio.settings import Acting
from studio.state import final_weights
from studio.train import train
from studio.types import Credit, Evaluation, Rollout

PLANE = Space(4, 2, (-5.0, -5.0), (5.0, 5.0))
TINY = (
    "acting={environments: 4, steps: 4}",
    "train.steps=2",
    "train.epochs=2",
    "watch={every: 9, episodes: 4}",
    "policy.net.hidden=[16]",
)


def built(how: Any, seed: int = 0) -> Any:
    torch.manual_seed(7)
    return how.build(seed, PLANE)


def constant(policy: Any, velocity: tuple[float, float]) -> Any:
    """The network says this everywhere."""
    layer = policy.model.actor.trunk[-1]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(velocity))
    return policy


def acted(policy: Any, rank: int = 0, world: int = 1, environments: int = 4) -> Rollout:
    """Three actions of every copy of this process."""
    return Arena(MultiGoal(), Acting(environments, 3), 0, rank, world).stretch(policy, 0)


def rows_apart(objective: Objective, rollout: Rollout) -> tuple[Rollout, Credit]:
    return apart(rollout, assign_credit(objective, rollout))


def likelihood(said: Evaluation) -> Tensor:
    """What rises as a decision becomes likelier."""
    found = said.logp if said.fit is None else -said.fit
    assert found is not None
    return found


@torch.no_grad()
def assert_first_replay(policy: Any, objective: Objective, tolerance: float = 1e-6) -> None:
    """What is said of a stretch, of its actions apart and of any of them is what was said while sampling."""
    rollout = acted(policy)
    torch.testing.assert_close(likelihood(policy.evaluate(rollout)), likelihood(rollout.trace.said), rtol=0, atol=tolerance)
    flat, credit = rows_apart(objective, rollout)
    new = policy.evaluate(flat)
    assert new.value.shape == flat.mask.shape and torch.equal(new.value, flat.old.value)
    assert objective.ratio(new, flat).abs().max() <= tolerance
    _, stats = policy_loss(objective, new, flat, credit)
    assert stats["ratio/largest"] <= tolerance and abs(stats["weight"].item() - 1) < 1e-6
    assert new.kl is None or new.kl.abs().max() <= tolerance


@torch.no_grad()
def assert_any_rows(policy: Any, objective: Objective, tolerance: float = 1e-5) -> None:
    """After a change of the weights: any actions in any order, and any part of the stretch, give what all of them give."""
    rollout = acted(policy)
    flat, _ = rows_apart(objective, rollout)
    shaken(policy)
    whole, rows = policy.evaluate(flat), torch.tensor([7, 0, 11])
    assert objective.ratio(whole, flat).abs().max() > 1e-4
    torch.testing.assert_close(likelihood(policy.evaluate(flat.at(rows))), likelihood(whole)[rows], rtol=0, atol=tolerance)
    stretch = likelihood(policy.evaluate(rollout))
    torch.testing.assert_close(stretch.reshape(likelihood(whole).shape), likelihood(whole), rtol=0, atol=tolerance)
    part = policy.evaluate(rollout.at(slice(1, 3), slice(1, 2)))
    torch.testing.assert_close(likelihood(part), stretch[1:3, 1:2], rtol=0, atol=tolerance)


@torch.no_grad()
def shaken(policy: Any, size: float = 0.01) -> None:
    for p in policy.model.parameters():
        p.add_(size * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


def assert_pulls(policy: Any, objective: Objective) -> None:
    """A step of the optimizer makes a good action likelier and a bad one less so, and a bad one is no pull on others."""
    objective = replace(objective, regularizers=(), critic=None)
    flat, credit = rows_apart(replace(objective, critic=None), acted(policy))
    parameters = list(policy.trainable())

    def gradient(x: Tensor) -> Tensor:
        found = torch.autograd.grad(x, parameters, allow_unused=True)
        return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(found, parameters, strict=True)])

    for row in (0, 5):
        climb = gradient(likelihood(policy.evaluate(flat))[row].mean())
        for sign in (1.0, -1.0):
            only = torch.zeros_like(credit.advantage)
            only[row] = sign
            loss, _ = policy_loss(objective, policy.evaluate(flat), flat, replace(credit, advantage=only))
            step = -gradient(loss)
            assert sign * (step * climb).sum() > 0
            assert torch.nn.functional.cosine_similarity(step, sign * climb, dim=0) > 0.5


@torch.no_grad()
def assert_shares(how: Any) -> None:
    """Eight copies in one process, or four in each of two: the same draws, actions, records and rewards."""
    whole = acted(built(how), environments=8)
    halves = [acted(built(how), rank, 2, environments=8) for rank in range(2)]
    for name, value in whole.trace.record.items():
        torch.testing.assert_close(torch.cat([half.trace.record[name] for half in halves]), value, rtol=0, atol=1e-5, msg=name)
    joined = torch.cat([likelihood(half.trace.said) for half in halves])
    torch.testing.assert_close(joined, likelihood(whole.trace.said), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([half.reward for half in halves]), whole.reward, rtol=0, atol=1e-5)
    noise = [built(how, seed).draws(step, 3, 8) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert all(not torch.equal(noise[0][name], other[name]) for other in noise[1:] for name in noise[0])


def assert_trains(name: str, root: Path, *overrides: str) -> None:
    """Two iterations of the bundled recipe: the first replay has ratio 1, later ones have not, and weights come back as saved."""
    recipe, _ = load_recipe(f"control/multigoal-{name}", [*TINY, *overrides])
    assert recipe.check() == []
    run = fresh(recipe, root, "run")
    assert train(recipe, run) == "finished"
    told = [line for line in RunView.open(run.folder).metrics().records if "ratio/largest" in line]
    assert len(told) == 2 and all(1e-6 < line["ratio/largest"] < 20 and line["loss/grad_norm"] > 0 for line in told)
    fresh_one, trained, again = (recipe.policy.options.build(0, PLANE) for _ in range(3))
    trained.load(final_weights(run.folder))
    draw = {name: value[0] for name, value in trained.draws(0, 1, 3).items()}
    trained.save(root / "again")
    again.load(root / "again")
    before, after, saved = (policy.decide(torch.ones(3, 4), draw, "noiseless") for policy in (fresh_one, trained, again))
    assert torch.equal(after, saved)
    assert (after - before).abs().max() > 1e-5  # at the start the last layer is 0, whatever the seed
