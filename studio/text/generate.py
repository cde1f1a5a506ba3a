"""Completions of prompts with everything recorded about every token: each prompt is read once, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from studio.text.cache import buffers, take
from studio.text.draw import draw
from studio.text.head import Said, Softmax
from studio.text.network import TokenNetwork

LEAVE = 0.125  # share of finished rows from which on the others are gathered into a smaller batch
GLANCE = 8  # steps between two looks at who has finished, where looking makes a GPU wait

Ends = Callable[[list[Tensor]], list[bool]]  # the tokens of some rows so far -> which of them end here
Answers = Callable[[list[Tensor]], list[Tensor | None]]  # the tokens of some rows so far -> what is put behind them


@dataclass(frozen=True)
class Generated:
    """Tokens and what the policy said of them, [B, T]; 0 after the end of a row."""

    token: Tensor  # int64
    logp: Tensor
    entropy: Tensor
    tempered: Tensor | None  # [B, T, 3]
    value: Tensor | None
    length: Tensor  # [B] tokens of the completion, its end included
    cut: Tensor  # [B] bool, reached the limit without an end
    sampled: Tensor  # [B, T] bool, drawn by the policy; False = given, or after the end
    engine: Tensor | None = None  # [B, T] what a server that wrote the row said of its tokens; 0 where it drew none


@torch.no_grad()
def generate(
    network: TokenNetwork,
    prompts: Sequence[Tensor],
    seeds: Sequence[int],
    *,
    limit: int,
    end: Sequence[int],
    temperature: float = 1.0,
    tempered: bool = False,
    begin: Sequence[Tensor] = (),
    ends: Ends | None = None,
    answers: Answers | None = None,
) -> Generated:
    """One completion a row of at most `limit` tokens, drawn from softmax(logits / temperature); temperature 0 takes the likeliest.

    prompts: token ids [P_b] a row; rows with the same prompt share the reading of it.  seeds: a row's draws depend on its seed
    alone, not on who else is in the batch.  begin: tokens that a row must start with; they are recorded as not sampled.
    end: ids after which a row is done; `ends` may say so as well.  answers: tokens that follow what a row has written, as
    those of a tool.
    """
    device = next(network.parameters()).device
    batch = _Batch(network, prompts, limit, temperature, device)
    uniform = _uniform(seeds, limit).to(device)
    forced = _forced(begin, len(prompts), limit, device)
    stops = torch.tensor(list(end), device=device)
    kept = _Kept(len(prompts), limit, network.critic is not None, tempered, device)
    rows, done = torch.arange(len(prompts), device=device), torch.zeros(len(prompts), dtype=torch.bool, device=device)
    every = 1 if device.type == "cpu" or ends or answers else GLANCE
    for t in range(limit):
        logits, value = batch.answer
        softmax, free = Softmax(logits), forced[rows, t] < 0
        drawn = draw(softmax.logits, uniform[rows, t], greedy=temperature == 0, weight=softmax.weight)
        token = torch.where(free, drawn, forced[rows, t])
        kept.write(rows, t, token, softmax.say(token, tempered=tempered), value, free, ~done[rows])
        done[rows] |= torch.isin(token, stops) & free
        if ends or answers:
            writing = rows[~done[rows] & free].tolist()  # an answer is neither an end nor a call
            written = [kept.token[row, : t + 1] for row in writing]
            for row, over in zip(writing, ends(written) if ends else (), strict=bool(ends)):
                done[row] |= over
            for row, told in zip(writing, answers(written) if answers else (), strict=bool(answers)):
                if told is not None:
                    until = min(limit, t + 1 + len(told))
                    forced[row, t + 1 : until] = told[: until - t - 1].to(device)
        if t + 1 == limit:
            break
        alive = None
        if (t + 1) % every == 0:
            alive = (~done[rows]).nonzero()[:, 0]
            if not len(alive):
                break
            alive = alive if len(alive) <= (1 - LEAVE) * len(rows) else None
        if alive is not None:
            rows, token = rows[alive], token[alive]
        batch.feed(token, alive)
    return kept.finish(~done)


def put_beside(
    known: Mapping[int, Tensor], drawn: Generated | None, free: Sequence[int], rows: int, limit: int, device: torch.device
) -> Generated:
    """`drawn` rows at the places `free` among `rows`, and answers that are known at the others, without likelihoods yet."""
    if drawn is None:
        token = torch.zeros(rows, limit, dtype=torch.int64, device=device)
        flat = torch.zeros(rows, limit, device=device)
        none = torch.zeros(rows, dtype=torch.int64, device=device)
        whole = Generated(
            token, flat, flat.clone(), flat.new_zeros(rows, limit, 3), flat.clone(), none, none.bool(), token.bool(), flat.clone()
        )
    else:
        place = torch.tensor(free, device=device)

        def wide(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.new_zeros(rows, *x.shape[1:]).index_copy(0, place, x)

        whole = Generated(**{f.name: wide(getattr(drawn, f.name)) for f in fields(Generated)})  # type: ignore[arg-type]
    for row, tokens in known.items():
        whole.token[row, : len(tokens)], whole.sampled[row, : len(tokens)] = tokens.to(device), True
        whole.length[row] = len(tokens)
    return whole


class _Batch:
    """The rows that still run: their cache, their lengths, and the network's last answer."""

    def __init__(
        self, network: TokenNetwork, prompts: Sequence[Tensor], limit: int, temperature: float, device: torch.device
    ) -> None:
        self.network, self.temperature = network, temperature or 1.0
        own = {tuple(prompt.tolist()): None for prompt in prompts}
        index = {prompt: i for i, prompt in enumerate(own)}
        which = torch.tensor([index[tuple(prompt.tolist())] for prompt in prompts], device=device)
        length = torch.tensor([len(prompt) for prompt in own], device=device)
        tokens = pad_sequence([torch.tensor(prompt) for prompt in own], batch_first=True).to(device)
        self.cache = buffers(network.lm.config.get_text_config().num_hidden_layers, tokens.shape[1] + limit)
        # padding stands on the right: what a prompt's last token sees is before it, and later steps skip the rest
        heard = network(tokens, torch.arange(len(own), device=device), length - 1, temperature=self.temperature, cache=self.cache)
        self.answer = (heard.logits[which], None if heard.value is None else heard.value[which])
        take(self.cache, which)
        self.length, self.width, self.fed = length[which], tokens.shape[1], 0
        self.even = bool((length == self.width).all())

    def feed(self, token: Tensor, alive: Tensor | None) -> None:
        """One more token of every row, after the rows that ended have left."""
        if alive is not None:
            take(self.cache, alive)
            self.length = self.length[alive]
        rows = torch.arange(len(token), device=token.device)
        mask = None
        if not self.even:
            place = torch.arange(self.width + self.fed + 1, device=token.device)
            mask = ((place < self.length[:, None]) | (place >= self.width))[:, None, None]
        heard: Any = self.network(
            token[:, None],
            rows,
            torch.zeros_like(rows),
            temperature=self.temperature,
            cache=self.cache,
            mask=mask,
            positions=(self.length + self.fed)[:, None],
        )
        self.fed += 1
        self.answer = (heard.logits, heard.value)


