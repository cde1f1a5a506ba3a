"""FPO's policy: a flow whose actions are never likely or unlikely, only well or badly matched (arXiv:2507.21053, 2602.02481)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flows.control import alike
from flows.control.baselines import FPO, Match, Reduce, Times
from flows.control.environment import Mode, Space
from flows.control.networks import ActorCritic
from flows.control.solver import euler, on_path
from flows.control.trace import ActionTrace
from studio.types import Evaluation, Rollout


def matching_error(velocity: Tensor, target: Tensor, tau: Tensor, error: Match, reduce: Reduce = "mean") -> Tensor:
    """How far the velocity is from the one that leads to the action.  velocity, target [..., d], τ [...] -> [...]

    velocity: |u - (a - ε)|² · noise: |ε̂ - ε|² with ε̂ = x_τ - τ·u, which is τ²·|u - (a - ε)|²; over dimensions the mean, or the sum
    over √d.  FPO (arXiv:2507.21053), whose time runs the other way: t = 1 - τ.
    """
    square = (velocity - target).square()
    each = square.mean(-1) if reduce == "mean" else square.sum(-1) / math.sqrt(square.shape[-1])
    return tau.square() * each if error == "noise" else each


def times_of(uniform: Tensor, times: Times, steps: int, beta: float) -> Tensor:
    """Times τ from uniform draws in [0, 1).

    grid: the solver's own, k/steps with k < steps · uniform: the draw itself · beta: 0.005 + 0.99·(1 - u)^(1/β).
    """
    if times == "grid":
        return (uniform * steps).floor().clamp(max=steps - 1) / steps
    return uniform if times == "uniform" else 0.005 + 0.99 * (1 - uniform) ** (1 / beta)


class FPOPolicy:
    """x = Φ(ε; s) by Euler steps, plus noise where the recipe adds some; the action is scale·x or scale·tanh(x).

    With every action the errors at `pairs` random points (ε_j, τ_j) of the line to x are recorded, to be taken again at the
    same points: with unchanged weights they are the same.  The errors are of x, so that squashing needs no Jacobian.
    """

    provides = frozenset({"fit", "value"})
    reduction = "mean"
    begin = visit = alike.nothing
    value, trainable, save, load = alike.value, alike.trainable, alike.save, alike.load

    def __init__(self, net: ActorCritic, space: Space, how: FPO, seed: int) -> None:
        self.model, self.space, self.how, self.seed = net, space, how, seed
        self.together: Callable[[Tensor], Tensor] = lambda x: x

    def draws(self, step: int, steps: int, rows: int) -> dict[str, Tensor]:
        """Of every action [steps, rows]: where its flow starts, the added noise and the points where it is matched."""
        own, how, d = alike.random(self, step), self.how, self.space.action
        start, noise = (torch.randn(steps, rows, d, generator=own) for _ in range(2))
        points = torch.randn(steps, rows, how.pairs, d, generator=own)
        tau = times_of(torch.rand(steps, rows, how.pairs, generator=own), how.times, how.steps, how.beta)
        return {"start": start, "noise": noise, "points": points, "tau": tau}

    def act(self, observation: Tensor, draw: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions [N, d] and what is to be remembered of them."""
        x = self.end(observation, draw["start"], draw["noise"])
        record = {"observation": observation, "x": x, "points": draw["points"], "tau": draw["tau"]}
        return self.action(x), record | {"fit": self.errors(record)}

    def decide(self, observation: Tensor, draw: Mapping[str, Tensor], mode: Mode) -> Tensor:
        """Actions for evaluation: as trained, without the added noise, or from ε = 0 without noise."""
        start = torch.zeros_like(draw["start"]) if mode == "deterministic" else draw["start"]
        return self.action(self.end(observation, start, draw["noise"] if mode == "stochastic" else None))

    def end(self, observation: Tensor, start: Tensor, noise: Tensor | None) -> Tensor:
        """x [N, d], with noise and bounds: what is matched is what was done."""
        how, u = self.how, alike.on_grid(self.model.actor, observation, self.how.steps)
        x = euler(lambda x, tau: how.output * u(x, round(tau * how.steps)), start, how.steps)
        x = x if noise is None else x + how.noise * noise
        return x if how.action_clip is None else x.clamp(-how.action_clip, how.action_clip)

    def action(self, x: Tensor) -> Tensor:
        return self.how.scale * (x.tanh() if self.how.squash == "tanh" else x)

    def errors(self, record: Mapping[str, Tensor]) -> Tensor:
        """Matching errors at the recorded points.  [..., pairs]"""
        how, points, tau, x = self.how, record["points"], record["tau"], record["x"][..., None, :]
        between = on_path(points, x, tau[..., None], "rectified")
        velocity = how.output * alike.at_points(self.model.actor, record["observation"], between, tau)
        found = matching_error(velocity, x - points, tau, how.error, how.reduce)
        return found if how.largest is None else found.clamp(max=how.largest)

    def trace(self, record: dict[str, Tensor]) -> ActionTrace:
        """The trace of a stretch [N, T, ...]; an action has one part, or as many as points where each has a ratio of its own."""
        fit = record["fit"].detach()
        parts = fit.shape[-1] if self.how.separate else 1
        return ActionTrace(record, Evaluation(fit=fit if parts > 1 else fit.mean(-1)), parts)

    def evaluate(self, rollout: Rollout) -> Evaluation:
        """What the policy says now of recorded actions."""
        assert isinstance(rollout.trace, ActionTrace)
        record, said = rollout.trace.record, rollout.trace.said.fit
        assert said is not None
        errors = self.errors(record)
        fit = errors if self.how.separate else errors.mean(-1, keepdim=True)
        return Evaluation(fit=alike.as_said(fit, said), value=alike.as_said(self.value(record["observation"])[..., None], said))
