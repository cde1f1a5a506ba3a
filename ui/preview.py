"""What will run, as HTML: the check, the recipe with its changes marked, the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import SequenceMatcher
from html import escape
from typing import Any

from studio.config import apply_overrides, parse_yaml, to_yaml
from ui.draft import Checked, Draft


def checked(found: Checked, serial: int) -> str:
    """The answer of `studio check`; ui/assets/form.js puts the problems beside their fields."""
    state = ("finished", "ready") if found.good else ("failed", "cannot run yet")
    problems = "".join(f"<p class='problem'>{escape(line)}</p>" for line in found.others)
    if found.problems:
        jumps = ", ".join(f'<a href="#f-{escape(path)}" data-jump="{escape(path)}">{escape(path)}</a>' for path in found.problems)
        problems += f"<p>See the message at {jumps}.</p>"
    warnings = "".join(f"<li>{escape(str(text))}</li>" for text in found.warnings)
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(_fact(value))}</dd></div>" for name, value in found.facts.items())
    return _check(
        f'<span class="state {state[0]}">{state[1]}</span>',
        problems
        + (f'<ul class="warnings" aria-label="Warnings">{warnings}</ul>' if warnings else "")
        + f'<dl class="told">{facts}</dl>',
        f' data-serial="{serial}" data-problems="{escape(json.dumps(found.problems))}"',
    )


def checking() -> str:
    """While the first answer is on its way."""
    return _check('<span class="state">checking …</span>', "<p class='soft'>Reading the recipe in a process of its own.</p>", "")


def _check(state: str, inner: str, data: str) -> str:
    return f'<section class="card check" aria-live="polite"{data}><h2>Check {state}</h2>{inner}</section>'


def _fact(value: Any) -> str:
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) and not isinstance(value, bool) else str(value)


def recipe(base: Draft, draft: Draft, full: Mapping[str, Any] | None, command: str, serial: int = 0) -> str:
    """The recipe that results, changed lines marked, short and with every default; the command line that starts it."""
    parts = [_command(command)]
    if (draft.recipe, draft.text) == (base.recipe, base.text):
        before = parse_yaml(base.source, "recipe")
        short = to_yaml(apply_overrides(before, draft.overrides))
        parts.append(
            f'<details open><summary>Recipe</summary><pre class="code">{marked(to_yaml(before), short)}</pre>'
            f"<pre data-yaml hidden>{escape(short)}</pre></details>"
        )
    if full is not None:
        parts.append(f'<details><summary>With every default</summary><pre class="code">{escape(to_yaml(full))}</pre></details>')
    return f'<section class="card result" data-serial="{serial}">{"".join(parts)}</section>'


def nothing(serial: int) -> str:
    """Where the changes make no recipe; the check says why."""
    told = '<p class="soft">No recipe comes of this yet: see the check.</p>'
    return f'<section class="card result" data-serial="{serial}">{told}</section>'


def _command(command: str) -> str:
    return (
        '<h2>Command <button type="button" class="plain-button" data-copy>Copy</button></h2>'
        f'<pre class="code" data-command>{escape(command)}</pre>'
    )


def marked(before: str, after: str) -> str:
    """The lines of `after`, those that `before` has not in <ins>."""
    old, new = before.splitlines(), after.splitlines()
    found = []
    for kind, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        lines = [escape(line) for line in new[start:end]]
        found += lines if kind == "equal" else [f"<ins>{line}</ins>" for line in lines]
    return "\n".join(found)
