"""The bridge from the loop to the reward zoo: scores of a rollout, in the background while the next part is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rewards.cached import Cached
from rewards.candidates import Compares, by_key, compared
from rewards.combine import combine
from rewards.guards import guard_stats
from rewards.score import check_prompts, refuse_failures, score_all
from rewards.text_guards import text_stats
from studio.config import Weighted
from studio.types import Prompts, Rollout, Scores

__all__ = ["Scorer", "guard_stats", "join_scores", "refuse_failures", "reward_of", "check_prompts", "text_stats"]


@runtime_checkable
class Learns(Protocol):
    """A reward that scores by what earlier iterations showed: its scores may not be remembered by sample."""

    def update(self, rollout: Rollout) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...


class Scorer:
    """Named rewards, scored by one worker thread in the order of submission."""

    def __init__(self, blocks: Mapping[str, Weighted]) -> None:
        # a recipe may be run twice in a process: what one run's reward remembers is not the other's
        own = {name: block.options for name, block in blocks.items()}
        self.named = {name: replace(reward) if isinstance(reward, Learns) else reward for name, reward in own.items()}
        self.rewards = {
            name: Cached(r.alone() if isinstance(r, Compares) else r, **({"size": 0} if isinstance(r, Learns) else {}))
            for name, r in self.named.items()
        }
        self.weights = {name: block.weight for name, block in blocks.items()}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")
        self._pending: list[Future[dict[str, Scores]]] = []

    def submit(self, prompts: Prompts, samples: Any) -> None:
        """Score these samples while the caller goes on."""
        self._pending.append(self._worker.submit(self._alone, prompts, samples))

    def collect(self) -> dict[str, Scores]:
        """Everything submitted since the last call, in order; an error of a reward is raised here."""
        pending, self._pending = self._pending, []
        done = [future.result() for future in pending]
        return {name: join_scores([scores[name] for scores in done]) for name in self.rewards}

    def compared(self, scores: Mapping[str, Scores], group: Tensor) -> dict[str, Scores]:
        """What was collected, after rewards that compare the samples of a prompt have seen all of them; group [B]."""
        return compared(self.named, scores, group)

    def score(self, prompts: Prompts, samples: Any) -> dict[str, Scores]:
        """Scores of these samples now; all samples of a prompt must be among them."""
        return self.compared(self._alone(prompts, samples), by_key(prompts))

    def _alone(self, prompts: Prompts, samples: Any) -> dict[str, Scores]:
        with torch.no_grad():
            return score_all(self.rewards, samples, prompts)

    def update(self, everyone: Rollout) -> None:
        """Lets rewards with a memory learn from a finished iteration; all ranks see the same rows."""
        for reward in self.named.values():
            if isinstance(reward, Learns):
                reward.update(everyone)

    def score_with_gradient(self, prompts: Prompts, samples: Any) -> dict[str, Scores]:
        """Scores in the caller's thread, with gradients of differentiable rewards."""
        return score_all(self.rewards, samples, prompts)

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)


def reward_of(
    scores: Mapping[str, Scores], weights: Mapping[str, float], rollout: Rollout, how: str, max_failures: float
) -> tuple[Tensor, Tensor]:
    """The reward [B] and its presence [B] of the global batch; RewardError when too many rows have none."""
    refuse_failures(scores, max_failures)
    return combine(scores, weights, rollout.group.cpu(), how=how)  # type: ignore[arg-type]


def parts_of(scores: Mapping[str, Scores]) -> dict[str, Tensor]:
    """Every reward and what it wants shown, [B], NaN where missing."""
    parts: dict[str, Tensor] = {}
    for name, score in scores.items():
        present = torch.ones_like(score.value, dtype=torch.bool) if score.present is None else score.present
        parts[name] = torch.where(present, score.value, torch.nan)
        parts |= score.parts
    return parts


def join_scores(done: list[Scores]) -> Scores:
    """The scores of several parts or ranks as those of one batch."""
    present = [torch.ones_like(s.value, dtype=torch.bool) if s.present is None else s.present for s in done]
    names = dict.fromkeys(name for s in done for name in s.parts)  # a part without any score may lack them

    def parts(name: str) -> Tensor:
        return torch.cat([s.parts.get(name, torch.full_like(s.value, torch.nan)) for s in done])

    return Scores(torch.cat([s.value for s in done]), torch.cat(present), {name: parts(name) for name in names})
