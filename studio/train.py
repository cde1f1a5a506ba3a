"""The loop: sample, score, credit, loss, step, log. It knows protocols only; a recipe names the parts."""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studio.core import Objective, assign_credit, metrics, policy_loss, total
from studio.core.stats import LARGEST
from studio.dist import Processes
from studio.errors import DivergedError, RunError
from studio.optim import Average, build_optimizer
from studio.prompts.repeat import rank_rows
from studio.protocols import Policy, PromptSource, Stateful
from studio.recipe import Recipe
from studio.run import Run
from studio.scoring import Scorer, check_prompts, join_scores, parts_of, reward_of
from studio.seeds import row_seed
from studio.state import WEIGHTS, load_state, save_state
from studio.stepwise import step_metrics, step_sums, watch_gradient
from studio.types import Credit, Evaluation, Prompts, Rollout
from studio.watch import Alarm, Evaluated, evaluate, records

Report = Callable[[int, dict[str, float]], None]


@dataclass
class Parts:
    """What a recipe builds; everything with a state is saved under its field name."""

    policy: Policy
    objective: Objective
    prompts: PromptSource
    rewards: Scorer
    held_out: Scorer
    optimizer: torch.optim.Optimizer
    average: Average
    alarm: Alarm
    test: Prompts

    def stateful(self) -> dict[str, Any]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        named |= {f"rewards.{name}": cached.reward for name, cached in self.rewards.rewards.items()}
        return {name: part for name, part in named.items() if name != "policy" and isinstance(part, Stateful)}


@dataclass(frozen=True)
class Batch:
    """One iteration's rollout on this rank, and what credit needs to know of all ranks."""

    rollout: Rollout
    everyone: Rollout  # rewards, groups and masks of the global batch; no samples, no traces
    mine: slice  # this rank's rows of it


def build_parts(recipe: Recipe) -> Parts:
    """Load the model and everything around it; prompts are checked against the rewards first."""
    rewards, held_out = Scorer(recipe.rewards), Scorer(recipe.held_out)
    prompts = recipe.prompts.options.build(recipe.seed)
    test = recipe.prompts.options.held_out(recipe.watch.prompts)
    sight = recipe.prompts.options.build(recipe.seed).next(recipe.train.groups_per_step)
    for scorer in (rewards, held_out):
        check_prompts(scorer.rewards, sight)
        check_prompts(scorer.rewards, test)
    policy = recipe.policy.options.build(recipe.seed)
    if "ref" in recipe.objective().needs:
        policy.keep_reference()
    return Parts(
        policy,
        recipe.objective(),
        prompts,
        rewards,
        held_out,
        build_optimizer(policy, recipe.train),
        Average(policy, recipe.train),
        Alarm(recipe.watch),
        test,
    )


def train(recipe: Recipe, run: Run, *, report: Report = lambda step, values: None) -> str:
    """Run the recipe to its end or to a requested stop, from the run's latest checkpoint -> the final state's name."""
    processes = Processes(mixed_precision=recipe.train.mixed_precision, report_to=recipe.report_to, folder=str(run.folder / "logs"))
    _seed_everything(recipe.seed)
    parts = build_parts(recipe)
    model, parts.optimizer = processes.prepare(parts.policy.model, parts.optimizer)  # type: ignore[attr-defined]
    if processes.world > 1:
        parts.policy.backbone.training_network = model  # type: ignore[attr-defined]
    start = _resume(run, parts, processes)
    stop = _stop_on_signal()
    processes.track(run.folder.name, {"recipe": str(run.folder / "recipe.yaml")})
    if processes.main:
        run.status("running", step=start)
    state, alarmed = "finished", False
    try:
        if start == 0:
            _watch(0, recipe, run, parts, processes)  # the untouched base: what every later evaluation is compared with
        for step in range(start, recipe.train.steps):
            began = time.monotonic()
            batch, timing = sample(recipe, parts, processes, step)
            values = update(recipe, parts, processes, batch, model, first=step == 0)
            parts.prompts.update(batch.rollout)
            parts.objective.update(batch.rollout)
            values |= timing | {"time/step": time.monotonic() - began}
            done = step + 1
            if processes.main:
                run.log(done, values)
                report(done, values)
            processes.log(values, done)
            alarmed = done % recipe.watch.every == 0 and _watch(done, recipe, run, parts, processes)
            asked = run.poll_control() if processes.main else set()
            flags = processes.agree({name: name in asked for name in ("stop", "save", "sample")} | {"signal": stop.wanted})
            if flags["sample"] and done % recipe.watch.every:
                _watch(done, recipe, run, parts, processes)
            leave = flags["stop"] or flags["signal"] or alarmed
            if leave or flags["save"] or done % recipe.train.checkpointing_steps == 0 or done == recipe.train.steps:
                _checkpoint(run, parts, processes, done, recipe)
            if leave and done < recipe.train.steps:
                state = "stopped"
                break
    finally:
        parts.rewards.close()
        parts.held_out.close()
        stop.restore()
    processes.wait()
    if processes.main:
        reason = None if state == "finished" else "an alarm" if alarmed else "requested"
        run.status(state, exit_code=0, reason=reason)
    processes.end()
    return state


