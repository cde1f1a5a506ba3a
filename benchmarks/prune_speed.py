"""Latency of a sliced network over the dense one against the ratio of their operations, with widths as they fall and aligned.

Random weights and a random order of units: speed does not depend on which. By default a transformer of SD3's kind that a CPU
can time; --case takes models of full size, for a GPU, and then also measures the memory of one mask update with recompute.
Dense and sliced are timed in turns, medians.

    python -m benchmarks.prune_speed
    python -m benchmarks.prune_speed --case sdxl sd35-medium flux-dev --rows 1 4 --resolution 1024 --update 28 50
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

from flows.attention import blank_condition  # noqa: E402
from flows.blueprint import Blueprint, blueprints, random_pipeline  # noqa: E402
from flows.denoise import denoise  # noqa: E402
from flows.load import Model, wrap  # noqa: E402
from flows.trace import trace  # noqa: E402
from pruning.budget import Budget  # noqa: E402
from pruning.gating import gated  # noqa: E402
from pruning.sites import find_groups  # noqa: E402
from pruning.surgery import cut  # noqa: E402

MEDIUM = {"num_layers": 6, "num_attention_heads": 12, "caption_projection_dim": 768, "dual_attention_layers": [], "sample_size": 32}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--case", nargs="*", default=["cpu"])
    arguments.add_argument("--shares", nargs="*", type=float, default=[0.9, 0.8, 0.7, 0.5])
    arguments.add_argument("--align", nargs="*", type=int, default=[1, 64])
    arguments.add_argument("--rows", nargs="*", type=int, default=[1])
    arguments.add_argument("--resolution", type=int)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments.add_argument("--update", nargs="*", type=int, default=[], help="denoising steps of one mask update, on a GPU")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps({case: measured(case, given) for case in given.case}))


def measured(case: str, given: argparse.Namespace) -> dict[str, Any]:
    """One row per share, alignment and batch size; and peak bytes of mask updates."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    backbone = wrap(random_pipeline(blueprint(case), device=device, dtype=dtype, seed=0), Model(resolution=given.resolution))
    network = backbone.network.eval().requires_grad_(False)
    groups = [group for group in find_groups(network) if group.kind in ("heads", "neurons")]
    tokens = blueprint(case).text_tokens(128)
    rows = []
    updates = {str(steps): update_peak(backbone, groups, tokens, steps) for steps in given.update if device == "cuda"}
    for share in given.shares:
        for align in given.align:
            smaller = copy.deepcopy(network)
            budget = budget_of(network, groups, share, align)
            kept = budget.keep({group.name: torch.rand(group.units, generator=seeded(group.name)) for group in groups})
            cut(smaller, groups, kept)
            for count in given.rows:
                calls = [call(backbone, net, count, tokens, device) for net in (network, smaller)]
                dense, sliced = (trace(net, own).flops for net, own in zip((network, smaller), calls, strict=True))
                times = in_turns(calls, given.rounds)
                ratio = times[1] / times[0]
                rows.append(
                    {
                        "params_kept": round(budget.remaining({k: len(v) for k, v in kept.items()}), 4),
                        "align": align,
                        "rows": count,
                        "flops_kept": round(sliced / dense, 4),
                        "latency_ratio": round(ratio, 4),
                        "dense_ms": round(1000 * times[0], 2),
                    }
                )
    return {"device": device, "threads": given.threads, "rows": rows, "update_peak_gb": updates}


def blueprint(case: str) -> Blueprint:
    if case != "cpu":
        return blueprints()[case]
    medium = blueprints()["sd35-medium"]
    return dataclasses.replace(medium, config={**medium.config, **MEDIUM})


def budget_of(network: torch.nn.Module, groups: list[Any], share: float, align: int) -> Budget:
    whole = float(sum(p.numel() for p in network.parameters()))
    return Budget(groups, {group.name: float(group.params) for group in groups}, whole, share, "layer", align=align)


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, name)))


def call(backbone: Any, network: torch.nn.Module, rows: int, tokens: int, device: str) -> Any:
    """One forward of `network` in the place of the backbone's own."""
    x = torch.randn((rows, *backbone.latent_shape), generator=torch.Generator().manual_seed(0)).to(device)
    condition = blank_condition(backbone.network, rows, tokens)

    def forward() -> Any:
        backbone.network = network
        with torch.no_grad():
            return backbone.velocity(x, x.new_full((rows,), 0.5), condition)

    return forward


def in_turns(calls: list[Any], rounds: int) -> list[float]:
    """Median seconds of each, one after the other in every round; two rounds warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 2):
        for own, kept in zip(calls, times, strict=True):
            _wait()
            began = time.perf_counter()
            own()
            _wait()
            if turn >= 2:
                kept.append(time.perf_counter() - began)
    return [statistics.median(each) for each in times]


def update_peak(backbone: Any, groups: list[Any], tokens: int, steps: int) -> float:
    """Peak GB of one gradient of all gates through `steps` denoising steps with recompute, one row, blocks checkpointed."""
    backbone.network.enable_gradient_checkpointing()
    gates = {group.name: torch.full((group.units,), 0.9, device="cuda", requires_grad=True) for group in groups}
    condition = blank_condition(backbone.network, 1, tokens)
    x = torch.randn((1, *backbone.latent_shape), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    with gated(backbone.network, groups, gates):
        velocity, through = lambda x, sigma: backbone.velocity(x, sigma, condition), list(gates.values())
        made = denoise(velocity, x, backbone.sigmas(steps), remember=False, through=through)
        (made**2).mean().backward()
    backbone.network.disable_gradient_checkpointing()
    return round(torch.cuda.max_memory_allocated() / 1e9, 2)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
