"""Two sides beside each other as HTML: what changed in the mean, where the recipes differ, every pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from studio.chart import number
from studio.config import ABSENT, differences
from studio.page import plain
from ui.pairs import GUARD, HELD_OUT, Difference, Pair, Side, delta, ordered, scores, text_of, unmatched
from ui.pairs import differences as changes
from ui.served import address

SHOWN = 60  # pairs on the page


def report(first: Side, second: Side, pairs: Sequence[Pair], name: str | None, order: str) -> str:
    """Everything under the choices: how many samples match, differences in the mean, recipes, and the pairs themselves."""
    if (first.name, first.step) == (second.name, second.step) and first.step is not None:
        why = "Both sides are the same samples. Choose another run or another step on one side."
        return f'<div class="empty"><h2>Nothing to compare</h2><p>{why}</p></div>'
    recipes = recipe_table(first, second)
    if not pairs:
        return f'<div class="empty"><h2>No samples match</h2><p>{escape(unmatched(first, second))}</p></div>{recipes}'
    count = matched(len(pairs), len(first.records()), len(second.records()))
    once = first.kind == "control"
    means, listed = mean_table(first, second, changes(pairs), once), cards(pairs, name, order, first, second)
    return f'<p class="soft">{count}</p>{means}{recipes}{listed}'


def matched(count: int, left: int, right: int) -> str:
    """How many samples of both sides belong together."""
    if count == left == right:
        return f"All {count} samples have the same prompt, number and seed on both sides."
    return f"{count} samples have the same prompt, number and seed on both sides, of {left} on the first and {right} on the second."


def mean_table(first: Side, second: Side, found: Sequence[Difference], once: bool) -> str:
    """A row for each score; `once` is for scores of whole evaluations, whose pairs are no repetitions."""
    names = ("score", first.title, second.title, "difference", "second wins", "pairs")
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    rows = "".join(_mean_row(difference, once, names[1:]) for difference in found)
    note = (
        "Scores are those of the whole evaluation behind each picture."
        if once
        else "Difference: mean of second − first over the pairs ± its standard error. Second wins: share of pairs in which it is "
        "higher, ties half."
    )
    return (
        f'<div class="wide"><table class="plain scores"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="soft">{note}</p>'
    )


def label(name: str) -> str:
    """The name of a score, with what kind it is where that is not a trained reward."""
    for start, kind in ((GUARD, "guard"), (HELD_OUT, "held out")):
        if name.startswith(start):
            return f"{escape(name.removeprefix(start))} <i>{kind}</i>"
    return escape(name)


def _mean_row(found: Difference, once: bool, titles: Sequence[str]) -> str:
    guard = found.name.startswith(GUARD)
    tone = "" if guard or once or not found.clear else "up" if found.change > 0 else "down"
    loses = found.count - found.wins - found.ties
    wins = "–" if guard or once else f"{found.rate:.0%}<small>{found.wins} · {found.ties} ties · {loses}</small>"
    change, count = told(found.change, None if once else found.error), "–" if once else found.count
    values = [number(found.first), number(found.second), change, wins, count]
    tones = ["", "", f"change {tone}", "wins none" if wins == "–" else "wins", "count"]
    cells = "".join(
        f'<td class="{tone}" data-label="{escape(title)}">{value}</td>'
        for tone, title, value in zip(tones, titles, values, strict=True)
    )
    return f"<tr><th scope=row>{label(found.name)}</th>{cells}</tr>"


def told(change: float, error: float | None = None) -> str:
    """A difference with its sign, and with its standard error to two digits, to which the difference is rounded as well."""
    if not error:
        return number(change, "+") if change else "0"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{change:+.{digits}f} ± {error:.{digits}f}".replace("-", "−") if digits < 8 else number(change, "+")


def recipe_table(first: Side, second: Side) -> str:
    """Where two recipes differ."""
    if first.name == second.name:
        return ""
    found = differences(first.recipe, second.recipe)
    if not found:
        return '<p class="soft">The two recipes are the same.</p>'
    rows = "".join(f"<tr><th scope=row>{escape(path)}</th><td>{_value(x)}</td><td>{_value(y)}</td></tr>" for path, x, y in found)
    head = f"<th scope=col>setting</th><th scope=col>{escape(first.name)}</th><th scope=col>{escape(second.name)}</th>"
    return (
        f"<details class=card><summary>{len(found)} settings differ between the recipes</summary>"
        f'<div class="wide"><table class="plain settings"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</details>"
    )


def _value(value: Any) -> str:
    return '<span class="soft">not there</span>' if value is ABSENT else escape(plain(value))


def cards(pairs: Sequence[Pair], name: str | None, order: str, first: Side, second: Side) -> str:
    """The pairs, each with its two samples and scores."""
    shown = ordered(pairs, name, order)[:SHOWN]
    inner = "".join(_card(pair, name, first, second) for pair in shown)
    rest = f'<p class="soft">The first {SHOWN} of {len(pairs)} pairs in this order.</p>' if len(pairs) > SHOWN else ""
    return f'<div class="duos">{inner}</div>{rest}'


def _card(pair: Pair, name: str | None, first: Side, second: Side) -> str:
    change = None if name is None else delta(pair, name)
    tone = "up" if (change or 0) > 0 else "down" if (change or 0) < 0 else ""
    badge = "" if change is None else f'<b class="{tone}">{told(change)}</b>'
    halves = "".join(
        f"<figure><figcaption>{title}</figcaption>{sample(side, record, title)}{_scores(record, name)}</figure>"
        for side, record, title in ((first, pair.first, _half(first, second)), (second, pair.second, _half(second, first)))
    )
    return (
        f'<article class="duo"><header><h3>{escape(pair.prompt)}</h3>{badge}</header><div class="halves">{halves}</div></article>'
    )


def _half(side: Side, other: Side) -> str:
    """The shortest name that tells a side from the other."""
    return f"step {side.step}" if side.name == other.name else escape(side.name)


def sample(side: Side, record: Mapping[str, Any], title: str) -> str:
    """A picture or a text of a run."""
    text = text_of(record)
    if text is not None:
        return f"<pre>{escape(text)}</pre>"
    small = max(record.get("width") or 0, record.get("height") or 0) <= 128
    source = address(side.view, record["file"])
    return f'<img loading=lazy class="{"pixel" if small else ""}" alt="Sample of {title}" src="{source}">'


def _scores(record: Mapping[str, Any], name: str | None) -> str:
    """The scores of a sample, the one that orders first."""
    found = {key: value for key, value in scores(record).items() if not key.startswith(GUARD) or key == name}
    keys = sorted(found, key=lambda key: key != name)
    return "".join(f"<small><span>{label(key)}</span> <b>{number(found[key])}</b></small>" for key in keys)
