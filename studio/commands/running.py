"""Commands that make runs and look at them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from studio.commands.shared import (
    HERE,
    OVERRIDES,
    Json,
    Many,
    Name,
    RecipeName,
    RunName,
    Runs,
    Style,
    app,
    first,
    print_table,
    say,
    table,
)
from studio.errors import ConfigError


@app.command(context_settings=OVERRIDES)
def demo(ctx: typer.Context, runs: Runs = HERE, name: Name = None, progress: Style = "auto", prompts: int = 256) -> None:
    """Align the bundled pipeline with GRPO-Guard, compare before and after, write the report."""
    from studio.demo import run_demo

    code = run_demo(ctx.args, runs=runs, name=name, progress=progress, prompts=prompts)
    raise typer.Exit(code)


@app.command(context_settings=OVERRIDES)
def train(
    ctx: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="A bundled recipe or a YAML file; not needed with --resume.")] = None,
    runs: Runs = HERE,
    name: Name = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run --name from its last checkpoint.")] = False,
    processes: Many = 1,
    progress: Style = "auto",
    log_every: Annotated[int, typer.Option(min=1, help="Steps between plain progress lines.")] = 1,
    profile: Annotated[str | None, typer.Option("--profile", help="ddp, fsdp2, multi-node, or an accelerate file.")] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines, each with so many processes; run this on each.")] = 1,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit as a SLURM job instead (extra: slurm).")] = False,
    slurm_option: Annotated[list[str] | None, typer.Option("--slurm-option", help="key=value, e.g. slurm_partition=gpu.")] = None,
    minutes: Annotated[int, typer.Option(min=1, help="Time limit of a SLURM job.")] = 24 * 60,
) -> None:
    """Train a recipe; `key=value` arguments change any field of it."""
    from studio.launch import join_run, open_run, start
    from studio.nodes import cluster, profile_file

    if slurm:
        from studio.config import apply_overrides
        from studio.slurm import arguments, submit

        if profile:
            profile_file(profile)
        same = arguments(recipe, ctx.args, runs=runs, name=name, resume=resume, gpus=processes, nodes=nodes, profile=profile)
        options = apply_overrides({}, slurm_option or [])
        job = submit(same, logs=runs / "slurm", nodes=nodes, gpus=processes, minutes=minutes, options=options)
        say(f"submitted as job {job}; logs in {runs / 'slurm'}")
        return
    where = cluster(processes, nodes, profile)
    if where.rank > 0:
        raise typer.Exit(start(*join_run(runs, name), where=where, progress="none"))
    run, parsed = open_run(recipe, ctx.args, runs=runs, run_name=name, resume=resume, processes=where.total)
    say(f"run {run.folder}")
    code = start(run, parsed, where=where, progress=progress, log_every=log_every)
    if code == 0:
        from studio.report import write_report

        say(f"report {write_report(run.folder)}")
        print(run.folder)
    raise typer.Exit(code)


@app.command(context_settings=OVERRIDES)
def check(ctx: typer.Context, recipe: RecipeName, processes: Many = 1, as_json: Json = False) -> None:
    """What would run: batch plan, network calls, needs and provides, warnings; loads no model."""
    from studio.recipe import load_recipe, plan, work_of

    if work_of(recipe) == "prune":
        from pruning.launch import load_prune_recipe
        from pruning.recipe import overview

        pruned, _ = load_prune_recipe(recipe, ctx.args)
        told(overview(pruned) | needed(pruned), pruned.check(prompts=False) + prompt_warnings(pruned.prompts.options), as_json)
        return
    parsed, _ = load_recipe(recipe, ctx.args)
    warnings = parsed.check(processes, prompts=False) + (prompt_warnings(parsed.prompts.options) if parsed.prompts else [])
    facts = plan(parsed, processes) | {
        f"{parsed.algorithm.name} needs": ", ".join(sorted(parsed.objective().needs)) or "nothing",
        f"{parsed.policy.name} provides": ", ".join(sorted(parsed.policy.options.provides)),
    }
    if parsed.env is not None:
        facts["environment"] = parsed.env.name
    else:
        facts["rewards"] = ", ".join(f"{name} × {block.weight:g}" for name, block in parsed.rewards.items())
        facts["held out"] = ", ".join(parsed.held_out) or "none"
    told(facts, warnings, as_json)


@app.command(context_settings=OVERRIDES)
def schema(ctx: typer.Context, recipe: RecipeName) -> None:
    """The JSON Schema of a recipe as it stands: its fields with limits, defaults, values and what they mean."""
    from studio.config import apply_overrides, parse_yaml
    from studio.files import as_json
    from studio.json_schema import schema_of
    from studio.recipe import Recipe, describe, recipe_source, work_of

    work = work_of(recipe)
    if work == "prune":
        from pruning.launch import prune_data
        from pruning.recipe import PruneRecipe

        found = schema_of(PruneRecipe, prune_data(recipe, ctx.args)[0])
    else:
        found = schema_of(Recipe, apply_overrides(parse_yaml(recipe_source(recipe), recipe), ctx.args))
    print(as_json(found | {"title": recipe, "description": describe(recipe, work) or found["description"], "command": work}))


def needed(recipe: Any) -> dict[str, str]:
    """What the shapes of a prune recipe's network say: its sites, and the memory of every stage."""
    from pruning.memory import memory_plan
    from pruning.network import check_network

    memory = memory_plan(recipe) or []
    return check_network(recipe) | {f"memory for {stage.name} (estimate)": str(stage) for stage in memory}


