"""A causal language model as a Policy: one row is a completion, one decision is a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from studio.text.budgets import thoughts_and_answers
from studio.text.engine import Engine
from studio.text.generate import Generated, generate, put_beside
from studio.text.given import answer_tokens, beginnings, check_pairs, pair_answers
from studio.text.handover import Handover
from studio.text.monitor import Monitor
from studio.text.network import TokenNetwork
from studio.text.remote import generate_remotely
from studio.text.sampling import Sampling
from studio.text.tokens import pack, trace_of
from studio.text.tools import ToolUser
from studio.text.windows import next_window
from studio.text.writer import Writer
from studio.types import Credit, Evaluation, Prompts, Rollout


class TokenPolicy:
    """Writes completions and evaluates their tokens again with the network of the moment."""

    reduction = "sum"  # of logp over a decision: a token is one number

    def __init__(
        self,
        network: TokenNetwork,
        tokenizer: Any,
        sampling: Sampling,
        *,
        provides: frozenset[str],
        lora: bool = False,
        engine: Engine | None = None,
    ) -> None:
        self.writer = Writer(network, tokenizer, sampling, self._write, lora=lora)
        self.sampling, self.provides, self.engine = sampling, provides, engine
        self.memory = Monitor(sampling.monitor)
        self.tempered = False  # whether an objective asks for other temperatures: each is one more pass over the vocabulary
        self._tools = ToolUser(tokenizer, sampling.tools) if sampling.tools else None
        self._handover = Handover(engine, lora=lora) if engine else None
        self._served = ""  # what the server calls the weights that it was last given

    def __getattr__(self, name: str) -> Any:
        """Network, tokenizer, files, reference and evaluation texts are the writer's."""
        if name == "writer":
            raise AttributeError(name)
        return getattr(self.writer, name)

    def sample(
        self,
        rows: Prompts,
        *,
        group: Tensor,
        seeds: Sequence[int],
        step: int,
        finished: Callable[[Prompts, list[str]], None] | None = None,
        micro: int | None = None,
    ) -> Rollout:
        """One completion a row with what was said of every token; `finished` sees every part of them as it is done.

        Parts are of `sampling.batch` rows, or of `micro`.
        """
        prompts, size = self.reader.read(rows), self.sampling.batch or micro or len(rows)
        if self._handover is not None:
            self._served = self._handover.at(step, self.save)
        answers = pair_answers(rows, group) if self.sampling.pairs else [None] * len(rows)
        done, texts = [], []
        for at in range(0, len(rows), size):
            cut = range(at, min(at + size, len(rows)))
            done.append(self._part(rows.take(cut), [prompts[i] for i in cut], [seeds[i] for i in cut], [answers[i] for i in cut]))
            texts += self.reader.texts(done[-1])
            if finished is not None:
                finished(self.reader.told(rows.take(cut), done[-1]), texts[at:])
        token, cut_off = _joined(done, "token"), _joined(done, "cut")
        mask = _joined(done, "sampled")
        if not self.sampling.train_cut:
            mask = mask & ~cut_off[:, None]
        old = Evaluation(
            logp=_joined(done, "logp"),
            entropy=_joined(done, "entropy"),
            token=token,
            tempered=_joined(done, "tempered") if self.tempered else None,
            value=_joined(done, "value") if self.model.critic is not None else None,
        )
        rollout = Rollout(rows, texts, trace_of(prompts, token), mask, group.to(self.device), old, cut=cut_off, seeds=list(seeds))
        if self.sampling.pairs:
            rollout = self._with_given(rollout, answers, micro or len(rows))
        if self._handover is None:
            return rollout
        said = _joined(done, "engine")
        return replace(rollout, engine=torch.where(said == 0, rollout.old.logp, said))  # type: ignore[arg-type]

    def evaluate(self, rollout: Rollout) -> Evaluation:
        """The recorded tokens that train, under the current network: all rows in one batch, the rest 0."""
        places = pack(rollout.trace, rollout.mask)  # type: ignore[arg-type]
        heard = self.network(
            places.tokens,
            places.row,
            places.column,
            places.chosen,
            temperature=self.sampling.temperature,
            tempered=self.tempered,
        )
        first = rollout.trace.window[0] if rollout.trace.window else 0  # type: ignore[union-attr]

        def spread(said: Tensor | None) -> Tensor | None:
            if said is None:
                return None
            flat = said.new_zeros(*rollout.mask.shape, *said.shape[1:])
            return flat.index_put((places.row, places.decision - first), said)

        return Evaluation(
            logp=spread(heard.logp), entropy=spread(heard.entropy), tempered=spread(heard.tempered), value=spread(heard.value)
        )

    @torch.no_grad()
    def logits(self, rollout: Rollout) -> Tensor:
        """Of the recorded decisions that train [N, V], at temperature 1."""
        places = pack(rollout.trace, rollout.mask)  # type: ignore[arg-type]
        heard = self.model(places.tokens, places.row, places.column)
        assert heard.logits is not None
        return heard.logits

    def monitor(self, rollout: Rollout, credit: Credit, step: int) -> dict[str, float]:
        """Signs of over-optimization, at an interval."""
        return self.memory(self, rollout, step)

    def want(self, needs: frozenset[str]) -> None:
        """What an objective needs decides what is computed beside likelihoods."""
        self.tempered = "tempered" in needs

    def check_prompts(self, prompts: Prompts) -> None:
        """ConfigError for a prompt that leaves no room for its completion, or that cannot be put into the chat's form."""
        if self.sampling.pairs:
            check_pairs(prompts)
        self.writer.check_room(prompts)

    def _part(self, rows: Prompts, prompts: list[Tensor], seeds: list[int], answers: list[str | None]) -> Generated:
        """Completions of these rows: answers that are given, and the others drawn, as the prompt source says in their info."""
        if "window" in rows.info[0]:
            return next_window(self._drawn, rows, prompts, seeds, self.sampling.limit)
        if "budgets" in rows.info[0]:
            return thoughts_and_answers(self._drawn, self.tokenizer, rows, prompts, seeds, self.sampling.limit)
        free = [i for i, answer in enumerate(answers) if answer is None]
        begin: list[Tensor] = []
        if self.sampling.roll_in:
            begin = beginnings(
                self.tokenizer, rows.take(free), [seeds[i] for i in free], self.sampling.roll_in, self.sampling.reference
            )
        drawn = None
        if free:
            write = self._write if self.engine is None else self._ask
            drawn = write([prompts[i] for i in free], [seeds[i] for i in free], self.sampling.temperature, begin)
        if len(free) == len(answers):
            assert drawn is not None
            return drawn
        known = {i: answer_tokens(self.tokenizer, a, self.sampling.limit) for i, a in enumerate(answers) if a is not None}
        return put_beside(known, drawn, free, len(answers), self.sampling.limit, self.device)

    @torch.no_grad()
    def _with_given(self, rollout: Rollout, answers: list[str | None], micro: int) -> Rollout:
        """The rollout with what the policy says of given answers recorded, as if it had drawn them."""
        given = torch.tensor([answer is not None for answer in answers], device=self.device)
        for rows in given.nonzero()[:, 0].split(micro):
            said = self.evaluate(rollout.at(rows))
            for name in ("logp", "entropy", "tempered", "value"):
                old, new = getattr(rollout.old, name), getattr(said, name)
                if old is not None and new is not None:
                    old[rows] = new
        return replace(rollout, given=given)

    def _drawn(self, prompts: Sequence[Tensor], seeds: Sequence[int], limit: int, stop: Sequence[str]) -> Generated:
        """Training completions of at most `limit` tokens, which these strings end as well."""
        write = self._write if self.engine is None else self._ask
        return write(prompts, seeds, self.sampling.temperature, limit=limit, stop=stop)

    def _ask(
        self,
        prompts: Sequence[Tensor],
        seeds: Sequence[int],
        temperature: float,
        begin: Sequence[Tensor] = (),
        *,
        limit: int | None = None,
        stop: Sequence[str] = (),
    ) -> Generated:
        """The same, written by the server; its own likelihoods stand in `engine`."""
        assert self.engine is not None
        done, said = generate_remotely(
            self.model,
            prompts,
            seeds,
            self.engine,
            model=self._served,
            limit=limit or self.sampling.limit,
            end=self.reader.end,
            temperature=temperature,
            tempered=self.tempered,
            begin=begin,
            stop=[*self.sampling.stop, *stop],
        )
        return replace(done, engine=said)

    def _write(
        self,
        prompts: Sequence[Tensor],
        seeds: Sequence[int],
        temperature: float,
        begin: Sequence[Tensor] = (),
        *,
        limit: int | None = None,
        stop: Sequence[str] = (),
    ) -> Generated:
        return generate(
            self.model,
            prompts,
            seeds,
            limit=limit or self.sampling.limit,
            end=self.reader.end,
            temperature=temperature,
            tempered=self.tempered,
            begin=begin,
            ends=partial(self.reader.ends, more=stop) if self.sampling.stop or stop else None,
            answers=self._tools.answers if self._tools else None,
        )


def _joined(parts: list[Generated], name: str) -> Tensor:
    return torch.cat([getattr(part, name) for part in parts])
