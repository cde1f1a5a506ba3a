"""Small made-up runs of all four branches, as training leaves them."""

from __future__ import annotations

import math
from pathlib import Path

from studio.run import Run

DEAD = {"pid": 2**22 + 1, "pid_started": 1}  # no process has this number
RECIPES = {
    "image": {
        "policy": {"name": "denoise", "model": {"id": "bundled"}},
        "algorithm": {"name": "grpo_guard", "clip": 1e-5},
        "prompts": {"name": "shapes"},
        "rewards": {"scene": {"weight": 1.0}},
        "held_out": {"clip": {"weight": 1.0}},
        "train": {"steps": 20},
        "seed": 0,
    },
    "control": {
        "policy": {"name": "policyflow"},
        "algorithm": {"name": "policyflow"},
        "env": {"name": "multigoal"},
        "train": {"steps": 20},
        "seed": 0,
    },
    "text": {
        "policy": {"name": "text", "model": {"id": "bundled"}},
        "algorithm": {"name": "grpo"},
        "prompts": {"name": "tasks"},
        "rewards": {"task": {"weight": 1.0}},
        "train": {"steps": 20},
        "seed": 0,
    },
    "prune": {"criterion": {"name": "end_to_end"}, "model": {"id": "bundled"}, "target": {"params": 0.8}, "seed": 0},
}


def make_run(root: Path, name: str, kind: str = "image", *, steps: int = 20, state: str = "finished", seed: int = 0) -> Run:
    """A run as training leaves it: metrics, events, samples of two steps."""
    run = Run.create(root, name, RECIPES[kind], total_steps=20, command=["studio", "train"])
    metric = {"control": "reward/return", "prune": "prune/error"}.get(kind, "reward/mean")
    for step in range(1, steps + 1):
        values = {metric: math.tanh(step / 10) + 0.01 * seed, "loss/total": 1 / step, "time/step": 0.5, "loss/grad_norm": 0.1}
        if kind == "image":
            values |= {f"ratio/std@{t}": 0.1 * t + step / 100 for t in range(4)} | {f"ratio/above@{t}": 0.02 * t for t in range(4)}
        run.log(step, values)
    for step in (0, steps):
        keep_samples(run, kind, step)
        run.log(step, {"reward/eval.scene": 0.5 + step / 100, "reward/held_out.clip": 0.7, "sample/luminance": 0.4})
    run.status(state, exit_code=0 if state == "finished" else None, **({} if state == "running" else DEAD))
    return run


def keep_samples(run: Run, kind: str, step: int) -> None:
    """Two prompts with one sample each; pictures get brighter with the step."""
    import torch

    records = [
        {
            "prompt_id": f"p{k:03d}",
            "prompt": f"prompt {k}",
            "sample_id": "s00",
            "seed": k,
            "rewards": {"scene": 0.1 * k + step / 100},
        }
        | {"guards": {"luminance": 0.4}, "base": step == 0}
        for k in range(2)
    ]
    texts = [f"answer {k} at step {step}" for k in range(2)]
    run.save_samples(step, texts if kind == "text" else torch.full((2, 3, 16, 16), 0.2 + step / 50), records)
