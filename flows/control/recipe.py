"""The `policy` blocks of control recipes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import nn

    from flows.control.environment import Space
    from flows.control.gaussian import GaussianPolicy
    from flows.control.networks import VelocityNet
    from flows.control.policyflow import FlowPolicy

Activation = Literal["tanh", "elu", "mish", "silu", "relu"]
Positive = Annotated[int, Field(ge=1)]
Path = Literal["rectified", "trigflow", "interpolant"]
Kind = Literal["one_time", "grid_mean", "exact"]


@dataclass(frozen=True)
class Likelihood:
    """How the shift of an action's center is estimated when it is asked about again.

    one_time: the change of velocity at one random time of the path, new at every visit (published) · grid_mean: its mean over
    `draws` stratified times · exact: both flows integrated again, with gradient through the new one, on `exact_steps` steps.
    """

    kind: Kind = "one_time"
    path: Path = "rectified"
    grid: bool = True  # times among the solver's 2K + 1; false = continuous
    draws: Annotated[int, Field(ge=1)] = 4
    exact_steps: Annotated[int, Field(ge=1)] = 4
    gain: bool = False  # multiply the shift by the gain that the fidelity monitor measured last


@dataclass(frozen=True)
class Net:
    """Actor and critic: perceptrons of the same hidden layers."""

    hidden: tuple[int, ...] = (128, 128)
    activation: Activation = "mish"
    critic: tuple[int, ...] | None = None  # hidden layers of the critic, when they differ
    log_std: float = 0.0  # logarithm of the exploration noise's deviation at the start


@dataclass(frozen=True)
class PolicyFlow:
    """A flow turns noise into the center of a Gaussian whose draws are the actions (PolicyFlow, arXiv:2602.01156)."""

    net: Net = field(default_factory=Net)
    embedding: Annotated[int, Field(ge=8, multiple_of=8)] = 32  # width of the time and observation features
    steps: Positive = 10  # of the midpoint solver, two network calls each; the paper says 12, its code 10
    last: Annotated[float, Field(ge=0)] = 0.0  # size of the last layer at the start; the released code has 0.01
    # deviation of the noise that the flow starts from: 1 as published, 0 = a Gaussian policy with the flow's center
    z: Annotated[float, Field(ge=0)] = 1.0
    likelihood: Likelihood = field(default_factory=Likelihood)
    fidelity: Annotated[int, Field(ge=0)] = 20  # iterations between comparisons of the ratio with the exact one; 0 = never

    provides: ClassVar[frozenset[str]] = frozenset(
        {"logp", "entropy", "mean", "std", "noise", "velocity", "residual", "value", "kl"}
    )
    reads: ClassVar[str] = "states"

    def check(self) -> list[str]:
        return []

    def forwards(self) -> dict[str, float]:
        """Network calls per action: while acting, and of one replay (new and old velocity)."""
        draws = {"one_time": 2, "grid_mean": 2 * self.likelihood.draws, "exact": 2 + 4 * self.likelihood.exact_steps}
        return {"rollout": 2 * self.steps, "replay": draws[self.likelihood.kind]}

    def build(self, seed: int, space: Space) -> FlowPolicy:
        import torch

        from flows.control.networks import ActorCritic
        from flows.control.policyflow import FlowPolicy

        model = ActorCritic(
            *flow_networks(self.net, self.embedding, self.last, space), torch.full((space.action,), self.net.log_std)
        )
        return FlowPolicy(model, space, self.steps, self.likelihood, seed, self.z, self.fidelity)


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian policy as in the reference implementations of PPO: its mean depends on the state, its deviation does not."""

    net: Net = field(default_factory=lambda: Net((64, 64), "tanh"))
    start: Literal["orthogonal", "xavier"] = "orthogonal"
    post: bool = False  # a second critic of state and action, for objectives that judge a decision before chance moves on

    # with the second critic; without it an instance says so
    provides: ClassVar[frozenset[str]] = frozenset({"logp", "entropy", "mean", "std", "noise", "value", "post", "kl"})
    reads: ClassVar[str] = "states"

    def __post_init__(self) -> None:
        object.__setattr__(self, "provides", self.provides - (set() if self.post else {"post"}))

    def check(self) -> list[str]:
        return []

    def forwards(self) -> dict[str, float]:
        """Network calls per action."""
        return {"rollout": 1, "replay": 1}

    def build(self, seed: int, space: Space) -> GaussianPolicy:
        import torch

        from flows.control.gaussian import GaussianPolicy
        from flows.control.networks import ActorCritic, perceptron

        net, n, d = self.net, space.observation, space.action
        actor = perceptron((n, *net.hidden, d), net.activation, start=self.start, last=0.01)
        last = 1.0 if self.start == "orthogonal" else 0.01

        def critic(width: int) -> nn.Module:
            return perceptron((width, *(net.critic or net.hidden), 1), net.activation, start=self.start, last=last)

        model = ActorCritic(actor, critic(n), torch.full((d,), net.log_std), critic(n + d) if self.post else None)
        return GaussianPolicy(model, space, seed)


def flow_networks(net: Net, embedding: int, last: float, space: Space) -> tuple[VelocityNet, nn.Module]:
    """Velocity network and critic."""
    from flows.control.networks import VelocityNet, perceptron

    n = space.observation
    critic = perceptron((n, *(net.critic or net.hidden), 1), net.activation, start="xavier", last=0.01)
    return VelocityNet(n, space.action, net.hidden, embedding, net.activation, last), critic
