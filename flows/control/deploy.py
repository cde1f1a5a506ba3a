"""A trained control policy as one TorchScript file: observation in, action out, without this package."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studio.errors import ExportError

FILE, FACTS, ERROR = "policy.pt", "policy.json", 1e-5  # largest difference of the file's actions from the policy's


class Deployed(nn.Module):
    """(observation [N, n], noise [N, m]) -> action [N, d], scaled, decided and clipped as in the environment.

    The noise is standard normal: what the policy decides from without exploring.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, policy: Any, normalizer: Any) -> None:
        super().__init__()
        self.net, self.decide, self.clip = policy.model, policy.decide, float(normalizer.acting.clip)
        self.shapes = {name: list(draw.shape[2:]) for name, draw in policy.draws(-1, 1, 1).items()}
        self.size = sum(math.prod(shape) for shape in self.shapes.values())
        moments = normalizer.observations
        self.scaled = bool(normalizer.acting.observations and moments.count)
        self.register_buffer("mean", moments.mean.float())
        self.register_buffer("std", moments.std.float() + 1e-8)
        self.register_buffer("low", torch.tensor(policy.space.low))
        self.register_buffer("high", torch.tensor(policy.space.high))

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        if self.scaled:
            observation = ((observation - self.mean) / self.std).clamp(-self.clip, self.clip)
        draw, at = {}, 0
        for name, shape in self.shapes.items():
            draw[name] = noise[:, at : at + math.prod(shape)].reshape(-1, *shape)
            at += math.prod(shape)
        action = self.decide(observation, draw, "noiseless")
        return torch.minimum(torch.maximum(action, self.low), self.high)


def write_policy(policy: Any, arena: Any, folder: Path) -> dict[str, Any]:
    """policy.pt and policy.json in `folder` -> facts; ExportError unless the file acts as the policy does."""
    space = policy.space
    own = torch.Generator().manual_seed(0)
    module = Deployed(policy, arena.normalizer).eval()
    observation, noise = (torch.randn(16, size, generator=own) for size in (space.observation, module.size))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes of the tracer
        traced = torch.jit.trace(module, (observation, noise))
        torch.jit.save(traced, str(folder / FILE))
        loaded = torch.jit.load(str(folder / FILE))
        again, other = torch.randn(5, space.observation, generator=own) * 3, torch.randn(5, module.size, generator=own)
        error = (loaded(again, other) - module(again, other)).abs().max().item()
    if not error <= ERROR:
        raise ExportError(
            f"{folder / FILE}: expected the file to act as the policy within {ERROR:g}, got a difference of {error:.3g}. Report "
            "this recipe."
        )
    facts = {
        "observation": space.observation,
        "action": space.action,
        "low": list(space.low),
        "high": list(space.high),
        "noise": module.size,
        "error": error,
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts
