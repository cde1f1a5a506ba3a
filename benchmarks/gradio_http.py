"""The interface without a browser: the requests that its pages, or scripts of somebody else, send."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, Request, build_opener

API = "/gradio_api"


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> None:
        """Nowhere."""


def ask(address: str, *, data: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """One request -> (status, body, headers with small names); redirects are answers like others."""
    request = Request(address, data=data, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with build_opener(_Stay).open(request, timeout=60) as answer:
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
    except HTTPError as error:
        return error.code, error.read(), {name.lower(): value for name, value in error.headers.items()}


def file(address: str, path: object, **headers: str) -> int:
    """The status of asking for a file."""
    return ask(f"{address}{API}/file={quote(str(path), safe='/:%')}", **headers)[0]


class Event(NamedTuple):
    """Something that a page asks the server."""

    number: int
    inputs: list[Any]  # as a page that was just opened would send them
    trigger: str  # load, tick, click ...
    page: str  # address of the page that it is on
    source: int | None  # number of the component that it comes from


def events(address: str, **headers: str) -> list[Event]:
    """All events of all pages that reach the server."""
    known = json.loads(ask(f"{address}/config", **headers)[1])
    values = {part["id"]: part["props"].get("value") for part in known["components"]}
    found = [each for each in known["dependencies"] if each["backend_fn"]]
    pages = {number: page for page, parts in known["page"].items() for number in parts["dependencies"]}
    return [
        Event(
            each["id"],
            [values.get(part) for part in each["inputs"]],
            next((name for _, name in each["targets"]), ""),
            pages[each["id"]],
            next((source for source, _ in each["targets"]), None),
        )
        for each in found
    ]


def send(
    address: str, events: Sequence[tuple[int, list[Any], Any]], query: str = "", session: str = "", **headers: str
) -> list[dict[str, Any]]:
    """Post (number of the event, inputs, its data) in one session, by default a new one -> what each came to, in no order."""
    session, done = session or secrets.token_hex(6), []
    for number, inputs, data in events:
        body = {"fn_index": number, "data": inputs, "event_data": data, "session_hash": session, "trigger_id": None}
        sent = json.dumps(body).encode()
        code, told, _ = ask(f"{address}{API}/queue/join?{query}", data=sent, Content_Type="application/json", **headers)
        if code != 200:
            done.append({"success": False, "output": {"error": told.decode()}, "code": code})
    if len(done) == len(events):
        return done
    request = Request(f"{address}{API}/queue/data?session_hash={session}", headers=headers)
    with build_opener().open(request, timeout=60) as stream:
        for line in stream:
            message = json.loads(line[5:]) if line.startswith(b"data:") else {}
            if message.get("msg") == "process_completed":
                done.append(message)
            if message.get("msg") == "close_stream" or len(done) == len(events):
                break
    return done
