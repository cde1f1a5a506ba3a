"""The one denoising function: evaluation, rollouts and end-to-end gradients all go through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flows.recompute import recomputed
from flows.sde import Kernel, Step, flow_sde, ode, over

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x [N, *E], sigma [N]) -> [N, *E]


@dataclass(frozen=True, slots=True)
class Taken:
    """One step as it was taken."""

    index: int
    x: Tensor  # [N, *E] before the step
    sigma: Tensor  # [N]
    sigma_next: Tensor  # [N]
    level: Tensor  # [N]
    step: Step
    noise: Tensor | None  # [N, *E] None for a deterministic step
    x_next: Tensor


def denoise(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor,
    *,
    levels: Sequence[float] | float = 0.0,
    kernel: Kernel = flow_sde,
    noise: Callable[[], Tensor] | None = None,
    record: Callable[[Taken], None] | None = None,
    remember: bool = True,
    through: Sequence[Tensor] = (),
) -> Tensor:
    """x at sigmas[-1], starting from x at sigmas[0]; sigmas [N + 1] descending.

    A step of level 0 is the Euler step of the ODE; others draw `noise()` shaped like x. `record` sees every step, in order.
    With gradients on, remember=False recomputes each step in the backward pass instead of keeping its activations; not the
    last one, whose turn comes first: the peak is one step's either way. `through` names what the velocity reads besides x, for
    a recompute that is faster; without it torch's checkpoint finds that by itself.
    """
    x = x.float()
    grid = sigmas.tolist()
    levels = [float(levels)] * (len(grid) - 1) if isinstance(levels, (int, float)) else list(levels)
    for index, level in enumerate(levels):
        t, after, a = (x.new_full((len(x),), value) for value in (grid[index], grid[index + 1], level))
        family = kernel if level else ode

        if remember or not torch.is_grad_enabled() or index == len(levels) - 1:
            v = velocity(x, t)
        else:
            v = recomputed(velocity, x, t, through) if through else checkpoint(velocity, x, t, use_reentrant=False)
        step = family(x, v.float(), t, after, a)
        drawn = None
        if level:
            if noise is None:
                raise ValueError(f"denoise: step {index} has level {level}, expected a noise source, got None.")
            drawn = noise().to(x)
        x_next = step.mean if drawn is None else step.mean + over(step.std, x) * drawn
        if record is not None:
            record(Taken(index, x, t, after, a, step, drawn, x_next))
        x = x_next
    return x


class RowNoise:
    """Standard normal noise with one CPU generator per row, so a row's draws depend on its seed alone.

    Not on the batch it sits in, the number of processes or the device: CUDA generators differ across devices.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.shape = tuple(shape)

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])
