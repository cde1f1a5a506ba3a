"""Rewards of texts: the formulas by hand, what cannot be fooled, what is remembered, and code that misbehaves in its sandbox."""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from local_server import Handler, running
from test_judge_rewards import says, tokens

from rewards import REWARDS
from rewards.cached import Cached
from rewards.score import check_prompts, score_all
from rewards.text import sandbox
from rewards.text.format import FormatReward
from rewards.text.history import HistoryLength, cosine_length, linear_length, repeated
from rewards.text.json_schema import JsonSchema
from rewards.text.judge import TextJudge
from rewards.text.length import LengthReward, overlong
from rewards.text.match import ExactMatch, token_f1
from rewards.text.maths import MathReward
from rewards.text.memory import Memory
from rewards.text.process import ProcessReward, grammar_holds, normalized_steps, two_level_advantage
from rewards.text.reward_model import RewardModel
from rewards.text.task import TaskReward
from rewards.text.tool_cost import ToolCost, group_factor, single_factor, tool_productivity
from studio import registry
from studio.config import component
from studio.errors import ConfigError, MissingError, RewardError, ShapeError
from studio.prompts.tasks import TaskPrompts
from studio.types import Evaluation, Prompts, Rollout

NAN = math.nan
TEXT = sorted(name for name, place in REWARDS.items() if place.startswith("rewards.text."))


def asked(*infos: dict, keys: list[str] | None = None) -> Prompts:
    names = keys or [f"q{row}" for row in range(len(infos))]
    return Prompts([f"question {row}" for row in range(len(infos))], names, [dict(info) for info in infos])


def values(reward, samples: list[str], prompts: Prompts) -> list[float]:
    return score_all({"it": reward}, samples, prompts)["it"].value.tolist()


def part(reward, samples: list[str], prompts: Prompts, name: str) -> list[float]:
    return score_all({"it": reward}, samples, prompts)["it"].parts[name].tolist()


def scored(reward, samples: list[str], prompts: Prompts) -> Rollout:
    """What the loop hands to `update` after an iteration."""
    parts = score_all({"it": reward}, samples, prompts)["it"].parts
    mask = torch.ones(len(samples), 1, dtype=torch.bool)
    return Rollout(prompts, samples, None, mask, torch.arange(len(samples)), Evaluation(), parts=parts)


# ---- all of them


@pytest.mark.parametrize("name", TEXT)
def test_every_reward_of_texts_says_what_it_is(name):
    reward = registry.lookup("reward", name)()
    assert reward.name == name and reward.reads == "text" and reward.differentiable is False
    assert reward.range[0] < reward.range[1] and reward.license and reward.facts.source and reward.facts.preprocessing
    assert reward == type(reward)() and component("reward", name).options == reward


@pytest.mark.parametrize("name", TEXT)
def test_pictures_are_refused(name):
    options = {"options": {}} if name in ("history_length", "tool_cost") else {}
    with pytest.raises(ShapeError, match="samples are Tensor, expected a list of B texts"):
        registry.lookup("reward", name)(**options)(torch.zeros(2, 3, 8, 8), asked({}, {}))


@pytest.mark.parametrize(
    "name", ["task", "exact_match", "format", "length", "json_schema", "process", "history_length", "tool_cost"]
)
def test_no_text_makes_a_reward_raise(name):
    rng, source = random.Random(0), TaskPrompts().build(0)
    letters = [chr(c) for c in range(1, 256)] + list('٣²{}[]":#\\<>=+ ') * 3 + ["\ud800"]
    reward = registry.lookup("reward", name)()
    for _ in range(20):
        prompts = source.next(16)
        samples = ["".join(rng.choices(letters, k=rng.randrange(80))) for _ in range(15)] + ["[" * 10_000]
        scores = score_all({name: reward}, samples, prompts)[name]
        low, high = reward.range
        assert all(low - 1e-6 <= value <= high + 1e-6 for value in scores.value.tolist())


# ---- answers


