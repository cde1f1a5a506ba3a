"""Depth: a score for whole blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pruning.allocate import Scope
from pruning.scores import Evidence, Scores
from studio.errors import ConfigError


@dataclass(frozen=True)
class BlockInfluence:
    """1 - E[cos(input, output)] of a block (ShortGPT, arXiv:2403.03853), over all steps of the trajectories."""

    needs: ClassVar[frozenset[str]] = frozenset({"similarity"})
    kinds: ClassVar[frozenset[str]] = frozenset({"blocks"})
    scope: ClassVar[Scope] = "global"
    per_cost: ClassVar[bool] = False

    def __call__(self, seen: Evidence) -> Scores:
        other = [group.name for group in seen.groups if group.kind != "blocks"]
        if other:
            raise ConfigError(
                f"recipe.criterion: expected sites.kinds [blocks] for block_influence, got sites such as {other[0]}. Set it, or "
                "choose another criterion."
            )
        return {group.name: 1 - seen.statistics.similarity[group.name].mean.cpu() for group in seen.groups}
