"""Criteria for pruning on the bundled pipeline: latent error and rewards at four budgets, with and without compensation.

Part one prunes the base; part two a model that GRPO-Guard has aligned, by learned masks with and without the reward's gap in
the loss. Writes docs/experiments/pruning.json and .md. What is learned lies in --runs and is kept; cells in cells.jsonl there.

    python -m experiments.pruning --seeds 3
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.runs import run_once, spread

OUT = Path("docs/experiments")
TRAINING_FREE = ("random", "magnitude", "wanda", "taylor", "obs")
LEARNED = ("ecodiff", "end-to-end")
SHARES = (0.9, 0.8, 0.7, 0.5)  # of all parameters of the denoiser that remain
ALIGNED_SHARES = (0.8,)
PROMPTS, PAIRS = 96, 128
REWARD_WEIGHT = 0.5
EVALUATION_SEED = 1_000_003


@dataclass
class Bench:
    """A dense policy with everything that its cells share."""

    policy: Any
    groups: Any
    pairs: Any
    moments: Any
    test: Any
    rewards: Any
    target: Any
    recipe: Any


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--only", nargs="*", type=int, help="these seeds, and no page: several processes share the work")
    arguments.add_argument("--runs", type=Path, default=Path("runs/pruning"))
    arguments.add_argument("--aligned", type=Path, help="a finished run of shapes/grpo-guard; default: train one")
    given = arguments.parse_args()
    for seed in given.only or range(given.seeds):
        base(given.runs, seed)
    if given.only is None or 0 in given.only:
        for seed in range(given.seeds):
            aligned(given.runs, seed, given.aligned)
    if given.only is not None:
        return
    cells = [json.loads(line) for file in sorted(given.runs.glob("cells-*.jsonl")) for line in file.read_text().splitlines()]
    command = f"python -m experiments.pruning --seeds {given.seeds}"
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "pruning.json").write_text(json.dumps({"command": command, "cells": cells}, indent=1) + "\n", encoding="utf-8")
    (OUT / "pruning.md").write_text(page(cells, command, given.seeds), encoding="utf-8")
    print(json.dumps({"page": str(OUT / "pruning.md")}))


def base(root: Path, seed: int) -> None:
    """All criteria at all budgets on the base, one line per cell."""
    ledger = Ledger(root / f"cells-base-{seed}.jsonl")
    wanted = [(name, share) for share in SHARES for name in (*TRAINING_FREE, *LEARNED)]
    if not ledger.missing(wanted):
        return
    bench = bench_of("shapes/taylor", seed, [])
    scores: dict[str, Any] = {}
    for name, share in ledger.missing(wanted):
        options, scope = settings_of(name, seed, share, [])
        taken = "scores"
        if name in TRAINING_FREE:
            if name not in scores:
                scores[name] = score_of(bench, name, seed)
            found = scores[name]
        else:
            single = SHARES[1] if name == "ecodiff" else share  # its masks know of no budget: one training serves all
            pair = learned(root, f"{name}-{single:g}-{seed}", f"shapes/{name}", seed, single, [])
            found, taken = chosen(bench, pair, options, scope, share)
        same = {"part": "base", "criterion": name, "share": share, "seed": seed, "taken": taken}
        ledger.add(same | cell(bench, found, options, scope, share))


def aligned(root: Path, seed: int, run: Path | None) -> None:
    """Learned masks on the aligned model, with and without the reward's gap."""
    ledger = Ledger(root / f"cells-aligned-{seed}.jsonl")
    wanted = [(name, share) for share in ALIGNED_SHARES for name in ("latent", "latent+reward")]
    if not ledger.missing(wanted):
        return
    model = [f"model.id={aligned_model(root, run)}"]
    bench = bench_of("shapes/taylor", seed, model)
    for name, share in ledger.missing(wanted):
        own = [*model, *([f"criterion.reward={REWARD_WEIGHT}", "protect={clip: 1.0}"] if name == "latent+reward" else [])]
        options, scope = settings_of("end-to-end", seed, share, own)
        pair = learned(root, f"aligned-{name.replace('+', '-')}-{share:g}-{seed}", "shapes/end-to-end", seed, share, own)
        found, taken = chosen(bench, pair, options, scope, share)
        same = {"part": "aligned", "criterion": name, "share": share, "seed": seed, "taken": taken}
        ledger.add(same | cell(bench, found, options, scope, share))


def aligned_model(root: Path, run: Path | None) -> Path:
    """A pipeline folder of the base after GRPO-Guard."""
    from studio.export import Export, export_run
    from studio.run import RunView

    folder = (root / "aligned-pipeline").resolve()
    if not (folder / "model_index.json").is_file():
        if run is None:
            run_once(root, "aligned", "shapes/grpo-guard", [])
        export_run(RunView.open(run or root / "aligned"), Export(format="pipeline", out=folder))
    return folder


