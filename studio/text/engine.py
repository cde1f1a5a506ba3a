"""An inference server that writes completions, vLLM or SGLang: where it is, and how it is asked in JSON."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from studio.errors import RewardError

TOKEN = "STUDIO_ENGINE_TOKEN"  # name of the environment variable that holds the server's token
AGAIN = (408, 429, 500, 502, 503, 504)  # answers after which the same request may succeed
LARGEST = 64 * 2**20  # bytes of an answer that are read


class EngineError(RewardError):
    """The server that writes completions failed. As with a reward that fails for good, the finished steps are kept."""


@dataclass(frozen=True)
class Engine:
    """Where completions are written.

    vLLM returns log probabilities at temperature 1 unless it is started with --logprobs-mode processed_logprobs. Adapters need
    --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, whole weights VLLM_SERVER_DEV_MODE=1 or an endpoint of your own;
    SGLang needs --enable-lora --max-lora-rank --lora-target-modules for adapters, and nothing for whole weights.
    """

    url: str  # such as http://127.0.0.1:8000
    kind: Literal["vllm", "sglang"] = "vllm"
    model: str = ""  # the server's name of the model; empty = the first that it lists
    every: Annotated[int, Field(ge=1)] = 1  # iterations from one handover of the weights to the next
    folder: str = ""  # where weights are left for the server, which must see it; empty = a temporary folder of this machine
    load: str = ""  # endpoint that loads whole weights from {"model_path": folder}; empty = the server's own
    timeout: Annotated[float, Field(gt=0)] = 600.0  # seconds that one attempt may take
    attempts: Annotated[int, Field(ge=1)] = 3
    delay: Annotated[float, Field(ge=0)] = 0.5  # seconds before the second attempt; doubles
    concurrency: Annotated[int, Field(ge=1)] = 64  # requests under way at a time, one for each completion

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"engine.url: expected an address such as http://127.0.0.1:8000, got {self.url!r}. Write it with http://."
            )


def ask(engine: Engine, path: str, body: Mapping[str, Any] | None, *, plain: bool = False) -> Any:
    """The JSON that the server answers, or with `plain` any text: POST of a body, GET without one; tried `attempts` times."""
    problem = ""
    for attempt in range(engine.attempts):
        if attempt:
            time.sleep(engine.delay * 2 ** (attempt - 1))
        try:
            code, content = _once(engine, path, body)
        except (OSError, http.client.HTTPException) as broken:  # refused, reset, timed out, cut off
            problem = str(broken) or type(broken).__name__
            continue
        said = content.decode("utf-8", "replace")
        if code < 300:
            return _read(engine, path, said, plain)
        problem = f"{code} {said[:300]}"
        if code not in AGAIN:
            raise EngineError(f"engine {engine.url}{path}: expected an answer, got {problem}. {_advice(engine, code)}")
    raise EngineError(
        f"engine {engine.url}{path}: expected an answer within {engine.attempts} attempts of {engine.timeout:g} s, got {problem}. "
        "Start the server again, then continue the run with --resume; raise engine.timeout if it is only slow."
    )


def _once(engine: Engine, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
    parts = urlsplit(engine.url)
    line = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if os.environ.get(TOKEN):
        headers["Authorization"] = f"Bearer {os.environ[TOKEN]}"
    connection = line(parts.hostname or "", parts.port, timeout=engine.timeout)
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", parts.path.rstrip("/") + path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(LARGEST)
    finally:
        connection.close()


def _read(engine: Engine, path: str, said: str, plain: bool) -> Any:
    try:
        return json.loads(said)
    except ValueError as problem:
        if plain:
            return said
        raise EngineError(
            f"engine {engine.url}{path}: expected JSON, got {said[:60]!r} ({problem}). Is this a {engine.kind} server?"
        ) from problem


def _advice(engine: Engine, code: int) -> str:
    if code in (401, 403):
        return f"Set the server's token in the environment ({TOKEN})."
    if code == 404:
        return f"Check engine.url, engine.kind ({engine.kind}) and engine.load, and the options that the server was started with."
    return "Check that the server has the model that is trained, and the options that it was started with."


def short(answer: Any) -> str:
    """The beginning of an answer, for an error message."""
    return json.dumps(answer)[:120]
