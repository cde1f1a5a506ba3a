"""A masked-diffusion language model as a Policy: one row is a completion, one decision is a mask under which it is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from studio.seeds import row_seed
from studio.text.masked_network import MaskedNetwork
from studio.text.masked_recipe import Unmasking
from studio.text.unmask import Unmasked, laid_out, unmask
from studio.text.writer import Writer
from studio.types import EVERY, Evaluation, Prompts, Rollout


@dataclass(frozen=True, slots=True)
class MaskTrace:
    """What was read, what was written, and the masks under which it is judged: the same for the old and the new network."""

    prompt: Tensor  # [B, P] int64, filled up on the right
    prompt_length: Tensor  # [B]
    token: Tensor  # [B, T] int64
    length: Tensor  # [B] tokens of the completion, its end included
    hidden: Tensor  # [B, M, T] bool, True = masked and asked about; only within the length

    def at(self, rows, steps=EVERY) -> MaskTrace:
        return MaskTrace(
            self.prompt[rows], self.prompt_length[rows], self.token[rows], self.length[rows], self.hidden[rows][:, steps]
        )


def draw_masks(length: Tensor, samples: int, seeds: Sequence[int], limit: int) -> Tensor:
    """M masks of each completion, [B, M, T] bool, from its own seed.

    Mask k hides x_k = 1 + (s + ⌊k·L/M⌋) mod L of the L tokens, s uniform on 0..L-1: every x_k alone is uniform on 1..L, together
    they are spread evenly (stratified). Which tokens is uniform. BGPO (arXiv:2510.11683), LLaDA (arXiv:2502.09992).
    length [B], at least 1 and at most T = limit.
    """
    masks = torch.zeros(len(seeds), samples, limit, dtype=torch.bool)
    own = torch.Generator()
    for row, (count, seed) in enumerate(zip(length.tolist(), seeds, strict=True)):
        own.manual_seed(row_seed(seed, "masks", 0))
        start = int(torch.rand((), generator=own).item() * count)
        hides = 1 + (start + torch.arange(samples) * count // samples) % count
        order = torch.rand(samples, limit, generator=own)[:, :count].argsort(1).argsort(1)
        masks[row, :, :count] = order < hides[:, None]
    return masks.to(length.device)


def matching_error(network: nn.Module, mask: int, trace: MaskTrace, row: Tensor, draw: Tensor) -> Tensor:
    """Minus the sampled likelihood bound per token, of N pairs of a row and one of its masks -> [N] nats, lower = more likely.

    -l = (1/L)·Σ_masked CE / (x/L) = mean of the cross-entropy over the x masked tokens, at temperature 1
    BGPO (arXiv:2510.11683); its mean over masks is the bound of LLaDA (arXiv:2502.09992).  mask: id of the mask token.
    What stands after a completion's end stays masked and is not asked about, as it stood while the row was written: how long
    the row is cannot be read off.
    """
    hidden, token = trace.hidden[row, draw], trace.token[row]
    after = torch.arange(token.shape[1], device=token.device) >= trace.length[row, None]
    canvas = laid_out(trace.prompt[row], trace.prompt_length[row], torch.where(hidden | after, mask, token))
    pair, at = hidden.nonzero(as_tuple=True)
    logp = network(canvas.tokens, canvas.seen, pair, canvas.columns[pair, at], token[pair, at])
    return logp.new_zeros(len(row)).index_add(0, pair, -logp / hidden.sum(1)[pair])


class MaskedPolicy:
    """Fills in completions and says how likely they are by a bound, sampled with M masks a row: `fit` [B, M].

    Each mask may be replayed alone (train.split_steps), so memory does not grow with their number.
    """

    reduction: Literal["mean", "sum"] = "mean"  # of the bound over a completion's tokens

    def __init__(
        self,
        network: MaskedNetwork,
        tokenizer: Any,
        sampling: Unmasking,
        *,
        samples: int,
        provides: frozenset[str],
        lora: bool = False,
    ) -> None:
        self.writer = Writer(network, tokenizer, sampling, self._write, lora=lora)
        self.provides, self.unmasking, self.samples = provides, sampling, samples
        self.pad: int = self.reader.end[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __getattr__(self, name: str) -> Any:
        """Network, tokenizer, files, reference and evaluation texts are the writer's."""
        if name == "writer":
            raise AttributeError(name)
        return getattr(self.writer, name)

    def want(self, needs: frozenset[str]) -> None:
        """Nothing here is optional."""

    def check_prompts(self, prompts: Prompts) -> None:
        """ConfigError for a prompt that leaves no room for its completion."""
        self.writer.check_room(prompts)

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
        """One completion a row with its masks and what is said under them; `finished` sees every part as it is written."""
        prompts, size = self.reader.read(rows), micro or len(rows)
        done: list[Unmasked] = []
        texts: list[str] = []
        for at in range(0, len(rows), size):
            cut = range(at, min(at + size, len(rows)))
            done.append(self._write(prompts[cut.start : cut.stop], seeds[cut.start : cut.stop], self.sampling.temperature))
            texts += self.reader.texts(done[-1])  # type: ignore[arg-type]
            if finished is not None:
                finished(rows.take(cut), texts[at:])
        trace = self._trace(prompts, done, seeds)
        cut_off = torch.cat([part.cut for part in done])
        mask = torch.ones(trace.hidden.shape[:2], dtype=torch.bool, device=self.device)
        if not self.sampling.train_cut:
            mask = mask & ~cut_off[:, None]
        rollout = Rollout(rows, texts, trace, mask, group.to(self.device), Evaluation(), cut=cut_off, seeds=list(seeds))
        return replace(rollout, old=Evaluation(fit=self._recorded(rollout, size)))

    def evaluate(self, rollout: Rollout) -> Evaluation:
        """The completions under the recorded masks that train, by the current network: all in one batch, the rest 0."""
        wanted = rollout.mask
        if not wanted.any():  # every process takes part in every call
            wanted = torch.zeros_like(wanted)
            wanted[0, 0] = True
        row, draw = wanted.nonzero(as_tuple=True)
        fit = matching_error(self.network, self.model.mask, rollout.trace, row, draw)  # type: ignore[arg-type]
        return Evaluation(fit=fit.new_zeros(wanted.shape).index_put((row, draw), fit))

    def _write(self, prompts: Sequence[Tensor], seeds: Sequence[int], temperature: float) -> Unmasked:
        return unmask(
            self.model,
            prompts,
            seeds,
            limit=self.unmasking.limit,
            block=self.unmasking.block,
            steps=self.unmasking.steps,
            end=self.reader.end,
            pad=self.pad,
            temperature=temperature,
            ends=self.reader.ends if self.unmasking.stop else None,
        )

    def _trace(self, prompts: Sequence[Tensor], done: Sequence[Unmasked], seeds: Sequence[int]) -> MaskTrace:
        length = torch.cat([part.length for part in done])
        return MaskTrace(
            pad_sequence(list(prompts), batch_first=True, padding_value=self.pad).to(self.device),
            torch.tensor([len(tokens) for tokens in prompts], device=self.device),
            torch.cat([part.token for part in done]),
            length,
            draw_masks(length, self.samples, seeds, self.unmasking.limit),
        )

    @torch.no_grad()
    def _recorded(self, rollout: Rollout, size: int) -> Tensor:
        """What the sampling weights say [B, M], one mask at a time, so that memory does not grow with their number."""
        parts = []
        for at in range(0, len(rollout.mask), size):
            rows = slice(at, at + size)
            said = [self.evaluate(rollout.at(rows, slice(k, k + 1))).fit for k in range(self.samples)]
            parts.append(torch.cat(said, 1))  # type: ignore[arg-type]
        return torch.cat(parts)
