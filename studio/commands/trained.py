"""Commands about trained models, rewards and this installation."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from studio.commands.shared import HERE, OVERRIDES, Json, RunName, Runs, app, say
from studio.errors import ConfigError


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
    folder: Annotated[Path, typer.Argument(help="Folder of images, or a file of texts (.txt, .jsonl).")],
    prompt: Annotated[str | None, typer.Option("--prompt", help="One prompt for all.")] = None,
    as_json: Json = False,
) -> None:
    """A reward over a folder of images or a file of texts; `key=value` sets the reward's own options."""
    from rewards.score import check_prompts
    from studio.config import apply_overrides, component
    from studio.score_folder import read_folder
    from studio.score_texts import read_texts

    judge = component("reward", reward, **apply_overrides({}, ctx.args)).options
    texts = folder.is_file()
    if judge.reads != ("text" if texts else "image"):
        raise ConfigError(
            f"score: expected {'a folder of images' if judge.reads == 'image' else 'a file of texts (.txt, .jsonl)'} for reward "
            f"{reward!r}, got {str(folder)!r}. Name another, or choose a reward that reads it."
        )
    samples: Any
    names, samples, prompts = (read_texts if texts else read_folder)(folder, prompt)
    check_prompts({reward: judge}, prompts)
    parts = _scored(reward, judge, samples, prompts)
    rows = [{"file": name, **{k: float(v[i]) for k, v in parts.items()}} for i, name in enumerate(names)]
    means = {name: part.nanmean().item() for name, part in parts.items()}
    if as_json:
        print(json.dumps({"mean": means, "files": rows}))
        return
    for row in rows:
        print("  ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    print("mean  " + "  ".join(f"{name} {value:.4f}" for name, value in means.items()))


def _scored(name: str, judge: Any, samples: Any, prompts: Any) -> dict[str, Any]:
    """A reward and its parts [N]; pictures reach it in one batch for each size."""
    import torch

    from rewards.candidates import Compares
    from rewards.score import score_all
    from studio.score_folder import by_size
    from studio.scoring import join_scores, parts_of

    groups = [list(range(len(samples)))] if judge.reads == "text" else by_size(samples)
    if len(groups) > 1 and isinstance(judge, Compares):
        sizes = sorted({tuple(samples[group[0]].shape[1:]) for group in groups})
        raise ConfigError(f"reward {name!r}: expected images of one size, as it compares them, got {sizes}. Score them by size.")
    done = []
    for group in groups:
        batch = samples if judge.reads == "text" else torch.stack([samples[place] for place in group])
        done.append(score_all({name: judge}, batch, prompts.take(group))[name])
    back = torch.tensor([place for group in groups for place in group]).argsort()
    return {part: values.cpu()[back] for part, values in parts_of({name: join_scores(done)}).items()}


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
        say(f"serving {server.name} ({judge.license}), {'with' if token else 'without'} a token; stop with Ctrl-C")
        print(server.url, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped")


@app.command(context_settings=OVERRIDES)
def pretrain(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="shapes, text or masked-text")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Default: the name, for masked-text studio/text/masked_model."),
    ] = None,
) -> None:
    """How the bundled models were made: train them again from a seed."""
    from importlib import import_module

    from studio.config import apply_overrides, build

    places = {  # name -> module, folder
        "shapes": ("flows.shapes.pretrain", "shapes"),
        "text": ("studio.text.pretrain", "text"),
        "masked-text": ("studio.text.masked_pretrain", "studio/text/masked_model"),
    }
    if recipe not in places:
        raise ConfigError(f"pretrain: expected {', '.join(places)}, got {recipe!r}. These are the bundled models.")
    place, folder = places[recipe][0], out or Path(places[recipe][1])
    module = import_module(place)
    folder.mkdir(parents=True, exist_ok=True)
    module.pretrain(folder, build(module.Pretrain, apply_overrides({}, ctx.args), where="pretrain"), say)
    print(folder)


@app.command()
def ui(
    runs: Runs = HERE,
    host: Annotated[str, typer.Option(help="A public address needs --auth.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: the first free one from 7860.")] = None,
    auth: Annotated[str | None, typer.Option(envvar="STUDIO_UI_AUTH", help="USER:PASSWORD that a browser has to give.")] = None,
) -> None:
    """The interface in a browser: watch, compare, start, stop, prune and export runs."""
    import time

    from ui.app import build, launch, login

    login(host, auth)  # refused before the pages are made, which takes seconds
    address = launch(build(runs), host=host, port=port, auth=auth)
    say("stop with Ctrl-C; runs go on")
    print(address, flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("stopped")


@app.command()
def doctor(runs: Runs = HERE) -> None:
    """Check this installation."""
    from studio.doctor import checks

    bad = 0
    for found in checks(runs):
        print(f"{'ok ' if found.good else 'BAD'}  {found.name:20} {found.says}")
        bad += not found.good
    raise typer.Exit(3 if bad else 0)