def test_the_task_reward_is_strict_or_graded():
    prompts = TaskPrompts(tasks=("addition",), difficulty=2).build(0).next(3)
    right = prompts.info[0]["answer"]
    samples = [prompts.info[0]["solution"], f"#{int(prompts.info[1]['answer']) + 1}", "no answer"]
    strict, graded = (score_all({"task": TaskReward(how)}, samples, prompts)["task"] for how in ("strict", "graded"))
    assert strict.value.tolist() == [1, 0, 0] == graded.parts["task_strict"].tolist() and len(right) == 3
    assert graded.value.tolist() == [1, pytest.approx(2 / 3), 0] == strict.parts["task_graded"].tolist()


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({}, r"expected info\['task'\]"),
        ({"task": "chess"}, "got 'chess'"),
        ({"task": "countdown", "answer": "1"}, "an answer that is right"),
    ],
)
def test_prompts_of_another_world_are_refused(info, words):
    with pytest.raises(ConfigError, match=words):
        check_prompts({"task": TaskReward()}, asked(info))


def test_exact_match_looks_at_the_extracted_answer():
    prompts = asked({"answer": "New  York"}, {"answer": ["7", "seven"]}, {"answer": 7})
    assert values(ExactMatch(), ["New York ", "seven", "8"], prompts) == [1, 1, 0]
    assert values(ExactMatch(ignore_space=False), ["New York", "seven", "7"], prompts) == [0, 1, 1]
    tagged = ExactMatch(extract="<answer>(.*?)</answer>", ignore_case=True)
    assert values(tagged, ["<answer>new york</answer>", "<answer>8</answer> or <answer>SEVEN</answer>", "7"], prompts) == [1, 1, 0]
    with pytest.raises(ConfigError, match=r"expected info\['answer'\]"):
        check_prompts({"it": ExactMatch()}, asked({}))
    with pytest.raises(ConfigError, match="expected a regular expression"):
        check_prompts({"it": ExactMatch(extract="(")}, asked({"answer": "1"}))


def test_token_f1_by_hand():
    # found 3 words, wanted 2, shared 2: 2·2 / (3 + 2)
    assert token_f1("The red fox", "red fox!") == pytest.approx(0.8)
    assert token_f1("a a b", "a a c") == pytest.approx(4 / 6) and token_f1("", "") == 1 and token_f1("", "x") == 0


def test_format_matches_the_whole_completion():
    assert values(FormatReward(), ["1+1=2 #2", "#2\n", "2", "#", "#2#"], asked({}, {}, {}, {}, {})) == [1, 1, 0, 0, 0]
    think = FormatReward(r"<think>.+</think>\s*<answer>.+</answer>", longest=60)
    samples = [
        "<think>a\nb</think>\n<answer>1</answer>",
        "x<think>a</think><answer>1</answer>",
        f"<think>{'a' * 50}</think><answer>1</answer>",
    ]
    assert values(think, samples, asked({}, {}, {})) == [1, 0, 0]
    with pytest.raises(ConfigError, match="expected a regular expression"):
        check_prompts({"it": FormatReward("(")}, asked({}))


@pytest.mark.parametrize(("length", "punishment"), [(1, 0), (80, 0), (85, -0.25), (90, -0.5), (100, -1), (101, -1)])
def test_soft_overlong_punishment_by_hand(length, punishment):
    assert overlong(length, 100, 20) == pytest.approx(punishment)
    assert values(LengthReward(100, 20), ["x" * length, "x"], asked({}, {"tokens": length})) == pytest.approx([punishment] * 2)


def test_a_cache_that_does_not_fit():
    with pytest.raises(ConfigError, match="0 < cache <= limit"):
        check_prompts({"it": LengthReward(10, 20)}, asked({}))


# ---- mathematics


def test_equal_as_mathematics():
    wanted = ["1/2", r"\frac12", "1+x", "3", "1000", "2"]
    samples = [r"so $\frac{2}{4}$", "it is 0.5", "$x+1$", "$4$", "1,000", ""]
    scores = score_all({"math": MathReward()}, samples, asked(*({"answer": one} for one in wanted)))["math"]
    assert scores.value.tolist() == [1, 1, 1, 0, 1, 0] and scores.parts["math_timeout"].tolist() == [0] * 6


