"""What a person may do to runs: ask them to stop, save or sample, continue them, remove them."""

from __future__ import annotations

import shutil
from pathlib import Path

from studio.errors import RunError, StudioError
from studio.run_view import ACTIVE, RunView, request
from ui import spawn


def ask(view: RunView, what: str) -> str:
    """Leave a request for the run's process -> what to tell."""
    status = view.status
    if status["state"] not in ACTIVE:
        raise RunError(f"{view.name}: expected a run at work, got one that is {status['label']}. Resume it first.")
    request(view.folder, what)
    return {
        "stop": f"{view.name} stops after its present step, with a checkpoint.",
        "save": f"{view.name} saves a checkpoint after its present step.",
        "sample": f"{view.name} evaluates and keeps samples after its present step.",
    }[what]


def resume(view: RunView) -> str:
    """Continue a run from its last checkpoint, in a process of its own -> what to tell."""
    status = view.status
    if status["state"] in (*ACTIVE, "finished"):
        raise RunError(f"{view.name}: expected a run that has stopped, got one that is {status['label']}. Start a new one instead.")
    work = "prune" if "criterion" in view.recipe else "train"
    words = [work, "--resume", "--name", view.folder.name, "--runs", str(view.folder.parent), "--progress", "plain"]
    spawn.start(words, view.file("logs/launcher.log"))
    steps = view.checkpoints()
    return f"{view.name} continues from {f'step {steps[-1]}' if steps else 'its beginning'}."


def delete(root: Path, view: RunView) -> str:
    """Remove a run folder with everything in it -> what to tell; a run at work and a link are refused."""
    folder = root / view.folder.name
    if view.status["state"] in ACTIVE:
        raise RunError(f"{view.name}: expected a run that has ended, got one that is {view.status['label']}. Stop it first.")
    if folder.is_symlink() or folder.resolve().parent != root.resolve():
        raise RunError(f"{view.name}: expected a folder in {root}, got a link to elsewhere. Remove the link by hand.")
    gone = folder.with_name(f".{folder.name}.deleted")  # out of sight at once, however long the removal takes
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)
    return f"{view.name} was deleted."


def each(views: list[RunView], act) -> str:
    """Do something to each run -> all answers; one that is refused does not keep the others from it."""
    told = []
    for view in views:
        try:
            told.append(act(view))
        except StudioError as error:
            told.append(str(error))
    return "\n".join(told)
