"""What the units do on dense trajectories: second moments of what consumers read, means of modulation outputs, block influence."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pruning.families import BLOCKS
from pruning.sites import Group


@dataclass(frozen=True)
class Calibration:
    """The sample paths on which scores, compensation and masks are computed."""

    rows: Annotated[int, Field(ge=1)] = 64  # (prompt, noise) pairs; every pair has a noise of its own
    batch: Annotated[int, Field(ge=1)] = 16  # pairs at a time
    packages: Annotated[int, Field(ge=1)] = 1  # passes, each of which keeps the moments of a share of the layers: less memory
    weight_first: Annotated[float, Field(gt=0)] = 1.2  # weight of the first, noisiest step; falls with the logarithm of the step
    weight_last: Annotated[float, Field(gt=0)] = 0.8


@dataclass
class Moments:
    """Weighted sums over tokens of x and xxᵀ; gram and mean are per unit of weight."""

    total: float = 0.0
    first: Tensor | None = None  # [n]
    second: Tensor | None = None  # [n, n], or [n] where only the diagonal is wanted

    def add(self, x: Tensor, weight: float, *, full: bool) -> None:
        """x [N, n]: tokens that were read."""
        x = x.float()
        first, second = x.sum(0), (x.T @ x if full else (x * x).sum(0))
        self.first = weight * first.double() + (0 if self.first is None else self.first)
        self.second = weight * second.double() + (0 if self.second is None else self.second)
        self.total += weight * len(x)

    @property
    def mean(self) -> Tensor:
        assert self.first is not None
        return self.first / self.total

    @property
    def gram(self) -> Tensor:
        """E[xxᵀ] [n, n], or its diagonal [n]."""
        assert self.second is not None
        return self.second / self.total

    def covariance(self) -> Tensor:
        """E[xxᵀ] - E[x]E[x]ᵀ."""
        return self.gram - torch.outer(self.mean, self.mean)

    def diagonal(self) -> Tensor:
        """E[x²] [n]."""
        return self.gram.diagonal() if self.gram.ndim == 2 else self.gram


@dataclass
class Statistics:
    """What was measured, by module or group name."""

    inputs: dict[str, Moments] = field(default_factory=dict)  # consumers
    outputs: dict[str, Moments] = field(default_factory=dict)  # modulation layers, diagonal only
    similarity: dict[str, Moments] = field(default_factory=dict)  # blocks: cos(input, output) of every token

    def fill(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """The constant that a removed modulation output takes: its mean.  [units] per group"""
        return {
            group.name: self.outputs[group.producers[0].module].mean.float().cpu()
            for group in groups
            if group.kind == "modulation" and group.producers[0].module in self.outputs
        }


class Clock:
    """Which step of the trajectory is running, as a weight; `measuring` hooks ask it."""

    def __init__(self, steps: int, first: float, last: float) -> None:
        self.steps, self.first, self.last, self.weight = steps, first, last, 1.0

    def at(self, step: int) -> None:
        """a_t = last + (first - last)·ln(T - t + 1)/ln T for t = step + 1 (OBS-Diff's logarithmic decrease)."""
        share = math.log(self.steps - step) / math.log(self.steps) if self.steps > 1 else 1.0
        self.weight = self.last + (self.first - self.last) * share


@contextmanager
def measuring(network: nn.Module, groups: Sequence[Group], clock: Clock, *, full: bool) -> Iterator[Statistics]:
    """Inside, forwards add to the statistics of these groups; `full` keeps whole Gram matrices, else their diagonals."""
    modules, found, hooks = dict(network.named_modules()), Statistics(), []

    def reads(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.inputs.setdefault(name, Moments()).add(inputs[0].detach().flatten(0, -2), clock.weight, full=full)

        return hook

    def makes(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, y: Tensor) -> None:
            found.outputs.setdefault(name, Moments()).add(y.detach().flatten(0, -2), clock.weight, full=False)

        return hook

    def passes(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, answer: Any) -> None:
            given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            after = answer if isinstance(answer, tuple) else (answer,)
            for stream, new in zip(BLOCKS[type(module).__name__], after, strict=False):
                cosine = torch.cosine_similarity(given[stream].detach().float(), new.detach().float(), dim=-1)
                found.similarity.setdefault(name, Moments()).add(cosine.flatten()[:, None], clock.weight, full=False)

        return hook

    for group in groups:
        if group.kind == "blocks":
            hooks.append(modules[group.name].register_forward_hook(passes(group.name), with_kwargs=True))
        elif group.kind == "modulation":
            name = group.producers[0].module
            hooks.append(modules[name].register_forward_hook(makes(name)))
    for name in dict.fromkeys(span.module for group in groups for span in group.consumers):
        hooks.append(modules[name].register_forward_pre_hook(reads(name)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def packages(groups: Sequence[Group], count: int) -> list[list[Group]]:
    """The groups in `count` runs of about equal length; groups that share a consumer stay together."""
    joined: list[list[Group]] = []
    for group in groups:
        readers = {span.module for span in group.consumers}
        home = next((part for part in joined if readers & {s.module for g in part for s in g.consumers}), None)
        if home is None:
            joined.append([group])
        else:
            home.append(group)
    count = min(count, len(joined))
    cuts = [round(i * len(joined) / count) for i in range(count + 1)]
    return [[g for part in joined[a:b] for g in part] for a, b in zip(cuts, cuts[1:], strict=False)]
