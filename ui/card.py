"""A model card as HTML: escaped first, then the few forms that our cards have; no tag of the card's own survives."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape

Source = Callable[[str], str | None]  # a picture's path in the card -> its escaped address, or None for none to show
CODE = re.compile(r"`([^`]+)`")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]*)\)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((https?://[^)\s]+)\)")
BOLD = re.compile(r"\*\*([^*]+)\*\*")
LONG = 16  # lines of code that are shown unasked
RULE = re.compile(r"\|?\s*:?-{3,}[\s|:-]*")


def split(text: str) -> tuple[str, str]:
    """(front matter, body) of a card's text."""
    if text.startswith("---\n") and "\n---" in text[4:]:
        head, _, body = text[4:].partition("\n---")
        return head, body.lstrip("\n")
    return "", text


def snippet(text: str) -> str:
    """The first block of Python in a card, which loads it; empty without one."""
    found = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def render(text: str, source: Source) -> str:
    """Headings, paragraphs, lists, tables and code of a card without its front matter."""
    parts: list[str] = []
    lines = split(text)[1].split("\n")
    while lines:
        line = lines.pop(0)
        if line.startswith("```"):
            parts.append(_code(lines))
        elif heading := re.fullmatch(r"(#{1,6}) (.*)", line):
            level = min(6, len(heading[1]) + 2)  # below the headings of the page
            parts.append(f"<h{level}>{_inline(heading[2], source)}</h{level}>")
        elif line.lstrip().startswith("|") and lines and RULE.fullmatch(lines[0].strip()):
            parts.append(_table([line, *_while(lines, lambda text: text.lstrip().startswith("|"))], source))
        elif re.match(r"[-*] ", line):
            items = [line, *_while(lines, lambda text: bool(re.match(r"[-*] ", text)))]
            parts.append(f"<ul>{''.join(f'<li>{_inline(item[2:], source)}</li>' for item in items)}</ul>")
        elif line.strip() and line.strip() != "<Gallery />":  # the Hub's own picture show
            more = _while(lines, lambda text: bool(text.strip()) and not re.match(r"```|#{1,6} |[-*] |\|", text))
            parts.append(f"<p>{_inline(' '.join([line, *more]), source)}</p>")
    return "".join(parts)


def _while(lines: list[str], fits: Callable[[str], bool]) -> list[str]:
    """Take the lines at the head that fit."""
    taken = []
    while lines and fits(lines[0]):
        taken.append(lines.pop(0))
    return taken


def _code(lines: list[str]) -> str:
    inside = _while(lines, lambda text: not text.startswith("```"))
    del lines[:1]
    text = f"<pre>{escape(chr(10).join(inside))}</pre>"
    return text if len(inside) <= LONG else f"<details><summary>{len(inside)} lines</summary>{text}</details>"


def _table(lines: list[str], source: Source) -> str:
    head, _, *body = ([_inline(cell.strip().replace(r"\|", "|"), source) for cell in _cells(line)] for line in lines)
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))


def _inline(text: str, source: Source) -> str:
    """Code, pictures, links and bold in a line; code is set aside, so that nothing in it is read as a form."""
    kept: list[str] = []

    def aside(html: str) -> str:
        kept.append(html)
        return f"\x00{len(kept) - 1}\x00"

    def picture(found: re.Match) -> str:
        place = source(found[2])
        return aside(f'<img loading="lazy" alt="{escape(found[1])}" src="{place}">' if place else f"<em>{escape(found[1])}</em>")

    def away(found: re.Match) -> str:
        return aside(f'<a href="{escape(found[2])}" target="_blank" rel="noopener noreferrer">{escape(found[1])}</a>')

    text = CODE.sub(lambda found: aside(f"<code>{escape(found[1])}</code>"), text.replace("\x00", ""))
    text = escape(LINK.sub(away, IMAGE.sub(picture, text)))
    text = BOLD.sub(r"<b>\1</b>", text)
    return re.sub(r"\x00(\d+)\x00", lambda found: kept[int(found[1])], text)
