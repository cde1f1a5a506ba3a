"""A recipe: the typed blocks that describe a run, checked before anything heavy is loaded, and built into parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from studio.config import Component, Kind, Weighted, apply_overrides, build, load_yaml, parse_yaml
from studio.errors import ConfigError, NeedsError
from studio.names import suggestion
from studio.protocols import Particular
from studio.settings import Acting, Train, Watch

WIDE, LARGEST_MINIBATCH = 8192, 16384  # environments, and actions per optimizer step that still train well with as many
RECIPES = {"train": "studio", "prune": "pruning"}  # command -> package whose folder recipes/ it reads


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run."""

    policy: Annotated[Component, Kind("policy")]
    algorithm: Annotated[Component, Kind("algorithm")]
    prompts: Annotated[Component, Kind("prompts")] | None = None
    rewards: dict[str, Annotated[Weighted, Kind("reward")]] = field(default_factory=dict)
    env: Annotated[Component, Kind("env")] | None = None  # where actions are taken: it sets the tasks and gives the rewards
    acting: Acting = field(default_factory=Acting)  # in env
    held_out: dict[str, Annotated[Weighted, Kind("reward")]] = field(default_factory=dict)  # scored, never trained on
    combine: Literal["normalize_each", "gdpo", "sum"] = "normalize_each"  # several rewards: standardize each in its group first
    train: Train = field(default_factory=Train)
    watch: Watch = field(default_factory=Watch)
    report_to: list[str] = field(default_factory=list)  # trackers of accelerate: tensorboard, wandb, trackio
    seed: int = 0

    def __post_init__(self) -> None:
        if self.env is not None:
            if self.prompts or self.rewards or self.held_out:
                raise ValueError("env: expected no prompts and no rewards beside it, got some: it gives both. Remove them, or env.")
            return
        if self.prompts is None:
            raise ValueError(
                "prompts: expected prompts, or an env for control policies, got neither. Add for example 'prompts: shapes'."
            )
        if not self.rewards and getattr(self.algorithm.options, "scored", True):
            raise ValueError("rewards: expected at least one reward, got none. Add for example 'rewards: {jpeg_size: 1.0}'.")

    def objective(self):
        """The algorithm's seven slots."""
        return self.algorithm.options.objective()

    def check(self, processes: int = 1, *, prompts: bool = True) -> list[str]:
        """Warnings; raises ConfigError or NeedsError for what cannot run. Loads no model; reads the prompts unless told not to."""
        from studio.core import check_fit

        check_fit(self.algorithm.name, self.objective(), self.policy.options.provides, self.policy.name)
        if self.env is not None:
            return self._check_env(processes)
        if self.policy.options.reads == "states":
            raise ConfigError(
                f"recipe.env: expected an environment for policy {self.policy.name!r}, got none. Add one: 'env: multigoal'."
            )
        self._check_plan(processes)
        source = self.prompts.options if self.prompts else None
        if isinstance(source, Particular):
            source.check_recipe(self, processes)
        compares = getattr(self.objective(), "compares", False)
        if self.train.group_size == 1 and compares:
            raise ConfigError(
                f"recipe.train.group_size: expected at least 2 for algorithm {self.algorithm.name!r}, which compares the samples "
                "of a prompt, got 1. Set it to 8 or more."
            )
        if self.train.split_steps and getattr(self.objective(), "span", "row") != "decision":
            raise ConfigError(
                f"recipe.train.split_steps: expected an algorithm that looks at one decision at a time, got {self.algorithm.name}. "
                "Set it to false."
            )
        warnings = [*self.policy.options.check(), *(self.prompts.options.check() if prompts and self.prompts else ())]
        for name, block in {**self.rewards, **self.held_out}.items():
            if block.options.reads != self.policy.options.reads:
                raise ConfigError(
                    f"recipe.rewards.{name}: expected a reward that reads {self.policy.options.reads}, got one that reads "
                    f"{block.options.reads}. Choose another reward for policy {self.policy.name!r}."
                )
        if "pathwise" in self.objective().needs:
            self._check_differentiable()
        if self.train.mixed_precision == "fp16":
            warnings.append("train.mixed_precision is fp16: gradients are not rescaled and small ones vanish; prefer bf16")
        if not compares or not self.rewards:
            return warnings
        published = "published are 8 prompts × 8 samples on one GPU, 48 × 24 in full"
        if self.train.groups_per_step < 8:
            warnings.append(f"train.groups_per_step is {self.train.groups_per_step}: a noisy gradient; {published}")
        if self.train.group_size < 8:
            warnings.append(f"train.group_size is {self.train.group_size}: noisy advantages; {published}")
        return warnings

    def _check_env(self, processes: int) -> list[str]:
        """The same for a recipe whose tasks and rewards come from an environment."""
        assert self.env is not None
        acting, train, objective = self.acting, self.train, self.objective()
        if self.policy.options.reads != "states":
            raise ConfigError(
                f"recipe.env: expected a policy that reads states, got {self.policy.name!r}, which makes "
                f"{self.policy.options.reads}s. Use policyflow or gaussian, or remove env."
            )
        if objective.critic is None:
            raise ConfigError(
                f"recipe.algorithm: expected one with a critic, got {self.algorithm.name!r}, which reads one reward for each row; "
                "an environment gives one for each action. Use ppo, policyflow, or the same objective with a critic: "
                f"algorithm='{{name: actor_critic, of: {self.algorithm.name}}}'."
            )
        if acting.environments % processes:
            raise ConfigError(
                f"recipe.acting.environments: expected a multiple of the {processes} processes, got {acting.environments}. "
                "Change one."
            )
        count, actions = acting.minibatches(train.minibatches), acting.environments * acting.steps
        if count > actions or (count > 1 and objective.span != "decision"):
            raise ConfigError(
                f"recipe.train.minibatches: expected at most {actions}, the actions of an iteration, and 1 for an algorithm "
                f"that looks at whole rows, got {count} with {self.algorithm.name!r}. Lower it."
            )
        if train.rate.kind == "kl" and "kl" not in self.policy.options.provides:
            raise NeedsError(
                f"recipe.train.rate.kind: expected a policy with a KL, got {self.policy.name!r}. Use constant or linear."
            )
        warnings = [*self.policy.options.check(), *self.env.options.check()]
        if acting.environments >= WIDE and actions / count > LARGEST_MINIBATCH:
            warnings.append(
                f"acting.environments is {acting.environments} and a minibatch has {actions // count} actions: with more "
                "environments keep minibatch and learning rate and take more optimizer steps; set acting.minibatch: "
                f"{LARGEST_MINIBATCH}"
            )
        return warnings

    def _check_differentiable(self) -> None:
        for name, block in self.rewards.items():
            if not block.options.differentiable:
                raise NeedsError(
                    f"recipe.rewards.{name}: expected a differentiable reward for algorithm {self.algorithm.name!r}, got one that "
                    "is not. Use for example clip or pickscore, or an algorithm with likelihoods."
                )

    def _check_plan(self, processes: int) -> None:
        train = self.train
        rows, parts = train.groups_per_step * train.group_size, processes * train.gradient_accumulation_steps
        if rows % parts:
            raise ConfigError(
                f"recipe.train: expected groups_per_step × group_size = {train.groups_per_step} × {train.group_size} = {rows} to "
                f"divide by processes × gradient_accumulation_steps = {processes} × {train.gradient_accumulation_steps} = {parts}, "
                f"got a remainder of {rows % parts}. Change one of the four."
            )
        larger, smaller = sorted((train.gradient_accumulation_steps, train.minibatches), reverse=True)
        if larger % smaller or rows % (processes * larger):
            raise ConfigError(
                f"recipe.train.minibatches: expected a divisor or a multiple of gradient_accumulation_steps = "
                f"{train.gradient_accumulation_steps} that divides the {rows // processes} rows of a process, got "
                f"{train.minibatches}. Change one of the two."
            )
        if getattr(self.objective(), "span", "row") == "group" and rows // (processes * larger) % train.group_size:
            raise ConfigError(
                f"recipe.train: expected whole groups of {train.group_size} rows in every part for algorithm "
                f"{self.algorithm.name!r}, which compares the rows of a prompt, got parts of {rows // (processes * larger)}. Lower "
                "minibatches or gradient_accumulation_steps."
            )
        if train.minibatches > 1 and getattr(self.objective(), "span", "batch") == "batch":
            raise ConfigError(
                f"recipe.train.minibatches: expected 1 for algorithm {self.algorithm.name!r}, which takes one step on the whole "
                f"batch, got {train.minibatches}. Set it to 1."
            )


