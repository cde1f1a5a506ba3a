"""The recipe of `studio prune`, and the `gated` policy block that its mask training is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from flows.load import Lora, Model
from flows.sampler import Sampler
from pruning.allocate import Allocation, Scope
from pruning.budget import Target
from pruning.calibrate import Calibration
from pruning.choose import ROWS
from pruning.compensate import Compensation
from pruning.sites import KINDS, Sites
from studio.config import Component, Kind, Weighted, component
from studio.errors import ConfigError, NeedsError
from studio.recipe import Recipe
from studio.settings import Train, Watch

if TYPE_CHECKING:
    from pruning.policy import GatedPolicy

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Learn:
    """Updates of criteria that are learned."""

    steps: Positive = 100
    rows: Positive = 8  # calibration pairs per update, over all processes
    parts: Positive = 1  # in which each process handles them one after the other
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    checkpointing_steps: Positive = 20
    evaluate_every: Positive = 50  # updates between held-out evaluations of the mask as it stands
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"


@dataclass(frozen=True)
class Heal:
    """Training of what remains, by the same loop."""

    method: Literal["none", "distill", "reward"] = "none"  # match the dense velocities, or GRPO-Guard on the recipe's rewards
    steps: Positive = 100
    rows: Positive = 16  # pictures per step
    train: Literal["lora", "full"] = "lora"
    lora: Lora = field(default_factory=Lora)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    checkpointing_steps: Positive = 50
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"


@dataclass(frozen=True)
class PruneRecipe:
    """Everything that determines a prune run."""

    prompts: Annotated[Component, Kind("prompts")]
    criterion: Annotated[Component, Kind("criterion")]
    target: Target
    model: Model = field(default_factory=Model)
    sampler: Sampler = field(default_factory=Sampler)
    sites: Sites = field(default_factory=Sites)
    calibration: Calibration = field(default_factory=Calibration)
    allocation: Allocation = field(default_factory=Allocation)
    compensation: Compensation = field(default_factory=Compensation)
    learn: Learn = field(default_factory=Learn)
    heal: Heal = field(default_factory=Heal)
    rewards: dict[str, Annotated[Weighted, Kind("reward")]] = field(default_factory=dict)  # reported; healed on by method reward
    protect: dict[str, Annotated[Weighted, Kind("reward")]] = field(default_factory=dict)  # differentiable; criterion.reward
    evaluate: Positive = 64  # held-out prompts of the table
    seed: int = 0

    @property
    def learned(self) -> bool:
        return "learn" in self.criterion.options.needs

    def check(self, *, prompts: bool = True) -> list[str]:
        """Warnings; ConfigError or NeedsError for what cannot run. Loads no model; reads the prompts unless told not to."""
        options = self.criterion.options
        self._check_kinds(self.criterion)
        if self.learned:
            self._check_learning()
            options.gate().check_start(options.start + getattr(options, "spread", 0.0))
            for name, block in self.protect.items():
                if not block.options.differentiable:
                    raise NeedsError(
                        f"recipe.protect.{name}: expected a differentiable reward, got one that is not. Use for example clip."
                    )
            if options.reward and not self.protect:
                raise ConfigError(
                    "recipe.protect: expected a reward, because criterion.reward is above 0, got none. Add for example "
                    "protect: {clip: 1.0}."
                )
        if self.heal.method == "reward" and not self.rewards:
            raise ConfigError("recipe.rewards: expected a reward to heal on, got none. Add one, or set heal.method: distill.")
        warnings = list(self.prompts.options.check()) if prompts else []
        if self.calibration.rows < 32:
            warnings.append(f"calibration.rows is {self.calibration.rows}: moments and scores are noisy; published are 100 prompts")
        if options.per_cost is False and self.allocation.scope == "global" and not self.learned:
            warnings.append(f"allocation.scope is global: scores of {self.criterion.name} are not comparable between modules")
        return warnings

    def _check_kinds(self, criterion: Component) -> None:
        """Units that the criterion can score, and none inside another: a block's parameters would be counted twice."""
        kinds, known = self.sites.kinds, criterion.options.kinds
        blind = [kind for kind in kinds if kind not in known]
        if blind:
            raise ConfigError(
                f"recipe.sites.kinds: expected some of {', '.join(k for k in KINDS if k in known)} for criterion "
                f"{criterion.name!r}, got {', '.join(blind)}. Change the kinds, or choose another criterion."
            )
        if "blocks" in kinds and len(set(kinds)) > 1:
            raise ConfigError(
                f"recipe.sites.kinds: expected blocks alone, because a block holds the other units, got {', '.join(kinds)}. "
                "Prune in two runs."
            )

    def _check_learning(self) -> None:
        first = getattr(self.criterion.options, "first", None)
        if first is not None:
            start = component("criterion", first)
            if "learn" in start.options.needs:
                raise ConfigError(
                    f"recipe.criterion.first: expected a criterion without training, got {first}. Use for example taylor."
                )
            self._check_kinds(start)
        if self.learn.rows % self.learn.parts:
            raise ConfigError(
                f"recipe.learn.parts: expected a divisor of learn.rows = {self.learn.rows}, got {self.learn.parts}. Change one of "
                "the two."
            )

    def training(self) -> Recipe:
        """Mask training as a recipe of the one loop."""
        options = self.criterion.options
        policy = Gated(
            self.model, self.sampler, self.prompts, self.target, self.sites, self.calibration, self.allocation,
            start=options.start, spread=getattr(options, "spread", 0.0), first=getattr(options, "first", None),
            one_noise=options.one_noise, scope=self.scope(), compensation=self.compensation, rounds=options.rounds,
        )  # fmt: skip
        train = Train(
            steps=self.learn.steps,
            groups_per_step=self.learn.rows,
            group_size=1,
            gradient_accumulation_steps=self.learn.parts,
            learning_rate=self.learn.learning_rate,
            weight_decay=options.weight_decay,
            max_grad_norm=1e9,
            ema=0.0,
            mixed_precision=self.learn.mixed_precision,
            checkpointing_steps=self.learn.checkpointing_steps,
        )
        return Recipe(
            Component("gated", policy),
            self.criterion,
            self.prompts,
            self.protect or self.rewards,
            held_out={name: block for name, block in self.rewards.items() if self.protect and name not in self.protect},
            train=train,
            watch=Watch(every=self.learn.evaluate_every, prompts=self.evaluate, samples=0),
            seed=self.seed,
        )

    def scope(self) -> Scope:
        """Where units compete: the recipe's choice, or the criterion's own."""
        return self.allocation.scope or self.criterion.options.scope