def bench_of(recipe: str, seed: int, overrides: list[str]) -> Bench:
    """The dense policy, its Gram matrices and its held-out pictures."""
    from pruning.build import dense_policy
    from pruning.evidence import draw_pairs, observe
    from pruning.launch import load_prune_recipe
    from pruning.measure import look
    from studio.scoring import Scorer

    own, _ = load_prune_recipe(recipe, [f"seed={seed}", f"calibration.rows={PAIRS}", *overrides])
    policy = dense_policy(own.model, own.sampler, seed)
    groups = own.sites.of(policy.model)
    pairs = draw_pairs(own.prompts.options.build(seed), PAIRS, seed)
    moments = observe(policy, groups, pairs, own.calibration, frozenset({"gram"}))
    test, rewards = own.prompts.options.held_out(PROMPTS), Scorer(own.rewards)
    return Bench(policy, groups, pairs, moments, test, rewards, look(policy, test, rewards, EVALUATION_SEED), own)


def settings_of(name: str, seed: int, share: float, overrides: list[str]) -> tuple[Any, str]:
    """The criterion's options and scope in its recipe."""
    from pruning.launch import load_prune_recipe
    from studio.config import component

    if name in TRAINING_FREE:
        options = component("criterion", name).options
        return options, options.scope
    own, _ = load_prune_recipe(f"shapes/{name}", [f"seed={seed}", f"target.params={share}", *overrides])
    return own.criterion.options, own.scope()


def score_of(bench: Bench, name: str, seed: int) -> Mapping[str, Any]:
    from pruning.build import score
    from studio.config import component

    return score(bench.policy, bench.groups, component("criterion", name).options, bench.pairs, bench.recipe.calibration, seed)


