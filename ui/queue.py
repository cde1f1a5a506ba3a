"""Runs that are to start: one file per entry under ROOT/.queue, which goes from state to state by being renamed.

A rename of one file succeeds for one process only. So two interfaces over the same folder never start an entry twice, and what
waits is still there when the interface is started again. Entries that share a GPU run one after the other, in their order.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from studio.errors import RunError, StudioError
from studio.files import as_json, read_json
from studio.files import replace as write
from studio.layout import check_name, inside
from studio.process import alive, process_started, this_process
from studio.run_view import ACTIVE, RunView
from ui import spawn
from ui.entry import Entry, ready

EVERY_S = 1.0  # between two looks at what has ended
GRACE_S = 10.0  # from the renaming of an entry to the note of who did it
KEPT = 30  # entries that have ended
FILE = re.compile(r"(?P<place>\d{20})-(?P<id>[0-9a-f]{8})\.(?P<state>waiting|started|done|failed)\.json")
TAIL = 4000  # bytes of a log that are shown for a start that failed


class Standing(NamedTuple):
    """How an entry stands now: waiting, starting, running, done or failed, and why it failed."""

    state: str
    reason: str = ""


class Queue:
    """The queue of a runs folder."""

    def __init__(self, root: Path, start: Callable[..., int] = spawn.start) -> None:
        self.root, self.folder, self._start = root, root / ".queue", start
        self.trouble = ""  # why the last look failed

    def entries(self) -> list[Entry]:
        """All entries in their order; a file that cannot be read is passed over."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if match := FILE.fullmatch(path.name):
                with suppress(StudioError, TypeError, ValueError):
                    told = read_json(path)
                    told |= {"overrides": tuple(map(str, told["overrides"])), **match.groupdict(), "place": int(match["place"])}
                    found.append(Entry(**told))
        return sorted(found, key=lambda entry: entry.place)

    def add(self, entry: Entry, *, now: bool = False) -> Entry:
        """Take up an entry, to be started in its turn or now; RunError for a name that is taken."""
        self.check(entry)
        entry = replace(entry, id=secrets.token_hex(4), place=time.time_ns(), state="waiting")
        self.folder.mkdir(parents=True, exist_ok=True)
        if now:
            return self._launch(replace(entry, state="started"))
        self._write(entry)
        return entry

    def check(self, entry: Entry) -> None:
        """RunError for a name that a run cannot have, or that another has."""
        check_name(entry.name)
        if not entry.name[0].isalnum():
            raise RunError(f"run name: expected one that begins with a letter or a digit, got {entry.name!r}. Choose another.")
        if (self.root / entry.name).exists():
            raise RunError(
                f"run name: expected a new one, got {entry.name!r}, which exists. Choose another, or delete that run first."
            )
        if any(other.name == entry.name and other.state in ("waiting", "started") for other in self.entries()):
            raise RunError(f"run name: expected a new one, got {entry.name!r}, which is in the queue. Choose another.")

    def cancel(self, id: str) -> str:
        """Take a waiting entry out -> what to tell."""
        entry = self._find(id, "waiting")
        self._remove(entry)
        return f"{entry.name} was taken out of the queue."

    def move(self, id: str, by: int) -> str:
        """A waiting entry one place up (-1) or down (1) -> what to tell."""
        entry = self._find(id, "waiting")
        others = [other.place for other in self.entries() if other.state == "waiting" and other.id != id]
        before = min(max(sum(place < entry.place for place in others) + by, 0), len(others))
        if others:
            edges = [others[0] - 2, *others, 2 * time.time_ns() - others[-1]]
            self._rename(entry, replace(entry, place=(edges[before] + edges[before + 1]) // 2))
        return f"{entry.name} is number {before + 1} of {len(others) + 1}."

    def forget(self, id: str) -> str:
        """Take an entry that has ended off the list -> what to tell."""
        entry = self._find(id, "done", "failed")
        self._remove(entry)
        return f"{entry.name} is off the list."

    def standing(self, entry: Entry) -> Standing:
        """How an entry stands, from its process and its run folder."""
        view = self.run(entry)
        status = view.status if view else {}
        if entry.state in ("waiting", "done"):
            return Standing(entry.state, str(status.get("state") or ""))
        if status.get("state") in ACTIVE:
            return Standing("running")
        if entry.state == "started" and not status and self._works(entry) is not False:
            return Standing("starting")
        if not status:
            return Standing("failed", said(self.log(entry)) or "It ended before it began. Start it again.")
        if status["state"] in ("finished", "stopped"):
            return Standing("done", status["state"])
        return Standing("failed", str(status.get("reason") or status["state"]))

    def log(self, entry: Entry) -> Path:
        """Where the output of the command is, as long as there is no run folder."""
        return self.root / ".launch" / f"{entry.name}.log"

    def tick(self) -> None:
        """One look: what has ended is put away, what may start is started."""
        entries = self.entries()
        for entry in entries:
            if entry.state == "started":
                self._settle(entry)
        for entry in ready(self.entries()):
            with suppress(FileNotFoundError):  # another interface was quicker, or it was taken out
                self._launch(self._rename(entry, replace(entry, state="started")))
        for entry in [e for e in entries if e.state in ("done", "failed")][:-KEPT]:
            with suppress(FileNotFoundError):
                self._remove(entry)

    def keep(self, stop: threading.Event) -> threading.Thread:
        """Look every EVERY_S in a thread of its own, until `stop` is set or this process ends."""

        def serve() -> None:
            while not stop.wait(EVERY_S):
                try:
                    self.tick()
                    self.trouble = ""
                except (OSError, StudioError) as error:  # a full disk, a folder that went away: it may come back
                    self.trouble = str(error)

        thread = threading.Thread(target=serve, name="queue", daemon=True)
        thread.start()
        return thread

    def _launch(self, entry: Entry) -> Entry:
        """Start the command of an entry that is ours."""
        entry = replace(entry, began=time.time(), claim=this_process())
        self._write(entry)
        log = self.log(entry)
        log.unlink(missing_ok=True)  # of an earlier start under this name
        try:
            pid = self._start(entry.words(self.root), log, {"CUDA_VISIBLE_DEVICES": entry.gpus} if entry.gpus else {})
        except OSError:
            self._rename(entry, replace(entry, state="failed"))
            raise
        entry = replace(entry, process={**this_process(), "pid": pid, "pid_started": process_started(pid)})
        self._write(entry)
        return entry

    def _settle(self, entry: Entry) -> None:
        """Give a run its log, and put an entry away whose process is gone."""
        view = self.run(entry)
        if view is not None and not view.file("logs/launcher.log").exists():
            with suppress(OSError):  # not there yet, or another interface was quicker
                self.log(entry).rename(view.file("logs/launcher.log"))
        spawn.reap()
        state = self.standing(entry).state
        if state in ("done", "failed") and self._works(entry) is not True:
            with suppress(FileNotFoundError):
                self._rename(entry, replace(entry, state=state))

    def _works(self, entry: Entry) -> bool | None:
        """Whether the command lives, or the interface that is about to start it; None when that cannot be told from here."""
        if worker := entry.process or entry.claim:
            return alive(worker)
        try:
            return time.time() - self._path(entry).stat().st_ctime < GRACE_S
        except FileNotFoundError:
            return None

    def run(self, entry: Entry) -> RunView | None:
        """The run that this entry made; None before that, and for another run of that name."""
        with suppress(StudioError):
            view = RunView.find(self.root, entry.name)
            return view if entry.began and view.status.get("started", 0) >= entry.began else None
        return None

    def _find(self, id: str, *states: str) -> Entry:
        for entry in self.entries():
            if entry.id == id and entry.state in states:
                return entry
        raise RunError(f"queue: expected an entry that is {' or '.join(states)}, got one that is not any more. Look again.")

    def _path(self, entry: Entry) -> Path:
        return inside(self.folder, f"{entry.place:020d}-{entry.id}.{entry.state}.json")

    def _write(self, entry: Entry) -> None:
        told = asdict(entry)
        write(self._path(entry), as_json({key: told[key] for key in told.keys() - {"place", "id", "state"}}, indent=1))

    def _rename(self, old: Entry, new: Entry) -> Entry:
        self._path(old).rename(self._path(new))
        return new

    def _remove(self, entry: Entry) -> None:
        self._path(entry).unlink()
        if not any(other.name == entry.name for other in self.entries()):
            for kind in ("log", "yaml"):
                (self.root / ".launch" / f"{entry.name}.{kind}").unlink(missing_ok=True)


def said(log: Path) -> str:
    """The message at the end of a log: from its last error on, or its last lines."""
    try:
        text = log.read_bytes()[-TAIL:].decode(errors="replace").rstrip()
    except OSError:
        return ""
    lines = text.splitlines()
    errors = [k for k, line in enumerate(lines) if re.match(r"[A-Za-z.]*(Error|Exception|Interrupt)\b", line)]
    return "\n".join(lines[errors[-1] :] if errors else lines[-5:])