def prompt_warnings(options: Any) -> list[str]:
    """What the prompt source says; a recipe for prompts of your own can be looked at before they are there."""
    try:
        return options.check()
    except ConfigError as missing:
        return [str(missing)]


def told(facts: dict[str, Any], warnings: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts | {"warnings": warnings}))
        return
    table("check", [(name, str(value)) for name, value in facts.items()])
    for warning in warnings:
        say(f"warning: {warning}")


@app.command(name="list")
def list_things(kind: Annotated[str, typer.Argument(help="recipes, algorithms, rewards, policies, pruners, environments")]) -> None:
    """Recipes, algorithms with the policies they run on, rewards, policies, pruning criteria, environments."""
    from studio.registry import lookup, names

    if kind == "recipes":
        from studio.recipe import RECIPES, describe, recipe_names

        for work in RECIPES:
            table(f"studio {work} RECIPE", [(name, describe(name, work)) for name in recipe_names(work)])
    elif kind == "algorithms":
        rows = []
        for name in names("algorithm"):
            algorithm = lookup("algorithm", name)
            needs = algorithm().objective().needs
            fits = [policy for policy in names("policy") if needs <= lookup("policy", policy).provides]
            rows.append((name, f"{first(algorithm)}  [runs on: {', '.join(fits) or 'no policy of this version'}]"))
        table(kind, rows)
    elif kind in ("rewards", "policies", "pruners", "environments"):
        single = {"rewards": "reward", "policies": "policy", "pruners": "criterion", "environments": "env"}[kind]
        from rewards.facts import one_line

        facts = {name: one_line(lookup(single, name)()) if kind == "rewards" else "" for name in names(single)}
        table(kind, [(name, first(lookup(single, name)) + (facts[name] and f"  [{facts[name]}]")) for name in facts])
    else:
        raise ConfigError(
            f"list: expected recipes, algorithms, rewards, policies, pruners or environments, got {kind!r}. Name one of them."
        )


@app.command()
def runs(runs: Runs = HERE, as_json: Json = False) -> None:
    """All runs with their state and progress, newest first."""
    from studio.run import list_runs

    found = [(view, view.status) for view in list_runs(runs)]
    if as_json:
        print(json.dumps([{"name": view.name, **status} for view, status in found]))
        return
    table(
        f"runs in {runs}",
        [
            (
                view.name,
                f"{status['label']}  step {status['step']}/{status['total_steps']}  {status.get('reason') or ''}",
            )
            for view, status in found
        ],
    )


@app.command()
def show(run: RunName, runs: Runs = HERE, as_json: Json = False) -> None:
    """One run: settings, state, latest numbers."""
    from studio.config import flatten
    from studio.run import RunView

    view = RunView.find(runs, run)
    records, *_ = view.metrics()
    latest: dict[str, Any] = {}
    for record in records:
        latest |= {name: value for name, value in record.items() if name != "t" and "@" not in name}
    summary = view.summary
    facts = {"folder": str(view.folder), **view.status, "checkpoints": view.checkpoints(), "summary": summary}
    if as_json:
        print(json.dumps(facts | {"latest": latest, "recipe": view.recipe}))
        return
    if summary and "stages" in summary:
        facts["summary"] = {name: value for name, value in summary.items() if not isinstance(value, dict | list)}
    table(run, [(name, str(value)) for name, value in facts.items() if value not in (None, "")])
    if summary and "stages" in summary:
        from studio.stages import table as stages

        print_table(stages(summary))
    table("latest metrics", [(n, f"{v:.5g}" if isinstance(v, float) else str(v)) for n, v in sorted(latest.items())])
    table("recipe", [(name, str(value)) for name, value in flatten(view.recipe).items()])


@app.command()
def stop(run: RunName, runs: Runs = HERE) -> None:
    """Stop a run after its present step, with a checkpoint."""
    from studio.run import RunView, request

    view = RunView.find(runs, run)
    if view.status["state"] not in ("queued", "starting", "running", "stopping"):
        say(f"{run} is {view.status['state']} already")
        return
    request(view.folder, "stop")
    work = "update; scoring and measuring are not interrupted" if "criterion" in view.recipe else "step"
    say(f"{run} stops after its present {work}")
