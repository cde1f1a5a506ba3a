"""The samples of one training prompt as HTML: what each was worth against the others, and its tokens where it is a text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from typing import Any

from studio.chart import is_number, number
from studio.run_view import RunView
from ui.tile_grid import picture
from ui.tiles import Tile
from ui.tokens import Scale, is_token, legend, level, spelled

BY_ADVANTAGE, BY_REWARD, AS_SAMPLED = "highest advantage", "highest reward", "as sampled"
ORDERS = (BY_ADVANTAGE, "lowest advantage", BY_REWARD, AS_SAMPLED)
SPANS = 16_000  # tokens of a page, shared by its samples
FEWEST = 100  # of a sample, however many samples there are


def grouped(tiles: Sequence[Tile]) -> dict[int, list[Tile]]:
    """Samples by the number of their prompt in the rollout."""
    found: dict[int, list[Tile]] = {}
    for tile in tiles:
        number = tile.record.get("group")
        found.setdefault(number if isinstance(number, int) else -1, []).append(tile)
    return found


def advantage(tile: Tile) -> float | None:
    """Mean over the decisions that trained; None where none did."""
    return _number(tile.record.get("advantage"))


def reward(tile: Tile) -> float | None:
    """What the rewards came to together; None where one is missing."""
    return _number(tile.record.get("reward"))


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def ordered(tiles: Sequence[Tile], order: str) -> list[Tile]:
    """Samples that did not train, or have no reward, last; equal ones as they were sampled."""
    if order not in ORDERS or order == AS_SAMPLED:
        return list(tiles)
    value, sign = (reward, -1) if order == BY_REWARD else (advantage, -1 if order == BY_ADVANTAGE else 1)
    return sorted(tiles, key=lambda tile: (value(tile) is None, sign * (value(tile) or 0.0)))


def group(view: RunView, found: dict[int, list[Tile]], chosen: int | None, order: str, color: str) -> str:
    """One prompt of a rollout with all its samples, and the way to the other prompts that were kept."""
    chosen = chosen if chosen in found else next(iter(found))
    tiles = found[chosen]
    chips = "".join(_chip(key, own, key == chosen) for key, own in found.items())
    scale = Scale.of([_tokens(tile) for tile in tiles])
    spells = any(_tokens(tile) for tile in tiles)
    largest = max((abs(advantage(tile) or 0.0) for tile in tiles), default=0.0)
    each = max(FEWEST, SPANS // len(tiles))
    cards = "".join(_card(view, tile, largest, scale, color, each) for tile in ordered(tiles, order))
    texts = any(tile.text is not None for tile in tiles)
    return (
        f'<div class="chips" role=group aria-label="Prompt">{chips}</div>{_head(tiles)}'
        f"{legend(color, scale) if spells else ''}"
        f'<div class="members {"texts" if texts else "pictures"}">{cards}</div>'
    )


def _chip(key: int, tiles: Sequence[Tile], chosen: bool) -> str:
    mean = _mean([reward(tile) for tile in tiles])
    told = "" if mean is None else f"<b>{number(mean)}</b>"
    return (
        f'<button type=button data-group="{key}"{" aria-current=true" if chosen else ""}><span>{escape(tiles[0].prompt)}</span>'
        f"{told}</button>"
    )


def _head(tiles: Sequence[Tile]) -> str:
    """The prompt, how its rewards are spread, and what that means for training."""
    rewards = [value for tile in tiles if (value := reward(tile)) is not None]
    told = [f"{len(tiles)} samples"]
    if rewards:
        told.append(f"reward {number(statistics.fmean(rewards))} ± {number(statistics.pstdev(rewards))}")
    if len(rewards) < len(tiles):
        told.append(f"{len(tiles) - len(rewards)} without a reward")
    still = sum(advantage(tile) is None for tile in tiles)
    if still:
        told.append(f"{still} did not train")
    flat = len(rewards) > 1 and len(set(rewards)) == 1
    note = " All rewards are equal, so comparing them teaches nothing here." if flat else ""
    used = tiles[0].record.get("prompt_used")
    hint = f'<p class="soft">asked as: {escape(used)}</p>' if isinstance(used, str) and used != tiles[0].prompt else ""
    return f'<h2>{escape(tiles[0].prompt)}</h2>{hint}<p class="soft">{" · ".join(told)}.{note}</p>'


def _card(view: RunView, tile: Tile, largest: float, scale: Scale, color: str, most: int) -> str:
    worth, value = advantage(tile), reward(tile)
    side = "x" if worth is None else f"{'n' if worth < 0 else 'p'}{level(worth, largest)}"
    sign = "" if not worth else "▲ " if worth > 0 else "▼ "
    told = "not trained" if worth is None else f"{sign}{number(worth, '+')}"
    parts = tile.record.get("rewards")
    parts = {} if not isinstance(parts, dict) or list(parts.values()) == [value] else parts  # one reward is said once
    rewards = "".join(f"<small>{escape(str(name))} <b>{number(part)}</b></small>" for name, part in parts.items())
    name = str(tile.record.get("sample_id", ""))
    given = ' <i title="Read from data, not sampled">given</i>' if tile.record.get("given") else ""
    return (
        f'<figure class="member {side}">{_sample(view, tile, scale, color, most)}<figcaption><span>{escape(name)}{given}</span>'
        f'<b class="worth" title="advantage, mean over the decisions that trained">{told}</b>'
        f"<small>reward <b>{number(value)}</b></small>{rewards}</figcaption></figure>"
    )


def _sample(view: RunView, tile: Tile, scale: Scale, color: str, most: int) -> str:
    tokens = _tokens(tile)
    if not tokens:
        name = f"{tile.prompt}, sample {tile.record.get('sample_id', '')}"
        return picture(view, tile, name) if tile.text is None else f"<pre>{escape(tile.text) or '<i>empty</i>'}</pre>"
    whole = tile.record.get("length")
    left = max(whole if isinstance(whole, int) else 0, len(tokens)) - min(most, len(tokens))
    rest = f'<span class="soft"> … {left} more tokens</span>' if left > 0 else ""
    name = escape(f"Tokens of sample {tile.record.get('sample_id', '')}; arrow keys go from one to the next")
    return (
        f'<div class="spelled"><pre class="tokens color-{escape(color)}" tabindex=0 role=group aria-label="{name}">'
        f"{spelled(tokens, scale, most)}{rest}</pre><output aria-live=polite></output></div>"
    )


def _tokens(tile: Tile) -> list[Any]:
    tokens = tile.record.get("tokens")
    return tokens if isinstance(tokens, list) and any(map(is_token, tokens)) else []


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None