def test_an_answer_that_never_ends_is_wrong_and_does_not_hold_up_the_rest():
    from rewards.text.worker import Worker

    script = Path(sandbox.__file__).with_name("equal.py")
    slow = Worker(script)
    began = time.monotonic()
    assert slow.ask(json.dumps(["1", "$1$", 1]), 30) == "true"
    assert slow.ask("no JSON", 5) is None, "a process that dies over a question has no answer to it"
    assert slow.ask(json.dumps(["1", "$2$", 1]), 30) == "false", "the next question finds a new process"
    process = slow._process
    os.kill(process.pid, 19)  # SIGSTOP: it hangs
    asked_at = time.monotonic()
    assert slow.ask(json.dumps(["1", "$1$", 1]), 0.5) is None and time.monotonic() - asked_at < 5
    assert process.poll() is not None and time.monotonic() - began < 60
    slow.stop()


def test_mathematics_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MissingError, match=r"pip install 'alignment-studio\[math\]'"):
        check_prompts({"it": MathReward()}, asked({"answer": "1"}))


# ---- JSON


GOOD = '{"reasoning":"x","answer":"{\\"name\\":\\"a\\",\\"nutrition\\":\\"b\\"}"}'


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        (GOOD, (1, 1, 1, 1)),
        (f"Here it is: {GOOD} as asked.", (0.5, 1, 0, 1)),
        (f"```json\n{GOOD}\n```", (0.5, 1, 0, 1)),
        (f"{GOOD} {GOOD}", (0, 0, 0, 0)),
        ('{"answer":"{\\"name\\":\\"a\\",\\"nutrition\\":\\"b\\"}"}', (1, 0.5, 1, 1)),  # one of two keys
        ('{"name":"a","nutrition":"b"}', (1, 0, 0, 0)),  # both missing: no content whatever the text
        (GOOD[:-1] + ',"more":1}', (1, 0.75, 1, 1)),  # one unknown key
        ('{"reasoning":1,"answer":"not JSON"}', (1, 0.5, 0, 0)),
        ("[1]", (1, 0, 0, 0)),
        ("no", (0, 0, 0, 0)),
    ],
)
def test_layers_of_an_object_by_hand(text, layers):
    reward = JsonSchema(nested=("answer",))
    assert reward.layers(text, 'name: "a", nutrition: "b"') == pytest.approx(layers)
    # 0.2·valid + 0.3·struct + 0.2·format + 0.3·content
    expected = sum(w * layer for w, layer in zip((0.2, 0.3, 0.2, 0.3), layers, strict=True))
    assert values(reward, [text], asked({"answer": 'name: "a", nutrition: "b"'})) == [pytest.approx(expected)]


def test_numbers_in_an_answer_are_equal_or_not():
    reward = JsonSchema(required={"answer": "number"})
    assert values(reward, ['{"answer": 7}', '{"answer": 70}'], asked({"answer": "7.0"}, {"answer": "7"})) == pytest.approx([1, 0.7])
    assert reward.layers('{"answer": true}', "1")[1] == 0, "a truth value is no number"


def test_a_schema_decides_alone():
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}
    samples = ['{"n": 1}', '{"n": -1}', "{}", '{"n": 1} ok', "null", '{"n": NaN}']
    assert values(JsonSchema(how="schema"), samples, asked(*[{"schema": schema}] * 6)) == [1, 0, 0, 0, 0, 0]
    assert values(JsonSchema(how="schema", schema={"type": "null"}), ["null", "1"], asked({}, {})) == [1, 0]
    assert values(JsonSchema(how="schema", schema={}), ["no", "[]"], asked({}, {})) == [0, 1], "all JSON, but nothing else"


@pytest.mark.parametrize(
    ("reward", "info", "words"),
    [
        (JsonSchema(required={"a": "text"}), {"answer": "1"}, "required.a: expected one of string"),
        (JsonSchema(weights=(1, 1, 1, 1)), {"answer": "1"}, "add up to 1"),
        (JsonSchema(), {}, r"expected info\['answer'\]"),
        (JsonSchema(how="schema"), {}, r"expected info\['schema'\]"),
        (JsonSchema(how="schema"), {"schema": {"type": "nothing"}}, "expected a JSON schema"),
    ],
)
def test_schemas_that_cannot_work(reward, info, words):
    with pytest.raises(ConfigError, match=words):
        check_prompts({"it": reward}, asked(info))


