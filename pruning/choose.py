"""Which of several masks is deployed: the one whose compensated network ends closest to the dense one on calibration pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from flows.policy import DenoisePolicy
from pruning.evidence import Pairs
from pruning.gating import gated
from pruning.measure import latent_error
from pruning.rounds import Weights, swapped
from pruning.sites import Group
from pruning.surgery import Kept

ROWS = 64  # calibration pairs that are drawn for the choice


def errors(
    policy: DenoisePolicy,
    groups: Sequence[Group],
    masks: Mapping[str, Kept],
    refitted: Callable[[Kept], Weights],
    fill: Mapping[str, Tensor],
    pairs: Pairs,
    batch: int,
) -> dict[str, float]:
    """Latent error of each mask by name, its consumers refitted, on the first calibration pairs."""
    own = pairs.take(range(min(ROWS, len(pairs))))

    def latents() -> Tensor:
        with torch.no_grad():
            cuts = [slice(at, at + batch) for at in range(0, len(own), batch)]
            return torch.cat([policy.latents(own.prompts.text[cut], own.seeds[cut]) for cut in cuts])

    wanted, found = latents(), {}
    for name, kept in masks.items():
        weights = refitted(kept)
        with swapped(policy.model, weights), gated(policy.model, groups, mask_of(groups, kept, policy.device), fill):
            found[name] = latent_error(latents(), wanted)
    return found


def mask_of(groups: Sequence[Group], kept: Kept, device: torch.device | str) -> dict[str, Tensor]:
    """0/1 gates [units] per group."""
    gates = {}
    for group in groups:
        gates[group.name] = torch.zeros(group.units, device=device)
        gates[group.name][kept[group.name].to(device)] = 1.0
    return gates
