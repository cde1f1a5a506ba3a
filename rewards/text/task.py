"""Was the problem of the bundled text world solved? An exact judge without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from rewards.facts import Facts
from rewards.text.given import check_texts, needed
from studio.errors import ConfigError
from studio.text.tasks import MARK, TASKS
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


@dataclass(frozen=True)
class TaskReward:
    """1 where the answer after the mark # is right, else 0; or the graded value of the task, which is 1 only there.

    Parts: task_strict, task_graded.  What the grades mean stands with each task in `studio.text.tasks`.
    """

    value: Literal["strict", "graded"] = "strict"

    name: ClassVar[str] = "task"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = Facts("the bundled text world", "the text after the mark #", "1 for the reference solutions")

    def check(self, prompts: Prompts) -> None:
        """ConfigError for the first prompt that is no problem of the bundled world."""
        for row in range(len(prompts)):
            info = required_problem(prompts, row)
            try:
                right = TASKS[info["task"]].verify(f"{MARK}{info['answer']}", info)
            except (KeyError, TypeError, AttributeError):
                right = False
            if not right:
                raise ConfigError(
                    f"reward 'task': expected a record of a problem of {info['task']!r} with an answer that is right, got "
                    f"{str(dict(info))[:80]} for prompt {row}. Use the prompt source `tasks`."
                )

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]."""
        import torch

        check_texts(self.name, samples)
        grades = []
        for row, text in enumerate(samples):
            info = required_problem(prompts, row)
            task = TASKS[info["task"]]
            grades.append((float(task.verify(text, info)), task.graded(text, info)))
        strict, graded = torch.tensor(grades, dtype=torch.float32).reshape(-1, 2).unbind(1)
        return Scores(strict if self.value == "strict" else graded, None, {"task_strict": strict, "task_graded": graded})


def required_problem(prompts: Prompts, row: int) -> Mapping[str, Any]:
    """The info of a prompt that names a task; ConfigError when it does not."""
    task = needed("task", prompts, row, "task")
    if task not in TASKS:
        raise ConfigError(
            f"reward 'task': expected a task of {', '.join(TASKS)}, got {task!r} for prompt {row}. Use the prompt source `tasks`."
        )
    return prompts.info[row]