def test_schemas_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingError, match=r"alignment-studio\[json\]"):
        check_prompts({"it": JsonSchema(how="schema")}, asked({"schema": {}}))


# ---- length against history (HAPO)


@pytest.mark.parametrize(
    ("right", "length", "reward"),
    [
        (True, 500, 0.70711),
        (True, 1000, 0),
        (True, 1500, -0.7),
        (True, 2000, -0.7),
        (False, 500, 0),
        (False, 1500, -0.70711),
        (False, 3000, -1),
    ],
)
def test_cosine_length_by_hand(right, length, reward):
    assert cosine_length(length, 1000, right) == pytest.approx(reward, abs=1e-5)


@pytest.mark.parametrize(
    ("right", "length", "reward"),
    [
        (True, 500, 0.5),
        (True, 1050, 0),
        (True, 1500, -0.4),
        (True, 3000, -0.7),
        (False, 500, 0),
        (False, 1500, -0.4),
        (False, 9000, -1),
    ],
)
def test_linear_length_by_hand(right, length, reward):
    assert linear_length(length, 1000, right) == pytest.approx(reward)


def lengths(*numbers: int, key: str = "q") -> Prompts:
    return asked(*({"answer": "yes", "tokens": number} for number in numbers), keys=[key] * len(numbers))


HAPO = HistoryLength(correct="exact_match")


def test_history_is_learned_after_the_batch():
    reward = replace(HAPO)
    batch = lengths(900, 800, 100)
    rollout = scored(reward, ["yes", "yes", "no"], batch)
    assert values(reward, ["yes", "yes", "no"], batch) == [1, 1, 0], "nothing is known before"
    reward.update(rollout)
    assert reward.memory.get("q") == 800
    # cos(π/2 · 400/800) = 0.70711; a wrong one of 1200 gets cos(3π/4) = -0.70711
    assert values(reward, ["yes", "no"], lengths(400, 1200)) == pytest.approx([1.70711, -0.70711], abs=1e-5)
    assert values(reward, ["yes"], lengths(400, key="another")) == [1], "each problem has its own history"
    reward.update(scored(reward, ["yes", "no"], lengths(850, 10)))
    assert reward.memory.get("q") == 800, "longer or wrong ones do not count"


def test_any_right_answer_beats_any_wrong_one():
    reward = replace(HAPO)
    reward.memory.add("q", 1000)
    right = values(reward, ["yes"] * 6, lengths(1, 500, 1000, 1500, 3000, 10**9))
    wrong = values(reward, ["no"] * 6, lengths(1, 500, 1000, 1500, 3000, 10**9))
    assert min(right) >= 0.3 - 1e-6 and max(wrong) <= 0


def test_the_mean_may_be_remembered_and_repetition_punished():
    reward = replace(HAPO, keep="mean", repetition=-0.5)
    reward.update(scored(reward, ["yes", "yes", "no"], lengths(900, 700, 1)))
    assert reward.memory.get("q") == pytest.approx(800)
    # the second "a b c" is there again: 3 of 6 words
    assert repeated(["a", "b", "c", "a", "b", "c"]) == pytest.approx(0.5) and repeated(["a", "b", "c", "d"]) == 0
    assert values(reward, ["a b c a b c"], lengths(100)) == [pytest.approx(-0.25)]


def test_memory_survives_a_checkpoint_and_is_not_shared():
    reward = replace(HAPO)
    reward.memory.add("q", 800.0)
    state = json.loads(json.dumps(reward.state_dict()))
    resumed = replace(HAPO)
    assert resumed.memory.get("q") is None
    resumed.load_state_dict(state)
    assert resumed.memory.get("q") == 800 and resumed.memory.kept == reward.memory.kept and HAPO.memory.kept == {}
    state["kept"]["q"][0] = 1
    assert resumed.memory.get("q") == 800
    memory = Memory()
    memory.learn(
        replace(scored(resumed, ["yes"], lengths(5)), parts={"x": torch.tensor([NAN]), "y": torch.tensor([5.0])}), "x", "y"
    )
    assert memory.kept == {}, "a row without a score teaches nothing"


