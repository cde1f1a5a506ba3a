"""Control policies on MultiGoal-6, and what classic tasks say of PolicyFlow against Gaussian PPO.

`multigoal`: success, goals covered, action entropy, return and seconds of every method. PPO also runs with larger entropy
bonuses; its row "ppo, matched" is the one whose action entropy is closest to PolicyFlow's. `tasks`: returns at the end of
Pendulum, a small PointMaze and Hopper, there also with the flow's noise at its published size. `fidelity`: the four likelihoods
on MultiGoal-6. Finished runs are kept, so that several of these with different --only share the work and one without it writes
docs/experiments/policyflow.json and .md.

    python -m experiments.policyflow --seeds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from experiments.runs import run_once, spread

OUT = Path("docs/experiments")
EPISODES = 1000
WIDE = ["acting.environments=1024"]  # four times the samples of an iteration; published are 4096 environments
MULTIGOAL: dict[str, tuple[str, list[str]]] = {  # name -> recipe, overrides
    "ppo": ("multigoal-ppo", []),
    "ppo, entropy 0.02": ("multigoal-ppo", ["algorithm.entropy=0.02"]),
    "ppo, entropy 0.05": ("multigoal-ppo", ["algorithm.entropy=0.05"]),
    "policyflow, brownian 0": ("multigoal-policyflow", ["algorithm.brownian=0"]),
    "policyflow, brownian 0.05": ("multigoal-policyflow", ["algorithm.brownian=0.05"]),
    "policyflow, brownian 0.25": ("multigoal-policyflow", ["algorithm.brownian=0.25"]),
    "ppo, 4x": ("multigoal-ppo", WIDE),
    "policyflow, brownian 0, 4x": ("multigoal-policyflow", ["algorithm.brownian=0", *WIDE]),
    "policyflow, brownian 0.25, 4x": ("multigoal-policyflow", ["algorithm.brownian=0.25", *WIDE]),
    "fpo": ("multigoal-fpo", []),
    "fpo++": ("multigoal-fpo++", []),
    "dppo": ("multigoal-dppo", []),
    "reinflow": ("multigoal-reinflow", []),
}
LIKELIHOODS = {
    "one time": ["policy.likelihood.kind=one_time"],
    "one time, gain": ["policy.likelihood={kind: one_time, gain: true}"],
    "grid mean": ["policy.likelihood.kind=grid_mean"],
    "exact": ["policy.likelihood.kind=exact"],
}
TASKS = {  # CleanRL's published PPO returns at 1M steps, v4 environments, 3 seeds; none for the first two
    "pendulum": "–",
    "pointmaze-umaze": "–",
    "mujoco-hopper": "2383 ± 272",
}
NOISY = "mujoco-hopper-policyflow, z 1"
SHORTER = {"pendulum": ["train.steps=146"]}  # 300,000 steps; the others as their recipes say: 500,000 and 1M
MEASURES = {"success": ".3f", "covered": ".1f", "evenness": ".2f", "action_entropy": ".2f", "return": ".2f", "seconds": ".0f"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--task-seeds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=150, help="iterations on MultiGoal")
    arguments.add_argument("--only", nargs="*", help="names of methods, likelihoods or tasks; no page")
    arguments.add_argument("--runs", type=Path, default=Path("runs/policyflow"))
    given = arguments.parse_args()
    results: dict[str, dict[str, list[dict[str, float]]]] = {"multigoal": {}, "fidelity": {}, "tasks": {}}
    for part, jobs in plan(given).items():
        for name, seeds in jobs.items():
            if given.only is None or name in given.only:
                results[part][name] = [one(given, part, name, seed) for seed in range(seeds)]
    if given.only is not None:
        return
    command = f"python -m experiments.policyflow --seeds {given.seeds} --task-seeds {given.task_seeds} --steps {given.steps}"
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "policyflow.json").write_text(json.dumps({"command": command, **results}, indent=1) + "\n", encoding="utf-8")
    (OUT / "policyflow.md").write_text(page(results, command), encoding="utf-8")
    print(json.dumps({"page": str(OUT / "policyflow.md")}))


def plan(given: Any) -> dict[str, dict[str, int]]:
    """part -> name -> seeds."""
    tasks = {f"{task}-{policy}": given.task_seeds for task in TASKS for policy in ("ppo", "policyflow")} | {NOISY: 1}
    return {
        "multigoal": dict.fromkeys(MULTIGOAL, given.seeds),
        "fidelity": dict.fromkeys(LIKELIHOODS, given.task_seeds),
        "tasks": tasks,
    }


def one(given: Any, part: str, name: str, seed: int) -> dict[str, float]:
    """One run -> its last evaluation and its time."""
    length = given.steps // 2 if part == "fidelity" else given.steps
    steps = [f"train.steps={length}", f"watch={{every: {length}, episodes: {EPISODES}}}"]
    if part == "multigoal":
        recipe, overrides = MULTIGOAL[name]
        overrides = [*overrides, *steps]
    elif part == "fidelity":
        recipe, overrides = "multigoal-policyflow", [*LIKELIHOODS[name], "policy.fidelity=10", *steps]
    else:
        recipe, overrides = name.partition(",")[0], ["policy.z=1"] if name == NOISY else SHORTER.get(name.rpartition("-")[0], [])
    folder = "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{part}-{name.replace('+', 'p')}-{seed}")
    records = run_once(given.runs, folder, f"control/{recipe}", [*overrides, f"seed={seed}"])
    last = next(r for r in reversed(records) if "reward/eval.return" in r)
    found = {key.removeprefix("reward/eval."): value for key, value in last.items() if key.startswith("reward/eval.")}
    updates = [r for r in records if "time/step" in r]
    found |= {
        "seed": seed,
        "seconds": statistics.median(r["time/step"] for r in updates) * len(updates),
        "update_s": statistics.median(r["time/step"] - r["time/sample"] for r in updates),
    }
    for key in ("fidelity", "gain", "shift_error", "wrong", "gradient_cosine"):
        values = [r[f"ratio/{key}"] for r in records if f"ratio/{key}" in r]
        if values:
            found[key] = sum(values) / len(values)
    return found


def page(results: dict[str, dict[str, list[dict[str, float]]]], command: str) -> str:
    """The page: what was asked, what came out, the tables, the command."""
    goals, fidelity, tasks = results["multigoal"], results["fidelity"], results["tasks"]
    seeds = len(next(iter(goals.values())))
    head = " | ".join(MEASURES)
    rows = "\n".join(line(name, runs, MEASURES) for name, runs in {**goals, **matched(goals)}.items())
    told = {"fidelity": ".3f", "gain": ".2f", "shift_error": ".2f", "wrong": ".3f", "gradient_cosine": ".3f", "success": ".3f",
            "covered": ".1f", "update_s": ".2f"}  # fmt: skip
    ratio = "\n".join(line(name, runs, told) for name, runs in fidelity.items())
    returns = "\n".join(
        f"| {task} | {TASKS[task]} | "
        + " | ".join(spread([run["return"] for run in tasks[f"{task}-{policy}"]], ".1f") for policy in ("ppo", "policyflow"))
        + " |"
        for task in TASKS
        if f"{task}-ppo" in tasks
    )
    return f"""# Flow policies for control

