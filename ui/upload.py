"""What goes to the Hub: nothing before a person has confirmed these files, this repository and who will see it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from studio.errors import ConfigError
from studio.run_view import RunView
from ui import job
from ui.exported import Export, check, exported, megabytes


@dataclass(frozen=True)
class Upload:
    """What is asked to be pushed, and has to be confirmed as it is."""

    run: str
    form: str
    repo: str
    private: bool
    digest: str

    @property
    def visibility(self) -> str:
        return "private" if self.private else "public"


def upload(view: RunView, form: str, repo: Any, visibility: Any) -> tuple[Upload, Export]:
    """The upload that a person describes; ConfigError for what cannot be pushed."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    name = str(repo or "").strip()
    try:
        validate_repo_id(name)  # takes a name without an owner, too
        named = "/" in name
    except HFValidationError:
        named = False
    if not named:
        raise ConfigError(f"push: expected owner/name as the Hub has it, got {name!r}. Say whose repository it is, and its name.")
    if visibility not in ("private", "public"):
        raise ConfigError(f"push: expected private or public, got {visibility!r}. Choose one of them.")
    export = exported(view, form)
    if export is None or not export.text:
        raise ConfigError(f"push: expected an export of {view.name} with a card, got none for {form!r}. Export it first.")
    return Upload(view.folder.name, form, name, visibility == "private", export.digest), export


def question(asked: Upload, export: Export) -> str:
    """The dialog's text: what goes where, and who will see it."""
    who = "Only you and those you let in will see it." if asked.private else "Everybody will see it and can download it."
    what = f"{len(export.files)} files, {megabytes(export.size)}, of <b>{escape(asked.form)}</b> of <b>{escape(asked.run)}</b>"
    found = check(export.text, str(export.facts.get("base") or ""))
    warned = "".join(f'<li class="warn">{escape(told)}</li>' for good, told in found if not good)
    return (
        f'<div role="alertdialog" aria-label="Confirm the upload"><h2>Upload to the Hub?</h2><p>{what}</p>'
        f'<dl><div><dt>Repository</dt><dd class="repo">{escape(asked.repo)}</dd></div>'
        f'<div><dt>Visibility</dt><dd class="visibility">{asked.visibility}</dd></div></dl><p>{who}</p>'
        f'<ul class="checks">{warned}</ul></div>'
    )


def send(view: RunView, asked: Upload | None, form: str, repo: Any, visibility: Any) -> None:
    """Start the upload that was confirmed; refused unless what is sent now is what the dialog named, files included."""
    now, found = upload(view, form, repo, visibility)
    if not isinstance(asked, Upload) or asked != now:
        what = "no question" if asked is None else f"{asked.repo} ({asked.visibility}), of {asked.form} of {asked.run}"
        raise ConfigError(
            f"push: expected what was confirmed ({what}), got {now.repo} ({now.visibility}), of {now.form} of {now.run}. "
            "Press “Push …” again, and read the question."
        )
    words = ["push", str(found.folder), now.repo, f"--{now.visibility}", "--yes"]
    about = {"form": form, "repo": now.repo, "visibility": now.visibility}
    job.begin(view, "push", words, about, HF_HUB_DISABLE_PROGRESS_BARS="0")
