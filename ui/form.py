"""The form of a recipe as HTML, made from its JSON Schema: blocks that fold, a field for every value, help beneath it.

The browser keeps what was changed (ui/assets/form.js) and marks it; nothing is decided there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from html import escape
from typing import Any

from ui.overrides import Schema, fields, is_block, is_component, kinds, nullable, shown

OPEN = ("algorithm", "rewards", "train", "criterion", "target", "learn")  # blocks that most people look at
IN_ENV = ("prompts", "rewards", "held_out", "combine")  # what an environment takes the place of
SETTINGS = 4  # of a folded block that are told beside its name


def form(schema: Schema, base: Schema, serial: int = 0, refused: str = "") -> str:
    """The form of `schema`; `base` is the recipe before anything was changed, `refused` why it is that again."""
    parts = _used(schema["properties"])
    loose = {name: part for name, part in parts.items() if not is_block(part) and not is_component(part)}
    own = base["properties"]
    sections = [_section(name, part, own.get(name)) for name, part in parts.items() if name not in loose]
    if loose:
        inner = "".join(_field(name, part) for name, part in loose.items())
        sections.append(_folding("general", "general", "", f'<div class="fields">{inner}</div>', loose))
    why = f'<p class="problem" role="alert">{escape(refused)}</p>' if refused else ""
    mark = f' data-serial="{serial}"{" data-refused" if refused else ""}'
    return f'<form class="recipe-form" autocomplete="off" novalidate{mark}>{_tools()}{why}{"".join(sections)}</form>'


def _used(parts: Mapping[str, Schema]) -> dict[str, Schema]:
    """The blocks that count: with an environment there are no prompts and rewards, without one nobody acts in it."""
    if "env" not in parts:
        return dict(parts)
    idle = ("env", "acting") if parts["env"].get("value", ...) is None else IN_ENV
    return {name: part for name, part in parts.items() if name not in idle}


def _tools() -> str:
    return (
        '<div class="form-tools"><input type="search" data-find placeholder="Filter fields" aria-label="Filter fields">'
        '<label><input type="checkbox" data-changed-only> changed only</label>'
        '<button type="button" data-reset-all disabled>Reset all</button>'
        '<button type="button" data-as-text>Edit as YAML</button></div>'
        '<p class="empty" data-none hidden>No field matches. Remove words from the filter.</p>'
    )


def _section(name: str, part: Schema, own: Schema | None) -> str:
    """A block at the top of the recipe."""
    if is_component(part):
        return _component(name, name, part, own)
    return _block(name, name, part, own)


def _block(path: str, title: str, part: Schema, own: Schema | None) -> str:
    inner, others = _inside(path, part, own), part.get("additionalProperties")
    if isinstance(others, Mapping) and "kind" in others:
        inner += _adding(path, part)
    return _folding(path, title, part.get("description", ""), inner, dict(fields(part)))


def _inside(path: str, part: Schema, own: Schema | None) -> str:
    """Plain fields first, then the blocks in it."""
    mine = (own or {}).get("properties", {})
    parts = {name: p for name, p in part.get("properties", {}).items() if not (is_component(part) and name == "name")}
    plain = "".join(_field(f"{path}.{name}", p) for name, p in parts.items() if not is_block(p))
    folded = "".join(
        _component(f"{path}.{name}", name, p, mine.get(name))
        if is_component(p)
        else _block(f"{path}.{name}", name, p, mine.get(name))
        for name, p in parts.items()
        if is_block(p)
    )
    return (f'<div class="fields">{plain}</div>' if plain else "") + folded


def _component(path: str, title: str, part: Schema, own: Schema | None) -> str:
    """A named block: which one, and its fields. One among several has its name as its key, and can be taken out."""
    names, present = part["properties"]["name"]["enum"], part["properties"]["name"].get("value", "")
    if "." in path:
        kept = ' data-own=""' if own is not None else ""
        head = (
            f'<p><button type="button" class="plain-button" data-remove="{escape(path)}"{kept}>Remove {escape(title)}</button></p>'
        )
    else:
        before = shown((own or {}).get("properties", {}).get("name", {}).get("value"))
        none = f'<option value=""{" selected" if not present else ""}>none</option>' if nullable(part) else ""
        head = (
            f'<div class="field swap"><label for="f-{escape(path)}">which {escape(title)}</label>'
            f'<select id="f-{escape(path)}" data-swap="{escape(path)}" data-before="{escape(before)}" '
            f'data-value="{escape(present)}">{none}{_options(names, present)}</select></div>'
        )
    inner = head + (_inside(path, part, own) if present else "")
    name = f"{title} · {present or 'none'}" if "." not in path else title
    return _folding(path, name, part.get("description", ""), inner, dict(fields(part)) if present else {})


def _adding(path: str, part: Schema) -> str:
    """A list of what could be put into a block of components."""
    names = part["additionalProperties"]["properties"]["name"]["enum"]
    options = _options([name for name in names if name not in part["properties"]], "")
    return (
        f'<p><label class="soft">Add <select data-add="{escape(path)}" aria-label="Add to {escape(path)}">'
        f'<option value="">choose …</option>{options}</select></label></p>'
    )


def _folding(path: str, title: str, text: str, inner: str, inside: Mapping[str, Schema]) -> str:
    opened = ' data-start="open" open' if path in OPEN else ""
    told = f'<p class="soft about">{_lines(text)}</p>' if text else ""
    return (
        f'<details class="block" data-block="{escape(path)}"{opened}><summary><b>{escape(title)}</b> '
        f'<span class="soft">{escape(_settings(inside))}</span>'
        f'<span class="problem" data-problem="{escape(path)}" role="alert"></span></summary>{told}{inner}</details>'
    )


def _settings(inside: Mapping[str, Schema]) -> str:
    """What a recipe says in a block: the first few values that are not the default."""
    said = [(path.rpartition(".")[2], part["value"]) for path, part in inside.items() if part.get("value") != part.get("default")]
    said = [f"{name} {shown(value)}" for name, value in said if name != "name"]
    return ", ".join(said[:SETTINGS]) + (" …" if len(said) > SETTINGS else "")


def _lines(text: str) -> str:
    return "<br>".join(map(escape, text.split("\n")))


def _field(path: str, part: Schema) -> str:
    """One value: its name and unit, the control, what it means and its default."""
    name, value = escape(path.rpartition(".")[2]), shown(part.get("value"))
    unit = f' <span class="unit">{escape(part["unit"])}</span>' if "unit" in part else ""
    control, flag = _control(path, part, value)
    default = f'<span class="default">default {escape(shown(part["default"]) or "empty")}</span>' if "default" in part else ""
    help_text = " · ".join(filter(None, [_lines(part.get("description", "")), default]))
    label = f'<label for="f-{escape(path)}">{name}{unit}</label>'
    reset = (
        f'<button type="button" class="reset" data-reset="{escape(path)}" '
        f'aria-label="Set {name} back" title="back to {escape(value) or "empty"}">↺</button>'
    )
    return (
        f'<div class="field{" flag" if flag else ""}" data-field="{escape(path)}"><div class="head">{label}{reset}</div>{control}'
        f'<small id="h-{escape(path)}">{help_text}</small>'
        f'<p class="problem" data-problem="{escape(path)}" role="alert"></p></div>'
    )


def _control(path: str, part: Schema, value: str) -> tuple[str, bool]:
    """(HTML, whether it is a box to check)."""
    same = f'id="f-{escape(path)}" data-path="{escape(path)}" data-value="{escape(value)}" aria-describedby="h-{escape(path)}"'
    types = [kind for kind in kinds(part) if kind != "null"]
    if "enum" in part:
        none = f'<option value=""{" selected" if not value else ""}>none</option>' if nullable(part) else ""
        return f"<select {same}>{none}{_options([v for v in part['enum'] if v is not None], value)}</select>", False
    if types == ["boolean"] and not nullable(part):
        return f'<input type="checkbox" {same}{" checked" if value == "true" else ""}>', True
    if types in (["integer"], ["number"]):
        empty = ' placeholder="none"' if nullable(part) else ""
        return f'<input type="number" {same} value="{escape(value)}"{empty}{_bounds(part)}>', False
    if types == ["string"] and "\n" not in str(part.get("value")):
        empty = ' placeholder="none"' if nullable(part) else ""
        return f'<input type="text" {same} value="{escape(value)}"{empty} spellcheck="false">', False
    rows = min(6, 1 + len(value) // 60 + value.count("\n"))
    return f'<textarea {same} rows="{rows}" class="yaml" spellcheck="false" title="YAML">{escape(value)}</textarea>', False


def _bounds(part: Schema) -> str:
    """Limits and a step for the arrow keys: one, or a tenth of the value's size."""
    low, high = part.get("minimum", part.get("exclusiveMinimum")), part.get("maximum", part.get("exclusiveMaximum"))
    told = "".join(f' {name}="{limit:g}"' for name, limit in (("min", low), ("max", high)) if limit is not None)
    if "integer" in kinds(part):
        return f'{told} step="{part.get("multipleOf", 1)}" inputmode="numeric"'
    return f'{told} step="{step(part.get("value") or part.get("default") or 0.0):g}" inputmode="decimal"'


def step(value: float) -> float:
    """A tenth of the power of ten that a value has: 1e-05 for 0.0003, 0.01 for 0.9, 0.1 for 5."""
    if not value or not math.isfinite(value):
        return 0.1
    return 10.0 ** (math.floor(math.log10(abs(value))) - 1)


def _options(names: list[Any], present: Any) -> str:
    return "".join(
        f'<option value="{escape(str(name))}"{" selected" if str(name) == str(present) else ""}>{escape(str(name))}</option>'
        for name in names
    )


def text_only(text: str) -> str:
    """A page for a recipe of one's own, written as YAML."""
    return f'<form class="recipe-form" data-text-only="{escape(json.dumps(text))}" novalidate></form>'
