"""`studio prune`: learn or score, share out the budget, compensate, slice, verify, measure, save; each step once, in order."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flows.policy import DenoisePolicy
from pruning.budget import Budget
from pruning.build import budget_of, dense_policy, operations, score
from pruning.calibrate import packages
from pruning.choose import errors, mask_of
from pruning.compact import Facts, save_compact
from pruning.compensate import apply, refit
from pruning.evidence import draw_pairs, observe
from pruning.gating import gated
from pruning.heal import PRUNED, START, heal, healed_policy
from pruning.measure import Seen, latent_error, look, one_forward, parameters, seconds
from pruning.policy import BEGAN, load_logits
from pruning.recipe import PruneRecipe
from pruning.sites import Group, total_params
from pruning.surgery import Kept, cut
from studio.errors import ExportError
from studio.files import disk
from studio.run import Run
from studio.scoring import Scorer
from studio.state import final_weights
from studio.train import train
from studio.watch import records, shown

EVALUATION_SEED = 1_000_003  # apart from calibration: no measured picture was ever seen by a criterion
SLICED_ERROR = 1e-5  # largest difference of a sliced from a gated velocity, over its largest value, in float32
Tell = Callable[[str], None]


@dataclass
class Stage:
    """One row of the table: a network, and what it is worth."""

    name: str
    params: int
    latent_error: float
    rewards: dict[str, float]
    flops: float | None = None
    seconds: float | None = None
    guards: dict[str, float] = field(default_factory=dict)


def prune(recipe: PruneRecipe, run: Run, *, tell: Tell, report: Callable[[int, dict[str, float]], None]) -> str:
    """The whole run -> its final state; summary.json, the pruned network and the pictures lie in its folder."""
    began = time.monotonic()
    if recipe.learned:
        tell(f"learning masks: {recipe.learn.steps} updates of {recipe.learn.rows} trajectories")
        if train(recipe.training(), run, report=report, final=False) == "stopped":
            return "stopped"
    else:
        run.status("running")
    policy = dense_policy(recipe.model, recipe.sampler, recipe.seed)
    work = Work(recipe, run, policy, tell)
    kept = work.choose()
    work.dense()
    work.masked(kept)
    work.sliced(kept)
    heals = recipe.heal.method != "none"
    work.save(policy.model, kept, START if heals else PRUNED)
    if heals:
        tell(f"healing by {recipe.heal.method}: {recipe.heal.steps} steps")
        if heal(recipe, run) == "stopped":
            run.status("stopped", exit_code=0, reason="requested")
            return "stopped"
        work.healed(kept)
    summary = work.conclude(kept, time.monotonic() - began)
    run.summary(summary)
    run.status("finished", step=recipe.learn.steps if recipe.learned else 0, exit_code=0)
    return "finished"


class Work:
    """A dense policy on its way to a pruned one, with a row of the table for every stage."""

    def __init__(self, recipe: PruneRecipe, run: Run, policy: DenoisePolicy, tell: Tell) -> None:
        self.recipe, self.run, self.policy, self.tell = recipe, run, policy, tell
        self.groups: list[Group] = recipe.sites.of(policy.model)
        self.pairs = draw_pairs(recipe.prompts.options.build(recipe.seed), recipe.calibration.rows, recipe.seed)
        self.test = recipe.prompts.options.held_out(recipe.evaluate)
        self.rewards = Scorer({**recipe.protect, **recipe.rewards})
        self.stages: list[Stage] = []
        self.target: Seen | None = None
        self.fill: dict[str, Tensor] = {}
        if any(group.kind == "modulation" for group in self.groups) and recipe.compensation.on:
            self.fill = observe(policy, self.groups, self.pairs, recipe.calibration, frozenset({"fill"})).fill(self.groups)
        options = recipe.criterion.options
        self.budget: Budget = budget_of(
            policy, self.groups, recipe.target, recipe.allocation, recipe.scope(), per_cost=options.per_cost
        )

    def choose(self) -> Kept:
        """The units that stay: by the learned logits, or by the criterion's scores, within the budget."""
        recipe = self.recipe
        if recipe.learned:
            scores: Mapping[str, Tensor] = self._better(final_weights(self.run.folder))
        else:
            self.tell(f"scoring units by {recipe.criterion.name} on {len(self.pairs)} trajectories")
            scores = score(self.policy, self.groups, recipe.criterion.options, self.pairs, recipe.calibration, recipe.seed)
        if recipe.target.measure == "latency":
            return self._by_latency(scores)
        return self.budget.keep(scores)

    def dense(self) -> None:
        """The network as it came."""
        self.tell(f"drawing {len(self.test)} held-out prompts with the dense network")
        self.target = look(self.policy, self.test, self.rewards, EVALUATION_SEED, self.recipe.calibration.batch)
        self._note("dense", self.target)
        self.stages[-1].flops = operations(self.policy)

    def masked(self, kept: Kept) -> None:
        """The mask without compensation: what the criterion alone achieves."""
        with gated(self.policy.model, self.groups, mask_of(self.groups, kept, self.policy.device), self.fill):
            seen = look(self.policy, self.test, self.rewards, EVALUATION_SEED, self.recipe.calibration.batch)
        self._note("cut", seen)
        self.stages[-1].params = self._params(kept)

    def sliced(self, kept: Kept) -> None:
        """Compensated, checked against the gated network, sliced, drawn again and saved."""
        recipe, policy = self.recipe, self.policy
        if recipe.compensation.on:
            self.tell("compensating: least squares on what every consumer reads")
            apply(policy.model, self._refitted(kept))
        probe = one_forward(policy, 2)
        with gated(policy.model, self.groups, mask_of(self.groups, kept, policy.device), self.fill):
            expected = probe()
        before = seconds(one_forward(policy, 1))  # right before the cut, because a machine's speed drifts
        cut(policy.model, self.groups, kept, self.fill)
        after = seconds(one_forward(policy, 1))
        self.error = verify(probe(), expected)
        seen = look(policy, self.test, self.rewards, EVALUATION_SEED, self.recipe.calibration.batch)
        self._note("compensated" if recipe.compensation.on else "sliced", seen)
        self.stages[-1].flops = operations(policy)
        self.stages[0].seconds, self.stages[-1].seconds = before, after
        self._pictures(seen)

    def save(self, network: nn.Module, kept: Kept, name: str, **changes: Any) -> None:
        """RUN/<name>: a network in its compact form; that in RUN/pruned is what every export is made from."""
        recipe, first, last = self.recipe, self.stages[0], self.stages[-1]
        text = "\n".join(f"{key} {seed}" for key, seed in zip(self.pairs.prompts.key, self.pairs.seeds, strict=True))
        facts = Facts(
            base=recipe.model.id,
            revision=recipe.model.revision,
            method=recipe.criterion.name,
            seed=recipe.seed,
            align=recipe.allocation.align,
            compensation=recipe.compensation.on,
            calibration=hashlib.sha256(text.encode()).hexdigest(),
            ratios=self.ratios(kept),
            flops=(last.flops or 0) / (first.flops or 1),
        )
        folder = self.run.folder / name
        partial = folder.with_name(f"{name}.partial")
        with disk(folder):
            shutil.rmtree(partial, ignore_errors=True)
            save_compact(network, self.groups, kept, partial, facts, **changes)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)

    def healed(self, kept: Kept) -> None:
        """The network after its healing, drawn again and saved with its adapters merged."""
        policy = healed_policy(self.recipe, self.run)
        seen = look(policy, self.test, self.rewards, EVALUATION_SEED, self.recipe.calibration.batch)
        before = self.stages[-1]
        self._note("healed", seen)
        self.stages[-1].params, self.stages[-1].flops, self.stages[-1].seconds = before.params, before.flops, before.seconds
        self._pictures(seen)
        network: Any = policy.model
        if policy.lora:
            network.fuse_lora()
            network.unload_lora()
        self.save(network, kept, PRUNED, config_changes={})

    def ratios(self, kept: Kept) -> dict[str, float]:
        """Kept shares: of units, of the parameters that could go, of all parameters."""
        prunable = total_params(self.groups)
        gone = self.stages[0].params - self._params(kept)
        return {
            "units": sum(len(kept[g.name]) for g in self.groups) / sum(g.units for g in self.groups),
            "prunable": 1 - gone / prunable,
            "total": 1 - gone / self.stages[0].params,
        }

    def conclude(self, kept: Kept, spent: float) -> dict[str, Any]:
        """The figures that other programs read."""
        first, last, ratios = self.stages[0], self.stages[-1], self.ratios(kept)
        units = {g.name: len(kept[g.name]) for g in self.groups}
        return {
            "prompts": len(self.test),
            "before": {**first.rewards, "guards": first.guards},
            "after": {**last.rewards, "guards": last.guards},
            "guard_sigmas": {},
            "seconds": spent,
            "params_kept": ratios["total"],
            "prunable_kept": ratios["prunable"],
            "units_kept": ratios["units"],
            "flops_kept": (last.flops or 0) / (first.flops or 1),
            "latency_ratio": (last.seconds or 0) / (first.seconds or 1),
            "latent_error": last.latent_error,
            "sliced_error": self.error,
            "stages": [vars(stage) for stage in self.stages],
            "groups": [{"name": g.name, "kind": g.kind, "units": g.units, "kept": units[g.name]} for g in self.groups],
        }

    def _better(self, folder: Path) -> Mapping[str, Tensor]:
        """The learned logits, or those they started from where these cut better: far below what a network can bear, they may."""
        learned = load_logits(folder)
        if getattr(self.recipe.criterion.options, "first", None) is None:
            return learned
        each = {"learned": learned, "start": load_logits(folder, BEGAN)}
        masks = {name: self.budget.keep(scores) for name, scores in each.items()}
        refitted = self._refitted if self.recipe.compensation.on else lambda kept: {}
        batch = self.recipe.calibration.batch
        found = errors(self.policy, self.groups, masks, refitted, self.fill, self.pairs, batch)
        best = min(found, key=lambda name: found[name])
        self.tell("calibration error: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()) + f"; {best} is taken")
        return each[best]

    def _refitted(self, kept: Kept) -> dict[str, tuple[Tensor, Tensor | None]]:
        """New consumer weights, package by package, all from the dense network."""
        recipe, done = self.recipe, {}
        for part in packages(self.groups, recipe.calibration.packages):
            own = [group for group in part if group.consumers and len(kept[group.name]) < group.units]
            moments = observe(self.policy, own, self.pairs, recipe.calibration, frozenset({"gram"})).inputs if own else {}
            done |= refit(self.policy.model, part, kept, moments, recipe.compensation)
        return done

    def _by_latency(self, scores: Mapping[str, Tensor]) -> Kept:
        """Bisection on the share of operations; every candidate is sliced from a copy and timed."""
        whole = seconds(one_forward(self.policy, 1))
        low, high = self.budget.least(), 1.0
        network, kept = self.policy.model, self.budget.keep(scores, 1.0)
        for _ in range(8):
            share = (low + high) / 2
            candidate = self.budget.keep(scores, share)
            self.policy.backbone.network = copy.deepcopy(network)
            cut(self.policy.backbone.network, self.groups, candidate)
            ratio = seconds(one_forward(self.policy, 1)) / whole
            self.policy.backbone.network = network
            self.tell(f"operations {share:.3f}: time {ratio:.3f} of the dense network's")
            if ratio <= self.recipe.target.share:
                low, kept = share, candidate
            else:
                high = share
        return kept

    def _note(self, name: str, seen: Seen) -> None:
        assert self.target is not None
        error = latent_error(seen.latents, self.target.latents)
        means, guards = seen.evaluated.means(), seen.evaluated.guard_means()
        self.stages.append(Stage(name, parameters(self.policy), error, means, guards=guards))
        self.tell(f"{name}: latent error {error:.4f}  " + "  ".join(f"{k} {v:.3f}" for k, v in means.items()))

    def _params(self, kept: Kept) -> int:
        gone = sum((group.units - len(kept[group.name])) * group.params for group in self.groups)
        return self.stages[0].params - gone

    def _pictures(self, seen: Seen) -> None:
        """The same prompts and seeds, dense as step 0 and pruned as the last step."""
        assert self.target is not None
        for step, each in ((0, self.target), (max(1, self.recipe.learn.steps if self.recipe.learned else 1), seen)):
            count = min(24, len(self.test))
            self.run.save_samples(step, shown(each.evaluated, count), records(step, each.evaluated, count))


def verify(sliced: Tensor, expected: Tensor) -> float:
    """max |sliced - gated|/max(1, max |gated|); ExportError when it is more than rounding."""
    error = ((sliced - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    limit = SLICED_ERROR if sliced.dtype == torch.float32 else 0.05
    if not error <= limit:
        raise ExportError(
            f"slicing: expected the sliced network to answer as the gated one within {limit:g}, got {error:.3g}. Nothing was "
            "saved; report this model."
        )
    return error
