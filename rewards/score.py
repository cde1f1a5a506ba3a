"""Calling rewards at the boundary: what comes out of here is checked, and a failure is never a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from studio.errors import RewardError, ShapeError, StudioError
from studio.protocols import RewardFn
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class ChecksPrompts(Protocol):
    """A reward that needs more of a prompt than its text and can say so before anything is sampled."""

    def check(self, prompts: Prompts) -> None: ...


def check_prompts(rewards: Mapping[str, RewardFn], prompts: Prompts) -> None:
    """ConfigError when a prompt lacks what a reward needs."""
    for reward in rewards.values():
        if isinstance(reward, ChecksPrompts):
            reward.check(prompts)


def score_all(rewards: Mapping[str, RewardFn], samples: Any, prompts: Prompts) -> dict[str, Scores]:
    """Checked scores of every reward: value [B] float32 and 0 where missing, present [B], parts NaN where missing.

    Gradients of differentiable rewards pass through.  A reward that raises stops the run with RewardError; errors that
    already explain themselves (a missing model, a prompt that does not fit) pass unchanged, with their exit code.
    """
    return {name: checked_scores(name, _call(name, reward, samples, prompts), len(prompts)) for name, reward in rewards.items()}


def checked_scores(name: str, result: Tensor | Scores, rows: int) -> Scores:
    """What a reward returned, in the form that `score_all` promises; ShapeError or RewardError if it cannot be used."""
    import torch

    if isinstance(result, torch.Tensor):
        result = Scores(result)
    if not isinstance(result, Scores) or not isinstance(result.value, torch.Tensor):
        raise RewardError(
            f"reward {name!r}: expected a tensor [B] or Scores, got {type(result).__name__}. "
            "Return torch.tensor(values), or Scores with present for samples that have no score."
        )
    for label, tensor in {"value": result.value, "present": result.present, **result.parts}.items():
        if tensor is not None and tensor.shape != (rows,):
            raise ShapeError(
                f"reward {name!r}: {label} has shape {list(tensor.shape)}, expected [B] = [{rows}]. Return one number per sample."
            )
    value = result.value.float()
    present = torch.ones_like(value, dtype=torch.bool) if result.present is None else result.present.bool().to(value.device)
    unusable = (present & ~value.isfinite()).nonzero().flatten().tolist()
    if unusable:
        raise RewardError(
            f"reward {name!r}: expected finite scores, got {value[unusable[0]].item()} for sample {unusable[0]} "
            f"({len(unusable)} of {rows} are not finite). Return samples without a score as missing (Scores.present)."
        )
    parts = {key: torch.where(present, part.float().to(value.device), torch.nan) for key, part in result.parts.items()}
    return Scores(torch.where(present, value, 0), present, parts)


def failure_rate(scores: Scores) -> float:
    """Share of rows without a score; 0 for an empty batch."""
    if scores.present is None or not len(scores.value):
        return 0.0
    return 1 - scores.present.float().mean().item()


def refuse_failures(scores: Mapping[str, Scores], limit: float = 0.1) -> None:
    """RewardError when a reward is missing for more than this share of the rows."""
    for name, score in scores.items():
        rate = failure_rate(score)
        if rate > limit + 1e-6:  # float32: one row in ten is not more than 0.1
            raise RewardError(
                f"reward {name!r}: expected at most {limit:.0%} missing scores, got {rate:.0%} of {len(score.value)}. "
                "Look into the reward's log or server; raise the limit only if such samples are to be expected."
            )


def _call(name: str, reward: RewardFn, samples: Any, prompts: Prompts) -> Any:
    try:
        return reward(samples, prompts)
    except StudioError:
        raise
    except Exception as problem:
        raise RewardError(
            f"reward {name!r}: expected scores of {len(prompts)} samples, got {type(problem).__name__}: {problem}. "
            "Fix the reward; for a sample that cannot be scored it should return a missing row instead of raising."
        ) from problem