def test_rewards_that_ask_another_one_name_it_well():
    with pytest.raises(ConfigError, match="no reward is named 'exact_mach'; did you mean 'exact_match'"):
        check_prompts({"it": HistoryLength(correct="exact_mach")}, lengths(1))
    with pytest.raises(ConfigError, match="expected a reward that reads text, got 'scene', which reads image"):
        check_prompts({"it": HistoryLength(correct="scene")}, lengths(1))
    with pytest.raises(ConfigError, match="expected options of reward 'exact_match'"):
        check_prompts({"it": ToolCost(options={"feild": "x"})}, lengths(1))
    with pytest.raises(ConfigError, match=r"expected info\['answer'\]"):
        check_prompts({"it": ToolCost()}, asked({}))


# ---- tool calls (OTC)


def test_tool_factors_by_hand():
    assert [single_factor(m) for m in range(6)] == pytest.approx([1, 0.8660, 0.7071, 0.5878, 0.5, 0.4339], abs=1e-4)
    expected = [0, 0.8660, 1, 0.9511, 0.8660, 0.7818, 0.7071]
    assert [group_factor(m, 2) for m in range(7)] == pytest.approx(expected, abs=1e-4)
    assert group_factor(0, 0) == 1 and group_factor(2, 0) == pytest.approx(single_factor(2))
    assert tool_productivity(3, 6) == 0.5 and tool_productivity(3, 0) == math.inf


def test_calls_are_compared_with_the_fewest_that_were_enough():
    reward = ToolCost(call="T")
    infos = [{"answer": "T T", "tool_calls": 2}, {"answer": "TTT"}, {"answer": "T"}, {"answer": "x"}]
    prompts = asked(*infos, keys=["q"] * 4)
    # n = 2: the last has one call and a wrong answer, so it is no example
    scores = reward(["T T", "TTT", "wrong T", "x no"], prompts)
    assert scores.value.tolist() == pytest.approx([1, 0.9511, 0, 0], abs=1e-4)
    assert scores.parts["tool_calls"].tolist() == [2, 3, 1, 0] and scores.parts["tool_known"].isnan().all()
    alone = Cached(reward.alone(), size=0)
    again = reward.compare(score_all({"tool_cost": alone}, ["T T", "TTT", "wrong T", "x no"], prompts)["tool_cost"], torch.zeros(4))
    assert again.value.tolist() == pytest.approx(scores.value.tolist())


def test_the_fewest_calls_are_remembered():
    reward = ToolCost(call="T")
    first = asked({"answer": "TTTT"}, {"answer": "TT"}, keys=["q", "p"])
    reward.update(scored(reward, ["TTTT", "wrong"], first))
    assert reward.memory.kept == {"q": (4, 1)}
    one = asked({"answer": "TTTTTT"}, keys=["q"])
    # f = 2·4·6/10 = 4.8, sin(4.8π/8); by itself a group of one would have n = m and 1
    assert values(reward, ["TTTTTT"], one) == [pytest.approx(math.sin(4.8 * math.pi / 8))]
    other = ToolCost(call="T")
    other.alone().load_state_dict(json.loads(json.dumps(reward.alone().state_dict())))
    assert other.memory.kept == reward.memory.kept, "what the loop saves is the part that scores alone"
    assert values(ToolCost(form="single", call="T"), ["TTTT"], asked({"answer": "TTTT"})) == [pytest.approx(0.5)]


# ---- steps


def test_written_working_is_judged_step_by_step():
    samples = ["7+8=15 4+5+1=10 #105", "7+8=15 4+5=10 #105", "#105", "x=1 #1", "1=1  2*3=6"]
    reward = ProcessReward()
    assert values(reward, samples, asked(*[{}] * 5)) == [1, 0.5, 0, 0, 1]
    assert part(reward, samples, asked(*[{}] * 5), "process_steps") == [2, 2, 0, 1, 2]
    assert values(replace(reward, how="min"), samples, asked(*[{}] * 5)) == [1, 0, 0, 0, 1]


