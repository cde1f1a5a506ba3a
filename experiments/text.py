"""Every objective on the bundled language model's sums and differences: what it reaches on held-out problems, at what price.

`text`: all recipes text/arithmetic-* with the same number of completions; preference losses read pairs, which the problems
bring along. `images` and `control`: objectives that were published for text, on the bundled pipeline and on MultiGoal-6, where
those that compare samples of a prompt keep their ratio and surrogate and take their advantages from a critic.
Writes docs/experiments/text.json and .md; finished runs are kept, so that several of these with different --only share the
work and one without it writes the page.

    python -m experiments.text --seeds 3
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from experiments.runs import run_once, spread

OUT = Path("docs/experiments")
GOAL = 0.15  # rise of the pass rate
NAMED = ("grpo", "dapo", "gspo", "cispo", "gppo", "spo", "r2vpo", "bapo", "lite-ppo")  # of which it is expected
IMAGES = ("adora", "bapo", "brpo", "cispo", "copo", "dapo", "dr-grpo", "eapo", "gppo", "grpo", "gspo", "lite-ppo", "prl", "r2vpo")
IMAGES += ("reinforce++", "rloo", "sapo", "spo")
CONTROL = {  # options that an environment needs
    "bapo": "bapo",
    "cispo": "cispo",
    "dapo": "dapo",
    "gppo": "{name: gppo, nll: 0}",
    "r2vpo": "r2vpo",
    "sapo": "sapo",
    "ppo": "ppo",
}
TEXT_COLUMNS = {"before": ".3f", "after": ".3f", "gain": "+.3f", "entropy": ".2f", "length": ".0f", "seconds": ".0f"}
IMAGE_COLUMNS = {"before": ".3f", "gain": "+.3f", "clip": "+.3f", "seconds": ".0f"}
CONTROL_COLUMNS = {"success": ".3f", "covered": ".1f", "return": ".2f", "seconds": ".0f"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=40, help="iterations on text")
    arguments.add_argument("--image-steps", type=int, default=20)
    arguments.add_argument("--control-steps", type=int, default=60)
    arguments.add_argument("--only", nargs="*", help="names of recipes without text/arithmetic-, or `images`, `control`; no page")
    arguments.add_argument("--runs", type=Path, default=Path("runs/text"))
    given = arguments.parse_args()
    jobs = {"text": recipes(), "images": IMAGES, "control": CONTROL}
    results: dict[str, dict[str, list[dict[str, float]]]] = {part: {} for part in jobs}
    for part, names in jobs.items():
        for name in names:
            if given.only is None or part in given.only or (part == "text" and name in given.only):
                results[part][name] = [ONE[part](given, name, seed) for seed in range(given.seeds)]
    if given.only is not None:
        return
    command = f"python -m experiments.text --seeds {given.seeds} --steps {given.steps}"
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "text.json").write_text(json.dumps({"command": command, **results}, indent=1) + "\n", encoding="utf-8")
    (OUT / "text.md").write_text(page(results, command), encoding="utf-8")
    print(json.dumps({"page": str(OUT / "text.md")}))


def recipes() -> list[str]:
    """The objectives with a recipe on the bundled model."""
    from studio.recipe import recipe_names

    start = "text/arithmetic-"
    return [name.removeprefix(start) for name in recipe_names() if name.startswith(start)]


def text(given: Any, name: str, seed: int) -> dict[str, float]:
    """One run of a recipe -> pass rate on held-out problems before and after, what its completions have become."""
    steps = [f"train.steps={given.steps}", f"watch.every={given.steps}", f"seed={seed}"]
    records = run_once(given.runs, f"text-{name}-{seed}", f"text/arithmetic-{name}", steps)
    rates = [record["reward/eval.task"] for record in records if "reward/eval.task" in record]
    last = next(record for record in reversed(records) if "time/step" in record)
    return {
        "seed": seed,
        "before": rates[0],
        "after": rates[-1],
        "gain": rates[-1] - rates[0],
        **{key: last[f"sample/{key}"] for key in ("entropy", "length") if f"sample/{key}" in last},
        "seconds": seconds(records),
    }


def images(given: Any, name: str, seed: int) -> dict[str, float]:
    """One run on the bundled pipeline -> change of the scene reward and of the CLIP score, which is not trained."""
    steps = [f"train.steps={given.image_steps}", f"watch.every={given.image_steps}", "watch.prompts=256", f"seed={seed}"]
    records = run_once(given.runs, f"images-{name}-{seed}", f"shapes/{name}", ["train.groups_per_step=8", *steps])
    watched = [record for record in records if "reward/eval.scene" in record]
    before, after = watched[0], watched[-1]
    return {
        "seed": seed,
        "before": before["reward/eval.scene"],
        "gain": after["reward/eval.scene"] - before["reward/eval.scene"],
        "clip": after["reward/held_out.clip"] - before["reward/held_out.clip"],
        "seconds": seconds(records),
    }


def control(given: Any, name: str, seed: int) -> dict[str, float]:
    """One run of a flow policy on MultiGoal-6 -> what its last evaluation says."""
    chosen = f"{{name: actor_critic, of: {CONTROL[name]}}}"
    steps = [f"train.steps={given.control_steps}", f"watch={{every: {given.control_steps}, episodes: 500}}", f"seed={seed}"]
    records = run_once(given.runs, f"control-{name}-{seed}", "control/multigoal-policyflow", [f"algorithm={chosen}", *steps])
    last = next(record for record in reversed(records) if "reward/eval.return" in record)
    return {"seed": seed, "seconds": seconds(records)} | {
        key: last[f"reward/eval.{key}"] for key in ("success", "covered", "return")
    }


ONE = {"text": text, "images": images, "control": control}


def seconds(records: list[dict[str, Any]]) -> float:
    return sum(record.get("time/step", 0.0) for record in records)


def page(results: dict[str, dict[str, list[dict[str, float]]]], command: str) -> str:
    """The page: what was asked, what came out, the tables, the command."""
    seeds = len(next(iter(results["text"].values())))
    return f"""# Text objectives