def sample(recipe: Recipe, parts: Parts, processes: Processes, step: int) -> tuple[Batch, dict[str, float]]:
    """This rank's rollout, scored while the next part is sampled; the reference's opinion when the objective needs it."""
    began = time.monotonic()
    settings = recipe.train
    rows = rank_rows(parts.prompts.next(settings.groups_per_step), settings.group_size, processes.rank, processes.world)
    seeds = [row_seed(recipe.seed, f"{step}/{group}", k) for group, k in zip(rows.group, rows.replica, strict=True)]
    with processes.autocast():
        rollout = parts.policy.sample(
            rows.prompts,
            group=torch.tensor(rows.group),
            seeds=seeds,
            step=step,
            finished=parts.rewards.submit,  # type: ignore[call-arg]
            micro=len(seeds) // settings.gradient_accumulation_steps,  # type: ignore[call-arg]
        )
        if "ref" in parts.objective.needs:
            with torch.no_grad(), parts.policy.reference():
                cuts = _cuts(rollout, settings.gradient_accumulation_steps)
                rollout = replace(rollout, ref=_join([parts.policy.evaluate(rollout.at(cut)) for cut in cuts]))
    sampled = time.monotonic()
    scores = parts.rewards.collect()
    how = recipe.combine if len(scores) > 1 else "sum"  # one reward needs no common scale
    device = rollout.mask.device
    ranks = processes.gather_objects(scores)
    whole = {name: join_scores([rank[name] for rank in ranks]) for name in scores}
    everyone = _everyone(rollout, processes)
    reward, present = reward_of(whole, parts.rewards.weights, everyone, how, settings.max_failures)
    everyone = replace(everyone, reward=reward.to(device), present=present.to(device), parts=parts_of(whole))
    timing = {"time/sample": sampled - began, "time/reward_wait": time.monotonic() - sampled}
    mine = slice(rows.start, rows.start + len(seeds))
    scored = everyone.at(mine)
    rollout = replace(rollout, reward=scored.reward, present=scored.present, parts=scored.parts)
    return Batch(rollout, everyone, mine), timing


def update(recipe: Recipe, parts: Parts, processes: Processes, batch: Batch, model, *, first: bool) -> dict[str, float]:
    """`epochs` optimizer steps on a rollout -> metrics."""
    rollout, everyone, mine = batch.rollout, batch.everyone, batch.mine
    credit = assign_credit(parts.objective, everyone).at(mine)  # type: ignore[arg-type]
    pieces = recipe.train.gradient_accumulation_steps if parts.objective.span != "batch" else 1
    sums: list[dict[str, Tensor]] = []
    by_step: list[dict[str, Tensor]] = []
    norm = torch.zeros(())
    for epoch in range(recipe.train.epochs):
        cuts = _cuts(rollout, pieces)
        sums, by_step = [], []
        for index, cut in enumerate(cuts):
            chunk, share, last = rollout.at(cut), credit.at(cut), index == len(cuts) - 1
            with processes.synchronized(model, last), processes.autocast():
                new = parts.policy.evaluate(chunk)
                watch_gradient(new)
                loss, stats = policy_loss(parts.objective, new, chunk, share)
            processes.backward(loss, last=last, model=model)
            sums.append(stats)
            by_step.append(step_sums(parts.objective, new, chunk, share))
        reduced = _reduce(total(sums), processes)
        if first and epoch == 0:
            _check_first_replay(reduced[LARGEST].item(), recipe.train.ratio_tolerance)
        norm = torch.nn.utils.clip_grad_norm_(list(parts.policy.trainable()), recipe.train.max_grad_norm)
        _check_finite(reduced["loss/total"].item(), norm.item())
        parts.optimizer.step()
        parts.optimizer.zero_grad(set_to_none=True)
        parts.average.step()
    steps = {name: processes.sum(value) for name, value in total(by_step).items()}
    if "gradient" in steps:
        steps["gradient"] = steps["gradient"] / processes.world**2  # `backward` multiplies the loss by the number of processes
    values = {name: float(value) for name, value in metrics(_reduce(total(sums), processes)).items()}
    shown = {f"reward/{name}": part.nanmean().item() for name, part in everyone.parts.items()}  # type: ignore[attr-defined]
    return (
        _reward_metrics(everyone)  # type: ignore[arg-type]
        | shown
        | values
        | {"loss/grad_norm": norm.item()}
        | step_metrics(steps)
    )


def _reward_metrics(everyone: Rollout) -> dict[str, float]:
    """Mean over present rows, mean spread within groups, and the share of groups without any spread."""
    from studio.core.masked import group_stats

    reward, present = everyone.reward, everyone.present
    stats = group_stats(reward, everyone.group, present)
    spread = stats.std[present]
    return {
        "reward/mean": reward[present].mean().item(),
        "reward/group_std": spread.mean().item(),
        "reward/flat_groups": (spread == 0).float().mean().item(),
        "reward/missing": 1 - present.float().mean().item(),
    }


