"""What can be removed: groups of units, listed by name before any forward.

A unit is the smallest thing removed together: an attention head, a hidden neuron, an output of a modulation layer, a block.
The units of a group share an index space: rows of its producers make them, columns of its consumers read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from studio.errors import ConfigError
from studio.names import suggestion

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["heads", "neurons", "modulation", "blocks"]
KINDS: tuple[Kind, ...] = ("heads", "neurons", "modulation", "blocks")


@dataclass(frozen=True)
class Span:
    """Where the units of a group lie in one linear layer: unit i has rows (or columns) offset + [i·size, (i+1)·size)."""

    module: str  # dotted name of the linear
    size: int = 1  # rows or columns per unit
    offset: int = 0


@dataclass(frozen=True)
class Resize:
    """An attribute that states a width: after a cut it is `units kept` · factor."""

    module: str
    attribute: str
    factor: int = 1


@dataclass(frozen=True)
class Group:
    """All units of one module that share an index space."""

    name: str  # dotted name of the module
    kind: Kind
    units: int
    params: int  # parameters that go with one unit, biases included
    producers: tuple[Span, ...] = ()
    consumers: tuple[Span, ...] = ()
    resizes: tuple[Resize, ...] = ()

    @property
    def block(self) -> str:
        """The block it belongs to, as far as the first number in the name: "transformer_blocks.3"."""
        found = re.match(r".*?\.\d+(?:\.(?:transformer_blocks|attentions)\.\d+)*", self.name)
        return found[0] if found else self.name


@dataclass(frozen=True)
class Sites:
    """Which groups of a network may be cut."""

    kinds: list[Kind] = field(default_factory=lambda: ["heads", "neurons"])
    include: str = ".*"  # regular expression that a group's name must contain
    exclude: str | None = None  # and one that it must not

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise ValueError(
                    f"sites.{name}: expected a regular expression, got {getattr(self, name)!r} ({error}). Correct it."
                ) from error
        if not self.kinds:
            raise ValueError(f"sites.kinds: expected some of {', '.join(KINDS)}, got none. Name what may be cut.")

    def of(self, network: nn.Module) -> list[Group]:
        """The groups that match, in the order of the network; ConfigError when there are none."""
        every = find_groups(network)
        if not every:
            raise ConfigError(
                f"recipe.model: expected a network with prunable sites, got a {type(network).__name__} without any. Known are the "
                "transformer blocks of SD3, FLUX, DiT and U-Nets, and decoder layers of the Llama and Qwen kind."
            )
        chosen = [group for group in every if group.kind in self.kinds and self._matches(group.name)]
        if not chosen:
            names = [group.name for group in every if group.kind in self.kinds] or [group.name for group in every]
            raise ConfigError(
                f"recipe.sites: expected a pattern that matches some site, got kinds {', '.join(self.kinds)}, include "
                f"{self.include!r}, exclude {self.exclude!r}{suggestion(self.include, names)} Sites are for example "
                f"{', '.join(names[:4])}."
            )
        return chosen

    def _matches(self, name: str) -> bool:
        return re.search(self.include, name) is not None and not (self.exclude and re.search(self.exclude, name))


def find_groups(network: nn.Module) -> list[Group]:
    """Every group of the known module classes, in the order of `named_modules`."""
    from pruning.families import RULES

    found: list[Group] = []
    modules = dict(network.named_modules())
    for name, module in modules.items():
        for rule in RULES:
            found.extend(rule(name, module, modules))
    return found


def linear(modules: dict[str, nn.Module], name: str) -> nn.Linear:
    """The linear layer of that name; under a LoRA adapter its base layer."""
    module = modules[name]
    return getattr(module, "base_layer", module)  # type: ignore[return-value]


def unit_params(modules: dict[str, nn.Module], producers: Iterable[Span], consumers: Iterable[Span]) -> int:
    """Parameters of one unit: its producers' rows with their biases, and its consumers' columns."""
    made = [(span, linear(modules, span.module)) for span in producers]
    read = [(span, linear(modules, span.module)) for span in consumers]
    rows = sum(span.size * (layer.in_features + (layer.bias is not None)) for span, layer in made)
    return rows + sum(span.size * layer.out_features for span, layer in read)


def total_params(groups: Sequence[Group]) -> int:
    """Parameters of all units of these groups."""
    return sum(group.units * group.params for group in groups)
