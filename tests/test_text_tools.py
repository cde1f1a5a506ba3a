"""Calls of tools while a completion is written: their answers are there, and do not train."""

import pytest
import torch
from tiny_lm import DIGITS, tiny_policy, tiny_tokenizer

from studio.errors import ConfigError
from studio.text.sampling import Tools
from studio.text.tools import ToolUser, answer_of, load
from studio.types import Prompts

TENS = Tools(target="test_text_tools:counted", begin="=", end="-", answer="+{}+", calls=2)


def counted(asked):
    """The length of a call; an error for an empty one."""
    return len(asked) if asked else 1 / 0


def encoded(text):
    return tiny_tokenizer()(text, return_tensors="pt")["input_ids"][0]


def test_a_call_at_the_end_of_a_row_is_answered():
    user = ToolUser(tiny_tokenizer(), TENS)
    found = user.answers([encoded("7=21-"), encoded("7=21"), encoded("3=4-+8+=5-"), encoded("1=1-+2+=1-+2+=1-"), encoded("=-")])
    assert [None if f is None else tiny_tokenizer().decode(f) for f in found[:4]] == ["+2+", None, "+1+", None]  # two calls at most
    assert found[4] is not None  # an error of the tool is an answer


def test_the_calculator_counts_and_says_what_it_cannot():
    calculator = load("calculator")
    assert answer_of(calculator, "12*(3+4)") == "84"
    assert answer_of(calculator, "__import__('os')").startswith("error: ")
    assert answer_of(calculator, "9**9**9").startswith("error: ")


def test_answers_stand_in_the_text_and_are_masked():
    """A policy that calls often: the answer follows every call at once, and only what was drawn trains."""
    policy = tiny_policy(limit=40, tools=TENS)
    rows = Prompts(["7="] * 64, ["7="] * 64, [{}] * 64)
    rollout = policy.sample(rows, group=torch.zeros(64, dtype=torch.long), seeds=range(64), step=0)
    answered = 0
    for text, mask, token in zip(rollout.samples, rollout.mask, rollout.trace.token, strict=True):
        at = text.find("-")
        asked = text[:at].rpartition("=")[2]
        if at < 0 or not asked or at + 4 > 40 or (token[:at] == DIGITS["<pad>"]).any():  # which no text shows
            continue
        told = f"+{len(asked)}+"
        answered += 1
        assert text[at + 1 :].startswith(told)
        assert mask[: at + 1].all() and not mask[at + 1 : at + 1 + len(told)].any()
    assert answered >= 3
    again = policy.evaluate(rollout)
    torch.testing.assert_close(again.logp, rollout.old.logp.masked_fill(~rollout.mask, 0.0), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("target", ["nowhere", "test_text_tools:missing", "no_such_module:f"])
def test_a_tool_that_does_not_exist_is_refused(target):
    with pytest.raises(ConfigError, match="expected calculator, or module:function, got"):
        load(target)


def test_an_answer_needs_a_place():
    with pytest.raises(ValueError, match="where the answer goes"):
        Tools(answer="<result>")
