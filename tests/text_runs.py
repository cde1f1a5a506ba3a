"""Runs of a tiny language model on disk, for tests of the loop: recipes, and what a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_lm import tiny_lm, tiny_tokenizer

from studio.config import apply_overrides, build
from studio.recipe import Recipe

STEPS = 3


def digits(samples, prompts):
    """The share of digits in a completion."""
    return torch.tensor([sum(c.isdigit() for c in text) / max(1, len(text)) for text in samples])


def prepared(root: Path) -> Path:
    """A folder with a model and a list of prompts."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "model").is_dir():
        tiny_lm().save_pretrained(root / "model")
        tiny_tokenizer().save_pretrained(root / "model")
        lines = [json.dumps({"prompt": f"{a}+{b}=", "answer": a + b}) for a in range(4) for b in (3, 40)]
        (root / "prompts.jsonl").write_text("\n".join(lines))
    return root


def text_recipe(root: Path, *overrides: str) -> Recipe:
    prepared(root)
    data = {
        "policy": {"name": "text", "model": {"id": str(root / "model")}, "sampling": {"limit": 10}},
        "algorithm": "grpo",
        "prompts": {"name": "file", "train": str(root / "prompts.jsonl"), "test": str(root / "prompts.jsonl")},
        "rewards": {"function": {"weight": 1.0, "target": "text_runs:digits", "reads": "text"}},
        "train": {
            "steps": STEPS,
            "groups_per_step": 4,
            "group_size": 4,
            "epochs": 2,
            "learning_rate": 1e-3,
            "adam_epsilon": 1e-5,
            "ema": 0.5,
            "ratio_tolerance": 1e-5,
            "checkpointing_steps": 2,
        },
        "watch": {"every": 2, "prompts": 4, "samples": 2},
    }
    return build(Recipe, apply_overrides(data, list(overrides)))
