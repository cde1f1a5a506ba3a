"""Alignment Studio: one loop that aligns image, control and text policies, and prunes them.

The names below load on first use, so that `import studio` does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "Credit": "studio.types",
    "Evaluation": "studio.types",
    "Objective": "studio.core.loss",
    "Prompts": "studio.types",
    "Rollout": "studio.types",
    "Scores": "studio.types",
    "StudioError": "studio.errors",
    "assign_credit": "studio.core.loss",
    "check_fit": "studio.core.loss",
    "policy_loss": "studio.core.loss",
}

__all__ = list(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'studio' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
