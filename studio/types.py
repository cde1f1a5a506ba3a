"""The vocabulary of a training step: frozen values with no behavior beyond slicing.

Dimensions: P prompts, G samples per prompt, B = P*G rows, T decisions per row, E the shape of one decision's event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line reads recipes without loading torch
    from torch import Tensor

    from studio.protocols import Trace

EVERY = slice(None)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts as a source yields them ([P]) or one per row ([B])."""

    text: list[str]
    key: list[str]  # stable identity: groups, history and trackers use it
    info: list[Mapping[str, Any]]  # what rewards need: scene, target text, answers, hints

    def __len__(self) -> int:
        return len(self.text)

    def take(self, index: Sequence[int]) -> Prompts:
        """The prompts at these positions; positions may repeat."""
        pick = [int(i) for i in index]
        return Prompts([self.text[i] for i in pick], [self.key[i] for i in pick], [self.info[i] for i in pick])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a policy says about decisions already taken. Fields that it does not provide are None."""

    logp: Tensor | None = None  # [B, T] natural log, float32; reduced over E as the policy states
    entropy: Tensor | None = None  # [B, T]
    mean: Tensor | None = None  # [B, T, *E] mean of the Gaussian step
    std: Tensor | None = None  # [B, T] standard deviation of the step, not a rate
    noise: Tensor | None = None  # [B, T, *E] the standard normal draw that made the step
    dt: Tensor | None = None  # [B, T] length of the step, h = sigma - sigma_next > 0
    jacobian: Tensor | None = None  # [B, T] |d mean / d velocity|
    fit: Tensor | None = None  # [B, T] matching error; lower = more likely
    velocity: Tensor | None = None  # [B, T, *E] network output at the recorded points
    target: Tensor | None = None  # [B, T, *E] the velocity that leads to the recorded sample, noise - sample
    sigma: Tensor | None = None  # [B, T] noise level of the recorded points, 1 = noise
    value: Tensor | None = None  # [B, T] critic
    post: Tensor | None = None  # [B, T] second critic: of what a decision made of the state, before chance moves on (PDPPO)
    token: Tensor | None = None  # [B, T] int64, which one was taken, where decisions are discrete
    tempered: Tensor | None = None  # [B, T, 3] logp of the same decision at the other TEMPERATURES (studio.core.tempered)
    kl: Tensor | None = None  # [B, T] KL(old || this) of the decision's distribution, where it has a closed form
    residual: Tensor | None = None  # [B, T, *E] how far the velocity is from that of spreading particles (PolicyFlow)

    def at(self, rows, steps=EVERY) -> Evaluation:
        return Evaluation(**{f.name: _cut(getattr(self, f.name), rows, steps) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Rollout:
    """Samples of one iteration with everything needed to score and replay them."""

    prompts: Prompts  # [B], one per row; none where an environment sets the tasks
    samples: list[str] | Tensor | None  # texts, or images [B, C, H, W] float32 in [0, 1], or states [B, T, D]
    trace: Trace | None  # what evaluate() needs: latents, tokens, actions
    mask: Tensor  # [B, T] bool, True = this decision trains
    group: Tensor  # [B] int64, rows of one prompt share a value
    old: Evaluation  # under the policy that sampled
    engine: Tensor | None = None  # [B, T] logp of a separate sampling engine, when it differs from old
    ref: Evaluation | None = None  # under the frozen reference, if the objective needs it
    reward: Tensor | None = None  # [B] or [B, T]; 0 where not present
    after: Tensor | None = (
        None  # [B, T] old value of the state a decision led to, 0 where the task ended; None = the next decision's
    )
    ends: Tensor | None = None  # [B, T] bool, the next decision of the row belongs to another episode
    cut: Tensor | None = None  # [B] bool, a limit cut the row before it ended; None = all ended
    given: Tensor | None = None  # [B] bool, the row was read from data, not sampled; None = all were sampled
    segment: Tensor | None = None  # [B, T] int64 from 0, the part of the row a decision belongs to: reasoning step, turn, budget
    present: Tensor | None = None  # [B] bool, False = the reward is missing; None = all present
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # named reward parts [B]; NaN where missing
    seeds: Sequence[int] = ()  # [B] the seed of each row's noise

    def at(self, rows, steps=EVERY) -> Rollout:
        """Rows and decisions of this rollout; all slicing goes through here."""
        pick = range(len(self.mask))[rows] if isinstance(rows, slice) else rows
        samples = self.samples
        if isinstance(samples, list):
            samples = [samples[int(i)] for i in pick]
        elif samples is not None:
            samples = samples[rows]
        reward = self.reward
        if reward is not None:
            reward = reward[rows] if reward.ndim == 1 else reward[rows][:, steps]
        return replace(
            self,
            prompts=self.prompts.take(pick) if len(self.prompts) else self.prompts,
            samples=samples,
            trace=None if self.trace is None else self.trace.at(rows, steps),
            mask=self.mask[rows][:, steps],
            group=self.group[rows],
            after=_cut(self.after, rows, steps),
            ends=_cut(self.ends, rows, steps),
            cut=None if self.cut is None else self.cut[rows],
            given=None if self.given is None else self.given[rows],
            segment=_cut(self.segment, rows, steps),
            old=self.old.at(rows, steps),
            engine=_cut(self.engine, rows, steps),
            ref=None if self.ref is None else self.ref.at(rows, steps),
            reward=reward,
            present=None if self.present is None else self.present[rows],
            parts={name: part[rows] for name, part in self.parts.items()},
            seeds=[self.seeds[int(i)] for i in pick] if len(self.seeds) else (),
        )


@dataclass(frozen=True, slots=True)
class Credit:
    """Who is responsible for the reward, and how much each decision counts in the loss. No gradients."""

    advantage: Tensor  # [B, T]
    gate: Tensor  # [B, T] factor on the surrogate, >= 0
    weight: Tensor  # [B, T] sums to 1 over the global batch; 0 where dead
    target: Tensor | None = None  # [B, T] what a critic should have said, when the objective has one

    def at(self, rows, steps=EVERY) -> Credit:
        return Credit(**{f.name: _cut(getattr(self, f.name), rows, steps) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Scores:
    """What a reward returns for B samples: a number or missing, never a number that stands for a failure."""

    value: Tensor  # [B] float32, higher is better; ignored where not present
    present: Tensor | None = None  # [B] bool; None = every row has a score
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # [B] extra numbers worth showing, e.g. strict accuracy


def _cut(value, rows, steps):
    return None if value is None else value[rows][:, steps]
