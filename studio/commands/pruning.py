"""The command that makes a network smaller."""

from __future__ import annotations

from typing import Annotated

import typer

from studio.commands.shared import HERE, OVERRIDES, Name, Runs, Style, app, print_table, say


@app.command(context_settings=OVERRIDES)
def prune(
    ctx: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="A bundled recipe or a YAML file; not needed with --resume.")] = None,
    runs: Runs = HERE,
    name: Name = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run --name from its last checkpoint.")] = False,
    progress: Style = "auto",
    log_every: Annotated[int, typer.Option(min=1, help="Updates between plain progress lines.")] = 1,
) -> None:
    """Remove heads, neurons or blocks: learn or score, compensate, slice, verify, measure; prints one table."""
    from pruning.launch import open_prune, start_prune

    run, parsed = open_prune(recipe, ctx.args, runs=runs, run_name=name, resume=resume)
    say(f"run {run.folder}")
    code = start_prune(run, parsed, progress=progress, log_every=log_every, say=say)
    if run.state == "finished":
        from studio.report import write_report
        from studio.run import RunView
        from studio.stages import table

        print_table(table(RunView.open(run.folder).summary or {}))
        say(f"report {write_report(run.folder)}")
    if code == 0:
        print(run.folder)
    raise typer.Exit(code)
