"""A frozen model under gates, as a policy that the one loop can train: what moves are the gates' logits."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pruning.budget import Budget
from pruning.evidence import Pairs
from pruning.gates import HardConcrete, straight_through
from pruning.gating import gated
from pruning.rounds import Rounds, mark_gone
from pruning.sites import Group
from studio.errors import MissingError
from studio.types import Prompts

if TYPE_CHECKING:
    from flows.policy import DenoisePolicy

FILE, BEGAN = "logits.safetensors", "start.safetensors"


class GatedPolicy:
    """The dense policy, the groups that may be cut, a logit per unit, and the pairs that masks are learned on."""

    provides = frozenset({"masks"})
    reduction = "mean"

    def __init__(
        self,
        dense: DenoisePolicy,
        groups: Sequence[Group],
        budget: Budget,
        pairs: Pairs,
        *,
        start: Mapping[str, Tensor],
        seed: int,
        fill: Mapping[str, Tensor] | None = None,
        batch: int = 16,
        rounds: Rounds | None = None,
    ) -> None:
        self.dense, self.groups, self.budget, self.pairs, self.seed, self.fill = dense, list(groups), budget, pairs, seed, fill
        self.batch, self.memory = batch, rounds
        self.start = {group.name: start[group.name].float().cpu().clone() for group in groups}
        self.model = nn.ParameterList([nn.Parameter(start[group.name].float().to(dense.device)) for group in groups])
        self.device = dense.device
        self._targets: dict[int, Tensor] = {}

    @property
    def backbone(self) -> Any:
        return self.dense.backbone

    def logits(self) -> dict[str, Tensor]:
        """[units] per group, float32."""
        return {group.name: value for group, value in zip(self.groups, self.model, strict=True)}

    def draws(self, step: int) -> dict[str, Tensor]:
        """Uniform numbers for the gates of one update, [units] per group: the same on every rank and in a resumed run."""
        own = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return {name: torch.rand(len(value), generator=own).to(value) for name, value in self.logits().items()}

    def rows(self, step: int, count: int) -> list[int]:
        """Which pairs an update sees: every pair once per pass, each pass in its own order."""
        found: list[int] = []
        at = step * count
        while len(found) < count:
            order = list(range(len(self.pairs)))
            random.Random(f"{self.seed}/{at // len(order)}").shuffle(order)
            inside = at % len(order)
            found += order[inside : inside + count - len(found)]
            at = step * count + len(found)
        return found

    def remove(self, share: float) -> None:
        """What the present logits would not keep within this share of the network goes for good."""
        assert self.memory is not None
        kept = self.budget.keep({name: value.detach().cpu() for name, value in self.logits().items()}, share)
        self.memory.remove(kept)
        mark_gone(self.logits(), kept)

    def unpruned(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that it came with."""
        return nullcontext() if self.memory is None else self.memory.dense()

    @torch.no_grad()
    def target(self, rows: Sequence[int]) -> Tensor:
        """Final latents of the dense model for these pairs [N, *E]; each is computed once.

        Always in the same batches: in others the last bits differ, and a resumed run would not repeat the first.
        """
        for at in dict.fromkeys(row - row % self.batch for row in rows if row not in self._targets):
            whole = range(at, min(at + self.batch, len(self.pairs)))
            own = self.pairs.take(whole)
            with self.unpruned():
                made = self.dense.latents(own.prompts.text, own.seeds).cpu()
            self._targets |= dict(zip(whole, made, strict=True))
        return torch.stack([self._targets[row] for row in rows]).to(self.device)

    @torch.no_grad()
    def steps(self, rows: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(x, sigma, velocity) of every step of the dense trajectories of these pairs."""
        own, taken = self.pairs.take(rows), []
        with self.unpruned():
            self.dense.latents(own.prompts.text, own.seeds, record=taken.append)
            velocity = self.dense.velocity(own.prompts.text)
            return [(step.x, step.sigma, velocity(step.x, step.sigma).float()) for step in taken]

    @contextmanager
    def under(self, gates: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the model answers as gated."""
        with gated(self.dense.model, self.groups, gates, self.fill):
            yield

    def hard(self, share: float | None = None) -> dict[str, Tensor]:
        """0/1 gates of the units that the present logits would keep within the budget, or within another share."""
        kept = self.budget.keep({name: value.detach().cpu() for name, value in self.logits().items()}, share)
        gates = {}
        for name, value in self.logits().items():
            gates[name] = torch.zeros_like(value.detach())
            gates[name][kept[name].to(value.device)] = 1.0
        return gates

    def draw(self, prompts: Prompts, seeds: Sequence[int]) -> Tensor:
        """Evaluation images of the mask that would be deployed now."""
        with self.under(self.hard()):
            return self.dense.draw(prompts, seeds)

    def distribute(self, model: nn.Module) -> None:
        """Evaluation with gradients goes through this wrapper from now on."""
        self.dense.distribute(model)

    def trainable(self) -> Iterable[nn.Parameter]:
        return list(self.model)

    def save(self, folder: Path) -> None:
        """The logits, and those of the start, by group name; safetensors."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu() for name, value in self.logits().items()}, folder / FILE)
        save_file(self.start, folder / BEGAN)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Logits that `save` wrote for the same groups."""
        stored = load_logits(folder)
        for name, value in self.logits().items():
            value.copy_(stored[name])


def load_logits(folder: Path, file: str = FILE) -> dict[str, Tensor]:
    """[units] per group name."""
    from safetensors.torch import load_file

    if not (folder / file).is_file():
        raise MissingError(f"{folder / file}: expected the logits of a mask, got no such file. Name a checkpoint of a prune run.")
    return load_file(folder / file)


def gates_of(
    policy: GatedPolicy, family: HardConcrete, step: int, *, settled: float | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gates of one update with their graph, and P(m > 0), [units] per group.

    Settled gates are the 0/1 mask of the present logits that leaves the share `settled`, with the gradient of σ(λ).
    """
    logits = policy.logits()
    if settled is not None:
        hard = policy.hard(settled)
        soft = {name: torch.sigmoid(value) for name, value in logits.items()}
        return {name: straight_through(hard[name], soft[name]) for name in logits}, soft
    draws = policy.draws(step)
    opens = {name: family.open_sharp(value) for name, value in logits.items()}
    return {name: family.sample(value, draws[name]) for name, value in logits.items()}, opens
