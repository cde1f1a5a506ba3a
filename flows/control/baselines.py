"""The `policy` blocks of the published flow policies that others are compared with.

All have the velocity network, the critic and the default sizes of `policyflow`, so that a comparison is one of methods; actions
are `scale` times what the flow or chain ends in, whose unit is the range ±1 of the published tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from flows.control.recipe import Net, Positive, flow_networks

if TYPE_CHECKING:
    from flows.control.chain import ChainPolicy
    from flows.control.environment import Space
    from flows.control.fpo import FPOPolicy
    from flows.control.reinflow import ReinFlowPolicy

Times = Literal["grid", "uniform", "beta"]
Match = Literal["noise", "velocity"]
Reduce = Literal["mean", "sqrt"]
Above0 = Annotated[float, Field(gt=0)]
From0 = Annotated[float, Field(ge=0)]
Embedding = Annotated[int, Field(ge=8, multiple_of=8)]


@dataclass(frozen=True)
class FPO:
    """A flow trained by how well it matches its own actions (FPO, arXiv:2507.21053; FPO++, arXiv:2602.02481).

    FPO++ is pairs 16, steps 64, times beta, error velocity, reduce sqrt, separate, largest 20, noise 0.02 and action_clip 2
    without squashing. That the added noise is part of what is matched is a *reconstruction*.
    """

    net: Net = field(default_factory=Net)  # published: 4×32 SiLU, critic 5×256
    embedding: Embedding = 32  # published: 8 fixed waves cos and sin of 2^k·t
    last: From0 = 0.0  # size of the last layer at the start: 0 = the first policy is its noise
    output: Above0 = 0.25  # factor on the network's output
    steps: Positive = 10  # of the Euler solver
    pairs: Positive = 8  # N_mc: points (ε, τ) at which each action is matched
    times: Times = "grid"  # grid: the solver's steps · uniform · beta
    beta: Above0 = 1.0  # β of times beta
    error: Match = "noise"  # noise: of ε, weighted by τ² · velocity: of u, which MultiGoal was measured with
    reduce: Reduce = "mean"  # over dimensions: mean, or sum/√d
    separate: bool = False  # every point has a ratio of its own
    largest: Above0 | None = None  # bound of an error
    squash: Literal["none", "tanh"] = "tanh"
    noise: From0 = 0.0  # deviation of noise added to actions while training
    action_clip: Above0 | None = None  # bound of actions before they are matched and scaled
    scale: Above0 = 1.0

    provides: ClassVar[frozenset[str]] = frozenset({"fit", "value"})
    reads: ClassVar[str] = "states"

    def check(self) -> list[str]:
        return _unused(self.net)

    def forwards(self) -> dict[str, float]:
        """Network calls per action; what sampling records is said by the same points."""
        return {"rollout": self.steps + self.pairs, "replay": self.pairs}

    def build(self, seed: int, space: Space) -> FPOPolicy:
        from flows.control.fpo import FPOPolicy
        from flows.control.networks import ActorCritic

        actor, critic = flow_networks(self.net, self.embedding, self.last, space)
        return FPOPolicy(ActorCritic(actor, critic, None), space, self, seed)


@dataclass(frozen=True)
class DPPO:
    """An action is the end of a chain of Gaussian steps, each with its own ratio (DPPO, arXiv:2409.00588), trained whole.

    flow: Euler steps of a flow with fixed noise, the form of FPO's comparison · ddpm: posterior steps of a diffusion model.
    """

    net: Net = field(default_factory=Net)  # published: residual 3×512 ReLU, critic 3×256 Mish
    embedding: Embedding = 32
    last: From0 = 0.0
    kind: Literal["flow", "ddpm"] = "flow"
    steps: Positive = 10  # K; published for ddpm from scratch: 20
    noise: Above0 = 0.05  # σ of every flow step
    floor: Above0 = 0.1  # σ_min of ddpm steps, while sampling and in the likelihood
    truncate: Above0 | None = 3.0  # largest noise of a step, in its deviations
    scale: Above0 = 1.0  # ddpm clips its guess of the action to ±scale

    provides: ClassVar[frozenset[str]] = frozenset({"logp", "sigma", "value", "kl"})
    reads: ClassVar[str] = "states"

    def check(self) -> list[str]:
        return _unused(self.net)

    def forwards(self) -> dict[str, float]:
        """Network calls per action."""
        return {"rollout": self.steps, "replay": self.steps}

    def build(self, seed: int, space: Space) -> ChainPolicy:
        from flows.control.chain import ChainPolicy
        from flows.control.networks import ActorCritic

        actor, critic = flow_networks(self.net, self.embedding, self.last, space)
        return ChainPolicy(ActorCritic(actor, critic, None), space, self, seed)


@dataclass(frozen=True)
class ReinFlow:
    """A flow whose steps carry noise of a learned size, one ratio per chain (ReinFlow, arXiv:2505.22094).

    Published for fine-tuning a flow that has been trained already; here it starts from scratch.
    """

    net: Net = field(default_factory=Net)
    embedding: Embedding = 32
    last: From0 = 0.0
    noise_net: tuple[int, ...] = (64, 64)  # hidden layers of the network that sets σ, tanh
    steps: Positive = 4  # K
    noise: tuple[Above0, Above0] = (0.1, 0.24)  # σ_min and σ_max; published for Hopper, (0.08, 0.16) for Humanoid
    hold: Annotated[int, Field(ge=0)] = 0  # iterations before σ_max falls; published: 35 % of all
    decay: Annotated[int, Field(ge=0)] = 0  # iterations in which it falls to 0.3·σ_min + 0.7·σ_max; 0 = it stays
    clip: Above0 | None = 1.0  # bound of the steps' means and of the action, before scaling
    truncate: Above0 | None = 3.0  # largest noise of a step, in its deviations
    scale: Above0 = 1.0

    provides: ClassVar[frozenset[str]] = frozenset({"logp", "entropy", "value", "kl"})
    reads: ClassVar[str] = "states"

    def __post_init__(self) -> None:
        if self.noise[0] >= self.noise[1]:
            raise ValueError(f"noise: expected σ_min below σ_max, got {list(self.noise)}. Use for example [0.1, 0.24].")

    def check(self) -> list[str]:
        return _unused(self.net)

    def forwards(self) -> dict[str, float]:
        """Calls of the velocity network per action."""
        return {"rollout": self.steps, "replay": self.steps}

    def build(self, seed: int, space: Space) -> ReinFlowPolicy:
        from flows.control.networks import ActorCritic, perceptron
        from flows.control.reinflow import NoisyVelocity, ReinFlowPolicy

        velocity, critic = flow_networks(self.net, self.embedding, self.last, space)
        sizes = (self.embedding + space.observation, *self.noise_net, space.action)
        noise = perceptron(sizes, "tanh", start="xavier", last=0.01)
        return ReinFlowPolicy(ActorCritic(NoisyVelocity(velocity, noise, self.noise[1]), critic, None), space, self, seed)


def _unused(net: Net) -> list[str]:
    return ["policy.net.log_std has no effect on this policy: remove it"] if net.log_std != Net().log_std else []
