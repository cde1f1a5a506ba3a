"""The run folder: `Run` writes it while training, `RunView` reads it; nothing else passes between the two.

Whatever a reader could meet half-written is replaced atomically or read line by line, and a checkpoint exists only once
its folder has its final name and holds COMPLETE.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import to_yaml
from studio.errors import MissingError, RunError
from studio.files import append, as_json, disk, read_json, read_records, replace, sync
from studio.layout import check_name, complete_checkpoints, default_name, numbered, step_folders
from studio.process import alive, environment, this_process
from studio.run_view import ACTIVE, CONTROLS, Metrics, RunView, list_runs, request
from studio.samples import write_samples

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Metrics", "Run", "RunView", "list_runs", "request"]

SCHEMA = 1
STATES = ("queued", "starting", "running", "stopping", "stopped", "finished", "failed", "lost")
BEAT_S = 1.0  # log() renews the heartbeat at most this often: quick steps should not wait for the disk


class Run:
    """A run folder being written by this process."""

    def __init__(self, folder: Path, status: dict[str, Any]) -> None:
        self.folder = folder
        self._status = status
        self._first: tuple[float, int] | None = None  # time and step of this process's first log, for the speed

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str | None,
        recipe: Mapping[str, Any],
        source: str | None = None,
        *,
        total_steps: int,
        command: Sequence[str],
    ) -> Run:
        """A new folder with the recipe as built, its source as the user wrote it, environment and status."""
        name = default_name(recipe) if name is None else check_name(name)
        folder = _new_folder(Path(root), name)
        try:
            replace(folder / "recipe.yaml", to_yaml(recipe))
            if source is not None:
                replace(folder / "recipe.source.yaml", source)
            replace(folder / "env.json", as_json(environment(command), indent=1))
            for part in ("samples", "checkpoints", "logs", "control"):
                (folder / part).mkdir()
            run = cls(folder, {"schema": SCHEMA, "step": 0, "total_steps": total_steps, "started": time.time()})
            blank = dict.fromkeys(("eta_s", "seconds_per_step", "exit_code", "reason", "error"))
            run.status(state="starting", **this_process(), **blank)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # half a run folder would only block its name
            raise
        return run

    @classmethod
    def resume(cls, folder: str | Path) -> Run:
        """An existing folder, taken over by this process; refused when finished or in the hands of another one."""
        view = RunView.open(folder)
        status = view.status
        if status["state"] == "finished":
            raise RunError(f"{view.folder} is finished (step {status['step']}). Use another --name for a new run.")
        if status["state"] in ACTIVE and (alive(status) or status["label"] != "no heartbeat"):
            raise RunError(
                f"{view.folder} is {status['state']} as process {status.get('pid')} on {status.get('host')} "
                f"(step {status['step']}). Stop it first: studio stop {view.folder.name}."
            )
        run = cls.attach(view.folder)
        run.poll_control()  # requests made to the process that is gone
        for leftover in (view.folder / "checkpoints").glob("*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        run.status(state="starting", exit_code=None, reason=None, error=None, eta_s=None)
        run.event("resumed", step=status["step"])
        return run

    @classmethod
    def attach(cls, folder: str | Path) -> Run:
        """A folder that another process of ours has prepared: a worker takes over from the command that started it."""
        run = cls(RunView.open(folder).folder, read_json(Path(folder) / "status.json"))
        for part in ("samples", "checkpoints", "logs", "control"):
            (run.folder / part).mkdir(exist_ok=True)
        run.status(**this_process())
        return run

    @property
    def state(self) -> str:
        return self._status["state"]

    def status(self, state: str | None = None, **changes: Any) -> None:
        """Replace status.json: a new state, other fields, and the heartbeat. A change of state is also an event."""
        if state is not None and state not in STATES:
            raise ValueError(f"run.status: expected a state of {', '.join(STATES)}, got {state!r}.")
        new = {**self._status, **changes, "heartbeat": time.time()}
        new["state"] = state or self._status["state"]
        replace(self.folder / "status.json", as_json(new, indent=1))
        changed, self._status = new["state"] != self._status.get("state"), new
        if changed:
            self.event("state", state=new["state"], **{k: new[k] for k in ("step", "reason") if new[k] is not None})

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one record to metrics.jsonl; a number that is not finite is written as null and is an event."""
        if {"t", "step"} & metrics.keys():
            raise ValueError("run.log: 't' and 'step' are written by the run. Rename these metrics.")
        values = {name: float(value) for name, value in metrics.items()}
        strange = [name for name, value in values.items() if not math.isfinite(value)]
        append(self.folder / "metrics.jsonl", [{"t": time.time(), "step": step, **values}])
        if strange:
            self.event("not_finite", step=step, metrics=strange)
        self._beat(step)

    def _beat(self, step: int) -> None:
        """Step, heartbeat and remaining time in status.json, at most once per BEAT_S."""
        now = time.time()
        if self._first is None or step <= self._first[1]:
            self._first = (now, step)
        self._status["step"] = step
        if step > self._first[1]:
            speed = (now - self._first[0]) / (step - self._first[1])
            self._status |= {"seconds_per_step": speed, "eta_s": speed * max(0, self._status["total_steps"] - step)}
        if now - self._status["heartbeat"] >= BEAT_S or step >= self._status["total_steps"]:
            self.status()

    def event(self, kind: str, **data: Any) -> None:
        """Append to events.jsonl: state changes, warnings, alarms, checkpoints."""
        append(self.folder / "events.jsonl", [{"t": time.time(), "kind": kind, **data}])

    def environment(self, **facts: Any) -> None:
        """Add facts to env.json that only the process with the model knows: device, dtype, attention backend."""
        path = self.folder / "env.json"
        replace(path, as_json({**read_json(path), **facts}, indent=1))

    def summary(self, data: Mapping[str, Any]) -> None:
        """Write summary.json, the figures that other programs read."""
        replace(self.folder / "summary.json", as_json(data, indent=1))

    def save_samples(
        self,
        step: int,
        samples: Tensor | list[str],
        records: Sequence[Mapping[str, Any]],
        films: Mapping[str, bytes] | None = None,
    ) -> Path:
        """Write images [N, 3, H, W] in [0, 1] or texts, with one record each, and GIFs by `prompt_id`; returns their folder."""
        return self._keep(step, "samples.jsonl", records, lambda folder: write_samples(folder, samples, records, films or {}))

    def save_groups(self, step: int, samples: Tensor | list[str], records: Sequence[Mapping[str, Any]]) -> Path:
        """The same for samples of a training rollout, beside those of the evaluation: g003-s01.webp and groups.jsonl."""
        named = [{"prompt_id": f"g{record['group']:03d}", "sample_id": record["sample_id"]} for record in records]
        return self._keep(step, "groups.jsonl", records, lambda folder: write_samples(folder, samples, named))

    def _keep(
        self, step: int, table: str, records: Sequence[Mapping[str, Any]], write: Callable[[Path], list[dict[str, Any]]]
    ) -> Path:
        """Files first, then their records: no record names a file that is not there yet."""
        folder = self.folder / "samples" / numbered(step)
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            facts = write(folder)
        for fact in facts:
            fact |= {name: f"samples/{folder.name}/{fact[name]}" for name in ("path", "film") if name in fact}
        append(folder / table, [{"step": step, **record, **fact} for record, fact in zip(records, facts, strict=True)])
        return folder

    @contextmanager
    def checkpoint(self, step: int, keep: int | None = 3) -> Iterator[Path]:
        """Yields an empty folder to fill; on leaving it becomes checkpoints/<step>, and all but `keep` older ones go.

        An error inside leaves the earlier checkpoints as they were.
        """
        final = self.folder / "checkpoints" / numbered(step)
        partial = final.with_name(f"{final.name}.tmp")
        try:
            with disk(partial):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                yield partial
                sync(self.folder / "metrics.jsonl", self.folder / "events.jsonl")  # no checkpoint ahead of its metrics
                _seal(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _discard(final)  # the same step saved again, e.g. on a request to stop
        os.replace(partial, final)
        sync(final.parent)
        replace(final.parent / "latest", f"{final.name}\n")
        self.event("checkpoint", step=step, path=f"checkpoints/{final.name}")
        complete = complete_checkpoints(self.folder)
        for old in complete[: -max(1, keep)] if keep is not None else ():
            _discard(old)

    def latest_checkpoint(self) -> Path | None:
        """The complete checkpoint with the highest step."""
        complete = complete_checkpoints(self.folder)
        return complete[-1] if complete else None

    def rewind(self, step: int) -> None:
        """Forget everything after `step`: what a resumed run writes then equals what an uninterrupted one writes."""
        # Checkpoints go first: a rewind that is itself interrupted then starts again from the same checkpoint.
        for path in complete_checkpoints(self.folder):
            if int(path.name) > step:
                _discard(path)
        for path in step_folders(self.folder / "samples"):
            if int(path.name) > step:
                shutil.rmtree(path)
        self.truncate_metrics(step)
        last = self.latest_checkpoint()
        if last is not None:
            replace(last.parent / "latest", f"{last.name}\n")
        self._first = None
        self.status(step=step, eta_s=None)

    def truncate_metrics(self, step: int) -> None:
        """Drop metrics after `step`, and a last line that was cut off, in one atomic replacement."""
        path = self.folder / "metrics.jsonl"
        kept = [record for record in read_records(path)[0] if record.get("step", 0) <= step]
        replace(path, "".join(as_json(record) + "\n" for record in kept))

    def poll_control(self) -> set[str]:
        """Requests made since the last call: stop, save, sample. Each is answered once. For rank 0 only."""
        asked = set()
        for name in CONTROLS:
            with suppress(FileNotFoundError):
                (self.folder / "control" / name).unlink()
                asked.add(name)
        return asked


def _new_folder(root: Path, name: str) -> Path:
    folder = root / name
    try:
        with disk(folder):
            root.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
    except FileExistsError as error:
        if folder.exists() and root.is_dir():
            advice = "Use --resume to continue or another --name."
            raise RunError(f"{folder} already exists{_standing(folder)}. {advice}") from error
        raise _unwritable(root, error) from error
    except (OSError, MissingError) as error:
        cause = error.__cause__ if isinstance(error, MissingError) else error
        raise _unwritable(root, cause) from error  # type: ignore[arg-type]
    return folder


def _standing(folder: Path) -> str:
    """What is known about an existing folder, for the error about it."""
    try:
        status = RunView.open(folder).status
    except RunError:
        return " (not a run)"
    return f" ({status['state']}, step {status['step']})"


def _unwritable(root: Path, error: OSError) -> MissingError:
    got = error.strerror or str(error)
    return MissingError(f"{root}: expected a directory that can be written, got: {got}. Use another --runs DIR.")


def _seal(folder: Path) -> None:
    """Bring all files of a checkpoint to the disk, then say so."""
    sync(*(path for path in sorted(folder.rglob("*"), reverse=True)))
    (folder / "COMPLETE").touch()
    sync(folder / "COMPLETE", folder)


def _discard(folder: Path) -> None:
    """Remove a checkpoint; under its final name it is whole until the moment it is gone."""
    if folder.exists():
        gone = folder.with_name(f"{folder.name}.old.tmp")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(folder, gone)
        shutil.rmtree(gone)
