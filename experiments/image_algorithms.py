"""Every image algorithm on the bundled pipeline: what it gains on held-out prompts, at what price.

Methods with likelihoods or matching train the exact scene judge, and the CLIP scorer watches; back-propagation needs gradients
and trains the CLIP scorer, and the scene judge watches. Settings are those of the recipes, except for what is listed in COMMON;
nothing was tuned per algorithm. Writes docs/experiments/image-algorithms.json and .md; finished runs are kept, so that several
of these with different --only share the work and one without it writes the page.

    python -m experiments.image_algorithms --seeds 3 --steps 40
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from experiments.runs import run_once, spread

OUT = Path("docs/experiments")
LIKELIHOOD = (
    "grpo-guard",
    "grpo-guard-cps",
    "flow-grpo",
    "flow-grpo-fast",
    "mix-grpo",
    "dance-grpo",
    "flow-dppo",
    "ddpo",
    "nft",
    "awm",
)
PATHWISE = ("draft", "alignprop", "refl")
COMMON = ["watch.prompts=256", "train.ema=0.8"]
COLUMNS = ("trained", "scene", "scene_strict", "clip", "seconds", "forwards", "backwards")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--only", nargs="*", default=[*LIKELIHOOD, *PATHWISE])
    arguments.add_argument("--runs", type=Path, default=Path("runs/image-algorithms"))
    given = arguments.parse_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in given.only}
    for seed in range(given.seeds):  # seed by seed: an interrupted experiment has some seeds of everything
        for name in given.only:
            results[name].append(one(given.runs, name, seed, given.steps))
    threads = f"OMP_NUM_THREADS={count} " if (count := os.environ.get("OMP_NUM_THREADS")) else ""  # what `seconds` depends on
    command = f"{threads}python -m experiments.image_algorithms --seeds {given.seeds} --steps {given.steps}"
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "image-algorithms.json").write_text(
        json.dumps({"command": command, "results": results}, indent=1) + "\n", encoding="utf-8"
    )
    (OUT / "image-algorithms.md").write_text(page(results, command), encoding="utf-8")
    print(json.dumps({"page": str(OUT / "image-algorithms.md")}))


def one(root: Path, name: str, seed: int, steps: int) -> dict[str, float]:
    """One run -> change of every reward on held-out prompts, time of the iterations, network calls."""
    from studio.recipe import load_recipe, plan

    overrides = [*COMMON, f"seed={seed}", f"train.steps={steps}", f"watch.every={steps}"]
    if name in LIKELIHOOD:
        overrides += ["train.groups_per_step=8"]
    records = run_once(root, f"{name}-{seed}-{steps}", f"shapes/{name}", overrides)
    watched = [record for record in records if any(key.startswith("reward/held_out.") for key in record)]
    before, after = (measured(record) for record in (watched[0], watched[-1]))
    calls = plan(load_recipe(f"shapes/{name}", overrides)[0])
    changes = {key: after[key] - before[key] for key in after}
    backwards = calls["forwards per step (replay, with backward)"] * steps
    return {
        "seed": seed,
        "trained": changes["clip" if name in PATHWISE else "scene"],
        **changes,
        "seconds": sum(record.get("time/step", 0.0) for record in records),
        "forwards": calls["forwards per step (rollout)"] * steps + backwards,
        "backwards": backwards,
    }


def measured(record: dict[str, Any]) -> dict[str, float]:
    """scene, scene_strict and clip of one evaluation, whichever was trained."""
    return {
        name: next(record[f"reward/{kind}.{name}"] for kind in ("eval", "held_out") if f"reward/{kind}.{name}" in record)
        for name in ("scene", "scene_strict", "clip")
    }


def page(results: dict[str, list[dict[str, float]]], command: str) -> str:
    """The page: what was asked, the table, the command."""
    forms = dict.fromkeys(COLUMNS, "+.3f") | {"seconds": ".0f", "forwards": ".0f", "backwards": ".0f"}
    rows = "\n".join(
        f"| {name} | " + " | ".join(spread([run[column] for run in runs], forms[column]) for column in COLUMNS) + " |"
        for name, runs in results.items()
    )
    seeds = len(next(iter(results.values())))
    return f"""# The image algorithms on the bundled pipeline

Change from the base to the end of a short run on 256 held-out prompts, same seeds before and after; {seeds} seeds, mean ± standard
deviation. `trained` is the reward that was optimized: the graded scene judge, or the CLIP scorer for {", ".join(PATHWISE)}.
The other columns were never trained on. {fallen(results)}

Settings are the recipes'. Two of them were changed after a first run of this table, in which they had not raised their reward:
dance-grpo (more noise, two updates per rollout) and grpo-guard-cps (two updates); no other was tuned. `forwards` counts images
through the network once, `backwards` those that also went back; `seconds` were taken beside other work. A short run compares the
first steps of the methods, not where they end.

    {command}

| algorithm | {" | ".join(COLUMNS)} |
|---|{"---|" * len(COLUMNS)}
{rows}
"""


def fallen(results: dict[str, list[dict[str, float]]]) -> str:
    """Which algorithms did not raise their reward, by the mean over seeds."""
    gains = {name: sum(run["trained"] for run in runs) / len(runs) for name, runs in results.items()}
    without = [name for name, gain in gains.items() if gain <= 0]
    return f"Of {len(gains)}, {len(gains) - len(without)} raised their reward; not: {', '.join(without) or 'none'}."


if __name__ == "__main__":
    main()