def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> tuple[Recipe, str]:
    """A bundled recipe by name or a YAML file by path, with `key=value` overrides -> (recipe, its source text)."""
    source = recipe_source(name)
    data = parse_yaml(source, name)
    return build(Recipe, apply_overrides(data, list(overrides))), source


def recipe_source(name: str, work: str = "train") -> str:
    """The text of a recipe of `studio train` or `studio prune`; ConfigError with the nearest names when there is none."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        _check_work(load_yaml(path), name, work)
        return path.read_text(encoding="utf-8")
    known = recipe_names(work)
    if name not in known:
        other = next((other for other in RECIPES if other != work and name in recipe_names(other)), None)
        hint = f" (it is a recipe of `studio {other}`)." if other else suggestion(name, known)
        raise ConfigError(f"recipe: expected a bundled recipe or a .yaml file, got {name!r}{hint} (recipes: {', '.join(known)})")
    return (files(RECIPES[work]) / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def _check_work(data: Mapping[str, Any], name: str, work: str) -> None:
    """A prune recipe names a criterion, a train recipe a policy and an algorithm: said here once instead of field by field."""
    got = "prune" if "criterion" in data else "train" if data.keys() & {"policy", "algorithm"} else work
    if got != work:
        raise ConfigError(f"recipe: expected a recipe of `studio {work}`, got {name!r}, which is one of `studio {got}`. Use that.")


def trained(data: Mapping[str, Any], run: str) -> Recipe:
    """The recipe of a run, for commands that load trained weights; ConfigError for a prune run."""
    if "criterion" in data:
        raise ConfigError(
            f"{run}: expected a run of `studio train`, got one of `studio prune`. Its export/report.html has pictures and rewards "
            f"of the dense and the pruned network; `studio export {run} --format pruned-compact` gives a pipeline that draws more."
        )
    return build(Recipe, data)


def recipe_names(work: str = "train") -> list[str]:
    """Bundled recipes of a command, as `folder/name`."""
    root = Path(str(files(RECIPES[work]) / "recipes"))
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def work_of(name: str) -> str:
    """Whether a recipe is for `studio train` or for `studio prune`: a prune recipe names a criterion."""
    if Path(name).suffix in (".yaml", ".yml"):
        return "prune" if "criterion" in load_yaml(name) else "train"
    return "prune" if name in recipe_names("prune") else "train"


def describe(name: str, work: str = "train") -> str:
    """First comment line of a bundled recipe."""
    first = recipe_source(name, work).splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def plan(recipe: Recipe, processes: int = 1) -> dict[str, Any]:
    """What one iteration does: samples, parts, optimizer steps and network calls."""
    train, calls = recipe.train, recipe.policy.options.forwards()
    if recipe.env is not None:
        acting = recipe.acting
        actions, count = acting.environments * acting.steps, acting.minibatches(train.minibatches)
        return {
            "environments": acting.environments,
            "actions per iteration": actions,
            "actions in all": actions * train.steps,
            "actions per optimizer step": actions // count,
            "optimizer steps per iteration": train.epochs * count,
            "network calls per action (rollout)": calls["rollout"],
            "network calls per action (replay, with backward)": calls["replay"] * train.epochs,
        }
    rows = train.groups_per_step * train.group_size
    memory = getattr(recipe.policy.options, "memory", None)
    needed = memory(recipe, processes) if memory else None
    return {
        "samples per step": rows,
        "samples per process": rows // processes,
        "samples per part": rows // processes // train.gradient_accumulation_steps,
        "optimizer steps per iteration": train.epochs * train.minibatches,
        "optimizer steps in all": train.steps * train.epochs * train.minibatches,
        "forwards per step (rollout)": int(rows * calls["rollout"]),
        "forwards per step (replay, with backward)": int(rows * calls["replay"] * train.epochs),
        **({"memory per GPU (estimate)": needed} if needed else {}),
    }
