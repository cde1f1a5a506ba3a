"""Speed and memory of one GRPO-Guard iteration on models of full size with random weights: no download is needed.

Cases: SD3.5-M with LoRA r32 at 512 px (10 steps, groups of 24), the same with all weights, FLUX.1-dev with LoRA at 512 px (6
steps), SDXL with LoRA at 1024 px. Reported for each: images per second, seconds of an iteration split into sampling, scoring and
updating, peak memory next to the estimate, model FLOPs utilization, and the ratio of the iteration to the bare network calls it
cannot do without, timed in turn in the same process.

    python -m benchmarks.gpu_image [--case sd35-lora ...] [--rounds 3] [key=value ...]
    python -m benchmarks.gpu_image --tiny        every case at toy size, on a CPU
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

from flows.attention import blank_condition  # noqa: E402
from flows.blueprint import blueprints  # noqa: E402
from flows.memory import estimate, footprint  # noqa: E402
from studio.config import apply_overrides as override  # noqa: E402
from studio.config import build, parse_yaml  # noqa: E402
from studio.dist import Processes  # noqa: E402
from studio.parts import Parts, build_parts  # noqa: E402
from studio.recipe import Recipe  # noqa: E402
from studio.rollout import sample  # noqa: E402
from studio.update import update  # noqa: E402

RECIPE = """
policy:
  name: denoise
  model: {dtype: bfloat16, resolution: 512, text_length: 128, gradient_checkpointing: true}
  sampler: {steps: 10, guidance: 4.5, kernel: flow_sde, level: 0.7}
