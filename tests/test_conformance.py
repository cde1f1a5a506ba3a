"""Every objective of the table on every toy policy: what any objective must satisfy, whatever it computes."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from toys import TOYS, Toy, learned, rollout_of

from studio.algorithms import ALGORITHMS
from studio.core import assign_credit, check_fit, metrics, policy_loss, total
from studio.core.loss import Objective
from studio.core.pathwise import PathwiseObjective
from studio.errors import NeedsError
from studio.types import Evaluation, Rollout


def algorithm(name: str) -> type:
    place, _, cls = ALGORITHMS[name].partition(":")
    return getattr(import_module(place), cls)


def objective_of(name: str) -> Objective:
    return algorithm(name)().objective()


def fits(name: str, toy: str) -> bool:
    return objective_of(name).needs <= TOYS[toy].provides


def adds_nothing(name: str, toy: str) -> bool:
    """A toy that extends another one, and an algorithm that the other one is enough for."""
    return any(fits(name, other) for other, cls in TOYS.items() if cls is not TOYS[toy] and issubclass(TOYS[toy], cls))


WRITTEN = [name for name, place in ALGORITHMS.items() if find_spec(place.partition(":")[0]) is not None]
PAIRS = [(a, t) for a in WRITTEN for t in TOYS]
FITTING = [pytest.param(a, t, id=f"{a} on {t}") for a, t in PAIRS if fits(a, t) and not adds_nothing(a, t)]
REFUSED = [pytest.param(a, t, id=f"{a} not on {t}") for a, t in PAIRS if not fits(a, t)]
on_every_pair = pytest.mark.parametrize(("name", "toy"), FITTING)


def moved(toy: Toy, by: float = 0.03, seed: int = 3) -> None:
    """Leaves the policy that sampled, so that ratios are not all one."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in toy.trainable():
            p.add_(by * torch.randn(p.shape, generator=noise))


def prepared(name: str, toy: str, by: float = 0.03) -> tuple[Objective, Toy, Rollout]:
    """A rollout with dead decisions, a dead row and a missing reward, replayed by a policy that has moved."""
    policy = TOYS[toy]()
    rollout = rollout_of(policy)
    mask = rollout.mask.clone()
    mask[1, -1] = mask[2, 0] = False
    mask[5] = False
    present = torch.ones(len(mask), dtype=torch.bool)
    present[9] = False
    if by:
        moved(policy, by)
    return objective_of(name), policy, replace(rollout, mask=mask, present=present)


def gradient(policy: Toy, loss: torch.Tensor) -> torch.Tensor:
    policy.zero_grad()
    loss.backward()
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in policy.trainable()])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_builds_from_defaults_and_compares(name):
    if name not in WRITTEN:
        pytest.skip(f"{ALGORITHMS[name]} is not written yet")
    cls = algorithm(name)
    assert isinstance(cls().objective(), Objective | PathwiseObjective)
    assert cls() == cls()
    with pytest.raises(AttributeError):
        setattr(cls(), fields(cls)[0].name, 0)  # noqa: B010


@pytest.mark.parametrize(("name", "toy"), REFUSED)
def test_is_refused_by_name_where_needs_exceed_provides(name, toy):
    with pytest.raises(NeedsError) as caught:
        check_fit(name, objective_of(name), TOYS[toy].provides, toy)
    missing = objective_of(name).needs - TOYS[toy].provides
    assert f"algorithm {name!r} needs" in str(caught.value)
    assert f"policy {toy!r} provides" in str(caught.value)
    assert all(need in str(caught.value).rpartition("Use it")[2] for need in missing)


@on_every_pair
def test_is_accepted(name, toy):
    check_fit(name, objective_of(name), TOYS[toy].provides, toy)


@on_every_pair
def test_equal_rewards_give_a_finite_loss(name, toy):
    objective, policy, rollout = prepared(name, toy)
    rollout = replace(rollout, reward=torch.full_like(rollout.reward, 0.3))
    credit = assign_credit(objective, rollout)
    loss, stats = policy_loss(objective, policy.evaluate(rollout), rollout, credit)
    assert torch.isfinite(gradient(policy, loss)).all()
    assert all(torch.isfinite(value).all() for value in metrics(stats).values())


@on_every_pair
def test_credit_carries_no_gradient_and_weights_add_up(name, toy):
    objective, _, rollout = prepared(name, toy)
    credit = assign_credit(objective, rollout)
    assert not any(x.requires_grad for x in (credit.advantage, credit.gate, credit.weight))
    assert (credit.gate >= 0).all() and (credit.weight >= 0).all()
    assert credit.weight.sum() <= 1 + 1e-5
    dead = ~rollout.mask | ~rollout.present[:, None]
    assert (credit.weight[dead] == 0).all()


@on_every_pair
def test_dead_decisions_change_nothing_even_when_they_are_not_numbers(name, toy):
    objective, policy, rollout = prepared(name, toy)
    dead = ~rollout.mask | ~rollout.present[:, None]

    def spoil(said: Evaluation | None, value: float) -> Evaluation | None:
        if said is None:
            return None
        live = {f.name: getattr(said, f.name) for f in fields(said) if getattr(said, f.name) is not None}
        return Evaluation(
            **{n: torch.where(dead.reshape(dead.shape + (1,) * (x.ndim - 2)), value, x.detach()) for n, x in live.items()}
        )

    results = []
    for value in (0.5, 1000.0, float("nan"), float("-inf")):
        new = spoil(policy.evaluate(rollout), value)
        for f in fields(new):
            if getattr(new, f.name) is not None:
                getattr(new, f.name).requires_grad_()
        spoiled = replace(rollout, old=spoil(rollout.old, value), ref=spoil(rollout.ref, value))
        loss, stats = policy_loss(objective, new, spoiled, assign_credit(objective, spoiled))
        loss.backward()
        grads = [g for g in (x.grad for x in _tensors(new)) if g is not None]
        assert grads
        assert all((g[dead] == 0).all() for g in grads)
        results.append([loss.detach(), *metrics(stats).values(), *grads])
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)


