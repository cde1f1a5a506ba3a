"""The loop: sample, score, credit, loss, step, log. It knows protocols only; a recipe names the parts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from studio.dist import Processes
from studio.errors import RewardError
from studio.first_estimates import first_estimates
from studio.kept import first_groups
from studio.parts import Parts, build_parts
from studio.recipe import Recipe
from studio.registry import load
from studio.rollout import Batch
from studio.run import Run
from studio.signals import StopOnSignal
from studio.state import WEIGHTS, load_state, remember, save_state
from studio.watch import look

Report = Callable[[int, dict[str, float]], None]


def train(recipe: Recipe, run: Run, *, report: Report = lambda step, values: None, final: bool = True) -> str:
    """Run the recipe to its end or to a requested stop, from the run's latest checkpoint -> the final state's name.

    final=False leaves a run that has reached its end as running: more follows.
    """
    processes = Processes(mixed_precision=recipe.train.mixed_precision, report_to=recipe.report_to, folder=str(run.folder / "logs"))
    _seed_everything(recipe.seed)
    parts = build_parts(recipe, processes.shard, processes.rank, processes.world)
    model, optimizer = processes.prepare(parts.policy.model, parts.optimizer, wrap=parts.env is None)  # type: ignore[attr-defined]
    parts.optimizer = parts.rate.optimizer = optimizer
    if model is not parts.policy.model:  # type: ignore[attr-defined]
        parts.policy.distribute(model)  # type: ignore[attr-defined]
    if parts.env is not None:
        parts.env.together = parts.policy.together = processes.sum  # type: ignore[attr-defined]
    start = _resume(run, parts, processes)
    iterate = load(parts.objective.iteration)  # likelihoods, gradients through the sampler, or gates: the objective says
    stop = StopOnSignal()
    processes.track(run.folder.name, {"recipe": str(run.folder / "recipe.yaml")})
    if processes.main:
        run.status("running", step=start)
    state, alarmed = "finished", False
    done = saved = start
    try:
        if start == 0:
            first_estimates(recipe, parts, processes)
            _watch(0, recipe, run, parts, processes)  # the untouched base: what every later evaluation is compared with
        for step in range(start, recipe.train.steps):
            began = time.monotonic()
            undo = remember(parts.sampled_from())
            batch, values = iterate(recipe, parts, processes, step, model)
            if parts.prompts is not None:
                parts.prompts.update(batch.everyone)
            parts.objective.update(batch.everyone)
            parts.rewards.update(batch.everyone)
            values |= {"time/step": time.monotonic() - began}
            done, undo = step + 1, remember({})
            if processes.main:
                run.log(done, values)
                report(done, values)
            processes.log(values, done)
            alarmed = done % recipe.watch.every == 0 and _watch(done, recipe, run, parts, processes, batch)
            asked = run.poll_control() if processes.main else set()
            flags = processes.agree({name: name in asked for name in ("stop", "save", "sample")} | {"signal": stop.wanted})
            if flags["sample"] and done % recipe.watch.every:
                _watch(done, recipe, run, parts, processes, batch)
            leave = flags["stop"] or flags["signal"] or alarmed
            if leave or flags["save"] or done % recipe.train.checkpointing_steps == 0 or done == recipe.train.steps:
                _checkpoint(run, parts, processes, done, recipe)
                saved = done
            if leave and done < recipe.train.steps:
                state = "stopped"
                break
    except RewardError:
        if done > saved:  # a reward that failed for good costs no complete step: the run continues here with --resume
            undo()
            _checkpoint(run, parts, processes, done, recipe)
        raise
    finally:
        parts.rewards.close()
        parts.held_out.close()
        if parts.env is not None:
            parts.env.close()
        stop.restore()
    processes.wait()
    if processes.main and (final or state != "finished"):
        reason = None if state == "finished" else "an alarm" if alarmed else "requested"
        run.status(state, exit_code=0, reason=reason)
    processes.end()
    return state


def _watch(step: int, recipe: Recipe, run: Run, parts: Parts, processes: Processes, batch: Batch | None = None) -> bool:
    """Keep the first groups of the last rollout, evaluate -> whether the run should stop; a failed reward fails on all ranks.

    Rank 0 works, the others wait; with shards all take part in every forward.
    """
    kept = first_groups(step, batch, parts.policy, recipe.watch.groups) if batch is not None and processes.main else None
    if kept is not None:
        run.save_groups(step, *kept)
    stop, failure = False, None
    if (len(parts.test) or parts.env) and (processes.main or processes.sharded):
        try:
            stop = _evaluate(step, recipe, run, parts, write=processes.main)
        except RewardError as error:
            failure = error
    told = processes.agree({"alarm": stop, "failed": failure is not None})
    if told["failed"]:
        raise failure or RewardError("evaluation: expected scores from the first rank, got a failed reward. Its message says why.")
    return told["alarm"]


def _evaluate(step: int, recipe: Recipe, run: Run, parts: Parts, *, write: bool) -> bool:
    """Evaluate, log, keep pictures, raise alarms -> whether one of them stops the run."""
    with parts.average.applied():
        seen = look(step, recipe, parts)
    if not write:
        return False
    run.log(step, seen.metrics)
    if seen.records:
        run.save_samples(step, seen.samples, seen.records, seen.films)
    for message in seen.alarms:
        run.event("alarm", step=step, message=message)
    return bool(seen.alarms) and recipe.watch.stop


def _checkpoint(run: Run, parts: Parts, processes: Processes, step: int, recipe: Recipe) -> None:
    """Rank 0 writes; with shards every rank writes its share into rank 0's folder, which all must see."""
    if parts.env is not None:
        parts.env.gather(processes.gather_objects)
    if processes.main or processes.sharded:
        whole = run.checkpoint(step, keep=recipe.train.checkpoints_total_limit) if processes.main else nullcontext()
        with whole as own:
            folder = Path(processes.gather_objects(str(own))[0]) if processes.sharded else Path(str(own))
            save_state(folder, parts.policy, parts.stateful(), rank=processes.rank)
            with parts.average.applied():
                parts.policy.save(folder / WEIGHTS, **({"write": processes.main} if processes.sharded else {}))
            if parts.env is not None:
                parts.env.save(folder / WEIGHTS)
            if processes.sharded:
                processes.wait()
    processes.wait()


def _resume(run: Run, parts: Parts, processes: Processes) -> int:
    """The step to continue from; 0 for a fresh run. Later metrics, samples and checkpoints are dropped."""
    latest = run.latest_checkpoint()
    step = int(Path(latest).name) if latest else 0
    if latest:
        load_state(latest, parts.policy, parts.stateful())
    if processes.main:
        run.rewind(step)
    processes.wait()
    return step


def _seed_everything(seed: int) -> None:
    """Also numpy's and Python's generators: a reward may use them, and a checkpoint holds their states."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
