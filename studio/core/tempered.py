"""Likelihoods of the same decision at other temperatures, which a policy gives in the pass that gives its own."""

from __future__ import annotations

from torch import Tensor

from studio.errors import ConfigError
from studio.shapes import expect
from studio.types import Evaluation

TEMPERATURES = (0.8, 1.2, 2.0)  # DCPO (the first two) and RAPO's softened reference


def known(temperature: float, name: str) -> float:
    """The temperature itself; ConfigError for one at which policies record nothing."""
    if temperature != 1 and temperature not in TEMPERATURES:
        raise ConfigError(
            f"{name}: expected a temperature of {', '.join(map(str, TEMPERATURES))} or 1, got {temperature}. Use one."
        )
    return temperature


def at_temperature(said: Evaluation, temperature: float, name: str) -> Tensor:
    """log softmax(logits / temperature) of the decision, the sampling temperature being 1 -> [B, T]."""
    if known(temperature, name) == 1:
        return expect(said.logp, "B T", name=f"{name}: logp")
    return expect(said.tempered, "B T K", name=f"{name}: tempered", K=len(TEMPERATURES))[..., TEMPERATURES.index(temperature)]
