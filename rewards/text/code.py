"""Does the code in a completion pass its tests? Run in a sandbox, and judged outside of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

from rewards.facts import Facts
from rewards.text.given import check_texts, needed
from rewards.text.sandbox import Limits, fence, run
from studio.errors import ConfigError, MissingError
from studio.types import Prompts, Scores

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
LONGEST = 20_000  # characters of an answer that are read back
FORMS = 'Write "assert f(1) == 2", {"call": "f(1)", "equals": 2} or {"input": "1\\n", "output": "2\\n"}.'


class Case(NamedTuple):
    """One test: a call and the value it must have, or an input and what must be printed."""

    call: str  # empty for a program that reads and prints
    wanted: Any
    given: str = ""


@dataclass(frozen=True)
class CodeReward:
    """1 if the code passes all tests in info["tests"], else 0; or the share that it passes.

    A test is `assert call == value`, {"call", "equals"} or {"input", "output"}.  Calls are evaluated in the sandbox and their
    values compared outside, so that code which ends early, prints what it likes or redefines equality gains nothing; only an
    assertion of another form than an equality is decided inside.  info["setup"] holds imports that the tests need.  The code is
    the last fenced block, else the whole completion.  Parts: code_share, code_timeout (a hang scores 0 and is not waited
    for), code_failed.  What the sandbox holds back, and where it cannot: `rewards.text.sandbox`.
    """

    how: Literal["all", "share"] = "all"
    seconds: float = 5.0  # wall clock of one process: all calls of a completion, or one program with input
    memory: int = 512  # MiB
    workers: int = 2  # completions at once
    isolation: Literal["best", "required"] = "best"  # required = refuse to run where no namespaces can be made

    name: ClassVar[str] = "code"
    reads: ClassVar[str] = "text"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = Facts("unit tests, as in DeepSeek-R1 and others", "the last fenced block is run in a sandbox")

    def check(self, prompts: Prompts) -> None:
        """ConfigError for tests that cannot be read; MissingError without the isolation that is required."""
        self._check_isolation()
        for row in range(len(prompts)):
            cases_of(prompts, row)

    def __call__(self, samples: list[str], prompts: Prompts) -> Scores:
        """Scores of completions [B]; missing where a process could not be started."""
        import torch

        check_texts(self.name, samples)
        self._check_isolation()
        cases = [cases_of(prompts, row) for row in range(len(samples))]
        with ThreadPoolExecutor(max_workers=self.workers, thread_name_prefix="code") as workers:
            done = list(workers.map(self._judged, samples, cases, [info.get("setup", "") for info in prompts.info]))
        share, hung, failed = torch.tensor([one or (0.0, 0.0, 0.0) for one in done]).reshape(-1, 3).unbind(1)
        present = torch.tensor([one is not None for one in done], dtype=torch.bool)
        parts = {"code_share": share, "code_timeout": hung, "code_failed": failed}
        return Scores(share if self.how == "share" else (share == 1).float(), present, parts)

    def _check_isolation(self) -> None:
        if self.isolation == "required" and not fence():
            raise MissingError(
                "reward 'code': expected that unshare may make namespaces, got a system where it may not. Allow unprivileged user "
                "namespaces, or work in a container and set isolation: best."
            )

    def _judged(self, text: str, cases: tuple[Case, ...], setup: str) -> tuple[float, float, float] | None:
        """(share of tests passed, whether it hung, whether it ended badly); None where no process could be started."""
        limits = Limits(self.seconds, self.memory)
        program = f"{setup}\n{code_of(text)}"
        calls = [case.call for case in cases if case.call]
        try:
            runs = [run(program, calls, limits=limits)] if calls else []
            passed = passes(runs[0].output, [case for case in cases if case.call]) if calls else 0
            for case in (case for case in cases if not case.call):
                runs.append(run(program, given=case.given, limits=limits))
                passed += runs[-1].status == "ended" and printed(runs[-1].output) == printed(case.wanted)
                if runs[-1].status == "timeout":
                    break
        except OSError:
            return None
        hung = any(one.status == "timeout" for one in runs)
        return passed / len(cases), float(hung), float(any(one.status in ("failed", "output") for one in runs))


def code_of(text: str) -> str:
    """The last fenced block of a completion, else all of it."""
    blocks = FENCE.findall(text)
    return blocks[-1] if blocks else text


def passes(output: str, cases: list[Case]) -> int:
    """How many of the answers `number<TAB>repr` are right; the first answer to a call counts."""
    answers: dict[int, str] = {}
    for line in output.split("\n"):
        number, tab, answer = line.partition("\t")
        if tab and number.isascii() and number.isdigit() and len(number) < 6:
            answers.setdefault(int(number), answer)
    return sum(is_value(answers.get(number, ""), case.wanted) for number, case in enumerate(cases))


def is_value(text: str, wanted: Any) -> bool:
    """Whether a repr is that of a plain value equal to the wanted one."""
    try:
        return len(text) <= LONGEST and bool(ast.literal_eval(text) == wanted)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def printed(text: str) -> list[str]:
    """Lines without blanks at their ends, and without empty lines at the end of all."""
    return [line.rstrip() for line in str(text).rstrip().split("\n")]


def cases_of(prompts: Prompts, row: int) -> tuple[Case, ...]:
    """The tests of a prompt; ConfigError for none, and for those of another form."""
    tests, setup = needed("code", prompts, row, "tests"), prompts.info[row].get("setup", "")
    if not isinstance(tests, list | tuple) or not tests:
        raise ConfigError(f"reward 'code': expected a list of tests for prompt {row}, got {str(tests)[:60]}. {FORMS}")
    return tuple(read_case(test, setup, row) for test in tests)


def read_case(test: Any, setup: str, row: int) -> Case:
    """One test from an assertion or a record."""
    if isinstance(test, str):
        return read_assertion(test, setup)
    if isinstance(test, Mapping) and isinstance(test.get("call"), str) and "equals" in test:
        return Case(test["call"], test["equals"])
    if isinstance(test, Mapping) and isinstance(test.get("input"), str) and isinstance(test.get("output"), str):
        return Case("", test["output"], test["input"])
    raise ConfigError(f"reward 'code': expected a test for prompt {row}, got {str(test)[:60]!r}. {FORMS}")


@lru_cache(maxsize=65_536)
def read_assertion(text: str, setup: str) -> Case:
    """`assert call == value` -> the call and its value, computed without the completion; else the truth of the assertion."""
    try:
        (statement,) = ast.parse(text.strip()).body
        if not isinstance(statement, ast.Assert):
            raise ValueError("no assertion")
    except (ValueError, SyntaxError) as problem:
        raise ConfigError(f"reward 'code': expected an assertion, got {text[:60]!r} ({problem}). {FORMS}") from problem
    asked = statement.test
    if isinstance(asked, ast.Compare) and len(asked.ops) == 1 and isinstance(asked.ops[0], ast.Eq):
        wanted = ast.unparse(asked.comparators[0])
        known, value = plain_value(wanted, setup)
        if known:
            return Case(ast.unparse(asked.left), value)
    return Case(f"bool({ast.unparse(asked)})", True)


def plain_value(expression: str, setup: str) -> tuple[bool, Any]:
    """(True, value) of a literal, or of what has a literal's value without the completion, such as set((1, 2))."""
    try:
        return True, ast.literal_eval(expression)
    except (ValueError, SyntaxError, TypeError):
        said = run(setup, [expression]).output.rstrip("\n").partition("\t")[2]
    try:
        return True, ast.literal_eval(said)
    except (ValueError, SyntaxError, TypeError):
        return False, None  # it names what only the completion defines
