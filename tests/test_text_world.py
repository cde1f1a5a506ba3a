"""The bundled text world: problems from a seed, verifiers that are exact and cannot be talked into anything, the prompt source."""

from __future__ import annotations

import ast
import json
import random
import re
from itertools import islice

import pytest

from studio.config import build
from studio.errors import ConfigError
from studio.prompts.order import Shuffled
from studio.prompts.tasks import TaskPrompts, prompts_of, rejected
from studio.text import world
from studio.text.tasks import LEVELS, MARK, TASKS
from studio.text.tasks.arithmetic import columns, worked
from studio.text.tasks.expression import equation_holds, parse
from studio.text.tasks.problem import answer_of, share_of_places
from studio.text.tasks.records import read_object

EVERY = [(task, level) for task in TASKS for level in LEVELS]
ALL = dict.fromkeys(TASKS, 1.0), dict.fromkeys(TASKS, LEVELS)


def some(task: str, level: int, count: int, seed: int = 0):
    rng = random.Random(seed)
    return [TASKS[task].sample(rng, level) for _ in range(count)]


# ---- problems


@pytest.mark.parametrize(("task", "level"), EVERY)
def test_every_reference_solution_verifies(task, level):
    for made in some(task, level, 300):
        assert TASKS[task].verify(made.solution, made.info) and TASKS[task].graded(made.solution, made.info) == 1
        assert TASKS[task].verify(f"{MARK}{made.info['answer']}", made.info), "the working is not needed"
        assert made.solution.endswith(MARK + made.info["answer"]) and made.text[-1] in ":="
        assert made.info == json.loads(json.dumps(made.info)), "info travels as JSON"
        assert made.info["task"] == task and made.info["difficulty"] == level and made.info["solution"] == made.solution


@pytest.mark.parametrize("task", TASKS)
def test_most_solutions_are_short(task):
    lengths = [len(made.solution) for level in (1, 2, 3) for made in some(task, level, 300)]
    assert max(lengths) <= 48


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize(("task", "level"), EVERY)
def test_one_changed_character_of_the_answer_is_wrong(task, level):
    """Countdown and JSON have several right answers, so there a change may be right: an independent judge decides."""
    rng, letters = random.Random(1), "0123456789+-*" if task == "countdown" else "0123456789()[]{} ab"
    for made in some(task, level, 200):
        answer = made.info["answer"]
        place = rng.randrange(len(answer))
        other = rng.choice([c for c in letters if c != answer[place]])
        changed = answer[:place] + other + answer[place + 1 :]
        if not right_by_other_means(task, changed, made.info):
            assert not TASKS[task].verify(MARK + changed, made.info), (made.text, changed)
            assert TASKS[task].graded(MARK + changed, made.info) < 1


def right_by_other_means(task, answer, info) -> bool:
    try:
        if task == "json":
            return json.loads(answer) == info["record"]
        if task == "countdown":
            numbers = sorted(node.value for node in ast.walk(ast.parse(answer)) if isinstance(node, ast.Constant))
            return eval(answer) == info["target"] and numbers == sorted(info["numbers"])
    except (SyntaxError, ValueError, TypeError):
        return False
    return answer.strip() == info["answer"]


@pytest.mark.parametrize("task", TASKS)
def test_verifiers_never_raise_and_never_accept_garbage(task):
    rng = random.Random(2)
    letters = [chr(c) for c in range(1, 128)] + list("٣²½１２３，＃𝟙\u200b\x00é") + [MARK] * 20
    made = some(task, 2, 1)[0]
    for _ in range(1500):
        text = "".join(rng.choices(letters, k=rng.randrange(60)))
        assert 0 <= TASKS[task].graded(text, made.info) < 1 and not TASKS[task].verify(text, made.info)
    for huge in (
        "9" * 10**6,
        "(" * 10**5,
        "[" * 10**5,
        "{" * 10**5,
        '{"a":' * 10**5,
        "9*" * 10**5 + "9",
        "-" * 10**5 + "1",
        "1e999999",
    ):
        assert not TASKS[task].verify(MARK + huge, made.info) and TASKS[task].graded(MARK + huge, made.info) < 1


@pytest.mark.parametrize("task", TASKS)
def test_nothing_before_or_after_the_answer_talks_the_verifier_round(task):
    for made in some(task, 2, 50):
        answer = made.info["answer"]
        wrong = f"{answer} or not", f"{answer}{MARK}0", f"0{MARK}{answer}", f"{answer}{MARK}{answer}", f"{answer}\n{answer}"
        for text in ("", MARK, f"{MARK} ", answer, made.solution.replace(MARK, ""), *(MARK + w for w in wrong)):
            assert not TASKS[task].verify(text, made.info), text


