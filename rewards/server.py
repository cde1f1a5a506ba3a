"""A reward over HTTP: JSON with PNG pictures in, numbers or null out; never pickle.

GET /health  {"ok": true, "rewards": [{"name", "version", "license", "range", "model"}]}
POST /score  {"reward", "images": [base64 PNG or WebP], "prompts": [...], "meta": [{...}]}
             -> {"scores": [number or null], "errors": [text or null], "parts": {name: [...]}, "version"}

The pictures of a prompt, meta's "image" and "reference", come as {"png": base64}; a path there is refused, as its answer
would tell a client which files this machine has.  A reward of your own must open no path that a request names.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rewards.candidates import Compares
from rewards.pictures import FIELDS, as_tensor, open_file
from rewards.score import check_prompts, checked_scores
from studio.errors import ConfigError
from studio.protocols import RewardFn
from studio.types import Prompts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Limits:
    """What one server takes on."""

    body: int = 256 * 2**20  # bytes of a request; more is answered 413
    waiting: int = 16  # requests at once, of which one is scored; more are answered 429
    batch_size: int = 64  # pictures per call of the reward
    pixels: int = 2**27  # of all pictures of a request, 128 of 1024 x 1024; more is answered 413


class Refused(Exception):
    """A request that is answered with an HTTP error."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class RewardServer(ThreadingHTTPServer):
    """Serves one reward until `shutdown`; ConfigError for an address that others can reach without a token."""

    daemon_threads = True

    def __init__(self, reward: RewardFn, name: str, *, host: str, port: int, token: str | None, limits: Limits) -> None:
        if not token and not is_loopback(host):
            raise ConfigError(
                f"studio serve: expected a token for the public address {host}, got none. Set STUDIO_REWARD_TOKEN in the "
                "environment of server and trainer, or stay with --host 127.0.0.1."
            )
        if isinstance(reward, Compares):
            raise ConfigError(
                f"studio serve: expected a reward of single pictures, got {name!r}, which compares those of a prompt. "
                "Requests cut groups: serve what it is made of."
            )
        self.reward, self.name, self.token, self.limits = reward, name, token, limits
        self.version = version_of(reward)
        self.places, self.turn = threading.BoundedSemaphore(limits.waiting), threading.Lock()
        try:
            super().__init__((host, port), Handler)
        except OSError as problem:
            raise ConfigError(
                f"studio serve: expected a free address, got {host}:{port} ({problem.strerror}). Choose another --port."
            ) from problem

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"

    def health(self) -> dict[str, Any]:
        low, high = self.reward.range
        facts = {"name": self.name, "version": self.version, "license": self.reward.license, "model": self.reward.model_id}
        return {"ok": True, "rewards": [facts | {"range": [_number(low), _number(high)]}]}

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places for requests; Refused with 429 when all are taken."""
        if not self.places.acquire(blocking=False):
            raise Refused(429, f"expected at most {self.limits.waiting} requests at once. Try again later")
        try:
            yield
        finally:
            self.places.release()

    def score(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; Refused with 404, 413 or 422."""
        if request.get("reward") != self.name:
            raise Refused(404, f"expected the reward {self.name!r}, got {request.get('reward')!r}")
        images, prompts = read_request(request, self.limits.pixels)
        with self.turn:  # one model, one device
            return self._score(images, prompts) | {"version": self.version}

    def _score(self, images: list[Tensor], prompts: Prompts) -> dict[str, Any]:
        import torch

        try:
            check_prompts({self.name: self.reward}, prompts)
        except ConfigError as problem:
            raise Refused(422, str(problem)) from problem
        scores: list[float | None] = [None] * len(images)
        parts: dict[str, list[float | None]] = {}
        for rows in batches(images, self.limits.batch_size):
            with torch.no_grad():
                result = self.reward(torch.stack([images[row] for row in rows]), prompts.take(rows))
            found = checked_scores(self.name, result, len(rows))
            for at, row in enumerate(rows):
                scores[row] = found.value[at].item() if found.present is None or found.present[at] else None
                for part, values in found.parts.items():
                    parts.setdefault(part, [None] * len(images))[row] = _number(values[at].item())
        return {"scores": scores, "errors": ["no score" if score is None else None for score in scores], "parts": parts}


