"""A reward that remembers: equal samples of equal prompts are scored once, in batches of a fixed size."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rewards.score import check_prompts, checked_scores
from studio.protocols import RewardFn
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Cached:
    """Memo around a reward whose score depends on one sample and its prompt only (not on the rest of its group).

    The key is the SHA-256 of the sample, the prompt's key and its text; a missing score is not remembered, so the next
    call tries again.  Samples with gradients go straight through, because a remembered number has none.
    """

    reward: RewardFn
    batch_size: int = 64  # most samples per call of the reward
    size: int = 16_384  # most scores remembered; the least recently used go first
    _memory: OrderedDict[tuple, tuple[float, dict[str, float]]] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        self.name = getattr(self.reward, "name", type(self.reward).__name__)
        self.reads, self.differentiable = self.reward.reads, self.reward.differentiable
        self.range, self.license, self.model_id = self.reward.range, self.reward.license, self.reward.model_id

    def check(self, prompts: Prompts) -> None:
        check_prompts({self.name: self.reward}, prompts)

    def __call__(self, samples: Any, prompts: Prompts) -> Tensor | Scores:
        """Scores [B] on the CPU; remembered ones where there are any."""
        if getattr(samples, "requires_grad", False):
            return self.reward(samples, prompts)
        keys = sample_keys(samples, prompts)
        found = {key: self._memory[key] for key in keys if key in self._memory}
        first_row = {key: row for row, key in reversed(list(enumerate(keys))) if key not in found}
        new = sorted(first_row.items(), key=lambda item: item[1])
        for start in range(0, len(new), self.batch_size):
            found |= self._score(samples, prompts, new[start : start + self.batch_size])
        self._remember(keys, found)
        return _gather([found.get(key) for key in keys])

    def _score(self, samples: Any, prompts: Prompts, new: list[tuple[tuple, int]]) -> dict:
        rows = [row for _, row in new]
        batch = [samples[row] for row in rows] if isinstance(samples, list) else samples[rows]
        scores = checked_scores(self.name, self.reward(batch, prompts.take(rows)), len(rows))
        values, present = scores.value.tolist(), scores.present.tolist()
        parts = {name: part.tolist() for name, part in scores.parts.items()}
        return {key: (values[i], {name: part[i] for name, part in parts.items()}) for i, (key, _) in enumerate(new) if present[i]}

    def _remember(self, keys: list[tuple], found: dict) -> None:
        for key in keys:
            if key in found:
                self._memory[key] = found[key]
                self._memory.move_to_end(key)
        while len(self._memory) > self.size:
            self._memory.popitem(last=False)


def sample_keys(samples: Any, prompts: Prompts) -> list[tuple[str, str, str]]:
    """(SHA-256 of the sample's content, prompt key, prompt text) of every row."""
    if isinstance(samples, list):
        content = [text.encode() for text in samples]
    else:
        shape = repr((samples.dtype, tuple(samples.shape[1:]))).encode()  # equal bytes of another shape are another sample
        content = [shape + row.numpy().tobytes() for row in samples.detach().cpu()]
    digests = [hashlib.sha256(one).hexdigest() for one in content]
    return list(zip(digests, prompts.key, prompts.text, strict=True))


def _gather(rows: list[tuple[float, dict[str, float]] | None]) -> Scores:
    import torch

    names = sorted({name for row in rows if row for name in row[1]})
    nan = float("nan")
    value = torch.tensor([row[0] if row else 0.0 for row in rows], dtype=torch.float32)
    parts = {name: torch.tensor([row[1].get(name, nan) if row else nan for row in rows]) for name in names}
    return Scores(value, torch.tensor([row is not None for row in rows]), parts)