class _Kept:
    """What is recorded, [B, T] each."""

    def __init__(self, rows: int, limit: int, critic: bool, tempered: bool, device: torch.device) -> None:
        def zeros(*more: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(rows, limit, *more, dtype=dtype, device=device)

        self.token, self.logp, self.entropy = zeros(dtype=torch.int64), zeros(), zeros()
        self.value, self.tempered = (zeros() if critic else None), (zeros(3) if tempered else None)
        self.sampled, self.lived = zeros(dtype=torch.bool), zeros(dtype=torch.bool)

    def write(self, rows: Tensor, t: int, token: Tensor, said: Said, value: Tensor | None, sampled: Tensor, alive: Tensor) -> None:
        self.token[rows, t] = torch.where(alive, token, 0)
        self.logp[rows, t] = torch.where(alive, said.logp, 0.0)
        self.entropy[rows, t] = torch.where(alive, said.entropy, 0.0)
        self.sampled[rows, t], self.lived[rows, t] = sampled & alive, alive
        if self.tempered is not None and said.tempered is not None:
            self.tempered[rows, t] = torch.where(alive[:, None], said.tempered, 0.0)
        if self.value is not None and value is not None:
            self.value[rows, t] = torch.where(alive, value, 0.0)

    def finish(self, cut: Tensor) -> Generated:
        length = self.lived.sum(1)
        return Generated(self.token, self.logp, self.entropy, self.tempered, self.value, length, cut, self.sampled)


def _uniform(seeds: Sequence[int], limit: int) -> Tensor:
    own = torch.Generator()
    return torch.stack([torch.rand(limit, generator=own.manual_seed(seed)) for seed in seeds])


def _forced(begin: Sequence[Tensor], rows: int, limit: int, device: torch.device) -> Tensor:
    forced = torch.full((rows, limit), -1, dtype=torch.int64)
    for row, tokens in enumerate(begin):
        forced[row, : len(tokens)] = tokens[:limit]
    return forced.to(device)
