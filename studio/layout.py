"""Names and places in a run folder: what a run may be called, where its steps lie, and that no path leads out."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from studio.errors import RunError


def check_name(name: str) -> str:
    """The name of a run, as given; RunError unless it is one plain folder name."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name) or name in (".", ".."):
        raise RunError(f"run name: expected 1 to 128 letters, digits, '.', '_', '-', got {name!r}. Use another --name.")
    return name


def default_name(recipe: Mapping[str, Any]) -> str:
    """<date>-<time>_<algorithm or criterion>_<model>_<6 hex>"""
    policy = recipe.get("policy") or recipe.get("model")
    model = policy
    if isinstance(policy, Mapping):
        model = next((policy[key] for key in ("model", "random", "id", "name") if isinstance(policy.get(key), str)), None)
    algorithm = recipe.get("algorithm") or recipe.get("criterion")
    algorithm = algorithm.get("name") if isinstance(algorithm, Mapping) else algorithm
    parts = [_word(algorithm, "run"), _word(model, "model")]
    return "_".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *parts, secrets.token_hex(3)])


def _word(value: Any, otherwise: str) -> str:
    """A value as part of a run name: the last part of a Hub id or path, without odd characters."""
    last = str(value or "").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9.-]+", "-", last).strip(".-")[:40] or otherwise


def numbered(step: int) -> str:
    """The folder name of a step."""
    return f"{int(step):06d}"


def step_folders(folder: Path) -> list[Path]:
    """Folders named by a step, in order of steps; links are not followed."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: int(path.name))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a run that were written to their end, in order of steps."""
    return [path for path in step_folders(folder / "checkpoints") if (path / "COMPLETE").is_file()]


def inside(folder: Path, relative: str) -> Path:
    """A path in a folder; RunError for one that leaves it, by `..` or by a link."""
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{folder}: expected a path inside it, got {relative!r}. Links and '..' may not lead out.")
    return path