@dataclass(frozen=True)
class Gated:
    """A frozen text-to-image model under gates; what is trained is one logit per unit."""

    model: Model
    sampler: Sampler
    prompts: Annotated[Component, Kind("prompts")]
    target: Target
    sites: Sites = field(default_factory=Sites)
    calibration: Calibration = field(default_factory=Calibration)
    allocation: Allocation = field(default_factory=Allocation)
    start: float = 2.0
    spread: float = 0.0  # logits start evenly in start ± spread, in the order of `first`
    first: str | None = None
    one_noise: bool = False
    scope: Scope = "global"
    compensation: Compensation = field(default_factory=Compensation)  # on: a removed modulation output becomes its mean, not zero
    rounds: int = 0  # of removal and refit while the mask is learned, with compensation

    provides: ClassVar[frozenset[str]] = frozenset({"masks"})
    reads: ClassVar[str] = "image"

    def check(self) -> list[str]:
        return []

    def forwards(self) -> dict[str, float]:
        """Network calls per pair: the dense target once, and the gated trajectory with one recompute of every step but the last."""
        guided = 2 if self.sampler.guidance > 1 else 1
        return {"rollout": guided * self.sampler.steps, "replay": guided * (2 * self.sampler.steps - 1)}

    def build(self, seed: int) -> GatedPolicy:
        from pruning.build import gated_policy

        return gated_policy(self, seed)


def overview(recipe: PruneRecipe) -> dict[str, Any]:
    """What a prune run will do, in the words of `studio check`."""
    calls = Gated(recipe.model, recipe.sampler, recipe.prompts, recipe.target).forwards()
    rows, passes = recipe.calibration.rows, recipe.calibration.packages
    facts: dict[str, Any] = {
        "criterion": recipe.criterion.name,
        "target": f"{recipe.target.measure} {recipe.target.share:g} of the whole",
        "sites": ", ".join(recipe.sites.kinds),
        "calibration pairs": rows,
        "forwards of calibration": int(calls["rollout"] * rows * (passes if recipe.compensation.on else 1)),
    }
    if recipe.learned:
        facts["updates of the gates"] = recipe.learn.steps
        facts["forwards per update"] = int(recipe.learn.rows * calls["replay"])
        facts["rows at a time"] = recipe.learn.rows // recipe.learn.parts
        if getattr(recipe.criterion.options, "first", None) is not None:  # dense, learned mask, mask of the start
            facts["forwards of the choice"] = int(3 * calls["rollout"] * min(ROWS, rows))
    facts["compensation"] = "closed form" if recipe.compensation.on else "off"
    facts["healing"] = recipe.heal.method if recipe.heal.method == "none" else f"{recipe.heal.method}, {recipe.heal.steps} steps"
    facts["criterion settings"] = ", ".join(f"{k} {v}" for k, v in asdict(recipe.criterion.options).items())
    return facts
