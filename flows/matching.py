"""A backbone as a Policy without an SDE: images by the ODE; one decision is a point between noise and the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flows.denoise import RowNoise, denoise
from flows.regularizer import event_mean
from flows.sde import over
from studio.shapes import expect
from studio.types import EVERY, Evaluation, Prompts, Rollout

if TYPE_CHECKING:
    from flows.policy import DenoisePolicy


@dataclass(frozen=True, slots=True)
class MatchTrace:
    """The recorded points  x = (1-σ)·sample + σ·noise."""

    x: Tensor  # [B, T, *E]

    def at(self, rows, steps=EVERY) -> MatchTrace:
        return MatchTrace(self.x[rows][:, steps])


class MatchingPolicy:
    """Draws images with the ODE and records, per image, T noise levels of the sampling grid with fresh noise.

    Everything but sampling and evaluation is the inner DenoisePolicy's: backbone, guidance, reference, files, pictures.
    """

    provides = frozenset({"velocity", "target", "sigma", "fit", "ref"})
    reduction = "mean"

    def __init__(self, inner: DenoisePolicy, points: int) -> None:
        self.inner, self.points = inner, points

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def sample(
        self,
        rows: Prompts,
        *,
        group: Tensor,
        seeds: Sequence[int],
        step: int,
        finished: Callable[[Prompts, Tensor], None] | None = None,
        micro: int | None = None,
    ) -> Rollout:
        """One image a row, its points, and what the sampling weights say there."""
        inner, sigmas = self.inner, self.inner.grid(self.inner.sampler.steps)
        device, shape = inner.device, inner.backbone.latent_shape
        images, points, levels, targets, velocities = [], [], [], [], []
        with torch.no_grad():
            for first in range(0, len(rows), micro or len(rows)):
                cut = range(first, min(first + (micro or len(rows)), len(rows)))
                texts = rows.take(cut).text
                noise = RowNoise([seeds[i] for i in cut], shape)
                start = noise() if not inner.sampler.same_noise else inner._shared_start(group[list(cut)], step)
                latents = denoise(inner.velocity(texts), inner.start(start.to(device), sigmas[0]), sigmas)
                images.append(inner.backbone.decode(latents))
                if finished is not None:
                    finished(rows.take(cut), images[-1])
                level = self._levels(noise.generators, sigmas).to(device)
                drawn = torch.stack([noise() for _ in range(self.points)], dim=1).to(device)
                x = (1 - over(level, drawn)) * latents[:, None] + over(level, drawn) * drawn
                points.append(x)
                levels.append(level)
                targets.append(drawn - latents[:, None])
                velocities.append(self._velocity(texts, x, level))
        trace, target, velocity = MatchTrace(torch.cat(points)), torch.cat(targets), torch.cat(velocities)
        old = Evaluation(velocity=velocity, target=target, sigma=torch.cat(levels), fit=event_mean((velocity - target) ** 2))
        mask = torch.ones(len(rows), self.points, dtype=torch.bool, device=device)
        return Rollout(rows, torch.cat(images), trace, mask, group.to(device), old, seeds=list(seeds))

    def evaluate(self, rollout: Rollout) -> Evaluation:
        """Velocity and matching error at the recorded points, under the current network."""
        trace: MatchTrace = rollout.trace  # type: ignore[assignment]
        target = expect(rollout.old.target, "B T *E", name="MatchingPolicy: target")
        sigma = expect(rollout.old.sigma, "B T", name="MatchingPolicy: sigma")
        with self.inner._gradients_exchanged():
            velocity = self._velocity(rollout.prompts.text, trace.x, sigma)
        return Evaluation(velocity=velocity, target=target, sigma=sigma, fit=event_mean((velocity - target) ** 2))

    def _velocity(self, texts: list[str], x: Tensor, sigma: Tensor) -> Tensor:
        """[B, T, *E] in one batch of B·T."""
        rows, steps = sigma.shape
        repeated = [text for text in texts for _ in range(steps)]
        return self.inner.velocity(repeated)(x.flatten(0, 1), sigma.flatten()).float().unflatten(0, (rows, steps))

    def _levels(self, generators: Sequence[torch.Generator], sigmas: Tensor) -> Tensor:
        """`points` different noise levels of the grid for each row, from the row's own generator -> [N, T]."""
        grid = sigmas[:-1]
        return torch.stack([grid[torch.randperm(len(grid), generator=own)[: self.points]] for own in generators])
