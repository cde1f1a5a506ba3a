"""Tiny policies with exact rewards: tokens (plain, judged by critics, in pairs), denoising steps, actions, units, matching points.

Each is a Policy in the protocol's sense with a few parameters, learns in a fraction of a second and has a known best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from studio.core import assign_credit, metrics, policy_loss
from studio.core.tempered import TEMPERATURES
from studio.protocols import Policy
from studio.types import EVERY, Evaluation, Prompts, Rollout


@dataclass(frozen=True, slots=True)
class ToyTrace:
    """Decisions taken, where they were taken, and their index, so that any cut of the batch can be replayed."""

    taken: Tensor  # [B, T, ...]
    index: Tensor  # [B, T] int64
    state: Tensor | None = None  # [B, T, ...]
    noise: Tensor | None = None  # [B, T, ...]

    def at(self, rows, steps=EVERY) -> ToyTrace:
        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows][:, steps]

        return ToyTrace(self.taken[rows][:, steps], self.index[rows][:, steps], cut(self.state), cut(self.noise))


class Toy(nn.Module):
    """What the toys share: seeds, the frozen reference and the rollout around a trace."""

    provides: frozenset[str] = frozenset()
    reduction = "sum"
    steps: int

    def __init__(self) -> None:
        super().__init__()
        self._start: dict[str, Tensor] = {}

    def freeze_reference(self) -> None:
        self._start = {name: p.detach().clone() for name, p in self.named_parameters()}

    @contextmanager
    def reference(self) -> Iterator[None]:
        here = {name: p.detach().clone() for name, p in self.named_parameters()}
        self._put(self._start)
        try:
            yield
        finally:
            self._put(here)

    def trainable(self) -> Iterable[nn.Parameter]:
        return self.parameters()

    def save(self, folder: Path) -> None:
        save_file({name: p.detach().contiguous() for name, p in self.named_parameters()}, folder / "toy.safetensors")

    @torch.no_grad()
    def sample(self, rows: Prompts, *, group: Tensor, seeds: Sequence[int], step: int) -> Rollout:
        trace = self.act(seeds)
        mask = torch.ones(trace.index.shape, dtype=torch.bool)
        rollout = Rollout(rows, None, trace, mask, group, Evaluation(), seeds=list(seeds))
        rollout = replace(rollout, old=self.evaluate(rollout))
        if "ref" in self.provides:
            with self.reference():
                rollout = replace(rollout, ref=self.evaluate(rollout))
        return rollout

    def act(self, seeds: Sequence[int]) -> ToyTrace:
        raise NotImplementedError

    def evaluate(self, rollout: Rollout) -> Evaluation:
        raise NotImplementedError

    def reward(self, rollout: Rollout) -> Tensor:
        raise NotImplementedError

    def index(self, rows: int) -> Tensor:
        return torch.arange(self.steps).expand(rows, self.steps)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, p in self.named_parameters():
            p.copy_(values[name])


class Tokens(Toy):
    """Four tokens out of five, in two parts. Reward: the share of positions that hold the wanted token; best 1."""

    provides = frozenset({"logp", "entropy", "token", "tempered", "ref"})
    steps, vocabulary, best = 4, 5, 1.0

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(self.steps, self.vocabulary))
        self.freeze_reference()

    def sample(self, rows: Prompts, *, group: Tensor, seeds: Sequence[int], step: int) -> Rollout:
        return replace(super().sample(rows, group=group, seeds=seeds, step=step), segment=self.index(len(seeds)) // 2)

    def act(self, seeds: Sequence[int]) -> ToyTrace:
        gumbel = -(-uniform(seeds, self.steps, self.vocabulary).log()).log()
        return ToyTrace((self.logits + gumbel).argmax(-1), self.index(len(seeds)))

    def evaluate(self, rollout: Rollout) -> Evaluation:
        each = self.logits.log_softmax(-1)[rollout.trace.index]
        logp = each.gather(-1, rollout.trace.taken[..., None])[..., 0]
        warm = [(self.logits / t).log_softmax(-1)[rollout.trace.index] for t in TEMPERATURES]
        tempered = torch.stack([w.gather(-1, rollout.trace.taken[..., None])[..., 0] for w in warm], -1)
        return Evaluation(logp=logp, entropy=-(each.exp() * each).sum(-1), token=rollout.trace.taken, tempered=tempered)

    def reward(self, rollout: Rollout) -> Tensor:
        return (rollout.trace.taken == torch.arange(self.steps)).float().mean(1)


class Denoising(Toy):
    """Four noisy Euler steps in the plane with one velocity per step. Reward: minus the squared distance of the end.

    x' = x - h·v_t + s_t·ε; `logp` is a mean over the two coordinates, as in image models.
    """

    provides = frozenset({"logp", "mean", "std", "noise", "dt", "jacobian", "velocity", "ref"})
    reduction = "mean"
    steps, best = 4, -0.15
    dt = 0.25
    std = (0.2, 0.15, 0.1, 0.05)
    wanted = (0.6, -0.4)

    def __init__(self) -> None:
        super().__init__()
        self.velocity = nn.Parameter(torch.zeros(self.steps, 2))
        self.freeze_reference()

    def act(self, seeds: Sequence[int]) -> ToyTrace:
        noise = normal(seeds, self.steps, 2)
        states = [torch.zeros(len(seeds), 2)]
        for t in range(self.steps):
            states.append(states[-1] - self.dt * self.velocity[t] + self.std[t] * noise[:, t])
        path = torch.stack(states, 1)
        return ToyTrace(path[:, 1:], self.index(len(seeds)), path[:, :-1], noise)

    def evaluate(self, rollout: Rollout) -> Evaluation:
        trace = rollout.trace
        velocity = self.velocity[trace.index]
        mean = trace.state - self.dt * velocity
        std = torch.tensor(self.std)[trace.index]
        each = -0.5 * ((trace.taken - mean) / std[..., None]).square() - std.log()[..., None] - math.log(2 * math.pi) / 2
        step = torch.full_like(std, self.dt)
        return Evaluation(logp=each.mean(-1), mean=mean, std=std, noise=trace.noise, dt=step, jacobian=step, velocity=velocity)

    def reward(self, rollout: Rollout) -> Tensor:
        return -(rollout.trace.taken[:, -1] - torch.tensor(self.wanted)).square().sum(-1)


class Actions(Toy):
    """Three Gaussian actions of two numbers, with a critic. Reward: minus the mean squared error of the actions."""

    provides = frozenset({"logp", "entropy", "mean", "std", "noise", "value"})
    steps, best = 3, -0.18
    std = 0.3
    wanted = ((0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(self.steps, 2))
        self.value = nn.Parameter(torch.zeros(self.steps))
        self.freeze_reference()

    def act(self, seeds: Sequence[int]) -> ToyTrace:
        noise = normal(seeds, self.steps, 2)
        return ToyTrace(self.mean + self.std * noise, self.index(len(seeds)), noise=noise)

    def evaluate(self, rollout: Rollout) -> Evaluation:
        trace = rollout.trace
        mean = self.mean[trace.index]
        std = torch.full(trace.index.shape, self.std)
        each = -0.5 * ((trace.taken - mean) / self.std).square() - math.log(self.std) - math.log(2 * math.pi) / 2
        entropy = std.log() * 2 + math.log(2 * math.pi * math.e)
        value = self.value[trace.index]
        return Evaluation(each.sum(-1), entropy=entropy, mean=mean, std=std, noise=trace.noise, value=value)

    def reward(self, rollout: Rollout) -> Tensor:
        return -(rollout.trace.taken - torch.tensor(self.wanted)).square().sum(-1).mean(1)


class Units(Toy):
    """Six units to keep or to drop. Reward: the share of right choices; best 1."""

    provides = frozenset({"logp", "entropy"})
    steps, best = 6, 1.0
    wanted = (1, 0, 1, 1, 0, 0)

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(self.steps))
        self.freeze_reference()

    def act(self, seeds: Sequence[int]) -> ToyTrace:
        return ToyTrace((uniform(seeds, self.steps) < self.logits.sigmoid()).float(), self.index(len(seeds)))

    def evaluate(self, rollout: Rollout) -> Evaluation:
        unit = torch.distributions.Bernoulli(logits=self.logits[rollout.trace.index])
        return Evaluation(logp=unit.log_prob(rollout.trace.taken), entropy=unit.entropy())

    def reward(self, rollout: Rollout) -> Tensor:
        return (rollout.trace.taken == torch.tensor(self.wanted)).float().mean(1)


class Matching(Toy):
    """A Gaussian in the plane drawn by its exact flow, seen at four noise levels. Reward: minus the squared distance of the sample.

    x = (1-σ)x₀ + σe with x₀ = m + s·z;  v = E[e - x₀ | x] = k·(x - (1-σ)m) - m,  k = (σ - (1-σ)s²)/(σ² + (1-σ)²s²).
    """

    provides = frozenset({"velocity", "target", "sigma", "fit", "ref"})
    reduction = "mean"
    steps, best = 4, -0.18
    std = 0.3
    wanted = (0.6, -0.4)

    def __init__(self) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.zeros(2))
        self.freeze_reference()

    def act(self, seeds: Sequence[int]) -> ToyTrace:
        noise = normal(seeds, self.steps + 1, 2)
        sample = (self.center + self.std * noise[:, :1]).expand(-1, self.steps, -1)
        sigma = self.sigma(self.index(len(seeds)))[..., None]
        return ToyTrace(sample, self.index(len(seeds)), (1 - sigma) * sample + sigma * noise[:, 1:], noise[:, 1:])

    def evaluate(self, rollout: Rollout) -> Evaluation:
        trace, sigma = rollout.trace, self.sigma(rollout.trace.index)
        s, rest = sigma[..., None], 1 - sigma[..., None]
        slope = (s - rest * self.std**2) / (s**2 + rest**2 * self.std**2)
        velocity = slope * (trace.state - rest * self.center) - self.center
        target = trace.noise - trace.taken
        return Evaluation(velocity=velocity, target=target, sigma=sigma, fit=(velocity - target).square().mean(-1))

    def reward(self, rollout: Rollout) -> Tensor:
        return -(rollout.trace.taken[:, 0] - torch.tensor(self.wanted)).square().sum(-1)

    def sigma(self, index: Tensor) -> Tensor:
        return 0.2 * (index + 1)


class Judged(Tokens):
    """Tokens with a critic of each position and one of each token there. Every third row counts as cut."""

    provides = Tokens.provides | {"value", "post"}

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(self.steps))
        self.post = nn.Parameter(torch.zeros(self.steps, self.vocabulary))
        self.freeze_reference()

    def sample(self, rows: Prompts, *, group: Tensor, seeds: Sequence[int], step: int) -> Rollout:
        rollout = super().sample(rows, group=group, seeds=seeds, step=step)
        return replace(rollout, cut=torch.tensor([seed % 3 == 0 for seed in seeds]))

    def evaluate(self, rollout: Rollout) -> Evaluation:
        index, taken = rollout.trace.index, rollout.trace.taken
        return replace(super().evaluate(rollout), value=self.value[index], post=self.post[index, taken])


class Paired(Tokens):
    """Tokens of which the first half of every group is given, in pairs: chosen, the one with the higher reward, then rejected."""

    provides = Tokens.provides | {"given"}

    def sample(self, rows: Prompts, *, group: Tensor, seeds: Sequence[int], step: int) -> Rollout:
        rollout = super().sample(rows, group=group, seeds=seeds, step=step)
        order, given = torch.arange(len(seeds)), torch.zeros(len(seeds), dtype=torch.bool)
        reward = self.reward(rollout)
        for value in group.unique():
            mine = (group == value).nonzero()[:, 0]
            for a, b in mine[: len(mine) // 4 * 2].reshape(-1, 2).tolist():
                given[a] = given[b] = True
                order[a], order[b] = (a, b) if reward[a] >= reward[b] else (b, a)
        return replace(rollout.at(order), given=given)


TOYS: dict[str, type[Toy]] = {
    "tokens": Tokens,
    "denoising": Denoising,
    "actions": Actions,
    "units": Units,
    "matching": Matching,
    "judged": Judged,
    "paired": Paired,
}


def normal(seeds: Sequence[int], *shape: int) -> Tensor:
    """Standard normal draws, one seed a row.  -> [B, *shape]"""
    generator = torch.Generator()
    return torch.stack([torch.randn(shape, generator=generator.manual_seed(seed)) for seed in seeds])


def uniform(seeds: Sequence[int], *shape: int) -> Tensor:
    """Uniform draws in (0, 1), one seed a row.  -> [B, *shape]"""
    return torch.special.ndtr(normal(seeds, *shape))


def rollout_of(toy: Toy, prompts: int = 4, per_prompt: int = 4, seed: int = 0) -> Rollout:
    """A scored rollout; group ids are neither sorted nor contiguous."""
    keys = [f"p{p}" for p in range(prompts) for _ in range(per_prompt)]
    rows = Prompts(keys, keys, [{} for _ in keys])
    group = torch.tensor([(7 * p + 5) % 11 for p in range(prompts)]).repeat_interleave(per_prompt)
    seeds = [seed * 10_000 + b for b in range(len(keys))]
    rollout = toy.sample(rows, group=group, seeds=seeds, step=seed)
    return replace(rollout, reward=toy.reward(rollout))


def learned(toy: Toy, objective) -> float:
    """The share of the way to the best reward that 25 rollouts of two passes bring."""
    optimizer = torch.optim.Adam(toy.trainable(), lr=0.15)
    first = rollout_of(toy, per_prompt=16, seed=99).reward.mean()
    for step in range(25):
        rollout = rollout_of(toy, per_prompt=12, seed=step)
        credit = assign_credit(objective, rollout)
        for _ in range(2):
            loss, _ = policy_loss(objective, toy.evaluate(rollout), rollout, credit)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        objective.update(rollout)
    last = rollout_of(toy, per_prompt=16, seed=99).reward.mean()
    return float((last - first) / (toy.best - first))


def updated(policy: Policy, objective, rollout: Rollout, rounding: float = 1e-6) -> tuple[Rollout, Evaluation]:
    """One optimizer step on a scored rollout: the rollout with its reference, and what the policy says of it afterwards.

    Before the step the ratio is one up to `rounding` and some weight has a gradient; after it the ratio has moved.
    """
    with policy.reference(), torch.no_grad():
        rollout = replace(rollout, ref=policy.evaluate(rollout))
    credit = assign_credit(objective, rollout)
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-3)
    loss, stats = policy_loss(objective, policy.evaluate(rollout), rollout, credit)
    loss.backward()
    assert metrics(stats)["ratio/largest"] <= rounding, metrics(stats)["ratio/largest"]
    assert max(p.grad.abs().max() for p in policy.trainable() if p.grad is not None) > 0
    optimizer.step()
    with torch.no_grad():
        new = policy.evaluate(rollout)
        after, stats = policy_loss(objective, new, rollout, credit)
    assert torch.isfinite(after) and metrics(stats)["ratio/largest"] > rounding
    return rollout, new


def batch(mask: list[list[int]], reward: Tensor | None = None, group: list[int] | None = None, **others) -> Rollout:
    """A rollout for numbers by hand: no trace, old all zero unless given."""
    alive = torch.tensor(mask).bool()
    rows = Prompts([""] * len(mask), [""] * len(mask), [{}] * len(mask))
    zero = torch.zeros(alive.shape)
    others.setdefault("old", Evaluation(logp=zero, value=zero))
    return Rollout(rows, None, None, alive, torch.tensor(group or [0] * len(mask)), reward=reward, **others)


@contextmanager
def saved_for_backward(network: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps inside, by address, beyond the network's weights."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    sizes, alive = {}, []  # kept alive, or an address could come twice

    def keep(x):
        if x.untyped_storage().data_ptr() not in weights:
            alive.append(x)
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield sizes
