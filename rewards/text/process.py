"""Scores of the steps of a completion, and how they enter advantages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rewards.facts import Facts
from rewards.score import check_prompts
from rewards.text.given import check_texts, reward_named, scores_of
from studio.errors import ConfigError
from studio.text.tasks import MARK
from studio.text.tasks.expression import equation_holds
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ProcessReward:
    """Mean, minimum or product of the scores of a completion's steps; 0 for one without a step.

    A step is what stands between two separators; what follows `stop` is the answer and no step.  The scorer `equation`
    judges written working: 1 for a true equation of small numbers such as 7+8=15, else 0.  Any other name is a reward of
    the table: it sees the step, or with `prefix` the completion up to the end of the step, as a process reward model
    does.  Parts: process_mean, process_min, process_product, process_steps; a row one of whose steps has no score is missing.
    """

    scorer: str = "equation"
    options: dict[str, Any] = field(default_factory=dict)  # of the reward that scores steps
    separator: str = " "  # between steps
    stop: str = MARK  # begins the answer; empty = all of the completion is steps
    how: Literal["mean", "min", "product"] = "mean"
    prefix: bool = True  # a reward sees all of the completion up to the end of the step

    name: ClassVar[str] = "process"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    license: ClassVar[str] = "Apache-2.0"
    facts: ClassVar[Facts] = Facts("process rewards as in ProRAG (arXiv:2601.21912)", "the completion is cut into steps")

    @property
    def range(self) -> tuple[float, float]:
        low, high = (0.0, 1.0) if self.scorer == "equation" else self._judge().range
        if self.how == "product" and (low < 0 or high > 1):
            return (-float("inf"), float("inf"))
        return (min(0.0, low), high)

    @property
    def model_id(self) -> str | None:
        return None if self.scorer == "equation" else self._judge().model_id

    def check(self, prompts: Prompts) -> None:
        """ConfigError for an empty separator or a scorer that cannot work."""
        if not self.separator:
            raise ConfigError(r'reward "process": expected a separator, got none. Write for example separator: "\n\n".')
        if self.scorer != "equation":
            check_prompts({self.scorer: self._judge()}, prompts)

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]."""
        import torch

        check_texts(self.name, samples)
        cut = [self.steps(text) for text in samples]
        rows = [row for row, steps in enumerate(cut) for _ in steps]
        score, known = self._step_scores([step for steps in cut for step in steps], prompts.take(rows))
        parts = {name: torch.zeros(len(samples)) for name in ("mean", "min", "product")}
        owner = torch.tensor(rows, dtype=torch.int64)
        for row, steps in enumerate(cut):
            if steps:
                own = score[owner == row]
                for name, value in (("mean", own.mean()), ("min", own.min()), ("product", own.prod())):
                    parts[name][row] = value
        present = torch.tensor([bool(known[owner == row].all()) for row in range(len(samples))], dtype=torch.bool)
        count = torch.tensor([len(steps) for steps in cut], dtype=torch.float32)
        return Scores(parts[self.how], present, {f"process_{name}": part for name, part in {**parts, "steps": count}.items()})

    def steps(self, text: str) -> list[str]:
        """What is scored: the steps, or for a reward with `prefix` the completion up to the end of each."""
        working = text.partition(self.stop)[0] if self.stop else text
        found, at = [], 0
        for step in working.split(self.separator):
            at += len(step)
            if step.strip():
                found.append(working[:at] if self.prefix and self.scorer != "equation" else step.strip())
            at += len(self.separator)
        return found

    def _step_scores(self, steps: list[str], prompts: Prompts) -> tuple[Tensor, Tensor]:
        import torch

        if self.scorer == "equation":
            value = torch.tensor([float(equation_holds(step)) for step in steps])
            return value, torch.ones_like(value, dtype=torch.bool)
        judged = scores_of(self._judge(), steps, prompts)
        present = torch.ones_like(judged.value, dtype=torch.bool) if judged.present is None else judged.present
        return judged.value, present

    def _judge(self) -> Any:
        return reward_named(self.scorer, self.options, f"reward {self.name!r}")


def normalized_steps(score: Tensor, mask: Tensor, eps: float = 0.0) -> Tensor:
    """(s - mean) / std over all masked tokens of all rows, 0 elsewhere -> [B, T].

    ProRAG (arXiv:2601.21912).  score [B, T] with the score of a step on each of its tokens, mask [B, T] bool.  Population
    standard deviation, 1 where it is 0 or there are fewer than two tokens; long steps weigh more than short ones.
    """
    import torch

    chosen = score[mask].float()
    deviation = chosen.std(correction=0) if len(chosen) > 1 else torch.tensor(1.0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    mean = chosen.mean() if len(chosen) else torch.tensor(0.0)
    return torch.where(mask, (score.float() - mean) / (deviation + eps), 0.0)


def two_level_advantage(reward: Tensor, group: Tensor, score: Tensor, mask: Tensor, beta: float = 0.3, eps: float = 1e-4) -> Tensor:
    """(R - mean_g) / (std_g + eps) + beta · normalized step scores, 0 outside of the mask -> [B, T].

    ProRAG (arXiv:2601.21912), beta of its script.  reward [B], group [B] int64, score and mask [B, T]; unbiased standard
    deviation of a group, 1 for a group of one.
    """
    import torch

    outcome = torch.zeros_like(reward, dtype=torch.float32)
    for one in torch.unique(group):
        rows = group == one
        own = reward[rows].float()
        spread = own.std() if len(own) > 1 else torch.tensor(1.0)
        outcome[rows] = (own - own.mean()) / (spread + eps)
    return torch.where(mask, outcome[:, None] + beta * normalized_steps(score, mask), 0.0)


def grammar_holds(tags: Sequence[str]) -> bool:
    """Whether a retrieval trace is (step query retrieval step subanswer)* step answer (ProRAG)."""
    return re.fullmatch(r"(step query retrieval step subanswer )*step answer ", "".join(f"{tag} " for tag in tags)) is not None
