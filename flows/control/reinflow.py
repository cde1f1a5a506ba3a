"""ReinFlow's policy: a flow made a chain of Gaussian steps by noise whose size is learned (arXiv:2505.22094)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from flows.control import alike
from flows.control.baselines import ReinFlow
from flows.control.chain import Walk, chain_draws, quieter, walk
from flows.control.environment import Mode, Space
from flows.control.networks import ActorCritic
from flows.control.solver import gaussian_kl, noise_entropy, shifted_logp
from flows.control.trace import ActionTrace
from studio.types import Evaluation, Rollout

LOGP = (-1.0, 1.0)  # bounds of a chain's normalized log density


class NoisyVelocity(nn.Module):
    """A velocity network, the network that says how much noise follows a step, and how much that may be at present."""

    high: Tensor

    def __init__(self, velocity: nn.Module, noise: nn.Module, high: float) -> None:
        super().__init__()
        self.velocity, self.noise = velocity, noise
        self.register_buffer("high", torch.tensor(high))  # σ_max: saved with the weights, so that an evaluation acts as trained

    def share(self, time: Tensor, observation: Tensor) -> Tensor:
        """Where log σ² lies between its bounds, in (0, 1).  time features [..., width], observation [..., n] -> [..., d]

        The features are the velocity network's and learn from it alone.
        """
        shape = (*torch.broadcast_shapes(time.shape[:-1], observation.shape[:-1]), -1)
        return (self.noise(torch.cat([time.detach().expand(shape), observation.expand(shape)], -1)).tanh() + 1) / 2


def noise_std(share: Tensor, low: float, high: Tensor) -> Tensor:
    """σ with log σ² = log low² + (log high² - log low²)·share."""
    return low * (share * (high / low).log()).exp()


def highest(step: int, low: float, high: float, hold: int, decay: int) -> float:
    """σ_max of an iteration: held for `hold` of them, then half a cosine over `decay` to 0.3·low + 0.7·high; decay 0 = held on."""
    if not decay or step < hold:
        return high
    end = 0.3 * low + 0.7 * high
    return end + (high - end) * (1 + math.cos(math.pi * min(1.0, (step - hold) / decay))) / 2


def chain_logp(start: Tensor, away: Tensor, std: Tensor) -> Tensor:
    """Log density of a chain per step and dimension: [log N(x_0; 0, I) + Σ_k log N(x_{k+1}; mean_k, σ_k²)] / ((K + 1)·d).

    start x_0 [..., d], away x_{k+1} - mean_k [..., K, d], std σ_k [..., K, d] -> [...]
    """
    zero, one = torch.zeros_like(start), torch.ones_like(start)
    steps = shifted_logp(away, torch.zeros_like(away), std)
    return (shifted_logp(start, zero, one) + steps.sum(-1)) / ((away.shape[-2] + 1) * away.shape[-1])


def chain_entropy(std: Tensor) -> Tensor:
    """Entropy of a chain per step and dimension, its start included.  std σ_k [..., K, d] -> [...]"""
    return (noise_entropy(torch.ones_like(std[..., 0, :])) + noise_entropy(std).sum(-1)) / ((std.shape[-2] + 1) * std.shape[-1])


class ReinFlowPolicy:
    """x_{k+1} = clip(x_k + u(x_k, k/K; s)/K) + σ(k/K, s)·ε from x_0 ~ N(0, I); the action is scale·clip(x_K).

    One likelihood for the whole chain. Times are k/K while sampling and in the replay; the archived release differs there,
    and its first ratio is not 1.
    """

    provides = frozenset({"logp", "entropy", "value", "kl"})
    reduction = "mean"
    visit = alike.nothing
    value, trainable, save, load = alike.value, alike.trainable, alike.save, alike.load

    def __init__(self, net: ActorCritic, space: Space, how: ReinFlow, seed: int) -> None:
        self.model, self.space, self.how, self.seed = net, space, how, seed
        self.together: Callable[[Tensor], Tensor] = lambda x: x

    @property
    def actor(self) -> NoisyVelocity:
        assert isinstance(self.model.actor, NoisyVelocity)
        return self.model.actor

    def begin(self, step: int) -> None:
        """Before the actions of an iteration: how much noise may be added at most."""
        self.actor.high.fill_(highest(step, *self.how.noise, self.how.hold, self.how.decay))

    def draws(self, step: int, steps: int, rows: int) -> dict[str, Tensor]:
        return chain_draws(alike.random(self, step), (steps, rows), self.how.steps, self.space.action, self.how.truncate)

    def act(self, observation: Tensor, draw: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions [N, d] and what is to be remembered of them."""
        done = self.walk(observation, draw["start"], draw["noise"])
        return self.action(done), done._asdict()

    def decide(self, observation: Tensor, draw: Mapping[str, Tensor], mode: Mode) -> Tensor:
        return self.action(self.walk(observation, *quieter(draw, mode)))

    def walk(self, observation: Tensor, start: Tensor, noise: Tensor) -> Walk:
        u, std = alike.on_grid(self.actor.velocity, observation, self.how.steps), self.std(observation)
        return walk(start, noise, lambda x, k: (self.center(x, u(x, k)), std[..., k, :]))

    def action(self, done: Walk) -> Tensor:
        return self.how.scale * self.within(done.chain[..., -1, :])

    def center(self, x: Tensor, velocity: Tensor) -> Tensor:
        """Mean of the state after x."""
        return self.within(x + velocity / self.how.steps)

    def within(self, x: Tensor) -> Tensor:
        return x if self.how.clip is None else x.clamp(-self.how.clip, self.how.clip)

    def times(self, like: Tensor) -> Tensor:
        """τ of the steps' beginnings, [K]."""
        return torch.arange(self.how.steps, device=like.device) / self.how.steps

    def std(self, observation: Tensor) -> Tensor:
        """σ of every step.  [..., n] -> [..., K, d]"""
        time = self.actor.velocity.time(self.times(observation))  # type: ignore[operator]
        return noise_std(self.actor.share(time, observation[..., None, :]), self.how.noise[0], self.actor.high)

    def trace(self, record: dict[str, Tensor]) -> ActionTrace:
        """The trace of a stretch [N, T, ...] with what this policy says of it now."""
        chain = record["chain"]
        logp = chain_logp(chain[..., 0, :], chain[..., 1:, :] - record["mean"], record["std"]).clamp(*LOGP)
        return ActionTrace(record, Evaluation(logp=logp))

    def evaluate(self, rollout: Rollout) -> Evaluation:
        """What the policy says now of recorded actions. `kl` is that of the steps, summed over the recorded chain."""
        assert isinstance(rollout.trace, ActionTrace)
        record = rollout.trace.record
        chain, observation = record["chain"], record["observation"]
        x = chain[..., :-1, :]
        mean = self.center(x, alike.at_points(self.actor.velocity, observation, x, self.times(x)))
        std = self.std(observation)
        return Evaluation(
            logp=chain_logp(chain[..., 0, :], chain[..., 1:, :] - mean, std).clamp(*LOGP),
            entropy=chain_entropy(std),
            value=self.value(observation),
            kl=gaussian_kl(mean - record["mean"], std, record["std"]).sum(-1),
        )
