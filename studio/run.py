"""The run folder: `Run` writes it while training, `RunView` reads it; nothing else passes between the two.

Whatever a reader could meet half-written is replaced atomically or read line by line, and a checkpoint exists only once
its folder has its final name and holds COMPLETE.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from studio.config import load_yaml, to_yaml
from studio.errors import MissingError, RunError, ShapeError
from studio.files import Cursor, append, as_json, disk, read_json, read_records, replace, sync
from studio.process import alive, environment, this_process

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
STATES = ("queued", "starting", "running", "stopping", "stopped", "finished", "failed", "lost")
ACTIVE = ("starting", "running", "stopping")  # a process works on the run
CONTROLS = ("stop", "save", "sample")
PATIENCE_S = 60.0  # a heartbeat may be this old before anyone wonders
BEAT_S = 1.0  # log() renews the heartbeat at most this often: quick steps should not wait for the disk
LOSSLESS_SIDE = 64  # images up to this side are kept as PNG: compression would show


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

    def save_samples(self, step: int, samples: Tensor | list[str], records: Sequence[Mapping[str, Any]]) -> Path:
        """Write images [N, 3, H, W] in [0, 1] or texts, with one record each; returns their folder."""
        if len(samples) != len(records):
            raise ShapeError(f"save_samples: got {len(samples)} samples but {len(records)} records. Give as many.")
        folder = self.folder / "samples" / _numbered(step)
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            save = _save_texts if isinstance(samples, list) else _save_images
            facts = save(folder, samples, records)
        inside = f"samples/{folder.name}"
        rows = [
            {"step": step, **record, **fact, "path": f"{inside}/{fact['path']}"}
            for record, fact in zip(records, facts, strict=True)
        ]
        append(folder / "samples.jsonl", rows)  # last, so that a record never names a file that is not there yet
        return folder

    @contextmanager
    def checkpoint(self, step: int, keep: int | None = 3) -> Iterator[Path]:
        """Yields an empty folder to fill; on leaving it becomes checkpoints/<step>, and all but `keep` older ones go.

        An error inside leaves the earlier checkpoints as they were.
        """
        final = self.folder / "checkpoints" / _numbered(step)
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
        complete = _complete(self.folder)
        for old in complete[: -max(1, keep)] if keep is not None else ():
            _discard(old)

    def latest_checkpoint(self) -> Path | None:
        """The complete checkpoint with the highest step."""
        complete = _complete(self.folder)
        return complete[-1] if complete else None

    def rewind(self, step: int) -> None:
        """Forget everything after `step`: what a resumed run writes then equals what an uninterrupted one writes."""
        # Checkpoints go first: a rewind that is itself interrupted then starts again from the same checkpoint.
        for path in _complete(self.folder):
            if int(path.name) > step:
                _discard(path)
        for path in _steps(self.folder / "samples"):
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


def request(folder: str | Path, what: str) -> None:
    """Ask the process of a run to stop, save or sample; it looks once per step."""
    if what not in CONTROLS:
        raise RunError(f"request: expected one of {', '.join(CONTROLS)}, got {what!r}. Use one of these.")
    control = RunView.open(folder).folder / "control"
    with disk(control):
        control.mkdir(exist_ok=True)
        (control / what).touch()


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
        return cls.open(_inside(Path(root), check_name(name)))

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
        return [int(path.name) for path in _steps(self.folder / "samples") if (path / "samples.jsonl").is_file()]

    def samples(self, step: int) -> list[dict[str, Any]]:
        """The records of one step, each with `file`, the place of its image or text."""
        records = read_records(self.file(f"samples/{_numbered(step)}/samples.jsonl"))[0]
        by_path = {record["path"]: record for record in records if "path" in record}
        return [{**record, "file": self.file(path)} for path, record in by_path.items()]

    def checkpoints(self) -> list[int]:
        """Steps of complete checkpoints, ascending."""
        return [int(path.name) for path in _complete(self.folder)]

    def checkpoint(self, step: int | None = None) -> Path:
        """The folder of a complete checkpoint, by default the newest."""
        steps = self.checkpoints()
        wanted = steps[-1] if step is None and steps else step
        if wanted not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise RunError(f"{self.folder}: expected a checkpoint at step {wanted}, got none. Complete ones: {have}.")
        return self.file(f"checkpoints/{_numbered(wanted)}")

    def file(self, relative: str) -> Path:
        """A path in this folder; one that leaves it, by `..` or by a link, is refused."""
        return _inside(self.folder, relative)


def list_runs(root: str | Path) -> list[RunView]:
    """All runs under `root`, newest first; folders that are not runs are passed over."""
    root, found = Path(root), []
    for folder in root.iterdir() if root.is_dir() else ():
        with suppress(RunError):
            view = RunView.find(root, folder.name)
            found.append((view.status.get("started", 0), view))
    return [view for _, view in sorted(found, key=lambda pair: (-pair[0], pair[1].name))]


def check_name(name: str) -> str:
    """The name of a run, as given; RunError unless it is one plain folder name."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name) or name in (".", ".."):
        raise RunError(f"run name: expected 1 to 128 letters, digits, '.', '_', '-', got {name!r}. Use another --name.")
    return name


