"""The loop's settings: what a recipe may say about training, acting in environments and watching."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Lag:
    """Sampling weights that follow the trained ones: after update n, copy ← d·copy + (1-d)·trained, d = min(rate·(n-start), limit).

    DiffusionNFT (arXiv:2509.16117) publishes rate 0.001, limit 0.5, and for OCR start 75, rate 0.0075, limit 0.999.
    """

    rate: Annotated[float, Field(ge=0)] = 0.0  # 0 = the trained weights sample
    limit: Annotated[float, Field(ge=0, lt=1)] = 0.5
    start: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Rate:
    """How the learning rate changes: not at all, in a straight line to 0 over the run, or by how far the policy moved.

    `kl`: after every epoch, lr/1.5 where the mean KL(old || new) of the iteration's minibatches is above 2·target, 1.5·lr where it
    is below target/2, within [low, high].
    """

    kind: Literal["constant", "linear", "kl"] = "constant"
    target: Annotated[float, Field(gt=0)] = 0.01
    low: Annotated[float, Field(gt=0)] = 1e-6
    high: Annotated[float, Field(gt=0)] = 1e-2


@dataclass(frozen=True)
class Acting:
    """How a control policy meets its environments: many at once, a stretch of each per iteration."""

    environments: Positive = 256  # over all processes
    steps: Positive = 32  # of each environment per iteration
    minibatch: Annotated[int, Field(ge=0)] = 0  # actions per optimizer step, over all processes; 0 = train.minibatches equal parts
    observations: bool = False  # shift and scale them by their running mean and deviation
    rewards: bool = False  # scale them by the running deviation of the discounted return
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99  # discount of that return
    clip: Annotated[float, Field(gt=0)] = 10.0  # bound of what was scaled
    reward_scale: Annotated[float, Field(gt=0)] = 1.0  # constant factor instead, or besides

    def minibatches(self, otherwise: int) -> int:
        """Optimizer steps of one pass over an iteration's actions."""
        return max(1, round(self.environments * self.steps / self.minibatch)) if self.minibatch else otherwise


@dataclass(frozen=True)
class Train:
    """The loop's settings; learning rates and group sizes belong to the recipe, not to the algorithm."""

    steps: Positive = 100  # iterations: rollout, update
    groups_per_step: Positive = 12  # prompts of an iteration, over all processes
    group_size: Positive = 12  # samples per prompt; methods that compare them need two
    gradient_accumulation_steps: Positive = 1  # parts that each process samples and replays one after the other
    split_steps: bool = False  # replay one decision position at a time: the rollout's own batch shape, memory of one step
    epochs: Positive = 1  # passes over a rollout
    minibatches: Positive = 1  # optimizer steps of a pass, each on its share of the rows
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    rate: Rate = field(default_factory=Rate)  # how it changes
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8  # gradients below it count for less than Adam's full step
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9  # decay of the averaged weights that are evaluated and saved; 0 = off
    ema_every: Positive = 1  # optimizer steps between averages
    behavior: Lag = field(default_factory=Lag)  # which weights sample
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    ratio_tolerance: Annotated[float, Field(gt=0)] = 1e-6  # max |log ratio| of the first replay; more = rollout and replay differ
    checkpointing_steps: Positive = 20
    checkpoints_total_limit: Positive = 2
    max_failures: Annotated[float, Field(ge=0, le=1)] = 0.1  # share of rows without a reward that stops the run


@dataclass(frozen=True)
class Watch:
    """Held-out evaluation during training: the proxy against what is never trained on."""

    every: Positive = 20  # iterations between evaluations; the first is the untouched base
    prompts: Positive = 64  # held-out prompts per evaluation
    samples: Annotated[int, Field(ge=0)] = 24  # pictures kept of each evaluation
    groups: Annotated[int, Field(ge=0)] = 2  # prompts of the last rollout whose samples are kept beside them, with their advantages
    episodes: Positive = 64  # of a control policy per evaluation
    fall: Annotated[float, Field(gt=0)] = 3.0  # alarm: held-out mean this many standard errors below the base while the proxy rose
    sigmas: Annotated[float, Field(gt=0)] = 3.0  # alarm: a guard's mean this many base standard deviations away
    patience: Positive = 2  # evaluations in a row before an alarm
    stop: bool = False  # an alarm ends the run
