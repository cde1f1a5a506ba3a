"""The bundled tasks with exact verifiers: pure Python, so that prompts, rewards and pretraining share them."""

from __future__ import annotations

from studio.text.tasks.arithmetic import Arithmetic
from studio.text.tasks.countdown import Countdown
from studio.text.tasks.problem import LEVELS, MARK, Problem, Task
from studio.text.tasks.records import Records
from studio.text.tasks.sequences import Brackets, Sorting

__all__ = ["LEVELS", "MARK", "TASKS", "Problem", "Task"]

TASKS: dict[str, Task] = {
    task.name: task for task in (Arithmetic("+"), Arithmetic("-"), Countdown(), Sorting(), Brackets(), Records())
}
