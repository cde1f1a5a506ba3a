"""Code in completions: tests that cannot be talked round, and programs that misbehave in their sandbox."""

from __future__ import annotations

import os
import sys
import time

import pytest
from test_text_rewards import asked, part, values

from rewards.score import check_prompts, score_all
from rewards.text import sandbox
from rewards.text.code import Case, CodeReward, code_of, is_value, passes, printed
from rewards.text.inside import CALLS
from rewards.text.sandbox import Limits, fence, run
from studio.errors import ConfigError, MissingError

ADD = {"tests": ["assert add(1, 2) == 3", {"call": "add('a', 'b')", "equals": "ab"}]}


def test_code_passes_its_tests():
    samples = [
        "def add(a, b):\n    return a + b",
        "Sure:\n```python\ndef add(a, b): return 3\n```\nDone.",
        "def add(a, b",
        "no code",
    ]
    prompts = asked(*[ADD] * 4)
    assert values(CodeReward(), samples, prompts) == [1, 0, 0, 0]
    scores = score_all({"it": CodeReward(how="share")}, samples, prompts)["it"]
    assert scores.value.tolist() == [1, 0.5, 0, 0] == scores.parts["code_share"].tolist()
    assert scores.parts["code_failed"].tolist() == [0, 0, 1, 1] and scores.parts["code_timeout"].tolist() == [0] * 4


def test_programs_that_read_and_print():
    assert printed("a \nb\n\n") == printed("a\nb") != printed("a\n b")
    doubled = {"tests": [{"input": "2\n", "output": "4"}, {"input": "-3\n", "output": "-6\n"}]}
    samples = ["print(2 * int(input()), ' ')", "print(4)", "print('4\\n')\nraise SystemExit(1)"]
    assert values(CodeReward(how="share"), samples, asked(*[doubled] * 3)) == [1, 0.5, 0]


@pytest.mark.parametrize(
    "cheat",
    [
        "import os; os._exit(0)",
        "raise SystemExit",
        "class A:\n    def __eq__(s, o): return True\n    def __repr__(s): return 'A'\ndef add(a, b): return A()",
        "import contextlib, os\nfor fd in range(1, 20):\n"
        "    with contextlib.suppress(OSError): os.write(fd, b'0\\tTrue\\n1\\tTrue\\n')",
        "def add(a, b):\n    import sys\n    f = sys._getframe()\n"
        "    while f: a = f.f_locals.get('equals', a); f = f.f_back\n    return a",
    ],
    ids=["ends early", "leaves", "equals all", "writes answers", "looks for the answer"],
)
def test_code_cannot_talk_its_judge_round(cheat):
    assert values(CodeReward(seconds=3), [cheat], asked(ADD)) == [0]


def test_assertions_of_other_forms():
    tests = ["assert set(f(3)) == set((1, 2))", "assert f(0)", "assert math.isclose(f(1)[0], 1.0)", "assert f(2) != []"]
    prompts = asked({"tests": tests, "setup": "import math"})
    assert values(CodeReward(), ["def f(n): return [1, 2]"], prompts) == [1]
    assert values(CodeReward(how="share"), ["def f(n): return []"], prompts) == [0]
    assert code_of("```python\na\n```\n```\nb\n```") == "b\n" and code_of("x = 1") == "x = 1"
    assert passes("0\t3\n0\t4\nx\t3\n", [Case("f()", 3)]) == 1 and passes("0\t4\n0\t3", [Case("f()", 3)]) == 0
    assert (
        is_value("[1, 2]", [1, 2])
        and not is_value("f()", 3)
        and not is_value("(" * 30_000, 3)
        and not is_value("-" * 19_000 + "1", 3)
    )


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        (None, r"expected info\['tests'\]"),
        ([], "expected a list of tests"),
        (["f(1)"], "expected an assertion"),
        (["assert"], "expected an assertion"),
        ([{"call": "f(1)"}], "expected a test for prompt 0"),
    ],
)
def test_tests_that_cannot_be_read(tests, words):
    with pytest.raises(ConfigError, match=words):
        check_prompts({"it": CodeReward()}, asked({"tests": tests}))


def test_isolation_may_be_required(monkeypatch):
    monkeypatch.setattr("rewards.text.code.fence", lambda: ())
    check_prompts({"it": CodeReward()}, asked(ADD))
    with pytest.raises(MissingError, match="expected that unshare may make namespaces"):
        check_prompts({"it": CodeReward(isolation="required")}, asked(ADD))


def test_a_process_that_cannot_be_started_is_a_missing_score(monkeypatch):
    def refuse(*given, **more):
        raise BlockingIOError(11, "no more processes")

    prompts = asked({"tests": [{"call": "add(1, 2)", "equals": 3}]})
    monkeypatch.setattr("rewards.text.sandbox.subprocess.Popen", refuse)
    monkeypatch.setattr("rewards.text.sandbox.fence", lambda: ())
    assert CodeReward()(["x"], prompts).present.tolist() == [False]


# ---- the sandbox, with namespaces where this system has them and without


FENCES = {"namespaces": fence(), "alone": ()}


