"""The bundled recipes, by branch, with the line that says what each is for."""

from __future__ import annotations

from functools import cache
from html import escape
from typing import NamedTuple

from studio.config import parse_yaml
from studio.recipe import RECIPES, describe, recipe_names, recipe_source
from ui.index import kind_of
from ui.shell import link

BRANCHES = {
    "image": "Align text-to-image models with rewards",
    "control": "Train control policies in environments",
    "text": "Train language models with rewards",
    "prune": "Make a network smaller",
}


class Bundled(NamedTuple):
    """A recipe of the package."""

    name: str
    kind: str  # a key of BRANCHES
    told: str


@cache
def bundled() -> dict[str, Bundled]:
    """All bundled recipes by name; they do not change while this process lives."""
    found = {}
    for work in RECIPES:
        for name in recipe_names(work):
            found[name] = Bundled(name, kind_of(parse_yaml(recipe_source(name, work), name)), describe(name, work))
    return found


def picker(runs: list[str], unknown: str | None = None) -> str:
    """All recipes as links, in groups; `runs` are those whose recipe can be taken again, `unknown` a name that was asked for."""
    note = f'<p class="problem" role="alert">No recipe or run is named {escape(unknown)}. Choose one below.</p>' if unknown else ""
    groups = "".join(_group(kind, title) for kind, title in BRANCHES.items())
    again = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in runs)
    earlier = (
        f'<label>or the recipe of a run <select data-from><option value="">choose …</option>{again}</select></label>'
        if runs
        else ""
    )
    jumps = "".join(f'<a href="#{kind}" data-jump="{kind}">{kind.capitalize()}</a>' for kind in BRANCHES)
    return (
        '<div class="picker"><h1>What shall run?</h1>' + note + '<div class="form-tools">'
        '<input type="search" data-find placeholder="Filter recipes: method, model, task" aria-label="Filter recipes">'
        f'{earlier}<a href="{link("launch", write="1")}">or write YAML</a></div>'
        f'<p class="branches">{jumps}</p>'
        f'<p class="empty" data-none hidden>No recipe matches. Remove words from the filter.</p>{groups}</div>'
    )


def _group(kind: str, title: str) -> str:
    rows = "".join(
        f'<li data-words="{escape(f"{recipe.name} {recipe.told}".lower())}"><a href="{link("launch", recipe=recipe.name)}">'
        f"{escape(recipe.name)}</a><small>{escape(recipe.told)}</small></li>"
        for recipe in bundled().values()
        if recipe.kind == kind
    )
    head = f'<h2>{kind.capitalize()} <span class="soft">{escape(title)}</span></h2>'
    return f'<section id="{kind}">{head}<ul class="recipes">{rows}</ul></section>'
