"""A blind vote: pairs in random order, each with its two sides in random places, and nothing in the browser that tells which.

The secret that decides order and places stays in the server's memory; pictures are sent as pixels alone, without their address.
"""

from __future__ import annotations

import base64
import io
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from ui import votes
from ui.compared import label
from ui.pairs import Key, Pair, Side, text_of
from ui.site import Site

SIDE_PX = 1024  # pictures are sent no larger than this
# The token says which pair was seen: a second press, or a late one, does not count for the pair after it.
KEYS = """
const names = {a: 'left', b: 'right', '=': 'tie', u: 'undo'};
const press = choice => {
  const duel = element.querySelector('[data-token]');
  const button = duel && duel.querySelector(`[data-choice="${choice}"]`);
  if (button && !button.disabled) trigger('select', {token: duel.dataset.token, choice});
};
element.addEventListener('click', event => {
  const button = event.target.closest('[data-choice]');
  if (button) press(button.dataset.choice);
});
document.addEventListener('keydown', event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || !element.isConnected || !element.offsetParent) return;
  if (event.target.closest('input:not([type=radio], [type=checkbox]), textarea')) return;
  const choice = names[event.key.toLowerCase()];
  if (choice) { event.preventDefault(); press(choice); }
});
"""


@dataclass(frozen=True)
class Ballot:
    """A person's way through the pairs of two sides; lives in the server."""

    secret: bytes
    first: tuple[str, int]  # run and step
    second: tuple[str, int]
    order: tuple[Key, ...]  # pairs to vote on
    token: str  # of the pair that is shown
    cast: tuple[str, ...] = ()  # numbers of this person's votes, in order

    @property
    def key(self) -> Key | None:
        return self.order[len(self.cast)] if len(self.cast) < len(self.order) else None


def ballot(site: Site, first: Side, second: Side, pairs: Sequence[Pair], *, again: bool = False) -> Ballot:
    """The pairs that nobody has voted on (or all, `again`), in random order."""
    assert first.step is not None and second.step is not None
    done = set() if again else {votes.key_of(vote) for vote in votes.between(votes.read(site.root), first, second)}
    secret = secrets.token_bytes(32)
    keys = [pair.key for pair in pairs if pair.key not in done]
    random.Random(secret).shuffle(keys)
    return Ballot(secret, (first.name, first.step), (second.name, second.step), tuple(keys), secrets.token_hex(8))


def sides(site: Site, given: Ballot) -> tuple[Side, Side]:
    """The two sides of a ballot."""
    first, second = (Side(site.run(name), step) for name, step in (given.first, given.second))
    return first, second


def press(site: Site, given: Ballot, token: str, choice: str, pairs: Mapping[Key, Pair]) -> Ballot:
    """The ballot after a choice; a press that was meant for another pair changes nothing."""
    if token != given.token or choice not in ("left", "right", "tie", "undo"):
        return given
    if choice == "undo":
        if not given.cast:
            return given
        votes.take_back(site.root, given.cast[-1])
        return replace(given, cast=given.cast[:-1], token=secrets.token_hex(8))
    pair = pairs.get(given.key) if given.key else None
    if pair is None:
        return given
    vote = votes.vote_of(pair, *sides(site, given), choice, votes.first_is_left(given.secret, pair.key))  # type: ignore[arg-type]
    votes.cast(site.root, vote)
    return replace(given, cast=(*given.cast, vote["id"]), token=secrets.token_hex(8))


def shown(given: Ballot, pairs: Mapping[Key, Pair]) -> str:
    """The pair to vote on; that all are done when none is left."""
    done, count = len(given.cast), len(given.order)
    undo = f'<button type=button class="plain" data-choice="undo"{"" if done else " disabled"}>Undo <kbd>U</kbd></button>'
    pair = pairs.get(given.key) if given.key else None
    if pair is None:
        told = "Every pair has a vote." if not count else f"That was the last of {count} pairs. Thank you."
        return (
            f'<div class="duel done" data-token="{given.token}"><h2>{told}</h2><p class="soft">The tally is below. “Vote again” '
            f'starts another round.</p><div class="choices">{undo}</div></div>'
        )
    halves = pair if votes.first_is_left(given.secret, pair.key) else reversed(pair)
    figures = "".join(
        f'<figure><figcaption>{name}</figcaption>{_seen(record, name)}<button type=button data-choice="{choice}">{name} is better '
        f"<kbd>{name}</kbd></button></figure>"
        for record, name, choice in zip(halves, "AB", ("left", "right"), strict=True)
    )
    return (
        f'<div class="duel" data-token="{given.token}"><p class="soft">Pair {done + 1} of {count}. Which one fits better?</p>'
        f'<progress max={count} value={done} aria-label="Pairs voted on"></progress><h2>{escape(pair.prompt)}</h2>'
        f'<div class="halves">{figures}</div><div class="choices"><button type=button class="plain" data-choice="tie">No '
        f"difference <kbd>=</kbd></button>{undo}</div></div>"
    )


def _seen(record: Mapping[str, Any], name: str) -> str:
    text = text_of(record)
    if text is not None:
        return f"<pre>{escape(text)}</pre>"
    source, side = pixels(record["file"])
    return f'<img class="{"pixel" if side <= 128 else ""}" alt="Picture {name}" src="{source}">' if source else "<p>no picture</p>"


def pixels(file: Path, side: int = SIDE_PX) -> tuple[str, int]:
    """A picture as a data address and its longest side [px]: nothing of its file but what is seen; empty for one that is none."""
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG", "WEBP", "JPEG")) as opened:
            if max(opened.size) > 8192:
                return "", 0
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "", 0
    longest = max(image.size)
    image.thumbnail((side, side))
    packed = io.BytesIO()
    if longest <= 256:
        image.save(packed, "PNG")
    else:
        image.save(packed, "WEBP", quality=95)
    kind = "png" if longest <= 256 else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(packed.getvalue()).decode()}", longest


def tallied(site: Site, first: Side, second: Side, pairs: Sequence[Pair]) -> str:
    """What all votes between two sides add up to, and which scores agree with them."""
    cast = votes.between(votes.read(site.root), first, second)
    if not cast:
        return '<p class="soft">No votes on these two yet.</p>'
    found = votes.tally(cast, second)
    low, high = found.interval
    bar = "".join(
        f'<i class="{kind}" style="flex:{count}">{count}</i>'
        for kind, count in (("second", found.wins), ("tie", found.ties), ("first", found.losses))
        if count
    )
    rows = "".join(
        f"<tr><th scope=row>{label(name)}</th><td>{share:.0%}</td><td>{count}</td></tr>"
        for name, (share, count) in votes.agreement(cast, pairs, second).items()
    )
    agree = (
        "<h3>Which scores agree with the votes</h3><table class=plain><thead><tr><th>score<th>agrees<th>votes</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
    return (
        f'<div class="card tally"><h2>{escape(second.title)} is preferred with {found.rate:.0%}</h2><p class="soft">{found.wins} '
        f"for it, {found.losses} for {escape(first.title)}, {found.ties} without a difference (half each); 95% interval "
        f"{low:.0%} to {high:.0%} (Wilson, {found.count} votes).</p>"
        f'<div class="bar" role=img aria-label="{found.wins} for, {found.ties} equal, {found.losses} against">{bar}</div>'
        f"{agree if rows else ''}</div>"
    )
