"""One process of a multi-process run: `python -m studio.worker RUN_FOLDER`, started by a launcher."""

from __future__ import annotations

import os
import sys

from studio.config import build
from studio.errors import StudioError
from studio.launch import work
from studio.recipe import Recipe
from studio.run import Run, RunView


def main() -> int:
    folder, rank = sys.argv[1], int(os.environ.get("RANK", "0"))
    recipe = build(Recipe, RunView.open(folder).recipe)
    run = Run.attach(folder)
    try:
        return work(run, recipe, progress=os.environ.get("STUDIO_PROGRESS", "auto"), main=rank == 0)
    except StudioError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
