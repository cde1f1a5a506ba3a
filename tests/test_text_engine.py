"""Completions written by a server: a stand-in that speaks the protocols of vLLM and SGLang and samples with a tiny model."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer

import pytest
import torch
from local_server import Handler, running
from tiny_lm import DIGITS, tiny_lm, tiny_policy, tiny_tokenizer

from studio.config import build
from studio.core.gate import EngineCorrection
from studio.errors import ConfigError, RewardError
from studio.text.engine import TOKEN, Engine, EngineError
from studio.text.handover import Handover
from studio.text.remote import generate_remotely
from studio.types import Evaluation, Prompts, Rollout

KINDS = pytest.mark.parametrize("kind", ["vllm", "sglang"])
TEXTS, SEEDS = ("1+1=", "1+1=", "12+345=", "9="), (3, 4, 5, 6)


class StandIn(ThreadingHTTPServer):
    """One model, adapters by name, and what was asked of it; `spoil` changes answers before they leave, seeds may be refused."""

    daemon_threads = True

    def __init__(self, seed=0):
        super().__init__(("127.0.0.1", 0), Answering)
        self.lm, self.adapters, self.tokenizer = tiny_lm(seed), {}, tiny_tokenizer()
        self.asked, self.tokens, self.lock = [], [], threading.Lock()
        self.spoil, self.refused = lambda answer: answer, set()

    def write(self, model, prompt, settings, most, seed):
        """Token by token from the plain model -> (tokens, log probabilities at the temperature, reason)."""
        assert settings["top_p"] == 1 and settings["top_k"] == -1 and settings["min_p"] == 0
        lm, own, tokens, said = self.adapters.get(model, self.lm), torch.Generator().manual_seed(seed), [], []
        for _ in range(most):
            with self.lock, torch.no_grad():
                logits = lm(torch.tensor([prompt + tokens])).logits[0, -1] / settings["temperature"]
            tokens.append(int(torch.multinomial(logits.softmax(-1), 1, generator=own)))
            said.append(float(logits.log_softmax(-1)[tokens[-1]]))
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if tokens[-1] in settings["stop_token_ids"] or any(stop in text for stop in settings["stop"] or ()):
                return tokens, said, "stop"
        return tokens, said, "length"


class Answering(Handler):
    server: StandIn

    def do_GET(self):
        assert self.path == "/v1/models"
        self.say(200, json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode())

    def do_POST(self):
        body, served = self.body(), self.server
        served.asked.append((self.path, body))
        served.tokens.append(self.headers.get("Authorization"))
        if body.get("seed") in served.refused:
            return self.say(400, b"out of luck")
        answer = served.spoil(getattr(self, self.path.strip("/").replace("/", "_"))(body))
        code, content = answer if isinstance(answer, tuple) else (200, answer)
        with suppress(BrokenPipeError):  # whoever asked has gone
            self.say(code, content if isinstance(content, bytes) else json.dumps(content).encode())

    def v1_completions(self, body):
        tokens, said, reason = self.server.write(body["model"], body["prompt"], body, body["max_tokens"], body["seed"])
        assert body["logprobs"] == 0 and body["return_token_ids"] and body["return_tokens_as_token_ids"]
        names = [f"token_id:{token}" for token in tokens]
        choice = {"index": 0, "text": "", "logprobs": {"tokens": names, "token_logprobs": said}, "finish_reason": reason}
        return {"object": "text_completion", "choices": [choice | {"token_ids": tokens, "prompt_token_ids": body["prompt"]}]}

    def generate(self, body):
        how = body["sampling_params"]
        seed, model = how["sampling_seed"], body.get("lora_path", "")
        tokens, said, reason = self.server.write(model, body["input_ids"], how, how["max_new_tokens"], seed)
        assert body["return_logprob"] and how["no_stop_trim"]
        pairs = [[logp, token, None] for logp, token in zip(said, tokens, strict=True)]
        told = {"finish_reason": {"type": reason}, "prompt_tokens": len(body["input_ids"]), "output_token_logprobs": pairs}
        return {"text": "", "output_ids": tokens, "meta_info": told}

    def v1_load_lora_adapter(self, body):
        self.load_lora_adapter(body)
        return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully.".encode()

    def v1_unload_lora_adapter(self, body):
        self.unload_lora_adapter(body)
        return 200, b"Success: removed"

    def load_lora_adapter(self, body):
        from peft import PeftModel

        self.server.adapters[body["lora_name"]] = PeftModel.from_pretrained(tiny_lm(), body["lora_path"]).eval()
        return {"success": True}

    def unload_lora_adapter(self, body):
        del self.server.adapters[body["lora_name"]]
        return {"success": True}

    def update_weights_from_disk(self, body):
        from transformers import AutoModelForCausalLM

        try:
            self.server.lm = AutoModelForCausalLM.from_pretrained(body["model_path"]).eval()
        except (OSError, ValueError) as error:
            return 400, {"success": False, "message": str(error)}
        return {"success": True, "message": "Succeeded to update model weights."}

    own_reload = update_weights_from_disk

    def collective_rpc(self, body):
        assert body["method"] == "reload_weights"
        self.update_weights_from_disk({"model_path": body["kwargs"]["weights_path"]})
        return {"results": [None]}

    def reset_prefix_cache(self, body):
        return 200, b""


@contextmanager
def standing(kind, seed=0, **options):
    server = StandIn(seed)
    with running(server) as url:
        yield server, Engine(url, kind, **{"timeout": 30.0, "delay": 0.01, **options})


def asked(policy, engine, texts=TEXTS, seeds=SEEDS, model="tiny", limit=12, **options):
    prompts = policy.reader.read(Prompts(list(texts), list(texts), [{} for _ in texts]))
    model = model if engine.kind == "vllm" or model != "tiny" else ""
    how = {"temperature": policy.sampling.temperature, "end": policy.reader.end, "limit": limit}
    return generate_remotely(policy.model, prompts, seeds, engine, model=model, **how | options)


def rollout_of(policy, done, engine, texts=TEXTS):
    from studio.text.tokens import trace_of

    rows = Prompts(list(texts), list(texts), [{} for _ in texts])
    trace = trace_of(policy.reader.read(rows), done.token)
    return Rollout(rows, policy.reader.texts(done), trace, done.sampled, torch.arange(4), Evaluation(logp=done.logp), engine=engine)


@KINDS
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_come_back_and_both_say_the_same_of_them(kind, temperature):
    policy = tiny_policy(critic=True, temperature=temperature)
    with standing(kind) as (server, engine):
        done, said = asked(policy, engine, tempered=True)
        again, _ = asked(policy, engine, tempered=True)
    sent = {tuple(body.get("prompt") or body["input_ids"]) for _, body in server.asked}
    assert sent == {tuple(policy.tokenizer(text)["input_ids"]) for text in TEXTS}
    assert done.sampled.sum() == done.length.sum() > 20 and torch.equal(done.token, again.token)
    torch.testing.assert_close(said, done.logp, atol=1e-5, rtol=0)
    rollout = rollout_of(policy, done, said)
    for rows in (slice(None), slice(1, 3)):
        part, own = rollout.at(rows), policy.evaluate(rollout.at(rows))
        torch.testing.assert_close(own.logp[part.mask], part.old.logp[part.mask], atol=5e-6, rtol=0)
    for name, shape in (("entropy", (4, 12)), ("value", (4, 12)), ("tempered", (4, 12, 3))):
        value = getattr(done, name)
        assert value.shape == shape and (value[~done.sampled] == 0).all() and value[done.sampled].abs().sum() > 0
    factor = EngineCorrection()(rollout, torch.ones(4, 12))
    torch.testing.assert_close(factor, torch.ones(4, 12), atol=1e-4, rtol=0)


@KINDS
def test_another_model_on_the_server_shows_in_what_it_said(kind):
    policy = tiny_policy()
    with standing(kind, seed=1) as (_, engine):
        done, said = asked(policy, engine)
    rollout = rollout_of(policy, done, said)
    own = policy.evaluate(rollout).logp
    torch.testing.assert_close(own[done.sampled], done.logp[done.sampled], atol=5e-6, rtol=0)
    assert (said - done.logp)[done.sampled].abs().mean() > 0.1
    factor = EngineCorrection(cap=2.0)(rollout, torch.ones(4, 12))
    expected = (done.logp - said).exp().clamp(max=2.0)
    torch.testing.assert_close(factor, expected, atol=1e-6, rtol=0)


@KINDS
def test_a_row_depends_on_its_seed_alone_and_ends_or_is_cut(kind):
    policy = tiny_policy()
    with standing(kind, concurrency=3) as (_, engine):
        whole, _ = asked(policy, engine, texts=("7=",) * 24, seeds=range(24))
        alone, _ = asked(policy, engine, texts=("7=",), seeds=(5,))
    assert torch.equal(whole.token[5], alone.token[0]) and len({tuple(row) for row in whole.token.tolist()}) > 12
    ended = (whole.token == policy.tokenizer.eos_token_id) & whole.sampled
    assert 0 < ended.any(1).sum() < 24 and torch.equal(whole.cut, ~ended.any(1))
    assert torch.equal(whole.length[~whole.cut], ended.int().argmax(1)[~whole.cut] + 1) and (whole.length[whole.cut] == 12).all()


@KINDS
def test_beginnings_are_read_and_not_trained_and_stop_strings_end_a_row(kind):
    policy = tiny_policy()
    begin = [torch.tensor([DIGITS["3"], DIGITS["1"]]), torch.tensor([], dtype=torch.long)]
    with standing(kind) as (_, engine):
        done, said = asked(policy, engine, texts=("7=", "7="), seeds=(1, 2), begin=begin)
        full, nothing = asked(policy, engine, texts=("7=",), seeds=(1,), begin=[torch.full((12,), 5)])
        stopped, _ = asked(policy, engine, texts=("7=",) * 20, seeds=range(20), stop=["4"])
    assert done.token[0, :2].tolist() == begin[0].tolist()
    assert done.sampled[0, :3].tolist() == [False, False, True] and done.sampled[1, 0]
    assert (said[0, :2] == 0).all() and (done.logp[0, :2] < 0).all()
    torch.testing.assert_close(said[done.sampled], done.logp[done.sampled], atol=1e-5, rtol=0)
    assert full.length.tolist() == [12] and full.cut.all() and not full.sampled.any() and not nothing.any()
    four = (stopped.token == DIGITS["4"]) & stopped.sampled
    assert four.any(1).sum() > 3 and torch.equal(stopped.length[four.any(1)], four.int().argmax(1)[four.any(1)] + 1)


def moved(policy):
    with torch.no_grad():
        for p in policy.trainable():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))


@KINDS
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_trained_weights_are_handed_over_at_an_interval(kind, lora, tmp_path):
    policy = tiny_policy(lora=lora, critic=True)

    def mismatch(model):
        done, said = asked(policy, engine, model=model)
        return (said - done.logp).abs().max().item()

    with standing(kind, every=2, folder=str(tmp_path)) as (server, engine):
        handover = Handover(engine, lora=lora)
        first = handover.at(7, policy.save)
        assert mismatch(first) < 1e-5
        moved(policy)
        assert handover.at(8, policy.save) == first and mismatch(first) > 0.1
        second = handover.at(9, policy.save)
        assert mismatch(second) < 1e-5
        (folder,) = tmp_path.iterdir()  # the former is gone
        assert list(server.adapters) == ([second] if lora else []) and (first != second) is lora
        assert not (folder / "critic.safetensors").exists()
        moved(policy)
        assert mismatch(handover.at(None, policy.save)) < 1e-5
        assert mismatch(handover.at(10, policy.save)) < 1e-5 and len(list(tmp_path.iterdir())) == 1
    paths = [path for path, body in server.asked if "load" in path or "update" in path or "rpc" in path or "reset" in path]
    if lora:
        prefix = "/v1" if kind == "vllm" else ""
        assert paths[:3] == [f"{prefix}/load_lora_adapter"] * 2 + [f"{prefix}/unload_lora_adapter"]
    else:
        assert paths[:2] == (["/collective_rpc", "/reset_prefix_cache"] if kind == "vllm" else ["/update_weights_from_disk"] * 2)


def test_a_handover_that_fails_leaves_what_was_there(tmp_path):
    policy = tiny_policy()
    with standing("sglang", load="/own_reload", folder=str(tmp_path)) as (server, engine):
        handover = Handover(engine, lora=False)
        handover.at(0, policy.save)
        before = list(tmp_path.iterdir())
        server.spoil = lambda answer: {"success": False, "message": "no such file"}
        with pytest.raises(EngineError, match="expected the weights to be loaded, got .*no such file.*engine.folder"):
            handover.at(1, policy.save)
        assert list(tmp_path.iterdir()) == before and handover.step == 0
        server.spoil = lambda answer: answer
        handover.at(1, policy.save)
    assert [path for path, _ in server.asked] == ["/own_reload"] * 3


def changed(**changes):
    """An answer of either kind with some of its contents replaced."""

    def spoil(answer):
        if "choices" in answer:
            choice = answer["choices"][0]
            said = choice["logprobs"]
            choice["token_ids"] = changes.get("tokens", choice["token_ids"])
            said["token_logprobs"] = changes.get("logp", lambda logp: logp)(said["token_logprobs"])
            choice["finish_reason"] = changes.get("reason", choice["finish_reason"])
            choice["prompt_token_ids"] = changes.get("read", choice["prompt_token_ids"])
        else:
            said = answer["meta_info"]
            pairs = said["output_token_logprobs"]
            logp = changes.get("logp", lambda logp: logp)([pair[0] for pair in pairs])
            tokens = changes.get("tokens", [pair[1] for pair in pairs][: len(logp)])
            said["output_token_logprobs"] = [list(pair) for pair in zip(logp, tokens, [None] * 99, strict=False)]
            said["finish_reason"] = {"type": changes.get("reason", said["finish_reason"]["type"])}
            said["prompt_tokens"] = len(changes["read"]) if "read" in changes else said["prompt_tokens"]
        return answer

    return spoil


WRONG = {
    "no completion": (
        lambda answer: {"choices": [], "meta_info": {}},
        "token ids and log probabilities of a .* server, got",
    ),
    "two completions": (
        lambda answer: answer | {"choices": answer.get("choices", []) * 2, "meta_info": None},
        "expected token ids",
    ),
    "no log probabilities": (lambda answer: {"choices": [{"logprobs": None}], "meta_info": {"x": 1}}, "expected token ids and log"),
    "a list": (lambda answer: [1, 2], "expected a JSON object from .*, got .*a JSON list"),
    "nothing written": (changed(tokens=[], logp=lambda logp: []), "expected 1 to 12 tokens .* got 0 tokens"),
    "too much written": (changed(tokens=[5] * 13, logp=lambda logp: [-1.0] * 13), "expected 1 to 12 tokens .* got 13 tokens"),
    "NaN": (changed(logp=lambda logp: [float("nan"), *logp[1:]]), "finite log probabilities, got"),
    "null": (changed(logp=lambda logp: [None, *logp[1:]]), "finite log probabilities, got"),
    "another vocabulary": (
        changed(tokens=[999], logp=lambda logp: logp[:1], reason="stop"),
        "token ids below 17, got 999",
    ),
    "aborted": (changed(reason="abort"), "got one that ended by 'abort'"),
    "a short context": (
        changed(tokens=[5], logp=lambda logp: logp[:1], reason="length"),
        "room for 12 tokens, got .* after 1",
    ),
    "a changed prompt": (changed(read=[1]), "prompt tokens to be read as they are, got 1"),
    "no JSON": (lambda answer: (200, b"<html>"), "expected a JSON object from .*, got b'<html>'.*Is this a"),
    "no access": (lambda answer: (401, b"who?"), f"expected an answer, got .*: 401 who\\?. Set the server's token .*{TOKEN}"),
    "no such path": (lambda answer: (404, b"?"), "/(generate|completions): 404 .*Check engine.url, engine.kind"),
    "a bad request": (lambda answer: (400, b"unknown model"), ": 400 unknown model. Check"),
    "overload": (lambda answer: (503, b"busy"), "expected an answer within 3 attempts of 30 s, got .*: 503 busy.*--resume"),
}


@KINDS
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_says_what_is_wrong(kind, name):
    spoil, words = WRONG[name]
    with standing(kind) as (server, engine):
        server.spoil = spoil
        with pytest.raises(EngineError, match=words) as seen:
            asked(tiny_policy(), engine, texts=("7=",), seeds=(5,))
    assert str(seen.value).startswith("engine") and engine.url in str(seen.value) and isinstance(seen.value, RewardError)
    assert seen.value.exit_code == 4


def test_more_log_probabilities_than_tokens_are_refused():
    with standing("vllm") as (server, engine):
        server.spoil = changed(logp=lambda logp: [*logp, -1.0])
        with pytest.raises(EngineError, match="with a log probability each, got"):
            asked(tiny_policy(), engine)


def test_an_older_server_names_its_tokens_in_words():
    def spoil(answer):
        del answer["choices"][0]["token_ids"], answer["choices"][0]["prompt_token_ids"]
        return answer

    policy = tiny_policy()
    with standing("vllm") as (server, engine):
        known, _ = asked(policy, engine)
        server.spoil = spoil
        named, said = asked(policy, engine)
    assert torch.equal(known.token, named.token)
    torch.testing.assert_close(said, named.logp, atol=1e-5, rtol=0)


def test_a_passing_fault_is_tried_again_and_the_token_is_sent(monkeypatch):
    monkeypatch.setenv(TOKEN, "secret")
    failures = [True, True]
    with standing("vllm") as (server, engine):
        server.spoil = lambda answer: (500, b"oh") if failures and failures.pop() else answer
        done, _ = asked(tiny_policy(), engine, texts=("7=",), seeds=(1,))
    assert done.length.sum() > 0 and len(server.asked) == 3 and set(server.tokens) == {"Bearer secret"}


@KINDS
def test_a_slow_and_a_dead_server_end_in_a_clean_message(kind):
    def spoil(answer):
        time.sleep(0.6)
        return answer

    began = time.monotonic()
    with standing(kind, timeout=0.15, attempts=2, concurrency=2) as (server, engine):
        server.spoil = spoil
        with pytest.raises(EngineError, match="within 2 attempts of 0.15 s, got .*: timed out.*raise attempts or timeout"):
            asked(tiny_policy(), engine, texts=("7=",) * 40, seeds=range(40))
    with pytest.raises(EngineError, match="within 2 attempts .*refused.*Start the server again"):
        asked(tiny_policy(), engine, texts=("7=",) * 40, seeds=range(40))
    assert time.monotonic() - began < 10  # rows that wait are not asked any more


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "", "ftp://host"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="engine.url: expected an address such as http://127.0.0.1:8000, got"):
        build(Engine, {"url": url})
