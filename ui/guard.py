"""What stands before every request: who may ask from where, which files leave, and what a browser may do with an answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LOCAL = ("127.0.0.1", "localhost", "::1")
PICTURES = (".png", ".webp", ".jpg", ".jpeg", ".gif")
FILES = ("/gradio_api/file=", "/gradio_api/file/")
# Gradio's own page needs inline and evaluated scripts; nothing may come from, or go to, another server, and text that became
# markup by mistake has no handlers.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; script-src-attr 'none'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
ALONE = "sandbox; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'"  # of a file that is opened by itself


class Guard:
    """ASGI middleware; `alone` says that there is no login, so that only this machine's own addresses are answered to."""

    def __init__(self, app: Any, root: Path, alone: bool) -> None:
        self.app, self.root, self.alone = app, root.resolve(), alone

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        file = _asked_file(scope["path"])
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        why = self.strange(headers) or (self.withheld(file) if file is not None else "")
        if why:
            plain = [(b"content-type", b"text/plain; charset=utf-8"), *_headers(ALONE)]
            await send({"type": "http.response.start", "status": 403, "headers": plain})
            return await send({"type": "http.response.body", "body": f"{why}\n".encode()})
        added = _headers(POLICY if file is None else ALONE)

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        await self.app(scope, receive, answer)

    def strange(self, headers: Mapping[str, str]) -> str:
        """Why a request is none of this interface's own pages; empty for one that may be.

        A page of another site that a browser has open could otherwise ask in the person's name, also under a name of its own
        that leads to this machine.
        """
        host, origin = _name(f"//{headers.get('host', '')}"), headers.get("origin")
        if self.alone and host not in LOCAL:
            return f"expected one of {', '.join(LOCAL)} as the host, got another. Open that address, or set --auth USER:PASSWORD."
        if origin is None:
            return ""
        own = LOCAL if self.alone else (host, _name(f"//{headers.get('x-forwarded-host', '')}"))
        if _name(origin) in own:
            return ""
        return "expected a request of this interface's own pages, got one of another site. A proxy has to pass on the Host header."

    def withheld(self, file: str) -> str:
        """Why a file is not served: of a run, only pictures of its samples and of its exports' cards are."""
        if file.startswith(("http:", "https:", "//")):
            return "expected a file, got an address of another server. Open it directly."
        try:
            path = Path(file).resolve()
        except (OSError, RuntimeError, ValueError):
            return "expected a file, got no path."
        if not path.is_relative_to(self.root):
            return ""  # an upload, or a download made for a page: gradio knows its own
        parts = path.relative_to(self.root).parts
        sampled = len(parts) > 2 and parts[1] == "samples"
        card = len(parts) > 4 and parts[1] == "export" and parts[3] == "images"
        if (sampled or card) and path.suffix.lower() in PICTURES:
            return ""
        return "expected a picture of a run's samples or of a card, got another file. Open it on the machine that the runs are on."


def _headers(policy: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"SAMEORIGIN"),
        (b"referrer-policy", b"same-origin"),
    ]


def _asked_file(path: str) -> str | None:
    """The file that an address asks for; None for other addresses. Leading parts are those of a proxy."""
    for mark in FILES:
        if mark in path:
            return path.partition(mark)[2]
    return None


def _name(address: str) -> str:
    """The host of an address without its port; empty when it has none."""
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""