def test_digits_of_other_scripts_are_no_answer():
    made = some("addition", 2, 1)[0]
    wide = "".join(chr(0xFF10 + int(digit)) for digit in made.info["answer"])
    assert int(wide) == int(made.info["answer"]) and not TASKS["addition"].verify(MARK + wide, made.info)
    assert not TASKS["addition"].verify(f"{MARK}+{made.info['answer']}", made.info)
    assert not TASKS["addition"].verify(f"{MARK}0{made.info['answer']}", made.info)
    assert answer_of("1 # 2 \n") == "2" and answer_of("#" + "1" * 257) is None
    assert answer_of(MARK + wide) is None and answer_of("#1#1") is None and answer_of("#1\t") is None


# ---- mistakes


@pytest.mark.parametrize(("task", "level"), EVERY)
def test_every_mistake_is_wrong_and_looks_like_a_solution(task, level):
    for seed, made in enumerate(some(task, level, 300)):
        wrong = TASKS[task].mistake(random.Random(seed), made)
        assert not TASKS[task].verify(wrong, made.info) and wrong == wrong.strip() and wrong.count(MARK) == 1
        assert len(wrong) <= len(made.solution) + 8 and (answer_of(wrong) is not None or len(made.info["answer"]) == 1)


@pytest.mark.parametrize(
    ("case", "steps", "number"),
    [
        ((58, 67, "+", 0), "8+7=15 5+6=11", 115),  # the carry is forgotten
        ((52, 13, "+", 0), "2+3=5 5+1+1=7", 75),  # made up
        ((52, 17, "-", 0), "12-7=5 5-1=4", 45),
        ((500, 1, "-", 0), "10-1=9 0-0=0 5-0=5", 509),
        ((52, 51, "-", 0), "2-1=1 15-5-1=9", 91 - 100),  # a borrow from nowhere: no number, so no mistake of ours
    ],
)
def test_slips_by_hand(case, steps, number):
    assert worked(*case) == (steps, number)


def test_mistakes_by_hand():
    def of(task, text, **info):
        made = world.Problem(text, "", info, "")
        return {TASKS[task].mistake(random.Random(seed), made) for seed in range(40)}

    assert of("addition", "58+67=") == {"8+7=15 5+6=11 #115"}
    assert of("subtraction", "52-51=") == {"2-0=2 5-5=0 #2"}  # no borrow can be
    assert of("countdown", "", numbers=[2, 2], target=4) == {"2+2=4 #4", "2*2=4 #4"}  # no expression has another value
    assert of("countdown", "", numbers=[9, 8], target=1) == {"9+8=17 #9+8", "9*8=72 #9*8"}
    assert of("sorting", "", answer="7 12 12") == {"#12 7 12"} and of("sorting", "", answer="5 5 5") == {"#5 5"}
    assert of("brackets", "", answer="])") == {"#))", "#})", "#]]", "#]}", "#]"}
    assert of("json", "", record={"age": 31, "name": "ann"}) == {'#{"age":"31","name":"ann"}', '#{"age":31,"name":"an"}'}


def test_problems_come_with_a_pair_of_answers_that_depends_on_the_problem_only():
    made = some("addition", 2, 1)[0]
    info = prompts_of([made]).info[0]
    assert info["chosen"] == made.solution and info["rejected"] == rejected(made) == rejected(made) != made.solution
    source = TaskPrompts()
    for name, one in zip(source.held_out(60).key, source.held_out(60).info, strict=True):
        assert TASKS[one["task"]].verify(one["chosen"], one) and not TASKS[one["task"]].verify(one["rejected"], one), name
    drawn = build(TaskPrompts, {}).build(3).next(4000)
    assert max(len(one[side]) for one in drawn.info for side in ("chosen", "rejected")) < 56  # the recipes' limit, with an end


# ---- each task by hand


def test_columns_by_hand():
    assert columns(58, 67, "+") == "8+7=15 5+6+1=12"
    assert columns(958, 7, "+") == "8+7=15 5+0+1=6 9+0=9"
    assert columns(52, 17, "-") == "12-7=5 5-1-1=3"
    assert columns(500, 1, "-") == "10-1=9 10-0-1=9 5-0-1=4"  # the borrow goes through the zero