def default_name(recipe: Mapping[str, Any]) -> str:
    """<date>-<time>_<algorithm>_<model>_<6 hex>"""
    policy = recipe.get("policy") or recipe.get("model")
    model = policy
    if isinstance(policy, Mapping):
        model = next((policy[key] for key in ("model", "id", "name") if isinstance(policy.get(key), str)), None)
    algorithm = recipe.get("algorithm")
    algorithm = algorithm.get("name") if isinstance(algorithm, Mapping) else algorithm
    parts = [_word(algorithm, "run"), _word(model, "model")]
    return "_".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *parts, secrets.token_hex(3)])


def _word(value: Any, otherwise: str) -> str:
    """A value as part of a run name: the last part of a Hub id or path, without odd characters."""
    last = str(value or "").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9.-]+", "-", last).strip(".-")[:40] or otherwise


def _numbered(step: int) -> str:
    return f"{int(step):06d}"


def _steps(folder: Path) -> list[Path]:
    """Folders named by a step, in order of steps; links are not followed."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: int(path.name))


def _complete(folder: Path) -> list[Path]:
    return [path for path in _steps(folder / "checkpoints") if (path / "COMPLETE").is_file()]


def _inside(folder: Path, relative: str) -> Path:
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{folder}: expected a path inside it, got {relative!r}. Links and '..' may not lead out.")
    return path


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
    except OSError as error:
        raise _unwritable(root, error) from error
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


def _stems(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """File names without suffix: p003-s01 from prompt and sample, or the position in the list."""
    stems: list[str] = []
    for i, record in enumerate(records):
        stem = f"{i:04d}"
        if "prompt_id" in record and "sample_id" in record:
            sample = record["sample_id"]
            sample = f"s{sample:02d}" if isinstance(sample, int) else sample
            stem = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{record['prompt_id']}-{sample}")[:100]
        stems.append(f"{stem}-{i:04d}" if stem in stems else stem)
    return stems


def _save_texts(folder: Path, texts: list[str], records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    facts = [{"path": f"{stem}.txt", "text": text} for stem, text in zip(_stems(records), texts, strict=True)]
    for fact in facts:
        (folder / fact["path"]).write_text(fact["text"], encoding="utf-8")
    return facts


def _save_images(folder: Path, images: Tensor, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    from PIL import Image

    if images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"save_samples: images have shape {list(images.shape)}, expected [N, 3, H, W] in [0, 1].")
    height, width = images.shape[2:]
    suffix = "png" if max(height, width) <= LOSSLESS_SIDE else "webp"
    options = {} if suffix == "png" else {"quality": 90}
    pixels = (images.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte()
    facts = []
    for stem, array in zip(_stems(records), pixels.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
        Image.fromarray(array).save(folder / f"{stem}.{suffix}", **options)
        facts.append({"path": f"{stem}.{suffix}", "width": width, "height": height})
    return facts
