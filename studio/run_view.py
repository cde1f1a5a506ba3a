"""The run folder as its readers see it: the interface, the exporter and reports. Never writes what training writes."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from studio.config import load_yaml
from studio.errors import RunError
from studio.files import Cursor, disk, read_json, read_records
from studio.layout import check_name, complete_checkpoints, inside, numbered, step_folders
from studio.process import alive

ACTIVE = ("starting", "running", "stopping")  # a process works on the run
CONTROLS = ("stop", "save", "sample")
PATIENCE_S = 60.0  # a heartbeat may be this old before anyone wonders


class Metrics(NamedTuple):
    """New records since a cursor, in order of steps; `restarted` says that everything read earlier is to be dropped."""

    records: list[dict[str, Any]]
    cursor: Cursor
    restarted: bool


@dataclass(frozen=True)
class RunView:
    """A run folder as seen by the interface, the exporter and reports. Never writes, never imports torch."""

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> RunView:
        """The run in a folder; RunError when there is none."""
        folder = Path(folder)
        if not (folder / "status.json").is_file():
            raise RunError(f"{folder}: expected a run folder with status.json, got none. See `studio runs`.")
        return cls(folder)

    @classmethod
    def find(cls, root: str | Path, name: str) -> RunView:
        """The run called `name` under `root`; a name that would lead elsewhere is refused."""
        return cls.open(inside(Path(root), check_name(name)))

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def recipe(self) -> dict[str, Any]:
        return load_yaml(self.file("recipe.yaml"))

    @property
    def env(self) -> dict[str, Any]:
        return read_json(self.file("env.json"))

    @property
    def summary(self) -> dict[str, Any] | None:
        """The figures in summary.json, once there are some."""
        path = self.file("summary.json")
        return read_json(path) if path.exists() else None

    @property
    def status(self) -> dict[str, Any]:
        """status.json, with `state` lost when its process is gone, and `label` as the state to show."""
        status = {"step": 0, "total_steps": None, **read_json(self.file("status.json"))}
        state = status.get("state")
        if state in ACTIVE and alive(status) is False:
            status |= {"state": "lost", "reason": status.get("reason") or "the process is gone"}
        patience = max(PATIENCE_S, 5 * (status.get("seconds_per_step") or 0))
        silent = status["state"] in ACTIVE and time.time() - status.get("heartbeat", 0) > patience
        status["label"] = "no heartbeat" if silent else status["state"]
        return status

    def metrics(self, since: Cursor | None = None) -> Metrics:
        """Records after `since`; of two records of one step the later values win."""
        records, cursor, restarted = read_records(self.file("metrics.jsonl"), since)
        by_step: dict[int, dict[str, Any]] = {}
        for record in records:
            if isinstance(record.get("step"), int):
                by_step[record["step"]] = by_step.get(record["step"], {}) | record
        return Metrics([by_step[step] for step in sorted(by_step)], cursor, restarted)

    def events(self) -> list[dict[str, Any]]:
        return read_records(self.file("events.jsonl"))[0]

    def sample_steps(self) -> list[int]:
        """Steps with samples, ascending."""
        return [int(path.name) for path in step_folders(self.folder / "samples") if (path / "samples.jsonl").is_file()]

    def samples(self, step: int) -> list[dict[str, Any]]:
        """The records of one step, each with `file`, the place of its image or text."""
        return self._samples(step, "samples.jsonl")

    def group_steps(self) -> list[int]:
        """Steps with samples of a training rollout, ascending."""
        return [int(path.name) for path in step_folders(self.folder / "samples") if (path / "groups.jsonl").is_file()]

    def groups(self, step: int) -> list[dict[str, Any]]:
        """Samples of the rollout before this step, each with `file`, `group`, `advantage`, and `tokens` where it is a text."""
        return self._samples(step, "groups.jsonl")

    def _samples(self, step: int, table: str) -> list[dict[str, Any]]:
        records = read_records(self.file(f"samples/{numbered(step)}/{table}"))[0]
        by_path = {record["path"]: record for record in records if "path" in record}
        return [{**record, "file": self.file(path)} for path, record in by_path.items()]

    def checkpoints(self) -> list[int]:
        """Steps of complete checkpoints, ascending."""
        return [int(path.name) for path in complete_checkpoints(self.folder)]

    def checkpoint(self, step: int | None = None) -> Path:
        """The folder of a complete checkpoint, by default the newest."""
        steps = self.checkpoints()
        wanted = steps[-1] if step is None and steps else step
        if wanted not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise RunError(f"{self.folder}: expected a checkpoint at step {wanted}, got none. Complete ones: {have}.")
        return self.file(f"checkpoints/{numbered(wanted)}")

    def file(self, relative: str) -> Path:
        """A path in this folder; one that leaves it, by `..` or by a link, is refused."""
        return inside(self.folder, relative)


def list_runs(root: str | Path) -> list[RunView]:
    """All runs under `root`, newest first; folders that are not runs are passed over."""
    root, found = Path(root), []
    for folder in root.iterdir() if root.is_dir() else ():
        with suppress(RunError):
            view = RunView.find(root, folder.name)
            found.append((view.status.get("started", 0), view))
    return [view for _, view in sorted(found, key=lambda pair: (-pair[0], pair[1].name))]


def request(folder: str | Path, what: str) -> None:
    """Ask the process of a run to stop, save or sample; it looks once per step."""
    if what not in CONTROLS:
        raise RunError(f"request: expected one of {', '.join(CONTROLS)}, got {what!r}. Use one of these.")
    control = RunView.open(folder).folder / "control"
    with disk(control):
        control.mkdir(exist_ok=True)
        (control / what).touch()
