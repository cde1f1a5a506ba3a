"""What stands below the curves of a run: what happened to it, what its process says, its recipe."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.page import plain
from studio.run_view import RunView
from ui.sections import fold

LINES, TAIL = 200, 131_072  # of a log that are shown, and bytes that are read for them
EVENTS = 200  # at most
GRAVE = ("alarm", "warning", "not_finite")  # kinds of events that stand in front, the worst first
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def recipe_section(view: RunView, recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """recipe.yaml with every default, a line each, and where the recipes of runs that are compared differ."""
    path = view.file("recipe.yaml")
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    if not text:
        return fold("recipe", "Recipe", '<p class="soft">recipe.yaml is missing.</p>', shut=True)
    lines = "".join(f'<span data-path="{escape(where)}">{escape(line)}\n</span>' for where, line in paths(text))
    field = (
        '<label class="filter">Filter <input type="search" data-filter placeholder="learning_rate, clip, sampler …" '
        'autocomplete="off" spellcheck="false"></label>'
    )
    body = f'{_differences(recipes)}<div class="card code">{field}<pre>{lines}</pre></div>'
    return fold("recipe", "Recipe", body, "with every default", shut=len(recipes) < 2)


def paths(text: str) -> list[tuple[str, str]]:
    """Lines of YAML with the dotted path of what they say: ("train.steps", "  steps: 40")."""
    found, stack = [], []
    for line in text.splitlines():
        start = re.match(r" *(?:- )*", line).end()  # type: ignore[union-attr]
        key = re.match(r"([^\s:#][^:]*):(?:\s|$)", line[start:])
        indent = len(line) - len(line.lstrip(" "))
        depth = start if key else indent + line[indent:].startswith("-")  # items of a list stand as deep as its name
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if key:
            stack.append((depth, key[1].strip("'\"")))
        found.append((".".join(name for _, name in stack), line))
    return found


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted paths of a recipe with what stands there."""
    if isinstance(value, dict) and value:
        return {
            key: each for name, part in value.items() for key, each in flat(part, f"{path}.{name}" if path else str(name)).items()
        }
    return {path: value}


def differences(recipes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Dotted paths that do not stand alike in all recipes -> what stands in each."""
    tables = [flat(dict(recipe)) for recipe in recipes.values()]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, [plain(table[key]) if key in table else "–" for table in tables]) for key in keys]
    return [(key, cells) for key, cells in rows if len(set(cells)) > 1]


def _differences(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    if len(recipes) < 2:
        return ""
    rows = differences(recipes)
    if not rows:
        return '<p class="soft">The recipes of these runs are the same.</p>'
    top = "".join(f"<th scope=col>{escape(name)}</th>" for name in ("differs", *recipes))
    cells = [(key, "".join(f"<td>{escape(cell)}</td>" for cell in row)) for key, row in rows]
    body = "".join(f"<tr><th scope=row>{escape(key)}</th>{row}</tr>" for key, row in cells)
    return f'<div class="wide"><table class="plain differ"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def grave(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Alarms and what else went wrong."""
    return [event for event in events if event.get("kind") in GRAVE]


def events_section(events: Sequence[Mapping[str, Any]]) -> str:
    """What happened, alarms first, then newest first."""
    if not events:
        return ""
    bad, rest = grave(events), [event for event in events if event.get("kind") not in GRAVE]
    shown = [*sorted(bad[::-1], key=lambda event: GRAVE.index(event["kind"])), *rest[::-1]][:EVENTS]
    rows = "".join(_event(event) for event in shown)
    head = "".join(f"<th scope=col>{name}</th>" for name in ("when", "what", "step", ""))
    left = f'<p class="soft">{len(events) - len(shown)} older ones are in events.jsonl.</p>' if len(events) > len(shown) else ""
    body = f'<div class="wide"><table class="plain events"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{left}'
    return fold("events", "Events", body, f"{len(bad)} to look at" if bad else "nothing alarming", shut=not bad)


def _event(event: Mapping[str, Any]) -> str:
    when = event.get("t")
    told = "; ".join(f"{key}: {plain(value)}" for key, value in event.items() if key not in ("t", "kind", "step"))
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if isinstance(when, int | float) and 0 <= when < 2**33 else "–"
    kind = str(event.get("kind", "?"))
    return (
        f"<tr{' class=bad' if kind in GRAVE else ''}><td>{clock}</td><td>{escape(kind)}</td>"
        f"<td>{escape(plain(event.get('step', '')))}</td><td>{escape(told)}</td></tr>"
    )


def log_section(view: RunView, *, shut: bool) -> str:
    """The last lines of every log, the one that was written to last in front."""
    parts = "".join(
        f'<figure class="card code"><figcaption><b>{escape(path.name)}</b> <span class="soft">its end</span></figcaption>'
        f'<pre class="log" data-follow tabindex="0" aria-label="{escape(path.name)}">{escape(tail(path))}</pre></figure>'
        for path in logs(view)
    )
    return fold("log", "Log", parts, shut=shut) if parts else ""


def logs(view: RunView, most: int = 4) -> list[Path]:
    """Log files of a run, newest first; a link that leads out of the run is none of them."""
    found = []
    for name in sorted(os.listdir(view.folder / "logs")) if (view.folder / "logs").is_dir() else ():
        try:
            path = view.file(f"logs/{name}")
            if name.endswith(".log") and path.is_file() and (stat := path.stat()).st_size:
                found.append((-stat.st_mtime_ns, path))
        except (StudioError, OSError):
            continue
    return [path for _, path in sorted(found)[:most]]


def tail(path: Path) -> str:
    """The last 200 lines of a log, as a terminal would have left them, without its colors."""
    with open(path, "rb", buffering=0) as handle:
        size = os.fstat(handle.fileno()).st_size
        text = os.pread(handle.fileno(), TAIL, max(0, size - TAIL)).decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in ANSI.sub("", text).rstrip("\n").split("\n")]
    return "\n".join(lines[-LINES:])
