"""The `policy: denoise` block of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from flows.blueprint import find
from flows.load import Model, build_policy
from flows.sampler import Sampler, Window

if TYPE_CHECKING:
    from flows.matching import MatchingPolicy
    from flows.policy import DenoisePolicy


@dataclass(frozen=True)
class Denoise:
    """A text-to-image flow model whose noisy denoising steps are trained."""

    model: Model = field(default_factory=Model)
    sampler: Sampler = field(default_factory=Sampler)

    # what DenoisePolicy provides, stated here so that a recipe is checked before torch or a model is loaded
    provides: ClassVar[frozenset[str]] = frozenset(
        {"logp", "mean", "std", "noise", "dt", "jacobian", "velocity", "ref", "pathwise", "latents"}
    )
    reads: ClassVar[str] = "image"

    def check(self) -> list[str]:
        """Warnings; ConfigError when the window does not fit, or the model's parts do not go together."""
        self.sampler.window.steps(self.sampler.steps, 0, 0)
        return check_guidance(self.model, self.sampler.guidance)

    def forwards(self) -> dict[str, float]:
        """Network calls per sample: of a rollout, and of one replay with gradients."""
        guided = 2 if self.sampler.guidance > 1 else 1
        return {
            "rollout": guided * self.sampler.steps,
            "replay": guided * len(self.sampler.window.steps(self.sampler.steps, 0, 0)),
        }

    def memory(self, recipe: Any, processes: int) -> str | None:
        """Estimated memory of one GPU, in words; None for a model that is not among the blueprints."""
        return _memory(self.model, self.sampler, recipe, processes)

    def build(self, seed: int) -> DenoisePolicy:
        return build_policy(self.model, self.sampler, seed)


def check_guidance(model: Model, guidance: float) -> list[str]:
    """A warning where a model is guided by an embedding and the recipe asks for a second forward as well."""
    blueprint = find(model.name)
    if blueprint is None or blueprint.pipeline != "FluxPipeline" or guidance == 1:
        return []
    how = "by model.embedded_guidance" if blueprint.config["guidance_embeds"] else "not at all: it was distilled without"
    return [f"policy.sampler.guidance is {guidance:g}: {model.name} is guided {how}; published recipes keep 1"]


def _memory(model: Model, sampler: Sampler, recipe: Any, processes: int) -> str | None:
    if find(model.name) is None:  # before torch is imported
        return None
    from flows.memory import estimate

    train = recipe.train
    samples = train.groups_per_step * train.group_size // processes
    return str(
        estimate(
            model,
            sampler,
            samples=samples,
            part=max(1, samples // train.gradient_accumulation_steps),
            average=train.ema > 0,
            reference="ref" in recipe.objective().needs,
            half=train.mixed_precision != "no",
            split_steps=train.split_steps,
            gpus=processes,
        )
    )


@dataclass(frozen=True)
class Points:
    """How images are drawn without an SDE, and how many noise levels of each are trained."""

    steps: Annotated[int, Field(ge=2)] = 8  # denoising steps of a rollout, by the ODE
    eval_steps: Annotated[int, Field(ge=1)] = 8
    guidance: Annotated[float, Field(ge=1.0)] = 1.0  # published methods use none
    grid: Literal["pipeline", "even"] = "pipeline"
    grid_shift: Annotated[float, Field(gt=0)] = 3.0
    same_noise: bool = False
    points: Annotated[int, Field(ge=0)] = 0  # different noise levels of the grid per image; 0 = all of them

    def __post_init__(self) -> None:
        if self.points > self.steps:
            raise ValueError(f"points: expected at most steps = {self.steps}, got {self.points}. Use 0 for all.")


@dataclass(frozen=True)
class Match:
    """A text-to-image flow model trained on the forward process: points between noise and its own images."""

    model: Model = field(default_factory=Model)
    sampler: Points = field(default_factory=Points)

    provides: ClassVar[frozenset[str]] = frozenset({"velocity", "target", "sigma", "fit", "ref"})
    reads: ClassVar[str] = "image"

    def check(self) -> list[str]:
        """Warnings."""
        return (
            ["policy.sampler.guidance above 1: published methods of this kind sample without"] if self.sampler.guidance > 1 else []
        )

    def forwards(self) -> dict[str, float]:
        """Network calls per sample: the ODE and the sampling weights' opinion of the points, and one replay."""
        guided, points = (2 if self.sampler.guidance > 1 else 1), self.sampler.points or self.sampler.steps
        return {"rollout": guided * (self.sampler.steps + points), "replay": guided * points}

    def memory(self, recipe: Any, processes: int) -> str | None:
        """Estimated memory of one GPU, in words: that of as many noisy steps as there are points."""
        own = self.sampler
        window = Window(size=min(own.points or own.steps, own.steps - 1))
        return _memory(self.model, Sampler(steps=own.steps, guidance=own.guidance, window=window), recipe, processes)

    def build(self, seed: int) -> MatchingPolicy:
        from flows.matching import MatchingPolicy

        own = self.sampler
        same = ("steps", "eval_steps", "guidance", "grid", "grid_shift", "same_noise")
        inner = build_policy(self.model, Sampler(**{name: getattr(own, name) for name in same}), seed)
        return MatchingPolicy(inner, own.points or own.steps)
