"""The command line: parsing and printing only; everything else is imported inside the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from studio.errors import ConfigError, StudioError

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
        _say(f"submitted as job {job}; logs in {runs / 'slurm'}")
        return
    where = cluster(processes, nodes, profile)
    if where.rank > 0:
        raise typer.Exit(start(*join_run(runs, name), where=where, progress="none"))
    run, parsed = open_run(recipe, ctx.args, runs=runs, run_name=name, resume=resume, processes=where.total)
    _say(f"run {run.folder}")
    code = start(run, parsed, where=where, progress=progress, log_every=log_every)
    if code == 0:
        from studio.report import write_report

        _say(f"report {write_report(run.folder)}")
        print(run.folder)
    raise typer.Exit(code)


@app.command(context_settings=OVERRIDES)
def check(ctx: typer.Context, recipe: RecipeName, processes: Many = 1, as_json: Json = False) -> None:
    """What would run: batch plan, network calls, needs and provides, warnings; loads no model."""
    from studio.recipe import load_recipe, plan

    parsed, _ = load_recipe(recipe, ctx.args)
    warnings = parsed.check(processes, prompts=False)
    try:
        warnings += parsed.prompts.options.check()
    except ConfigError as missing:  # a recipe for prompts of your own: what it plans can be seen before they are there
        warnings.append(str(missing))
    facts = plan(parsed, processes) | {
        f"{parsed.algorithm.name} needs": ", ".join(sorted(parsed.objective().needs)) or "nothing",
        f"{parsed.policy.name} provides": ", ".join(sorted(parsed.policy.options.provides)),
        "rewards": ", ".join(f"{name} × {block.weight:g}" for name, block in parsed.rewards.items()),
        "held out": ", ".join(parsed.held_out) or "none",
    }
    if as_json:
        print(json.dumps(facts | {"warnings": warnings}))
        return
    _rows("check", [(name, str(value)) for name, value in facts.items()])
    for warning in warnings:
        _say(f"warning: {warning}")


@app.command(name="list")
def list_things(kind: Annotated[str, typer.Argument(help="recipes, algorithms, rewards, policies")]) -> None:
    """Recipes, algorithms with the policies they run on, rewards, policies."""
    from studio.registry import lookup, names

    if kind == "recipes":
        from studio.recipe import describe, recipe_names

        _rows(kind, [(name, describe(name)) for name in recipe_names()])
    elif kind == "algorithms":
        rows = []
        for name in names("algorithm"):
            algorithm = lookup("algorithm", name)
            needs = algorithm().objective().needs
            fits = [policy for policy in names("policy") if needs <= lookup("policy", policy).provides]
            rows.append((name, f"{_first(algorithm)}  [runs on: {', '.join(fits) or 'no policy of this version'}]"))
        _rows(kind, rows)
    elif kind in ("rewards", "policies"):
        single = {"rewards": "reward", "policies": "policy"}[kind]
        from rewards.facts import one_line

        facts = {name: one_line(lookup(single, name)()) if kind == "rewards" else "" for name in names(single)}
        _rows(kind, [(name, _first(lookup(single, name)) + (facts[name] and f"  [{facts[name]}]")) for name in facts])
    else:
        raise ConfigError(f"list: expected recipes, algorithms, rewards or policies, got {kind!r}. Name one of them.")


@app.command()
def runs(runs: Runs = HERE, as_json: Json = False) -> None:
    """All runs with their state and progress, newest first."""
    from studio.run import list_runs

    found = [(view, view.status) for view in list_runs(runs)]
    if as_json:
        print(json.dumps([{"name": view.name, **status} for view, status in found]))
        return
    _rows(
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
    facts = {"folder": str(view.folder), **view.status, "checkpoints": view.checkpoints(), "summary": view.summary}
    if as_json:
        print(json.dumps(facts | {"latest": latest, "recipe": view.recipe}))
        return
    _rows(run, [(name, str(value)) for name, value in facts.items() if value not in (None, "")])
    _rows("latest metrics", [(n, f"{v:.5g}" if isinstance(v, float) else str(v)) for n, v in sorted(latest.items())])
    _rows("recipe", [(name, str(value)) for name, value in flatten(view.recipe).items()])


@app.command()
def stop(run: RunName, runs: Runs = HERE) -> None:
    """Stop a run after its present step, with a checkpoint."""
    from studio.run import RunView, request

    view = RunView.find(runs, run)
    if view.status["state"] not in ("queued", "starting", "running", "stopping"):
        _say(f"{run} is {view.status['state']} already")
        return
    request(view.folder, "stop")
    _say(f"{run} stops after its present step")


@app.command()
def sample(
    run: RunName,
    runs: Runs = HERE,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Repeat for several; default: held-out prompts.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures in all.")] = 16,
    seed: int = 0,
    base: Annotated[bool, typer.Option("--base", help="The untrained weights.")] = False,
) -> None:
    """Pictures from the trained model -> a folder of PNG files with captions."""
    from studio.draw import draw

    print(draw(runs, run, prompt or [], count=count, seed=seed, base=base))


@app.command()
def evaluate(run: RunName, runs: Runs = HERE, prompts: int = 256, as_json: Json = False) -> None:
    """Base and trained weights on held-out prompts, same seeds; writes summary.json and the report."""
    from studio.demo import conclude
    from studio.run import RunView

    summary = conclude(RunView.find(runs, run).folder, prompts=prompts, quiet=as_json)
    if as_json:
        print(json.dumps(summary))


@app.command(context_settings=OVERRIDES)
def score(
    ctx: typer.Context,
    reward: Annotated[str, typer.Argument(help="A reward (`studio list rewards`).")],
    folder: Annotated[Path, typer.Argument(help="Folder of images.")],
    prompt: Annotated[str | None, typer.Option("--prompt", help="One caption for all images.")] = None,
    as_json: Json = False,
) -> None:
    """A reward over a folder of images; `key=value` sets the reward's own options."""
    from rewards.score import check_prompts, score_all
    from studio.config import apply_overrides, component
    from studio.score_folder import read_folder
    from studio.scoring import parts_of

    files, images, prompts = read_folder(folder, prompt)
    judge = component("reward", reward, **apply_overrides({}, ctx.args)).options
    check_prompts({reward: judge}, prompts)
    parts = parts_of(score_all({reward: judge}, images, prompts))
    rows = [{"file": file.name, **{k: float(v[i]) for k, v in parts.items()}} for i, file in enumerate(files)]
    means = {name: part.nanmean().item() for name, part in parts.items()}
    if as_json:
        print(json.dumps({"mean": means, "files": rows}))
        return
    for row in rows:
        print("  ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    print("mean  " + "  ".join(f"{name} {value:.4f}" for name, value in means.items()))


@app.command(context_settings=OVERRIDES)
def serve(
    ctx: typer.Context,
    reward: Annotated[str, typer.Argument(help="A reward (`studio list rewards`).")],
    host: Annotated[str, typer.Option(help="A public address needs STUDIO_REWARD_TOKEN in the environment.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, help="0 takes a free one.")] = 18080,
    called: Annotated[str | None, typer.Option("--as", help="Name of the reward for clients.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per call of the reward.")] = 64,
    waiting: Annotated[int, typer.Option(min=1, help="Requests at once; more are told to come again.")] = 16,
    megabytes: Annotated[int, typer.Option(min=1, help="Largest request.")] = 256,
) -> None:
    """A reward over HTTP for the reward `remote`; `key=value` sets the reward's own options."""
    from rewards.server import Limits, RewardServer
    from studio.config import apply_overrides, component

    judge = component("reward", reward, **apply_overrides({}, ctx.args)).options
    token, limits = os.environ.get("STUDIO_REWARD_TOKEN"), Limits(megabytes * 2**20, waiting, batch_size)
    with RewardServer(judge, called or reward, host=host, port=port, token=token, limits=limits) as server:
        _say(f"serving {server.name} ({judge.license}), {'with' if token else 'without'} a token; stop with Ctrl-C")
        print(server.url, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            _say("stopped")


@app.command(context_settings=OVERRIDES)
def pretrain(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="shapes")],
    out: Annotated[Path, typer.Option("--out", help="Folder for pipeline/, scorer/ and the card.")] = Path("shapes"),
) -> None:
    """How the bundled models were made: train them again from a seed."""
    if recipe != "shapes":
        raise ConfigError(f"pretrain: expected 'shapes', got {recipe!r}. It is the only bundled world.")
    from flows.shapes.pretrain import Pretrain
    from flows.shapes.pretrain import pretrain as make
    from studio.config import apply_overrides, build

    out.mkdir(parents=True, exist_ok=True)
    make(out, build(Pretrain, apply_overrides({}, ctx.args), where="pretrain"), _say)
    print(out)


@app.command()
def doctor(runs: Runs = HERE) -> None:
    """Check this installation."""
    from studio.doctor import checks

    bad = 0
    for found in checks(runs):
        print(f"{'ok ' if found.good else 'BAD'}  {found.name:20} {found.says}")
        bad += not found.good
    raise typer.Exit(3 if bad else 0)


@app.command()
def export(
    run: RunName,
    format: Annotated[str, typer.Option("--format", help="lora or pipeline.")] = "lora",
    weights: Annotated[str, typer.Option("--weights", help="ema (the averaged ones) or live.")] = "ema",
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: export/FORMAT in the run.")] = None,
    step: Annotated[int | None, typer.Option("--step", help="Checkpoint; default: the newest.")] = None,
    keys: Annotated[
        str, typer.Option("--keys", help="diffusers, or kohya for a second file with underscored names.")
    ] = "diffusers",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the trained part of a pipeline: float32, bfloat16, float16.")
    ] = "float32",
    runs: Runs = HERE,
    as_json: Json = False,
) -> None:
    """Trained weights as files that diffusers and ComfyUI load, with a model card."""
    from studio.config import build
    from studio.export import Export, export_run
    from studio.run import RunView

    given = {"format": format, "weights": weights, "step": step, "out": out, "keys": keys, "dtype": dtype}
    facts = export_run(RunView.find(runs, run), build(Export, given, where="export"))
    _say(f"step {facts['step']}, {weights} weights; reloaded, the error is {facts['error']:.2g}")
    print(json.dumps(facts) if as_json else facts["folder"])


@app.command(name="import-lora")
def import_lora(
    folder: Annotated[Path, typer.Argument(help="Folder with adapter_config.json and adapter_model.safetensors.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: FOLDER/diffusers.")] = None,
    keys: Annotated[
        str, typer.Option("--keys", help="diffusers, or kohya for a second file with underscored names.")
    ] = "diffusers",
    base: Annotated[str | None, typer.Option("--base", help="A model to compare both on: Hub id, folder or bundled name.")] = None,
) -> None:
    """A PEFT folder of another trainer as a file that diffusers and ComfyUI load at the trained strength."""
    from flows.import_lora import import_lora as convert
    from flows.load import Model, load_backbone

    if keys not in ("diffusers", "kohya"):
        raise ConfigError(f"import-lora: expected --keys diffusers or kohya, got {keys!r}. Use one of them.")
    model = None if base is None else load_backbone(Model(id=base))
    found = convert(folder, out or folder / "diffusers", underscored=keys == "kohya", base=model)
    checked = "not compared with a base" if found.error is None else f"error against PEFT {found.error:.2g}"
    _say(f"{found.modules} modules of a {found.component}, rank {found.rank}, {checked}")
    print(found.file)


@app.command()
def push(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_FOLDER", help="A run with one export, or an export folder.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    runs: Runs = HERE,
) -> None:
    """Upload an export to the Hub, after a question that names the repository; continues where it stopped."""
    from studio.push import Push, find_folder
    from studio.push import push as upload

    def confirm(question: str) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise ConfigError(f"push: expected an answer or --yes, got no terminal. {question} Nothing was uploaded.")
        return typer.confirm(question, err=True)

    place = upload(find_folder(runs, source), Push(repo, private), confirm)
    if place is None:
        _say("nothing was uploaded")
        raise typer.Exit(1)
    print(place)


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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _first(thing: type) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _rows(title: str, rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, show_header=False, title_justify="left", box=None, padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value.replace("[", r"\["))
    console = Console()
    if not console.is_terminal:  # a pipe gets whole lines
        console.width = max(200, console.width, sum(max(map(len, column)) for column in zip(*rows, strict=True)) + 8)
    console.print(grid)


if __name__ == "__main__":
    main()