def learned(
    root: Path, name: str, recipe: str, seed: int, share: float, overrides: list[str]
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Logits of a mask that is trained once, by the loop and in a run folder, and those it started from in some order."""
    from pruning.launch import load_prune_recipe
    from pruning.policy import BEGAN, load_logits
    from studio.config import dump
    from studio.run import Run, RunView
    from studio.state import final_weights
    from studio.train import train

    own, source = load_prune_recipe(recipe, [f"seed={seed}", f"target.params={share}", "learn.evaluate_every=1000", *overrides])
    folder = root / name
    if not (folder / "status.json").is_file():
        run = Run.create(root, name, dump(own), source, total_steps=own.learn.steps, command=[])
        train(own.training(), run)
    elif RunView.open(folder).status["state"] != "finished":
        train(own.training(), Run.resume(folder))
    weights = final_weights(folder)
    return load_logits(weights), load_logits(weights, BEGAN) if hasattr(own.criterion.options, "spread") else None


def chosen(bench: Bench, found: tuple[Mapping[str, Any], Mapping[str, Any] | None], options: Any, scope: str, share: float) -> Any:
    """What `studio prune` takes: the learned mask, or the one it started from where that cuts better on calibration pairs."""
    from pruning.choose import errors
    from pruning.compensate import Compensation, refit

    learned, start = found
    if start is None:
        return learned, "learned"
    budget, each = budget_of_cell(bench, options, scope, share), {"learned": learned, "start": start}
    masks = {name: budget.keep(scores) for name, scores in each.items()}
    network, moments = bench.policy.model, bench.moments.inputs

    def refitted(kept: Any) -> Any:
        return refit(network, bench.groups, kept, moments, Compensation())

    compared = errors(bench.policy, bench.groups, masks, refitted, {}, bench.pairs, 32)
    best = min(compared, key=lambda name: compared[name])
    return each[best], best


def budget_of_cell(bench: Bench, options: Any, scope: str, share: float) -> Any:
    from pruning.allocate import Allocation
    from pruning.budget import Target
    from pruning.build import budget_of

    return budget_of(
        bench.policy,
        bench.groups,
        Target(params=share),
        Allocation(),
        scope,  # type: ignore[arg-type]
        per_cost=options.per_cost,
    )


def cell(bench: Bench, scores: Mapping[str, Any], options: Any, scope: str, share: float) -> dict[str, float]:
    """Latent error and rewards of the cut network, bare and compensated."""
    from pruning.compensate import Compensation, apply, refit
    from pruning.measure import latent_error, look
    from pruning.surgery import cut

    budget = budget_of_cell(bench, options, scope, share)
    kept = budget.keep(scores)
    network, found = bench.policy.model, {"params_kept": budget.remaining({k: len(v) for k, v in kept.items()})}
    found |= {f"dense.{k}": v for k, v in bench.target.evaluated.means().items()}
    for kind in ("bare", "compensated"):
        smaller = copy.deepcopy(network)
        if kind == "compensated":
            apply(smaller, refit(smaller, bench.groups, kept, bench.moments.inputs, Compensation()))
        cut(smaller, bench.groups, kept)
        bench.policy.backbone.network = smaller
        seen = look(bench.policy, bench.test, bench.rewards, EVALUATION_SEED)
        bench.policy.backbone.network = network
        found[f"{kind}.latent_error"] = latent_error(seen.latents, bench.target.latents)
        found |= {f"{kind}.{k}": v for k, v in seen.evaluated.means().items()}
    return found


class Ledger:
    """Finished cells, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.done = {(entry["criterion"], entry["share"]) for entry in map(json.loads, lines)}

    def missing(self, wanted: list[tuple[str, float]]) -> list[tuple[str, float]]:
        return [each for each in wanted if each not in self.done]

    def add(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")


def page(cells: list[dict[str, Any]], command: str, seeds: int) -> str:
    """The page: what was asked, what came out, the tables, the command."""
    first = [c for c in cells if c["part"] == "base"]
    second = [c for c in cells if c["part"] == "aligned"]
    own = [c for c in cells if c["criterion"] == "end-to-end" or c["part"] == "aligned"]
    fallen = f"{sum(c['taken'] == 'start' for c in own)} of {len(own)}"
    return f"""# Pruning the bundled pipeline

{seeds} seeds of calibration prompts, noises and masks, mean ± standard deviation; {PROMPTS} held-out prompts, seeds of their own.
`remaining` is the share of all parameters of the denoiser. Latent error is mean ||ẑ - z||²/||z||² of the final latents against
the dense model from the same noise; scene is the graded scene judge, CLIP the bundled scorer. Nothing is healed. `ecodiff` is the
published objective (L1 penalty, one noise, thresholds per kind); `end-to-end` has an exact budget, many noises, a settled phase and
rounds with compensation, and falls back to the mask it started from (in the order of Taylor) where that is better on calibration
pairs: {fallen} masks. Its defaults (ramp, settle, rounds, fallback) were chosen with these seeds and prompts in view, nothing
else was; its figures are somewhat optimistic for that reason. `obs` takes the same share of every module and `ecodiff` of every
kind of unit, as published; the others let all units of the network compete.

    {command}

{findings(first, second)}
{tables(first, SHARES, (*TRAINING_FREE, *LEARNED), "The base")}
{tables(second, ALIGNED_SHARES, ("latent", "latent+reward"), "After GRPO-Guard: learned masks, without and with the reward's gap")}
"""


def tables(cells: list[dict[str, Any]], shares: tuple[float, ...], names: tuple[str, ...], title: str) -> str:
    if not cells:
        return ""
    dense = {key: spread([c[f"dense.{key}"] for c in cells if c["criterion"] == names[0] and c["share"] == shares[0]], ".3f")
             for key in ("scene", "clip")}  # fmt: skip
    text = f"## {title}\n\nDense: scene {dense['scene']}, CLIP {dense['clip']}.\n"
    for share in shares:
        text += (
            f"\n### {share:g} remaining\n\n| criterion | latent error | compensated | scene | compensated | CLIP | compensated |\n"
        )
        text += "|---|---|---|---|---|---|---|\n"
        for name in names:
            own = [c for c in cells if c["criterion"] == name and c["share"] == share]
            if own:
                keys = [f"{kind}.{what}" for what in ("latent_error", "scene", "clip") for kind in ("bare", "compensated")]
                text += f"| {name} | " + " | ".join(spread([c[key] for c in own], ".3f") for key in keys) + " |\n"
    return text


def findings(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> str:
    """The goals of the experiment against the figures, in words that the figures choose."""
    lines = []
    for share in SHARES:
        means = {
            (name, kind): mean([c[f"{kind}.latent_error"] for c in first if c["criterion"] == name and c["share"] == share])
            for name in (*TRAINING_FREE, *LEARNED)
            for kind in ("bare", "compensated")
        }
        best, ours = min(means, key=means.get), means["end-to-end", "compensated"]  # type: ignore[arg-type]
        told = f"the lowest latent error is {means[best]:.3f} ({best[0]}, {best[1]}); end-to-end compensated {ours:.3f}"
        lines.append(f"- {share:g} remaining: {told}.")
    own = [c for c in first if c["criterion"] == "end-to-end" and c["share"] == 0.8]
    kept = mean([c["compensated.scene"] / c["dense.scene"] for c in own])
    lines.append(
        f"- 0.8 remaining, end-to-end compensated, without healing: {kept:.1%} of the dense scene reward (goal: at least 95 %)."
    )
    pairs = [(c["bare.latent_error"], c["compensated.latent_error"]) for c in first]
    lines.append(f"- Compensation lowered the latent error in {sum(b < a for a, b in pairs)} of {len(pairs)} cells.")
    for share in ALIGNED_SHARES if second else ():
        told = {
            (name, what): mean(
                [c[f"compensated.{what}"] / c[f"dense.{what}"] for c in second if c["criterion"] == name and c["share"] == share]
            )
            for name in ("latent", "latent+reward")
            for what in ("scene", "clip")
        }
        lines.append(
            f"- Aligned, {share:g} remaining: of the scene reward, which the model was aligned for, "
            f"{told['latent', 'scene']:.1%} is kept without a reward in the loss and {told['latent+reward', 'scene']:.1%} with the "
            f"gap of the differentiable CLIP reward (weight {REWARD_WEIGHT:g}) in it; of the CLIP reward itself "
            f"{told['latent', 'clip']:.1%} and {told['latent+reward', 'clip']:.1%}."
        )
    return "\n".join(lines) + "\n"


def mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


if __name__ == "__main__":
    main()
