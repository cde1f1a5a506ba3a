"""Training of what remains, by the one loop: towards the dense velocities, or by GRPO-Guard on the recipe's rewards."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from flows.load import Model
from flows.policy import DenoisePolicy
from flows.recipe import Denoise
from flows.sampler import Sampler
from pruning.build import dense_policy
from pruning.recipe import PruneRecipe
from studio.config import Component, component, dump
from studio.dist import Processes
from studio.parts import Parts
from studio.recipe import Recipe
from studio.rollout import Batch, draw_rows
from studio.run import Run, RunView
from studio.settings import Train, Watch
from studio.state import final_weights
from studio.train import train
from studio.types import Evaluation, Rollout
from studio.update import optimize

PRUNED, START, HEAL = "pruned", "heal-start", "heal"  # in a prune run: the network, that before healing, the run that heals
GROUP = 8  # samples per prompt of healing by reward
HALF = 1e-2  # |log ratio| of a first replay in half precision


@dataclass
class Matching:
    """mean ||v_student(x_t) - v_teacher(x_t)||² over every step of the teacher's trajectories."""

    teacher: Model
    sampler: Sampler
    needs: ClassVar[frozenset[str]] = frozenset({"latents"})  # of the sampler, and its velocities
    iteration: ClassVar[str] = "pruning.heal:match"
    _policy: DenoisePolicy | None = field(default=None, repr=False)

    def policy(self, seed: int) -> DenoisePolicy:
        """The teacher, loaded once."""
        if self._policy is None:
            self._policy = dense_policy(self.teacher, self.sampler, seed)
        return self._policy

    def update(self, rollout: Rollout) -> None:
        """Nothing is learned from rewards."""


@dataclass(frozen=True)
class Distill:
    """Flow-matching distillation from another model: its velocities on its own trajectories."""

    teacher: Model = field(default_factory=Model)
    sampler: Sampler = field(default_factory=Sampler)
    scored: ClassVar[bool] = False

    def objective(self) -> Matching:
        return Matching(self.teacher, self.sampler)


def match(recipe: Recipe, parts: Parts, processes: Processes, step: int, model: Any) -> tuple[Batch, dict[str, float]]:
    """One optimizer step towards the teacher on fresh trajectories -> (the rows, metrics)."""
    began, objective, policy = time.monotonic(), parts.objective, parts.policy
    assert isinstance(objective, Matching) and isinstance(policy, DenoisePolicy)
    rows, seeds = draw_rows(recipe, parts, processes, step)
    size, total = len(seeds) // recipe.train.gradient_accumulation_steps, len(seeds) * processes.world
    errors = []
    for at in range(0, len(seeds), size):
        texts = rows.prompts.text[at : at + size]
        x, sigma, wanted = trajectories(objective.policy(recipe.seed), texts, seeds[at : at + size])
        with processes.autocast():
            made = policy.velocity([text for text in texts for _ in range(len(sigma) // len(texts))])(x, sigma)
            each = ((made.float() - wanted) ** 2).flatten(1).mean(1).unflatten(0, (len(texts), -1)).mean(1)
            processes.accelerator.backward(each.sum() / total)
        errors.append(each.detach())
    processes.add_gradients(policy.trainable())
    error = processes.gather(torch.cat(errors))
    norm = optimize(recipe, parts, error.mean().item())
    count = len(seeds)
    rollout = Rollout(
        rows.prompts,
        None,
        None,
        torch.ones(count, 1, dtype=torch.bool),
        torch.tensor(rows.group),
        Evaluation(),
        reward=-torch.cat(errors).cpu(),
        present=torch.ones(count, dtype=torch.bool),
    )
    values = {"loss/total": error.mean().item(), "loss/grad_norm": norm, "time/step_work": time.monotonic() - began}
    return Batch(rollout, rollout, slice(0, count)), values


@torch.no_grad()
def trajectories(teacher: DenoisePolicy, texts: list[str], seeds: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """(x [N·T, *E], sigma [N·T], velocity [N·T, *E]) of every step, the steps of a row side by side."""
    taken: list[Any] = []
    teacher.latents(texts, seeds, record=taken.append)
    velocity = [(s.x - s.step.mean) / (s.sigma - s.sigma_next).reshape(-1, *[1] * (s.x.ndim - 1)) for s in taken]
    pick = ([s.x for s in taken], [s.sigma for s in taken], velocity)
    return tuple(torch.stack(values, dim=1).flatten(0, 1) for values in pick)  # type: ignore[return-value]


def healing(recipe: PruneRecipe, run: Run) -> Recipe:
    """The healing of a prune run as a recipe of the one loop."""
    settings = recipe.heal
    student = replace(recipe.model, pruned=str(run.folder / START), train=settings.train, lora=settings.lora)
    group = GROUP if settings.method == "reward" else 1
    exact = recipe.model.dtype == "float32" and settings.mixed_precision == "no"
    if settings.method == "reward":
        algorithm = component("algorithm", "grpo_guard", clip=1e-5, scale="group")
    else:
        algorithm = Component("distill", Distill(recipe.model, recipe.sampler))
    return Recipe(
        Component("denoise", Denoise(student, recipe.sampler)),
        algorithm,
        recipe.prompts,
        recipe.rewards,
        train=Train(
            steps=settings.steps,
            groups_per_step=max(1, settings.rows // group),
            group_size=group,
            learning_rate=settings.learning_rate,
            mixed_precision=settings.mixed_precision,
            ratio_tolerance=Train.ratio_tolerance if exact else HALF,
            checkpointing_steps=settings.checkpointing_steps,
            adam_epsilon=1e-6,
        ),
        watch=Watch(every=settings.steps, prompts=recipe.evaluate, samples=0),
        seed=recipe.seed,
    )


def heal(recipe: PruneRecipe, run: Run) -> str:
    """Train in RUN/heal, a run folder of its own, from its latest checkpoint -> its final state."""
    own = healing(recipe, run)
    if (run.folder / HEAL / "status.json").is_file():
        if RunView.open(run.folder / HEAL).status["state"] == "finished":
            return "finished"
        inner = Run.resume(run.folder / HEAL)
    else:
        inner = Run.create(run.folder, HEAL, dump(own), total_steps=own.train.steps, command=[])

    def beat(step: int, values: dict[str, float]) -> None:
        run.status()
        if "stop" in run.poll_control():
            (inner.folder / "control" / "stop").touch()

    return train(own, inner, report=beat)


def healed_policy(recipe: PruneRecipe, run: Run) -> DenoisePolicy:
    """The pruned network with what its healing has trained."""
    policy = healing(recipe, run).policy.options.build(recipe.seed)
    policy.load(final_weights(run.folder / HEAL))
    return policy