@pytest.fixture(params=[name for name, command in FENCES.items() if command or name == "alone"])
def kept(request, monkeypatch):
    monkeypatch.setattr(sandbox, "fence", lambda: FENCES[request.param])
    return request.param


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time; time.sleep(600)", "import os; os.close(1)\nwhile True: pass"]
)
def test_a_hang_is_killed_in_time(kept, program):
    began = time.monotonic()
    assert run(program, limits=Limits(seconds=0.7)).status == "timeout"
    assert time.monotonic() - began < 8
    assert part(CodeReward(seconds=0.7), [program], asked(ADD), "code_timeout") == [1]


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nwhile True: subprocess.Popen(['sleep', '600'])",
        "import os\nwhile True: os.posix_spawn('/bin/sleep', ['sleep', '600'], {})",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os\nos.system('sleep 600')",
        "import subprocess, sys\nsys.audit = lambda *given: None\nsubprocess.run(['/bin/echo', 'done'])",
    ],
)
def test_no_process_can_be_started(kept, program):
    began = time.monotonic()
    assert run(program + "\nprint('done')", limits=Limits(seconds=5)).output.find("done") == -1
    assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    "program", ["x = bytearray(10 ** 10)", "x = []\nwhile True: x.append(bytes(10 ** 6))", "x = 'a' * 10 ** 10"]
)
def test_memory_is_limited(kept, program):
    assert run(program + "\nprint('done')", limits=Limits(seconds=20, memory=256)).status == "failed"


def test_nothing_outside_can_be_written(kept, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    for attack in (
        "open(P, 'w')",
        "open(P, 'a').write('x')",
        "os.remove(P)",
        "os.rename(P, 'here')",
        "os.chmod(P, 0)",
        "os.truncate(P, 0)",
    ):
        ran = run(f"import os\nP = {str(mine)!r}\n{attack}\nprint('done')")
        assert ran.status == "failed" and mine.read_text() == "precious", attack
    for attack in (
        "open(P + '2', 'w')",
        "os.mkdir(P + '2')",
        "os.symlink(P, P + '2')",
        "os.open(P + '2', os.O_CREAT | os.O_WRONLY)",
    ):
        assert run(f"import os\nP = {str(mine)!r}\n{attack}").status == "failed", attack
    assert os.listdir(tmp_path) == ["mine"]
    inside = run("open('a.txt', 'w').write('x')\nimport os\nos.rename('a.txt', 'b.txt')\nprint(open('b.txt').read())")
    assert (inside.status, inside.output) == ("ended", "x\n")


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine not in CALLS, reason="seccomp is set up for other machines")
@pytest.mark.parametrize(
    "way", ["subprocess.run(['/bin/echo', 'done'])", "os.posix_spawn('/bin/echo', ['echo', 'done'], {})", "os.fork()"]
)
def test_no_process_can_be_started_behind_the_hook(kept, way, monkeypatch, tmp_path):
    """Without the hook, as if a program had got round it."""
    threads = "done\n" if os.geteuid() == 0 else ""  # whom no limit of processes binds
    without = tmp_path / "inside.py"
    without.write_text(sandbox.INSIDE.read_text().replace("    refuse(os.path", "    str(os.path"))
    monkeypatch.setattr(sandbox, "INSIDE", without)
    assert run(f"import os, subprocess\n{way}\nprint('done')", limits=Limits(seconds=5)).output == ""
    assert run("import threading\nt = threading.Thread(target=print, args=('done',))\nt.start()\nt.join()").output == threads
    assert run("print('done')").output == "done\n"


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is part of Linux")
def test_libraries_that_write_without_asking_python_are_held_back_too(kept, tmp_path):
    import ctypes

    if ctypes.CDLL(None).syscall(444, None, 0, 1) < 1:
        pytest.skip("this kernel has no Landlock")
    place = str(tmp_path / "base.db")
    assert run(f"import sqlite3\nsqlite3.connect({place!r}).execute('create table t (x)')").status == "failed"
    assert not os.listdir(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("answer")
    assert "answer" not in run(f"print(open({str(secret)!r}).read())").output


def test_a_large_file_and_a_flood_of_output_are_cut(kept):
    assert run("open('a', 'wb').write(b'x' * 10 ** 8)\nprint('done')").status == "failed"
    flood = run("while True: print('x' * 1000)", limits=Limits(seconds=20, output=8))
    assert flood.status == "output" and len(flood.output) == 8 * 1024
    assert run("def f(): return 'x' * 10 ** 6", ["f()", "1"]).status == "output"


def test_there_is_no_network(kept):
    for attack in ("socket.create_connection(('127.0.0.1', 9))", "socket.socket()", "socket.getaddrinfo('localhost', 80)"):
        assert run(f"import socket\n{attack}\nprint('done')").status == "failed"


def test_nothing_is_left_behind(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    run("open('a', 'w').write('x')\nimport os\nos.mkdir('d')")
    run("import time; time.sleep(600)", limits=Limits(seconds=0.5))
    assert os.listdir(tmp_path) == []


def test_what_is_allowed_works(kept):
    program = "import json, re, math, random, collections\nimport numpy\nprint(numpy.arange(3).sum(), input())"
    assert run(program, given="hello").output == "3 hello\n"
    program = "import sys\nsys.setrecursionlimit(5000)\ndef f(n): return n and 1 + f(n - 1)"
    assert run(program, ["f(3000)", "f('a')", "1/0"]).output == "0\t3000\n1\t!TypeError\n2\t!ZeroDivisionError\n"
