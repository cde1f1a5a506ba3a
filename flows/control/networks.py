"""Networks of control policies: perceptrons as the reference implementations build them, and the velocity network of a CNF."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from flows.control.recipe import Activation

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "elu": nn.ELU, "mish": nn.Mish, "silu": nn.SiLU, "relu": nn.ReLU}
FREQUENCY = 16.0  # deviation of the random frequencies of time


def perceptron(
    sizes: Sequence[int], activation: Activation, *, start: Literal["orthogonal", "xavier"], last: float
) -> nn.Sequential:
    """Linear layers with an activation between them; the last one starts at `last` times its usual size, with zero bias.

    orthogonal: gain √2, zero biases, last gain `last` (CleanRL) · xavier: normal with gain 1 (PolicyFlow).
    """
    layers: list[nn.Module] = []
    for index, (width, next_width) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layer, final = nn.Linear(width, next_width), index == len(sizes) - 2
        if start == "orthogonal":
            nn.init.orthogonal_(layer.weight, last if final else math.sqrt(2))
            nn.init.zeros_(layer.bias)
        else:
            nn.init.xavier_normal_(layer.weight)
            if final:
                with torch.no_grad():
                    layer.weight.mul_(last)
                nn.init.zeros_(layer.bias)
        layers += [layer] if final else [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class TimeFeatures(nn.Module):
    """φ(τ) = [cos 2πfτ, sin 2πfτ] with fixed random f ~ N(0, 16²), then two layers -> [.., width]."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", FREQUENCY * torch.randn(width // 8))
        self.layers = nn.Sequential(nn.Linear(width // 4, width), nn.Mish(), nn.Linear(width, width))

    def forward(self, tau: Tensor) -> Tensor:
        angle = 2 * math.pi * tau[..., None] * self.frequencies
        return self.layers(torch.cat([angle.cos(), angle.sin()], -1))


class VelocityNet(nn.Module):
    """u(x, τ; s): time features plus a linear view of the observation, joined to x, through a perceptron.

    The last layer starts at zero: the first policy then is its noise.  PolicyFlow (arXiv:2602.01156).
    """

    def __init__(
        self, observation: int, action: int, hidden: Sequence[int], width: int, activation: Activation, last: float
    ) -> None:
        super().__init__()
        self.time = TimeFeatures(width)
        self.observe = nn.Linear(observation, width)
        self.trunk = perceptron((action + width, *hidden, action), activation, start="xavier", last=last)

    def forward(self, x: Tensor, time: Tensor, view: Tensor) -> Tensor:
        """x [..., d], time features [..., width], view of the observation [..., width] -> [..., d]"""
        return self.trunk(torch.cat([x, time + view], -1))


class ActorCritic(nn.Module):
    """What a control policy trains: an actor, a critic and, where it explores, the logarithm of its deviation.

    `post` is a second critic, of what an action makes of a state.
    """

    def __init__(self, actor: nn.Module, critic: nn.Module, log_std: Tensor | None, post: nn.Module | None = None) -> None:
        super().__init__()
        self.actor, self.critic, self.post = actor, critic, post
        self.log_std = None if log_std is None else nn.Parameter(log_std)


FILE = "policy.safetensors"


def save_net(net: nn.Module, folder: Path) -> None:
    """All weights and buffers, safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}, folder / FILE)


def load_net(net: nn.Module, folder: Path) -> None:
    """What `save_net` wrote for the same recipe."""
    from safetensors.torch import load_file

    net.load_state_dict(load_file(folder / FILE))
