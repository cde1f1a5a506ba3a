"""The Gaussian policy of PPO: a mean that depends on the state, a deviation that does not (arXiv:1707.06347)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flows.control import alike
from flows.control.environment import Mode, Space
from flows.control.networks import ActorCritic
from flows.control.solver import gaussian_kl, noise_entropy, shifted_logp
from flows.control.trace import ActionTrace
from studio.types import Evaluation, Rollout

LOG_STD = (-5.0, 2.0)


class GaussianPolicy:
    """a = μ(s) + σ·ε. The likelihood is that of the action before the environment clips it."""

    provides = frozenset({"logp", "entropy", "mean", "std", "noise", "value", "post", "kl"})
    reduction = "sum"
    begin = visit = alike.nothing
    value, trainable, save, load = alike.value, alike.trainable, alike.save, alike.load

    def __init__(self, net: ActorCritic, space: Space, seed: int) -> None:
        self.model, self.space, self.seed = net, space, seed
        self.together: Callable[[Tensor], Tensor] = lambda x: x

    @property
    def std(self) -> Tensor:
        assert self.model.log_std is not None
        return self.model.log_std.clamp(*LOG_STD).exp()

    def draws(self, step: int, steps: int, rows: int) -> dict[str, Tensor]:
        """Noise ε for `rows` copies, [steps, rows, d], the same for any number of processes."""
        own = alike.random(self, step)
        return {"noise": torch.randn(steps, rows, self.space.action, generator=own)}

    def act(self, observation: Tensor, draw: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions [N, d] and what is to be remembered of them."""
        mean = self.model.actor(observation)
        action = mean + self.std * draw["noise"]
        return action, {"action": action, "mean": mean, "noise": draw["noise"]}

    def decide(self, observation: Tensor, draw: Mapping[str, Tensor], mode: Mode) -> Tensor:
        """Actions for evaluation: as trained, or the mean."""
        mean = self.model.actor(observation)
        return mean + self.std * draw["noise"] if mode == "stochastic" else mean

    def trace(self, record: dict[str, Tensor]) -> ActionTrace:
        """The trace of a stretch [N, T, ...] with what this policy says of it now."""
        std, mean = self.std.detach(), record["mean"]
        logp = shifted_logp(record["action"] - mean, torch.zeros_like(mean), std)
        return ActionTrace(record, Evaluation(logp=logp, mean=mean, std=std.expand_as(mean), post=self.post(record)))

    def post(self, record: Mapping[str, Tensor]) -> Tensor | None:
        """What the second critic expects once an action is taken: a function of state and action, as the state it leads to is.

        Actions as the environment clips them.  [...]; None without it.  PDPPO (arXiv:2504.05150).
        """
        if self.model.post is None:
            return None
        action = record["action"].clamp(torch.tensor(self.space.low), torch.tensor(self.space.high))
        return self.model.post(torch.cat([record["observation"], action], -1))[..., 0]

    def evaluate(self, rollout: Rollout) -> Evaluation:
        """What the policy says now of recorded actions."""
        assert isinstance(rollout.trace, ActionTrace)
        record, std, said = rollout.trace.record, self.std, rollout.trace.said
        mean = self.model.actor(record["observation"])
        assert said.mean is not None and said.std is not None
        return Evaluation(
            logp=shifted_logp(record["action"] - mean, torch.zeros_like(mean), std),
            entropy=noise_entropy(std).expand(mean.shape[:-1]),
            mean=mean,
            std=std.expand_as(mean),
            noise=record["noise"],
            value=self.value(record["observation"]),
            post=self.post(record),
            kl=gaussian_kl(mean - said.mean, std, said.std),
        )
