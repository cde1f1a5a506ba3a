"""What a run measured on held-out prompts, before and after: of the trained reward, of gold, of the guards."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from studio.run import RunView

KINDS: dict[str, Literal["proxy", "gold", "guard"]] = {"reward/eval.": "proxy", "reward/held_out.": "gold"}


class Row(NamedTuple):
    """One quantity: a proxy is trained on, gold never is, a guard is no reward at all."""

    name: str
    kind: Literal["proxy", "gold", "guard"]
    before: float | None  # of the untouched base
    after: float | None


def results(view: RunView, step: int, *, averaged: bool = True) -> list[Row]:
    """From summary.json when it speaks of this step's averaged weights, else from the last evaluation up to `step`."""
    summary = view.summary
    newest = max(view.checkpoints(), default=step)
    if summary and averaged and summary.get("step", newest) == step:
        return _of_summary(summary, gold=set(view.recipe.get("held_out") or {}))
    return _of_metrics([record for record in view.metrics().records if record["step"] <= step])


def _of_summary(summary: dict[str, Any], gold: set[str]) -> list[Row]:
    before, after = summary["before"], summary["after"]
    rows = [Row(n, "gold" if n in gold else "proxy", before[n], after.get(n)) for n in before if n != "guards"]
    return rows + [Row(n, "guard", value, after["guards"].get(n)) for n, value in before["guards"].items()]


def _of_metrics(records: list[dict[str, Any]]) -> list[Row]:
    """`sample/*` of the evaluated steps are the guards; only evaluations have both."""
    evaluated = [record for record in records if any(key.startswith(tuple(KINDS)) for key in record)]
    if not evaluated or evaluated[0]["step"] != 0:
        return []
    base, last, rows = evaluated[0], evaluated[-1], []
    for key in base:
        start = next((start for start in KINDS if key.startswith(start)), None)
        if start is not None:
            rows.append(Row(key.removeprefix(start), KINDS[start], base[key], last.get(key)))
        elif key.startswith("sample/") and "@" not in key:
            rows.append(Row(key.removeprefix("sample/"), "guard", base[key], last.get(key)))
    return sorted(rows, key=lambda row: ("proxy", "gold", "guard").index(row.kind))
