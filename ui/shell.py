"""What surrounds every page: the header with the way to the others, and how a page keeps itself up to date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr

EVERY_S = 2.0  # between two looks at the run folders
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # of events that nobody asked for
CONTROL: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "control", "concurrency_limit": 1}
PAGES = (  # title, address
    ("Runs", ""),
    ("Run", "run"),
    ("Samples", "samples"),
    ("Compare", "compare"),
    ("Launch", "launch"),
    ("Rewards", "rewards"),
    ("Prune", "prune"),
    ("Export", "export"),
)


def link(address: str, **query: str | None) -> str:
    """The address of a page, for `href`: relative, so that it also works behind a proxy."""
    given = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items() if value)
    return escape(f"./{address}{'?' if given else ''}{given}")


def header(active: str) -> gr.HTML:
    """The line at the top of a page, with the run of the address kept on the way to other pages."""

    def told(request: gr.Request) -> str:
        return _header(active, dict(request.query_params).get("run"))

    line = gr.HTML(_header(active, None), elem_classes="studio-header", apply_default_css=False)
    _page().load(told, None, line, **QUIET)
    return line


def _header(active: str, run: str | None) -> str:
    links = "".join(
        f'<a href="{link(address, run=run)}"{" aria-current=page" if address == active else ""}>{title}</a>'
        for title, address in PAGES
    )
    return f'<a class="brand" href="{link("")}">Alignment Studio</a><nav aria-label="Pages">{links}</nav>'


def live(refresh: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Calls `refresh(*inputs)` when the page opens and every EVERY_S; a part that did not change is not sent again.

    What a person has focused, checked or scrolled to stays: the browser only changes what differs. A change reaches its part
    by way of a state: to gradio, gr.skip() for a component is a new component, which is kept for as long as the session is.
    """
    seen, news = gr.State({}), [gr.State(None) for _ in outputs]

    def first(*values: Any) -> list[Any]:
        found = _parts(refresh(*values))
        return [dict(enumerate(map(_digest, found))), *found]

    def changed(seen: dict[int, bytes], *values: Any) -> list[Any]:
        found = _parts(refresh(*values))
        now = dict(enumerate(map(_digest, found)))
        if now == seen:
            return [gr.skip()] * (1 + len(found))
        return [now, *(gr.skip() if now[i] == seen.get(i) else (now[i], part) for i, part in enumerate(found))]

    _page().load(first, inputs, [seen, *outputs], **QUIET)
    timer = gr.Timer(EVERY_S)
    timer.tick(changed, [seen, *inputs], [seen, *news], trigger_mode="once", concurrency_limit=None, **QUIET)
    for new, part in zip(news, outputs, strict=True):
        new.change(lambda new: new[1], new, part, **QUIET)


def _parts(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple) else [found]


def _digest(part: Any) -> bytes:
    return blake2b(repr(part).encode(), digest_size=16).digest()


def _page() -> gr.Blocks:
    """The page that is being laid out."""
    page = gr.context.Context.root_block
    assert isinstance(page, gr.Blocks)
    return page
