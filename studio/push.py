"""`studio push`: an export folder to the Hub. Nothing leaves this machine before the question is answered with yes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from studio.errors import ConfigError, ExportError, MissingError
from studio.export import MARK, PARTIAL
from studio.run import RunView

IGNORED = ("checkpoints/*", "*.pkl", "optimizer.bin", "logs/*", "control/*", ".env", "env.json", f"{PARTIAL}/*", ".cache/*")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pickle")


@dataclass(frozen=True)
class Push:
    """Where to, and who may see it."""

    repo: str  # owner/name
    private: bool = True


def find_folder(runs: Path, source: str) -> Path:
    """The folder to upload: a folder with a card, or the one export of a run."""
    path = Path(source)
    if path.is_dir() and not (path / "status.json").is_file():
        folder = path
    else:
        view = RunView.open(path) if path.is_dir() else RunView.find(runs, source)
        exports = sorted(mark.parent for mark in view.file("export").glob(f"*/{MARK}"))
        if len(exports) != 1:
            got = ", ".join(str(export) for export in exports) or "none"
            raise ConfigError(f"push: expected one export of {source}, got {got}. Run `studio export` or name its folder.")
        folder = exports[0]
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """A card, safetensors only, and nothing that a link brings in from elsewhere."""
    if not (folder / "README.md").is_file():
        raise ConfigError(f"{folder}: expected a README.md, the model card, got none. Use a folder that `studio export` wrote.")
    for path in sorted(folder.rglob("*")):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ExportError(f"{path}: expected a file of {folder}, got a link that leads out of it. Remove it.")
        if path.suffix in PICKLED:
            raise ExportError(f"{path}: expected safetensors, got a pickle, which may run code when read. Remove it.")


def question(folder: Path, to: Push) -> str:
    """What is about to happen, in one sentence."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return f"Upload {folder} ({size:.1f} MB) to {to.repo} as a {_word(to.private)} model repository?"


def push(folder: Path, to: Push, confirm: Callable[[str], bool]) -> str | None:
    """Create the repository and upload what is not there yet -> its address; None when the answer was no.

    A repository that exists with the other visibility is refused: creating it again would not change it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.utils import HFValidationError, httpx, validate_repo_id

    try:
        validate_repo_id(to.repo)  # takes a name without an owner, too
    except HFValidationError as error:
        raise ConfigError(f"push: expected owner/name as the Hub has it, got {to.repo!r}. {error}") from error
    if "/" not in to.repo:
        raise ConfigError(f"push: expected owner/name, got {to.repo!r}. Say whose repository it is.")
    check_folder(folder)
    if not confirm(question(folder, to)):
        return None
    api = HfApi()
    try:
        try:
            stands = api.model_info(to.repo).private
        except RepositoryNotFoundError:
            stands = to.private
        if bool(stands) != to.private:
            raise ConfigError(
                f"push: expected {to.repo} to be {_word(to.private)}, got a repository that exists and is {_word(bool(stands))}. "
                f"Say --{_word(bool(stands))}, or choose another name."
            )
        api.create_repo(to.repo, private=to.private, exist_ok=True)
        api.upload_folder(
            repo_id=to.repo,
            folder_path=folder,
            commit_message=f"Upload {folder.name}",
            ignore_patterns=list(IGNORED),
        )
    except OfflineModeIsEnabled as error:
        raise MissingError("push: expected a connection to the Hub, got HF_HUB_OFFLINE=1. Unset it and push again.") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        advice = (
            "Log in with `hf auth login` and a token that may write." if code in (401, 403, 404) else "Push again: it continues."
        )
        raise MissingError(f"push: expected {to.repo} to accept the upload, got HTTP {code}. {advice}") from error
    except (httpx.HTTPError, ConnectionError) as error:
        detail = type(error).__name__
        raise MissingError(
            f"push: expected a connection to the Hub, got {detail}. Push again when it is there: it continues."
        ) from error
    return f"{api.endpoint}/{to.repo}"


def _word(private: bool) -> str:
    return "private" if private else "public"
