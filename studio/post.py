"""Asking servers in JSON: bounded retries with doubling delays, several servers, and no answer is an error."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from studio.errors import ConfigError, RewardError

AGAIN = (408, 429, 500, 502, 503, 504)  # answers after which the same request may succeed
LARGEST = 64 * 2**20  # bytes of an answer that are read
LOCAL = ("127.0.0.1", "localhost", "::1")  # asked directly, whatever proxy is set


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for: attempts rounds over all servers, delay·2^k seconds after round k."""

    attempts: int = 3
    delay: float = 0.5  # seconds before the second attempt
    timeout: float = 120.0  # seconds that one attempt may take


@dataclass(frozen=True)
class Service:
    """One or several servers of the same thing, and what an error message says of them."""

    where: str  # begins every message
    urls: tuple[str, ...]  # the first is asked first
    token: str  # name of the environment variable that holds their token
    patience: Patience = Patience()
    check: str = "Check the address and the options of the server."  # advice where they refuse, but not for the token
    error: type[RewardError] = RewardError


def ask(service: Service, path: str, body: Mapping[str, Any] | None = None, *, plain: bool = False) -> Any:
    """The JSON object that the first of these servers answers, or with `plain` any JSON or text: POST of a body, GET without one.

    Connection errors and the answers in `AGAIN` are tried again, the next server first; the service's error after the last
    attempt, and at once for any other refusal or an answer that is no JSON object.
    """
    problem: object = "no attempt"
    patience = service.patience
    for attempt in range(patience.attempts):
        if attempt:
            time.sleep(patience.delay * 2 ** (attempt - 1))
        for url in (server.rstrip("/") + path for server in service.urls):
            try:
                return _read(service, url, _once(service, url, body), plain)
            except urllib.error.HTTPError as answer:
                problem = f"{url}: {answer.code} {_said(answer)}"
                if answer.code not in AGAIN:
                    advice = _advice(service, answer.code)
                    raise service.error(f"{service.where}: expected an answer, got {problem}. {advice}") from answer
            except (OSError, http.client.HTTPException) as broken:  # refused, reset, timed out, cut off
                problem = f"{url}: {getattr(broken, 'reason', None) or broken or type(broken).__name__}"
    raise service.error(
        f"{service.where}: expected an answer within {patience.attempts} attempts of {patience.timeout:g} s, got {problem}. "
        "Start the server again, then continue the run with --resume; raise attempts or timeout if it is only slow."
    )


def check_url(url: str, where: str) -> None:
    """ConfigError unless this is an http address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{where}: expected an address such as http://127.0.0.1:8000, got {url!r}. Write it with http://.")


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to somebody else."""

    def redirect_request(self, *given: Any) -> None:
        return None


@lru_cache(maxsize=2)
def _opener(local: bool) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Stay, *([urllib.request.ProxyHandler({})] if local else []))


def _once(service: Service, url: str, body: Mapping[str, Any] | None) -> bytes:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if os.environ.get(service.token):
        headers["Authorization"] = f"Bearer {os.environ[service.token]}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    with _opener(urlsplit(url).hostname in LOCAL).open(request, timeout=service.patience.timeout) as answer:
        return answer.read(LARGEST)


def _read(service: Service, url: str, content: bytes, plain: bool) -> Any:
    try:
        result = json.loads(content)
        if not plain and not isinstance(result, dict):
            raise ValueError(f"a JSON {type(result).__name__}")
    except ValueError as problem:
        if plain:
            return content.decode("utf-8", "replace")
        raise service.error(
            f"{service.where}: expected a JSON object from {url}, got {content[:60]!r} ({problem}). "
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


def _advice(service: Service, code: int) -> str:
    return f"Set the server's token in the environment ({service.token})." if code in (401, 403) else service.check
