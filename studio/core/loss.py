"""An objective is seven slots; credit is assigned once for the global batch, a loss is a weighted sum over any part."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from studio.core.declare import Adaptive, Span, check_memory, name_of, needs_of, span_of, widest
from studio.core.ratio import decision_ratio
from studio.core.regularizer import LIMIT
from studio.core.stats import MEASURED, MOVED, ratio_sums
from studio.core.surrogate import Clip, Clipping, Observing
from studio.core.weighting import by_sample
from studio.errors import ConfigError, NeedsError, RunError
from studio.protocols import Advantage, Critic, Gate, Ratio, Regularizer, Stateful, Surrogate, Weighting
from studio.shapes import expect
from studio.types import Credit, Evaluation, Rollout


@runtime_checkable
class Targeting(Protocol):
    """An advantage that also says what a critic should have predicted."""

    def __call__(self, rollout: Rollout) -> Tensor: ...
    def target(self, rollout: Rollout) -> Tensor: ...


@dataclass(frozen=True)
class Objective:
    """What is optimized, as seven independent choices; the defaults are PPO's with equal weight per sample."""

    advantage: Advantage
    gate: Gate | None = None
    ratio: Ratio = decision_ratio
    surrogate: Surrogate = Clip()
    weighting: Weighting = by_sample
    regularizers: tuple[tuple[float, Regularizer], ...] = ()
    critic: Critic | None = None
    iteration: ClassVar[str] = "studio.update:iterate"

    def __post_init__(self) -> None:
        if self.critic is not None and not isinstance(self.advantage, Targeting):
            raise ConfigError(
                f"Objective: a critic needs an advantage with target(rollout), got {name_of(self.advantage)}. Use GAE."
            )
        check_memory(self.slots())

    @property
    def needs(self) -> frozenset[str]:
        """Evaluation fields, and "ref", that some slot reads; must be within what the policy provides."""
        return frozenset().union(*(needs_of(slot) for slot in self.slots().values()))

    @property
    def compares(self) -> bool:
        """Whether samples of a prompt are compared, so that a group needs two.

        A critic needs no comparison, nor does an advantage that says `alone = True` of itself.
        """
        return self.critic is None and not getattr(self.advantage, "alone", False)

    @property
    def span(self) -> Span:
        """The widest part of the batch that a slot of `policy_loss` looks at. Credit is assigned before any cut."""
        early = ("advantage", "gate", "weighting")
        return widest(span_of(slot) for name, slot in self.slots().items() if name not in early)

    def slots(self) -> dict[str, Any]:
        """The filled slots by name; regularizers are `regularizers.0`, `regularizers.1`, ..."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "regularizers"}
        named |= {f"regularizers.{i}": term for i, (_, term) in enumerate(self.regularizers)}
        return {name: slot for name, slot in named.items() if slot is not None}

    def surrogate_of(self, new: Evaluation, rollout: Rollout) -> Surrogate:
        """The surrogate for these decisions; most are the same for all."""
        return self.surrogate.seen(new, rollout) if isinstance(self.surrogate, Observing) else self.surrogate

    def update(self, rollout: Rollout) -> None:
        """Lets slots with memory learn from a finished step."""
        for slot in self._stateful().values():
            slot.update(rollout)

    def measure(self, log_ratio: Tensor, credit: Credit) -> dict[str, Tensor]:
        """What adaptive slots want summed over the batch, by `measured/` and slot name."""
        found = {}
        with torch.no_grad():
            for name, slot in self._adaptive().items():
                found[f"{MEASURED}{name}"] = slot.measure(log_ratio.detach(), credit.advantage, credit.weight)
        return found

    def learn(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Lets adaptive slots learn from an optimizer step -> what they say of themselves, as metrics."""
        told: dict[str, float] = {}
        for name, slot in self._adaptive().items():
            slot.learn(sums[f"{MEASURED}{name}"])
            told |= slot.told()
        return told

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The memory of the slots that have one, by slot name."""
        return {name: slot.state_dict() for name, slot in self._stateful().items()}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        slots = self._stateful()
        if slots.keys() != state.keys():
            here, there = ", ".join(sorted(slots)) or "none", ", ".join(sorted(state)) or "none"
            raise RunError(f"objective state: expected slots {here}, got {there}. Resume with the run's own algorithm.")
        for name, slot in slots.items():
            slot.load_state_dict(state[name])

    def _adaptive(self) -> dict[str, Adaptive]:
        return {name: slot for name, slot in self.slots().items() if isinstance(slot, Adaptive)}

    def _stateful(self) -> dict[str, Any]:
        return {name: slot for name, slot in self.slots().items() if isinstance(slot, Stateful)}


@torch.no_grad()
def assign_credit(objective: Objective, rollout: Rollout) -> Credit:
    """Advantage, gate and weight of every decision of the global batch; rows whose reward is missing do not train.

    The mask is narrowed to where the gate is positive before weights are asked for: weights add up over what is left.
    """
    rows, steps = rollout.mask.shape
    mask = rollout.mask
    if rollout.present is not None:
        mask = mask & rollout.present.to(mask.device)[:, None]
    rollout = replace(rollout, mask=mask)
    target = None
    if objective.critic is not None and isinstance(objective.advantage, Targeting):
        target = objective.advantage.target(rollout)
    name = name_of(objective.advantage)
    advantage = expect(objective.advantage(rollout), "B T", name=f"{name}: advantage", B=rows, T=steps)
    gate = torch.ones_like(advantage)
    if objective.gate is not None:
        name = name_of(objective.gate)
        gate = expect(objective.gate(rollout, advantage), "B T", name=f"{name}: gate", B=rows, T=steps).to(mask.device)
    live = mask & (gate > 0)
    weight = objective.weighting(replace(rollout, mask=live))
    return Credit(
        advantage=torch.where(live, advantage, 0.0),
        gate=torch.where(live, gate, 0.0),
        weight=torch.where(live, weight, 0.0),
        target=target,
    )


def policy_loss(
    objective: Objective, new: Evaluation, rollout: Rollout, credit: Credit, *, alive: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a whole batch or of any part of it not finer than `objective.span`; parts add up.

    Σ weight · (Σ_j c_j·penalty_j + critic - gate·surrogate) -> (scalar, sums for `stats.metrics`, all without gradient)
    alive: the caller knows that no decision is dead, so that none has to be neutralized.
    """
    live = credit.weight > 0
    if not alive:
        new, rollout = (
            neutral(new, live),
            replace(
                rollout,
                mask=live,
                old=neutral(rollout.old, live),
                ref=None if rollout.ref is None else neutral(rollout.ref, live),
            ),
        )
    log_ratio = objective.ratio(new, rollout)
    log_ratio = expect(log_ratio, "B T", name=f"{name_of(objective.ratio)}: log_ratio", B=len(live), T=live.shape[1])
    log_ratio = log_ratio.clamp(-LIMIT, LIMIT)
    surrogate = objective.surrogate_of(new, rollout)
    gain = credit.gate * surrogate(log_ratio, credit.advantage, live)
    costs = [(name_of(term), c, term(new, rollout, log_ratio)) for c, term in objective.regularizers]
    if objective.critic is not None:
        costs.append(("value", 1.0, objective.critic(new, rollout, credit)))
    penalty = sum((c * cost for _, c, cost in costs), torch.zeros_like(gain))
    loss = (credit.weight * (penalty - gain)).sum()
    clipped = surrogate.clipped(log_ratio, credit.advantage) if isinstance(surrogate, Clipping) else None
    stats = ratio_sums(log_ratio.detach(), credit.weight, clipped)
    stats |= objective.measure(log_ratio, credit)
    if new.kl is not None:
        stats[MOVED] = (credit.weight * new.kl.detach()).sum()
    stats |= {"loss/total": loss.detach(), "loss/surrogate": (credit.weight * gain.detach()).sum()}
    stats |= {f"loss/{name}": (credit.weight * cost.detach()).sum() for name, _, cost in costs}
    return loss, stats


def neutral(said: Evaluation, live: Tensor) -> Evaluation:
    """The evaluation with 1 in every field of dead decisions, so that new, old and ref agree there.

    Masking results instead is not enough: where(live, exp(x), 0) has a NaN gradient at a dead x = 1000. One, not zero,
    because fields may be divisors.
    """

    def settle(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.where(live.reshape(live.shape + (1,) * (x.ndim - 2)), x, 1)

    return Evaluation(**{f.name: settle(getattr(said, f.name)) for f in fields(said)})


def check_fit(name: str, objective: Objective, provides: Collection[str], policy_name: str) -> None:
    """NeedsError when the policy does not provide what the objective needs."""
    missing = objective.needs - set(provides)
    if missing:
        need, provided = _listed(objective.needs), _listed(provides)
        advice = f"Use it with a policy that provides {_listed(missing)}"
        advice += " or set kl to 0." if missing == {"ref"} else "."
        raise NeedsError(f"algorithm {name!r} needs {need}; policy {policy_name!r} provides {provided}. {advice}")


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