{findings(goals)} {against_ppo(tasks)}

    {command}

## MultiGoal-6

{seeds} seeds, mean ± standard deviation; {EPISODES} episodes from the origin, acting as trained. `covered`: goals with at least a
quarter of an even share of the successes; `evenness`: entropy of the goals reached over its largest value; `action_entropy`: of the
first action, nearest-neighbor estimate in nats; `seconds`: the median iteration
times their number, beside other work. "ppo, matched" is the PPO whose action entropy is
closest to that of PolicyFlow with the published weight. "4x": 1024 environments instead of 256, so four times the samples
per iteration; the paper has 4096.

| method | {head} |
|---|{"---|" * len(MEASURES)}
{rows}

## Ratio fidelity

The estimated likelihood ratio against the exact one after the updates of an iteration, every 10 iterations of half as many
as above; `update_s` is the time of an iteration's updates.

| likelihood | {" | ".join(told)} |
|---|{"---|" * len(told)}
{ratio}

## Other tasks

Return of evaluation episodes at the end, acting as trained, {len(next(iter(tasks.values()), []))} seeds. On Pendulum and
Hopper the flow starts from noise of size 0.3. At the published size of 1 one seed of PolicyFlow reaches
{tasks[NOISY][0]["return"]:.0f} on Hopper: where one action is best, the noise has to be contracted first.

| task | CleanRL's PPO, published | PPO | PolicyFlow |
|---|---|---|---|
{returns}
"""


def line(name: str, runs: list[dict[str, float]], forms: dict[str, str]) -> str:
    return f"| {name} | " + " | ".join(spread([run[key] for run in runs if key in run], form) for key, form in forms.items()) + " |"


def matched(goals: dict[str, list[dict[str, float]]]) -> dict[str, list[dict[str, float]]]:
    """The PPO whose action entropy is closest to PolicyFlow's."""
    wanted = mean(goals["policyflow, brownian 0.25"], "action_entropy")
    own = {name: runs for name, runs in goals.items() if name.startswith("ppo") and not name.endswith("4x")}
    name = min(own, key=lambda name: abs(mean(own[name], "action_entropy") - wanted))
    return {f"ppo, matched ({name})": own[name]}


def findings(goals: dict[str, list[dict[str, float]]]) -> str:
    """The goal of the experiment against the figures, in words that the figures choose."""
    flows = {name: runs for name, runs in goals.items() if name.startswith("policyflow")}
    good = {name: runs for name, runs in flows.items() if mean(runs, "success") >= 0.9}
    best = max(good or flows, key=lambda name: mean(flows[name], "covered"))
    kind = "with success of at least 0.9" if good else "although none reaches success of 0.9"

    def told(name: str) -> str:
        return f"{mean(goals[name], 'covered'):.1f} of 6 goals at success {mean(goals[name], 'success'):.2f}"

    wide = "ppo, 4x" if best.endswith("4x") else "ppo"
    text = f"PolicyFlow covers {told(best)} ({best}, the widest {kind}); Gaussian PPO with as many samples {told(wide)}."
    for more in ("", ", 4x"):
        published, without = f"policyflow, brownian 0.25{more}", f"policyflow, brownian 0{more}"
        samples = " with four times the samples" if more else ""
        text += f" The published weight 0.25 covers {told(published)}{samples}, with a "
        text += f"return of {mean(goals[published], 'return'):.2f} against {mean(goals[without], 'return'):.2f} without it."
    return text


def against_ppo(tasks: dict[str, list[dict[str, float]]]) -> str:
    """On which tasks PolicyFlow's mean return is at least PPO's."""
    ahead = {task: mean(tasks[f"{task}-policyflow"], "return") >= mean(tasks[f"{task}-ppo"], "return") for task in TASKS}
    told = {True: [task for task in TASKS if ahead[task]], False: [task for task in TASKS if not ahead[task]]}
    return f"PolicyFlow's mean return is at least that of our PPO on {', '.join(told[True]) or 'none of the other tasks'}" + (
        f", and below it on {', '.join(told[False])}." if told[False] else "."
    )


def mean(runs: list[dict[str, float]], key: str) -> float:
    return sum(run[key] for run in runs) / max(1, len(runs))


if __name__ == "__main__":
    main()
