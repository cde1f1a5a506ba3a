"""Removal in rounds while a mask is learned: what goes is gone for good, and the weights that stay are refitted in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pruning.calibrate import Moments
from pruning.compensate import Compensation, apply, refit
from pruning.sites import Group, linear
from pruning.surgery import Kept

Weights = Mapping[str, tuple[Tensor, Tensor | None]]  # layer -> weight and bias
GONE = -1e4  # logit of a unit that is gone: its gate is 0 and has no gradient


class Rounds:
    """The network as it will be deployed, as far as is decided: refitted from its dense weights for the units that are gone.

    Without it gates are learned on weights that nobody compensates, and then deployed on weights that were.
    """

    def __init__(self, network: nn.Module, groups: Sequence[Group], moments: Mapping[str, Moments], settings: Compensation) -> None:
        self.network, self.groups, self.moments, self.settings = network, groups, moments, settings
        modules = dict(network.named_modules())
        names = dict.fromkeys(span.module for group in groups for span in group.consumers)
        self.weights = {name: _copies(linear(modules, name)) for name in names}
        self.kept: Kept | None = None

    def remove(self, kept: Kept) -> None:
        """All units but these go; the refit starts from the dense weights, so that rounds do not pile up errors."""
        self.kept = kept
        apply(self.network, self.weights)
        apply(self.network, refit(self.network, self.groups, kept, self.moments, self.settings))

    def dense(self) -> AbstractContextManager[None]:
        """Inside, the network has its own weights."""
        return nullcontext() if self.kept is None else swapped(self.network, self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": None if self.kept is None else dict(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["kept"] is not None:
            self.remove(state["kept"])


@contextmanager
def swapped(network: nn.Module, weights: Weights) -> Iterator[None]:
    """Inside, these layers have these weights and biases; afterwards their own again."""
    modules = dict(network.named_modules())
    own = {name: _copies(linear(modules, name)) for name in weights}
    apply(network, weights)
    try:
        yield
    finally:
        apply(network, own)


@torch.no_grad()
def mark_gone(logits: Mapping[str, Tensor], kept: Kept) -> None:
    """Logits of what is gone, in place; [units] per group."""
    for name, value in logits.items():
        stays = torch.zeros(len(value), dtype=torch.bool, device=value.device)
        stays[kept[name].to(value.device)] = True
        value[~stays] = GONE


def _copies(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()
