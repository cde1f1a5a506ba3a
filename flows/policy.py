"""A backbone as a Policy: one row is an image, one decision is a noisy denoising step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flows.adapter import load_weights, save_weights
from flows.backbones.protocol import Backbone, Condition
from flows.denoise import RowNoise, Taken, denoise
from flows.embeddings import PromptEncoder
from flows.sampler import Sampler
from flows.schedule import even_grid
from flows.sde import KERNELS, over, step_logp
from studio.core.pathwise import Cut
from studio.errors import ConfigError
from studio.frozen import Frozen
from studio.seeds import row_seed
from studio.shapes import expect
from studio.types import EVERY, Evaluation, Prompts, Rollout

KEPT_CONDITIONS = 2**30  # bytes of prompt embeddings that a policy keeps on its device


@dataclass(frozen=True, slots=True)
class DenoiseTrace:
    """Where each noisy step started; its end is old.mean + old.std·old.noise."""

    x: Tensor  # [B, T, *E]
    sigma: Tensor  # [B, T]
    sigma_next: Tensor  # [B, T]
    level: Tensor  # [B, T]

    def at(self, rows, steps=EVERY) -> DenoiseTrace:
        return DenoiseTrace(*(value[rows][:, steps] for value in (self.x, self.sigma, self.sigma_next, self.level)))


class DenoisePolicy:
    """Samples images with noise on some steps, and evaluates those steps again with the network of the moment."""

    provides = frozenset({"logp", "mean", "std", "noise", "dt", "jacobian", "velocity", "ref", "pathwise", "latents"})
    reduction = "mean"  # of logp over E; the clip ranges of this field assume it

    def __init__(
        self, backbone: Backbone, sampler: Sampler, *, seed: int = 0, lora: bool = False, encode: PromptEncoder | None = None
    ) -> None:
        self.backbone, self.sampler, self.seed, self.lora = backbone, sampler, seed, lora
        self.model: nn.Module = backbone.network  # stays the bare network when backbone.network gets wrapped
        self.device = next(self.model.parameters()).device
        self._encode = encode or PromptEncoder(backbone.encode, device=self.device)
        self._conditions: dict[str, Condition] = {}  # by text, the most recently used last
        self._frozen = Frozen(self.model, lora=lora)

    def sample(
        self,
        rows: Prompts,
        *,
        group: Tensor,
        seeds: Sequence[int],
        step: int,
        finished: Callable[[Prompts, Tensor], None] | None = None,
        micro: int | None = None,
    ) -> Rollout:
        """One image a row with a record of its noisy steps; `finished` sees every micro-batch of images as it is done."""
        sigmas = self.grid(self.sampler.steps)
        window = self.noisy_steps(step)
        levels = [self.sampler.level if index in window else 0.0 for index in range(self.sampler.steps)]
        images, taken = [], []
        with torch.no_grad():
            for part in range(0, len(rows), micro or len(rows)):
                cut = range(part, min(part + (micro or len(rows)), len(rows)))
                noise = RowNoise([seeds[i] for i in cut], self.backbone.latent_shape)
                start = noise() if not self.sampler.same_noise else self._shared_start(group[list(cut)], step)
                steps: list[Taken] = []
                latents = denoise(
                    self.velocity(rows.take(cut).text),
                    self.start(start.to(self.device), sigmas[0]),
                    sigmas,
                    levels=levels,
                    kernel=KERNELS[self.sampler.kernel],
                    noise=noise,
                    record=lambda done, steps=steps: steps.append(done) if done.noise is not None else None,
                )
                images.append(self.backbone.decode(latents))
                taken.append(steps)
                if finished is not None:
                    finished(rows.take(cut), images[-1])
        old = Evaluation(
            mean=_stack(taken, lambda s: s.step.mean),
            std=_stack(taken, lambda s: s.step.std),
            noise=_stack(taken, lambda s: expect(s.noise, "N *E", name="DenoisePolicy: drawn noise")),
            dt=_stack(taken, lambda s: s.sigma - s.sigma_next),
            jacobian=_stack(taken, lambda s: s.step.jacobian),
            logp=_stack(taken, lambda s: step_logp(self.sampler.kernel)(s.x_next, s.step.mean, s.step.std)),
        )
        trace = DenoiseTrace(
            _stack(taken, lambda s: s.x),
            _stack(taken, lambda s: s.sigma),
            _stack(taken, lambda s: s.sigma_next),
            _stack(taken, lambda s: s.level),
        )
        mask = self._mask(seeds, len(window)).to(self.device)
        return Rollout(rows, torch.cat(images), trace, mask, group.to(self.device), old, seeds=list(seeds))

    def evaluate(self, rollout: Rollout) -> Evaluation:
        """The recorded steps under the current network: all rows and steps in one batch."""
        trace: DenoiseTrace = rollout.trace  # type: ignore[assignment]
        rows, steps = trace.sigma.shape
        x, t, after, level = (v.flatten(0, 1) for v in (trace.x, trace.sigma, trace.sigma_next, trace.level))
        texts = [text for text in rollout.prompts.text for _ in range(steps)]
        with self._gradients_exchanged():
            v = self.velocity(texts)(x, t).float()
        step = KERNELS[self.sampler.kernel](x, v, t, after, level)
        mean = expect(rollout.old.mean, "B T *E", name="DenoisePolicy: old mean")
        std = expect(rollout.old.std, "B T", name="DenoisePolicy: old std")
        x_next = mean + over(std, mean) * expect(rollout.old.noise, "B T *E", name="DenoisePolicy: noise")
        logp = step_logp(self.sampler.kernel)(x_next.flatten(0, 1), step.mean, step.std)

        def fold(value: Tensor) -> Tensor:
            return value.unflatten(0, (rows, steps))

        return Evaluation(
            logp=fold(logp),
            mean=fold(step.mean),
            std=fold(step.std),
            noise=rollout.old.noise,
            dt=fold(t - after),
            jacobian=fold(step.jacobian),
            velocity=fold(v),
        )

    def noisy_steps(self, step: int) -> list[int]:
        """Indices of the stochastic, trained steps of a rollout: those of the window whose std is at least `min_std`."""
        window, sigmas = self.sampler.window.steps(self.sampler.steps, step, self.seed), self.grid(self.sampler.steps)
        x = torch.zeros(self.sampler.steps)
        std = KERNELS[self.sampler.kernel](x, x, sigmas[:-1], sigmas[1:], torch.full_like(x, self.sampler.level)).std
        kept = [index for index in window if std[index] >= self.sampler.min_std]
        if not kept:
            raise ConfigError(
                f"recipe.sampler: expected a window with a step of std at least min_std = {self.sampler.min_std:g}, got steps "
                f"{window} with {', '.join(f'{std[i]:.2g}' for i in window)}. Move the window, raise level or lower min_std."
            )
        return kept

    @torch.no_grad()
    def images(self, texts: list[str], seeds: Sequence[int], *, micro: int = 128, steps: int | None = None) -> Tensor:
        """Evaluation images [N, 3, H, W]: the ODE, eval_steps long; row i depends on seeds[i] alone."""
        parts = [slice(at, at + micro) for at in range(0, len(texts), micro)]
        count = steps or self.sampler.eval_steps
        return torch.cat([self.backbone.decode(self.latents(texts[part], seeds[part], steps=count)) for part in parts])

    def draw(self, prompts: Prompts, seeds: Sequence[int]) -> Tensor:
        """Evaluation images of these prompts."""
        return self.images(prompts.text, seeds)

    def latents(
        self,
        texts: list[str],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        remember: bool = True,
        through: Sequence[Tensor] = (),
        record: Callable[[Taken], None] | None = None,
    ) -> Tensor:
        """Final latents [N, *E] of the ODE from each row's own noise; the last three arguments are those of `denoise`."""
        sigmas = self.grid(steps or self.sampler.steps)
        begin = self.start(RowNoise(seeds, self.backbone.latent_shape)().to(self.device), sigmas[0])
        return denoise(self.velocity(texts), begin, sigmas, record=record, remember=remember, through=through)

    def render(self, texts: list[str], seeds: Sequence[int], cut: Cut) -> list[Tensor]:
        """Images [N, 3, H, W] with gradients through the steps that `cut` keeps: one batch, and one more per `renoise`.

        Kept steps are recomputed in the backward pass. The sample that a step predicts is x - σ·v, an Euler step to 0.
        """
        sigmas, noise = self.grid(self.sampler.steps), RowNoise(seeds, self.backbone.latent_shape)
        velocity = self.velocity(texts)
        with torch.no_grad():
            begin = self.start(noise().to(self.device), sigmas[0])
            x = denoise(velocity, begin, sigmas[: cut.start + 1])
        kept = sigmas[[cut.start, -1]] if cut.predict else sigmas[cut.start :]
        ends = [denoise(velocity, x, kept, remember=False)]
        level = kept[0].item()
        for _ in range(cut.renoise):
            again = (1 - level) * ends[0].detach() + level * noise().to(self.device)
            ends.append(denoise(velocity, again, kept, remember=False))
        return [self.backbone.decode(end) for end in ends]

    def velocity(self, texts: list[str]) -> Callable[[Tensor, Tensor], Tensor]:
        """The guided velocity for these prompts:  v_uncond + w·(v_cond - v_uncond),  one forward of doubled batch."""
        weight = self.sampler.guidance
        if weight == 1:
            condition = self._condition(texts)
            return lambda x, sigma: self.backbone.velocity(x, sigma, condition)
        both = self._condition([""] * len(texts) + texts)

        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            v = self.backbone.velocity(torch.cat([x, x]), torch.cat([sigma, sigma]), both)
            free, conditional = v.float().chunk(2)
            return free + weight * (conditional - free)

        return guided

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """x at the grid's first sigma: the noise itself, unless the backbone says otherwise."""
        own = getattr(self.backbone, "start", None)
        return noise if own is None else own(noise, sigma)

    def grid(self, steps: int) -> Tensor:
        """The sigma grid of the recipe, the same in rollout, replay and evaluation."""
        if self.sampler.grid == "even":
            top = getattr(self.backbone, "top", 1.0)
            if top < 1:
                raise ConfigError(
                    f"recipe.sampler.grid: expected pipeline for {self.backbone.name}, whose noise ends at sigma "
                    f"{top:.3f}, got even, which starts at 1. Remove the setting."
                )
            return even_grid(steps, self.sampler.grid_shift)
        return self.backbone.sigmas(steps)

    def reference(self) -> AbstractContextManager[None]:
        """The frozen reference: adapters off, or the initial weights swapped in for full fine-tuning."""
        return self._frozen.applied()

    def keep_reference(self) -> None:
        """Store the present weights as the reference; adapters need no copy."""
        self._frozen.keep()

    def distribute(self, model: nn.Module) -> None:
        """Evaluation with gradients goes through this wrapper from now on."""
        self.backbone.training_network = model  # type: ignore[attr-defined]

    def trainable(self) -> Iterable[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def save(self, folder: Path, *, write: bool = True) -> None:
        """The trained weights: a LoRA file that diffusers loads, or the network; safetensors. Sharded ones are gathered, by all."""
        save_weights(self.backbone.pipeline, self.model, folder, lora=self.lora, write=write)

    def load(self, folder: Path) -> None:
        load_weights(self.model, folder, lora=self.lora)

    @contextmanager
    def _gradients_exchanged(self) -> Iterator[None]:
        """Inside, with gradients on, the velocity calls the distributed wrapper, if there is one: its forward prepares the
        exchange. Sampling and the reference call the bare network."""
        wrapper = getattr(self.backbone, "training_network", None)
        if wrapper is None or not torch.is_grad_enabled():
            yield
            return
        self.backbone.network = wrapper
        try:
            yield
        finally:
            self.backbone.network = self.model

    def _condition(self, texts: list[str]) -> Condition:
        missing = [text for text in dict.fromkeys(texts) if text not in self._conditions]
        if missing:
            self._conditions |= dict(zip(missing, self._encode(missing), strict=True))
        for text in dict.fromkeys(texts):
            self._conditions[text] = self._conditions.pop(text)
        kept = [self._conditions[text] for text in texts]
        self._forget(set(texts))
        return {name: torch.stack([row[name] for row in kept]) for name in kept[0]}

    def _forget(self, needed: set[str]) -> None:
        """Drop the least recently used conditions above a budget: ten thousand prompts of a T5 encoder are 27 GB."""
        size = sum(_bytes(condition) for condition in self._conditions.values())
        for text in list(self._conditions):
            if size <= KEPT_CONDITIONS:
                return
            if text not in needed:
                size -= _bytes(self._conditions.pop(text))

    def _mask(self, seeds: Sequence[int], steps: int) -> Tensor:
        kept = max(1, round(steps * self.sampler.train_fraction))
        if kept == steps:
            return torch.ones(len(seeds), steps, dtype=torch.bool)
        orders = [torch.randperm(steps, generator=torch.Generator().manual_seed(int(s) ^ 1)) for s in seeds]
        return torch.stack([order < kept for order in orders])

    def _shared_start(self, group: Tensor, step: int) -> Tensor:
        seeds = [row_seed(self.seed, f"start/{step}/{int(g)}", 0) for g in group]
        return RowNoise(seeds, self.backbone.latent_shape)()


def _bytes(condition: Condition) -> int:
    return sum(value.nbytes for value in condition.values())


def _stack(taken: list[list[Taken]], pick: Callable[[Taken], Tensor]) -> Tensor:
    """Rows of all micro-batches, steps side by side: [B, T, ...]."""
    return torch.cat([torch.stack([pick(step) for step in steps], dim=1) for steps in taken])
