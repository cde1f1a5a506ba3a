"""GRPO-Guard's question at the bundled scale: what happens to gold when a learned proxy is trained?

Proxy: the bundled CLIP scorer. Gold, never trained on: the exact scene judge and the guard statistics. Four variants (Flow-GRPO and
GRPO-Guard, each without and with a velocity KL) over several seeds, two updates per rollout so that the ratio moves. Writes
docs/experiments/grpo-guard.json, .md and .png; finished runs are kept and not repeated.

    python -m experiments.grpo_guard --seeds 3 --steps 60
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from experiments.runs import run_once, spread

OUT = Path("docs/experiments")
VARIANTS: dict[str, list[str]] = {
    "flow_grpo": ["algorithm={name: flow_grpo, clip: 1.0e-4, kl: 0.0, scale: group}"],
    "flow_grpo + kl": ["algorithm={name: flow_grpo, clip: 1.0e-4, kl: 0.001, kl_form: velocity, scale: group}"],
    "grpo_guard": ["algorithm={name: grpo_guard, clip: 2.0e-5, scale: group}"],
    "grpo_guard + kl": ["algorithm={name: grpo_guard, clip: 2.0e-5, kl: 0.001, kl_form: velocity, scale: group}"],
}
COMMON = [
    "rewards={clip: {weight: 1.0}}",
    "held_out={scene: {weight: 1.0}}",
    "train.epochs=2",
    "train.groups_per_step=8",
    "watch.prompts=256",
]
PER_STEP = ("raw_shift", "raw_std", "predicted", "shift", "std", "above", "below")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--runs", type=Path, default=Path("runs/grpo-guard-experiment"))
    given = arguments.parse_args()
    results = {
        name: [one(given.runs, name, extra, seed, given.steps) for seed in range(given.seeds)] for name, extra in VARIANTS.items()
    }
    command = f"python -m experiments.grpo_guard --seeds {given.seeds} --steps {given.steps}"
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "grpo-guard.json").write_text(json.dumps({"command": command, "results": results}, indent=1) + "\n", encoding="utf-8")
    plot(results, OUT / "grpo-guard.png")
    (OUT / "grpo-guard.md").write_text(page(results, command), encoding="utf-8")
    print(json.dumps({"page": str(OUT / "grpo-guard.md")}))


def one(root: Path, variant: str, extra: list[str], seed: int, steps: int) -> dict[str, Any]:
    """One run, trained unless its folder is finished -> its held-out curve and ratio statistics."""
    overrides = [*COMMON, *extra, f"seed={seed}", f"train.steps={steps}"]
    records = run_once(root, f"{variant.replace(' + ', '-')}-{seed}-{steps}", "shapes/grpo-guard", overrides)
    watched = [record for record in records if "reward/held_out.scene" in record]
    curve = [
        {
            "step": record["step"],
            "proxy": record["reward/eval.clip"],
            "scene": record["reward/held_out.scene"],
            "scene_strict": record["reward/held_out.scene_strict"],
            **{key: record[key] for key in record if key.startswith("sample/")},
        }
        for record in watched
    ]
    updates = [record for record in records if "ratio/raw_shift@0" in record]
    positions = sum(1 for key in updates[0] if key.startswith("ratio/raw_shift@"))
    ratio = {
        what: [statistics.fmean(record[f"ratio/{what}@{t}"] for record in updates) for t in range(positions)] for what in PER_STEP
    }
    return {"seed": seed, "curve": curve, "ratio": ratio}


def page(results: dict[str, list[dict[str, Any]]], command: str) -> str:
    """The page: what was asked, the tables, the picture, the command."""
    gains = "\n".join(
        f"| {name} | " + " | ".join(spread([r["curve"][-1][k] - r["curve"][0][k] for r in runs]) for k in GAINS) + " |"
        for name, runs in results.items()
    )
    positions = range(len(next(iter(results.values()))[0]["ratio"]["raw_shift"]))
    ratios = "\n".join(
        f"| {name} | {t} | " + " | ".join(spread([r["ratio"][what][t] for r in runs], "+.2e") for what in PER_STEP) + " |"
        for name, runs in results.items()
        for t in positions
    )
    seeds = len(next(iter(results.values())))
    notes = OUT / "grpo-guard.notes.md"  # what a person says about the numbers; everything else on the page is computed
    return f"""# Flow-GRPO against GRPO-Guard when the proxy is a learned scorer

Proxy: the bundled CLIP scorer, trained on. Gold: the scene judge and the guard statistics, never trained on; 256 held-out prompts,
same seeds before and after. {seeds} seeds; mean ± standard deviation over seeds. Two updates per rollout. Numbers in
`grpo-guard.json`; tables and picture are written by

    {command}

## Change from the base to the last evaluation

| variant | {" | ".join(GAINS)} |
|---|{"---|" * len(GAINS)}
{gains}

## Ratio per trained denoising step

`raw` is the plain importance ratio π_new/π_old, the rest is the ratio the objective uses. `predicted` is -mean(Δμ)²/(2s²), the
shift that GRPO-Guard's paper derives for the raw log ratio. Means over all second updates.

| variant | step | {" | ".join(PER_STEP)} |
|---|---|{"---|" * len(PER_STEP)}
{ratios}

![raw ratio per denoising step, proxy and gold over training](grpo-guard.png)

{notes.read_text(encoding="utf-8") if notes.is_file() else ""}"""


GAINS = ("proxy", "scene", "scene_strict", "sample/edge_density", "sample/color_entropy", "sample/dark_share")


def plot(results: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Raw ratio's mean and std per step, and proxy and gold over training; thin lines are seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    panels = (("raw_shift", "mean of the raw ratio - 1"), ("raw_std", "std of the raw ratio"))
    for color, (name, runs) in zip(("C0", "C1", "C2", "C3"), results.items(), strict=True):
        for axis, (what, title) in zip(axes[0], panels, strict=True):
            for index, run in enumerate(runs):
                axis.plot(run["ratio"][what], color=color, alpha=0.6, marker="o", label=name if not index else None)
            axis.set(title=title, xlabel="trained denoising step", xticks=range(len(runs[0]["ratio"][what])))
        for axis, (what, title) in zip(
            axes[1], (("proxy", "proxy: CLIP scorer"), ("scene_strict", "gold: strict accuracy")), strict=True
        ):
            for run in runs:
                axis.plot([p["step"] for p in run["curve"]], [p[what] for p in run["curve"]], color=color, alpha=0.6)
            axis.set(title=title, xlabel="iteration")
    axes[0][0].legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
