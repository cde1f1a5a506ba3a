"""Wall time of one GRPO-Guard iteration over the time of the bare network calls it cannot do without.

Bare, on the same batch shapes: the text encoders once per prompt, the denoiser's rollout steps without gradient, the decoder, and
forward and backward of the replay; no sampler arithmetic, no record, no scoring, no statistics, no optimizer. `denoiser_only`
compares with the denoiser's calls alone. Timed in turn in one process; medians over pairs.

    python -m benchmarks.image_overhead
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

from studio.dist import Processes  # noqa: E402
from studio.parts import Parts, build_parts  # noqa: E402
from studio.recipe import Recipe, load_recipe  # noqa: E402
from studio.rollout import sample  # noqa: E402
from studio.update import update  # noqa: E402


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--recipe", default="shapes/grpo-guard")
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments.add_argument("overrides", nargs="*")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    recipe, _ = load_recipe(given.recipe, given.overrides)
    parts = build_parts(recipe)
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(folder=folder)
        whole, denoiser, others = [], [], []
        for turn in range(given.rounds + 1):  # the first turn warms up
            whole.append(timed(lambda turn=turn: iterate(recipe, parts, processes, turn)))
            denoiser.append(timed(lambda: denoiser_calls(recipe, parts)))
            others.append(timed(lambda: other_calls(recipe, parts)))
    parts.rewards.close()
    parts.held_out.close()
    turns = list(zip(whole, denoiser, others, strict=True))[1:]
    pairs = [a / (b + c) for a, b, c in turns]
    print(
        json.dumps(
            {
                "overhead": statistics.median(pairs),
                "overhead_range": [min(pairs), max(pairs)],
                "denoiser_only": statistics.median(a / b for a, b, _ in turns),
                "iteration_s": statistics.median(a for a, _, _ in turns),
                "denoiser_s": statistics.median(b for _, b, _ in turns),
                "encoders_and_decoder_s": statistics.median(c for _, _, c in turns),
            }
        )
    )


def iterate(recipe: Recipe, parts: Parts, processes: Processes, step: int) -> None:
    """One whole iteration, as the loop runs it."""
    rollout, _ = sample(recipe, parts, processes, step)
    update(recipe, parts, processes, rollout, parts.policy.model, step=1)  # type: ignore[attr-defined]


@torch.no_grad()
def other_calls(recipe: Recipe, parts: Parts) -> None:
    """Text encoders, one prompt at a time as the loop calls them, and the decoder on every picture."""
    backbone, train = parts.policy.backbone, recipe.train  # type: ignore[attr-defined]
    for number in range(train.groups_per_step):
        backbone.encode([f"two red circles left of {number} blue squares"])
    rows = train.groups_per_step * train.group_size // train.gradient_accumulation_steps
    latents = torch.randn(rows, *backbone.latent_shape, device=parts.policy.device)  # type: ignore[attr-defined]
    for _ in range(train.gradient_accumulation_steps):
        backbone.decode(latents)


def denoiser_calls(recipe: Recipe, parts: Parts) -> None:
    """Only the denoiser: every rollout forward, and the forward and backward of the replay."""
    policy, train = parts.policy, recipe.train
    sampler = recipe.policy.options.sampler
    rows = train.groups_per_step * train.group_size // train.gradient_accumulation_steps
    trained = len(sampler.window.steps(sampler.steps, 0, 0))
    text = "two red circles left of a blue square"
    x = torch.randn(rows, *policy.backbone.latent_shape, device=policy.device)  # type: ignore[attr-defined]
    sigma = torch.full((rows,), 0.5, device=x.device)
    for _ in range(train.gradient_accumulation_steps):
        with torch.no_grad():
            forward = policy.velocity([text] * rows)  # type: ignore[attr-defined]
            for _ in range(sampler.steps):
                forward(x, sigma)
        for _ in range(train.epochs):
            replay = policy.velocity([text] * (rows * trained))  # type: ignore[attr-defined]
            replay(x.repeat_interleave(trained, 0), sigma.repeat_interleave(trained, 0)).square().mean().backward()
    parts.optimizer.zero_grad(set_to_none=True)


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
