"""The card that lies beside a bundled language model and says how it was made and what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from studio.text import world

PACKAGES = ("torch", "transformers", "tokenizers")


class About(NamedTuple):
    """What is said of one model and not of another."""

    tag: str  # the Hub's pipeline tag
    title: str
    what: str
    name: str  # of `studio pretrain`
    use: str


def write_card(folder: Path, about: About, settings: Any, rates: Mapping[str, Mapping[int, float]], seconds: float) -> None:
    """README.md of the weights: their making, pass rates, settings, versions and limits. A pure function of its arguments."""
    settled = {name: value for name, value in asdict(settings).items() if name not in ("weights", "levels")}
    rows = "\n".join(f"| {name} | {value} |" for name, value in settled.items())
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    levels = [f"level {level}" for level in world.LEVELS]
    passed = "\n".join(
        f"| {task} | {settings.weights[task]:g} | {', '.join(map(str, settings.levels[task]))} | "
        + " | ".join(f"{found[level]:.2f}" for level in world.LEVELS)
        + " |"
        for task, found in rates.items()
    )
    (folder / "README.md").write_text(
        f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: {about.tag}
---

# {about.title}

{about.what}

It was trained from random weights by `studio pretrain {about.name}`, on problems and solutions made by `studio/text/world.py`; no
data and no weights from elsewhere. Problems whose hash falls into the held-out eighth were never seen. Made in
{seconds / 60:.0f} minutes with {versions}.

{about.use}

Share of completions at temperature 1 that are right, on {settings.test} held-out problems of each kind; levels that it was not
trained on are there to be learned:

| task | share of the training problems | levels trained | {" | ".join(levels)} |
|---|---|---|{"---|" * len(levels)}
{passed}

| setting | value |
|---|---|
{rows}

Limits: it knows nothing but these tasks and no character beyond ASCII. License: Apache-2.0, as the project.
""",
        encoding="utf-8",
    )
