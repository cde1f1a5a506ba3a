"""Asking a server in JSON: bounded retries with doubling delays, several servers, and no answer is an error, not a score."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from studio.errors import ConfigError, RewardError

AGAIN = (408, 429, 500, 502, 503, 504)  # answers after which the same request may succeed
LARGEST = 64 * 2**20  # bytes of an answer that are read


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for: attempts rounds over all servers, delay·2^k seconds after round k."""

    attempts: int = 3
    delay: float = 0.5  # seconds before the second attempt
    timeout: float = 120.0  # seconds that one attempt may take


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to somebody else."""

    def redirect_request(self, *given: Any) -> None:
        return None


def ask(
    urls: Sequence[str], path: str, body: Mapping[str, Any] | None, *, token: str | None, patience: Patience, where: str
) -> dict[str, Any]:
    """The JSON object that the first of these servers answers: POST of a body, GET without one.

    Connection errors and the answers in `AGAIN` are tried again, the next server first; RewardError after the last
    attempt, and at once for any other refusal or an answer that is no JSON object.
    """
    problem: object = "no attempt"
    for attempt in range(patience.attempts):
        if attempt:
            time.sleep(patience.delay * 2 ** (attempt - 1))
        for url in urls:
            try:
                return _once(url.rstrip("/") + path, body, token, patience.timeout, where)
            except urllib.error.HTTPError as answer:
                problem = f"{url}: {answer.code} {_said(answer)}"
                if answer.code not in AGAIN:
                    raise RewardError(f"{where}: expected an answer, got {problem}. {_advice(answer.code)}") from answer
            except (OSError, http.client.HTTPException) as broken:  # refused, reset, timed out, cut off
                problem = f"{url}: {getattr(broken, 'reason', None) or broken or type(broken).__name__}"
    raise RewardError(
        f"{where}: expected an answer within {patience.attempts} attempts, got {problem}. "
        "Start the server again, then continue the run with --resume; raise attempts to wait longer."
    )


def check_url(url: str, where: str) -> None:
    """ConfigError unless this is an http address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{where}: expected an address such as http://127.0.0.1:18080, got {url!r}. Write it with http://.")


def _once(url: str, body: Mapping[str, Any] | None, token: str | None, timeout: float, where: str) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    direct = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1") else []
    opener = urllib.request.build_opener(_Stay, *direct)
    with opener.open(urllib.request.Request(url, data=data, headers=headers), timeout=timeout) as answer:
        content = answer.read(LARGEST)
    try:
        result = json.loads(content)
        if not isinstance(result, dict):
            raise ValueError(f"a JSON {type(result).__name__}")
    except ValueError as problem:
        raise RewardError(
            f"{where}: expected a JSON object from {url}, got {content[:60]!r} ({problem}). "
            "Is this a server of that kind? Pickled answers are never read."
        ) from problem
    return result


def _said(answer: urllib.error.HTTPError) -> str:
    try:
        content = answer.read(2000)
    except (OSError, http.client.HTTPException):
        content = b""
    try:
        error = json.loads(content)["error"]
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace") or str(answer.reason)


def _advice(code: int) -> str:
    if code in (401, 403):
        return "Set the server's token in the environment (STUDIO_REWARD_TOKEN, or JUDGE_API_KEY for a judge)."
    return "Check the address, the name of the reward and what it needs of a prompt."
