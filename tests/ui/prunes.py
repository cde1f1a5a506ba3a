"""Prune runs as `studio prune` leaves them, made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from studio.run import Run

RECIPE = {
    "prompts": {"name": "shapes"},
    "criterion": {"name": "taylor"},
    "target": {"params": 0.8, "flops": None, "latency": None},
    "model": {"id": "shapes"},
    "sites": {"kinds": ["heads", "neurons"]},
    "seed": 0,
}
DENSE = 0.8  # the reward of the dense network


def make_prune(
    root: Path, name: str, *, kept: float, error: float, reward: float, time: float = 1.0, criterion: str = "taylor", **more: Any
) -> Run:
    """A finished run with a summary, two pairs of pictures, and the mark of a pruned network."""
    run = Run.create(root, name, {**RECIPE, "criterion": {"name": criterion}}, total_steps=0, command=["studio", "prune"])
    stages = [
        {"name": "dense", "params": 1000, "latent_error": 0.0, "rewards": {"scene": DENSE}, "flops": 100.0, "seconds": 0.01},
        {
            "name": "cut",
            "params": int(1000 * kept),
            "latent_error": error,
            "rewards": {"scene": reward},
            "flops": None,
            "seconds": None,
        },
    ]
    groups = [
        {"name": "transformer_blocks.0.attn", "kind": "heads", "units": 4, "kept": 3},
        {"name": "transformer_blocks.1.ff", "kind": "neurons", "units": 8, "kept": 0},
    ]
    summary = {"prompts": 2, "before": {"scene": DENSE, "guards": {}}, "after": {"scene": reward, "guards": {}}, "seconds": 1.0}
    summary |= {"params_kept": kept, "flops_kept": kept, "latency_ratio": time, "latent_error": error}
    run.summary({**summary, "stages": stages, "groups": groups, **more})
    for step, scenes in ((0, (0.5, 0.5)), (1, (0.4, 0.9))):
        records = [
            {"prompt_id": f"p{k:03d}", "prompt": f"prompt {k}", "sample_id": "s00", "seed": k, "rewards": {"scene": scenes[k]}}
            for k in range(2)
        ]
        run.save_samples(step, torch.full((2, 3, 16, 16), 0.3 + step / 3), records)
    (run.folder / "pruned").mkdir()
    (run.folder / "pruned" / "pruning.json").write_text(json.dumps({}))
    run.status("finished", exit_code=0)
    return run