@pytest.mark.parametrize("sign", ["+", "-"])
def test_the_columns_spell_the_answer_and_are_true(sign):
    rng = random.Random(3)
    for _ in range(300):
        a, b = sorted((rng.randrange(10**4), rng.randrange(10**4)), reverse=True)
        steps = columns(a, b, sign).split(" ")
        assert all(equation_holds(step) for step in steps)
        results = [step.partition("=")[2] for step in steps]
        digits = "".join(result[-1] for result in reversed(results[:-1]))
        assert int(results[-1] + digits) == (a + b if sign == "+" else a - b)


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [("3*5+9", 24, (3, 5, 9)), ("3+5*9", 48, (3, 5, 9)), ("(3+5)*9", 72, (3, 5, 9)), ("9-3-5", 1, (9, 3, 5)), ("((7))", 7, (7,))],
)
def test_expressions_by_hand(text, value, numbers):
    assert (parse(text).value, parse(text).numbers) == (value, numbers)


@pytest.mark.parametrize(
    "text",
    ["", "3+", "+3", "-3+5", "3 + 5", "3**5", "3/5", "3//5", "(3", "3)", "()", "3(5)", "x", "__import__('os')", "12345", "²", "٣"],
)
def test_what_is_no_expression(text):
    with pytest.raises(ValueError):
        parse(text)
    assert not equation_holds(f"{text}=3")


def test_long_and_deep_expressions_are_refused():
    assert parse("1+" * 31 + "1").value == 32 and parse("(" * 8 + "1" + ")" * 8).value == 1
    for text in ("1+" * 32 + "1", "(" * 9 + "1" + ")" * 9):
        with pytest.raises(ValueError, match="at most"):
            parse(text)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # 1(2) is a call to Python
def test_expressions_agree_with_python():
    rng = random.Random(4)
    for _ in range(2000):
        text = "".join(rng.choices("123+-*()", k=rng.randrange(1, 12)))
        try:
            value = parse(text).value
        except ValueError:
            continue
        assert value == eval(text), text


def test_countdown_uses_every_number_once():
    task, info = TASKS["countdown"], {"numbers": [3, 3, 9], "target": 18}
    assert task.verify("#3*3+9", info) and task.verify("#9+(3*3)", info)
    for wrong in ("#9+9", "#18", "#3*3+9+0", "#9*3-3", "#3*3*9", "#3*9-9"):
        assert not task.verify(wrong, info)
    # 3+3+9 = 15 is 3 away: 0.5 + 0.4 / 4
    assert task.graded("#3+3+9", info) == pytest.approx(0.6) and task.graded("#9+9", info) == 0.1 and task.graded("#x", info) == 0


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"name":"ann","age":31}', True),
        ('{ "age": 31, "name": "ann" }', True),
        ('{"name":"ann","age":31.0}', False),
        ('{"name":"ann","age":"31"}', False),
        ('{"name":"ann","age":true}', False),
        ('{"name":"ann","age":31,"age":31}', False),
        ('{"name":"ann","age":31,"x":1}', False),
        ('{"name":"ann"}', False),
        ('[{"name":"ann","age":31}]', False),
        ('{"name":"ann","age":NaN}', False),
        ("null", False),
    ],
)
def test_json_records(answer, right):
    info = {"record": {"name": "ann", "age": 31}}
    assert TASKS["json"].verify(MARK + answer, info) is right
    assert (TASKS["json"].graded(MARK + answer, info) == 1) is right
    assert not TASKS["json"].verify('#{"age":true}', {"record": {"age": 1}})
    assert read_object('{"a":NaN}') is read_object("[" * 10**5) is read_object("[1]") is None and read_object("{}") == {}


def test_grades_by_hand():
    assert share_of_places("123", "123") == 1 and share_of_places("", "12") == 0
    assert TASKS["addition"].graded("#1305", {"answer": "1205"}) == pytest.approx(3 / 4)
    assert TASKS["addition"].graded("#305", {"answer": "1305"}) == pytest.approx(3 / 4)  # counted from the last digit
    assert TASKS["sorting"].graded("#3 7 5 12", {"answer": "3 5 7 12"}) == pytest.approx(1 / 2)
    assert TASKS["brackets"].graded("#)]", {"answer": ")]}"}) == pytest.approx(2 / 3)
    assert TASKS["brackets"].graded("#)}]", {"answer": ")]}"}) == pytest.approx(1 / 3)
    assert TASKS["brackets"].graded("#)]})", {"answer": ")]}"}) == pytest.approx(3 / 4)
    assert TASKS["json"].graded('#{"a":1,"b":2}', {"record": {"a": 1, "b": 3, "c": 4}}) == pytest.approx(1 / 3)


# ---- splits and seeds