{findings(results["text"])}

    {command}

## On the bundled language model

Sums of numbers of four digits and differences of numbers of three. {seeds} seeds, mean ± standard deviation, one completion for
each of 384 held-out problems; 128 completions an iteration, the recipes' settings otherwise. `entropy` (nats) and `length`
(tokens) are of the last iteration's completions. Methods that do not work at this scale are shown as they are.

{table("objective", results["text"], TEXT_COLUMNS)}

## On the bundled image pipeline

The same objectives on denoising steps: change of the scene reward, which is trained, and of the CLIP score, which is not, on 256
held-out prompts.

{table("objective", results["images"], IMAGE_COLUMNS)}

## On MultiGoal-6

A flow policy with the objective's ratio and surrogate; its advantages come from a critic (`actor_critic`), as an environment has
no groups.

{table("objective", results["control"], CONTROL_COLUMNS)}
"""


def table(first: str, results: dict[str, list[dict[str, float]]], columns: dict[str, str]) -> str:
    def cell(runs: list[dict[str, float]], key: str, form: str) -> str:
        values = [run[key] for run in runs if key in run]
        return spread(values, form) if values else "–"

    rows = (
        f"| {name} | " + " | ".join(cell(runs, key, form) for key, form in columns.items()) + " |" for name, runs in results.items()
    )
    return "\n".join([f"| {first} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}", *rows])


def findings(results: dict[str, list[dict[str, float]]]) -> str:
    """Who reached the goal, in words that the figures choose."""
    gains = {name: sum(run["gain"] for run in runs) / len(runs) for name, runs in results.items()}
    short = [f"{name} ({gains[name]:+.3f})" for name in NAMED if gains.get(name, 0.0) < GOAL]
    reached = sum(gain >= GOAL for gain in gains.values())
    told = f"Of {len(gains)} objectives, {reached} raise the held-out pass rate by at least {GOAL}"
    told += f", {sum(gain <= 0 for gain in gains.values())} do not raise it at all. "
    return told + (f"Of those of which it was expected, these fall short: {', '.join(short)}." if short else
                   f"All of which it was expected do: {', '.join(NAMED)}.")  # fmt: skip


if __name__ == "__main__":
    main()
