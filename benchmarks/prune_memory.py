"""One update of end-to-end masks on the bundled pipeline: peak memory against the number of steps, and work against plain backprop.

memory_ratio: the largest sum of live allocations during one gradient, as torch's profiler records them, at 50 denoising steps over
that at 5, with the recompute of every step but the last. process_ratio: the same of the resident size, each in a process of
its own; it includes what the C allocator does not give back. work_ratio: time of that gradient over plain back-propagation at 10
steps, in turns in one process, median. plain_memory_ratio: allocations without the recompute, from 5 to 20 steps.

    python -m benchmarks.prune_memory
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROWS = 32


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--one", nargs=2, metavar=("STEPS", "MODE"), help="measure one gradient in this process")
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(one(int(given.one[0]), given.one[1] == "plain", given.threads)))
        return
    found = {f"{steps} {mode}": alone(steps, mode, given.threads) for steps, mode in RUNS}
    peaks, sizes = ({name: pair[i] for name, pair in found.items()} for i in (0, 1))
    work = works(given.rounds, given.threads)
    result = {
        "memory_ratio": round(peaks["50 recompute"] / peaks["5 recompute"], 3),
        "process_ratio": round(sizes["50 recompute"] / sizes["5 recompute"], 3),
        "work_ratio": round(statistics.median(work), 3),
        "work_ratio_range": [round(min(work), 3), round(max(work), 3)],
        "plain_memory_ratio": round(peaks["20 plain"] / peaks["5 plain"], 3),
        "megabytes": {name: round(value / 1e6) for name, value in peaks.items()},
        "rows": ROWS,
        "threads": given.threads,
    }
    print(json.dumps(result))


RUNS = ((5, "recompute"), (50, "recompute"), (5, "plain"), (20, "plain"))


def alone(steps: int, mode: str, threads: int) -> list[float]:
    """`one` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.prune_memory", "--one", str(steps), mode, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def one(steps: int, plain: bool, threads: int) -> list[float]:
    """[largest sum of live allocations, growth of the largest resident size] of one gradient, in bytes."""
    gradient(policy(2, threads), 1, plain)  # warms everything up
    own = policy(steps, threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gradient(own, ROWS, plain)
    grown = 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return [allocated(lambda: gradient(own, ROWS, plain)), grown]


def allocated(call) -> float:
    """The largest sum of what torch has allocated and not yet freed during a call, in bytes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return float(peak)


def works(rounds: int, threads: int) -> list[float]:
    """Time with recompute over time without, per round."""
    own, ratios = policy(10, threads), []
    for turn in range(rounds + 1):
        times = {plain: timed(lambda plain=plain: gradient(own, ROWS, plain)) for plain in (True, False)}
        if turn:  # the first warms up
            ratios.append(times[False] / times[True])
    return ratios


def timed(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def policy(steps: int, threads: int):
    """The bundled model under gates."""
    import torch
    from diffusers.utils import logging

    from pruning.build import gated_policy
    from pruning.launch import load_prune_recipe

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    settings = [f"sampler.steps={steps}", "criterion.spread=0", f"calibration.rows={ROWS}"]
    recipe, _ = load_prune_recipe("shapes/end-to-end", settings)
    return gated_policy(recipe.training().policy.options, 0)


def gradient(own, rows: int, plain: bool) -> None:
    """d(latent error)/d(gates) once."""
    from pruning.gates import HardConcrete
    from pruning.policy import gates_of

    gates, _ = gates_of(own, HardConcrete(), 0, settled=None)
    pairs = own.pairs.take(range(rows))
    with own.under(gates):
        made = own.dense.latents(pairs.prompts.text, pairs.seeds, remember=plain, through=list(gates.values()))
        (made**2).mean().backward()


if __name__ == "__main__":
    main()
