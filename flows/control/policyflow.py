"""PolicyFlow's policy: a flow turns noise into the center of a Gaussian, whose draws are the actions (arXiv:2602.01156)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flows.control import alike
from flows.control.environment import Mode, Space
from flows.control.fidelity import fidelity
from flows.control.likelihood import Shift, Times, draw_times, estimate
from flows.control.networks import ActorCritic
from flows.control.recipe import Kind, Likelihood
from flows.control.solver import gaussian_kl, midpoint, noise_entropy, shifted_logp
from flows.control.trace import ActionTrace
from studio.seeds import row_seed
from studio.types import Credit, Evaluation, Rollout

LOG_STD = (-5.0, 2.0)


@dataclass
class Gain:
    """The least-squares gain <D, δ>/<δ, δ> of the true shift over its estimate, remembered between measurements."""

    value: float = 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class FlowPolicy:
    """a = Φ(z; s) + σ·ε: z ~ N(0, ζ²I), ζ = `z`, through the flow, plus exploration noise of a learned size that no state changes.

    The record keeps z, the endpoint and ξ = σ·ε; the likelihood of an action is that of ξ given z, exact for z and action
    together. Actions are never clipped here.
    """

    provides = frozenset({"logp", "entropy", "mean", "std", "noise", "velocity", "residual", "value", "kl"})
    reduction = "sum"
    value, trainable, save, load = alike.value, alike.trainable, alike.save, alike.load

    def __init__(
        self, net: ActorCritic, space: Space, steps: int, likelihood: Likelihood, seed: int, z: float = 1.0, fidelity: int = 0
    ) -> None:
        self.model, self.space, self.steps, self.likelihood, self.seed, self.z = net, space, steps, likelihood, seed, z
        self.old: nn.Module = copy.deepcopy(net.actor).requires_grad_(False)
        self.memory, self.fidelity = Gain(), fidelity
        self.together: Callable[[Tensor], Tensor] = lambda x: x
        self._actions, self._visit = 0, Times(torch.zeros(0, 1), None)

    @property
    def std(self) -> Tensor:
        assert self.model.log_std is not None
        return self.model.log_std.clamp(*LOG_STD).exp()

    def begin(self, step: int) -> None:
        """Before the actions of an iteration: the velocity that takes them is kept as it is."""
        self.old.load_state_dict(self.model.actor.state_dict())

    def draws(self, step: int, steps: int, rows: int) -> dict[str, Tensor]:
        """Noise for `rows` copies, [steps, rows, d] by name: z and ε, the same for any number of processes."""
        own = alike.random(self, step)
        shape = (steps, rows, self.space.action)
        if step >= 0:  # of an iteration and not of an evaluation
            self._actions = steps * rows
        return {"z": torch.randn(shape, generator=own), "noise": torch.randn(shape, generator=own)}

    def act(self, observation: Tensor, draw: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions [N, d] and what is to be remembered of them."""
        z = self.z * draw["z"]
        end, xi = self.endpoint(observation, z), self.std * draw["noise"]
        return end + xi, {"z": z, "end": end, "xi": xi}

    def decide(self, observation: Tensor, draw: Mapping[str, Tensor], mode: Mode) -> Tensor:
        """Actions for evaluation: as trained, without exploration noise, or from z = 0 without noise."""
        z = torch.zeros_like(draw["z"]) if mode == "deterministic" else self.z * draw["z"]
        end = self.endpoint(observation, z)
        return end + self.std * draw["noise"] if mode == "stochastic" else end

    def endpoint(self, observation: Tensor, z: Tensor, net: nn.Module | None = None, steps: int | None = None) -> Tensor:
        """Φ(z; s) by the midpoint rule.  [..., d]"""
        actor: Any = net or self.model.actor
        steps = steps or self.steps
        view = actor.observe(observation)
        times = actor.time(torch.arange(2 * steps + 1, device=z.device) / (2 * steps))
        return midpoint(lambda x, tau: actor(x, times[round(tau * 2 * steps)].expand_as(view), view), z, steps)

    def field(self, observation: Tensor, x: Tensor, tau: float) -> Tensor:
        """u(x, τ; s) at points x [M, d] for one state [1, n]."""
        actor = self.model.actor
        time = actor.time(torch.tensor([tau]))  # type: ignore[operator]
        return actor(x, time.expand(len(x), -1), actor.observe(observation).expand(len(x), -1))  # type: ignore[operator]

    def trace(self, record: dict[str, Tensor]) -> ActionTrace:
        """The trace of a stretch [N, T, ...] with what this policy says of it now."""
        std, xi = self.std.detach(), record["xi"]
        logp = shifted_logp(xi, torch.zeros_like(xi), std)
        return ActionTrace(record, Evaluation(logp=logp, std=std.expand_as(xi)))

    def visit(self, step: int, epoch: int) -> None:
        """A new pass over the iteration's actions: each gets its times anew."""
        self._visit = draw_times(
            self.likelihood, self.steps, self._actions, self.space.action, row_seed(self.seed, f"visit/{step}", epoch)
        )

    def evaluate(self, rollout: Rollout) -> Evaluation:
        """What the policy says now of recorded actions.  `mean` is the estimated shift δ of the center."""
        assert isinstance(rollout.trace, ActionTrace)
        record, std = rollout.trace.record, self.std
        seen = self.seen(record)
        shift, old = seen.shift, rollout.old.std
        return Evaluation(
            logp=shifted_logp(record["xi"], shift, std),
            entropy=noise_entropy(std).expand(shift.shape[:-1]),
            mean=shift,
            std=std.expand_as(shift),
            noise=record["xi"],
            velocity=seen.velocity,
            residual=seen.residual,
            value=self.value(record["observation"]),
            kl=None if old is None else gaussian_kl(shift, std, old),
        )

    def seen(self, record: Mapping[str, Tensor], kind: Kind | None = None) -> Shift:
        """The shift of the center of recorded actions, as the recipe estimates it or in another way."""
        kind = kind or self.likelihood.kind
        times = self._visit.of(record["index"], self.likelihood.draws if kind == "grid_mean" else 1)
        found = estimate(self.model.actor, self.old, record, times, self.likelihood.path)
        if kind == "exact":
            return replace(found, shift=self.exact_shift(record))
        return replace(found, shift=found.shift * self.memory.value) if self.likelihood.gain else found

    def exact_shift(self, record: Mapping[str, Tensor], steps: int | None = None) -> Tensor:
        """D = Φ(z) - Φ̄(z), both flows integrated again on the same grid.  [..., d]"""
        observation, z, steps = record["observation"], record["z"], steps or self.likelihood.exact_steps
        with torch.no_grad():
            before = self.endpoint(observation, z, self.old, steps)
        return self.endpoint(observation, z, steps=steps) - before

    def monitor(self, rollout: Rollout, credit: Credit, step: int) -> dict[str, float]:
        """Ratio fidelity at the recipe's interval: the estimate of the ratio against the exact one, after the updates."""
        if not self.fidelity or (step + 1) % self.fidelity:
            return {}
        found = fidelity(self, rollout, credit)
        if self.likelihood.gain:
            self.memory.value *= found["ratio/gain"]
        return found