def test_the_same_seed_gives_the_same_problems_and_another_others():
    first, again, other = ([made.text for made in islice(world.problems(seed, *ALL), 60)] for seed in (0, 0, 1))
    assert first == again != other


def test_train_and_held_out_problems_are_disjoint_whatever_the_order_of_what_is_given():
    train = {made.identity for made in islice(world.problems(0, *ALL), 4000)}
    test = {made.identity for made in islice(world.problems(0, *ALL, test=True), 1000)}
    assert not train & test
    share = sum(world.held_out(made) for made in some("sorting", 2, 4000)) / 4000
    assert share == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize("task", ["addition", "countdown"])
def test_the_order_of_what_is_given_makes_no_other_problem(task):
    identities: dict[str, set[str]] = {}
    orders: dict[str, set[str]] = {}
    for made in some(task, 1, 4000):
        given = f"{made.info.get('target')} {sorted(re.findall('[0-9]+', made.text))}"
        identities.setdefault(given, set()).add(made.identity)
        orders.setdefault(given, set()).add(made.text)
    assert all(len(found) == 1 for found in identities.values())
    assert max(len(found) for found in orders.values()) > 1


# ---- the prompt source


def test_the_source_gives_what_the_verifier_needs():
    prompts = TaskPrompts().build(0).next(40)
    assert {info["task"] for info in prompts.info} == set(TASKS)
    assert prompts.key == prompts.text
    for info in prompts.info:
        assert info["difficulty"] == world.USUAL[info["task"]] and TASKS[info["task"]].verify(info["solution"], info)


def test_a_stream_continues_exactly_and_a_list_comes_again():
    whole, parted = (TaskPrompts().build(3) for _ in range(2))
    parted.next(5)
    resumed = TaskPrompts().build(3)
    resumed.next(9)
    resumed.load_state_dict(json.loads(json.dumps(parted.state_dict())))
    whole.next(5)
    assert whole.next(4).text == resumed.next(4).text
    listed = TaskPrompts(train=8)
    first, other = listed.build(0), listed.build(1)
    assert isinstance(first, Shuffled)
    assert sorted(first.next(8).text) == sorted(first.next(8).text) == sorted(other.next(8).text)


def test_held_out_problems_are_never_trained_on_and_the_same_for_every_seed():
    source = TaskPrompts(difficulty=1)
    test = source.held_out(100)
    assert len(set(test.text)) == 100 and test.text == source.held_out(100).text
    assert not set(test.key) & set(source.build(0).next(3000).key)
    assert not set(test.key) & set(TaskPrompts(difficulty=1, train=300).build(0).prompts.key)
    assert len(TaskPrompts(test=5).held_out(100)) == 5


def test_tasks_have_shares_and_levels():
    source = build(TaskPrompts, {"tasks": {"addition": 3, "sorting": 1}, "difficulty": {"sorting": 4}}, where="prompts")
    infos = source.build(0).next(400).info
    assert sum(info["task"] == "addition" for info in infos) == pytest.approx(300, abs=40)
    assert {info["difficulty"] for info in infos if info["task"] == "sorting"} == {4}
    assert {info["difficulty"] for info in infos if info["task"] == "addition"} == {world.USUAL["addition"]}
    levels = build(TaskPrompts, {"tasks": ["json"], "difficulty": [1, 3]}, where="prompts").build(0).next(50).info
    assert {info["difficulty"] for info in levels} == {1, 3} and {info["task"] for info in levels} == {"json"}


def test_the_rule_may_precede_the_problem_and_the_key_stays():
    plain, told = (TaskPrompts(tasks=("sorting",), instructions=flag).build(0).next(1) for flag in (False, True))
    assert told.text == [f"{TASKS['sorting'].rule}\n{plain.text[0]}"] and told.key == plain.key


def test_a_small_world_says_that_it_is_exhausted():
    (note,) = TaskPrompts(tasks=("countdown",), difficulty=1, train=10_000).check()
    assert "10000 training problems asked for, but only" in note
    assert TaskPrompts().check() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": ["aditions"]}, "no task is named 'aditions'; did you mean 'addition'"),
        ({"tasks": {"addition": 0}}, "expected a positive share"),
        ({"difficulty": 5}, "levels from 1 to 4, got 5"),
        ({"difficulty": []}, "levels from 1 to 4"),
        ({"difficulty": {"sorting": 0}}, "got 0 for 'sorting'"),
        ({"train": 0}, "greater than or equal to 1"),
    ],
)
def test_sources_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        build(TaskPrompts, options, where="recipe.prompts").check()
