"""From recipe blocks to the dense policy, its groups and budget, and the gates on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flows.load import Model, load_backbone, prompt_encoder
from flows.policy import DenoisePolicy
from flows.sampler import Sampler
from flows.trace import trace
from pruning.allocate import Allocation, Scope, quantiles
from pruning.budget import Budget, Target
from pruning.calibrate import Calibration, packages
from pruning.costs import unit_flops
from pruning.evidence import Pairs, draw_pairs, loss_gradients, observe
from pruning.measure import one_forward
from pruning.policy import GatedPolicy
from pruning.rounds import Rounds
from pruning.scores import Evidence, Scores
from pruning.sites import Group
from studio.config import component

if TYPE_CHECKING:
    from pruning.recipe import Gated


def dense_policy(model: Model, sampler: Sampler, seed: int) -> DenoisePolicy:
    """The model as it is, frozen."""
    backbone = load_backbone(model)
    return DenoisePolicy(backbone, sampler, seed=seed, encode=prompt_encoder(backbone, model))


def budget_of(
    policy: DenoisePolicy, groups: Sequence[Group], target: Target, allocation: Allocation, scope: Scope, *, per_cost: bool
) -> Budget:
    """The budget of a loaded model."""
    return budget(groups, policy.model, lambda: one_forward(policy, 1), target, allocation, scope, per_cost=per_cost)


def budget(
    groups: Sequence[Group],
    network: nn.Module,
    forward: Callable[[], Callable[[], Any]],
    target: Target,
    allocation: Allocation,
    scope: Scope,
    *,
    per_cost: bool,
) -> Budget:
    """Costs in parameters or operations; a target of time is counted in operations here and measured later.

    `forward` makes the call that is counted; nothing is called for a target in parameters.
    """
    if target.measure == "params":
        costs = {group.name: float(group.params) for group in groups}
        whole = float(sum(p.numel() for p in network.parameters()))
    else:
        costs, whole = unit_flops(groups, network, forward()), trace(network, forward()).flops
    options: Any = {"align": allocation.align, "min_keep": allocation.min_keep}
    return Budget(groups, costs, whole, target.share, scope, per_cost, **options)


def operations(policy: DenoisePolicy) -> float:
    """FLOPs of one forward of one row."""
    return trace(policy.model, one_forward(policy, 1)).flops


def score(policy: DenoisePolicy, groups: Sequence[Group], criterion: Any, pairs: Pairs, settings: Calibration, seed: int) -> Scores:
    """A criterion's number per unit, from the statistics and gradients that it needs.

    What needs Gram matrices looks at one package of layers after the other, each with a pass of its own.
    """
    found: Scores = {}
    for part in packages(groups, settings.packages if "gram" in criterion.needs else 1):
        seen = Evidence(
            policy.model,
            part,
            observe(policy, part, pairs, settings, criterion.needs),
            lambda threshold, part=part: loss_gradients(policy, part, pairs, settings, threshold),
            seed,
        )
        found |= {name: value.detach().float().cpu() for name, value in criterion(seen).items()}
    return found


def gated_policy(block: Gated, seed: int) -> GatedPolicy:
    """The dense policy under gates whose logits start evenly, or in the order of another criterion."""
    dense = dense_policy(block.model, block.sampler, seed)
    groups = block.sites.of(dense.model)
    budget = budget_of(dense, groups, block.target, block.allocation, block.scope, per_cost=False)
    pairs = draw_pairs(block.prompts.options.build(seed), block.calibration.rows, seed, one_noise=block.one_noise)
    start = {group.name: torch.full((group.units,), block.start) for group in groups}
    if block.first is not None and block.spread:
        criterion = component("criterion", block.first).options
        found = score(dense, groups, criterion, pairs, block.calibration, seed)
        start = ordered(groups, found, block.start, block.spread, criterion)
    fill = None
    if block.compensation.on and any(group.kind == "modulation" for group in groups):
        fill = observe(dense, groups, pairs, block.calibration, frozenset({"fill"})).fill(groups)
    rounds = None
    if block.rounds > 1 and block.compensation.on:
        own = [group for group in groups if group.consumers]
        rounds = Rounds(
            dense.model, groups, observe(dense, own, pairs, block.calibration, frozenset({"gram"})).inputs, block.compensation
        )
    return GatedPolicy(
        dense, groups, budget, pairs, start=start, seed=seed, fill=fill, batch=block.calibration.batch, rounds=rounds
    )


def ordered(groups: Sequence[Group], scores: Scores, start: float, spread: float, criterion: Any) -> dict[str, Tensor]:
    """Logits evenly in start ± spread by rank: within each module, or among all where scores per cost can be compared."""
    if criterion.scope == "global" and criterion.per_cost:
        scores = {group.name: scores[group.name].double() / group.params for group in groups}
    shares = quantiles(groups, scores, criterion.scope)
    return {name: (start + spread * (2 * share - 1)).float() for name, share in shares.items()}
