"""Films of simulators: they show nothing while a policy trains in them, so `studio sample` draws what it has learned."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import lru_cache
from html import escape
from pathlib import Path
from subprocess import TimeoutExpired

from studio.errors import RunError
from studio.run_view import RunView
from ui import spawn

DRAWN = {"rollouts-base": "untrained", "rollouts": "newest checkpoint"}  # files that `studio sample` writes
LARGEST = 12_000_000  # bytes of a film that is shown
LONGEST_S = 300
WAIT = (
    '<div class="empty"><h2>Drawing</h2><p>The policy acts once untrained and once as its newest checkpoint. This takes a '
    "minute.</p></div>"
)
NONE = (
    '<div class="empty"><h2>This environment leaves no pictures while it trains</h2><p>Press <b>Draw rollouts</b> to let the '
    "policy act once and to see it, or run <code>studio sample</code>.</p></div>"
)


def films(view: RunView) -> str:
    """The films that were drawn, inside the page, as their folder is not served; or how to draw them."""
    shown = "".join(_film(told, view.file(f"export/{name}.gif")) for name, told in DRAWN.items())
    return f'<div class="films">{shown}</div>' if shown else NONE


def draw(view: RunView) -> None:
    """Let the policy act untrained and as its newest checkpoint; RunError with what the command said."""
    for base in (["--base"], []):
        try:
            words = ["sample", view.folder.name, "--runs", str(view.folder.parent), *base]
            code, _, said = spawn.answer(words, timeout=LONGEST_S)
        except TimeoutExpired as error:
            raise RunError(f"studio sample: expected a film within {LONGEST_S} s, got none. Draw it in a terminal.") from error
        if code:
            last = next((line for line in reversed(said.splitlines()) if line.strip()), "studio sample failed.")
            raise RunError(re.sub(r"^\w+Error: ", "", last))


def _film(told: str, file: Path) -> str:
    if not file.is_file():
        return ""
    stat = file.stat()
    if stat.st_size > LARGEST:
        return f'<p class="soft">{told}: {escape(str(file))} is too large to be shown here.</p>'
    data = _encoded(file, stat.st_mtime_ns)
    image = f'<img alt="Rollouts, {told}" src="data:image/gif;base64,{data}">'
    return f'<figure class="card">{image}<figcaption>{told}</figcaption></figure>'


@lru_cache(maxsize=4)
def _encoded(file: Path, stamp: int) -> str:
    return b64encode(file.read_bytes()).decode()
