"""A reward that another process computes: pictures go out as PNG in JSON, numbers or nothing come back."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rewards.facts import Facts
from rewards.pictures import FIELDS, as_pil, as_png, check_pictures, read_picture
from studio.errors import ConfigError, RewardError
from studio.post import Patience, Service, ask, check_url
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor

TOKEN = "STUDIO_REWARD_TOKEN"  # name of the environment variable that holds the servers' token


@dataclass(frozen=True)
class Remote:
    """Scores of `studio serve`: a batch is spread over the servers, and a server that fails hands its part to the next.

    A row for which the server has no score is missing.  When no server answers in `attempts` rounds, the run stops, or
    with `on_error=mask` these rows are missing too.  Pictures are sent with 8 bits per channel, which may change a
    score of a float picture a little.
    """

    urls: tuple[str, ...] = ()  # one or several servers of the same reward, such as http://127.0.0.1:18080
    reward: str = ""  # its name there; empty: the only one that the servers have
    batch_size: int = 32  # pictures per request
    attempts: int = 3  # rounds over the servers; the delay between them doubles
    delay: float = 0.5  # seconds before the second attempt
    timeout: float = 120.0  # seconds that one attempt may take
    on_error: Literal["fail", "mask"] = "fail"

    name: ClassVar[str] = "remote"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))  # the server's own is in its handshake
    facts: ClassVar[Facts] = Facts("a server of `studio serve`", "round(255·x) as PNG, then the served reward's own")

    @property
    def license(self) -> str:
        return _MET.get((self.urls, self.reward), {}).get("license", "as stated by the server")

    @property
    def model_id(self) -> str | None:
        return _MET.get((self.urls, self.reward), {}).get("model") or (", ".join(self.urls) or None)

    @property
    def patience(self) -> Patience:
        return Patience(self.attempts, self.delay, self.timeout)

    def check(self, prompts: Prompts) -> None:
        """ConfigError or RewardError before sampling, when the servers do not answer or are not alike."""
        handshake(self.urls, self.reward, self.patience)

    def __call__(self, samples: Tensor, prompts: Prompts) -> Scores:
        """Scores of pictures [B, 3, H, W] in [0, 1]."""
        check_pictures(self.name, samples)
        served = handshake(self.urls, self.reward, self.patience)
        pictures = [encoded(picture) for picture in samples]
        size = max(1, min(self.batch_size, math.ceil(len(pictures) / len(self.urls))))  # work for every server
        cuts = [slice(at, at + size) for at in range(0, len(pictures), size)]

        def score(number: int) -> dict[str, Any]:
            cut, first = cuts[number], number % len(self.urls)
            rows = prompts.take(range(len(prompts))[cut])
            body = {"reward": served["name"], "images": pictures[cut], "prompts": rows.text, "meta": [plain(i) for i in rows.info]}
            try:
                return self._ask(self.urls[first:] + self.urls[:first], body, served["version"])
            except RewardError:
                if self.on_error == "fail":
                    raise
                return {"scores": [None] * len(rows), "parts": {}}

        with ThreadPoolExecutor(max_workers=len(self.urls), thread_name_prefix="remote") as workers:
            answers = list(workers.map(score, range(len(cuts))))
        return joined(answers)

    def _ask(self, urls: tuple[str, ...], body: dict[str, Any], version: str) -> dict[str, Any]:
        answer = ask(servers(urls, self.patience), "/score", body)
        scores, parts = answer.get("scores"), answer.get("parts", {})
        for values in (scores, *(parts.values() if isinstance(parts, dict) else [None])):
            if not isinstance(values, list) or len(values) != len(body["images"]):
                raise RewardError(
                    f"reward 'remote': expected {len(body['images'])} scores, got {values if values is None else len(values)}. "
                    "Update the server: it must answer one number or null per picture."
                )
            if not all(value is None or type(value) in (int, float) for value in values):
                raise RewardError(f"reward 'remote': expected numbers or null, got {values[:3]}. Update the server.")
        if answer.get("version") != version:
            raise RewardError(
                f"reward 'remote': expected version {version} of {body['reward']!r} as at the start, got {answer.get('version')}. "
                "Scores of two versions do not compare: serve the version that the run began with."
            )
        return {"scores": scores, "parts": parts}


_MET: dict[tuple[tuple[str, ...], str], dict[str, Any]] = {}  # what the servers said of themselves, for cards and listings


def servers(urls: tuple[str, ...], patience: Patience) -> Service:
    """Of `studio serve`, and how they are asked."""
    return Service(
        "reward 'remote'", urls, TOKEN, patience, "Check the address, the name of the reward and what it needs of a prompt."
    )


@lru_cache(maxsize=16)
def handshake(urls: tuple[str, ...], reward: str, patience: Patience) -> dict[str, Any]:
    """Name, version, license, range and model of the reward that all these servers have; once per process."""
    where = "reward 'remote'"
    if not urls:
        raise ConfigError(f"{where}: expected the address of a server, got none. Give urls=[http://127.0.0.1:18080].")
    met: dict[str, Any] | None = None
    for url in urls:
        check_url(url, where)
        health = ask(servers((url,), patience), "/health")
        known = {one["name"]: one for one in health.get("rewards", []) if isinstance(one, dict) and "name" in one}
        name = reward or (next(iter(known)) if len(known) == 1 else "")
        if name not in known:
            raise ConfigError(
                f"{where}: expected {reward or 'one reward'} at {url}, got {', '.join(known) or 'none'}. Name one of them."
            )
        alike = {key: known[name].get(key) for key in ("name", "version", "license", "range", "model")}
        if met is not None and alike != met:
            raise ConfigError(
                f"{where}: expected the same reward on all servers, got {met} and at {url} {alike}. Serve one version."
            )
        met = alike
    _MET[urls, reward] = met or {}
    return met or {}


def plain(info: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt's info as JSON has it, its pictures as {"png": base64}; ConfigError for what has no such form."""
    return {str(key): _png(key, value) if key in FIELDS else _plain(key, value) for key, value in info.items()}


