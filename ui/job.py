"""`studio` commands of a run that a person waits for: one at a time of each kind, with what they say, also after a restart."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from studio.errors import RunError, StudioError
from studio.files import as_json, read_json, replace
from studio.process import alive, process_started
from studio.run_view import RunView
from ui import spawn
from ui.say import refusal

TAIL = 16_384  # bytes of a log that are shown
LINES = 40


@dataclass(frozen=True)
class Job:
    """What was started, whether it still works, and what it has said."""

    about: Mapping[str, Any]  # what the page that started it wants to know later
    started: float
    working: bool
    said: tuple[str, ...]  # last lines; of a progress bar only its newest state

    @property
    def last(self) -> str:
        return self.said[-1] if self.said else ""

    @property
    def percent(self) -> int | None:
        """Of the newest progress bar."""
        found = re.search(r"(\d{1,3})%", self.last)
        return min(100, int(found[1])) if found else None


def begin(view: RunView, kind: str, words: Sequence[str], about: Mapping[str, Any], **environment: str) -> None:
    """Start `studio WORDS` for a run; refused while an earlier command of this kind works."""
    earlier = look(view, kind)
    if earlier and earlier.working:
        raise RunError(f"{view.name}: expected no {kind} at work, got one. Wait until it has ended.")
    log = view.file(f"logs/{kind}.log")
    log.unlink(missing_ok=True)
    now = time.time()
    pid = spawn.start(words, log, environment)
    facts = {"pid": pid, "pid_started": process_started(pid), "host": socket.gethostname()}
    replace(view.file(f"logs/{kind}.json"), as_json({**facts, "started": now, "about": dict(about)}))


def look(view: RunView, kind: str) -> Job | None:
    """The newest command of this kind; None when there was none."""
    spawn.reap()
    path = view.file(f"logs/{kind}.json")
    if not path.is_file():
        return None
    facts = read_json(path)
    about = facts.get("about") if isinstance(facts, dict) else None
    if not isinstance(about, dict) or not isinstance(facts.get("started"), int | float):
        return None  # not what `begin` writes
    working = facts.get("pid_started") is not None and alive(facts) is True
    return Job(about, facts["started"], working, said(view.file(f"logs/{kind}.log")))


def said(log: Path) -> tuple[str, ...]:
    """The last lines of a log."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(0, log.stat().st_size - TAIL))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return ()
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return tuple(line for line in lines if line.strip())[-LINES:]


def told(job: Job, title: str, outcome: str) -> str:
    """A command at work or ended, as HTML: `outcome` is what it came to, escaped, or empty for a failure."""
    state = "running" if job.working else "finished" if outcome else "failed"
    label = {"running": "at work", "finished": "done", "failed": "failed"}[state]
    why = outcome or f'<p class="note">{escape(job.last or "It ended without a word.")}</p>'
    if job.working:
        value = f' value="{job.percent}"' if job.percent is not None else ""
        why = f'<progress max="100"{value} aria-label="{escape(title)}"></progress>'
    opened = "" if outcome and not job.working else " open"
    log = (
        f"<details{opened}><summary>What it said</summary><pre>{escape(chr(10).join(job.said))}</pre></details>" if job.said else ""
    )
    return f'<div class="card job"><p><span class="state {state}">{label}</span> {escape(title)}</p>{why}{log}</div>'


@contextmanager
def refused(title: str) -> Iterator[None]:
    """Errors of the project inside become messages in the browser."""
    try:
        yield
    except StudioError as error:
        raise refusal(error, title) from error
