"""The first groups of an iteration's rollout as records of the run folder: samples, their rewards, the credit they were given."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from studio.rollout import Batch
from studio.types import Credit, Rollout

TOKENS = 1024  # of a completion that are kept one by one: more would make the file slow to read
DIGITS = 4  # significant ones


def first_groups(step: int, batch: Batch, policy: Any, count: int) -> tuple[Tensor | list[str], list[dict[str, Any]]] | None:
    """Samples and records of the first `count` groups among this process's rows; None where there is nothing to show.

    Of a record: advantage is the mean over the decisions that train, None where none does; tokens are [piece of text, advantage
    or None, entropy in nats, log likelihood] as the policy sampled them, `length` how many there are in all. Nothing is drawn or
    computed again.
    """
    rollout, credit = batch.rollout, batch.credit
    samples, group = rollout.samples, rollout.group
    if credit is None or not count or not (isinstance(samples, list) or (samples is not None and samples.ndim == 4)):
        return None
    numbers = group.tolist()
    wanted = list(dict.fromkeys(numbers))[:count]
    rows = [row for row, number in enumerate(numbers) if number in wanted]
    seen: dict[int, int] = {}
    records = []
    for row in rows:
        number = numbers[row]
        seen[number] = seen.get(number, -1) + 1
        head = {"step": step, "group": number, "sample_id": f"s{seen[number]:02d}"}
        records.append(head | _judged(rollout, credit, row) | _tokens(rollout, credit, row, policy))
    return [samples[row] for row in rows] if isinstance(samples, list) else samples[rows].detach().cpu(), records


def _judged(rollout: Rollout, credit: Credit, row: int) -> dict[str, Any]:
    """The prompt of a row, its rewards and its advantage; None for a reward that is missing."""
    info, reward, live = rollout.prompts.info[row], rollout.reward, credit.weight[row] > 0
    told: dict[str, Any] = {"prompt_id": rollout.prompts.key[row], "prompt": rollout.prompts.text[row]}
    if "prompt_used" in info:
        told["prompt_used"] = str(info["prompt_used"])
    if rollout.given is not None and bool(rollout.given[row]):
        told["given"] = True
    there = rollout.present is None or bool(rollout.present[row])
    if reward is not None and reward.ndim == 2:  # a reward per decision
        reward = (reward * rollout.mask).sum(1) / rollout.mask.sum(1).clamp(min=1)
    return told | {
        "rewards": {name: _short(part[row].item()) for name, part in rollout.parts.items()},
        "reward": _short(reward[row].item()) if there and reward is not None else None,
        "advantage": _short(credit.advantage[row][live].mean().item()) if bool(live.any()) else None,
    }


def _tokens(rollout: Rollout, credit: Credit, row: int, policy: Any) -> dict[str, Any]:
    """A completion token by token; nothing for pictures, and for texts whose decisions are not their tokens."""
    old = rollout.old
    if old.token is None or old.logp is None or old.entropy is None:
        return {}
    logp, entropy = old.logp[row].cpu(), old.entropy[row].cpu()
    said = (rollout.mask[row].cpu() | (logp != 0) | (entropy != 0)).nonzero()  # all is 0 after the end
    length = int(said[-1]) + 1 if len(said) else 0
    cut = slice(0, min(length, TOKENS))
    pieces = policy.reader.pieces(old.token[row, cut].tolist())
    live = (credit.weight[row, cut] > 0).tolist()
    table = zip(pieces, credit.advantage[row, cut].tolist(), live, entropy[cut].tolist(), logp[cut].tolist(), strict=True)
    return {"length": length, "tokens": [[p, _short(a) if on else None, _short(e), _short(like)] for p, a, on, e, like in table]}


def _short(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