def encoded(picture: Tensor) -> str:
    """A picture [3, H, W] as PNG in base64."""
    return base64.b64encode(as_png(as_pil(picture[None])[0])).decode()


def _png(key: str, value: Any) -> Any:
    """The picture itself: a path means nothing on another machine, and servers refuse it."""
    import torch

    if value is None:
        return None
    try:
        return {"png": encoded(value) if isinstance(value, torch.Tensor) else _encoded_file(Path(value))}
    except (OSError, ValueError, TypeError) as problem:
        raise ConfigError(
            f"reward 'remote': expected a picture in info[{key!r}], got: {problem}. Give the path of one, or a tensor [3, H, W]."
        ) from problem


@lru_cache(maxsize=64)  # a group shares its pictures
def _encoded_file(path: Path) -> str:
    return encoded(read_picture(path))


def _plain(key: str, value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(key, asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(key, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(key, one) for one in value]
    raise ConfigError(
        f"reward 'remote': expected info that JSON can hold, got {type(value).__name__} in info[{key!r}]. Use text and numbers."
    )


def joined(answers: list[dict[str, Any]]) -> Scores:
    """The answers to the parts of a batch as one."""
    import torch

    nan = float("nan")
    scores = [score for answer in answers for score in answer["scores"]]
    names = dict.fromkeys(name for answer in answers for name in answer["parts"])
    parts = {}
    for name in names:
        rows = [one for answer in answers for one in answer["parts"].get(name, [None] * len(answer["scores"]))]
        parts[name] = torch.tensor([nan if one is None else float(one) for one in rows])
    value = torch.tensor([0.0 if score is None else float(score) for score in scores])
    return Scores(value, torch.tensor([score is not None for score in scores], dtype=torch.bool), parts)