def test_another_reward_sees_the_completion_up_to_the_step():
    infos = asked({"answer": "a\n\nb"}, {"answer": "b"})
    whole = ProcessReward("exact_match", separator="\n\n", stop="", how="mean")
    assert values(whole, ["a\n\nb", "a\n\nb"], infos) == [0.5, 0]
    assert values(replace(whole, prefix=False), ["a\n\nb", "a\n\nb"], infos) == [0, 0.5]
    assert whole.steps("a\n\n\n\nb") == ["a", "a\n\n\n\nb"]
    steps = ProcessReward("length", {"limit": 4, "cache": 4}, separator=";", stop="", how="product", prefix=False)
    # lengths 1 and 2: -1/4 and -2/4
    assert values(steps, ["a;bb"], asked({})) == [pytest.approx(0.125)]
    with pytest.raises(ConfigError, match="expected a separator"):
        check_prompts({"it": ProcessReward(separator="")}, asked({}))


def test_a_row_with_an_unscored_step_is_missing(monkeypatch):
    monkeypatch.setitem(REWARDS, "partly", "test_text_rewards:Partly")
    scores = ProcessReward("partly", stop="", prefix=False)(["a b", "a ?", ""], asked({}, {}, {}))
    assert scores.present.tolist() == [True, False, True] and scores.value[0] == 1


class Partly:
    name, reads, differentiable, range, license, model_id = "partly", "text", False, (0.0, 1.0), "none", None

    def __call__(self, samples, prompts):
        from studio.types import Scores

        return Scores(torch.ones(len(samples)), torch.tensor([text != "?" for text in samples]))


