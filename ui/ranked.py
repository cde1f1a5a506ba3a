"""Scores of samples as HTML: how far each reward has come, and the table that ranks."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

from studio.chart import number
from ui.given import Sample
from ui.index import duration
from ui.judged import MEAN_RANK, Outcome, Reward, as_csv, columns, mean_ranks, ranking

SORT = """
element.addEventListener('click', event => {
  const head = event.target.closest('[data-by]');
  if (head) trigger('select', {by: head.dataset.by});
});
"""


def facts(rewards: Sequence[Reward]) -> str:
    """What is known of the rewards that are chosen."""
    if not rewards:
        return '<p class="soft">Choose one or several rewards.</p>'
    rows = "".join(
        f"<div><dt>{escape(reward.name)}</dt><dd>{_told(reward.told)}<small>License: {escape(reward.license)}"
        f"{f'; needs alignment-studio[{escape(reward.extra)}]' if reward.extra else ''}</small></dd></div>"
        for reward in rewards
    )
    return f"<dl>{rows}</dl>"


def _told(line: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(line))


def progress(outcomes: Sequence[Outcome]) -> str:
    """A line for each reward: waiting, at work, done, or what went wrong and how to mend it."""
    return f'<ul class="outcomes" aria-live="polite">{"".join(map(_line, outcomes))}</ul>' if outcomes else ""


def _line(outcome: Outcome) -> str:
    label, told, problem = "waiting", "", ""
    if outcome.problem:
        label, problem = "failed", f"<p>{escape(outcome.problem)}</p>"
    elif outcome.columns:
        present = [value for value in outcome.columns.get(outcome.reward, ()) if value is not None]
        mean = f"mean {number(sum(present) / len(present))}" if present else "no sample has a score"
        missing = len(outcome.columns.get(outcome.reward, ())) - len(present)
        label, told = "finished", f"{mean}{f', {missing} without a score' if missing else ''} · "
    elif outcome.seconds is not None:
        label = "running"
    seconds = "" if outcome.seconds is None else duration(outcome.seconds)
    title = {"finished": "done", "running": "at work"}.get(label, label)
    state = f'<span class="state {label}">{title}</span>'
    return f"<li>{state} <b>{escape(outcome.reward)}</b> <span>{told}{seconds}</span>{problem}</li>"


def table(samples: Sequence[Sample], outcomes: Sequence[Outcome], by: str, prompted: bool) -> str:
    """All samples, best first by one of the columns, with the scores as bars; empty before the first answer."""
    found = columns(outcomes)
    if not found:
        return ""
    several = sum(outcome.reward in outcome.columns for outcome in outcomes) > 1
    names = [*([MEAN_RANK] if several else []), *found]
    by, means = by if by in names else names[0], mean_ranks(outcomes)
    spans = {name: _span(values) for name, values in found.items()}
    body = []
    for place, rank in ranking(outcomes, by):
        cells = "".join(_cell(name, values[place], *spans[name]) for name, values in found.items())
        mean = f'<td class="score" data-label="{MEAN_RANK}">{number(means[place])}</td>' if several else ""
        body.append(f"<tr><td class=rank>{rank or '–'}</td>{_sample(samples[place], prompted)}{mean}{cells}</tr>")
    head = "".join(_head(name, name == by) for name in names)
    csv = base64.b64encode(as_csv(samples, outcomes).encode()).decode()
    return (
        '<div class="wide"><table class="plain ranking"><thead><tr><th scope=col>rank</th><th scope=col>sample</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f'<p><a class="button" download="scores.csv" href="data:text/csv;base64,{csv}">Download as CSV</a></p>'
    )


def _head(name: str, chosen: bool) -> str:
    sort, mark = (" aria-sort=descending", " ▾") if chosen else ("", "")
    title = f"Rank by {escape(name)}"
    return f'<th scope=col{sort}><button type=button data-by="{escape(name)}" title="{title}">{escape(name)}{mark}</button></th>'


def _span(values: Sequence[float | None]) -> tuple[float, float]:
    present = [value for value in values if value is not None]
    return (min(0.0, *present), max(present)) if present else (0.0, 0.0)


def _cell(name: str, value: float | None, low: float, high: float) -> str:
    share = 0.0 if value is None or high <= low else (value - low) / (high - low)
    bar = f'<i style="width:{100 * share:.0f}%" aria-hidden=true></i>'
    return f'<td class="score" data-label="{escape(name)}">{number(value)}{bar}</td>'


def _sample(sample: Sample, prompted: bool) -> str:
    name = escape(sample.name)
    prompt = f"<small>{escape(sample.prompt)}</small>" if prompted and sample.prompt else ""
    if sample.picture:
        seen = f'<img class="{"pixel" if sample.small else ""}" src="{sample.picture}" alt="{name}">'
        return f"<th scope=row><div>{seen}<span>{name}{prompt}</span></div></th>"
    return f"<th scope=row><div><span><q>{escape(sample.text)}</q><small>{name}</small>{prompt}</span></div></th>"
