"""An inference server that writes completions, vLLM or SGLang: where it is, and how long it is waited for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from studio.errors import RewardError
from studio.post import Patience, Service, check_url

TOKEN = "STUDIO_ENGINE_TOKEN"  # name of the environment variable that holds the server's token


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
        check_url(self.url, "engine.url")

    @property
    def service(self) -> Service:
        check = f"Check engine.url, engine.kind ({self.kind}) and engine.load, and the model and options of the server."
        patience = Patience(self.attempts, self.delay, self.timeout)
        return Service("engine", (self.url,), TOKEN, patience, check, EngineError)


def short(answer: Any) -> str:
    """The beginning of an answer, for an error message."""
    return json.dumps(answer)[:120]
