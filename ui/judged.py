"""Rewards of the zoo over what was given: one `studio score` after the other, what they answered, and who ranks where."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studio.chart import is_number
from studio.registry import lookup, names
from ui import spawn
from ui.given import Given, Sample

NOT_HERE = ("function", "remote")  # nothing without options; a function is code of this machine
PATIENCE_S = 900.0  # for one reward, with the fetching of its weights
MEAN_RANK = "mean rank"


@dataclass(frozen=True)
class Reward:
    """A reward that can be chosen."""

    name: str
    reads: str  # image or text
    told: str  # its formula in a line
    license: str
    extra: str | None  # of the installation, without which it is refused


def offered() -> list[Reward]:
    """The zoo without what needs options; loads no model and no torch."""
    return [_facts(name) for name in names("reward") if name not in NOT_HERE]


def _facts(name: str) -> Reward:
    found = lookup("reward", name)
    line = (found.__doc__ or "").strip().splitlines()[0]
    return Reward(name, found.reads, line, str(found().license), getattr(found.facts, "extra", None))


@dataclass(frozen=True)
class Outcome:
    """How far a reward has come: at work while it has neither columns nor a problem."""

    reward: str
    seconds: float | None = None  # None = not begun
    columns: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)  # the reward and its parts [N], None = missing
    problem: str = ""  # what it said instead, with the remedy


def judge(given: Given, rewards: Sequence[str], scratch: Path) -> Iterator[list[Outcome]]:
    """The outcomes of all rewards, again and again until the last has one; a reader that leaves ends what is at work."""
    outcomes = [Outcome(name) for name in rewards]
    for k, name in enumerate(rewards):
        for outcome in _one(given, name, scratch):
            outcomes[k] = outcome
            yield list(outcomes)


def _one(given: Given, name: str, scratch: Path) -> Iterator[Outcome]:
    began, files = time.monotonic(), [scratch / "said.out", scratch / "said.err"]
    with open(files[0], "wb") as out, open(files[1], "wb") as err:
        child = subprocess.Popen(
            spawn.command("score", name, str(given.place), "--json"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, "NO_COLOR": "1"},
            start_new_session=True,
        )
        try:
            while child.poll() is None and time.monotonic() - began < PATIENCE_S:
                yield Outcome(name, time.monotonic() - began)
                time.sleep(0.3)
        finally:
            if late := child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    took = time.monotonic() - began
    if late:
        yield Outcome(name, took, problem=f"It was stopped after {PATIENCE_S / 60:g} minutes. Use `studio score` in a terminal.")
        return
    said, wrong = (file.read_text("utf-8", "replace") for file in files)
    yield replace(answered(name, child.returncode, said, wrong, given), seconds=took)


def answered(name: str, code: int, said: str, wrong: str, given: Given) -> Outcome:
    """What `studio score --json` answered: its columns, or its problem in the words of the command."""
    if code == 0:
        line = next((line for line in reversed(said.splitlines()) if line.startswith("{")), "{}")
        rows = json.loads(line).get("files", [])
        if len(rows) == len(given.samples):
            parts = [key for key in rows[0] if key != "file"]
            return Outcome(name, columns={part: tuple(_score(row.get(part)) for row in rows) for part in parts})
        return Outcome(name, problem=f"It answered for {len(rows)} of {len(given.samples)} samples.")
    last = (wrong.strip().splitlines() or ["It ended without a word."])[-1]
    place = given.place.parent if given.place.is_file() else given.place
    text = last.partition("Error: ")[2] or last
    return Outcome(name, problem=f"{text.replace(str(place) + '/', '').replace(str(place), 'your files')} (exit code {code})")


def _score(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def columns(outcomes: Sequence[Outcome]) -> dict[str, tuple[float | None, ...]]:
    """All scores by name."""
    return {part: values for outcome in outcomes for part, values in outcome.columns.items()}


def ranks(values: Sequence[float | None]) -> list[int | None]:
    """1 for the highest; equal ones share the better rank, missing ones have none."""
    present = [value for value in values if value is not None]
    return [None if value is None else 1 + sum(other > value for other in present) for value in values]


def mean_ranks(outcomes: Sequence[Outcome]) -> list[float | None]:
    """The mean over rewards (not their parts) of each sample's rank; None where a reward has no score."""
    each = [ranks(outcome.columns[outcome.reward]) for outcome in outcomes if outcome.reward in outcome.columns]
    return [None if None in row else statistics.fmean(row) for row in zip(*each, strict=True)]  # type: ignore[arg-type]


def ranking(outcomes: Sequence[Outcome], by: str) -> list[tuple[int, int | None]]:
    """(position, rank) of every sample, best first, by a score or by the mean rank; those without one last."""
    found = columns(outcomes)
    if by == MEAN_RANK:
        values: Sequence[float | None] = [None if rank is None else -rank for rank in mean_ranks(outcomes)]
    else:
        values = found.get(by, ())
    placed = ranks(values)
    return sorted(enumerate(placed), key=lambda pair: (pair[1] is None, pair[1] or 0, pair[0]))


def as_csv(samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> str:
    """A line for each sample, as given; text that a spreadsheet would take for a formula is quoted."""
    found, out = columns(outcomes), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "prompt", "text", *found])
    for k, sample in enumerate(samples):
        words = [_harmless(word) for word in (sample.name, sample.prompt, sample.text)]
        writer.writerow([*words, *("" if values[k] is None else values[k] for values in found.values())])
    return out.getvalue()


def _harmless(word: str) -> str:
    return f"'{word}" if word.startswith(("=", "+", "-", "@", "\t", "\r")) else word