class Handler(BaseHTTPRequestHandler):
    """One request; every answer is a JSON object."""

    server: RewardServer
    protocol_version = "HTTP/1.1"
    timeout = 120  # seconds without a byte after which a connection is dropped
    unread: int | None = 0  # bytes of the body that are still to come; None when the client does not say

    def do_GET(self) -> None:
        self._answer(lambda: self.server.health() if self.path == "/health" else _unknown(self.path))

    def do_POST(self) -> None:
        self.unread = int(length) if (length := self.headers.get("Content-Length", "")).isdecimal() else None
        self._answer(lambda: self._score() if self.path == "/score" else _unknown(self.path))

    def _score(self) -> dict[str, Any]:
        if (kind := self.headers.get_content_type()) != "application/json":  # what any web page may send: forms, plain text
            raise Refused(415, f"expected the Content-Type application/json, got {kind}")
        with self.server.place():  # before the body: many of them would fill the memory
            return self.server.score(self._body())

    def _answer(self, work: Any) -> None:
        try:
            self._check_token()
            code, said = 200, work()
        except Refused as refusal:
            code, said = refusal.code, {"error": str(refusal)}
        except Exception as problem:  # the reward failed: the client decides what a failure means, the server goes on
            code, said = 500, {"error": f"{type(problem).__name__}: {problem}"}
        if code != 200:
            self._drain()
        data = json.dumps(said, allow_nan=False).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "").encode()
        if self.server.token and not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            raise Refused(401, "expected the server's bearer token")

    def _body(self) -> dict[str, Any]:
        if self.unread is None:
            raise Refused(411, "expected a Content-Length")
        if self.unread > self.server.limits.body:
            raise Refused(413, f"expected at most {self.server.limits.body} bytes, got {self.unread}")
        content, self.unread = self.rfile.read(self.unread), 0
        try:
            request = json.loads(content)
        except ValueError as problem:
            raise Refused(422, f"expected JSON: {problem}") from problem
        if not isinstance(request, dict):
            raise Refused(422, f"expected a JSON object, got {type(request).__name__}")
        return request

    def _drain(self) -> None:
        """Pass over a body that was refused unread: a client that is cut off while sending never sees the reason."""
        self.close_connection = True
        left = min(self.unread or 0, 4 * self.server.limits.body)
        while left > 0 and (passed := self.rfile.read(min(left, 2**16))):
            left -= len(passed)

    def log_message(self, *given: Any) -> None:
        """Quiet: requests are frequent, and paths and prompts are the client's business."""


def read_request(request: dict[str, Any], pixels: int = Limits.pixels) -> tuple[list[Tensor], Prompts]:
    """Pictures [3, H, W] and prompts of a request; Refused with 422 for anything malformed, 413 for too many pixels."""
    files, texts = request.get("images"), request.get("prompts")
    meta = request.get("meta") or [{}] * (len(files) if isinstance(files, list) else 0)
    for name, values, kind in (("images", files, str), ("prompts", texts, str), ("meta", meta, dict)):
        if not isinstance(values, list) or len(values) != len(files) or not all(isinstance(value, kind) for value in values):
            raise Refused(422, f"expected {name} as a list of {kind.__name__}, one per picture")
    try:
        pictures = [open_file(base64.b64decode(file, validate=True)) for file in files]
        shared = {file: open_file(base64.b64decode(file, validate=True)) for file in pictures_of(meta)}
        sizes = [picture.width * picture.height for picture in (*pictures, *shared.values())]
        if sum(sizes) > pixels:  # a small file may unpack to gigabytes
            raise Refused(413, f"expected at most {pixels} pixels in a request. Send fewer or smaller pictures")
        images = [as_tensor(picture) for picture in pictures]
        known = {file: as_tensor(picture) for file, picture in shared.items()}
    except (ValueError, binascii.Error) as problem:
        raise Refused(422, f"images: {problem}") from problem
    infos = [info | {name: known[info[name]["png"]] for name in FIELDS if info.get(name) is not None} for info in meta]
    return images, Prompts(texts, texts, infos)


def pictures_of(meta: list[dict[str, Any]]) -> set[str]:
    """The files that come as the prompts' own pictures, each once; Refused with 422 for a picture in another form."""
    files = set()
    for row, name in ((row, name) for row in range(len(meta)) for name in FIELDS if meta[row].get(name) is not None):
        given = meta[row][name]
        if not isinstance(given, dict) or not isinstance(given.get("png"), str):
            raise Refused(
                422,
                f'meta[{row}]: expected {name} as {{"png": base64}}, got {type(given).__name__}. No path is opened here: '
                "send the picture, as the reward remote does",
            )
        files.add(given["png"])
    return files


def batches(images: list[Tensor], size: int) -> list[list[int]]:
    """Rows of one shape together, at most `size` at a time."""
    shapes: dict[tuple, list[int]] = {}
    for row, image in enumerate(images):
        shapes.setdefault(tuple(image.shape), []).append(row)
    return [rows[at : at + size] for rows in shapes.values() for at in range(0, len(rows), size)]


def version_of(reward: RewardFn) -> str:
    """The package's version with a mark of the reward's settings: servers that say the same give the same scores."""
    settings = [f.name for f in fields(reward) if f.name not in ("device", "batch_size")] if is_dataclass(reward) else []
    told = repr((type(reward).__qualname__, reward.model_id, [(name, getattr(reward, name)) for name in settings]))
    try:
        package = metadata.version("alignment-studio")
    except metadata.PackageNotFoundError:  # run from a source tree
        package = "source"
    return f"{package}+{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unknown(path: str) -> dict[str, Any]:
    raise Refused(404, f"expected /health or /score, got {path}")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
