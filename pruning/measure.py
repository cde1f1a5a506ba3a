"""What a network is worth and what it costs: latent error, rewards, parameters, operations, measured time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flows.policy import DenoisePolicy
from studio.scoring import Scorer
from studio.types import Prompts
from studio.watch import Evaluated, evaluate


@dataclass(frozen=True)
class Seen:
    """Held-out pictures of one network, and the latents that they were decoded from."""

    evaluated: Evaluated
    latents: Tensor


class _Drawing:
    """A policy whose pictures are kept with their latents."""

    def __init__(self, policy: DenoisePolicy, rows: int) -> None:
        self.policy, self.rows, self.latents = policy, rows, torch.empty(0)

    def draw(self, prompts: Prompts, seeds: Sequence[int]) -> Tensor:
        policy, texts, drawn = self.policy, prompts.text, []
        with torch.no_grad():
            for at in range(0, len(texts), self.rows):
                cut = slice(at, at + self.rows)
                drawn.append(policy.latents(texts[cut], seeds[cut], steps=policy.sampler.eval_steps))
            self.latents = torch.cat(drawn)
            return torch.cat([policy.backbone.decode(part) for part in drawn])


def look(policy: DenoisePolicy, prompts: Prompts, rewards: Scorer, seed: int, rows: int = 32) -> Seen:
    """Draw every prompt once with its own seed, `rows` at a time, and score."""
    drawing = _Drawing(policy, rows)
    seen = evaluate(drawing, prompts, rewards, Scorer({}), seed)  # type: ignore[arg-type]
    return Seen(seen, drawing.latents)


def latent_error(made: Tensor, target: Tensor) -> float:
    """mean_i ||ẑ_i - z_i||²/||z_i||² over rows."""
    miss = ((made.float() - target.float()) ** 2).flatten(1).sum(1)
    return (miss / (target.float() ** 2).flatten(1).sum(1)).mean().item()


def parameters(policy: DenoisePolicy) -> int:
    return sum(p.numel() for p in policy.model.parameters())


@torch.no_grad()
def one_forward(policy: DenoisePolicy, rows: int) -> Callable[[], Any]:
    """A call of the guided velocity for `rows` pictures at a fixed noise."""
    x = torch.randn((rows, *policy.backbone.latent_shape), generator=torch.Generator().manual_seed(0)).to(policy.device)
    velocity, sigma = policy.velocity(["a red circle"] * rows), x.new_full((rows,), 0.5)

    def call() -> Tensor:
        with torch.no_grad():
            return velocity(x, sigma)

    return call


def seconds(call: Callable[[], Any], *, repeat: int = 15, warm: int = 3) -> float:
    """Median time of a call, the device's work included."""
    times = []
    for turn in range(warm + repeat):
        _wait()
        began = time.perf_counter()
        call()
        _wait()
        if turn >= warm:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
