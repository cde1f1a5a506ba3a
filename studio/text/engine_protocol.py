"""One completion by a server of the vLLM or the SGLang kind: token ids go out, token ids and log probabilities come back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from studio.post import ask
from studio.text.engine import Engine, EngineError, short

# nothing cuts the distribution, whatever the model's own settings say
FULL = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


class Asked(NamedTuple):
    """One completion."""

    prompt: list[int]
    limit: int  # tokens
    seed: int
    temperature: float
    end: list[int]
    stop: list[str]
    model: str


class Answered(NamedTuple):
    """One completion with what the server said of its tokens, its end included."""

    token: list[int]
    logp: list[float]  # natural log
    cut: bool  # stopped by the limit


def complete(engine: Engine, asked: Asked) -> Answered:
    """One completion; EngineError for no answer, or one that does not hold what was asked for."""
    answer = ask(engine.service, *(_vllm_body(asked) if engine.kind == "vllm" else _sglang_body(asked)))
    try:
        token, logp, reason, read = _vllm_answer(answer) if engine.kind == "vllm" else _sglang_answer(answer)
    except (KeyError, IndexError, TypeError, ValueError) as problem:
        raise EngineError(
            f"engine {engine.url}: expected token ids and log probabilities of a {engine.kind} server, got {short(answer)} "
            f"({type(problem).__name__}: {problem}). Check engine.kind, and update the server."
        ) from problem
    wrong = _fault(asked, token, logp, reason, read)
    if wrong:
        raise EngineError(f"engine {engine.url}: {wrong}")
    return Answered(token, logp, reason == "length")


def _vllm_body(asked: Asked) -> tuple[str, dict[str, Any]]:
    settings = {"max_tokens": asked.limit, "temperature": asked.temperature, "seed": asked.seed, **FULL}
    ends = {"stop_token_ids": asked.end, "stop": asked.stop or None, "skip_special_tokens": False}
    wanted = {"logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True}
    return "/v1/completions", {"model": asked.model, "prompt": asked.prompt, **settings, **ends, **wanted}


def _sglang_body(asked: Asked) -> tuple[str, dict[str, Any]]:
    settings = {"max_new_tokens": asked.limit, "temperature": asked.temperature, "sampling_seed": asked.seed % 2**31, **FULL}
    ends = {"stop_token_ids": asked.end, "stop": asked.stop or None, "skip_special_tokens": False, "no_stop_trim": True}
    body: dict[str, Any] = {"input_ids": asked.prompt, "sampling_params": {**settings, **ends}, "return_logprob": True}
    return "/generate", body | ({"lora_path": asked.model} if asked.model else {})


def _vllm_answer(answer: Any) -> tuple[list[int], list[float], str, int | None]:
    (choice,) = answer["choices"]
    said = choice["logprobs"]
    token = choice.get("token_ids")
    if token is None:  # servers before return_token_ids
        token = [int(name.removeprefix("token_id:")) for name in said["tokens"]]
    read = choice.get("prompt_token_ids")
    return list(token), list(said["token_logprobs"]), choice["finish_reason"], None if read is None else len(read)


def _sglang_answer(answer: Any) -> tuple[list[int], list[float], str, int | None]:
    said = answer["meta_info"]
    pairs = said["output_token_logprobs"]
    return [pair[1] for pair in pairs], [pair[0] for pair in pairs], said["finish_reason"]["type"], said.get("prompt_tokens")


def _fault(asked: Asked, token: Sequence[Any], logp: Sequence[Any], reason: str, read: int | None) -> str:
    """What is wrong with an answer, as the rest of an error message; empty = nothing."""
    if not token or len(token) > asked.limit or len(logp) != len(token):
        return (
            f"expected 1 to {asked.limit} tokens with a log probability each, got {len(token)} tokens and {len(logp)} log "
            "probabilities. Check that no proxy changes the requests, and update the server."
        )
    if not all(type(one) is int and one >= 0 for one in token) or not all(
        isinstance(one, int | float) and math.isfinite(one) for one in logp
    ):
        return f"expected token ids and finite log probabilities, got {token[:4]} and {logp[:4]}. Update the server."
    if read is not None and read != len(asked.prompt):
        return (
            f"expected the {len(asked.prompt)} prompt tokens to be read as they are, got {read}. Serve the model that is trained, "
            "without truncation of prompts."
        )
    if reason not in ("stop", "length"):
        return f"expected a completion that ended or reached the limit, got one that ended by {reason!r}. Read the server's log."
    if reason == "length" and len(token) < asked.limit:
        return (
            f"expected room for {asked.limit} tokens, got a completion cut after {len(token)}. Raise the server's context length "
            "or lower policy.sampling.limit."
        )
    return ""