def test_normalized_steps_and_two_level_advantage_by_hand():
    score = torch.tensor([[1.9, 1.9, 1.9], [1.2, 1.2, 99.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    # mean 8.1/5 = 1.62, variance (3·0.0784 + 2·0.1764)/5 = 0.1176, std 0.342929
    expected = torch.tensor([[0.81650] * 3, [-1.22474, -1.22474, 0]])
    torch.testing.assert_close(normalized_steps(score, mask), expected, atol=1e-5, rtol=0)
    advantage = two_level_advantage(torch.tensor([3.0, 1.0]), torch.zeros(2), score, mask)
    expected = torch.tensor([[0.95201] * 3, [-1.07448, -1.07448, 0]])
    torch.testing.assert_close(advantage, expected, atol=1e-5, rtol=0)
    score[1, 2] = -99.0
    torch.testing.assert_close(two_level_advantage(torch.tensor([3.0, 1.0]), torch.zeros(2), score, mask), advantage)
    assert normalized_steps(torch.tensor([[5.0]]), torch.tensor([[True]])).item() == 0, "one token has no spread"
    assert not normalized_steps(score, torch.zeros_like(mask)).any()


def test_the_grammar_of_retrieval_traces():
    names = {"S": "step", "Q": "query", "R": "retrieval", "A": "subanswer", "F": "answer"}
    for trace, holds in {"SQRSASF": True, "SF": True, "SQRSF": False, "SQRSA": False, "SFSF": False, "": False}.items():
        assert grammar_holds([names[letter] for letter in trace]) is holds, trace


# ---- judges and models


@contextmanager
def judging(answer):
    """A server whose choice is answer(content of the question), or which says 500 when that is None."""
    bodies = []

    class Judge(Handler):
        def do_POST(self):
            bodies.append(self.body())
            choice = answer(bodies[-1]["messages"][0]["content"])
            self.say(200 if choice else 500, json.dumps({"choices": [choice]} if choice else {}).encode())

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Judge)) as url:
        yield f"{url}/v1", bodies


def test_a_judge_reads_prompt_and_completion_as_plain_text():
    with judging(lambda text: tokens(Yes=0.6, No=0.2) if "good" in text else says("hm")) as (url, bodies):
        scores = score_all({"it": TextJudge(url)}, ["a good one", "a bad one"], asked({}, {}))["it"]
        assert scores.value.tolist() == [pytest.approx(0.75), 0] and scores.present.tolist() == [True, False]
    assert sorted("question 0" in body["messages"][0]["content"] for body in bodies) == [False, True]
    assert all(body["max_tokens"] == 1 and body["temperature"] == 0 for body in bodies)


def test_a_judge_may_give_a_number_and_a_completion_cannot_add_places():
    question = "{prompt}: rate {completion} against {answer}."
    replies = {"question 0: rate {answer} against 42.": "I say 5, no: 10", "question 1: rate b against .": "11"}
    with judging(lambda text: says(replies[text])) as (url, _):
        reward = TextJudge(url, question=question, read="score")
        scores = score_all({"it": reward}, ["{answer}", "b"], asked({"answer": 42}, {}))["it"]
    assert scores.value.tolist() == [1, 0] and scores.present.tolist() == [True, False]


def test_a_judge_that_fails_stops_or_is_masked(monkeypatch):
    monkeypatch.setattr("studio.post.time.sleep", lambda seconds: None)
    with judging(lambda text: None) as (url, _):
        with pytest.raises(RewardError, match="reward 'text_judge'"):
            TextJudge(url)(["x"], asked({}))
        assert TextJudge(url, on_error="mask")(["x"], asked({})).present.tolist() == [False]
    for reward, words in (
        (TextJudge("http://x"), "/v1"),
        (TextJudge(question="{prompt}?"), "completion"),
        (TextJudge(low=9, high=1), "low"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_prompts({"it": reward}, asked({}))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """Tiny random classifiers with one and with three outputs over characters, with and without a chat template."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from studio.text.tokenizer import build_tokenizer

    root, tokenizer = tmp_path_factory.mktemp("classifiers"), build_tokenizer()
    for name, outputs in {"one": 1, "three": 3}.items():
        torch.manual_seed(0)
        small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.5)
        config = LlamaConfig(vocab_size=len(tokenizer), num_labels=outputs, pad_token_id=0, **small)
        LlamaForSequenceClassification(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def logits_of(folder, text: str) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits[0]


def test_a_reward_model_reads_the_dialog(classifiers):
    prompts, samples = asked({}, {}, {}), ["yes", "no, not at all", ""]
    reward = RewardModel(str(classifiers / "one"), device="cpu", batch_size=2)
    expected = [logits_of(classifiers / "one", f"{q}{a}<eos>").item() for q, a in zip(prompts.text, samples, strict=True)]
    assert values(reward, samples, prompts) == pytest.approx(expected, abs=1e-5) and len(set(expected)) == 3
    plain = [logits_of(classifiers / "one", q + a).item() for q, a in zip(prompts.text, samples, strict=True)]
    for form in ("plain", "pair"):
        assert values(replace(reward, form=form), samples, prompts) == pytest.approx(plain, abs=1e-5)
    cut = logits_of(classifiers / "one", "ll<eos>").item()
    assert values(replace(reward, longest=3), ["at all"], asked({})) == [pytest.approx(cut, abs=1e-5)], "the end is kept"


def test_a_tokenizer_without_padding_is_no_hindrance(classifiers, tmp_path):
    from transformers import AutoModelForSequenceClassification

    from studio.text.tokenizer import build_tokenizer

    model = AutoModelForSequenceClassification.from_pretrained(classifiers / "one")
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    prompts, samples = asked({}, {}), ["a", "a longer one"]
    expected = values(RewardModel(str(classifiers / "one"), device="cpu"), samples, prompts)
    assert values(RewardModel(str(tmp_path), device="cpu"), samples, prompts) == pytest.approx(expected, abs=1e-5)


def test_classes_become_log_odds(classifiers):
    logits = logits_of(classifiers / "three", "question 0x<eos>")
    expected = math.log(logits.softmax(0)[2] / (1 - logits.softmax(0)[2]))
    assert values(RewardModel(str(classifiers / "three"), label=2, device="cpu"), ["x"], asked({})) == [
        pytest.approx(expected, abs=1e-4)
    ]
    with pytest.raises(ConfigError, match="a label below 3"):
        RewardModel(str(classifiers / "three"), label=3, device="cpu")(["x"], asked({}))


def test_a_reward_model_that_is_not_there(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from studio.text.tokenizer import build_tokenizer

    with pytest.raises(MissingError, match="expected a sequence classifier.*hf download"):
        RewardModel(str(tmp_path / "none"))(["x"], asked({}))
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=99, **small)).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(MissingError, match="score.weight.*without a head"):
        RewardModel(str(tmp_path))(["x"], asked({}))
