"""Rewards over HTTP: what is refused, what is tried again, what is missing, and a run that outlives its server."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import HTTPServer
from pathlib import Path

import pytest
import torch
from local_server import Handler, running
from zoo import prompts, smooth

from rewards.image.deqa import Deqa
from rewards.image.jpeg import JpegIncompressibility
from rewards.image.pickscore import PickScoreRank
from rewards.pictures import as_pil, as_png
from rewards.remote import Remote, handshake, plain
from rewards.score import check_prompts, refuse_failures, score_all
from rewards.server import Limits, RewardServer, batches, version_of
from studio.errors import ConfigError, RewardError
from studio.run import RunView
from studio.types import Scores

FAST = dict(delay=0.01, timeout=5.0)
THREE = prompts("a", "b", "c")


@dataclass(frozen=True)
class Red:
    """Mean of red; black pictures have no score, and prompts called `bad` are refused."""

    reads, differentiable, range, license, model_id = "image", False, (0.0, 1.0), "MIT", "red-1"

    def check(self, given):
        if "bad" in given.text:
            raise ConfigError("reward 'red': expected a good prompt, got 'bad'.")

    def __call__(self, samples, given):
        value = samples[:, 0].mean((1, 2))
        return Scores(value, value > 0, {"weight": torch.tensor([info.get("weight", 0.0) for info in given.info])})


@contextmanager
def serving(reward=None, name="red", token=None, **limits):
    server = RewardServer(reward or Red(), name, host="127.0.0.1", port=0, token=token, limits=Limits(**limits))
    with running(server):
        yield server


@contextmanager
def scripted(*answers, health=None):
    """A server that answers POST with these (code, bytes) in turn, and counts; a text as `health` is a redirect."""
    left, asked = list(answers), []
    health = health or {"ok": True, "rewards": [{"name": "red", "version": "1", "license": "MIT", "range": [0, 1], "model": None}]}

    class Script(Handler):
        def do_GET(self):
            if isinstance(health, str):
                self.send_response(302)
                self.send_header("Location", health)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.say(200, json.dumps(health).encode())

        def do_POST(self):
            asked.append(self.body())
            self.say(*(left.pop(0) if len(left) > 1 else left[0]))

    with running(HTTPServer(("127.0.0.1", 0), Script)) as url:
        yield url, asked


@pytest.fixture(autouse=True)
def strangers(monkeypatch):
    monkeypatch.delenv("STUDIO_REWARD_TOKEN", raising=False)
    handshake.cache_clear()


def good(*scores, version="1") -> tuple[int, bytes]:
    return 200, json.dumps({"scores": list(scores), "errors": [None] * len(scores), "version": version}).encode()


def post(url: str, body: bytes, **headers) -> tuple[int, dict]:
    request = urllib.request.Request(url + "/score", data=body, headers={"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as answer:
        return answer.code, json.loads(answer.read())


def png(image: torch.Tensor) -> str:
    return base64.b64encode(as_png(as_pil(image[None])[0])).decode()


# ---- both ends together


def test_scores_parts_and_missing_rows_come_back():
    images = (smooth(3, 8, 12) * 255).round() / 255
    images[1] = 0
    with serving(batch_size=2) as server:
        scores = Remote((server.url,), batch_size=2)(images, prompts("a", "b", "c", weight=0.5))
    torch.testing.assert_close(scores.value, images[:, 0].mean((1, 2)), atol=1e-6, rtol=0)
    assert scores.present.tolist() == [True, False, True]
    assert scores.parts["weight"][[0, 2]].tolist() == [0.5, 0.5] and scores.parts["weight"][1].isnan()


def test_pictures_arrive_without_loss():
    images = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    with serving(JpegIncompressibility(), "jpeg") as server:
        scores = Remote((server.url,))(images, prompts("a", "b"))
    assert scores.value.tolist() == JpegIncompressibility()(images, prompts("a", "b")).tolist()


def test_the_handshake_says_what_is_served():
    with serving() as server:
        reward = Remote((server.url,))
        assert reward.license == "as stated by the server"
        reward.check(THREE)
        assert (reward.license, reward.model_id) == ("MIT", "red-1")
        met = handshake((server.url,), "", reward.patience)
        assert met["name"] == "red" and met["range"] == [0, 1] and met["version"] == server.version


def test_a_batch_is_spread_over_the_servers_and_a_dead_one_is_replaced():
    images = smooth(6, 8, 8)
    with serving() as one:
        score, counts = one.score, []
        one.score = lambda request: counts.append(len(request["images"])) or score(request)
        with serving() as other:
            reward = Remote((one.url, other.url), batch_size=1, **FAST)
            before = reward(images, prompts(*"abcdef"))
            assert counts == [1, 1, 1]
            Remote((one.url, other.url), **FAST)(images, prompts(*"abcdef"))
            assert counts == [1, 1, 1, 3], "a small batch is spread too"
            del counts[3:]
        after = reward(images, prompts(*"abcdef"))  # the other is gone
        assert counts == [1] * 9
    torch.testing.assert_close(after.value, before.value)


def test_servers_of_different_versions_are_refused():
    def says(version):
        return {"ok": True, "rewards": [{"name": "red", "version": version, "license": "MIT", "range": [0, 1], "model": None}]}

    refused = pytest.raises(ConfigError, match="the same reward on all servers")
    with scripted(good(1), health=says("1")) as (one, _), scripted(good(1), health=says("2")) as (other, _), refused:
        check_prompts({"remote": Remote((one, other), **FAST)}, THREE)


def test_the_version_marks_the_settings_that_change_scores():
    assert version_of(JpegIncompressibility()) == version_of(JpegIncompressibility())
    assert version_of(JpegIncompressibility()) != version_of(JpegIncompressibility(quality=50))
    assert version_of(PickScoreRank()) == version_of(PickScoreRank(device="cpu", batch_size=1))


def test_deqa_is_a_fifth_of_the_servers_score():
    @dataclass(frozen=True)
    class Four(Red):
        def __call__(self, samples, given):
            return torch.full((len(samples),), 4.0)

    with serving(Four(), "deqa") as server:
        assert Deqa((server.url,))(smooth(2, 8, 8), prompts("a", "b")).value.tolist() == pytest.approx([0.8, 0.8])


# ---- the client against a server that misbehaves


def test_500_twice_then_200_succeeds():
    with scripted((500, b"{}"), (503, b"busy"), good(0.25, 0.5)) as (url, asked):
        scores = Remote((url,), **FAST)(smooth(2, 8, 8), prompts("a", "b"))
    assert scores.value.tolist() == [0.25, 0.5] and len(asked) == 3


def test_delays_double_and_attempts_are_bounded(monkeypatch):
    slept = []
    monkeypatch.setattr("studio.post.time.sleep", slept.append)
    refused = pytest.raises(RewardError, match="within 4 attempts of 120 s, got .*/score: 429 full")
    with scripted((429, b'{"error": "full"}')) as (url, asked), refused as caught:
        Remote((url,), attempts=4)(smooth(1, 8, 8), prompts("a"))
    assert slept == [0.5, 1.0, 2.0] and len(asked) == 4 and caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((422, b'{"error": "no such info"}'), "422 no such info"),
        ((401, b'{"error": "token"}'), "STUDIO_REWARD_TOKEN"),
        (good(0.5), "expected 2 scores, got 1"),
        (good(0.5, 0.5, version="2"), "expected version 1"),
        ((200, b"\x80\x04K\x01."), "expected a JSON object.*Pickled answers are never read"),
        ((200, b'{"scores": ["high", 1], "version": "1"}'), "expected numbers or null"),
        ((200, b'{"scores": [true, 1], "version": "1"}'), "expected numbers or null"),
        ((307, b""), "307"),
    ],
    ids=["bad input", "wrong token", "length", "another version", "pickle", "text", "bool", "redirect"],
)
def test_what_cannot_get_better_fails_at_once(answer, words):
    with scripted(answer) as (url, asked), pytest.raises(RewardError, match=words):
        Remote((url,), **FAST)(smooth(2, 8, 8), prompts("a", "b"))
    assert len(asked) == 1


def test_a_redirect_is_not_followed_with_the_token(monkeypatch):
    monkeypatch.setenv("STUDIO_REWARD_TOKEN", "secret")
    refused = pytest.raises(RewardError, match="302")
    with serving() as elsewhere, scripted(good(1.0), health=elsewhere.url + "/health") as (url, _), refused:
        Remote((url,), **FAST).check(THREE)


def test_null_is_missing_and_too_many_stop_the_run():
    with scripted(good(0.5, None)) as (url, _):
        scores = score_all({"remote": Remote((url,), **FAST)}, smooth(2, 8, 8), prompts("a", "b"))
    assert scores["remote"].present.tolist() == [True, False]
    with pytest.raises(RewardError, match="at most 10% missing"):
        refuse_failures(scores)


def test_a_part_of_the_batch_may_be_masked():
    answers = [good(0.5), (422, b'{"error": "no"}')]
    with scripted(*answers) as (url, _):
        scores = Remote((url,), batch_size=1, on_error="mask", **FAST)(smooth(2, 8, 8), prompts("a", "b"))
    assert scores.present.tolist() == [True, False]


@pytest.mark.parametrize(
    ("urls", "error", "words"),
    [
        ((), ConfigError, "got none"),
        (("127.0.0.1:80",), ConfigError, "http://"),
        (("http://127.0.0.1:9",), RewardError, "within 3 attempts"),
    ],
    ids=["none", "no scheme", "nobody there"],
)
def test_servers_are_asked_before_sampling(urls, error, words):
    with pytest.raises(error, match=words):
        check_prompts({"remote": Remote(urls, **FAST)}, THREE)


def test_an_unknown_reward_is_named():
    with serving() as server, pytest.raises(ConfigError, match="expected blue at .* got red"):
        Remote((server.url,), "blue", **FAST).check(THREE)


def test_info_is_sent_as_json_or_refused():
    @dataclass
    class Thing:
        color: str

    assert plain({"scene": {"groups": (Thing("red"),)}, "n": 1}) == {"scene": {"groups": [{"color": "red"}]}, "n": 1}
    with pytest.raises(ConfigError, match=r"info\['mask'\]"):
        plain({"mask": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"expected a picture in info\['reference'\], got: .*none\.png"):
        plain({"reference": "/no/such/none.png"})


def test_pictures_of_a_prompt_travel_and_their_paths_do_not(tmp_path):
    @dataclass(frozen=True)
    class Likeness(Red):
        def __call__(self, samples, given):
            seen.extend(given.info)
            return torch.stack([1 - (x - info["reference"]).abs().mean() for x, info in zip(samples, given.info, strict=True)])

    images, seen = (smooth(2, 8, 12) * 255).round() / 255, []
    (tmp_path / "a.png").write_bytes(as_png(as_pil(images[:1])[0]))
    with serving(Likeness()) as server:
        for reference in (str(tmp_path / "a.png"), images[0]):
            scores = Remote((server.url,))(images, prompts("a", "b", reference=reference, image=None, weight=1.0))
            assert scores.value[0] == 1 and scores.value[1] == pytest.approx(1 - (images[1] - images[0]).abs().mean().item())
    assert seen[0]["reference"] is seen[1]["reference"], "a group's reference is unpacked once"
    assert seen[0]["image"] is None and seen[0]["weight"] == 1.0


# ---- the server against a client that misbehaves


def request(**changes) -> bytes:
    body = {"reward": "red", "images": [png(smooth(1, 8, 8)[0])], "prompts": ["a"], "meta": [{}]} | changes
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (request(reward="blue"), 404, "expected the reward 'red'"),
        (b"\x80\x04K\x01.", 422, "expected JSON"),
        (b"[1]", 422, "expected a JSON object"),
        (request(prompts=["a", "b"]), 422, "prompts"),
        (request(prompts=[1]), 422, "prompts"),
        (request(images="x"), 422, "images"),
        (request(images=["%%%"]), 422, "images"),
        (request(images=[base64.b64encode(b"GIF89a").decode()]), 422, "PNG or WebP"),
        (request(prompts=["bad"]), 422, "expected a good prompt"),
        (request(meta=[{"reference": "/etc/hostname"}]), 422, "No path is opened here"),
        (request(meta=[{"image": ["/etc/hostname"]}]), 422, "No path is opened here"),
        (request(meta=[{"reference": {"png": "%%%"}}]), 422, "images"),
        (b" " * 5001, 413, "at most 5000 bytes"),
    ],
)
def test_malformed_requests_are_refused(body, code, words):
    with serving(body=5000) as server:
        answered, said = post(server.url, body)
        assert (answered, words in said["error"]) == (code, True), said
        assert post(server.url, request())[0] == 200, "and the server goes on"


def test_a_request_that_a_web_page_can_send_is_refused():
    """A page of any site may post plain text and forms to 127.0.0.1; for JSON a browser asks the server first."""
    with serving() as server:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            code, said = post(server.url, request(), **{"Content-Type": kind})
            assert code == 415 and "expected the Content-Type application/json" in said["error"]
        assert post(server.url, request(), **{"Content-Type": "application/json; charset=utf-8"})[0] == 200


def test_a_failing_reward_is_500_and_the_server_goes_on():
    class Broken(Red):
        broken = [True, False]

        def __call__(self, samples, given):
            return torch.tensor([float("nan") if self.broken.pop(0) else 1.0])

    with serving(Broken()) as server:
        code, said = post(server.url, request())
        assert code == 500 and "expected finite scores" in said["error"]
        assert post(server.url, request())[1]["scores"] == [1.0]


def test_overload_is_429():
    held, inside = threading.Event(), threading.Event()

    class Slow(Red):
        def __call__(self, samples, given):
            inside.set()
            held.wait(10)
            return torch.ones(len(samples))

    with serving(Slow(), waiting=1) as server:
        first: list = []
        thread = threading.Thread(target=lambda: first.append(post(server.url, request())))
        thread.start()
        assert inside.wait(10)
        code, said = post(server.url, request())
        held.set()
        thread.join()
        assert code == 429 and "at most 1" in said["error"] and first[0][0] == 200


def test_a_body_that_is_still_coming_takes_a_place():
    """Else any number of clients could fill the memory with bodies before one is refused."""
    head = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    with serving(waiting=1) as server:
        with socket.create_connection(server.server_address) as slow:
            slow.sendall(head.encode() + b"{")
            codes = []
            until(lambda: codes.append(post(server.url, request())[0]) or codes[-1] == 429)
        until(lambda: post(server.url, request())[0] == 200)


def test_a_token_is_needed_for_everything(monkeypatch):
    with serving(token="secret") as server:
        assert post(server.url, request())[0] == 401
        assert post(server.url, request(), Authorization="Bearer secrex")[0] == 401
        with pytest.raises(RewardError, match="401"):
            Remote((server.url,), **FAST).check(THREE)
        monkeypatch.setenv("STUDIO_REWARD_TOKEN", "secret")
        handshake.cache_clear()
        assert Remote((server.url,), **FAST)(torch.ones(1, 3, 8, 8), prompts("a")).value.tolist() == [1.0]


def test_a_large_request_that_is_refused_learns_why():
    """The server passes over the body: closing at once would cut the client off while it is still sending."""
    picture = torch.rand(1, 3, 1400, 1400)  # 6 MB as PNG, more than socket buffers hold
    with serving(token="secret") as server:
        body = {"reward": "red", "images": [png(picture[0])], "prompts": ["a"], "meta": [{}]}
        with pytest.raises(RewardError, match="401 expected the server's bearer token"):
            Remote((server.url,), attempts=1)._ask((server.url,), body, "1")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_a_public_address_needs_a_token(host):
    with pytest.raises(ConfigError, match="expected a token for the public address"):
        RewardServer(Red(), "red", host=host, port=0, token=None, limits=Limits())


def test_a_comparison_within_a_prompt_is_not_served():
    with pytest.raises(ConfigError, match="compares those of a prompt"):
        RewardServer(PickScoreRank(), "pickscore_rank", host="127.0.0.1", port=0, token=None, limits=Limits())


def test_pictures_of_different_sizes_are_scored_by_size():
    small, large = torch.zeros(3, 2, 2), torch.zeros(3, 4, 4)
    assert batches([small, large, small, small], 2) == [[0, 2], [3], [1]]
    with serving() as server:
        body = request(images=[png(torch.ones(3, 2, 2)), png(torch.ones(3, 4, 4) * 0.2)], prompts=["a", "b"], meta=[{}, {}])
        assert post(server.url, body)[1]["scores"] == pytest.approx([1.0, 0.2])


# ---- the command line


SMALL = ("train.groups_per_step=2", "train.group_size=4", "watch.prompts=4", "watch.every=1000", "held_out={}")
SMALL += ("policy.sampler.steps=4", "policy.sampler.eval_steps=4", "policy.sampler.window.size=2", "train.checkpointing_steps=1000")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "studio.cli", *arguments]


@contextmanager
def served_by_command(*arguments: str, **environment: str):
    line = command("serve", *arguments, "--port", "0")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | environment)
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_the_run_outlives_its_server_and_continues(tmp_path):
    """Kill the server in the middle: retries, a checkpoint of the last complete step, exit code 4; then --resume."""
    runs = ("--runs", str(tmp_path), "--name", "run", "--progress", "plain")
    with served_by_command("scene") as (url, server):
        reward = f"rewards={{remote: {{weight: 1.0, urls: [{url}], delay: 0.05}}}}"
        line = command("train", "shapes/grpo-guard", *SMALL, "train.steps=500", reward, *runs)
        with subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            metrics = tmp_path / "run" / "metrics.jsonl"
            until(lambda: metrics.is_file() and '"step": 2' in metrics.read_text())
            server.kill()
            told = process.communicate(timeout=60)[1]
        assert process.returncode == 4, told
        assert "expected an answer within 3 attempts" in told and "Traceback" not in told
        view = RunView.open(tmp_path / "run")
        last = [record["step"] for record in view.metrics().records][-1]
        assert last >= 2 and view.checkpoints() == [last]
        assert (view.status["state"], view.status["exit_code"]) == ("failed", 4)
        port = re.search(r":(\d+)$", url).group(1)
        again = subprocess.Popen(
            command("serve", "scene", "--port", port), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert again.stdout.readline().strip() == url
            line = command("train", "--resume", *runs)
            with subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
                until(lambda: f'"step": {last + 1}' in metrics.read_text())
                process.terminate()
                assert process.wait(60) == 0
        finally:
            again.kill()
            again.wait()
            again.stdout.close()


def until(happened) -> None:
    for _ in range(900):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError("waited 90 seconds")


def test_serve_refuses_a_public_address_and_a_taken_port():
    done = subprocess.run(command("serve", "jpeg_size", "--host", "0.0.0.0"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "STUDIO_REWARD_TOKEN" in done.stderr and "Traceback" not in done.stderr
    with serving() as server:
        port = str(server.server_address[1])
        done = subprocess.run(command("serve", "jpeg_size", "--port", port), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Choose another --port" in done.stderr


def test_serve_takes_options_a_name_and_a_token(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text("def bright(samples, prompts):\n    return samples.mean((1, 2, 3))\n")
    arguments = ("function", "target=mine:bright", "--as", "bright")
    with served_by_command(*arguments, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", STUDIO_REWARD_TOKEN="s") as (
        url,
        _,
    ):
        monkeypatch.setenv("STUDIO_REWARD_TOKEN", "s")
        scores = Remote((url,), "bright")(torch.ones(2, 3, 4, 4) * 0.2, prompts("a", "b"))
    assert scores.value.tolist() == pytest.approx([0.2, 0.2])
