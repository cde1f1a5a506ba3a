"""Completions that a server wrote, with what the policy itself says of them: the same record as of completions written here."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from studio.text.engine import Engine, EngineError
from studio.text.engine_protocol import Answered, Asked, complete
from studio.text.generate import Generated
from studio.text.network import TokenNetwork
from studio.text.tokens import pack, trace_of


def generate_remotely(
    network: TokenNetwork,
    prompts: Sequence[Tensor],
    seeds: Sequence[int],
    engine: Engine,
    *,
    model: str,
    limit: int,
    end: Sequence[int],
    temperature: float = 1.0,
    tempered: bool = False,
    begin: Sequence[Tensor] = (),
    stop: Sequence[str] = (),
) -> tuple[Generated, Tensor]:
    """One completion a row of at most `limit` tokens -> (the record of `generate`, what the server said [B, T], 0 where not drawn).

    The policy's own log probabilities come from one replay without gradients; where the server's differ, by its kernels or by
    older weights, `EngineCorrection` weighs with min(exp(own - server), cap).  prompts: token ids [P_b] a row.  seeds: a server
    that keeps to them draws row i by seeds[i] alone.  model: what `Handover.at` returned.  begin: tokens that a row must start
    with; they are recorded as not sampled.  stop: strings that end a row, besides the ids in `end`.
    """
    device = next(network.parameters()).device
    started = [tokens[:limit].tolist() for tokens in begin] or [[] for _ in prompts]
    asked = [
        Asked(prompt.tolist() + own, limit - len(own), seed, temperature, list(end), list(stop), model)
        for prompt, own, seed in zip(prompts, started, seeds, strict=True)
    ]
    answers = _all(engine, asked)
    size = network.lm.config.get_text_config().vocab_size
    token = torch.zeros(len(prompts), limit, dtype=torch.int64)
    said, length = torch.zeros(len(prompts), limit), torch.zeros(len(prompts), dtype=torch.int64)
    for row, (own, answer) in enumerate(zip(started, answers, strict=True)):
        if max(answer.token, default=0) >= size:
            raise EngineError(
                f"engine {engine.url}: expected token ids below {size}, got {max(answer.token)}. Serve the model that is trained."
            )
        length[row] = len(own) + len(answer.token)
        token[row, : length[row]] = torch.tensor(own + answer.token)
        said[row, len(own) : length[row]] = torch.tensor(answer.logp)
    place, first = torch.arange(limit), torch.tensor([len(own) for own in started])
    sampled = (place >= first[:, None]) & (place < length[:, None])
    cut = torch.tensor([answer.cut for answer in answers])
    token, length = token.to(device), length.to(device)
    done = Generated(
        **replayed(network, prompts, token, length, temperature, tempered),
        token=token,
        length=length,
        cut=cut.to(device),
        sampled=sampled.to(device),
    )
    return done, said.to(device)


def _all(engine: Engine, asked: Sequence[Asked]) -> list[Answered]:
    """All completions, `concurrency` under way at a time; the first failure ends it. Rows without room are not asked."""
    nothing = Answered([], [], True)
    with ThreadPoolExecutor(min(engine.concurrency, len(asked)), thread_name_prefix="engine") as workers:
        waiting = [workers.submit(complete, engine, one) if one.limit > 0 else None for one in asked]
        try:
            return [nothing if one is None else one.result() for one in waiting]
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise


@torch.no_grad()
def replayed(
    network: TokenNetwork, prompts: Sequence[Tensor], token: Tensor, length: Tensor, temperature: float, tempered: bool
) -> dict[str, Any]:
    """logp, entropy, tempered, value of written tokens [B, T], by the network as it stands; 0 after the end of a row."""
    wanted = torch.arange(token.shape[1], device=token.device) < length[:, None]
    places = pack(trace_of(prompts, token), wanted)
    at = (places.row, places.decision)
    heard = network(places.tokens, places.row, places.column, places.chosen, temperature=temperature or 1.0, tempered=tempered)
    said = {name: getattr(heard, name) for name in ("logp", "entropy", "tempered", "value")}
    return {
        name: None if value is None else value.new_zeros(*token.shape, *value.shape[1:]).index_put(at, value)
        for name, value in said.items()
    }