def _everyone(rollout: Rollout, processes: Processes) -> Rollout:
    """The global batch as far as credit needs it: no samples, no traces, only small [B] and [B, T] fields."""
    small = ("dt", "jacobian", "logp", "entropy", "value")
    old = {name: getattr(rollout.old, name) for name in small}
    ref = None if rollout.ref is None else {name: getattr(rollout.ref, name) for name in small}
    gather = {True: processes.gather, False: lambda x: x}[processes.world > 1]

    def light(said: dict[str, Tensor | None]) -> Evaluation:
        return Evaluation(**{name: None if value is None else gather(value) for name, value in said.items()})

    count = len(rollout.prompts) * processes.world
    return Rollout(
        Prompts([""] * count, [""] * count, [{}] * count),
        None,
        None,
        gather(rollout.mask),
        gather(rollout.group),
        light(old),
        ref=None if ref is None else light(ref),
    )


def _reduce(sums: dict[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    return {name: processes.largest(value) if name == LARGEST else processes.sum(value) for name, value in sums.items()}


def _cuts(rollout: Rollout, pieces: int) -> list[slice]:
    size = math.ceil(len(rollout.prompts) / pieces)
    return [slice(at, at + size) for at in range(0, len(rollout.prompts), size)]


def _join(said: list[Evaluation]) -> Evaluation:
    def join(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in said]
        return None if values[0] is None else torch.cat(values)

    return Evaluation(**{f.name: join(f.name) for f in fields(Evaluation)})


def _watch(step: int, recipe: Recipe, run: Run, parts: Parts, processes: Processes) -> bool:
    """Evaluate, log, keep pictures, raise alarms -> whether the run should stop. Rank 0 works, the others wait."""
    stop = False
    if processes.main and len(parts.test):
        with parts.average.applied():
            seen = evaluate(parts.policy, parts.test, parts.rewards, parts.held_out, recipe.seed)
        run.log(step, watch_metrics(seen))
        run.save_samples(step, seen.images[: recipe.watch.samples].cpu(), records(step, seen, recipe.watch.samples))
        for message in parts.alarm.look(seen, list(recipe.rewards)):
            run.event("alarm", step=step, message=message)
            stop = recipe.watch.stop
    return processes.agree({"alarm": stop})["alarm"]


def watch_metrics(seen: Evaluated) -> dict[str, float]:
    """Held-out evaluation as metrics: `reward/eval.*` trained, `reward/held_out.*` never trained, `sample/*` guards."""
    from studio.watch import _mean

    return (
        {f"reward/eval.{name}": _mean(part) for name, part in seen.rewards.items()}
        | {f"reward/held_out.{name}": _mean(part) for name, part in seen.held_out.items()}
        | {f"sample/{name}": value for name, value in seen.guard_means().items()}
    )


def _checkpoint(run: Run, parts: Parts, processes: Processes, step: int, recipe: Recipe) -> None:
    if processes.main:
        with run.checkpoint(step, keep=recipe.train.checkpoints_total_limit) as folder:
            save_state(folder, parts.policy, parts.stateful())
            with parts.average.applied():
                parts.policy.save(folder / WEIGHTS)
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


def _check_first_replay(largest: float, tolerance: float) -> None:
    """Old likelihoods were recorded while sampling; before any update the replay must reproduce them."""
    if not largest <= tolerance:
        raise DivergedError(
            f"first replay: expected |log ratio| at most train.ratio_tolerance = {tolerance:g}, got {largest:g}. Rollout and "
            "replay differ: check dtype, guidance, grid and batch sizes, or raise the tolerance (bf16: 1e-2)."
        )


def _check_finite(loss: float, norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergedError(
            f"update: expected a finite loss and gradient, got loss {loss:g} and gradient norm {norm:g}. The weights were not "
            "changed. Resume from the last checkpoint with a lower train.learning_rate, or in float32."
        )


class _stop_on_signal:
    """SIGINT and SIGTERM only set a flag; the loop stops after the step, with a checkpoint. A second SIGINT interrupts."""

    def __init__(self) -> None:
        self.wanted = False
        self.before = {}
        try:
            self.before = {s: signal.signal(s, self._set) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever started us handles signals
            self.before = {}

    def _set(self, number, frame) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def final_weights(folder: Path) -> Path:
    """The weights folder of a run's latest complete checkpoint."""
    pointer = folder / "checkpoints" / "latest"
    name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    weights = folder / "checkpoints" / name / WEIGHTS
    if not name or not weights.is_dir():
        raise RunError(f"{folder}: expected a run with a checkpoint, got none yet. Wait for it, or `studio train` first.")
    return weights


__all__ = ["Credit", "Parts", "build_parts", "final_weights", "sample", "train", "update"]
