"""DPPO's policy: an action is the end of a chain of Gaussian steps, each a decision of its own (arXiv:2409.00588)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flows.control import alike
from flows.control.baselines import DPPO
from flows.control.environment import Mode, Space
from flows.control.networks import ActorCritic
from flows.control.solver import gaussian_kl, shifted_logp
from flows.control.trace import ActionTrace
from studio.types import EVERY, Evaluation, Rollout

LOGP = (-5.0, 2.0)  # bounds of a coordinate's log density in DPPO's diffusion chain


class Steps(Protocol):
    """What a chain consists of. `at` is the number of a step, or EVERY for all K at once, x then [..., K, d]."""

    @property
    def std(self) -> Tensor: ...  # [K, 1]
    def mean(self, x: Tensor, output: Tensor, at: int | slice) -> Tensor: ...  # of the next state, from the network's output
    def logp(self, away: Tensor, std: Tensor) -> Tensor: ...  # of a state so far away from the mean, [..., d] -> [...]


@dataclass(frozen=True)
class EulerSteps:
    """x' = x + u/K + σ·ε: Euler's rule with fixed noise. The form of FPO's comparison with DPPO (arXiv:2507.21053)."""

    std: Tensor  # [K, 1]

    def mean(self, x: Tensor, output: Tensor, at: int | slice) -> Tensor:
        return x + output / self.std.shape[0]

    def logp(self, away: Tensor, std: Tensor) -> Tensor:
        """The sum over dimensions."""
        return shifted_logp(away, torch.zeros_like(away), std)


@dataclass(frozen=True)
class DiffusionSteps:
    """The posterior steps of DDPM, from the noise ε̂ that the network sees in x: DPPO's chain (arXiv:2409.00588).

    x̂₀ = clip((x - √(1-ᾱ)·ε̂)/√ᾱ, ±1),  mean = √ᾱ'·β/(1-ᾱ)·x̂₀ + √(1-β)·(1-ᾱ')/(1-ᾱ)·x,  σ² = β·(1-ᾱ')/(1-ᾱ), at least σ_min²;
    ᾱ is the share of the action's variance that x has, ᾱ' that of the next state, β = 1 - ᾱ/ᾱ'.  Fields [K, 1], noisiest first.
    """

    kept: Tensor  # √ᾱ
    hidden: Tensor  # √(1-ᾱ)
    pull: Tensor  # of x̂₀ on the mean
    stay: Tensor  # share of x in the mean
    std: Tensor  # the same while sampling and in the likelihood

    def mean(self, x: Tensor, output: Tensor, at: int | slice) -> Tensor:
        clean = ((x - self.hidden[at] * output) / self.kept[at]).clamp(-1, 1)
        return self.pull[at] * clean + self.stay[at] * x

    def logp(self, away: Tensor, std: Tensor) -> Tensor:
        """The mean over dimensions of each one's log density within [-5, 2]."""
        each = shifted_logp(away[..., None], torch.zeros_like(away[..., None]), std[..., None])
        return each.clamp(*LOGP).mean(-1)