algorithm: {name: grpo_guard, clip: 4.0e-6}
prompts: shapes
rewards: {jpeg_size: 1.0}
train: {groups_per_step: 2, group_size: 24, gradient_accumulation_steps: 6, split_steps: true, ratio_tolerance: 1.0e+9}
"""
CASES: dict[str, list[str]] = {
    "sd35-lora": ["policy.model.random=sd35-medium"],
    "sd35-full": ["policy.model.random=sd35-medium", "policy.model.train=full", "policy.model.dtype=float32"],
    "flux-lora": [
        "policy.model.random=flux-dev",
        "policy.model.lora={rank: 64, alpha: 128}",
        "policy.model.text_length=512",
        "policy.sampler={steps: 6, guidance: 1.0, level: 0.9}",
    ],
    "sdxl-lora": [
        "policy.model.random=sdxl",
        "policy.model.resolution=1024",
        "policy.sampler={steps: 10, guidance: 5.0, kernel: ddim, level: 1.0}",
        "train.gradient_accumulation_steps=12",
    ],
}
TINY = {"sd35-medium": ("tiny-sd3", 16), "flux-dev": ("tiny-flux", 32), "sdxl": ("tiny-sdxl", 16)}
SMALL = ["train.group_size=2", "train.gradient_accumulation_steps=2", "policy.model.text_length=6", "policy.model.lora.rank=2"]
# dense half-precision tensor throughput of one GPU, operations per second, from the vendors' data sheets
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "B200": 2250e12}


def recipe_of(case: str, overrides: list[str], *, tiny: bool) -> Recipe:
    data = override(parse_yaml(RECIPE, "benchmark"), [*CASES[case], *(["train.mixed_precision=bf16"] if not tiny else [])])
    if tiny:
        name, side = TINY[data["policy"]["model"]["random"]]
        data = override(
            data, [*SMALL, f"policy.model.random={name}", f"policy.model.resolution={side}", "policy.model.dtype=float32"]
        )
    return build(Recipe, override(data, overrides))


def measure(case: str, overrides: list[str], *, tiny: bool, rounds: int) -> dict[str, Any]:
    """One case: iterations and bare calls in turn, the first of each to warm up."""
    recipe = recipe_of(case, overrides, tiny=tiny)
    parts = build_parts(recipe)
    policy: Any = parts.policy
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(mixed_precision=recipe.train.mixed_precision, folder=folder)
        turns: list[dict[str, float]] = []
        for turn in range(rounds + 1):
            seconds = iterate(recipe, parts, processes, turn)
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
            seconds["bare"] = timed(lambda: network_calls(recipe, parts, processes))
            turns.append(seconds)
    parts.rewards.close()
    parts.held_out.close()
    middle = {name: statistics.median(turn[name] for turn in turns[1:]) for name in turns[0]}
    whole = middle["sample"] + middle["score"] + middle["update"]
    pairs = [(turn["sample"] + turn["score"] + turn["update"]) / turn["bare"] for turn in turns[1:]]
    rows = recipe.train.groups_per_step * recipe.train.group_size
    work = operations(recipe)
    return {
        "images_per_s": rows / whole,
        "seconds": {name: middle[name] for name in ("sample", "score", "update")} | {"iteration": whole, "bare": middle["bare"]},
        "over_bare": statistics.median(pairs),
        "over_bare_range": [min(pairs), max(pairs)],
        "peak_memory_gb": None if peak is None else peak / 1e9,
        "estimated_memory_gb": estimated(recipe) / 1e9,
        "teraflops_per_s": work / whole / 1e12,
        "mfu": None if peak_rate() is None else work / whole / peak_rate(),
        "attention": policy.backbone.attention,
        "images": rows,
        "samples_per_part": rows // recipe.train.gradient_accumulation_steps,
    }


def iterate(recipe: Recipe, parts: Parts, processes: Processes, turn: int) -> dict[str, float]:
    """One whole iteration as the loop runs it; scoring runs beside sampling, so only the wait for it counts."""
    began = time.perf_counter()
    batch, timing = sample(recipe, parts, processes, turn)
    synchronize()
    middle = time.perf_counter()
    update(recipe, parts, processes, batch, parts.policy.model, step=1)  # type: ignore[attr-defined]
    synchronize()
    score = timing["time/reward_wait"]
    return {"sample": middle - began - score, "score": score, "update": time.perf_counter() - middle}


def network_calls(recipe: Recipe, parts: Parts, processes: Processes) -> None:
    """Only the network, on the same batch shapes: every forward of the rollout, every forward and backward of the replay."""
    policy: Any = parts.policy
    backbone, sampler, train = policy.backbone, recipe.policy.options.sampler, recipe.train
    rows = train.groups_per_step * train.group_size // train.gradient_accumulation_steps * (2 if sampler.guidance > 1 else 1)
    trained = len(sampler.window.steps(sampler.steps, 0, 0))
    tokens = blueprints()[recipe.policy.options.model.random].text_tokens(recipe.policy.options.model.text_length)
    condition = blank_condition(policy.model, rows, tokens)
    x = torch.randn(rows, *backbone.latent_shape, device=policy.device)
    sigma = torch.full((rows,), 0.5, device=policy.device)
    for _ in range(train.gradient_accumulation_steps):
        with torch.no_grad(), processes.autocast():
            for _ in range(sampler.steps):
                backbone.velocity(x, sigma, condition)
        for _ in range(trained):
            with processes.autocast():
                answer = backbone.velocity(x, sigma, condition)
            answer.float().square().mean().backward()
    parts.optimizer.zero_grad(set_to_none=True)


def operations(recipe: Recipe) -> float:
    """Model operations of an iteration: a forward a rollout step; a forward and its backward a trained step, which costs once
    more for the inputs' gradients and, when all weights train, once more for theirs. Recomputation is not counted."""
    model, calls = recipe.policy.options.model, recipe.policy.options.forwards()
    cost = footprint(model, blueprints()[model.random], recipe.train.mixed_precision != "no")
    rows = recipe.train.groups_per_step * recipe.train.group_size
    return rows * cost.flops * (calls["rollout"] + calls["replay"] * (3 if model.train == "full" else 2))


def estimated(recipe: Recipe) -> float:
    train, options = recipe.train, recipe.policy.options
    rows = train.groups_per_step * train.group_size
    found = estimate(
        options.model,
        options.sampler,
        samples=rows,
        part=rows // train.gradient_accumulation_steps,
        average=train.ema > 0,
        reference=False,
        half=train.mixed_precision != "no",
        split_steps=train.split_steps,
    )
    return found.total if found else float("nan")


def peak_rate() -> float | None:
    """The data sheet's figure for this GPU; None for others and on a CPU."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((rate for part, rate in PEAK.items() if part in name), None)


def timed(work: Callable[[], None]) -> float:
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--case", action="append", choices=list(CASES), help="repeat for several; default: all")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--tiny", action="store_true")
    arguments.add_argument("overrides", nargs="*")
    given = arguments.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {"device": device, "torch": torch.__version__, "tiny": given.tiny}
    for case in given.case or CASES:
        try:
            results[case] = measure(case, given.overrides, tiny=given.tiny, rounds=given.rounds)
        except torch.OutOfMemoryError as error:  # the other cases are still worth their figures
            results[case] = {"error": str(error).splitlines()[0]}
        gc.collect()
        torch.cuda.empty_cache()
        print(case, json.dumps(results[case]), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
