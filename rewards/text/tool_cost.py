"""Right answers with few tool calls: the outcome times a factor that falls with the number of calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from rewards.candidates import by_key
from rewards.facts import Facts
from rewards.score import check_prompts
from rewards.text.format import compiled
from rewards.text.given import check_texts, reward_named, scores_of
from rewards.text.memory import Memory
from studio.types import Prompts, Rollout, Scores

if TYPE_CHECKING:
    from torch import Tensor

CORRECT, CALLS, KNOWN = "tool_correct", "tool_calls", "tool_known"  # parts; NaN in the last where nothing is known


@dataclass(frozen=True)
class ToolCost:
    """OTC (arXiv:2504.14870): scale · factor(m) · score, m the tool calls of a completion; 0 for every wrong answer.

    single  cos(π·m / (2m + c))
    group   n = fewest calls of a right answer to this problem, now or before; f = 2nm / (m + n)
            1 for m = n = 0;  cos(π·m / (2m + c)) for n = 0;  sin(π·f / 2n) otherwise

    m is info["tool_calls"] where the policy tells it, else the number of matches of `call`.
    """

    correct: str = "exact_match"  # the reward that says which answers are right
    options: dict[str, Any] = field(default_factory=dict)  # of that reward
    form: Literal["single", "group"] = "group"
    smoothing: Annotated[float, Field(gt=0)] = 4.0  # c; the largest number of calls for search questions
    scale: float = 1.0  # α
    call: str = r"<tool_call>"  # regular expression of one tool call
    memory: Memory = field(default_factory=Memory, init=False, repr=False, compare=False)

    name: ClassVar[str] = "tool_cost"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = Facts("OTC (arXiv:2504.14870)", "tool calls are counted")

    @property
    def range(self) -> tuple[float, float]:
        return (0.0, self.scale)

    def check(self, prompts: Prompts) -> None:
        """ConfigError when the pattern, or the reward that judges answers, cannot work."""
        compiled(self.call, self.name)
        check_prompts({self.correct: reward_named(self.correct, self.options, f"reward {self.name!r}")}, prompts)

    def alone(self) -> Counted:
        """What is known of a completion by itself: whether it is right, its calls, and the fewest calls known so far."""
        return Counted(self)

    def compare(self, scores: Scores, group: Tensor) -> Scores:
        """The reward [B] once all completions of every problem are there; group [B]."""
        import torch

        present = torch.ones_like(group, dtype=torch.bool) if scores.present is None else scores.present
        value = torch.zeros_like(scores.value)
        for one in torch.unique(group[present]):
            rows = (present & (group == one)).nonzero().flatten()
            calls, known = scores.parts[CALLS][rows], scores.parts[KNOWN][rows]
            right = scores.value[rows] > 0
            fewest = [x for x in [*known[~known.isnan()].tolist(), *calls[right].tolist()]]
            factors = [self.factor(m, min(fewest, default=m)) for m in calls.tolist()]
            value[rows] = scores.value[rows] * self.scale * torch.tensor(factors)
        return Scores(value, scores.present, scores.parts)

    def factor(self, calls: float, fewest: float) -> float:
        """factor(m) in [0, 1]."""
        return single_factor(calls, self.smoothing) if self.form == "single" else group_factor(calls, fewest, self.smoothing)

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]; all completions of a problem must be among them."""
        return self.compare(self.alone()(samples, prompts), by_key(prompts))

    def update(self, rollout: Rollout) -> None:
        """Remember the calls of the right answers of an iteration."""
        self.memory.learn(rollout, CORRECT, CALLS)

    def state_dict(self) -> dict[str, Any]:
        return self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state)


@dataclass(frozen=True)
class Counted:
    """The score of the judge, with calls and memory beside it; shares the memory of the reward it belongs to."""

    whole: ToolCost

    name: ClassVar[str] = "tool_cost"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None

    def check(self, prompts: Prompts) -> None:
        self.whole.check(prompts)

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        import torch

        check_texts(self.name, samples)
        judged = scores_of(reward_named(self.whole.correct, self.whole.options, f"reward {self.name!r}"), samples, prompts)
        pattern = compiled(self.whole.call, self.name)
        calls = [
            float(info.get("tool_calls", len(pattern.findall(text)))) for text, info in zip(samples, prompts.info, strict=True)
        ]
        known = [self.whole.memory.get(key) for key in prompts.key]
        score = judged.value.clamp(0, 1)
        parts = {
            CORRECT: (score > 0).float(),
            CALLS: torch.tensor(calls),
            KNOWN: torch.tensor([torch.nan if one is None else one for one in known]),
        }
        return Scores(score, judged.present, parts)

    def update(self, rollout: Rollout) -> None:
        self.whole.update(rollout)

    def state_dict(self) -> dict[str, Any]:
        return self.whole.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.whole.load_state_dict(state)


def single_factor(calls: float, smoothing: float = 4.0) -> float:
    """cos(π·m / (2m + c)): 1 without calls, falling toward 0."""
    return math.cos(math.pi * calls / (2 * calls + smoothing))


def group_factor(calls: float, fewest: float, smoothing: float = 4.0) -> float:
    """Largest at m = n, the fewest calls with which the problem was solved."""
    if fewest == 0:
        return 1.0 if calls == 0 else single_factor(calls, smoothing)
    return math.sin(math.pi * (2 * fewest * calls / (calls + fewest)) / (2 * fewest))


def tool_productivity(right: int, calls: int) -> float:
    """Right answers per tool call over a test set; infinite without calls."""
    return right / calls if calls else math.inf
