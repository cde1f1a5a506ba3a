"""Vision-language judges over a server with OpenAI's interface: what is asked, how answers are read, what is missing."""

from __future__ import annotations

import base64
import io
import json
import math
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

import pytest
import torch
from local_server import Handler, running
from PIL import Image
from zoo import TWO, prompts, smooth

from rewards.image.judge import VlmJudge, yes_share
from rewards.image.unified_reward import UnifiedReward, final_score, mean_of_aspects
from rewards.score import check_prompts, failure_rate, score_all
from studio.errors import ConfigError, RewardError


@contextmanager
def judging(answer):
    """A server whose choice for a request is answer(text of the question), or which says 500 when that is None."""
    asked = []

    class Judge(Handler):
        def do_POST(self):
            body = self.body()
            asked.append((self.path, self.headers.get("Authorization"), body))
            choice = answer(body["messages"][0]["content"][1]["text"])
            data = {"choices": [choice]} if choice else {"error": {"message": "no memory"}}
            self.say(200 if choice else 500, json.dumps(data).encode())

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Judge)) as url:
        yield f"{url}/v1", asked


def tokens(**shares: float) -> dict:
    """A choice whose first token has these probabilities."""
    likeliest = [{"token": token, "logprob": math.log(p)} for token, p in shares.items()]
    return {"logprobs": {"content": [{"top_logprobs": likeliest}]}}


def says(text: str) -> dict:
    return {"message": {"content": text}}


def test_the_share_of_yes_by_hand():
    assert yes_share(tokens(Yes=0.6, No=0.2, Maybe=0.2)) == pytest.approx(0.75)
    assert yes_share(tokens(**{" yes": 0.3, "YES": 0.3, "no": 0.2})) == pytest.approx(0.75)
    assert yes_share(tokens(Yes=0.9)) == 1
    assert yes_share(tokens(Perhaps=0.9)) is None and yes_share({"logprobs": None}) is None


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("It is fine.\nFinal Score: 4", 0.8),
        ("**Final Score:** 3.5", 0.7),
        ("Final Score: 2 ... on reflection, final score: 5", 1.0),
        ("A good picture", None),
        ("Final Score: 9", None),
        ("", None),
    ],
)
def test_final_score(answer, score):
    assert final_score(says(answer)) == (None if score is None else pytest.approx(score))


def test_mean_of_aspects_by_hand():
    # (4 + 5 + 3) / 3 = 4, (4 - 1) / 4 = 0.75
    assert mean_of_aspects(says("Alignment Score (1-5): 4\nCoherence Score (1-5): 5\nStyle Score (1-5): 3")) == pytest.approx(0.75)
    assert mean_of_aspects(says("**Alignment Score:** 1\nCoherence Score: 1\nStyle Score: 1")) == 0
    assert mean_of_aspects(says("Alignment Score: 4\nCoherence Score: 5")) is None
    assert mean_of_aspects({"message": {"content": None}}) is None


def test_every_picture_is_asked_about_with_its_own_prompt(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "k")
    images = (smooth(2, 24, 16) * 255).round() / 255
    with judging(lambda text: tokens(Yes=0.8, No=0.2) if "red circle" in text else tokens(Yes=0.1, No=0.3)) as (url, asked):
        scores = VlmJudge(url, "judge-1")(images, TWO)
    assert scores.value.tolist() == pytest.approx([0.8, 0.25]) and len(asked) == 2
    for path, key, body in asked:
        content = body["messages"][0]["content"]
        row = 0 if "red circle" in content[1]["text"] else 1
        file = base64.b64decode(content[0]["image_url"]["url"].partition("base64,")[2])
        pixels = torch.from_numpy(__import__("numpy").array(Image.open(io.BytesIO(file)))).permute(2, 0, 1) / 255
        torch.testing.assert_close(pixels, images[row])
        assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer k", "judge-1")
        assert (body["temperature"], body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (0, 1, True, 20)


def test_an_answer_that_cannot_be_read_is_missing_and_not_zero():
    with judging(lambda text: says("Final Score: 4") if "circle" in text else says("I cannot tell")) as (url, _):
        scores = score_all({"unified_reward": UnifiedReward(url=url)}, smooth(2, 8, 8), TWO)["unified_reward"]
    assert scores.value.tolist() == [pytest.approx(0.8), 0] and scores.present.tolist() == [True, False]
    assert failure_rate(scores) == 0.5


def test_versions_of_unified_reward_ask_differently():
    aspects = "Alignment Score: 5\nCoherence Score: 5\nStyle Score: 5"
    with judging(lambda text: says("Final Score: 5" if "Final Score" in text else aspects)) as (url, asked):
        for version in ("1.5", "2.0"):
            assert UnifiedReward(version, url)(smooth(1, 8, 16), prompts("x")).value.item() == 1
    sizes = []
    for _, _, body in asked:
        file = base64.b64decode(body["messages"][0]["content"][0]["image_url"]["url"].partition("base64,")[2])
        sizes.append(Image.open(io.BytesIO(file)).size)
    assert sizes == [(512, 512), (16, 8)]
    assert [body["model"] for *_, body in asked] == ["CodeGoat24/UnifiedReward-7b-v1.5", "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b"]


def test_a_server_that_fails_for_good_stops_or_is_masked(monkeypatch):
    monkeypatch.setattr("studio.post.time.sleep", lambda seconds: None)
    with judging(lambda text: None if "circle" in text else tokens(Yes=1.0)) as (url, asked):
        with pytest.raises(RewardError, match="reward 'vlm_judge'.*500 no memory"):
            VlmJudge(url, workers=1)(smooth(2, 8, 8), TWO)
        assert len(asked) >= 3
        assert VlmJudge(url, on_error="mask")(smooth(2, 8, 8), TWO).present.tolist() == [False, True]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (VlmJudge("http://127.0.0.1:8000"), "ends in /v1"),
        (VlmJudge("127.0.0.1:8000/v1"), "http://"),
        (VlmJudge(question="Is it good?"), r"template with \{prompt\}"),
        (UnifiedReward(question="Is it good?"), r"template with \{prompt\}"),
    ],
    ids=["no /v1", "no scheme", "no prompt", "no prompt either"],
)
def test_a_judge_that_cannot_work_is_refused_before_sampling(reward, words):
    with pytest.raises(ConfigError, match=words):
        check_prompts({"judge": reward}, TWO)


def test_a_question_may_stand_in_a_file(tmp_path):
    (tmp_path / "ask.txt").write_text("Caption {prompt}; grade it.")
    with judging(lambda text: says("Final Score: 1") if text == "Caption x; grade it." else says("")) as (url, _):
        assert UnifiedReward(url=url, question=str(tmp_path / "ask.txt"))(
            smooth(1, 8, 8), prompts("x")
        ).value.item() == pytest.approx(0.2)