def _tensors(said: Evaluation) -> list[torch.Tensor]:
    return [x for f in fields(said) if (x := getattr(said, f.name)) is not None]


@on_every_pair
def test_chunks_add_up_to_the_whole(name, toy):
    objective, policy, rollout = prepared(name, toy)
    if objective.span == "batch":
        pytest.skip("looks at the whole batch")
    credit = assign_credit(objective, rollout)
    whole, stats = policy_loss(objective, policy.evaluate(rollout), rollout, credit)
    expected = gradient(policy, whole)
    everything = slice(None)
    row_cuts = [(slice(0, 1), everything), (slice(1, 7), everything), (torch.arange(7, 16), everything)]
    if objective.span == "group":  # of four rows each
        row_cuts = [(slice(0, 4), everything), (slice(4, 8), everything), (torch.arange(8, 16), everything)]
    cuts = {"rows": row_cuts}
    if objective.span == "decision":
        cuts["steps"] = [(everything, slice(t, t + 1)) for t in range(rollout.mask.shape[1])]
    for how, places in cuts.items():
        parts = []
        for place in places:
            chunk = rollout.at(*place)
            parts.append(policy_loss(objective, policy.evaluate(chunk), chunk, credit.at(*place)))
        loss = sum(part for part, _ in parts)
        torch.testing.assert_close(loss, whole, rtol=1e-6, atol=1e-7, msg=f"loss over {how}")
        torch.testing.assert_close(gradient(policy, loss), expected, rtol=1e-6, atol=1e-7, msg=f"gradient over {how}")
        torch.testing.assert_close(metrics(total(s for _, s in parts)), metrics(stats), rtol=1e-4, atol=1e-6)


@on_every_pair
def test_order_of_rows_does_not_matter(name, toy):
    objective, policy, rollout = prepared(name, toy)
    order = torch.randperm(len(rollout.mask), generator=torch.Generator().manual_seed(1))
    if objective.span == "group":  # the place in its group may be what a row is: chosen comes before rejected
        order = torch.cat([torch.arange(16).reshape(4, 4)[g] for g in (2, 0, 3, 1)])
    losses = []
    for batch in (rollout, rollout.at(order)):
        loss, _ = policy_loss(objective, policy.evaluate(batch), batch, assign_credit(objective, batch))
        losses.append((loss.detach(), gradient(policy, loss)))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-7)


@on_every_pair
def test_padding_with_dead_decisions_changes_nothing(name, toy):
    objective, policy, rollout = prepared(name, toy)
    new = policy.evaluate(rollout)
    junk = {True: torch.nan, False: 99}

    def pad(said: Evaluation | None) -> Evaluation | None:
        if said is None:
            return None
        live = {f.name: getattr(said, f.name) for f in fields(said) if getattr(said, f.name) is not None}
        return Evaluation(**{n: torch.cat([x, torch.full_like(x[:, :2], junk[x.is_floating_point()])], 1) for n, x in live.items()})

    wide = replace(
        rollout,
        trace=None,
        mask=torch.cat([rollout.mask, torch.zeros_like(rollout.mask[:, :2])], 1),
        old=pad(rollout.old),
        ref=pad(rollout.ref),
        segment=None if rollout.segment is None else torch.cat([rollout.segment, torch.zeros_like(rollout.segment[:, :2])], 1),
    )
    whole, _ = policy_loss(objective, new, rollout, assign_credit(objective, rollout))
    padded, _ = policy_loss(objective, pad(new), wide, assign_credit(objective, wide))
    torch.testing.assert_close(padded, whole, rtol=1e-6, atol=1e-7)


@on_every_pair
def test_ratio_is_one_before_the_first_update(name, toy):
    objective, policy, rollout = prepared(name, toy, by=0.0)
    _, stats = policy_loss(objective, policy.evaluate(rollout), rollout, assign_credit(objective, rollout))
    done = metrics(stats)
    assert done["ratio/largest"] == 0 and done["ratio/mean"] == 1 and done["ratio/ess"] == 1


@on_every_pair
def test_positive_advantage_raises_the_likelihood_of_that_decision(name, toy):
    objective, policy, rollout = prepared(name, toy, by=0.0)
    objective = replace(objective, regularizers=(), critic=None)
    credit = assign_credit(objective, rollout)
    b, t = [int(i) for i in (credit.weight > 0).nonzero()[0]]
    for sign in (1.0, -1.0):
        only = torch.zeros_like(credit.advantage)
        only[b, t] = sign
        said = policy.evaluate(rollout)
        before = (-said.fit if said.logp is None else said.logp)[b, t]
        loss, _ = policy_loss(objective, policy.evaluate(rollout), rollout, replace(credit, advantage=only))
        direction = gradient(policy, loss)
        slope = (direction * gradient(policy, before)).sum()  # d logp / d step = -(gradient of loss · gradient of logp)
        assert sign * slope < 0


@on_every_pair
def test_learns_its_toy(name, toy):
    began = time.thread_time()  # other work on the machine does not count
    assert learned(TOYS[toy](), objective_of(name)) > 0.5
    assert time.thread_time() - began < 2