def cosine_steps(count: int, floor: float) -> DiffusionSteps:
    """K posterior steps of the cosine schedule: ᾱ_k ∝ cos²(π/2·(k/K + 0.008)/1.008), β at most 0.999 (arXiv:2102.09672)."""
    place = (torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008
    level = (place * math.pi / 2).cos().square()
    beta = (1 - level[1:] / level[:-1]).clamp(max=0.999)
    kept = (1 - beta).cumprod(0)
    later = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    std = (beta * (1 - later) / (1 - kept)).sqrt().clamp(min=floor)
    pull, stay = later.sqrt() * beta / (1 - kept), (1 - beta).sqrt() * (1 - later) / (1 - kept)
    return DiffusionSteps(*(x.flip(0)[:, None] for x in (kept.sqrt(), (1 - kept).sqrt(), pull, stay, std)))


class Walk(NamedTuple):
    """A chain that was walked, with the Gaussians of its steps."""

    chain: Tensor  # [..., K + 1, d] from noise to action
    mean: Tensor  # [..., K, d]
    std: Tensor  # [..., K, d]


def walk(start: Tensor, noise: Tensor, step: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Walk:
    """x' = mean + std·ε from `start` [N, d], with noise [N, K, d]; `step` gives mean and std of the next state."""
    chain, means, stds = [start], [], []
    for k in range(noise.shape[-2]):
        mean, std = step(chain[-1], k)
        chain.append((mean + std * noise[..., k, :]).to(start.dtype))
        means.append(mean)
        stds.append(std)
    return Walk(torch.stack(chain, -2), torch.stack(means, -2), torch.stack(stds, -2))


def chain_draws(own: torch.Generator, shape: tuple[int, int], count: int, size: int, truncate: float | None) -> dict[str, Tensor]:
    """Starts [*shape, d] and the noise of the steps [*shape, K, d], the latter within ±truncate."""
    start, noise = torch.randn(*shape, size, generator=own), torch.randn(*shape, count, size, generator=own)
    return {"start": start, "noise": noise if truncate is None else noise.clamp(-truncate, truncate)}


def quieter(draw: Mapping[str, Tensor], mode: Mode) -> tuple[Tensor, Tensor]:
    """Start and noise of a chain for evaluation: as trained, without noise, or from 0 without noise."""
    start = torch.zeros_like(draw["start"]) if mode == "deterministic" else draw["start"]
    return start, draw["noise"] if mode == "stochastic" else torch.zeros_like(draw["noise"])


class ChainPolicy:
    """a = scale·x_K, x_{k+1} ~ N(mean_k(x_k; s), σ_k²), x_0 ~ N(0, I): an action has K parts, each with its own likelihood.

    Means are float64, from states and outputs in float32: with σ = 0.05 the rounding of a mean would be 1e-5 of a log density.
    """

    provides = frozenset({"logp", "sigma", "value", "kl"})
    begin = visit = alike.nothing
    value, trainable, save, load = alike.value, alike.trainable, alike.save, alike.load

    def __init__(self, net: ActorCritic, space: Space, how: DPPO, seed: int) -> None:
        self.model, self.space, self.how, self.seed = net, space, how, seed
        self.reduction = "sum" if how.kind == "flow" else "mean"
        self.steps: Steps = EulerSteps(torch.full((how.steps, 1), how.noise, dtype=torch.float64))
        if how.kind == "ddpm":
            self.steps = cosine_steps(how.steps, how.floor)
        self.together: Callable[[Tensor], Tensor] = lambda x: x

    def draws(self, step: int, steps: int, rows: int) -> dict[str, Tensor]:
        return chain_draws(alike.random(self, step), (steps, rows), self.how.steps, self.space.action, self.how.truncate)

    def act(self, observation: Tensor, draw: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions [N, d] and what is to be remembered of them."""
        done = self.walk(observation, draw["start"], draw["noise"])
        return self.how.scale * done.chain[..., -1, :], {"chain": done.chain, "mean": done.mean}

    def decide(self, observation: Tensor, draw: Mapping[str, Tensor], mode: Mode) -> Tensor:
        return self.how.scale * self.walk(observation, *quieter(draw, mode)).chain[..., -1, :]

    def walk(self, observation: Tensor, start: Tensor, noise: Tensor) -> Walk:
        output = alike.on_grid(self.model.actor, observation, self.how.steps)
        return walk(start, noise, lambda x, k: (self.mean(x, output(x, k), k), self.steps.std[k].expand_as(x)))

    def mean(self, x: Tensor, output: Tensor, at: int | slice) -> Tensor:
        return self.steps.mean(x.double(), output.double(), at)

    def logp(self, record: Mapping[str, Tensor], mean: Tensor) -> Tensor:
        """Log density of the recorded states after these means.  [..., K]"""
        return self.steps.logp(record["chain"][..., 1:, :] - mean, self.steps.std).float()

    def trace(self, record: dict[str, Tensor]) -> ActionTrace:
        """The trace of a stretch [N, T, ...] with what this policy says of it now; sigma is 1 at the first step, 0 at the last."""
        logp = self.logp(record, record["mean"])
        if self.how.steps == 1:  # the one part of an action is the action, and its last step
            return ActionTrace(record, Evaluation(logp=logp[..., 0], sigma=torch.zeros_like(logp[..., 0])))
        sigma = torch.linspace(1, 0, self.how.steps).to(logp).expand_as(logp)
        return ActionTrace(record, Evaluation(logp=logp, sigma=sigma), self.how.steps)

    def evaluate(self, rollout: Rollout) -> Evaluation:
        """What the policy says now of recorded actions."""
        assert isinstance(rollout.trace, ActionTrace)
        record, said = rollout.trace.record, rollout.trace.said
        assert said.logp is not None
        x, observation = record["chain"][..., :-1, :], record["observation"]
        tau = torch.arange(self.how.steps, device=x.device) / self.how.steps
        mean = self.mean(x, alike.at_points(self.model.actor, observation, x, tau), EVERY)
        moved = gaussian_kl(mean - record["mean"], self.steps.std, self.steps.std).float()
        return Evaluation(
            logp=alike.as_said(self.logp(record, mean), said.logp),
            sigma=said.sigma,
            value=alike.as_said(self.value(observation)[..., None], said.logp),
            kl=alike.as_said(moved, said.logp),
        )
