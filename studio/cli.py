"""The command line: parsing and printing only; everything else is imported inside the command that needs it."""

from __future__ import annotations

import os
import sys

from studio.commands import pruning, running, sharing, trained
from studio.commands.shared import app
from studio.errors import StudioError

__all__ = ["app", "main", "pruning", "running", "sharing", "trained"]  # importing a file of commands is what adds them


def main() -> None:
    """Entry point: user mistakes become one message and the right exit code, never a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        app()
    except StudioError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
