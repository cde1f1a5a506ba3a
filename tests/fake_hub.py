"""A Hub on 127.0.0.1: the routes that uploading, downloading and loading use, with everything it was told kept for tests."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from local_server import running


@dataclass
class Repo:
    """One model repository at its only revision."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)  # paths that each commit carried

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(sorted((k, hash_of(v)) for k, v in self.files.items())).encode()).hexdigest()


@dataclass
class Hub:
    """What tests look at; `fail` is the number of commits to answer with an error first."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    fail: int = 0

    def environment(self, home: str) -> dict[str, str]:
        """For a subprocess: huggingface_hub reads these when it is imported."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": home,
            "HF_TOKEN": "hf_x",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


def hash_of(data: bytes) -> str:
    """The name git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def fake_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(Answers):
        state = hub

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as hub.url:
        yield hub


class Answers(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *given: Any) -> None:
        """Silence."""

    def do_POST(self) -> None:
        hub, path, body = self._begin()
        if path == "api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}" if told.get("organization") else told["name"]
            known = name in hub.repos
            hub.repos.setdefault(name, Repo(told.get("visibility") == "private"))
            return self._json({"url": f"{hub.url}/{name}"}, 409 if known else 200)
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        name, repo = self._repo(path)
        if repo is None:
            return self._missing("RepoNotFound")
        if "/preupload/" in path:
            return self._json({"files": [_regular(repo, file["path"]) for file in json.loads(body)["files"]]})
        if "/commit/" in path:
            if hub.fail:
                hub.fail -= 1
                return self._json({"error": "broken on purpose"}, 500)
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            sent = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}
            repo.files |= sent
            repo.commits.append(sorted(sent))
            return self._json({"success": True, "commitOid": repo.sha, "commitUrl": f"{hub.url}/{name}/commit/{repo.sha}"})
        return self._missing("EntryNotFound")

    def do_GET(self) -> None:
        hub, path, _ = self._begin()
        if "/resolve/" in path:
            return self._file(hub, path)
        name, repo = self._repo(path)
        if repo is None:
            return self._missing("RepoNotFound")
        if "/tree/" in path:
            rows = [{"type": "file", "path": p, "size": len(d), "oid": hash_of(d)} for p, d in sorted(repo.files.items())]
            return self._json(rows)
        siblings = [{"rfilename": path} for path in sorted(repo.files)]
        return self._json({"id": name, "sha": repo.sha, "siblings": siblings, "tags": [], "private": repo.private})

    do_HEAD = do_GET

    def _begin(self) -> tuple[Hub, str, bytes]:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.state.requests.append(f"{self.command} /{path}")
        self.state.tokens.add(self.headers.get("Authorization", ""))
        return self.state, path, self._body()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _repo(self, path: str) -> tuple[str, Repo | None]:
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        return name, self.state.repos.get(name)

    def _file(self, hub: Hub, path: str) -> None:
        name, _, rest = path.partition("/resolve/")
        repo, file = hub.repos.get(name), rest.partition("/")[2]
        if repo is None:
            return self._missing("RepoNotFound")
        if file not in repo.files:
            return self._missing("EntryNotFound", repo.sha)
        data = repo.files[file]
        return self._send(data, 200, {"ETag": f'"{hash_of(data)}"', "X-Repo-Commit": repo.sha})

    def _missing(self, code: str, sha: str = "0" * 40) -> None:
        self._send(b"{}", 404, {"X-Error-Code": code, "X-Repo-Commit": sha})

    def _json(self, data: Any, code: int = 200) -> None:
        self._send(json.dumps(data).encode(), code, {"Content-Type": "application/json"})

    def _send(self, data: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _regular(repo: Repo, path: str) -> dict[str, Any]:
    """`regular` for every file avoids the two large-file protocols; the oid says what is there already."""
    there = hash_of(repo.files[path]) if path in repo.files else None
    return {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": there}
