"""The application, the options that commands share, and how they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="studio",
    help="Post-train image generators against rewards, and see what it does to everything else.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)

OVERRIDES: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": False}
Runs = Annotated[Path, typer.Option("--runs", envvar="STUDIO_RUNS", help="Folder that holds all runs.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run.")]
Style = Annotated[str, typer.Option("--progress", help="auto, bar, plain or none.")]
Many = Annotated[int, typer.Option("--processes", "--gpus", min=1, help="Processes, one per GPU.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RunName = Annotated[str, typer.Argument(help="Name of a run.")]
RecipeName = Annotated[str, typer.Argument(help="A bundled recipe (`studio list recipes`) or a YAML file.")]
HERE = Path("runs")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def first(thing: type) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def table(title: str, rows: list[tuple[str, str]]) -> None:
    from rich.table import Table

    grid = Table(title=title, show_header=False, title_justify="left", box=None, padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value.replace("[", r"\["))
    print_table(grid, sum(max(map(len, column)) for column in zip(*rows, strict=True)) + 8)


def print_table(grid: Any, width: int = 0) -> None:
    """Print a table of rich; a pipe gets whole lines."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(200, console.width, width)
    console.print(grid)
