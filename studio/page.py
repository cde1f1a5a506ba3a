"""Parts of a page as HTML text: sections, cards, tables; everything that comes from a run is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from studio.files import as_json

BAD = ' class="bad"'


def section(title: str, text: str = "", content: str = "") -> str:
    told = f'<p class="soft">{escape(text)}</p>' if text else ""
    return f"<section><h2>{title}</h2>{told}{content}</section>"


def card(content: str, caption: str) -> str:
    return f'<figure class="card">{content}<figcaption>{caption}</figcaption></figure>'


def grid(cards: Iterable[str], kind: str = "") -> str:
    inside = "".join(cards)
    return f'<div class="grid {kind}">{inside}</div>' if inside else ""


def table(head: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    top = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="card {kind}"><table><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def row(name: str, *cells: Any, bad: bool = False) -> str:
    told = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
    return f"<tr{BAD if bad else ''}><th>{escape(name)}</th>{told}</tr>"


def facts(facts: Mapping[str, Any]) -> str:
    cells = (f"<div><dt>{escape(key)}</dt><dd>{escape(plain(value))}</dd></div>" for key, value in facts.items())
    return f"<dl>{''.join(cells)}</dl>"


def plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else as_json(value)


def named(part: Any) -> str:
    """What a part of the recipe is called: its model, id or name, or the part itself when that is text."""
    names = map(part.get, ("model", "id", "name")) if isinstance(part, Mapping) else [part]
    return next((name for name in names if isinstance(name, str)), "not recorded")
